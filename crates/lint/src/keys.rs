//! Keys and values of a list and of its plugins, compared with their shapes.

use crate::{
    document::{Document, Plugin},
    node::{Member, Node, Value},
    parse::placeholder_found,
    report::Report,
    shape::{self, Kind, Shape},
    table::Rule,
    types,
};

/// Keys of a list, which have no effect in a plugin.
const OF_LISTS: [&str; 5] = ["cniVersions", "disableCheck", "disableGC", "loadOnlyInlinedPlugins", "plugins"];
/// Keys that other rules check.
const CHECKED_ELSEWHERE: [&str; 3] = ["cniVersion", "cniVersions", "plugins"];
/// The only keys of a plugin whose keys are unknown: those that every plugin has.
const OF_EVERY_PLUGIN: [&str; 4] = ["cniVersion", "name", "type", "capabilities"];

pub(crate) fn check(document: &Document<'_>, report: &mut Report<'_>) {
    placeholders(&document.root, report);
    if document.is_list() {
        list(&document.root, report);
        if let Some(plugins) = document.root.get("plugins") {
            let shape = Shape { kinds: vec![Kind::Array], ..Shape::default() };
            if has_type(plugins, &shape, "plugins", report) {
                for (index, item) in plugins.items().iter().enumerate() {
                    let shape = Shape { kinds: vec![Kind::Object], ..Shape::default() };
                    has_type(item, &shape, &format!("plugins[{index}]"), report);
                }
            }
        }
    }
    for plugin in document.plugins() {
        of_plugin(plugin, report);
    }
}

fn placeholders(node: &Node<'_>, report: &mut Report<'_>) {
    if node.is_placeholder() {
        placeholder_found(node.span.clone(), node.text().unwrap_or_default(), report);
    }
    node.members().iter().for_each(|member| placeholders(&member.node, report));
    node.items().iter().for_each(|item| placeholders(item, report));
}

fn list(root: &Node<'_>, report: &mut Report<'_>) {
    let shape = shape::of_list();
    for member in root.members() {
        let key = member.key.as_ref();
        match shape.key(key) {
            Some((name, below)) => {
                capitals(member, name, report);
                if !CHECKED_ELSEWHERE.contains(&name.as_str()) {
                    value(&member.node, below, name, "a list", report);
                }
            }
            // nerdctl and podman keep their own notes there.
            None if is_note(key) || key.starts_with("nerdctl") || key == "args" => {}
            None if is_reserved(key) => reserved(member, report),
            None if key.eq_ignore_ascii_case("type") || shape::owner_of(key).is_some() => {
                let message = format!("`{key}` has no effect beside `plugins`");
                let help = "move it into the plugin that it is for";
                report.add(Rule::KeyLevel, member.key_span.clone(), message, help);
            }
            None => unknown(member, shape, "a list", report),
        }
    }
}

fn of_plugin(plugin: Plugin<'_, '_>, report: &mut Report<'_>) {
    let kind = plugin.kind();
    let Some(shape) = shape::of_plugin(kind) else {
        let common = shape::of_plugin("loopback");
        for member in plugin.node.members() {
            let known = OF_EVERY_PLUGIN.iter().find(|name| name.eq_ignore_ascii_case(&member.key));
            if let Some((name, below)) = known.and_then(|name| common?.key(name)) {
                value(&member.node, below, name, kind, report);
            }
        }
        return;
    };
    let owner = format!("`{kind}`");
    for member in plugin.node.members() {
        let key = member.key.as_ref();
        if let Some((name, below)) = shape.key(key).filter(|(name, _)| name != "runtimeConfig") {
            capitals(member, name, report);
            match name.as_str() {
                "ipam" if kind != "flannel" => ipam(&member.node, report),
                "delegate" => delegate(&member.node, report),
                "type" => {}
                _ if CHECKED_ELSEWHERE.contains(&name.as_str()) => {}
                _ => value(&member.node, below, name, &owner, report),
            }
        } else if is_reserved(key) {
            reserved(member, report);
        } else if let Some(name) = OF_LISTS.iter().find(|name| name.eq_ignore_ascii_case(key)) {
            let message = format!("`{name}` has no effect in a plugin");
            report.add(Rule::KeyLevel, member.key_span.clone(), message, "move it beside `plugins`");
        } else if !key.eq_ignore_ascii_case("args") && !is_note(key) {
            unknown(member, shape, &owner, report);
        }
    }
}

