//! What is written for other programs: completions and man pages, from the same description as the help, and schemas, from
//! the types that the plugins read their configuration by.

use std::{fs, path::PathBuf};

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, Failure, Outcome, say};

/// Which shell.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Completions {
    /// The shell.
    shell: Shell,
}

/// Where to.
#[derive(Debug, Clone, Args)]
pub(crate) struct Man {
    /// Folder for the pages, such as /usr/local/share/man/man1.
    dir: PathBuf,
}

/// Of what.
#[derive(Debug, Clone, Args)]
pub(crate) struct Schema {
    /// One plugin's part of a list, such as bridge; without it, a whole list (*.conflist)
    plugin: Option<String>,
}

pub(crate) fn schema(options: &Schema) -> Outcome {
    let schema = match &options.plugin {
        None => plugins::schema::of_list(),
        Some(name) => plugins::schema::of_plugin(name).ok_or_else(|| {
            let names: Vec<&str> = plugins::ALL.iter().map(|plugin| plugin.name()).collect();
            Failure::new(format!("there is no plugin {name:?}"))
                .hint(format!("there are {}", names.join(", ")))
        })?,
    };
    say(format!("{schema:#}"));
    Ok(())
}

pub(crate) fn completions(options: Completions) {
    clap_complete::generate(options.shell, &mut Cli::command(), "netloom", &mut std::io::stdout());
}

pub(crate) fn man(options: &Man) -> Outcome {
    let failure = |error: std::io::Error| {
        Failure::new(format!("cannot write man pages to {}: {error}", options.dir.display()))
    };
    fs::create_dir_all(&options.dir).map_err(failure)?;
    clap_mangen::generate_to(Cli::command(), &options.dir).map_err(failure)
}
