//! What listings and messages have in common: stats, names and paths, extended attributes, and problems.
//!
//! **Stat**: a byte of flags, then what they leave open, as differences to the stat before it in the same payload (all zero before the first). Bits 0-2 the
//! kind; 3 mode, uid and gid as before; 4 link count 1; 5 allocated bytes are the size rounded up to 4,096; 6 ctime equals mtime; 7 a birth time follows.
//! Then unless bit 3 mode, uid, gid; unless bit 4 the link count; size; unless bit 5 allocated units of 512 bytes; for devices the device number; inode number
//! (signed difference); file system (see below); mtime (signed difference of seconds, nanoseconds); unless bit 6 ctime (signed difference of seconds to mtime,
//! nanoseconds); with bit 7 the birth time likewise. Where a stat has a device number of its file system, the number of the file system in the scan stands:
//! `st_dev` changes at a reboot, and means nothing on another host.

use crate::coding::{DecodeError, Decoder, put_bytes, put_signed, put_varint};
use crate::model::{Kind, Stat, Timestamp, Xattr, ZERO_STAT};
use crate::source::scan::{Problem, ProblemKind};

/// The longest path that is taken, in bytes.
pub const PATH_MAX_BYTES: usize = 128 << 10;
/// The file system of a stat that lies on none of the scan, such as that of a mount point that is not entered.
pub const NO_FILE_SYSTEM: u64 = u64::MAX >> 1;

/// Most bytes of all extended attributes of one inode that are taken. Linux allows 64 KiB each, and file systems far less together.
pub const XATTRS_MAX_BYTES: usize = 16 << 20;

/// The longest text of a problem that is taken; what is longer is cut.
const PROBLEM_TEXT_MAX_BYTES: usize = 1024;

/// A time of day that no stat has.
const BAD_NANOS: DecodeError = DecodeError("a time with more than a second's nanoseconds");

/// Carries what stats of one payload have in common from one to the next.
#[derive(Clone, Debug)]
pub struct StatCoder {
    last: Stat,
}

impl Default for StatCoder {
    fn default() -> StatCoder {
        StatCoder { last: ZERO_STAT }
    }
}

fn is_device(kind: Kind) -> bool {
    matches!(kind, Kind::CharDevice | Kind::BlockDevice)
}

fn put_time(out: &mut Vec<u8>, time: Timestamp, base: i64) {
    put_signed(out, time.seconds.wrapping_sub(base));
    put_varint(out, u64::from(time.nanos));
}

fn time(decoder: &mut Decoder<'_>, base: i64) -> Result<Timestamp, DecodeError> {
    let seconds = base.wrapping_add(decoder.signed()?);
    let nanos = decoder.varint32()?;
    if nanos >= 1_000_000_000 { Err(BAD_NANOS) } else { Ok(Timestamp { seconds, nanos }) }
}

impl StatCoder {
    /// Appends a stat, whose `dev` is the number of its file system.
    pub fn put(&mut self, out: &mut Vec<u8>, stat: &Stat) {
        let last = &self.last;
        let same_owner = (stat.mode, stat.uid, stat.gid) == (last.mode, last.uid, last.gid);
        let usual_allocation = stat.allocated_bytes == stat.size.div_ceil(4096).saturating_mul(4096);
        let mut flags = stat.kind as u8;
        for (bit, set) in [
            (3, same_owner),
            (4, stat.nlink == 1),
            (5, usual_allocation),
            (6, stat.ctime == stat.mtime),
            (7, stat.btime.is_some()),
        ] {
            flags |= u8::from(set) << bit;
        }
        out.push(flags);
        if !same_owner {
            put_varint(out, u64::from(stat.mode));
            put_varint(out, u64::from(stat.uid));
            put_varint(out, u64::from(stat.gid));
        }
        if stat.nlink != 1 {
            put_varint(out, u64::from(stat.nlink));
        }
        put_varint(out, stat.size);
        if !usual_allocation {
            put_varint(out, stat.allocated_bytes / 512);
        }
        if is_device(stat.kind) {
            put_varint(out, stat.rdev);
        }
        put_signed(out, stat.ino.wrapping_sub(last.ino) as i64);
        put_varint(out, stat.dev);
        put_time(out, stat.mtime, last.mtime.seconds);
        if stat.ctime != stat.mtime {
            put_time(out, stat.ctime, stat.mtime.seconds);
        }
        if let Some(birth) = stat.btime {
            put_time(out, birth, stat.mtime.seconds);
        }
        self.last = *stat;
    }

