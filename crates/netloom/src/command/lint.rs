//! `netloom lint`: checks configuration files, prints findings, and mends what is safe to mend.

mod output;
mod this_host;

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, ValueEnum};
use lint::{Finding, Rule, Scope, Severity, Source};
use netloom_runtime::load;
use this_host::ThisHost;

use super::{Failure, Outcome, Places, note, say, say_json};

/// The exit code for a wrong command line or a file that cannot be read.
pub(crate) const UNUSABLE: u8 = 2;
/// More bytes of a file than any runtime reads are not read.
const MOST: u64 = 4 * 1024 * 1024;
/// A fix can make another one possible.
const ROUNDS: usize = 5;

/// Options of `netloom lint`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Files, or folders with files. `-` is standard input. Defaults to the folder of --conf-dir
    paths: Vec<PathBuf>,
    /// Mend what can be mended without a change of meaning, and leave every other byte
    #[arg(long)]
    fix: bool,
    /// Form of the output
    #[arg(long, value_name = "FORM", default_value = "text")]
    format: Format,
    /// Check also whether files outside of --conf-dir fit this host: plugins, links, routes, permissions
    #[arg(long, conflicts_with = "no_host")]
    host: bool,
    /// Check files of --conf-dir without regard to this host
    #[arg(long, visible_alias = "offline")]
    no_host: bool,
    /// Explain a rule, or list all rules with `all`
    #[arg(long, value_name = "RULE", conflicts_with_all = ["paths", "fix", "host", "no_host"])]
    explain: Option<String>,
}

/// A form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Each finding with its line, for people
    Text,
    /// A JSON object, for programs
    Json,
    /// SARIF 2.1.0, for code scanning
    Sarif,
    /// Workflow commands of GitHub Actions
    Github,
}

/// Files that were checked together, and their findings.
#[derive(Debug, Default)]
pub(crate) struct Checked {
    pub(crate) sources: Vec<Source>,
    pub(crate) findings: Vec<Finding>,
}

