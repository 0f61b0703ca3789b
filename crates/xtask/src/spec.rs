//! `cargo xtask spec`: which test covers which requirement (R) and which conformance vector (V).
//!
//! `docs/requirements.md` lists the requirements; the comment above a test names those that it covers.

use std::collections::BTreeMap;

use crate::{Outcome, files, read, root, say};

/// The number of conformance vectors.
const VECTORS: u32 = 71;

/// Prints each requirement with its tests, and fails if one has none.
pub(crate) fn spec() -> Outcome {
    let requirements = requirements()?;
    let covered = covered()?;
    let mut holes = Vec::new();
    for (number, text) in &requirements {
        let tests = covered.get(&('R', *number));
        say(&format!(
            "R{number:<4} {text}\n      {}",
            tests.map_or("NOT COVERED".to_owned(), |tests| tests.join(", "))
        ));
        if tests.is_none() {
            holes.push(format!("R{number}"));
        }
    }
    holes.extend((1..=VECTORS).filter(|v| !covered.contains_key(&('V', *v))).map(|v| format!("V{v}")));
    for (kind, number) in covered.keys() {
        let known =
            if *kind == 'R' { requirements.contains_key(number) } else { (1..=VECTORS).contains(number) };
        if !known {
            holes.push(format!("{kind}{number} (does not exist)"));
        }
    }
    if holes.is_empty() {
        say(&format!("{} requirements and {VECTORS} vectors, each covered by a test", requirements.len()));
        return Ok(());
    }
    Err(format!("not covered by any test: {}", holes.join(" ")))
}

/// Parses the table of requirements: `| R1 | text |`.
fn requirements() -> Result<BTreeMap<u32, String>, String> {
    let text = read(&root().join("docs/requirements.md"))?;
    let row = |line: &str| {
        let mut cells = line.split('|').map(str::trim).skip(1);
        let number = cells.next()?.strip_prefix('R')?.parse().ok()?;
        Some((number, cells.next()?.to_owned()))
    };
    Ok(text.lines().filter_map(row).collect())
}

/// Returns the names of the tests of each requirement and vector that the comments above them name.
fn covered() -> Result<BTreeMap<(char, u32), Vec<String>>, String> {
    let mut covered: BTreeMap<(char, u32), Vec<String>> = BTreeMap::new();
    for path in files(&root().join("crates"), &[".rs"]) {
        let mut named = Vec::new();
        let mut is_test = false;
        for line in read(&path)?.lines().map(str::trim) {
            if let Some(comment) = line.strip_prefix("///") {
                named.extend(references(comment));
            } else if line == "#[test]" {
                is_test = true;
            } else if let Some(name) = line.strip_prefix("fn ").filter(|_| is_test) {
                let name = name.split('(').next().unwrap_or_default();
                for reference in named.drain(..) {
                    covered.entry(reference).or_default().push(name.to_owned());
                }
                is_test = false;
            } else if !line.starts_with('#') {
                named.clear();
                is_test = false;
            }
        }
    }
    Ok(covered)
}

/// Returns the references in a text, such as `R12` and `V3`.
fn references(text: &str) -> Vec<(char, u32)> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric());
    words
        .filter_map(|word| {
            let kind = word.chars().next().filter(|kind| matches!(kind, 'R' | 'V'))?;
            Some((kind, word[1..].parse().ok()?))
        })
        .collect()
}
