//! What is wrong with CNI network configurations: of any plugins, with the place in the text, and a fix where it is safe.
//!
//! [`check`] looks at the files of one folder. It reads no file and asks no kernel: what rules need of the host they ask a
//! [`Host`]. The rules are in [`table`], what they look at in the modules below.
//!
//! | module | what it checks |
//! |---|---|
//! | `parse` | the text: JSON |
//! | `network` | the file's name, the network's name and versions, the types of plugins |
//! | `keys` | keys and values, by the schemas of the plugins |
//! | `ranges`, `addresses` | subnets, ranges, gateways, routes, name servers |
//! | `settings` | settings of a plugin that exclude or need each other |
//! | `chain` | the order of plugins, and capabilities |
//! | `folder` | networks of a folder against each other |
//! | `host` | networks against the host |
#![forbid(unsafe_code)]

pub mod host;
pub mod table;

mod addresses;
mod chain;
mod document;
mod folder;
mod keys;
mod network;
mod node;
mod parse;
mod ranges;
mod report;
mod settings;
mod shape;
mod types;

use document::Document;
use netloom_types::NetworkList;
use report::Report;

pub use folder::meant_extension;
pub use host::Host;
pub use node::Span;
pub use report::{Also, Edit, Finding, fixed};
pub use table::{Rule, Scope, Severity};

/// Size limit of a configuration file, that of `netloom_runtime::load`.
const SIZE_LIMIT: usize = 2 * 1024 * 1024;

/// A file to check.
#[derive(Debug, Default)]
pub struct Source {
    /// The path, for its name and for messages.
    pub path: String,
    /// The content.
    pub bytes: Vec<u8>,
    /// Whether the folder beside it that has the network's name contains files of plugins.
    pub has_plugin_files: bool,
    /// Whether it is such a file of a plugin, which has neither name nor version of its own.
    pub is_plugin_file: bool,
    /// Permission bits and the owner's user ID, to be checked with a [`Host`].
    pub access: Option<(u32, u32)>,
}

/// Checks the files of one folder, and with a host also whether they fit it. Findings are in the order of files and places.
pub fn check(sources: &[Source], host: Option<&dyn Host>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut documents = Vec::with_capacity(sources.len());
    for (file, source) in sources.iter().enumerate() {
        let first = findings.len();
        let mut report = Report { file, findings: &mut findings };
        if let Some(meant) = meant_extension(&source.path) {
            let message =
                format!("runtimes do not read files that end in .{}", document::extension(&source.path));
            report.add(Rule::ExtensionMisspelt, 0..0, message, format!("let the name end in .{meant}"));
            continue;
        }
        if source.bytes.len() > SIZE_LIMIT {
            let message = format!("the file has {} bytes, more than 2 MiB", source.bytes.len());
            report.add(Rule::FileTooLarge, 0..0, message, "split it, or remove what no plugin reads");
            continue;
        }
        if let Some(root) = parse::parse(&source.bytes, &mut report) {
            let document = Document { file, source, root };
            check_document(&document, &mut report);
            if let Some(host) = host {
                host::check(&document, host, &mut report);
            }
            documents.push(document);
        }
        if !findings[first..].iter().any(|finding| finding.rule.info().severity == Severity::Error) {
            require_loadable(source, &mut Report { file, findings: &mut findings });
        }
    }
    folder::check(sources, &documents, &mut findings);
    for finding in &mut findings {
        at_characters(&sources[finding.file].bytes, &mut finding.span);
    }
    findings.sort_by_key(|finding| (finding.file, finding.span.start, finding.rule));
    findings
}

fn check_document(document: &Document<'_>, report: &mut Report<'_>) {
    network::check(document, report);
    keys::check(document, report);
    for plugin in document.plugins() {
        if types::is_known(plugin.kind()) {
            ranges::check(plugin, report);
            addresses::check(plugin, report);
        }
        settings::check(plugin, report);
    }
    if document.source.is_plugin_file {
        return;
    }
    chain::check(document, report);
}

/// Reports a file that cannot be loaded although no rule says why.
fn require_loadable(source: &Source, report: &mut Report<'_>) {
    let loaded = if document::is_list(source) {
        NetworkList::parse(&source.bytes)
    } else {
        NetworkList::parse_single(&source.bytes)
    };
    if let Err(error) = loaded {
        report.add(Rule::Unusable, 0..1, error.to_string(), "correct the configuration");
    }
}

/// Moves the ends of a place outwards to the boundaries of characters, so that it can be shown.
fn at_characters(bytes: &[u8], span: &mut Span) {
    let is_inside = |at: usize| at < bytes.len() && bytes[at] & 0xc0 == 0x80;
    span.start = span.start.min(bytes.len());
    span.end = span.end.clamp(span.start, bytes.len());
    while span.start > 0 && is_inside(span.start) {
        span.start -= 1;
    }
    while is_inside(span.end) {
        span.end += 1;
    }
}
