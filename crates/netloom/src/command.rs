//! The command line: what a person types, and how errors are shown.

mod cluster;
mod cnitool;
mod containers;
mod demo;
mod gc;
mod install;
mod list;
mod networks;
mod pages;
mod ping;
mod run;

use std::{error::Error as _, io::Write as _, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

/// Container networking by the CNI standard: every plugin, a runtime and a tool in one binary.
#[derive(Debug, Parser)]
#[command(
    name = "netloom",
    version,
    arg_required_else_help = true,
    propagate_version = true,
    after_help = "Called by the name of a plugin (bridge, host-local, portmap, …) it is that plugin; \
                  called cnitool it takes cnitool's arguments.\n\n\
                  Try it: netloom demo\n        netloom run -p 8080:80 -- busybox httpd -f -p 80"
)]
struct Cli {
    #[command(flatten)]
    places: Places,
    #[command(subcommand)]
    command: Command,
}

/// Where things are.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Places")]
pub(crate) struct Places {
    /// Folder with network configurations.
    #[arg(long, global = true, env = "NETCONFPATH", value_name = "DIR", default_value = "/etc/cni/net.d")]
    conf_dir: PathBuf,
    /// Folders with plugins, with ':' between them.
    #[arg(long, global = true, env = "CNI_PATH", value_name = "DIRS", default_value = "/opt/cni/bin")]
    bin_path: String,
    /// Folder in which results are remembered.
    #[arg(long, global = true, env = "NETLOOM_STATE", value_name = "DIR", default_value = "/var/lib/cni")]
    state_dir: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a command in a new network namespace that is on a network
    Run(run::Options),
    /// Put a network namespace on a network
    Add(cnitool::Attach),
    /// Compare a network namespace with what `add` made
    Check(cnitool::Attach),
    /// Take a network namespace off a network
    Del(cnitool::Attach),
    /// Ask the plugins of a network whether they are ready
    Status(cnitool::Network),
    /// Remove what belongs to no existing container
    ///
    /// Keeps every attachment that is remembered in --state-dir, by whichever runtime, and whose namespace exists or is
    /// not known. Everything else of the network goes: links, addresses, published ports, rules. An attachment that was
    /// made without remembering it there, as by calling a plugin by hand, counts as stale.
    Gc(gc::Options),
    /// Ask the plugins of a network which versions they support
    Version(cnitool::VersionOf),
    /// Show networks and attachments
    List(list::Options),
    /// Show the nodes of the cluster, as this node's daemon (netloomd) sees them
    Cluster(cluster::Options),
    /// Show two containers get a network, use it, and leave nothing behind
    Demo(demo::Options),
    /// Put this binary and its plugins where runtimes look for them
    Install(install::InstallOptions),
    /// Take them away again, and put back what they replaced
    Uninstall(install::UninstallOptions),
    /// Describe configurations for editors, as JSON Schema
    Schema(pages::Schema),
    /// Write completions for a shell to standard output
    Completions(pages::Completions),
    /// Write man pages to a folder
    Man(pages::Man),
}

/// Says what went wrong, with what to try where there is something to try.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    hint: String,
}

/// The result of every command: how the process ends.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: String::new() }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

impl From<netloom_runtime::Error> for Failure {
    fn from(error: netloom_runtime::Error) -> Self {
        let mut message = error.to_string();
        // The details are for a line of their own.
        let details = error.plugin_error().map(|error| error.details.clone()).unwrap_or_default();
        if !details.is_empty() {
            message = message.replace(&format!("; {details}"), "");
        }
        Self { message, hint: details }
    }
}

impl From<kernel::Error> for Failure {
    fn from(error: kernel::Error) -> Self {
        Self { message: error.to_string(), hint: error.hint().unwrap_or_default().to_owned() }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        let source = error.source().map(|source| format!(": {source}")).unwrap_or_default();
        Self::new(format!("{error}{source}"))
    }
}

/// Runs the command line, or cnitool's.
pub(crate) fn main(as_cnitool: bool) -> ExitCode {
    if as_cnitool {
        return finish(cnitool::main().map(|()| ExitCode::SUCCESS));
    }
    let Cli { places, command } = Cli::parse();
    let done = |outcome: Outcome| outcome.map(|()| ExitCode::SUCCESS);
    finish(match command {
        Command::Run(options) => run::run(&places, &options),
        Command::Add(options) => done(cnitool::add(&places, &options)),
        Command::Check(options) => done(cnitool::check(&places, &options)),
        Command::Del(options) => done(cnitool::del(&places, &options)),
        Command::Status(options) => done(cnitool::status(&places, &options)),
        Command::Gc(options) => done(gc::gc(&places, &options)),
        Command::Version(options) => done(cnitool::version(&places, &options)),
        Command::List(options) => done(list::list(&places, &options)),
        Command::Cluster(options) => done(cluster::cluster(&options)),
        Command::Demo(options) => done(demo::demo(&places, &options)),
        Command::Install(options) => done(install::install(&places.conf_dir, &options)),
        Command::Uninstall(options) => done(install::uninstall(&options)),
        Command::Schema(options) => done(pages::schema(&options)),
        Command::Completions(options) => {
            pages::completions(options);
            Ok(ExitCode::SUCCESS)
        }
        Command::Man(options) => done(pages::man(&options)),
    })
}

/// Writes a line to standard output. A reader that has gone away, as `head` does, is no error.
pub(crate) fn say(line: impl AsRef<str>) {
    drop(writeln!(std::io::stdout(), "{}", line.as_ref()));
}

/// Writes a line to standard error.
pub(crate) fn note(line: impl AsRef<str>) {
    drop(writeln!(std::io::stderr(), "{}", line.as_ref()));
}

fn finish(outcome: Outcome<ExitCode>) -> ExitCode {
    match outcome {
        Ok(code) => code,
        Err(failure) => {
            note(format!("netloom: {}", failure.message));
            if !failure.hint.is_empty() {
                note(format!("  {}", failure.hint));
            }
            ExitCode::FAILURE
        }
    }
}
