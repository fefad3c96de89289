//! How to restore an account: what is read, and the vendor's command for it.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::account::{Account, Answer};
use super::analysis::Analysis;
use super::redo::SequenceRange;
use super::site::Session;
use crate::layout::stamp_in;
use crate::plain::{is_plain, quoted};

/// Before the name of an account that is restored beside the one that is there.
pub const RESTORED_PREFIX: &str = "restored_";

/// A session that a restore reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRead {
    /// The session, by place in [`Analysis::sessions`].
    pub session: usize,
    /// Whether the account itself is read from it.
    pub is_full: bool,
    /// The redo logs read from it.
    pub logs: Vec<SequenceRange>,
}

/// What a restore of an account to a time does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestorePlan {
    /// The full it starts from, by place in [`Account::fulls`].
    pub full: usize,
    /// Label of that full.
    pub label: String,
    /// Whether the label must be given, because the vendor's tool would take another.
    pub is_label_needed: bool,
    /// The time that is restored: the one requested, else the newest there is.
    pub time: Timestamp,
    /// Whether redo logs are replayed up to that time only, because there are more behind it.
    pub is_time_needed: bool,
    /// The sessions that are read, oldest first.
    pub reads: Vec<SessionRead>,
}

/// Plans the restore of an account to a time; without one, to the newest there is.
///
/// # Errors
/// Returns the last time before it that can be restored, if there is any.
pub fn plan(analysis: &Analysis, account: &Account, time: Option<Timestamp>) -> Result<RestorePlan, Option<Timestamp>> {
    let (at, usual) = match account.answer(time) {
        Answer::Restorable { full, usual } => (full, usual),
        Answer::Only { time } => return Err(time),
    };
    let full = &account.fulls[at];
    let label = analysis.sessions[full.session].label.clone();
    let is_newest = time.is_none_or(|time| time >= full.reach);
    // Logs behind a gap would stop the vendor's tool, unless it ends before them.
    let replayed = full.chain.replayable.map(|range| range.last);
    let mut later = analysis.redo.all().iter().filter(|log| log.closed >= full.start);
    let is_cut = later.any(|log| replayed.is_none_or(|last| log.sequence > last) && log.closed > full.reach);
    // Without accounts.xml, or where that does not know the account, the vendor's tool finds no full by itself.
    let expected = account.in_accounts && account.latest.as_ref().is_none_or(|latest| *latest == label);
    let mut reads = vec![SessionRead { session: full.session, is_full: true, logs: Vec::new() }];
    if let Some(range) = full.chain.replayable {
        let mut next = Some(range.first);
        for log in analysis.redo.all() {
            // As in the chain: of two copies the first, none from before the full.
            if next != Some(log.sequence) || log.sequence > range.last || log.closed < full.start {
                continue;
            }
            match reads.iter_mut().find(|read| read.session == log.session) {
                Some(read) => add(&mut read.logs, log.sequence),
                None => {
                    let logs = vec![SequenceRange { first: log.sequence, last: log.sequence }];
                    reads.push(SessionRead { session: log.session, is_full: false, logs });
                }
            }
            next = log.sequence.checked_add(1);
            if time.is_some_and(|time| log.closed >= time) {
                break;
            }
        }
    }
    reads.sort_by_key(|read| read.session);
    Ok(RestorePlan {
        full: at,
        is_label_needed: !usual || !expected,
        label,
        time: time.filter(|_| !is_newest).unwrap_or(full.reach),
        is_time_needed: !is_newest || is_cut,
        reads,
    })
}

fn add(runs: &mut Vec<SequenceRange>, number: u64) {
    match runs.last_mut() {
        Some(run) if run.last.checked_add(1) == Some(number) => run.last = number,
        _ => runs.push(SequenceRange { first: number, last: number }),
    }
}

