//! Faults planted one by one.

use std::collections::BTreeSet;
use std::fs;

use zmreplica::layout::Label;
use zmreplica::zimbra::account::{AccountState, Answer, FaultKind, Interval};
use zmreplica::zimbra::plan::plan;
use zmreplica::zimbra::redo::{RedoName, SequenceRange};
use zmreplica::zimbra::{Analyser, SessionState};
use zmreplica_treegen::BlobMode;

use super::site::{Site, account, assert_found, edit, placeholders, small, states, texts};
use crate::support::odd::files;

fn start(label: &str) -> jiff::Timestamp {
    Label::parse(label).unwrap().start
}

/// A tree with two nights behind its newest full.
fn site() -> Site {
    let mut site = Site::new(small(BlobMode::Files));
    site.generator.night().unwrap();
    site.generator.night().unwrap();
    site
}

#[test]
fn a_sound_tree_has_no_faults() {
    let mut site = site();
    let analysis = site.analyse();
    assert_found(&analysis, []);
    assert_eq!(analysis.accounts.len(), 7);
    assert!(analysis.sessions.iter().all(|session| session.state == SessionState::Complete && session.accounts == 7));
    let fulls = site.fulls();
    let directories = site.accounts(&fulls[2]);
    for (id, directory) in &directories {
        let account = account(&analysis, id);
        assert_eq!(account.state, AccountState::Whole);
        assert_eq!(account.latest.as_ref(), Some(&fulls[2]));
        let blobs = files(&directory.join("blobs")).len() as u64;
        assert_eq!((account.fulls.len(), account.fulls[2].messages), (3, blobs));
        // From the first full to the last log, without a hole.
        let [Interval { from, to }] = account.intervals[..] else { panic!("{:?}", account.intervals) };
        assert_eq!((from, Some(to)), (start(&fulls[0]), analysis.redo.all().last().map(|log| log.closed)));
    }
    assert!(directories.values().any(|directory| !placeholders(directory).is_empty()), "there must be shared messages");
}

#[test]
fn a_gap_in_the_redo_logs() {
    let mut site = site();
    let (fulls, incrementals) = (site.fulls(), site.incrementals());
    // The middle of the logs between the first and the second full.
    let logs = files(&site.session(&incrementals[1]).join("redologs"));
    let gone = RedoName::parse(logs[0].file_name().unwrap().to_str().unwrap()).unwrap();
    fs::remove_file(&logs[0]).unwrap();
    let analysis = site.analyse();
    let ids: Vec<String> = site.accounts(&fulls[0]).into_keys().collect();
    assert_found(&analysis, ids.iter().map(|id| (id.clone(), FaultKind::RedoGap, Some(fulls[0].clone()))));
    let session = analysis.sessions.iter().find(|session| session.label == incrementals[1]).unwrap();
    assert_eq!(session.redo_absent, [SequenceRange { first: gone.sequence, last: gone.sequence }]);
    let reported = texts(&analysis);
    assert!(
        reported.iter().all(|text| text.contains(&gone.sequence.to_string()) && text.contains(&incrementals[1])),
        "{reported:?}"
    );
    for account in &analysis.accounts {
        assert_eq!(account.state, AccountState::Whole, "what the newest full needs is there");
        assert_eq!(account.intervals.len(), 2);
        let hole = account.intervals[0].to;
        assert!(hole < gone.closed);
        assert_eq!(account.answer(Some(gone.closed)), Answer::Only { time: Some(hole) });
        assert_eq!(account.answer(Some(hole)), Answer::Restorable { full: 0, usual: true });
        let second = Some(start(&fulls[1]));
        assert_eq!(account.answer(second), Answer::Restorable { full: 1, usual: true });
    }
}

