//! The catalogue: what the store holds and which snapshot is made of what.
//!
//! Storeys, from the bottom:
//!
//! - [`tables`] (the tables of sealed values), [`database`] and [`database_reader`] (redb);
//! - [`commit`] (commit files, from which the database can be rebuilt), [`commit_log`] (which there are), [`checkpoint`] (what takes the place of many),
//!   [`row_hashes`] (what they say that the database must hold), [`checkpoint_writer`], [`roll_forward`];
//! - one module per kind of row: [`meta`], [`chunk`] rows and pack rows, [`group`] (link groups and their content), [`directory`] (directory objects, and
//!   [`references`] without their names), [`link_counts`], [`snapshot`] (snapshot records), [`marks`] (what was said of them since), [`hold`], [`condemned`];
//! - on top [`reader`] and [`writer`], which every other part of the program uses. [`dates`] decides when snapshots were taken, whatever their clocks said.

pub mod checkpoint;
pub mod checkpoint_writer;
pub mod chunk;
pub mod commit;
pub mod commit_log;
pub mod condemned;
mod damage;
pub mod database;
pub mod database_reader;
pub mod dates;
mod decompress;
pub mod directory;
mod error;
pub mod group;
pub mod hold;
mod latest_commit;
pub mod link_counts;
pub mod marks;
pub mod meta;
pub mod object;
mod overlay;
pub mod reader;
pub mod redb_call;
pub mod references;
mod removal;
pub mod roll_forward;
pub mod row_hashes;
mod row_id;
mod row_source;
pub mod snapshot;
pub mod sources;
pub mod tables;
pub mod writer;

pub use damage::{CatalogDamage, FileFault, RowFault};
pub use error::{CatalogError, OpenError, ReadError, Unsupported, WriteError, Written};
pub use row_id::{RowId, RowKind};
