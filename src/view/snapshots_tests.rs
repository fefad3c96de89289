use super::*;

fn snapshot(number: u64, id: &str, time: &str) -> StoredSnapshot {
    let record = serde_json::json!({
        "id": format!("{id:0<32}"), "time": time, "finished": time, "source": "/s", "host": "h", "root": "", "links": [],
        "totals": crate::catalog::snapshot::Totals::default(), "work": crate::catalog::snapshot::Work::default(),
        "digest": "", "version": "0",
    });
    let record: SnapshotRecord = serde_json::from_value(record).unwrap();
    StoredSnapshot { number: SnapshotNumber(number), moment: record.time, record }
}

fn three() -> Snapshots {
    Snapshots {
        all: vec![
            snapshot(1, "ab12", "2026-11-20T03:00:05.5Z"),
            snapshot(2, "ab13", "2026-11-21T03:00:05Z"),
            snapshot(3, "2026", "2026-11-22T03:00:00.7Z"),
        ],
        ..Snapshots::default()
    }
}

fn number(spec: &str) -> u64 {
    three().resolve_in(spec, &TimeZone::UTC).unwrap().number.0
}

#[test]
fn names_are_found() {
    for (spec, expected) in [
        ("latest", 3),
        ("ab12", 1),
        ("AB13", 2),
        ("2", 3),
        ("2026", 3),
        ("2026-11-22", 3),
        ("2026-11-21", 2),
        ("2026-12-31", 3),
        ("2026-11-22T03:00", 3),
        ("2026-11-22T02:59", 2),
        ("2026-11-22T03:00:00", 3),
        ("2026-11-22T03:00:00Z", 3),
        ("2026-11-22T030000Z", 3),
        ("2026-11-22T03:00:00.6Z", 2),
        ("2026-11-22T04:00+01:00", 3),
        ("2026-11-22T03:00+01:00", 2),
        ("2026-11-21T03:00:05Z", 2),
        ("2026-11-21T03:00:04Z", 1),
        ("2026-11-20T03", 1),
    ] {
        assert_eq!(number(spec), expected, "{spec}");
    }
}

#[test]
fn latest_is_what_was_committed_last_whatever_its_date() {
    let mut snapshots = three();
    snapshots.all.push(snapshot(4, "cc", "1970-01-01T00:00:10Z"));
    // What a wrong clock dated counts as taken between its neighbours.
    snapshots.all[3].moment = snapshots.all[2].moment;
    let found = |spec: &str| snapshots.resolve_in(spec, &TimeZone::UTC).unwrap().number.0;
    assert_eq!((found("latest"), found("2026-11-22"), found("2026-11-21")), (4, 4, 2));
    assert!(snapshots.resolve_in("1970-01-02", &TimeZone::UTC).is_err());
}

#[test]
fn a_day_ends_by_the_clock_of_its_zone() {
    let zone = TimeZone::fixed(jiff::tz::offset(-5));
    let found = |spec: &str| three().resolve_in(spec, &zone).unwrap().number.0;
    // 2026-11-22T03:00Z is the evening of the 21st there.
    assert_eq!(found("2026-11-21"), 3);
    assert_eq!(found("2026-11-20"), 2);
    assert_eq!(found("2026-11-21T22:00"), 3);
}

#[test]
fn errors_say_what_is_wrong() {
    let error = |spec: &str| three().resolve_in(spec, &TimeZone::UTC).unwrap_err().to_string();
    let ambiguous = error("ab1");
    assert!(ambiguous.contains("ab1200000000 of 2026-11-20T03:00:05Z") && ambiguous.contains("ab13"), "{ambiguous}");
    assert!(error("2026-11-19").contains("the oldest is ab12"));
    assert!(error("fff").contains("No snapshot is named"));
    for spec in ["", "yesterday", "2026-11-22T", "2026-13-01", "2026-11-22T03:00:00:00", "2026-11-22X03:00"] {
        assert!(error(spec).contains("names no snapshot"), "{spec}: {}", error(spec));
    }
    assert!(matches!(Snapshots::default().resolve("latest"), Err(ResolveError::Empty)));
}

