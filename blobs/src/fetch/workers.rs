//! Runs a download: one worker per provider, all in the caller's task, each asking the plan for its next part.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use iroh_blobs::protocol::{ChunkRanges, ChunkRangesExt, GetRequest};
use sinew_crdt_state::ids::{Hash, NodeId};
use tokio::sync::Notify;

use super::plan::{Next, Plan};
use super::transfer::{GROUP_BYTES, Stop, Transfer, Verdict, Watch};
use super::{Dial, FetchError, FetchOptions, FetchProgress, FetchStats, ProviderStats};
use crate::error::{AddError, ProviderFault, StoreError};
use crate::space::is_full;
use crate::store::{BlobStore, to_iroh};
use crate::stream::Meter;

/// Verified bytes after which a provider has earned its retries back.
const PROGRESS: u64 = 1 << 20;
/// Streams to one provider in one download, whatever progress they make: a bound, never met in ordinary use.
const STREAMS_MAX: u32 = 4096;
/// Pause before a failed provider is asked again, doubled each time: a restarting daemon needs about this long.
const BACKOFF: Duration = Duration::from_millis(100);
/// Bytes between two progress reports.
const REPORT_EVERY: u64 = 256 << 10;

/// What the workers of one download share.
struct Shared<'a> {
    store: &'a BlobStore,
    hash: Hash,
    dial: &'a dyn Dial,
    options: &'a FetchOptions,
    wanted: ChunkRanges,
    resumed: u64,
    state: Mutex<State>,
    /// A part was handed back, a size became known or everything ended.
    changed: Notify,
}

struct State {
    plan: Plan,
    stats: FetchStats,
    reported: u64,
    /// The end of everything, for a reason that is not a provider's.
    fatal: Option<FetchError>,
}

impl State {
    /// The first reason to give up is the one reported.
    fn fail(&mut self, error: FetchError) {
        if self.fatal.is_none() {
            self.fatal = Some(error);
        }
    }
}

/// Fetches what is missing of `hash`. The caller pins it.
pub(super) async fn fetch(
    store: &BlobStore,
    hash: Hash,
    providers: &[NodeId],
    dial: &dyn Dial,
    options: &FetchOptions,
) -> Result<FetchStats, FetchError> {
    let local = |source: StoreError| FetchError::Local { hash, source: Arc::new(source) };
    let wanted = match options.range {
        None => ChunkRanges::all(),
        // Whole chunk groups: the store keeps no hashes below them, so a part of one could never be read back verified.
        Some((offset, len)) => {
            let end = offset.saturating_add(len);
            ChunkRanges::bytes(offset - offset % GROUP_BYTES..end.checked_next_multiple_of(GROUP_BYTES).unwrap_or(end))
        }
    };
    let have = have(store, hash).await.map_err(local)?;
    let missing = &wanted - &have.ranges;
    let resumed = {
        let mut here = have.clone();
        here.ranges = &here.ranges & &wanted;
        here.total_bytes()
    };
    let mut stats = FetchStats { resumed_bytes: resumed, ..FetchStats::default() };
    if missing.is_empty() {
        return Ok(stats);
    }
    if providers.is_empty() {
        return Err(FetchError::NoProviders { hash });
    }
    let blank = |node: &NodeId| ProviderStats { node: *node, bytes: 0, streams: 0, fault: None };
    stats.per_provider = providers.iter().map(blank).collect();
    let state = State { plan: Plan::new(missing, providers.len()), stats, reported: 0, fatal: None };
    let shared =
        Shared { store, hash, dial, options, wanted, resumed, state: Mutex::new(state), changed: Notify::new() };
    let mut workers: FuturesUnordered<_> = (0..providers.len()).map(|me| shared.work(me)).collect();
    while workers.next().await.is_some() {}
    drop(workers);
    shared.conclude().await
}

async fn have(store: &BlobStore, hash: Hash) -> Result<iroh_blobs::api::blobs::Bitfield, StoreError> {
    store.run("look at a blob", |files| async move { Ok(files.observe(to_iroh(hash)).await?) }).await
}

