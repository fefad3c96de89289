//! Message blobs in their three forms: individual files, zips of stored entries, zips of deflated entries.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use flate2::{Compress, Compression, FlushCompress, Status};

use crate::clock;
use crate::config::BlobMode;
use crate::digest::Digest;
use crate::disk::{self, DIR_MODE, FILE_MODE};
use crate::error::{Context, Result};
use crate::mailbox::{Item, Mail, domain};
use crate::rng::Rng;
use crate::session::{Part, Scratch, Session};
use crate::zip::{Deflated, ZipWriter};

/// Volume number in blob paths.
const VOLUME: &str = "1";
/// Bits of an item number that don't choose its group: at most 4,096 items share a directory.
const GROUP_BITS: u32 = 12;
/// Zips per account.
const ZIPS: usize = 4;
/// Compression level; with it a message deflates to the same bytes in every session.
const LEVEL: u32 = 6;

fn blob_name(digest: Digest, item: &Item, links: u32) -> String {
    format!("{digest}{}-{}.msg{links}", item.id, item.modified)
}

/// Composes a message and learns its digest.
fn compose(session: &Session<'_>, scratch: &mut Scratch<'_>, mail: Mail, born: u32) -> Digest {
    scratch.composer.compose(mail, born, &mut scratch.message);
    if let Some(digest) = session.known.get(mail) {
        return digest;
    }
    let digest = Digest::of(session.site, session.tables, &scratch.message);
    session.known.set(mail, digest);
    digest
}

/// Reads the digests of messages that stay from the names in the previous full, as far as they aren't known.
pub fn learn(session: &Session<'_>, all: &[Vec<Item>]) -> Result<()> {
    let Some((_, previous)) = session.previous_full() else {
        return Ok(());
    };
    session.parallel(all.len(), |_, account| {
        let items = &all[account];
        if items.first().is_none_or(|i| session.known.get(i.mail).is_some()) {
            return Ok(());
        }
        let mut by_id: HashMap<u32, Digest> = HashMap::new();
        let top = session.account_dir(&previous, account as u32).join("blobs").join(VOLUME);
        let Ok(groups) = std::fs::read_dir(&top) else {
            return Ok(());
        };
        for group in groups {
            let group = group.context("list", &top)?.path();
            for entry in std::fs::read_dir(&group).context("list", &group)? {
                let name = entry.context("list", &group)?.file_name();
                // <digest><item>-<mod>.msg<links>: base64 of a hash ends in '='.
                let parsed = name.to_str().and_then(|n| {
                    let (digest, rest) = n.split_at_checked(n.find('=')? + 1)?;
                    Some((rest.split('-').next()?.parse().ok()?, Digest::parse(digest)?))
                });
                by_id.extend(parsed);
            }
        }
        for item in items {
            if let Some(&digest) = by_id.get(&item.id) {
                session.known.set(item.mail, digest);
            }
        }
        Ok(())
    })
}

/// Learns the digests of the shared messages and, in files mode, writes or links their blobs.
pub fn shared_files(session: &Session<'_>, shared: &[(Mail, u32)]) -> Result<()> {
    let files = session.site.config.blobs == BlobMode::Files;
    let previous = session.previous_full();
    session.parallel(shared.len(), |scratch, at| {
        let (mail, born) = shared[at];
        let known = session.known.get(mail);
        let digest = match known {
            Some(digest) => digest,
            None => compose(session, scratch, mail, born),
        };
        if !files {
            return Ok(());
        }
        let dir = session.dir.join("shared_blobs").join(digest.shared_dir());
        session.disk.mkdir(&dir, DIR_MODE)?;
        let blob = dir.join("blob.dat");
        if let Some((number, previous)) = &previous
            && born <= *number
            && disk::link(&previous.join("shared_blobs").join(digest.shared_dir()).join("blob.dat"), &blob)?
        {
            return Ok(());
        }
        if known.is_some() {
            compose(session, scratch, mail, born);
        }
        session.disk.write(&blob, FILE_MODE, session.moment_ns(0.01, session.site.mail_key(mail)), &scratch.message)
    })
}

