//! Collection of unreferenced blobs. Roots are tags, temporary tags and whatever the caller's callback names.
//!
//! iroh-blobs 0.104 keeps its mark and sweep private; all it offers is a loop that calls a callback before each run and
//! ends for good after one error. So the loop is handed a callback that waits for a ticket: runs happen when *we* say so,
//! the next call of the callback means the last run succeeded, and a dropped ticket means the loop died, in which case
//! the store is reopened with a new one.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use iroh_blobs::protocol::ChunkRanges;
use iroh_blobs::store::{GcConfig, ProtectOutcome};
use sinew_crdt_state::ids::Hash;
use tokio::sync::{RwLock, RwLockReadGuard, mpsc, oneshot};
use tokio::task::AbortHandle;

use crate::error::StoreError;
use crate::store::{BlobStore, Format, Inner, to_iroh};

/// How often an idle node looks for garbage: rarely enough not to matter, often enough that a full disk recovers.
const INTERVAL: Duration = Duration::from_secs(300);
/// Pause of iroh's loop between runs; it is also how long the end of a run takes to be noticed.
const LOOP_PAUSE: Duration = Duration::from_millis(10);

/// Names further blobs that must stay; `None` skips this collection, for when the answer is not known right now.
pub type ProtectFn = Arc<dyn Fn() -> BoxFuture<'static, Option<Vec<(Hash, Format)>>> + Send + Sync>;

/// When and around what collection happens.
#[derive(Clone)]
pub struct GcOptions {
    /// Time between collections; `None` collects only when asked to. *Default 5 minutes.*
    pub interval: Option<Duration>,
    /// Asked before each collection.
    pub protect: Option<ProtectFn>,
}

impl Default for GcOptions {
    fn default() -> Self {
        Self { interval: Some(INTERVAL), protect: None }
    }
}

impl std::fmt::Debug for GcOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let protect = self.protect.is_some();
        f.debug_struct("GcOptions").field("interval", &self.interval).field("protect", &protect).finish()
    }
}

/// What one collection did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GcStats {
    /// Blobs before.
    pub before: u64,
    /// Blobs after.
    pub after: u64,
    /// The callback asked to skip this one.
    pub skipped: bool,
}

/// Orders collections against pins and imports.
#[derive(Debug, Default)]
pub(crate) struct GcState {
    /// Written while a collection runs. Pinning an existing blob reads it, so no pin slips in between mark and sweep.
    running: RwLock<()>,
    /// Odd while one runs; an import that sees it change checks that its blob survived.
    epoch: AtomicU64,
    task: Mutex<Option<AbortHandle>>,
    /// Counts collections that took something away.
    taken: tokio::sync::watch::Sender<u64>,
}

impl GcState {
    pub(crate) async fn hold_off(&self) -> RwLockReadGuard<'_, ()> {
        self.running.read().await
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    pub(crate) fn stop(&self) {
        if let Some(task) = self.task.lock().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
    }
}

impl Drop for GcState {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Marks the epoch odd while it lives, also when the collecting future is dropped.
struct Running<'a>(&'a AtomicU64);

impl<'a> Running<'a> {
    fn start(epoch: &'a AtomicU64) -> Self {
        epoch.fetch_add(1, Ordering::SeqCst);
        Self(epoch)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// One permission to collect.
#[derive(Debug)]
pub(crate) struct Ticket {
    keep: HashSet<iroh_blobs::Hash>,
    done: oneshot::Sender<()>,
}

pub(crate) type TicketSender = mpsc::UnboundedSender<Ticket>;

/// The waiting side, owned by the callback and so by iroh's loop alone.
struct Gate {
    tickets: tokio::sync::Mutex<mpsc::UnboundedReceiver<Ticket>>,
    last: Mutex<Option<oneshot::Sender<()>>>,
    closed: Arc<AtomicBool>,
}

impl Gate {
    async fn pass(&self, live: &mut HashSet<iroh_blobs::Hash>) -> ProtectOutcome {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(done) = last {
            let _ = done.send(());
        }
        let ticket = self.tickets.lock().await.recv().await;
        let Some(ticket) = ticket else {
            // Nobody will ask again. With the database closed the run fails and ends the loop, which is what frees the
            // store; with it open a run would delete everything that only we know to be in use.
            if self.closed.load(Ordering::Acquire) {
                return ProtectOutcome::Continue;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            return ProtectOutcome::Abort;
        };
        live.extend(ticket.keep);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(ticket.done);
        ProtectOutcome::Continue
    }
}

/// A sender of tickets and the configuration whose loop takes them. `closed` is set once the database is closed.
pub(crate) fn channel(closed: Arc<AtomicBool>) -> (TicketSender, GcConfig) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let tickets = tokio::sync::Mutex::new(receiver);
    let gate = Arc::new(Gate { tickets, last: Mutex::new(None), closed });
    let add_protected: iroh_blobs::store::ProtectCb = Arc::new(move |live| {
        let gate = gate.clone();
        Box::pin(async move { gate.pass(live).await })
    });
    (sender, GcConfig { interval: LOOP_PAUSE, add_protected: Some(add_protected) })
}

/// Starts the periodic collection, which ends with the store.
pub(crate) fn spawn(inner: &Arc<Inner>) {
    let Some(interval) = inner.options.gc.interval else { return };
    let store = Arc::downgrade(inner);
    let task = tokio::spawn(async move {
        loop {
            tokio::time::sleep(interval).await;
            let Some(inner) = store.upgrade() else { return };
            match BlobStore(inner).run_gc_once().await {
                Ok(stats) => tracing::debug!(?stats, "collected blobs"),
                Err(StoreError::Closed) => return,
                Err(error) => tracing::warn!(%error, "collecting blobs failed; trying again later"),
            }
        }
    });
    *inner.gc.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task.abort_handle());
}

impl BlobStore {
    /// Changes with every collection that took something away.
    #[must_use]
    pub fn collections(&self) -> tokio::sync::watch::Receiver<u64> {
        self.0.gc.taken.subscribe()
    }

