//! Random edits of a tree: what a source goes through between two snapshots.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;

/// What a file is filled with. Few seeds, so that equal contents are frequent.
#[derive(Clone, Debug)]
pub enum Fill {
    Empty,
    Random { seed: u8, length: usize },
    Text { seed: u8, lines: usize },
    Sparse { seed: u8, hole: u64 },
}

/// One edit. Numbers choose among what there is.
#[derive(Clone, Debug)]
pub enum Edit {
    Create { directory: usize, name: usize, fill: Fill },
    Append { file: usize, fill: Fill },
    Overwrite { file: usize, offset: u32, fill: Fill },
    Truncate { file: usize, length: u32 },
    ReplaceByRename { file: usize, fill: Fill },
    Link { file: usize, directory: usize, name: usize },
    Rename { any: usize, directory: usize, name: usize },
    Unlink { file: usize },
    RemoveTree { directory: usize },
    Mkdir { directory: usize, name: usize },
    Symlink { directory: usize, name: usize, target: usize },
    Fifo { directory: usize, name: usize },
    Chmod { any: usize, mode: u16 },
    SetMtime { any: usize, back: u32 },
    ManyNames { directory: usize, count: usize },
}

const NAMES: [&[u8]; 16] = [
    b"a",
    b"b",
    b"c d",
    "\u{fc}ml\u{e4}ut".as_bytes(),
    b"\xff\xfe",
    b"new\nline",
    b"-dash",
    b"x.zip",
    b"m-1.msg",
    b"m-2.msg",
    b"accounts.xml",
    b"lost+found",
    b"...",
    b"\x01",
    b"*?[",
    b"sessions",
];

pub fn fill() -> impl Strategy<Value = Fill> {
    prop_oneof![
        1 => Just(Fill::Empty),
        4 => (0..4u8, 1..300usize).prop_map(|(seed, length)| Fill::Random { seed, length }),
        2 => (0..4u8, 1..200_000usize).prop_map(|(seed, length)| Fill::Random { seed, length }),
        1 => (0..4u8, 1_000_000..2_500_000usize).prop_map(|(seed, length)| Fill::Random { seed, length }),
        2 => (0..4u8, 1..2000usize).prop_map(|(seed, lines)| Fill::Text { seed, lines }),
        1 => (0..4u8, 1..3_000_000u64).prop_map(|(seed, hole)| Fill::Sparse { seed, hole }),
    ]
}

pub fn edit() -> impl Strategy<Value = Edit> {
    let n = || 0..1000usize;
    prop_oneof![
        6 => (n(), n(), fill()).prop_map(|(directory, name, fill)| Edit::Create { directory, name, fill }),
        2 => (n(), fill()).prop_map(|(file, fill)| Edit::Append { file, fill }),
        2 => (n(), 0..300_000u32, fill()).prop_map(|(file, offset, fill)| Edit::Overwrite { file, offset, fill }),
        1 => (n(), 0..300_000u32).prop_map(|(file, length)| Edit::Truncate { file, length }),
        2 => (n(), fill()).prop_map(|(file, fill)| Edit::ReplaceByRename { file, fill }),
        5 => (n(), n(), n()).prop_map(|(file, directory, name)| Edit::Link { file, directory, name }),
        3 => (n(), n(), n()).prop_map(|(any, directory, name)| Edit::Rename { any, directory, name }),
        2 => n().prop_map(|file| Edit::Unlink { file }),
        1 => n().prop_map(|directory| Edit::RemoveTree { directory }),
        3 => (n(), n()).prop_map(|(directory, name)| Edit::Mkdir { directory, name }),
        1 => (n(), n(), n()).prop_map(|(directory, name, target)| Edit::Symlink { directory, name, target }),
        1 => (n(), n()).prop_map(|(directory, name)| Edit::Fifo { directory, name }),
        2 => (n(), 0..0o10000u16).prop_map(|(any, mode)| Edit::Chmod { any, mode }),
        2 => (n(), 1..2_000_000_000u32).prop_map(|(any, back)| Edit::SetMtime { any, back }),
        1 => (n(), 30..400usize).prop_map(|(directory, count)| Edit::ManyNames { directory, count }),
    ]
}

/// The source and what lives in it.
pub struct Source {
    pub root: PathBuf,
    pub clock: u32,
}

impl Source {
    fn paths(&self, wanted: impl Fn(&fs::Metadata) -> bool) -> Vec<PathBuf> {
        let mut all = super::odd::paths(&self.root);
        all.retain(|path| wanted(&fs::symlink_metadata(path).unwrap()));
        all
    }

    fn directory(&self, choice: usize) -> PathBuf {
        let mut all = self.paths(fs::Metadata::is_dir);
        all.push(self.root.clone());
        all.swap_remove(choice % all.len())
    }

    fn pick(&self, choice: usize, wanted: impl Fn(&fs::Metadata) -> bool) -> Option<PathBuf> {
        let mut all = self.paths(wanted);
        if all.is_empty() { None } else { Some(all.swap_remove(choice % all.len())) }
    }

