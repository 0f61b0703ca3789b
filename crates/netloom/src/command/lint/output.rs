//! Findings as text, JSON, SARIF and workflow commands.

use std::{
    fmt,
    io::{self, IsTerminal as _, Write as _},
    ops::Range,
};

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use kernel::{printable, printable_json};
use lint::{Finding, Rule, Scope, Severity, Source};
use serde_json::{Value, json};

use super::{Checked, Format};

/// A place for people and editors: line and column in characters, from 1.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    line: usize,
    column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.line, self.column)
    }
}

/// Returns the places of the first character and behind the last one.
pub(crate) fn places(source: &Source, span: &Range<usize>) -> (Place, Place) {
    let place = |at: usize| {
        let before = &source.bytes[..at.min(source.bytes.len())];
        let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        Place {
            line: line_of(before),
            column: String::from_utf8_lossy(&before[line_start..]).chars().count() + 1,
        }
    };
    (place(span.start), place(span.end))
}

/// Returns the line that follows a text, from 1.
fn line_of(before: &[u8]) -> usize {
    before.split(|byte| *byte == b'\n').count()
}

pub(crate) fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    }
}

/// Prints the findings.
pub(crate) fn print(checked: &[Checked], format: Format) {
    // A closed pipe, as `head` leaves one, is no failure.
    drop(match format {
        Format::Text => text(checked),
        Format::Json => write_json(&as_json(checked)),
        Format::Sarif => write_json(&sarif(checked)),
        Format::Github => github(checked),
    });
}

fn write_json(value: &Value) -> io::Result<()> {
    writeln!(io::stdout(), "{}", printable_json(&format!("{value:#}")))
}

/// Returns all findings with their sources.
fn all(checked: &[Checked]) -> impl Iterator<Item = (&Checked, &Source, &Finding)> {
    checked
        .iter()
        .flat_map(|one| one.findings.iter().map(move |finding| (one, &one.sources[finding.file], finding)))
}

fn text(checked: &[Checked]) -> io::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let is_coloured = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
        || std::env::var_os("CLICOLOR_FORCE").is_some_and(|value| value != "0");
    let renderer = if is_coloured { Renderer::styled() } else { Renderer::plain() };
    for (one, source, finding) in all(checked) {
        writeln!(out, "{}\n", rendered(&renderer, one, source, finding))?;
    }
    let (mut errors, mut warnings, mut fixable) = (0, 0, 0);
    for (_, _, finding) in all(checked) {
        match finding.rule.info().severity {
            Severity::Error => errors += 1,
            Severity::Warning => warnings += 1,
        }
        fixable += usize::from(!finding.fix.is_empty());
    }
    let files: usize = checked.iter().map(|one| one.sources.len()).sum();
    let counted = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    write!(
        out,
        "{}: {}, {}",
        counted(files, "file"),
        counted(errors, "error"),
        counted(warnings, "warning")
    )?;
    if fixable > 0 {
        write!(out, "; --fix mends {fixable}")?;
    }
    writeln!(out)?;
    out.flush()
}

/// A line of a file with a place in it, for the renderer.
struct Excerpt {
    text: String,
    line: usize,
    span: Range<usize>,
}

impl Excerpt {
    fn of(source: &Source, span: &Range<usize>) -> Self {
        let bytes = &source.bytes;
        let start = bytes[..span.start].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let end = bytes[span.start..]
            .iter()
            .position(|byte| *byte == b'\n')
            .map_or(bytes.len(), |at| span.start + at);
        let before = String::from_utf8_lossy(&bytes[start..span.start.min(end)]).into_owned();
        let marked = String::from_utf8_lossy(&bytes[span.start.min(end)..span.end.min(end)]).into_owned();
        let after = String::from_utf8_lossy(&bytes[span.end.min(end)..end]).into_owned();
        Self {
            line: line_of(&bytes[..start]),
            span: before.len()..before.len() + marked.len(),
            text: before + &marked + &after,
        }
    }

    fn snippet<'a>(
        &'a self,
        path: &'a str,
        kind: AnnotationKind,
        label: Option<&'a str>,
    ) -> Snippet<'a, annotate_snippets::Annotation<'a>> {
        let annotation = kind.span(self.span.clone()).label(label);
        Snippet::source(self.text.as_str()).path(path).line_start(self.line).annotation(annotation)
    }
}

