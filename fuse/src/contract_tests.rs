//! The contract, tried on a tree in memory and on broken ones that it must refuse.

use super::*;
use crate::memory_tree::{Fault, MemoryTree};

#[test]
fn a_right_tree_passes() {
    assert_eq!(check_contract(&MemoryTree::new(Fault::None)).unwrap(), 6);
}

#[test]
fn each_fault_is_found() {
    for (fault, rule) in [
        (Fault::LinkCount, "link count"),
        (Fault::Cookie, "cookie"),
        (Fault::ShortRead, "short"),
        (Fault::MissingName, "lookup"),
    ] {
        let violation = check_contract(&MemoryTree::new(fault)).unwrap_err();
        assert!(violation.to_string().contains(rule), "{violation}");
    }
}
