//! Decides which names of the tree are left out of a snapshot.
//!
//! Patterns follow the spirit of rsync's `--exclude`:
//!
//! - A pattern that starts with `/` is anchored at the root of the tree; any other matches the last
//!   components of a path: `core` leaves out every entry of that name, `tmp/restore` every `restore`
//!   directly in a `tmp`.
//! - A pattern that ends with `/` matches directories only.
//! - `*` and `?` do not match a slash; `**` as a whole component stands for any number of
//!   components; `[a-z]`, `[!a-z]` and `{one,two}` work as in a shell; a backslash takes the next
//!   character literally. `?` and a class stand for one byte.
//! - A directory that is left out is not entered, so its content is left out too.
//!
//! Unless they are switched off, `lost+found` at the root and sessions that are being deleted are left out as well.

use globset::{Candidate, GlobBuilder, GlobMatcher};

use crate::layout::{DELETING_PREFIX, SESSIONS};

/// Returns the patterns that apply unless they are switched off.
///
/// `lost+found` belongs to the file system and only root may read it. A session whose deletion has begun is renamed
/// and then taken apart, possibly for hours: half a session is nobody's state.
fn default_patterns() -> [String; 2] {
    ["/lost+found".to_owned(), format!("/{SESSIONS}/{DELETING_PREFIX}*")]
}

/// A pattern that cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error("Exclude pattern `{pattern}` is not valid: {reason}")]
pub struct PatternError {
    /// The pattern as it was given.
    pub pattern: String,
    /// What is wrong with it.
    pub reason: String,
}

/// A set of compiled patterns, to match paths against.
#[derive(Clone, Debug, Default)]
pub struct ExcludePatterns {
    patterns: Vec<Pattern>,
}

#[derive(Clone, Debug)]
struct Pattern {
    given: String,
    matcher: GlobMatcher,
    directories_only: bool,
    /// What the final component starts and ends with in every path that matches; they rule out nearly every name
    /// before the regular expression runs.
    name_prefix: Box<[u8]>,
    name_suffix: Box<[u8]>,
}

impl ExcludePatterns {
    /// Prepares the given patterns, and the defaults before them if wanted.
    ///
    /// # Errors
    /// An empty pattern, or one that is no valid glob.
    pub fn new(patterns: &[String], with_defaults: bool) -> Result<ExcludePatterns, PatternError> {
        let defaults = with_defaults.then(default_patterns);
        let all = defaults.iter().flatten().chain(patterns);
        Ok(ExcludePatterns { patterns: all.map(|pattern| Pattern::new(pattern)).collect::<Result<_, _>>()? })
    }

    /// Returns whether the entry at `relative_path` (no leading slash) is left out.
    ///
    /// Checks this entry only, not the directories above it: whoever walks the tree does not enter those
    /// that are left out.
    pub fn excluded(&self, relative_path: &[u8], is_directory: bool) -> bool {
        let name = match memchr::memrchr(b'/', relative_path) {
            Some(slash) => &relative_path[slash + 1..],
            None => relative_path,
        };
        self.possible(name, is_directory)
            && self.patterns.iter().any(|pattern| {
                pattern.possible(name, is_directory)
                    && pattern.matcher.is_match_candidate(&Candidate::from_bytes(relative_path))
            })
    }

    /// Returns whether the entry at `relative_path` or a directory above it is left out.
    pub fn leaves_out(&self, relative_path: &[u8], is_directory: bool) -> bool {
        let slashes = relative_path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        slashes.map(|(at, _)| &relative_path[..at]).any(|directory| self.excluded(directory, true))
            || self.excluded(relative_path, is_directory)
    }

    /// Returns the patterns as they were given, the defaults included.
    pub fn patterns(&self) -> impl Iterator<Item = &str> {
        self.patterns.iter().map(|pattern| pattern.given.as_str())
    }

    /// Returns whether any path that ends with `name` could be left out: a quick answer without building the path.
    pub fn possible(&self, name: &[u8], is_directory: bool) -> bool {
        self.patterns.iter().any(|pattern| pattern.possible(name, is_directory))
    }
}

impl Pattern {
    fn new(given: &str) -> Result<Pattern, PatternError> {
        let error = |reason: String| PatternError { pattern: given.to_owned(), reason };
        let (body, directories_only) = match given.strip_suffix('/') {
            // An escaped slash is a slash like any other, but the backslash must not be left dangling.
            Some(body) if !body.ends_with('\\') => (body, true),
            _ => (given, false),
        };
        let (body, anchored) = match body.strip_prefix('/') {
            Some(body) => (body, true),
            None => (body, false),
        };
        if body.is_empty() {
            return Err(error("it names nothing".into()));
        }
        let glob = if anchored { body.to_owned() } else { format!("**/{body}") };
        let matcher = GlobBuilder::new(&glob)
            .literal_separator(true)
            .backslash_escape(true)
            .build()
            .map_err(|source| error(source.kind().to_string()))?
            .compile_matcher();
        let (name_prefix, name_suffix) = literal_ends(body);
        Ok(Pattern { given: given.to_owned(), matcher, directories_only, name_prefix, name_suffix })
    }

