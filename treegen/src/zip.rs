//! A zip writer that puts the bytes down as Zimbra's Java code does.
//!
//! Stored entries carry their sizes in the local header. Deflated ones have flag bit 3, zero sizes there and a data
//! descriptor with signature behind the data. Zip64 records appear beyond 65,535 entries or 4 GiB. Structures: PKWARE
//! APPNOTE 4.3 and 4.5.

use std::io::{self, Write};

const LOCAL_HEADER: u32 = 0x0403_4b50;
const DESCRIPTOR: u32 = 0x0807_4b50;
const CENTRAL_HEADER: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const ZIP64_END: u32 = 0x0606_4b50;
const ZIP64_LOCATOR: u32 = 0x0706_4b50;
/// Sizes follow in a data descriptor.
const FLAG_DESCRIPTOR: u16 = 1 << 3;
/// The name is UTF-8.
const FLAG_UTF8: u16 = 1 << 11;

/// One entry, as the central directory will record it.
#[derive(Debug)]
struct Entry {
    name: Vec<u8>,
    method: u16,
    flags: u16,
    dos_time: u32,
    crc: u32,
    packed_size: u32,
    size: u32,
    offset: u64,
}

/// A message as deflated bytes, with what the headers say about it.
#[derive(Debug, Clone, Copy)]
pub struct Deflated<'a> {
    /// CRC-32 of the plain bytes.
    pub crc: u32,
    /// Number of plain bytes.
    pub size: u32,
    /// The deflated bytes.
    pub data: &'a [u8],
}

/// Writes a zip from start to end.
#[derive(Debug)]
pub struct ZipWriter<W> {
    out: W,
    at: u64,
    entries: Vec<Entry>,
}

impl<W: Write> ZipWriter<W> {
    /// Starts an empty zip.
    pub fn new(out: W) -> Self {
        Self { out, at: 0, entries: Vec::new() }
    }

