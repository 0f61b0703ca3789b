//! Findings, and the collection that rules add them to.

use crate::{node::Span, table::Rule};

/// Something wrong at a place in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The rule.
    pub rule: Rule,
    /// The file, as an index of the checked ones.
    pub file: usize,
    /// The place in the file.
    pub span: Span,
    /// What is wrong there.
    pub message: String,
    /// What to do.
    pub help: String,
    /// Replacements that mend it without a change of meaning. Empty if there is no safe one.
    pub fix: Vec<Edit>,
    /// Another place that belongs to it.
    pub also: Option<Also>,
}

/// A second place of a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Also {
    /// The file, as an index of the checked ones.
    pub file: usize,
    /// The place in the file.
    pub span: Span,
    /// What is there.
    pub label: String,
}

/// A replacement of a part of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// The replaced part.
    pub span: Span,
    /// The new text.
    pub with: String,
}

/// The findings of one file.
#[derive(Debug)]
pub(crate) struct Report<'a> {
    pub(crate) file: usize,
    pub(crate) findings: &'a mut Vec<Finding>,
}

impl Report<'_> {
    pub(crate) fn add(
        &mut self,
        rule: Rule,
        span: Span,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> &mut Finding {
        let at = self.findings.len();
        self.findings.push(Finding {
            rule,
            file: self.file,
            span,
            message: message.into(),
            help: help.into(),
            fix: Vec::new(),
            also: None,
        });
        &mut self.findings[at]
    }

    /// Returns the number of findings so far.
    pub(crate) fn count(&self) -> usize {
        self.findings.len()
    }
}

impl Finding {
    /// Adds a replacement to the fix.
    pub(crate) fn replace(&mut self, span: Span, with: impl Into<String>) -> &mut Self {
        self.fix.push(Edit { span, with: with.into() });
        self
    }

    /// Sets the second place, in the same file.
    pub(crate) fn also(&mut self, span: Span, label: impl Into<String>) {
        self.also_in(self.file, span, label);
    }

    /// Sets the second place.
    pub(crate) fn also_in(&mut self, file: usize, span: Span, label: impl Into<String>) {
        self.also = Some(Also { file, span, label: label.into() });
    }
}

/// Applies the fixes of a file's findings. Of two that overlap the first one is applied. Returns the new text and the number of
/// applied fixes.
pub fn fixed(text: &[u8], findings: &[Finding]) -> (Vec<u8>, usize) {
    let mut edits: Vec<&Edit> = Vec::new();
    let mut applied = 0;
    for finding in findings.iter().filter(|finding| !finding.fix.is_empty()) {
        let is_free = |edit: &Edit| {
            edit.span.end <= text.len()
                && edits.iter().all(|other| {
                    edit.span.end < other.span.start
                        || other.span.end < edit.span.start
                        || (edit.span.end == other.span.start || other.span.end == edit.span.start)
                            && edit.span != other.span
                })
        };
        if finding.fix.iter().all(is_free) {
            edits.extend(&finding.fix);
            applied += 1;
        }
    }
    edits.sort_by_key(|edit| edit.span.start);
    let mut new = Vec::with_capacity(text.len());
    let mut from = 0;
    for edit in edits {
        new.extend_from_slice(&text[from..edit.span.start]);
        new.extend_from_slice(edit.with.as_bytes());
        from = edit.span.end;
    }
    new.extend_from_slice(&text[from..]);
    (new, applied)
}