    fn possible(&self, name: &[u8], is_directory: bool) -> bool {
        (is_directory || !self.directories_only)
            && name.starts_with(&self.name_prefix)
            && name.ends_with(&self.name_suffix)
    }
}

/// Returns what the final component of every match starts and ends with, as far as that is plain to see.
fn literal_ends(body: &str) -> (Box<[u8]>, Box<[u8]>) {
    if body.contains(['[', '{', '\\']) {
        // These can hide a slash, or make a character mean something else.
        return Default::default();
    }
    let last = body.rsplit('/').next().unwrap_or(body).as_bytes();
    let special = |&byte: &u8| byte == b'*' || byte == b'?';
    let prefix = last.iter().position(special).map_or(last, |first| &last[..first]);
    let suffix = last.iter().rposition(special).map_or(last, |end| &last[end + 1..]);
    (prefix.into(), suffix.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(patterns: &[&str]) -> ExcludePatterns {
        ExcludePatterns::new(&patterns.iter().map(|&pattern| pattern.to_owned()).collect::<Vec<_>>(), false).unwrap()
    }

    #[test]
    fn the_defaults_leave_out_what_they_name() {
        let excludes = ExcludePatterns::new(&[], true).unwrap();
        assert!(excludes.excluded(b"lost+found", true));
        assert!(excludes.excluded(b"sessions/TO_DELETE-full-20260801.050004.118", true));
        assert!(!excludes.excluded(b"sessions/full-20260801.050004.118", true));
        assert!(!excludes.excluded(b"a/lost+found", true));
        assert!(!excludes.excluded(b"a/sessions/TO_DELETE-full", true));
        assert!(!excludes.excluded(b"sessions/full/TO_DELETE-x", false));
        assert!(!ExcludePatterns::default().excluded(b"lost+found", true));
    }

    #[test]
    fn patterns_match_as_documented() {
        // pattern, path, is a directory, left out
        let cases: &[(&str, &[u8], bool, bool)] = &[
            ("core", b"core", false, true),
            ("core", b"a/b/core", false, true),
            ("core", b"a/score", false, false),
            ("core", b"core/a", false, false),
            ("tmp/restore", b"x/tmp/restore", true, true),
            ("tmp/restore", b"xtmp/restore", true, false),
            ("/tmp", b"tmp", true, true),
            ("/tmp", b"a/tmp", true, false),
            ("/tmp/", b"tmp", false, false),
            ("/tmp/", b"tmp", true, true),
            ("*.gz", b"a/x.gz", false, true),
            ("*.gz", b"a/.gz", false, true),
            ("*.gz", b"a.gz/b", false, false),
            ("/a/*.gz", b"a/b/x.gz", false, false),
            ("/a/**/x.gz", b"a/b/c/x.gz", false, true),
            ("/a/**/x.gz", b"a/x.gz", false, true),
            ("/a/**", b"a/b/c", false, true),
            ("/a/**", b"a", true, false),
            ("a**z", b"a/b/z", false, false),
            ("a**z", b"x/abz", false, true),
            ("?", b"q", false, true),
            ("?", b"qq", false, false),
            ("[ab]x", b"d/bx", false, true),
            ("[!ab]x", b"d/bx", false, false),
            ("{one,two}.d", b"two.d", true, true),
            ("\\*", b"*", false, true),
            ("\\*", b"x", false, false),
            ("name.", b"d/name.", false, true),
            ("*.", b"name.", false, true),
            ("\u{e9}*", "d/\u{e9}t\u{e9}".as_bytes(), false, true),
            ("*.msg1", b"d/\xff\xfe\n.msg1", false, true),
            ("*-*-*", b"a-b-c", false, true),
            ("aa*aa", b"aaa", false, false),
        ];
        for &(pattern, path, is_directory, expected) in cases {
            let found = set(&[pattern]).excluded(path, is_directory);
            assert_eq!(found, expected, "{pattern} {:?}", String::from_utf8_lossy(path));
        }
        assert!(set(&["nothing", "x*", "y"]).excluded(b"a/xyz", false));
    }

    #[test]
    fn refuses_what_is_no_pattern() {
        for pattern in ["", "/", "//", "a[", "{a"] {
            let error = ExcludePatterns::new(&[pattern.to_owned()], true);
            assert!(error.unwrap_err().to_string().contains("not valid"), "{pattern}");
        }
    }
}
