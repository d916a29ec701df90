//! Files, links and directories being written out below a directory. Each appears whole or not at all, and no symbolic link
//! that is in the way is followed. Where content comes from is not known here.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rand::Rng;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat, renameat, symlinkat, unlinkat};
use rustix::io::Errno;

use crate::error::ExportError;
use crate::tree::Tree;

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

/// A file being written under a temporary name, which is removed unless it is committed.
pub(crate) struct Target {
    dir: OwnedFd,
    name: String,
    temp: Option<String>,
    pub(crate) file: File,
}

impl Target {
    /// Begins the file `name` in `dir`. What has that name stays until [`Self::commit`].
    pub(crate) fn create(dir: OwnedFd, name: String, executable: bool) -> io::Result<Self> {
        let temp = temp_name();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // As everywhere, the process' umask takes away what is not to be given.
        let mode = if executable { 0o777 } else { 0o666 };
        let file = File::from(openat(&dir, &temp, flags, Mode::from_raw_mode(mode))?);
        Ok(Self { dir, name, temp: Some(temp), file })
    }

    /// Puts the file in its place, durably.
    pub(crate) fn commit(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        if let Some(temp) = &self.temp {
            renameat(&self.dir, temp, &self.dir, &self.name)?;
        }
        self.temp = None;
        rustix::fs::fsync(&self.dir)?;
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(temp) = &self.temp {
            let _ = unlinkat(&self.dir, temp, AtFlags::empty());
        }
    }
}

/// A name of its own: one made of the target's would be too long for file systems where that is as long as it may be.
fn temp_name() -> String {
    let mut tail = [0u8; 10];
    rand::rng().fill_bytes(&mut tail);
    format!(".sinew-{}", sinew_crdt_state::ids::encode_base32(&tail))
}

/// Opens (and makes) the directory of `name` below `root`, without following links, and returns it with the last part.
pub(crate) fn open_parent(root: &Path, name: &str) -> io::Result<(OwnedFd, String)> {
    let mut dir = openat(CWD, root, DIRECTORY, Mode::empty())?;
    let mut parts: Vec<&str> = name.split('/').collect();
    let last = parts.pop().unwrap_or_default().to_owned();
    for part in parts {
        dir = open_dir(&dir, part)?;
    }
    Ok((dir, last))
}

/// Opens the directory `name` in `dir`, made if it is not there.
fn open_dir(dir: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    match mkdirat(dir, name, Mode::from_raw_mode(0o777)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(openat(dir, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?)
}

/// Makes the empty directories and then the links of `tree` below `root`, which is there. A link replaces a file or a link
/// of its name. The files come before: a link among their directories would be in their way.
///
/// # Errors
/// [`ExportError::Target`], also where a link is in the way.
pub fn write_tree(root: &Path, tree: &Tree) -> Result<(), ExportError> {
    let failed = |name: &str| {
        let path = root.join(name);
        move |source| ExportError::Target { path, source }
    };
    for name in &tree.empty_dirs {
        let made = open_parent(root, name).and_then(|(dir, last)| open_dir(&dir, &last));
        made.map_err(failed(name))?;
    }
    for (name, target) in &tree.links {
        open_parent(root, name).and_then(|(dir, last)| link(&dir, &last, target)).map_err(failed(name))?;
    }
    Ok(())
}

fn link(dir: &OwnedFd, name: &str, target: &str) -> io::Result<()> {
    let temp = temp_name();
    symlinkat(target, dir, &temp)?;
    renameat(dir, &temp, dir, name).map_err(|error| {
        let _ = unlinkat(dir, &temp, AtFlags::empty());
        error.into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(links: &[(&str, &str)], empty_dirs: &[&str]) -> Tree {
        let links = links.iter().map(|(link, target)| ((*link).to_owned(), (*target).to_owned())).collect();
        let empty_dirs = empty_dirs.iter().map(|dir| (*dir).to_owned()).collect();
        Tree { links, empty_dirs, ..Tree::default() }
    }

    #[test]
    fn links_and_directories_are_made_and_none_is_followed() {
        let (root, outside) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
        let at = |name: &str| root.path().join(name);
        std::fs::write(at("old"), "old").expect("write");
        let all = tree(&[("old", "new"), ("a/l", "../b")], &["b/c", "a"]);
        for _ in 0..2 {
            write_tree(root.path(), &all).expect("write");
            assert_eq!(std::fs::read_link(at("a/l")).expect("link"), Path::new("../b"));
            assert_eq!(std::fs::read_link(at("old")).expect("link"), Path::new("new"));
            assert!(at("a/l/c").is_dir());
        }
        std::os::unix::fs::symlink(outside.path(), at("away")).expect("link");
        for bad in
            [tree(&[("away/x", "y")], &[]), tree(&[], &["away/x"]), tree(&[], &["away"]), tree(&[("b", "a")], &[])]
        {
            write_tree(root.path(), &bad).expect_err("in the way");
        }
        assert_eq!(std::fs::read_dir(outside.path()).expect("read").count(), 0);
        let left = std::fs::read_dir(root.path()).expect("read").count();
        assert_eq!(left, 4, "nothing temporary stays");
    }

    #[test]
    fn a_name_may_be_as_long_as_file_systems_allow() {
        let root = tempfile::tempdir().expect("dir");
        let name = "n".repeat(255);
        let (dir, last) = open_parent(root.path(), &name).expect("open");
        Target::create(dir, last, true).expect("create").commit().expect("commit");
        assert!(root.path().join(&name).is_file());
    }
}
