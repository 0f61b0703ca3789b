//! The command line: its commands and global options, and how errors are printed.

mod cluster;
mod cnitool;
mod demo;
mod find;
mod gc;
mod generate;
mod install;
mod lint;
mod list;
mod networks;
mod relay;
mod run;
mod runtimes;
mod temporary_netns;
mod unprivileged;
mod walk;
mod why;

use std::{error::Error as _, io::Write as _, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use kernel::printable;
use netloom_runtime::Error;

/// Container networking by the CNI standard: all plugins, a runtime and a command line in one binary
#[derive(Debug, Parser)]
#[command(
    name = "netloom",
    version,
    arg_required_else_help = true,
    propagate_version = true,
    after_help = "Called as a plugin (bridge, host-local, portmap, …), the binary acts as that plugin. \
                  Called as cnitool, it accepts cnitool's arguments.\n\n\
                  Examples:\n  netloom demo\n  netloom run -p 8080:80 -- busybox httpd -f -p 80"
)]
struct Cli {
    #[command(flatten)]
    places: Places,
    #[command(subcommand)]
    command: Command,
}

/// Folders that every command uses.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Paths")]
pub(crate) struct Places {
    /// Folder with network configurations
    #[arg(long, global = true, env = "NETCONFPATH", value_name = "DIR", default_value = "/etc/cni/net.d")]
    conf_dir: PathBuf,
    /// Folders with plugins, separated by ':'
    #[arg(long, global = true, env = "CNI_PATH", value_name = "DIRS", default_value = "/opt/cni/bin")]
    bin_path: String,
    /// Folder with the cached results of attachments, shared with other runtimes
    #[arg(long, global = true, env = "NETLOOM_STATE", value_name = "DIR", default_value = "/var/lib/cni")]
    state_dir: PathBuf,
    /// Whether `state_dir` is a folder of this user in a user namespace.
    #[arg(skip)]
    is_private: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a command in a new network namespace attached to a network
    #[command(
        after_help = "Examples:\n  netloom run -- ping -c 1 1.1.1.1\n  netloom run -p 8080:80 -- busybox httpd -f -p 80\n  netloom run -p 80 -p 127.0.0.1:5300-5302:53-55/udp -- dnsmasq -d\n  netloom run --network lab sh\n  unshare -Urnm netloom run sh"
    )]
    Run(run::Options),
    /// Attach a network namespace to a network
    #[command(
        after_help = "Examples:\n  netloom add lab /run/netns/c1\n  netloom add lab /run/netns/c1 --ifname net1 --args 'IP=10.88.0.7'"
    )]
    Add(cnitool::Attach),
    /// Check that an attachment still matches the result of `add`
    #[command(
        after_help = "Examples:\n  netloom check lab /run/netns/c1\n  netloom check lab 4f1d0c9a\n  netloom check lab web --deep"
    )]
    Check(cnitool::Check),
    /// Detach a container or network namespace from a network
    #[command(after_help = "Examples:\n  netloom del lab /run/netns/c1\n  netloom del lab 4f1d0c9a --force")]
    Del(cnitool::Detach),
    /// Check whether the plugins of a network are ready for `add`
    Status(cnitool::Network),
    /// Remove attachments of containers that no longer exist, and print each removed thing
    ///
    /// Keep each attachment that any runtime has cached in --state-dir and whose namespace exists or is unknown. Remove
    /// all other links, addresses, published ports and rules of the network. An attachment without a cached result,
    /// created for example by calling a plugin by hand, counts as stale.
    ///
    /// A line is printed for each attachment, link, address, published port, rule and file that existed before and is gone
    /// afterwards, and for each network namespace of a killed `netloom run`. Plugins cannot report what they remove: DHCP leases
    /// and the objects of foreign plugins are not printed.
    #[command(after_help = "Examples:\n  netloom gc --dry-run\n  netloom gc lab")]
    Gc(gc::Options),
    /// Print the specification versions that the plugins of a network support
    Version(cnitool::VersionOf),
    /// Find out why a container has no network, or why it does not reach an address
    ///
    /// Send packets along the paths of the container: to its gateway, of full size, out of the host, to its published ports, or to the
    /// given destination. If one is lost, compare every station of its path with what the packet needs (links, addresses,
    /// routes, neighbours, bridge ports, sysctls, translation, connections), and trace the packet through nftables and the
    /// counters of iptables-legacy. End with one sentence that names the cause, and with one remedy. Exit with 0 only if the path
    /// works. The plugins may be anybody's: everything is taken from the kernel and from the runtime's cache.
    #[command(
        after_help = "Examples:\n  netloom why web\n  netloom why web to 10.88.0.7:5432\n  netloom why web to db:5432\n  netloom why web:80 from host\n  netloom why web from proxy\n  netloom why /run/netns/c1 to 1.1.1.1:53 --udp\n  netloom why 4f1d0c9a --json"
    )]
    Why(why::Options),
    /// List networks and attachments, and what is wrong with the configuration
    ///
    /// Warn of the errors that `netloom lint` finds, of several files with one network name, and of plugin files that `netloom
    /// install` did not write: on standard error, or with --json in `problems`.
    #[command(after_help = "Examples:\n  netloom list\n  netloom list 4f1d0c9a --json")]
    List(list::Options),
    /// Carry TCP connections to `::1` to the containers that publish the port
    ///
    /// The kernel routes no packet from `::1`, so plugins cannot publish ports there. Look up the container in --state-dir for each
    /// connection. Run until killed.
    #[command(
        after_help = "Examples:\n  netloom relay 8080 8443\n  systemctl enable --now netloom-relay@8080.socket"
    )]
    Relay(relay::Options),
    /// Check network configurations, of any plugins, and say what to change
    ///
    /// Print each finding with its file, line and column, the name of its rule, and what to do. Exit with 0 if there is none, 1 if
    /// there are some, and 2 if a file cannot be read. Files of --conf-dir are also compared with this host: its plugins (each is
    /// run with VERSION), links, routes and permissions.
    #[command(
        after_help = "Examples:\n  netloom lint\n  netloom lint --fix 10-lab.conflist\n  netloom lint --no-host --format github deploy/\n  netloom lint --explain range-reused"
    )]
    Lint(lint::Options),
    /// List the nodes of the cluster as this node's daemon (netloomd) sees them
    Cluster(cluster::Options),
    /// Attach two temporary containers, test their connectivity and remove them
    Demo(demo::Options),
    /// Install this binary and its plugins where runtimes look for them
    ///
    /// Afterwards, say which container runtimes of this host use the installed plugins, and for the others what to do.
    #[command(
        after_help = "Examples:\n  netloom install --with-default-network\n  netloom install --for containerd --for podman\n  netloom install --force --bin-dir /usr/lib/cni"
    )]
    Install(install::InstallOptions),
    /// Remove the binary and its plugins, and restore the plugins they replaced
    Uninstall(install::UninstallOptions),
    /// Print the JSON Schema of configurations, for editors
    #[command(after_help = "Examples:\n  netloom schema > conflist.schema.json\n  netloom schema bridge")]
    Schema(generate::Schema),
    /// Print completions for a shell
    #[command(after_help = "Examples:\n  netloom completions bash > /etc/bash_completion.d/netloom")]
    Completions(generate::Completions),
    /// Write man pages to a folder
    #[command(after_help = "Examples:\n  netloom man /usr/local/share/man/man1")]
    Man(generate::Man),
}

