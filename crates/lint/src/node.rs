//! JSON values with their places in the text. Objects keep every key, also repeated ones.

use std::{borrow::Cow, ops::Range};

/// A part of a text, in bytes.
pub type Span = Range<usize>;

/// A value and its place.
#[derive(Debug)]
pub(crate) struct Node<'t> {
    pub(crate) span: Span,
    pub(crate) value: Value<'t>,
}

#[derive(Debug)]
pub(crate) enum Value<'t> {
    Null,
    Bool(bool),
    /// A number as written.
    Number(&'t str),
    Text(Cow<'t, str>),
    Array(Vec<Node<'t>>),
    Object(Vec<Member<'t>>),
}

/// A key of an object and its value.
#[derive(Debug)]
pub(crate) struct Member<'t> {
    pub(crate) key: Cow<'t, str>,
    pub(crate) key_span: Span,
    pub(crate) node: Node<'t>,
}

impl<'t> Node<'t> {
    /// Returns the member that Go's decoder uses for a key: the last one in any capitals that is not `null`.
    pub(crate) fn member(&self, key: &str) -> Option<&Member<'t>> {
        let is_meant = |member: &&Member<'t>| {
            member.key.eq_ignore_ascii_case(key) && !matches!(member.node.value, Value::Null)
        };
        self.members().iter().rev().find(is_meant)
    }

    /// Returns the value of a key (see [`Node::member`]).
    pub(crate) fn get(&self, key: &str) -> Option<&Node<'t>> {
        self.member(key).map(|member| &member.node)
    }

    /// Returns the text of a key, if it is a text.
    pub(crate) fn text_of(&self, key: &str) -> Option<&str> {
        self.get(key)?.text()
    }

    /// Returns whether a key is `true`.
    pub(crate) fn is_set(&self, key: &str) -> bool {
        matches!(self.get(key), Some(Node { value: Value::Bool(true), .. }))
    }

    pub(crate) fn members(&self) -> &[Member<'t>] {
        if let Value::Object(members) = &self.value { members } else { &[] }
    }

    pub(crate) fn items(&self) -> &[Self] {
        if let Value::Array(items) = &self.value { items } else { &[] }
    }

    pub(crate) fn text(&self) -> Option<&str> {
        if let Value::Text(text) = &self.value { Some(text) } else { None }
    }

    /// Returns the number, if it is an integer.
    pub(crate) fn integer(&self) -> Option<i128> {
        if let Value::Number(text) = &self.value { text.parse().ok() } else { None }
    }

    /// Returns the kind of value for a message.
    pub(crate) fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::Text(_) => "a string",
            Value::Array(_) => "an array",
            Value::Object(_) => "an object",
        }
    }

    /// Returns whether the value is a text that a template engine or a script was to replace.
    pub(crate) fn is_placeholder(&self) -> bool {
        self.text().is_some_and(|text| placeholder(text).is_some())
    }
}

/// Finds a mark that a template engine or a script was to replace: `{{…}}`, `{%…%}`, `${…}`, `$NAME`, `__NAME__`, `<NAME>`, `%s`.
pub(crate) fn placeholder(text: &str) -> Option<Span> {
    let is_name = |name: &str| {
        !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
            && name.bytes().any(|byte| byte.is_ascii_uppercase())
    };
    for (open, close) in [("{{", "}}"), ("{%", "%}"), ("${", "}"), ("<%", "%>")] {
        if let Some(start) = text.find(open)
            && let Some(length) = text[start..].find(close)
        {
            return Some(start..start + length + close.len());
        }
    }
    let mut from = 0;
    while let Some(at) = text[from..].find("__") {
        let start = from + at;
        let Some(length) = text[start + 2..].find("__") else { break };
        if is_name(&text[start + 2..start + 2 + length]) {
            return Some(start..start + length + 4);
        }
        from = start + 2;
    }
    if let Some(name) = text.strip_prefix('$')
        && is_name(name.split(['/', '.']).next().unwrap_or_default())
    {
        return Some(0..text.len());
    }
    let inner = text.strip_prefix('<').and_then(|rest| rest.strip_suffix('>'));
    let is_whole = inner.is_some_and(|inner| !inner.is_empty()) || ["%s", "%d", "%v", "%q"].contains(&text);
    is_whole.then_some(0..text.len())
}
