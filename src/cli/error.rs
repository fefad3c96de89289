//! The one place where errors become exit codes and hints.

use std::io;
use std::process::ExitCode;

use zmreplica::catalog::sources::NamingError;
use zmreplica::catalog::{CatalogDamage, CatalogError, OpenError};
use zmreplica::check::CheckError;
use zmreplica::mount::{MountError, PlaceFault};
use zmreplica::plain::quoted;
use zmreplica::prune::PruneError;
use zmreplica::remote::client::ConnectError;
use zmreplica::remote::client::restore::RemoteRestoreError;
use zmreplica::repair::RepairError;
use zmreplica::replica::ReplicaError;
use zmreplica::restore::RestoreError;
use zmreplica::snapshot::SnapshotError;
use zmreplica::store::BackendError;
use zmreplica::view::{ResolveError, ViewError};

/// How the program ends. The numbers are part of the command line's contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::FromRepr)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done.
    Done = 0,
    /// Failed.
    Failed = 1,
    /// The command line or the configuration is invalid.
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
    /// The command line or the configuration is invalid.
    #[error("{0}")]
    Usage(String),
    /// Something else that the user has to see.
    #[error("{0}")]
    Failed(String),
    /// The store is held.
    #[error("{0}. Nothing was done")]
    Held(String),
    /// Snapshots that were to go must stay.
    #[error("{0}. Nothing was removed")]
    Protected(String),
    /// The library met an impossible state.
    #[error("{}", if *.during_check {
        "Damage: the check ended with an internal error, most likely because the catalogue's database is damaged"
    } else {
        "Internal error: this is a bug in zmreplica, or the catalogue's database is damaged"
    })]
    Panic {
        /// Whether it happened in `check`.
        during_check: bool,
    },
    /// A thread could not be started.
    #[error(
        "A thread cannot be started: {0}. Nothing was changed; memory may be short, or the limit of processes reached (`ulimit -u`)"
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
    /// A source cannot be found or named so.
    #[error(transparent)]
    Naming(#[from] NamingError),
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
            CliError::NoStore | CliError::Usage(_) | CliError::Naming(NamingError::Invalid { .. }) => Exit::Usage,
            CliError::Panic { during_check: true } => Exit::Damage,
            CliError::Held(_) => Exit::Held,
            CliError::Replica(ReplicaError::Locked { .. }) => Exit::Locked,
            CliError::Replica(ReplicaError::Config { .. } | ReplicaError::Dictionary(_)) => Exit::Damage,
            CliError::Snapshot(SnapshotError::Pattern(_)) => Exit::Usage,
            CliError::Check(error) => damage_if(error.is_damage()),
            CliError::Prune(error) => damage_if(error.is_damage()),
            CliError::Repair(_) => Exit::Damage,
            CliError::Resolve(
                ResolveError::Malformed { .. } | ResolveError::SeveralSources { .. } | ResolveError::OtherSource { .. },
            ) => Exit::Usage,
            _ => damage_if(
                self.catalog_error().is_some_and(CatalogError::is_damage)
                    || self.view_error().is_some_and(ViewError::is_damage),
            ),
        }
    }

    /// Returns what went wrong with the catalogue, whoever met it.
    fn catalog_error(&self) -> Option<&CatalogError> {
        match self {
            CliError::Catalog(error)
            | CliError::Replica(ReplicaError::Catalog(error))
            | CliError::Snapshot(SnapshotError::Catalog(error))
            | CliError::Check(CheckError::Catalog(error))
            | CliError::Prune(PruneError::Catalog(error))
            | CliError::Repair(RepairError::NothingLeft(error))
            | CliError::RemoteRestore(RemoteRestoreError::Catalog(error))
            | CliError::Mount(MountError::Catalog(error)) => Some(error),
            _ => match self.view_error() {
                Some(ViewError::Catalog(error)) => Some(error),
                _ => None,
            },
        }
    }

    /// Returns why a snapshot could not be read, whoever read it.
    fn view_error(&self) -> Option<&ViewError> {
        match self {
            CliError::View(error)
            | CliError::Restore(RestoreError::View(error))
            | CliError::Mount(MountError::View(error)) => Some(error),
            CliError::OfPath { source, .. } => Some(source),
            _ => None,
        }
    }

    /// Returns what went wrong with an object of the store, whoever met it.
    fn backend_error(&self) -> Option<&BackendError> {
        match self {
            CliError::Replica(ReplicaError::Backend(error))
            | CliError::Check(CheckError::Backend(error))
            | CliError::Prune(PruneError::Backend(error)) => Some(error),
            _ => match self.catalog_error() {
                Some(CatalogError::Backend(error)) => Some(error),
                _ => None,
            },
        }
    }

    /// Returns what to do about it, where the message does not say so itself. Whatever names a command of this program for an error does so here.
    pub(crate) fn hint(&self) -> Option<String> {
        // One may be that an earlier release made for root in the store of another user.
        if self.backend_error().is_some_and(BackendError::is_denial) {
            return Some(
                "All files of a store should belong to its owner: as root, run `chown -hR USER STORE`.".to_owned(),
            );
        }
        if let CliError::Repair(RepairError::NothingLeft(_)) = self {
            // The catalogue cannot be repaired: that was tried.
            return None;
        }
        if let Some(error) = self.catalog_error() {
            return catalog_hint(error).map(str::to_owned);
        }
        let hint = match self {
            CliError::NoStore => {
                "Give --store DIR, set ZMREPLICA_STORE, or write `store = \"DIR\"` in /etc/zmreplica.toml."
            }
            CliError::Held(_) => "`zmreplica release` ends the hold; `--ignore-hold` overrides it once.",
            CliError::Protected(_) => {
                "`zmreplica unpin` removes a pin, and `zmreplica umount` a mount; `--force` overrides the other reasons."
            }
            CliError::Panic { during_check: false } => {
                "Run `zmreplica check`. If it finds nothing, please report this with the line above."
            }
            CliError::Panic { during_check: true } => {
                "`zmreplica repair` rebuilds the catalogue from the commit files."
            }
            CliError::Replica(ReplicaError::NotAStore { path }) => {
                return Some(format!("Create one with `zmreplica --store {} init`.", quoted(path)));
            }
            CliError::Replica(ReplicaError::Config { .. }) => "`zmreplica repair` restores it.",
            CliError::Replica(ReplicaError::Locked { .. }) => "`--wait-lock DURATION` waits until it has ended.",
            CliError::Prune(PruneError::Backend(BackendError::NoSpace { .. })) => {
                "The store is intact, and what was freed so far stays free. `prune --max-unused 100` copies nothing and needs the least space."
            }
            CliError::Prune(PruneError::Pack { .. }) => {
                "`zmreplica check` reports what is affected; `zmreplica repair` salvages what it can."
            }
            CliError::Prune(PruneError::Chunk { .. }) => DAMAGED_CONTENT,
            CliError::Naming(NamingError::Unknown { .. }) | CliError::Resolve(ResolveError::Source(_)) => {
                "`zmreplica source list` lists the sources."
            }
            CliError::Snapshot(SnapshotError::Naming(NamingError::LocationTaken { .. }))
            | CliError::Naming(NamingError::LocationTaken { .. }) => {
                "`zmreplica source list` lists the sources; `source rename` gives one another name, `source merge` makes one of two."
            }
            CliError::Snapshot(SnapshotError::Naming(NamingError::Removed { .. }))
            | CliError::Naming(NamingError::Removed { .. }) => {
                "`zmreplica source remove --undo NAME` keeps it; after the prune the name is free."
            }
            CliError::Resolve(ResolveError::Empty) => "Take one with `zmreplica snapshot SOURCE`.",
            CliError::Resolve(ResolveError::Unknown { .. } | ResolveError::Gone { .. }) => {
                "`zmreplica snapshots` lists the snapshots."
            }
            CliError::Mount(MountError::Place { path, fault: PlaceFault::Mounted { .. } }) => {
                return Some(format!("`zmreplica umount {}` removes it.", quoted(path)));
            }
            CliError::Mount(MountError::Busy { path }) => {
                let path = quoted(path);
                return Some(format!(
                    "`fuser -vm {path}` lists the processes; `umount --lazy` does not wait for them."
                ));
            }
            // An agent gives its reason in words alone.
            CliError::RemoteRestore(RemoteRestoreError::Connect(ConnectError::Refused { message }))
                if message.contains("only reads") =>
            {
                "To restore, start the agent with `zmreplica agent --writable`, using a different key from the nightly one."
            }
            _ if self.view_error().is_some_and(ViewError::is_damage) => DAMAGED_CONTENT,
            _ => return None,
        };
        Some(hint.to_owned())
    }

    /// Returns the message and the hint, in one line.
    pub(crate) fn in_one_line(&self) -> String {
        self.hint().map_or_else(|| self.to_string(), |hint| format!("{self}. {}", hint.trim_end_matches('.')))
    }
}

/// What to do about files whose bytes are damaged.
pub(crate) const DAMAGED_CONTENT: &str = "`zmreplica check --read-data` reports what is damaged and affected; `zmreplica repair --read-data` salvages what it can.";

fn damage_if(damage: bool) -> Exit {
    if damage { Exit::Damage } else { Exit::Failed }
}

fn catalog_hint(error: &CatalogError) -> Option<&'static str> {
    match error {
        error if error.is_full_disk() => {
            Some("The store is intact and can be read. Free some space on its disk, then run the same command again.")
        }
        CatalogError::Open(OpenError::NeedsRepair { .. }) => {
            Some("Run any command that writes, such as `zmreplica snapshot`, once.")
        }
        CatalogError::Damage(CatalogDamage::Missing(_) | CatalogDamage::Row { .. } | CatalogDamage::Root { .. }) => {
            Some(
                "`zmreplica check` reports what is affected; `zmreplica repair` rebuilds the catalogue from the commit files.",
            )
        }
        error if error.is_damage() => Some("`zmreplica repair` rebuilds the catalogue from the commit files."),
        _ => None,
    }
}
