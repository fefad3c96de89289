//! The answers of a server, without a mount.

use super::*;
use crate::memory_tree::{Fault, MemoryTree};
use crate::{ROOT, TreeServer};

fn server(fault: Fault) -> (TreeServer<MemoryTree>, Arc<Mutex<Vec<String>>>) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&lines);
    let log: Log = Arc::new(move |line: &str| kept.lock().unwrap().push(line.to_owned()));
    (TreeServer::new(Arc::new(MemoryTree::new(fault)), 3, log).unwrap(), lines)
}

/// Lists a directory in pages of so many entries, as names, inode numbers and times to live.
fn listing(server: &TreeServer<MemoryTree>, directory: u64, page: usize) -> Vec<(Vec<u8>, u64, Duration)> {
    let mut all = Vec::new();
    let mut offset = 0;
    loop {
        let from = offset;
        let mut room = page;
        let before = all.len();
        let mut add = |entry: PageEntry<'_>| {
            if room == 0 {
                return false;
            }
            room -= 1;
            all.push((entry.name.to_vec(), entry.attributes.inode, entry.ttl));
            offset = entry.next_offset;
            true
        };
        server.page(directory, from, &mut add).unwrap();
        if all.len() == before {
            return all;
        }
    }
}

#[test]
fn names_are_found_and_their_absence_is_remembered() {
    let (server, _) = server(Fault::None);
    let found = server.find(ROOT, b"a").unwrap();
    assert_eq!((found.attributes.unwrap().inode, found.name_ttl, found.attributes_ttl), (2, FOR_EVER, FOR_EVER));
    assert_eq!(server.find(ROOT, b"nothing").unwrap().attributes, None);
    assert_eq!(server.find(2, b"nothing").unwrap_err(), Errno::NOTDIR);
    assert_eq!(server.find(3, b".").unwrap().attributes.unwrap().inode, 3);
    assert_eq!(server.find(3, b"..").unwrap().attributes.unwrap().inode, ROOT);
    assert_eq!(
        server.find(99, b"a").unwrap(),
        Found { attributes: None, name_ttl: FOR_EVER, attributes_ttl: FOR_EVER }
    );
}

#[test]
fn pages_of_any_size_add_up_to_the_listing() {
    let (server, _) = server(Fault::None);
    let whole = listing(&server, ROOT, 100);
    let names: Vec<&[u8]> = whole.iter().map(|(name, ..)| name.as_slice()).collect();
    assert_eq!(names, [b".".as_slice(), b"..", b"a", b"directory", b"empty", b"odd\xff\n"]);
    for page in 1..8 {
        assert_eq!(listing(&server, ROOT, page), whole, "{page} entries a page");
    }
    assert_eq!(listing(&server, 3, 2)[..2], [(b".".to_vec(), 3, FOR_EVER), (b"..".to_vec(), ROOT, FOR_EVER)]);
    assert_eq!(server.page(2, 0, &mut |_| true).unwrap_err(), Errno::NOTDIR);
    assert_eq!(server.page(2, 2, &mut |_| true).unwrap_err(), Errno::NOTDIR);
}

#[test]
fn what_may_change_is_kept_for_a_moment() {
    let (server, _) = server(Fault::Volatile);
    assert_eq!(server.find(3, b"nothing").unwrap_err(), Errno::NOENT, "tomorrow there may be one");
    assert_eq!(server.find(3, b"b").unwrap().name_ttl, A_MOMENT);
    assert_eq!(server.find(3, b"b").unwrap().attributes_ttl, FOR_EVER);
    assert_eq!(server.find(ROOT, b"directory").unwrap().attributes_ttl, A_MOMENT);
    assert!(listing(&server, 3, 9).iter().all(|(_, _, ttl)| *ttl == A_MOMENT));
}

