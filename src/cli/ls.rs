//! `zmreplica ls`: lists a directory of a snapshot.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;

use clap::Args;
use serde::Serialize;
use zmreplica::ids::GroupId;
use zmreplica::model::{Attributes, Kind};
use zmreplica::view::{Node, SnapshotView};

use super::error::{CliError, Exit};
use super::output::{DIRECTORY, Output, SYMLINK};
use super::path::Opened;
use super::{Context, path, text};

/// Arguments of `ls`.
#[derive(Args)]
pub(crate) struct LsArgs {
    /// Kind and mode, link count, owner, group, size, time (in the local zone) before each name
    #[arg(short = 'l')]
    long: bool,
    /// Everything below, as paths relative to PATH
    #[arg(short = 'R', long)]
    recursive: bool,
    /// The directory or file
    #[arg(value_name = "SNAP[:PATH]")]
    place: OsString,
}

/// One name, as JSON.
#[derive(Serialize)]
struct EntryEvent<'a> {
    event: &'static str,
    #[serde(flatten)]
    path: text::JsonPath,
    kind: &'static str,
    mode: String,
    links: u32,
    uid: u32,
    gid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<&'a str>,
    size: u64,
    /// UTC, to the nanosecond.
    mtime: String,
    /// Equal for all names of one inode.
    #[serde(skip_serializing_if = "Option::is_none")]
    link_group: Option<GroupId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
}

/// Returns the word for a kind in JSON.
pub(crate) fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Directory => "directory",
        Kind::Symlink => "symlink",
        Kind::Fifo => "fifo",
        Kind::Socket => "socket",
        Kind::CharDevice => "char_device",
        Kind::BlockDevice => "block_device",
    }
}

pub(crate) fn run(context: &Context, args: &LsArgs) -> Result<Exit, CliError> {
    let output = &context.output;
    let replica = context.open()?;
    let Opened { view, path, lease: _lease } =
        path::open_path(context, &replica, &args.place, Path::new("zmreplica ls"))?;
    let node = view.resolve(&path)?;
    let lister = Lister { output, view: &view, long: args.long };
    let Node::Directory(directory) = &node else {
        lister.entry(path.rsplit(|&byte| byte == b'/').next().unwrap_or_default(), &node)?;
        return Ok(Exit::Done);
    };
    if args.recursive {
        for entry in view.walk(node.clone(), Vec::new()) {
            let entry = entry?;
            if entry.depth > 0 {
                lister.entry(&entry.path, &entry.node)?;
            }
        }
    } else {
        for entry in view.list(directory)? {
            let entry = entry?;
            lister.entry(&entry.name, &entry.node)?;
        }
    }
    Ok(Exit::Done)
}

struct Lister<'a> {
    output: &'a Output,
    view: &'a SnapshotView,
    long: bool,
}

