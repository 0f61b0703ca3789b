//! Chores and checks of this repository: `cargo xtask` lists them.
#![forbid(unsafe_code)]

mod bench;
mod chaos;
mod circles;
mod cluster;
mod datapath;
mod deadline;
mod dist;
mod fuzz;
mod growth;
mod host;
mod hot;
mod kernel;
mod lint_speed;
mod package;
mod page;
mod pages;
mod peers;
mod picture;
mod programs;
mod runner;
mod scale;
mod section_order;
mod soak;
mod spec;
mod storm;
mod tally;
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

  test [PACKAGE...]    install what the tests need, run all checks and all tests; or only the tests of packages
  tidy                 check the conventions: dependencies between crates, names, documentation that names files
  spec                 show which test covers which requirement of the specification
  pages [--check]      write the tables of keys in docs/plugins and of rules in docs/lint.md from the code
  picture [BINARY]     draw docs/demo.svg and docs/lint.svg, terminal pictures of runs of `netloom demo` and `netloom lint`
  page [NODES]         serve the daemon's web page with a made-up cluster (default: 50 nodes)
    --pictures           write docs/page-small.png and docs/page-large.png instead, with chromium
  lint-speed [COUNT]   time `netloom lint` on COUNT small files (default: 10,000) and on one of a megabyte, on one processor
  peers                fetch the reference plugins that the parity tests compare with, into target/peers
  deny                 check licences, sources and duplicates of dependencies
  kernel [PACKAGE [TEST...]]
                       run tests on another Debian kernel, such as linux-image-6.12-amd64, in QEMU
  datapath [ROUNDS]    measure packets between pods on two hosts, next to flannel's layout built by hand
  scale [NODES...]     measure one daemon in clusters of 5,000, 10,000 and 20,000 nodes, and the load of the store
    --daemons N          number of daemons that start at once (default: 20)
    --binaries DIR       binaries to run (default: a release build)
  cluster              start a daemon and two pods on each of three hosts and ping between all pods, in each mode
  dist [OPTIONS]       build the binary to install and print its path
    --fixed              link it at a fixed address instead of as a position-independent executable
    --target TRIPLE      build for this target (default: musl of this architecture)
  package [--binaries DIR] [--check]
                       build archives, .deb, .rpm and a container image; check the Debian packages in a clean root
  reproducible         build the last commit in two folders and compare the binaries
  hot                  list the functions that plugin calls run, for the linker to place them next to each other
  fuzz [SECONDS [NAME...]]
                       look for input that breaks a parser of foreign bytes (default: 60 s per target)
  soak [COUNT]         attach and detach 20,000 containers and count leftovers; then run the crash tests with every error
  storm [OPTIONS]      attach, check, detach and collect at random while calls are killed and memory and disk run out
    --seed N             repeat the choices of a run (default: the time)
    --minutes M          duration (default: 1)
    --threads T          number of threads and of containers (default: 64)
    --no-faults          disturb no call, and mostly check
  chaos [OPTIONS]      break daemons, store, kernel objects, files and networks of a cluster at random, and check what pods notice
    --seed N             repeat the choices of a run (default: the time)
    --minutes M, --seconds S
                         duration (default: 1 minute)
    --hosts N            number of hosts (default: 3)
    --mode MODE          overlay, auto or routing (default: by seed)
    --only TEXT          only faults with TEXT in their names
    --repairs            measure the time to repair each object instead
    --binaries DIR       binaries to run (default: a release build)
    --other DIR          another build, which some restarts of daemons use
  bench [OPTIONS]      time folders of plugins against each other
  growth [OPTIONS]     time one more container on a host that has many
    --side NAME=DIR      a folder of plugins; repeatable; this repository's build is added as `netloom`
    --only TEXT          (bench) only cases with TEXT in their names, `VERSION`, `published ports` or `churn`
    -n COUNT             number of rounds (default: 60)
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.first().map(String::as_str) {
        Some("test") => test::test(&arguments[1..]),
        Some("tidy") => tidy::tidy(),
        Some("spec") => spec::spec(),
        Some("pages") => pages::pages(&arguments[1..]),
        Some("lint-speed") => lint_speed::lint_speed(&arguments[1..]),
        Some("page") => page::page(&arguments[1..]),
        Some("picture") => picture::picture(&arguments[1..]),
        Some("package") => package::package(&arguments[1..]),
        Some("peers") => peers::peers(),
        Some("deny") => test::deny(),
        Some("kernel") => kernel::kernel(&arguments[1..]),
        Some("dist") => dist::main(&arguments[1..]),
        Some("reproducible") => dist::reproducible(),
        Some("hot") => hot::hot(),
        Some("hot-call") if arguments.len() == 3 => hot::call(&arguments[1], &arguments[2]),
        Some("bench") => bench::bench(&arguments[1..]),
        Some("fuzz") => fuzz::fuzz(&arguments[1..]),
        Some("cluster") => cluster::cluster(),
        Some("datapath") => datapath::datapath(&arguments[1..]),
        Some("scale") => scale::scale(&arguments[1..]),
        Some("soak") => soak::soak(&arguments[1..]),
        Some("storm") => storm::storm(&arguments[1..]),
        Some("chaos") => chaos::chaos(&arguments[1..]),
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

#[expect(clippy::print_stdout, reason = "the only place where chores print")]
fn say(text: &str) {
    println!("{text}");
}

/// Returns the repository's folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap_or(Path::new(".")).to_owned()
}

/// Returns Cargo's target folder.
fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// Prints a command and runs it in the repository's folder.
fn run(program: &str, arguments: &[&str]) -> Outcome {
    say(&format!("$ {program} {}", arguments.join(" ")));
    run_with(Command::new(program).args(arguments))
}

/// Runs a command in the repository's folder.
fn run_with(command: &mut Command) -> Outcome {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.current_dir(root()).status().map_err(|error| format!("{name}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{name} failed: {status}")) }
}

/// Lists the files below a folder whose names end in one of `endings`.
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

/// Reads a text file.
fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}
