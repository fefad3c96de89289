//! Tests of the cut: what is delivered, where it is cut, and that no input makes it fail.

mod build;

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};

use build::{ZipEntry, base64_text, message, noise, sample_entries, zip_of};
use proptest::prelude::*;
use rustix::fs::{MemfdFlags, memfd_create};

use super::*;
use crate::model::{ChunkHash, Kind, Timestamp};

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Literal(Vec<u8>),
    Zeros(u64),
    Chunk(Vec<u8>),
}

#[derive(Default)]
struct Recorder {
    segments: Vec<Segment>,
    /// Closes after this many segments.
    closes_after: Option<usize>,
}

impl Recorder {
    fn push(&mut self, segment: Segment) -> Result<(), SinkClosed> {
        if self.closes_after == Some(self.segments.len()) {
            return Err(SinkClosed);
        }
        self.segments.push(segment);
        Ok(())
    }
}

impl SegmentSink for Recorder {
    fn literal(&mut self, bytes: &[u8]) -> Result<(), SinkClosed> {
        assert!((1..=JOINED_LITERAL_MAX).contains(&bytes.len()));
        assert!(!matches!(self.segments.last(), Some(Segment::Literal(_))), "neighbouring literals are joined");
        self.push(Segment::Literal(bytes.to_vec()))
    }

    fn zeros(&mut self, length: u64) -> Result<(), SinkClosed> {
        assert!(length > 0);
        self.push(Segment::Zeros(length))
    }

    fn chunk(&mut self, plain: Vec<u8>) -> Result<(), SinkClosed> {
        assert!((1..=MAX_CHUNK_BYTES).contains(&plain.len()));
        self.push(Segment::Chunk(plain))
    }
}

fn memory_file() -> File {
    File::from(memfd_create("cut", MemfdFlags::CLOEXEC).unwrap())
}

fn stat(size: u64, allocated_bytes: u64) -> Stat {
    Stat {
        kind: Kind::File,
        mode: 0o640,
        uid: 0,
        gid: 0,
        nlink: 1,
        size,
        allocated_bytes,
        rdev: 0,
        ino: 1,
        dev: 1,
        mtime: Timestamp::default(),
        ctime: Timestamp::default(),
        btime: None,
    }
}

/// Cuts the bytes and checks that the segments are these bytes.
fn cut(bytes: &[u8]) -> Vec<Segment> {
    let mut file = memory_file();
    file.write_all(bytes).unwrap();
    let size = bytes.len() as u64;
    let mut recorder = Recorder::default();
    let delivered = Chunker::new().split(&file, &stat(size, size), &mut recorder).unwrap();
    assert_eq!(delivered, size);
    assert!(join(&recorder.segments) == bytes, "the segments are not the file");
    recorder.segments
}

fn join(segments: &[Segment]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for segment in segments {
        match segment {
            Segment::Literal(part) | Segment::Chunk(part) => bytes.extend_from_slice(part),
            Segment::Zeros(length) => bytes.resize(bytes.len() + *length as usize, 0),
        }
    }
    bytes
}

/// Shows the segments as `L30 C1000:hash Z4096`.
fn shape(segments: &[Segment]) -> String {
    let parts: Vec<String> = segments
        .iter()
        .map(|segment| match segment {
            Segment::Literal(bytes) => format!("L{}", bytes.len()),
            Segment::Zeros(length) => format!("Z{length}"),
            Segment::Chunk(plain) => format!("C{}:{}", plain.len(), &ChunkHash::of(plain).to_string()[..8]),
        })
        .collect();
    parts.join(" ")
}

fn has_chunk(segments: &[Segment], plain: &[u8]) -> bool {
    segments.iter().any(|segment| matches!(segment, Segment::Chunk(chunk) if chunk == plain))
}

#[test]
fn sizes_decide_between_literal_and_chunk() {
    assert!(cut(b"").is_empty());
    assert_eq!(cut(&[7; LITERAL_MAX]), [Segment::Literal(vec![7; LITERAL_MAX])]);
    assert_eq!(cut(&[7; LITERAL_MAX + 1]), [Segment::Chunk(vec![7; LITERAL_MAX + 1])]);
    let whole = noise(1, WHOLE_FILE_MAX);
    assert_eq!(cut(&whole), [Segment::Chunk(whole)]);
}

