//! Bringing a program to a host: through the shell there, over what a login shell may print, so that it works wherever a command does.
//!
//! 1. A new temporary file is written below the home directory, and read back. Nothing is sent before the script has said that it runs. What is not complete is
//!    removed.
//! 2. The program is tried with `--version`. Only one that runs there gets its name; so what has the name is whole, and runs.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use super::deadline::Deadline;
use super::{Connection, NOISE_BYTES, Transport, TransportError, printed, read_to_mark};
use crate::cause::{Explained, NoThread};

/// What a script may take ...
const SCRIPT_TIME: Duration = Duration::from_secs(120);
/// ... and a second more for so many bytes that it is sent, and sends back.
const BYTES_PER_SECOND: u64 = 16 << 10;
/// Says that the script runs.
const BEGUN: &[u8] = b"ZMRUPLOAD1\n";
/// Says that the program is tried next ...
const TRIED: &[u8] = b"ZMRTRIED1\n";
/// ... and that it has its name.
const NAMED: &[u8] = b"ZMRNAMED1\n";

/// Why a program was not brought.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The host cannot be reached, or nothing can be run or written there.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// It is there, and does not run; how it ended. It was removed again.
    #[error("It does not run there: {0}")]
    DoesNotRun(String),
}

/// Writes an executable file below the home directory of a host, its directories included, reads it back, compares, and runs it with `--version`; it gets its
/// name only then.
///
/// # Errors
/// See [`UploadError`].
pub fn upload(transport: &mut dyn Transport, directory: &str, name: &str, bytes: &[u8]) -> Result<(), UploadError> {
    // Nobody can put something in the place of a name that nobody can guess.
    let random = getrandom::u64()
        .map_err(|error| TransportError::Refused { message: format!("This host has no random bytes: {error}") })?;
    let temporary = format!("{name}.tmp-{random:016x}");
    let place = format!("umask 077; mkdir -p \"$HOME/{directory}\" && cd \"$HOME/{directory}\"");
    // One line without apostrophes, backslashes or exclamation marks: within quotes it is the same to every login shell.
    let write = format!(
        "exec sh -c 'echo ZMRUPLOAD1; {place} && set -C && {{ cat > {temporary} && cat {temporary} || {{ c=$?; rm -f {temporary}; exit $c; }}; }}'"
    );
    let back = run(transport, &write, bytes)?;
    if back.code != Some(0) || back.output != bytes {
        let reason = if back.code == Some(0) { "it reads back as something else".to_owned() } else { back.words };
        return Err(refused(transport, &reason));
    }
    let trial = format!("./{temporary} --version || {{ c=$?; rm -f {temporary}; exit $c; }}");
    let name = format!(
        "exec sh -c 'echo ZMRUPLOAD1; {place} && chmod 700 {temporary} && echo ZMRTRIED1 && {{ {trial}; }} && mv -f {temporary} {name} && echo ZMRNAMED1'"
    );
    let ended = run(transport, &name, &[])?;
    if ended.code == Some(0) && ended.output.ends_with(NAMED) {
        return Ok(());
    }
    if ended.output.starts_with(TRIED) && ended.code != Some(0) {
        return Err(UploadError::DoesNotRun(format!("{}{}", ended.words, printed(&ended.output[TRIED.len()..]))));
    }
    Err(refused(transport, &ended.words))
}

fn refused(transport: &dyn Transport, reason: &str) -> UploadError {
    let host = transport.host();
    let message = format!(
        "The agent cannot be uploaded to {host}: {reason}. Fix that, install zmreplica there, or use --agentless"
    );
    TransportError::Refused { message }.into()
}

/// How a script ended.
struct Ended {
    code: Option<i32>,
    words: String,
    /// What it wrote after it had begun.
    output: Vec<u8>,
}

/// Runs a script with `stdin` to its end.
fn run(transport: &mut dyn Transport, command: &str, stdin: &[u8]) -> Result<Ended, TransportError> {
    let Connection { mut input, mut output, control } = transport.run(command)?;
    let host = transport.host().to_owned();
    let span = SCRIPT_TIME + Duration::from_secs(stdin.len() as u64 / BYTES_PER_SECOND);
    let deadline = Deadline::start(Arc::clone(&control), span)
        .map_err(|error| TransportError::Connect { host: host.clone(), reason: NoThread(error).into() })?;
    let mut input = deadline.watch(&mut *input);
    let mut seen = Vec::new();
    let exchange = || -> io::Result<Vec<u8>> {
        read_to_mark(&mut input, &[BEGUN], &mut seen)?;
        seen.clear();
        // A script that ends early says why by its code and on stderr.
        let _ = output.write_all(stdin).and_then(|()| output.flush());
        drop(output);
        let mut bytes = Vec::new();
        // What comes is what was sent, or a few lines.
        (&mut input).take((stdin.len() + NOISE_BYTES) as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let exchanged = exchange();
    if let Some(reason) = deadline.passed("the upload") {
        return Err(TransportError::Connect { host, reason: reason.into() });
    }
    let words = control.exit_info();
    match exchanged {
        Ok(output) if words.code.is_some_and(|code| code != 255) => {
            Ok(Ended { code: words.code, words: words.to_string(), output })
        }
        ended => {
            if let Some(error) = words.lasting(&host) {
                return Err(error);
            }
            let (code, words) = (words.code, format!("{words}{}", printed(&seen)));
            Err(match code {
                Some(255) | None => TransportError::Connect {
                    host,
                    reason: match ended {
                        Ok(_) => words.into(),
                        Err(error) => Explained::new(error, format!("; {words}")).into(),
                    },
                },
                Some(_) => TransportError::Refused {
                    message: format!("No command can be run on {host}: {words}. Is this user allowed a shell there?"),
                },
            })
        }
    }
}
