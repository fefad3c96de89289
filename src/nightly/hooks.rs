//! Hooks: user commands that receive the outcome of a night, as JSON on stdin.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;

use crate::remote::transport::ssh::PASSPHRASE_VARIABLE;

/// A hook that takes longer is ended.
pub const HOOK_LIMIT: Duration = Duration::from_secs(300);
const TICK: Duration = Duration::from_millis(20);

/// A command: a line for the shell, or a program with its arguments.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum HookCommand {
    /// For `/bin/sh -c`.
    Shell(String),
    /// A program and its arguments, run as they are.
    Program(Vec<String>),
}

/// What can go wrong with a hook.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// There is no command.
    #[error("The hook is not a command")]
    Empty,
    /// It could not be started or waited for.
    #[error("The hook `{command}` cannot be run: {source}")]
    Run {
        /// The command.
        command: String,
        /// What the system said.
        source: io::Error,
    },
    /// It failed.
    #[error("The hook `{command}` failed: {status}")]
    Failed {
        /// The command.
        command: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// It took too long.
    #[error("The hook `{command}` took longer than {} s and was killed", limit.as_secs())]
    TooLong {
        /// The command.
        command: String,
        /// How long it may take.
        limit: Duration,
    },
}

impl HookCommand {
    /// Returns the command as it is shown.
    pub fn shown(&self) -> String {
        match self {
            HookCommand::Shell(line) => line.clone(),
            HookCommand::Program(words) => words.join(" "),
        }
    }

    fn command(&self) -> Option<Command> {
        match self {
            HookCommand::Shell(line) if line.trim().is_empty() => None,
            HookCommand::Shell(line) => {
                let mut command = Command::new("/bin/sh");
                command.args(["-c", line]);
                Some(command)
            }
            HookCommand::Program(words) => {
                let (program, arguments) = words.split_first()?;
                let mut command = Command::new(program);
                command.args(arguments);
                Some(command)
            }
        }
    }

    /// Runs the command with `input` on stdin and `variables` in its environment, and waits for its end, at most `limit`. What it writes goes to stderr.
    ///
    /// # Errors
    /// See [`HookError`].
    pub fn run(&self, input: &[u8], variables: &[(&str, String)], limit: Duration) -> Result<(), HookError> {
        let mut command = self.command().ok_or(HookError::Empty)?;
        let failed = |source| HookError::Run { command: self.shown(), source };
        let stderr = io::stderr().as_fd().try_clone_to_owned().map_err(failed)?;
        command.env_remove(PASSPHRASE_VARIABLE);
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        // A group of its own, so that all of it can be ended.
        command.process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::from(stderr)).stderr(Stdio::inherit());
        let mut child = command.spawn().map_err(failed)?;
        let stdin = child.stdin.take();
        let status = std::thread::scope(|scope| {
            // A hook need not read its input, nor read it soon.
            let write = move || stdin.map(|mut stdin| stdin.write_all(input));
            match std::thread::Builder::new().spawn_scoped(scope, write) {
                Ok(_) => wait(&mut child, limit),
                Err(error) => {
                    // Ended at once: it would act on half of its input.
                    wait(&mut child, Duration::ZERO)?;
                    Err(error)
                }
            }
        });
        match status.map_err(failed)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(HookError::Failed { command: self.shown(), status }),
            None => Err(HookError::TooLong { command: self.shown(), limit }),
        }
    }
}

/// Returns what a hook finds in its environment about a night; `outcome` is a word, `source` the name of the source.
pub fn variables(
    outcome: &str,
    exit_code: u8,
    message: &str,
    store: Option<&str>,
    source: Option<&str>,
) -> Vec<(&'static str, String)> {
    let mut variables = vec![
        ("ZMREPLICA_OUTCOME", outcome.to_owned()),
        ("ZMREPLICA_EXIT_CODE", exit_code.to_string()),
        ("ZMREPLICA_MESSAGE", message.to_owned()),
    ];
    // So that a hook may simply call `zmreplica status`, which is then about this source.
    variables.extend(store.map(|store| ("ZMREPLICA_STORE", store.to_owned())));
    variables.extend(source.map(|source| ("ZMREPLICA_SOURCE", source.to_owned())));
    variables
}

/// Waits for a child; ends it and returns `None` when it takes too long.
fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if started.elapsed() >= limit {
            // What the command has started may hold its stdin open, too.
            if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                let _ = kill_process_group(group, Signal::KILL);
            }
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(TICK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_gets_its_input_and_says_how_it_ended() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("input");
        let line = format!("cat > '{}'; echo \"$OUTCOME\" >> '{}'", file.display(), file.display());
        let long = vec![b'x'; 1 << 20];
        HookCommand::Shell(line).run(&long, &[("OUTCOME", "warning".to_owned())], HOOK_LIMIT).unwrap();
        let input = std::fs::read(&file).unwrap();
        assert!(input.starts_with(&long) && input.ends_with(b"warning\n"));

        let program = |words: &[&str]| HookCommand::Program(words.iter().map(|word| (*word).to_owned()).collect());
        program(&["true"]).run(&long, &[], HOOK_LIMIT).unwrap();
        assert!(matches!(program(&["false"]).run(b"", &[], HOOK_LIMIT), Err(HookError::Failed { .. })));
        assert!(matches!(program(&["/no/such"]).run(b"", &[], HOOK_LIMIT), Err(HookError::Run { .. })));
        assert!(matches!(program(&[]).run(b"", &[], HOOK_LIMIT), Err(HookError::Empty)));
        let limit = Duration::from_millis(50);
        assert!(matches!(program(&["sleep", "600"]).run(&long, &[], limit), Err(HookError::TooLong { .. })));
        let line = HookCommand::Shell("sleep 600; true".to_owned());
        assert!(matches!(line.run(&long, &[], limit), Err(HookError::TooLong { .. })));
    }
}
