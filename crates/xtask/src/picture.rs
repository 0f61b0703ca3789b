//! `cargo xtask picture`: runs commands and writes their output as the terminal pictures of the documentation: `netloom demo`,
//! `netloom why` and `netloom lint` as docs/demo.svg, docs/why.svg and docs/lint.svg.
//!
//! Each runs on a fresh host (network and mount namespaces of its own), so the pictures do not depend on the links, networks
//! and reservations of the machine that draws them.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{Outcome, root, say};

/// The prompt that a picture shows before the command.
const PROMPT: &str = "$ ";

/// A picture of a command and its output.
struct Picture {
    file: &'static str,
    /// The command as the picture shows it.
    command: &'static str,
    /// Prepares the host and runs the command (`$0` is the binary).
    script: &'static str,
    highlight: fn(&str) -> Vec<Span<'_>>,
}

const PICTURES: [Picture; 3] = [
    Picture {
        file: "docs/demo.svg",
        command: "sudo netloom demo",
        script: "mount -t tmpfs none /run && mount -t tmpfs none /var/lib && mkdir -p /run/netns \
            && ip link set lo up && exec \"$0\" demo",
        highlight,
    },
    Picture { file: "docs/why.svg", command: "sudo netloom why web", script: WHY, highlight },
    Picture {
        file: "docs/lint.svg",
        command: "netloom lint 10-lab.conflist",
        script: "mount -t tmpfs none /run && cd /run && printf '%s' \"$1\" >10-lab.conflist \
            && { \"$0\" lint 10-lab.conflist; test $? = 1; }",
        highlight: highlight_finding,
    },
];

/// `netloom why` on a host with an uplink and the container `web`, whose packets iptables drops.
const WHY: &str = r#"mount -t tmpfs none /run && mount -t tmpfs none /var/lib && mkdir -p /run/netns /run/bin /run/net.d && ip link set lo up
export CNI_PATH=/run/bin NETCONFPATH=/run/net.d
for plugin in bridge host-local portmap; do ln -s "$0" /run/bin/$plugin; done
ip netns add router && ip link add up0 type veth peer name eth0 netns router && ip link set up0 up && ip addr add 203.0.113.2/24 dev up0
ip -n router link set eth0 up && ip -n router addr add 203.0.113.1/24 dev eth0 && ip route add default via 203.0.113.1
echo '{"cniVersion": "1.1.0", "name": "lab", "plugins": [{"type": "bridge", "isDefaultGateway": true, "ipMasq": true,
  "ipam": {"type": "host-local", "subnet": "10.88.0.0/16"}}, {"type": "portmap", "capabilities": {"portMappings": true}}]}' >/run/net.d/lab.conflist
ip netns add web && "$0" add lab web --container-id web --cap-args '{"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}' >/run/result
iptables -P FORWARD DROP
"$0" why web 2>&1; test $? = 1"#;

/// A network with usual mistakes.
const FAULTY: &str = r#"{
  "cniVersion": "1.0.0",
  "name": "lab",
  "plugins": [
    {
      "type": "bridge",
      "isDefaultGatway": true,
      "ipMasq": true,
      "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "10.1.0.0/16", "gateway": "10.2.0.1"}]],
        "routes": [{"dst": "0.0.0.0/0"}]
      }
    },
    {"type": "portmap"},
  ]
}
"#;

/// Measures in pixels. A character of the widest usual monospace font takes 0.62 of the font size.
const FONT_SIZE: usize = 13;
const LINE_HEIGHT: usize = 18;
const TITLE_BAR: usize = 34;
const MARGIN: usize = 20;

const BACKGROUND: &str = "#1b1f24";
const TITLE_BACKGROUND: &str = "#2a3037";
const PLAIN: &str = "#d6dbe1";
const DIM: &str = "#8a94a0";
const GOOD: &str = "#5fc27e";
const ERROR: &str = "#e0675c";
const WARNING: &str = "#dcae4b";
const HELP: &str = "#6fb3d9";
const BUTTONS: [&str; 3] = ["#e0675c", "#dcae4b", "#5fb55f"];

/// A piece of a line and its colour.
type Span<'a> = (&'a str, &'static str);

/// Draws the output of the binary that `arguments` names, or else of a new build.
pub(crate) fn picture(arguments: &[String]) -> Outcome {
    let binary = match arguments.first() {
        Some(path) => PathBuf::from(path).canonicalize().map_err(|error| format!("{path}: {error}"))?,
        None => crate::dist::Dist::default().build()?,
    };
    for picture in &PICTURES {
        let output = run(picture, &binary)?;
        let path = root().join(picture.file);
        std::fs::write(&path, draw(picture, &output))
            .map_err(|error| format!("{}: {error}", path.display()))?;
        say(&format!("{output}\nwrote {}", path.display()));
    }
    Ok(())
}

/// Returns what the command prints.
fn run(picture: &Picture, binary: &Path) -> Result<String, String> {
    let output = Command::new("unshare")
        .args(["--mount", "--net", "--propagation", "private", "sh", "-c", picture.script])
        .arg(binary)
        .arg(FAULTY)
        .env_remove("CLICOLOR_FORCE")
        .output()
        .map_err(|error| format!("unshare: {error}"))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(printed);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(format!("{} failed ({}; it needs root):\n{printed}{errors}", picture.command, output.status))
}

