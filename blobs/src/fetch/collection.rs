//! Fetching a collection: its root, then its files. Small files come many to a request, so a thousand of them cost a few
//! round trips; a large one met on the way is left for a download of its own, which can use several providers.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use futures::stream::{FuturesUnordered, StreamExt};
use iroh_blobs::protocol::{ChunkRanges, GetRequest};
use sinew_crdt_state::ids::{Hash, NodeId};

use super::plan::LARGE;
use super::transfer::{Stop, Transfer, Verdict, Watch};
use super::workers::worth_retrying;
use super::{Dial, FetchError, FetchOptions, FetchProgress, FetchStats, ProviderStats};
use crate::collection::{Collection, LOOKUPS, META_LEN_MAX, ROOT_LEN_MAX};
use crate::error::{AddError, CollectionError, StoreError};
use crate::inventory::BlobState;
use crate::store::{BlobStore, Format, to_iroh};
use crate::stream::Meter;

/// Files per request: enough to hide a round trip, few enough that providers share the work.
const BATCH: usize = 256;
/// Downloads of left-over files at once: each may use every provider.
const LEFT_AT_ONCE: usize = 4;

struct Shared<'a> {
    store: &'a BlobStore,
    root: Hash,
    links: &'a [Hash],
    dial: &'a dyn Dial,
    options: &'a FetchOptions,
    /// A large file is only put aside when several providers could share it.
    split_large: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    batches: VecDeque<Vec<usize>>,
    large: BTreeSet<Hash>,
    stats: FetchStats,
    size: u64,
    fatal: Option<FetchError>,
}

impl BlobStore {
    /// Fetches the collection `hash`: the root, the list of names and every file. `options.range` is ignored;
    /// `options.max_size` bounds each file. The names are checked before a file is fetched.
    ///
    /// # Errors
    /// As [`Self::fetch`]; [`FetchError::Collection`] when the blob is no collection.
    pub async fn fetch_collection(
        &self,
        hash: Hash,
        providers: &[NodeId],
        dial: &dyn Dial,
        options: &FetchOptions,
    ) -> Result<(Collection, FetchStats), FetchError> {
        let _kept = self.temp_tag(hash, Format::HashSeq).await;
        let bad = |error: CollectionError| FetchError::Collection(Arc::new(error));
        let part = |max_size| FetchOptions { range: None, max_size, on_progress: None, ..options.clone() };
        let mut stats = self.fetch(hash, providers, dial, &part(ROOT_LEN_MAX)).await?;
        let links = self.hash_seq(hash).await.map_err(bad)?;
        let meta = links.first().ok_or(bad(CollectionError::Malformed { hash, reason: "it is empty" }))?;
        stats.absorb(self.fetch(*meta, providers, dial, &part(META_LEN_MAX)).await?);
        self.collection(hash).await.map_err(bad)?;

        let missing = self.missing_links(hash, &links, &mut stats).await?;
        if !missing.is_empty() && providers.is_empty() {
            return Err(FetchError::NoProviders { hash });
        }
        let batches = missing.chunks(BATCH).map(<[usize]>::to_vec).collect();
        let shared = Shared {
            store: self,
            root: hash,
            links: &links,
            dial,
            options,
            split_large: providers.len() > 1,
            state: Mutex::new(State { batches, ..State::default() }),
        };
        let mut workers: FuturesUnordered<_> = providers.iter().map(|node| shared.work(*node)).collect();
        while workers.next().await.is_some() {}
        drop(workers);
        let state = shared.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = state.fatal {
            return Err(error);
        }
        stats.absorb(state.stats);
        // What no batch brought comes one by one, with every provider asked: the large, and leftovers of failures.
        let left = self.missing_links(hash, &links, &mut FetchStats::default()).await?;
        let whole = FetchOptions { range: None, ..options.clone() };
        let mut fetches = FuturesUnordered::new();
        for index in left {
            if fetches.len() == LEFT_AT_ONCE
                && let Some(one) = fetches.next().await
            {
                stats.absorb(one?);
            }
            fetches.push(self.fetch(links[index], providers, dial, &whole));
        }
        while let Some(one) = fetches.next().await {
            stats.absorb(one?);
        }
        drop(fetches);
        let collection = self.collection(hash).await.map_err(bad)?;
        Ok((collection, stats))
    }

