//! What a snapshot consists of beside its tree, and its record.

use super::SnapshotError;
use super::findings::Findings;
use super::options::RunRequest;
use super::tree_builder::BuiltTree;
use crate::catalog::link_counts;
use crate::catalog::object::ObjectKind;
use crate::catalog::snapshot::{SnapshotRecord, Totals};
use crate::catalog::writer::CatalogWriter;
use crate::ids::SourceId;
use crate::source::tree::OwnerNames;

/// Writes link counts and problems, and returns the record, not judged by the guard and without its identifier.
pub(super) fn describe(
    request: &RunRequest<'_>,
    source: SourceId,
    tree: &BuiltTree,
    owners: OwnerNames,
    findings: &Findings,
    catalog: &mut CatalogWriter,
) -> Result<SnapshotRecord, SnapshotError> {
    let mut link_objects = Vec::new();
    for page in link_counts::encode_pages(&tree.link_counts) {
        link_objects.push(catalog.intern_object(ObjectKind::Links, &page)?);
    }
    let problems = match findings.problems.encode() {
        Some(list) => Some(catalog.intern_object(ObjectKind::Problems, &list)?),
        None => None,
    };
    Ok(SnapshotRecord {
        id: String::new(),
        time: request.start.time,
        finished: jiff::Timestamp::now(),
        source: request.location.to_owned(),
        source_id: Some(source),
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        tags: request.options.tags.clone(),
        excludes: request.excludes.patterns().map(str::to_owned).collect(),
        root: SnapshotRecord::root_of(&tree.root),
        links: link_objects,
        problems,
        problem_count: findings.problems.count(),
        users: owners.users,
        groups: owners.groups,
        has_acls: findings.acls.answer(),
        guard: None,
        totals: Totals {
            names: tree.names,
            directories: tree.directories,
            inodes: tree.link_counts.len() as u64,
            ..findings.totals
        },
        work: findings.work,
        digest: tree.digest.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}
