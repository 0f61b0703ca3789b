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
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Logging may not have been started yet.
            drop(writeln!(std::io::stderr(), "netloomd: {error}"));
            ExitCode::FAILURE
        }
    }
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
            config.node,
            config
                .networks
                .iter()
                .map(|network| format!("network {} in mode {}", network.name, network.mode.as_str()))
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
