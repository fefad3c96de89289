//! Tests of whole trees.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::{BlobMode, Config, Error, Generator, Kind, Preset};

mod formats;

fn small(blobs: BlobMode) -> Config {
    Config {
        accounts: 5,
        messages: 24,
        fulls: 2,
        incrementals: 2,
        mean_size_bytes: 4_000,
        shared_percent: 25.0,
        blobs,
        ..Config::preset(Preset::Sample)
    }
}

struct Tree {
    _home: TempDir,
    root: PathBuf,
    generator: Generator,
}

fn create(config: Config) -> Tree {
    let home = TempDir::new().unwrap();
    let root = home.path().join("backup");
    let generator = Generator::create(&root, config, 2).unwrap();
    Tree { _home: home, root, generator }
}

impl Tree {
    fn session(&self, label: &str) -> PathBuf {
        self.root.join("sessions").join(label)
    }

    fn fulls(&self) -> Vec<PathBuf> {
        let labels = self.generator.labels().into_iter();
        labels.filter(|l| l.starts_with("full-")).map(|l| self.session(&l)).collect()
    }

    fn incrementals(&self) -> Vec<PathBuf> {
        let labels = self.generator.labels().into_iter();
        labels.filter(|l| l.starts_with("incr-")).map(|l| self.session(&l)).collect()
    }
}

/// Lists all paths below a directory, relative to it.
fn walk(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path.clone());
            }
            found.push(path.strip_prefix(root).unwrap().to_path_buf());
        }
    }
    found.sort();
    found
}

/// Hashes all that is reproducible about a tree: names, modes, times, bytes, and which names share an inode.
fn fingerprint(root: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut first: HashMap<u64, PathBuf> = HashMap::new();
    for path in walk(root) {
        let full = root.join(&path);
        let meta = fs::metadata(&full).unwrap();
        path.hash(&mut hasher);
        (meta.mode(), meta.mtime(), meta.mtime_nsec()).hash(&mut hasher);
        if meta.is_file() {
            first.entry(meta.ino()).or_insert_with(|| path.clone()).hash(&mut hasher);
            (meta.nlink(), fs::read(&full).unwrap()).hash(&mut hasher);
        }
    }
    hasher.finish()
}

fn inode(path: &Path) -> u64 {
    fs::metadata(path).unwrap().ino()
}

fn named(root: &Path, matches: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let all = walk(root).into_iter();
    all.filter(|p| matches(p.file_name().unwrap().to_str().unwrap())).collect()
}

#[test]
fn the_same_seed_gives_the_same_tree() {
    for blobs in [BlobMode::Files, BlobMode::Zip] {
        let a = create(small(blobs));
        let home = TempDir::new().unwrap();
        let root = home.path().join("again");
        Generator::create(&root, small(blobs), 1).unwrap();
        assert_eq!(fingerprint(&a.root), fingerprint(&root), "{blobs:?}");
    }
    let a = create(small(BlobMode::Files));
    let b = create(Config { seed: 2, ..small(BlobMode::Files) });
    assert_ne!(fingerprint(&a.root), fingerprint(&b.root));
}

#[test]
fn a_tree_continued_by_later_commands_equals_one_made_at_once() {
    for blobs in [BlobMode::Files, BlobMode::Zip] {
        let whole = create(small(blobs));
        let steps = create(Config { fulls: 1, ..small(blobs) });
        for _ in 0..2 {
            Generator::open(&steps.root, 2).unwrap().night().unwrap();
        }
        Generator::open(&steps.root, 2).unwrap().full().unwrap();
        assert_eq!(fingerprint(&whole.root), fingerprint(&steps.root), "{blobs:?}");
    }
}

