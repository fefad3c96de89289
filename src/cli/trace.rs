//! Showing what the program does, step by step: spans and events of `tracing`, on stderr or in the log of a mount.
//!
//! `-v` shows steps, `-vv` also what each step requests of storage and of other hosts, and ZMREPLICA_LOG says it for each area. Without any of them there is no
//! subscriber, and an event costs nothing that can be measured.

use std::fmt::Write as _;
use std::io;
use std::sync::OnceLock;

use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use zmreplica::areas;
use zmreplica_fuse::Log;

use super::error::CliError;
use super::progress::above_live_line;

/// Environment variable with a filter, such as `debug` or `prune=debug,store=trace`.
const FILTER_VARIABLE: &str = "ZMREPLICA_LOG";

/// Where events go in place of stderr: the log of a mount that has left the terminal.
static LOG: OnceLock<Log> = OnceLock::new();

/// Shows events from now on, as the environment says, or else the number of `-v`.
///
/// # Errors
/// Fails for a filter that is invalid.
pub(crate) fn start(verbose: u8) -> Result<(), CliError> {
    let filter = match std::env::var_os(FILTER_VARIABLE).filter(|value| !value.is_empty()) {
        Some(text) => text.to_str().ok_or_else(|| "it is not UTF-8".to_owned()).and_then(parse),
        None => Ok(of_verbosity(verbose)),
    };
    let filter =
        filter.map_err(|reason| CliError::Usage(format!("{FILTER_VARIABLE} is not a valid filter: {reason}")))?;
    let Some(filter) = filter else { return Ok(()) };
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(Lines);
    let subscriber = tracing_subscriber::registry().with(lines).with(filter);
    // Fails only for a second call.
    let _ = tracing::subscriber::set_global_default(subscriber);
    Ok(())
}

/// Sends all further events to a log.
pub(crate) fn to_log(log: &Log) {
    let _ = LOG.set(Log::clone(log));
}

fn of_verbosity(verbose: u8) -> Option<Targets> {
    let level = match verbose {
        0 => return None,
        1 => Level::INFO,
        _ => Level::DEBUG,
    };
    Some(all_at(level.into()))
}

fn all_at(level: LevelFilter) -> Targets {
    Targets::new().with_targets(areas::ALL.map(|area| (area, level)))
}

/// Reads a filter: directives with commas between them, each a level for everything or `AREA=LEVEL`. `None` when it lets nothing through.
fn parse(text: &str) -> Result<Option<Targets>, String> {
    let mut levels = areas::ALL.map(|area| (area, LevelFilter::OFF));
    for directive in text.split(',').map(str::trim).filter(|directive| !directive.is_empty()) {
        let (area, level) = match directive.split_once('=') {
            Some((area, level)) => (Some(area.trim()), level.trim()),
            None => (None, directive),
        };
        let level = level.parse().map_err(|_| {
            format!(
                "`{level}` is not a level. Use off, error, warn, info, debug or trace, for one area as in prune=debug; separate several with commas"
            )
        })?;
        let known = area.is_none_or(|area| areas::ALL.contains(&area));
        if !known {
            let mut message = format!("there is no area `{}`. The areas are", area.unwrap_or_default());
            for (at, area) in areas::ALL.iter().enumerate() {
                let _ = write!(message, "{} {area}", if at == 0 { "" } else { "," });
            }
            return Err(message);
        }
        for (name, of_area) in &mut levels {
            if area.is_none_or(|area| area == *name) {
                *of_area = level;
            }
        }
    }
    let is_silent = levels.iter().all(|(_, level)| *level == LevelFilter::OFF);
    Ok((!is_silent).then(|| Targets::new().with_targets(levels)))
}

/// Takes events, each a whole line in one write.
struct Lines;

impl io::Write for Lines {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let line = String::from_utf8_lossy(event);
        let line = line.trim_end_matches('\n');
        match LOG.get() {
            Some(log) => log(line),
            None => above_live_line(line),
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Lines;

    fn make_writer(&self) -> Lines {
        Lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(filter: &str, area: &str) -> Option<Level> {
        let filter = parse(filter).unwrap()?;
        [Level::TRACE, Level::DEBUG, Level::INFO, Level::WARN, Level::ERROR]
            .into_iter()
            .find(|level| filter.would_enable(area, level))
    }

    #[test]
    fn a_filter_says_a_level_for_all_areas_or_for_one() {
        assert_eq!(level("debug", areas::RUN), Some(Level::DEBUG));
        assert_eq!(level("prune=debug, store=trace", areas::STORE), Some(Level::TRACE));
        assert_eq!(level("prune=debug,store=trace", areas::RUN), None);
        assert_eq!(level("info,store=off", areas::STORE), None);
        assert_eq!(level("info,store=off", areas::MOUNT), Some(Level::INFO));
        assert!(parse("off").unwrap().is_none());
        assert!(
            parse("prnue=debug")
                .unwrap_err()
                .contains("no area `prnue`. The areas are run, remote, mount, prune, store")
        );
        assert!(parse("run=loud").unwrap_err().contains("`loud` is not a level"));
        assert!(parse("verbose").unwrap_err().contains("`verbose` is not a level"));
    }
}
