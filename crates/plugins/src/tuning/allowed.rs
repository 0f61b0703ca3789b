//! The sysctls that a node's administrator allows, from the reference plugin's file.

use std::{fs, io::ErrorKind};

use netloom_plugin::{Code, Error};
use regex_lite::Regex;

use crate::error::invalid;

/// One regular expression a line. Without the file every sysctl is allowed.
const FILE: &str = "/etc/cni/tuning/allowlist.conf";

/// Fails if no line of the file matches one of the keys.
pub(super) fn require<'a>(mut keys: impl Iterator<Item = &'a str>) -> Result<(), Error> {
    let text = match fs::read_to_string(FILE) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|error| {
            Error::new(Code::Io, format!("cannot read {FILE}: {error}"))
                .details("make the file readable, or remove it to allow every sysctl")
        })?,
    };
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let expressions = lines
        .iter()
        .map(|line| {
            Regex::new(line).map_err(|error| {
                invalid(format!("{FILE}: {line:?}: {error}"))
                    .details("correct this line of the file: it must be a regular expression")
            })
        })
        .collect::<Result<Vec<_>, Error>>()?;
    match keys.find(|key| !expressions.iter().any(|expression| expression.is_match(key))) {
        None => Ok(()),
        Some(key) => Err(invalid(format!("Sysctl {key} is not allowed")).details(format!(
            "remove it, or have the administrator add it to {FILE}, which allows {}",
            lines.join(" ")
        ))),
    }
}
