//! What a frame between two nodes holds: a tag byte, then CBOR.
//!
//! | tag | body |
//! |---|---|
//! | 0 | `Vec<Message>`: the scheduler's messages |
//! | 1 | [`LogMessage`]: live output of tasks |

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use sinew_crdt_state::cbor::{self, DecodeError};
use sinew_crdt_state::fact::Fence;
use sinew_crdt_state::ids::{Hash, JobId};
use sinew_crdt_state::spec::BlobRef;
use sinew_scheduler::wire::Message;

/// Most messages in one frame: more are cut by the sender.
pub const MESSAGES_MAX: usize = 4_096;

/// Bytes of a frame before it is cut: small enough that others get a turn on the stream, far below the mesh's limit.
pub const FRAME_LEN: usize = 4 << 20;

/// About what tasks print, between the node that runs them and one that watches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogMessage {
    /// Send me what this job's tasks printed lately, and print from now on.
    Subscribe(JobId),
    /// No longer.
    Unsubscribe(JobId),
    /// The answer to a subscription: all that there was when it came has been sent.
    Told(JobId),
    /// Bytes of one stream of one attempt.
    Data(LogData),
    /// What is at yours of what this job's tasks printed? Only to a node whose card has `logs`.
    List(JobId),
    /// The answer to [`Self::List`], in one part or more; and, to a subscriber that has asked so, news of an attempt that ended.
    Listed(LogList),
    /// Send me a piece of what an attempt that runs has printed, if there is one. Answered by [`Self::Data`].
    Read(LogRead),
}

/// Most attempts in one [`LogList`]: about 200 KiB.
pub const LISTED_MAX: usize = 1_000;

/// What a node has of what a job's tasks printed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogList {
    /// The job.
    pub job: JobId,
    /// Attempts, at most [`LISTED_MAX`].
    pub attempts: Vec<AttemptLogs>,
    /// Whether this is the last part of an answer.
    pub last: bool,
    /// The record of the job's outputs, where one is kept there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<BlobRef>,
}

/// What one attempt printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptLogs {
    /// The attempt.
    pub attempt: AttemptRef,
    /// Whether it runs: then only the sizes are known.
    pub running: bool,
    /// Whether it ended well, where that is known.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub good: bool,
    /// Its stdout.
    pub stdout: LogPart,
    /// Its stderr.
    pub stderr: LogPart,
}

/// One attempt of one task, as its node tells it apart from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AttemptRef {
    /// The phase.
    pub phase: u8,
    /// The task.
    pub task: u32,
    /// The award under which it began.
    pub fence: Fence,
    /// Its number on this node.
    pub attempt: u64,
    /// Which attempt of the task it is, counted from 1 over all nodes.
    pub number: u32,
}

/// One stream of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogPart {
    /// Bytes.
    pub size: u64,
    /// All of them as a blob, once the attempt is over; none where nothing was printed.
    pub hash: Option<Hash>,
}

/// Where to read on in what an attempt prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRead {
    /// The job.
    pub job: JobId,
    /// The phase.
    pub phase: u8,
    /// The task.
    pub task: u32,
    /// The attempt's number on the node.
    pub attempt: u64,
    /// Whether it is stderr.
    pub stderr: bool,
    /// From here on.
    pub offset: u64,
}

/// A piece of a task's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogData {
    /// The job.
    pub job: JobId,
    /// The phase.
    pub phase: u8,
    /// The task.
    pub task: u32,
    /// The attempt's number on the node: tells attempts of one task there apart.
    pub attempt: u64,
    /// Whether it is stderr.
    pub stderr: bool,
    /// Where in the stream the bytes begin.
    pub offset: u64,
    /// The bytes.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
    /// The award under which the attempt began; builds before this do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<Fence>,
    /// Which attempt of the task it is, counted from 1 over all nodes; 0 where it is not said.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub number: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// A decoded frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// For the core.
    Core(Vec<Message>),
    /// For whoever watches.
    Log(LogMessage),
}

/// Why a frame was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No bytes at all.
    #[error("an empty frame")]
    Empty,
    /// A tag that does not exist.
    #[error("a frame with the unknown tag {0}")]
    Tag(u8),
    /// The body is not what the tag says.
    #[error("a frame that does not decode: {0}")]
    Decode(#[from] DecodeError),
}

/// The core's messages as frames, cut by number and by size; only a message that is larger by itself exceeds
/// [`FRAME_LEN`].
#[must_use]
pub fn encode_messages(messages: &[Message]) -> Vec<Bytes> {
    let mut frames = Vec::new();
    let (mut body, mut count) = (Vec::new(), 0);
    for message in messages {
        let before = body.len();
        ciborium::into_writer(message, &mut body).expect("writing CBOR to memory cannot fail");
        if count == MESSAGES_MAX || (count > 0 && body.len() > FRAME_LEN) {
            let last = body.split_off(before);
            frames.push(frame_of(count, &std::mem::replace(&mut body, last)));
            count = 0;
        }
        count += 1;
    }
    if count > 0 {
        frames.push(frame_of(count, &body));
    }
    frames
}

