//! What a tree shall look like, and the state file that later steps continue from.
//!
//! The state file lies next to the tree (`DIR.treegen.json`), never inside: the tree holds nothing but what Zimbra writes.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::clock;
use crate::error::{Context, Error, Result};

/// Version of the state file; generated content may differ between versions.
const STATE_VERSION: u32 = 1;

/// How message blobs are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum BlobMode {
    /// One file per message, hard-linked between fulls.
    Files,
    /// Zips with stored entries.
    Zipstore,
    /// Zips with deflated entries.
    Zip,
}

/// A named set of parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Preset {
    /// A few thousand names, generated in a second.
    Sample,
    /// At least 50,000 names over about 20,000 inodes and 1 GB.
    Bench50k,
    /// Two million names over about 400,000 inodes, with tiny messages.
    Million2,
}

/// The parameters of a tree.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Everything random follows from it.
    pub seed: u64,
    /// Number of accounts.
    pub accounts: u32,
    /// Messages per account in the first full, on average.
    pub messages: u32,
    /// Full sessions that `create` writes.
    pub fulls: u32,
    /// Incremental sessions between two fulls.
    pub incrementals: u32,
    /// Form of the message blobs.
    pub blobs: BlobMode,
    /// Mean size of a message in bytes.
    pub mean_size_bytes: u64,
    /// Percentage of deliveries that are of messages in several mailboxes.
    pub shared_percent: f64,
    /// Percentage of messages with attachments.
    pub attachment_percent: f64,
    /// New messages a week, as a percentage of those in the first full; zero leaves fulls that differ in form only.
    #[serde(default = "usual_weekly_new")]
    pub weekly_new_percent: f64,
    /// Scheduled time of the first full, milliseconds since 1970.
    pub start_ms: i64,
    /// Major release: 7 (SHA-1 digests) or 8 (SHA-256).
    pub zcs: u8,
    /// Groups of accounts in auto-grouped mode, where every session is a full of one group with its own redo logs; zero for the standard mode.
    #[serde(default)]
    pub groups: u32,
    /// User and group that own the files; none leaves them to the caller.
    pub owner: Option<(u32, u32)>,
}

/// The settings of trees whose state file does not record them.
fn usual_weekly_new() -> f64 {
    2.0
}

impl Config {
    /// Returns the parameters of a preset.
    pub fn preset(preset: Preset) -> Self {
        let sample = Self {
            seed: 1,
            accounts: 8,
            messages: 60,
            fulls: 3,
            incrementals: 6,
            blobs: BlobMode::Files,
            mean_size_bytes: 50_000,
            shared_percent: 15.0,
            attachment_percent: 22.0,
            weekly_new_percent: usual_weekly_new(),
            // 2026-08-01T01:00:00Z, a Saturday: the usual night of the full.
            start_ms: 1_785_546_000_000,
            zcs: 7,
            groups: 0,
            owner: None,
        };
        match preset {
            Preset::Sample => sample,
            Preset::Bench50k => Self {
                accounts: 20,
                messages: 450,
                fulls: 5,
                incrementals: 3,
                mean_size_bytes: 95_000,
                shared_percent: 10.0,
                ..sample
            },
            Preset::Million2 => Self {
                accounts: 50,
                messages: 4_900,
                fulls: 8,
                incrementals: 2,
                mean_size_bytes: 600,
                shared_percent: 2.5,
                attachment_percent: 0.0,
                ..sample
            },
        }
    }

    /// Refuses parameters that are invalid.
    pub fn validate(&self) -> Result<()> {
        let usage = |text: &str| Err(Error::Usage(text.to_owned()));
        if self.accounts == 0 || self.fulls == 0 {
            return usage("A tree needs at least one account and one full session");
        }
        if !(7..=10).contains(&self.zcs) {
            return usage("Releases 7 to 10 are known");
        }
        let percentages = [self.shared_percent, self.attachment_percent, self.weekly_new_percent];
        if !percentages.iter().all(|percentage| (0.0..=100.0).contains(percentage)) {
            return usage("A percentage lies between 0 and 100");
        }
        if self.mean_size_bytes < 400 || self.mean_size_bytes > 5_000_000 {
            return usage("The mean size lies between 400 and 5000000 bytes");
        }
        if self.groups > self.accounts {
            return usage("Every group needs at least one account");
        }
        if self.incrementals > 60 {
            return usage("At most 60 incrementals fit between two fulls");
        }
        Ok(())
    }

    /// Days from one full to the next: a week, or more if that many incrementals don't fit into one.
    pub fn period_days(&self) -> i64 {
        i64::from(self.incrementals.max(6)) + 1
    }
}

/// Kind of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Everything of every account.
    Full,
    /// Redo logs and LDAP data.
    Incremental,
}

/// What became of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Under `tmp/`, half written.
    Running,
    /// In `sessions/`.
    Finished,
    /// `TO_DELETE-<label>`, half removed.
    Deleting,
    /// Gone.
    Deleted,
}

/// One session; its position in the list is the number of its step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Full or incremental.
    pub kind: Kind,
    /// What became of it.
    pub status: Status,
    /// When it started, milliseconds since 1970.
    pub start_ms: i64,
    /// Days of mail since the step before; zero for the first.
    pub days: i64,
    /// Day of the schedule, counted from the first full.
    pub day: i64,
    /// First step whose redo log this session archives (incrementals, and all sessions in auto-grouped mode).
    pub first_log: u32,
    /// The group of accounts that it holds, in auto-grouped mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<u32>,
}

impl Step {
    /// Returns whether the session holds an account.
    pub fn holds(&self, account: u32, groups: u32) -> bool {
        self.group.is_none_or(|group| account % groups.max(1) == group)
    }

    /// Returns whether the session archives redo logs.
    pub fn has_logs(&self) -> bool {
        self.kind == Kind::Incremental || self.group.is_some()
    }

    /// Returns the label, `full-yyyyMMdd.HHmmss.SSS` or `incr-...`.
    pub fn label(&self) -> String {
        let kind = match self.kind {
            Kind::Full => "full",
            Kind::Incremental => "incr",
        };
        format!("{kind}-{}", clock::stamp(self.start_ms))
    }
}

/// The state of a tree: its parameters and its sessions so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    version: u32,
    /// The parameters.
    pub config: Config,
    /// All sessions ever started, oldest first.
    pub steps: Vec<Step>,
}

impl State {
    /// Joins the parameters and the sessions.
    pub fn new(config: Config, steps: Vec<Step>) -> Self {
        Self { version: STATE_VERSION, config, steps }
    }

    /// Returns where the state of a tree is kept.
    pub fn path(root: &Path) -> PathBuf {
        let mut name = root.as_os_str().to_owned();
        name.push(".treegen.json");
        PathBuf::from(name)
    }

    /// Reads the state of a tree.
    pub fn load(root: &Path) -> Result<Self> {
        let path = Self::path(root);
        let bytes = std::fs::read(&path).context("read the state file", &path)?;
        let state: Self = serde_json::from_slice(&bytes).map_err(|source| Error::State { path, source })?;
        if state.version != STATE_VERSION {
            return Err(Error::Usage(format!(
                "The tree was made by another version ({}); create it anew",
                state.version
            )));
        }
        Ok(state)
    }

    /// Writes the state of a tree.
    pub fn save(&self, root: &Path) -> Result<()> {
        let path = Self::path(root);
        let bytes = serde_json::to_vec_pretty(self).map_err(|source| Error::State { path: path.clone(), source })?;
        std::fs::write(&path, bytes).context("write the state file", &path)
    }
}
