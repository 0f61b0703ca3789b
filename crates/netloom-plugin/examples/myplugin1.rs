//! A complete chained plugin. It writes the addresses of each container to a file for other programs, one line per container.
//!
//! ```json
//! { "type": "myplugin1", "file": "/run/lab-hosts", "domain": "lab.example" }
//! ```
//!
//! Build it, install it in a folder of `CNI_PATH` with its type as the file name, and add it to the `plugins` of a list.

use std::{fs, io::Write, path::PathBuf, process::ExitCode};

use netloom_plugin::{Attachment, Code, Error, Plugin, Request, Sandbox, Undo, result::v100::Success};
use serde::Deserialize;

struct MyPlugin1;

/// The configuration. Unknown keys are ignored, and the case of keys does not matter.
#[derive(Deserialize)]
struct Conf {
    file: PathBuf,
    #[serde(default)]
    domain: String,
}

impl Plugin for MyPlugin1 {
    fn name(&self) -> &'static str {
        "myplugin1"
    }

    fn add(&self, request: &Request, sandbox: &Sandbox, undo: &mut Undo) -> Result<Success, Error> {
        let conf: Conf = request.read()?;
        let result = request.require_prev_result()?;
        let mut words = vec![mark(sandbox).trim_end().to_owned()];
        words.extend(result.ips.iter().map(|ip| ip.address.addr().to_string()));
        if !conf.domain.is_empty() {
            words.push(format!("{}.{}", sandbox.container_id, conf.domain));
        }
        let line = words.join(" ");
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&conf.file)
            .and_then(|mut file| writeln!(file, "{line}"))
            .map_err(|error| failed("write", &conf, &error))?;
        // Any failure from here on, in this plugin or while its answer is written, removes the line again.
        let sandbox = sandbox.clone();
        undo.push("remove the line", move || retain(&conf, |line| !line.starts_with(&mark(&sandbox))))?;
        Ok(result)
    }

    fn del(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        retain(&request.read()?, |line| !line.starts_with(&mark(sandbox)))
    }

    fn check(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        let conf: Conf = request.read()?;
        let text = fs::read_to_string(&conf.file).map_err(|error| failed("read", &conf, &error))?;
        if text.lines().any(|line| line.starts_with(&mark(sandbox))) {
            return Ok(());
        }
        // Codes from 100 on belong to plugins.
        Err(Error::new(
            Code::Other(100),
            format!("{} is not in {}", sandbox.container_id, conf.file.display()),
        ))
    }

    fn gc(&self, request: &Request, valid: &[Attachment]) -> Result<(), Error> {
        retain(&request.read()?, |line| {
            valid.iter().any(|a| line.starts_with(&format!("{}/{} ", a.container_id, a.ifname)))
        })
    }
}

fn mark(sandbox: &Sandbox) -> String {
    format!("{}/{} ", sandbox.container_id, sandbox.ifname)
}

/// Removes the lines for which `keep` returns false. Succeeds if the file does not exist.
fn retain(conf: &Conf, keep: impl Fn(&str) -> bool) -> Result<(), Error> {
    let Ok(text) = fs::read_to_string(&conf.file) else { return Ok(()) };
    let kept: String = text.lines().filter(|line| keep(line)).map(|line| format!("{line}\n")).collect();
    fs::write(&conf.file, kept).map_err(|error| failed("write", conf, &error))
}

fn failed(doing: &str, conf: &Conf, error: &std::io::Error) -> Error {
    Error::new(Code::Io, format!("cannot {doing} `file` {}: {error}", conf.file.display()))
}

fn main() -> ExitCode {
    netloom_plugin::main(&MyPlugin1)
}