#[test]
fn content_cut_points_are_pinned() {
    assert_eq!(
        shape(&cut(&noise(42, 3 << 20))),
        "C149541:f4680e4e C497713:08fe9d7b C306172:598dd9e7 C231905:0d9de9db C867315:27e1999d C328523:eac8e91d C403661:89e9cbc0 C308515:7c0a3532 C52383:cbacc57f"
    );
    assert_eq!(shape(&cut(&noise(43, WHOLE_FILE_MAX + 1))), "C131073:5f07ac64");
    assert_eq!(shape(&cut(&vec![0; 2_500_000])), "C1048576:488de202 C1048576:488de202 C402848:f535a978");
}

#[test]
fn message_cut_points_are_pinned() {
    let small = base64_text(1, 3000, "\r\n");
    let middle = base64_text(2, 20_000, "\r\n");
    let large = base64_text(3, 900_000, "\r\n");
    assert_eq!(
        shape(&cut(&message(1, "----=_Part_1", "\r\n", &[&small, &middle, &large]))),
        "C3551:fce9fba6 C20526:4f8138cb C131:6f1e9150 C351010:beb5a8de C186605:e14c8469 C386069:45a8ddd8 L20"
    );
    assert_eq!(shape(&cut(&message(1, "----=_Part_1", "\r\n", &[&small]))), "C3440:a50dcc27");
}

#[test]
fn zip_cut_points_are_pinned() {
    assert_eq!(
        shape(&cut(&zip_of(&sample_entries(), false))),
        "L61 C3000:f9638632 L61 C5000:0732023c L138 C315:84037e0e C9236:57028a53 L189 C527221:6e2c2f3d C123949:7f2e842d C359887:af81b15c C488943:875a1552 L77 C700000:2cbffef2 L77 C310026:c3963fee C389974:55a8150b C566:505a4d28"
    );
}

#[test]
fn an_attachment_gives_the_same_chunks_in_every_message() {
    let first = base64_text(1, 50_000, "\r\n");
    let second = base64_text(2, 500_000, "\r\n");
    let one = cut(&message(1, "boundary", "\r\n", &[&first, &second]));
    let two = cut(&message(999, "=_completely different_", "\r\n", &[&second, &base64_text(9, 5000, "\r\n"), &first]));
    assert!(has_chunk(&one, &first) && has_chunk(&two, &first));
    let shared = one.iter().filter(|segment| matches!(segment, Segment::Chunk(_)) && two.contains(segment));
    let shared_bytes: usize = join(&shared.cloned().collect::<Vec<_>>()).len();
    assert_eq!(shared_bytes, first.len() + second.len());
}

#[test]
fn bare_line_feeds_and_extra_empty_lines_do_not_matter() {
    let attachment = base64_text(1, 50_000, "\n");
    let mut padded = b"\n".to_vec();
    padded.extend_from_slice(&attachment);
    padded.extend_from_slice(b"\n\n");
    assert!(has_chunk(&cut(&message(1, "b", "\n", &[&padded])), &attachment));
}

#[test]
fn nested_multiparts_and_forwarded_messages_are_cut() {
    let attachment = base64_text(1, 50_000, "\n");
    let inner = message(5, "outer--", "\n", &[&attachment]);
    let forwarded = [
        b"From: a\nContent-Type: multipart/mixed; boundary=outer\n\n--outer\nContent-Type: message/rfc822\n\n",
        &inner[..],
        b"\n--outer\n\nshort\n--outer--\n",
    ]
    .concat();
    assert!(has_chunk(&cut(&forwarded), &attachment));
    let nested = [
        b"From: a\nContent-Type: multipart/mixed; boundary=o\n\n--o\nContent-type: multipart/related; boundary = \"o i\"\n\n",
        &b"--o i\ncontent-transfer-encoding: BASE64\n\n"[..],
        &attachment,
        b"\n--o i--\n--o\n\ntext\n--o--\n",
    ]
    .concat();
    assert!(has_chunk(&cut(&nested), &attachment));
    let single = [b"From: a\nContent-Transfer-Encoding: base64\n\n", &attachment[..], b"\n"].concat();
    assert!(has_chunk(&cut(&single), &attachment));
}

#[test]
fn a_message_without_large_parts_stays_whole() {
    let whole = message(1, "b", "\r\n", &[&base64_text(1, 2000, "\r\n"), &base64_text(2, 2000, "\r\n")]);
    assert_eq!(cut(&whole), [Segment::Chunk(whole)]);
}

