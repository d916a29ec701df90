//! Adding: bytes, files, streams. Every addition returns a guard that keeps the blob until it is tagged or dropped.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use iroh_blobs::api::Store;
use iroh_blobs::api::blobs::{AddBytesOptions, AddPathOptions, AddProgressItem, BlobStatus};
use sinew_crdt_state::ids::Hash;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::error::{AddError, StoreError};
use crate::pins::TempTag;
use crate::space::is_full;
use crate::store::{BlobStore, Format, from_iroh};

/// Size of the pieces a stream is read in: large enough that hops between tasks do not show.
const STREAM_PIECE: usize = 1 << 20;
/// Pieces under way between the reader of a stream and the store.
const STREAM_DEPTH: usize = 4;

/// How long to wait for the store to notice an abandoned import before its temporary file is left to a later sweep.
const ABORT_WAIT: Duration = Duration::from_millis(500);

/// A blob that was added.
#[derive(Debug)]
pub struct Added {
    /// Its hash.
    pub hash: Hash,
    /// Its size in bytes.
    pub size: u64,
    /// Keeps it from collection until dropped.
    pub tag: TempTag,
}

/// What happens to a file that is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ImportMode {
    /// It is copied (by reference on file systems that can), so it may change afterwards.
    #[default]
    Copy,
    /// A large one stays where it is and is read from there; it must not change afterwards.
    Reference,
}

/// How far an addition is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ImportProgress {
    /// The size, once known.
    pub size: Option<u64>,
    /// Bytes copied.
    pub copied: u64,
    /// Bytes hashed.
    pub hashed: u64,
}

/// Called with the progress of an addition; must not block.
pub type OnImportProgress = Arc<dyn Fn(ImportProgress) + Send + Sync>;

impl BlobStore {
    /// Adds `bytes`.
    ///
    /// # Errors
    /// [`AddError::NoSpace`] on a full disk, otherwise [`AddError::Store`].
    pub async fn add_bytes(&self, bytes: impl Into<Bytes>) -> Result<Added, AddError> {
        self.add_bytes_as(bytes.into(), Format::Raw).await
    }

    pub(crate) async fn add_bytes_as(&self, data: Bytes, format: Format) -> Result<Added, AddError> {
        let size = data.len() as u64;
        let mut again = Again::default();
        loop {
            let options = AddBytesOptions { data: data.clone(), format: format.into() };
            let import = |store: Store| async move {
                store.add_bytes_with_opts(options).temp_tag().await.map_err(|error| unwrap_io(error.into()))
            };
            let result = self.import(size, false, import).await;
            if !again.helps(self, &result).await {
                return result;
            }
        }
    }

    /// Adds the file at `path`.
    ///
    /// # Errors
    /// [`AddError::Unreadable`] and [`AddError::WrongKind`] name the path; [`AddError::NoSpace`] on a full disk.
    pub async fn add_file(
        &self,
        path: &Path,
        mode: ImportMode,
        on_progress: Option<OnImportProgress>,
    ) -> Result<Added, AddError> {
        let (absolute, size) = look_at(path)?;
        let mut again = Again::default();
        loop {
            let options = AddPathOptions { path: absolute.clone(), format: Format::Raw.into(), mode: mode.into() };
            let on_progress = on_progress.clone();
            let import = |store: Store| async move {
                let items = store.add_path_with_opts(options).stream().await;
                follow(items, on_progress.as_deref()).await
            };
            let result = self.import(size, mode == ImportMode::Reference, import).await;
            if let Err(AddError::Store(StoreError::Backend { source, .. })) = &result
                && is_source_fault(source)
            {
                // It was there a moment ago: removed or made unreadable meanwhile.
                let source = io::Error::new(source.kind(), source.to_string());
                return Err(AddError::Unreadable { path: path.to_owned(), source });
            }
            if !again.helps(self, &result).await {
                return result;
            }
        }
    }

    /// Adds everything `source` yields until its end.
    ///
    /// # Errors
    /// [`AddError::Source`] when it fails, [`AddError::NoSpace`] when the disk fills, [`AddError::Collected`] in a rare
    /// race with a collection, since a stream cannot be read twice.
    pub async fn add_stream(&self, mut source: impl AsyncRead + Send + Unpin) -> Result<Added, AddError> {
        let (pieces, mut queue) = mpsc::channel::<Bytes>(STREAM_DEPTH);
        let pump = async move {
            let mut sent = 0u64;
            loop {
                let mut piece = BytesMut::with_capacity(STREAM_PIECE);
                while piece.len() < piece.capacity() {
                    if source.read_buf(&mut piece).await.map_err(AddError::Source)? == 0 {
                        break;
                    }
                }
                if piece.is_empty() {
                    return Ok(sent);
                }
                self.0.space.check(piece.len() as u64)?;
                sent += piece.len() as u64;
                if pieces.send(piece.freeze()).await.is_err() {
                    // The store gave up; it says why.
                    return Ok(sent);
                }
            }
        };
        // When the source fails its end must not look like the end of the data, and iroh-blobs 0.104 panics now and then
        // on a stream that yields an error: so the stream then never ends, and the import is dropped.
        let (ended_well, mut whether_well) = oneshot::channel::<()>();
        let pump = async move {
            let sent: Result<u64, AddError> = pump.await;
            if sent.is_ok() {
                let _ = ended_well.send(());
            }
            sent
        };
        let data = futures::stream::poll_fn(move |cx| match queue.poll_recv(cx) {
            Poll::Ready(None) if whether_well.try_recv().is_ok() => Poll::Ready(None),
            Poll::Ready(None) => Poll::Pending,
            Poll::Ready(Some(piece)) => Poll::Ready(Some(Ok(piece))),
            Poll::Pending => Poll::Pending,
        });
        let import = self.import(0, false, |store: Store| async move {
            let items = store.add_stream(data.fuse()).await.stream().await;
            follow(items, None).await
        });
        match futures::future::try_join(pump, async { Ok(import.await) }).await {
            Ok((size, added)) => match added {
                Err(error @ AddError::Collected { .. }) => {
                    // Its entry outlived its file; the next collection takes that too.
                    self.run_gc_once().await?;
                    Err(error)
                }
                added => added.map(|added| Added { size, ..added }),
            },
            Err(error) => {
                // The store notices soon and leaves a temporary file. It may be too busy with others to be idle at all.
                if let Ok(files) = self.files() {
                    let _ = timeout(ABORT_WAIT, files.wait_idle()).await;
                }
                self.0.sweep_temp();
                Err(error)
            }
        }
    }

