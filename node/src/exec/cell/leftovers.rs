//! What a program can leave in a cell besides processes, and files in its own directories: System V objects, and what the temporary
//! directories have and hold. The next program of the cell is to find none of it, so what cannot be put back ends the cell.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};

use super::wire::Setup;
use super::{TMP, sys};
use crate::exec::attributes::Attributes;

/// What a cell looks at after each program.
pub(super) struct Leftovers {
    scratch: Vec<Scratch>,
    /// Whether System V objects are those of this cell alone.
    own_objects: bool,
}

impl Leftovers {
    /// Looks at a cell that no program was in yet.
    ///
    /// # Errors
    /// When its directories cannot be looked at.
    pub(super) fn new(setup: &Setup, own_objects: bool) -> io::Result<Self> {
        let scratch = [TMP, "/dev/shm"].map(|dir| Scratch::new(dir, setup));
        Ok(Self { scratch: scratch.into_iter().collect::<io::Result<_>>()?, own_objects })
    }

    /// Puts back what can be; whether nothing is left.
    pub(super) fn clear(&self) -> bool {
        // Shared memory that is left would count as the next program's: its cell gets a control group of its own.
        let no_objects = !self.own_objects || sys::ipc_objects().is_ok_and(|objects| objects == 0);
        no_objects && self.scratch.iter().all(Scratch::restore)
    }
}

/// A file system that programs write to and that those after them find as it was.
struct Scratch {
    dir: &'static str,
    fd: OwnedFd,
    own: Attributes,
    /// Files in it at the start: mount points, if anything.
    files: u64,
    /// Whether what is in it may be removed: not where a directory of the host is mounted below.
    may_empty: bool,
}

impl Scratch {
    fn new(dir: &'static str, setup: &Setup) -> io::Result<Self> {
        let fd = open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let mut shown = setup.readable.iter().chain(&setup.writable);
        let may_empty = !shown.any(|path| path.starts_with(dir));
        Ok(Self { dir, own: Attributes::of(&fd)?, files: files(&fd).unwrap_or(0), fd, may_empty })
    }

    /// Makes it as it was; whether that succeeded.
    fn restore(&self) -> bool {
        let is_clean = || files(&self.fd).is_ok_and(|files| files <= self.files);
        self.own.restore(&self.fd).is_ok()
            && (is_clean() || self.may_empty && empty(Path::new(self.dir)).is_ok() && is_clean())
    }
}

/// Files on the file system of `dir`, its root included.
fn files(dir: &OwnedFd) -> rustix::io::Result<u64> {
    let stat = rustix::fs::fstatvfs(dir)?;
    Ok(stat.f_files - stat.f_ffree)
}

fn empty(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
