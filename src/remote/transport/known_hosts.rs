//! Files of known hosts, read as OpenSSH's client reads them (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT").
//!
//! A line is `[@MARKER] NAMES TYPE KEY [comment]`. `NAMES` are patterns separated by commas, with `*`, `?` and `!` for "but not", or one name hashed as
//! `|1|SALT|HMAC-SHA1`. A host at another port than 22 is `[host]:port`; where no line has it so, lines of the bare name speak for it.
//!
//! What is not understood never lets a host in. A line that might forbid a key, `@revoked` or with an unknown marker, refuses the hosts that it might mean.
//! Certificates are not known here: `@cert-authority` lines let nobody in.
//!
//! Memory: the file, of which the caller takes [`FILE_MAX_BYTES`] at most, and as much again.

use data_encoding::BASE64;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;

/// Larger files are not read.
pub const FILE_MAX_BYTES: u64 = 16 << 20;
/// The port that goes without saying.
const DEFAULT_PORT: u16 = 22;
/// The longest pattern; OpenSSH's own bound.
const PATTERN_MAX_BYTES: usize = 1024;

/// What a line is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Marker {
    /// The key of a host.
    Host,
    /// The key that signs certificates of hosts.
    Authority,
    /// A key that is no longer to be trusted.
    Revoked,
    /// One that is not known here.
    Unknown,
}

/// Whom a line means.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Names {
    /// Patterns, in lower case.
    Patterns(Vec<u8>),
    /// The salt and what it makes of the name.
    Hashed { salt: Vec<u8>, hash: Vec<u8> },
    /// Not understood: it might be anybody.
    Unknown,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    number: usize,
    marker: Marker,
    names: Names,
    /// Type and key; `None` if they are not understood.
    key: Option<(String, Vec<u8>)>,
}

/// The lines of one file that say something.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownHosts {
    lines: Vec<Line>,
}

/// What is known of a host's key. The numbers are those of lines, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the host's.
    Known(usize),
    /// The host has others.
    Changed(usize),
    /// The host has none.
    New,
    /// It is not to be trusted.
    Revoked(usize),
    /// A line that might forbid it is not understood.
    Unclear(usize),
    /// The host is known by the signature of an authority alone.
    Authority(usize),
}

/// Reads a file. Never fails: a line that is invalid lets nobody in.
pub fn parse(bytes: &[u8]) -> KnownHosts {
    let lines = bytes.split(|byte| *byte == b'\n').enumerate();
    KnownHosts { lines: lines.filter_map(|(at, line)| parse_line(line, at + 1)).collect() }
}

fn parse_line(line: &[u8], number: usize) -> Option<Line> {
    let mut words = line.split(|byte| matches!(byte, b' ' | b'\t' | b'\r')).filter(|word| !word.is_empty());
    let mut names = words.next().filter(|word| !word.starts_with(b"#"))?;
    let mut marker = Marker::Host;
    if names.starts_with(b"@") {
        marker = match names {
            b"@cert-authority" => Marker::Authority,
            b"@revoked" => Marker::Revoked,
            _ => Marker::Unknown,
        };
        names = words.next().unwrap_or_default();
    }
    if names.starts_with(b"@") {
        // A second marker.
        (marker, names) = (Marker::Unknown, words.next().unwrap_or_default());
    }
    let key = words.next().zip(words.next()).and_then(|(kind, key)| parse_key(kind, key));
    Some(Line { number, marker, names: parse_names(names), key })
}

fn parse_names(names: &[u8]) -> Names {
    if names.is_empty() || names.split(|byte| *byte == b',').any(|pattern| pattern.len() > PATTERN_MAX_BYTES) {
        return Names::Unknown;
    }
    let Some(hashed) = names.strip_prefix(b"|") else { return Names::Patterns(names.to_ascii_lowercase()) };
    let parts: Vec<&[u8]> = hashed.split(|byte| *byte == b'|').collect();
    match parts.as_slice() {
        [b"1", salt, hash] => match (BASE64.decode(salt), BASE64.decode(hash)) {
            (Ok(salt), Ok(hash)) if hash.len() == 20 => Names::Hashed { salt, hash },
            _ => Names::Unknown,
        },
        _ => Names::Unknown,
    }
}

