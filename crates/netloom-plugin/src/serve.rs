//! The answer to a request: calls the verb, runs the undo steps if it fails, prints one answer.

use std::{
    io::{Read, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
};

use netloom_invoke::{FileId, Verb};
use netloom_types::{CniError, CniResult, Code, SpecVersion, VersionInfo};

use crate::{
    Plugin, Request, Sandbox,
    linked::{Delegates, NO_DELEGATES},
    request::{self, Variables},
    undo::Undo,
};

/// The input and output streams of a request.
pub struct Console<'a> {
    /// The source of the configuration.
    pub stdin: &'a mut dyn Read,
    /// The destination of the answer.
    pub stdout: &'a mut dyn Write,
    /// The destination of the log.
    pub stderr: &'a mut dyn Write,
    /// A flag that a signal handler sets. It stops an ADD at its next step.
    pub interrupted: Arc<AtomicBool>,
}

/// Runs a plugin as a program. A plugin's `main` consists of this call.
pub fn main(plugin: &dyn Plugin) -> ExitCode {
    main_with(plugin, NO_DELEGATES)
}

/// Runs a plugin as a program that has other plugins linked in.
pub fn main_with(plugin: &dyn Plugin, delegates: Delegates) -> ExitCode {
    let variables = Variables::of_process();
    let interrupted = Arc::new(AtomicBool::new(false));
    // Only an ADD registers undo steps.
    let signals: &[i32] = match variables.value("CNI_COMMAND").and_then(Verb::parse) {
        Some(Verb::Add) => &[signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT],
        _ => &[],
    };
    for signal in signals {
        // If the handler cannot be registered, a signal ends the process at once; DEL then cleans up.
        drop(signal_hook::flag::register(*signal, Arc::clone(&interrupted)));
    }
    let mut console = Console {
        stdin: &mut std::io::stdin().lock(),
        stdout: &mut std::io::stdout().lock(),
        stderr: &mut std::io::stderr().lock(),
        interrupted,
    };
    if serve(plugin, &variables, &mut console, delegates) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Answers one request. Returns true if it succeeded (exit code 0), false if an error was printed (exit code 1).
pub fn serve(
    plugin: &dyn Plugin,
    variables: &Variables,
    console: &mut Console<'_>,
    delegates: Delegates,
) -> bool {
    if variables.value("CNI_COMMAND").is_none() {
        let versions: Vec<&str> = plugin.versions().iter().map(|version| version.as_str()).collect();
        let about = format!("{}\nCNI protocol versions supported: {}\n", plugin.about(), versions.join(", "));
        return console.stderr.write_all(about.as_bytes()).is_ok();
    }
    if variables.value("CNI_COMMAND") == Some(Verb::Version.as_str()) {
        let info = serde_json::to_string(&VersionInfo::new(plugin.versions())).unwrap_or_default();
        return writeln!(console.stdout, "{info}").is_ok();
    }
    let answered = catch_unwind(AssertUnwindSafe(|| answer(plugin, variables, console, delegates)));
    let error = match answered {
        Ok(Ok(())) => return true,
        Ok(Err(error)) => error,
        Err(panic) => panic_error(plugin, &*panic),
    };
    // If this write fails, the caller does not read the answer; the exit code still reports the failure.
    drop(console.stdout.write_all(error.to_json().as_bytes()));
    false
}

fn answer(
    plugin: &dyn Plugin,
    variables: &Variables,
    console: &mut Console<'_>,
    delegates: Delegates,
) -> Result<(), CniError> {
    let (request, sandbox) = request::read(plugin, variables, console.stdin, delegates)?;
    let outcome = match (&sandbox, request.verb) {
        (Some(sandbox), Verb::Add) => guard_netns(variables, sandbox)
            .and_then(|()| require_netns_exists(plugin, sandbox))
            .and_then(|()| add(plugin, &request, sandbox, console)),
        (Some(sandbox), Verb::Del) => {
            guard_netns(variables, sandbox).and_then(|()| plugin.del(&request, sandbox))
        }
        (Some(sandbox), Verb::Check) => {
            require_netns_exists(plugin, sandbox).and_then(|()| check(plugin, &request, sandbox))
        }
        (_, Verb::Status) => plugin.status(&request),
        (_, Verb::Gc) => gc(plugin, &request),
        // `request::read` returns a sandbox for the verbs that need one, and never VERSION.
        (_, verb) => Err(CniError::new(Code::Internal, format!("{verb} has no sandbox"))),
    };
    outcome.map_err(|mut error| {
        error.cni_version = Some(request.version);
        error
    })
}

/// Runs ADD as a transaction: on any failure before the result is written, every undo step runs.
fn add(
    plugin: &dyn Plugin,
    request: &Request,
    sandbox: &Sandbox,
    console: &mut Console<'_>,
) -> Result<(), CniError> {
    let mut undo = Undo::new(Arc::clone(&console.interrupted));
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let result = plugin.add(request, sandbox, &mut undo)?;
        undo.stop_if_interrupted()?;
        let result = CniResult::V100(SpecVersion::NEWEST, result)
            .convert(request.version)
            .map_err(|error| CniError::new(Code::Internal, error.to_string()))?;
        // The final newline makes standard output, which is line-buffered, write the whole text at once.
        console
            .stdout
            .write_all(format!("{}\n", result.to_json()).as_bytes())
            .and_then(|()| console.stdout.flush())
            .map_err(|error| CniError::new(Code::Io, format!("cannot write the result to stdout: {error}")))
    }));
    let mut error = match outcome {
        Ok(Ok(())) => {
            undo.keep();
            return Ok(());
        }
        Ok(Err(error)) => error,
        Err(panic) => panic_error(plugin, &*panic),
    };
    let failed = undo.run();
    if !failed.is_empty() {
        let gap = if error.details.is_empty() { "" } else { "; " };
        error.details =
            format!("{}{gap}these steps could not be undone, call DEL: {}", error.details, failed.join("; "));
    }
    Err(error)
}

