//! The life of a tree: sessions come, run, and are deleted, as the schedule of a server has it.

use std::path::{Path, PathBuf};

use crate::clock::DAY_MS;
use crate::config::{Config, Kind, State, Status, Step};
use crate::digest::Known;
use crate::disk::{self, DIR_MODE, Disk, FILE_MODE};
use crate::error::{Context, Error, Result};
use crate::mailbox::{Site, domain};
use crate::rng::Rng;
use crate::session::{Part, Session};
use crate::summary::Summary;
use crate::words::Tables;
use crate::xml;

/// A tree and what is needed to continue it.
#[derive(Debug)]
pub struct Generator {
    root: PathBuf,
    site: Site,
    tables: Tables,
    known: Known,
    threads: usize,
}

impl Generator {
    fn new(root: &Path, config: Config, steps: Vec<Step>, threads: usize) -> Self {
        let tables = Tables::new(config.seed);
        let site = Site::new(config, steps);
        let known = Known::new(site.accounts.len());
        Self { root: root.to_path_buf(), site, tables, known, threads }
    }

    /// Creates a tree in a directory that is empty or doesn't exist, with all its first sessions.
    pub fn create(root: &Path, config: Config, threads: usize) -> Result<Self> {
        config.validate()?;
        let taken = match std::fs::read_dir(root) {
            Ok(mut entries) => entries.next().is_some(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
            Err(e) => return Err(e).context("list", root),
        };
        if taken {
            return Err(Error::NotEmpty(root.to_path_buf()));
        }
        let mut generator = Self::new(root, config, Vec::new(), threads);
        let disk = generator.disk();
        for name in ["sessions", "tmp"] {
            disk.mkdir(&root.join(name), DIR_MODE)?;
        }
        // Made by mkfs, so it belongs to root whoever owns the rest.
        Disk { owner: None }.mkdir(&root.join("lost+found"), 0o700)?;
        let made_ns = (generator.site.config.start_ms - 400 * DAY_MS) * 1_000_000;
        disk::touch(&root.join("lost+found"), made_ns)?;
        let Config { fulls, incrementals, groups, .. } = generator.site.config;
        let (fulls, incrementals) = if groups > 0 { (fulls * groups, 0) } else { (fulls, incrementals) };
        for full in 0..fulls {
            generator.full()?;
            if full + 1 < fulls {
                for _ in 0..incrementals {
                    generator.night()?;
                }
            }
        }
        Ok(generator)
    }

    /// Opens a tree that `create` made.
    pub fn open(root: &Path, threads: usize) -> Result<Self> {
        let state = State::load(root)?;
        Ok(Self::new(root, state.config, state.steps, threads))
    }

    /// Counts what the tree holds.
    pub fn summary(&self) -> Result<Summary> {
        Summary::of(&self.root)
    }

    /// Lists the labels of the finished sessions, oldest first.
    pub fn labels(&self) -> Vec<String> {
        self.with_status(Status::Finished).map(|n| self.site.steps[n].label()).collect()
    }

    /// Adds the next incremental session, one day after the last session.
    pub fn night(&mut self) -> Result<String> {
        self.run(Kind::Incremental)
    }

    /// Adds the next full session, a week after the last one; in auto-grouped mode that of the next group, a day after.
    pub fn full(&mut self) -> Result<String> {
        self.run(Kind::Full)
    }

    /// Begins a session under `tmp/` and leaves it half written.
    pub fn begin(&mut self, kind: Kind) -> Result<String> {
        let number = self.plan(kind);
        self.write(number, Part::Begin)?;
        disk::touch(&self.root.join("tmp"), self.session(number, Part::Begin).moment_ns(0.0, 8))?;
        self.save()?;
        Ok(self.site.steps[number].label())
    }

    /// Finishes the session that [`Generator::begin`] left half written.
    pub fn finish(&mut self) -> Result<String> {
        let number = self.with_status(Status::Running).next_back();
        let number = number.ok_or_else(|| Error::NoSession("is running under tmp/".to_owned()))?;
        self.write(number, Part::Rest)?;
        self.publish(number)
    }

    /// Deletes a session as `zmbackup -del` does: renamed and half removed, or with `finish` entirely.
    ///
    /// Without a label it is the oldest session; with `finish` one whose deletion has begun goes first.
    pub fn delete(&mut self, label: Option<&str>, finish: bool) -> Result<String> {
        let wanted = |n: &usize| label.is_none_or(|l| self.site.steps[*n].label() == l);
        let begun = self.with_status(Status::Deleting).find(wanted).filter(|_| finish);
        let found = begun.or_else(|| self.with_status(Status::Finished).find(wanted));
        let number = found.ok_or_else(|| Error::NoSession(label.unwrap_or("is left").to_owned()))?;
        let label = self.site.steps[number].label();
        let sessions = self.root.join("sessions");
        let doomed = sessions.join(format!("TO_DELETE-{label}"));
        let last_ms = self.site.steps.iter().map(|s| s.start_ms).max().unwrap_or(0);
        // The daily deletion runs at midnight, an hour before the next session.
        let at_ns = (last_ms + DAY_MS - 3_600_000) * 1_000_000 + 271_828;
        if begun.is_none() {
            let live = sessions.join(&label);
            std::fs::rename(&live, &doomed).context("rename", &live)?;
            self.site.steps[number].status = Status::Deleting;
            self.accounts_xml(at_ns)?;
        }
        if finish {
            std::fs::remove_dir_all(&doomed).context("remove", &doomed)?;
            self.site.steps[number].status = Status::Deleted;
        } else {
            half_remove(&doomed)?;
            disk::touch(&doomed, at_ns)?;
        }
        disk::touch(&sessions, at_ns)?;
        disk::touch(&self.root, at_ns)?;
        self.save()?;
        Ok(label)
    }

    fn disk(&self) -> Disk {
        Disk { owner: self.site.config.owner }
    }

    fn save(&self) -> Result<()> {
        State::new(self.site.config.clone(), self.site.steps.clone()).save(&self.root)
    }

    fn with_status(&self, status: Status) -> impl DoubleEndedIterator<Item = usize> {
        let steps = self.site.steps.iter().enumerate();
        steps.filter(move |(_, s)| s.status == status).map(|(n, _)| n)
    }

    /// Appends a step to the schedule and returns its number.
    fn plan(&mut self, kind: Kind) -> usize {
        let config = &self.site.config;
        let number = self.site.steps.len();
        let last = self.site.steps.last();
        let period = config.period_days();
        let day = match (last, kind) {
            (None, _) => 0,
            (Some(last), Kind::Full) if config.groups == 0 => (last.day / period + 1) * period,
            (Some(last), Kind::Full) => last.day + 1,
            (Some(last), Kind::Incremental) => last.day + 1,
        };
        let mut rng = Rng::new(&[config.seed, domain::SESSION, number as u64, 1]);
        // Cron starts the command on the minute; the server takes a few seconds to begin.
        let start_ms = config.start_ms + day * DAY_MS + rng.range(2_000, 9_000) as i64;
        // Logs up to the newest finished session that archives any are archived already.
        let archived = self.site.steps.iter().rposition(|s| s.has_logs() && s.status != Status::Running);
        let first_log = archived.map_or(0, |n| n as u32 + 1);
        let days = last.map_or(0, |last| day - last.day);
        let turn = self.site.steps.iter().filter(|s| s.kind == Kind::Full).count() as u32;
        let group = (config.groups > 0 && kind == Kind::Full).then(|| turn % config.groups);
        self.site.steps.push(Step { kind, status: Status::Running, start_ms, days, day, first_log, group });
        number
    }

    fn run(&mut self, kind: Kind) -> Result<String> {
        let number = self.plan(kind);
        self.write(number, Part::Whole)?;
        self.publish(number)
    }

    fn session(&self, number: usize, part: Part) -> Session<'_> {
        Session {
            site: &self.site,
            tables: &self.tables,
            known: &self.known,
            disk: self.disk(),
            root: &self.root,
            dir: self.root.join("tmp").join(self.site.steps[number].label()),
            number: number as u32,
            part,
            threads: self.threads,
        }
    }