/// Checks `ipam` by the plugin in its `type`.
fn ipam(node: &Node<'_>, report: &mut Report<'_>) {
    let any = Shape { kinds: vec![Kind::Object], ..Shape::default() };
    if !has_type(node, &any, "ipam", report) {
        return;
    }
    let kind = node.text_of("type").unwrap_or_default();
    if let Some(shape) = shape::of_ipam(kind) {
        value(node, shape, "ipam", &format!("`{kind}`"), report);
    } else if let Some(kind) = node.get("type") {
        let text = Shape { kinds: vec![Kind::Text], ..Shape::default() };
        has_type(kind, &text, "ipam.type", report);
    }
}

/// Checks flannel's `delegate`: the configuration of a bridge, or of the plugin in its `type`.
fn delegate(node: &Node<'_>, report: &mut Report<'_>) {
    for member in node.members().iter().filter(|member| ["name", "ipam"].contains(&member.key.as_ref())) {
        let message = format!("flannel sets `{}` itself and refuses it in `delegate`", member.key);
        report.add(Rule::FlannelDelegate, member.key_span.clone(), message, "remove it");
    }
    let kind = node.text_of("type").unwrap_or("bridge");
    if let Some(shape) = shape::of_plugin(kind).filter(|_| kind != "flannel") {
        let owner = format!("`{kind}`");
        for member in node.members() {
            match shape.key(&member.key) {
                Some((name, _))
                    if ["name", "ipam", "type", "args", "runtimeConfig"].contains(&name.as_str()) => {}
                Some((name, below)) => {
                    capitals(member, name, report);
                    value(&member.node, below, &format!("delegate.{name}"), &owner, report);
                }
                None if is_note(&member.key) => {}
                None => unknown(member, shape, &owner, report),
            }
        }
    }
}

/// Checks a value and what is in it.
fn value(node: &Node<'_>, shape: &Shape, path: &str, owner: &str, report: &mut Report<'_>) {
    if !has_type(node, shape, path, report) {
        return;
    }
    match &node.value {
        Value::Text(text) if !text.is_empty() && !shape.values.is_empty() && !node.is_placeholder() => {
            one_of(node, text, &shape.values, path, report);
        }
        Value::Number(_) => {
            let number = node.integer().unwrap_or(i128::MAX);
            let (least, most) =
                (shape.least.unwrap_or(i128::from(i64::MIN)), shape.most.unwrap_or(i128::from(u64::MAX)));
            if !(least..=most).contains(&number) {
                let help = match shape.most {
                    Some(most) => format!("use a number from {least} to {most}"),
                    None => format!("use a number from {}", least.max(0)),
                };
                report.add(Rule::OutOfRange, node.span.clone(), format!("`{path}` cannot be {number}"), help);
            }
        }
        Value::Array(items) => {
            if let Some(below) = &shape.item {
                for (index, item) in items.iter().enumerate() {
                    value(item, below, &format!("{path}[{index}]"), owner, report);
                }
            }
        }
        Value::Object(members) => object(node, members, shape, path, owner, report),
        _ => {}
    }
}

fn one_of(node: &Node<'_>, text: &str, values: &[String], path: &str, report: &mut Report<'_>) {
    if values.iter().any(|possible| possible == text) {
        return;
    }
    let help = match types::nearest(text, values.iter().map(String::as_str)) {
        Some(nearest) => format!("did you mean \"{nearest}\"?"),
        None => format!("use one of \"{}\"", values.join("\", \"")),
    };
    report.add(Rule::WrongValue, node.span.clone(), format!("`{path}` cannot be \"{text}\""), help);
}

