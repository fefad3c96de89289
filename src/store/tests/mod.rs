mod backends;

use std::sync::Arc;

use proptest::prelude::*;

use super::pack::ENTRY_HEADER_BYTES;
use super::*;
use crate::ids::DictionaryId;
use crate::model::{ChunkHash, Codec};

/// Makes pseudo-random bytes that do not compress.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Makes text that looks like mail: fixed header lines, varying words.
fn mail(seed: u64, length: usize) -> Vec<u8> {
    const WORDS: [&str; 16] = [
        "meeting", "the", "invoice", "tomorrow", "please", "regards", "and", "attached", "project", "we", "server",
        "from", "backup", "your", "is", "question",
    ];
    let random = noise(seed, length + 64);
    let mut text = format!(
        "Return-Path: <user{}@example.com>\r\nReceived: from mta.example.com (LHLO mta.example.com) by mailbox.example.com\r\n\
         Message-ID: <{}.{}@example.com>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n",
        random[0],
        u64::from_le_bytes(random[1..9].try_into().unwrap()),
        seed
    );
    for byte in random {
        if text.len() >= length {
            break;
        }
        text.push_str(WORDS[usize::from(byte & 15)]);
        text.push(if byte > 240 { '\n' } else { ' ' });
    }
    text.truncate(length);
    text.into_bytes()
}

struct Sample {
    backend: Arc<MemoryBackend>,
    pack: FinishedPack,
    chunks: Vec<(ChunkAddress, Vec<u8>)>,
    dictionaries: Arc<DictionarySet>,
}

/// Builds a pack with a dictionary and the given chunks, and stores it.
fn store(plains: Vec<Vec<u8>>, dictionary: Option<Arc<Dictionary>>) -> Sample {
    let mut builder = PackBuilder::new(1 << 20, PackId::unique(3).unwrap());
    let dictionaries = Arc::new(DictionarySet::new());
    if let Some(dictionary) = &dictionary {
        builder.push_dictionary(dictionary).unwrap();
        dictionaries.insert(Arc::clone(dictionary)).unwrap();
    }
    let mut compressor = Compressor::new(3, dictionary).unwrap();
    let mut placed = Vec::new();
    for plain in plains {
        let stored = compressor.compress(&plain).unwrap();
        let (hash, plain_length) = (ChunkHash::of(&plain), plain.len() as u32);
        let stored_length = stored.bytes.len() as u32;
        let offset = builder.push(hash, plain_length, stored.codec, stored.bytes).unwrap();
        placed.push((offset, stored_length, plain));
    }
    let pack = builder.finish();
    let backend = Arc::new(MemoryBackend::new());
    pack.put(&*backend).unwrap();
    let chunks = placed.into_iter().map(|(offset, stored_length, plain)| {
        let location = Location { pack: pack.id, offset, stored_length, plain_length: plain.len() as u32 };
        (ChunkAddress { location, hash_prefix: ChunkHash::of(&plain).prefix() }, plain)
    });
    let chunks = chunks.collect();
    Sample { backend, pack, chunks, dictionaries }
}

fn small_dictionary() -> Arc<Dictionary> {
    // Any bytes serve as a dictionary; these are what the mails begin with.
    Arc::new(Dictionary::new(number(7), mail(1, 600)))
}

fn number(number: u32) -> DictionaryId {
    DictionaryId::decoded(number).unwrap()
}

/// A pack with every kind of entry, small enough to damage each byte in turn.
fn small_sample() -> Sample {
    store(vec![mail(2, 500), noise(3, 90), mail(4, 300), vec![b'a'; 200], b"x".to_vec()], Some(small_dictionary()))
}

impl Sample {
    fn reader(&self) -> ChunkReader {
        ChunkReader::new(self.backend.clone(), self.dictionaries.clone())
    }

    fn verify(&self) -> PackFindings {
        // Without dictionaries: the pack has what is needed.
        verify_pack(&*self.backend, self.pack.id, &DictionarySet::new()).unwrap()
    }
}