#[test]
fn a_gap_behind_the_newest_full() {
    let mut site = site();
    let (fulls, incrementals) = (site.fulls(), site.incrementals());
    let last_two = &incrementals[incrementals.len() - 2..];
    for log in files(&site.session(&last_two[0]).join("redologs")) {
        fs::remove_file(log).unwrap();
    }
    let analysis = site.analyse();
    let ids: Vec<String> = site.accounts(&fulls[0]).into_keys().collect();
    // The first full's chain is needed up to the second, the second's up to the third: only the log that was open when the third began is common.
    let third = ids.iter().map(|id| (id.clone(), FaultKind::RedoGap, Some(fulls[2].clone())));
    let second = ids.iter().map(|id| (id.clone(), FaultKind::RedoGap, Some(fulls[1].clone())));
    assert_found(&analysis, second.chain(third));
    for account in &analysis.accounts {
        assert_eq!(account.state, AccountState::Behind);
        // The logs behind the gap must not be replayed.
        let plan = plan(&analysis, account, None).unwrap();
        assert!(plan.is_time_needed && plan.time == account.intervals.last().unwrap().to);
    }
}

#[test]
fn the_newest_logs_are_gone_though_session_xml_names_them() {
    let mut site = site();
    let fulls = site.fulls();
    let last = site.incrementals().pop().unwrap();
    for log in files(&site.session(&last).join("redologs")) {
        fs::remove_file(log).unwrap();
    }
    let analysis = site.analyse();
    let ids = site.accounts(&fulls[0]).into_keys();
    assert_found(&analysis, ids.map(|id| (id, FaultKind::RedoGap, Some(fulls[2].clone()))));
    assert!(states(&analysis).values().all(|state| *state == AccountState::Behind));
}

#[test]
fn a_shared_message_is_missing() {
    let mut site = site();
    let fulls = site.fulls();
    let accounts = site.accounts(&fulls[1]);
    let digest = accounts.values().find_map(|account| placeholders(account).pop_first()).unwrap();
    let holders: BTreeSet<&String> =
        accounts.iter().filter(|(_, account)| placeholders(account).contains(&digest)).map(|(id, _)| id).collect();
    assert!(!holders.is_empty() && holders.len() < accounts.len());
    let shared = files(&site.session(&fulls[1]).join("shared_blobs"));
    let blob = shared.iter().find(|path| path.parent().unwrap().ends_with(&digest)).unwrap();
    fs::remove_file(blob).unwrap();
    let analysis = site.analyse();
    let expected = |full: &String| {
        let full = full.clone();
        holders.iter().map(move |id| ((*id).clone(), FaultKind::SharedMissing, Some(full.clone()))).collect::<Vec<_>>()
    };
    assert_found(&analysis, expected(&fulls[1]));
    assert!(texts(&analysis).iter().all(|text| text.contains(&digest)));
    assert!(states(&analysis).values().all(|state| *state == AccountState::Whole), "the newest full has it");

    // In the newest one it makes the accounts incomplete. An empty file is none.
    let (full, blob) = (&fulls[2], site.session(&fulls[2]).join(blob.strip_prefix(site.session(&fulls[1])).unwrap()));
    fs::remove_file(&blob).unwrap();
    fs::write(&blob, b"").unwrap();
    let holders_now: BTreeSet<String> = site
        .accounts(full)
        .into_iter()
        .filter(|(_, account)| placeholders(account).contains(&digest))
        .map(|(id, _)| id)
        .collect();
    let analysis = site.analyse();
    let now = holders_now.iter().map(|id| (id.clone(), FaultKind::SharedMissing, Some(full.clone())));
    assert_found(&analysis, expected(&fulls[1]).into_iter().chain(now));
    for (id, state) in states(&analysis) {
        let expected = if holders_now.contains(&id) { AccountState::Incomplete } else { AccountState::Whole };
        assert_eq!(state, expected, "{id}");
    }
}

