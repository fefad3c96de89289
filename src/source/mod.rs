//! The source side: scan a tree, read what is new, cut and hash it.
//!
//! This half of the program runs where the tree is. It knows nothing of stores and catalogues, and speaks in plain data only: [`scan`] delivers
//! listings, and [`read`] answers requests for single inodes with segments. In time the same code answers over a byte stream from another host.

pub mod beneath;
pub mod cut;
pub mod exclude;
pub mod read;
pub mod scan;
pub mod xattrs;
