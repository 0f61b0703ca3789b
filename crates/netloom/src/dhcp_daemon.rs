//! `dhcp daemon`: keeps the leases of containers, with the flags of the reference's.

use std::{ffi::OsString, io::Write as _, path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;

/// Keeps DHCP leases of containers: gets them when the plugin `dhcp` asks, renews them, and gives them back.
#[derive(Debug, Parser)]
#[command(name = "dhcp daemon", version)]
struct Flags {
    /// File to write the process ID to
    #[arg(long, value_name = "FILE")]
    pidfile: Option<PathBuf>,
    /// What stands before paths of the host, for a daemon in a container
    #[arg(long, value_name = "DIR", default_value = "/")]
    hostprefix: PathBuf,
    /// Where to listen
    #[arg(long, value_name = "SOCKET", default_value = dhcp::call::DEFAULT_SOCKET)]
    socketpath: PathBuf,
    /// Have servers answer to everybody
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, require_equals = true,
        action = clap::ArgAction::Set)]
    broadcast: bool,
    /// Longest wait for an answer at first
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10s")]
    timeout: Duration,
    /// Longest wait between tries
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "62s")]
    resendmax: Duration,
    /// How long the plugin waits for a lease
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "208s")]
    resendtimeout: Duration,
}

/// Runs the daemon until a signal ends it.
pub(crate) fn main() -> ExitCode {
    let arguments = std::env::args_os().skip(2).map(with_two_hyphens);
    let flags = Flags::parse_from(std::iter::once(OsString::from("dhcp daemon")).chain(arguments));
    let options = dhcp::daemon::Options {
        socket: flags.socketpath,
        pidfile: flags.pidfile,
        host_prefix: flags.hostprefix,
        timeout: flags.timeout,
        resend_max: flags.resendmax,
        resend_timeout: flags.resendtimeout,
        broadcast: flags.broadcast,
    };
    // Whoever reads the log may be gone.
    let mut log = |line: &str| drop(writeln!(std::io::stderr(), "{line}"));
    match dhcp::daemon::run(&options, &mut log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// The reference's flags have one hyphen, or two.
fn with_two_hyphens(argument: OsString) -> OsString {
    match argument.to_str() {
        Some(text) if text.len() > 2 && text.starts_with('-') && !text.starts_with("--") => {
            format!("-{text}").into()
        }
        _ => argument,
    }
}

/// Reads `1m30s`, `500ms`.
fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| error.to_string())
}
