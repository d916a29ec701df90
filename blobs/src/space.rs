//! Room on the disk: refuse early what would not fit, and keep a little back so that the database can still be opened
//! on a full disk. Frees nothing of the user's.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::error::AddError;

/// Enough for redb to open, repair and commit on a full disk; small beside any disk worth running a node on.
const BALLAST_LEN: usize = 2 << 20;

/// The store's view of its file system.
#[derive(Debug)]
pub(crate) struct Space {
    dir: PathBuf,
    reserve: u64,
}

impl Space {
    pub(crate) fn new(dir: &Path, reserve: u64) -> Self {
        Self { dir: dir.to_owned(), reserve }
    }

    /// Bytes an unprivileged writer may still use; `None` when the system will not say.
    pub(crate) fn free(&self) -> Option<u64> {
        let stat = rustix::fs::statvfs(&self.dir).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Refuses `needed` more bytes when that would eat into the reserve.
    pub(crate) fn check(&self, needed: u64) -> Result<(), AddError> {
        match self.free() {
            Some(free) if free < needed.saturating_add(self.reserve) => {
                Err(AddError::NoSpace { needed, free, reserve: self.reserve })
            }
            _ => Ok(()),
        }
    }

    /// The error for a write that met a full disk after all.
    pub(crate) fn full(&self, needed: u64) -> AddError {
        AddError::NoSpace { needed, free: self.free().unwrap_or(0), reserve: self.reserve }
    }

    fn ballast(&self) -> PathBuf {
        self.dir.join("reserve")
    }

    /// Writes the ballast file if it is not there. Failing is harmless: it only helps when the disk fills later.
    pub(crate) fn hold_ballast(&self) {
        let path = self.ballast();
        let whole = fs::metadata(&path).is_ok_and(|meta| meta.len() == BALLAST_LEN as u64);
        if !whole && self.check(BALLAST_LEN as u64).is_ok() {
            // Not zeros: some file systems store those as holes, which would hold nothing back.
            let written = fs::File::create(&path).and_then(|mut file| file.write_all(&vec![0xb1; BALLAST_LEN]));
            if let Err(error) = written {
                tracing::debug!(%error, "no ballast file");
                let _ = fs::remove_file(&path);
            }
        }
    }

    /// Gives the ballast up. True when there was one, so that trying again makes sense.
    pub(crate) fn drop_ballast(&self) -> bool {
        fs::remove_file(self.ballast()).is_ok()
    }
}

/// Whether an error means a full disk or an exhausted quota.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}
