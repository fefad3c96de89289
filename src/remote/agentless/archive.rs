//! Reads what GNU tar writes with `--format=pax --sparse --xattrs`: members of POSIX.1-2001 (pax), sparse ones in GNU's form 1.0.
//!
//! Blocks of 512 bytes. A member is an optional extended header (type `x`: records `LENGTH KEY=VALUE\n`), a header, and its data, padded to a whole block.
//! A sparse file's data begins with its map: decimal numbers, each on a line (how many regions; offset and length of each), padded to a whole block.
//! Two blocks of zeros end the archive, and zeros fill it up to a multiple of [`RECORD_BYTES`].
//! Sources: POSIX.1-2001 `pax`, "ustar" and "pax" interchange formats; the manual of GNU tar, "Storing Sparse Files"; extended attributes are
//! `SCHILY.xattr.NAME`, with `%3D` for `=` and `%25` for `%` in the name.

use std::io::{self, Read};

use super::find::seconds_and_nanos;
use super::shell::breach;
use crate::model::{Kind, Timestamp, Xattr};
use crate::remote::protocol::fields::{PATH_MAX_BYTES, XATTRS_MAX_BYTES};

/// Size of a block.
const BLOCK_BYTES: usize = 512;
/// Size of a record, 20 blocks: `tar -b 20`.
const RECORD_BYTES: u64 = 20 * BLOCK_BYTES as u64;
/// The longest extended header that is taken: extended attributes, and paths.
const EXTENDED_MAX_BYTES: u64 = (XATTRS_MAX_BYTES + 4 * PATH_MAX_BYTES) as u64;
/// Most regions of a sparse file, 16 bytes each.
const REGIONS_MAX: u64 = 4 << 20;

/// A member, without its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// Its name as it was given to tar.
    pub(super) name: Vec<u8>,
    pub(super) kind: Kind,
    /// Apparent size in bytes; 0 but for a file.
    pub(super) size: u64,
    pub(super) mtime: Timestamp,
    pub(super) rdev: u64,
    /// Target of a symbolic link.
    pub(super) target: Vec<u8>,
    /// Sorted by name.
    pub(super) xattrs: Vec<Xattr>,
    /// Offset and length of what is no hole, in order; `None` if the file has no holes.
    pub(super) regions: Option<Vec<(u64, u64)>>,
}

/// What an extended header says.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
    mtime: Option<Timestamp>,
    sparse_name: Option<Vec<u8>>,
    sparse_size: Option<u64>,
    sparse_version: (Option<u64>, Option<u64>),
    xattrs: Vec<Xattr>,
}

/// Reads an archive to its end and not a byte further.
pub(super) struct Archive<R> {
    input: R,
    taken: u64,
    /// Bytes of the current member that were not read.
    left: u64,
}

impl<R: Read> Archive<R> {
    pub(super) fn new(input: R) -> Archive<R> {
        Archive { input, taken: 0, left: 0 }
    }

    /// Lends the input, for calls between members.
    pub(super) fn input(&self) -> &R {
        &self.input
    }

    fn exact(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        self.input.read_exact(buffer)?;
        self.taken += buffer.len() as u64;
        Ok(())
    }

    fn block(&mut self) -> io::Result<[u8; BLOCK_BYTES]> {
        let mut block = [0; BLOCK_BYTES];
        self.exact(&mut block)?;
        Ok(block)
    }

    fn skip(&mut self, mut count: u64) -> io::Result<()> {
        let mut buffer = [0; 16 << 10];
        while count > 0 {
            let some = count.min(buffer.len() as u64) as usize;
            self.exact(&mut buffer[..some])?;
            count -= some as u64;
        }
        Ok(())
    }

    /// Skips what is left of the current member, and its padding.
    fn leave(&mut self) -> io::Result<()> {
        let left = std::mem::take(&mut self.left);
        self.skip(left)?;
        let over = self.taken % BLOCK_BYTES as u64;
        self.skip((BLOCK_BYTES as u64 - over) % BLOCK_BYTES as u64)
    }