#[test]
fn damage_is_reported_once_an_inode() {
    let (server, lines) = server(Fault::Damage);
    let mut buffer = [0; 10];
    for _ in 0..3 {
        let read = server.inner.read(2, 0, &mut buffer);
        assert_eq!(read.unwrap_err(), Errno::IO);
    }
    assert_eq!(server.inner.read(6, 0, &mut buffer).unwrap(), b"");
    assert_eq!(server.find(2, b"x").unwrap_err(), Errno::NOTDIR);
    let lines = lines.lock().unwrap();
    let [line] = lines.as_slice() else { panic!("{lines:?}") };
    assert!(line.contains("inode 2 ") && line.contains("chunk 7 is damaged"), "{line}");
}

#[test]
fn a_panic_is_an_error_of_one_question() {
    let (server, lines) = server(Fault::Panic);
    let mut buffer = [0; 10];
    let read = server.inner.read(2, 0, &mut buffer);
    assert_eq!(read.unwrap_err(), Errno::IO);
    assert_eq!(server.find(ROOT, b"a").unwrap().attributes.unwrap().inode, 2);
    assert_eq!(lines.lock().unwrap().len(), 1);
}

#[test]
fn extended_attributes_are_reported_as_the_kernel_wants_them() {
    let (server, _) = server(Fault::None);
    assert_eq!(server.extended(2, None).unwrap(), b"user.a\0user.b\0");
    assert_eq!(server.extended(2, Some(b"user.b")).unwrap(), b"v");
    assert_eq!(server.extended(2, Some(b"user.c")).unwrap_err(), Errno::NODATA);
    assert_eq!(server.extended(6, None).unwrap(), b"");
}

#[test]
fn times_before_1970_and_large_device_numbers_are_carried() {
    assert_eq!(time(-5, 999_999_999), UNIX_EPOCH - Duration::from_secs(5) + Duration::from_nanos(999_999_999));
    assert_eq!(time(7, 1), UNIX_EPOCH + Duration::new(7, 1));
    assert_eq!(time(i64::MIN, 0), time(-i64::MAX, 0), "the first second has no opposite");
    for (major, minor) in [(1, 3), (8, 0), (259, 70_000), (4095, 0xf_ffff)] {
        let device = kernel_device(rustix::fs::makedev(major, minor));
        let decoded = ((device >> 8) & 0xfff, (device & 0xff) | (device >> 12 & 0xf_ff00));
        assert_eq!(decoded, (major, minor));
    }
}

#[test]
fn a_lent_buffer_has_the_requested_length() {
    for length in [0, 10, READ_BYTES as usize + 1, 3, READ_BYTES as usize] {
        assert_eq!(with_buffer(length, |buffer| buffer.len()), length);
        assert!(BUFFER.with_borrow(Vec::len) <= READ_BYTES as usize);
    }
    // Lent twice, as when a tree is itself read through a server on the same thread.
    assert_eq!(with_buffer(5, |outer| with_buffer(7, |inner| inner.len()) + outer.len()), 12);
}

#[test]
fn requests_that_are_slow_or_fail_are_events() {
    let (server, _) = server(Fault::Damage);
    let (mut events, writer) = io::pipe().unwrap();
    let subscriber = tracing_subscriber::fmt().with_writer(Arc::new(writer)).finish();
    tracing::subscriber::with_default(subscriber, || {
        server.find(ROOT, b"a").unwrap();
        server.find(ROOT, b"nothing").unwrap();
        assert!(server.inner.read(2, 0, &mut [0; 10]).is_err());
        let slow = server.inner.query("read", 3, |_| {
            std::thread::sleep(SLOW);
            Ok(())
        });
        slow.unwrap();
    });
    let events = io::read_to_string(&mut events).unwrap();
    let [failed, slow] = events.lines().collect::<Vec<_>>()[..] else { panic!("{events}") };
    assert!(failed.contains("mount: read failed") && failed.contains("chunk 7 is damaged"), "{failed}");
    assert!(slow.contains("mount: slow read") && slow.contains("elapsed_ms"), "{slow}");
}