#[test]
fn chunks_come_back_and_the_pack_agrees() {
    let sample = small_sample();
    let reader = sample.reader();
    for (address, plain) in &sample.chunks {
        assert_eq!(&reader.read_chunk(&address.location, address.hash_prefix).unwrap(), plain);
    }
    let findings = sample.verify();
    assert_eq!(findings.damage, []);
    assert_eq!(findings.entries, list_pack(&*sample.backend, sample.pack.id).unwrap().entries);
    assert_eq!(findings.entries[0].header.dictionary, Some(number(7)));
    let found: Vec<Location> = findings.entries[1..].iter().map(|entry| entry.location(findings.id)).collect();
    let expected: Vec<Location> = sample.chunks.iter().map(|(address, _)| address.location).collect();
    assert_eq!(found, expected);
    let codecs: Vec<Codec> = findings.entries.iter().map(|entry| entry.header.codec).collect();
    let (plain, with) = (Codec::Plain, Codec::ZstdDictionary(number(7)));
    assert_eq!(codecs, [plain, with, plain, with, with, plain]);
}

const GOLDEN_ENTRIES: [&str; 2] = [
    // BLAKE3("abc"), lengths, codec and dictionary id, the stored bytes
    "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85030000000300000000000000616263",
    // the same of the dictionary
    "ddcb233f877efd9f0771aac39507284eb46ac55955dce461c98c7f4573a0ca4c04000000040000008003020164696374",
];

