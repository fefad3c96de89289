//! Restores by root to file systems that give owners and modes of their own choice.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::PathBuf;
use std::process::Command;

use crate::support::mounted::{Scene, assert_rsync_finds_nothing, run, shell, unmount};
use crate::support::odd::set_time;
use crate::support::programs::write_program;
use crate::support::pulling::summary;

const USER: u32 = 4242;

/// A file system of exFAT on a loop device, which has the owner and modes that it is mounted with.
struct ExFat(PathBuf, String);

impl ExFat {
    fn new(scene: &Scene, options: &str) -> ExFat {
        let (image, place) = (scene.path("exfat.img"), scene.path("exfat"));
        fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        run(Command::new("mkfs.exfat").arg(&image));
        let device = run(Command::new("losetup").args(["-f", "--show"]).arg(&image)).trim().to_owned();
        fs::create_dir(&place).unwrap();
        let mounted = ExFat(place, device);
        run(Command::new("mount.exfat-fuse").args(["-o", options]).arg(&mounted.1).arg(&mounted.0));
        mounted
    }
}

impl Drop for ExFat {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
        let _ = Command::new("losetup").arg("-d").arg(&self.1).status();
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn root_restores_to_a_file_system_that_chooses_owners_itself() {
    for (options, owner) in [("uid=4242,gid=4242,umask=022", USER), ("umask=000", 0), ("fmask=0177,dmask=000", 0)] {
        let scene = Scene::new();
        fs::create_dir_all(scene.source().join("directory/inner")).unwrap();
        fs::create_dir(scene.source().join("empty")).unwrap();
        for name in ["a", "directory/b", "directory/inner/c"] {
            fs::write(scene.source().join(name), name).unwrap();
        }
        for name in ["a", "directory/b", "directory/inner/c", "directory/inner", "directory", "empty", ""] {
            chown(scene.source().join(name), Some(owner), Some(owner)).unwrap();
            // As exFAT can keep it.
            set_time(&scene.source().join(name), 1_500_000_000, 0);
        }
        scene.snapshot();
        let disk = ExFat::new(&scene, options);
        let restore = ["--json", "restore", "--numeric-ids", "--delete", "latest", "exfat/target"];
        let first = summary(&scene.code(0, &restore));
        assert_eq!((&first["files"], &first["unguarded"]), (&3.into(), &true.into()), "{options}");
        shell(r#"diff -r "$1" "$2""#, &[&scene.source(), &disk.0.join("target")]);
        fs::write(disk.0.join("target/directory/stray"), "stray").unwrap();
        // This exFAT gives a file that was written the time at which it is closed.
        for name in ["a", "directory/b", "directory/inner/c"] {
            set_time(&disk.0.join("target").join(name), 1_500_000_000, 0);
        }
        // What is there is kept.
        let again = summary(&scene.code(0, &restore));
        assert_eq!((&again["files"], &again["deleted"]), (&0.into(), &1.into()), "{options}: {again}");
        // Onto the root of the file system, and a single file.
        scene.ok(&["restore", "--numeric-ids", "latest:directory", "exfat"]);
        scene.ok(&["restore", "--numeric-ids", "latest:a", "exfat/inner/new"]);
        assert_eq!(fs::read_to_string(disk.0.join("inner/new")).unwrap(), "a");
        let left = shell(r#"find "$1" -name '.zmreplica*' -o -name '.fuse*'"#, &[&disk.0]);
        assert_eq!(left, "");
    }
    // Where owners are kept, nothing is said of it.
    let scene = Scene::new();
    fs::write(scene.source().join("file"), "text").unwrap();
    scene.snapshot();
    let home = scene.path("home");
    fs::create_dir(&home).unwrap();
    chown(&home, Some(USER), Some(USER)).unwrap();
    fs::write(home.join("file"), "own").unwrap();
    set_time(&home, 1_400_000_000, 0);
    let report = summary(&scene.code(0, &["--json", "restore", "--overwrite", "never", "latest", "home"]));
    assert_eq!(report["unguarded"], false);
    assert_eq!(fs::metadata(&home).unwrap().mtime(), 1_400_000_000, "the time of a directory that is left alone");
}

#[test]
fn root_restores_through_sshfs_as_a_user() {
    let scene = Scene::new();
    fs::create_dir(scene.source().join("directory")).unwrap();
    for name in ["a", "directory/b"] {
        fs::write(scene.source().join(name), name).unwrap();
        fs::hard_link(scene.source().join(name), scene.source().join(format!("{name}2"))).unwrap();
        set_time(&scene.source().join(name), 1_500_000_000, 0);
    }
    scene.snapshot();
    let (exported, place, server) = (scene.path("exported"), scene.path("sshfs"), scene.path("server"));
    fs::create_dir(&exported).unwrap();
    fs::create_dir(&place).unwrap();
    write_program(&server, "#!/bin/sh\nexec /usr/lib/openssh/sftp-server\n");
    let options = format!("uid={USER},gid={USER},ssh_command={}", server.display());
    run(Command::new("sshfs").args(["-o", &options]).arg(format!("far:{}", exported.display())).arg(&place));
    for round in 0..3 {
        let report = summary(&scene.code(0, &["--json", "restore", "--numeric-ids", "latest", "sshfs/target"]));
        assert_eq!(report["unguarded"], true);
        assert_eq!(report["files"], if round == 0 { 2 } else { 0 }, "{report}");
        // Nothing is left beside what was restored, and owners, links and times are there.
        assert_rsync_finds_nothing(&scene.source(), &exported.join("target"));
    }
    unmount(&place);
}