#[test]
fn hostile_messages_take_linear_time() {
    let head = b"A: b\nContent-Type: multipart/mixed; boundary=x\n\n".to_vec();
    let attacks: [&[u8]; 7] = [
        b"--x\n",
        b"--x\nA: b\n",
        b"\n--",
        b"--x\nContent-Type: a; boundary=\"x--\"\n\n",
        b"--x\nContent-Type: message/rfc822\n\n",
        b"--x\nContent-Type: message/rfc822\n\nContent-Type: message/rfc822\n\n",
        b"boundary=boundary=boundary=",
    ];
    for attack in attacks {
        let mut bytes = head.clone();
        bytes.extend_from_slice(&attack.repeat((1 << 20) / attack.len()));
        let start = std::time::Instant::now();
        cut(&bytes);
        // Quadratic time would be hours.
        assert!(start.elapsed().as_secs() < 60, "{:?}", String::from_utf8_lossy(attack));
    }
}

#[test]
fn a_redo_log_shares_the_attachments_of_its_messages() {
    let attachments: Vec<Vec<u8>> = [5000, 200_000, 300_000, 3_000_000, 9_000_000, 30_000]
        .iter()
        .enumerate()
        .map(|(number, &length)| base64_text(number as u64, length, "\r\n"))
        .collect();
    let mut log = noise(77, 1000);
    let mut chunks = Vec::new();
    for (number, attachment) in attachments.iter().enumerate() {
        let message = message(number as u64, "==b", "\r\n", &[attachment]);
        log.extend_from_slice(&message);
        log.extend_from_slice(&noise(100 + number as u64, 700));
        chunks.push(cut(&message));
    }
    let log = cut(&log);
    for (message, attachment) in chunks.iter().zip(&attachments) {
        let shared: Vec<Segment> = message.iter().filter(|segment| log.contains(segment)).cloned().collect();
        assert_eq!(join(&shared).len(), attachment.len());
    }
}

#[test]
fn payloads_are_the_same_in_shuffled_zips() {
    let entries = sample_entries();
    let mut shuffled = entries.clone();
    shuffled.reverse();
    shuffled.insert(3, ZipEntry::new("another", noise(50, 60_000), true));
    for entry in &mut shuffled {
        entry.name.insert_str(0, "other/");
    }
    let one = cut(&zip_of(&entries, false));
    let two = cut(&zip_of(&shuffled, false));
    // The chunk that a stream keeps for itself is the directory.
    let own = one.iter().filter(|segment| matches!(segment, Segment::Chunk(_)) && !two.contains(segment)).count();
    assert_eq!(own, 1);
    assert!(has_chunk(&one, &noise(1, 3000)) && has_chunk(&one, &noise(2, 5000)));
    assert!(has_chunk(&one, &noise(5, 700_000)), "a deflated payload up to the largest chunk stays whole");
}

#[test]
fn zip64_records_are_understood() {
    let mut entries = sample_entries();
    for entry in &mut entries {
        entry.is_zip64 = true;
    }
    let segments = cut(&zip_of(&entries, true));
    assert!(has_chunk(&segments, &noise(1, 3000)) && has_chunk(&segments, &noise(2, 5000)));
}

#[test]
fn a_zip_behind_other_data_is_found() {
    let mut bytes = noise(9, WHOLE_FILE_MAX);
    bytes.extend_from_slice(&zip_of(&sample_entries(), false));
    assert!(has_chunk(&cut(&bytes), &noise(2, 5000)));
}

#[test]
fn thousands_of_empty_entries_do_not_fill_the_catalogue() {
    let entries: Vec<ZipEntry> = (0..5000).map(|n| ZipEntry::new(&format!("{n}.msg2"), Vec::new(), false)).collect();
    let literal_bytes: usize = cut(&zip_of(&entries, false))
        .iter()
        .map(|segment| if let Segment::Literal(bytes) = segment { bytes.len() } else { 0 })
        .sum();
    assert!(literal_bytes <= 2 * JOINED_LITERAL_MAX);
}

#[test]
fn a_zip_truncated_or_altered_anywhere_is_delivered_as_it_is() {
    let entries = vec![
        ZipEntry::new("a", noise(1, 200), false),
        ZipEntry { is_zip64: true, ..ZipEntry::new("bb", noise(2, 300), true) },
        ZipEntry::new("ccc", Vec::new(), false),
    ];
    for is_zip64 in [false, true] {
        let zip = zip_of(&entries, is_zip64);
        for length in 0..zip.len() {
            cut(&zip[..length]);
        }
        for at in 0..zip.len() {
            for flip in [0x01, 0xff] {
                let mut altered = zip.clone();
                altered[at] ^= flip;
                cut(&altered);
            }
        }
    }
}