fn check(plugin: &dyn Plugin, request: &Request, sandbox: &Sandbox) -> Result<(), CniError> {
    if request.prev_result.is_none() && plugin.checks_result() {
        return Err(CniError::new(Code::InvalidNetworkConfig, "Required prevResult missing").details(
            "CHECK compares the container with the result of its ADD: the runtime must send it as `prevResult`",
        ));
    }
    plugin.check(request, sandbox)
}

fn gc(plugin: &dyn Plugin, request: &Request) -> Result<(), CniError> {
    let Some(valid) = request.config.valid_attachments()? else {
        return Err(CniError::new(
            Code::InvalidNetworkConfig,
            "`cni.dev/valid-attachments` is missing: without it no attachment is known to be stale",
        )
        .details("an empty list means that no attachment is valid"));
    };
    plugin.gc(request, &valid)
}

/// Refuses the plugin's own namespace before anything is changed. `CNI_NETNS_OVERRIDE` allows it.
fn guard_netns(variables: &Variables, sandbox: &Sandbox) -> Result<(), CniError> {
    let allowed = variables
        .value("CNI_NETNS_OVERRIDE")
        .is_some_and(|value| value == "1" || value.eq_ignore_ascii_case("true"));
    let Some(netns) = sandbox.netns.as_deref().filter(|_| !allowed) else { return Ok(()) };
    let own = FileId::of(Path::new("/proc/self/ns/net"));
    if own.is_none() {
        return Err(CniError::new(Code::InvalidNetns, "get plugin's netns failed: is /proc mounted?"));
    }
    if FileId::of(netns) == own {
        return Err(CniError::new(
            Code::InvalidNetns,
            "plugin's netns and netns from CNI_NETNS should not be the same",
        )
        .details(format!("CNI_NETNS={} is the host's own namespace; nothing was changed", netns.display())));
    }
    Ok(())
}

fn require_netns_exists(plugin: &dyn Plugin, sandbox: &Sandbox) -> Result<(), CniError> {
    let netns = sandbox.require_netns()?;
    if !plugin.uses_netns() || FileId::of(netns).is_some() {
        return Ok(());
    }
    Err(CniError::new(
        Code::InvalidEnvironment,
        format!("CNI_NETNS: there is no network namespace at {}", netns.display()),
    )
    .details("the runtime creates the namespace before it calls plugins; the container may have ended since"))
}

fn panic_error(plugin: &dyn Plugin, panic: &(dyn std::any::Any + Send)) -> CniError {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    CniError::new(Code::Internal, format!("plugin {} panicked: {}", plugin.name(), text.unwrap_or("no text")))
        .details("this is a bug: report it with the configuration")
}
