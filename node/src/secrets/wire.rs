//! `/sinew/secrets/1`: a node that holds an award asks the job's submitter for the job's secrets. One question and one answer on a
//! stream, each CBOR behind its length (four bytes, big-endian).

use std::io;

use serde::{Deserialize, Serialize};
use sinew_crdt_state::cbor;
use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::secret::VALUES_LEN_MAX;
use sinew_crdt_state::spec::Phase;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest question: an award with its Merkle path is less than 1 KiB.
pub const ASK_LEN_MAX: usize = 4 * 1024;
/// Longest answer: the most values, with their names and what they are for.
pub const ANSWER_LEN_MAX: usize = VALUES_LEN_MAX + 16 * 1024;

/// A question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// The award that the asker holds: its brain's signed fact.
    pub award: Envelope,
    /// The phase of the task that it is about to run.
    pub phase: Phase,
    /// The task.
    pub task: u32,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The values, sealed to the asker ([`super::seal`]).
    Sealed(#[serde(with = "serde_bytes")] Vec<u8>),
    /// No.
    Refused(Refusal),
}

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// What the asker shows gives it no right.
    #[error("it does not take this node's award for good: {0}")]
    Denied(String),
    /// There is a newer award, or another brain: the asker may hold it already.
    #[error("the award is out of date")]
    Superseded,
    /// It does not know the job, or no longer.
    #[error("it does not know the job, or the job has ended there")]
    NoJob,
    /// A secret is gone.
    #[error("it has no secret `{0}` any more")]
    Unknown(String),
    /// Too many questions at once.
    #[error("it is busy")]
    Busy,
    /// It cannot read its own secrets.
    #[error("it cannot read its secrets; its log says why")]
    Broken,
}

/// Reads a question.
///
/// # Errors
/// When the bytes are none.
pub fn decode_ask(bytes: &[u8]) -> Result<Ask, cbor::DecodeError> {
    cbor::from_slice(bytes)
}

/// Reads an answer.
///
/// # Errors
/// When the bytes are none.
pub fn decode_answer(bytes: &[u8]) -> Result<Answer, cbor::DecodeError> {
    cbor::from_slice(bytes)
}

/// Reads one message of at most `max` bytes. Memory grows with what arrives, not with what is announced.
///
/// # Errors
/// When the stream breaks, or more is announced.
pub async fn read_message(stream: &mut (impl AsyncRead + Unpin), max: usize) -> io::Result<Vec<u8>> {
    let len = stream.read_u32().await?;
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    if len > max {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{len} bytes are announced, {max} is the most"),
        ));
    }
    let mut bytes = Vec::new();
    stream.take(len as u64).read_to_end(&mut bytes).await?;
    if bytes.len() == len { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Writes one message, and that no more comes.
///
/// # Errors
/// When the stream breaks.
pub async fn write_message(stream: &mut (impl AsyncWrite + Unpin), message: &impl Serialize) -> io::Result<()> {
    let body = cbor::to_vec(message);
    let len = u32::try_from(body.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    stream.write_u32(len).await?;
    stream.write_all(&body).await?;
    stream.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lengths_are_bounded_before_anything_is_read() {
        let mut announced = &[0xff, 0xff, 0xff, 0xff, 1][..];
        let error = read_message(&mut announced, 10).await.expect_err("too long");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let mut short = &[0, 0, 0, 9, 1][..];
        assert_eq!(read_message(&mut short, 10).await.expect_err("short").kind(), io::ErrorKind::UnexpectedEof);
        let mut stream = Vec::new();
        let answer = Answer::Refused(Refusal::Unknown("db".to_owned()));
        write_message(&mut stream, &answer).await.expect("write");
        let bytes = read_message(&mut &stream[..], 100).await.expect("read");
        assert_eq!(decode_answer(&bytes), Ok(answer));
    }
}