#[test]
fn a_session_begun_under_tmp_ends_as_if_written_at_once() {
    for (blobs, kind) in
        [(BlobMode::Files, Kind::Full), (BlobMode::Zipstore, Kind::Full), (BlobMode::Files, Kind::Incremental)]
    {
        let mut whole = create(small(blobs));
        let halves = create(small(blobs));
        match kind {
            Kind::Full => whole.generator.full().unwrap(),
            Kind::Incremental => whole.generator.night().unwrap(),
        };
        let label = Generator::open(&halves.root, 2).unwrap().begin(kind).unwrap();
        let running = halves.root.join("tmp").join(&label);
        assert_eq!(fs::metadata(running.join("session.xml.tmp")).unwrap().len(), 0);
        assert_eq!(fs::metadata(running.join("placeholder.tmp")).unwrap().len(), 10 << 20);
        assert!(!running.join("session.xml").exists() && !halves.session(&label).exists());
        if kind == Kind::Full {
            assert_eq!(named(&running, |n| n == "meta.xml").len(), 2);
        }
        let zips = named(&running, |n| n.starts_with("zos-") && n.ends_with(".zip.tmp"));
        assert_eq!(zips.len(), usize::from(blobs == BlobMode::Zipstore));
        let before: BTreeMap<PathBuf, u64> =
            walk(&running).into_iter().map(|p| (p.clone(), inode(&running.join(p)))).collect();
        Generator::open(&halves.root, 2).unwrap().finish().unwrap();
        for (path, inode_before) in before.iter().filter(|(p, _)| p.extension().is_none_or(|e| e != "tmp")) {
            assert_eq!(inode(&halves.session(&label).join(path)), *inode_before, "{path:?}");
        }
        assert_eq!(fingerprint(&whole.root), fingerprint(&halves.root), "{blobs:?} {kind:?}");
    }
}

#[test]
fn names_of_a_message_are_linked_as_the_server_does() {
    let tree = create(small(BlobMode::Files));
    let fulls = tree.fulls();
    let (old, new) = (&fulls[0], &fulls[1]);
    let kept: Vec<PathBuf> = walk(new).into_iter().filter(|p| old.join(p).is_file()).collect();
    let mut linked = BTreeSet::new();
    for path in &kept {
        let name = path.file_name().unwrap().to_str().unwrap();
        let expected = name.ends_with(".msg1") || name == "blob.dat";
        assert_eq!(inode(&old.join(path)) == inode(&new.join(path)), expected, "{path:?}");
        linked.extend(expected.then_some(name));
    }
    assert!(linked.len() > 50);
    // ldap_latest.xml of the older full is the newest incremental's ldap.xml; the newer full has none yet.
    let newest = tree.incrementals().pop().unwrap();
    let latest = named(old, |n| n == "ldap_latest.xml");
    assert_eq!(latest.len(), 5);
    for path in latest {
        assert_eq!(inode(&old.join(&path)), inode(&newest.join(path.with_file_name("ldap.xml"))));
    }
    assert!(named(new, |n| n == "ldap_latest.xml").is_empty());
    // The next night links it into every full.
    let label = Generator::open(&tree.root, 2).unwrap().night().unwrap();
    for full in &fulls {
        for path in named(full, |n| n == "ldap_latest.xml") {
            assert_eq!(inode(&full.join(&path)), inode(&tree.session(&label).join(path.with_file_name("ldap.xml"))));
            assert_eq!(fs::metadata(full.join(&path)).unwrap().nlink(), 3);
        }
        assert_eq!(named(full, |n| n == "ldap_latest.xml").len(), 5);
    }
}

#[test]
fn placeholders_and_shared_blobs_name_each_other() {
    for (zcs, digest_len) in [(7, 28), (8, 44)] {
        let tree = create(Config { zcs, ..small(BlobMode::Files) });
        for full in tree.fulls() {
            let mut named_by_placeholder = BTreeSet::new();
            for path in named(&full, |n| n.contains(".msg")) {
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                let size = fs::metadata(full.join(&path)).unwrap().len();
                assert_eq!(name.ends_with(".msg1"), size > 0, "{path:?}");
                let digest = name[..digest_len].to_owned();
                assert!(digest.ends_with('='));
                if size == 0 {
                    named_by_placeholder.insert(digest);
                }
            }
            let blobs = named(&full.join("shared_blobs"), |n| n == "blob.dat");
            let mut found = BTreeSet::new();
            for path in blobs {
                let digest = path.parent().unwrap().file_name().unwrap().to_str().unwrap();
                let lower = digest.to_lowercase();
                let expected = format!(
                    "{}/{}/{}/{}/{}/{digest}/blob.dat",
                    &lower[..2],
                    &lower[2..4],
                    &lower[4..6],
                    &lower[6..8],
                    &lower[8..10]
                );
                assert_eq!(path.to_str().unwrap(), expected);
                found.insert(digest.to_owned());
            }
            assert_eq!(found, named_by_placeholder);
            assert!(found.len() >= 5);
        }
    }
}

