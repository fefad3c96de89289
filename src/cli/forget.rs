//! `zmreplica forget`: removes certain snapshots, and what only they need, by a plan as that of `prune`.

use clap::Args;
use zmreplica::retention::NamedSnapshots;

use super::Context;
use super::error::{CliError, Exit};
use super::policies::Policies;
use super::prune::{SpaceArgs, remove};

/// Arguments of `forget`.
#[derive(Args)]
#[command(after_help = "\
All named snapshots go, or none. One that is pinned or in use stays, whatever the options say. Without `--force`, so does the last good snapshot of a source, with which the next one \
is compared; what the guard keeps as long as a suspect snapshot is not accepted; and the last snapshot with an account whole, if `keep-accounts` is configured.")]
pub(crate) struct ForgetArgs {
    /// The snapshots
    #[arg(value_name = "SNAP", required = true)]
    snapshots: Vec<String>,
    /// Also remove what only the guard or `keep-accounts` would keep
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    space: SpaceArgs,
}

pub(crate) fn run(context: &Context, args: &ForgetArgs) -> Result<Exit, CliError> {
    let ids = context.ids(&args.snapshots)?.into_iter().collect();
    let named = NamedSnapshots { ids, is_forced: args.force };
    remove(context, &args.space, &Policies::configured(&context.file), Some(&named))
}
