//! The log: lines on standard error, as text or JSON.

use std::{
    borrow::Cow,
    io::{self, Write},
};

use node::{config::LogFormat, printable, printable_json};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

/// Starts logging. A level alone applies to the daemon; its libraries then log warnings and errors only.
pub(crate) fn start(level: &str, format: LogFormat) -> Result<(), String> {
    let lines = tracing_subscriber::fmt::layer();
    let registry = tracing_subscriber::registry().with(targets(level)?);
    match format {
        // The service manager adds the time.
        LogFormat::Text => {
            let lines = lines.with_writer(|| Lines { out: io::stderr(), escape: printable });
            registry.with(lines.with_ansi(false).without_time()).init();
        }
        LogFormat::Json => {
            let lines = lines.with_writer(|| Lines { out: io::stderr(), escape: printable_json });
            registry.with(lines.json().flatten_event(true)).init();
        }
    }
    Ok(())
}

/// A log with each event as one line without what a terminal would execute: peers, stores and the kernel provide part of it.
struct Lines<W> {
    out: W,
    escape: fn(&str) -> Cow<'_, str>,
}

impl<W: Write> Write for Lines<W> {
    /// Writes an event, which the subscriber passes as a whole.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let line = text.strip_suffix('\n').unwrap_or(&text);
        self.out.write_all(format!("{}\n", (self.escape)(line)).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Parses a level or directives.
pub(crate) fn targets(level: &str) -> Result<Targets, String> {
    if let Ok(level) = level.parse::<LevelFilter>() {
        let libraries = level.min(LevelFilter::WARN);
        return Ok(Targets::new()
            .with_default(libraries)
            .with_targets([("node", level), ("netloomd", level)]));
    }
    // A single word would select the target of that name.
    if !level.contains('=') {
        return Err(format!("`log-level`: `{level}` is not a level: use error, warn, info, debug or trace"));
    }
    level
        .parse()
        .map_err(|error| format!("`log-level`: `{level}` is not a level or a list of directives: {error}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn logged(format: LogFormat) -> String {
        let log = std::sync::Arc::new(Mutex::new(Vec::new()));
        let writer = {
            let log = std::sync::Arc::clone(&log);
            move |escape| Lines { out: Shared(std::sync::Arc::clone(&log)), escape }
        };
        let layer = tracing_subscriber::fmt::layer();
        let event = || tracing::warn!(node = "a\u{1b}[31mb\nc\u{202e}", "peer\u{9b}\nnetloomd: all is well");
        match format {
            LogFormat::Text => {
                let layer = layer.with_writer(move || writer(printable)).with_ansi(false).without_time();
                tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), event);
            }
            LogFormat::Json => {
                let layer = layer.with_writer(move || writer(printable_json)).json().flatten_event(true);
                tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), event);
            }
        }
        let log = log.lock().map(|log| log.clone()).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    struct Shared(std::sync::Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().map_err(|_| io::ErrorKind::Other)?.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// An event is one line, whatever is in its texts.
    #[test]
    fn an_event_is_one_line_that_a_terminal_shows() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let log = logged(format);
            assert_eq!(log.lines().count(), 1, "{log}");
            assert!(
                !log.trim_end_matches('\n').contains(|char: char| char.is_control() || char == '\u{202e}'),
                "{log:?}"
            );
            assert!(log.contains("u{202e}") || log.contains("\\u202e"), "{log}");
        }
    }
}