    /// Returns the next member, or `None` behind the last.
    ///
    /// # Errors
    /// `InvalidData` for what tar does not write so; else what the input answers.
    pub(super) fn next(&mut self) -> io::Result<Option<Member>> {
        let mut extended = Extended::default();
        let mut is_extended = false;
        loop {
            self.leave()?;
            let header = self.block()?;
            if header == [0; BLOCK_BYTES] {
                if is_extended || self.block()? != [0; BLOCK_BYTES] {
                    return Err(breach("an archive with a hole"));
                }
                let over = self.taken % RECORD_BYTES;
                self.skip((RECORD_BYTES - over) % RECORD_BYTES)?;
                return Ok(None);
            }
            check_sum(&header)?;
            let size = number(&header[124..136]).ok_or_else(|| breach("a tar header without a size"))?;
            if header[156] == b'x' && !is_extended {
                if size > EXTENDED_MAX_BYTES {
                    return Err(breach("an extended tar header that is too long"));
                }
                let mut bytes = vec![0; size as usize];
                self.exact(&mut bytes)?;
                extended = Extended::parse(&bytes)?;
                is_extended = true;
                continue;
            }
            return self.member(&header, size, extended).map(Some);
        }
    }

    fn member(&mut self, header: &[u8; BLOCK_BYTES], size: u64, extended: Extended) -> io::Result<Member> {
        let kind = match header[156] {
            0 | b'0' | b'7' => Kind::File,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            _ => return Err(breach("a tar member of a kind that was not requested")),
        };
        let name = extended.sparse_name.or(extended.path).unwrap_or_else(|| plain_name(header));
        let mtime = match extended.mtime {
            Some(mtime) => mtime,
            None => {
                let seconds = number(&header[136..148]).and_then(|seconds| i64::try_from(seconds).ok());
                Timestamp { seconds: seconds.ok_or_else(|| breach("a tar header without a time"))?, nanos: 0 }
            }
        };
        let rdev = if matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
            let part = |field: &[u8]| number(field).and_then(|part| u32::try_from(part).ok());
            let (Some(major), Some(minor)) = (part(&header[329..337]), part(&header[337..345])) else {
                return Err(breach("a device node without its numbers"));
            };
            rustix::fs::makedev(major, minor)
        } else {
            0
        };
        let stored = extended.size.unwrap_or(size);
        if stored > i64::MAX as u64 || (kind != Kind::File && stored != 0) {
            return Err(breach("a tar member of a size that nothing has"));
        }
        self.left = stored;
        let target = match kind {
            Kind::Symlink => extended.target.unwrap_or_else(|| text(&header[157..257]).to_vec()),
            _ => Vec::new(),
        };
        let (size, regions) = match (extended.sparse_size, extended.sparse_version) {
            (None, (None, None)) => (stored, None),
            (Some(size), (Some(1), Some(0))) if kind == Kind::File && size <= i64::MAX as u64 => {
                (size, self.regions(size)?)
            }
            _ => return Err(breach("a sparse file in another form than was requested")),
        };
        Ok(Member { name, kind, size, mtime, rdev, target, xattrs: extended.xattrs, regions })
    }

    /// Reads the map of a sparse file; `None` if it has no holes after all.
    fn regions(&mut self, size: u64) -> io::Result<Option<Vec<(u64, u64)>>> {
        let mut map = MapReader { block: [0; BLOCK_BYTES], at: BLOCK_BYTES };
        let count = map.number(self)?;
        if count > REGIONS_MAX {
            return Err(breach("a sparse file of too many regions"));
        }
        let (mut regions, mut end, mut total) = (Vec::new(), 0, 0);
        for _ in 0..count {
            let (offset, length) = (map.number(self)?, map.number(self)?);
            let next = offset.checked_add(length).filter(|next| offset >= end && *next <= size);
            end = next.ok_or_else(|| breach("the map of a sparse file that is out of order"))?;
            total += length;
            if length > 0 {
                regions.push((offset, length));
            }
        }
        if total != self.left {
            return Err(breach("the map of a sparse file that is not that of its data"));
        }
        Ok((total < size).then_some(regions))
    }

    /// Reads some of the current member's data; nothing at its end.
    pub(super) fn data(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let count = self.input.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.taken += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

/// Reads the numbers of a sparse map, block by block.
struct MapReader {
    block: [u8; BLOCK_BYTES],
    at: usize,
}

impl MapReader {
    fn number<R: Read>(&mut self, archive: &mut Archive<R>) -> io::Result<u64> {
        let mut value: Option<u64> = None;
        loop {
            if self.at == BLOCK_BYTES {
                let shorter = archive.left.checked_sub(BLOCK_BYTES as u64);
                archive.left = shorter.ok_or_else(|| breach("a sparse map that ends early"))?;
                self.block = archive.block()?;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            value = match (byte, value) {
                (b'\n', Some(value)) => return Ok(value),
                (b'0'..=b'9', value) => {
                    value.unwrap_or(0).checked_mul(10).and_then(|ten| ten.checked_add(u64::from(byte - b'0')))
                }
                _ => None,
            };
            if value.is_none() {
                return Err(breach("a sparse map that is no list of numbers"));
            }
        }
    }
}

impl Extended {
    fn parse(mut bytes: &[u8]) -> io::Result<Extended> {
        let bad = || breach("an extended tar header that makes no sense");
        let mut found = Extended::default();
        while !bytes.is_empty() {
            let space = bytes.iter().take(20).position(|byte| *byte == b' ').ok_or_else(bad)?;
            let length = decimal(&bytes[..space]).and_then(|length| usize::try_from(length).ok()).ok_or_else(bad)?;
            let record = bytes.get(space + 1..length).and_then(|record| record.strip_suffix(b"\n")).ok_or_else(bad)?;
            bytes = &bytes[length..];
            let equals = memchr::memchr(b'=', record).ok_or_else(bad)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            let number = || decimal(value).ok_or_else(bad);
            match key {
                b"path" => found.path = Some(value.to_vec()),
                b"linkpath" => found.target = Some(value.to_vec()),
                b"size" => found.size = Some(number()?),
                b"mtime" => found.mtime = Some(time(value).ok_or_else(bad)?),
                b"GNU.sparse.name" => found.sparse_name = Some(value.to_vec()),
                b"GNU.sparse.realsize" => found.sparse_size = Some(number()?),
                b"GNU.sparse.major" => found.sparse_version.0 = Some(number()?),
                b"GNU.sparse.minor" => found.sparse_version.1 = Some(number()?),
                _ if key.starts_with(b"GNU.sparse.") => return Err(breach("a sparse file of an old form")),
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        found.xattrs.push(Xattr { name: xattr_name(name).into(), value: value.into() });
                    }
                }
            }
        }
        found.xattrs.sort_unstable();
        let held: usize = found.xattrs.iter().map(|xattr| xattr.name.len() + xattr.value.len() + 64).sum();
        if held > XATTRS_MAX_BYTES || found.xattrs.windows(2).any(|pair| pair[0].name == pair[1].name) {
            return Err(breach("extended attributes that no inode has"));
        }
        Ok(found)
    }
}

