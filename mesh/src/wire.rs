//! The bytes of this crate's own protocols: names, framing, and the hello and join messages. Pure but for the two
//! helpers that read and write one length-prefixed message; the decoders are public so that a fuzz target can call them.

use std::io;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::{Multiaddr, StreamProtocol};
use serde::{Deserialize, Serialize};
use sinew_crdt_state::cbor::{self, DecodeError};
use sinew_crdt_state::certificate::{Credential, Ticket};
use sinew_crdt_state::pack::UnpackError;

use crate::config::{ADDR_LEN_MAX, ADDRS_PER_PEER_MAX};
use crate::error::RefusalKind;
use crate::join::JoinRefusal;
use crate::twin::Boot;

/// Version of the hello exchange and of what flows after it. Nodes of different versions do not mix.
pub const VERSION: u32 = 1;
/// Bytes in front of every frame and message: its length, big-endian.
pub const HEADER_LEN: usize = 4;
/// Longest hello message: eight certificates of ~200 bytes and sixteen addresses, with room to grow.
pub const HELLO_LEN_MAX: usize = 64 * 1024;
/// Longest join message: a ticket with eight addresses, or a chain of eight certificates.
pub const JOIN_LEN_MAX: usize = 16 * 1024;
/// Membership exchange.
pub const HELLO: StreamProtocol = StreamProtocol::new("/sinew/hello/1");
/// Joining with a ticket.
pub const JOIN: StreamProtocol = StreamProtocol::new("/sinew/join/1");
/// Control frames.
pub const CONTROL: StreamProtocol = StreamProtocol::new("/sinew/control/1");
/// Bulk frames, packed where that makes them shorter.
pub const BULK_PACKED: StreamProtocol = StreamProtocol::new("/sinew/bulk/2");
/// Bulk frames as they are, for peers that speak nothing newer.
pub const BULK: StreamProtocol = StreamProtocol::new("/sinew/bulk/1");
/// Blob transfers.
pub const BLOBS: StreamProtocol = StreamProtocol::new("/sinew/blobs/1");
/// Two daemons with one key.
pub const TWIN: StreamProtocol = StreamProtocol::new("/sinew/twin/1");
/// Questions for secrets, one a stream.
pub const SECRETS: StreamProtocol = StreamProtocol::new("/sinew/secrets/1");

/// Why a message could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Longer than its protocol allows.
    #[error("the message announces {len} bytes, the limit is {max}")]
    TooLong {
        /// Announced length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// A packed frame that does not unpack.
    #[error("a packed frame is damaged: {0}")]
    Damaged(UnpackError),
    /// Not our encoding.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Another message was due.
    #[error("an unexpected message")]
    Unexpected,
    /// The stream broke or ended.
    #[error("the stream broke: {0}")]
    Io(io::ErrorKind),
}

impl From<UnpackError> for WireError {
    fn from(error: UnpackError) -> Self {
        match error {
            UnpackError::TooLong { len, max } => Self::TooLong { len, max },
            UnpackError::Damaged => Self::Damaged(error),
        }
    }
}

impl From<io::Error> for WireError {
    fn from(error: io::Error) -> Self {
        Self::Io(error.kind())
    }
}

/// What a node shows of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`] of the sender.
    pub version: u32,
    /// Its membership.
    pub credential: Credential,
    /// Where it can be dialled, as binary multiaddrs.
    addrs: Vec<serde_bytes::ByteBuf>,
    /// Which start of its daemon this is. Daemons of before this field say nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<Boot>,
}

impl Hello {
    /// A hello with as many of `addrs` as fit.
    #[must_use]
    pub fn new(credential: Credential, addrs: &[Multiaddr]) -> Self {
        let addrs = addrs.iter().take(ADDRS_PER_PEER_MAX).map(|a| serde_bytes::ByteBuf::from(a.to_vec())).collect();
        Self { version: VERSION, credential, addrs, boot: None }
    }

    /// The same, of this start of the daemon.
    #[must_use]
    pub const fn of(mut self, boot: Option<Boot>) -> Self {
        self.boot = boot;
        self
    }

    /// The addresses that are well-formed, at most as many as we keep per peer.
    #[must_use]
    pub fn addrs(&self) -> Vec<Multiaddr> {
        self.addrs
            .iter()
            .take(ADDRS_PER_PEER_MAX)
            .filter(|bytes| bytes.len() <= ADDR_LEN_MAX)
            .filter_map(|bytes| Multiaddr::try_from(bytes.to_vec()).ok())
            .collect()
    }
}

/// The messages of `/sinew/hello/1`: the dialler's hello, the listener's, the dialler's `Done`. Either may refuse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HelloMessage {
    /// Who I am.
    Hello(Box<Hello>),
    /// You are verified and so am I.
    Done,
    /// You are refused.
    Refused(RefusalKind),
}

