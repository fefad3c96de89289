//! What a directory page refers to, without its names: all that a walk needs that only wants to know what is in use.

use super::directory::IndexPage;
use crate::coding::{DecodeError, Decoder, unzigzag};
use crate::ids::{GroupId, ObjectId};

/// Something that a directory page refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reference {
    /// The object with the page's names.
    Names(ObjectId),
    /// A link group.
    Group(GroupId),
    /// The only page of a directory.
    Page(ObjectId),
    /// The index of a large directory.
    Index(ObjectId),
}

impl From<&IndexPage> for Reference {
    fn from(page: &IndexPage) -> Reference {
        Reference::Page(page.page)
    }
}

/// Calls `visit` for everything that a page object refers to; the format is that of [`directory`](super::directory).
///
/// # Errors
/// Fails when the bytes are no page. What was visited before then is as the bytes have it.
pub fn visit_page(page: &[u8], mut visit: impl FnMut(Reference)) -> Result<(), DecodeError> {
    let mut decoder = Decoder::new(page);
    visit(Reference::Names(ObjectId::decoded(decoder.varint()?)?));
    let mut waiting = vec![decoder.count()? as u64];
    let mut group = u64::MAX;
    while let Some(left) = waiting.last_mut() {
        if *left == 0 {
            waiting.pop();
            continue;
        }
        *left -= 1;
        let head = decoder.varint()?;
        match head & 3 {
            0 => {
                group = Decoder::add(group.wrapping_add(1), unzigzag(head >> 2))?;
                visit(Reference::Group(GroupId(group)));
            }
            1 => match decode_body_head(&mut decoder, head >> 2)? {
                body if body & 3 == 0 => {
                    if body >> 2 > decoder.remaining() as u64 {
                        return Err(DecodeError("a count exceeds the bytes that are there"));
                    }
                    waiting.push(body >> 2);
                }
                body if body & 3 == 1 => visit(Reference::Page(ObjectId::decoded(body >> 2)?)),
                body if body & 3 == 2 => visit(Reference::Index(ObjectId::decoded(body >> 2)?)),
                _ => return Err(DecodeError("an unknown kind of body")),
            },
            _ => return Err(DecodeError("an unknown kind of node")),
        }
    }
    decoder.finish()
}

/// Passes over the attributes of a directory and returns the head of its body.
fn decode_body_head(decoder: &mut Decoder<'_>, flags: u64) -> Result<u64, DecodeError> {
    if flags & !15 != 0 {
        return Err(DecodeError("unknown flags of a directory"));
    }
    if flags & 1 == 0 {
        for _ in 0..3 {
            decoder.varint32()?;
        }
    }
    decoder.signed()?;
    decoder.varint32()?;
    if flags & 2 != 0 {
        for _ in 0..decoder.count()? {
            decoder.bytes()?;
            decoder.bytes()?;
        }
    }
    if flags & 4 != 0 {
        decoder.varint32()?;
    }
    decoder.varint()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::directory::{Body, Directory, DirectoryAttributes, Entry, Node, encode_page};
    use super::*;
    use crate::model::Xattr;

    #[test]
    fn every_reference_is_found_in_order() {
        let directory = |body| {
            let xattrs = vec![Xattr { name: b"user.a"[..].into(), value: b"v"[..].into() }];
            let attributes = DirectoryAttributes { mode: 0o750, xattrs, unreadable: Some(13), ..Default::default() };
            Node::Directory(Arc::new(Directory { attributes, body }))
        };
        let entry = |name: &str, node| Entry { name: name.as_bytes().into(), node };
        let inline = Body::Inline(vec![
            entry("x", Node::Group(GroupId(3))),
            entry("y", directory(Body::Inline(Vec::new()))),
            entry("z", directory(Body::Page(ObjectId(40)))),
        ]);
        let entries = [
            entry("a", Node::Group(GroupId(9))),
            entry("b", directory(inline)),
            entry("c", directory(Body::Index(ObjectId(41)))),
        ];
        let page = encode_page(ObjectId(7), &entries);
        let mut found = Vec::new();
        visit_page(&page, |reference| found.push(reference)).unwrap();
        let expected = [
            Reference::Names(ObjectId(7)),
            Reference::Group(GroupId(9)),
            Reference::Group(GroupId(3)),
            Reference::Page(ObjectId(40)),
            Reference::Index(ObjectId(41)),
        ];
        assert_eq!(found, expected);
        for at in 0..page.len() {
            assert!(visit_page(&page[..at], |_| ()).is_err(), "cut at {at}");
        }
    }
}
