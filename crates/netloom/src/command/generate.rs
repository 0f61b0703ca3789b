//! `netloom completions`, `man` and `schema`: output for other programs.
//!
//! Completions and man pages are generated from the description of the command line, schemas from the types into which the
//! plugins deserialize their configuration.

use std::{fs, path::PathBuf};

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, Failure, Outcome, say_json};

/// Options of `netloom completions`.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Completions {
    /// Shell to generate completions for.
    shell: Shell,
}

/// Options of `netloom man`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Man {
    /// Folder for the pages, for example /usr/local/share/man/man1.
    dir: PathBuf,
}

/// Options of `netloom schema`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Schema {
    /// Plugin to describe, for example bridge. Defaults to a whole list (*.conflist).
    plugin: Option<String>,
}

pub(crate) fn schema(options: &Schema) -> Outcome {
    let schema = match &options.plugin {
        None => plugins::schema::of_list(),
        Some(name) => plugins::schema::of_plugin(name).ok_or_else(|| {
            let names: Vec<&str> = plugins::ALL.iter().map(|plugin| plugin.name()).collect();
            Failure::new(format!("unknown plugin `{name}`"))
                .hint(format!("choose one of {}", names.join(", ")))
        })?,
    };
    say_json(format!("{schema:#}"));
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
