//! The readers on what the vendor writes, on what is broken, and on anything at all.

use std::io::Read;

use proptest::prelude::*;

use super::*;

const HEAD: &str =
    "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<backupMetadata xmlns=\"urn:zimbraBackupMeta\" version=\"7.1\">";
const LABEL: &str = "full-20260801.050004.118";

fn accounts(bytes: &[u8]) -> (Vec<AccountEntry>, Reading) {
    let mut found = Vec::new();
    let reading = read_accounts(bytes, |entry| found.push(entry)).unwrap();
    (found, reading)
}

fn session(text: &str) -> (SessionFile, Vec<SessionItem>) {
    let mut items = Vec::new();
    let file = read_session(text.as_bytes(), |item| items.push(item)).unwrap();
    (file, items)
}

fn many_accounts(count: usize) -> String {
    let mut text = format!("{HEAD}<allAccounts>\n");
    for number in 0..count {
        text += &format!(
            "<account zimbraId=\"3F38c5be-{number:04}\" email=\"Account{number}@example.com\" latestFullBackupLabel=\"{LABEL}\"></account>\n"
        );
    }
    text + "</allAccounts></backupMetadata>\n"
}

#[test]
fn the_vendors_files_are_read() {
    let (found, reading) = accounts(many_accounts(3).as_bytes());
    assert_eq!(found.len(), 3);
    assert_eq!(found[1].id, "3f38c5be-0001");
    assert_eq!(found[1].email, "Account1@example.com");
    assert_eq!(found[1].latest.as_deref(), Some(LABEL));
    assert_eq!((reading.remark("backupMetadata"), reading.version.as_deref()), (None, Some("7.1")));

    let (file, items) = session(&format!(
        "{HEAD}<backupSet label=\"{LABEL}\" zcsRelease=\"7.2.7_GA_2942\" startTime=\"1785560404118\" endTime=\"1785563911402\"
         minRedoSeq=\"117\" maxRedoSeq=\"118\" sharedBlobsZipped=\"false\" type=\"full\" accountsDirectoryDepth=\"2\" aborted=\"1\">
         <accounts><account zimbraId=\"a-1\" email=\"a@example.com\" status=\"COMPLETED\"></account>
         <account zimbraId=\"a-2\" email=\"b@example.com\" status=\"ERROR\"/></accounts>
         <errors><error email=\"b@example.com\"><message>no &amp; space&#10;left</message></error></errors>
         </backupSet></backupMetadata>"
    ));
    assert!(file.found && file.aborted && file.reading.complete);
    assert_eq!((file.kind, file.min_redo, file.max_redo), (Some(SessionKind::Full), Some(117), Some(118)));
    assert_eq!(file.end.unwrap().as_millisecond(), 1_785_563_911_402);
    assert_eq!((file.depth, file.shared_zipped), (Some(2), Some(false)));
    assert_eq!(items.len(), 3);
    let SessionItem::Account(second) = &items[1] else { panic!("{items:?}") };
    assert_eq!((second.id.as_str(), second.status), ("a-2", AccountStatus::Error));
    let SessionItem::Error(error) = &items[2] else { panic!("{items:?}") };
    assert_eq!((error.email.as_str(), error.message.as_str()), ("b@example.com", "no & space\nleft"));

    let meta = format!(
        "{HEAD}<accountBackup zimbraId=\"a-1\" email=\"a@example.com\" mailboxId=\"42\" startTime=\"1785560404118\" endTime=\"0\" redoSeq=\"117\" \
         server=\"mail\"><x/></accountBackup></backupMetadata>"
    );
    let meta = read_meta(meta.as_bytes()).unwrap();
    assert_eq!((meta.redo_sequence, meta.end, meta.reading.complete), (Some(117), None, true));
}

use crate::layout::label::SessionKind;