    /// Starts a zip that pretends to stand behind `at` earlier bytes; lets tests reach offsets beyond 4 GiB.
    #[cfg(test)]
    pub(crate) fn starting_at(out: W, at: u64) -> Self {
        Self { out, at, entries: Vec::new() }
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.at += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn local_header(&mut self, entry: &Entry) -> io::Result<()> {
        let deferred = entry.flags & FLAG_DESCRIPTOR != 0;
        let mut h = Vec::with_capacity(30 + entry.name.len());
        h.extend_from_slice(&LOCAL_HEADER.to_le_bytes());
        h.extend_from_slice(&(if entry.method == 0 { 10u16 } else { 20 }).to_le_bytes());
        h.extend_from_slice(&entry.flags.to_le_bytes());
        h.extend_from_slice(&entry.method.to_le_bytes());
        h.extend_from_slice(&entry.dos_time.to_le_bytes());
        for field in [entry.crc, entry.packed_size, entry.size] {
            h.extend_from_slice(&(if deferred { 0 } else { field }).to_le_bytes());
        }
        h.extend_from_slice(&(entry.name.len() as u16).to_le_bytes());
        h.extend_from_slice(&0u16.to_le_bytes());
        h.extend_from_slice(&entry.name);
        self.put(&h)
    }

    /// Adds an entry without compression.
    pub fn stored(&mut self, name: &str, dos_time: u32, data: &[u8]) -> io::Result<()> {
        let mut crc = flate2::Crc::new();
        crc.update(data);
        let size = u32::try_from(data.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let entry = Entry {
            name: name.as_bytes().to_vec(),
            method: 0,
            flags: FLAG_UTF8,
            dos_time,
            crc: crc.sum(),
            packed_size: size,
            size,
            offset: self.at,
        };
        self.local_header(&entry)?;
        self.put(data)?;
        self.entries.push(entry);
        Ok(())
    }

    /// Adds an entry that is deflated already.
    pub fn deflated(&mut self, name: &str, dos_time: u32, packed: Deflated<'_>) -> io::Result<()> {
        let packed_size = u32::try_from(packed.data.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let entry = Entry {
            name: name.as_bytes().to_vec(),
            method: 8,
            flags: FLAG_UTF8 | FLAG_DESCRIPTOR,
            dos_time,
            crc: packed.crc,
            packed_size,
            size: packed.size,
            offset: self.at,
        };
        self.local_header(&entry)?;
        self.put(packed.data)?;
        let mut descriptor = [0u8; 16];
        for (field, value) in descriptor.chunks_exact_mut(4).zip([DESCRIPTOR, entry.crc, packed_size, entry.size]) {
            field.copy_from_slice(&value.to_le_bytes());
        }
        self.put(&descriptor)?;
        self.entries.push(entry);
        Ok(())
    }

    /// Writes the central directory and hands the output back.
    pub fn finish(mut self) -> io::Result<W> {
        let directory = self.at;
        for entry in std::mem::take(&mut self.entries) {
            self.central_header(&entry)?;
            self.entries.push(entry);
        }
        let (count, size) = (self.entries.len() as u64, self.at - directory);
        let zip64 = count > 0xffff || directory > 0xffff_ffff || size > 0xffff_ffff;
        let mut tail = Vec::new();
        if zip64 {
            let record = self.at;
            tail.extend_from_slice(&ZIP64_END.to_le_bytes());
            tail.extend_from_slice(&44u64.to_le_bytes());
            tail.extend_from_slice(&45u16.to_le_bytes());
            tail.extend_from_slice(&45u16.to_le_bytes());
            tail.extend_from_slice(&[0; 8]);
            for field in [count, count, size, directory] {
                tail.extend_from_slice(&field.to_le_bytes());
            }
            tail.extend_from_slice(&ZIP64_LOCATOR.to_le_bytes());
            tail.extend_from_slice(&0u32.to_le_bytes());
            tail.extend_from_slice(&record.to_le_bytes());
            tail.extend_from_slice(&1u32.to_le_bytes());
        }
        let short = count.min(0xffff) as u16;
        tail.extend_from_slice(&END.to_le_bytes());
        tail.extend_from_slice(&[0; 4]);
        tail.extend_from_slice(&short.to_le_bytes());
        tail.extend_from_slice(&short.to_le_bytes());
        tail.extend_from_slice(&(size.min(0xffff_ffff) as u32).to_le_bytes());
        tail.extend_from_slice(&(directory.min(0xffff_ffff) as u32).to_le_bytes());
        tail.extend_from_slice(&0u16.to_le_bytes());
        self.put(&tail)?;
        Ok(self.out)
    }

    fn central_header(&mut self, entry: &Entry) -> io::Result<()> {
        let is_zip64 = entry.offset >= 0xffff_ffff;
        let mut h = Vec::with_capacity(64 + entry.name.len());
        let version: u16 = match (is_zip64, entry.method) {
            (true, _) => 45,
            (false, 0) => 10,
            (false, _) => 20,
        };
        h.extend_from_slice(&CENTRAL_HEADER.to_le_bytes());
        h.extend_from_slice(&version.to_le_bytes());
        h.extend_from_slice(&version.to_le_bytes());
        h.extend_from_slice(&entry.flags.to_le_bytes());
        h.extend_from_slice(&entry.method.to_le_bytes());
        h.extend_from_slice(&entry.dos_time.to_le_bytes());
        for field in [entry.crc, entry.packed_size, entry.size] {
            h.extend_from_slice(&field.to_le_bytes());
        }
        h.extend_from_slice(&(entry.name.len() as u16).to_le_bytes());
        h.extend_from_slice(&(if is_zip64 { 12u16 } else { 0 }).to_le_bytes());
        // Comment length, disk, internal and external attributes.
        h.extend_from_slice(&[0; 10]);
        h.extend_from_slice(&(entry.offset.min(0xffff_ffff) as u32).to_le_bytes());
        h.extend_from_slice(&entry.name);
        if is_zip64 {
            h.extend_from_slice(&1u16.to_le_bytes());
            h.extend_from_slice(&8u16.to_le_bytes());
            h.extend_from_slice(&entry.offset.to_le_bytes());
        }
        self.put(&h)
    }
}