pub(crate) fn lint(places: &Places, options: &Options) -> Outcome<ExitCode> {
    if let Some(rule) = &options.explain {
        return explain(rule, options.format).map(|()| ExitCode::SUCCESS);
    }
    let host = |folder: &Path| {
        (options.host || !options.no_host && is_same(folder, &places.conf_dir))
            .then(|| ThisHost::read(places, folder))
    };
    let mut checked = Vec::new();
    let mut fixes = 0;
    for (folder, files) in folders(places, &options.paths)? {
        let host = host(&folder).transpose()?;
        let mut one = check(&folder, &files, host.as_ref())?;
        if options.fix {
            for _ in 0..ROUNDS {
                let applied = fix(&mut one)?;
                if applied == 0 {
                    break;
                }
                fixes += applied;
                one = check(&folder, &files, host.as_ref())?;
            }
        }
        checked.push(one);
    }
    if fixes > 0 {
        note(format!("netloom: applied {fixes} {}", if fixes == 1 { "fix" } else { "fixes" }));
    }
    output::print(&checked, options.format);
    let is_clean = checked.iter().all(|one| one.findings.is_empty());
    Ok(if is_clean { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Checks the network folder against this host, and returns what keeps networks from working, a line each.
pub(crate) fn problems(places: &Places) -> Outcome<Vec<String>> {
    let files = listed(&places.conf_dir)?;
    let host = ThisHost::read(places, &places.conf_dir)?;
    let Checked { sources, findings } = check(&places.conf_dir, &files, Some(&host))?;
    let counts = |finding: &&Finding| {
        finding.rule.info().severity == Severity::Error || finding.rule == Rule::NetworkTwice
    };
    let line = |finding: &Finding| {
        let (place, _) = output::places(&sources[finding.file], &finding.span);
        format!("{}:{place}: {}: {}", sources[finding.file].path, finding.message, finding.help)
    };
    Ok(findings.iter().filter(counts).map(line).collect())
}

fn explain(name: &str, format: Format) -> Outcome {
    let scope = |scope: Scope| match scope {
        Scope::File => "one file",
        Scope::Folder => "all files of a folder",
        Scope::Host => "files and this host",
    };
    let severity = |severity: Severity| output::severity(severity);
    if name == "all" && format == Format::Json {
        say_json(format!("{:#}", output::rules()));
        return Ok(());
    }
    if name == "all" {
        for rule in Rule::ALL {
            let info = rule.info();
            let fix = if info.is_fixable { "fix" } else { "" };
            let (severity, scope) = (severity(info.severity), scope(info.scope));
            say(format!("{:<24}{severity:<9}{scope:<23}{fix:<5}{}", info.name, info.about));
        }
        return Ok(());
    }
    let Some(rule) = Rule::by_name(name) else {
        return Err(Failure::new(format!("unknown rule `{name}`"))
            .hint("list the rules with `netloom lint --explain all`")
            .or_code(UNUSABLE));
    };
    let info = rule.info();
    say(format!("{}: {}, looks at {}", info.name, severity(info.severity), scope(info.scope)));
    say(format!("\n{}.", info.about));
    say(format!("{}.", info.why));
    if info.is_fixable {
        say("\n--fix mends it where that does not change the meaning.");
    }
    Ok(())
}

/// Returns the files to check, by their folders.
fn folders(places: &Places, paths: &[PathBuf]) -> Outcome<BTreeMap<PathBuf, Vec<PathBuf>>> {
    let mut folders: BTreeMap<PathBuf, Vec<PathBuf>> = BTreeMap::new();
    let default = [places.conf_dir.clone()];
    for path in if paths.is_empty() { &default[..] } else { paths } {
        if path.is_dir() || paths.is_empty() {
            folders.entry(path.clone()).or_default().extend(listed(path)?);
        } else {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            folders.entry(folder.unwrap_or(Path::new(".")).to_owned()).or_default().push(path.clone());
        }
    }
    Ok(folders)
}

/// Lists the files of a folder that runtimes read, and those that they were probably meant to read.
fn listed(folder: &Path) -> Outcome<Vec<PathBuf>> {
    let unreadable = |error: io::Error| {
        Failure::new(format!("cannot read folder {}: {error}", folder.display())).or_code(UNUSABLE)
    };
    let entries = match fs::read_dir(folder) {
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(unreadable)?,
    };
    let mut files = load::files(folder, &["conflist", "conf", "json"])
        .map_err(|error| Failure::from(error).or_code(UNUSABLE))?;
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        if path.to_str().is_some_and(|path| lint::meant_extension(path).is_some()) && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn check(folder: &Path, files: &[PathBuf], host: Option<&ThisHost>) -> Outcome<Checked> {
    let mut sources = files.iter().map(|path| read(path)).collect::<Outcome<Vec<Source>>>()?;
    if is_of_plugins(folder) {
        for source in &mut sources {
            source.is_plugin_file = true;
        }
    }
    let host = host.map(|host| host as &dyn lint::Host);
    let findings = lint::check(&sources, host);
    Ok(Checked { sources, findings })
}

fn read(path: &Path) -> Outcome<Source> {
    let unreadable = |error: io::Error| {
        Failure::new(format!("cannot read {}: {error}", path.display()))
            .hint("name a file or a folder with files")
            .or_code(UNUSABLE)
    };
    if path == Path::new("-") {
        let mut bytes = Vec::new();
        io::stdin().take(MOST).read_to_end(&mut bytes).map_err(unreadable)?;
        return Ok(Source { path: "<stdin>".to_owned(), bytes, ..Source::default() });
    }
    let metadata = fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(unreadable(io::Error::other("not a file")));
    }
    let mut bytes = Vec::new();
    fs::File::open(path).map_err(unreadable)?.take(MOST).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(Source {
        path: path.display().to_string(),
        has_plugin_files: path.extension().is_some_and(|ending| ending == "conflist")
            && !String::from_utf8_lossy(&bytes).contains("\"plugins\"")
            && has_plugin_files(path),
        bytes,
        is_plugin_file: false,
        access: Some((metadata.permissions().mode() & 0o7777, metadata.uid())),
    })
}

/// Returns whether the folder beside a list that has the network's name contains files of plugins.
fn has_plugin_files(path: &Path) -> bool {
    let Some(name) = load::name_in(path).filter(|name| !name.contains('/')) else { return false };
    load::files(&path.with_file_name(name), &["conf"]).is_ok_and(|files| !files.is_empty())
}

/// Returns whether a folder has the name of a network in a list beside it, and so contains files of plugins.
fn is_of_plugins(folder: &Path) -> bool {
    let (Some(parent), Some(name)) = (folder.parent(), folder.file_name().and_then(|name| name.to_str()))
    else {
        return false;
    };
    let lists = load::files(parent, &["conflist"]).unwrap_or_default();
    lists.iter().any(|list| load::name_in(list).is_some_and(|found| found == name))
}

/// Writes the fixed files. Returns how many fixes were applied.
fn fix(checked: &mut Checked) -> Outcome<usize> {
    let mut applied = 0;
    for (file, source) in checked.sources.iter().enumerate().filter(|(_, source)| source.path != "<stdin>") {
        let of_file: Vec<Finding> =
            checked.findings.iter().filter(|finding| finding.file == file).cloned().collect();
        let (fixed, count) = lint::fixed(&source.bytes, &of_file);
        if count == 0 || fixed == source.bytes {
            continue;
        }
        applied += count;
        // A symbolic link stays one.
        let path = fs::canonicalize(&source.path)?;
        let beside = path.with_file_name(format!(
            ".{}.{}",
            path.file_name().unwrap_or_default().display(),
            std::process::id()
        ));
        let metadata = fs::metadata(&path)?;
        let write = |mut new: fs::File| {
            new.write_all(&fixed)?;
            std::os::unix::fs::fchown(&new, Some(metadata.uid()), Some(metadata.gid()))?;
            new.set_permissions(metadata.permissions())?;
            new.sync_all()
        };
        kernel::file::replace(&path, &beside, write).map_err(|error| {
            Failure::new(format!("cannot write {}: {error}", path.display())).or_code(UNUSABLE)
        })?;
    }
    Ok(applied)
}

fn is_same(one: &Path, other: &Path) -> bool {
    one == other
        || fs::canonicalize(one).is_ok_and(|one| fs::canonicalize(other).is_ok_and(|other| one == other))
}
