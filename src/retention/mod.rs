//! Retention: which snapshots stay, by rules and by protection. Pure: nothing here reads a store or a clock.
//!
//! [`Policy`] holds the rules, [`Protections`] what other parts of the program protect, and [`plan`] makes of both a [`RetentionPlan`]: for
//! each snapshot whether it stays, and why; [`plan_named`] does so for snapshots that somebody has named. The times of snapshots come from
//! [`Dates`](crate::catalog::dates::Dates).
//!
//! Architecture invariant: without a rule nothing goes, and the newest snapshot of a source, by plausible dates or by the order of commits, never does, unless
//! somebody has named it, or the source is removed.
//!
//! Architecture invariant: a snapshot whose date cannot be right never makes a rule let go of another.

mod plan;
mod policy;

pub use plan::{Decision, NamedSnapshots, Protections, RetentionPlan, Rules, Selection, plan, plan_named};
pub use policy::{Policy, PolicyError, Within, WithinUnit};
