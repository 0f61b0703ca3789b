//! Finds circles of imports between the files of a crate.
//!
//! A small resolver, not a compiler: it reads every path that starts with `crate`, `self`, `super` or a child module, follows
//! re-exports, and ends at the file that defines the item. Comments, texts and `#[cfg(test)]` modules do not count, and
//! neither does a `mod` declaration alone.
//!
//! A file and the modules that it declares belong together: a module may use what its parents define, up to the crate's
//! root, although they call it. Every other circle counts.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use crate::{files, read};

/// A module's place in the crate: `[]` is the crate's root.
type Place = Vec<String>;

#[derive(Default)]
struct Module {
    /// Every path in the code.
    paths: Vec<Vec<String>>,
    /// What `use` declarations make known under a name.
    names: BTreeMap<String, Vec<String>>,
}

/// The imports between the files of one crate.
pub(crate) struct Imports {
    /// Files, by their path below `src`, and the files that each imports from.
    pub(crate) arrows: BTreeMap<String, BTreeSet<String>>,
}

impl Imports {
    /// Reads the crate whose sources are in a folder.
    pub(crate) fn read(src: &Path) -> Result<Self, String> {
        let mut modules = BTreeMap::new();
        let mut names = BTreeMap::new();
        for path in files(src, &[".rs"]) {
            let shown = path.strip_prefix(src).unwrap_or(&path).display().to_string();
            if shown.starts_with("bin/") {
                continue;
            }
            let mut place: Place = shown.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
            if matches!(place.last().map(String::as_str), Some("lib" | "main")) && place.len() == 1 {
                place.clear();
            }
            modules.insert(place.clone(), parse(&read(&path)?));
            names.insert(place, shown);
        }
        let mut arrows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (place, module) in &modules {
            let from = arrows.entry(names[place].clone()).or_default();
            for path in &module.paths {
                // An item of the file itself, or of a file that this one is a part of.
                if let Some(to) = resolve(&modules, place, path, 0).filter(|to| !place.starts_with(to)) {
                    from.insert(names[&to].clone());
                }
            }
        }
        Ok(Self { arrows })
    }

    /// Returns the circles: groups of files of which each imports, on some way, from every other.
    pub(crate) fn circles(&self) -> Vec<Vec<String>> {
        let reached: BTreeMap<&String, BTreeSet<&String>> =
            self.arrows.keys().map(|file| (file, self.reached(file))).collect();
        let mut circles: BTreeSet<Vec<String>> = BTreeSet::new();
        for file in self.arrows.keys().filter(|file| reached[file].contains(file)) {
            let both = self
                .arrows
                .keys()
                .filter(|other| reached[file].contains(other) && reached[other].contains(file));
            circles.insert(both.cloned().collect());
        }
        circles.into_iter().collect()
    }

    fn reached(&self, file: &String) -> BTreeSet<&String> {
        let mut reached = BTreeSet::new();
        let mut open: Vec<&String> = self.arrows[file].iter().collect();
        while let Some(next) = open.pop() {
            if reached.insert(next) {
                open.extend(&self.arrows[next]);
            }
        }
        reached
    }

    /// Returns the imports inside a circle, a line each.
    pub(crate) fn describe(&self, circle: &[String]) -> String {
        let inside = |file: &String| -> Vec<&str> {
            self.arrows[file].iter().filter(|to| circle.contains(to)).map(String::as_str).collect()
        };
        circle.iter().map(|file| format!("\n      {file} -> {}", inside(file).join(", "))).collect()
    }
}

