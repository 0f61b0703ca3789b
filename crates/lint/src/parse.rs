//! Parses a text into nodes, and finds the faults of its JSON.
//!
//! What a lenient parser can read in spite of a fault (comments, commas, quotes) is a finding with a fix, and the other rules
//! still apply to the rest of the file.

use std::collections::HashMap;

use jsonc_parser::{
    CollectOptions, CommentCollectionStrategy, ParseOptions, ast,
    errors::ParseErrorKind,
    parse_to_ast,
    tokens::{Token, TokenAndRange},
};
use serde::de::IgnoredAny;

use crate::{
    node::{Member, Node, Span, Value, placeholder},
    report::Report,
    table::Rule,
};

/// Levels of objects and arrays that every parser of configurations accepts.
const DEPTH: usize = 127;

/// Parses a text. Returns `None` if no lenient reading is possible either; `report` then has a finding that says why.
pub(crate) fn parse<'t>(bytes: &'t [u8], report: &mut Report<'_>) -> Option<Node<'t>> {
    let whole = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let at = error.valid_up_to();
            let end = (at + error.error_len().unwrap_or(1)).min(bytes.len());
            report.add(Rule::JsonUtf8, at..end, "the text is not UTF-8", "save the file as UTF-8");
            return None;
        }
    };
    let base = if whole.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    if base > 0 {
        let message = "the file begins with a byte order mark";
        report.add(Rule::JsonBom, 0..base, message, "save the file without it").replace(0..base, "");
    }
    let text = &whole[base..];
    if text.bytes().all(|byte| byte.is_ascii_whitespace()) {
        let help = "write a network configuration, or remove the file";
        report.add(Rule::JsonEmpty, 0..whole.len(), "the file is empty", help);
        return None;
    }
    let strict = serde_json::from_str::<IgnoredAny>(text).err();
    let collect = CollectOptions { comments: CommentCollectionStrategy::AsTokens, tokens: strict.is_some() };
    let parsed = match parse_to_ast(text, &collect, &ParseOptions::default()) {
        Ok(parsed) => parsed,
        Err(error) => {
            let range = error.range();
            refuse(whole, base + range.start..base + range.end, error.kind(), report);
            return None;
        }
    };
    let mut faults = Faults { text: whole, base, report };
    if let Some(error) = strict {
        let before = faults.report.count();
        faults.find(parsed.tokens.as_deref().unwrap_or_default());
        if faults.report.count() == before {
            let at = base + offset(text, error.line(), error.column());
            let message = error.to_string();
            let message = message.split(" at line ").next().unwrap_or(&message);
            report.add(Rule::JsonSyntax, at..at + 1, message, "correct the JSON at this place");
            return None;
        }
    }
    let root = convert(parsed.value?, base, 0, report)?;
    if !matches!(root.value, Value::Object(_)) {
        let message = format!("a configuration is a JSON object, not {}", root.kind());
        report.add(Rule::JsonNotObject, root.span.clone(), message, "put the configuration into { }");
        return None;
    }
    Some(root)
}

/// Reports a text that cannot be read at all.
fn refuse(whole: &str, span: Span, kind: &ParseErrorKind, report: &mut Report<'_>) {
    // Templates such as `"mtu": {{.MTU}}` are no JSON until they are rendered.
    let line_start = whole[..span.start.min(whole.len())].rfind('\n').map_or(0, |at| at + 1);
    let line_end = whole[line_start..].find('\n').map_or(whole.len(), |at| line_start + at);
    let in_line = placeholder(&whole[line_start..line_end])
        .map(|found| line_start + found.start..line_start + found.end);
    let variable = whole[span.start.min(whole.len())..].starts_with('$');
    if let Some(end) = whole[span.start..line_end].find([',', '}', ']', ' ']).filter(|_| variable) {
        let found = span.start..span.start + end;
        placeholder_found(found.clone(), &whole[found], report);
        return;
    }
    let is_mark = |found: &Span| whole[found.clone()].starts_with(['{', '$', '_', '<']);
    if let Some(found) = in_line.or_else(|| placeholder(whole)).filter(is_mark) {
        placeholder_found(found.clone(), &whole[found], report);
        return;
    }
    match kind {
        ParseErrorKind::MultipleRootJsonValues => {
            let message = "the text continues after the configuration";
            let help = "remove what follows, or put it into a file of its own";
            report.add(Rule::JsonTrailingText, span, message, help);
        }
        ParseErrorKind::NestingDepthExceeded => too_deep(span, report),
        kind => {
            let message = kind.to_string();
            let mut letters = message.chars();
            let message = letters.next().map(|first| first.to_ascii_lowercase()).into_iter().chain(letters);
            let help = "correct the JSON at this place; the fault may be just before it";
            report.add(Rule::JsonSyntax, span, message.collect::<String>(), help);
        }
    }
}

