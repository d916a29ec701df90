//! What is here: the state of one blob, the list of all, the sums. Changes nothing.

use std::collections::BTreeSet;
use std::ops::Range;

use futures::StreamExt;
use iroh_blobs::api::blobs::BlobStatus;
use iroh_blobs::protocol::ChunkRanges;
use sinew_crdt_state::ids::Hash;

use crate::error::StoreError;
use crate::store::{BlobStore, from_iroh, to_iroh};

/// How much of a blob is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlobState {
    /// All of it.
    Complete {
        /// Its size in bytes.
        size: u64,
    },
    /// Some of it.
    Partial {
        /// The byte ranges that are here, ascending.
        have: Vec<Range<u64>>,
        /// Their sum.
        bytes: u64,
        /// The size, once a verified last chunk proved it.
        size: Option<u64>,
    },
    /// Nothing of it.
    Missing,
}

/// What a store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreStats {
    /// Complete blobs.
    pub complete: u64,
    /// Their bytes.
    pub complete_bytes: u64,
    /// Blobs that are here in part.
    pub partial: u64,
    /// Bytes free on the store's file system, if the system says.
    pub free_bytes: Option<u64>,
}

impl BlobStore {
    /// How much of `hash` is here.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn has(&self, hash: Hash) -> Result<BlobState, StoreError> {
        let status = self.status(hash).await?;
        match status {
            BlobStatus::Complete { size } => Ok(BlobState::Complete { size }),
            BlobStatus::NotFound => Ok(BlobState::Missing),
            BlobStatus::Partial { .. } => {
                let bits = self
                    .run("look at a partial blob", |store| async move { Ok(store.observe(to_iroh(hash)).await?) })
                    .await?;
                let size = bits.validated_size();
                let have = byte_ranges(&bits.ranges, bits.size());
                Ok(BlobState::Partial { have, bytes: bits.total_bytes(), size })
            }
        }
    }

    /// Whether all of `hash` is here, and the file that holds it has its length: what shows without reading it. The
    /// database alone does not tell when somebody tidied up in the store's directory.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn is_whole(&self, hash: Hash) -> Result<bool, StoreError> {
        let BlobStatus::Complete { size } = self.status(hash).await? else { return Ok(false) };
        if size <= self.0.options.inline_max {
            return Ok(true);
        }
        match tokio::fs::metadata(self.0.data_file(hash)).await {
            Ok(file) => Ok(file.len() == size),
            // One that was added by reference is somewhere else: reading its first byte tells.
            Err(_) => Ok(self.read_range(hash, 0, 1).await.is_ok_and(|byte| byte.len() == 1)),
        }
    }

    /// Every blob of which all is here.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn complete(&self) -> Result<BTreeSet<Hash>, StoreError> {
        let hashes = self.list().await?;
        let whole = |hash: Hash| async move { Ok(self.is_whole(hash).await?.then_some(hash)) };
        let mut whole = futures::stream::iter(hashes.into_iter().map(whole)).buffer_unordered(64);
        let mut found = BTreeSet::new();
        while let Some(hash) = whole.next().await {
            let hash: Result<Option<Hash>, StoreError> = hash;
            found.extend(hash?);
        }
        Ok(found)
    }

    /// Every blob of which anything is here, in no particular order.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn list(&self) -> Result<Vec<Hash>, StoreError> {
        let hashes = self.run("list blobs", |store| async move { Ok(store.list().hashes().await?) }).await?;
        Ok(hashes.into_iter().map(from_iroh).collect())
    }

    /// Counts what is here. Walks all blobs, so it is for people and periodic reports.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn stats(&self) -> Result<StoreStats, StoreError> {
        let mut stats = StoreStats { free_bytes: self.0.space.free(), ..StoreStats::default() };
        let hashes = self.list().await?;
        // The database answers in order; a few questions in flight hide the hops between tasks.
        let mut states = futures::stream::iter(hashes.into_iter().map(|hash| self.status(hash))).buffer_unordered(64);
        while let Some(state) = states.next().await {
            match state? {
                BlobStatus::Complete { size } => {
                    stats.complete += 1;
                    stats.complete_bytes += size;
                }
                BlobStatus::Partial { .. } => stats.partial += 1,
                BlobStatus::NotFound => {}
            }
        }
        Ok(stats)
    }

    pub(crate) async fn status(&self, hash: Hash) -> Result<BlobStatus, StoreError> {
        self.run("look up a blob", |store| async move { Ok(store.status(to_iroh(hash)).await?) }).await
    }
}

/// The byte ranges that chunk ranges cover in a blob of (so far believed) `size` bytes.
fn byte_ranges(ranges: &ChunkRanges, size: u64) -> Vec<Range<u64>> {
    let bounds: Vec<u64> = ranges.boundaries().iter().map(|chunk| chunk.0.saturating_mul(1024).min(size)).collect();
    let pairs = bounds.chunks(2).map(|pair| pair[0]..pair.get(1).copied().unwrap_or(size));
    pairs.filter(|range| !range.is_empty()).collect()
}
