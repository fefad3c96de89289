//! Host keys: known ones are asked for first, unknown and changed ones are refused with the remedy.
//!
//! The file's format is OpenSSH's, plain and hashed names. Wildcards, certificates and revocations are not understood: a host that is known only by those counts as unknown.

use std::path::{Path, PathBuf};

use ssh2::{CheckResult, HashType, KnownHostFileKind, Session};

use super::super::TransportError;
use crate::plain::quoted;

/// All algorithms, in order of preference where nothing is known.
const ALGORITHMS: [&str; 7] = [
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
    "ssh-rsa",
];

/// Lines of the files of known hosts.
pub(super) struct KnownKeys {
    files: Vec<PathBuf>,
    lines: Vec<String>,
}

impl KnownKeys {
    /// Reads the file given, which must be there, or else the usual ones.
    pub(super) fn load(_session: &Session, given: Option<&Path>) -> Result<KnownKeys, TransportError> {
        let files = match given {
            Some(file) => vec![file.to_owned()],
            None => {
                let home = super::keys::ssh_directory().map(|directory| directory.join("known_hosts"));
                home.into_iter().chain([PathBuf::from("/etc/ssh/ssh_known_hosts")]).collect()
            }
        };
        let mut lines = Vec::new();
        for file in &files {
            match std::fs::read(file) {
                Ok(bytes) => lines.extend(String::from_utf8_lossy(&bytes).lines().map(str::to_owned)),
                Err(error) if given.is_some() => {
                    let message = format!("Cannot read the known hosts in {}: {error}", file.display());
                    return Err(TransportError::Refused { message });
                }
                Err(_) => {}
            }
        }
        // Comments, and lines with markers such as @cert-authority.
        lines.retain(|line| !line.trim().is_empty() && !line.starts_with(['#', '@']));
        Ok(KnownKeys { files, lines })
    }

    /// Compares one line with a host; names may be hashed, so the library has to look.
    fn of_line(session: &Session, line: &str, host: &str, port: u16, key: &[u8]) -> Option<CheckResult> {
        let mut one = session.known_hosts().ok()?;
        one.read_str(line, KnownHostFileKind::OpenSSH).ok()?;
        Some(one.check_port(host, port, key))
    }

    /// Returns the algorithms to ask the host for, those of its known keys first: else a known host that has another key too would look unknown.
    pub(super) fn algorithms(&self, session: &Session, host: &str, port: u16) -> String {
        let mut known: Vec<&str> = Vec::new();
        for line in &self.lines {
            let mut words = line.split_whitespace();
            let (Some(_), Some(kind)) = (words.next(), words.next()) else { continue };
            // Any key: another than the line's says "mismatch" for this host and "not found" for others.
            if matches!(
                KnownKeys::of_line(session, line, host, port, b"none"),
                Some(CheckResult::Match | CheckResult::Mismatch)
            ) {
                match kind {
                    "ssh-rsa" => known.extend(["rsa-sha2-512", "rsa-sha2-256", "ssh-rsa"]),
                    kind => known.extend(ALGORITHMS.iter().filter(|algorithm| **algorithm == kind)),
                }
            }
        }
        let rest = ALGORITHMS.into_iter().filter(|algorithm| !known.contains(algorithm)).collect::<Vec<_>>();
        known.extend(rest);
        known.join(",")
    }

    /// Compares the host's key, once it has shown it.
    pub(super) fn check(&self, session: &Session, host: &str, port: u16) -> Result<(), TransportError> {
        let refused = |message: String| TransportError::Refused { message };
        let (key, kind) =
            session.host_key().ok_or_else(|| refused(format!("The host {host} shows no key; it is not trusted")))?;
        let mut changed = false;
        for line in &self.lines {
            match KnownKeys::of_line(session, line, host, port, key) {
                Some(CheckResult::Match) => return Ok(()),
                Some(CheckResult::Mismatch) => changed = true,
                _ => {}
            }
        }
        let print = fingerprint(session);
        let name = if port == super::DEFAULT_PORT { host.to_owned() } else { format!("[{host}]:{port}") };
        let name = quoted(&name);
        let file = self.files.first().map(|file| file.display().to_string()).unwrap_or_default();
        let (host_word, file_word) = (quoted(host), quoted(&file));
        let scan = if port == super::DEFAULT_PORT { host_word } else { format!("-p {port} {host_word}") };
        Err(refused(if changed {
            format!(
                "The key of the host {host} has CHANGED: it shows {kind:?} {print}, and {file} has another. Somebody may be listening, or the host was \
                 set up anew. If its administrator confirms the new key: `ssh-keygen -f {file_word} -R {name}`, then `ssh-keyscan {scan} >> {file_word}`"
            )
        } else {
            format!(
                "The key of the host {host} is not known: it shows {kind:?} {print}. Compare that with what the host's administrator tells \
                 (`ssh-keygen -lf` on its key file), then `ssh-keyscan {scan} >> {file_word}`"
            )
        }))
    }
}

/// Returns the key's fingerprint as ssh-keygen shows it.
fn fingerprint(session: &Session) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let hash = session.host_key_hash(HashType::Sha256).unwrap_or_default();
    let mut out = "SHA256:".to_owned();
    for three in hash.chunks(3) {
        let word = three.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for at in 0..=three.len() {
            out.push(char::from(DIGITS[(word >> (18 - 6 * at)) as usize & 63]));
        }
    }
    out
}