impl RestorePlan {
    /// Returns the vendor's command that restores the account from a tree mounted at `target`.
    ///
    /// It replays the redo logs of the tree only: those of the server go on from another state. The time is in `zone`, which should be the server's.
    /// `None` when the vendor's tool would not take the account's name, or the label, for just that: both come from files that anybody may have written.
    pub fn command(&self, target: &str, email: &str, zone: &TimeZone) -> Option<String> {
        let is_label =
            !self.label.starts_with('-') && self.label.chars().all(|letter| is_plain(letter) && letter != ' ');
        if !is_address(email) || (self.is_label_needed && !is_label) {
            return None;
        }
        let mut command = format!("zmrestore -t {} -a {}", quoted(target), quoted(email));
        if self.is_label_needed {
            command += &format!(" -lb {}", quoted(&self.label));
        }
        command += " -br";
        if self.is_time_needed {
            command += &format!(" -restoreToTime {}", stamp_in(self.time, zone));
        }
        Some(command)
    }

    /// Returns the same for a new account beside the one that is there.
    pub fn command_beside(&self, target: &str, email: &str, zone: &TimeZone) -> Option<String> {
        Some(format!("{} -ca -pre {RESTORED_PREFIX}", self.command(target, email, zone)?))
    }
}

/// Returns whether the vendor's tool takes a name for the address of one account: `all` are all accounts to it, and what begins with `-` is an option.
fn is_address(name: &str) -> bool {
    let fits = |letter: char| letter.is_alphanumeric() || "._+-/=!#$%&'*?^`{|}~".contains(letter);
    name.split_once('@').is_some_and(|(local, domain)| {
        !local.is_empty()
            && !local.starts_with('-')
            && !domain.is_empty()
            && (local.chars().chain(domain.chars())).all(fits)
    })
}

/// Returns what a session gives to a restore, in words.
pub fn read_words(session: &Session, read: &SessionRead) -> String {
    let ranges: Vec<String> = read.logs.iter().map(SequenceRange::to_string).collect();
    let mut words = Vec::new();
    if read.is_full {
        words.push("the account and its shared messages".to_owned());
    }
    if !ranges.is_empty() {
        let is_one = read.logs.len() == 1 && read.logs[0].first == read.logs[0].last;
        words.push(format!("{} {}", if is_one { "redo log" } else { "redo logs" }, ranges.join(", ")));
    }
    format!("{}: {}", session.label, words.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_safe_to_paste() {
        let plan = RestorePlan {
            full: 0,
            label: "full-20260801.050004.118".to_owned(),
            is_label_needed: true,
            time: Timestamp::from_millisecond(1_785_563_911_402).unwrap(),
            is_time_needed: true,
            reads: Vec::new(),
        };
        assert_eq!(
            plan.command("/mnt/zimbra", "a@example.com", &TimeZone::UTC).unwrap(),
            "zmrestore -t /mnt/zimbra -a a@example.com -lb full-20260801.050004.118 -br -restoreToTime 20260801.055831.402"
        );
        let odd = plan.command("/mnt/o'hara; reboot", "o'hara+$x@example.com", &TimeZone::UTC).unwrap();
        assert!(odd.starts_with("zmrestore -t '/mnt/o'\\''hara; reboot' -a 'o'\\''hara+$x@example.com' -lb"), "{odd}");
        for name in [
            "all",
            "",
            "-sys",
            "-a@example.com",
            "@example.com",
            "a@",
            "a@b@c",
            "a@example.com all",
            "a,all@example.com",
            "a\u{202e}@example.com",
            "a\n@example.com",
            "\"a\"@example.com",
        ] {
            assert_eq!(plan.command("/mnt", name, &TimeZone::UTC), None, "{name:?}");
            assert_eq!(plan.command_beside("/mnt", name, &TimeZone::UTC), None, "{name:?}");
        }
        for label in ["-sys", "full-1 -a all"] {
            let plan = RestorePlan { label: label.to_owned(), ..plan.clone() };
            assert_eq!(plan.command("/mnt", "a@example.com", &TimeZone::UTC), None, "{label:?}");
        }
        let newest = RestorePlan { is_label_needed: false, is_time_needed: false, ..plan };
        assert_eq!(
            newest.command_beside("/mnt/zimbra", "a@example.com", &TimeZone::UTC).unwrap(),
            "zmrestore -t /mnt/zimbra -a a@example.com -br -ca -pre restored_"
        );
    }
}
