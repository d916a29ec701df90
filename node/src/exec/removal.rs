//! Deletes what tasks made, however they made it: directories nested thousands deep, or closed to their own owner. Never more
//! than a few descriptors are open and nothing recurses: directories found below are first hoisted to the top. No link is
//! followed.

use std::ffi::{CString, OsStr};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, Mode, OFlags, RawDir, RenameFlags, SeekFrom, open, openat, renameat_with, seek, statat, unlinkat,
};
use rustix::io::Errno;

/// What opens a directory and nothing else.
const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);
/// What a directory's owner needs to empty it.
const OWNER_ALL: u32 = 0o700;
/// Names taken from a directory at once: enough that reading costs little beside deleting.
const NAMES_MAX: usize = 1_024;
/// Bytes of directory entries read at once.
const ENTRIES_LEN: usize = 32 * 1_024;

/// Deletes whatever is at `path`, if anything. The directory that `path` is in is trusted.
///
/// # Errors
/// What the system says of the first thing that stays.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    match open(parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(parent) => remove_in(&parent, name),
        Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Deletes `name` in `parent`, if it is there.
///
/// # Errors
/// The same.
pub(super) fn remove_in(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let name = CString::new(name.as_bytes())?;
    if unlink(parent, &name)? {
        return Ok(());
    }
    let mut top = Top { dir: open_whole(parent, &name)?, hoisted: 0 };
    loop {
        let names = names(&top.dir)?;
        if names.is_empty() {
            break;
        }
        let (mut gone, mut stays) = (false, None);
        for name in &names {
            match top.remove(name) {
                Ok(()) => gone = true,
                Err(e) => stays = stays.or(Some(e)),
            }
        }
        if let (false, Some(e)) = (gone, stays) {
            return Err(e.into());
        }
    }
    Ok(unlinkat(parent, &name, AtFlags::REMOVEDIR)?)
}

/// The directory that is being emptied.
struct Top {
    dir: OwnedFd,
    /// Directories brought here from below.
    hoisted: u64,
}

impl Top {
    /// Deletes one entry. What it contains is deleted too or, where those are directories, moved to the top.
    fn remove(&mut self, name: &CString) -> Result<(), Errno> {
        if unlink(&self.dir, name)? {
            return Ok(());
        }
        let dir = open_whole(&self.dir, name)?;
        loop {
            let names = names(&dir)?;
            if names.is_empty() {
                break;
            }
            for name in &names {
                if !unlink(&dir, name)? {
                    self.hoist(&dir, name)?;
                }
            }
        }
        drop(dir);
        unlinkat(&self.dir, name, AtFlags::REMOVEDIR)
    }

    fn hoist(&mut self, from: &OwnedFd, name: &CString) -> Result<(), Errno> {
        // A directory changes its parent only where it may be written to.
        drop(open_whole(from, name)?);
        loop {
            let to = format!("{:x}", self.hoisted);
            self.hoisted += 1;
            match renameat_with(from, name, &self.dir, to, RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => {}
                other => return other,
            }
        }
    }
}

/// Deletes a name; `false` if it is a directory's.
fn unlink(dir: &OwnedFd, name: &CString) -> Result<bool, Errno> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::ISDIR) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Opens a directory, after giving its owner back whatever rights it lacks.
fn open_whole(at: &OwnedFd, name: &CString) -> Result<OwnedFd, Errno> {
    let mode = statat(at, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode;
    if mode & OWNER_ALL != OWNER_ALL {
        let place = openat(at, name, DIRECTORY | OFlags::PATH, Mode::empty())?;
        // `fchmod` takes no such descriptor, and `fchmodat` would follow a link that has come in its place.
        let path = format!("/proc/self/fd/{}", place.as_raw_fd());
        // Should it not help, the next step tells why.
        let _ = std::fs::set_permissions(path, std::fs::Permissions::from_mode(OWNER_ALL));
    }
    openat(at, name, DIRECTORY | OFlags::RDONLY, Mode::empty())
}

/// The first names in a directory.
fn names(dir: &OwnedFd) -> Result<Vec<CString>, Errno> {
    seek(dir, SeekFrom::Start(0))?;
    let mut buffer = vec![MaybeUninit::uninit(); ENTRIES_LEN];
    let mut entries = RawDir::new(dir, &mut buffer);
    let mut names = Vec::new();
    while names.len() < NAMES_MAX
        && let Some(entry) = entries.next()
    {
        let entry = entry?;
        let name = entry.file_name();
        if ![c".", c".."].contains(&name) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::mkdirat;

    use super::*;

    /// Deeper than there are descriptors, and than a stack of recursive calls would hold.
    const DEPTH: usize = 20_000;

    #[test]
    fn a_tree_deeper_than_descriptors_and_stack_goes() {
        // In memory where that is possible: some disks take milliseconds for each directory.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("dir");
        let tree = dir.path().join("tree");
        std::fs::create_dir(&tree).expect("mkdir");
        let mut at = open(&tree, DIRECTORY | OFlags::RDONLY, Mode::empty()).expect("open");
        for _ in 0..DEPTH {
            mkdirat(&at, "d", Mode::from_raw_mode(0o700)).expect("mkdir");
            drop(openat(&at, "0", OFlags::CREATE | OFlags::RDWR, Mode::from_raw_mode(0o400)).expect("file"));
            at = openat(&at, "d", DIRECTORY | OFlags::RDONLY, Mode::empty()).expect("open");
        }
        drop(at);
        remove(&tree).expect("remove");
        assert!(!tree.exists());
        remove(&tree).expect("nothing to remove");
        remove(&tree.join("x/y")).expect("nothing there either");
    }

    #[test]
    fn closed_directories_go_and_links_are_not_followed() {
        let (dir, outside) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
        std::fs::write(outside.path().join("kept"), "x").expect("write");
        let tree = dir.path().join("tree");
        std::fs::create_dir_all(tree.join("a/b/c")).expect("mkdir");
        std::fs::write(tree.join("a/b/c/file"), "x").expect("write");
        std::fs::create_dir(tree.join("0")).expect("a name that hoisting would take");
        for at in ["link", "a/link", "a/b/link"] {
            symlink(outside.path(), tree.join(at)).expect("link");
        }
        for at in ["a/b/c", "a/b", "a", ""] {
            std::fs::set_permissions(tree.join(at), std::fs::Permissions::from_mode(0o0)).expect("chmod");
        }
        remove(&tree).expect("remove");
        assert!(!tree.exists() && outside.path().join("kept").exists());
        let link = dir.path().join("link");
        symlink(outside.path(), &link).expect("link");
        remove(&link).expect("remove");
        assert!(link.symlink_metadata().is_err() && outside.path().join("kept").exists());
    }
}
