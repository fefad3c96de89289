//! The source: scan a tree, read what is new, cut and hash it.
//!
//! This half of the program runs where the tree is. It knows nothing of stores and catalogues, and speaks in plain data only: [`scan`] delivers
//! listings, and [`read_pool`] answers requests for single inodes with segments, whose chunks go through [`chunk_intake`].
//! [`tree::SourceTree`] is what a run sees of it, on this host or on another.

pub mod beneath;
pub mod chunk_intake;
pub mod chunker;
pub mod exclude_patterns;
pub mod read;
pub mod read_pool;
pub mod scan;
mod stat;
pub mod tree;
pub mod xattrs;