/// An error message and a hint, which is empty if there is nothing to try.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The messages of one or several errors, each a line.
    messages: Vec<String>,
    hint: String,
    /// Exit code of the process; 1 if the command has no other.
    code: Option<u8>,
}

/// The result of a command.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { messages: vec![message.into()], hint: String::new(), code: None }
    }

    /// Combines failures. Returns `Ok` if there are none.
    pub(crate) fn all(failures: Vec<Self>) -> Outcome {
        let messages: Vec<String> = failures.into_iter().flat_map(|failure| failure.messages).collect();
        if messages.is_empty() { Ok(()) } else { Err(Self { messages, hint: String::new(), code: None }) }
    }

    /// The messages in one line.
    pub(crate) fn message(&self) -> String {
        self.messages.join("; ")
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Sets the exit code, unless it is set.
    pub(crate) fn or_code(mut self, code: u8) -> Self {
        self.code = self.code.or(Some(code));
        self
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let mut error = error;
        let hint = take_details(&mut error);
        let messages = match error {
            Error::Several(errors) => errors.iter().map(ToString::to_string).collect(),
            error => vec![error.to_string()],
        };
        Self { messages, hint, code: None }
    }
}

/// Removes the details, which are printed on a line of their own. Of several errors the first is the cause of the others.
fn take_details(error: &mut Error) -> String {
    match error {
        Error::Plugin { source, .. } | Error::Invalid(source) => std::mem::take(&mut source.details),
        Error::Several(errors) => errors.first_mut().map(take_details).unwrap_or_default(),
        _ => String::new(),
    }
}

