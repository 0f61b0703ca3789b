//! The log: lines on standard error, as text or JSON.

use node::config::LogFormat;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

/// Starts logging. A level alone applies to the daemon; its libraries then log warnings and errors only.
pub(crate) fn start(level: &str, format: LogFormat) -> Result<(), String> {
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(targets(level)?);
    match format {
        // The service manager adds the time.
        LogFormat::Text => registry.with(lines.with_ansi(false).without_time()).init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).init(),
    }
    Ok(())
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
