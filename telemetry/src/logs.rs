//! Structured logs on standard error.

use std::{fmt, io, panic, str::FromStr};

use tracing_subscriber::{EnvFilter, filter::ParseError, fmt as format, prelude::*, util::TryInitError};

/// The environment variable that overrides the filter.
const FILTER_VARIABLE: &str = "BASALT_LOG";

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = LogsError;

    fn from_str(text: &str) -> Result<Self, LogsError> {
        match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err(LogsError::Format { value: text.to_owned() }),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        })
    }
}

/// Why logs cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogsError {
    /// Not a known format.
    #[error("{value:?} is not a log format; use text or json")]
    Format {
        /// What was given.
        value: String,
    },
    /// The filter does not parse.
    #[error("the log filter {filter:?} is wrong (an example of a right one: info,basalt_core=debug)")]
    Filter {
        /// What was given.
        filter: String,
        /// Why.
        source: ParseError,
    },
    /// Logs were set up before.
    #[error("logs are set up already")]
    Twice(#[from] TryInitError),
}

/// Sends logs to standard error and panics to the logs. `filter` applies unless the variable `BASALT_LOG` is set.
pub fn init_logs(format: LogFormat, filter: &str) -> Result<(), LogsError> {
    let filter = std::env::var(FILTER_VARIABLE).unwrap_or_else(|_| filter.to_owned());
    let directives =
        EnvFilter::builder().parse(&filter).map_err(|source| LogsError::Filter { filter, source })?;
    let registry = tracing_subscriber::registry().with(directives);
    match format {
        LogFormat::Text => {
            registry.with(format::layer().with_writer(io::stderr).with_ansi(false)).try_init()?;
        }
        LogFormat::Json => registry.with(format::layer().json().with_writer(io::stderr)).try_init()?,
    }
    log_panics();
    Ok(())
}

/// A panic is also a log line, with thread and place, so that it is found where the rest is.
fn log_panics() {
    let inner = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let message = info.payload_as_str().unwrap_or("(no message)");
        let thread = std::thread::current().name().unwrap_or("(unnamed)").to_owned();
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(thread, place, message, "panic");
        inner(info);
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_round_trip_and_others_are_refused() {
        for format in [LogFormat::Text, LogFormat::Json] {
            assert_eq!(format.to_string().parse::<LogFormat>().unwrap(), format);
        }
        assert!("yaml".parse::<LogFormat>().is_err());
    }
}