/// Reads a key; the type stands in it once more, and must be the same.
fn parse_key(kind: &[u8], key: &[u8]) -> Option<(String, Vec<u8>)> {
    let key = BASE64.decode(key).ok()?;
    let (length, rest) = key.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let same = rest.get(..length)? == kind;
    let kind = std::str::from_utf8(kind).ok()?.to_owned();
    // A certificate is a key within a key: not understood.
    (same && !kind.contains("-cert-v0")).then_some((kind, key))
}

/// Returns a host's name as lines have it.
fn full_name(host: &str, port: u16) -> String {
    let host = host.to_ascii_lowercase();
    if port == DEFAULT_PORT { host } else { format!("[{host}]:{port}") }
}

impl Names {
    /// Returns whether they mean a name; `None` if that is not clear.
    fn mean(&self, name: &str) -> Option<bool> {
        match self {
            Names::Unknown => None,
            Names::Hashed { salt, hash } => {
                let mut mac = Hmac::<Sha1>::new_from_slice(salt).ok()?;
                mac.update(name.as_bytes());
                Some(mac.finalize().into_bytes().as_slice() == hash)
            }
            Names::Patterns(patterns) => {
                let mut found = false;
                for pattern in patterns.split(|byte| *byte == b',') {
                    match pattern.strip_prefix(b"!") {
                        Some(pattern) if matches(pattern, name.as_bytes()) => return Some(false),
                        Some(_) => {}
                        None => found |= matches(pattern, name.as_bytes()),
                    }
                }
                Some(found)
            }
        }
    }
}

