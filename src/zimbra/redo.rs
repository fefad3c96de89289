//! Redo logs: their names, and which of them a restore can replay.
//!
//! A log that was closed is `redo-<yyyyMMdd.HHmmss.SSS>-seq<N>.log`; the stamp, in UTC, is the time at which it was closed, so the log
//! holds what happened up to then. Sequence numbers grow by one. A restore replays the logs of every session from the sequence number in the
//! account's meta.xml on, and stops at the first that is missing.

use jiff::Timestamp;

use crate::layout::parse_stamp;

/// The name of a redo log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RedoName {
    /// When the log was closed.
    pub closed: Timestamp,
    /// Its sequence number.
    pub sequence: u64,
}

impl RedoName {
    /// Reads a file name; `None` when it is no redo log's.
    pub fn parse(name: &str) -> Option<RedoName> {
        let rest = name.strip_prefix("redo-")?.strip_suffix(".log")?;
        let (stamp, sequence) = rest.split_once("-seq")?;
        let plain = !sequence.is_empty() && sequence.bytes().all(|byte| byte.is_ascii_digit());
        Some(RedoName { closed: parse_stamp(stamp)?, sequence: plain.then(|| sequence.parse().ok()).flatten()? })
    }
}

/// A run of sequence numbers, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct SequenceRange {
    /// The first.
    pub first: u64,
    /// The last.
    pub last: u64,
}

impl std::fmt::Display for SequenceRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{} to {}", self.first, self.last) }
    }
}

/// A redo log of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RedoLog {
    /// Its sequence number.
    pub sequence: u64,
    /// When it was closed.
    pub closed: Timestamp,
    /// The session that holds it, by place in the list of sessions.
    pub session: usize,
}

/// Logs that a session's session.xml names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedLogs {
    /// Their numbers.
    pub range: SequenceRange,
    /// When the session started.
    pub start: Timestamp,
}

/// The redo logs of all sessions of a tree.
#[derive(Clone, Debug, Default)]
pub struct RedoLogs {
    logs: Vec<RedoLog>,
    named: Vec<NamedLogs>,
}

/// What of the logs a restore can replay from one sequence number on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// The logs without a gap.
    pub replayable: Option<SequenceRange>,
    /// When the last of them was closed.
    pub reach: Option<Timestamp>,
    /// What is missing between logs that are there, or that a session.xml names.
    pub gaps: Vec<SequenceRange>,
}

/// Most gaps that are reported of one chain.
const GAPS_TOLD: usize = 16;

impl RedoLogs {
    /// Gathers the logs that are there and those that are named.
    pub fn new(mut logs: Vec<RedoLog>, named: Vec<NamedLogs>) -> RedoLogs {
        logs.sort_by_key(|log| (log.sequence, log.closed));
        RedoLogs { logs, named }
    }

    /// Returns the logs by sequence number.
    pub fn all(&self) -> &[RedoLog] {
        &self.logs
    }

    /// Returns the parts of a range that no session holds.
    pub fn absent(&self, range: SequenceRange) -> Vec<SequenceRange> {
        let from = self.logs.partition_point(|log| log.sequence < range.first);
        let present = self.logs[from..].iter().map(|log| log.sequence).take_while(|sequence| *sequence <= range.last);
        holes(range, present)
    }

    /// Follows the logs from `first` on.
    ///
    /// Only logs closed at or after `since` count, the start of the full session: sequence numbers may begin anew when a server is set up again.
    /// Gaps are reported up to `until`, the number from which a newer full goes on; what is missing behind it matters to that one.
    pub fn chain(&self, first: u64, since: Timestamp, until: Option<u64>) -> Chain {
        let from = self.logs.partition_point(|log| log.sequence < first);
        let later = || self.logs[from..].iter().filter(|log| log.closed >= since);
        let mut chain = Chain::default();
        let mut next = Some(first);
        for log in later() {
            // A second copy of a log is passed over: either will do.
            match next {
                Some(expected) if log.sequence == expected => {
                    chain.replayable = Some(SequenceRange { first, last: expected });
                    chain.reach = chain.reach.max(Some(log.closed));
                    next = expected.checked_add(1);
                }
                Some(expected) if log.sequence < expected => {}
                _ => break,
            }
        }
        let named = self.named.iter().filter(|named| named.start >= since && named.range.last >= first);
        let known = later().map(|log| log.sequence).max().max(named.map(|named| named.range.last).max());
        let last = known.map(|known| until.map_or(known, |until| known.min(until)));
        if let Some(last) = last.filter(|last| *last >= first) {
            chain.gaps = holes(SequenceRange { first, last }, later().map(|log| log.sequence));
        }
        chain
    }
}