fn golden(header: &str, trailer: [&str; 3]) -> Vec<u8> {
    let digits = [&[header], &GOLDEN_ENTRIES[..], &trailer].concat().concat();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn golden_pack() {
    let mut builder = PackBuilder::new(1000, PackId([0x5a; 16]));
    let offset = builder.push(ChunkHash::of(b"abc"), 3, Codec::Plain, b"abc").unwrap();
    assert_eq!(offset, 80);
    builder.push_dictionary(&Dictionary::new(number(0x01_02_03), b"dict".to_vec())).unwrap();
    let length = builder.finished_bytes();
    let pack = builder.finish();
    assert_eq!(length, pack.bytes.len());
    let header = [
        // magic, flags
        "5a4d525041434b320000000000000000",
        // the id
        "5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a",
        // key generation, check value, salt: nothing is encrypted
        "000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000000",
        "00000000",
    ];
    let expected = golden(
        &header.concat(),
        [
            // two entries, 247 bytes
            "0200000000000000f700000000000000",
            // the digest of the headers
            "5ce9da7606ecec9a73e7b475ff4b5669cad9fe14d673027a64ffe7aa2b634d6e",
            // the checksum of everything, magic
            "c752692b35b9ce5047b1303aa139c10b5a4d5250454e4431",
        ],
    );
    assert_eq!(hex(&pack.bytes), hex(&expected));
    assert_eq!(pack.id.key(), format!("packs/{}/{}", &pack.id.to_string()[..2], pack.id));
    assert_eq!(PackId::from_key(&pack.id.key()), Some(pack.id));
    assert_eq!(PackId::from_key("packs/00/11"), None);
    // Digits of another case would be a second key of the same pack, and a sign is no digit.
    assert!("ab".repeat(16).parse::<PackId>().is_ok());
    for digits in ["AB".repeat(16), "+f".repeat(16), "ab".repeat(15), format!("{}a", "ab".repeat(16))] {
        assert!(digits.parse::<PackId>().is_err(), "{digits}");
    }
    assert!("0".repeat(31).parse::<PackId>().is_err() && "A".repeat(32).parse::<PackId>().is_err());
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the first version wrote is read for ever.
#[test]
fn golden_pack_of_format_1() {
    let bytes = golden(
        "5a4d525041434b310000000000000000",
        [
            "0200000000000000b700000000000000",
            "0b71b742942596b2ef481afd399d93642b01aea71b09362891c4651ac546694e",
            "1173177eccfd3d439f5c807ff0e956d05a4d5250454e4431",
        ],
    );
    let id: PackId = "0b71b742942596b2ef481afd399d9364".parse().unwrap();
    let backend = MemoryBackend::new();
    backend.put(&id.key(), &[&bytes]).unwrap();
    let listing = list_pack(&backend, id).unwrap();
    assert_eq!((listing.format, listing.entries.len(), listing.entries[0].offset), (PackFormat::V1, 2, 16));
    let findings = verify_pack(&backend, id, &DictionarySet::new()).unwrap();
    assert_eq!((findings.format, findings.damage.len(), &findings.entries), (PackFormat::V1, 0, &listing.entries));
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x01;
        backend.damage(&id.key(), Some(damaged));
        assert!(!verify_pack(&backend, id, &DictionarySet::new()).unwrap().damage.is_empty(), "byte {at}");
    }
}

#[test]
fn ids_never_repeat_and_are_in_the_order_of_epochs() {
    let ids: std::collections::BTreeSet<PackId> = (0..1000).map(|n| PackId::unique(n / 10).unwrap()).collect();
    assert_eq!(ids.len(), 1000);
    let epochs: Vec<u32> = ids.iter().map(|id| u32::from_be_bytes(id.0[..4].try_into().unwrap())).collect();
    assert!(epochs.is_sorted());
}

/// Makes the trailer fit bytes that were changed: a version that knows more wrote them.
fn as_a_newer_version(mut bytes: Vec<u8>) -> Vec<u8> {
    let at = bytes.len() - 24;
    let checksum = blake3::hash(&bytes[..at]);
    bytes[at..at + 16].copy_from_slice(&checksum.as_bytes()[..16]);
    bytes
}

#[test]
fn what_a_newer_version_wrote_is_unsupported_and_no_damage() {
    let sample = small_sample();
    let key = sample.pack.id.key();
    let (address, _) = &sample.chunks[1];
    let codec_at = address.location.offset as usize + 40;
    // An unknown codec, an unknown flag, an unknown header.
    for (at, value) in [(codec_at, 9), (8, 1), (7, b'7')] {
        let mut bytes = sample.pack.bytes.clone();
        bytes[at] = value;
        sample.backend.damage(&key, Some(bytes.clone()));
        assert!(!sample.verify().damage.is_empty(), "damaged as long as the checksum does not fit");
        sample.backend.damage(&key, Some(as_a_newer_version(bytes)));
        let id = sample.pack.id;
        let verified = verify_pack(&*sample.backend, id, &DictionarySet::new()).map(|_| ());
        for found in [list_pack(&*sample.backend, id).map(|_| ()), verified] {
            let error = found.unwrap_err();
            assert!(!error.is_damage() && matches!(error, ChunkError::Unsupported { .. }), "byte {at}: {error}");
        }
    }
    let mut bytes = sample.pack.bytes.clone();
    bytes[codec_at] = 9;
    sample.backend.damage(&key, Some(as_a_newer_version(bytes)));
    let error = sample.reader().read_chunk(&address.location, address.hash_prefix).unwrap_err();
    assert!(!error.is_damage() && error.to_string().contains("codec 9"), "{error}");
    let (other, plain) = &sample.chunks[0];
    assert_eq!(&sample.reader().read_chunk(&other.location, other.hash_prefix).unwrap(), plain, "the others are read");
}

/// Reads all chunks: each is either right or an error. Returns how many are right.
fn right_or_error(sample: &Sample, reader: &ChunkReader) -> usize {
    let mut right = 0;
    for (address, plain) in &sample.chunks {
        match reader.read_chunk(&address.location, address.hash_prefix) {
            Ok(read) => {
                assert_eq!(&read, plain);
                right += 1;
            }
            Err(error) => assert!(error.is_damage(), "{error}"),
        }
    }
    let addresses: Vec<ChunkAddress> = sample.chunks.iter().map(|(address, _)| *address).collect();
    let mut right_in_run = 0;
    reader.read_run(&addresses, |index, plain| {
        if let Ok(plain) = plain {
            assert_eq!(plain, sample.chunks[index].1);
            right_in_run += 1;
        }
    });
    assert_eq!(right, right_in_run);
    right
}

/// Checks that the findings list nothing but what was stored; returns how many chunks it found.
fn listed_is_true(sample: &Sample, findings: &PackFindings) -> usize {
    let chunks = findings.entries.iter().filter(|entry| entry.header.dictionary.is_none());
    let known = |entry: &&PackEntry| {
        let same = |(address, plain): &(ChunkAddress, Vec<u8>)| {
            address.location == entry.location(findings.id) && ChunkHash::of(plain) == entry.header.hash
        };
        assert!(sample.chunks.iter().any(same), "{entry:?}");
        true
    };
    chunks.filter(known).count()
}

#[test]
fn every_flipped_byte_is_reported_and_costs_one_chunk() {
    let sample = small_sample();
    let reader = sample.reader();
    let key = sample.pack.id.key();
    let all = sample.chunks.len();
    let dictionary_end = sample.chunks[0].0.location.offset as usize;
    for at in 0..sample.pack.bytes.len() {
        for mask in [0x01, 0x80, 0xff] {
            let mut bytes = sample.pack.bytes.clone();
            bytes[at] ^= mask;
            sample.backend.damage(&key, Some(bytes));
            assert!(right_or_error(&sample, &reader) >= all - 1, "byte {at} {mask:#x}");
            let findings = sample.verify();
            assert!(!findings.damage.is_empty(), "byte {at} {mask:#x} went unnoticed");
            // Without its dictionary most is lost to a look at this pack alone; with it, one chunk.
            let known = verify_pack(&*sample.backend, sample.pack.id, &sample.dictionaries).unwrap();
            assert!(listed_is_true(&sample, &known) >= all - 1, "byte {at} {mask:#x}: {:?}", known.damage);
            if at >= dictionary_end {
                assert!(listed_is_true(&sample, &findings) >= all - 1);
            }
            if let Ok(listed) = list_pack(&*sample.backend, sample.pack.id) {
                assert_eq!(listed.entries.len(), all + 1, "byte {at}: a list is whole or an error");
            }
        }
    }
}

#[test]
fn every_truncation_is_reported() {
    let sample = small_sample();
    let reader = sample.reader();
    let key = sample.pack.id.key();
    for length in 0..sample.pack.bytes.len() {
        sample.backend.damage(&key, Some(sample.pack.bytes[..length].to_vec()));
        let whole = sample.chunks.iter().filter(|(address, _)| {
            address.location.offset as usize + ENTRY_HEADER_BYTES + address.location.stored_length as usize <= length
        });
        let whole = whole.count();
        assert_eq!(right_or_error(&sample, &reader), whole);
        let findings = sample.verify();
        assert!(!findings.damage.is_empty(), "length {length}");
        assert_eq!(listed_is_true(&sample, &findings), whole, "length {length}");
        assert!(list_pack(&*sample.backend, sample.pack.id).is_err());
    }
    sample.backend.damage(&key, None);
    assert_eq!(right_or_error(&sample, &reader), 0);
    let missing = verify_pack(&*sample.backend, sample.pack.id, &sample.dictionaries);
    assert!(matches!(missing, Err(ChunkError::MissingPack { .. })));
}

#[test]
fn a_pack_under_the_name_of_another_is_reported() {
    let sample = small_sample();
    let other = store(vec![mail(9, 100)], None);
    sample.backend.damage(&sample.pack.id.key(), Some(other.pack.bytes));
    assert_eq!(right_or_error(&sample, &sample.reader()), 0);
    assert!(!sample.verify().damage.is_empty());
    assert!(list_pack(&*sample.backend, sample.pack.id).is_err());
}

#[test]
fn a_location_or_prefix_that_differs_is_refused() {
    let sample = small_sample();
    let reader = sample.reader();
    let ChunkAddress { location, hash_prefix } = sample.chunks[0].0;
    let refused = |location: Location, prefix| reader.read_chunk(&location, prefix).unwrap_err().to_string();
    assert!(refused(location, [0; 8]).contains("the hash prefix"));
    let longer = Location { plain_length: location.plain_length + 1, ..location };
    assert!(refused(longer, hash_prefix).contains("the plain length is 500 and should be 501"));
    let stored = Location { stored_length: location.stored_length + 1, ..location };
    assert!(refused(stored, hash_prefix).contains("the stored length"));
    let huge = Location { stored_length: u32::MAX, plain_length: u32::MAX, ..location };
    assert!(refused(huge, hash_prefix).contains("longer than the limit"));
    let dictionary = Location { pack: location.pack, offset: 80, stored_length: 600, plain_length: 600 };
    assert!(refused(dictionary, ChunkHash::of(&mail(1, 600)).prefix()).contains("a dictionary"));
    let unknown = ChunkReader::new(sample.backend.clone(), Arc::default());
    assert!(unknown.read_chunk(&location, hash_prefix).unwrap_err().to_string().contains("Dictionary 7 is not known"));
}

#[test]
fn a_failing_read_is_not_damage() {
    let sample = small_sample();
    let ChunkAddress { location, hash_prefix } = sample.chunks[0].0;
    sample.backend.fail_after(1);
    let error = sample.reader().read_chunk(&location, hash_prefix).unwrap_err();
    assert!(!error.is_damage(), "{error}");
    assert!(sample.reader().read_chunk(&location, hash_prefix).is_ok());
}

#[test]
fn a_run_of_neighbours_is_one_read() {
    let sample = store((0..50).map(|seed| mail(seed, 3000)).collect(), None);
    let addresses: Vec<ChunkAddress> = sample.chunks.iter().map(|(address, _)| *address).collect();
    sample.backend.clear_operations();
    let mut next = 0;
    sample.reader().read_run(&addresses, |index, plain| {
        assert_eq!((index, &plain.unwrap()), (next, &sample.chunks[index].1));
        next += 1;
    });
    assert_eq!(next, 50);
    assert_eq!(sample.backend.operations().len(), 1);
    // In any order, each is right all the same.
    let reversed: Vec<ChunkAddress> = addresses.into_iter().rev().collect();
    sample.reader().read_run(&reversed, |index, plain| assert_eq!(plain.unwrap(), sample.chunks[49 - index].1));
    sample.reader().read_run(&[], |_, _| panic!("nothing was requested"));
}

#[test]
fn a_run_is_read_into_its_targets_and_verified() {
    let plains = (0..40).map(|seed| if seed % 3 == 0 { noise(seed, 4000) } else { mail(seed, 3000) });
    let sample = store(plains.collect(), None);
    let addresses: Vec<ChunkAddress> = sample.chunks.iter().map(|(address, _)| *address).collect();
    let expected: Vec<u8> = sample.chunks.iter().flat_map(|(_, plain)| plain.clone()).collect();
    // What was in the targets does not matter.
    let mut out = vec![0xa5; expected.len()];
    let read = |reader: &ChunkReader, out: &mut [u8]| {
        let mut targets = Vec::new();
        let mut rest = out;
        for (_, plain) in &sample.chunks {
            let (target, behind) = rest.split_at_mut(plain.len());
            targets.push(target);
            rest = behind;
        }
        reader.read_run_into(&addresses, &mut targets)
    };
    sample.backend.clear_operations();
    read(&sample.reader(), &mut out).unwrap();
    assert_eq!(out, expected);
    assert_eq!(sample.backend.operations().len(), 1);
    let reader = sample.reader();
    let wrong = reader.read_run_into(&addresses[..1], &mut [&mut [0; 7]]).unwrap_err();
    assert!(wrong.to_string().contains("the plain length"), "{wrong}");
    // One changed byte anywhere in the stored bytes of any chunk.
    let key = sample.pack.id.key();
    for address in [addresses[0], addresses[20], addresses[39]] {
        let mut bytes = sample.pack.bytes.clone();
        let end = address.location.offset as usize + ENTRY_HEADER_BYTES + address.location.stored_length as usize;
        bytes[end - 1] ^= 1;
        sample.backend.damage(&key, Some(bytes));
        assert!(read(&reader, &mut out).unwrap_err().is_damage());
    }
    sample.backend.damage(&key, Some(sample.pack.bytes.clone()));
    read(&reader, &mut out).unwrap();
    assert_eq!(out, expected);
}

#[test]
fn a_long_pack_is_verified_in_windows() {
    // Several windows, and entries that cross their borders.
    let plains = (0..40).map(|seed| if seed % 2 == 0 { noise(seed, 500_000) } else { mail(seed, 70_000) });
    let sample = store(plains.collect(), None);
    assert!(sample.pack.bytes.len() > 8 << 20);
    let findings = sample.verify();
    assert_eq!((findings.entries.len(), findings.damage.len()), (40, 0));
    assert_eq!(findings.entries, list_pack(&*sample.backend, sample.pack.id).unwrap().entries);
    let mut bytes = sample.pack.bytes.clone();
    // The stored length of an entry in the middle: the chain breaks there and is found again.
    bytes[sample.chunks[20].0.location.offset as usize + 36] ^= 0x40;
    sample.backend.damage(&sample.pack.id.key(), Some(bytes));
    let findings = sample.verify();
    assert_eq!(listed_is_true(&sample, &findings), 39);
    assert_eq!(findings.damage[0].offset, u64::from(sample.chunks[20].0.location.offset));
}

#[test]
fn entries_that_break_the_format_are_refused() {
    let mut builder = PackBuilder::new(200, PackId([1; 16]));
    let hash = ChunkHash::of(b"");
    assert!(builder.push(hash, 0, Codec::Plain, b"").is_err());
    assert!(builder.push(hash, 5, Codec::Plain, b"four").is_err());
    assert!(builder.push(hash, 4, Codec::Zstd, b"four").is_err());
    for (codec, dictionary) in [(0, 1), (1, 1), (2, 0), (2, 1 << 24), (3, 0)] {
        assert_eq!(Codec::from_numbers(codec, dictionary), None);
    }
    assert!(builder.push(hash, CHUNK_MAX_BYTES + 1, Codec::Zstd, b"four").is_err());
    assert!(!builder.is_full());
    builder.push(hash, 9, Codec::Zstd, b"four").unwrap();
    assert!(builder.is_full());
    assert!(DictionaryId::decoded(0).is_err() && DictionaryId::decoded(1 << 24).is_err());
    let set = DictionarySet::new();
    set.insert(small_dictionary()).unwrap();
    set.insert(small_dictionary()).unwrap();
    assert!(set.insert(Arc::new(Dictionary::new(number(7), vec![1]))).is_err());
}

#[test]
fn codec_choices() {
    let dictionary = small_dictionary();
    let mut compressor = Compressor::new(3, Some(dictionary)).unwrap();
    let mut codec = |plain: &[u8]| compressor.compress(plain).unwrap().codec;
    assert_eq!(codec(&mail(5, 4000)), Codec::ZstdDictionary(number(7)));
    assert_eq!(codec(&mail(5, 40_000)), Codec::Zstd);
    assert_eq!(codec(&mail(5, 400_000)), Codec::Zstd);
    assert_eq!(codec(&noise(5, 4000)), Codec::Plain);
    assert_eq!(codec(&noise(5, 400_000)), Codec::Plain);
    assert_eq!(codec(&[]), Codec::Plain);
    assert!(compressor.compress(&vec![0; CHUNK_MAX_BYTES as usize + 1]).is_err());
}

#[test]
fn a_compression_bomb_takes_no_memory() {
    let stored = zstd::bulk::compress(&vec![0; 64 << 20], 3).unwrap();
    let mut decompressor = Decompressor::new().unwrap();
    let plain = decompressor.decompress(Codec::Zstd, &DictionarySet::new(), &stored, 1000);
    assert!(matches!(plain, Err(CodecError::Zstd(_))));
    let plain = decompressor.decompress(Codec::Zstd, &DictionarySet::new(), &stored, u32::MAX);
    assert!(matches!(plain, Err(CodecError::TooLong { .. })));
}

proptest! {
    #[test]
    fn anything_comes_back(
        pieces in prop::collection::vec((any::<bool>(), any::<u64>(), 1usize..5000), 1..12),
        with_dictionary: bool,
    ) {
        let plains = pieces.iter().map(|&(text, seed, length)| if text { mail(seed, length) } else { noise(seed, length) });
        let sample = store(plains.collect(), with_dictionary.then(small_dictionary));
        prop_assert_eq!(right_or_error(&sample, &sample.reader()), pieces.len());
        prop_assert_eq!(sample.verify().damage, []);
    }

    #[test]
    fn no_stream_makes_the_decompressor_panic(stored in prop::collection::vec(any::<u8>(), 0..300), length in 0u32..100_000) {
        let set = DictionarySet::new();
        set.insert(small_dictionary()).unwrap();
        let mut decompressor = Decompressor::new().unwrap();
        let framed = [&[0x28, 0xb5, 0x2f, 0xfd][..], &stored].concat();
        for codec in [Codec::Plain, Codec::Zstd, Codec::ZstdDictionary(number(7))] {
            for bytes in [&stored, &framed] {
                if let Ok(plain) = decompressor.decompress(codec, &set, bytes, length) {
                    prop_assert_eq!(plain.len(), length as usize);
                }
            }
        }
    }
}

#[test]
fn many_threads_read_at_once() {
    let sample = store((0..60).map(|seed| mail(seed, 2000)).collect(), Some(small_dictionary()));
    let reader = sample.reader();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (reader, sample) = (&reader, &sample);
            scope.spawn(move || {
                for round in 0..600 {
                    let (address, plain) = &sample.chunks[(round * 7 + thread * 11) % 60];
                    assert_eq!(&reader.read_chunk(&address.location, address.hash_prefix).unwrap(), plain);
                }
            });
        }
    });
}
