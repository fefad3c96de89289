//! Finds which names have extended attributes without reading content: what `tar -cvv -f /dev/null` prints.
//!
//! For `/dev/null` GNU tar opens files and reads their attributes, but not their content. With `-vv` a line begins with the permissions as `ls -l` shows them,
//! then one character: `*` for extended attributes (ACLs among them), else a space. Then owner, size, date, time, and the name with the escapes of C.

use std::collections::HashMap;

use super::find::{relative, unescaped};
use super::shell::Shell;
use super::tar_messages::TarMessages;
use crate::source::tree::SourceError;

/// Returns for the paths that tar could look at whether they have extended attributes. Only files and directories are looked at.
pub(super) fn probe_xattrs<'p>(
    shell: &mut Shell,
    paths: impl Iterator<Item = &'p [u8]>,
) -> Result<HashMap<Vec<u8>, bool>, SourceError> {
    let mut found = HashMap::new();
    let count = shell.command_on("look", paths);
    if count == 0 {
        return Ok(found);
    }
    let mut lines = 0;
    while let Some(line) = shell.line()? {
        if let Some((path, any)) = parse(&line) {
            found.insert(path, any);
        }
        lines += 1;
        if lines > count {
            return Err(shell.breach("more names than were requested"));
        }
    }
    let words = TarMessages::parse(&shell.end("look")?);
    // Where the attributes could not be read, the line looks as if there were none.
    found.retain(|path, _| words.understood() && words.of(path).is_none());
    Ok(found)
}

pub(super) fn parse(line: &[u8]) -> Option<(Vec<u8>, bool)> {
    if !matches!(line.first()?, b'-' | b'd') {
        return None;
    }
    let (mode, mut rest) = line.split_at_checked(11)?;
    for _field in ["owner", "size", "date", "time"] {
        rest = rest.trim_ascii_start();
        rest = &rest[rest.iter().position(|byte| *byte == b' ')?..];
    }
    let name = unescaped(rest.strip_prefix(b" ")?)?;
    let name = name.strip_suffix(b"/").unwrap_or(&name);
    let path = if name == b"." { b"" } else { relative(name)? };
    Some((path.to_vec(), mode[10] != b' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let file = b"-rw-r--r--* 0/0               3 2026-11-25 13:45 ./d/ odd \\377\\n'\"\\\\ name";
        assert_eq!(parse(file), Some((b"d/ odd \xff\n'\"\\ name".to_vec(), true)));
        assert_eq!(parse(b"drwx------  4242/4343         0 2026-11-25 13:45 ./"), Some((Vec::new(), false)));
        assert_eq!(parse(b"drwxr-xr-x+ 0/0               0 2026-11-25 13:45 ./e f/"), Some((b"e f".to_vec(), true)));
        for other in [
            &b"  x: 44 system.posix_acl_default"[..],
            b"lrwxrwxrwx  0/0               0 2026-11-25 13:45 ./l -> ../x y",
            b"-rw-r--r--",
            b"-rw-r--r--  0/0 3 2026-11-25 13:45",
            b"-rw-r--r--  0/0 3 2026-11-25 13:45 ../x",
            b"",
        ] {
            assert_eq!(parse(other), None);
        }
    }
}
