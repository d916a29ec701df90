//! Frames of one class to and from one peer: a bounded queue, the task that writes it out, and the task that reads what
//! comes in. Which connection carries a stream is the driver's choice.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::{AsyncWrite, AsyncWriteExt};
use libp2p::{PeerId, Stream};
use sinew_crdt_state::ids::NodeId;
use sinew_crdt_state::pack::{UnpackError, pack, unpack};
use tokio::io::AsyncReadExt;
use tokio::sync::{Mutex, Notify, mpsc, oneshot};
use tokio_util::compat::FuturesAsyncReadCompatExt;

use crate::driver::Internal;
use crate::error::SendError;
use crate::event::{EventSink, FrameClass};
use crate::status::LaneStatus;
use crate::streams::StreamError;
use crate::wire::{
    BULK, BULK_PACKED, CONTROL, HEADER_LEN, WireError, frame_len, header, packed_header, take_packed_mark,
};

/// Frames queued per peer and class. At 10,000 control frames a second, a tenth of a second of patience.
const QUEUE_LEN_MAX: usize = 1_024;
/// Bytes queued per peer and class: a few of the largest frames.
const QUEUE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Frames are gathered into one write up to this size: past it a copy costs more than a write.
const BATCH_LEN: usize = 64 * 1024;
/// A frame longer than this is written from where it is instead of being copied into the batch.
const COPY_LEN_MAX: usize = 16 * 1024;
/// A reader's buffer. Frames are cut out of it without copying, so it is also the most that a small frame pins.
const READ_LEN: usize = 32 * 1024;
/// Between two tries to open a stream on a peer that is connected. Rarely needed: a connection that is just closing.
const REOPEN_DELAY: Duration = Duration::from_millis(100);

/// Both lanes of one peer. Lives as long as the peer is known; connections come and go.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) node: NodeId,
    pub(crate) peer: PeerId,
    pub(crate) up: std::sync::atomic::AtomicBool,
    pub(crate) control: Lane,
    pub(crate) bulk: Lane,
}

impl Link {
    pub(crate) fn new(node: NodeId, peer: PeerId) -> Self {
        let up = std::sync::atomic::AtomicBool::new(false);
        Self { node, peer, up, control: Lane::new(), bulk: Lane::new() }
    }

    pub(crate) const fn lane(&self, class: FrameClass) -> &Lane {
        match class {
            FrameClass::Control => &self.control,
            FrameClass::Bulk => &self.bulk,
        }
    }
}

/// One class's queue and counters.
#[derive(Debug)]
pub(crate) struct Lane {
    queue: mpsc::Sender<Bytes>,
    waiting: Mutex<mpsc::Receiver<Bytes>>,
    queued_bytes: AtomicUsize,
    reopen: Notify,
    /// What waits is the last that is written.
    ending: AtomicBool,
    sent: (AtomicU64, AtomicU64),
    received: (AtomicU64, AtomicU64),
    lost: AtomicU64,
}

