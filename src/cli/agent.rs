//! `zmreplica agent`: the remote end of a pull. Started on the source's host by the run on the replica's, through SSH; not by people.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use clap::Args;
use zmreplica::memory_limit::{Share, limit_memory};
use zmreplica::remote::agent::{AgentError, AgentOptions, serve};
use zmreplica::remote::transport::SILENCE;
use zmreplica::remote::transport::command::TimedReader;

use super::error::{CliError, Exit};
use super::output::stderr_line;

/// The niceness that the agent takes on: the mail server comes first.
const NICE: i32 = 10;
/// An agent waits longer than a run before it takes the other side for lost: the run is the one to report it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(2 * SILENCE.as_secs());

/// How long the agent may take to end once its input has.
const END_TIME: Duration = Duration::from_secs(5);

/// Arguments of `agent`.
#[derive(Args)]
pub(crate) struct AgentArgs {
    /// Serve only this directory and what is below it. In `command=` of authorized_keys this restricts the key
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Allow restores to write below the root
    #[arg(long)]
    writable: bool,
    /// Niceness, 0 to 19; disk priority follows it
    #[arg(long, value_name = "N", default_value_t = NICE, value_parser = clap::value_parser!(i32).range(0..=19))]
    nice: i32,
}

pub(crate) fn run(args: &AgentArgs) -> Result<Exit, CliError> {
    lower_priority(args.nice);
    limit_memory(Share::Agent);
    let input = std::io::stdin().as_fd().try_clone_to_owned();
    let output = std::io::stdout().as_fd().try_clone_to_owned();
    let (input, output) = match (input, output) {
        (Ok(input), Ok(output)) => (input, output),
        (Err(error), _) | (_, Err(error)) => return Err(CliError::Failed(format!("No stdin or stdout: {error}"))),
    };
    let options = AgentOptions { root: args.root.clone(), writable: args.writable, confine: true };
    // No buffer of std's own: frames are written whole.
    let mut output = File::from(output);
    let input = Ending { input: TimedReader::new(input, IDLE_TIMEOUT) };
    let served = serve(input, &mut output, &options);
    let _ = output.flush();
    match served {
        Ok(()) => Ok(Exit::Done),
        // The other side has received the error.
        Err(AgentError::Refused(_)) => Ok(Exit::Failed),
        Err(error) => {
            // The run shows this among its own messages.
            stderr_line(&format!("zmreplica agent: {error}"));
            Ok(Exit::Failed)
        }
    }
}

/// The input. When it has ended there is nothing more to do, and the process ends, also if the other side keeps the connection and reads nothing of what is
/// being written.
struct Ending {
    input: TimedReader,
}

impl Read for Ending {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.input.read(buffer)
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        // Without a thread it is the connection's end that ends the process.
        let _ = std::thread::Builder::new().name("end".to_owned()).spawn(|| {
            std::thread::sleep(END_TIME);
            std::process::exit(i32::from(Exit::Failed as u8));
        });
    }
}

/// Lets everything else on this host go first. What is refused or not installed is no reason not to serve.
fn lower_priority(nice: i32) {
    let _ = rustix::process::nice(nice);
    if nice > 0 {
        let pid = std::process::id().to_string();
        let quiet = || Stdio::null();
        let mut ionice = Command::new("ionice");
        ionice.args(["-c", "2", "-n", "7", "-p", &pid]).stdin(quiet()).stdout(quiet()).stderr(quiet());
        let _ = ionice.status();
    }
}
