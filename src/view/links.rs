//! Link counts of one snapshot, decoded on first use.

use std::sync::{Mutex, PoisonError};

use quick_cache::sync::Cache;
use std::sync::Arc;

use super::ViewError;
use crate::catalog::link_counts::{PAGE_GROUPS, decode_page};
use crate::catalog::object::ObjectKind;
use crate::catalog::reader::CatalogReader;
use crate::catalog::{CatalogError, RowKind};
use crate::ids::{GroupId, ObjectId};

/// Decoded pages kept: 16 bytes for each of 4,096 groups, so 8 MiB.
const PAGES: usize = 128;

/// Looks up link counts. Pages are in order of their page numbers, which only the pages themselves contain: a page's number is learnt when it is first
/// decoded, and a look-up is a binary search over them.
pub(super) struct LinkCounts {
    objects: Vec<ObjectId>,
    page_numbers: Mutex<Vec<Option<u64>>>,
    pages: Cache<usize, Arc<Vec<(GroupId, u32)>>>,
}

impl LinkCounts {
    pub(super) fn new(objects: &[ObjectId]) -> LinkCounts {
        LinkCounts {
            objects: objects.to_vec(),
            page_numbers: Mutex::new(vec![None; objects.len()]),
            pages: Cache::new(PAGES),
        }
    }

    /// Returns the link count of a group.
    pub(super) fn of(&self, catalog: &CatalogReader, group: GroupId) -> Result<u32, ViewError> {
        let wanted = group.0 / PAGE_GROUPS;
        let missing = || ViewError::from(CatalogError::missing(RowKind::LinkCount.row(group)));
        let (mut low, mut high) = (0, self.objects.len());
        while low < high {
            // Groups are numbered without large gaps, so the page is most often where its number says.
            let middle = if wanted < high as u64 && wanted >= low as u64 { wanted as usize } else { (low + high) / 2 };
            let number = self.page_number(catalog, middle)?;
            match number.cmp(&wanted) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => {
                    let counts = self.page(catalog, middle)?;
                    let at = counts.binary_search_by_key(&group, |(group, _)| *group).map_err(|_| missing())?;
                    return Ok(counts[at].1);
                }
            }
        }
        Err(missing())
    }

    fn page_number(&self, catalog: &CatalogReader, at: usize) -> Result<u64, ViewError> {
        let known = || self.page_numbers.lock().unwrap_or_else(PoisonError::into_inner);
        let already = known()[at];
        match already {
            Some(number) => Ok(number),
            None => {
                self.page(catalog, at)?;
                // `page` has just set it.
                Ok(known()[at].unwrap_or_default())
            }
        }
    }

    fn page(&self, catalog: &CatalogReader, at: usize) -> Result<Arc<Vec<(GroupId, u32)>>, ViewError> {
        self.pages.get_or_insert_with(&at, || {
            let object = self.objects[at];
            let bytes = catalog.object(ObjectKind::Links, object)?;
            let (number, counts) =
                decode_page(&bytes).map_err(|error| CatalogError::of_row(RowKind::LinkCountPage.row(object), error))?;
            self.page_numbers.lock().unwrap_or_else(PoisonError::into_inner)[at] = Some(number);
            Ok(Arc::new(counts))
        })
    }
}
