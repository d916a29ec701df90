//! Named tags: what keeps blobs across restarts. A tag is a name, a hash and whether the hash's children belong to it.

use futures::StreamExt;
use iroh_blobs::{BlobFormat, HashAndFormat};
use sinew_crdt_state::ids::Hash;

use crate::error::StoreError;
use crate::store::{BlobStore, Format, from_iroh, to_iroh};

/// A named reference to a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    /// Its name.
    pub name: String,
    /// The blob.
    pub hash: Hash,
    /// Whether the blob's children are kept too.
    pub format: Format,
}

impl BlobStore {
    /// Sets `name` to `hash`, replacing what it named before. The blob need not be here yet. The tag is
    /// durable within half a second unless the disk fails; [`BlobStore::tag_durably`] waits for that.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn tag(&self, name: &str, hash: Hash, format: Format) -> Result<(), StoreError> {
        let _no_gc = self.0.gc.hold_off().await;
        let value = HashAndFormat::new(to_iroh(hash), format.into());
        self.run("set a tag", |store| async move { Ok(store.tags().set(name, value).await?) }).await
    }

    /// Removes `name`; true when it was there.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn untag(&self, name: &str) -> Result<bool, StoreError> {
        let removed = self.run("remove a tag", |store| async move { Ok(store.tags().delete(name).await?) }).await?;
        Ok(removed > 0)
    }

    /// All tags whose names start with `prefix`, by name; `""` gives all.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn tags(&self, prefix: &str) -> Result<Vec<Tag>, StoreError> {
        self.run("list tags", |store| async move {
            let mut found = Vec::new();
            let mut tags = store.tags().list_prefix(prefix).await?;
            while let Some(tag) = tags.next().await {
                let tag = tag?;
                let name = String::from_utf8_lossy(tag.name.as_ref()).into_owned();
                found.push(Tag { name, hash: from_iroh(tag.hash), format: tag.format.into() });
            }
            Ok(found)
        })
        .await
    }
}

impl From<Format> for BlobFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Raw => Self::Raw,
            Format::HashSeq => Self::HashSeq,
        }
    }
}

impl From<BlobFormat> for Format {
    fn from(format: BlobFormat) -> Self {
        match format {
            BlobFormat::Raw => Self::Raw,
            BlobFormat::HashSeq => Self::HashSeq,
        }
    }
}