#[test]
fn an_aborted_session() {
    let mut site = site();
    let full = site.fulls().pop().unwrap();
    let accounts = site.accounts(&full);
    let undone: Vec<&String> = accounts.keys().take(3).collect();
    edit(&site.session(&full).join("session.xml"), |text| {
        let mut text = text.replacen("<backupSet ", "<backupSet aborted=\"1\" ", 1);
        for (at, id) in undone.iter().enumerate() {
            let from = text.find(id.as_str()).unwrap();
            let status = text[from..].find("COMPLETED").unwrap() + from;
            text.replace_range(status..status + 9, if at == 0 { "INPROGRESS" } else { "NOTSTARTED" });
        }
        text
    });
    for (at, id) in undone.iter().enumerate() {
        if at == 0 {
            fs::remove_file(accounts[*id].join("meta.xml")).unwrap();
        } else {
            fs::remove_dir_all(&accounts[*id]).unwrap();
        }
    }
    let analysis = site.analyse();
    // accounts.xml would name the older full for them; here it names the newest, which is there.
    assert_found(&analysis, undone.iter().map(|id| ((*id).clone(), FaultKind::NotBackedUp, Some(full.clone()))));
    let session = analysis.sessions.iter().find(|session| session.label == full).unwrap();
    assert_eq!((session.state, session.failed), (SessionState::Aborted, 3));
    assert!(texts(&analysis).iter().all(|text| text.contains("aborted")));
    assert!(states(&analysis).values().all(|state| *state == AccountState::Whole), "the full before reaches as far");
    assert_eq!(account(&analysis, undone[0]).fulls.len(), 2);
}

