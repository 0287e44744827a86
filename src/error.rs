//! One public error: a kind that decides the exit code, a message that says what, where and what to do, and its source.

use std::error::Error as StdError;
use std::fmt;

/// The result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as far as whoever restarts jobs must know. Each kind has one exit code, which is an API: see
/// `docs/exit-codes.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// A defect of medtune itself.
    Internal,
    /// The command line is wrong.
    Usage,
    /// A job file, training configuration or parameter is wrong.
    Config,
    /// Input data is damaged or inconsistent.
    Data,
    /// A model package cannot be read, or does not fit the job.
    Package,
    /// A named input, version or alias does not exist.
    NotFound,
    /// Something with this name exists already, with other content.
    Conflict,
    /// A model does not do what the job requires of it before it is published.
    Requirement,
    /// Storage cannot be reached, read or written.
    Storage,
    /// Storage has no room left.
    NoSpace,
    /// libtorch failed: out of memory, or a missing device.
    Engine,
    /// The process was asked to stop, and has saved what it had.
    Preempted,
    /// Another process of the same job is gone, cut off, or computes something else.
    Peer,
}

impl ErrorKind {
    /// Every kind, in the order of the documentation.
    pub const ALL: [ErrorKind; 13] = [
        ErrorKind::Internal,
        ErrorKind::Usage,
        ErrorKind::Config,
        ErrorKind::Data,
        ErrorKind::Package,
        ErrorKind::NotFound,
        ErrorKind::Conflict,
        ErrorKind::Requirement,
        ErrorKind::Storage,
        ErrorKind::NoSpace,
        ErrorKind::Engine,
        ErrorKind::Preempted,
        ErrorKind::Peer,
    ];

    /// The process's exit code: 10 to 19 are permanent (the same job fails again), 20 to 29 may pass on a retry.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            ErrorKind::Internal => 1,
            ErrorKind::Usage => 2,
            ErrorKind::Config => 10,
            ErrorKind::Data => 11,
            ErrorKind::Package => 12,
            ErrorKind::NotFound => 13,
            ErrorKind::Conflict => 14,
            ErrorKind::Requirement => 15,
            ErrorKind::Storage => 20,
            ErrorKind::NoSpace => 21,
            ErrorKind::Engine => 22,
            ErrorKind::Preempted => 23,
            ErrorKind::Peer => 24,
        }
    }

    /// Whether running the same job again can succeed without anybody changing it.
    #[must_use]
    pub fn retryable(self) -> bool {
        (20..30).contains(&self.exit_code())
    }

    /// The kind's name in run records and JSON output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            ErrorKind::Internal => "internal",
            ErrorKind::Usage => "usage",
            ErrorKind::Config => "config",
            ErrorKind::Data => "data",
            ErrorKind::Package => "package",
            ErrorKind::NotFound => "not-found",
            ErrorKind::Conflict => "conflict",
            ErrorKind::Requirement => "requirement",
            ErrorKind::Storage => "storage",
            ErrorKind::NoSpace => "no-space",
            ErrorKind::Engine => "engine",
            ErrorKind::Preempted => "preempted",
            ErrorKind::Peer => "peer",
        }
    }
}

/// The error of this crate. Its `Display` is one line: the outermost context first, the cause last.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind`; the message is lower case, names the file, row or key, and says what to do.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error(Box::new(Inner { kind, message: message.into(), source: None }))
    }

    /// A defect of medtune: a state that cannot be.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }
    /// A wrong command line.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, message)
    }
    /// A wrong job file, training configuration or parameter.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Config, message)
    }
    /// Damaged or inconsistent input data.
    pub fn data(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Data, message)
    }
    /// An unreadable or unfitting model package.
    pub fn package(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Package, message)
    }
    /// A named input, version or alias that does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }
    /// A name that is taken by other content.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Conflict, message)
    }
    /// Storage that cannot be reached, read or written.
    pub fn storage(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Storage, message)
    }
    /// Another process of the same job that is gone, or computes something else.
    pub fn peer(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Peer, message)
    }
    /// A failure of libtorch.
    pub fn engine(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Engine, message)
    }

    /// A file-system error at `path`: missing files are [`ErrorKind::NotFound`], a full disk is [`ErrorKind::NoSpace`], text
    /// that is not UTF-8 is [`ErrorKind::Data`], what no retry can mend (a folder in place of a file, an impossible name,
    /// missing rights) is [`ErrorKind::Config`], everything else is [`ErrorKind::Storage`].
    pub fn io(action: &str, path: impl AsRef<std::path::Path>, source: std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match source.kind() {
            Io::NotFound => ErrorKind::NotFound,
            Io::StorageFull | Io::QuotaExceeded => ErrorKind::NoSpace,
            Io::InvalidData => ErrorKind::Data,
            Io::IsADirectory | Io::NotADirectory | Io::InvalidInput | Io::InvalidFilename | Io::PermissionDenied => {
                ErrorKind::Config
            }
            _ => ErrorKind::Storage,
        };
        let hint = match source.kind() {
            Io::StorageFull | Io::QuotaExceeded => ": no space left, free some and run the job again",
            Io::PermissionDenied => ": check the permissions",
            _ => "",
        };
        Self::new(kind, format!("cannot {action} '{}'{hint}", path.as_ref().display())).with_source(source)
    }

    /// The same error with what caused it.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// The same error of another kind.
    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.0.kind = kind;
        self
    }

    /// The same kind, with `context` in front of the message.
    #[must_use]
    pub fn context(self, context: impl fmt::Display) -> Self {
        let mut inner = self.0;
        inner.message = format!("{context}: {}", inner.message);
        Error(inner)
    }

    /// What went wrong, for the exit code.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        let mut source = self.0.source.as_deref().map(|s| s as &dyn StdError);
        let mut seen = self.0.message.clone();
        while let Some(error) = source {
            let text = error.to_string();
            if !seen.contains(&text) {
                write!(f, ": {text}")?;
                seen.push_str(&text);
            }
            source = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|s| s as &(dyn StdError + 'static))
    }
}

/// Puts context in front of an error on its way up.
pub trait Context<T> {
    /// The same result, an error's message preceded by `context()`.
    ///
    /// # Errors
    /// The original error, of the same kind.
    fn context<C: fmt::Display>(self, context: impl FnOnce() -> C) -> Result<T>;
}

impl<T> Context<T> for Result<T> {
    fn context<C: fmt::Display>(self, context: impl FnOnce() -> C) -> Result<T> {
        self.map_err(|e| e.context(context()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_distinct_and_ranged() {
        let mut codes: Vec<u8> = ErrorKind::ALL.iter().map(|k| k.exit_code()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), ErrorKind::ALL.len());
        assert!(!ErrorKind::Config.retryable() && ErrorKind::Storage.retryable());
    }

    #[test]
    fn display_shows_context_message_and_cause_once() {
        let cause = std::io::Error::new(std::io::ErrorKind::NotFound, "gone");
        let error = Error::io("read", "/x/a.tsv", cause).context("step prepare");
        assert_eq!(error.to_string(), "step prepare: cannot read '/x/a.tsv': gone");
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
}
