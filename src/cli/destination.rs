//! Whether a restore would put one server's files onto another: its destination is, lies in, or holds the location of another source.
//!
//! On this host directories are compared by device and inode, so that links and bind mounts make no difference. Hosts are compared by name and by the
//! addresses that the name stands for; an address of this host is this host. With a loopback address the port counts, too: behind each there may be a tunnel
//! to another host. What a link on another host leads to is not known here.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::net::{IpAddr, ToSocketAddrs, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use zmreplica::catalog::sources::Sources;
use zmreplica::ids::SourceId;
use zmreplica::remote::transport::spec::RemoteSpec;

use super::error::CliError;
use super::{path, text};

/// The port of SSH.
const SSH_PORT: u16 = 22;

/// A directory of some host.
#[derive(Clone, Debug)]
enum Place {
    /// On this host: the path without links as far as it exists, and device and inode of each directory that it leads through, itself first.
    Here { path: PathBuf, directories: Vec<(u64, u64)> },
    /// On another.
    There { host: String, port: u16, addresses: BTreeSet<IpAddr>, user: Option<String>, path: PathBuf },
}

impl Place {
    fn of(place: &OsStr) -> Result<Place, CliError> {
        Ok(match path::remote(place)? {
            Some(spec) => Place::of_remote(spec),
            None => Place::here(Path::new(place)),
        })
    }

    fn of_remote(spec: RemoteSpec) -> Place {
        let RemoteSpec { user, host, port, path } = spec;
        let port = port.unwrap_or(SSH_PORT);
        let resolved = (host.as_str(), port).to_socket_addrs();
        let addresses: BTreeSet<IpAddr> = resolved.into_iter().flatten().map(|address| address.ip()).collect();
        let is_here = port == SSH_PORT && path.starts_with('/') && addresses.iter().any(is_own);
        if is_here {
            Place::here(Path::new(&path))
        } else {
            Place::There { host, port, addresses, user, path: cleaned(Path::new(&path)) }
        }
    }

    fn here(given: &Path) -> Place {
        let absolute = std::path::absolute(given).unwrap_or_else(|_| given.to_owned());
        // The end may not be there yet.
        let there = absolute.ancestors().find_map(|ancestor| Some((ancestor, ancestor.canonicalize().ok()?)));
        let (path, real) = match there {
            Some((ancestor, real)) => (real.join(absolute.strip_prefix(ancestor).unwrap_or(Path::new(""))), real),
            None => (absolute.clone(), absolute),
        };
        let identity = |directory: &Path| directory.metadata().ok().map(|found| (found.dev(), found.ino()));
        // Where the end is not there, nothing is in it, and its own place in the list is that of no directory.
        let own = if path == real { Vec::new() } else { vec![(0, 0)] };
        let directories = own.into_iter().chain(real.ancestors().filter_map(identity)).collect();
        Place::Here { path: cleaned(&path), directories }
    }

    /// Returns whether both are the same directory.
    fn is(&self, other: &Place) -> bool {
        match (self, other) {
            (Place::Here { path, directories }, Place::Here { path: other_path, directories: others }) => {
                path == other_path
                    || directories.first().is_some_and(|own| *own != (0, 0) && Some(own) == others.first())
            }
            (Place::There { path, .. }, Place::There { path: other_path, .. }) => {
                path == other_path && self.overlaps(other)
            }
            _ => false,
        }
    }

    /// Returns whether one is the other, or lies in it.
    fn overlaps(&self, other: &Place) -> bool {
        let nested = |one: &Path, other: &Path| one.starts_with(other) || other.starts_with(one);
        match (self, other) {
            (Place::Here { path, directories }, Place::Here { path: other_path, directories: other_directories }) => {
                let leads_through = |through: &[(u64, u64)], end: &[(u64, u64)]| {
                    end.first().is_some_and(|end| *end != (0, 0) && through.contains(end))
                };
                nested(path, other_path)
                    || leads_through(directories, other_directories)
                    || leads_through(other_directories, directories)
            }
            (
                Place::There { host, port, addresses, user, path },
                Place::There {
                    host: other_host,
                    port: other_port,
                    addresses: others,
                    user: other_user,
                    path: other_path,
                },
            ) => {
                let shared: Vec<&IpAddr> = addresses.intersection(others).collect();
                let has_name = host.eq_ignore_ascii_case(other_host) && (addresses.is_empty() || others.is_empty());
                let is_one_host = match port == other_port {
                    true => has_name || !shared.is_empty(),
                    false => shared.iter().any(|address| !address.is_loopback()),
                };
                // Paths below the home directories of two users are apart.
                let is_comparable =
                    path.is_absolute() == other_path.is_absolute() && (path.is_absolute() || user == other_user);
                is_one_host && is_comparable && nested(path, other_path)
            }
            _ => false,
        }
    }
}

