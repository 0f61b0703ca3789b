//! Completions and man pages, from the same description as the help.

use std::{fs, path::PathBuf};

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, Failure, Outcome};

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