    /// Reads a stat.
    ///
    /// # Errors
    /// For bytes that no side writes.
    pub fn get(&mut self, decoder: &mut Decoder<'_>) -> Result<Stat, DecodeError> {
        let flags = decoder.byte()?;
        let set = |bit: u8| flags & (1 << bit) != 0;
        let kind = Kind::from_repr(flags & 7).ok_or(DecodeError("an unknown kind of inode"))?;
        let (mode, uid, gid) = if set(3) {
            (self.last.mode, self.last.uid, self.last.gid)
        } else {
            (decoder.varint32()?, decoder.varint32()?, decoder.varint32()?)
        };
        if mode > 0o7777 {
            return Err(DecodeError("permission bits that do not exist"));
        }
        let nlink = if set(4) { 1 } else { decoder.varint32()? };
        let size = decoder.varint()?;
        let allocated_bytes =
            if set(5) { size.div_ceil(4096).saturating_mul(4096) } else { decoder.varint()?.saturating_mul(512) };
        let rdev = if is_device(kind) { decoder.varint()? } else { 0 };
        let ino = self.last.ino.wrapping_add(decoder.signed()? as u64);
        let dev = decoder.varint()?;
        let mtime = time(decoder, self.last.mtime.seconds)?;
        let ctime = if set(6) { mtime } else { time(decoder, mtime.seconds)? };
        let btime = if set(7) { Some(time(decoder, mtime.seconds)?) } else { None };
        let stat = Stat { kind, mode, uid, gid, nlink, size, allocated_bytes, rdev, ino, dev, mtime, ctime, btime };
        self.last = stat;
        Ok(stat)
    }
}

/// Appends one extended attribute.
pub fn put_xattr(out: &mut Vec<u8>, xattr: &Xattr) {
    put_bytes(out, &xattr.name);
    put_bytes(out, &xattr.value);
}

/// Reads one extended attribute; what came before it and what may come bounds `total`.
///
/// # Errors
/// For bytes that no side writes, and for more than [`XATTRS_MAX_BYTES`].
pub fn xattr(decoder: &mut Decoder<'_>, xattrs: &mut Vec<Xattr>, total: &mut usize) -> Result<(), DecodeError> {
    let (name, value) = (decoder.bytes()?, decoder.bytes()?);
    *total += name.len() + value.len() + 64;
    if *total > XATTRS_MAX_BYTES {
        return Err(DecodeError("more extended attributes than an inode can have"));
    }
    if name.is_empty() || name.contains(&0) || xattrs.last().is_some_and(|last| *last.name >= *name) {
        return Err(DecodeError("extended attributes without names, or out of order"));
    }
    xattrs.push(Xattr { name: name.into(), value: value.into() });
    Ok(())
}

/// Refuses names that could lead elsewhere.
pub(super) fn checked_name(name: &[u8]) -> Result<&[u8], DecodeError> {
    let bad =
        matches!(name, b"" | b"." | b"..") || name.len() > 4096 || name.iter().any(|byte| matches!(byte, 0 | b'/'));
    if bad { Err(DecodeError("a name that no file has")) } else { Ok(name) }
}

/// Refuses paths that are too long or could lead elsewhere; the empty one is the root.
pub(super) fn checked_path(path: Vec<u8>) -> Result<Vec<u8>, DecodeError> {
    if path.len() > PATH_MAX_BYTES {
        return Err(DecodeError("a path that is longer than is taken"));
    }
    if !path.is_empty() {
        path.split(|byte| *byte == b'/').try_for_each(|name| checked_name(name).map(|_| ()))?;
    }
    Ok(path)
}

/// Appends a problem of the scan.
pub fn put_problem(out: &mut Vec<u8>, problem: &Problem) {
    put_bytes(out, &problem.path);
    out.push(match problem.kind {
        ProblemKind::Unreadable => 0,
        ProblemKind::Vanished => 1,
        ProblemKind::TooLong => 2,
        ProblemKind::Mounted => 3,
        ProblemKind::TooManyOpenFiles => 4,
    });
    put_bytes(out, problem.message.as_bytes());
    put_signed(out, i64::from(problem.errno));
}

/// Reads a problem of the scan.
///
/// # Errors
/// For bytes that no side writes.
pub fn problem(decoder: &mut Decoder<'_>) -> Result<Problem, DecodeError> {
    let path = decoder.bytes()?;
    let path = path[..path.len().min(PATH_MAX_BYTES)].to_vec();
    let kind = match decoder.byte()? {
        0 => ProblemKind::Unreadable,
        1 => ProblemKind::Vanished,
        2 => ProblemKind::TooLong,
        3 => ProblemKind::Mounted,
        4 => ProblemKind::TooManyOpenFiles,
        _ => return Err(DecodeError("an unknown kind of problem")),
    };
    let text = decoder.bytes()?;
    let message = String::from_utf8_lossy(&text[..text.len().min(PROBLEM_TEXT_MAX_BYTES)]).into_owned();
    let errno = i32::try_from(decoder.signed()?).map_err(|_| DecodeError("an error number out of range"))?;
    Ok(Problem { path, kind, message, errno })
}