impl Lister<'_> {
    fn entry(&self, name: &[u8], node: &Node) -> Result<(), CliError> {
        // Names alone need no row of a link group, unless they are to be coloured.
        if !self.long && !self.output.json() && !self.output.colour() {
            return Ok(self.name_line("", name, None, None)?);
        }
        let attributes = self.view.attributes(node)?;
        let target = match node {
            Node::Group(group) if attributes.kind == Kind::Symlink && (self.long || self.output.json()) => {
                Some(self.view.readlink(*group)?)
            }
            _ => None,
        };
        if self.output.json() {
            return self.event(name, node, &attributes, target.as_deref());
        }
        let head = if self.long { self.long_form(node, &attributes)? } else { String::new() };
        Ok(self.name_line(&head, name, Some(attributes.kind), target.as_deref())?)
    }

    fn long_form(&self, node: &Node, attributes: &Attributes) -> Result<String, CliError> {
        let record = self.view.record();
        let number = |number: u32| number.to_string();
        let user = record.users.get(&attributes.uid).cloned().unwrap_or_else(|| number(attributes.uid));
        let group = record.groups.get(&attributes.gid).cloned().unwrap_or_else(|| number(attributes.gid));
        let size = match attributes.kind {
            Kind::CharDevice | Kind::BlockDevice => {
                format!("{}, {}", rustix::fs::major(attributes.rdev), rustix::fs::minor(attributes.rdev))
            }
            _ => attributes.size.to_string(),
        };
        let time = text::local_file_time(attributes.mtime);
        Ok(format!(
            "{} {:>4} {:<8} {:<8} {size:>12} {time} ",
            mode_letters(attributes),
            self.view.link_count(node)?,
            text::escape(user.as_bytes()),
            text::escape(group.as_bytes()),
        ))
    }

    /// Writes a name: escaped for a terminal, as it is for a program.
    fn name_line(&self, head: &str, name: &[u8], kind: Option<Kind>, target: Option<&[u8]>) -> io::Result<()> {
        let mut stdout = self.output.stdout();
        stdout.write_all(head.as_bytes())?;
        let style = match kind {
            Some(Kind::Directory) => Some(DIRECTORY),
            Some(Kind::Symlink) => Some(SYMLINK),
            _ => None,
        };
        if self.output.stdout_is_terminal() {
            let name = text::escape(name);
            match style {
                Some(style) => stdout.write_all(self.output.painted(style, &name).as_bytes())?,
                None => stdout.write_all(name.as_bytes())?,
            }
        } else {
            stdout.write_all(name)?;
        }
        if let Some(target) = target {
            stdout.write_all(b" -> ")?;
            if self.output.stdout_is_terminal() {
                stdout.write_all(text::escape(target).as_bytes())?;
            } else {
                stdout.write_all(target)?;
            }
        }
        stdout.write_all(b"\n")
    }

    fn event(&self, name: &[u8], node: &Node, attributes: &Attributes, target: Option<&[u8]>) -> Result<(), CliError> {
        let record = self.view.record();
        Ok(self.output.event(&EntryEvent {
            event: "entry",
            path: text::JsonPath::new(name),
            kind: kind_word(attributes.kind),
            mode: format!("{:04o}", attributes.mode),
            links: self.view.link_count(node)?,
            uid: attributes.uid,
            gid: attributes.gid,
            user: record.users.get(&attributes.uid).map(String::as_str),
            group: record.groups.get(&attributes.gid).map(String::as_str),
            size: attributes.size,
            mtime: text::exact_time(attributes.mtime),
            link_group: match node {
                Node::Group(number) => Some(*number),
                Node::Directory(_) => None,
            },
            target: target.map(text::escape),
        })?)
    }
}

/// Returns kind and permissions as `ls -l` shows them.
fn mode_letters(attributes: &Attributes) -> String {
    let mode = attributes.mode;
    let mut out = String::with_capacity(10);
    out.push(attributes.kind.letter());
    for (shift, special, set, set_only) in [(6, 0o4000, 's', 'S'), (3, 0o2000, 's', 'S'), (0, 0o1000, 't', 'T')] {
        let bits = mode >> shift;
        out.push(if bits & 4 != 0 { 'r' } else { '-' });
        out.push(if bits & 2 != 0 { 'w' } else { '-' });
        out.push(match (bits & 1 != 0, mode & special != 0) {
            (true, true) => set,
            (false, true) => set_only,
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use zmreplica::model::Timestamp;

    use super::*;

    #[test]
    fn modes_look_as_in_ls() {
        let letters = |kind, mode| {
            mode_letters(&Attributes {
                kind,
                mode,
                uid: 0,
                gid: 0,
                mtime: Timestamp::default(),
                size: 0,
                rdev: 0,
                xattrs: Vec::new(),
            })
        };
        assert_eq!(letters(Kind::File, 0o640), "-rw-r-----");
        assert_eq!(letters(Kind::Directory, 0o1777), "drwxrwxrwt");
        assert_eq!(letters(Kind::File, 0o4755), "-rwsr-xr-x");
        assert_eq!(letters(Kind::File, 0o6600), "-rwS--S---");
    }
}
