//! Builds noise, messages and zips that are the same everywhere and forever.

/// Pseudo-random bytes (xorshift64*), the same everywhere and forever.
pub(super) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Text of the base64 alphabet in lines of 76, of about the given length.
pub(super) fn base64_text(seed: u64, length: usize, line_end: &str) -> Vec<u8> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let letters: Vec<u8> = noise(seed, length).iter().map(|b| ALPHABET[usize::from(b & 63)]).collect();
    letters.chunks(76).collect::<Vec<_>>().join(line_end.as_bytes())
}

/// A multipart message with a text and attachments.
pub(super) fn message(seed: u64, boundary: &str, line_end: &str, attachments: &[&[u8]]) -> Vec<u8> {
    let mut text = format!(
        "Return-Path: <a{seed}@example.com>\nMIME-Version: 1.0\nContent-Type: multipart/mixed;\n\tboundary=\"{boundary}\"\n\
         Subject: Number {seed}\n\nThis is a multi-part message.\n--{boundary}\nContent-Type: text/plain\n\nHello {seed}\n"
    )
    .replace('\n', line_end)
    .into_bytes();
    for attachment in attachments {
        let part = format!(
            "--{boundary}\nContent-Type: application/pdf; name={seed}.pdf\nContent-Transfer-Encoding: base64\n\
             Content-Disposition: attachment\n\n"
        );
        text.extend_from_slice(part.replace('\n', line_end).as_bytes());
        text.extend_from_slice(attachment);
        text.extend_from_slice(line_end.as_bytes());
    }
    text.extend_from_slice(format!("--{boundary}--\n").replace('\n', line_end).as_bytes());
    text
}

/// How an entry of a test zip is written.
#[derive(Clone, Debug)]
pub(super) struct ZipEntry {
    pub(super) name: String,
    pub(super) payload: Vec<u8>,
    pub(super) is_deflated: bool,
    pub(super) is_zip64: bool,
}

impl ZipEntry {
    pub(super) fn new(name: &str, payload: Vec<u8>, is_deflated: bool) -> Self {
        ZipEntry { name: name.to_owned(), payload, is_deflated, is_zip64: false }
    }
}

/// Writes a zip as Zimbra does: sizes in the local header of a stored entry, behind the data of a deflated one. The
/// payload stands for deflated data; nothing here inflates it.
pub(super) fn zip_of(entries: &[ZipEntry], is_zip64: bool) -> Vec<u8> {
    let mut zip = Vec::new();
    let mut directory = Vec::new();
    for (number, entry) in entries.iter().enumerate() {
        let offset = zip.len();
        let size = entry.payload.len() as u32;
        let flags: u16 = if entry.is_deflated { 8 } else { 0 };
        let method: u16 = if entry.is_deflated { 8 } else { 0 };
        let local_size = if entry.is_deflated { 0 } else { size };
        let mut fixed = Vec::new();
        fixed.extend_from_slice(&45u16.to_le_bytes());
        fixed.extend_from_slice(&flags.to_le_bytes());
        fixed.extend_from_slice(&method.to_le_bytes());
        fixed.extend_from_slice(&(0x5A5A_0000 + number as u32).to_le_bytes());
        fixed.extend_from_slice(&0u32.to_le_bytes());
        zip.extend_from_slice(b"PK\x03\x04");
        zip.extend_from_slice(&fixed);
        zip.extend_from_slice(&local_size.to_le_bytes());
        zip.extend_from_slice(&local_size.to_le_bytes());
        zip.extend_from_slice(&(entry.name.len() as u16).to_le_bytes());
        // An extra field that the directory does not have.
        zip.extend_from_slice(&9u16.to_le_bytes());
        zip.extend_from_slice(entry.name.as_bytes());
        zip.extend_from_slice(b"UT\x05\x00\x01time");
        zip.extend_from_slice(&entry.payload);
        if entry.is_deflated {
            zip.extend_from_slice(b"PK\x07\x08CRC.");
            zip.extend_from_slice(&size.to_le_bytes());
            zip.extend_from_slice(&size.to_le_bytes());
        }
        let mut extra = Vec::new();
        let (shown_size, shown_offset) = if entry.is_zip64 { (u32::MAX, u32::MAX) } else { (size, offset as u32) };
        if entry.is_zip64 {
            extra.extend_from_slice(&[1, 0, 24, 0]);
            for value in [u64::from(size), u64::from(size), offset as u64] {
                extra.extend_from_slice(&value.to_le_bytes());
            }
        }
        directory.extend_from_slice(b"PK\x01\x02\x2d\x03");
        directory.extend_from_slice(&fixed);
        directory.extend_from_slice(&shown_size.to_le_bytes());
        directory.extend_from_slice(&shown_size.to_le_bytes());
        directory.extend_from_slice(&(entry.name.len() as u16).to_le_bytes());
        directory.extend_from_slice(&(extra.len() as u16).to_le_bytes());
        directory.extend_from_slice(&[0; 10]);
        directory.extend_from_slice(&shown_offset.to_le_bytes());
        directory.extend_from_slice(entry.name.as_bytes());
        directory.extend_from_slice(&extra);
    }
    let directory_offset = zip.len() as u64;
    zip.extend_from_slice(&directory);
    let count = entries.len() as u64;
    if is_zip64 {
        let record_offset = zip.len() as u64;
        zip.extend_from_slice(b"PK\x06\x06");
        zip.extend_from_slice(&44u64.to_le_bytes());
        zip.extend_from_slice(&[45, 3, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        for value in [count, count, directory.len() as u64, directory_offset] {
            zip.extend_from_slice(&value.to_le_bytes());
        }
        zip.extend_from_slice(b"PK\x06\x07\0\0\0\0");
        zip.extend_from_slice(&record_offset.to_le_bytes());
        zip.extend_from_slice(&1u32.to_le_bytes());
        zip.extend_from_slice(b"PK\x05\x06\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0");
    } else {
        zip.extend_from_slice(b"PK\x05\x06\0\0\0\0");
        zip.extend_from_slice(&(count as u16).to_le_bytes());
        zip.extend_from_slice(&(count as u16).to_le_bytes());
        zip.extend_from_slice(&(directory.len() as u32).to_le_bytes());
        zip.extend_from_slice(&(directory_offset as u32).to_le_bytes());
        zip.extend_from_slice(&[0, 0]);
    }
    zip
}

pub(super) fn sample_entries() -> Vec<ZipEntry> {
    vec![
        ZipEntry::new("blobs/1/0/a=257-3.msg1", noise(1, 3000), false),
        ZipEntry::new("blobs/1/0/b=258-4.msg1", noise(2, 5000), true),
        ZipEntry::new("blobs/1/0/c=259-5.msg2", Vec::new(), false),
        ZipEntry::new("blobs/1/0/d=260-6.msg1", message(7, "=_x", "\r\n", &[&base64_text(8, 9000, "\r\n")]), false),
        ZipEntry::new("blobs/1/0/e=261-7.msg1", noise(3, 40), true),
        ZipEntry::new("blobs/1/0/f=262-8.msg1", noise(4, 1_500_000), true),
        ZipEntry::new("blobs/1/0/g=263-9.msg1", noise(5, 700_000), true),
        ZipEntry::new("blobs/1/0/h=264-9.msg1", noise(6, 700_000), false),
    ]
}
