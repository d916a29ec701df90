//! What a frame between two nodes holds: a tag byte, then CBOR.
//!
//! | tag | body |
//! |---|---|
//! | 0 | `Vec<Message>`: the scheduler's messages |
//! | 1 | [`LogMessage`]: live output of tasks |

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use sinew_crdt_state::cbor::{self, DecodeError};
use sinew_crdt_state::ids::JobId;
use sinew_scheduler::wire::Message;

/// Most messages in one frame: more are cut by the sender.
pub const MESSAGES_MAX: usize = 4_096;

/// About what tasks print, between the node that runs them and one that watches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogMessage {
    /// Send me what this job's tasks printed lately, and print from now on.
    Subscribe(JobId),
    /// No longer.
    Unsubscribe(JobId),
    /// Bytes of one stream of one attempt.
    Data(LogData),
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
    /// Tells attempts of one task on one node apart.
    pub attempt: u64,
    /// Whether it is stderr.
    pub stderr: bool,
    /// Where in the stream the bytes begin.
    pub offset: u64,
    /// The bytes.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
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
    /// Too many messages.
    #[error("a frame with {0} messages, more than {MESSAGES_MAX}")]
    Messages(usize),
    /// The body is not what the tag says.
    #[error("a frame that does not decode: {0}")]
    Decode(#[from] DecodeError),
}

/// The core's messages as frames of at most [`MESSAGES_MAX`] messages.
pub fn encode_messages(messages: &[Message]) -> impl Iterator<Item = Bytes> {
    messages.chunks(MESSAGES_MAX).map(|part| encode(0, part))
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
        0 => {
            let messages: Vec<Message> = cbor::from_slice(body)?;
            if messages.len() > MESSAGES_MAX { Err(FrameError::Messages(messages.len())) } else { Ok(Frame::Core(messages)) }
        }
        1 => Ok(Frame::Log(cbor::from_slice(body)?)),
        other => Err(FrameError::Tag(*other)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_read_back() {
        let messages = vec![Message::SetBeatAck { seq: 7 }, Message::Swim(vec![1, 2, 3])];
        let frame = encode_messages(&messages).next().expect("one frame");
        assert_eq!(decode(&frame), Ok(Frame::Core(messages)));
        let log = LogMessage::Subscribe(JobId([1; 32]));
        assert_eq!(decode(&encode_log(&log)), Ok(Frame::Log(log)));
        assert_eq!(decode(&[]), Err(FrameError::Empty));
        assert_eq!(decode(&[9, 0]), Err(FrameError::Tag(9)));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&bytes);
        }
    }
}
