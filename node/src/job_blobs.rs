//! The blobs that this node keeps for jobs, each by a tag of its job.
//!
//! Which jobs have any is known in memory, so that the end of a job that has none asks nothing of the store: most small jobs
//! come and go without a blob. What a blob holds, and when the store collects it, is the store's business.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use sinew_blobs::{BlobStore, Format, StoreError};
use sinew_crdt_state::ids::{Hash, JobId};

/// Tags of jobs begin with this.
const PREFIX: &str = "job/";

/// Tags of a job's blobs begin with this.
#[must_use]
pub fn job_tag_prefix(job: JobId) -> String {
    format!("{PREFIX}{job}/")
}

/// The tag that keeps `hash` for `job`.
#[must_use]
pub fn job_tag(job: JobId, hash: Hash) -> String {
    format!("{PREFIX}{job}/{hash}")
}

/// See the module.
#[derive(Debug)]
pub struct JobBlobs {
    store: BlobStore,
    /// Jobs with a tag; some may have lost theirs to `sinew blob untag`.
    jobs: Mutex<HashSet<JobId>>,
}

impl JobBlobs {
    /// Over a store, in which an earlier run of the daemon may have left tags.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot list its tags.
    pub async fn open(store: BlobStore) -> Result<Self, StoreError> {
        let tags = store.tags(PREFIX).await?;
        let job = |name: &str| name.strip_prefix(PREFIX)?.split_once('/')?.0.parse().ok();
        let jobs = tags.iter().filter_map(|tag| job(&tag.name)).collect();
        Ok(Self { store, jobs: Mutex::new(jobs) })
    }

    /// Keeps a blob for a job. It need not be here yet.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn keep(&self, job: JobId, hash: Hash) -> Result<(), StoreError> {
        // Before the tag is set, so that an end of the job that comes in between finds it.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).insert(job);
        self.store.tag(&job_tag(job, hash), hash, Format::Raw).await
    }

    /// Whether anything may be kept for a job.
    pub fn has(&self, job: JobId) -> bool {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).contains(&job)
    }

    /// Lets go of a job's blobs, but for `kept`.
    pub async fn let_go(&self, job: JobId, kept: &[Hash]) {
        if !self.has(job) {
            return;
        }
        let tags = self.store.tags(&job_tag_prefix(job)).await.unwrap_or_default();
        let (stay, go): (Vec<_>, Vec<_>) = tags.into_iter().partition(|tag| kept.contains(&tag.hash));
        for tag in go {
            if let Err(error) = self.store.untag(&tag.name).await {
                tracing::warn!(tag = tag.name, %error, "cannot remove a tag");
                return;
            }
        }
        if stay.is_empty() {
            self.jobs.lock().unwrap_or_else(PoisonError::into_inner).remove(&job);
        }
    }
}

#[cfg(test)]
mod tests {
    use sinew_blobs::StoreOptions;

    use super::*;

    #[tokio::test]
    async fn tags_go_with_their_job_and_are_known_again_after_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let open = || BlobStore::open(dir.path(), StoreOptions::default());
        let store = open().await.expect("a store");
        let blobs = JobBlobs::open(store.clone()).await.expect("opens");
        let (job, other) = (JobId([1; 32]), JobId([2; 32]));
        let mut hashes = Vec::new();
        for text in ["one", "two"] {
            let added = store.add_bytes(text.as_bytes().to_vec()).await.expect("added");
            blobs.keep(job, added.hash).await.expect("kept");
            hashes.push(added.hash);
        }
        assert!(blobs.has(job) && !blobs.has(other));
        let names = |tags: Vec<sinew_blobs::Tag>| tags.into_iter().map(|t| t.name).collect::<Vec<_>>();
        blobs.let_go(job, &hashes[1..]).await;
        assert_eq!(names(store.tags("").await.expect("tags")), [job_tag(job, hashes[1])]);
        let blobs = JobBlobs::open(store.clone()).await.expect("opens");
        assert!(blobs.has(job), "a tag of an earlier run");
        blobs.let_go(job, &[]).await;
        assert_eq!(names(store.tags("").await.expect("tags")), [""; 0]);
        assert!(!blobs.has(job));
        store.shutdown().await;
    }
}
