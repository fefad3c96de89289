//! Names and numbers of this host's users and groups.
//!
//! Names are looked up through the C library, which may know them from a directory service. A statically linked program cannot use it (the library would load
//! the host's plug-ins, of whatever version they are), and reads `/etc/passwd` and `/etc/group` itself.

/// Returns the name of a user.
pub fn user_name(uid: u32) -> Option<String> {
    lookup::user_name(uid)
}

/// Returns the name of a group.
pub fn group_name(gid: u32) -> Option<String> {
    lookup::group_name(gid)
}

/// Returns the number of a user.
pub fn user_id(name: &str) -> Option<u32> {
    lookup::user_id(name)
}

/// Returns the number of a group.
pub fn group_id(name: &str) -> Option<u32> {
    lookup::group_id(name)
}

#[cfg(not(target_feature = "crt-static"))]
mod lookup {
    pub(super) fn user_name(uid: u32) -> Option<String> {
        Some(uzers::get_user_by_uid(uid)?.name().to_string_lossy().into_owned())
    }

    pub(super) fn group_name(gid: u32) -> Option<String> {
        Some(uzers::get_group_by_gid(gid)?.name().to_string_lossy().into_owned())
    }

    pub(super) fn user_id(name: &str) -> Option<u32> {
        Some(uzers::get_user_by_name(name)?.uid())
    }

    pub(super) fn group_id(name: &str) -> Option<u32> {
        Some(uzers::get_group_by_name(name)?.gid())
    }
}

#[cfg(target_feature = "crt-static")]
mod lookup {
    use super::files::{find_name, find_number};

    pub(super) fn user_name(uid: u32) -> Option<String> {
        find_name("/etc/passwd", uid)
    }

    pub(super) fn group_name(gid: u32) -> Option<String> {
        find_name("/etc/group", gid)
    }

    pub(super) fn user_id(name: &str) -> Option<u32> {
        find_number("/etc/passwd", name)
    }

    pub(super) fn group_id(name: &str) -> Option<u32> {
        find_number("/etc/group", name)
    }
}

/// The files, both of which have the name first and the number third, between colons.
#[cfg_attr(not(target_feature = "crt-static"), allow(dead_code, reason = "only a static program reads them"))]
mod files {
    fn find<T>(path: &str, pick: impl Fn(&str, u32) -> Option<T>) -> Option<T> {
        let bytes = std::fs::read(path).ok()?;
        String::from_utf8_lossy(&bytes).lines().find_map(|line| {
            let mut fields = line.split(':');
            let (name, number) = (fields.next()?, fields.nth(1)?.parse().ok()?);
            pick(name, number)
        })
    }

    pub(super) fn find_name(path: &str, wanted: u32) -> Option<String> {
        find(path, |name, number| (number == wanted).then(|| name.to_owned()))
    }

    pub(super) fn find_number(path: &str, wanted: &str) -> Option<u32> {
        find(path, |name, number| (name == wanted).then_some(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_know_root() {
        assert_eq!(user_name(0).as_deref(), Some("root"));
        assert_eq!((user_id("root"), group_id("root")), (Some(0), Some(0)));
        assert_eq!(files::find_name("/etc/passwd", 0).as_deref(), Some("root"));
        assert_eq!(files::find_name("/etc/group", 0), group_name(0));
        assert_eq!(files::find_number("/etc/passwd", "root"), Some(0));
        assert_eq!(files::find_number("/etc/passwd", "nobody of that name"), None);
    }
}
