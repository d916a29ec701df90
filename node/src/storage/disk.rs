//! The file operations that the ledger makes, behind traits: so that tests can count bytes and let any of them fail.
//!
//! Nothing here retries or buffers. An error of a write or a sync goes up as it is; after it nobody may take for granted what
//! the file's pages hold, and the callers write again elsewhere.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// redb's pages.
const OVERLAY_PAGE: usize = 4096;

/// Where the ledger's files are.
pub(super) trait Disk: Debug + Send + Sync + 'static {
    /// Opens a file for reading and writing; makes it when it is not there.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// The files in a directory.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;
    /// Deletes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Gives a file another name. What had that name before is gone.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Syncs a directory: only then does a new file in it survive.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Bytes that are free for this user.
    fn room(&self, path: &Path) -> u64;
}

/// An open file.
pub(super) trait DiskFile: Debug + Send + Sync + 'static {
    /// Its length.
    fn len(&self) -> io::Result<u64>;
    /// Fills `buffer` from `at` on.
    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Writes all of `bytes` from `at` on.
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()>;
    /// Cuts or lengthens it with zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Waits until everything written is on the platter (fdatasync).
    fn sync(&self) -> io::Result<()>;
    /// Locks it for this process, until it is unlocked or closed.
    fn lock(&self) -> io::Result<()>;
    /// Unlocks it.
    fn unlock(&self) -> io::Result<()>;
}

/// The machine's own files.
#[derive(Debug)]
pub(super) struct RealDisk;

impl Disk for RealDisk {
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        Ok(Box::new(file))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        std::fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn room(&self, path: &Path) -> u64 {
        rustix::fs::statvfs(path).map_or(u64::MAX, |fs| fs.f_bavail.saturating_mul(fs.f_frsize))
    }
}

impl DiskFile for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buffer, at)
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Self::set_len(self, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn lock(&self) -> io::Result<()> {
        self.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::other("another process has it open"),
            TryLockError::Error(error) => error,
        })
    }

    fn unlock(&self) -> io::Result<()> {
        Self::unlock(self)
    }
}

/// Over a file that is only looked at: what redb writes, even when it opens one, stays in memory.
#[derive(Debug)]
pub(super) struct Overlay {
    below: Box<dyn redb::StorageBackend>,
    len: Mutex<u64>,
    written: Mutex<BTreeMap<u64, Vec<u8>>>,
}

impl Overlay {
    /// Over `below`, of which the first bytes are taken for `header` where that is given.
    pub(super) fn new(below: Box<dyn redb::StorageBackend>, header: Option<Vec<u8>>) -> io::Result<Self> {
        let len = Mutex::new(below.len()?);
        Ok(Self { below, len, written: Mutex::new(header.map(|header| (0, header)).into_iter().collect()) })
    }

    fn written(&self) -> MutexGuard<'_, BTreeMap<u64, Vec<u8>>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl redb::StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(*self.len.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        for (page, out) in (0..).map(|n| offset + n * OVERLAY_PAGE as u64).zip(out.chunks_mut(OVERLAY_PAGE)) {
            match self.written().get(&page).filter(|bytes| bytes.len() >= out.len()) {
                Some(bytes) => out.copy_from_slice(&bytes[..out.len()]),
                None => self.below.read(page, out)?,
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        *self.len.lock().unwrap_or_else(PoisonError::into_inner) = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.below.close()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut written = self.written();
        for (page, bytes) in (0..).map(|n| offset + n * OVERLAY_PAGE as u64).zip(data.chunks(OVERLAY_PAGE)) {
            written.insert(page, bytes.to_vec());
        }
        Ok(())
    }
}

/// A file as it is, unchecked.
#[derive(Debug)]
pub(super) struct Plain(pub(super) Box<dyn DiskFile>);

impl redb::StorageBackend for Plain {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn close(&self) -> io::Result<()> {
        self.0.unlock()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data)
    }
}
