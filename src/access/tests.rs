use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_replacement_takes_a_place_whole_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("page");
    let mut new = Replacement::beside_store(&path, None, 0o644).unwrap();
    new.write_all(b"one").unwrap();
    assert!(!path.exists());
    new.finish().unwrap();
    assert_eq!((fs::read(&path).unwrap(), mode(&path)), (b"one".to_vec(), 0o644));

    // The mode of what is there stays, unless another is wanted.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).unwrap();
    Replacement::beside_store(&path, None, 0o644).unwrap().finish().unwrap();
    assert_eq!(mode(&path), 0o604);
    Replacement::beside_store(&path, Some(0o660), 0o644).unwrap().finish().unwrap();
    assert_eq!(mode(&path), 0o660);

    let mut dropped = Replacement::in_store(&path).unwrap();
    dropped.write_all(b"half").unwrap();
    drop(dropped);
    assert_eq!(fs::read(&path).unwrap(), b"");
    write_durably(&path, b"two").unwrap();
    assert_eq!((fs::read(&path).unwrap(), mode(&path)), (b"two".to_vec(), 0o600));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn a_symbolic_link_in_place_of_a_file_is_replaced_and_never_written_through() {
    let directory = tempfile::tempdir().unwrap();
    let (victim, link) = (directory.path().join("victim"), directory.path().join("link"));
    fs::write(&victim, "precious").unwrap();
    symlink(&victim, &link).unwrap();
    assert!(open_or_create(&link).is_err());
    assert!(create(&link, FILE_MODE).is_err());
    write_durably(&link, b"new").unwrap();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    assert_eq!(fs::read_to_string(&link).unwrap(), "new");
    let hard = directory.path().join("hard");
    fs::hard_link(&victim, &hard).unwrap();
    assert!(open_or_create(&hard).is_err(), "it may be a file of somebody else");
}

#[test]
fn logs_are_made_with_their_mode_and_keep_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    open_log(&path, None, 0o640).unwrap().write_all(b"one\n").unwrap();
    assert_eq!(mode(&path), 0o640);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    open_log(&path, None, 0o640).unwrap().write_all(b"two\n").unwrap();
    assert_eq!((mode(&path), fs::read_to_string(&path).unwrap()), (0o644, "one\ntwo\n".to_owned()));
    open_log(&path, Some(0o600), 0o640).unwrap();
    assert_eq!(mode(&path), 0o600);
    // A link of the administrator's is followed.
    let link = directory.path().join("link");
    symlink(&path, &link).unwrap();
    open_log(&link, None, 0o640).unwrap().write_all(b"three\n").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\nthree\n");
}

#[test]
fn a_wide_store_is_narrowed_with_all_that_is_in_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("store");
    fs::create_dir_all(store.join("cache/ledger")).unwrap();
    for name in ["lock", "cache/ledger/page"] {
        fs::write(store.join(name), "").unwrap();
        fs::set_permissions(store.join(name), fs::Permissions::from_mode(0o666)).unwrap();
    }
    let outside = directory.path().join("outside");
    fs::write(&outside, "").unwrap();
    fs::set_permissions(&outside, fs::Permissions::from_mode(0o644)).unwrap();
    symlink(&outside, store.join("link")).unwrap();
    fs::hard_link(&outside, store.join("hard")).unwrap();
    for path in [&store, &store.join("cache"), &store.join("cache/ledger")] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    assert_eq!(narrow(&store), Width::Narrowed(0o755));
    assert_eq!(narrow(&store), Width::Private);
    for (path, expected) in
        [("", 0o700), ("cache", 0o700), ("cache/ledger", 0o700), ("lock", 0o600), ("cache/ledger/page", 0o600)]
    {
        assert_eq!(mode(&store.join(path)), expected, "{path}");
    }
    assert_eq!(mode(&outside), 0o644, "what is not the store's stays");
}

#[test]
fn new_files_get_the_owner_of_their_directory_and_nothing_else_does() {
    assert!(geteuid().is_root(), "only root can give files away: run the tests as root");
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("store");
    create_own_directory(&store).unwrap();
    assert_eq!((mode(&store), fs::metadata(&store).unwrap().uid()), (0o700, 0));
    std::os::unix::fs::chown(&store, Some(1234), Some(2345)).unwrap();
    let owner = |path: &Path| {
        let metadata = fs::symlink_metadata(path).unwrap();
        (metadata.uid(), metadata.gid())
    };
    create_directory(&store.join("cache")).unwrap();
    create(&store.join("cache/object"), OBJECT_MODE).unwrap();
    open_or_create(&store.join("lock")).unwrap();
    write_durably(&store.join("cache/page"), b"").unwrap();
    for path in ["cache", "cache/object", "lock", "cache/page"] {
        assert_eq!(owner(&store.join(path)), (1234, 2345), "{path}");
    }
    // What its owner puts in place of a directory is not followed to places of others.
    let outside = directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, store.join("leases")).unwrap();
    std::os::unix::fs::lchown(store.join("leases"), Some(1234), Some(2345)).unwrap();
    assert!(create(&store.join("leases/gate"), FILE_MODE).is_err());
    assert!(write_durably(&store.join("leases/gate"), b"").is_err());
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    // Nor is a log that somebody else points at a file of root's.
    let log = store.join("log");
    symlink(&outside, &log).unwrap();
    std::os::unix::fs::lchown(&log, Some(1234), None).unwrap();
    assert!(open_log(&log, None, 0o640).is_err());
}
