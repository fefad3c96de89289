//! `zmreplica completions`: writes a completion script for a shell.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::error::{CliError, Exit};
use super::{Cli, Context};

/// Arguments of `completions`.
#[derive(Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

pub(crate) fn run(context: &Context, args: &CompletionsArgs) -> Result<Exit, CliError> {
    // Through memory: the generator panics when its writer fails, as a closed pipe does.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "zmreplica", &mut script);
    std::io::Write::write_all(&mut *context.output.stdout(), &script)?;
    Ok(Exit::Done)
}
