//! `cargo xtask picture`: runs `netloom demo` and writes its output as the terminal picture of README.md, docs/demo.svg.
//!
//! The demo runs on a fresh host (network and mount namespaces of its own), so the picture does not depend on the
//! links, networks and reservations of the machine that draws it.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{Outcome, root, say};

/// The prompt and the command that the picture shows above the output.
const PROMPT: &str = "$ ";
const COMMAND: &str = "sudo netloom demo";

/// Prepares the host and replaces the shell (`$0` is the binary) with the demo.
const DEMO: &str = "mount -t tmpfs none /run && mount -t tmpfs none /var/lib && mkdir -p /run/netns \
    && ip link set lo up && exec \"$0\" demo";

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
const BUTTONS: [&str; 3] = ["#e0675c", "#dcae4b", "#5fb55f"];

/// A piece of a line and its colour.
type Span<'a> = (&'a str, &'static str);

/// Draws the output of the binary that `arguments` names, or else of a new build.
pub(crate) fn picture(arguments: &[String]) -> Outcome {
    let binary = match arguments.first() {
        Some(path) => PathBuf::from(path).canonicalize().map_err(|error| format!("{path}: {error}"))?,
        None => crate::dist::Dist::default().build()?,
    };
    let output = run_demo(&binary)?;
    let path = root().join("docs/demo.svg");
    std::fs::write(&path, draw(&output)).map_err(|error| format!("{}: {error}", path.display()))?;
    say(&format!("{output}\nwrote {}", path.display()));
    Ok(())
}

/// Returns what the demo prints.
fn run_demo(binary: &Path) -> Result<String, String> {
    let output = Command::new("unshare")
        .args(["--mount", "--net", "--propagation", "private", "sh", "-c", DEMO])
        .arg(binary)
        .output()
        .map_err(|error| format!("unshare: {error}"))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(printed);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(format!("the demo failed ({}; it needs root):\n{printed}{errors}", output.status))
}

/// Returns an SVG document of a terminal with the command and its output.
fn draw(output: &str) -> String {
    let command = format!("{PROMPT}{COMMAND}");
    let mut lines = vec![vec![(PROMPT, GOOD), (COMMAND, PLAIN)]];
    lines.extend(output.trim_end().lines().map(highlight));
    let longest =
        output.lines().chain([command.as_str()]).map(|line| line.chars().count()).max().unwrap_or(0);
    let width = longest * FONT_SIZE * 62 / 100 + 2 * MARGIN;
    let height = TITLE_BAR + lines.len() * LINE_HEIGHT + 2 * MARGIN;

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         role=\"img\">\n\
         <title>Output of netloom demo</title>\n\
         <rect width=\"{width}\" height=\"{height}\" rx=\"8\" fill=\"{BACKGROUND}\"/>\n\
         <path d=\"M0 {TITLE_BAR}V8a8 8 0 0 1 8-8H{right}a8 8 0 0 1 8 8V{TITLE_BAR}z\" fill=\"{TITLE_BACKGROUND}\"/>\n",
        right = width - 8,
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

/// Highlights a line of the demo: the word `ok` and the time of a step stand out from what the step did.
fn highlight(line: &str) -> Vec<Span<'_>> {
    const OK: &str = "  ok";
    const UNIT: &str = " ms";
    match line.find(UNIT).map(|at| at + UNIT.len()).filter(|_| line.starts_with(OK)) {
        Some(end) => vec![(OK, GOOD), (&line[OK.len()..end], DIM), (&line[end..], PLAIN)],
        None if line.is_empty() => Vec::new(),
        None => vec![(line, PLAIN)],
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