    fn place(&self, directory: usize, name: usize) -> Option<PathBuf> {
        let path = self.directory(directory).join(OsStr::from_bytes(NAMES[name % NAMES.len()]));
        fs::symlink_metadata(&path).is_err().then_some(path)
    }

    fn write(&self, path: &Path, at: SeekFrom, fill: &Fill) {
        let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(path).unwrap();
        file.seek(at).unwrap();
        match fill {
            Fill::Empty => {}
            Fill::Random { seed, length } => {
                let mut bytes = vec![0; *length];
                blake3::Hasher::new().update(&[*seed]).finalize_xof().fill(&mut bytes);
                file.write_all(&bytes).unwrap();
            }
            Fill::Text { seed, lines } => {
                for line in 0..*lines {
                    writeln!(file, "{seed}: line {line} of a message that repeats itself").unwrap();
                }
            }
            Fill::Sparse { seed, hole } => {
                file.write_all(&[*seed; 100]).unwrap();
                file.seek(SeekFrom::Current(*hole as i64)).unwrap();
                file.write_all(&[*seed; 50]).unwrap();
            }
        }
    }

    /// Applies an edit, if there is what it is about.
    pub fn apply(&mut self, edit: &Edit) {
        match edit {
            Edit::Create { directory, name, fill } => {
                if let Some(path) = self.place(*directory, *name) {
                    self.write(&path, SeekFrom::Start(0), fill);
                }
            }
            Edit::Append { file, fill } => {
                if let Some(path) = self.pick(*file, fs::Metadata::is_file) {
                    self.write(&path, SeekFrom::End(0), fill);
                }
            }
            Edit::Overwrite { file, offset, fill } => {
                if let Some(path) = self.pick(*file, fs::Metadata::is_file) {
                    self.write(&path, SeekFrom::Start(u64::from(*offset)), fill);
                }
            }
            Edit::Truncate { file, length } => {
                if let Some(path) = self.pick(*file, fs::Metadata::is_file) {
                    OpenOptions::new().write(true).open(path).unwrap().set_len(u64::from(*length)).unwrap();
                }
            }
            Edit::ReplaceByRename { file, fill } => {
                if let Some(path) = self.pick(*file, fs::Metadata::is_file) {
                    let fresh = self.root.join("fresh.tmp");
                    self.write(&fresh, SeekFrom::Start(0), fill);
                    fs::rename(fresh, path).unwrap();
                }
            }
            Edit::Link { file, directory, name } => {
                let what = self.pick(*file, |metadata| !metadata.is_dir());
                if let (Some(what), Some(path)) = (what, self.place(*directory, *name)) {
                    fs::hard_link(what, path).unwrap();
                }
            }
            Edit::Rename { any, directory, name } => {
                let what = self.pick(*any, |_| true);
                if let (Some(what), Some(path)) = (what, self.place(*directory, *name))
                    && !path.starts_with(&what)
                {
                    fs::rename(what, path).unwrap();
                }
            }
            Edit::Unlink { file } => {
                if let Some(path) = self.pick(*file, |metadata| !metadata.is_dir()) {
                    fs::remove_file(path).unwrap();
                }
            }
            Edit::RemoveTree { directory } => {
                if let Some(path) = self.pick(*directory, fs::Metadata::is_dir) {
                    fs::remove_dir_all(path).unwrap();
                }
            }
            Edit::Mkdir { directory, name } => {
                if let Some(path) = self.place(*directory, *name) {
                    fs::create_dir(path).unwrap();
                }
            }
            Edit::Symlink { directory, name, target } => {
                if let Some(path) = self.place(*directory, *name) {
                    symlink(OsStr::from_bytes(NAMES[target % NAMES.len()]), path).unwrap();
                }
            }
            Edit::Fifo { directory, name } => {
                if let Some(path) = self.place(*directory, *name) {
                    let mode = rustix::fs::Mode::from(0o640);
                    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
                }
            }
            Edit::Chmod { any, mode } => {
                if let Some(path) = self.pick(*any, |metadata| !metadata.is_symlink()) {
                    // The owner's bits stay: whoever runs this test may not be root.
                    fs::set_permissions(path, fs::Permissions::from_mode(u32::from(*mode) | 0o700)).unwrap();
                }
            }
            Edit::SetMtime { any, back } => {
                if let Some(path) = self.pick(*any, |metadata| metadata.is_file() || metadata.is_dir()) {
                    // No time is set twice: a rewritten file of the same size with its old time cannot be distinguished from one that did not change.
                    self.clock += 1;
                    let time = SystemTime::UNIX_EPOCH + Duration::new(u64::from(*back), self.clock);
                    fs::File::open(path).unwrap().set_modified(time).unwrap();
                }
            }
            Edit::ManyNames { directory, count } => {
                let directory = self.directory(*directory);
                let first = directory.join("many-0000");
                self.write(&first, SeekFrom::Start(0), &Fill::Random { seed: 9, length: 40 });
                for number in 1..*count {
                    let path = directory.join(format!("many-{number:04}"));
                    let _ = match number % 3 {
                        0 => fs::write(path, number.to_string()),
                        _ => fs::hard_link(&first, path),
                    };
                }
            }
        }
    }
}
