//! What tests of pulls share: running a command, and comparing what it took with what was taken locally.

use std::process::{Command, Output};

use serde_json::Value;

use super::mounted::{err, out};

pub fn finished(command: &mut Command, code: i32) -> Output {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{command:?}: {}{}", out(&output), err(&output));
    output
}

pub fn summary(output: &Output) -> Value {
    let text = out(output);
    let summary: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(summary["event"], "summary");
    summary
}

pub fn assert_same(pulled: &Value, local: &Value) {
    assert_eq!(pulled["digest"], local["digest"]);
    assert_eq!(pulled["totals"], local["totals"]);
    assert_eq!(pulled["problem_count"], local["problem_count"]);
    for figure in ["read_files", "read_bytes", "new_chunks", "unchanged_inodes", "attribute_inodes"] {
        assert_eq!(pulled["work"][figure], local["work"][figure], "{figure}");
    }
}