    /// Runs one import and turns its result into a guarded blob. `external` skips looking for a data file.
    async fn import<Fut>(&self, size: u64, external: bool, import: impl FnOnce(Store) -> Fut) -> Result<Added, AddError>
    where
        Fut: Future<Output = Result<iroh_blobs::api::TempTag, io::Error>>,
    {
        let needed = if external { 0 } else { size };
        self.0.space.check(needed)?;
        let epoch = self.0.gc.epoch();
        let importing = self.0.imports.read().await;
        let result = import(self.files()?).await;
        drop(importing);
        let tag = match result {
            Ok(tag) => tag,
            Err(source) => {
                // The store leaves its temporary file behind, which matters most when the disk is full.
                self.0.sweep_temp();
                return Err(if is_full(&source) {
                    self.heal().await;
                    self.0.space.full(needed)
                } else {
                    StoreError::Backend { action: "add a blob", source }.into()
                });
            }
        };
        let hash = from_iroh(tag.hash());
        let format = tag.format().into();
        let pin = self.0.pins.pin(hash, format);
        drop(tag);
        if epoch % 2 == 1 || self.0.gc.epoch() != epoch {
            self.check_survived(hash, external).await?;
        }
        Ok(Added { hash, size, tag: pin })
    }

    /// A collection that had already condemned an unreferenced blob may delete its file just after the same blob was
    /// added again. Once it is over, look.
    async fn check_survived(&self, hash: Hash, external: bool) -> Result<(), AddError> {
        let _no_gc = self.0.gc.hold_off().await;
        match self.status(hash).await? {
            BlobStatus::Complete { size } if size <= self.0.options.inline_max || external => Ok(()),
            BlobStatus::Complete { .. } if self.0.data_file(hash).exists() => Ok(()),
            _ => Err(AddError::Collected { hash }),
        }
    }
}

/// Whether to do an addition again: at most once for each of the failures that a second attempt cures.
#[derive(Debug, Default)]
struct Again {
    healed: bool,
    /// Held while trying again, so that no further collection can condemn the blob.
    kept: Option<TempTag>,
}

impl Again {
    async fn helps(&mut self, store: &BlobStore, result: &Result<Added, AddError>) -> bool {
        match result {
            Err(AddError::Collected { hash }) if self.kept.is_none() => {
                self.kept = Some(store.temp_tag(*hash, Format::Raw).await);
                true
            }
            Err(AddError::Store(StoreError::Backend { .. })) if !self.healed => {
                self.healed = store.heal().await;
                self.healed
            }
            _ => false,
        }
    }
}

impl From<ImportMode> for iroh_blobs::api::blobs::ImportMode {
    fn from(mode: ImportMode) -> Self {
        match mode {
            ImportMode::Copy => Self::Copy,
            ImportMode::Reference => Self::TryReference,
        }
    }
}

/// The absolute path and size of a readable file.
fn look_at(path: &Path) -> Result<(PathBuf, u64), AddError> {
    let unreadable = |source| AddError::Unreadable { path: path.to_owned(), source };
    let meta = std::fs::metadata(path).map_err(unreadable)?;
    if !meta.is_file() {
        return Err(AddError::WrongKind { path: path.to_owned(), wanted: "a file" });
    }
    std::fs::File::open(path).map_err(unreadable)?;
    Ok((std::path::absolute(path).map_err(unreadable)?, meta.len()))
}

/// Follows an import to its end, reporting on the way.
async fn follow(
    items: impl futures::Stream<Item = AddProgressItem>,
    on_progress: Option<&(dyn Fn(ImportProgress) + Send + Sync)>,
) -> io::Result<iroh_blobs::api::TempTag> {
    let mut items = std::pin::pin!(items);
    let mut progress = ImportProgress::default();
    while let Some(item) = items.next().await {
        match item {
            AddProgressItem::Done(tag) => return Ok(tag),
            AddProgressItem::Error(error) => return Err(error),
            AddProgressItem::Size(size) => progress.size = Some(size),
            AddProgressItem::CopyProgress(copied) => progress.copied = copied,
            AddProgressItem::CopyDone => progress.copied = progress.size.unwrap_or(progress.copied),
            AddProgressItem::OutboardProgress(hashed) => progress.hashed = hashed,
        }
        if let Some(on_progress) = on_progress {
            on_progress(progress);
        }
    }
    Err(io::Error::other("the import ended without a result"))
}

fn is_source_fault(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound | io::ErrorKind::IsADirectory)
}

fn unwrap_io(error: iroh_blobs::api::Error) -> io::Error {
    let iroh_blobs::api::Error::Io(source) = error;
    source
}
