//! `cargo xtask pages`: the tables of keys in `docs/plugins`, generated from the schemas that the binary prints, and the table of
//! rules in `docs/lint.md`.

use std::{fmt::Write, path::Path, process::Command};

use serde_json::Value;

use crate::{Outcome, files, read, root, say};

/// The marks around a generated table.
const KEYS: [&str; 2] = ["<!-- keys -->\n", "<!-- /keys -->"];
const RULES: [&str; 2] = ["<!-- rules -->\n", "<!-- /rules -->"];

/// The keys of every configuration, which `docs/plugins/README.md` describes once.
const COMMON: [&str; 4] = ["cniVersion", "name", "type", "capabilities"];

/// Writes the tables; with `--check`, fails if one is out of date.
pub(crate) fn pages(arguments: &[String]) -> Outcome {
    let check = arguments.iter().any(|argument| argument == "--check");
    let mut stale = Vec::new();
    let mut written = 0;
    for path in files(&root().join("docs/plugins"), &[".md"]) {
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        if name == "README" {
            continue;
        }
        written += 1;
        if !update(&path, KEYS, &table(&netloom(&["schema", name])?)?, check)? {
            stale.push(name.to_owned());
        }
    }
    let rules = netloom(&["lint", "--explain", "all", "--format", "json"])?;
    if !update(&root().join("docs/lint.md"), RULES, &table_of_rules(&rules), check)? {
        stale.push("lint".to_owned());
    }
    if stale.is_empty() {
        say(&format!("{written} pages of plugins and docs/lint.md are up to date"));
        return Ok(());
    }
    Err(format!("out of date: {}; run `cargo xtask pages`", stale.join(", ")))
}

/// Writes the table between the marks of a page. With `check`, only returns whether it is there.
fn update(path: &Path, marks: [&str; 2], table: &str, check: bool) -> Result<bool, String> {
    let page = read(path)?;
    let new = with_table(&page, marks, table)
        .ok_or_else(|| format!("{} has no `{}` mark for the table", path.display(), marks[0].trim()))?;
    if new == page || check {
        return Ok(new == page);
    }
    write(path, &new).map(|()| true)
}

/// Returns the table of `netloom lint`'s rules.
fn table_of_rules(rules: &Value) -> String {
    let mut rows = String::from(
        "| rule | severity | looks at | `--fix` | finds | otherwise |\n|---|---|---|---|---|---|\n",
    );
    for rule in rules.as_array().into_iter().flatten() {
        let text = |key: &str| rule[key].as_str().unwrap_or_default();
        let name = text("name");
        let fix = if rule["fix"] == true { "yes" } else { "" };
        rows += &format!(
            "| [`{name}`](../crates/lint/tests/rules/{name}.toml) | {} | {} | {fix} | {} | {} |\n",
            text("severity"),
            text("scope"),
            text("about"),
            text("why"),
        );
    }
    rows
}

/// Returns the JSON that the program prints.
fn netloom(arguments: &[&str]) -> Result<Value, String> {
    let output = Command::new("cargo")
        .args(["run", "--quiet", "--package", "netloom", "--"])
        .args(arguments)
        .current_dir(root())
        .output()
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("netloom {}: {error}", arguments.join(" ")))
}

fn with_table(page: &str, [begin, end]: [&str; 2], table: &str) -> Option<String> {
    let (before, rest) = page.split_once(begin)?;
    let (_, after) = rest.split_once(end)?;
    Some(format!("{before}{begin}{table}{end}{after}"))
}

fn write(path: &Path, text: &str) -> Outcome {
    std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

fn table(schema: &Value) -> Result<String, String> {
    let mut rows = String::new();
    for (key, value) in schema["properties"].as_object().into_iter().flatten() {
        if !COMMON.contains(&key.as_str()) {
            add_rows(key, value, &mut rows)?;
        }
    }
    if rows.is_empty() {
        return Ok("It has no keys of its own.\n".to_owned());
    }
    Ok(format!("| key | type | default | example | meaning |\n|---|---|---|---|---|\n{rows}"))
}

/// Adds a row for a key that has an example, and rows for the keys below it.
fn add_rows(key: &str, schema: &Value, rows: &mut String) -> Outcome {
    let below = schema["properties"].as_object();
    let is_boolean = kind(schema) == "boolean";
    let example = match &schema["examples"][0] {
        Value::Null if is_boolean => (!schema["default"].as_bool().unwrap_or_default()).to_string(),
        Value::Null => {
            schema["enum"].as_array().and_then(|all| all.last()).map_or_else(String::new, Value::to_string)
        }
        example => example.to_string(),
    };
    if example.is_empty() && below.is_none() {
        return Err(format!("key {key} has no example"));
    }
    if !example.is_empty() {
        let default = match &schema["default"] {
            Value::Null if is_boolean => "`false`".to_owned(),
            Value::Null => String::new(),
            default => format!("`{default}`"),
        };
        let meaning = schema["description"].as_str().ok_or(format!("key {key} has no description"))?;
        let kind = match schema["enum"].as_array() {
            Some(values) => values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", "),
            None => kind(schema),
        };
        writeln!(rows, "| `{key}` | {kind} | {default} | `{example}` | {} |", meaning.replace('\n', " "))
            .map_err(|error| error.to_string())?;
    }
    for (name, value) in below.into_iter().flatten() {
        add_rows(&format!("{key}.{name}"), value, rows)?;
    }
    let mut items = &schema["items"];
    let mut path = format!("{key}[]");
    while items["items"].is_object() {
        items = &items["items"];
        path.push_str("[]");
    }
    for (name, value) in items["properties"].as_object().into_iter().flatten() {
        add_rows(&format!("{path}.{name}"), value, rows)?;
    }
    Ok(())
}

/// Returns the name of a type as the tables show it.
fn kind(schema: &Value) -> String {
    let first = |kind: &Value| kind.as_str().map(str::to_owned);
    let name = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().filter_map(first).find(|kind| kind != "null"),
        kind => first(kind),
    };
    match name.unwrap_or_default().as_str() {
        "array" => match kind(&schema["items"]).as_str() {
            "text" => "list of texts".to_owned(),
            "object" => "list of objects".to_owned(),
            _ => "list of lists".to_owned(),
        },
        "string" => "text".to_owned(),
        "integer" => "number".to_owned(),
        other => other.to_owned(),
    }
}
