//! Fits a caller's byte streams to iroh-blobs' stream traits: large buffers, byte counts, and the write half closed in
//! `sync()`, which is what tells the other side that a message is over. Opens nothing.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use iroh::endpoint::VarInt;
use iroh_blobs::util::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// The protocol reads 64-byte parents and 16 KiB leaves; a megabyte turns thousands of small reads into one.
const READ_BUFFER: usize = 1 << 20;
/// As above for writes; smaller, because a provider holds one per peer.
const WRITE_BUFFER: usize = 256 << 10;

/// Counts what passes through a stream, readable while the stream is owned elsewhere.
#[derive(Debug, Default, Clone)]
pub(crate) struct Meter(Arc<MeterInner>);

#[derive(Debug, Default)]
struct MeterInner {
    bytes: AtomicU64,
    stalled: AtomicBool,
}

impl Meter {
    pub(crate) fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn stalled(&self) -> bool {
        self.0.stalled.load(Ordering::Relaxed)
    }

    fn add(&self, n: usize) {
        self.0.bytes.fetch_add(n as u64, Ordering::Relaxed);
    }

    fn stall(&self) -> io::Error {
        self.0.stalled.store(true, Ordering::Relaxed);
        io::ErrorKind::TimedOut.into()
    }
}

/// The reading side of a fetch. Time limits are the caller's: it knows what progress means.
pub(crate) struct Incoming<R> {
    inner: R,
    buffer: BytesMut,
    meter: Meter,
}

impl<R: AsyncRead + Send + Unpin> Incoming<R> {
    pub(crate) fn new(inner: R, meter: Meter) -> Self {
        Self { inner, buffer: BytesMut::new(), meter }
    }

    /// Reads until `len` bytes are buffered or the stream ends; returns how many of them there are.
    async fn fill(&mut self, len: usize) -> io::Result<usize> {
        while self.buffer.len() < len {
            self.buffer.reserve(READ_BUFFER);
            let read = self.inner.read_buf(&mut self.buffer).await?;
            if read == 0 {
                break;
            }
            self.meter.add(read);
        }
        Ok(self.buffer.len().min(len))
    }
}

impl<R: AsyncRead + Send + Unpin> RecvStream for Incoming<R> {
    async fn recv_bytes(&mut self, len: usize) -> io::Result<Bytes> {
        let got = self.fill(len).await?;
        Ok(self.buffer.split_to(got).freeze())
    }

    async fn recv_bytes_exact(&mut self, len: usize) -> io::Result<Bytes> {
        if self.fill(len).await? < len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(self.buffer.split_to(len).freeze())
    }

    async fn recv_exact(&mut self, target: &mut [u8]) -> io::Result<()> {
        if self.fill(target.len()).await? < target.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.buffer.copy_to_slice(target);
        Ok(())
    }

    fn stop(&mut self, _code: VarInt) -> io::Result<()> {
        Ok(())
    }

    fn id(&self) -> u64 {
        0
    }
}

/// The writing side: buffered, each write limited in time, closed by `sync()`.
pub(crate) struct Outgoing<W> {
    inner: W,
    buffer: BytesMut,
    idle: Duration,
    meter: Meter,
    over: bool,
}

impl<W: AsyncWrite + Send + Unpin> Outgoing<W> {
    pub(crate) fn new(inner: W, idle: Duration, meter: Meter) -> Self {
        Self { inner, buffer: BytesMut::new(), idle, meter, over: false }
    }

    async fn flush_buffer(&mut self) -> io::Result<()> {
        while !self.buffer.is_empty() {
            let write = timeout(self.idle, self.inner.write(&self.buffer));
            let written = write.await.map_err(|_| self.meter.stall())??;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.buffer.advance(written);
            self.meter.add(written);
        }
        Ok(())
    }

    async fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.over {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if self.buffer.len() + bytes.len() > WRITE_BUFFER {
            self.flush_buffer().await?;
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// Flushes and closes the write half; calling it again does nothing.
    pub(crate) async fn finish(&mut self) -> io::Result<()> {
        if self.over {
            return Ok(());
        }
        self.flush_buffer().await?;
        self.over = true;
        timeout(self.idle, self.inner.shutdown()).await.map_err(|_| self.meter.stall())?
    }
}

impl<W: AsyncWrite + Send + Unpin> SendStream for Outgoing<W> {
    async fn send_bytes(&mut self, bytes: Bytes) -> io::Result<()> {
        self.put(&bytes).await
    }

    async fn send(&mut self, buf: &[u8]) -> io::Result<()> {
        self.put(buf).await
    }

    async fn sync(&mut self) -> io::Result<()> {
        self.finish().await
    }

    fn reset(&mut self, _code: VarInt) -> io::Result<()> {
        // A plain byte stream has no reset; dropping it unclosed is the nearest thing.
        self.over = true;
        Ok(())
    }

    async fn stopped(&mut self) -> io::Result<Option<VarInt>> {
        Ok(None)
    }

    fn id(&self) -> u64 {
        0
    }
}
