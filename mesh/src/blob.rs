//! A byte stream to a member, for blob transfers and for questions for secrets. What is said on it is its users' business.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt};

/// A two-way byte stream to a member, with tokio's `AsyncRead` and `AsyncWrite`. Shutting the write half down tells the
/// other side that no more comes; dropping the stream before that resets it.
pub struct BlobStream(Mutex<Compat<libp2p::Stream>>);

impl BlobStream {
    pub(crate) fn new(stream: libp2p::Stream) -> Self {
        Self(Mutex::new(stream.compat()))
    }

    /// The mutex only makes the stream `Sync`, which transfers spread over tasks ask for; it is never locked.
    fn inner(self: Pin<&mut Self>) -> Pin<&mut Compat<libp2p::Stream>> {
        Pin::new(self.get_mut().0.get_mut().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for BlobStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobStream").finish_non_exhaustive()
    }
}

impl AsyncRead for BlobStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_read(cx, buf)
    }
}

impl AsyncWrite for BlobStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.inner().poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_shutdown(cx)
    }
}