    /// Deletes every blob that nothing refers to. Imports and reads go on meanwhile; new temporary tags wait.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails; it is reopened then, so a later collection can succeed.
    pub async fn run_gc_once(&self) -> Result<GcStats, StoreError> {
        let extra = match &self.0.options.gc.protect {
            Some(protect) => match protect().await {
                Some(extra) => extra,
                None => return Ok(GcStats { skipped: true, ..GcStats::default() }),
            },
            None => Vec::new(),
        };
        // On a task of its own: dropping this call must not let pins in while the file store still deletes.
        let store = self.clone();
        let run = tokio::spawn(async move { store.collect(extra).await });
        run.await.map_err(|error| StoreError::Backend { action: "collect blobs", source: io::Error::other(error) })?
    }

    async fn collect(&self, extra: Vec<(Hash, Format)>) -> Result<GcStats, StoreError> {
        let _exclusive = self.0.gc.running.write().await;
        let _running = Running::start(&self.0.gc.epoch);
        let before = self.list().await?.len() as u64;
        let keep = self.closure(self.0.pins.list().into_iter().chain(extra)).await?;
        let (done, finished) = oneshot::channel();
        let tickets = self.tickets()?;
        if tickets.send(Ticket { keep, done }).is_err() || finished.await.is_err() {
            self.replace_collector(&tickets).await;
            let source = io::Error::other("the collector of the file store ended");
            return Err(StoreError::Backend { action: "collect blobs", source });
        }
        let after = self.list().await?.len() as u64;
        if after < before {
            self.0.gc.taken.send_modify(|n| *n += 1);
        }
        Ok(GcStats { before, after, skipped: false })
    }

    /// The given blobs and the children of those that are hash sequences, as far as they are here.
    async fn closure(
        &self,
        roots: impl Iterator<Item = (Hash, Format)>,
    ) -> Result<HashSet<iroh_blobs::Hash>, StoreError> {
        let files = self.files()?;
        let mut keep = HashSet::new();
        for (hash, format) in roots {
            keep.insert(to_iroh(hash));
            if format == Format::HashSeq {
                let mut children = Box::pin(files.export_bao(to_iroh(hash), ChunkRanges::all()).hashes());
                while let Some(child) = children.next().await {
                    // A sequence that is not (all) here yet has no children here either.
                    keep.extend(child.ok());
                }
            }
        }
        Ok(keep)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreOptions;

    #[tokio::test]
    async fn a_dead_collector_is_replaced_and_guards_hold_on() {
        let dir = tempfile::tempdir().expect("dir");
        let options =
            StoreOptions { reserve: 0, gc: GcOptions { interval: None, protect: None }, ..StoreOptions::default() };
        let store = BlobStore::open(dir.path(), options).await.expect("open");
        let held = store.add_bytes(vec![1; 100_000]).await.expect("add");
        let lost = store.add_bytes(vec![2; 100_000]).await.expect("add").hash;
        let tickets = store.tickets().expect("open");
        store.replace_collector(&tickets).await;
        assert!(!store.tickets().expect("open").same_channel(&tickets), "it was replaced");
        let now = store.tickets().expect("open");
        store.replace_collector(&tickets).await;
        assert!(store.tickets().expect("open").same_channel(&now), "once is enough");
        let stats = store.run_gc_once().await.expect("the new one collects");
        assert_eq!((stats.before, stats.after), (2, 1));
        store.read(held.hash, u64::MAX).await.expect("the guard is older than the collector and still counts");
        assert!(store.read(lost, u64::MAX).await.is_err());
        store.shutdown().await;
    }

    #[tokio::test]
    async fn collection_happens_by_itself() {
        let dir = tempfile::tempdir().expect("dir");
        let gc = GcOptions { interval: Some(Duration::from_millis(20)), protect: None };
        let options = StoreOptions { reserve: 0, gc, ..StoreOptions::default() };
        let store = BlobStore::open(dir.path(), options).await.expect("open");
        drop(store.add_bytes(vec![1; 100]).await.expect("add"));
        let gone = async {
            while !store.list().await.expect("list").is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), gone).await.expect("collected");
        store.shutdown().await;
    }
}
