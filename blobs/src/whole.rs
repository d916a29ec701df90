//! A hash for which nobody says whether it is that of a file or of a directory: what is behind it, all of it here or fetched.

use std::sync::Arc;

use sinew_crdt_state::ids::{Hash, NodeId};

use crate::collection::{LOOKUPS, META_LEN_MAX, ROOT_LEN_MAX};
use crate::error::{CollectionError, FetchError, ProviderFault, ReadError, StoreError};
use crate::fetch::{Dial, FetchOptions, FetchStats};
use crate::inventory::BlobState;
use crate::pins::TempTag;
use crate::store::{BlobStore, Format};

/// What is behind a hash, all of which is here.
#[derive(Debug)]
pub struct Whole {
    /// [`Format::HashSeq`] for a directory.
    pub format: Format,
    /// Bytes: of the file, or of all files together.
    pub size: u64,
    /// Keeps all of it from collection until dropped.
    pub tag: TempTag,
}

impl BlobStore {
    /// Fetches what is behind `hash`, a file or a directory, from `providers`. What is here is not asked for again.
    ///
    /// # Errors
    /// As [`Self::fetch`]. Where some provider could not be asked whether `hash` is a directory, that is an error too: the
    /// list of a directory's hashes would be taken for a file.
    pub async fn fetch_whole(
        &self,
        hash: Hash,
        providers: &[NodeId],
        dial: &dyn Dial,
        options: &FetchOptions,
    ) -> Result<(Whole, FetchStats), FetchError> {
        let local = |source: StoreError| FetchError::Local { hash, source: Arc::new(source) };
        let kept = self.temp_tag(hash, Format::Raw).await;
        let mut stats = self.fetch(hash, providers, dial, options).await?;
        if let Some(names) = self.may_list(hash).await.map_err(local)? {
            let is_directory = self.is_known_directory(hash).await.map_err(local)?;
            let part = FetchOptions { range: None, max_size: META_LEN_MAX, on_progress: None, ..options.clone() };
            match self.fetch(names, providers, dial, &part).await {
                Ok(more) => stats.absorb(more),
                Err(error) if is_directory || !is_nowhere(&error) => return Err(error),
                Err(_) => {}
            }
            let is_one = match self.collection(hash).await {
                Ok(_) => true,
                Err(CollectionError::Malformed { .. } | CollectionError::Read(_)) => is_directory,
                Err(error) => return Err(FetchError::Collection(Arc::new(error))),
            };
            if is_one {
                let tag = self.temp_tag(hash, Format::HashSeq).await;
                let (collection, more) = self.fetch_collection(hash, providers, dial, options).await?;
                stats.absorb(more);
                return Ok((Whole { format: Format::HashSeq, size: collection.size().unwrap_or(0), tag }, stats));
            }
        }
        let BlobState::Complete { size } = self.has(hash).await.map_err(local)? else {
            return Err(local(StoreError::NotComplete { hash }));
        };
        Ok((Whole { format: Format::Raw, size, tag: kept }, stats))
    }

    /// What is behind `hash`, if all of it is here.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn whole(&self, hash: Hash) -> Result<Option<Whole>, StoreError> {
        let kept = self.temp_tag(hash, Format::Raw).await;
        let BlobState::Complete { size } = self.has(hash).await? else { return Ok(None) };
        let file = Whole { format: Format::Raw, size, tag: kept };
        if self.may_list(hash).await?.is_none() {
            return Ok(Some(file));
        }
        let tag = self.temp_tag(hash, Format::HashSeq).await;
        let collection = match self.collection(hash).await {
            Ok(collection) => collection,
            Err(CollectionError::Read(ReadError::Store(error))) => return Err(error),
            Err(_) => return Ok((!self.is_known_directory(hash).await?).then_some(file)),
        };
        let mut size = 0;
        for some in collection.entries.chunks(LOOKUPS) {
            for state in futures::future::try_join_all(some.iter().map(|entry| self.has(entry.hash))).await? {
                let BlobState::Complete { size: one } = state else { return Ok(None) };
                size += one;
            }
        }
        Ok(Some(Whole { format: Format::HashSeq, size, tag }))
    }

    /// The hash of the list of names, if the blob has the form of a directory's root. That alone says little: any file whose
    /// length is a multiple of 32 has it.
    async fn may_list(&self, hash: Hash) -> Result<Option<Hash>, StoreError> {
        let BlobState::Complete { size } = self.has(hash).await? else { return Ok(None) };
        if size == 0 || !size.is_multiple_of(Hash::LEN as u64) || size > ROOT_LEN_MAX {
            return Ok(None);
        }
        match self.read_range(hash, 0, Hash::LEN as u64).await {
            Ok(first) => Ok(first[..].try_into().ok().map(Hash)),
            Err(ReadError::Store(error)) => Err(error),
            // It is gone or damaged: its reader is told.
            Err(_) => Ok(None),
        }
    }

    /// Whether a tag says that it is a directory.
    async fn is_known_directory(&self, hash: Hash) -> Result<bool, StoreError> {
        let is = |(tagged, format)| tagged == hash && format == Format::HashSeq;
        let tags = self.tags("").await?;
        Ok(tags.into_iter().any(|tag| is((tag.hash, tag.format))))
    }
}

/// Whether everybody was asked, and nobody has it.
fn is_nowhere(error: &FetchError) -> bool {
    let has_none = |fault: &ProviderFault| matches!(fault, ProviderFault::Missing | ProviderFault::TooLarge { .. });
    match error {
        FetchError::NoProviders { .. } => true,
        FetchError::AllFailed { faults, .. } => faults.iter().all(|(_, fault)| has_none(fault)),
        _ => false,
    }
}
