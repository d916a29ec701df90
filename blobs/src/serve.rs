//! The providing side: answers one request on one stream. Reads only; a peer cannot make it store, delete or list
//! anything. Which peers get this far is the caller's decision.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use iroh_blobs::api::blobs::BlobStatus;
use iroh_blobs::protocol::Request;
use iroh_blobs::provider::events::EventSender;
use iroh_blobs::provider::{self, StreamPair};
use sinew_crdt_state::ids::Hash;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::timeout;

use crate::error::ServeError;
use crate::store::{BlobStore, from_iroh};
use crate::stream::{Meter, Outgoing};

/// A request for a badly fragmented collection is some tens of KiB; this leaves room and bounds what a peer makes us hold.
pub const REQUEST_LEN_MAX: usize = 256 << 10;
/// Children of a hash sequence a request may reach: walking there costs time per child, and this many cost ~10 ms.
pub const CHILDREN_MAX: usize = 1 << 20;
/// A peer that neither sends its request nor takes its answer for this long is gone or holding the stream hostage.
const IDLE: Duration = Duration::from_secs(15);

/// What answering one request took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ServeStats {
    /// Bytes of the request.
    pub request_bytes: u64,
    /// Bytes sent, hash pairs and headers included.
    pub sent_bytes: u64,
}

impl BlobStore {
    /// Answers the one request on this stream and closes the write half. See the crate's page for the bytes.
    ///
    /// # Errors
    /// [`ServeError`]. The peer sees the stream end early and nothing of the reason.
    pub async fn serve<R, W>(&self, mut reader: R, writer: W) -> Result<ServeStats, ServeError>
    where
        R: AsyncRead + Send + Unpin,
        W: AsyncWrite + Send + Unpin,
    {
        let request = read_request(&mut reader).await?;
        let mut stats = ServeStats { request_bytes: request.len() as u64, sent_bytes: 0 };
        let request = parse(request).await?;
        let meter = Meter::default();
        let mut out = Outgoing::new(writer, IDLE, meter.clone());
        let answered = self.answer(request, &mut out).await;
        // Also after a failure: what was encoded so far is good data, and the end tells the peer to look elsewhere.
        let closed = out.finish().await;
        stats.sent_bytes = meter.bytes();
        match answered.and(closed.map_err(ServeError::Cut)) {
            Ok(()) => Ok(stats),
            Err(_) if meter.stalled() => Err(ServeError::Stalled(IDLE)),
            Err(error) => Err(error),
        }
    }

    async fn answer<W>(&self, request: Request, out: &mut Outgoing<W>) -> Result<(), ServeError>
    where
        W: AsyncWrite + Send + Unpin,
    {
        let files = self.files()?;
        // The request was read whole, so nothing is left for the library to read.
        let pair = StreamPair::new(0, Bytes::new(), out, EventSender::DEFAULT);
        let result = match request {
            Request::Get(request) => {
                let hash = from_iroh(request.hash);
                if let BlobStatus::NotFound = self.status(hash).await? {
                    return Err(ServeError::Missing { hash });
                }
                provider::handle_get(pair, files, request).await
            }
            Request::GetMany(request) => provider::handle_get_many(pair, files, request).await,
            _ => return Err(ServeError::Refused("only get requests are answered")),
        };
        match result {
            Ok(()) => Ok(()),
            Err(error) => {
                self.heal().await;
                Err(ServeError::Cut(io::Error::other(error)))
            }
        }
    }
}

/// Reads to the end of the peer's half, in bounded time and space.
async fn read_request(reader: &mut (impl AsyncRead + Send + Unpin)) -> Result<Bytes, ServeError> {
    let mut request = Vec::new();
    let mut limited = reader.take(REQUEST_LEN_MAX as u64 + 1);
    let read = timeout(IDLE, limited.read_to_end(&mut request)).await;
    read.map_err(|_| ServeError::Stalled(IDLE))?.map_err(ServeError::Cut)?;
    if request.len() > REQUEST_LEN_MAX {
        return Err(ServeError::TooLong { max: REQUEST_LEN_MAX });
    }
    Ok(request.into())
}

/// The postcard form of a range sequence, as far as bounding it needs.
type RawRanges = Vec<(u64, Vec<u64>)>;

async fn parse(mut bytes: Bytes) -> Result<Request, ServeError> {
    // A stream that broke off, or was given up by its opener before anything was asked, is nobody's fault.
    let cut = || ServeError::Cut(io::ErrorKind::UnexpectedEof.into());
    let garbage = |error: postcard::Error| match error {
        postcard::Error::DeserializeUnexpectedEnd => cut(),
        error => ServeError::Garbage(io::Error::new(io::ErrorKind::InvalidData, error)),
    };
    let body = bytes.get(1..).unwrap_or_default();
    match bytes.first() {
        Some(0) => {
            let parsed = postcard::take_from_bytes::<([u8; Hash::LEN], RawRanges)>(body);
            let ((_hash, ranges), rest) = parsed.map_err(garbage)?;
            if !rest.is_empty() {
                return Err(ServeError::Garbage(io::ErrorKind::InvalidData.into()));
            }
            // The library walks every unselected child up to the last selected one, whether they exist or not.
            let reach = ranges.iter().fold(0u64, |reach, (delta, _)| reach.saturating_add(*delta));
            if reach > CHILDREN_MAX as u64 {
                return Err(ServeError::Refused("it reaches beyond the largest collection"));
            }
        }
        Some(9) => {}
        Some(_) => return Err(ServeError::Refused("only get requests are answered")),
        None => return Err(cut()),
    }
    let read = Request::read_async(&mut bytes).await;
    let (request, _len) = read.map_err(|error| {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<postcard::Error>());
        let ended =
            error.kind() == io::ErrorKind::UnexpectedEof || inner == Some(&postcard::Error::DeserializeUnexpectedEnd);
        if ended { cut() } else { ServeError::Garbage(error) }
    })?;
    Ok(request)
}
