//! Link counts of one snapshot, run-length coded by group number.
//!
//! The counts are counted from the snapshot's own entries, so a mount of it is consistent in itself. They are kept in pages of 4,096
//! group numbers: a night that touches few groups shares the other pages with the night before. A page is: the page number
//! (varint), then runs until the end: skipped groups (varint), length of the run (varint), link count of each group in it (varint).

use crate::coding::{DecodeError, Decoder, put_varint};
use crate::ids::GroupId;

/// Group numbers covered by one page.
pub const PAGE_GROUPS: u64 = 4096;

/// Encodes the counts of one page: pairs of group number and count, ascending, all within page number `page`.
pub fn encode_page(page: u64, counts: &[(GroupId, u32)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(counts.len() + 8);
    put_varint(&mut out, page);
    let mut next = page * PAGE_GROUPS;
    let mut rest = counts;
    while let Some(&(first, count)) = rest.first() {
        let run = rest
            .iter()
            .zip(first.0..)
            .take_while(|&(&(group, other), expected)| group.0 == expected && other == count)
            .count();
        put_varint(&mut out, first.0 - next);
        put_varint(&mut out, run as u64);
        put_varint(&mut out, u64::from(count));
        next = first.0 + run as u64;
        rest = &rest[run..];
    }
    out
}

/// Decodes one page to its page number and its pairs of group number and count, ascending.
///
/// # Errors
/// Fails when the bytes are not what [`encode_page`] produces.
pub fn decode_page(bytes: &[u8]) -> Result<(u64, Vec<(GroupId, u32)>), DecodeError> {
    const RANGE: DecodeError = DecodeError("a link count leaves its page");
    let mut decoder = Decoder::new(bytes);
    let page = decoder.varint()?;
    let mut next = page.checked_mul(PAGE_GROUPS).ok_or(RANGE).and_then(Decoder::number)?;
    let end = next.checked_add(PAGE_GROUPS).ok_or(RANGE)?;
    let mut counts = Vec::new();
    while !decoder.is_empty() {
        let first = next.checked_add(decoder.varint()?).ok_or(RANGE)?;
        let run = decoder.varint()?;
        let count = decoder.varint32()?;
        next = first.checked_add(run).ok_or(RANGE)?;
        if next > end || run == 0 || count == 0 {
            return Err(RANGE);
        }
        counts.extend((first..next).map(|group| (GroupId(group), count)));
    }
    Ok((page, counts))
}

/// Splits counts, ascending by group number, into encoded pages.
pub fn encode_pages(counts: &[(GroupId, u32)]) -> Vec<Vec<u8>> {
    counts
        .chunk_by(|left, right| left.0.0 / PAGE_GROUPS == right.0.0 / PAGE_GROUPS)
        .map(|page| encode_page(page[0].0.0 / PAGE_GROUPS, page))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_round_trip_page_by_page() {
        let counts: Vec<(GroupId, u32)> = (0..10_000)
            .filter(|number| number % 7 != 3)
            .map(|number| (GroupId(number), if number % 100 < 90 { 1 } else { 5 }))
            .collect();
        let pages = encode_pages(&counts);
        assert_eq!(pages.len(), 3);
        let read: Vec<(GroupId, u32)> = pages.iter().flat_map(|page| decode_page(page).unwrap().1).collect();
        assert_eq!(read, counts);
        assert!(decode_page(&[0, 0, 0, 1]).is_err());
        assert!(decode_page(&[1, 0xff, 0xff, 3, 1, 1]).is_err());
    }
}
