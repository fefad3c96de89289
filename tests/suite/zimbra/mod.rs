//! What can be restored, judged on generated trees: every fault that is planted is named at the right account, and nothing else is.

mod drill;
mod faults;
mod modes;
mod odd;
mod site;
mod story;
