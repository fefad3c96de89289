//! `zmreplica umount`: takes a mount away.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use zmreplica::mount::{absolute, unmount_all, wait_for_server};

use super::Context;
use super::error::{CliError, Exit};

/// How long the server may take to end after its mount is gone.
const SERVER_TIME: Duration = Duration::from_secs(20);

/// Arguments of `umount`.
#[derive(Args)]
pub(crate) struct UmountArgs {
    /// Detach the mount even while it is in use; it is served until the last user is done
    #[arg(long)]
    lazy: bool,
    /// The mount point
    #[arg(value_name = "MOUNTPOINT")]
    mount_point: PathBuf,
}

pub(crate) fn run(context: &Context, args: &UmountArgs) -> Result<Exit, CliError> {
    let place = absolute(&args.mount_point)
        .map_err(|error| CliError::Failed(format!("{}: {error}", args.mount_point.display())))?;
    let store = unmount_all(&place, args.lazy)?;
    if !args.lazy && !store.is_none_or(|store| wait_for_server(&store, &place, SERVER_TIME)) {
        context.output.warn("The mount is gone, but its server has not ended yet.");
    }
    Ok(Exit::Done)
}
