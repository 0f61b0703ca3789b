//! Runs plugins as a runtime does, and takes the time.

use std::{
    fs::File,
    io::{Read, Seek, Write},
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{host::Host, say};

/// A folder of plugins that takes part in a comparison.
pub(crate) struct Side {
    /// The name in the output.
    pub(crate) name: String,
    pub(super) bin: PathBuf,
    /// A program with arguments that runs the plugin. If empty, the plugin is run directly.
    starter: Vec<String>,
}

impl Side {
    pub(super) fn of(name: &str, bin: PathBuf) -> Self {
        Self::started_by(name, bin, &[])
    }

    /// Creates a side whose plugins are run by a starter.
    pub(crate) fn started_by(name: &str, bin: PathBuf, starter: &[String]) -> Self {
        Self { name: name.to_owned(), bin, starter: starter.to_vec() }
    }
}

/// One container of one side, whose verbs are run.
pub(crate) struct Call<'a> {
    pub(crate) side: &'a Side,
    pub(crate) host: &'a Host,
    pub(crate) container: String,
}

impl Call<'_> {
    /// Runs one verb. Returns the time from spawn to exit and what the plugin printed.
    ///
    /// A verb other than ADD may fail in a foreign plugin: the failure is printed and timed.
    pub(super) fn run(&self, verb: &str, conf: &Value) -> Result<(Duration, Value), String> {
        let plugin = self.side.bin.join(conf["type"].as_str().unwrap_or_default());
        let mut stdin = temporary()?;
        stdin
            .write_all(conf.to_string().as_bytes())
            .and_then(|()| stdin.rewind())
            .map_err(|e| e.to_string())?;
        let stdout = temporary()?;
        let mut answer = stdout.try_clone().map_err(|error| error.to_string())?;
        let root = format!("/proc/{}/root", self.host.pid());
        let mut line = self.side.starter.iter().map(AsRef::as_ref).chain([plugin.as_os_str()]);
        let mut command = Command::new(line.next().unwrap_or_default());
        command
            .args(line)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &self.container)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", format!("{root}/run/netns/{}", self.container))
            .env("CNI_PATH", &self.side.bin)
            .stdin(stdin)
            .stdout(stdout)
            .stderr(Stdio::null());
        let (took, ok) = self.host.inside(|| {
            let started = Instant::now();
            let status = command.status();
            (started.elapsed(), status.is_ok_and(|status| status.success()))
        })?;
        let mut text = String::new();
        answer.rewind().and_then(|()| answer.read_to_string(&mut text)).map_err(|error| error.to_string())?;
        if !ok && (self.side.name == "netloom" || verb == "ADD") {
            return Err(format!("{verb} {} of {} failed: {text}", conf["type"], self.side.name));
        }
        if !ok && self.container == "c0" {
            say(&format!("{verb} {} of {} fails: {text}", conf["type"], self.side.name));
        }
        Ok((took, serde_json::from_str(&text).unwrap_or(Value::Null)))
    }
}

/// Creates an anonymous file.
fn temporary() -> Result<File, String> {
    let fd = rustix::fs::memfd_create("bench", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(|error| error.to_string())?;
    Ok(File::from(fd))
}

/// Runs a verb of each plugin of a chain and passes results on as a runtime does. Returns the sum of the times.
pub(crate) fn run_chain(call: &Call<'_>, verb: &str, chain: &mut [Value]) -> Result<Duration, String> {
    let mut whole = Duration::ZERO;
    let mut result = Value::Null;
    let order: Vec<usize> =
        if verb == "DEL" { (0..chain.len()).rev().collect() } else { (0..chain.len()).collect() };
    for index in order {
        if verb == "ADD" && index > 0 {
            chain[index]["prevResult"] = result;
        }
        let (took, answer) = call.run(verb, &chain[index])?;
        whole += took;
        result = answer;
    }
    if verb == "ADD" {
        for conf in chain {
            conf["prevResult"] = result.clone();
        }
    }
    Ok(whole)
}