/// Writes an account's messages, or only half of them, as individual files: links, new files, and empty placeholders for
/// shared messages.
pub fn private_files(
    session: &Session<'_>,
    scratch: &mut Scratch<'_>,
    account: u32,
    items: &[Item],
    begin: bool,
) -> Result<()> {
    let top = session.account_dir(&session.dir, account).join("blobs");
    let volume = top.join(VOLUME);
    session.disk.mkdir(&volume, DIR_MODE)?;
    let previous = session
        .previous_full()
        .map(|(number, dir)| (number, session.account_dir(&dir, account).join("blobs").join(VOLUME)));
    let (open, close) = session.window(account);
    let mut group: Option<(u32, PathBuf, OwnedFd, Option<OwnedFd>)> = None;
    let now = if begin { items.len() / 2 } else { items.len() };
    for (at, item) in items.iter().enumerate().take(now) {
        let number = item.id >> GROUP_BITS;
        if group.as_ref().is_none_or(|g| g.0 != number) {
            let path = volume.join(number.to_string());
            session.disk.mkdir(&path, DIR_MODE)?;
            let dir = disk::open_dir(&path).context("open the directory", &path)?;
            let old = previous.as_ref().and_then(|(_, p)| disk::open_dir(&p.join(number.to_string())).ok());
            group = Some((number, path, dir, old));
        }
        let Some((_, path, dir, old)) = &group else {
            continue;
        };
        let links = session.site.links(item.mail);
        let mtime_ns = session.moment_ns(
            open + (close - open) * 0.9 * at as f64 / items.len() as f64,
            u64::from(account) << 32 | u64::from(item.id),
        );
        let known = session.known.get(item.mail);
        if let (Mail::Private(..), Some(digest), Some(old), Some((number, _))) = (item.mail, known, old, &previous)
            && item.born <= *number
        {
            let name = blob_name(digest, item, links);
            if disk::link_at(old, &name, dir, &name).context("link", &path.join(&name))? {
                continue;
            }
        }
        let (digest, content): (Digest, &[u8]) = match item.mail {
            Mail::Private(..) => (compose(session, scratch, item.mail, item.born), &scratch.message),
            Mail::Shared(..) => (known.unwrap_or_else(|| compose(session, scratch, item.mail, item.born)), b""),
        };
        let name = blob_name(digest, item, links);
        session.disk.write_at(dir, name.as_str(), FILE_MODE, mtime_ns, content).context("write", &path.join(&name))?;
    }
    let end_ns = session.moment_ns(close, u64::from(account) << 8 | 7);
    disk::touch_dirs(&top, 2, end_ns)
}

/// Deflates the message at hand into `packed`.
fn deflate(deflater: &mut Compress, scratch: &mut Scratch<'_>) -> io::Result<u32> {
    deflater.reset();
    let Scratch { message, packed, .. } = scratch;
    packed.clear();
    packed.reserve(message.len() / 2 + 1024);
    loop {
        let done = deflater.total_in() as usize;
        let status =
            deflater.compress_vec(&message[done..], packed, FlushCompress::Finish).map_err(io::Error::other)?;
        if status == Status::StreamEnd {
            break;
        }
        packed.reserve(message.len() / 2 + 1024);
    }
    let mut crc = flate2::Crc::new();
    crc.update(message);
    Ok(crc.sum())
}

/// Adds the message at hand to a zip, in the form of the tree.
fn add(
    session: &Session<'_>,
    deflater: &mut Compress,
    scratch: &mut Scratch<'_>,
    zip: &mut ZipWriter<BufWriter<File>>,
    name: &str,
    at_ns: i64,
) -> io::Result<()> {
    let dos_time = clock::dos_time(at_ns / 1_000_000);
    if session.site.config.blobs == BlobMode::Zip {
        let crc = deflate(deflater, scratch)?;
        zip.deflated(name, dos_time, Deflated { crc, size: scratch.message.len() as u32, data: &scratch.packed })
    } else {
        zip.stored(name, dos_time, &scratch.message)
    }
}

