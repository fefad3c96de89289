//! Making programs that a test starts.
//!
//! Linux starts no program that somebody has open for writing. A program that another test is just starting shares, for a moment, every descriptor that this
//! process has open. So it is never this process that writes a program.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Writes a script that anybody may run.
pub fn write_program(path: &Path, text: &str) {
    let mut shell = Command::new("sh");
    shell.args(["-c", r#"cat >"$1" && chmod 755 "$1""#, "sh"]).arg(path).stdin(Stdio::piped());
    let mut shell = shell.spawn().unwrap();
    shell.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(shell.wait().unwrap().success(), "{} cannot be written", path.display());
}

/// Copies a program, and lets anybody run the copy.
pub fn copy_program(from: &Path, to: &Path) {
    let copied = Command::new("install").args(["-m", "755"]).arg(from).arg(to).status().unwrap();
    assert!(copied.success(), "{} cannot be copied to {}", from.display(), to.display());
}