/// Compares a name with a pattern of `*` and `?`, in time that grows with the product of their lengths at most.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut in_name) = (0, 0);
    // Where to go on when the last star has to take one byte more.
    let mut star: Option<(usize, usize)> = None;
    while in_name < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at + 1, in_name));
                at += 1;
            }
            Some(byte) if *byte == b'?' || *byte == name[in_name] => {
                at += 1;
                in_name += 1;
            }
            _ => match &mut star {
                Some((behind, from)) => {
                    *from += 1;
                    (at, in_name) = (*behind, *from);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

impl KnownHosts {
    /// Returns what these lines say of a key that a host shows.
    pub fn verdict(&self, host: &str, port: u16, key: &[u8]) -> Verdict {
        let verdict = self.of_name(&full_name(host, port), key);
        if port == DEFAULT_PORT || !matches!(verdict, Verdict::New | Verdict::Authority(_)) {
            return verdict;
        }
        match self.of_name(&full_name(host, DEFAULT_PORT), key) {
            // Another service of that host may have another key.
            Verdict::Changed(_) | Verdict::New => verdict,
            bare => bare,
        }
    }

    fn of_name(&self, name: &str, key: &[u8]) -> Verdict {
        let mut verdict = Verdict::New;
        for line in &self.lines {
            let meant = line.names.mean(name);
            let same = line.key.as_ref().map(|(_, known)| known == key);
            match (line.marker, meant, same) {
                (_, Some(false), _) => {}
                // It forbids the key, whatever other lines say.
                (Marker::Revoked, Some(true), Some(true)) => return Verdict::Revoked(line.number),
                (Marker::Revoked, _, Some(false)) => {}
                (Marker::Revoked | Marker::Unknown, _, _) => return Verdict::Unclear(line.number),
                (Marker::Host, Some(true), Some(true)) => {
                    if !matches!(verdict, Verdict::Known(_)) {
                        verdict = Verdict::Known(line.number);
                    }
                }
                (Marker::Host, Some(true), Some(false)) => {
                    if matches!(verdict, Verdict::New | Verdict::Authority(_)) {
                        verdict = Verdict::Changed(line.number);
                    }
                }
                (Marker::Authority, Some(true), _) => {
                    if verdict == Verdict::New {
                        verdict = Verdict::Authority(line.number);
                    }
                }
                (Marker::Host | Marker::Authority, _, _) => {}
            }
        }
        verdict
    }

    /// Returns the types of the keys that are known of a host and not revoked, in the order of the lines.
    pub fn types(&self, host: &str, port: u16) -> Vec<&str> {
        let of = |name: String| -> Vec<&str> {
            let lines =
                self.lines.iter().filter(|line| line.marker == Marker::Host && line.names.mean(&name) == Some(true));
            let keys = lines.filter_map(|line| line.key.as_ref());
            keys.filter(|(_, key)| matches!(self.verdict(host, port, key), Verdict::Known(_)))
                .map(|(kind, _)| kind.as_str())
                .collect()
        };
        let types = of(full_name(host, port));
        if types.is_empty() && port != DEFAULT_PORT { of(full_name(host, DEFAULT_PORT)) } else { types }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHkxQb1lQ1lbGtqQFZmEYQ8mSkTf0i8wZ7Wf1gU1wq0a";
    const OTHER: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIcQ4P1GZ5nN0m0hWm0Jm1o2d3oX9k8v7b6n5m4l3k2j";

    fn blob(key: &str) -> Vec<u8> {
        BASE64.decode(key.split(' ').nth(1).unwrap().as_bytes()).unwrap()
    }

    fn verdict(file: &str, host: &str, port: u16) -> Verdict {
        let file = file.replace("KEY", KEY).replace("OTHER", OTHER);
        parse(file.as_bytes()).verdict(host, port, &blob(KEY))
    }

    #[test]
    fn lines_are_read_as_openssh_reads_them() {
        use Verdict::*;
        for (file, host, port, expected) in [
            ("mail KEY", "mail", 22, Known(1)),
            ("mail KEY", "MAIL", 22, Known(1)),
            ("\n# mail KEY\n  Mail,10.0.0.1\tKEY a comment\r\n", "mail", 22, Known(3)),
            ("mail KEY", "mail2", 22, New),
            ("mail OTHER", "mail", 22, Changed(1)),
            ("mail OTHER\nmail KEY", "mail", 22, Known(2)),
            // Ports.
            ("[mail]:2222 KEY", "mail", 2222, Known(1)),
            ("[mail]:2222 KEY", "mail", 22, New),
            ("mail KEY", "mail", 2222, Known(1)),
            ("mail OTHER", "mail", 2222, New),
            ("mail KEY\n[mail]:2222 OTHER", "mail", 2222, Changed(2)),
            ("[fe80::1]:2222 KEY", "fe80::1", 2222, Known(1)),
            ("fe80::1 KEY", "fe80::1", 22, Known(1)),
            // Wildcards and negations.
            ("*.example.com KEY", "mail.example.com", 22, Known(1)),
            ("*.example.com KEY", "example.com", 22, New),
            ("m?il KEY", "mail", 22, Known(1)),
            ("*,!mail KEY", "mail", 22, New),
            ("!mail,* KEY", "mail", 22, New),
            ("!mail,* KEY", "web", 22, Known(1)),
            ("!web KEY", "mail", 22, New),
            ("[*]:2222 KEY", "mail", 2222, Known(1)),
            // Markers.
            ("@revoked * KEY\nmail KEY", "mail", 22, Revoked(1)),
            ("mail KEY\n@revoked * KEY", "mail", 22, Revoked(2)),
            ("mail KEY\n@revoked mail KEY", "mail", 2222, Revoked(2)),
            ("mail KEY\n@revoked web KEY", "mail", 22, Known(1)),
            ("mail KEY\n@revoked *,!mail KEY", "mail", 22, Known(1)),
            ("mail KEY\n@revoked * OTHER", "mail", 22, Known(1)),
            ("@cert-authority * KEY", "mail", 22, Authority(1)),
            ("@cert-authority * KEY\nmail KEY", "mail", 22, Known(2)),
            ("@cert-authority * KEY\nmail OTHER", "mail", 22, Changed(2)),
            // What is not understood.
            ("mail KEY\n@forbidden * OTHER", "mail", 22, Unclear(2)),
            ("mail KEY\n@forbidden web OTHER", "mail", 22, Known(1)),
            ("mail KEY\n@revoked", "mail", 22, Unclear(2)),
            ("mail KEY\n@revoked * ssh-ed25519 ????", "mail", 22, Unclear(2)),
            ("mail KEY\n@revoked |2|x|y KEY", "mail", 22, Unclear(2)),
            ("mail KEY\n@revoked @revoked mail KEY", "mail", 22, Unclear(2)),
            ("mail ssh-rsa AAAA", "mail", 22, New),
            ("mail 2048 65537 1234", "mail", 22, New),
            ("|1|x|y KEY", "mail", 22, New),
            ("mail", "mail", 22, New),
        ] {
            assert_eq!(verdict(file, host, port), expected, "{file:?} {host} {port}");
        }
        // The type outside is not that inside.
        assert_eq!(verdict(&format!("mail {}", KEY.replacen("ssh-ed25519", "ssh-rsa", 1)), "mail", 22), New);
    }

    /// ssh-keygen -H makes the hashes, and ssh-keygen -F finds what is found here.
    #[test]
    fn ssh_keygen_agrees() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("known");
        std::fs::write(&file, format!("mail,[web]:2222 {KEY}\n*.example.com,!x.example.com {KEY}\n")).unwrap();
        let keygen = |arguments: &[&str]| {
            Command::new("ssh-keygen").args(arguments).arg("-f").arg(&file).output().unwrap().status.success()
        };
        for hashed in [false, true] {
            if hashed {
                assert!(keygen(&["-H"]));
                assert!(std::fs::read_to_string(&file).unwrap().starts_with("|1|"));
            }
            let known = parse(&std::fs::read(&file).unwrap());
            for (host, port) in
                [("mail", 22), ("web", 2222), ("web", 22), ("a.example.com", 22), ("x.example.com", 22), ("[mail]", 22)]
            {
                let name = full_name(host, port);
                let here = matches!(known.of_name(&name, &blob(KEY)), Verdict::Known(_));
                assert_eq!(here, keygen(&["-F", &name]), "{name} {hashed}");
            }
        }
    }

    #[test]
    fn types_are_those_of_keys_that_are_let_in() {
        let text =
            format!("mail {KEY}\nmail {OTHER}\n@revoked * {KEY}\n[mail]:2222 {OTHER}\n@revoked * {OTHER}\nweb {KEY}");
        assert_eq!(parse(text.as_bytes()).types("mail", 22), Vec::<&str>::new());
        let text = format!("*.org {KEY}\n");
        assert_eq!(parse(text.as_bytes()).types("a.org", 2222), ["ssh-ed25519"]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(
            bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(b' '), Just(b'\n'), Just(b'@'), Just(b'|'), Just(b'*')], 0..400)
        ) {
            let known = parse(&bytes);
            prop_assert!(!matches!(known.verdict("mail", 22, &blob(KEY)), Verdict::Known(_) | Verdict::Revoked(_)));
            known.types("mail", 2222);
        }

        #[test]
        fn patterns_match_as_their_definition_says(pattern in "[ab*?]{0,8}", name in "[ab]{0,8}") {
            fn plain(pattern: &[u8], name: &[u8]) -> bool {
                match (pattern.split_first(), name.split_first()) {
                    (None, None) => true,
                    (Some((b'*', rest)), _) => plain(rest, name) || (!name.is_empty() && plain(pattern, &name[1..])),
                    (Some((byte, rest)), Some((first, after))) => (*byte == b'?' || byte == first) && plain(rest, after),
                    _ => false,
                }
            }
            prop_assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), plain(pattern.as_bytes(), name.as_bytes()));
        }
    }
}
