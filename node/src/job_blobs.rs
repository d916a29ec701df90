//! The blobs that this node keeps for jobs, each by a tag of its job, and its notes of which other nodes keep them too.
//!
//! Which jobs have any is known in memory, so that the end of a job that has none asks nothing of the store: most small jobs
//! come and go without a blob. What a blob holds, and when the store collects it, is the store's business.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Mutex, PoisonError};

use sinew_blobs::{BlobState, BlobStore, Format, StoreError};
use sinew_crdt_state::ids::{Hash, JobId, NodeId};
use sinew_crdt_state::spec::BlobRef;
use sinew_scheduler::io::SharedBlobs;

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

/// The note that `node` keeps `hash` for `job` too. It is a tag beside the job's own, and goes with it.
fn note_tag(job: JobId, hash: Hash, node: NodeId) -> String {
    format!("{PREFIX}{job}/{hash}/{node}")
}

/// Whether a tag is a note.
#[must_use]
pub fn is_note(tag: &str) -> bool {
    tag.strip_prefix(PREFIX).is_some_and(|rest| rest.split('/').count() == 3)
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

    /// Which of these are here, whole, and kept for the job.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn kept(&self, job: JobId, hashes: &[Hash]) -> Result<Vec<Hash>, StoreError> {
        if !self.has(job) {
            return Ok(Vec::new());
        }
        let tags = self.store.tags(&job_tag_prefix(job)).await?;
        let tagged: HashSet<Hash> = tags.iter().filter(|tag| !is_note(&tag.name)).map(|tag| tag.hash).collect();
        let mut kept = Vec::new();
        for hash in hashes {
            if tagged.contains(hash) && self.store.is_whole(*hash).await? {
                kept.push(*hash);
            }
        }
        Ok(kept)
    }

    /// Notes that these nodes keep the blobs for the job too, or no longer do. Of a blob that is not kept here nothing is noted.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn note(&self, job: JobId, blobs: &[Hash], add: &[NodeId], remove: &[NodeId]) -> Result<(), StoreError> {
        for hash in blobs {
            let own = job_tag(job, *hash);
            if !self.store.tags(&own).await?.iter().any(|tag| tag.name == own) {
                // Let go of in the meantime: a note would keep it for ever.
                continue;
            }
            for node in add {
                self.store.tag(&note_tag(job, *hash, *node), *hash, Format::Raw).await?;
            }
            for node in remove {
                self.store.untag(&note_tag(job, *hash, *node)).await?;
            }
        }
        Ok(())
    }

    /// What is here, whole, kept for a job, and noted to be on one of these nodes too, or among `also`, with all holders noted.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn shared_with(
        &self,
        nodes: &BTreeSet<NodeId>,
        also: &[(JobId, Vec<Hash>)],
    ) -> Result<Vec<SharedBlobs>, StoreError> {
        let also: HashSet<(JobId, Hash)> =
            also.iter().flat_map(|(job, hashes)| hashes.iter().map(|hash| (*job, *hash))).collect();
        let mut noted: BTreeMap<(JobId, Hash), BTreeSet<NodeId>> = BTreeMap::new();
        for tag in self.store.tags(PREFIX).await? {
            let mut parts = tag.name.strip_prefix(PREFIX).unwrap_or_default().split('/');
            let (job, _, other) = (parts.next(), parts.next(), parts.next());
            let Some(job) = job.and_then(|job| job.parse().ok()) else { continue };
            let holders = noted.entry((job, tag.hash)).or_default();
            holders.extend(other.and_then(|other| other.parse::<NodeId>().ok()));
        }
        noted.retain(|key, holders| !holders.is_disjoint(nodes) || also.contains(key));
        let mut shared: BTreeMap<(JobId, BTreeSet<NodeId>), Vec<BlobRef>> = BTreeMap::new();
        for ((job, hash), holders) in noted {
            if self.store.is_whole(hash).await?
                && let BlobState::Complete { size } = self.store.has(hash).await?
            {
                shared.entry((job, holders)).or_default().push(BlobRef { hash, size });
            }
        }
        Ok(shared.into_iter().map(|((job, holders), blobs)| SharedBlobs { job, blobs, holders }).collect())
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
    async fn notes_of_other_holders_go_with_their_blobs() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = BlobStore::open(dir.path(), StoreOptions::default()).await.expect("a store");
        let blobs = JobBlobs::open(store.clone()).await.expect("opens");
        let (one, two) = (JobId([1; 32]), JobId([2; 32]));
        let (near, far) = (NodeId([7; 32]), NodeId([8; 32]));
        let blob = store.add_bytes(b"shared".to_vec()).await.expect("added");
        let hash = blob.hash;
        for job in [one, two] {
            blobs.keep(job, hash).await.expect("kept");
            blobs.note(job, &[hash], &[near], &[]).await.expect("noted");
        }
        let missing = Hash([9; 32]);
        assert_eq!(blobs.kept(one, &[hash, missing]).await.expect("looked"), [hash]);
        assert_eq!(blobs.kept(JobId([3; 32]), &[hash]).await.expect("looked"), [], "kept for others only");
        let shared = |blobs: Vec<SharedBlobs>| blobs.into_iter().map(|s| (s.job, s.blobs.len())).collect::<Vec<_>>();
        assert_eq!(shared(blobs.shared_with(&[near].into(), &[]).await.expect("listed")), [(one, 1), (two, 1)]);
        blobs.note(one, &[hash], &[far], &[near]).await.expect("noted");
        assert_eq!(shared(blobs.shared_with(&[near].into(), &[]).await.expect("listed")), [(two, 1)]);
        assert_eq!(shared(blobs.shared_with(&[far].into(), &[]).await.expect("listed")), [(one, 1)]);
        let also = [(two, vec![hash]), (JobId([3; 32]), vec![hash]), (two, vec![missing])];
        let listed = blobs.shared_with(&[far].into(), &also).await.expect("listed");
        assert_eq!(listed.iter().map(|s| s.job).collect::<Vec<_>>(), [one, two], "kept for these, noted or not");
        assert_eq!(listed[1].holders, [near].into());
        blobs.let_go(one, &[]).await;
        assert_eq!(shared(blobs.shared_with(&[far].into(), &[]).await.expect("listed")), []);
        drop(blob);
        store.run_gc_once().await.expect("collected");
        assert_eq!(blobs.kept(two, &[hash]).await.expect("looked"), [hash], "the other job keeps it");
        assert_eq!(blobs.kept(one, &[hash]).await.expect("looked"), []);
        store.shutdown().await;
    }

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
