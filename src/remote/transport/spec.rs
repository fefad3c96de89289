//! How a user names a place on another host: `[user@]host:path` or `ssh://[user@]host[:port]/path`.

use std::fmt;

/// A directory on another host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteSpec {
    /// The user there; the local user's name if none is given.
    pub user: Option<String>,
    /// The host; an IPv6 address without brackets.
    pub host: String,
    /// The port, if one is given.
    pub port: Option<u16>,
    /// The path there; relative to the user's home directory unless it begins with a slash.
    pub path: String,
}

/// A place that cannot be meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` does not name a place on a remote host: {reason}. Write [user@]host:path or ssh://[user@]host[:port]/path"
)]
pub struct SpecError {
    /// What was given.
    pub text: String,
    /// What is wrong.
    pub reason: &'static str,
}

impl RemoteSpec {
    /// Reads a place; `None` if it is a local path: one without a colon, or with a slash before the first.
    ///
    /// # Errors
    /// [`SpecError`] for what is neither.
    pub fn parse(text: &str) -> Result<Option<RemoteSpec>, SpecError> {
        let bad = |reason| SpecError { text: text.to_owned(), reason };
        let (user, host, port, path) = if let Some(rest) = text.strip_prefix("ssh://") {
            let (authority, path) = rest.split_at(rest.find('/').ok_or_else(|| bad("it has no path"))?);
            let (user, address) = split_user(authority);
            let (host, port) = match split_brackets(address) {
                Some((host, "")) => (host, None),
                Some((host, rest)) => (host, Some(rest.strip_prefix(':').ok_or_else(|| bad("its host is not clear"))?)),
                None => match address.split_once(':') {
                    Some((host, port)) => (host, Some(port)),
                    None => (address, None),
                },
            };
            let port = port.map(|port| port.parse().map_err(|_| bad("its port is not a number"))).transpose()?;
            (user, host, port, path)
        } else {
            let (user, rest) = match text.find([':', '/']) {
                Some(at) if text[..at].contains('[') => split_user(text),
                // What stands behind the first colon is the path, whatever it holds.
                Some(at) if text.as_bytes()[at] == b':' => match text[..at].rfind('@') {
                    Some(user) => (Some(&text[..user]), &text[user + 1..]),
                    None => (None, text),
                },
                _ => return Ok(None),
            };
            let (host, path) = match split_brackets(rest) {
                Some((host, rest)) => (host, rest.strip_prefix(':').ok_or_else(|| bad("its host is not clear"))?),
                None => rest.split_once(':').ok_or_else(|| bad("its host is not clear"))?,
            };
            (user, host, None, path)
        };
        if host.is_empty()
            || host.starts_with('-')
            || host.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/')
        {
            return Err(bad("its host is not one"));
        }
        if user.is_some_and(|user| user.is_empty() || user.starts_with('-') || user.contains(char::is_control)) {
            return Err(bad("its user is not one"));
        }
        if path.is_empty() || path.contains('\0') {
            return Err(bad("it has no path"));
        }
        Ok(Some(RemoteSpec { user: user.map(str::to_owned), host: host.to_owned(), port, path: path.to_owned() }))
    }

    /// Returns the path as the name of a source has it: without slashes at its end.
    fn plain_path(&self) -> &str {
        match self.path.trim_end_matches('/') {
            "" => "/",
            path => path,
        }
    }
}

impl fmt::Display for RemoteSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match self.port {
            Some(port) if self.path.starts_with('/') => write!(f, "ssh://{user}{host}:{port}{}", self.plain_path()),
            _ => write!(f, "{user}{host}:{}", self.plain_path()),
        }
    }
}

fn split_user(text: &str) -> (Option<&str>, &str) {
    // The host has no @; a user's name may.
    let end = text.find('/').unwrap_or(text.len());
    match text[..end].rfind('@') {
        Some(at) => (Some(&text[..at]), &text[at + 1..]),
        None => (None, text),
    }
}

fn split_brackets(text: &str) -> Option<(&str, &str)> {
    text.strip_prefix('[')?.split_once(']')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Option<(Option<String>, String, Option<u16>, String)> {
        RemoteSpec::parse(text).unwrap().map(|spec| (spec.user, spec.host, spec.port, spec.path))
    }

    #[test]
    fn places_are_distinguished() {
        let place = |user: Option<&str>, host: &str, port, path: &str| {
            Some((user.map(str::to_owned), host.to_owned(), port, path.to_owned()))
        };
        assert_eq!(parsed("mail:/opt"), place(None, "mail", None, "/opt"));
        assert_eq!(parsed("zimbra@mail.example.com:backup"), place(Some("zimbra"), "mail.example.com", None, "backup"));
        assert_eq!(parsed("u@[fe80::1]:/x:y"), place(Some("u"), "fe80::1", None, "/x:y"));
        assert_eq!(parsed("ssh://u@mail:2222/opt/z"), place(Some("u"), "mail", Some(2222), "/opt/z"));
        assert_eq!(parsed("ssh://[::1]:22/o"), place(None, "::1", Some(22), "/o"));
        assert_eq!(parsed("a:b@c"), place(None, "a", None, "b@c"));
        for local in ["/opt/zimbra", "./a:b", "dir", "a/b:c", "/srv/with@at:colon"] {
            assert_eq!(parsed(local), None, "{local}");
        }
        for bad in ["ssh://mail", "ssh://mail:x/p", ":path", "mail:", "-oProxyCommand=x:/p", "@mail:/p", "ssh://-h/p"] {
            assert!(RemoteSpec::parse(bad).is_err(), "{bad}");
        }
        for text in ["u@mail:/opt", "ssh://u@mail:2222/opt", "u@[fe80::1]:x"] {
            assert_eq!(RemoteSpec::parse(text).unwrap().unwrap().to_string(), text);
        }
        assert_eq!(RemoteSpec::parse("mail:/opt//").unwrap().unwrap().to_string(), "mail:/opt");
    }
}
