//! The drill: through a real mount, and on trees with faults that names alone do not show.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde_json::Value;
use zmreplica::zimbra::Analysis;
use zmreplica::zimbra::drill::{DrillFaultKind, Drilled, Driller};
use zmreplica::zimbra::plan::plan;
use zmreplica_treegen::{BlobMode, Config, Generator};

use super::site::{Site, list, small};
use crate::support::mounted::{Scene, err, out};
use crate::support::odd::files;

/// Drills all accounts on the tree itself, which looks as a mount of it does.
fn drill_all(root: &Path, analysis: &Analysis) -> Vec<(String, Drilled)> {
    let interrupt = AtomicBool::new(false);
    let mut driller = Driller::new(root, analysis, &interrupt);
    let drill = |account: &zmreplica::zimbra::account::Account| {
        (account.id.clone(), driller.account(account, &plan(analysis, account, None).unwrap()))
    };
    analysis.accounts.iter().map(drill).collect()
}

fn faults(drilled: &[(String, Drilled)]) -> Vec<(String, DrillFaultKind)> {
    let of = |(id, drilled): &(String, Drilled)| {
        drilled.faults.iter().map(|fault| (id.clone(), fault.kind)).collect::<Vec<_>>()
    };
    drilled.iter().flat_map(of).collect()
}

#[test]
fn every_message_of_every_mode_has_the_digest_of_its_name() {
    for blobs in [BlobMode::Files, BlobMode::Zipstore, BlobMode::Zip] {
        for zcs in [7, 8] {
            let mut site = Site::new(Config { zcs, fulls: 2, ..small(blobs) });
            site.generator.night().unwrap();
            let analysis = site.analyse();
            let drilled = drill_all(&site.root(), &analysis);
            assert_eq!(faults(&drilled), [], "{blobs:?}, {zcs}");
            for (id, drilled) in &drilled {
                let account = analysis.accounts.iter().find(|account| account.id == *id).unwrap();
                assert_eq!(drilled.messages, account.fulls.last().unwrap().messages, "placeholders too");
            }
        }
    }
}

#[test]
fn a_changed_message_a_missing_log_and_a_compressed_blob() {
    let mut site = Site::new(small(BlobMode::Files));
    site.generator.night().unwrap();
    let label = site.fulls().pop().unwrap();
    let accounts = site.accounts(&label);
    let mut ids = accounts.keys();
    let (changed, packed) = (ids.next().unwrap(), ids.next().unwrap());
    let message = |id: &String| {
        files(&accounts[id].join("blobs")).into_iter().find(|path| fs::metadata(path).unwrap().len() > 0).unwrap()
    };
    // The same length: nothing but the digest shows it. The blob is rewritten, for it is linked with other sessions'.
    let path = message(changed);
    let mut bytes = fs::read(&path).unwrap();
    bytes[10] ^= 1;
    fs::remove_file(&path).unwrap();
    fs::write(&path, bytes).unwrap();
    // As on a volume of the mail store with compression.
    let path = message(packed);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&fs::read(&path).unwrap()).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, gzip.finish().unwrap()).unwrap();
    let analysis = site.analyse();
    let drilled = drill_all(&site.root(), &analysis);
    assert_eq!(faults(&drilled), [(changed.clone(), DrillFaultKind::WrongDigest)]);
    // What is gone since the analysis is missed, by each account that needs it.
    let log = files(&site.session(&site.incrementals().pop().unwrap()).join("redologs")).pop().unwrap();
    fs::remove_dir_all(log.parent().unwrap()).unwrap();
    let drilled = drill_all(&site.root(), &analysis);
    let missing = faults(&drilled).iter().filter(|(_, kind)| *kind == DrillFaultKind::Missing).count();
    assert_eq!(missing, 7);
}

#[test]
fn damage_within_zips() {
    let mut site = Site::new(small(BlobMode::Zip));
    let label = site.fulls().pop().unwrap();
    let (id, directory) = site.accounts(&label).pop_first().unwrap();
    let zip = list(&directory.join("blobs")).remove(0);
    let mut bytes = fs::read(&zip).unwrap();
    bytes[120] ^= 0x55;
    fs::write(&zip, bytes).unwrap();
    let analysis = site.analyse();
    assert!(analysis.accounts.iter().all(|account| account.faults.is_empty()), "the directory of the zip is whole");
    let found = faults(&drill_all(&site.root(), &analysis));
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].0, id);
    assert!(matches!(found[0].1, DrillFaultKind::ZipDamaged | DrillFaultKind::WrongDigest));
}

fn events(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn through_a_mount_by_the_command() {
    let scene = Scene::new();
    let mut generator = Generator::create(&scene.source(), small(BlobMode::Files), 2).unwrap();
    generator.night().unwrap();
    scene.snapshot();
    let reported = scene.ok(&["--json", "drill", "--all"]);
    let reported = events(&reported);
    let summary = reported.last().unwrap();
    assert_eq!(
        (summary["accounts"].as_u64(), summary["sound"].as_u64(), summary["faults"].as_u64()),
        (Some(7), Some(7), Some(0))
    );
    assert!(summary["messages"].as_u64().unwrap() > 7 && summary["bytes"].as_u64().unwrap() > 0);
    assert_eq!(crate::support::mounted::mounts_below(&scene.path("")), Vec::<String>::new());
    // A sample is random, and the same for the same snapshot.
    let sample = |number: &str| {
        let reported = events(&scene.ok(&["--json", "drill", "--sample", number]));
        reported
            .iter()
            .filter(|event| event["event"] == "drilled")
            .map(|event| event["id"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let three = sample("3");
    assert_eq!((three.len(), &sample("3"), &sample("5")[..3]), (3, &three, &three[..]));
    let one = scene.ok(&["drill", "--account", reported[0]["email"].as_str().unwrap(), "--mountpoint", "mnt"]);
    assert!(one.contains("sound") && one.lines().count() == 1, "{one}");
    assert_eq!(fs::read_dir(scene.mnt()).unwrap().count(), 0, "nothing is left mounted");
    assert!(err(&scene.code(1, &["drill", "--account", "nobody"])).contains("No account nobody"));

    // A damaged pack: what cannot be read is named, and is damage.
    for pack in list(&scene.store().join("packs"))
        .iter()
        .flat_map(|path| if path.is_dir() { list(path) } else { vec![path.clone()] })
    {
        let mut bytes = fs::read(&pack).unwrap();
        // Not the metadata files, which the analysis needs, but a good part of the messages.
        let middle = bytes.len() / 2;
        bytes[middle..middle + 2000].fill(0xaa);
        let mut permissions = fs::metadata(&pack).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o600);
        fs::set_permissions(&pack, permissions).unwrap();
        fs::write(&pack, bytes).unwrap();
    }
    let damaged = scene.code(7, &["drill", "--all"]);
    assert!(out(&damaged).contains("FAULTY") || out(&damaged).contains("cannot be restored"), "{}", out(&damaged));
    assert_eq!(crate::support::mounted::mounts_below(&scene.path("")), Vec::<String>::new());
}
