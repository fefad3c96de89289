//! `zmreplica cat`: writes a file of a snapshot to stdout.

use std::ffi::OsString;
use std::path::Path;

use clap::Args;
use zmreplica::view::{CopyError, Node, ViewError};

use super::error::{CliError, Exit};
use super::path::Opened;
use super::{Context, path, text};

/// Arguments of `cat`.
#[derive(Args)]
pub(crate) struct CatArgs {
    /// The file
    #[arg(value_name = "SNAP:PATH")]
    file: OsString,
}

pub(crate) fn run(context: &Context, args: &CatArgs) -> Result<Exit, CliError> {
    let replica = context.open()?;
    let Opened { view, path, lease: _lease } =
        path::open_path(context, &replica, &args.file, Path::new("zmreplica cat"))?;
    let Node::Group(group) = view.resolve(&path)? else {
        return Err(ViewError::IsADirectory { path: format!("/{}", text::escape(&path)) }.into());
    };
    match view.copy_to(group, &mut *context.output.stdout()) {
        Ok(_) => Ok(Exit::Done),
        Err(CopyError::View(error)) => Err(CliError::OfPath { path: text::escape(&path), source: Box::new(error) }),
        Err(CopyError::Write(error)) => Err(error.into()),
    }
}
