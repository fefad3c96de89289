//! The tests of the command from outside and of the library through its public parts, in one binary: a module for each subject, and what they share in
//! `support`.

mod access;
mod agentless;
mod agentless_words;
mod begun;
mod beside;
mod bounds;
mod check_beside;
mod cli;
mod clock;
mod condemned;
mod crash;
mod damage;
mod events;
mod exchanged;
mod failing_calls;
mod forget;
mod full_disk;
mod golden;
mod guard;
mod handles;
mod history;
mod hostile;
mod hosts;
mod layers;
mod model;
mod mount;
mod mount_beside;
mod mount_life;
mod night;
mod nightly;
mod old_stores;
mod packaging;
mod prune;
mod prune_kill;
mod prune_mount;
mod pull;
mod pull_broken;
mod readable;
mod readme;
mod repair;
mod report;
mod restorable;
mod restore;
mod restore_hard;
mod restore_owners;
mod retention;
mod sandbox;
mod shown;
mod sources;
mod stale;
mod store_config;
mod support;
mod two_servers;
mod unreadable;
mod wait_lock;
mod zimbra;

/// A file that no module names would not be compiled, and its tests would not run.
#[test]
fn every_file_is_a_module() {
    use std::path::{Path, PathBuf};

    /// Adds the file of a module and those of the modules that it names.
    fn add(file: PathBuf, below: &Path, named: &mut Vec<PathBuf>) {
        let text = std::fs::read_to_string(&file).unwrap();
        named.push(file);
        for line in text.lines() {
            let name = line.strip_prefix("pub ").unwrap_or(line).strip_prefix("mod ");
            let Some(name) = name.and_then(|name| name.strip_suffix(';')) else { continue };
            let (alone, inner) = (below.join(format!("{name}.rs")), below.join(name));
            if alone.exists() { add(alone, &inner, named) } else { add(inner.join("mod.rs"), &inner, named) }
        }
    }
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut named = Vec::new();
    add(tests.join("suite/main.rs"), &tests.join("suite"), &mut named);
    let all = support::odd::paths(&tests);
    let mut found: Vec<_> = all.into_iter().filter(|path| path.extension().is_some_and(|end| end == "rs")).collect();
    named.sort();
    found.sort();
    assert_eq!(found, named, "each .rs file below tests/ is a module of tests/suite/main.rs");
}
