//! What can go wrong while a tree is generated.

use std::io;
use std::path::{Path, PathBuf};

/// A failure of the generator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refused something.
    #[error("Cannot {action} {path}: {source}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The tree's state file isn't JSON of the expected shape.
    #[error("State file {path} is damaged: {source}; create the tree anew")]
    State {
        /// The state file.
        path: PathBuf,
        /// The parser's answer.
        source: serde_json::Error,
    },
    /// The target of `create` exists and isn't empty.
    #[error("{0} exists and is not empty; choose another directory or remove it first")]
    NotEmpty(PathBuf),
    /// No session has this label, or none is left.
    #[error("No session {0} in this tree")]
    NoSession(String),
    /// An argument is invalid.
    #[error("{0}")]
    Usage(String),
}

/// The result of a step of the generator.
pub type Result<T> = std::result::Result<T, Error>;

/// Adds the verb and the path to a system error.
pub(crate) trait Context<T> {
    /// Names what was tried on which path.
    fn context(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|e| Error::Io { action, path: path.to_path_buf(), source: e.into() })
    }
}
