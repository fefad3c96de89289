//! What is reported of a night to hooks, and on stdout with `--json`.

use jiff::Timestamp;
use serde::Serialize;
use zmreplica::nightly::hooks::{self, HOOK_LIMIT, HookCommand};
use zmreplica::plain;
use zmreplica::snapshot::problems::RunProblem;
use zmreplica::zimbra::ledger::Summary;

use super::super::error::Exit;
use super::super::output::write_json;
use super::super::snapshots::SnapshotEvent;

/// What a text for hooks is cut to, in bytes: much of it comes from the source, and a variable of an environment that is too long, or has a NUL in
/// it, keeps a hook from being started at all.
pub(super) const TEXT_BYTES: usize = 4 << 10;

/// How a night ended, as hooks see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Outcome {
    Success,
    Warning,
    Failure,
}

impl Outcome {
    pub(super) fn of(exit: Exit) -> Outcome {
        match exit {
            Exit::Done => Outcome::Success,
            // Nothing is lost when another run goes on or somebody holds the store, but it should not stay so.
            Exit::Incomplete | Exit::Attention | Exit::Locked | Exit::Held => Outcome::Warning,
            Exit::Failed | Exit::Usage | Exit::Damage => Outcome::Failure,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Outcome::Success => "success",
            Outcome::Warning => "warning",
            Outcome::Failure => "failure",
        }
    }
}

#[derive(Serialize)]
pub(super) struct SettleEvent {
    pub(super) waited_ms: u64,
    pub(super) quiet: bool,
}

/// What hooks get on stdin, and stdout with `--json`.
#[derive(Serialize)]
pub(super) struct NightEvent<'a> {
    pub(super) event: &'static str,
    pub(super) outcome: Outcome,
    pub(super) exit_code: u8,
    /// What happened, in a line.
    pub(super) message: &'a str,
    pub(super) hint: Option<&'a str>,
    pub(super) host: String,
    pub(super) store: Option<String>,
    pub(super) source: Option<String>,
    /// The name of the source, once there is a snapshot.
    pub(super) source_name: Option<&'a str>,
    pub(super) started: Timestamp,
    pub(super) finished: Timestamp,
    pub(super) settle: Option<SettleEvent>,
    /// How long another run was waited for.
    pub(super) lock_wait_ms: u64,
    pub(super) snapshot: Option<SnapshotEvent<'a>>,
    /// The first 20 problems of the snapshot; `snapshot.problem_count` has their number.
    pub(super) problems: &'a [RunProblem],
    /// What can be restored; `null` when the snapshot holds nothing of a mail server, or that could not be found out.
    pub(super) restorable: Option<&'a Summary>,
    /// What is wrong with that by itself: sentences.
    pub(super) concerns: &'a [String],
    /// Snapshots that the prune removed; the log names them.
    pub(super) removed_snapshots: u64,
    /// Suspect snapshots in the store that nobody has accepted.
    pub(super) suspects: Option<usize>,
    pub(super) version: &'static str,
}

/// Returns a problem of bounded length.
pub(super) fn cut(problem: &RunProblem) -> RunProblem {
    let path = problem.path.get(..TEXT_BYTES).unwrap_or(&problem.path).to_vec();
    RunProblem { path, message: plain::short(&problem.message, TEXT_BYTES) }
}

/// Runs a hook and returns what went wrong. `source` is what its environment names.
pub(super) fn run_hook(hook: &HookCommand, event: &NightEvent<'_>, source: Option<&str>) -> Option<String> {
    let mut input = Vec::new();
    if let Err(error) = write_json(&mut input, event) {
        return Some(format!("The hook's input cannot be prepared: {error}"));
    }
    let variables =
        hooks::variables(event.outcome.word(), event.exit_code, event.message, event.store.as_deref(), source);
    hook.run(&input, &variables, HOOK_LIMIT).err().map(|error| error.to_string())
}
