//! The node daemon: what a person types, and nothing else.
#![forbid(unsafe_code)]

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

/// Joins hosts into one network of pods: by tunnels, by routes, or by whichever fits.
#[derive(Debug, Parser)]
#[command(name = "netloomd", version, propagate_version = true)]
struct Cli {
    /// The configuration, in TOML; every value may be given here, as a flag, or in the environment
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
    /// Run the daemon (the same as without a command)
    Run,
    /// Print a configuration file with every value, its meaning and its default
    Config,
    /// Read the configuration and say what is wrong with it, or nothing
    Check,
    /// Take everything away that the daemon made on this host, and this node out of the cluster
    Uninstall,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log(&format!("netloomd: {error}"));
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
            "node {}, {}, store {}: nothing is wrong with it",
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
            log(&format!(
                "{changes} objects of the kernel, the ruleset, and the network's file are taken away"
            ));
            Ok(())
        }
        Command::Run => {
            let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(|error| error.to_string())?;
            let stop = move |sender: std::sync::mpsc::Sender<Event>| {
                std::thread::spawn(move || {
                    signals.forever().next();
                    drop(sender.send(Event::Stop));
                });
            };
            daemon::run(config, stop, &mut log).map_err(|error| error.to_string())
        }
    }
}

fn configuration(cli: Cli) -> Result<Config, String> {
    let in_file = match std::fs::read_to_string(&cli.config) {
        Ok(text) => Written::parse(&text).map_err(|error| format!("{}: {error}", cli.config.display()))?,
        // All of it may be in flags, or left out.
        Err(error) if error.kind() == ErrorKind::NotFound => Written::default(),
        Err(error) => return Err(format!("cannot read {}: {error}", cli.config.display())),
    };
    cli.written.or(in_file).meant().map_err(|error| format!("configuration: {error}"))
}

/// Standard error is the log: a line each, which the service manager gives a time.
fn log(line: &str) {
    drop(writeln!(std::io::stderr(), "{line}"));
}