/// Reports a mark that was to be replaced.
pub(crate) fn placeholder_found(span: Span, mark: &str, report: &mut Report<'_>) {
    let message = format!("`{mark}` is a placeholder that nothing has replaced");
    report.add(Rule::TemplatePlaceholder, span, message, "render the template before it is installed");
}

fn too_deep(span: Span, report: &mut Report<'_>) {
    let message = format!("more than {DEPTH} objects and arrays are nested");
    report.add(Rule::JsonDepth, span, message, "remove levels; configurations need fewer than ten");
}

/// Returns the offset of a line and column that count from 1, in bytes.
fn offset(text: &str, line: usize, column: usize) -> usize {
    let start: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    let at = (start + column.saturating_sub(1)).min(text.len().saturating_sub(1));
    (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// The faults that the lenient parser reads over.
struct Faults<'a, 'r> {
    text: &'a str,
    base: usize,
    report: &'a mut Report<'r>,
}

impl Faults<'_, '_> {
    fn find(&mut self, tokens: &[TokenAndRange<'_>]) {
        let mut before: Option<(&Token<'_>, Span)> = None;
        let mut rest = tokens.iter().peekable();
        while let Some(TokenAndRange { token, range }) = rest.next() {
            let span = self.base + range.start..self.base + range.end;
            if matches!(token, Token::CommentLine(_) | Token::CommentBlock(_)) {
                self.comment(span);
                continue;
            }
            let next = rest.peek().map(|next| &next.token);
            self.word(token, &span, next);
            if let Some((last, last_span)) = before {
                self.comma(last, last_span, token, &span);
            }
            before = Some((token, span));
        }
    }

    fn comma(&mut self, last: &Token<'_>, last_span: Span, token: &Token<'_>, span: &Span) {
        let ends_value = matches!(
            last,
            Token::String(_)
                | Token::Number(_)
                | Token::Boolean(_)
                | Token::Null
                | Token::CloseBrace
                | Token::CloseBracket
        );
        let starts_value =
            !matches!(token, Token::Comma | Token::Colon | Token::CloseBrace | Token::CloseBracket);
        if matches!(last, Token::Comma) && matches!(token, Token::CloseBrace | Token::CloseBracket) {
            let help = "remove the comma";
            let message = "a comma without a value after it";
            self.report.add(Rule::JsonTrailingComma, last_span.clone(), message, help).replace(last_span, "");
        } else if ends_value && starts_value {
            let message = "a comma is missing before this";
            self.report
                .add(Rule::JsonMissingComma, span.clone(), message, "add a comma after the value before")
                .replace(last_span.end..last_span.end, ",");
        }
    }

    fn word(&mut self, token: &Token<'_>, span: &Span, next: Option<&Token<'_>>) {
        let written = &self.text[span.clone()];
        match token {
            Token::String(text) if written.starts_with('\'') => {
                let quoted = serde_json::Value::from(text.as_ref()).to_string();
                let message = "a string in single quotes";
                self.report
                    .add(Rule::JsonSingleQuotes, span.clone(), message, "use double quotes")
                    .replace(span.clone(), quoted);
            }
            Token::Word(_) | Token::Number(_) if matches!(next, Some(Token::Colon)) => {
                let message = format!("the key `{written}` has no quotes");
                self.report
                    .add(Rule::JsonUnquotedKey, span.clone(), message, "put the key into double quotes")
                    .replace(span.clone(), format!("\"{written}\""));
            }
            Token::Number(text) if serde_json::from_str::<serde_json::Number>(text).is_err() => {
                let message = format!("`{text}` is not a number in JSON");
                let number = text.strip_prefix('+').filter(|rest| rest.bytes().all(|b| b.is_ascii_digit()));
                let found =
                    self.report.add(Rule::JsonNumber, span.clone(), message, "write it in decimal digits");
                if let Some(number) = number.filter(|number| !number.starts_with('0')) {
                    found.replace(span.clone(), number);
                }
            }
            _ => {}
        }
    }

    /// Reports a comment. The fix removes its line too if nothing else is in it.
    fn comment(&mut self, span: Span) {
        let before = &self.text[..span.start];
        let indent = before.len() - before.trim_end_matches([' ', '\t']).len();
        let stands_alone =
            before[..before.len() - indent].is_empty() || before[..before.len() - indent].ends_with('\n');
        let after = &self.text[span.end..];
        let line_end = after.find('\n').filter(|end| after[..*end].trim().is_empty());
        let removed = match line_end {
            Some(end) if stands_alone => span.start - indent..span.end + end + 1,
            _ => span.start - if stands_alone { 0 } else { indent }..span.end,
        };
        let message = "JSON has no comments";
        self.report.add(Rule::JsonComment, span, message, "remove the comment").replace(removed, "");
    }
}

fn convert<'t>(
    value: ast::Value<'t>,
    base: usize,
    depth: usize,
    report: &mut Report<'_>,
) -> Option<Node<'t>> {
    let range = jsonc_parser::common::Ranged::range(&value);
    let span = base + range.start..base + range.end;
    if depth > DEPTH {
        too_deep(span.start..span.start + 1, report);
        return None;
    }
    let value = match value {
        ast::Value::NullKeyword(_) => Value::Null,
        ast::Value::BooleanLit(it) => Value::Bool(it.value),
        ast::Value::NumberLit(it) => Value::Number(it.value),
        ast::Value::StringLit(it) => Value::Text(it.value),
        ast::Value::Array(it) => {
            let items: Option<Vec<_>> =
                it.elements.into_iter().map(|item| convert(item, base, depth + 1, report)).collect();
            Value::Array(items?)
        }
        ast::Value::Object(it) => {
            let mut members = Vec::with_capacity(it.properties.len());
            for property in it.properties {
                let range = jsonc_parser::common::Ranged::range(&property.name);
                let key = match property.name {
                    ast::ObjectPropName::String(text) => text.value,
                    ast::ObjectPropName::Word(word) => word.value.into(),
                };
                let node = convert(property.value, base, depth + 1, report)?;
                members.push(Member { key, key_span: base + range.start..base + range.end, node });
            }
            repeated(&members, report);
            Value::Object(members)
        }
    };
    Some(Node { span, value })
}

/// Reports keys that an object has more than once.
fn repeated(members: &[Member<'_>], report: &mut Report<'_>) {
    let mut last: HashMap<String, &Member<'_>> = HashMap::new();
    // Small objects are compared in pairs, which needs no memory.
    let is_small = members.len() <= 12;
    for (index, member) in members.iter().enumerate() {
        let earlier = if is_small {
            members[..index].iter().rev().find(|earlier| earlier.key.eq_ignore_ascii_case(&member.key))
        } else {
            last.insert(member.key.to_ascii_lowercase(), member)
        };
        let Some(earlier) = earlier else { continue };
        let key = &member.key;
        if earlier.key == *key {
            let message = format!("`{key}` is there twice, and the last value counts");
            report
                .add(Rule::JsonDuplicateKey, member.key_span.clone(), message, "keep one of them")
                .also(earlier.key_span.clone(), "the first one");
        } else {
            let message = format!("`{}` and `{key}` are the same key to most plugins", earlier.key);
            report
                .add(Rule::JsonSameKey, member.key_span.clone(), message, "keep one of them")
                .also(earlier.key_span.clone(), "the first one");
        }
    }
}
