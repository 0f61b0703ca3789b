//! Chores and checks of this repository: `cargo xtask` lists them.
#![forbid(unsafe_code)]

mod bench;
mod circles;
mod cluster;
mod datapath;
mod fuzz;
mod growth;
mod hot;
mod kernel;
mod package;
mod pages;
mod peers;
mod picture;
mod programs;
mod runner;
mod scale;
mod soak;
mod spec;
mod test;
mod tidy;

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

/// The result of a chore: nothing, or what went wrong (empty if it has been printed already).
type Outcome = Result<(), String>;

const HELP: &str = "\
cargo xtask CHORE

  test [PACKAGE...]    install what the tests need, check everything, run all tests; or only the tests of packages
  tidy                 conventions: arrows between crates, names, maps that tell the truth
  spec                 which test shows which requirement of the specification
  pages [--check]      write the tables of keys in docs/plugins from the code
  picture [BINARY]     draw docs/demo.svg, the terminal picture of README.md, from a run of `netloom demo`
  peers                fetch the reference plugins that the parity tests compare with, into target/peers
  deny                 licences, sources and duplicates of what we depend on
  kernel [PACKAGE [TEST...]]
                       run tests on another kernel of Debian's, such as linux-image-6.12-amd64, in QEMU
  datapath [ROUNDS]    what pods' packets cost between hosts, beside flannel's layout built by hand
  scale [NODES]        one daemon in a cluster of thousands of nodes: time, memory, CPU
  cluster              three hosts, a daemon and two pods on each, and pings between all, in each mode
  dist                 build the binary to install, and say where it is
  package [--binaries DIR] [--check]
                       make archives, .deb, .rpm and a container image; check the Debian packages in a clean root
  hot                  write down which functions plugins' calls run, for the linker to put them side by side
  fuzz [SECONDS [NAME...]]
                       look for input that breaks a door by which others' bytes come in (default 60 s each)
  soak [COUNT]         20,000 containers in and out, counting what is left; then the crash tests with every error
  bench [OPTIONS]      time plugins side by side
  growth [OPTIONS]     time one more container on a host that has many
    --side NAME=DIR      a folder of plugins; may be repeated; ours is added as netloom
    --only TEXT          (bench) what has this in its name: a case, VERSION or churn
    -n COUNT             how often each is run (default 60)
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.first().map(String::as_str) {
        Some("test") => test::test(&arguments[1..]),
        Some("tidy") => tidy::tidy(),
        Some("spec") => spec::spec(),
        Some("pages") => pages::pages(&arguments[1..]),
        Some("picture") => picture::picture(&arguments[1..]),
        Some("package") => package::package(&arguments[1..]),
        Some("peers") => peers::peers(),
        Some("deny") => test::deny(),
        Some("kernel") => kernel::kernel(&arguments[1..]),
        Some("dist") => bench::dist().map(|path| say(&path.display().to_string())),
        Some("hot") => hot::hot(),
        Some("hot-call") if arguments.len() == 3 => hot::call(&arguments[1], &arguments[2]),
        Some("bench") => bench::bench(&arguments[1..]),
        Some("fuzz") => fuzz::fuzz(&arguments[1..]),
        Some("cluster") => cluster::cluster(),
        Some("datapath") => datapath::datapath(&arguments[1..]),
        Some("scale") => scale::scale(&arguments[1..]),
        Some("soak") => soak::soak(&arguments[1..]),
        Some("growth") => growth::growth(&arguments[1..]),
        _ => {
            say(HELP);
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !error.is_empty() {
                say(&format!("xtask: {error}"));
            }
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "the one place where chores speak")]
fn say(text: &str) {
    println!("{text}");
}

/// Returns the repository's folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap_or(Path::new(".")).to_owned()
}

/// Runs a program in the repository's folder, shown before it is run.
fn run(program: &str, arguments: &[&str]) -> Outcome {
    say(&format!("$ {program} {}", arguments.join(" ")));
    run_with(Command::new(program).args(arguments))
}

fn run_with(command: &mut Command) -> Outcome {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.current_dir(root()).status().map_err(|error| format!("{name}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{name} failed: {status}")) }
}

/// Lists the files below a folder that end in one of these.
fn files(dir: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("target") && !path.ends_with(".git") {
            found.extend(files(&path, endings));
        } else if endings.iter().any(|ending| path.to_string_lossy().ends_with(ending)) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}
