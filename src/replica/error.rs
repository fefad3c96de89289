//! What can go wrong when a store is made or opened.

use std::io;
use std::path::Path;

use super::format::{CONFIG, FORMAT_VERSION};
use crate::access;
use crate::catalog::CatalogError;
use crate::cause::Cause;
use crate::plain;
use crate::store::backend::BackendError;
use crate::store::codec::CodecError;

/// What can go wrong when a store is made or opened.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// There is no store in the directory.
    #[error("{path} is not a store: it has no {CONFIG}")]
    NotAStore {
        /// The directory.
        path: String,
    },
    /// The directory to make a store in holds something.
    #[error("{path} is not empty; a store needs a directory of its own")]
    NotEmpty {
        /// The directory.
        path: String,
    },
    /// The store is of another version.
    #[error(
        "The store {path} has format {found}, and this version of zmreplica knows formats up to {FORMAT_VERSION}; use a newer one. Nothing was changed"
    )]
    Version {
        /// The directory.
        path: String,
        /// The version that it states.
        found: u32,
    },
    /// The store has features that this version does not know.
    #[error(
        "The store {path} uses features that this version of zmreplica does not know: {features}. A newer zmreplica is needed. Nothing was changed"
    )]
    Unsupported {
        /// The directory.
        path: String,
        /// Their names, separated by commas.
        features: String,
    },
    /// The settings cannot be understood, or are missing from a store.
    #[error("The file {path} is damaged: {fault}")]
    Config {
        /// The file.
        path: String,
        /// What does not fit.
        #[source]
        fault: SettingsFault,
    },
    /// Another process writes to the store.
    #[error("Another run holds the store {path}{holder}. Wait for it to end; nothing was changed")]
    Locked {
        /// The directory.
        path: String,
        /// Who holds it, as far as is known.
        holder: String,
    },
    /// The user did not want to wait for another process any longer.
    #[error("Interrupted while waiting for another run to release the store {path}. Nothing was changed")]
    WaitInterrupted {
        /// The directory.
        path: String,
    },
    /// The file system cannot hold a store.
    #[error(
        "{path} is on a file system that cannot hold a store: {reason}. Create the store on another one; nothing was left behind"
    )]
    Unfit {
        /// The directory.
        path: String,
        /// What it does not do.
        #[source]
        reason: Cause,
    },
    /// The store is somebody else's, or some of its files are.
    #[error("User {user} may not read {path}, which belongs to {owner}. {advice}")]
    NotAllowed {
        /// The file or directory.
        path: String,
        /// Whose it is.
        owner: String,
        /// Who the program runs as.
        user: String,
        /// What to do.
        advice: String,
    },
    /// The system refused.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The backend failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A dictionary is damaged.
    #[error(transparent)]
    Dictionary(#[from] CodecError),
    /// The catalogue failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// What does not fit of a store's settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsFault {
    /// The file is not there, and objects of a store are.
    #[error("it is missing")]
    Missing,
    /// It is longer than any.
    #[error("it is too long")]
    TooLong,
    /// Its checksum does not fit.
    #[error("its checksum does not fit")]
    Checksum,
    /// It is not of format 1, and has no checksum.
    #[error("it has no checksum")]
    NoChecksum,
    /// It names no format.
    #[error("it names no format")]
    NoFormat,
    /// Its identifier is none.
    #[error("its id is not 32 hexadecimal digits")]
    Id,
    /// It is no JSON, or not that of settings.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

impl ReplicaError {
    /// Returns whether a later version wrote the store, so that this one must not touch it.
    pub fn is_newer(&self) -> bool {
        matches!(self, ReplicaError::Version { .. } | ReplicaError::Unsupported { .. })
    }
}

pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ReplicaError {
    let path = path.display().to_string();
    move |source| ReplicaError::Io { action, path, source }
}

/// As [`io_error`]; says who may, where the system refused for want of permission.
pub(super) fn refused(store: &Path, action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ReplicaError {
    move |error| if access::is_denial(&error) { not_allowed(store, path) } else { io_error(action, path)(error) }
}

fn not_allowed(store: &Path, denied: &Path) -> ReplicaError {
    let (user, of_store, owner) = (access::own_name(), access::owner_name(store), access::owner_name(denied));
    let shown = store.display();
    let advice = match (&of_store, &owner) {
        (Some(of_store), Some(owner)) if *of_store == user && *owner != user => format!(
            "All files of a store should belong to its owner: run as root `chown -hR {user} {}`, then run the same command again",
            plain::quoted(&shown.to_string())
        ),
        (Some(of_store), _) => format!("The store {shown} belongs to {of_store}: run as {of_store}, or as root"),
        (None, _) => format!("Run as the owner of the store {shown}, or as root"),
    };
    let owner = owner.unwrap_or_else(|| "another user".to_owned());
    ReplicaError::NotAllowed { path: denied.display().to_string(), owner, user, advice }
}

/// Refuses a store that the caller may not read, which would look empty or damaged otherwise.
pub(crate) fn refuse_denied(store: &Path, depth: access::Depth) -> Result<(), ReplicaError> {
    access::denied(store, depth).map_or(Ok(()), |path| Err(not_allowed(store, &path)))
}
