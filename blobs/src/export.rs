//! Writing blobs out to files. A target appears whole or not at all (temporary name, fsync, rename), its content is
//! checked against the hash on the way, and a collection never leaves its root: directories are opened one by one
//! without following symbolic links.
//!
//! A large blob is copied from its file in the store: by reference where the file system can, and otherwise with reading,
//! checking and writing at the same time. A target is never a hard link to a file of the store: who writes to it would change
//! the blob.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::mpsc;

use futures::stream::{FuturesUnordered, StreamExt};
use rustix::fs::{CWD, Mode, OFlags, ioctl_ficlone, openat};
use sinew_crdt_state::ids::Hash;

use crate::collection::{Collection, TREE_NAME};
use crate::error::{ExportError, ReadError};
use crate::store::BlobStore;
use crate::target::{Target, open_parent, write_tree};

/// Content read and written per step: large enough for the disk, small enough to hold in memory several times.
const STEP: u64 = 4 << 20;
/// The same for a copy from file to file: what fits a processor's cache is hashed and written without a way to memory.
const PIECE: usize = 1 << 20;
/// Pieces read before they are written.
const PIECES_AHEAD: usize = 3;
/// Bytes written between two calls to have them on the disk: the disk works while the rest is copied, and little is left to
/// wait for at the end.
const SYNC_EVERY: u64 = 64 << 20;
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
        self.export_into(hash, dir, name, false, target).await
    }

    /// Writes `hash` to the plain relative path `name` below `root`, which is there, and makes directories as needed.
    ///
    /// # Errors
    /// As [`Self::export`]. A symbolic link in the way is [`ExportError::Target`].
    pub async fn export_below(
        &self,
        hash: Hash,
        root: &Path,
        name: &str,
        executable: bool,
    ) -> Result<u64, ExportError> {
        let path = root.join(name);
        let opened = open_parent(root, name);
        let (dir, name) = opened.map_err(|source| ExportError::Target { path: path.clone(), source })?;
        self.export_into(hash, dir, name, executable, &path).await
    }

    /// Writes everything in the collection `hash` below `root`, making that and directories below it as needed.
    ///
    /// # Errors
    /// As [`Self::export`]; [`ExportError::Collection`] when a name would lead out of `root`, checked before anything
    /// is written. A symbolic link in the way is [`ExportError::Target`].
    pub async fn export_collection(&self, hash: Hash, root: &Path) -> Result<Collection, ExportError> {
        let collection = self.collection(hash).await?;
        let target = |source| ExportError::Target { path: root.to_owned(), source };
        std::fs::create_dir_all(root).map_err(target)?;
        let tree = &self.tree_of(&collection).await?;
        let mut running = FuturesUnordered::new();
        for entry in &collection.entries {
            if entry.name == TREE_NAME {
                continue;
            }
            if running.len() == EXPORT_AT_ONCE {
                running.next().await.transpose()?;
            }
            let executable = tree.executables.contains(&entry.name);
            running.push(self.export_below(entry.hash, root, &entry.name, executable));
        }
        while let Some(one) = running.next().await {
            one?;
        }
        drop(running);
        write_tree(root, tree)?;
        Ok(collection)
    }

    async fn export_into(
        &self,
        hash: Hash,
        dir: OwnedFd,
        name: String,
        executable: bool,
        path: &Path,
    ) -> Result<u64, ExportError> {
        let size = self.complete_size(hash).await?;
        let failed = |source: io::Error| ExportError::Target { path: path.to_owned(), source };
        let target = Target::create(dir, name, executable).map_err(failed)?;
        let target = match self.own_file(hash, size) {
            Some(source) => {
                let copied = tokio::task::spawn_blocking(move || copy(&source, &target, hash).map(|()| target)).await;
                match copied.map_err(io::Error::other).map_err(failed)? {
                    Ok(target) => target,
                    Err(Fault::Content(source)) => return Err(ReadError::Damaged { hash, source }.into()),
                    Err(Fault::Target(source)) => return Err(failed(source)),
                }
            }
            None => self.read_into(hash, size, target, path).await?,
        };
        let committed = tokio::task::spawn_blocking(move || target.commit()).await;
        committed.map_err(io::Error::other).and_then(|result| result).map_err(failed)?;
        Ok(size)
    }

    /// The file in the store that is all of `hash`, if there is one: small blobs are in the database, others may have been
    /// added by reference.
    fn own_file(&self, hash: Hash, size: u64) -> Option<File> {
        if size <= self.0.options.inline_max {
            return None;
        }
        let file = File::open(self.0.data_file(hash)).ok()?;
        file.metadata().is_ok_and(|meta| meta.is_file() && meta.len() == size).then_some(file)
    }

    async fn read_into(&self, hash: Hash, size: u64, mut target: Target, path: &Path) -> Result<Target, ExportError> {
        let failed = |source: io::Error| ExportError::Target { path: path.to_owned(), source };
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
        Ok(target)
    }
}