    /// The indices of links that are not complete here, each hash once. Counts what is here.
    async fn missing_links(
        &self,
        hash: Hash,
        links: &[Hash],
        stats: &mut FetchStats,
    ) -> Result<Vec<usize>, FetchError> {
        let mut seen = BTreeSet::new();
        let unique: Vec<usize> = (0..links.len()).filter(|index| seen.insert(links[*index])).collect();
        let mut missing = Vec::new();
        for some in unique.chunks(LOOKUPS) {
            let states = futures::future::try_join_all(some.iter().map(|index| self.has(links[*index]))).await;
            let states = states.map_err(|error| FetchError::Local { hash, source: Arc::new(error) })?;
            for (index, state) in some.iter().zip(states) {
                match state {
                    BlobState::Complete { size } => stats.resumed_bytes += size,
                    BlobState::Partial { bytes, .. } => {
                        stats.resumed_bytes += bytes;
                        missing.push(*index);
                    }
                    BlobState::Missing => missing.push(*index),
                }
            }
        }
        Ok(missing)
    }
}

impl Shared<'_> {
    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn fail(&self, error: FetchError) {
        self.with(|state| {
            if state.fatal.is_none() {
                state.fatal = Some(error);
            }
        });
    }

    /// Takes batches until none is left or the provider fails. What it leaves is picked up one by one later.
    async fn work(&self, node: NodeId) {
        let mut tries_left = self.options.retries;
        while let Some(batch) = self.with(|state| state.fatal.is_none().then(|| state.batches.pop_front()).flatten()) {
            match self.fetch_batch(node, &batch).await {
                Ok(()) => {}
                Err(Stop::Unwanted) => self.with(|state| state.batches.push_front(batch)),
                Err(Stop::Local(error)) => {
                    self.fail(FetchError::Local { hash: self.root, source: Arc::new(error) });
                    return;
                }
                Err(Stop::Fault(fault)) => {
                    let retry = tries_left > 0 && worth_retrying(&fault);
                    tries_left = tries_left.saturating_sub(1);
                    self.with(|state| {
                        state.batches.push_front(batch);
                        let fault = Some(fault);
                        let provider = ProviderStats { node, bytes: 0, streams: 0, fault };
                        state.stats.absorb(FetchStats { per_provider: vec![provider], ..FetchStats::default() });
                    });
                    if !retry {
                        return;
                    }
                }
            }
        }
    }

    async fn fetch_batch(&self, node: NodeId, batch: &[usize]) -> Result<(), Stop> {
        let files = self.store.files().map_err(Stop::Local)?;
        let mut request = GetRequest::builder();
        for index in batch {
            let hash = self.links[*index];
            if self.with(|state| state.large.contains(&hash)) {
                continue;
            }
            let have = files.observe(to_iroh(hash)).await;
            let have = have.map_err(|error| Stop::Local(StoreError::backend("look at a blob", error)))?;
            request = request.child(*index as u64, &ChunkRanges::all() - &have.ranges);
        }
        let request = request.build(to_iroh(self.root));
        if request.ranges.is_empty() {
            return Ok(());
        }
        let meter = Meter::default();
        let mut watch = Watcher { shared: self, payload: 0 };
        let transfer = Transfer {
            files: &files,
            dial: self.dial,
            node,
            request,
            children: self.links,
            stall: self.options.stall_timeout,
            meter: meter.clone(),
        };
        let result = transfer.run(&mut watch).await;
        self.with(|state| {
            let bytes = meter.bytes();
            state.stats.absorb(FetchStats {
                bytes_received: bytes,
                per_provider: vec![ProviderStats { node, bytes, streams: 1, fault: None }],
                ..FetchStats::default()
            });
        });
        result
    }
}

struct Watcher<'a> {
    shared: &'a Shared<'a>,
    payload: u64,
}

impl Watch for Watcher<'_> {
    fn header(&mut self, hash: Hash, size: u64) -> Verdict {
        let max = self.shared.options.max_size;
        if size > max {
            return Verdict::TooLarge { max };
        }
        if let Err(full) = self.shared.store.0.space.check(size) {
            let source: Arc<AddError> = Arc::new(full);
            self.shared.fail(FetchError::NoSpace { hash, source });
            return Verdict::Unwanted;
        }
        self.shared.with(|state| {
            if self.shared.split_large && size > LARGE {
                state.large.insert(hash);
                return Verdict::Unwanted;
            }
            state.size += size;
            Verdict::Take
        })
    }

    fn payload(&mut self, bytes: u64) {
        self.payload += bytes;
        let progress = self.shared.with(|state| {
            state.stats.payload_bytes += bytes;
            FetchProgress { fetched: state.stats.payload_bytes, resumed: 0, size: Some(state.size) }
        });
        if let Some(on_progress) = &self.shared.options.on_progress {
            on_progress(progress);
        }
    }
}
