//! Secrets as files where a runner shows programs a directory of the host: in a file system in memory, one directory for each
//! slot and user, gone with the job. Cells have a file system of their own instead ([`crate::exec::cell`]).
//!
//! Such a directory outlives a daemon that is killed. Its guardian removes it, and so does the next start.

use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sinew_crdt_state::error_code::ErrorCode;

use super::SecretBytes;
use crate::exec::guardian::NodeTag;
use crate::exec::outcome::Failure;

/// `f_type` of a tmpfs (statfs(2)).
const TMPFS_MAGIC: i128 = 0x0102_1994;
/// `f_type` of a ramfs.
const RAMFS_MAGIC: i128 = 0x8584_58f6;
/// How the names of our directories begin.
const PREFIX: &str = "sinew-secrets-";

/// A secret that programs find as a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretFile {
    /// Its name, without directories.
    pub name: String,
    /// Its content.
    pub value: SecretBytes,
}

/// Where file systems in memory usually are.
fn places() -> Vec<PathBuf> {
    let user = format!("/run/user/{}", rustix::process::geteuid().as_raw());
    ["/dev/shm".to_owned(), user, "/run".to_owned()].map(PathBuf::from).to_vec()
}

/// Whether what is written to `path` stays in memory.
fn is_in_memory(path: &Path) -> bool {
    let found = rustix::fs::statfs(path).map(|stat| i128::from(stat.f_type) & 0xffff_ffff);
    found.is_ok_and(|magic| magic == TMPFS_MAGIC || magic == RAMFS_MAGIC)
}

/// The name of a run's directory.
fn name(tag: &NodeTag) -> String {
    format!("{PREFIX}{}", tag.value().replace(':', "."))
}

/// Makes a directory with these files for the user `owner`, or for this process's own.
///
/// # Errors
/// `E_DENY` when this machine has no file system in memory to put it on, `E_STORAGE` when that refuses.
pub fn make(tag: &NodeTag, dir: &str, files: &[SecretFile], owner: Option<(u32, u32)>) -> Result<PathBuf, Failure> {
    make_at(&places(), tag, dir, files, owner)
}

fn make_at(
    places: &[PathBuf],
    tag: &NodeTag,
    dir: &str,
    files: &[SecretFile],
    owner: Option<(u32, u32)>,
) -> Result<PathBuf, Failure> {
    let private = |path: &Path| match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    };
    let own = places.iter().map(|place| place.join(name(tag)));
    // Looked at when it is there, not before: it may be anything that is mounted, or linked, at such a place.
    let Some(own) = own.into_iter().find(|own| private(own).is_ok() && is_private(own) && is_in_memory(own)) else {
        let message = "this node has no file system in memory (tmpfs) for secrets that are files, such as /dev/shm";
        return Err(Failure::new(ErrorCode::Deny, message));
    };
    let path = own.join(dir);
    write(&path, files, owner).map_err(|e| {
        let _ = remove(&path);
        Failure::storage("write secrets to a file system in memory", &e)
    })?;
    Ok(path)
}

/// Whether a directory is this process's own, and no link.
fn is_private(path: &Path) -> bool {
    let own = rustix::process::geteuid().as_raw();
    path.symlink_metadata().is_ok_and(|meta| meta.is_dir() && meta.uid() == own && meta.mode() & 0o077 == 0)
}

fn write(path: &Path, files: &[SecretFile], owner: Option<(u32, u32)>) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)?;
    let hand_over = |path: &Path| owner.map_or(Ok(()), |(uid, gid)| chown(path, Some(uid), Some(gid)));
    for file in files {
        let at = path.join(&file.name);
        OpenOptions::new().write(true).create_new(true).mode(0o400).open(&at)?.write_all(file.value.bytes())?;
        hand_over(&at)?;
    }
    std::fs::set_permissions(path, Permissions::from_mode(0o500))?;
    hand_over(path)
}

/// Removes a directory that [`make`] made.
///
/// # Errors
/// Whatever the system says, except that it is gone.
pub fn remove(path: &Path) -> io::Result<()> {
    let _ = std::fs::set_permissions(path, Permissions::from_mode(0o700));
    let removed = match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    };
    // The run's own directory goes with the last one in it.
    if let Some(parent) = path.parent() {
        let _ = std::fs::remove_dir(parent);
    }
    removed
}

/// Removes everything of this run: when it has ended.
pub fn remove_run(tag: &NodeTag) {
    for place in places() {
        remove_tree(&place.join(name(tag)));
    }
}

/// Removes what earlier runs on the same data directory left.
pub fn remove_earlier(tag: &NodeTag) {
    for place in places() {
        for entry in std::fs::read_dir(&place).into_iter().flatten().filter_map(Result::ok) {
            let name = entry.file_name();
            let of = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).map(|of| of.replacen('.', ":", 1));
            if of.is_some_and(|of| tag.is_earlier(&of)) && is_private(&entry.path()) {
                remove_tree(&entry.path());
            }
        }
    }
}

fn remove_tree(path: &Path) {
    for entry in std::fs::read_dir(path).into_iter().flatten().filter_map(Result::ok) {
        if let Err(error) = remove(&entry.path()) {
            tracing::warn!(dir = %entry.path().display(), %error, "secrets of an earlier run stay in memory");
        }
    }
    let _ = std::fs::remove_dir(path);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> Vec<SecretFile> {
        vec![SecretFile { name: "k.pem".to_owned(), value: SecretBytes::new(b"key\n".to_vec()) }]
    }

    #[test]
    fn files_are_in_memory_private_and_removed() {
        let tag = NodeTag::new("secret files");
        let path = make(&tag, "job-0", &files(), None).expect("this machine has a tmpfs");
        assert!(is_in_memory(&path), "{}", path.display());
        let file = path.join("k.pem");
        assert_eq!(std::fs::read(&file).expect("read"), b"key\n");
        let mode = |path: &Path| std::fs::metadata(path).expect("meta").permissions().mode() & 0o777;
        let parent = path.parent().expect("parent").to_owned();
        assert_eq!((mode(&file), mode(&path), mode(&parent)), (0o400, 0o500, 0o700));
        remove(&path).expect("remove");
        assert!(!parent.exists());
        remove(&path).expect("twice");
    }

    #[test]
    fn what_a_killed_run_left_is_removed_and_nobody_elses() {
        let (killed, other) = (NodeTag::new("killed run"), NodeTag::new("another node"));
        let left = make(&killed, "job-0", &files(), None).expect("make");
        let theirs = make(&other, "job-0", &files(), None).expect("make");
        let next = NodeTag::new("killed run");
        let own = make(&next, "job-0", &files(), None).expect("make");
        remove_earlier(&next);
        assert!(!left.exists() && theirs.exists() && own.exists());
        remove_run(&other);
        remove_run(&next);
        assert!(!theirs.exists() && !own.exists());
    }

    #[test]
    fn a_disk_is_no_place_for_them() {
        let built = std::env::current_exe().expect("the test program");
        let disk = built.parent().expect("its directory");
        assert!(!is_in_memory(disk), "the test program is on a disk");
        let dir = tempfile::tempdir_in(disk).expect("dir");
        let refused = make_at(&[dir.path().to_owned()], &NodeTag::new("disk"), "job-0", &files(), None);
        let refused = refused.expect_err("refused");
        assert_eq!(refused.code, ErrorCode::Deny);
        assert!(refused.message.contains("tmpfs"), "{refused}");
    }
}
