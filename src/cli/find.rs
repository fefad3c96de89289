//! `zmreplica find`: paths that match a pattern, and the snapshots that have them.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use zmreplica::ids::GroupId;
use zmreplica::source::exclude_patterns::ExcludePatterns;
use zmreplica::view::{DirectoryNode, Node, SnapshotView};

use super::error::{CliError, Exit};
use super::path::open_view;
use super::{Context, text};

/// Arguments of `find`.
#[derive(Args)]
pub(crate) struct FindArgs {
    /// A glob, as for --exclude: it matches the end of a path, the whole path if it begins with /, and directories only if it ends with /
    pattern: String,
    /// Search this snapshot only [default: all]
    #[arg(long, value_name = "SNAP")]
    snapshot: Option<String>,
}

#[derive(Serialize)]
struct MatchEvent<'a> {
    event: &'static str,
    #[serde(flatten)]
    path: text::JsonPath,
    kind: &'static str,
    snapshots: Vec<&'a str>,
}

pub(crate) fn run(context: &Context, args: &FindArgs) -> Result<Exit, CliError> {
    let matcher = ExcludePatterns::new(std::slice::from_ref(&args.pattern), false)
        .map_err(|error| CliError::Usage(format!("The pattern `{}` is not valid: {}", error.pattern, error.reason)))?;
    let replica = context.open()?;
    let catalog = Arc::new(replica.catalog()?);
    let snapshots = context.snapshots(&catalog)?;
    let chosen = match &args.snapshot {
        Some(name) => vec![snapshots.resolve(name)?],
        None => snapshots.listed().collect(),
    };
    let views = chosen
        .into_iter()
        .map(|snapshot| open_view(&replica, &catalog, snapshot.record.clone()))
        .collect::<Result<Vec<_>, _>>()?;
    let finder = Finder { context, views, matcher, one: args.snapshot.is_some() };
    let roots = finder.views.iter().enumerate().filter_map(|(at, view)| match view.root() {
        Node::Directory(root) => Some((vec![at], root)),
        Node::Group(_) => None,
    });
    let roots = merged(roots.collect());
    finder.tree(roots)?;
    Ok(Exit::Done)
}

/// A directory and the snapshots, by place in the list, that have it with the same entries.
type Version = (Vec<usize>, DirectoryNode);

/// Puts directories with the same entries together, so that each is listed once, however many snapshots have it.
fn merged(versions: Vec<Version>) -> Vec<Version> {
    let mut distinct: Vec<Version> = Vec::new();
    for (holders, directory) in versions {
        // Snapshots that follow each other are the most alike.
        match distinct.iter_mut().rev().find(|(_, known)| known.body == directory.body) {
            Some((all, _)) => all.extend(holders),
            None => distinct.push((holders, directory)),
        }
    }
    distinct
}

struct Finder<'a> {
    context: &'a Context,
    views: Vec<SnapshotView>,
    matcher: ExcludePatterns,
    one: bool,
}

/// What one name stands for in the snapshots that have it.
#[derive(Default)]
struct Found {
    /// Snapshots in which it is no directory, and one of its link groups.
    others: Vec<usize>,
    group: Option<GroupId>,
    directories: Vec<Version>,
}

/// The names of a directory on the way down, and the length of its path.
type Level = (std::collections::btree_map::IntoIter<Box<[u8]>, Found>, usize);

impl Finder<'_> {
    /// Looks at everything below the roots. The directories on the way down are in a list and not on the stack: trees may be of any depth.
    fn tree(&self, roots: Vec<Version>) -> Result<(), CliError> {
        let mut path: Vec<u8> = Vec::new();
        let mut levels: Vec<Level> = vec![(self.names(&roots)?.into_iter(), 0)];
        while let Some((names, length)) = levels.last_mut() {
            path.truncate(*length);
            let Some((name, found)) = names.next() else {
                levels.pop();
                continue;
            };
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            if let Some(group) = found.group
                && self.matcher.excluded(&path, false)
            {
                self.print_match(&path, Some(group), found.others)?;
            }
            if !found.directories.is_empty() {
                if self.matcher.excluded(&path, true) {
                    let holders = found.directories.iter().flat_map(|(holders, _)| holders).copied().collect();
                    self.print_match(&path, None, holders)?;
                }
                levels.push((self.names(&merged(found.directories))?.into_iter(), path.len()));
            }
        }
        Ok(())
    }

    /// Returns the names in a directory, in whichever snapshot they are, but for files that cannot match.
    fn names(&self, versions: &[Version]) -> Result<BTreeMap<Box<[u8]>, Found>, CliError> {
        let mut names: BTreeMap<Box<[u8]>, Found> = BTreeMap::new();
        for (holders, directory) in versions {
            let Some(view) = holders.first().and_then(|at| self.views.get(*at)) else { continue };
            for entry in view.list(directory)? {
                let entry = entry?;
                // Files that cannot match need not be kept.
                let found = match &entry.node {
                    Node::Group(_) if !self.matcher.possible(&entry.name, false) => continue,
                    _ => names.entry(entry.name).or_default(),
                };
                match entry.node {
                    Node::Group(group) => {
                        found.others.extend(holders);
                        found.group = Some(group);
                    }
                    Node::Directory(directory) => found.directories.push((holders.clone(), directory)),
                }
            }
        }
        Ok(names)
    }

    fn print_match(&self, path: &[u8], group: Option<GroupId>, mut holders: Vec<usize>) -> Result<(), CliError> {
        holders.sort_unstable();
        let output = &self.context.output;
        let records = holders.iter().filter_map(|at| self.views.get(*at)).map(SnapshotView::record);
        if output.json() {
            let kind = match (group, holders.first().and_then(|at| self.views.get(*at))) {
                (Some(group), Some(view)) => super::ls::kind_word(view.group(group)?.attributes.kind),
                _ => "directory",
            };
            let snapshots = records.map(|record| record.id.as_str()).collect();
            let path = text::JsonPath::new(path);
            return Ok(output.event(&MatchEvent { event: "match", path, kind, snapshots })?);
        }
        let mut line = Vec::new();
        if !self.one {
            let ids: Vec<&str> = records.map(|record| record.short_id()).collect();
            line.extend_from_slice(ids.join(",").as_bytes());
            line.push(b'\t');
        }
        if output.stdout_is_terminal() {
            line.extend_from_slice(text::escape(path).as_bytes());
        } else {
            line.extend_from_slice(path);
        }
        line.push(b'\n');
        Ok(output.stdout().write_all(&line)?)
    }
}