impl Lane {
    fn new() -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE_LEN_MAX);
        Self {
            queue,
            waiting: Mutex::new(waiting),
            queued_bytes: AtomicUsize::new(0),
            reopen: Notify::new(),
            ending: AtomicBool::new(false),
            sent: Default::default(),
            received: Default::default(),
            lost: AtomicU64::new(0),
        }
    }

    /// Queues a frame, or says that the peer is too slow.
    pub(crate) fn push(&self, frame: Bytes) -> Result<(), SendError> {
        let len = frame.len();
        let before = self.queued_bytes.fetch_add(len, Ordering::Relaxed);
        // A frame longer than the whole bound may still go when nothing else waits.
        if (before > 0 && before + len > QUEUE_BYTES_MAX) || self.queue.try_send(frame).is_err() {
            self.queued_bytes.fetch_sub(len, Ordering::Relaxed);
            return Err(SendError::Full);
        }
        Ok(())
    }

    /// Makes the writer move to the connection that is best now.
    pub(crate) fn reopen(&self) {
        self.reopen.notify_one();
    }

    /// Makes the writer end, with what waits written.
    pub(crate) fn end(&self) {
        self.ending.store(true, Ordering::Relaxed);
        self.reopen.notify_one();
    }

    fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    /// Drops what waits: the peer went away.
    pub(crate) async fn drain(&self) {
        let mut waiting = self.waiting.lock().await;
        while let Ok(frame) = waiting.try_recv() {
            self.queued_bytes.fetch_sub(frame.len(), Ordering::Relaxed);
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn status(&self) -> LaneStatus {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LaneStatus {
            frames_sent: get(&self.sent.0),
            bytes_sent: get(&self.sent.1),
            frames_received: get(&self.received.0),
            bytes_received: get(&self.received.1),
            frames_lost: get(&self.lost),
            queue_len: QUEUE_LEN_MAX - self.queue.capacity(),
        }
    }
}

/// Writes the lane out, stream after stream, until the task is aborted, the lane ends or the driver is gone.
pub(crate) async fn write(link: std::sync::Arc<Link>, class: FrameClass, driver: mpsc::Sender<Internal>) {
    let lane = link.lane(class);
    let mut waiting = lane.waiting.lock().await;
    let mut packs = class == FrameClass::Bulk;
    while !lane.is_ending() {
        let protocol = match class {
            FrameClass::Control => CONTROL,
            FrameClass::Bulk if packs => BULK_PACKED,
            FrameClass::Bulk => BULK,
        };
        let (reply, opened) = oneshot::channel();
        if driver.send(Internal::Open { peer: link.peer, protocol, reply }).await.is_err() {
            return;
        }
        match opened.await {
            Ok(Ok(mut stream)) => match write_stream(lane, &mut waiting, packs, &mut stream).await {
                Ok(()) => {
                    let _ = stream.close().await;
                }
                Err(error) => tracing::debug!(peer = %link.node.short(), ?class, %error, "a stream broke"),
            },
            Ok(Err(StreamError::Unsupported)) if packs => {
                packs = false;
                continue;
            }
            Ok(Err(StreamError::Unsupported)) => tracing::debug!(peer = %link.node.short(), ?class, "not spoken"),
            Ok(Err(StreamError::Io(error))) => tracing::debug!(peer = %link.node.short(), ?class, %error, "no stream"),
            Err(_) => {}
        }
        tokio::time::sleep(REOPEN_DELAY).await;
    }
}

/// Writes frames until the lane should move to another connection (`Ok`) or the stream breaks.
async fn write_stream<S>(
    lane: &Lane,
    waiting: &mut mpsc::Receiver<Bytes>,
    packs: bool,
    stream: &mut S,
) -> io::Result<()>
where
    S: AsyncWrite + Unpin,
{
    let mut batch = BytesMut::new();
    loop {
        let first = if lane.is_ending() {
            waiting.try_recv().ok()
        } else {
            tokio::select! {
                () = lane.reopen.notified() => if lane.is_ending() { continue } else { None },
                frame = waiting.recv() => frame,
            }
        };
        let Some(first) = first else { return Ok(()) };
        let (mut frames, mut bytes, mut sent) = (0, 0, 0);
        let mut next = Some(first);
        let mut outcome = Ok(());
        while let Some(frame) = next {
            (frames, bytes) = (frames + 1, bytes + frame.len());
            let packed = if packs { pack(&frame).map(Bytes::from) } else { None };
            let (head, body) = match &packed {
                Some(packed) => (packed_header(packed.len()), packed),
                None => (header(frame.len()), &frame),
            };
            sent += body.len() as u64;
            outcome = add(&mut batch, head, body, stream).await;
            next = if outcome.is_ok() { waiting.try_recv().ok() } else { None };
        }
        if outcome.is_ok() {
            outcome = finish(&mut batch, stream).await;
        }
        lane.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        if let Err(error) = outcome {
            lane.lost.fetch_add(frames, Ordering::Relaxed);
            return Err(error);
        }
        lane.sent.0.fetch_add(frames, Ordering::Relaxed);
        lane.sent.1.fetch_add(sent, Ordering::Relaxed);
    }
}

async fn add<S>(batch: &mut BytesMut, head: [u8; HEADER_LEN], frame: &Bytes, stream: &mut S) -> io::Result<()>
where
    S: AsyncWrite + Unpin,
{
    if batch.len() + frame.len() > BATCH_LEN {
        stream.write_all(batch).await?;
        batch.clear();
    }
    batch.put_slice(&head);
    if frame.len() <= COPY_LEN_MAX {
        batch.put_slice(frame);
        return Ok(());
    }
    stream.write_all(batch).await?;
    batch.clear();
    stream.write_all(frame).await
}

async fn finish<S: AsyncWrite + Unpin>(batch: &mut BytesMut, stream: &mut S) -> io::Result<()> {
    stream.write_all(batch).await?;
    if batch.capacity() > COPY_LEN_MAX {
        // An idle peer should not hold what a busy minute needed.
        *batch = BytesMut::new();
    } else {
        batch.clear();
    }
    stream.flush().await
}

/// How a reader ended.
#[derive(Debug)]
pub(crate) enum ReadEnd {
    /// The stream ended or broke, or the node reads no more.
    Closed,
    /// The peer announced a frame longer than the limit.
    TooLong {
        /// The length announced.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// A packed frame did not unpack.
    Damaged(UnpackError),
}

/// Reads frames, packed ones too where the stream `packs`, and hands them to the node, as fast as the node takes them.
pub(crate) async fn read(
    stream: Stream,
    link: &Link,
    class: FrameClass,
    packs: bool,
    sink: EventSink,
    max: usize,
) -> ReadEnd {
    let mut stream = stream.compat();
    let (lane, sink) = (link.lane(class), sink.frames(class).clone());
    let mut buf = BytesMut::new();
    loop {
        match split_frame(&mut buf, packs, max) {
            Ok(Some((frame, len))) => {
                lane.received.0.fetch_add(1, Ordering::Relaxed);
                lane.received.1.fetch_add(len as u64, Ordering::Relaxed);
                if sink.put(link.node, class, frame).await.is_err() {
                    return ReadEnd::Closed;
                }
                continue;
            }
            Ok(None) => {}
            Err(WireError::TooLong { len, max }) => return ReadEnd::TooLong { len, max },
            Err(WireError::Damaged(error)) => return ReadEnd::Damaged(error),
            Err(_) => return ReadEnd::Closed,
        }
        if buf.is_empty() && buf.capacity() < HEADER_LEN {
            buf = BytesMut::with_capacity(READ_LEN);
        }
        // Grows with what has arrived, never with what was merely announced; doubling, as growing may copy.
        if buf.capacity() - buf.len() < READ_LEN / 4 {
            buf.reserve(buf.len().max(READ_LEN));
        }
        match stream.read_buf(&mut buf).await {
            Ok(0) | Err(_) => return ReadEnd::Closed,
            Ok(_) => {}
        }
    }
}

/// Cuts the first complete frame off `buf`, and unpacks it where it is packed; with the bytes that it took on the way.
///
/// # Errors
/// [`WireError::TooLong`] when it announces more than `max` bytes, packed or unpacked; [`WireError::Damaged`].
fn split_frame(buf: &mut BytesMut, packs: bool, max: usize) -> Result<Option<(Bytes, usize)>, WireError> {
    let Some(mut head) = buf.first_chunk::<HEADER_LEN>().copied() else { return Ok(None) };
    let packed = packs && take_packed_mark(&mut head);
    let Some(len) = frame_len(&head, max)? else { return Ok(None) };
    if buf.len() < HEADER_LEN + len {
        return Ok(None);
    }
    let mut frame = buf.split_to(HEADER_LEN + len).freeze();
    let frame = frame.split_off(HEADER_LEN);
    let frame = if packed { Bytes::from(unpack(&frame, max)?) } else { frame };
    Ok(Some((frame, len)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_whole_whatever_the_cuts() {
        let mut wire = Vec::new();
        for len in [0_usize, 1, 5, 300] {
            wire.extend_from_slice(&header(len));
            wire.extend(std::iter::repeat_n(7, len));
        }
        let (mut buf, mut lens) = (BytesMut::new(), Vec::new());
        for byte in wire {
            buf.put_u8(byte);
            while let Some((frame, _)) = split_frame(&mut buf, false, 300).expect("within the limit") {
                lens.push(frame.len());
            }
        }
        assert_eq!(lens, [0, 1, 5, 300]);
    }

    #[test]
    fn a_full_lane_refuses_and_recovers() {
        let lane = Lane::new();
        let frame = Bytes::from(vec![0; QUEUE_BYTES_MAX / 2]);
        assert_eq!(lane.push(frame.clone()), Ok(()));
        assert_eq!(lane.push(frame.clone()), Ok(()));
        assert_eq!(lane.push(frame.clone()), Err(SendError::Full));
        futures::executor::block_on(lane.drain());
        assert_eq!(lane.push(frame), Ok(()));
        assert_eq!(lane.status().frames_lost, 2);
    }

    #[tokio::test]
    async fn batches_read_back_as_they_were_sent() {
        for packs in [false, true] {
            let lane = Lane::new();
            let sent: Vec<_> =
                [3_usize, 20_000, 100_000, 0, 60_000, 15_000].map(|len| Bytes::from(vec![1; len])).to_vec();
            for frame in &sent {
                lane.push(frame.clone()).expect("room");
            }
            let mut out = futures::io::Cursor::new(Vec::new());
            {
                let mut waiting = lane.waiting.lock().await;
                let write = write_stream(&lane, &mut waiting, packs, &mut out);
                tokio::time::timeout(Duration::from_millis(200), write).await.expect_err("it waits for more");
            }
            let out = out.into_inner();
            assert_eq!(
                out.len() as u64,
                lane.status().bytes_sent + 6 * HEADER_LEN as u64,
                "bytes on the way are counted"
            );
            assert_eq!(out.len() < 2_000, packs, "{}", out.len());
            let (mut buf, mut got) = (BytesMut::from(&out[..]), Vec::new());
            while let Some((frame, _)) = split_frame(&mut buf, packs, 200_000).expect("within the limit") {
                got.push(frame);
            }
            assert_eq!(got, sent);
            assert_eq!(lane.queued_bytes.load(Ordering::Relaxed), 0);
        }
    }

    #[test]
    fn packed_frames_are_bounded_and_checked() {
        let packed = pack(&[1; 1_000]).expect("it repeats");
        let wire = [&packed_header(packed.len())[..], &packed].concat();
        let split = |wire: &[u8], packs, max| split_frame(&mut BytesMut::from(wire), packs, max);
        assert_eq!(split(&wire, true, 1_000), Ok(Some((Bytes::from(vec![1; 1_000]), packed.len()))));
        assert_eq!(split(&wire, true, 999), Err(WireError::TooLong { len: 1_000, max: 999 }));
        assert!(matches!(split(&wire, false, 1_000), Err(WireError::TooLong { .. })), "the older protocol has no mark");
        let mut cut = wire;
        cut[3] -= 1;
        assert_eq!(split(&cut, true, 1_000), Err(WireError::Damaged(UnpackError::Damaged)));
    }
}