impl From<kernel::Error> for Failure {
    fn from(error: kernel::Error) -> Self {
        Self::new(error.to_string()).hint(error.hint().unwrap_or_default())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        let source = error.source().map(|source| format!(": {source}")).unwrap_or_default();
        Self::new(format!("{error}{source}"))
    }
}

impl From<rustix::io::Errno> for Failure {
    fn from(errno: rustix::io::Errno) -> Self {
        std::io::Error::from(errno).into()
    }
}

/// Runs the command line, or cnitool's if `as_cnitool` is set.
pub(crate) fn main(as_cnitool: bool) -> ExitCode {
    if as_cnitool {
        return finish(cnitool::main().map(|()| ExitCode::SUCCESS));
    }
    let Cli { places, command } = parse();
    let places = places.settle();
    let done = |outcome: Outcome| outcome.map(|()| ExitCode::SUCCESS);
    finish(match command {
        Command::Run(options) => {
            run::run(&places, &options).map_err(|failure| failure.or_code(run::OWN_FAILURE))
        }
        Command::Add(options) => done(cnitool::add(&places, &options)),
        Command::Check(options) => done(cnitool::check(&places, &options)),
        Command::Del(options) => done(cnitool::del(&places, &options)),
        Command::Status(options) => done(cnitool::status(&places, &options)),
        Command::Gc(options) => done(gc::gc(&places, &options)),
        Command::Version(options) => done(cnitool::version(&places, &options)),
        Command::Why(options) => done(why::why(&places, &options)),
        Command::List(options) => done(list::list(&places, &options)),
        Command::Relay(options) => done(relay::relay(&places, &options)),
        Command::Lint(options) => lint::lint(&places, &options),
        Command::Cluster(options) => done(cluster::cluster(&options)),
        Command::Demo(options) => done(demo::demo(&places, &options)),
        Command::Install(options) => done(install::install(&places.conf_dir, &options)),
        Command::Uninstall(options) => done(install::uninstall(&places.conf_dir, &options)),
        Command::Schema(options) => done(generate::schema(&options)),
        Command::Completions(options) => {
            generate::completions(options);
            Ok(ExitCode::SUCCESS)
        }
        Command::Man(options) => done(generate::man(&options)),
    })
}

/// Writes a line to standard output. Escapes what a terminal would execute. Ignores a closed pipe, as `head` leaves one.
pub(crate) fn say(line: impl AsRef<str>) {
    drop(writeln!(std::io::stdout(), "{}", printable(line.as_ref())));
}

/// Writes lines to standard output, such as a table, in whose items line breaks are escaped already.
pub(crate) fn say_lines(lines: impl AsRef<str>) {
    drop(writeln!(std::io::stdout(), "{}", kernel::printable_lines(lines.as_ref())));
}

/// Writes JSON to standard output.
pub(crate) fn say_json(json: impl AsRef<str>) {
    drop(writeln!(std::io::stdout(), "{}", kernel::printable_json(json.as_ref())));
}

/// Writes a line to standard error.
pub(crate) fn note(line: impl AsRef<str>) {
    drop(writeln!(std::io::stderr(), "{}", printable(line.as_ref())));
}

/// Parses the command line. An error repeats the arguments, which a script may have from anywhere.
fn parse<T: Parser>() -> T {
    T::try_parse().unwrap_or_else(|error| {
        let text = error.render().to_string();
        let shown = kernel::printable_lines(&text);
        if !error.use_stderr() || shown == text {
            error.exit();
        }
        drop(write!(std::io::stderr(), "{shown}"));
        std::process::exit(error.exit_code())
    })
}

fn finish(outcome: Outcome<ExitCode>) -> ExitCode {
    match outcome {
        Ok(code) => code,
        Err(failure) => {
            for (index, message) in failure.messages.iter().enumerate() {
                note(format!("{}{message}", if index == 0 { "netloom: " } else { "" }));
            }
            failure.hint.lines().for_each(|line| note(format!("  {line}")));
            ExitCode::from(failure.code.unwrap_or(1))
        }
    }
}