/// Returns the module in which a path's item is defined; `None` if it is outside the crate.
fn resolve(modules: &BTreeMap<Place, Module>, from: &Place, path: &[String], depth: usize) -> Option<Place> {
    if depth > 8 {
        return None;
    }
    let mut at = from.clone();
    let mut rest = path;
    match path.first()?.as_str() {
        "crate" => {
            at.clear();
            rest = &path[1..];
        }
        "self" => rest = &path[1..],
        "super" => {
            while rest.first().is_some_and(|segment| segment == "super") {
                at.pop()?;
                rest = &rest[1..];
            }
        }
        first => {
            let child = [at.as_slice(), &[first.to_owned()]].concat();
            if !modules.contains_key(&child) {
                return None;
            }
        }
    }
    while let Some(segment) = rest.first() {
        let child = [at.as_slice(), std::slice::from_ref(segment)].concat();
        if modules.contains_key(&child) {
            at = child;
            rest = &rest[1..];
            continue;
        }
        if let Some(target) = modules.get(&at).and_then(|module| module.names.get(segment)) {
            let path = [target.as_slice(), &rest[1..]].concat();
            return resolve(modules, &at, &path, depth + 1);
        }
        break;
    }
    // An inline module has no file of its own: its items belong to the file around it.
    while !modules.contains_key(&at) {
        at.pop()?;
    }
    Some(at)
}

fn parse(text: &str) -> Module {
    let code = without_comments(text);
    let code = code.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let mut module = Module::default();
    let mut rest = code;
    let mut others = String::new();
    while let Some(at) = find_use(rest) {
        others.push_str(&rest[..at]);
        let declaration = &rest[at..];
        let end = declaration.find(';').unwrap_or(declaration.len());
        let tree = declaration[..end].trim_start_matches("use").trim();
        for (path, name) in expand(tree) {
            if name != "_" && name != "*" {
                module.names.insert(name, path.clone());
            }
            module.paths.push(path);
        }
        rest = &declaration[end..];
    }
    others.push_str(rest);
    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    for word in others.split(|c: char| !is_path(c)).filter(|word| word.contains("::")) {
        let path: Vec<String> = word.split("::").filter(|it| !it.is_empty()).map(str::to_owned).collect();
        module.paths.push(path);
    }
    module
}

/// Finds the next `use` declaration.
fn find_use(code: &str) -> Option<usize> {
    let mut from = 0;
    loop {
        let at = from + code[from..].find("use ")?;
        let before = code[..at].trim_end_matches([' ', '\t']);
        let is_first =
            before.is_empty() || before.ends_with(['\n', ';', '{', '}', ')']) || before.ends_with("pub");
        if is_first {
            return Some(at);
        }
        from = at + 4;
    }
}

/// Expands `a::{b, c::d as e}` into paths and the names that they get.
fn expand(tree: &str) -> Vec<(Vec<String>, String)> {
    let tree = tree.trim();
    if let Some((before, inner)) = tree.split_once('{') {
        let prefix: Vec<String> =
            before.split("::").map(str::trim).filter(|it| !it.is_empty()).map(str::to_owned).collect();
        let inner = inner.rsplit_once('}').map_or(inner, |(inner, _)| inner);
        let parts = split_top(inner).into_iter().flat_map(expand);
        return parts
            .map(|(path, name)| {
                let is_self = path.len() == 1 && path[0] == "self";
                let name =
                    if is_self && name == "self" { prefix.last().cloned().unwrap_or_default() } else { name };
                let path = if is_self { prefix.clone() } else { [prefix.clone(), path].concat() };
                (path, name)
            })
            .collect();
    }
    let (path, name) = tree.split_once(" as ").map_or((tree, None), |(path, name)| (path, Some(name.trim())));
    let path: Vec<String> =
        path.split("::").map(str::trim).filter(|it| !it.is_empty()).map(str::to_owned).collect();
    let Some(last) = path.last().cloned() else { return Vec::new() };
    vec![(path, name.map_or(last, str::to_owned))]
}

fn split_top(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// Blanks line comments and the insides of texts.
fn without_comments(text: &str) -> String {
    let mut code = String::new();
    for line in text.lines() {
        let mut in_text = false;
        let mut previous = ' ';
        let mut chars = line.chars().peekable();
        while let Some(c) = chars.next() {
            if c == '"' && previous != '\\' && previous != '\'' {
                in_text = !in_text;
            } else if !in_text && c == '/' && chars.peek() == Some(&'/') {
                break;
            } else if !in_text {
                code.push(c);
            }
            previous = c;
        }
        code.push('\n');
    }
    code
}
