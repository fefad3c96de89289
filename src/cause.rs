//! What causes an error where it may be anything: another error, or words where there is none, such as what a program said when it ended.

use std::error::Error;
use std::io;

/// Another error, or words.
pub type Cause = Box<dyn Error + Send + Sync>;

/// A thread cannot be started.
#[derive(Debug, thiserror::Error)]
#[error("a thread cannot be started: {0}")]
pub struct NoThread(#[source] pub io::Error);

/// What was being done when an error came.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct During {
    /// What was being done.
    pub what: String,
    /// What came of it.
    pub source: Cause,
}

impl During {
    /// Says what was being done.
    pub fn new(what: impl Into<String>, source: impl Into<Cause>) -> During {
        During { what: what.into(), source: source.into() }
    }
}

/// An error, and what is known about it.
#[derive(Debug, thiserror::Error)]
#[error("{source}{words}")]
pub struct Explained {
    /// The error.
    pub source: Cause,
    /// What is known about it, with what separates the two.
    pub words: String,
}

impl Explained {
    /// Adds words to an error.
    pub fn new(source: impl Into<Cause>, words: impl Into<String>) -> Explained {
        Explained { source: source.into(), words: words.into() }
    }
}