impl Shared<'_> {
    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Fetches parts until nothing is left or this provider is of no more use.
    async fn work(&self, me: usize) {
        let mut tries_left = self.options.retries;
        let mut backoff = BACKOFF;
        loop {
            let changed = self.changed.notified();
            let next = self.with(|state| if state.fatal.is_some() { Next::Done } else { state.plan.next(me) });
            let part = match next {
                Next::Part(part) => part,
                Next::Wait => {
                    changed.await;
                    continue;
                }
                Next::Done => break,
            };
            let (stop, payload) = self.fetch_part(me, part).await;
            self.changed.notify_waiters();
            let Some(fault) = stop else {
                backoff = BACKOFF;
                continue;
            };
            if payload >= PROGRESS {
                (tries_left, backoff) = (self.options.retries, BACKOFF);
            }
            let streams = self.with(|state| state.stats.per_provider[me].streams);
            if tries_left == 0 || !worth_retrying(&fault) || streams >= STREAMS_MAX {
                break;
            }
            tries_left -= 1;
            if !self.rest(backoff).await {
                break;
            }
            backoff *= 2;
        }
        self.with(|state| state.plan.retire(me));
        // Somebody waiting may now be the last one and should take everything.
        self.changed.notify_waiters();
    }

    /// Waits before asking again; false when the others finished meanwhile.
    async fn rest(&self, pause: Duration) -> bool {
        let until = tokio::time::Instant::now() + pause;
        loop {
            let changed = self.changed.notified();
            if self.with(|state| state.fatal.is_some() || state.plan.is_over()) {
                return false;
            }
            if tokio::time::timeout_at(until, changed).await.is_err() {
                return true;
            }
        }
    }

    /// One request. Returns the provider's fault, if any, and the verified bytes.
    async fn fetch_part(&self, me: usize, part: ChunkRanges) -> (Option<ProviderFault>, u64) {
        let node = self.with(|state| {
            let provider = &mut state.stats.per_provider[me];
            provider.streams += 1;
            provider.node
        });
        let meter = Meter::default();
        let mut watch = Watcher { shared: self, me, payload: 0, full: None };
        let result = match self.store.files() {
            Err(error) => Err(Stop::Local(error)),
            Ok(files) => {
                let request = GetRequest::blob_ranges(to_iroh(self.hash), part);
                let transfer = Transfer {
                    files: &files,
                    dial: self.dial,
                    node,
                    request,
                    children: &[],
                    stall: self.options.stall_timeout,
                    meter: meter.clone(),
                };
                transfer.run(&mut watch).await
            }
        };
        let (payload, full) = (watch.payload, watch.full.take());
        let here = have(self.store, self.hash).await;
        let fault = self.with(|state| {
            state.stats.bytes_received += meter.bytes();
            let whole = match &here {
                Ok(here) => state.plan.finish(me, &here.ranges, here.is_validated()),
                Err(_) => state.plan.finish(me, &ChunkRanges::empty(), false),
            };
            let fault = match result {
                Err(Stop::Fault(fault)) => Some(fault),
                Err(Stop::Local(error)) => {
                    state.fail(self.local(error));
                    return None;
                }
                Err(Stop::Unwanted) => {
                    let source = Arc::new(full.unwrap_or(AddError::Store(StoreError::Closed)));
                    state.fail(FetchError::NoSpace { hash: self.hash, source });
                    return None;
                }
                // It says that was all, and it was not.
                Ok(()) if !whole => Some(ProviderFault::Ended),
                Ok(()) => None,
            };
            if fault.is_some() {
                state.plan.distrust(me);
            }
            let provider = &mut state.stats.per_provider[me];
            provider.bytes += meter.bytes();
            if fault.is_some() {
                provider.fault.clone_from(&fault);
            }
            fault
        });
        if let Err(error) = here {
            let error = self.local(error);
            self.with(|state| state.fail(error));
        }
        (fault, payload)
    }

    fn local(&self, error: StoreError) -> FetchError {
        match error {
            StoreError::Backend { source, .. } if is_full(&source) => {
                FetchError::NoSpace { hash: self.hash, source: Arc::new(self.store.0.space.full(0)) }
            }
            error => FetchError::Local { hash: self.hash, source: Arc::new(error) },
        }
    }

    /// The result, once every worker has ended.
    async fn conclude(self) -> Result<FetchStats, FetchError> {
        let (store, hash) = (self.store, self.hash);
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = state.fatal {
            store.heal().await;
            return Err(error);
        }
        let here = have(store, hash).await.map_err(|error| FetchError::Local { hash, source: Arc::new(error) })?;
        if (&self.wanted - &here.ranges).is_empty() {
            self.options.on_progress.iter().for_each(|report| {
                report(FetchProgress {
                    fetched: state.stats.payload_bytes,
                    resumed: self.resumed,
                    size: state.plan.size(),
                });
            });
            return Ok(state.stats);
        }
        let fault = |provider: ProviderStats| (provider.node, provider.fault.unwrap_or(ProviderFault::Ended));
        Err(FetchError::AllFailed { hash, faults: state.stats.per_provider.into_iter().map(fault).collect() })
    }
}

/// Whether asking the same provider again can give another answer.
pub(super) fn worth_retrying(fault: &ProviderFault) -> bool {
    match fault {
        ProviderFault::Unreachable(_) | ProviderFault::Ended | ProviderFault::Cut(_) | ProviderFault::Stalled(_) => {
            true
        }
        ProviderFault::Missing | ProviderFault::Corrupt | ProviderFault::TooLarge { .. } => false,
    }
}

struct Watcher<'a> {
    shared: &'a Shared<'a>,
    me: usize,
    payload: u64,
    full: Option<AddError>,
}

impl Watch for Watcher<'_> {
    fn header(&mut self, _hash: Hash, size: u64) -> Verdict {
        let max = self.shared.options.max_size;
        let asked = self.shared.options.range.map_or(size, |(offset, len)| len.min(size.saturating_sub(offset)));
        if asked > max {
            return Verdict::TooLarge { max };
        }
        let here = self.shared.resumed + self.shared.with(|state| state.stats.payload_bytes);
        if let Err(full) = self.shared.store.0.space.check(asked.saturating_sub(here)) {
            self.full = Some(full);
            return Verdict::Unwanted;
        }
        self.shared.with(|state| state.plan.announce(self.me, size));
        self.shared.changed.notify_waiters();
        Verdict::Take
    }

    fn payload(&mut self, bytes: u64) {
        self.payload += bytes;
        let report = self.shared.with(|state| {
            state.stats.payload_bytes += bytes;
            let fetched = state.stats.payload_bytes;
            (fetched - state.reported >= REPORT_EVERY).then(|| {
                state.reported = fetched;
                FetchProgress { fetched, resumed: self.shared.resumed, size: state.plan.size() }
            })
        });
        if let (Some(progress), Some(on_progress)) = (report, &self.shared.options.on_progress) {
            on_progress(progress);
        }
    }
}