fn object(
    node: &Node<'_>,
    members: &[Member<'_>],
    shape: &Shape,
    path: &str,
    owner: &str,
    report: &mut Report<'_>,
) {
    for member in members {
        let path = || format!("{path}.{}", member.key);
        if let Some((name, below)) = shape.key(&member.key) {
            capitals(member, name, report);
            value(&member.node, below, &path(), owner, report);
        } else if let Some(below) = &shape.other {
            value(&member.node, below, &path(), owner, report);
        } else if !shape.keys.is_empty() && !is_note(&member.key) {
            unknown(member, shape, owner, report);
        }
    }
    for key in shape.required.iter().filter(|key| node.get(key).is_none()) {
        let start = node.span.start..node.span.start + 1;
        report.add(Rule::RequiredKey, start, format!("`{path}` has no `{key}`"), format!("add `{key}`"));
    }
}

/// Returns whether a value has a possible type, and reports it otherwise.
fn has_type(node: &Node<'_>, shape: &Shape, path: &str, report: &mut Report<'_>) -> bool {
    if shape.accepts(&node.value) {
        return true;
    }
    if node.is_placeholder() {
        return false;
    }
    if path.ends_with(']') && path.contains("ranges[") && matches!(node.value, Value::Object(_)) {
        let message = "`ranges` is a list of range sets, and each set is a list of ranges";
        let help = "put the range into a list of its own: [[{…}]]";
        report.add(Rule::RangesNotNested, node.span.start..node.span.start + 1, message, help);
        return false;
    }
    let wanted: Vec<&str> = shape.kinds.iter().map(|kind| kind.describe()).collect();
    let found = match &node.value {
        Value::Number(_) if !wanted.contains(&"a string") => "a fraction",
        _ => node.kind(),
    };
    let found = if shape.kinds.contains(&Kind::Integer) { found } else { node.kind() };
    let wanted = wanted.join(" or ");
    let message = format!("`{path}` must be {wanted}, not {found}");
    // An object or array is marked at its beginning.
    let place = if node.items().is_empty() && node.members().is_empty() {
        node.span.clone()
    } else {
        node.span.start..node.span.start + 1
    };
    let finding = report.add(Rule::WrongType, place, message, format!("write it as {wanted}"));
    let same = match (&node.value, &shape.kinds[..]) {
        (Value::Text(text), [Kind::Boolean]) => {
            Some(text.to_ascii_lowercase()).filter(|text| text == "true" || text == "false")
        }
        (Value::Text(text), [Kind::Integer]) => text.parse::<i64>().ok().map(|number| number.to_string()),
        (Value::Number(text), [Kind::Text]) => Some(format!("\"{text}\"")),
        _ => None,
    };
    if let Some(same) = same {
        finding.help = format!("write {same}");
        finding.replace(node.span.clone(), same);
    }
    false
}

fn capitals(member: &Member<'_>, name: &str, report: &mut Report<'_>) {
    if member.key != name {
        let message = format!("`{}` is `{name}` in other capitals", member.key);
        report
            .add(Rule::KeyCapitals, member.key_span.clone(), message, format!("write `{name}`"))
            .replace(member.key_span.clone(), format!("\"{name}\""));
    }
}

fn unknown(member: &Member<'_>, shape: &Shape, owner: &str, report: &mut Report<'_>) {
    let key = member.key.as_ref();
    let names = shape.keys.iter().map(|(name, _)| name.as_str());
    let span = member.key_span.clone();
    if let Some(nearest) = types::nearest(key, names) {
        let message = format!("{owner} has no key `{key}`");
        report.add(Rule::MisspeltKey, span, message, format!("did you mean `{nearest}`?"));
    } else {
        let help = match shape::owner_of(key).filter(|_| owner != "a list") {
            Some(other) => format!("remove it; `{other}` has such a key"),
            None if owner == "a list" => {
                "remove it: plugins get only `cniVersion` and `name` of the list".to_owned()
            }
            None => "remove it".to_owned(),
        };
        report.add(Rule::UnknownKey, span, format!("{owner} has no key `{key}`"), help);
    }
}

fn reserved(member: &Member<'_>, report: &mut Report<'_>) {
    let message = format!("only a runtime may set `{}`", member.key);
    report.add(Rule::ReservedKey, member.key_span.clone(), message, "remove it from the file");
}

fn is_reserved(key: &str) -> bool {
    ["prevResult", "runtimeConfig"].iter().any(|name| name.eq_ignore_ascii_case(key))
        || key.starts_with("cni.dev/")
}

/// Returns whether a key is a remark, as JSON has no comments.
fn is_note(key: &str) -> bool {
    key.starts_with(['_', '/', '#', '$']) || ["comment", "comments", "description"].contains(&key)
}
