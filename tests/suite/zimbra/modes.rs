//! Zip modes, both lengths of digests, and auto-grouped mode.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use rawzip::ZipArchive;
use zmreplica::zimbra::account::{AccountState, FaultKind};
use zmreplica::zimbra::blob::{BlobName, last_component, shared_digest};
use zmreplica::zimbra::redo::RedoName;
use zmreplica_treegen::zip::ZipWriter;
use zmreplica_treegen::{BlobMode, Config};

use super::site::{Site, account, assert_found, list, small, states, texts};
use crate::support::odd::files;

#[test]
fn sound_trees_of_every_mode_and_release_have_no_faults() {
    for blobs in [BlobMode::Files, BlobMode::Zipstore, BlobMode::Zip] {
        for zcs in [7, 8] {
            let mut site = Site::new(Config { zcs, fulls: 2, ..small(blobs) });
            let analysis = site.analyse();
            assert_found(&analysis, []);
            assert!(states(&analysis).values().all(|state| *state == AccountState::Whole), "{blobs:?}, {zcs}");
            assert!(analysis.accounts.iter().all(|account| account.fulls.iter().all(|full| full.messages > 0)));
        }
    }
}

/// Paths and sizes of a zip's entries.
fn entries(zip: &Path) -> Vec<(String, u64)> {
    let bytes = fs::read(zip).unwrap();
    let archive = ZipArchive::from_slice(&bytes).unwrap();
    let mut found = Vec::new();
    let mut records = archive.entries();
    while let Some(record) = records.next_entry().unwrap() {
        found.push((
            String::from_utf8(record.file_path().as_bytes().to_vec()).unwrap(),
            record.uncompressed_size_hint(),
        ));
    }
    found
}

/// Digests that an account's placeholders name.
fn placeholders(account: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (path, size) in files(&account.join("blobs")).iter().flat_map(|zip| entries(zip)) {
        let name = BlobName::parse(last_component(path.as_bytes())).unwrap();
        if size == 0 && name.is_shared() {
            found.insert(String::from_utf8(name.digest.to_vec()).unwrap());
        }
    }
    found
}

fn holders(site: &Site, label: &str, wanted: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let accounts = site.accounts(label).into_iter();
    accounts
        .filter(|(_, account)| placeholders(account).iter().any(|digest| wanted(digest)))
        .map(|(id, _)| id)
        .collect()
}

#[test]
fn an_entry_is_missing_in_a_shared_zip() {
    let mut site = Site::new(small(BlobMode::Zipstore));
    let label = site.fulls().pop().unwrap();
    let needed: BTreeSet<String> = site.accounts(&label).values().flat_map(|account| placeholders(account)).collect();
    let digest = needed.first().unwrap().clone();
    let zips = list(&site.session(&label).join("shared_blobs"));
    let zip = zips.iter().find(|zip| entries(zip).iter().any(|(path, _)| path.contains(&digest))).unwrap();
    // The same zip without that entry.
    let bytes = fs::read(zip).unwrap();
    let archive = ZipArchive::from_slice(&bytes).unwrap();
    let mut writer = ZipWriter::new(Vec::new());
    let mut records = archive.entries();
    let mut left = 0;
    while let Some(record) = records.next_entry().unwrap() {
        let path = record.file_path().as_bytes().to_vec();
        if shared_digest(&path) != Some(digest.as_bytes()) {
            let entry = archive.get_entry(record.wayfinder()).unwrap();
            writer.stored(std::str::from_utf8(&path).unwrap(), 0x5d01_0000, entry.data()).unwrap();
            left += 1;
        }
    }
    assert_eq!(left + 1, entries(zip).len());
    fs::write(zip, writer.finish().unwrap()).unwrap();
    let analysis = site.analyse();
    let holders = holders(&site, &label, |other| other == digest);
    assert_found(&analysis, holders.iter().map(|id| (id.clone(), FaultKind::SharedMissing, Some(label.clone()))));
    assert!(texts(&analysis).iter().all(|text| text.contains(&digest)));
    for (id, state) in states(&analysis) {
        let is_holder = holders.contains(&id);
        assert_eq!(state, if is_holder { AccountState::Incomplete } else { AccountState::Whole });
    }
}

