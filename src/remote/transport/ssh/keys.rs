//! Authentication by public key: the file that was named, ssh-agent, or the usual files.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ssh2::{ErrorCode, Session};

use super::super::TransportError;
use crate::cause::{Cause, During, Explained};

/// libssh2's number for "the server does not accept this key".
const AUTHENTICATION_FAILED: i32 = -18;
/// The names of key files that are tried, as OpenSSH does.
const USUAL_FILES: [&str; 3] = ["id_ed25519", "id_ecdsa", "id_rsa"];

/// Asks for the passphrase of a key file; `None` when nobody can answer.
pub type AskPassphrase = dyn Fn(&Path) -> Option<String> + Send + Sync;

/// Where the passphrase of an encrypted key comes from. Asked once for each file.
#[derive(Clone, Default)]
pub struct Passphrase(pub Option<Arc<AskPassphrase>>);

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Passphrase(..)" } else { "Passphrase(none)" })
    }
}

/// Returns the user's `.ssh` directory.
pub(super) fn ssh_directory() -> Option<PathBuf> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    let home = home.or_else(|| {
        use uzers::os::unix::UserExt;
        Some(uzers::get_user_by_uid(uzers::get_current_uid())?.home_dir().to_owned())
    })?;
    Some(home.join(".ssh"))
}

/// Logs in, or says what was tried.
pub(super) fn authenticate(
    session: &Session,
    host: &str,
    user: &str,
    key_file: Option<&Path>,
    passphrase: &Passphrase,
) -> Result<(), TransportError> {
    let mut tried = Vec::new();
    let files: Vec<PathBuf> = match key_file {
        Some(file) => vec![file.to_owned()],
        None => {
            if let Some(failure) = by_agent(session, user) {
                tried.push(failure);
            }
            let directory = ssh_directory();
            let usual = USUAL_FILES.iter().filter_map(|name| Some(directory.as_ref()?.join(name)));
            usual.filter(|file| file.exists()).collect()
        }
    };
    for file in &files {
        if session.authenticated() {
            break;
        }
        if let Err(reason) = by_file(session, user, file, passphrase) {
            tried.push(format!("{}: {reason}", file.display()));
        }
    }
    if session.authenticated() {
        return Ok(());
    }
    if tried.is_empty() {
        tried.push("there is neither ssh-agent nor a key in ~/.ssh".to_owned());
    }
    let message = format!(
        "{host} does not let {user} in ({}). Name a key with --ssh-key whose public half is in {user}'s authorized_keys there",
        tried.join("; ")
    );
    Err(TransportError::Refused { message })
}

/// Tries the keys that ssh-agent holds; returns what to report when none did.
fn by_agent(session: &Session, user: &str) -> Option<String> {
    std::env::var_os("SSH_AUTH_SOCK").filter(|socket| !socket.is_empty())?;
    let attempt = || -> Result<usize, ssh2::Error> {
        let mut agent = session.agent()?;
        agent.connect()?;
        agent.list_identities()?;
        let identities = agent.identities()?;
        for identity in &identities {
            if agent.userauth(user, identity).is_ok() {
                break;
            }
        }
        Ok(identities.len())
    };
    match attempt() {
        Ok(0) => Some("ssh-agent holds no key".to_owned()),
        Ok(count) => Some(format!("ssh-agent: none of its {count} keys is accepted")),
        Err(error) => Some(format!("ssh-agent: {error}")),
    }
}

fn by_file(session: &Session, user: &str, file: &Path, passphrase: &Passphrase) -> Result<(), Cause> {
    let text = std::fs::read(file).map_err(|error| During::new("cannot be read", error))?;
    let word = if is_encrypted(&text) {
        let source = passphrase.0.as_ref();
        let word = source.and_then(|source| source(file));
        Some(word.ok_or("it is encrypted, and no passphrase is set: use ssh-agent, or ZMREPLICA_SSH_PASSPHRASE")?)
    } else {
        None
    };
    session.userauth_pubkey_file(user, None, file, word.as_deref()).map_err(|error| match error.code() {
        ErrorCode::Session(AUTHENTICATION_FAILED) => "the host does not accept it".into(),
        _ if word.is_some() => Explained::new(error, "; is the passphrase right?").into(),
        _ => error.into(),
    })
}

/// Returns whether a private key is encrypted. In OpenSSH's format the name of the cipher stands first, behind a magic of 15 bytes, so that its base64 is
/// always the same.
fn is_encrypted(text: &[u8]) -> bool {
    const PLAIN: &str = "b3BlbnNzaC1rZXktdjEAAAAABG5vbmU";
    let text = String::from_utf8_lossy(text);
    match text.split_once("-----BEGIN OPENSSH PRIVATE KEY-----") {
        Some((_, body)) => !body.trim_start().starts_with(PLAIN),
        None => text.contains("ENCRYPTED"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encrypted_keys_are_recognized() {
        let head = "-----BEGIN OPENSSH PRIVATE KEY-----\n";
        assert!(!is_encrypted(format!("{head}b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQ\n").as_bytes()));
        assert!(is_encrypted(format!("{head}b3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHIAAAAG\n").as_bytes()));
        assert!(is_encrypted(b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n"));
        assert!(!is_encrypted(b"-----BEGIN RSA PRIVATE KEY-----\nMIIE\n"));
    }
}