fn rendered(renderer: &Renderer, one: &Checked, source: &Source, finding: &Finding) -> String {
    let info = finding.rule.info();
    let level = match info.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let (message, help, path) =
        (printable(&finding.message), printable(&finding.help), printable(&source.path));
    let excerpt = Excerpt::of(source, &finding.span);
    let mut group = Group::with_title(level.primary_title(message.as_ref()).id(info.name))
        .element(excerpt.snippet(&path, AnnotationKind::Primary, None));
    let also = finding.also.as_ref().map(|also| {
        let source = &one.sources[also.file];
        (Excerpt::of(source, &also.span), printable(&source.path), printable(&also.label))
    });
    if let Some((excerpt, path, label)) = &also {
        group = group.element(excerpt.snippet(path, AnnotationKind::Context, Some(label)));
    }
    renderer.render(&[group.element(Level::HELP.message(help.as_ref()))])
}

fn as_json(checked: &[Checked]) -> Value {
    let findings = all(checked).map(|(one, source, finding)| {
        let (start, end) = places(source, &finding.span);
        let mut value = json!({
            "rule": finding.rule.info().name,
            "severity": severity(finding.rule.info().severity),
            "file": source.path,
            "line": start.line,
            "column": start.column,
            "endLine": end.line,
            "endColumn": end.column,
            "message": finding.message,
            "help": finding.help,
        });
        if !finding.fix.is_empty() {
            let edits = finding.fix.iter();
            value["fix"] = edits
                .map(|edit| json!({"start": edit.span.start, "end": edit.span.end, "with": edit.with}))
                .collect();
        }
        if let Some(also) = &finding.also {
            let (start, _) = places(&one.sources[also.file], &also.span);
            value["also"] = json!({
                "file": one.sources[also.file].path, "line": start.line, "column": start.column, "message": also.label,
            });
        }
        value
    });
    let findings: Vec<Value> = findings.collect();
    let files: usize = checked.iter().map(|one| one.sources.len()).sum();
    json!({ "files": files, "findings": findings })
}

/// Returns the table of rules.
pub(crate) fn rules() -> Value {
    let rule = |rule: &Rule| {
        let info = rule.info();
        json!({
            "name": info.name,
            "severity": severity(info.severity),
            "scope": match info.scope { Scope::File => "file", Scope::Folder => "folder", Scope::Host => "host" },
            "fix": info.is_fixable,
            "about": info.about,
            "why": info.why,
        })
    };
    Rule::ALL.iter().map(rule).collect()
}

fn sarif(checked: &[Checked]) -> Value {
    let location = |source: &Source, span: &Range<usize>| {
        let (start, end) = places(source, span);
        json!({
            "artifactLocation": {"uri": uri(&source.path)},
            "region": {
                "startLine": start.line, "startColumn": start.column, "endLine": end.line, "endColumn": end.column,
            },
        })
    };
    let result = |(one, source, finding): (&Checked, &Source, &Finding)| {
        let mut value = json!({
            "ruleId": finding.rule.info().name,
            "level": severity(finding.rule.info().severity),
            "message": {"text": format!("{}: {}", finding.message, finding.help)},
            "locations": [{"physicalLocation": location(source, &finding.span)}],
        });
        if let Some(also) = &finding.also {
            value["relatedLocations"] = json!([{
                "message": {"text": also.label},
                "physicalLocation": location(&one.sources[also.file], &also.span),
            }]);
        }
        value
    };
    let described = |rule: &Rule| {
        let info = rule.info();
        json!({
            "id": info.name,
            "shortDescription": {"text": info.about},
            "fullDescription": {"text": format!("{}. {}.", info.about, info.why)},
            "defaultConfiguration": {"level": severity(info.severity)},
        })
    };
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {
                "name": "netloom lint",
                "version": env!("CARGO_PKG_VERSION"),
                "rules": Rule::ALL.iter().map(described).collect::<Vec<_>>(),
            }},
            "columnKind": "unicodeCodePoints",
            "results": all(checked).map(result).collect::<Vec<_>>(),
        }],
    })
}

/// Returns a path as a reference in a URI.
fn uri(path: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' | b'~' => {
            char::from(byte).to_string()
        }
        other => format!("%{other:02X}"),
    };
    path.bytes().map(encode).collect()
}

fn github(checked: &[Checked]) -> io::Result<()> {
    let data = |text: &str| text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    let property = |text: &str| data(text).replace(':', "%3A").replace(',', "%2C");
    let mut out = io::BufWriter::new(io::stdout().lock());
    for (_, source, finding) in all(checked) {
        let (start, end) = places(source, &finding.span);
        let info = finding.rule.info();
        let last = if end.line == start.line { format!(",endColumn={}", end.column) } else { String::new() };
        writeln!(
            out,
            "::{} file={},line={},endLine={},col={}{last},title={}::{}",
            severity(info.severity),
            property(&printable(&source.path)),
            start.line,
            end.line,
            start.column,
            property(info.name),
            data(&printable(&format!("{}: {}", finding.message, finding.help))),
        )?;
    }
    out.flush()
}
