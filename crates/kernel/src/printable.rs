//! Text that may come from anywhere, made safe for a terminal and a line of a log.
//!
//! Names of links, files and processes and the texts of other programs are arbitrary. A terminal executes control characters
//! in them, and Unicode's format characters change the order in which it shows the rest (CVE-2021-42574).

use std::borrow::Cow;

/// Escapes control characters (also line breaks) and Unicode's format characters, as `\n` or `\u{202e}`. Everything else stays
/// as it is, also a backslash.
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, is_unsafe)
}

/// Escapes as [`printable`] does, but keeps line breaks, for a text whose lines were each escaped where they could contain one.
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    escaped(text, |char| char != '\n' && is_unsafe(char))
}

/// Escapes the same characters in JSON, as `\u202e`. The text stays JSON with the same values: JSON allows such characters
/// only in strings, except for line breaks and tabs, which stay.
pub fn printable_json(text: &str) -> Cow<'_, str> {
    let is_unsafe = |char: char| !matches!(char, '\n' | '\t' | '\r') && is_unsafe(char);
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for char in text.chars() {
        if is_unsafe(char) {
            char.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
        } else {
            out.push(char);
        }
    }
    Cow::Owned(out)
}

fn escaped(text: &str, is_unsafe: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for char in text.chars() {
        if is_unsafe(char) { out.extend(char.escape_default()) } else { out.push(char) }
    }
    Cow::Owned(out)
}

/// Returns whether a character is a control character (Unicode's category Cc), a format character (Cf) or a line or paragraph
/// separator (Zl, Zp).
fn is_unsafe(char: char) -> bool {
    char.is_control()
        || matches!(char,
            '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}' | '\u{8e2}'
            | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0001}' | '\u{e0020}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every kind of character that a terminal does not show as itself is escaped, and no other.
    #[test]
    fn only_what_a_terminal_does_not_show_is_escaped() {
        let cases = [
            ("", ""),
            (
                r"plain `name` \ with 'quotes' and ümlaut 网络",
                r"plain `name` \ with 'quotes' and ümlaut 网络",
            ),
            ("\u{1b}[31mred\u{7}", r"\u{1b}[31mred\u{7}"),
            ("a\nb\r\tc", r"a\nb\r\tc"),
            ("\u{7f}\u{9b}31m", r"\u{7f}\u{9b}31m"),
            ("lab\u{202e}bal\u{2066}\u{200f}", r"lab\u{202e}bal\u{2066}\u{200f}"),
            ("\u{2028}\u{feff}\u{e0041}", r"\u{2028}\u{feff}\u{e0041}"),
        ];
        for (text, expected) in cases {
            assert_eq!(printable(text), expected);
            assert_eq!(printable(&printable(text)), expected, "a second time");
        }
        assert_eq!(printable_lines("a\u{1b}\nb\u{202e}\n"), "a\\u{1b}\nb\\u{202e}\n");
    }

    /// Escaped JSON has the same values.
    #[test]
    fn json_keeps_its_values() {
        let value = serde_json::json!({"a\u{202e}": ["\u{7f}\u{9b}", "\u{e0041}", "\u{1b}\n", "ü"]});
        let text = serde_json::to_string_pretty(&value).unwrap_or_default();
        let shown = printable_json(&text);
        assert!(!shown.contains(|char| char != '\n' && is_unsafe(char)), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).ok(), Some(value));
    }
}
