//! Runs every target on the inputs that are kept for it: what once made it fail, and what reaches all of its code.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use zmreplica::fuzzing::TARGETS;

fn corpus() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

#[test]
fn every_target_has_inputs_and_stands_them() {
    for target in TARGETS {
        let directory = corpus().join(target.name);
        let mut inputs: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        inputs.sort();
        assert!(!inputs.is_empty(), "{} is empty", directory.display());
        for input in inputs {
            let bytes = fs::read(&input).unwrap();
            let ran = std::panic::catch_unwind(|| (target.run)(&bytes));
            assert!(ran.is_ok(), "target {} fails on {}", target.name, input.display());
        }
    }
}

#[test]
fn every_directory_belongs_to_a_target() {
    let names: BTreeSet<_> =
        fs::read_dir(corpus()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(names, TARGETS.iter().map(|target| target.name.to_owned()).collect());
}