#[test]
fn colons_of_times_do_not_end_a_name() {
    for (spec, name, path) in [
        ("latest", "latest", None),
        ("latest:", "latest", Some("")),
        ("latest:a:b", "latest", Some("a:b")),
        ("ab12:sessions", "ab12", Some("sessions")),
        ("2026-11-22:sessions", "2026-11-22", Some("sessions")),
        ("2026-11-22T03:00:sessions", "2026-11-22T03:00", Some("sessions")),
        ("2026-11-22T03:00:/sessions:1", "2026-11-22T03:00", Some("/sessions:1")),
        ("2026-11-22T03:00", "2026-11-22T03:00", None),
        ("2026-11-22T03:00:30", "2026-11-22T03:00:30", None),
        ("2026-11-22T03:00:30Z:x", "2026-11-22T03:00:30Z", Some("x")),
        ("2026-11-22T04:00+01:00:x", "2026-11-22T04:00+01:00", Some("x")),
        ("2026-11-22T030000Z:x/y", "2026-11-22T030000Z", Some("x/y")),
        ("2026-99-22T03:00:x", "2026-99-22T03", Some("00:x")),
    ] {
        let (found, rest) = split_spec(spec.as_bytes());
        assert_eq!((found, rest), (name.as_bytes(), path.map(str::as_bytes)), "{spec}");
    }
    let snapshots = three();
    let (found, path) = snapshots.resolve_path(OsStr::new("ab12:/a/b")).unwrap();
    assert_eq!((found.number.0, path.as_slice()), (1, &b"/a/b"[..]));
}

fn of(source: &str, id: u64, mut snapshot: StoredSnapshot) -> StoredSnapshot {
    snapshot.record.source = source.to_owned();
    snapshot.record.source_id = Some(SourceId(id));
    snapshot
}

/// Two sources: `mail1` was taken last.
fn two_sources() -> Snapshots {
    let mut sources = Sources::default();
    for location in ["mail1:/b", "mail2:/b"] {
        sources.choose(location, None).unwrap();
    }
    let all = vec![
        of("mail1:/b", 0, snapshot(1, "aa11", "2026-11-20T03:00:00Z")),
        of("mail2:/b", 1, snapshot(2, "aa22", "2026-11-21T03:00:00Z")),
        of("mail1:/b", 0, snapshot(3, "bb33", "2026-11-22T03:00:00Z")),
    ];
    Snapshots { all, sources, chosen: None }
}

#[test]
fn with_several_sources_latest_and_times_need_one() {
    let snapshots = two_sources();
    let found = |spec: &str| snapshots.resolve_in(spec, &TimeZone::UTC).map(|one| one.number.0);
    for (spec, expected) in [
        ("mail1/latest", 3),
        ("mail2/latest", 2),
        ("mail2/2026-11-30", 2),
        ("mail1/2026-11-21", 1),
        ("mail2/aa2", 2),
        ("aa22", 2),
        ("bb", 3),
    ] {
        assert_eq!(found(spec).unwrap(), expected, "{spec}");
    }
    for spec in ["latest", "2026-11-22"] {
        let error = found(spec).unwrap_err();
        assert!(matches!(error, ResolveError::SeveralSources { count: 2, .. }), "{error}");
        assert!(error.to_string().contains(&format!("mail1/{spec} or mail2/{spec}")), "{error}");
    }
    assert!(
        matches!(found("mail2/2026-11-20"), Err(ResolveError::TooOld { .. })),
        "older ones of another are no answer"
    );
    assert!(matches!(found("mail1/aa22"), Err(ResolveError::OtherSource { .. })));
    assert!(matches!(found("mail3/latest"), Err(ResolveError::Source(_))));
    let chosen = snapshots.clone().choose("mail2").unwrap();
    assert_eq!(chosen.resolve("latest").unwrap().number.0, 2);
    assert_eq!(chosen.resolve("mail1/latest").unwrap().number.0, 3, "what is in front wins");
    assert!(matches!(chosen.resolve("bb33"), Err(ResolveError::OtherSource { .. })));
    assert_eq!(chosen.listed().count(), 1);
    assert!(snapshots.clone().choose("mail1:/b").is_ok(), "by its location, too");
}

#[test]
fn a_source_in_front_is_part_of_the_name() {
    for (spec, name, path) in [
        ("mail1/latest:a/b", "mail1/latest", Some("a/b")),
        ("mail1/2026-11-22T03:00:sessions/x", "mail1/2026-11-22T03:00", Some("sessions/x")),
        ("mail1/2026-11-22T03:00", "mail1/2026-11-22T03:00", None),
        ("latest:a/b:c", "latest", Some("a/b:c")),
    ] {
        let (found, rest) = split_spec(spec.as_bytes());
        assert_eq!((found, rest), (name.as_bytes(), path.map(str::as_bytes)), "{spec}");
    }
}