/// The messages of `/sinew/join/1`: one question, one answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinMessage {
    /// I hold this ticket.
    Ask(Box<Ticket>),
    /// Here is your membership.
    Issued(Box<Credential>),
    /// No.
    Refused(JoinRefusal),
}

/// Reads a hello message.
///
/// # Errors
/// [`WireError`] when the bytes are too many or not such a message.
pub fn decode_hello(bytes: &[u8]) -> Result<HelloMessage, WireError> {
    bounded(bytes, HELLO_LEN_MAX)
}

/// Reads a join message.
///
/// # Errors
/// [`WireError`] when the bytes are too many or not such a message.
pub fn decode_join(bytes: &[u8]) -> Result<JoinMessage, WireError> {
    bounded(bytes, JOIN_LEN_MAX)
}

fn bounded<T: serde::de::DeserializeOwned>(bytes: &[u8], max: usize) -> Result<T, WireError> {
    if bytes.len() > max {
        return Err(WireError::TooLong { len: bytes.len(), max });
    }
    Ok(cbor::from_slice(bytes)?)
}

/// The length of the frame whose header begins `bytes`, or `None` when the header is not yet complete.
///
/// # Errors
/// [`WireError::TooLong`] when it announces more than `max`.
pub fn frame_len(bytes: &[u8], max: usize) -> Result<Option<usize>, WireError> {
    let Some(header) = bytes.first_chunk::<HEADER_LEN>() else { return Ok(None) };
    let len = usize::try_from(u32::from_be_bytes(*header)).unwrap_or(usize::MAX);
    if len > max { Err(WireError::TooLong { len, max }) } else { Ok(Some(len)) }
}

/// The header of a frame of `len` bytes.
///
/// # Panics
/// When `len` exceeds what the header can say, which `Mesh::send` and the message bounds exclude.
#[must_use]
pub fn header(len: usize) -> [u8; HEADER_LEN] {
    u32::try_from(len).expect("senders check the length").to_be_bytes()
}

/// What tells a packed frame from others, in the header. Longer than any frame may be.
const PACKED: u32 = 1 << 31;

/// The header of a packed frame of `len` bytes.
///
/// # Panics
/// As [`header`].
#[must_use]
pub fn packed_header(len: usize) -> [u8; HEADER_LEN] {
    (u32::try_from(len).expect("senders check the length") | PACKED).to_be_bytes()
}

/// Takes the mark of a packed frame off the header that begins `bytes`, and says whether it was there.
pub fn take_packed_mark(bytes: &mut [u8]) -> bool {
    let Some(first) = bytes.first_mut() else { return false };
    let mark = PACKED.to_be_bytes()[0];
    let packed = *first & mark != 0;
    *first &= !mark;
    packed
}

/// Reads one length-prefixed message of at most `max` bytes. Memory grows with what arrives, not with what is announced.
pub(crate) async fn read_message<S: AsyncRead + Unpin>(stream: &mut S, max: usize) -> Result<Vec<u8>, WireError> {
    let mut head = [0; HEADER_LEN];
    stream.read_exact(&mut head).await?;
    let len = frame_len(&head, max)?.unwrap_or(0);
    let mut bytes = Vec::new();
    stream.take(len as u64).read_to_end(&mut bytes).await?;
    if bytes.len() == len { Ok(bytes) } else { Err(WireError::Io(io::ErrorKind::UnexpectedEof)) }
}

/// Writes one length-prefixed message and flushes it.
pub(crate) async fn write_message<S, T>(stream: &mut S, message: &T) -> io::Result<()>
where
    S: AsyncWrite + Unpin,
    T: Serialize,
{
    let body = cbor::to_vec(message);
    let mut bytes = Vec::with_capacity(HEADER_LEN + body.len());
    bytes.extend_from_slice(&header(body.len()));
    bytes.extend_from_slice(&body);
    stream.write_all(&bytes).await?;
    stream.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_bounded_before_anything_is_read() {
        assert_eq!(frame_len(&[0, 0, 0], 10), Ok(None));
        assert_eq!(frame_len(&header(10), 10), Ok(Some(10)));
        assert_eq!(frame_len(&header(11), 10), Err(WireError::TooLong { len: 11, max: 10 }));
        assert!(frame_len(&[0xff; 4], 10).is_err());
    }

    #[test]
    fn messages_read_back_and_garbage_does_not() {
        let message = HelloMessage::Refused(RefusalKind::Expired);
        assert_eq!(decode_hello(&cbor::to_vec(&message)), Ok(message));
        assert!(decode_hello(&[0xff; 64]).is_err());
        assert!(decode_join(&vec![0; JOIN_LEN_MAX + 1]).is_err());
    }
}
