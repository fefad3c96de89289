//! Zips and messages, judged by Python's parsers.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use super::{create, named, small};
use crate::zip::{Deflated, ZipWriter};
use crate::{BlobMode, Config, clock};

/// Runs a Python program over paths and returns what it prints.
fn python(program: &str, paths: &[PathBuf]) -> Vec<String> {
    let output = Command::new("python3")
        .arg("-c")
        .arg(program)
        .args(paths)
        .output()
        .expect("these tests need python3 as the judge of zips");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// Tests every zip, and prints for each entry: zip, name, method, flag bits, times, size, hash of the payload.
const LIST_ZIPS: &str = "
import sys, zipfile, hashlib
for path in sys.argv[1:]:
    z = zipfile.ZipFile(path)
    assert z.testzip() is None, path
    for i in z.infolist():
        print(path[-11:-4], i.filename, i.compress_type, i.flag_bits, '%d%02d%02d.%02d%02d' % i.date_time[:5], i.file_size, hashlib.sha1(z.read(i)).hexdigest())
";

#[test]
fn zips_are_valid_and_shuffled_while_payloads_stay() {
    for (blobs, method, flags) in [(BlobMode::Zipstore, "0", "2048"), (BlobMode::Zip, "8", "2056")] {
        let tree = create(small(blobs));
        let mut seen: Vec<Vec<Vec<String>>> = Vec::new();
        for full in tree.fulls() {
            let zips: Vec<PathBuf> = named(&full, |n| n.ends_with(".zip")).into_iter().map(|p| full.join(p)).collect();
            assert_eq!(zips.iter().filter(|z| z.to_str().unwrap().contains("/accounts/")).count(), 4 * 5);
            assert!(zips.iter().filter(|z| z.to_str().unwrap().contains("/shared_blobs/")).count() >= 3);
            let entries: Vec<Vec<String>> =
                python(LIST_ZIPS, &zips).iter().map(|l| l.split(' ').map(str::to_owned).collect()).collect();
            let label = full.file_name().unwrap().to_str().unwrap();
            assert!(entries.iter().all(|e| e[2] == method && e[3] == flags && e[4][..8] == label[5..13]));
            seen.push(entries);
        }
        // Name, size and payload are the same for what stays; place, order and time are not.
        let key = |e: &Vec<String>| (e[1].clone(), e[5].clone(), e[6].clone());
        let sets: Vec<BTreeSet<_>> = seen.iter().map(|s| s.iter().map(key).collect()).collect();
        assert!(sets[0].intersection(&sets[1]).count() > 100);
        let place: Vec<HashMap<_, _>> =
            seen.iter().map(|s| s.iter().map(|e| (key(e), e[0].clone())).collect()).collect();
        assert!(place[0].iter().filter(|(k, zip)| place[1].get(k).is_some_and(|z| z != *zip)).count() > 40);
        let order = |s: &Vec<Vec<String>>| {
            s.iter().map(key).filter(|k| sets[0].contains(k) && sets[1].contains(k)).collect::<Vec<_>>()
        };
        assert_ne!(order(&seen[0]), order(&seen[1]));
    }
}

#[test]
fn zip64_records_serve_many_entries_and_large_offsets() {
    use std::io::{Seek as _, SeekFrom};
    let home = TempDir::new().unwrap();
    let many = home.path().join("many.zip");
    let mut zip = ZipWriter::new(std::io::BufWriter::new(fs::File::create(&many).unwrap()));
    let time = clock::dos_time(1_785_546_000_000);
    for n in 0..65_540 {
        zip.stored(&n.to_string(), time, b"").unwrap();
    }
    zip.finish().unwrap().into_inner().unwrap();
    let large_offset = home.path().join("far.zip");
    let mut file = fs::File::create(&large_offset).unwrap();
    file.seek(SeekFrom::Start(5 << 30)).unwrap();
    let mut zip = ZipWriter::starting_at(file, 5 << 30);
    zip.stored("one", time, b"behind a hole").unwrap();
    zip.deflated("two", time, Deflated { crc: 0, size: 0, data: &[3, 0] }).unwrap();
    zip.finish().unwrap();
    let lines = python(
        "import sys, zipfile\nfor p in sys.argv[1:]:\n z = zipfile.ZipFile(p)\n print(len(z.infolist()), z.read(z.infolist()[0]), z.read(z.infolist()[1]))",
        &[many, large_offset],
    );
    assert_eq!(lines, ["65540 b'' b''", "2 b'behind a hole' b''"]);
}

#[test]
fn messages_parse_and_have_their_sizes() {
    let tree =
        create(Config { accounts: 2, messages: 300, fulls: 1, mean_size_bytes: 10_000, ..small(BlobMode::Files) });
    let paths: Vec<PathBuf> =
        named(&tree.root, |n| n.ends_with(".msg1")).into_iter().map(|p| tree.root.join(p)).collect();
    let total: u64 = paths.iter().map(|p| fs::metadata(p).unwrap().len()).sum();
    let mean = total / paths.len() as u64;
    assert!((5_000..20_000).contains(&mean), "{mean}");
    let lines = python(
        "
import sys, os, email, hashlib, base64, email.utils
attached = 0
for path in sys.argv[1:]:
    data = open(path, 'rb').read()
    assert os.path.basename(path).startswith(base64.b64encode(hashlib.sha1(data).digest()).decode().replace('/', ',')), path
    assert b'\\n' not in data.replace(b'\\r\\n', b''), path
    m = email.message_from_bytes(data)
    for name in ('Date', 'From', 'To', 'Subject', 'Message-ID'):
        assert m[name], (path, name)
    assert email.utils.parsedate_to_datetime(m['Date'])
    for part in m.walk():
        part.get_payload(decode=True)
        assert not part.defects, (path, part.defects)
        attached += part.get_content_disposition() == 'attachment'
print(attached * 100 // len(sys.argv[1:]))
",
        &paths,
    );
    let percent: u32 = lines[0].parse().unwrap();
    assert!((15..=32).contains(&percent), "{percent}");
}
