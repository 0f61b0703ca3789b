//! Which sysctls a node's administrator allows, as the reference's file says.

use std::{fs, io::ErrorKind};

use netloom_plugin::{Code, Error};
use regex_lite::Regex;

use crate::error::invalid;

/// A regular expression a line; without the file all are allowed.
const FILE: &str = "/etc/cni/tuning/allowlist.conf";

/// Refuses keys that no line of the file fits.
pub(super) fn require<'a>(mut keys: impl Iterator<Item = &'a str>) -> Result<(), Error> {
    let text = match fs::read_to_string(FILE) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|error| Error::new(Code::Io, format!("cannot read {FILE}: {error}")))?,
    };
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let expressions = lines
        .iter()
        .map(|line| {
            Regex::new(line)
                .map_err(|error| Error::new(Code::InvalidNetworkConfig, format!("{FILE}: {line:?}: {error}")))
        })
        .collect::<Result<Vec<_>, Error>>()?;
    match keys.find(|key| !expressions.iter().any(|expression| expression.is_match(key))) {
        None => Ok(()),
        Some(key) => Err(invalid(format!("Sysctl {key} is not allowed"))
            .details(format!("{FILE} allows only {}", lines.join(" ")))),
    }
}