#[test]
fn groups_hold_at_most_4096_items() {
    let tree = create(Config {
        accounts: 1,
        messages: 3_700,
        fulls: 1,
        mean_size_bytes: 400,
        attachment_percent: 0.0,
        ..small(BlobMode::Files)
    });
    let groups: Vec<PathBuf> =
        walk(&tree.root).into_iter().filter(|p| p.parent().is_some_and(|p| p.ends_with("blobs/1"))).collect();
    assert_eq!(groups.len(), 2);
    assert!(groups.iter().all(|g| (1..=4096).contains(&fs::read_dir(tree.root.join(g)).unwrap().count())));
}

#[test]
fn labels_modes_and_xml_have_the_vendor_shape() {
    let tree = create(small(BlobMode::Files));
    let labels = tree.generator.labels();
    let times: Vec<&str> = labels.iter().map(|l| &l[5..]).collect();
    assert!(times.is_sorted() && times.iter().all(|t| t.len() == 19 && t.starts_with("202608")), "{labels:?}");
    assert_eq!(labels.iter().map(|l| &l[..5]).collect::<Vec<_>>(), ["full-", "incr-", "incr-", "full-"]);
    let newest = labels.last().unwrap();
    let accounts = fs::read_to_string(tree.root.join("accounts.xml")).unwrap();
    assert!(accounts.contains("<backupMetadata xmlns=\"urn:zimbraBackupMeta\" version=\"7.1\">"));
    assert_eq!(accounts.matches(&format!("latestFullBackupLabel=\"{newest}\"")).count(), 5);
    assert!(fs::read_to_string(tree.root.join("accounts.xml.old")).unwrap().contains(&labels[0]));
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&tree.root.join("accounts.xml")), 0o640);
    assert_eq!(mode(&tree.root.join("lost+found")), 0o700);
    let (mut next, mut logs) = (117, Vec::new());
    for label in &labels {
        let dir = tree.session(label);
        let xml = fs::read_to_string(dir.join("session.xml")).unwrap();
        assert!(xml.contains(&format!("<backupSet label=\"{label}\" zcsRelease=\"7.2.7_GA_2942\" startTime=\"")));
        assert_eq!(xml.matches("status=\"COMPLETED\"").count(), 5);
        assert_eq!((mode(&dir), mode(&dir.join("sys/mailbox.dat"))), (0o750, 0o444));
        // Redo logs follow each other without a gap.
        for log in named(&dir, |n| n.starts_with("redo-")) {
            logs.push(
                log.to_str().unwrap().rsplit_once("-seq").unwrap().1.trim_end_matches(".log").parse::<u32>().unwrap(),
            );
        }
    }
    for sequence in &logs {
        assert_eq!(*sequence, next);
        next += 1;
    }
    assert_eq!(logs.len(), 3);
    let meta = named(&tree.fulls()[1], |n| n == "meta.xml");
    assert!(meta.iter().all(|m| { fs::read_to_string(tree.fulls()[1].join(m)).unwrap().contains("redoSeq=\"120\"") }));
    let bells = named(&tree.root, |n| n == "ldap.xml").into_iter();
    assert!(bells.filter(|p| fs::read_to_string(tree.root.join(p)).unwrap().contains("&#7;")).count() >= 4);
}

#[test]
fn redo_logs_hold_the_text_that_the_next_full_holds_again() {
    let mut tree = create(Config { messages: 120, ..small(BlobMode::Files) });
    tree.generator.night().unwrap();
    let mut logged: BTreeSet<Vec<u8>> = BTreeSet::new();
    for session in tree.incrementals() {
        for path in named(&session, |n| n.starts_with("redo-")) {
            let log = fs::read(session.join(path)).unwrap();
            assert!(log.starts_with(b"ZMREDO"));
            let mut rest = &log[512..];
            while !rest.is_empty() {
                assert!(rest.starts_with(b"REDO"));
                let length = u64::from_be_bytes(rest[24..32].try_into().unwrap()) as usize;
                let payload = &rest[32..32 + length];
                if rest[8..12] == 84u32.to_be_bytes() {
                    logged.insert(payload[4..].to_vec());
                }
                rest = &rest[32 + length..];
            }
        }
    }
    let fulls = tree.fulls();
    let arrived = |p: &PathBuf| !fulls[0].join(p).exists();
    let new: Vec<PathBuf> = named(&fulls[1], |n| n.ends_with(".msg1")).into_iter().filter(arrived).collect();
    assert!(new.len() > 3);
    for path in new {
        assert!(logged.contains(&fs::read(fulls[1].join(&path)).unwrap()), "{path:?}");
    }
}

