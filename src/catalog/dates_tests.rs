use super::*;
use crate::catalog::snapshot::{SuspectReason, Totals, Verdict, Work};

fn record(number: u64, time: &str) -> (SnapshotNumber, SnapshotRecord) {
    let time: Timestamp = time.parse().unwrap();
    let value = serde_json::json!({
        "id": format!("{number:032x}"), "time": time, "finished": time, "source": "/s", "host": "h", "root": "", "links": [],
        "totals": Totals::default(), "work": Work::default(), "digest": "", "version": "0",
    });
    (SnapshotNumber(number), serde_json::from_value(value).unwrap())
}

fn noticed(number: u64, time: &str) -> (SnapshotNumber, SnapshotRecord) {
    let (number, mut record) = record(number, time);
    let reasons = vec![SuspectReason { kind: ReasonKind::Clock, text: "it jumped".to_owned() }];
    record.guard = Some(Verdict { compared_with: None, reasons });
    (number, record)
}

const NOW: &str = "2026-11-10T12:00:00Z";

fn dates(records: &[(SnapshotNumber, SnapshotRecord)], accepted: &[u64]) -> Dates {
    Dates::of(records, &accepted.iter().copied().map(SnapshotNumber).collect(), NOW.parse().unwrap())
}

fn shown(dates: &Dates) -> Vec<String> {
    let one = |one: &Dated| format!("{}{}", one.moment.strftime("%m-%d"), if one.is_plausible { "" } else { "?" });
    dates.all.values().map(one).collect()
}

#[test]
fn nights_of_a_wrong_clock_lie_between_their_neighbours() {
    let ahead = [
        record(1, "2026-11-01T03:00:00Z"),
        record(2, "2026-11-02T03:00:00Z"),
        noticed(3, "2036-11-03T03:00:00Z"),
        noticed(4, "2036-11-04T03:00:00Z"),
        record(5, "2026-11-05T03:00:00Z"),
    ];
    for accepted in [&[][..], &[3, 4]] {
        assert_eq!(shown(&dates(&ahead, accepted)), ["11-01", "11-02", "11-04?", "11-05?", "11-05"]);
    }
    assert_eq!(shown(&dates(&ahead[..4], &[])), ["11-01", "11-02", "11-02?", "11-03?"]);
    let behind = [
        record(1, "2026-11-01T03:00:00Z"),
        record(2, "1970-01-01T00:01:00Z"),
        record(3, "2026-11-03T03:00:00Z"),
        record(4, "2026-11-04T03:00:00Z"),
    ];
    assert_eq!(shown(&dates(&behind, &[])), ["11-01", "11-03?", "11-03", "11-04"]);
    assert_eq!(dates(&behind, &[]).doubt(None), None, "it is over, and costs nothing");
}

#[test]
fn a_clock_set_right_after_a_year_ahead_leaves_every_night_a_night() {
    let mut records: Vec<_> = (1..=9).map(|day| record(day, &format!("2027-11-0{day}T03:00:00Z"))).collect();
    records.push(record(10, "2026-11-10T03:00:00Z"));
    let all = dates(&records, &(1..=9).collect::<Vec<_>>());
    let expected: Vec<String> = (2..=10).map(|day| format!("11-{day:02}?")).chain(["11-10".to_owned()]).collect();
    assert_eq!((shown(&all), all.doubt(None)), (expected, None));
    let date = "2027-11-09T03:00:00Z".parse().unwrap();
    let doubt = ClockDoubt::Later { count: 9, last: records[8].1.id.clone(), date };
    assert_eq!(dates(&records, &[]).doubt(None), Some(doubt));
}

#[test]
fn a_jump_holds_until_it_is_accepted_and_counts_then() {
    let records =
        [record(1, "2026-05-01T03:00:00Z"), record(2, "2026-05-02T03:00:00Z"), noticed(3, "2026-11-09T03:00:00Z")];
    let before = dates(&records, &[]);
    let date = records[2].1.time;
    assert_eq!(before.doubt(None), Some(ClockDoubt::Jump { last: records[2].1.id.clone(), date }));
    assert_eq!((before.doubt(Some(SourceId(9))), before.last_known().unwrap().1), (None, records[1].1.time));
    let after = dates(&records, &[3]);
    assert_eq!((after.doubt(None), after.last_known().unwrap().1), (None, date));
}

#[test]
fn the_usual_distance_is_learned() {
    let none = dates(&[record(1, "2026-11-01T03:00:00Z")], &[]);
    assert_eq!(none.usual_jump(None), UNKNOWN_JUMP);
    let nightly: Vec<_> = (1..=5).map(|day| record(day, &format!("2026-11-0{day}T03:00:00Z"))).collect();
    assert_eq!(dates(&nightly, &[]).usual_jump(None), LEAST_JUMP);
    let monthly: Vec<_> = (1..=5).map(|month| record(month, &format!("2026-0{month}-01T03:00:00Z"))).collect();
    assert_eq!(dates(&monthly, &[]).usual_jump(None).as_hours() / 24, 4 * 31);
    assert_eq!(dates(&monthly, &[]).usual_jump(Some(SourceId(9))), UNKNOWN_JUMP);
}

#[test]
fn clocks_may_disagree_by_a_little() {
    let records =
        [record(1, "2026-11-09T03:10:00Z"), record(2, "2026-11-09T02:50:00Z"), record(3, "2026-11-10T12:30:00Z")];
    let all = dates(&records, &[]);
    assert!((1..=3).all(|number| all.is_plausible(SnapshotNumber(number))) && all.doubts().is_empty());
}
