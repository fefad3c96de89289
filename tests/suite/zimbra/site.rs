//! A generated tree, a store, and what an analysis says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use zmreplica::catalog::snapshot::SnapshotRecord;
use zmreplica::replica::{Replica, init};
use zmreplica::snapshot::options::SnapshotOptions;
use zmreplica::snapshot::progress::Progress;
use zmreplica::snapshot::run::run;
use zmreplica::view::{SnapshotView, ViewOptions};
use zmreplica::zimbra::account::{Account, AccountState, FaultKind};
use zmreplica::zimbra::blob::BlobName;
use zmreplica::zimbra::{Analyser, Analysis};
use zmreplica_treegen::{BlobMode, Config, Generator, Preset};

use crate::support::locks;
use crate::support::odd::files;

/// A small tree: seven accounts, three weeks.
pub fn small(blobs: BlobMode) -> Config {
    Config {
        accounts: 7,
        messages: 16,
        fulls: 3,
        incrementals: 3,
        mean_size_bytes: 2_000,
        shared_percent: 40.0,
        weekly_new_percent: 20.0,
        blobs,
        ..Config::preset(Preset::Sample)
    }
}

/// A kind of fault, at an account, counted from a session.
pub type Found = (String, FaultKind, Option<String>);

pub struct Site {
    directory: tempfile::TempDir,
    pub generator: Generator,
    pub analyser: Analyser,
}

impl Site {
    pub fn new(config: Config) -> Site {
        let directory = tempfile::tempdir().unwrap();
        let generator = Generator::create(&directory.path().join("backup"), config, 2).unwrap();
        init(&directory.path().join("store")).unwrap();
        Site { directory, generator, analyser: Analyser::default() }
    }

    pub fn root(&self) -> PathBuf {
        self.directory.path().join("backup")
    }

    pub fn store(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    pub fn session(&self, label: &str) -> PathBuf {
        self.root().join("sessions").join(label)
    }

    /// Labels of the finished fulls, oldest first.
    pub fn fulls(&self) -> Vec<String> {
        self.generator.labels().into_iter().filter(|label| label.starts_with("full-")).collect()
    }

    pub fn incrementals(&self) -> Vec<String> {
        self.generator.labels().into_iter().filter(|label| label.starts_with("incr-")).collect()
    }

    /// Directories of accounts in a full, by identifier.
    pub fn accounts(&self, label: &str) -> BTreeMap<String, PathBuf> {
        let mut found = BTreeMap::new();
        for first in list(&self.session(label).join("accounts")) {
            for second in list(&first) {
                for account in list(&second) {
                    found.insert(account.file_name().unwrap().to_str().unwrap().to_owned(), account);
                }
            }
        }
        found
    }

    pub fn snapshot(&self) -> SnapshotRecord {
        // What was written just now must not count as known.
        std::thread::sleep(Duration::from_millis(50));
        let replica = locks::open(&self.directory.path().join("store"));
        let options = SnapshotOptions { default_excludes: false, ..SnapshotOptions::default() };
        run(&replica, &self.root(), &options, &Arc::new(Progress::default())).unwrap().record
    }

    pub fn view(&self, record: &SnapshotRecord) -> SnapshotView {
        let replica = Replica::open(&self.directory.path().join("store")).unwrap();
        let catalog = Arc::new(replica.catalog().unwrap());
        SnapshotView::open(catalog, Arc::new(replica.chunks()), record.clone(), ViewOptions::default()).unwrap()
    }

    /// Takes a snapshot and analyses it.
    pub fn analyse(&mut self) -> Analysis {
        let view = self.view(&self.snapshot());
        self.analyser.analyse(&view, b"").unwrap()
    }
}

/// Lists a directory in order of names.
pub fn list(directory: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// Digests that the placeholders below an account's directory name, in individual files.
pub fn placeholders(account: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for file in files(&account.join("blobs")) {
        let name = file.file_name().unwrap().to_str().unwrap();
        let blob = BlobName::parse(name.as_bytes()).unwrap_or_else(|| panic!("{name}"));
        if fs::metadata(&file).unwrap().len() == 0 {
            assert!(blob.is_shared(), "{name}");
            found.insert(String::from_utf8(blob.digest.to_vec()).unwrap());
        }
    }
    found
}

/// Changes the text of a file.
pub fn edit(path: &Path, change: impl FnOnce(String) -> String) {
    let text = fs::read_to_string(path).unwrap();
    let changed = change(text.clone());
    assert_ne!(text, changed, "nothing was changed in {}", path.display());
    fs::write(path, changed).unwrap();
}

/// Everything that an analysis finds wrong.
pub fn found(analysis: &Analysis) -> BTreeSet<Found> {
    let of = |account: &Account| {
        let id = account.id.clone();
        account.faults.iter().map(move |fault| (id.clone(), fault.kind, fault.session.clone())).collect::<Vec<_>>()
    };
    analysis.accounts.iter().flat_map(of).collect()
}

/// Asserts that an analysis finds these faults and no others, and nothing odd about the tree.
pub fn assert_found(analysis: &Analysis, expected: impl IntoIterator<Item = Found>) {
    let expected: BTreeSet<Found> = expected.into_iter().collect();
    assert_eq!(found(analysis), expected, "{:#?}", texts(analysis));
    assert_eq!(analysis.remarks, [] as [&str; 0]);
    assert_eq!(analysis.shared_remarks, []);
}

pub fn texts(analysis: &Analysis) -> Vec<String> {
    analysis.accounts.iter().flat_map(|account| account.faults.iter().map(|fault| fault.text.clone())).collect()
}

pub fn states(analysis: &Analysis) -> BTreeMap<String, AccountState> {
    analysis.accounts.iter().map(|account| (account.id.clone(), account.state)).collect()
}

pub fn account<'a>(analysis: &'a Analysis, id: &str) -> &'a Account {
    analysis.accounts.iter().find(|account| account.id == id).unwrap()
}