#[test]
fn zips_that_are_gone_or_cut_short() {
    for blobs in [BlobMode::Zipstore, BlobMode::Zip] {
        let mut site = Site::new(small(blobs));
        let label = site.fulls().pop().unwrap();
        let accounts = site.accounts(&label);
        // A whole shared zip: the messages of one first character.
        let zip = list(&site.session(&label).join("shared_blobs")).pop().unwrap();
        let gone: BTreeSet<String> = entries(&zip)
            .iter()
            .map(|(path, _)| String::from_utf8(shared_digest(path.as_bytes()).unwrap().to_vec()).unwrap())
            .collect();
        let affected = holders(&site, &label, |digest| gone.contains(digest));
        fs::remove_file(&zip).unwrap();
        // A private zip cut short, at an account with the others whole.
        let (id, directory) = accounts.first_key_value().unwrap();
        let private = list(&directory.join("blobs")).remove(0);
        let bytes = fs::read(&private).unwrap();
        fs::write(&private, &bytes[..bytes.len() / 2]).unwrap();
        let analysis = site.analyse();
        let missing: BTreeSet<_> =
            affected.iter().map(|id| (id.clone(), FaultKind::SharedMissing, Some(label.clone()))).collect();
        let cut = (id.clone(), FaultKind::ZipDamaged, Some(label.clone()));
        // Placeholders in the zip that cannot be read are not known.
        let mut found = super::site::found(&analysis);
        assert!(found.remove(&cut), "{blobs:?}: {:?}", texts(&analysis));
        found.remove(&(id.clone(), FaultKind::SharedMissing, Some(label.clone())));
        let others: BTreeSet<_> = missing.into_iter().filter(|(other, ..)| other != id).collect();
        assert_eq!(found, others, "{blobs:?}");
    }
}

#[test]
fn a_damaged_shared_zip_is_reported_with_its_session() {
    let mut site = Site::new(small(BlobMode::Zip));
    let label = site.fulls().pop().unwrap();
    let zip = list(&site.session(&label).join("shared_blobs")).remove(0);
    let name = zip.file_name().unwrap().to_str().unwrap().to_owned();
    fs::write(&zip, b"PK\x03\x04 and no more").unwrap();
    let analysis = site.analyse();
    let [(session, remark)] = &analysis.shared_remarks[..] else { panic!("{:?}", analysis.shared_remarks) };
    assert_eq!(analysis.sessions[*session].label, label);
    assert!(remark.contains(&name), "{remark}");
    // Told again when nothing is looked at anew.
    assert_eq!(site.analyse().shared_remarks.len(), 1);
}

/// Auto-grouped: seven groups of two accounts, a full of one group each day, two rounds.
fn grouped() -> Site {
    Site::new(Config { accounts: 14, groups: 7, fulls: 2, ..small(BlobMode::Files) })
}

#[test]
fn a_sound_auto_grouped_tree_has_no_faults() {
    let mut site = grouped();
    let analysis = site.analyse();
    assert_found(&analysis, []);
    assert_eq!(analysis.sessions.len(), 14);
    assert!(analysis.sessions.iter().all(|session| session.accounts == 2 && !session.redo.is_empty()));
    for account in &analysis.accounts {
        assert_eq!((account.state, account.fulls.len(), account.intervals.len()), (AccountState::Whole, 2, 1));
    }
}

#[test]
fn a_deleted_session_of_auto_grouped_mode() {
    let mut site = grouped();
    let labels = site.fulls();
    // The third session of the second round: its group loses its newest full, and everybody the log that it holds.
    let gone = &labels[9];
    let group: Vec<String> = site.accounts(gone).into_keys().collect();
    assert_eq!(group.len(), 2);
    let covering: BTreeMap<String, String> = labels
        .iter()
        .enumerate()
        .filter(|(at, _)| *at != 9)
        .flat_map(|(at, label)| site.accounts(label).into_keys().map(move |id| (id, at, label.clone())))
        // The newest full before the session: its chain runs across the gap.
        .filter(|(_, at, _)| *at < 9)
        .map(|(id, _, label)| (id, label))
        .collect();
    assert_eq!(covering.len(), 14);
    let log = files(&site.session(gone).join("redologs"));
    let sequence = RedoName::parse(log[0].file_name().unwrap().to_str().unwrap()).unwrap().sequence;
    assert_eq!(log.len(), 1);
    fs::remove_dir_all(site.session(gone)).unwrap();
    let analysis = site.analyse();
    let gaps = covering.iter().map(|(id, label)| (id.clone(), FaultKind::RedoGap, Some(label.clone())));
    let latest = group.iter().map(|id| (id.clone(), FaultKind::LatestAbsent, Some(gone.clone())));
    assert_found(&analysis, gaps.chain(latest));
    assert!(
        texts(&analysis)
            .iter()
            .filter(|text| text.contains("redo log"))
            .all(|text| text.contains(&sequence.to_string()))
    );
    for (id, state) in states(&analysis) {
        // Groups whose turn came after the gap have a newer full.
        let after = account(&analysis, &id)
            .fulls
            .iter()
            .any(|full| labels[10..].iter().any(|label| analysis.sessions[full.session].label == *label));
        assert_eq!(state, if after { AccountState::Whole } else { AccountState::Behind }, "{id}");
    }
}
