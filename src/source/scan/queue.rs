//! The order of work: directories waiting to be read, in the order in which they will be delivered.
//!
//! A list in depth-first order. A directory that is read gives its place to its subdirectories, so whoever takes the
//! first waiting one works as close to the point of delivery as can be; with a plain stack, threads could
//! wander off into a late part of the tree, fill the look-ahead with it, and leave the rest to one thread.

use std::sync::Arc;

use super::node::Node;

/// Stands for "no slot".
const NONE: u32 = u32::MAX;

/// The list of directories that are waiting or being read.
pub(super) struct WorkList {
    slots: Vec<Slot>,
    first: u32,
    free: u32,
    /// Set when the scan is given up.
    pub(super) stopped: bool,
}

struct Slot {
    previous: u32,
    next: u32,
    node: Option<Arc<Node>>,
}

impl WorkList {
    pub(super) fn new(root: Arc<Node>) -> WorkList {
        let slots = vec![Slot { previous: NONE, next: NONE, node: Some(root) }];
        WorkList { slots, first: 0, free: NONE, stopped: false }
    }

    /// Puts the subdirectories of a directory in its place. `slot` is the place that [`Node::slot`] names.
    pub(super) fn replace(&mut self, slot: u32, children: &[Arc<Node>]) {
        let Slot { mut previous, next, .. } = self.slots[slot as usize];
        self.release(slot);
        for child in children {
            let place = self.reserve(Arc::clone(child), previous);
            child.set_slot(place);
            match previous {
                NONE => self.first = place,
                previous => self.slots[previous as usize].next = place,
            }
            previous = place;
        }
        match previous {
            NONE => self.first = next,
            previous => self.slots[previous as usize].next = next,
        }
        if next != NONE {
            self.slots[next as usize].previous = previous;
        }
    }

    /// Returns the first directory that `claim` accepts. Those that are being read stand in the list
    /// too, but there are no more of them than threads.
    pub(super) fn first<T>(&self, mut claim: impl FnMut(&Arc<Node>) -> Option<T>) -> Option<T> {
        let mut at = self.first;
        while at != NONE {
            let slot = &self.slots[at as usize];
            if let Some(claimed) = slot.node.as_ref().and_then(&mut claim) {
                return Some(claimed);
            }
            at = slot.next;
        }
        None
    }

    /// Removes everything, and returns it.
    pub(super) fn clear(&mut self) -> Vec<Arc<Node>> {
        self.first = NONE;
        self.free = NONE;
        self.slots.drain(..).filter_map(|slot| slot.node).collect()
    }

    fn reserve(&mut self, node: Arc<Node>, previous: u32) -> u32 {
        let slot = Slot { previous, next: NONE, node: Some(node) };
        match self.free {
            NONE => {
                self.slots.push(slot);
                (self.slots.len() - 1) as u32
            }
            place => {
                self.free = self.slots[place as usize].next;
                self.slots[place as usize] = slot;
                place
            }
        }
    }

    fn release(&mut self, place: u32) {
        self.slots[place as usize] = Slot { previous: NONE, next: self.free, node: None };
        self.free = place;
    }
}