#[test]
fn forbidden_characters_and_unknown_entities_are_no_obstacle() {
    let text = format!(
        "{HEAD}<account zimbraId=\"a-1\" email=\"bell&#7;@x&unknown;&lt;\" latestFullBackupLabel='{LABEL}'/>\u{7}\u{0}&#7;&nothing; & \
         <account zimbraId=\"a-2\" email=\"&#xFFFFFFFF;&#55296;\"/></backupMetadata>"
    );
    let (found, reading) = accounts(text.as_bytes());
    assert_eq!(found.len(), 2, "{reading:?}");
    assert_eq!(found[0].email, "bell\u{7}@x&unknown;<");
    assert_eq!(found[1].email, "\u{fffd}\u{fffd}");
    assert!(reading.complete);
}

#[test]
fn what_precedes_and_follows_damage_is_used() {
    let whole = many_accounts(100);
    for end in [whole.len() - 20, whole.len() / 2, HEAD.len() + 30] {
        let (found, reading) = accounts(&whole.as_bytes()[..end]);
        let complete = whole[..end].matches("Label=\"full-20260801.050004.118\">").count();
        assert_eq!(found.len(), complete, "cut at {end}");
        assert!(!reading.complete);
        assert!(reading.remark("backupMetadata").is_some());
    }
    // A block of zeros or noise in the middle, as a file system leaves after a crash.
    for noise in [vec![0; 4096], b"<<< \" ' > & <!x <? </ <![CDATA[ ".repeat(50), b"<account zimbraId=\"a".to_vec()] {
        let mut bytes = whole.clone().into_bytes();
        let at = whole.find("zimbraId=\"3F38c5be-0050\"").unwrap();
        bytes.splice(at..at, noise.iter().copied());
        let (found, _) = accounts(&bytes);
        assert!(found.iter().any(|entry| entry.id.ends_with("0049")));
        let lost = (0..100).filter(|number| !found.iter().any(|entry| entry.id.ends_with(&format!("{number:04}"))));
        assert!(lost.count() <= 51, "what follows an unclosed CDATA is text");
    }
    let broken = whole.replacen("email=\"Account7@example.com\"", "email=Account7 =\"\" a b='", 1);
    let (found, _) = accounts(broken.as_bytes());
    assert_eq!(found.len(), 99, "only the account with the broken tag is lost");
    let broken = whole.replacen("email=\"Account7@example.com\"", "email=\"Account7@example.com", 1);
    assert_eq!(accounts(broken.as_bytes()).0.len(), 99);
}

#[test]
fn other_roots_and_versions_are_read_and_said() {
    let (found, reading) = accounts(b"<x:all version='99.5-beta'><x:account zimbraId='A'/></x:all>");
    assert_eq!((found.len(), reading.version.as_deref()), (1, Some("99.5-beta")));
    assert!(reading.remark("backupMetadata").unwrap().contains("root element is all"));
    let (_, reading) = accounts(b"not XML at all");
    assert!(reading.remark("backupMetadata").unwrap().contains("no XML element"));
    let (_, reading) = accounts(b"");
    assert!(!reading.complete && reading.root.is_none());
}

#[test]
fn entity_bombs_do_not_explode() {
    let mut text = String::from("<!DOCTYPE bomb [<!ENTITY a0 \"haha\">");
    for level in 1..40 {
        text += &format!("<!ENTITY a{level} \"{}\">", format!("&a{};", level - 1).repeat(10));
    }
    text += "]><backupMetadata version='7.1'><account zimbraId='1' email='&a39;'>&a39;</account></backupMetadata>";
    let (found, reading) = accounts(text.as_bytes());
    assert_eq!((found.len(), found[0].email.as_str(), reading.complete), (1, "&a39;", true));
}

/// An endless or long input made of one piece again and again, between a beginning and an end.
fn long(head: &str, piece: &'static [u8], total: u64, tail: &'static str) -> impl Read {
    let middle = std::iter::repeat(piece).flatten().copied();
    let middle = IterRead(middle).take(total);
    std::io::Cursor::new(head.to_owned().into_bytes()).chain(middle).chain(tail.as_bytes())
}

struct IterRead<I>(I);

