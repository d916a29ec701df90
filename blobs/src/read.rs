//! Reading out of the store. Everything read here is checked against the hash, so damage on the disk is an error and
//! never wrong bytes.

use std::io::{self, SeekFrom};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::future::BoxFuture;
use iroh_blobs::api::blobs::{BlobStatus, EncodedItem};
use iroh_blobs::protocol::{ChunkRanges, ChunkRangesExt};
use sinew_crdt_state::ids::Hash;
use tokio::io::{AsyncRead, AsyncSeek, ReadBuf};

use crate::error::ReadError;
use crate::store::{BlobStore, to_iroh};

/// What a [`BlobReader`] reads ahead: large enough that a sequential read runs at the store's speed.
const WINDOW: u64 = 1 << 20;

impl BlobStore {
    /// The whole of `hash`, which may hold at most `max_len` bytes.
    ///
    /// # Errors
    /// [`ReadError`]; [`ReadError::TooLarge`] beyond `max_len`.
    pub async fn read(&self, hash: Hash, max_len: u64) -> Result<Bytes, ReadError> {
        let size = self.complete_size(hash).await?;
        if size > max_len {
            return Err(ReadError::TooLarge { hash, size, max: max_len });
        }
        self.read_range(hash, 0, size).await
    }

    /// Up to `len` bytes of `hash` from `offset`; fewer (or none) where the blob ends. A blob that is here in part will
    /// do if that part is.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read_range(&self, hash: Hash, offset: u64, len: u64) -> Result<Bytes, ReadError> {
        let end = offset.saturating_add(len);
        let mut out = BytesMut::new();
        self.for_each_piece(hash, offset, end, |at, piece| {
            let from = usize::try_from(offset.saturating_sub(at)).unwrap_or(usize::MAX).min(piece.len());
            let to = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX).min(piece.len());
            if from == 0 && to == piece.len() && out.is_empty() && piece.len() as u64 == len {
                // One piece is the whole answer: no copy.
                out = BytesMut::from(piece);
            } else if from < to {
                out.extend_from_slice(&piece[from..to]);
            }
        })
        .await?;
        Ok(out.freeze())
    }

    /// A reader over all of `hash`.
    ///
    /// # Errors
    /// [`ReadError`] unless the blob is complete here.
    pub async fn reader(&self, hash: Hash) -> Result<BlobReader, ReadError> {
        let size = self.complete_size(hash).await?;
        Ok(BlobReader { store: self.clone(), hash, size, position: 0, window: (0, Bytes::new()), loading: None })
    }

    pub(crate) async fn complete_size(&self, hash: Hash) -> Result<u64, ReadError> {
        match self.status(hash).await? {
            BlobStatus::Complete { size } => Ok(size),
            BlobStatus::Partial { .. } => Err(ReadError::Incomplete { hash }),
            BlobStatus::NotFound => Err(ReadError::Missing { hash }),
        }
    }

    /// Hands the verified chunk groups that cover `offset..end` to `f`, in order, each with its offset.
    pub(crate) async fn for_each_piece(
        &self,
        hash: Hash,
        offset: u64,
        end: u64,
        mut f: impl FnMut(u64, Bytes),
    ) -> Result<(), ReadError> {
        if offset >= end {
            return Ok(());
        }
        let ranges = ChunkRanges::bytes(offset..end);
        let mut items = Box::pin(self.files()?.export_bao(to_iroh(hash), ranges).stream());
        while let Some(item) = items.next().await {
            match item {
                EncodedItem::Leaf(leaf) => f(leaf.offset, leaf.data),
                EncodedItem::Error(error) => {
                    drop(items);
                    return Err(self.explain(hash, io::Error::other(error)).await);
                }
                EncodedItem::Size(_) | EncodedItem::Parent(_) | EncodedItem::Done => {}
            }
        }
        Ok(())
    }

    /// Why reading failed, from what the store knows about the blob.
    async fn explain(&self, hash: Hash, source: io::Error) -> ReadError {
        match self.status(hash).await {
            Ok(BlobStatus::NotFound) => ReadError::Missing { hash },
            Ok(BlobStatus::Partial { .. }) => ReadError::Incomplete { hash },
            Ok(BlobStatus::Complete { .. }) => ReadError::Damaged { hash, source },
            Err(error) => error.into(),
        }
    }
}

/// Reads and seeks in a blob.
pub struct BlobReader {
    store: BlobStore,
    hash: Hash,
    size: u64,
    position: u64,
    /// Bytes read ahead and where they start.
    window: (u64, Bytes),
    loading: Option<BoxFuture<'static, Result<Bytes, ReadError>>>,
}

impl std::fmt::Debug for BlobReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { hash, size, position, .. } = self;
        f.debug_struct("BlobReader").field("hash", hash).field("size", size).field("position", position).finish()
    }
}

impl BlobReader {
    /// The blob's size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The bytes of the window from the position on.
    fn ahead(&self) -> &[u8] {
        let (start, bytes) = &self.window;
        let skip = self.position.checked_sub(*start).and_then(|skip| usize::try_from(skip).ok());
        skip.and_then(|skip| bytes.get(skip..)).unwrap_or_default()
    }
}

impl AsyncRead for BlobReader {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.position >= self.size || buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        while self.ahead().is_empty() {
            let this = &mut *self;
            let load = this.loading.get_or_insert_with(|| {
                let (store, hash, at) = (this.store.clone(), this.hash, this.position);
                Box::pin(async move { store.read_range(hash, at, WINDOW).await })
            });
            let loaded = ready!(load.as_mut().poll(cx));
            this.loading = None;
            let bytes = loaded.map_err(io::Error::other)?;
            if bytes.is_empty() {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            this.window = (this.position, bytes);
        }
        let take = self.ahead().len().min(buf.remaining());
        buf.put_slice(&self.ahead()[..take]);
        self.position += take as u64;
        Poll::Ready(Ok(()))
    }
}

impl AsyncSeek for BlobReader {
    fn start_seek(mut self: Pin<&mut Self>, to: SeekFrom) -> io::Result<()> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        let target = target.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        if target != self.position {
            self.loading = None;
        }
        self.position = target;
        Ok(())
    }

    fn poll_complete(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Poll::Ready(Ok(self.position))
    }
}