#[test]
fn deletion_goes_half_way_and_then_all_the_way() {
    let tree = create(small(BlobMode::Files));
    let labels = tree.generator.labels();
    let full = labels.last().unwrap();
    let open = || Generator::open(&tree.root, 2).unwrap();
    assert_eq!(open().delete(Some(full), false).unwrap(), *full);
    let doomed = tree.root.join("sessions").join(format!("TO_DELETE-{full}"));
    assert!(doomed.join("session.xml").exists() && !doomed.join("sys").exists());
    assert_eq!(named(&doomed, |n| n == "meta.xml").len(), 2);
    assert!(!tree.session(full).exists());
    let accounts = fs::read_to_string(tree.root.join("accounts.xml")).unwrap();
    assert_eq!(accounts.matches(&labels[0]).count(), 5);
    assert!(matches!(open().delete(Some(full), false), Err(Error::NoSession(_))));
    open().delete(None, true).unwrap();
    assert!(!doomed.exists());
    // The oldest goes next, and without any full accounts.xml is empty.
    assert_eq!(open().delete(None, true).unwrap(), labels[0]);
    assert!(!tree.session(&labels[0]).exists());
    assert!(!fs::read_to_string(tree.root.join("accounts.xml")).unwrap().contains("<account "));
    // A full after that finds nothing to link to.
    let label = open().full().unwrap();
    assert!(
        named(&tree.session(&label), |n| n.ends_with(".msg1")).iter().all(|p| fs::metadata(
            tree.session(&label).join(p)
        )
        .unwrap()
        .nlink()
            == 1)
    );
}

#[test]
fn create_refuses_a_directory_in_use() {
    let tree = create(Config { accounts: 1, messages: 1, fulls: 1, ..small(BlobMode::Files) });
    assert!(matches!(Generator::create(&tree.root, small(BlobMode::Files), 1), Err(Error::NotEmpty(_))));
    assert!(matches!(
        Generator::create(&tree.root, Config { fulls: 0, ..small(BlobMode::Files) }, 1),
        Err(Error::Usage(_))
    ));
}

#[test]
fn auto_grouped_mode_has_a_full_of_one_group_each_day() {
    let tree = create(Config { accounts: 6, groups: 3, fulls: 2, ..small(BlobMode::Files) });
    assert_eq!((tree.fulls().len(), tree.incrementals().len()), (6, 0));
    let mut sequences = Vec::new();
    for (day, full) in tree.fulls().iter().enumerate() {
        let xml = fs::read_to_string(full.join("session.xml")).unwrap();
        assert_eq!(xml.matches("status=").count(), 2, "two accounts a group");
        let accounts = walk(&full.join("accounts")).iter().filter(|path| path.ends_with("meta.xml")).count();
        assert_eq!(accounts, 2);
        for log in fs::read_dir(full.join("redologs")).unwrap() {
            let name = log.unwrap().file_name().into_string().unwrap();
            sequences.push(name.split("-seq").nth(1).unwrap().trim_end_matches(".log").parse::<usize>().unwrap());
        }
        assert_eq!(sequences.len(), day + 1, "each session holds the log of its day");
    }
    sequences.sort_unstable();
    assert_eq!(sequences, (117..123).collect::<Vec<_>>());
    let accounts = fs::read_to_string(tree.root.join("accounts.xml")).unwrap();
    for full in &tree.fulls()[3..] {
        let label = full.file_name().unwrap().to_str().unwrap();
        assert_eq!(accounts.matches(label).count(), 2, "accounts.xml names each account's own newest full");
    }
}
