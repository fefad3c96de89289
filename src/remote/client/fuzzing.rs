//! Forwards bytes to what reads an agent's stream and the blocks of the last scan (see [`crate::fuzzing`]).

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use super::RemoteTree;
use super::blocks::BlockCache;
use crate::fuzzing::driver::{Stream, drive, memory_file, path_of};

/// All that an agent sends once it has started, to a run that scans, and reads what it finds.
pub(crate) fn agent(bytes: &[u8]) {
    let connection = Stream::connection(bytes);
    if let Ok(mut tree) = RemoteTree::start(connection, Default::default(), Path::new(""), Duration::from_secs(10)) {
        drive(&mut tree);
    }
}

/// A file of blocks. Whatever it holds, a block that comes out has its hash.
pub(crate) fn blocks(bytes: &[u8]) {
    let mut file = memory_file();
    file.write_all(b"ZMRLIST1").and_then(|()| file.write_all(bytes)).expect("memory takes it");
    let cache = BlockCache::open(&path_of(&file));
    let mut rest = bytes;
    while let Some((hash, behind)) = rest.split_first_chunk::<32>()
        && let Some((length, behind)) = behind.split_first_chunk()
    {
        if let Some((plain, _)) = cache.get(hash) {
            assert_eq!(blake3::hash(&plain).as_bytes(), hash);
        }
        rest = behind.get(u32::from_le_bytes(*length) as usize..).unwrap_or_default();
    }
}