/// Undoes `%3D` and `%25`.
fn xattr_name(name: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&byte, after)) = rest.split_first() {
        let (byte, after) = match rest {
            [b'%', b'3', b'D', after @ ..] => (b'=', after),
            [b'%', b'2', b'5', after @ ..] => (b'%', after),
            _ => (byte, after),
        };
        plain.push(byte);
        rest = after;
    }
    plain
}

fn decimal(digits: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(digits).ok()?;
    if text.starts_with('+') { None } else { text.parse().ok() }
}

/// Reads a time of an extended header: a decimal fraction, so that -0.5 is half a second before 0.
fn time(value: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(value).ok()?;
    let (text, negative) = text.strip_prefix('-').map_or((text, false), |text| (text, true));
    let (seconds, nanos) = seconds_and_nanos(text)?;
    let seconds = i64::try_from(decimal(seconds.as_bytes())?).ok()?;
    Some(match (negative, nanos) {
        (false, nanos) => Timestamp { seconds, nanos },
        (true, 0) => Timestamp { seconds: -seconds, nanos: 0 },
        (true, nanos) => Timestamp { seconds: -seconds - 1, nanos: 1_000_000_000 - nanos },
    })
}

/// Returns a field up to its first NUL.
fn text(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|byte| *byte == 0).unwrap_or(field.len())]
}

