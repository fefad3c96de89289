//! Accounts that come, go and are renamed; trees moved by an upgrade; files that are damaged; trees that are none.

use std::fs;
use std::path::Path;

use zmreplica::zimbra::account::{AccountState, FaultKind};
use zmreplica::zimbra::{SessionState, moved_trees};
use zmreplica_treegen::BlobMode;

use super::site::{Site, account, assert_found, edit, found, small, states};
use crate::support::mounted::shell;

fn attribute(text: &str, id: &str, name: &str) -> String {
    let from = text.find(id).unwrap();
    let value = text[from..].split(&format!("{name}=\"")).nth(1).unwrap();
    value.split('"').next().unwrap().to_owned()
}

#[test]
fn a_small_full_for_a_new_account() {
    let mut site = Site::new(small(BlobMode::Files));
    site.generator.night().unwrap();
    let full = site.fulls().pop().unwrap();
    let (id, _) = site.accounts(&full).pop_first().unwrap();
    // A session of one account, an hour after the incremental.
    let stamp = site.incrementals().pop().unwrap().replacen("incr-", "full-", 1).replacen(".01", ".02", 1);
    let small_full = site.session(&stamp);
    let xml = fs::read_to_string(site.session(&full).join("session.xml")).unwrap();
    shell(r#"cp -a "$1" "$2""#, &[&site.session(&full), &small_full]);
    for (other, directory) in site.accounts(&full) {
        if other != id {
            let inside = directory.strip_prefix(site.session(&full)).unwrap();
            fs::remove_dir_all(small_full.join(inside)).unwrap();
        }
    }
    let email = attribute(&xml, &id, "email");
    let head = xml.split("<accounts>").next().unwrap().replace(&full, &stamp);
    fs::write(
        small_full.join("session.xml"),
        format!("{head}<accounts><account zimbraId=\"{id}\" email=\"{email}\" status=\"COMPLETED\"/></accounts></backupSet></backupMetadata>"),
    )
    .unwrap();
    let latest = site.root().join("accounts.xml");
    edit(&latest, |text| {
        let from = text.find(&id).unwrap();
        let at = text[from..].find(&full).unwrap() + from;
        format!("{}{stamp}{}", &text[..at], &text[at + full.len()..])
    });
    let analysis = site.analyse();
    // The new session's redo sequence number is that of the old copy, so nothing is missing behind it.
    assert_found(&analysis, []);
    for one in &analysis.accounts {
        assert_eq!(
            (one.state, one.fulls.len()),
            (AccountState::Whole, if one.id == id { 4 } else { 3 }),
            "{}",
            one.email
        );
    }
}

#[test]
fn accounts_that_are_renamed_or_deleted() {
    let mut site = Site::new(small(BlobMode::Files));
    let full = site.fulls().pop().unwrap();
    let mut ids = site.accounts(&full).into_keys();
    let (renamed, deleted) = (ids.next().unwrap(), ids.next().unwrap());
    let directory = site.accounts(&full)[&deleted].clone();
    let xml = site.root().join("accounts.xml");
    let old = attribute(&fs::read_to_string(&xml).unwrap(), &renamed, "email");
    edit(&xml, |text| text.replace(&old, "Newly.Named@example.com"));
    edit(&site.session(&full).join("session.xml"), |text| {
        let text = text.replace(&old.to_lowercase(), "newly.named@example.com");
        text.lines().filter(|line| !line.contains(&deleted)).map(|line| format!("{line}\n")).collect()
    });
    edit(&xml, |text| text.lines().filter(|line| !line.contains(&deleted)).map(|line| format!("{line}\n")).collect());
    fs::remove_dir_all(directory).unwrap();
    let analysis = site.analyse();
    assert_found(&analysis, [(deleted.clone(), FaultKind::NotInAccounts, None)]);
    let one = account(&analysis, &renamed);
    assert_eq!((one.email.as_str(), &one.other_emails), ("Newly.Named@example.com", &vec![old.to_lowercase()]));
    assert!(one.is_named(&old) && one.is_named("newly.named@EXAMPLE.com"));
    // What the older fulls hold of the deleted one is still there.
    let gone = account(&analysis, &deleted);
    assert_eq!((gone.state, gone.fulls.len(), gone.in_accounts), (AccountState::Whole, 2, false));
}

#[test]
fn a_tree_that_an_upgrade_moved() {
    let mut site = Site::new(small(BlobMode::Files));
    let moved = site.root().join("7.2.7_GA_2942-8.0");
    fs::create_dir(&moved).unwrap();
    for name in ["sessions", "accounts.xml", "tmp"] {
        fs::rename(site.root().join(name), moved.join(name)).unwrap();
    }
    fs::create_dir(site.root().join("sessions")).unwrap();
    fs::create_dir_all(site.root().join("sessions_tmp/full-20260901.010000.000")).unwrap();
    let view = site.view(&site.snapshot());
    assert_eq!(moved_trees(&view).unwrap(), ["7.2.7_GA_2942-8.0"]);
    let now = site.analyser.analyse(&view, b"").unwrap();
    assert!(now.accounts.is_empty() && now.remarks.len() == 1, "there is no accounts.xml: {:?}", now.remarks);
    assert_eq!(now.sessions.len(), 1);
    assert!(matches!(now.sessions[0].state, SessionState::Running | SessionState::Leftover));
    let old = site.analyser.analyse(&view, b"7.2.7_GA_2942-8.0").unwrap();
    assert_found(&old, []);
    assert_eq!((old.accounts.len(), old.tree.as_str()), (7, "7.2.7_GA_2942-8.0"));
}

#[test]
fn damaged_xml_is_used_as_far_as_it_goes() {
    let mut site = Site::new(small(BlobMode::Files));
    let xml = site.root().join("accounts.xml");
    edit(&xml, |text| text[..text.len() / 2].to_owned());
    let analysis = site.analyse();
    assert_eq!(found(&analysis).len(), 0, "who is not in a file that is cut short may have been in it");
    assert_eq!(analysis.remarks.len(), 1);
    assert!(analysis.remarks[0].contains("ends before"), "{:?}", analysis.remarks);
    assert_eq!(analysis.accounts.len(), 7, "sessions know the others");
    assert!(states(&analysis).values().all(|state| *state == AccountState::Whole));

    fs::remove_file(&xml).unwrap();
    let analysis = site.analyse();
    assert!(analysis.remarks[0].contains("no accounts.xml"), "{:?}", analysis.remarks);
    assert_eq!((analysis.accounts.len(), found(&analysis).len()), (7, 0));

    // Control characters, a mangled tag and an unknown version in session.xml cost the one account.
    let full = site.fulls().pop().unwrap();
    let id = site.accounts(&full).into_keys().next().unwrap();
    edit(&site.session(&full).join("session.xml"), |text| {
        let from = text.find(&id).unwrap();
        let broken = text[from..].replacen("\" email=\"", " email=\"\u{1}", 1);
        format!("{}{broken}", &text[..from])
            .replace("version=\"7.1\"", "version=\"99.beta\"")
            .replace("<accounts>", "<accounts>&#7;&who;")
    });
    let analysis = site.analyse();
    let session = analysis.sessions.iter().find(|session| session.label == full).unwrap();
    assert_eq!(session.format_version.as_deref(), Some("99.beta"));
    assert!(analysis.accounts.iter().filter(|one| one.fulls.len() == 3).count() >= 6, "{:?}", states(&analysis));
}

#[test]
fn trees_that_are_none_are_reported_as_such() {
    for make in [
        (|_: &Path| {}) as fn(&Path),
        |root| fs::write(root.join("sessions"), "a file").unwrap(),
        |root| fs::create_dir_all(root.join("sessions/other/thing")).unwrap(),
        |root| {
            fs::create_dir_all(root.join("sessions/full-20260801.010003.006/accounts/abc/def/abcdef-1")).unwrap();
            fs::write(root.join("sessions/full-20260801.010003.006/session.xml"), vec![0u8; 5000]).unwrap();
            fs::create_dir_all(root.join("accounts.xml")).unwrap();
        },
        |root| {
            fs::write(root.join("accounts.xml"), "<html><account/></html>").unwrap();
            std::os::unix::fs::symlink("/etc", root.join("sessions")).unwrap();
        },
    ] {
        let mut site = Site::new(small(BlobMode::Files));
        fs::remove_dir_all(site.root()).unwrap();
        fs::create_dir(site.root()).unwrap();
        fs::write(site.root().join("file"), "so that it is not empty").unwrap();
        make(&site.root());
        let analysis = site.analyse();
        assert!(analysis.accounts.is_empty() && !analysis.remarks.is_empty());
        assert!(analysis.sessions.iter().all(|session| session.state == SessionState::Invalid));
    }
}