#[test]
fn a_lying_directory_delivers_nothing_twice() {
    let zip = zip_of(&[ZipEntry::new("a", noise(1, 300), false), ZipEntry::new("b", noise(2, 300), false)], false);
    // Both entries at the first one's place.
    let mut twice = zip.clone();
    let second = memchr::memmem::rfind(&twice, b"PK\x01\x02").unwrap();
    twice[second + 42..second + 46].fill(0);
    let segments = cut(&twice);
    assert!(has_chunk(&segments, &noise(1, 300)), "what stood before the trouble keeps its cut");
}

#[test]
fn holes_are_neither_read_nor_chunks() {
    let size = 1 << 40;
    let mut file = memory_file();
    let data = noise(1, 1 << 20);
    file.seek(SeekFrom::Start(1 << 30)).unwrap();
    file.write_all(&data).unwrap();
    file.set_len(size).unwrap();
    let mut recorder = Recorder::default();
    assert_eq!(Chunker::new().split(&file, &stat(size, 1 << 20), &mut recorder).unwrap(), size);
    let (first, rest) = recorder.segments.split_first().unwrap();
    let (last, middle) = rest.split_last().unwrap();
    assert_eq!(*first, Segment::Zeros(1 << 30));
    assert_eq!(*last, Segment::Zeros(size - (1 << 30) - (1 << 20)));
    assert!(join(middle) == data);
}

#[test]
fn holes_at_either_end_and_files_of_nothing_else() {
    let page = noise(1, 4096);
    let shapes: [(&[(u64, u64)], u64); 5] = [
        (&[], 1 << 20),
        (&[(0, 4096)], 1 << 20),
        (&[((1 << 20) - 4096, 1 << 20)], 1 << 20),
        (&[(0, 4096), (65_536, 69_632), (131_072, 135_168)], 200_001),
        (&[(65_536, 65_537)], 65_537),
    ];
    for (extents, size) in shapes {
        let mut file = memory_file();
        file.set_len(size).unwrap();
        for &(start, end) in extents {
            file.seek(SeekFrom::Start(start)).unwrap();
            file.write_all(&page[..(end - start) as usize]).unwrap();
        }
        let mut recorder = Recorder::default();
        assert_eq!(Chunker::new().split(&file, &stat(size, 0), &mut recorder).unwrap(), size);
        let mut expected = vec![0; size as usize];
        for &(start, end) in extents {
            expected[start as usize..end as usize].copy_from_slice(&page[..(end - start) as usize]);
        }
        assert!(join(&recorder.segments) == expected);
        assert!(recorder.segments.iter().any(|segment| matches!(segment, Segment::Zeros(_))));
    }
}

#[test]
fn a_compressed_file_without_holes_is_cut_as_any_other() {
    let zip = zip_of(&sample_entries(), false);
    let mut file = memory_file();
    file.write_all(&zip).unwrap();
    let mut recorder = Recorder::default();
    Chunker::new().split(&file, &stat(zip.len() as u64, 4096), &mut recorder).unwrap();
    assert!(has_chunk(&recorder.segments, &noise(2, 5000)));
}

#[test]
fn a_file_that_changed_size_is_read_to_the_nearer_end() {
    let zip = zip_of(&sample_entries(), false);
    let message = message(1, "b", "\n", &[&base64_text(1, 300_000, "\n")]);
    for bytes in [noise(1, 3_000_000), zip, message, noise(2, 1000)] {
        let mut file = memory_file();
        file.write_all(&bytes).unwrap();
        let length = bytes.len() as u64;
        for size in [length / 2, length + 1_000_000] {
            for allocated in [size, 0] {
                let mut recorder = Recorder::default();
                let delivered = Chunker::new().split(&file, &stat(size, allocated), &mut recorder).unwrap();
                assert_eq!(delivered, size.min(length));
                assert!(join(&recorder.segments) == bytes[..delivered as usize]);
            }
        }
    }
}

#[test]
fn a_closed_sink_ends_the_cut() {
    let mut file = memory_file();
    let zip = zip_of(&sample_entries(), false);
    file.write_all(&zip).unwrap();
    for closes_after in 0..5 {
        let mut recorder = Recorder { closes_after: Some(closes_after), ..Recorder::default() };
        let result = Chunker::new().split(&file, &stat(zip.len() as u64, u64::MAX), &mut recorder);
        assert!(matches!(result, Err(ChunkerError::SinkClosed)));
    }
}

