//! Durability: what must be on the disk before a hash is announced. The file store commits its database with an fsync
//! but never syncs data files, so that is done here. Waiters share: one round of fsyncs and one commit serve all that
//! were waiting when it began.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use iroh_blobs::HashAndFormat;
use iroh_blobs::api::Store;
use iroh_blobs::api::blobs::BlobStatus;
use sinew_crdt_state::ids::Hash;
use tokio::sync::oneshot;

use crate::error::StoreError;
use crate::store::{BlobStore, Format, to_iroh};

type Outcome = Result<(), Arc<StoreError>>;

#[derive(Debug)]
struct Waiter {
    hashes: Vec<Hash>,
    done: oneshot::Sender<Outcome>,
}

/// The waiters of the next round, and the right to run one.
#[derive(Debug, Default)]
pub(crate) struct Group {
    waiting: Mutex<Vec<Waiter>>,
    leading: tokio::sync::Mutex<()>,
}

impl BlobStore {
    /// Returns once `hash` would survive a power cut: its data, its hash tree and the database entry are synced.
    ///
    /// Calls that overlap share fsyncs, so many small blobs are best made durable together or concurrently. A file added
    /// by reference is its owner's to sync; only the entry that names it is covered.
    ///
    /// # Errors
    /// [`StoreError::NotComplete`] when the blob is not complete here, [`StoreError::Sync`] when the disk refuses.
    pub async fn ensure_durable(&self, hash: Hash) -> Result<(), StoreError> {
        self.ensure_all_durable(&[hash]).await
    }

    /// [`Self::ensure_durable`] for many blobs at the price of one commit.
    ///
    /// # Errors
    /// As [`Self::ensure_durable`]; any one failing fails the call.
    pub async fn ensure_all_durable(&self, hashes: &[Hash]) -> Result<(), StoreError> {
        if hashes.is_empty() {
            return Ok(());
        }
        let group = &self.0.durable;
        loop {
            let (done, mut outcome) = oneshot::channel();
            let waiter = Waiter { hashes: hashes.to_vec(), done };
            group.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(waiter);
            let shared = tokio::select! {
                biased;
                shared = &mut outcome => shared,
                _leader = group.leading.lock() => {
                    if let Ok(outcome) = outcome.try_recv() {
                        Ok(outcome)
                    } else {
                        self.lead().await;
                        outcome.await
                    }
                }
            };
            match shared {
                Ok(result) => return result.map_err(unshare),
                // The leader of our round was cancelled in the middle of it: take part in another one.
                Err(_) => continue,
            }
        }
    }

    /// Runs one round for everybody waiting now.
    async fn lead(&self) {
        let round = std::mem::take(&mut *self.0.durable.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        // Waiters who gave up need no fsync.
        let round: Vec<Waiter> = round.into_iter().filter(|waiter| !waiter.done.is_closed()).collect();
        let hashes: BTreeSet<Hash> = round.iter().flat_map(|waiter| waiter.hashes.iter().copied()).collect();
        let outcome = match self.sync_round(hashes).await {
            // One bad hash must not fail the others: let each waiter have a round of its own.
            Err(_) if round.len() > 1 => {
                for waiter in round {
                    let outcome = self.sync_round(waiter.hashes.iter().copied().collect()).await;
                    let _ = waiter.done.send(outcome.map_err(Arc::new));
                }
                return;
            }
            outcome => outcome.map_err(Arc::new),
        };
        for waiter in round {
            let _ = waiter.done.send(outcome.clone());
        }
    }

    async fn sync_round(&self, hashes: BTreeSet<Hash>) -> Result<(), StoreError> {
        // One and the same run of the database throughout: were it to die and be reopened in between, a commit of the
        // new one would say nothing about what the old one lost.
        let store = self.files()?;
        let result = self.sync_round_on(&store, hashes).await;
        if matches!(result, Err(StoreError::Backend { .. })) {
            self.heal().await;
        }
        result
    }

    async fn sync_round_on(&self, store: &Store, hashes: BTreeSet<Hash>) -> Result<(), StoreError> {
        let lookups = hashes.into_iter().map(|hash| async move { (hash, store.status(to_iroh(hash)).await) });
        let mut files = Vec::new();
        for (hash, status) in futures::future::join_all(lookups).await {
            match status.map_err(|error| StoreError::backend("look up a blob", error))? {
                BlobStatus::Complete { size } if size > self.0.options.inline_max => files.push(hash),
                BlobStatus::Complete { .. } => {}
                _ => return Err(StoreError::NotComplete { hash }),
            }
        }
        if !files.is_empty() {
            // Data before the entry that vouches for it.
            let paths: Vec<PathBuf> =
                files.iter().flat_map(|hash| [self.0.data_file(*hash), self.0.outboard_file(*hash)]).collect();
            let dir = self.0.dir.join("data");
            let synced = tokio::task::spawn_blocking(move || sync_files(&paths, &dir)).await;
            synced.map_err(|error| StoreError::Backend { action: "sync files", source: io::Error::other(error) })??;
        }
        commit(store).await
    }

    /// Sets `name` to `hash` like [`Self::tag`] and returns once both the blob, with its children where they belong to it, and
    /// the tag would survive a power cut.
    ///
    /// # Errors
    /// As [`Self::ensure_durable`].
    pub async fn tag_durably(&self, name: &str, hash: Hash, format: Format) -> Result<(), StoreError> {
        let mut hashes = vec![hash];
        if format == Format::HashSeq {
            hashes.extend(self.hash_seq(hash).await.unwrap_or_default());
        }
        self.ensure_all_durable(&hashes).await?;
        let _no_gc = self.0.gc.hold_off().await;
        let store = self.files()?;
        let value = HashAndFormat::new(to_iroh(hash), format.into());
        let set = store.tags().set(name, value).await;
        let result = match set.map_err(|error| StoreError::backend("set a tag", error)) {
            Ok(()) => commit(&store).await,
            Err(error) => Err(error),
        };
        if result.is_err() {
            self.heal().await;
        }
        result
    }
}

/// Ends the open transaction, whose commit is an fsync; fails if that failed.
async fn commit(store: &Store) -> Result<(), StoreError> {
    store.sync_db().await.map_err(|error| StoreError::backend("commit", error))
}

fn sync_files(paths: &[PathBuf], dir: &Path) -> Result<(), StoreError> {
    let sync = |path: &Path| match fs::File::open(path).and_then(|file| file.sync_all()) {
        // A small hash tree lives in the database, and referenced data elsewhere.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(StoreError::Sync { path: path.to_owned(), source }),
        Ok(()) => Ok(()),
    };
    paths.iter().try_for_each(|path| sync(path))?;
    sync(dir)
}

fn unshare(error: Arc<StoreError>) -> StoreError {
    match Arc::try_unwrap(error) {
        Ok(error) => error,
        Err(shared) => match &*shared {
            StoreError::NotComplete { hash } => StoreError::NotComplete { hash: *hash },
            _ => StoreError::Shared(shared),
        },
    }
}
