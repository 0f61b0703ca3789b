//! The node daemon's command line.
#![forbid(unsafe_code)]

mod logging;

use std::{
    io::{ErrorKind, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use node::{
    config::{Config, DEFAULT, Written},
    daemon::{self, Event},
    printable, printable_lines,
};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};

/// Join hosts into one network of pods, over tunnels or via routes
#[derive(Debug, Parser)]
#[command(name = "netloomd", version, propagate_version = true)]
struct Cli {
    /// Configuration file in TOML; every value can also be given as a flag or in the environment
    #[arg(
        long,
        env = "NETLOOMD_CONFIG",
        value_name = "FILE",
        default_value = "/etc/netloom/netloomd.toml",
        global = true
    )]
    config: PathBuf,
    #[command(flatten)]
    written: Written,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Clone, Subcommand)]
enum Command {
    /// Run the daemon (the default)
    Run,
    /// Print a configuration file that documents every value and its default
    Config,
    /// Check the configuration
    Check,
    /// Remove everything that the daemon created on this host, and this node from the cluster
    Uninstall,
}

fn main() -> ExitCode {
    let cli = parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Logging may not have been started yet. The error in a file has several lines.
            let mut lines = error.lines();
            say_error("netloomd: ", lines.next().unwrap_or_default());
            lines.for_each(|line| say_error("  ", line));
            ExitCode::FAILURE
        }
    }
}

/// Writes a line to standard error.
fn say_error(start: &str, line: &str) {
    drop(writeln!(std::io::stderr(), "{start}{}", printable(line)));
}

/// Parses the command line. An error repeats the arguments, which a script may have from anywhere.
fn parse() -> Cli {
    Cli::try_parse().unwrap_or_else(|error| {
        let text = error.render().to_string();
        let shown = printable_lines(&text);
        if !error.use_stderr() || shown == text {
            error.exit();
        }
        drop(write!(std::io::stderr(), "{shown}"));
        std::process::exit(error.exit_code())
    })
}

fn run(cli: Cli) -> Result<(), String> {
    let command = cli.command.clone().unwrap_or(Command::Run);
    if matches!(command, Command::Config) {
        return write!(std::io::stdout(), "{DEFAULT}").map_err(|error| error.to_string());
    }
    let config = configuration(cli)?;
    match command {
        Command::Config => Ok(()),
        Command::Check => writeln!(
            std::io::stdout(),
            "node {}, {}, store {}: the configuration is valid",
            printable(&config.node),
            config
                .networks
                .iter()
                .map(|network| {
                    format!("network {} in mode {}", printable(&network.name), network.mode.as_str())
                })
                .collect::<Vec<_>>()
                .join(", "),
            config.store.kind()
        )
        .map_err(|error| error.to_string()),
        Command::Uninstall => {
            let changes = daemon::uninstall(&config).map_err(|error| error.to_string())?;
            writeln!(
                std::io::stderr(),
                "removed {changes} kernel objects, the ruleset and the network configurations"
            )
            .map_err(|error| error.to_string())
        }
        Command::Run => {
            logging::start(&config.log_level, config.log_format)?;
            let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(|error| error.to_string())?;
            let stop = move |sender: std::sync::mpsc::Sender<Event>| {
                std::thread::spawn(move || {
                    signals.forever().next();
                    drop(sender.send(Event::Stop));
                });
            };
            daemon::run(config, stop).map_err(|error| error.to_string())
        }
    }
}

fn configuration(cli: Cli) -> Result<Config, String> {
    let in_file = match std::fs::read_to_string(&cli.config) {
        Ok(text) => Written::parse(&text).map_err(|error| format!("{}: {error}", cli.config.display()))?,
        // Flags and defaults may be enough.
        Err(error) if error.kind() == ErrorKind::NotFound => Written::default(),
        Err(error) => return Err(format!("cannot read {}: {error}", cli.config.display())),
    };
    let config = cli.written.or(in_file).meant().map_err(|error| format!("configuration: {error}"))?;
    logging::targets(&config.log_level)?;
    Ok(config)
}
