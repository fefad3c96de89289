use super::*;

fn name(text: &str) -> SourceName {
    text.parse().unwrap()
}

fn names(sources: &Sources) -> Vec<&str> {
    sources.iter().map(|(_, source)| source.name.as_str()).collect()
}

fn record(location: &str, id: Option<u64>) -> SnapshotRecord {
    let value = serde_json::json!({
        "id": "00", "time": "2026-11-22T03:00:00Z", "finished": "2026-11-22T03:00:00Z", "source": location, "source_id": id, "host": "h", "root": "",
        "links": [], "totals": crate::catalog::snapshot::Totals::default(), "work": crate::catalog::snapshot::Work::default(),
        "digest": "", "version": "0",
    });
    serde_json::from_value(value).unwrap()
}

#[test]
fn names_follow_from_locations() {
    for (location, expected) in [
        ("/opt/zimbra/backup", "backup"),
        ("/", "root"),
        ("/srv/My Backups", "my-backups"),
        ("/srv/2026", "source-2026"),
        ("/srv/latest", "source-latest"),
        ("mail1.example.org:/opt/zimbra/backup", "mail1"),
        ("root@Mail1:/opt/zimbra/backup", "mail1"),
        ("ssh://zimbra@mail2.example.org:2222/opt/zimbra/backup", "mail2"),
        ("ssh://mail3/opt", "mail3"),
        ("ssh://root@192.0.2.7:22/opt", "source-192.0.2.7"),
        ("ssh://[2001:db8::7]:22/opt", "source-2001-db8--7"),
        ("root@[2001:db8::7]:/opt", "source-2001-db8--7"),
    ] {
        let made = SourceName::of_location(location);
        assert_eq!(made.as_str(), expected, "{location}");
        assert_eq!(made.as_str().parse(), Ok(made.clone()), "it is a name");
    }
    let long = SourceName::of_location(&format!("/{}", "x".repeat(300)));
    assert!(long.numbered(1_000_000).as_str().parse::<SourceName>().is_ok());
}

#[test]
fn names_are_short_and_plain() {
    for good in ["a", "mail1", "mail-1.example_org", &"x".repeat(63)] {
        assert!(good.parse::<SourceName>().is_ok(), "{good}");
    }
    for bad in ["", "latest", "1mail", "-a", "Mail", "a/b", "a:b", "a b", "\u{e9}", &"x".repeat(64)] {
        assert!(bad.parse::<SourceName>().is_err(), "{bad}");
    }
    assert!(serde_json::from_str::<SourceName>("\"A\"").is_err(), "a row holds no other names");
}

#[test]
fn what_an_earlier_version_wrote_gets_names_that_stay() {
    let locations = ["root@mail1:/opt/zimbra/backup", "mail1:/opt/zimbra/backup", "/srv/backup"].map(str::to_owned);
    let mut sources = Sources::of(Vec::new(), locations.to_vec());
    assert_eq!(names(&sources), ["mail1", "mail1-2", "backup"]);
    for (number, location) in locations.iter().enumerate() {
        assert_eq!(sources.of_record(&record(location, None)), Some(SourceId(number as u64)));
        assert_eq!(sources.find(location), Ok(SourceId(number as u64)), "the location is still understood");
    }
    assert_eq!(sources.of_record(&record("/unknown", None)), None);
    // After a change an earlier version takes a snapshot of something new.
    sources.rename(SourceId(0), name("first")).unwrap();
    let (listed, first) = sources.encode().unwrap();
    let mut first: Vec<String> = serde_json::from_slice(&first).unwrap();
    first.push("root@mail1:/other".to_owned());
    let again = Sources::of(serde_json::from_slice(&listed).unwrap(), first);
    assert_eq!(names(&again), ["first", "mail1-2", "backup", "mail1"]);
}

