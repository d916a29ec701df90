//! The file operations that the ledger makes, behind traits: so that tests can count bytes and let any of them fail.
//!
//! Nothing here retries or buffers. An error of a write or a sync goes up as it is; after it nobody may take for granted what
//! the file's pages hold, and the callers write again elsewhere.

use std::fmt::Debug;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Where the ledger's files are.
pub(super) trait Disk: Debug + Send + Sync + 'static {
    /// Opens a file for reading and writing; makes it when it is not there.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// The files in a directory.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;
    /// Deletes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
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

/// redb's file, over the same operations.
///
/// After a sync that failed the kernel may take lost pages for clean, and show them until the power goes. redb refuses everything
/// after an error, and is opened anew. Its commits are all in two phases here: pages that the first sync lost belong to no root
/// that counts, and the next commit writes its own; of the second sync only the header depends, which every commit writes.
#[derive(Debug)]
pub(super) struct Backend(pub(super) Box<dyn DiskFile>);

impl redb::StorageBackend for Backend {
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

    // A reader's transaction may keep the file open a moment longer; whoever opens it anew need not wait for that.
    fn close(&self) -> io::Result<()> {
        self.0.unlock()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data)
    }
}