/// Returns whether an address is one of this host.
fn is_own(address: &IpAddr) -> bool {
    address.is_loopback() || UdpSocket::bind((*address, 0)).is_ok()
}

/// Returns a path without `.` and `..`.
fn cleaned(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => drop(clean.pop()),
            other => clean.push(other),
        }
    }
    clean
}

/// Refuses a destination that has to do with the location of another source than `own`. The location of `own` itself is never refused.
pub(crate) fn refuse_other_source(
    sources: &Sources,
    own: Option<SourceId>,
    destination: &OsStr,
) -> Result<(), CliError> {
    let others: Vec<_> = sources.iter().filter(|(id, source)| Some(*id) != own && source.removed.is_none()).collect();
    if others.is_empty() {
        return Ok(());
    }
    let place = Place::of(destination)?;
    let own_place = own.and_then(|id| sources.get(id)).and_then(|own| Place::of(OsStr::new(&own.location)).ok());
    if own_place.is_some_and(|own| own.is(&place)) {
        return Ok(());
    }
    for (_, other) in others {
        // A location that is none any more is nowhere.
        let Ok(location) = Place::of(OsStr::new(&other.location)) else { continue };
        if place.overlaps(&location) {
            return Err(CliError::Usage(format!(
                "The snapshot is of the source {}, and {} is where the source {} is ({}). Nothing was restored. If this is meant, repeat the command with --other-source",
                sources.name(own),
                text::escape(destination.as_encoded_bytes()),
                other.name,
                text::escape(other.location.as_bytes()),
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlap(one: &str, other: &str) -> bool {
        let place = |text: &str| Place::of(OsStr::new(text)).unwrap();
        let (one, other) = (place(one), place(other));
        assert_eq!(one.overlaps(&other), other.overlaps(&one));
        one.overlaps(&other)
    }

    #[test]
    fn places_of_this_host_are_compared_whatever_leads_to_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        std::fs::create_dir_all(path("backup/sessions")).unwrap();
        std::fs::create_dir_all(path("other")).unwrap();
        std::os::unix::fs::symlink("backup", path("link")).unwrap();
        for (one, other) in [
            ("backup", "backup"),
            ("backup", "backup/sessions"),
            ("backup/new/deep", "backup"),
            ("link/sessions", "backup"),
            ("link", "backup/sessions"),
            ("backup/../backup/./sessions", "link"),
            ("", "backup"),
        ] {
            assert!(overlap(&path(one), &path(other)), "{one} {other}");
        }
        for (one, other) in [("backup", "other"), ("backup", "backup2"), ("new", "backup"), ("new", "new2")] {
            assert!(!overlap(&path(one), &path(other)), "{one} {other}");
        }
        assert!(overlap(&format!("root@127.0.0.1:{}", path("link")), &path("backup")), "this host by its address");
        assert!(!overlap(&format!("ssh://127.0.0.1:2222{}", path("backup")), &path("backup")), "that may be a tunnel");
    }

    #[test]
    fn other_hosts_are_compared_by_name_address_and_path() {
        for (one, other, expected) in [
            ("mail1.invalid:/opt/backup", "root@MAIL1.invalid:/opt/backup/", true),
            ("mail1.invalid:/opt/backup", "ssh://mail1.invalid:22/opt/backup/sessions", true),
            ("mail1.invalid:/opt/backup", "mail1.invalid:/opt/backup2", false),
            ("mail1.invalid:/opt/backup", "mail2.invalid:/opt/backup", false),
            ("mail1.invalid:/opt/backup", "/opt/backup", false),
            ("a@mail1.invalid:backup", "a@mail1.invalid:backup/x", true),
            ("a@mail1.invalid:backup", "b@mail1.invalid:backup", false),
            ("192.0.2.1:/opt/backup", "ssh://192.0.2.1:2222/opt/backup", true),
            ("ssh://127.0.0.1:2222/opt/backup", "ssh://localhost:2222/opt/backup", true),
            ("ssh://127.0.0.1:2222/opt/backup", "ssh://127.0.0.1:2223/opt/backup", false),
        ] {
            assert_eq!(overlap(one, other), expected, "{one} {other}");
        }
    }
}
