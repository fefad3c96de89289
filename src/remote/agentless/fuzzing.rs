//! Forwards bytes to what reads the answers of a shell on another host (see [`crate::fuzzing`]).

use std::sync::Arc;
use std::time::Duration;

use super::archive::Archive;
use super::tar_messages::TarMessages;
use super::{AgentlessOptions, AgentlessTree, find};
use crate::fuzzing::driver::{Stream, drive};
use crate::remote::protocol::fields::PATH_MAX_BYTES;
use crate::remote::transport::{Connection, Transport, TransportError};
use crate::source::exclude_patterns::ExcludePatterns;

/// An archive. Where a block has the magic of a header its checksum is made to fit, which no mutation hits.
pub(crate) fn tar(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    for block in bytes.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    let mut archive = Archive::new(bytes.as_slice());
    let mut buffer = vec![0; 4096];
    while let Ok(Some(member)) = archive.next() {
        let mut stored = 0;
        while let Ok(count @ 1..) = archive.data(&mut buffer) {
            stored += count as u64;
        }
        assert!(stored <= member.size, "{stored} bytes of a member of {}", member.size);
        if let Some(regions) = &member.regions {
            let ends = regions.iter().map(|(offset, length)| offset + length);
            assert!(ends.clone().zip(regions.iter().skip(1)).all(|(end, next)| end <= next.0));
            assert!(ends.max().unwrap_or(0) <= member.size);
        }
        assert!(member.xattrs.is_sorted());
    }
}

/// Records of `find`, ended by NUL, and what it says on stderr.
pub(crate) fn find(bytes: &[u8]) {
    for record in bytes.split(|byte| *byte == 0) {
        if let Some((fields, path)) = find::split(record) {
            assert!(path.len() <= PATH_MAX_BYTES && !path.starts_with(b"/"));
            let _ = find::stat(fields);
        }
    }
    for (path, _) in find::complaints(bytes).of_paths {
        assert!(path.is_empty() || path.split(|byte| *byte == b'/').all(|name| !matches!(name, b"" | b"." | b"..")));
    }
}

/// What `tar` says on stderr, and its list of names.
pub(crate) fn words(bytes: &[u8]) {
    let words = TarMessages::parse(bytes);
    let _ = (words.understood(), words.of(b"a"));
    for line in bytes.split(|byte| *byte == b'\n') {
        let _ = super::xattr_probe::parse(line);
        if let Some(plain) = find::unescaped(line) {
            assert!(plain.len() <= line.len());
        }
    }
}

/// All that a shell ever says, from its greeting on, to a run that scans, and reads what it finds.
pub(crate) fn shell(bytes: &[u8]) {
    let options = AgentlessOptions {
        root: "/".to_owned(),
        excludes: ExcludePatterns::default(),
        cross_file_systems: bytes.len().is_multiple_of(2),
        scan_only: false,
        bytes_per_second: 0,
        idle_timeout: Duration::from_secs(10),
        spool: std::env::temp_dir(),
        interrupted: Arc::new(|| false),
    };
    if let Ok(mut tree) = AgentlessTree::open(&mut Host(Some(bytes)), &options, &Arc::default()) {
        drive(&mut tree);
    }
}

struct Host<'a>(Option<&'a [u8]>);

impl Transport for Host<'_> {
    fn run(&mut self, _command: &str) -> Result<Connection, TransportError> {
        Ok(Stream::connection(self.0.take().unwrap_or_default()))
    }

    fn host(&self) -> &str {
        "host"
    }
}
