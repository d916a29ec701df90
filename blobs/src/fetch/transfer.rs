//! One request to one provider: send it, verify what comes, hand it to the store. Decides nothing about retries.

use std::io;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use iroh_blobs::api::Store;
use iroh_blobs::get::StreamPair;
use iroh_blobs::get::fsm::{
    AtBlobHeader, AtBlobHeaderNextError, AtConnected, AtEndBlob, BlobContentNext, ConnectedNext, DecodeError,
    EndBlobNext,
};
use iroh_blobs::protocol::GetRequest;
use sinew_crdt_state::ids::{Hash, NodeId};
use tokio::time::timeout;

use super::{BoxRead, BoxWrite, Dial};
use crate::error::{ProviderFault, StoreError};
use crate::store::{from_iroh, to_iroh};
use crate::stream::{Incoming, Meter, Outgoing};

/// Verified items between the network and the disk, at most: a few MiB.
const IMPORT_DEPTH: u64 = 256;
/// iroh-blobs' chunk group.
pub(super) const GROUP_BYTES: u64 = 16 << 10;

/// Why a transfer ended early.
#[derive(Debug)]
pub(super) enum Stop {
    /// The provider's doing.
    Fault(ProviderFault),
    /// Our store's.
    Local(StoreError),
    /// Our wish: [`Watch::header`] said so.
    Unwanted,
}

/// What a header's announcement leads to.
pub(super) enum Verdict {
    Take,
    TooLarge { max: u64 },
    Unwanted,
}

/// Told what arrives while it arrives.
pub(super) trait Watch: Send {
    /// A blob of `size` bytes (so the provider says) begins.
    fn header(&mut self, hash: Hash, size: u64) -> Verdict;
    /// So many bytes of content were verified.
    fn payload(&mut self, bytes: u64);
}

/// A request to a provider.
pub(super) struct Transfer<'a> {
    pub(super) files: &'a Store,
    pub(super) dial: &'a dyn Dial,
    pub(super) node: NodeId,
    pub(super) request: GetRequest,
    /// The hashes of the children, where the request asks for any.
    pub(super) children: &'a [Hash],
    pub(super) stall: Duration,
    pub(super) meter: Meter,
}

type Reader = Incoming<BoxRead>;

impl Transfer<'_> {
    /// Runs it to the end of the answer or the first failure. Everything verified before is stored either way.
    pub(super) async fn run(self, watch: &mut dyn Watch) -> Result<(), Stop> {
        let opened = self.in_time(self.dial.open(self.node)).await?;
        let (reader, writer) = opened.map_err(|error| Stop::Fault(ProviderFault::Unreachable(Arc::new(error))))?;
        let connected = self.connect(reader, writer);
        let mut next = match self.in_time(connected.next()).await?.map_err(cut)? {
            ConnectedNext::StartRoot(root) => {
                let hash = self.request.hash;
                self.blob(from_iroh(hash), root.next(), watch).await?.next()
            }
            ConnectedNext::StartChild(child) => EndBlobNext::MoreChildren(child),
            ConnectedNext::Closing(_) => return Ok(()),
        };
        while let EndBlobNext::MoreChildren(child) = next {
            let index = usize::try_from(child.offset()).ok().and_then(|offset| offset.checked_sub(1));
            let Some(hash) = index.and_then(|index| self.children.get(index)) else { return Ok(()) };
            next = self.blob(*hash, child.next(to_iroh(*hash)), watch).await?.next();
        }
        // Extra bytes after the answer are ignored: everything asked for is here and verified.
        Ok(())
    }

    fn connect(&self, reader: BoxRead, writer: BoxWrite) -> AtConnected<Reader, Outgoing<BoxWrite>> {
        let reader = Incoming::new(reader, self.meter.clone());
        let writer = Outgoing::new(writer, self.stall, Meter::default());
        let pair = StreamPair::new(0, reader, writer);
        AtConnected::new(pair.t0, pair.recv, pair.send, self.request.clone(), Default::default())
    }

    async fn blob(
        &self,
        hash: Hash,
        header: AtBlobHeader<Reader>,
        watch: &mut dyn Watch,
    ) -> Result<AtEndBlob<Reader>, Stop> {
        let (mut content, size) = self.in_time(header.next()).await?.map_err(|error| match error {
            AtBlobHeaderNextError::NotFound { .. } => Stop::Fault(ProviderFault::Missing),
            AtBlobHeaderNextError::Read { source, .. } => cut(source),
        })?;
        match watch.header(hash, size) {
            Verdict::Take => {}
            Verdict::TooLarge { max } => return Err(Stop::Fault(ProviderFault::TooLarge { size, max })),
            Verdict::Unwanted => return Err(Stop::Unwanted),
        }
        // The empty blob is always here, so nobody asks for it: any other blob of size 0 is a lie.
        let size = NonZeroU64::new(size).ok_or(Stop::Fault(ProviderFault::Corrupt))?;
        let depth = usize::try_from((size.get() / GROUP_BYTES + 2).min(IMPORT_DEPTH)).unwrap_or(1);
        let import = self.files.import_bao(to_iroh(hash), size, depth).await.map_err(local)?;
        let received = async {
            let sink = import.tx;
            let mut counted = content.stats().payload_bytes_read;
            loop {
                match self.in_time(content.next()).await? {
                    BlobContentNext::Done(end) => return Ok(end),
                    BlobContentNext::More((rest, item)) => {
                        let item = item.map_err(decode_fault)?;
                        let verified = rest.stats().payload_bytes_read;
                        if verified > counted {
                            watch.payload(verified - counted);
                            counted = verified;
                        }
                        // The store only hangs up after a failure, which it reports below.
                        if sink.send(item).await.is_err() {
                            return Err(Stop::Unwanted);
                        }
                        content = rest;
                    }
                }
            }
        };
        // Both to their end: what was verified must be on its way to the disk before anybody looks what is missing.
        let (received, stored) = futures::join!(received, import.rx);
        stored.map_err(|error| local_io(io::Error::other(error)))?.map_err(local)?;
        received
    }

    async fn in_time<T>(&self, future: impl Future<Output = T>) -> Result<T, Stop> {
        timeout(self.stall, future).await.map_err(|_| Stop::Fault(ProviderFault::Stalled(self.stall)))
    }
}

fn cut(error: impl std::error::Error + Send + Sync + 'static) -> Stop {
    Stop::Fault(ProviderFault::Cut(Arc::new(io::Error::other(error))))
}

fn local(error: impl Into<iroh_blobs::api::Error>) -> Stop {
    Stop::Local(StoreError::backend("store fetched data", error))
}

fn local_io(source: io::Error) -> Stop {
    Stop::Local(StoreError::Backend { action: "store fetched data", source })
}

fn decode_fault(error: DecodeError) -> Stop {
    Stop::Fault(match error {
        DecodeError::ParentHashMismatch { .. } | DecodeError::LeafHashMismatch { .. } => ProviderFault::Corrupt,
        DecodeError::Read { source, .. } => ProviderFault::Cut(Arc::new(source)),
        _ => ProviderFault::Ended,
    })
}
