//! Writing blobs out to files. A target appears whole or not at all (temporary name, fsync, rename), its content is
//! checked against the hash on the way, and a collection never leaves its root: directories are opened one by one
//! without following symbolic links.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use futures::StreamExt;
use rand::Rng;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat, renameat, unlinkat};
use sinew_crdt_state::ids::Hash;

use crate::collection::Collection;
use crate::error::{ExportError, ReadError};
use crate::store::BlobStore;

/// Content read and written per step: large enough for the disk, small enough to hold in memory several times.
const STEP: u64 = 4 << 20;
/// Files of a collection written at once.
const EXPORT_AT_ONCE: usize = 4;

impl BlobStore {
    /// Writes `hash` to `target`, replacing a file that is there. Its directory must exist. Returns the size.
    ///
    /// # Errors
    /// [`ExportError::Read`] unless the blob is complete and intact here, [`ExportError::Target`] naming the path.
    pub async fn export(&self, hash: Hash, target: &Path) -> Result<u64, ExportError> {
        let wrong = |kind: io::ErrorKind| ExportError::Target { path: target.to_owned(), source: kind.into() };
        let name = target.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| wrong(io::ErrorKind::InvalidFilename))?.to_owned();
        let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let dir = openat(CWD, parent, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| ExportError::Target { path: parent.to_owned(), source: error.into() })?;
        self.export_into(hash, dir, name, target).await
    }

    /// Writes all files of the collection `hash` below `root`, making that and directories below it as needed.
    ///
    /// # Errors
    /// As [`Self::export`]; [`ExportError::Collection`] when a name would lead out of `root`, checked before anything
    /// is written. A symbolic link in the way is [`ExportError::Target`].
    pub async fn export_collection(&self, hash: Hash, root: &Path) -> Result<Collection, ExportError> {
        let collection = self.collection(hash).await?;
        let target = |source| ExportError::Target { path: root.to_owned(), source };
        std::fs::create_dir_all(root).map_err(target)?;
        let exports = collection.entries.iter().map(|entry| async move {
            let path = root.join(&entry.name);
            let (dir, name) =
                open_parent(root, &entry.name).map_err(|source| ExportError::Target { path: path.clone(), source })?;
            self.export_into(entry.hash, dir, name, &path).await
        });
        let mut running = futures::stream::iter(exports).buffer_unordered(EXPORT_AT_ONCE);
        while let Some(one) = running.next().await {
            one?;
        }
        drop(running);
        Ok(collection)
    }

    async fn export_into(&self, hash: Hash, dir: OwnedFd, name: String, path: &Path) -> Result<u64, ExportError> {
        let size = self.complete_size(hash).await?;
        let failed = |source: io::Error| ExportError::Target { path: path.to_owned(), source };
        let mut target = Target::create(dir, name).map_err(failed)?;
        let mut at = 0;
        while at < size {
            let bytes = self.read_range(hash, at, STEP).await?;
            if bytes.is_empty() {
                let source = io::ErrorKind::UnexpectedEof.into();
                return Err(ReadError::Damaged { hash, source }.into());
            }
            at += bytes.len() as u64;
            let written = tokio::task::spawn_blocking(move || target.file.write_all(&bytes).map(|()| target)).await;
            target = written.map_err(io::Error::other).and_then(|result| result).map_err(failed)?;
        }
        let committed = tokio::task::spawn_blocking(move || target.commit()).await;
        committed.map_err(io::Error::other).and_then(|result| result).map_err(failed)?;
        Ok(size)
    }
}

/// A file being written under a temporary name, which is removed unless it is committed.
struct Target {
    dir: OwnedFd,
    name: String,
    temp: Option<String>,
    file: File,
}

impl Target {
    fn create(dir: OwnedFd, name: String) -> io::Result<Self> {
        let mut tail = [0u8; 6];
        rand::rng().fill_bytes(&mut tail);
        let temp = format!(".{name}.{}", sinew_crdt_state::ids::encode_base32(&tail));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(openat(&dir, &temp, flags, Mode::from_raw_mode(0o666))?);
        Ok(Self { dir, name, temp: Some(temp), file })
    }

    fn commit(mut self) -> io::Result<()> {
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

/// Opens (and makes) the directory of `name` below `root`, without following links, and returns it with the last part.
fn open_parent(root: &Path, name: &str) -> io::Result<(OwnedFd, String)> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut dir = openat(CWD, root, flags, Mode::empty())?;
    let mut parts: Vec<&str> = name.split('/').collect();
    let last = parts.pop().unwrap_or_default().to_owned();
    for part in parts {
        match mkdirat(&dir, part, Mode::from_raw_mode(0o777)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        dir = openat(&dir, part, flags | OFlags::NOFOLLOW, Mode::empty())?;
    }
    Ok((dir, last))
}
