//! The one place where errors become exit codes and hints.

use std::io;
use std::process::ExitCode;

use zmreplica::catalog::CatalogError;
use zmreplica::check::CheckError;
use zmreplica::mount::MountError;
use zmreplica::plain::quoted;
use zmreplica::prune::PruneError;
use zmreplica::remote::client::restore::RemoteRestoreError;
use zmreplica::repair::RepairError;
use zmreplica::replica::ReplicaError;
use zmreplica::restore::RestoreError;
use zmreplica::snapshot::SnapshotError;
use zmreplica::store::BackendError;
use zmreplica::view::{ResolveError, ViewError};

/// How the program ends. The numbers are part of the command line's contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done.
    Done = 0,
    /// Failed.
    Failed = 1,
    /// The command line or the configuration makes no sense.
    Usage = 2,
    /// Done, but some files could not be read or written.
    Incomplete = 3,
    /// Done, but a person should look at what was found.
    Attention = 4,
    /// Another run holds the store.
    Locked = 5,
    /// The store is held, and nothing was done.
    Held = 6,
    /// Damage found.
    Damage = 7,
}

impl Exit {
    /// Returns the way to end that a code stands for.
    pub(crate) fn from_code(code: i32) -> Option<Exit> {
        let done = [Exit::Done, Exit::Incomplete, Exit::Attention];
        let all = done.into_iter().chain([Exit::Failed, Exit::Usage, Exit::Locked, Exit::Held, Exit::Damage]);
        all.into_iter().find(|exit| *exit as i32 == code)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// What ends a command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// No store was named.
    #[error("No store is named")]
    NoStore,
    /// The command line or the configuration makes no sense.
    #[error("{0}")]
    Usage(String),
    /// Something else that the user has to see.
    #[error("{0}")]
    Failed(String),
    /// The store is held.
    #[error("{0}. Nothing was done")]
    Held(String),
    /// The library met an impossible state.
    #[error("{}", if *.during_check {
        "Damage: the check ended with an internal error, most likely because the catalogue's database is damaged"
    } else {
        "Internal error: either this is a defect of zmreplica, or the catalogue's database is damaged"
    })]
    Panic {
        /// Whether it happened in `check`.
        during_check: bool,
    },
    /// A thread could not be started.
    #[error(
        "A thread cannot be started: {0}. Nothing was changed; there may be too little memory, or a limit of processes (`ulimit -u`)"
    )]
    Thread(#[source] io::Error),
    /// stdout cannot be written to.
    #[error("Cannot write to stdout: {0}")]
    Output(#[source] io::Error),
    /// The store cannot be made or opened.
    #[error(transparent)]
    Replica(#[from] ReplicaError),
    /// The catalogue cannot be read.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// A run failed.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A mount failed.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// A check could not be finished.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// A prune ended early.
    #[error(transparent)]
    Prune(#[from] PruneError),
    /// A repair ended early.
    #[error(transparent)]
    Repair(RepairError),
    /// A restore ended early.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// A restore on another host ended early.
    #[error(transparent)]
    RemoteRestore(#[from] RemoteRestoreError),
    /// No snapshot is meant.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// A snapshot cannot be read.
    #[error(transparent)]
    View(#[from] ViewError),
    /// A file of a snapshot cannot be read.
    #[error("{path}: {source}")]
    OfPath {
        /// The path, fit for people.
        path: String,
        /// Why.
        source: Box<ViewError>,
    },
}

impl From<io::Error> for CliError {
    /// Of all input and output in this part of the program, only that of stdout uses `?`.
    fn from(error: io::Error) -> CliError {
        CliError::Output(error)
    }
}

impl From<RepairError> for CliError {
    fn from(error: RepairError) -> CliError {
        match error {
            RepairError::Replica(error) => CliError::Replica(error),
            RepairError::Salvage(error) => CliError::Prune(error),
            RepairError::Check(error) => CliError::Check(error),
            other => CliError::Repair(other),
        }
    }
}

impl CliError {
    /// Returns whether the reader of stdout has gone away, which is a success.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        matches!(self, CliError::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// Returns the exit code.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            CliError::NoStore | CliError::Usage(_) => Exit::Usage,
            CliError::Panic { during_check: true } => Exit::Damage,
            CliError::Held(_) => Exit::Held,
            CliError::Failed(_) | CliError::Panic { .. } | CliError::Output(_) | CliError::Thread(_) => Exit::Failed,
            CliError::Replica(ReplicaError::Locked { .. }) => Exit::Locked,
            CliError::Replica(ReplicaError::Config { .. } | ReplicaError::Dictionary(_)) => Exit::Damage,
            CliError::Replica(ReplicaError::Catalog(error)) | CliError::Catalog(error) => damage_if(error.is_damage()),
            CliError::Replica(_) => Exit::Failed,
            CliError::Snapshot(SnapshotError::Pattern(_)) => Exit::Usage,
            CliError::Snapshot(error) if error.is_damage() => Exit::Damage,
            CliError::Snapshot(_) => Exit::Failed,
            CliError::Check(error) => damage_if(error.is_damage()),
            CliError::Prune(error) => damage_if(error.is_damage()),
            CliError::Repair(_) => Exit::Damage,
            CliError::Resolve(ResolveError::Malformed { .. }) => Exit::Usage,
            CliError::Resolve(_) => Exit::Failed,
            CliError::View(error) | CliError::Restore(RestoreError::View(error)) => damage_if(error.is_damage()),
            CliError::OfPath { source, .. } => damage_if(source.is_damage()),
            CliError::RemoteRestore(RemoteRestoreError::Catalog(error)) => damage_if(error.is_damage()),
            CliError::Restore(_) | CliError::RemoteRestore(_) => Exit::Failed,
            CliError::Mount(MountError::View(error)) => damage_if(error.is_damage()),
            CliError::Mount(MountError::Catalog(error)) => damage_if(error.is_damage()),
            CliError::Mount(_) => Exit::Failed,
        }
    }

    /// Returns whether an object of the store may not be read or written, as one may be that an earlier release made for root in the store of another user.
    fn is_denied_object(&self) -> bool {
        let backend = match self {
            CliError::Replica(ReplicaError::Backend(error)) | CliError::Check(CheckError::Backend(error)) => error,
            CliError::Prune(PruneError::Backend(error)) => error,
            CliError::Replica(ReplicaError::Catalog(CatalogError::Backend(error))) => error,
            CliError::Catalog(CatalogError::Backend(error)) => error,
            CliError::Check(CheckError::Catalog(CatalogError::Backend(error))) => error,
            CliError::Snapshot(SnapshotError::Catalog(CatalogError::Backend(error))) => error,
            CliError::Prune(PruneError::Catalog(CatalogError::Backend(error))) => error,
            _ => return false,
        };
        matches!(backend, BackendError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }

    /// Returns what to do about it, where the message does not say so itself.
    pub(crate) fn hint(&self) -> Option<String> {
        if self.is_denied_object() {
            return Some(
                "All files of a store should belong to its owner: as root, `chown -hR USER STORE` makes them so."
                    .to_owned(),
            );
        }
        match self {
            CliError::NoStore => Some(
                "Give --store DIR, set ZMREPLICA_STORE, or write `store = \"DIR\"` in /etc/zmreplica.toml.".to_owned(),
            ),
            CliError::Held(_) => {
                Some("`zmreplica release` ends the hold; `--ignore-hold` goes on in spite of it, once.".to_owned())
            }
            CliError::Panic { during_check: false } => {
                Some("Run `zmreplica check`. If it finds nothing, please report this with the line above.".to_owned())
            }
            CliError::Panic { during_check: true } => {
                Some("`zmreplica repair` rebuilds the catalogue from the commit files.".to_owned())
            }
            CliError::Replica(ReplicaError::Catalog(error)) | CliError::Catalog(error) => catalog_hint(error),
            CliError::Snapshot(SnapshotError::Catalog(error)) => catalog_hint(error),
            CliError::Check(CheckError::Catalog(error)) => catalog_hint(error),
            CliError::Prune(PruneError::Catalog(error)) => catalog_hint(error),
            CliError::Prune(PruneError::Backend(BackendError::NoSpace { .. })) => Some(
                "The store is whole, and what was freed so far stays free. `prune --max-unused 100` copies nothing and needs the least space."
                    .to_owned(),
            ),
            CliError::View(error) | CliError::Restore(RestoreError::View(error)) => view_hint(error),
            CliError::OfPath { source, .. } => view_hint(source),
            CliError::Mount(MountError::View(error)) => view_hint(error),
            CliError::Mount(MountError::Catalog(error)) => catalog_hint(error),
            CliError::Mount(MountError::Busy { path }) => {
                let path = quoted(path);
                Some(format!("`fuser -vm {path}` names the processes; `umount --lazy` does not wait for them."))
            }
            _ => None,
        }
    }
}

fn damage_if(damage: bool) -> Exit {
    if damage { Exit::Damage } else { Exit::Failed }
}

fn catalog_hint(error: &CatalogError) -> Option<String> {
    if error.is_full_disk() {
        return Some(
            "The store is whole, and can be read. Free some space on its disk, then run the same command again."
                .to_owned(),
        );
    }
    // Its message says so itself.
    let is_damage = error.is_damage() && !matches!(error, CatalogError::Broken { .. });
    is_damage.then(|| "`zmreplica repair` makes the catalogue anew from the commit files.".to_owned())
}

fn view_hint(error: &ViewError) -> Option<String> {
    match error {
        ViewError::Catalog(error) => catalog_hint(error),
        error => error.is_damage().then(|| {
            "`zmreplica check --read-data` tells what else is damaged; `zmreplica repair --read-data` saves what can be saved.".to_owned()
        }),
    }
}
