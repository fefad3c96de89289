//! What a run could not take as it was.
//!
//! Memory: the list that a snapshot keeps has 48 MiB at most; further problems are counted.

use std::io::Write;

use serde::Serialize;

use crate::source::scan::Problem;

/// Problems that are kept by name ...
const KEPT_MAX: usize = 100_000;
/// ... unless their list would be so long, in bytes: it is an object of the catalogue.
const KEPT_MAX_BYTES: usize = 48 << 20;

/// Something that the snapshot could not take as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RunProblem {
    /// Path relative to the source.
    #[serde(serialize_with = "lossy_path")]
    pub path: Vec<u8>,
    /// What happened, and what the snapshot holds instead.
    pub message: String,
}

fn lossy_path<S: serde::Serializer>(path: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.escape_ascii().to_string())
}

impl RunProblem {
    /// Returns how long it is in the list that a snapshot keeps, at most and in bytes.
    fn listed_bytes(&self) -> usize {
        // What is escaped is escaped once more as JSON.
        let message: usize = self.message.bytes().map(|byte| if byte < 0x20 { 6 } else { 2 }).sum();
        2 * self.path.escape_ascii().count() + message + 64
    }
}

impl From<&Problem> for RunProblem {
    fn from(problem: &Problem) -> RunProblem {
        RunProblem { path: problem.path.clone(), message: format!("{}: {}", problem.kind, problem.message) }
    }
}

/// The problems of one run.
#[derive(Debug, Default)]
pub(super) struct Problems {
    kept: Vec<RunProblem>,
    kept_bytes: usize,
    count: u64,
}

impl Problems {
    /// Adds one.
    pub(super) fn push(&mut self, problem: RunProblem) {
        self.count += 1;
        let bytes = problem.listed_bytes();
        if self.kept.len() < KEPT_MAX && self.kept_bytes + bytes <= KEPT_MAX_BYTES {
            self.kept_bytes += bytes;
            self.kept.push(problem);
        }
    }

    /// Adds problems of the scan.
    pub(super) fn extend<'p>(&mut self, problems: impl IntoIterator<Item = &'p Problem>) {
        problems.into_iter().for_each(|problem| self.push(RunProblem::from(problem)));
    }

    /// Returns how many there were.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Returns the list that a snapshot keeps: a line of JSON for each. `None` without problems.
    pub(super) fn encode(&self) -> Option<Vec<u8>> {
        let mut lines = Vec::new();
        for problem in &self.kept {
            if serde_json::to_writer(&mut lines, problem).is_ok() {
                // Writing to a Vec cannot fail.
                let _ = lines.write_all(b"\n");
            }
        }
        (!self.kept.is_empty()).then_some(lines)
    }

    /// Returns those that are kept.
    pub(super) fn into_kept(self) -> Vec<RunProblem> {
        self.kept
    }
}