#[test]
fn an_unreadable_file_is_an_error() {
    let directory = File::open("/").unwrap();
    let result = Chunker::new().split(&directory, &stat(100, 100), &mut Recorder::default());
    assert!(matches!(result, Err(ChunkerError::Read(_))));
}

#[test]
fn one_chunker_splits_many_files_alike() {
    let mut chunker = Chunker::new();
    let files = [
        noise(1, 100),
        noise(2, 5_000_000),
        message(1, "b", "\n", &[&base64_text(1, 10_000_000, "\n")]),
        noise(3, 200),
    ];
    for bytes in files {
        let mut file = memory_file();
        file.write_all(&bytes).unwrap();
        let mut recorder = Recorder::default();
        chunker.split(&file, &stat(bytes.len() as u64, u64::MAX), &mut recorder).unwrap();
        assert!(recorder.segments == cut(&bytes));
    }
}

/// Pieces that parsers stumble over, between stretches of noise.
fn mail_like() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(b"\n--b\n".to_vec()),
        Just(b"\r\n--b\r\n".to_vec()),
        Just(b"\n--b--\n".to_vec()),
        Just(b"\n--b----\n".to_vec()),
        Just(b"\n\n".to_vec()),
        Just(b"--".to_vec()),
        Just(b"Content-Type: multipart/x; boundary=\"b--\"\n".to_vec()),
        Just(b"Content-Type: message/rfc822\n\n".to_vec()),
        Just(b"\nContent-Transfer-Encoding: base64\n".to_vec()),
        Just(b"\nContent-Transfer-Encoding: base64\r\n\r\n".to_vec()),
        (any::<u64>(), 0usize..20_000).prop_map(|(seed, length)| base64_text(seed, length, "\r\n")),
        (any::<u64>(), 0usize..60_000).prop_map(|(seed, length)| noise(seed, length)),
    ];
    (any::<bool>(), prop::collection::vec(piece, 0..24)).prop_map(|(is_mail, pieces)| {
        let head: &[u8] = if is_mail { b"A: b\nContent-Type: multipart/mixed; boundary=b\n" } else { b"" };
        [head, &pieces.concat()].concat()
    })
}

fn any_entry() -> impl Strategy<Value = ZipEntry> {
    let payload = prop_oneof![
        (any::<u64>(), 0usize..300).prop_map(|(seed, length)| noise(seed, length)),
        (any::<u64>(), 0usize..200_000).prop_map(|(seed, length)| noise(seed, length)),
        mail_like(),
    ];
    ("[a-z]{0,20}", payload, any::<bool>(), any::<bool>()).prop_map(|(name, payload, is_deflated, is_zip64)| ZipEntry {
        name,
        payload,
        is_deflated,
        is_zip64,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_are_delivered(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
        cut(&bytes);
    }

    #[test]
    fn mail_like_bytes_are_delivered(bytes in mail_like()) {
        cut(&bytes);
    }

    #[test]
    fn altered_zips_are_delivered(
        entries in prop::collection::vec(any_entry(), 0..8),
        is_zip64: bool,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 0..6),
        cut_off in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut zip = zip_of(&entries, is_zip64);
        for (at, value, near_end) in edits {
            let reach = if near_end { zip.len().min(600) } else { zip.len() };
            let at = zip.len() - reach + at.index(reach);
            zip[at] = value;
        }
        if let Some(at) = cut_off {
            zip.truncate(at.index(zip.len()));
        }
        cut(&zip);
    }

    #[test]
    fn every_attachment_is_found_again(seed: u64, length in 4096usize..400_000, other in 0usize..30_000) {
        let attachment = base64_text(seed, length, "\r\n");
        let one = cut(&message(1, "one", "\r\n", &[&attachment]));
        let two = cut(&message(2, "two--", "\r\n", &[&base64_text(!seed, other, "\r\n"), &attachment]));
        let shared: Vec<Segment> = one.into_iter().filter(|segment| two.contains(segment)).collect();
        prop_assert_eq!(join(&shared).len(), attachment.len());
    }

    #[test]
    fn every_payload_is_found_again(entries in prop::collection::vec(any_entry(), 1..6)) {
        let mut reversed = entries.clone();
        reversed.reverse();
        let one = cut(&zip_of(&entries, false));
        let two = cut(&zip_of(&reversed, true));
        for entry in &entries {
            let alone = cut(&zip_of(std::slice::from_ref(entry), false));
            for segment in alone.iter().filter(|segment| matches!(segment, Segment::Chunk(_))) {
                // A short one may be a joined literal.
                prop_assert!(one.contains(segment) && two.contains(segment));
            }
        }
    }
}