/// Writes an account's four zips; the order of the messages and their zip differ in every session.
pub fn private_zips(
    session: &Session<'_>,
    scratch: &mut Scratch<'_>,
    account: u32,
    items: &[Item],
    begin: bool,
) -> Result<()> {
    let dir = session.account_dir(&session.dir, account).join("blobs");
    session.disk.mkdir(&dir, DIR_MODE)?;
    let mut rng = Rng::new(&[session.site.config.seed, domain::ORDER, session.number.into(), account.into()]);
    let mut order: Vec<(&Item, usize)> = items.iter().map(|i| (i, 0)).collect();
    rng.shuffle(&mut order);
    for entry in &mut order {
        entry.1 = rng.index(ZIPS);
    }
    let temporary = dir.join(format!("zos-{:08x}.zip.tmp", rng.bits() >> 32));
    if session.part == Part::Rest && temporary.exists() {
        std::fs::remove_file(&temporary).context("remove", &temporary)?;
    }
    let (open, close) = session.window(account);
    let mut deflater = Compress::new(Compression::new(LEVEL), false);
    for number in 0..ZIPS {
        let path = if begin { temporary.clone() } else { dir.join(format!("blobs-{}.zip", number + 1)) };
        let Some(file) = session.disk.create(&path)? else {
            continue;
        };
        let mut zip = ZipWriter::new(file);
        let mut end_ns = session.moment_ns(open, u64::from(account));
        for (at, &(item, _)) in order.iter().enumerate().filter(|(_, (_, zip))| *zip == number) {
            let digest = match (item.mail, session.known.get(item.mail)) {
                (Mail::Shared(..), Some(digest)) => {
                    scratch.message.clear();
                    digest
                }
                _ => compose(session, scratch, item.mail, item.born),
            };
            let name = format!(
                "{VOLUME}/{}/{}",
                item.id >> GROUP_BITS,
                blob_name(digest, item, session.site.links(item.mail))
            );
            end_ns = session.moment_ns(
                open + (close - open) * 0.9 * at as f64 / order.len() as f64,
                u64::from(account) << 8 | number as u64,
            );
            add(session, &mut deflater, scratch, &mut zip, &name, end_ns).context("write", &path)?;
        }
        let mut file = zip.finish().context("write", &path)?;
        if begin {
            // A zip that is being written: the first of the four, cut somewhere in the middle.
            file.flush().context("write", &path)?;
            let length = file.get_ref().metadata().context("look at", &path)?.len();
            file.get_ref().set_len(length / 2).context("shorten", &path)?;
            return session.disk.finish(&path, file, end_ns);
        }
        session.disk.finish(&path, file, end_ns)?;
    }
    disk::touch(&dir, session.moment_ns(close, u64::from(account) << 8 | 7))
}

/// A shared message in a zip: the message, the step it arrived before, its digest.
type SharedEntry = (Mail, u32, Digest);

/// Writes the zips of shared messages, one for each first character of the digests.
pub fn shared_zips(session: &Session<'_>, shared: &[(Mail, u32)]) -> Result<()> {
    let dir = session.dir.join("shared_blobs");
    session.disk.mkdir(&dir, DIR_MODE)?;
    let mut zips: BTreeMap<char, Vec<SharedEntry>> = BTreeMap::new();
    for &(mail, born) in shared {
        if let Some(digest) = session.known.get(mail) {
            let first = digest.as_str().chars().next().unwrap_or('a').to_ascii_lowercase();
            zips.entry(first).or_default().push((mail, born, digest));
        }
    }
    let zips: Vec<(char, Vec<SharedEntry>)> = zips.into_iter().collect();
    session.parallel(zips.len(), |scratch, at| {
        let (first, list) = &zips[at];
        let path = dir.join(format!("blobs-{first}.zip"));
        let Some(file) = session.disk.create(&path)? else {
            return Ok(());
        };
        let mut order = list.clone();
        Rng::new(&[session.site.config.seed, domain::ORDER, session.number.into(), u64::from(*first), 1])
            .shuffle(&mut order);
        let mut deflater = Compress::new(Compression::new(LEVEL), false);
        let mut zip = ZipWriter::new(file);
        for (n, (mail, born, digest)) in order.iter().enumerate() {
            scratch.composer.compose(*mail, *born, &mut scratch.message);
            let name = format!("{}/blob.dat", digest.shared_dir());
            let at_ns = session.moment_ns(0.9 * n as f64 / order.len() as f64, session.site.mail_key(*mail));
            add(session, &mut deflater, scratch, &mut zip, &name, at_ns).context("write", &path)?;
        }
        let file = zip.finish().context("write", &path)?;
        session.disk.finish(&path, file, session.moment_ns(0.93, u64::from(*first)))
    })
}
