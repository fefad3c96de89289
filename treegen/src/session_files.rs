//! Writing one session, whole or in two halves.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::blobs;
use crate::config::{BlobMode, Kind};
use crate::digest::Digest;
use crate::disk::{self, DIR_MODE, FILE_MODE, READ_ONLY};
use crate::error::{Context, Result};
use crate::mailbox::{Item, Mail, domain};
use crate::redo;
use crate::rng::Rng;
use crate::session::{Part, Scratch, Session};
use crate::xml;

/// Share of the mail's volume that the search index takes.
const INDEX_SHARE: f64 = 0.04;
/// Limit of one index segment.
const SEGMENT_MAX_BYTES: usize = 16 << 20;
/// Size of the file that keeps room for the end of a running session.
const PLACEHOLDER_BYTES: u64 = 10 << 20;

impl Session<'_> {
    /// Writes the session, or its part.
    pub fn write(&self) -> Result<()> {
        self.disk.mkdir(&self.dir, DIR_MODE)?;
        let start_ns = self.moment_ns(0.0, 1);
        let (marker, reserve) = (self.dir.join("session.xml.tmp"), self.dir.join("placeholder.tmp"));
        if self.part == Part::Begin {
            self.disk.write(&marker, FILE_MODE, start_ns, b"")?;
            if let Some(file) = self.disk.create(&reserve)? {
                // Java writes zeros; they take room on the disk.
                let mut file = file;
                let zeros = vec![0u8; 1 << 20];
                for _ in 0..PLACEHOLDER_BYTES >> 20 {
                    file.write_all(&zeros).context("write", &reserve)?;
                }
                self.disk.finish(&reserve, file, start_ns)?;
            }
        }
        match self.site.steps[self.number as usize].kind {
            Kind::Full => self.full()?,
            Kind::Incremental => self.incremental()?,
        }
        if self.part == Part::Begin {
            return Ok(());
        }
        self.system()?;
        for temporary in [&marker, &reserve] {
            if temporary.exists() {
                std::fs::remove_file(temporary).context("remove", temporary)?;
            }
        }
        let xml = xml::session(self.site, self.number, self.end_ms());
        let end_ns = self.moment_ns(1.0, 2);
        self.disk.write(&self.dir.join("session.xml"), FILE_MODE, end_ns, xml.as_bytes())?;
        disk::touch_dirs(&self.dir.join("accounts"), 2, end_ns)?;
        let shared = self.dir.join("shared_blobs");
        if shared.exists() {
            disk::touch_dirs(&shared, 6, end_ns)?;
        }
        disk::touch(&self.dir, end_ns)
    }

    /// Lists the accounts to write now: the number, and whether only its beginning is written.
    fn accounts_now(&self) -> Vec<(u32, bool)> {
        let all = self.site.accounts.len() as u32;
        let mut accounts: Vec<(u32, bool)> = match self.part {
            Part::Whole => (0..all).map(|a| (a, false)).collect(),
            Part::Begin => (0..=all / 2).map(|a| (a, a == all / 2)).collect(),
            Part::Rest => (all / 2..all).map(|a| (a, false)).collect(),
        };
        accounts.retain(|(account, _)| self.holds(*account));
        accounts
    }

    /// Returns whether the session holds an account.
    fn holds(&self, account: u32) -> bool {
        self.site.steps[self.number as usize].holds(account, self.site.config.groups)
    }

    fn full(&self) -> Result<()> {
        let items = |account| if self.holds(account) { self.site.items(account, self.number) } else { Vec::new() };
        let all: Vec<Vec<Item>> = (0..self.site.accounts.len() as u32).map(items).collect();
        if self.site.config.blobs == BlobMode::Files {
            blobs::learn(self, &all)?;
        }
        let shared: BTreeSet<(Mail, u32)> =
            all.iter().flatten().filter(|i| matches!(i.mail, Mail::Shared(..))).map(|i| (i.mail, i.born)).collect();
        let shared: Vec<(Mail, u32)> = shared.into_iter().collect();
        blobs::shared_files(self, &shared)?;
        let accounts = self.accounts_now();
        self.parallel(accounts.len(), |scratch, at| {
            let (account, begin) = accounts[at];
            self.account(scratch, account, &all[account as usize], begin)
        })?;
        if self.site.config.blobs != BlobMode::Files && self.part != Part::Begin {
            blobs::shared_zips(self, &shared)?;
        }
        if self.site.steps[self.number as usize].has_logs() && self.part != Part::Begin {
            self.redo_logs()
        } else {
            Ok(())
        }
    }

    fn account(&self, scratch: &mut Scratch<'_>, account: u32, items: &[Item], begin: bool) -> Result<()> {
        let dir = self.account_dir(&self.dir, account);
        let (open, close) = self.window(account);
        self.disk.mkdir(&dir, DIR_MODE)?;
        match self.site.config.blobs {
            BlobMode::Files => blobs::private_files(self, scratch, account, items, begin)?,
            _ => blobs::private_zips(self, scratch, account, items, begin)?,
        }
        if begin {
            return Ok(());
        }
        let end_ns = self.moment_ns(close, u64::from(account) << 8);
        self.index(scratch, account, &dir, end_ns)?;
        self.database(scratch, account, items, &dir.join("db"), end_ns)?;
        let ldap = xml::ldap(self.site, account, self.number);
        self.disk.write(
            &dir.join("ldap.xml"),
            FILE_MODE,
            self.moment_ns(open, u64::from(account) << 8 | 3),
            ldap.as_bytes(),
        )?;
        let info = &self.site.accounts[account as usize];
        let meta = xml::meta(info, self.number, self.moment_ns(open, 0) / 1_000_000, end_ns / 1_000_000, items.len());
        self.disk.write(&dir.join("meta.xml"), FILE_MODE, end_ns, meta.as_bytes())?;
        disk::touch(&dir, end_ns)
    }

    /// Writes the search index: a large segment, and a small one for each full since, whose content stays as it is.
    fn index(&self, scratch: &mut Scratch<'_>, account: u32, dir: &Path, mtime_ns: i64) -> Result<()> {
        let top = dir.join("index");
        let dir = top.join("0");
        self.disk.mkdir(&dir, DIR_MODE)?;
        let site = self.site;
        let language = &self.tables.languages[account as usize % 2];
        let mut segments = 0u8;
        for (number, step) in site.steps.iter().enumerate().take(self.number as usize + 1) {
            if step.kind != Kind::Full {
                continue;
            }
            let share = if number == 0 { 1.0 } else { site.config.weekly_new_percent / 100.0 };
            let messages = f64::from(site.config.messages) * share;
            let size =
                ((messages * site.config.mean_size_bytes as f64 * INDEX_SHARE) as usize).clamp(200, SEGMENT_MAX_BYTES);
            let data = &mut scratch.message;
            data.clear();
            data.extend_from_slice(b"\0\0\0\x07\0\0\0\0\0\0\x01\x26\x06_0.fdt");
            let mut rng = Rng::new(&[site.config.seed, domain::INDEX, account.into(), number as u64]);
            while data.len() < size {
                // A dictionary of terms alternates with delta-coded postings.
                language.paragraph(&mut rng, data, 500.min(size - data.len()));
                let postings = rng.range(300, 2_000) as usize;
                rng.noise(data, postings.min(size.saturating_sub(data.len())));
            }
            self.disk.write(&dir.join(format!("_{}.cfs", base36(number))), FILE_MODE, mtime_ns, data)?;
            segments += 1;
        }
        let list = [b"\xff\xff\xff\xf7\0\0\0\0".as_slice(), &[segments, account as u8, 0, 0, 0, 0, 0, 0]].concat();
        self.disk.write(
            &dir.join(format!("segments_{}", base36(self.number as usize + 1))),
            FILE_MODE,
            mtime_ns,
            &list,
        )?;
        self.disk.write(&dir.join("segments.gen"), FILE_MODE, mtime_ns, &list[..16])?;
        disk::touch(&dir, mtime_ns)?;
        disk::touch(&top, mtime_ns)
    }

    /// Writes the dump of an account's tables; an empty table has no file.
    fn database(&self, scratch: &Scratch<'_>, account: u32, items: &[Item], dir: &Path, mtime_ns: i64) -> Result<()> {
        self.disk.mkdir(dir, DIR_MODE)?;
        let mailbox = self.site.accounts[account as usize].mailbox_id;
        let mut rows = String::with_capacity(items.len() * 160);
        let slim = self.site.config.mean_size_bytes < 1_000;
        for item in items {
            if slim {
                // Trees of tiny messages exist for their names; full rows would outweigh the mail.
                rows.push_str(&format!("{mailbox}\t{}\t5\t{}\n", item.id, item.modified));
                continue;
            }
            let digest = self.known.get(item.mail);
            let size = scratch.composer.planned_size(item.mail);
            xml::mail_item(
                &mut rows,
                self.site,
                mailbox,
                item,
                digest.as_ref().map_or("\\N", Digest::as_str),
                size,
                self.number,
            );
        }
        let files = [
            (
                "db_schema.xml",
                xml::schema(&[
                    "mailbox",
                    "mail_item",
                    "tag",
                    "mailbox_metadata",
                    "imap_folder",
                    "pop3_message",
                    "out_of_office",
                    "data_source_item",
                ]),
            ),
            ("mail_item.dat", rows),
            ("mailbox.dat", format!("{mailbox}\t{mailbox}\t1\t{}\t{}\t2\t0\n", items.len(), self.number + 4_000)),
            ("mailbox_metadata.dat", format!("{mailbox}\tzwc:implicit\td4:_oldi{}e1:vi10ee\n", account % 7)),
            ("tag.dat", format!("{mailbox}\t64\tImportant\t{}\t0\n", account % 9)),
        ];
        for (name, content) in files {
            if name != "tag.dat" || account.is_multiple_of(2) {
                self.disk.write(&dir.join(name), FILE_MODE, mtime_ns, content.as_bytes())?;
            }
        }
        disk::touch(dir, mtime_ns)
    }

    /// Writes `sys/` and `ldap/`.
    fn system(&self) -> Result<()> {
        let (sys, ldap) = (self.dir.join("sys"), self.dir.join("ldap"));
        self.disk.mkdir(&sys, DIR_MODE)?;
        self.disk.mkdir(&ldap, DIR_MODE)?;
        let at_ns = self.moment_ns(0.97, 5);
        let names = ["config", "volume", "current_volumes", "mailbox", "service_status", "scheduled_task"];
        self.disk.write(&sys.join("db_schema.xml"), FILE_MODE, at_ns, xml::schema(&names).as_bytes())?;
        self.disk.write(&sys.join("localconfig.xml"), FILE_MODE, at_ns, xml::localconfig(self.site).as_bytes())?;
        for name in names {
            let rows = match name {
                "mailbox" => (0..self.site.accounts.len())
                    .map(|a| {
                        let account = &self.site.accounts[a];
                        format!("{}\t{}\t1\t{}\t{}\t{}\n", account.mailbox_id, account.uuid, self.number + 4_000, a, account.email)
                    })
                    .collect(),
                "volume" => "1\t1\tmessage1\t/opt/zimbra/store\t12\t8\t12\t8\t0\t4096\n2\t10\tindex1\t/opt/zimbra/index\t12\t8\t12\t8\t0\t4096\n".to_owned(),
                "config" => format!("db.version\t92\t\\N\nbackup.version\t7.1\t{}\n", self.site.config.zcs),
                _ => format!("{name}\t1\t2\t{}\n", self.number),
            };
            self.disk.write(&sys.join(format!("{name}.dat")), READ_ONLY, at_ns, rows.as_bytes())?;
        }
        self.disk.write(&ldap.join("ldap.bak"), FILE_MODE, at_ns, xml::ldif(self.site, self.number).as_bytes())?;
        disk::touch(&sys, at_ns)?;
        disk::touch(&ldap, at_ns)
    }

    fn incremental(&self) -> Result<()> {
        let accounts = self.accounts_now();
        let fulls: Vec<PathBuf> =
            self.site.fulls().map(|(_, step)| self.root.join("sessions").join(step.label())).collect();
        self.parallel(accounts.len(), |_, at| {
            let (account, begin) = accounts[at];
            let dir = self.account_dir(&self.dir, account);
            self.disk.mkdir(&dir, DIR_MODE)?;
            if begin {
                return Ok(());
            }
            let at_ns = self.moment_ns(self.window(account).1, u64::from(account));
            let file = dir.join("ldap.xml");
            self.disk.write(&file, FILE_MODE, at_ns, xml::ldap(self.site, account, self.number).as_bytes())?;
            disk::touch(&dir, at_ns)?;
            for full in &fulls {
                let full = self.account_dir(full, account);
                let latest = full.join("ldap_latest.xml");
                match std::fs::remove_file(&latest) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                        return Err(e).context("remove", &latest);
                    }
                    _ => {}
                }
                if full.exists() {
                    disk::link(&file, &latest)?;
                    disk::touch(&full, at_ns)?;
                }
            }
            Ok(())
        })?;
        if self.part != Part::Begin { self.redo_logs() } else { Ok(()) }
    }

    fn redo_logs(&self) -> Result<()> {
        let dir = self.dir.join("redologs");
        self.disk.mkdir(&dir, DIR_MODE)?;
        let first = self.site.steps[self.number as usize].first_log;
        let logs: BTreeMap<usize, u32> = (first..=self.number).enumerate().collect();
        self.parallel(logs.len(), |scratch, at| {
            let step = logs[&at];
            let sequence = step + xml::FIRST_SEQUENCE;
            let closed_ms = self.site.steps[step as usize].start_ms + 1_500;
            let path = dir.join(format!("redo-{}-seq{sequence}.log", crate::clock::stamp(closed_ms)));
            if let Some(mut file) = self.disk.create(&path)? {
                redo::write(&mut file, self.site, &mut scratch.composer, step, sequence, &mut scratch.message)
                    .context("write", &path)?;
                self.disk.finish(&path, file, closed_ms * 1_000_000 + 733_101)?;
            }
            Ok(())
        })?;
        disk::touch(&dir, self.moment_ns(0.95, 6))
    }
}

/// Formats a number as Lucene does in its file names.
fn base36(mut number: usize) -> String {
    let mut digits = Vec::new();
    loop {
        digits.push(char::from_digit((number % 36) as u32, 36).unwrap_or('0'));
        number /= 36;
        if number == 0 {
            return digits.into_iter().rev().collect();
        }
    }
}
