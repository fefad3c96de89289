//! Hands what libFuzzer makes to one of the targets in `zmreplica::fuzzing`, which the environment variable `ZMREPLICA_FUZZ_TARGET` names. `scripts/fuzz`
//! starts it.
#![no_main]

use std::sync::LazyLock;

use zmreplica::fuzzing::{TARGETS, Target};

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("ZMREPLICA_FUZZ_TARGET").unwrap_or_default();
    let target = TARGETS.iter().find(|target| target.name == name);
    target.unwrap_or_else(|| {
        panic!("There is no target {name:?}: set ZMREPLICA_FUZZ_TARGET to one of src/fuzzing/mod.rs")
    })
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (TARGET.run)(bytes));
