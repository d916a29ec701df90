//! Lets go of what this node no longer needs: outputs of jobs that the ledger has forgotten, once they are old enough, and work
//! directories that belong to no job. Only what Sinew itself made and named is ever looked at.

use serde::{Deserialize, Serialize};
use sinew_blobs::{BlobStore, Format, StoreError};
use sinew_crdt_state::ids::JobId;

use crate::clock::unix_ms;
use crate::daemon::Shared;
use crate::job_blobs::{is_note, job_tag_prefix};
use crate::tasks::TaskHost;

/// Tags that say when a job was forgotten begin with this.
const FORGOTTEN: &str = "forgotten/";

/// Something that was, or would be, removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leftover {
    /// `outputs`, `work`, or what a runner calls its own.
    pub kind: String,
    /// Which.
    pub name: String,
    /// Bytes, where that is known.
    pub bytes: Option<u64>,
}

/// Notes that the ledger has forgotten a job: the time of its outputs runs from now.
///
/// # Errors
/// [`StoreError`].
pub async fn forgot(store: &BlobStore, job: JobId) -> Result<(), StoreError> {
    let Some(any) = store.tags(&job_tag_prefix(job)).await?.into_iter().next() else { return Ok(()) };
    store.tag(&format!("{FORGOTTEN}{job}/{}", unix_ms()), any.hash, Format::Raw).await
}

/// Lets go of the outputs of jobs that were forgotten `kept_ms` ago or longer.
///
/// # Errors
/// [`StoreError`].
pub async fn outputs(store: &BlobStore, kept_ms: u64, dry_run: bool) -> Result<Vec<Leftover>, StoreError> {
    let mut found = Vec::new();
    for mark in store.tags(FORGOTTEN).await? {
        let parts = mark.name.strip_prefix(FORGOTTEN).and_then(|rest| rest.split_once('/'));
        let parsed = parts.and_then(|(job, at)| Some((job.parse::<JobId>().ok()?, at.parse::<u64>().ok()?)));
        let Some((job, at)) = parsed else { continue };
        if unix_ms().saturating_sub(at) < kept_ms {
            continue;
        }
        let mut bytes = 0_u64;
        for tag in store.tags(&job_tag_prefix(job)).await? {
            if !is_note(&tag.name) {
                bytes += store.reader(tag.hash).await.map_or(0, |reader| reader.size());
            }
            if !dry_run {
                store.untag(&tag.name).await?;
            }
        }
        if !dry_run {
            // Last, so that a crash in between leaves a mark.
            store.untag(&mark.name).await?;
        }
        found.push(Leftover { kind: "outputs".to_owned(), name: job.to_string(), bytes: Some(bytes) });
    }
    Ok(found)
}

/// Removes everything that is not needed, or says what would be. Outputs of forgotten jobs count once that is `kept_ms` ago.
///
/// # Errors
/// [`StoreError`].
pub async fn prune(shared: &Shared, host: &TaskHost, kept_ms: u64, dry_run: bool) -> Result<Vec<Leftover>, StoreError> {
    let mut found = outputs(&shared.store, kept_ms, dry_run).await?;
    found.extend(host.leftovers(dry_run).await);
    if !dry_run {
        let collected = shared.store.run_gc_once().await?;
        let gone = collected.before.saturating_sub(collected.after);
        if gone > 0 {
            let name = format!("{gone} that nothing refers to");
            found.push(Leftover { kind: "blobs".to_owned(), name, bytes: None });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use sinew_blobs::StoreOptions;

    use super::*;
    use crate::job_blobs::job_tag;

    #[tokio::test]
    async fn outputs_of_a_forgotten_job_go_when_they_are_old() {
        let dir = tempfile::tempdir().expect("dir");
        let store = BlobStore::open(dir.path(), StoreOptions::default()).await.expect("store");
        let (forgotten, live) = (JobId([1; 32]), JobId([2; 32]));
        let mut hashes = Vec::new();
        for (job, text) in [(forgotten, "one"), (forgotten, "two"), (live, "three")] {
            let added = store.add_bytes(text.as_bytes().to_vec()).await.expect("add");
            store.tag(&job_tag(job, added.hash), added.hash, Format::Raw).await.expect("tag");
            hashes.push(added.hash);
        }
        // A user's own names are nobody else's.
        store.tag("forgotten/mine", hashes[2], Format::Raw).await.expect("tag");
        forgot(&store, forgotten).await.expect("note");
        forgot(&store, JobId([3; 32])).await.expect("a job without outputs");
        let day = 86_400_000;
        assert_eq!(outputs(&store, day, false).await.expect("outputs"), []);
        let expected =
            Leftover { kind: "outputs".to_owned(), name: forgotten.to_string(), bytes: Some("onetwo".len() as u64) };
        assert_eq!(outputs(&store, 0, true).await.expect("outputs"), std::slice::from_ref(&expected), "only told");
        assert_eq!(outputs(&store, 0, false).await.expect("outputs"), [expected]);
        assert_eq!(outputs(&store, 0, false).await.expect("outputs"), [], "once");
        store.run_gc_once().await.expect("gc");
        let mut kept = Vec::new();
        for hash in hashes {
            kept.push(store.reader(hash).await.is_ok());
        }
        assert_eq!(kept, [false, false, true]);
        store.shutdown().await;
    }
}