/// Which side of a copy failed.
enum Fault {
    /// The blob: it cannot be read, or is not what its hash says.
    Content(io::Error),
    /// The file being written.
    Target(io::Error),
}

/// Copies `source`, and checks that what is in the target is what `hash` says.
fn copy(source: &File, target: &Target, hash: Hash) -> Result<(), Fault> {
    if ioctl_ficlone(&target.file, source).is_ok() {
        // The clone is read, not the original: nothing can come in between.
        let mut hasher = blake3::Hasher::new();
        return pieces(&target.file, &mut hasher, Some).and_then(|()| compare(&hasher, hash)).map_err(Fault::Content);
    }
    let mut hasher = blake3::Hasher::new();
    let (full, to_write) = mpsc::sync_channel::<Vec<u8>>(PIECES_AHEAD);
    let (written, free) = mpsc::channel::<Vec<u8>>();
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || write(&target.file, &to_write, &written));
        let mut made = 0;
        let read = pieces(source, &mut hasher, |piece| {
            // A writer that is gone says why when it is joined.
            full.send(piece).ok()?;
            made += 1;
            if made <= PIECES_AHEAD { Some(Vec::new()) } else { free.recv().ok() }
        });
        drop(full);
        let wrote = writer.join().unwrap_or_else(|_| Err(io::Error::other("the writing thread ended")));
        wrote.map_err(Fault::Target)?;
        read.and_then(|()| compare(&hasher, hash)).map_err(Fault::Content)
    })
}

/// Reads `file` piece by piece and hashes each. `pass` takes a piece and gives a buffer for the next, or `None` to stop.
fn pieces(
    file: &File,
    hasher: &mut blake3::Hasher,
    mut pass: impl FnMut(Vec<u8>) -> Option<Vec<u8>>,
) -> io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        buffer.clear();
        buffer.reserve(PIECE);
        // The cursor is the file's own.
        if file.take(PIECE as u64).read_to_end(&mut buffer)? == 0 {
            return Ok(());
        }
        hasher.update(&buffer);
        match pass(buffer) {
            Some(next) => buffer = next,
            None => return Ok(()),
        }
    }
}

/// Writes what comes, and sees to it that the disk does so too on the way.
fn write(mut file: &File, pieces: &mpsc::Receiver<Vec<u8>>, written: &mpsc::Sender<Vec<u8>>) -> io::Result<()> {
    let (wake, wanted) = mpsc::sync_channel::<()>(1);
    std::thread::scope(|scope| {
        // The system tells of a failure once, so it counts here as well as at the end.
        let syncing = scope.spawn(move || wanted.iter().try_for_each(|()| file.sync_data()));
        let mut since = 0;
        let wrote = pieces.iter().try_for_each(|piece| {
            file.write_all(&piece)?;
            since += piece.len() as u64;
            if since >= SYNC_EVERY {
                let _ = wake.try_send(());
                since = 0;
            }
            let _ = written.send(piece);
            Ok(())
        });
        drop(wake);
        let synced = syncing.join().unwrap_or_else(|_| Err(io::Error::other("the syncing thread ended")));
        wrote.and(synced)
    })
}

fn compare(hasher: &blake3::Hasher, hash: Hash) -> io::Result<()> {
    if *hasher.finalize().as_bytes() == hash.0 {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "its content does not match its hash"))
}
