//! Snapshots with other dates: a store as it would be had the clock been another.

use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use zmreplica::catalog::tables::Table;

/// Gives each snapshot, in the order of commits, the date that `date` returns for its place and the date that it has.
pub fn redate(store: &Path, date: impl Fn(usize, Timestamp) -> Timestamp) {
    let replica = super::locks::open(store);
    let marks = zmreplica::catalog::marks::read_all(&replica.catalog().unwrap()).unwrap();
    let mut writer = replica.writer().unwrap();
    for (at, (number, mut record)) in replica.catalog().unwrap().snapshots().unwrap().into_iter().enumerate() {
        let took = record.finished.duration_since(record.time);
        record.time = date(at, record.time);
        record.finished = record.time + took;
        record.id = record.compute_id(&replica.config().id);
        writer.remove(Table::Snapshots, number.0);
        let new = writer.add_snapshot(&record).unwrap();
        if let Some(marks) = marks.get(&number) {
            writer.set_marks(number, &Default::default()).unwrap();
            writer.set_marks(new, marks).unwrap();
        }
    }
    writer.commit().unwrap();
    drop((writer, replica));
    super::locks::wait_until_free(store);
}

/// Some days from now.
pub fn days(days: i64) -> Timestamp {
    Timestamp::now() + SignedDuration::from_hours(24 * days)
}