/// Returns what of a range is not among the numbers, which are sorted.
fn holes(range: SequenceRange, present: impl Iterator<Item = u64>) -> Vec<SequenceRange> {
    let mut found = Vec::new();
    let mut next = Some(range.first);
    for number in present.take_while(|number| *number <= range.last) {
        let Some(expected) = next else { break };
        if number > expected && found.len() < GAPS_TOLD {
            found.push(SequenceRange { first: expected, last: number - 1 });
        }
        if number >= expected {
            next = number.checked_add(1);
        }
    }
    if let Some(next) = next.filter(|next| *next <= range.last)
        && found.len() < GAPS_TOLD
    {
        found.push(SequenceRange { first: next, last: range.last });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_785_000_000 + second).unwrap()
    }

    fn logs(sequences: &[(u64, i64)]) -> RedoLogs {
        let log = |(sequence, second): &(u64, i64)| RedoLog { sequence: *sequence, closed: at(*second), session: 0 };
        RedoLogs::new(sequences.iter().map(log).collect(), Vec::new())
    }

    fn range(first: u64, last: u64) -> SequenceRange {
        SequenceRange { first, last }
    }

    #[test]
    fn names_are_read() {
        let name = RedoName::parse("redo-20260801.050005.618-seq117.log").unwrap();
        assert_eq!((name.sequence, name.closed.as_millisecond()), (117, 1_785_560_405_618));
        for odd in
            ["redo.log", "redo-20260801.050005.618-seq.log", "redo-20260801.050005.618-seq+1.log", "redo--seq1.log"]
        {
            assert_eq!(RedoName::parse(odd), None, "{odd}");
        }
    }

    #[test]
    fn a_chain_ends_at_the_first_gap() {
        let logs = logs(&[(5, 50), (6, 60), (7, 70), (9, 90), (10, 100), (14, 140)]);
        let chain = logs.chain(5, at(0), None);
        assert_eq!((chain.replayable, chain.reach), (Some(range(5, 7)), Some(at(70))));
        assert_eq!(chain.gaps, [range(8, 8), range(11, 13)]);
        assert_eq!(logs.chain(5, at(0), Some(9)).gaps, [range(8, 8)]);
        assert_eq!(logs.chain(5, at(0), Some(7)).gaps, []);
        assert_eq!(logs.chain(9, at(0), Some(10)).gaps, []);
        assert_eq!(logs.chain(15, at(0), None), Chain::default(), "nothing was closed since");
        let chain = logs.chain(4, at(0), Some(5));
        assert_eq!((chain.replayable, chain.gaps), (None, vec![range(4, 4)]));
        assert_eq!(logs.absent(range(7, 15)), [range(8, 8), range(11, 13), range(15, 15)]);
    }

    #[test]
    fn logs_of_a_life_before_do_not_count() {
        let logs = logs(&[(1, 1000), (2, 1010), (100, 10), (101, 20)]);
        let chain = logs.chain(1, at(990), None);
        assert_eq!((chain.replayable, chain.gaps), (Some(range(1, 2)), vec![]));
    }

    #[test]
    fn named_logs_that_are_not_there_are_gaps() {
        let mut logs = logs(&[(5, 50), (6, 60)]);
        logs.named.push(NamedLogs { range: range(7, 8), start: at(80) });
        assert_eq!(logs.chain(5, at(0), None).gaps, [range(7, 8)]);
        assert_eq!(logs.chain(5, at(0), Some(6)).gaps, []);
    }
}