/// A frame of `count` encoded messages: they follow the head of a CBOR array (RFC 8949, major type 4).
fn frame_of(count: usize, body: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(body.len() + 4);
    frame.put_u8(0);
    match u8::try_from(count) {
        Ok(few @ 0..24) => frame.put_u8(0x80 | few),
        Ok(some) => frame.put_slice(&[0x98, some]),
        Err(_) => {
            frame.put_u8(0x99);
            frame.put_u16(u16::try_from(count).expect("at most MESSAGES_MAX"));
        }
    }
    frame.put_slice(body);
    frame.freeze()
}

/// A log message as a frame.
#[must_use]
pub fn encode_log(message: &LogMessage) -> Bytes {
    encode(1, message)
}

fn encode<T: Serialize + ?Sized>(tag: u8, body: &T) -> Bytes {
    let mut out = BytesMut::with_capacity(256).writer();
    out.get_mut().put_u8(tag);
    ciborium::into_writer(body, &mut out).expect("writing CBOR to memory cannot fail");
    out.into_inner().freeze()
}

/// Decodes a frame from a peer.
///
/// # Errors
/// [`FrameError`].
pub fn decode(frame: &[u8]) -> Result<Frame, FrameError> {
    let (tag, body) = frame.split_first().ok_or(FrameError::Empty)?;
    match tag {
        0 => Ok(Frame::Core(cbor::from_slice::<Messages>(body)?.0)),
        1 => Ok(Frame::Log(cbor::from_slice(body)?)),
        other => Err(FrameError::Tag(*other)),
    }
}

/// At most [`MESSAGES_MAX`] messages. Counted while they are read: a message takes few bytes in a frame and many in memory.
struct Messages(Vec<Message>);

impl<'de> Deserialize<'de> for Messages {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(MessagesVisitor)
    }
}

struct MessagesVisitor;

impl<'de> Visitor<'de> for MessagesVisitor {
    type Value = Messages;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {MESSAGES_MAX} messages")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Messages, A::Error> {
        let mut messages = Vec::new();
        while let Some(message) = seq.next_element()? {
            if messages.len() == MESSAGES_MAX {
                return Err(A::Error::invalid_length(MESSAGES_MAX + 1, &self));
            }
            messages.push(message);
        }
        Ok(Messages(messages))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sinew_scheduler::wire::LoadDigest;

    use super::*;

    /// A small message that can be told from others.
    fn no_bid(number: u64) -> Message {
        let mut job = [0; 32];
        job[..8].copy_from_slice(&number.to_le_bytes());
        Message::NoBid {
            job: JobId(job),
            load: LoadDigest {
                cpu_milli_free: 0,
                memory_bytes_free: 0,
                running: 0,
                eligible: true,
                disk_failing: false,
                disk_bytes_taken: 0,
            },
        }
    }

    #[test]
    fn frames_read_back() {
        let messages = vec![no_bid(7), Message::Swim(vec![1, 2, 3])];
        let frames = encode_messages(&messages);
        assert_eq!(frames.iter().map(|f| decode(f)).collect::<Vec<_>>(), [Ok(Frame::Core(messages))]);
        let log = LogMessage::Subscribe(JobId([1; 32]));
        assert_eq!(decode(&encode_log(&log)), Ok(Frame::Log(log)));
        assert_eq!(decode(&[]), Err(FrameError::Empty));
        assert_eq!(decode(&[9, 0]), Err(FrameError::Tag(9)));
    }

    #[test]
    fn a_frame_holds_so_many_messages_and_no_more() {
        let frame = |n| encode(0, &vec![no_bid(1); n]);
        assert!(matches!(decode(&frame(MESSAGES_MAX)), Ok(Frame::Core(m)) if m.len() == MESSAGES_MAX));
        let error = decode(&frame(MESSAGES_MAX + 1)).expect_err("too many").to_string();
        assert!(error.contains("at most 4096 messages"), "{error}");
    }

    #[test]
    fn many_or_large_messages_take_several_frames_in_order() {
        let many: Vec<Message> = (0..5_000).map(no_bid).collect();
        let large: Vec<Message> = (0u8..5).map(|i| Message::Swim(vec![i; FRAME_LEN / 2])).collect();
        for (messages, at_least) in [(many, 2), (large, 3), (vec![no_bid(1); 300], 1)] {
            let frames = encode_messages(&messages);
            assert!(frames.len() >= at_least && frames.iter().all(|f| f.len() <= FRAME_LEN + 8));
            let mut back = Vec::new();
            for frame in &frames {
                let Ok(Frame::Core(part)) = decode(frame) else { panic!("a frame that does not decode") };
                back.extend(part);
            }
            assert_eq!(back, messages);
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&bytes);
        }
    }
}
