//! Snapshots that stay while a command reads them.
//!
//! A prune may run beside any command. So the lease comes first, and then the look whether what is leased is still there: a prune that holds the gate of the
//! leases has committed by then what it removes.

use std::io;
use std::path::Path;

use zmreplica::catalog::reader::CatalogReader;
use zmreplica::lease::{self, Lease, LeaseInfo};
use zmreplica::replica::Replica;
use zmreplica::view::{ResolveError, Snapshots};

use super::Context;
use super::error::CliError;

/// How often snapshots are chosen anew because a prune removed one of them.
const ATTEMPTS: u32 = 3;

/// Snapshots of which some are leased.
pub(crate) struct Leased {
    /// All snapshots.
    pub(crate) snapshots: Snapshots,
    /// The lease, or why there is none: a store that cannot be written to can still be read.
    pub(crate) lease: io::Result<Lease>,
}

/// Leases the snapshots whose identifiers `choose` returns. `purpose` is what a list of leases shows.
pub(crate) fn leased(
    context: &Context,
    replica: &Replica,
    catalog: &CatalogReader,
    purpose: &Path,
    choose: impl Fn(&Snapshots) -> Result<Vec<String>, CliError>,
) -> Result<Leased, CliError> {
    let mut attempt = 1;
    loop {
        let snapshots = context.snapshots(catalog)?;
        let ids = choose(&snapshots)?;
        let lease = lease::take(replica.path(), &LeaseInfo::of_this_process(purpose, ids.clone()));
        catalog.refresh();
        let now = Snapshots::read(catalog)?;
        match ids.into_iter().find(|id| !now.all().iter().any(|snapshot| snapshot.record.id == *id)) {
            None => return Ok(Leased { snapshots, lease }),
            Some(id) if attempt == ATTEMPTS => return Err(ResolveError::Gone { id }.into()),
            Some(_) => attempt += 1,
        }
    }
}
