//! Sessions across snapshots: when each appeared, when it vanished, and whether that was to be expected.
//!
//! Only the names in `sessions/` are read, so all snapshots of years cost some milliseconds each.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use crate::layout::{Label, SESSIONS};
use crate::view::{Node, SnapshotView, ViewError};

/// A session younger than this is not deleted by any usual retention; the shortest known is 8 days.
const KEPT_AT_LEAST: SignedDuration = SignedDuration::from_hours(7 * 24);

/// Names of the finished sessions of one snapshot.
#[derive(Clone, Debug)]
pub struct SessionNames {
    /// Place of the snapshot in the caller's list.
    pub snapshot: usize,
    /// When the snapshot was begun.
    pub time: Timestamp,
    /// Labels of the sessions, with their starts.
    pub labels: Vec<(String, Timestamp)>,
}

/// Lists the names of the finished sessions of a snapshot; none when the tree is not there.
///
/// # Errors
/// Fails when the store cannot be read.
pub fn session_names(view: &SnapshotView, tree: &[u8], snapshot: usize) -> Result<SessionNames, ViewError> {
    let mut labels = Vec::new();
    let root = match view.resolve(tree) {
        Ok(node) => Some(node),
        Err(ViewError::NotFound { .. } | ViewError::NotADirectory { .. }) => None,
        Err(error) => return Err(error),
    };
    if let Some(Node::Directory(root)) = root
        && let Some(Node::Directory(sessions)) = view.lookup(&root, SESSIONS.as_bytes())?
    {
        for entry in view.list(&sessions)? {
            let entry = entry?;
            if let (Node::Directory(_), Ok(name)) = (&entry.node, std::str::from_utf8(&entry.name))
                && let Some(label) = Label::parse(name)
            {
                labels.push((name.to_owned(), label.start));
            }
        }
    }
    Ok(SessionNames { snapshot, time: view.record().time, labels })
}

/// How a session vanished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vanished {
    /// The first snapshot without it, by place in the caller's list.
    pub snapshot: usize,
    /// Why that is not what a retention does; `None` when it is.
    pub unexpected: Option<String>,
}

/// One session across snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionLife {
    /// Its label.
    pub label: String,
    /// When it started.
    pub start: Timestamp,
    /// The first snapshot with it, by place in the caller's list.
    pub appeared: usize,
    /// The last snapshot with it.
    pub last_seen: usize,
    /// When it was gone; `None` while the last snapshot has it.
    pub vanished: Option<Vanished>,
}

/// Follows every session through snapshots of one source, oldest first.
pub fn session_lives(snapshots: &[SessionNames]) -> Vec<SessionLife> {
    let mut lives: BTreeMap<(Timestamp, &str), SessionLife> = BTreeMap::new();
    for (at, names) in snapshots.iter().enumerate() {
        for (label, start) in &names.labels {
            let life = lives.entry((*start, label)).or_insert_with(|| SessionLife {
                label: label.clone(),
                start: *start,
                appeared: names.snapshot,
                last_seen: names.snapshot,
                vanished: None,
            });
            life.last_seen = names.snapshot;
            // One that came back, restored from a snapshot perhaps, is there.
            life.vanished = None;
        }
        let gone = lives.values_mut().filter(|life| life.last_seen != names.snapshot && life.vanished.is_none());
        for life in gone {
            life.vanished =
                Some(Vanished { snapshot: names.snapshot, unexpected: unexpected(life.start, &snapshots[at]) });
        }
    }
    lives.into_values().collect()
}

/// Returns why a session of this age should still be among these; `None` when a retention that removes the oldest explains it.
fn unexpected(start: Timestamp, now: &SessionNames) -> Option<String> {
    let age = now.time.duration_since(start);
    let older = now.labels.iter().filter(|(_, other)| *other < start).count();
    if now.labels.is_empty() {
        Some("no session is left".to_owned())
    } else if older > 0 {
        Some(format!("{older} older {} still there", if older == 1 { "session is" } else { "sessions are" }))
    } else if age < KEPT_AT_LEAST {
        Some(format!("it was {} days old", age.as_hours() / 24))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;

    fn night(snapshot: usize, day: i64, sessions: &[i64]) -> SessionNames {
        let time = |day: i64| Timestamp::from_second(1_785_546_000 + day * DAY).unwrap();
        let labels = sessions.iter().map(|day| (format!("day-{day}"), time(*day))).collect();
        SessionNames { snapshot, time: time(day), labels }
    }

    #[test]
    fn sessions_come_and_go() {
        let nights = [
            night(0, 20, &[0, 7, 14, 20]),
            night(1, 21, &[7, 14, 20, 21]),
            night(2, 22, &[7, 20, 21, 22]),
            night(3, 23, &[7, 14, 20, 21]),
        ];
        let lives = session_lives(&nights);
        let life = |day: i64| lives.iter().find(|life| life.label == format!("day-{day}")).unwrap();
        assert_eq!(life(0).vanished, Some(Vanished { snapshot: 1, unexpected: None }), "the oldest goes");
        assert_eq!((life(14).vanished.clone(), life(14).last_seen), (None, 3), "it came back");
        let young = life(22).vanished.as_ref().unwrap();
        assert!(young.unexpected.as_ref().unwrap().contains("4 older"), "{young:?}");
        assert_eq!((life(21).appeared, life(7).appeared), (1, 0));
        assert_eq!(
            session_lives(&nights[..3])[2].vanished.as_ref().unwrap().unexpected.as_deref(),
            Some("1 older session is still there")
        );
    }

    #[test]
    fn an_empty_tree_and_young_sessions_are_no_retention() {
        let lives = session_lives(&[night(0, 20, &[0, 20]), night(1, 21, &[])]);
        assert!(lives.iter().all(|life| life.vanished.as_ref().unwrap().unexpected.is_some()));
        let lives = session_lives(&[night(0, 20, &[18, 20]), night(1, 21, &[20, 21])]);
        assert_eq!(lives[0].vanished.as_ref().unwrap().unexpected.as_deref(), Some("it was 3 days old"));
    }
}
