//! `cargo xtask lint-speed`: times `netloom lint` on one processor, on many small files and on one of a megabyte.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use crate::{Outcome, dist::Dist, say, target};

/// Runs the chore.
pub(crate) fn lint_speed(arguments: &[String]) -> Outcome {
    let count = match arguments.first() {
        None => 10_000,
        Some(count) => count.parse::<u32>().map_err(|_| format!("`{count}` is not a number"))?,
    };
    let binary = Dist::default().build()?;
    let dir = target().join("lint-speed");
    drop(fs::remove_dir_all(&dir));
    let write = |path: &Path, text: String| {
        fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
    };
    let (many, one) = (dir.join("many"), dir.join("one"));
    for folder in [&many, &one] {
        fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    for index in 0..count {
        write(&many.join(format!("{index:05}.conflist")), small(index))?;
    }
    write(&one.join("large.conflist"), large())?;
    let start = time(&binary, &dir.join("none"))?;
    let small = time(&binary, &many)?;
    say(&format!("start: {:.1} ms", start.as_secs_f64() * 1e3));
    say(&format!(
        "{count} files: {:.0} ms, {:.0} files/s",
        small.as_secs_f64() * 1e3,
        f64::from(count) / small.as_secs_f64()
    ));
    say(&format!(
        "a file of 1 MiB with a fault at its end: {:.1} ms",
        time(&binary, &one)?.as_secs_f64() * 1e3
    ));
    fs::remove_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))
}

/// Returns the median time of five runs on the first processor.
fn time(binary: &Path, folder: &Path) -> Result<Duration, String> {
    fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut times = Vec::new();
    for _ in 0..5 {
        let start = Instant::now();
        let output = Command::new("taskset")
            .args(["--cpu-list", "0"])
            .arg(binary)
            .args(["lint", "--no-host", "--format", "json"])
            .arg(folder)
            .output()
            .map_err(|error| format!("taskset: {error}"))?;
        times.push(start.elapsed());
        if !matches!(output.status.code(), Some(0 | 1)) {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

/// Returns a network with the usual plugins, a subnet and a bridge of its own.
fn small(index: u32) -> String {
    let subnet = format!("10.{}.{}.0/28", index >> 8 & 255, index & 255);
    format!(
        r#"{{
  "cniVersion": "1.0.0",
  "name": "network-{index}",
  "plugins": [
    {{
      "type": "bridge",
      "bridge": "br{index}",
      "isDefaultGateway": true,
      "ipMasq": true,
      "ipam": {{"type": "host-local", "ranges": [[{{"subnet": "{subnet}"}}], [{{"subnet": "fd00:{index:x}::/64"}}]]}}
    }},
    {{"type": "portmap", "capabilities": {{"portMappings": true}}}},
    {{"type": "firewall"}},
    {{"type": "tuning", "sysctl": {{"net.core.somaxconn": "500"}}}}
  ]
}}
"#
    )
}

fn large() -> String {
    let keys: String = (0..20_000).map(|index| format!("\"key{index}\": \"{index:->40}\",\n")).collect();
    format!(
        "{{\"cniVersion\": \"1.0.0\", \"name\": \"large\", \"plugins\": [\n{{\"type\": \"other\", \"data\": {{\n{keys}\"last\": \
         0}}}},\n{{\"type\": \"tuning\", \"mtu\": 20}}\n]}}\n"
    )
}