#[test]
fn an_account_that_failed_with_a_message() {
    let mut site = site();
    let full = site.fulls().pop().unwrap();
    let (id, directory) = site.accounts(&full).pop_first().unwrap();
    edit(&site.session(&full).join("session.xml"), |text| {
        let from = text.find(&id).unwrap();
        let email = text[from..].split("email=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
        text.replace(
            "<errors>",
            &format!("<errors><error email=\"{email}\"><message>disk &amp; quota\u{7}</message></error>"),
        )
    });
    fs::remove_dir_all(directory).unwrap();
    let analysis = site.analyse();
    assert_found(&analysis, [(id, FaultKind::NotBackedUp, Some(full.clone()))]);
    assert!(texts(&analysis)[0].contains("disk & quota"));
    let session = analysis.sessions.iter().find(|session| session.label == full).unwrap();
    assert_eq!((session.state, session.errors.len()), (SessionState::WithErrors, 1));
}

#[test]
fn an_account_without_meta_xml_and_other_half_directories() {
    let mut site = site();
    let fulls = site.fulls();
    let full = &fulls[2];
    let accounts = site.accounts(full);
    let ids: Vec<&String> = accounts.keys().collect();
    fs::remove_file(accounts[ids[0]].join("meta.xml")).unwrap();
    fs::write(accounts[ids[1]].join("meta.xml"), "<backupMetadata><accountBackup zimbraId='x'").unwrap();
    fs::remove_dir_all(accounts[ids[2]].join("db")).unwrap();
    fs::remove_dir_all(&accounts[ids[3]]).unwrap();
    for name in ["ldap.xml", "ldap_latest.xml"] {
        fs::remove_file(accounts[ids[4]].join(name)).unwrap();
    }
    fs::remove_file(accounts[ids[5]].join("ldap_latest.xml")).unwrap();
    let analysis = site.analyse();
    let kinds = [
        FaultKind::Unfinished,
        FaultKind::MetaDamaged,
        FaultKind::DatabaseAbsent,
        FaultKind::DirectoryAbsent,
        FaultKind::LdapAbsent,
    ];
    assert_found(&analysis, kinds.iter().zip(&ids).map(|(kind, id)| ((*id).clone(), *kind, Some(full.clone()))));
    for (at, id) in ids.iter().enumerate() {
        let account = account(&analysis, id);
        assert_eq!(account.state, if at < 5 { AccountState::Incomplete } else { AccountState::Whole }, "{at}");
        // The full before stands in, but must be named.
        let plan = plan(&analysis, account, None).unwrap();
        assert_eq!((plan.label == fulls[1], plan.is_label_needed), (at < 4, at < 4), "{at}");
    }
}

#[test]
fn a_session_without_session_xml() {
    let mut site = site();
    let fulls = site.fulls();
    fs::remove_file(site.session(&fulls[1]).join("session.xml")).unwrap();
    let analysis = site.analyse();
    let session = analysis.sessions.iter().find(|session| session.label == fulls[1]).unwrap();
    assert_eq!((session.state, session.remarks.len()), (SessionState::Invalid, 1));
    assert_found(&analysis, []);
    assert!(analysis.accounts.iter().all(|account| account.fulls.len() == 2 && account.intervals.len() == 1));

    // That of the newest full misleads a restore by name: accounts.xml names it.
    fs::write(site.session(&fulls[2]).join("session.xml"), "<backupMetadata/>").unwrap();
    let ids = site.accounts(&fulls[0]).into_keys();
    let expected: Vec<_> = ids.map(|id| (id, FaultKind::LatestAbsent, Some(fulls[2].clone()))).collect();
    assert_found(&site.analyse(), expected);
}

#[test]
fn a_session_deleted_by_accident_and_one_by_the_vendors_tool() {
    let mut site = site();
    let fulls = site.fulls();
    let ids: Vec<String> = site.accounts(&fulls[0]).into_keys().collect();
    // As the vendor deletes: renamed, accounts.xml rewritten, half removed. Nobody misses the oldest.
    site.generator.delete(Some(&fulls[0]), false).unwrap();
    let analysis = site.analyse();
    assert_found(&analysis, []);
    let doomed = analysis.sessions.iter().find(|session| session.label == fulls[0]).unwrap();
    assert_eq!(doomed.state, SessionState::Deleting);
    assert!(analysis.accounts.iter().all(|account| account.fulls.len() == 2 && account.state == AccountState::Whole));
    // By hand: accounts.xml still names it.
    fs::remove_dir_all(site.session(&fulls[2])).unwrap();
    let analysis = site.analyse();
    assert_found(&analysis, ids.iter().map(|id| (id.clone(), FaultKind::LatestAbsent, Some(fulls[2].clone()))));
    for account in &analysis.accounts {
        assert_eq!(account.state, AccountState::Incomplete);
        let plan = plan(&analysis, account, None).unwrap();
        assert!(plan.is_label_needed && plan.label == fulls[1]);
        assert_eq!(
            Some(plan.time),
            analysis.redo.all().last().map(|log| log.closed),
            "the logs reach on to the newest time"
        );
    }
    // An incremental: its logs are named by nobody.
    let incremental = &site.incrementals()[4];
    fs::remove_dir_all(site.session(incremental)).unwrap();
    let analysis = site.analyse();
    let latest = ids.iter().map(|id| (id.clone(), FaultKind::LatestAbsent, Some(fulls[2].clone())));
    let gap = ids.iter().map(|id| (id.clone(), FaultKind::RedoGap, Some(fulls[1].clone())));
    assert_found(&analysis, latest.chain(gap));
    assert!(states(&analysis).values().all(|state| *state == AccountState::Behind));
}

#[test]
fn running_sessions_and_leftovers_are_no_sources() {
    let mut site = site();
    let label = site.generator.begin(zmreplica_treegen::Kind::Full).unwrap();
    let analysis = site.analyse();
    assert_found(&analysis, []);
    let begun = analysis.sessions.iter().find(|session| session.label == label).unwrap();
    // The generated time lies in the past, but the directory was made a moment ago.
    assert!(matches!(begun.state, SessionState::Running | SessionState::Leftover));
    assert!(analysis.accounts.iter().all(|account| account.fulls.len() == 3));
}

#[test]
fn what_did_not_change_is_not_looked_at_again() {
    let mut site = site();
    site.analyse();
    assert_eq!(site.analyser.directories_read(), 21, "three fulls of seven accounts");
    // An incremental renews ldap_latest.xml in every full.
    site.generator.night().unwrap();
    site.analyse();
    assert_eq!(site.analyser.directories_read(), 21);
    site.generator.full().unwrap();
    site.analyse();
    assert_eq!(site.analyser.directories_read(), 28, "the new full");
    // The first incremental behind it gives it an ldap_latest.xml.
    site.generator.night().unwrap();
    site.analyse();
    assert_eq!(site.analyser.directories_read(), 28);
    // Kept for the next run, which finds the same without looking.
    let record = site.snapshot();
    let store = site.store();
    site.analyser.keep(&store, &record.id);
    let mut next = Analyser::with_kept(&store, |id| id == record.id);
    let again = next.analyse(&site.view(&record), b"").unwrap();
    assert_eq!(next.directories_read(), 0);
    assert_eq!(states(&again), states(&site.analyse()));
    let mut other = Analyser::with_kept(&store, |_| false);
    other.analyse(&site.view(&record), b"").unwrap();
    assert_eq!(other.directories_read(), 28, "what belongs to another history is not used");
}