#[test]
fn a_snapshot_belongs_to_the_name_given_or_to_the_location() {
    let mut sources = Sources::default();
    let new = sources.choose("mail1:/b", None).unwrap();
    assert_eq!(new, Chosen { id: SourceId(0), name: name("mail1"), moved_from: None, is_new: true });
    assert_eq!(sources.choose("mail1:/b", None).unwrap(), Chosen { is_new: false, ..new });
    // Another spelling under the same name goes on, and both are understood.
    let moved = sources.choose("ssh://root@mail1:22/b", Some(&name("mail1"))).unwrap();
    assert_eq!((moved.id, moved.moved_from.as_deref()), (SourceId(0), Some("mail1:/b")));
    assert_eq!(sources.choose("mail1:/b", None).unwrap().id, SourceId(0));
    // What comes to where another was before is a source of its own, under its own name.
    let mut later = sources.clone();
    later.relocate(SourceId(0), "mail7:/b").unwrap();
    let new = later.choose("mail1:/b", Some(&name("mail9"))).unwrap();
    assert_eq!((new.id, new.is_new, later.by_location("mail1:/b")), (SourceId(1), true, Some(SourceId(1))));
    // A new name at a location that has one is a mistake, and so is a name whose location is another's.
    let error = sources.choose("mail1:/b", Some(&name("mail9"))).unwrap_err();
    assert!(matches!(&error, NamingError::LocationTaken { owner, .. } if owner.as_str() == "mail1"), "{error}");
    sources.choose("mail2:/b", None).unwrap();
    assert!(matches!(sources.choose("mail2:/b", Some(&name("mail1"))), Err(NamingError::LocationTaken { .. })));
    assert_eq!(names(&sources), ["mail1", "mail2"]);
    // Where one was, another may be later: then the location is its own.
    sources.relocate(SourceId(0), "mail7:/b").unwrap();
    sources.relocate(SourceId(1), "mail1:/b").unwrap();
    assert_eq!(sources.by_location("mail1:/b"), Some(SourceId(1)));
    assert_eq!(sources.of_record(&record("mail1:/b", None)), Some(SourceId(0)), "what was taken before stays");
    assert_eq!(sources.of_record(&record("mail1:/b", Some(1))), Some(SourceId(1)));
}

#[test]
fn a_merged_source_is_the_other_one() {
    let mut sources = Sources::default();
    for location in ["a:/b", "c:/d", "e:/f"] {
        sources.choose(location, None).unwrap();
    }
    let [a, c, e] = [0, 1, 2].map(SourceId);
    sources.merge(a, c).unwrap();
    sources.merge(c, e).unwrap();
    assert_eq!([a, c, e].map(|id| sources.resolve(id)), [e, e, e]);
    assert_eq!(sources.find("a:/b"), Ok(e), "its location leads to the other");
    assert_eq!(names(&sources), ["e"], "its name is free");
    assert!(matches!(sources.merge(e, e), Err(NamingError::Itself { .. })));
    // A row that was tampered with ends nothing in a circle.
    sources.all[2].merged_into = Some(a);
    sources.resolve(a);
}

#[test]
fn a_removed_source_takes_no_snapshot_and_its_name_is_free_when_the_last_is_gone() {
    let mut sources = Sources::default();
    let id = sources.choose("a:/b", None).unwrap().id;
    sources.set_removed(id, Some(Timestamp::UNIX_EPOCH));
    assert!(matches!(sources.choose("a:/b", None), Err(NamingError::Removed { .. })));
    let left = record("a:/b", Some(id.0));
    assert!(!sources.free_removed([&left].into_iter()));
    assert!(sources.free_removed(std::iter::empty()));
    assert_eq!(sources.find("a"), Err(NamingError::Unknown { name: "a".to_owned(), names: Vec::new() }));
    let again = sources.choose("a:/b", None).unwrap();
    assert_eq!((again.id, again.is_new), (SourceId(1), true), "it is another source");
}

#[test]
fn a_retired_source_is_in_use_again_after_a_snapshot() {
    let mut sources = Sources::default();
    let id = sources.choose("a:/b", None).unwrap().id;
    sources.set_retired(id, Some(Timestamp::UNIX_EPOCH));
    assert!(sources.get(id).unwrap().retired.is_some());
    sources.choose("a:/b", None).unwrap();
    assert!(sources.get(id).unwrap().retired.is_none());
}

#[test]
fn few_former_locations_are_remembered() {
    let mut sources = Sources::default();
    let id = sources.choose("a:/0", None).unwrap().id;
    for number in 1..100 {
        sources.relocate(id, &format!("a:/{number}")).unwrap();
    }
    let source = sources.get(id).unwrap();
    assert_eq!((source.former_locations.len(), source.location.as_str()), (FORMER_LOCATIONS, "a:/99"));
    assert_eq!(source.former_locations.last().unwrap(), "a:/98");
}
