//! Waiting until a running zmbackup has finished.
//!
//! There is no lock to look at. A session is written below `tmp/` (in some releases `sessions_tmp/`) and renamed away when it is complete, and what a crash
//! leaves there does not change any more. So zmbackup has finished when nothing below changed for some minutes. The ctime shows that, because nobody can set it
//! back, and that of a directory moves with every name that comes or goes.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use walkdir::WalkDir;

use crate::layout::{RESTORE_SCRATCH, UNFINISHED};

/// Longest sleep before the wish to end is looked at.
const NAP: Duration = Duration::from_millis(200);

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quiesced {
    /// How long it took.
    pub waited: Duration,
    /// Whether all is quiet, as against the limit or the wish to end.
    pub quiet: bool,
}

/// Returns the time of a change at a local source that is newer than `since`; `None` when there was none. It need not be the last one: the first
/// that is met will do, so that a session being written is not walked again and again.
///
/// # Errors
/// Fails when the source cannot be looked at. What vanishes meanwhile, or may not be read, is passed over.
pub fn change_since(source: &Path, since: SystemTime) -> io::Result<Option<SystemTime>> {
    source.metadata()?;
    for name in UNFINISHED {
        let walk = WalkDir::new(source.join(name)).follow_root_links(false).into_iter();
        for entry in walk.filter_entry(|entry| entry.depth() != 1 || entry.file_name() != RESTORE_SCRATCH) {
            match entry.and_then(|entry| entry.metadata()) {
                Ok(metadata) if changed_at(&metadata) > since => return Ok(Some(changed_at(&metadata))),
                Ok(_) => {}
                Err(error) if error.io_error().is_some_and(may_be_passed_over) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(None)
}

fn may_be_passed_over(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::NotADirectory)
}

fn changed_at(metadata: &std::fs::Metadata) -> SystemTime {
    let seconds = Duration::from_secs(metadata.ctime().unsigned_abs());
    let nanos = Duration::from_nanos(metadata.ctime_nsec().unsigned_abs());
    SystemTime::UNIX_EPOCH + seconds + nanos
}

/// Waits until `change_since` has reported no change for as long as `quiet`, at most `limit`, or until `interrupted`.
///
/// # Errors
/// Fails when the source cannot be looked at.
pub fn wait(
    change_since: impl Fn(SystemTime) -> io::Result<Option<SystemTime>>,
    quiet: Duration,
    limit: Duration,
    interrupted: impl Fn() -> bool,
) -> io::Result<Quiesced> {
    let started = Instant::now();
    let mut look_at = started;
    loop {
        if Instant::now() >= look_at {
            let now = SystemTime::now();
            let since = now.checked_sub(quiet).unwrap_or(SystemTime::UNIX_EPOCH);
            let Some(changed) = change_since(since)? else {
                return Ok(Quiesced { waited: started.elapsed(), quiet: true });
            };
            // It cannot be quiet before that much time has passed since that change.
            let rest = (changed + quiet).duration_since(now).unwrap_or_default();
            look_at = Instant::now() + rest.clamp(NAP.min(quiet), quiet.max(NAP));
        }
        let left = limit.saturating_sub(started.elapsed());
        if left.is_zero() || interrupted() {
            return Ok(Quiesced { waited: started.elapsed(), quiet: false });
        }
        std::thread::sleep(NAP.min(left).min(look_at.saturating_duration_since(Instant::now())));
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs;

    use super::*;

    #[test]
    fn what_is_written_below_tmp_is_seen_and_nothing_else() {
        let source = tempfile::tempdir().unwrap();
        let at = |path: &str| source.path().join(path);
        let long_ago = SystemTime::UNIX_EPOCH;
        assert_eq!(change_since(source.path(), long_ago).unwrap(), None, "no tmp at all");
        fs::create_dir_all(at("sessions/full-1")).unwrap();
        assert_eq!(change_since(source.path(), long_ago).unwrap(), None);
        fs::create_dir_all(at("tmp/full-1/accounts")).unwrap();
        fs::write(at("tmp/full-1/accounts/meta.xml"), "").unwrap();
        assert!(change_since(source.path(), long_ago).unwrap().is_some());
        let later = SystemTime::now() + Duration::from_secs(60);
        assert_eq!(change_since(source.path(), later).unwrap(), None);
        fs::remove_dir_all(at("tmp")).unwrap();
        fs::create_dir(at("sessions_tmp")).unwrap();
        assert!(change_since(source.path(), long_ago).unwrap().is_some());
        assert!(change_since(&at("nothing"), long_ago).is_err());
    }

    #[test]
    fn a_change_is_waited_out_and_the_limit_ends_it() {
        let quiet = Duration::from_millis(300);
        let looks = Cell::new(0);
        let changed = SystemTime::now();
        let once = |since| {
            looks.set(looks.get() + 1);
            Ok((changed > since).then_some(changed))
        };
        let quiesced = wait(once, quiet, Duration::from_secs(60), || false).unwrap();
        assert!(quiesced.quiet && quiesced.waited > Duration::ZERO && looks.get() >= 2);

        let always = |_| Ok(Some(SystemTime::now()));
        let quiesced = wait(always, quiet, Duration::from_millis(400), || false).unwrap();
        assert!(!quiesced.quiet && quiesced.waited >= Duration::from_millis(400));
        assert!(!wait(always, quiet, Duration::from_secs(60), || true).unwrap().quiet);
    }
}
