//! `zmreplica init`: creates a store.

use clap::Args;
use serde::Serialize;

use super::Context;
use super::error::{CliError, Exit};

/// Arguments of `init`.
#[derive(Args)]
pub(crate) struct InitArgs {}

#[derive(Serialize)]
#[serde(tag = "event", rename = "summary")]
struct Summary<'a> {
    store: String,
    id: &'a str,
    format: u32,
}

pub(crate) fn run(context: &Context, _args: &InitArgs) -> Result<Exit, CliError> {
    let path = context.store()?;
    let config = zmreplica::replica::init(path)?;
    // Where modes cannot be set, that is said from the beginning.
    context.narrow(path);
    if context.output.json() {
        context.output.event(&Summary { store: path.display().to_string(), id: &config.id, format: config.format })?;
    } else {
        context.output.note(&format!("The store {} is ready.", path.display()));
    }
    Ok(Exit::Done)
}