impl<I: Iterator<Item = u8>> Read for IterRead<I> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut count = 0;
        for (slot, byte) in buffer.iter_mut().zip(&mut self.0) {
            *slot = byte;
            count += 1;
        }
        Ok(count)
    }
}

#[test]
fn long_texts_and_tags_are_stepped_over() {
    let tail = "</x><account zimbraId='after'/></backupMetadata>";
    let cases: [(&str, &[u8]); 5] =
        [("<x>", b"x"), ("<x y='", b"y"), ("<x ", b"a='b' "), ("<x><!-- ", b"- "), ("<x>", b"&amp;")];
    for (opening, piece) in cases {
        let head = format!("{HEAD}<account zimbraId='before'/>{opening}");
        let mut found = Vec::new();
        let reading = read_accounts(long(&head, piece, 6 << 20, tail), |entry| found.push(entry.id)).unwrap();
        assert_eq!(found.first().map(String::as_str), Some("before"), "{opening}");
        assert_eq!(found.last().map(String::as_str), Some("after"), "{opening}: {reading:?}");
    }
}

#[test]
fn a_hundred_megabytes_stream_through() {
    // Read without being held: the visitor counts and keeps nothing.
    let piece = b"<account zimbraId=\"3f38c5be-1b08-463c-8326-d7e26b2a515a\" email=\"a@example.com\"></account>\n";
    let total = (100u64 << 20) / piece.len() as u64 * piece.len() as u64;
    let mut count = 0u64;
    let reading = read_accounts(long(HEAD, piece, total, "</backupMetadata>"), |_| count += 1).unwrap();
    assert_eq!(count, total / piece.len() as u64);
    assert!(reading.complete && reading.faults == 0);
}

#[test]
fn a_failing_input_is_an_error() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("the chunk is damaged"))
        }
    }
    let input = std::io::Cursor::new(b"<a><b/>".to_vec()).chain(Failing);
    let error = read_accounts(input, |_| {}).unwrap_err();
    assert!(error.to_string().contains("the chunk is damaged"), "{error}");
}

/// Reads bytes with every reader; what comes out is bounded by what goes in.
fn all_readers(bytes: &[u8]) {
    let mut kept = 0;
    read_accounts(bytes, |entry| kept += entry.id.len() + entry.email.len()).unwrap();
    read_session(bytes, |item| {
        if let SessionItem::Error(error) = item {
            kept += error.message.len();
        }
    })
    .unwrap();
    read_meta(bytes).unwrap();
    // U+FFFD takes three bytes for one.
    assert!(kept <= 6 * bytes.len() + VALUE_MAX_BYTES);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read_to_the_end(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        all_readers(&bytes);
    }

    #[test]
    fn any_markup_is_read_to_the_end(pieces in prop::collection::vec(prop::sample::select(vec![
        "<", ">", "/", "=", "\"", "'", "&", ";", "#", "<!", "<!--", "-->", "<![CDATA[", "]]>", "<?", "?>", "<!DOCTYPE", "[", "]", " ", "\n", "\0",
        "account", "error", "message", "backupSet", "zimbraId=\"a\"", "email='b'", "<account zimbraId=\"a\">", "</account>", "<error>", "</error>",
        "&#7;", "&amp;", "&x;", "\u{feff}", "é", "x:",
    ]), 0..120)) {
        all_readers(pieces.concat().as_bytes());
    }

    #[test]
    fn damage_of_a_real_file_loses_little(at in 0usize..6000, length in 1usize..64, noise in prop::collection::vec(any::<u8>(), 0..64)) {
        let whole = many_accounts(50);
        let mut bytes = whole.clone().into_bytes();
        let at = at.min(bytes.len());
        let end = (at + length).min(bytes.len());
        bytes.splice(at..end, noise.iter().copied());
        all_readers(&bytes);
        // Whatever stood before is there.
        let before = whole[..at].matches("></account>").count();
        let (found, _) = accounts(&bytes);
        prop_assert!(found.len() >= before, "{} of {before}", found.len());
    }
}
