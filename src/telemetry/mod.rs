//! Logging, progress, and being asked to stop.
//!
//! Log lines go to standard error, as text or as JSON; standard output is for results alone. Nothing here sees pixels, texts
//! or credentials.

mod progress;
pub(crate) mod secrets;
pub mod stop;
pub mod tfevents;

pub use progress::{Measures, Progress, duration};

use crate::error::{Error, Result};
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

static FORMAT: OnceLock<LogFormat> = OnceLock::new();
static COPY: Mutex<Option<File>> = Mutex::new(None);

/// Writes every log line from now on to this file too.
///
/// # Errors
/// [`crate::ErrorKind::Storage`], [`crate::ErrorKind::NoSpace`] when it cannot be made.
pub fn copy_to(path: &Path) -> Result<()> {
    let file = File::create(path).map_err(|e| Error::io("create", path, e))?;
    *COPY.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
    Ok(())
}

/// A line of the log, for the copy; a log that cannot be written is no reason to stop.
fn copy(line: &[u8]) {
    if let Some(file) = &mut *COPY.lock().unwrap_or_else(PoisonError::into_inner) {
        let _ = file.write_all(line);
    }
}

/// The format of the log; text as long as nothing was started.
fn format() -> LogFormat {
    FORMAT.get().copied().unwrap_or_default()
}

/// Starts logging; a second call changes nothing. `level` is a filter such as `info` or `medtune=debug`.
///
/// # Errors
/// [`crate::ErrorKind::Usage`] for a filter that cannot be parsed.
pub fn init(format: LogFormat, level: &str) -> Result<()> {
    // each retry of the store's client is a line at info: those matter to who looks for the cause
    let quiet = if level.eq_ignore_ascii_case("info") { ",object_store=warn" } else { "" };
    let filter = EnvFilter::try_new(format!("{level}{quiet}")).map_err(|e| {
        Error::usage(format!(
            "--log-level '{level}': write error, warn, info or debug, or a filter such as medtune=debug"
        ))
        .with_source(e)
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(progress::AboveBars::default);
    // only a second initialisation fails, here and below, and then the first one serves
    FORMAT.set(format).ok();
    let started = match format {
        LogFormat::Text => builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).compact().try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    drop(started);
    Ok(())
}
