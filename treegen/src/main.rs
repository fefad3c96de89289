//! `zmtreegen`: generates Zimbra backup trees and lets them live through nights, fulls and deletions.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Args, Parser, Subcommand};
use zmreplica_treegen::{BlobMode, Config, Error, Generator, Kind, Preset, Result, clock};

/// Generates Zimbra backup trees for tests and benchmarks.
#[derive(Debug, Parser)]
#[command(name = "zmtreegen", version)]
struct Cli {
    /// Print the summary as JSON
    #[arg(long, global = true)]
    json: bool,
    /// Writing threads
    #[arg(long, global = true, default_value_t = 2, value_name = "N")]
    threads: usize,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a tree
    Create(Create),
    /// Add the next incremental session
    Night {
        /// The tree
        dir: PathBuf,
    },
    /// Add the next full session
    Full {
        /// The tree
        dir: PathBuf,
    },
    /// Delete a session, half way as `zmbackup -del` in the background, or entirely
    Delete {
        /// The tree
        dir: PathBuf,
        /// Label of the session
        #[arg(required_unless_present = "oldest")]
        label: Option<String>,
        /// Take the oldest session
        #[arg(long, conflicts_with = "label")]
        oldest: bool,
        /// Remove it entirely
        #[arg(long)]
        finish: bool,
    },
    /// Begin a session under tmp/ and leave it running, or finish it
    Tmp {
        /// The tree
        dir: PathBuf,
        /// Kind of the session
        #[arg(long, value_enum, default_value = "full")]
        kind: Kind,
        /// Finish the running session
        #[arg(long)]
        finish: bool,
    },
}

/// Parameters of a new tree; those not given come from the preset.
#[derive(Debug, Args)]
struct Create {
    /// Directory of the tree: empty, or not there yet
    dir: PathBuf,
    /// Named set of parameters
    #[arg(long, value_enum, default_value = "sample")]
    preset: Preset,
    /// Everything random follows from it
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Number of accounts
    #[arg(long, value_name = "N")]
    accounts: Option<u32>,
    /// Messages per account, on average
    #[arg(long, value_name = "N")]
    messages: Option<u32>,
    /// Full sessions
    #[arg(long, value_name = "N")]
    fulls: Option<u32>,
    /// Incremental sessions between two fulls
    #[arg(long, value_name = "N")]
    incrementals: Option<u32>,
    /// Form of the message blobs
    #[arg(long, value_enum)]
    blobs: Option<BlobMode>,
    /// Mean size of a message
    #[arg(long, value_name = "BYTES")]
    mean_size: Option<u64>,
    /// Deliveries of messages that are in several mailboxes
    #[arg(long, value_name = "P")]
    shared_percent: Option<f64>,
    /// Messages with attachments
    #[arg(long, value_name = "P")]
    attachment_percent: Option<f64>,
    /// New messages a week, as a percentage of those in the first full [default: 2]
    #[arg(long, value_name = "P")]
    weekly_new_percent: Option<f64>,
    /// Scheduled time of the first full, in UTC
    #[arg(long, value_name = "TIME", value_parser = time)]
    start: Option<i64>,
    /// Major release: 7 has SHA-1 digests, 8 and later SHA-256
    #[arg(long, value_name = "N")]
    zcs: Option<u8>,
    /// Auto-grouped mode: every session is a full of one of so many groups of accounts; --fulls counts rounds
    #[arg(long, value_name = "N")]
    groups: Option<u32>,
    /// Owner of the files, as numbers
    #[arg(long, value_name = "UID:GID", value_parser = owner)]
    owner: Option<(u32, u32)>,
}

fn time(text: &str) -> std::result::Result<i64, String> {
    clock::parse(text).ok_or_else(|| "a time looks like 2026-08-01T01:00:00Z".to_owned())
}

fn owner(text: &str) -> std::result::Result<(u32, u32), String> {
    let numbers = text.split_once(':').and_then(|(u, g)| Some((u.parse().ok()?, g.parse().ok()?)));
    numbers.ok_or_else(|| "an owner looks like 998:998".to_owned())
}

impl Create {
    fn config(&self) -> Config {
        let base = Config::preset(self.preset);
        Config {
            seed: self.seed.unwrap_or(base.seed),
            accounts: self.accounts.unwrap_or(base.accounts),
            messages: self.messages.unwrap_or(base.messages),
            fulls: self.fulls.unwrap_or(base.fulls),
            incrementals: self.incrementals.unwrap_or(base.incrementals),
            blobs: self.blobs.unwrap_or(base.blobs),
            mean_size_bytes: self.mean_size.unwrap_or(base.mean_size_bytes),
            shared_percent: self.shared_percent.unwrap_or(base.shared_percent),
            attachment_percent: self.attachment_percent.unwrap_or(base.attachment_percent),
            weekly_new_percent: self.weekly_new_percent.unwrap_or(base.weekly_new_percent),
            start_ms: self.start.unwrap_or(base.start_ms),
            zcs: self.zcs.unwrap_or(base.zcs),
            groups: self.groups.unwrap_or(base.groups),
            owner: self.owner.or(base.owner),
        }
    }
}

fn run(cli: &Cli) -> Result<String> {
    let started = Instant::now();
    let open = |dir: &PathBuf| Generator::open(dir, cli.threads);
    let (generator, label) = match &cli.command {
        Command::Create(create) => {
            let generator = Generator::create(&create.dir, create.config(), cli.threads)?;
            let label = generator.labels().pop();
            (generator, label)
        }
        Command::Night { dir } => {
            let mut generator = open(dir)?;
            let label = generator.night()?;
            (generator, Some(label))
        }
        Command::Full { dir } => {
            let mut generator = open(dir)?;
            let label = generator.full()?;
            (generator, Some(label))
        }
        Command::Delete { dir, label, oldest: _, finish } => {
            let mut generator = open(dir)?;
            let label = generator.delete(label.as_deref(), *finish)?;
            (generator, Some(label))
        }
        Command::Tmp { dir, kind, finish } => {
            let mut generator = open(dir)?;
            let label = if *finish { generator.finish()? } else { generator.begin(*kind)? };
            (generator, Some(label))
        }
    };
    let elapsed_ms = started.elapsed().as_millis() as u64;
    let summary = zmreplica_treegen::Summary { elapsed_ms, ..generator.summary()? };
    let label = label.unwrap_or_default();
    if cli.json {
        let mut value = serde_json::to_value(summary).map_err(|e| Error::Usage(e.to_string()))?;
        value["label"] = label.into();
        return Ok(value.to_string());
    }
    Ok(format!(
        "{label}: {} names ({} directories), {} inodes, {} bytes ({} counting every name), {:.1} seconds",
        summary.names,
        summary.directories,
        summary.inodes,
        summary.unique_bytes,
        summary.apparent_bytes,
        elapsed_ms as f64 / 1000.0
    ))
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(line) => match writeln!(std::io::stdout(), "{line}") {
            // Nobody reads the summary; the tree is there all the same.
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
            _ => ExitCode::SUCCESS,
        },
        Err(e) => {
            // Without a stderr the exit code has to do.
            let _ = writeln!(std::io::stderr(), "zmtreegen: {e}");
            ExitCode::from(if matches!(e, Error::Usage(_)) { 2 } else { 1 })
        }
    }
}