/// Returns an SVG document of a terminal with the command and its output.
fn draw(picture: &Picture, output: &str) -> String {
    let command = format!("{PROMPT}{}", picture.command);
    let wrapped: Vec<String> = output.trim_end().lines().flat_map(wrap).collect();
    let mut lines = vec![vec![(PROMPT, GOOD), (picture.command, PLAIN)]];
    lines.extend(wrapped.iter().map(|line| (picture.highlight)(line)));
    let shown = wrapped.iter().map(String::as_str).chain([command.as_str()]);
    let longest = shown.map(|line| line.chars().count()).max().unwrap_or(0);
    let width = longest * FONT_SIZE * 62 / 100 + 2 * MARGIN;
    let height = TITLE_BAR + lines.len() * LINE_HEIGHT + 2 * MARGIN;

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         role=\"img\">\n\
         <title>Output of {title}</title>\n\
         <rect width=\"{width}\" height=\"{height}\" rx=\"8\" fill=\"{BACKGROUND}\"/>\n\
         <path d=\"M0 {TITLE_BAR}V8a8 8 0 0 1 8-8H{right}a8 8 0 0 1 8 8V{TITLE_BAR}z\" fill=\"{TITLE_BACKGROUND}\"/>\n",
        right = width - 8,
        title = picture.command.trim_start_matches("sudo "),
    );
    for (index, button) in BUTTONS.iter().enumerate() {
        let (x, y) = (MARGIN + index * 20, TITLE_BAR / 2);
        _ = writeln!(svg, "<circle cx=\"{x}\" cy=\"{y}\" r=\"6\" fill=\"{button}\"/>");
    }
    _ = writeln!(
        svg,
        "<g font-family=\"ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace\" \
         font-size=\"{FONT_SIZE}\" xml:space=\"preserve\">"
    );
    for (index, spans) in lines.iter().enumerate().filter(|(_, spans)| !spans.is_empty()) {
        let baseline = TITLE_BAR + MARGIN + index * LINE_HEIGHT + FONT_SIZE;
        _ = write!(svg, "<text x=\"{MARGIN}\" y=\"{baseline}\">");
        for (text, fill) in spans {
            _ = write!(svg, "<tspan fill=\"{fill}\">{}</tspan>", escape(text));
        }
        svg.push_str("</text>\n");
    }
    svg.push_str("</g>\n</svg>\n");
    svg
}

/// Wraps a line at spaces, as a terminal of this width would, so that the picture fits on a page.
fn wrap(line: &str) -> Vec<String> {
    const WIDTH: usize = 110;
    let mut lines = vec![String::new()];
    for word in line.split_inclusive(' ') {
        let last = lines.last().map_or(0, |last| last.chars().count());
        if last > 0 && last + word.trim_end().chars().count() > WIDTH {
            lines.push("  ".to_owned());
        }
        if let Some(last) = lines.last_mut() {
            last.push_str(word);
        }
    }
    lines
}

/// Highlights the outcome and the time of a step, and the sentence that names a cause.
fn highlight(line: &str) -> Vec<Span<'_>> {
    const OK: &str = "  ok";
    const FAIL: &str = "  FAIL";
    const UNIT: &str = " ms";
    let time = line.find(UNIT).map(|at| at + UNIT.len());
    match (line.strip_prefix(OK), line.strip_prefix(FAIL)) {
        (Some(_), _) if time.is_some() => {
            let end = time.unwrap_or_default();
            vec![(OK, GOOD), (&line[OK.len()..end], DIM), (&line[end..], PLAIN)]
        }
        (Some(rest), _) => vec![(OK, GOOD), (rest, PLAIN)],
        (_, Some(rest)) => vec![(FAIL, ERROR), (rest, PLAIN)],
        _ if line.is_empty() => Vec::new(),
        _ => vec![(line, PLAIN)],
    }
}

/// Highlights a line of a finding: its title by severity, the marks below the line of the file, and the help.
fn highlight_finding(line: &str) -> Vec<Span<'_>> {
    let colour = |line: &str| if line.starts_with("error") { ERROR } else { WARNING };
    if line.is_empty() {
        return Vec::new();
    }
    if line.starts_with("error[") || line.starts_with("warning[") {
        let end = line.find(": ").map_or(line.len(), |at| at + 1);
        return vec![(&line[..end], colour(line)), (&line[end..], PLAIN)];
    }
    if let Some(at) = line.find("= help:") {
        return vec![(&line[..at], DIM), (&line[at..at + 7], HELP), (&line[at + 7..], PLAIN)];
    }
    match line.find('|').or_else(|| line.find("-->").map(|at| at + 2)) {
        Some(at) if line[at + 1..].trim_start().starts_with('^') => {
            vec![(&line[..=at], DIM), (&line[at + 1..], ERROR)]
        }
        Some(at) => vec![(&line[..=at], DIM), (&line[at + 1..], PLAIN)],
        None => vec![(line, PLAIN)],
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
