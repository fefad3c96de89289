//! Host keys: known ones are requested first; unknown, changed and revoked ones are refused with the remedy.

use std::io::Read;
use std::path::{Path, PathBuf};

use data_encoding::BASE64_NOPAD;
use sha2::{Digest, Sha256};
use ssh2::Session;

use super::super::TransportError;
use super::super::known_hosts::{FILE_MAX_BYTES, KnownHosts, Verdict, parse};
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

/// The files of known hosts.
pub(super) struct KnownKeys {
    /// Those that are not there are empty.
    files: Vec<(PathBuf, KnownHosts)>,
}

fn refused(message: String) -> TransportError {
    TransportError::Refused { message }
}

impl KnownKeys {
    /// Reads the file given, or else the usual ones. A file that is not there knows no host.
    pub(super) fn load(given: Option<&Path>) -> Result<KnownKeys, TransportError> {
        let paths = match given {
            Some(file) => vec![file.to_owned()],
            None => {
                let home = super::keys::ssh_directory().map(|directory| directory.join("known_hosts"));
                home.into_iter().chain([PathBuf::from("/etc/ssh/ssh_known_hosts")]).collect()
            }
        };
        let read = |path: PathBuf| match read_bounded(&path) {
            Ok(bytes) => Ok((path, parse(&bytes))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok((path, KnownHosts::default())),
            // It may hold the very line that forbids this host.
            Err(error) => Err(refused(format!("Cannot read the known hosts in {}: {error}", path.display()))),
        };
        Ok(KnownKeys { files: paths.into_iter().map(read).collect::<Result<_, _>>()? })
    }

    /// Returns the algorithms to request, those of the known keys first: else a known host that has another key too would look unknown.
    pub(super) fn algorithms(&self, host: &str, port: u16) -> String {
        let mut known: Vec<&str> = Vec::new();
        for kind in self.files.iter().flat_map(|(_, file)| file.types(host, port)) {
            let wanted: Vec<&str> = match kind {
                "ssh-rsa" => vec!["rsa-sha2-512", "rsa-sha2-256", "ssh-rsa"],
                kind => ALGORITHMS.into_iter().filter(|algorithm| *algorithm == kind).collect(),
            };
            known.extend(wanted.into_iter().filter(|algorithm| !known.contains(algorithm)).collect::<Vec<_>>());
        }
        let rest = ALGORITHMS.into_iter().filter(|algorithm| !known.contains(algorithm)).collect::<Vec<_>>();
        known.extend(rest);
        known.join(",")
    }

    /// Compares the host's key, once it has shown it. What forbids it in one file counts against what lets it in in another.
    pub(super) fn check(&self, session: &Session, host: &str, port: u16) -> Result<(), TransportError> {
        let (key, kind) =
            session.host_key().ok_or_else(|| refused(format!("The host {host} shows no key, so it is not trusted")))?;
        let verdicts: Vec<(&Path, Verdict)> =
            self.files.iter().map(|(path, file)| (path.as_path(), file.verdict(host, port, key))).collect();
        let find = |wanted: fn(&Verdict) -> bool| verdicts.iter().find(|(_, verdict)| wanted(verdict)).copied();
        let print = format!("{kind:?} {}", fingerprint(key));
        let bare = port == super::DEFAULT_PORT;
        let name = quoted(&if bare { host.to_owned() } else { format!("[{host}]:{port}") });
        let scan = if bare { quoted(host) } else { format!("-p {port} {}", quoted(host)) };
        if let Some((file, Verdict::Revoked(line))) = find(|verdict| matches!(verdict, Verdict::Revoked(_))) {
            return Err(refused(format!(
                "The key of the host {host} is REVOKED: it shows {print}, which line {line} of {} marks @revoked. Do not continue until its administrator has explained why and set up a new one",
                file.display()
            )));
        }
        if let Some((file, Verdict::Unclear(line))) = find(|verdict| matches!(verdict, Verdict::Unclear(_))) {
            return Err(refused(format!(
                "Line {line} of {} might forbid the key of the host {host}, {print}, but cannot be parsed. Correct or remove that line",
                file.display()
            )));
        }
        if find(|verdict| matches!(verdict, Verdict::Known(_))).is_some() {
            return Ok(());
        }
        if let Some((file, Verdict::Changed(line))) = find(|verdict| matches!(verdict, Verdict::Changed(_))) {
            let (file, word) = (file.display(), quoted(&file.to_string_lossy()));
            return Err(refused(format!(
                "The key of the host {host} has CHANGED: it shows {print}, and line {line} of {file} has another. Someone may be intercepting the connection, or the host was \
                 reinstalled. If its administrator confirms the new key, run `ssh-keygen -f {word} -R {name}`, then `ssh-keyscan {scan} >> {word}`"
            )));
        }
        let authority = match find(|verdict| matches!(verdict, Verdict::Authority(_))) {
            Some((file, Verdict::Authority(line))) => {
                format!(
                    " (line {line} of {} names an authority for it; certificates are for --rsh ssh)",
                    file.display()
                )
            }
            _ => String::new(),
        };
        let word = self.files.first().map(|(file, _)| quoted(&file.to_string_lossy())).unwrap_or_default();
        Err(refused(format!(
            "The key of the host {host} is not known{authority}: it shows {print}. Compare that with what the host's administrator reports \
             (`ssh-keygen -lf` on its key file), then run `ssh-keyscan {scan} >> {word}`"
        )))
    }
}

fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(FILE_MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_MAX_BYTES {
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, "it is larger than 16 MiB"));
    }
    Ok(bytes)
}

/// Returns a key's fingerprint as ssh-keygen shows it.
fn fingerprint(key: &[u8]) -> String {
    format!("SHA256:{}", BASE64_NOPAD.encode(&Sha256::digest(key)))
}