fn plain_name(header: &[u8; BLOCK_BYTES]) -> Vec<u8> {
    let (name, prefix) = (text(&header[..100]), text(&header[345..500]));
    // GNU tar's own format has something else where ustar has the prefix.
    if prefix.is_empty() || &header[257..263] != b"ustar\0" { name.to_vec() } else { [prefix, b"/", name].concat() }
}

/// Reads a number of a header: octal, or binary where the first bit is set.
fn number(field: &[u8]) -> Option<u64> {
    match field.first()? {
        0x80 => field[1..].iter().try_fold(0u64, |value, byte| Some(value.checked_mul(256)? | u64::from(*byte))),
        _ => {
            let digits = text(field).trim_ascii();
            digits.iter().try_fold(0u64, |value, digit| {
                if (b'0'..=b'7').contains(digit) { Some(value.checked_mul(8)? | u64::from(digit - b'0')) } else { None }
            })
        }
    }
}

fn check_sum(header: &[u8; BLOCK_BYTES]) -> io::Result<()> {
    let sum: u64 =
        header.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u64::from(*byte) }).sum();
    if number(&header[148..156]) == Some(sum) { Ok(()) } else { Err(breach("something that is no tar header")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str, kind: u8, size: usize) -> Vec<u8> {
        let mut header = vec![0; BLOCK_BYTES];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        header[136..147].copy_from_slice(format!("{:011o}", 7).as_bytes());
        header[156] = kind;
        header[257..263].copy_from_slice(b"ustar\0");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        header
    }

    fn put(out: &mut Vec<u8>, name: &str, kind: u8, data: &[u8]) {
        out.extend(header(name, kind, data.len()));
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(BLOCK_BYTES), 0);
    }

    fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let mut length = body + 1;
        while length != body + length.to_string().len() {
            length = body + length.to_string().len();
        }
        [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
    }

    fn end(out: &mut Vec<u8>) {
        out.resize(out.len() + 2 * BLOCK_BYTES, 0);
        out.resize(out.len().next_multiple_of(RECORD_BYTES as usize), 0);
    }

    fn read_all(bytes: &[u8]) -> io::Result<Vec<(Member, Vec<u8>)>> {
        let mut archive = Archive::new(bytes);
        let mut all = Vec::new();
        while let Some(member) = archive.next()? {
            let mut data = Vec::new();
            let mut buffer = [0; 100];
            while let count @ 1.. = archive.data(&mut buffer)? {
                data.extend_from_slice(&buffer[..count]);
            }
            all.push((member, data));
        }
        Ok(all)
    }

    fn sample() -> Vec<u8> {
        let mut out = Vec::new();
        let long = "./".to_owned() + &"n".repeat(300);
        let mut extended = record(b"path", long.as_bytes());
        extended.extend(record(b"mtime", b"-1.25"));
        extended.extend(record(b"SCHILY.xattr.user.b%3D%25", b"a\nb\0=c"));
        extended.extend(record(b"SCHILY.xattr.user.a", b""));
        put(&mut out, "x", b'x', &extended);
        put(&mut out, "./nnn", b'0', &[7; 700]);
        let mut extended = record(b"GNU.sparse.major", b"1");
        extended.extend(record(b"GNU.sparse.minor", b"0"));
        extended.extend(record(b"GNU.sparse.name", b"./sparse"));
        extended.extend(record(b"GNU.sparse.realsize", b"1000000"));
        put(&mut out, "x", b'x', &extended);
        let mut data = b"2\n4096\n3\n1000000\n0\n".to_vec();
        data.resize(BLOCK_BYTES, 0);
        data.extend_from_slice(b"abc");
        put(&mut out, "./other", b'0', &data);
        put(&mut out, "./empty", b'0', b"");
        end(&mut out);
        out
    }

    #[test]
    fn members_are_read() {
        let mut bytes = sample();
        bytes.extend_from_slice(b"ZMREND");
        let all = read_all(&bytes).unwrap();
        assert_eq!(all.len(), 3);
        let (first, data) = &all[0];
        assert_eq!((first.name.len(), first.size, data.as_slice()), (302, 700, &[7; 700][..]));
        assert_eq!(first.mtime, Timestamp { seconds: -2, nanos: 750_000_000 });
        let xattrs: Vec<_> = first.xattrs.iter().map(|xattr| (&*xattr.name, &*xattr.value)).collect();
        assert_eq!(xattrs, [(&b"user.a"[..], &b""[..]), (b"user.b=%", b"a\nb\0=c")]);
        let (second, data) = &all[1];
        assert_eq!((second.name.as_slice(), second.size, data.as_slice()), (&b"./sparse"[..], 1_000_000, &b"abc"[..]));
        assert_eq!(second.regions, Some(vec![(4096, 3)]));
        assert_eq!((all[2].0.name.as_slice(), all[2].0.mtime.seconds), (&b"./empty"[..], 7));
        let mut archive = Archive::new(bytes.as_slice());
        while archive.next().unwrap().is_some() {}
        assert_eq!(archive.input, b"ZMREND");
    }

    #[test]
    fn nothing_bad_is_believed() {
        let good = sample();
        for cut in (0..good.len()).step_by(97) {
            assert_eq!(read_all(&good[..cut]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "{cut}");
        }
        // Whatever changes, it ends, and what is taken is no longer than it may be.
        for at in 0..5 * BLOCK_BYTES {
            for bit in [0, 3, 7] {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                for (member, data) in read_all(&bad).unwrap_or_default() {
                    assert!(data.len() as u64 <= member.size);
                }
            }
        }
        let extended = |records: &[(&[u8], &[u8])]| {
            let mut out = Vec::new();
            let all: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
            put(&mut out, "x", b'x', &all);
            put(&mut out, "./f", b'0', b"10\n0\n1\n");
            end(&mut out);
            read_all(&out).map_err(|error| error.kind())
        };
        let sparse: [(&[u8], &[u8]); 2] = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")];
        for records in [
            &[(b"size".as_slice(), b"99999999999999999999".as_slice())][..],
            &[(b"size", b"-1")],
            &[(b"mtime", b"1.x")],
            &[(b"GNU.sparse.map", b"0,1")],
            &[sparse[0], (b"GNU.sparse.realsize", b"5")],
            &[sparse[0], sparse[1], (b"GNU.sparse.realsize", b"5")],
            &[sparse[0], sparse[1], (b"GNU.sparse.realsize", b"99999999999999999999")],
            &[(b"SCHILY.xattr.user.a", b"1"), (b"SCHILY.xattr.user.a", b"2")],
        ] {
            assert_eq!(extended(records), Err(io::ErrorKind::InvalidData));
        }
        let giant = header("x", b'x', 1 << 30);
        assert_eq!(read_all(&giant).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(read_all(&[b'x'; 2000]).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
