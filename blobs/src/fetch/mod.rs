//! The requesting side: downloads from several providers, resumes, gives every waiter the one download. How a stream to
//! a provider comes about is [`Dial`]'s business.

mod collection;
mod plan;
mod transfer;
mod workers;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use sinew_crdt_state::ids::{Hash, NodeId};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::error::{FetchError, ProviderFault, StoreError};
use crate::inventory::BlobState;
use crate::store::{BlobStore, Format};

/// A provider that sends less than one chunk group (16 KiB) in this time is as good as gone.
const STALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a provider that failed without getting anywhere is asked again: enough for a broken connection to be
/// replaced, not enough to wait on a dead node.
const RETRIES: u32 = 2;

/// The reading half of a stream to a provider.
pub type BoxRead = Box<dyn AsyncRead + Send + Unpin>;
/// The writing half; shutting it down must let the provider see the end of the stream.
pub type BoxWrite = Box<dyn AsyncWrite + Send + Unpin>;
/// A stream being opened.
pub type Opening<'a> = BoxFuture<'a, io::Result<(BoxRead, BoxWrite)>>;

/// Opens streams to providers.
pub trait Dial: Send + Sync + 'static {
    /// Opens a new stream on which `provider` will run [`BlobStore::serve`]. Need not limit its own time.
    fn open(&self, provider: NodeId) -> Opening<'_>;
}

/// How far a download is, in bytes of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FetchProgress {
    /// Verified and stored by this call so far.
    pub fetched: u64,
    /// What was here before.
    pub resumed: u64,
    /// The size of the blob, once a provider said it; for a collection that of the files met so far.
    pub size: Option<u64>,
}

/// Called with the progress of a download, at most every few hundred KiB; must not block.
pub type OnFetchProgress = Arc<dyn Fn(FetchProgress) + Send + Sync>;

/// How to fetch. `FetchOptions::default()` fetches everything, from anyone, of any size.
#[derive(Clone)]
pub struct FetchOptions {
    /// Only these bytes: (offset, length). They are rounded to chunk groups of 16 KiB.
    pub range: Option<(u64, u64)>,
    /// Most bytes to accept: of the blob, or of the range if one is given, or of each file of a collection.
    pub max_size: u64,
    /// Time without progress after which a provider counts as failed. *Default 5 s.*
    pub stall_timeout: Duration,
    /// How often a provider that failed is tried again; progress of a MiB refills it. *Default 2.*
    pub retries: u32,
    /// Called as bytes arrive.
    pub on_progress: Option<OnFetchProgress>,
}

impl Default for FetchOptions {
    fn default() -> Self {
        Self { range: None, max_size: u64::MAX, stall_timeout: STALL_TIMEOUT, retries: RETRIES, on_progress: None }
    }
}

impl std::fmt::Debug for FetchOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FetchOptions")
            .field("range", &self.range)
            .field("max_size", &self.max_size)
            .field("stall_timeout", &self.stall_timeout)
            .field("retries", &self.retries)
            .finish_non_exhaustive()
    }
}

/// One provider's part in a download.
#[derive(Debug, Clone)]
pub struct ProviderStats {
    /// Who.
    pub node: NodeId,
    /// Bytes received from it, hash pairs and headers included.
    pub bytes: u64,
    /// Streams opened to it.
    pub streams: u32,
    /// Its last fault, also when the download succeeded without it.
    pub fault: Option<ProviderFault>,
}

/// What a download took.
#[derive(Debug, Clone, Default)]
pub struct FetchStats {
    /// Bytes received over the wire.
    pub bytes_received: u64,
    /// Bytes of content that were verified and stored.
    pub payload_bytes: u64,
    /// Bytes of content that were here already.
    pub resumed_bytes: u64,
    /// Another call was fetching the same; this one only waited.
    pub coalesced: bool,
    /// Each provider asked, in the order given.
    pub per_provider: Vec<ProviderStats>,
}

impl FetchStats {
    pub(crate) fn absorb(&mut self, other: Self) {
        self.bytes_received += other.bytes_received;
        self.payload_bytes += other.payload_bytes;
        self.resumed_bytes += other.resumed_bytes;
        for theirs in other.per_provider {
            match self.per_provider.iter_mut().find(|ours| ours.node == theirs.node) {
                Some(ours) => {
                    ours.bytes += theirs.bytes;
                    ours.streams += theirs.streams;
                    ours.fault = theirs.fault.or(ours.fault.take());
                }
                None => self.per_provider.push(theirs),
            }
        }
    }
}

type Key = (Hash, Option<(u64, u64)>);
type Failure = Mutex<Option<(u64, FetchError)>>;

/// The download of one blob (or range) that is under way, and how the last one ended.
#[derive(Debug, Default)]
struct Slot {
    running: tokio::sync::Mutex<u64>,
    failure: Failure,
}

/// Makes overlapping calls for the same bytes share one download.
#[derive(Debug, Default)]
pub(crate) struct Coalescer(Mutex<HashMap<Key, Arc<Slot>>>);

impl Coalescer {
    fn join(&self, key: Key) -> Arc<Slot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().clone()
    }

    fn leave(&self, key: Key, slot: Arc<Slot>) {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(slot);
        if slots.get(&key).is_some_and(|slot| Arc::strong_count(slot) == 1) {
            slots.remove(&key);
        }
    }
}

/// Leaves the slot when the call ends, also when it is dropped.
struct Seat<'a> {
    coalescer: &'a Coalescer,
    key: Key,
    slot: Option<Arc<Slot>>,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.coalescer.leave(self.key, slot);
        }
    }
}

impl BlobStore {
    /// Fetches `hash` (or a range of it) from `providers`, preferring earlier ones. What is here already is not asked
    /// for again; a provider that fails is replaced by the next; a large blob comes from several at once. Overlapping
    /// calls for the same bytes share one download. The blob is kept from collection only until this returns: hold a
    /// [`crate::TempTag`] or set a tag first when it should stay. It is not durable yet: see [`Self::ensure_durable`].
    ///
    /// # Errors
    /// [`FetchError`] names the hash, every provider and why it failed. What arrived is kept for the next attempt.
    pub async fn fetch(
        &self,
        hash: Hash,
        providers: &[NodeId],
        dial: &dyn Dial,
        options: &FetchOptions,
    ) -> Result<FetchStats, FetchError> {
        let local = |source: StoreError| FetchError::Local { hash, source: Arc::new(source) };
        let _kept = self.temp_tag(hash, Format::Raw).await;
        if let BlobState::Complete { size } = self.has(hash).await.map_err(local)? {
            return Ok(FetchStats { resumed_bytes: size, ..FetchStats::default() });
        }
        let key = (hash, options.range);
        let slot = self.0.fetching.join(key);
        let _seat = Seat { coalescer: &self.0.fetching, key, slot: Some(slot.clone()) };
        // The number of downloads that ended before this call: a later failure is one this call waited for.
        let (mut ended, waited, before) = match slot.running.try_lock() {
            Ok(ended) => {
                let before = *ended;
                (ended, false, before)
            }
            Err(_) => {
                let before =
                    slot.failure.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map_or(0, |last| last.0);
                (slot.running.lock().await, true, before)
            }
        };
        if waited {
            let failure = slot.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some((_, error)) = failure.filter(|(number, _)| *number > before) {
                return Err(error);
            }
        }
        let mut result = workers::fetch(self, hash, providers, dial, options).await;
        *ended += 1;
        match &mut result {
            Ok(stats) => stats.coalesced = waited && stats.bytes_received == 0,
            Err(error) => {
                *slot.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some((*ended, error.clone()));
            }
        }
        result
    }
}
