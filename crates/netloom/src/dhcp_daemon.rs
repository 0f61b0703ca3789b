//! `dhcp daemon`: maintains the DHCP leases of containers. It accepts the flags of the reference plugin's daemon.

use std::{ffi::OsString, io::Write as _, path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;

/// Maintain DHCP leases of containers: acquire them for the dhcp plugin, renew them and release them.
#[derive(Debug, Parser)]
#[command(name = "dhcp daemon", version)]
struct Flags {
    /// File to write the process ID to
    #[arg(long, value_name = "FILE")]
    pidfile: Option<PathBuf>,
    /// Prefix for paths of the host, for a daemon in a container
    #[arg(long, value_name = "DIR", default_value = "/")]
    hostprefix: PathBuf,
    /// Socket to listen on
    #[arg(long, value_name = "SOCKET", default_value = dhcp::call::DEFAULT_SOCKET)]
    socketpath: PathBuf,
    /// Ask servers to reply to the broadcast address
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, require_equals = true,
        action = clap::ArgAction::Set)]
    broadcast: bool,
    /// Time limit for the first reply
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10s")]
    timeout: Duration,
    /// Longest interval between retransmissions
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "62s")]
    resendmax: Duration,
    /// Time limit for a lease
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
    // The reader of the log may have closed the pipe.
    let mut log = |line: &str| drop(writeln!(std::io::stderr(), "{}", kernel::printable(line)));
    match dhcp::daemon::run(&options, &mut log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Adds a second hyphen to a long flag with one: the reference accepts both (Go's `flag` package).
fn with_two_hyphens(argument: OsString) -> OsString {
    match argument.to_str() {
        Some(text) if text.len() > 2 && text.starts_with('-') && !text.starts_with("--") => {
            format!("-{text}").into()
        }
        _ => argument,
    }
}

/// Parses a duration, for example `1m30s` or `500ms`.
fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| error.to_string())
}