    fn write(&self, number: usize, part: Part) -> Result<()> {
        self.session(number, part).write()
    }

    /// Moves a complete session to `sessions/` and, after a full, renews `accounts.xml`.
    fn publish(&mut self, number: usize) -> Result<String> {
        let label = self.site.steps[number].label();
        let (sessions, tmp) = (self.root.join("sessions"), self.root.join("tmp"));
        let from = tmp.join(&label);
        std::fs::rename(&from, sessions.join(&label)).context("rename", &from)?;
        self.site.steps[number].status = Status::Finished;
        let end_ns = self.session(number, Part::Whole).moment_ns(1.0, 9);
        if self.site.steps[number].kind == Kind::Full {
            self.accounts_xml(end_ns)?;
            disk::touch(&self.root, end_ns)?;
        }
        disk::touch(&sessions, end_ns)?;
        disk::touch(&tmp, end_ns)?;
        self.save()?;
        Ok(label)
    }

    /// Swaps `accounts.xml` by two renames, as the server does.
    fn accounts_xml(&self, mtime_ns: i64) -> Result<()> {
        let [current, old, new] = ["accounts.xml", "accounts.xml.old", "accounts.xml.new"].map(|n| self.root.join(n));
        self.disk().write(&new, FILE_MODE, mtime_ns, xml::accounts(&self.site).as_bytes())?;
        if current.exists() {
            std::fs::rename(&current, &old).context("rename", &current)?;
        }
        std::fs::rename(&new, &current).context("rename", &new)
    }
}

/// Removes about half of a session: everything but `session.xml`, the shared messages and the later accounts.
fn half_remove(session: &Path) -> Result<()> {
    for name in ["redologs", "sys", "ldap"] {
        let path = session.join(name);
        if path.exists() {
            std::fs::remove_dir_all(&path).context("remove", &path)?;
        }
    }
    let top = session.join("accounts");
    let mut accounts = Vec::new();
    for first in list(&top)? {
        for second in list(&first)? {
            accounts.extend(list(&second)?);
        }
    }
    for account in &accounts[..accounts.len() / 2] {
        std::fs::remove_dir_all(account).context("remove", account)?;
    }
    if let Some(account) = accounts.get(accounts.len() / 2) {
        for name in ["meta.xml", "index", "blobs"] {
            let path = account.join(name);
            match std::fs::symlink_metadata(&path) {
                Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(&path).context("remove", &path)?,
                Ok(_) => std::fs::remove_file(&path).context("remove", &path)?,
                Err(_) => {}
            }
        }
    }
    Ok(())
}

/// Lists a directory in order of names.
fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).context("list", dir)? {
        paths.push(entry.context("list", dir)?.path());
    }
    paths.sort();
    Ok(paths)
}
