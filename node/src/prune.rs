//! Lets go of what this node no longer needs: outputs of jobs that the ledger has forgotten, once they are old enough, and work
//! directories that belong to no job. Only what Sinew itself made and named is ever looked at.

use serde::{Deserialize, Serialize};
use sinew_blobs::{BlobStore, Format, StoreError};
use sinew_crdt_state::ids::{Hash, JobId};

use crate::clock::unix_ms;
use crate::daemon::Shared;
use crate::job_blobs::{is_note, job_tag_prefix};
use crate::tasks::TaskHost;

/// Tags that say when a job was forgotten begin with this.
const FORGOTTEN: &str = "forgotten/";

/// Tags of blobs that came in part begin with this.
const PARTIAL: &str = "partial/";

/// What came of a blob whose fetch failed is kept this long for the next try: long enough for a user to try again.
const PARTIAL_KEPT_MS: u64 = 3_600_000;

/// Keeps what is here of a blob for a while.
///
/// # Errors
/// [`StoreError`].
pub async fn keep_partial(store: &BlobStore, hash: Hash) -> Result<(), StoreError> {
    store.tag(&format!("{PARTIAL}{hash}/{}", unix_ms() / PARTIAL_KEPT_MS), hash, Format::Raw).await
}

/// Lets go of what has been kept by [`keep_partial`] for long enough: between one and two times as long as it is meant to be.
///
/// # Errors
/// [`StoreError`].
pub async fn partials(store: &BlobStore, now_ms: u64) -> Result<(), StoreError> {
    for tag in store.tags(PARTIAL).await? {
        let parts = tag.name.strip_prefix(PARTIAL).and_then(|rest| rest.split_once('/'));
        let at = parts.filter(|(hash, _)| hash.parse::<Hash>().is_ok()).and_then(|(_, at)| at.parse::<u64>().ok());
        if at.is_some_and(|at| now_ms / PARTIAL_KEPT_MS > at.saturating_add(1)) {
            store.untag(&tag.name).await?;
        }
    }
    Ok(())
}

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
            store.untag(&crate::records::record_tag(job)).await?;
            // Last, so that a crash in between leaves a mark.
            store.untag(&mark.name).await?;
        }
        found.push(Leftover { kind: "outputs".to_owned(), name: job.to_string(), bytes: Some(bytes) });
    }
    Ok(found)
}

/// Lets go of what attempts of jobs that are over printed, once nothing was added to it for `kept_ms`.
///
/// # Errors
/// [`StoreError`].
pub async fn old_logs(shared: &Shared, kept_ms: u64, dry_run: bool) -> Result<Vec<Leftover>, StoreError> {
    let mut old = crate::kept_logs::by_job(&shared.store).await?;
    old.retain(|logs| unix_ms().saturating_sub(logs.at_ms) >= kept_ms);
    let jobs: Vec<JobId> = old.iter().map(|logs| logs.job).collect();
    let look = move |core: &sinew_scheduler::core::Core| {
        jobs.into_iter().filter(|job| core.ledger().live(job).is_some_and(|live| live.state.seal.is_none())).collect()
    };
    // A daemon that ends removes nothing more.
    let Ok(open) = shared.engine.look(look).await else { return Ok(Vec::new()) };
    let open: std::collections::BTreeSet<JobId> = open;
    let mut found = Vec::new();
    for logs in old.into_iter().filter(|logs| !open.contains(&logs.job)) {
        for tag in logs.tags.iter().filter(|_| !dry_run) {
            shared.store.untag(&tag.name).await?;
        }
        found.push(Leftover { kind: "logs".to_owned(), name: logs.job.to_string(), bytes: Some(logs.bytes) });
    }
    Ok(found)
}

/// Removes everything that is not needed, or says what would be. Outputs of forgotten jobs count once that is `kept_ms` ago.
///
/// # Errors
/// [`StoreError`].
pub async fn prune(shared: &Shared, host: &TaskHost, kept_ms: u64, dry_run: bool) -> Result<Vec<Leftover>, StoreError> {
    if !dry_run {
        partials(&shared.store, unix_ms()).await?;
    }
    let mut found = outputs(&shared.store, kept_ms, dry_run).await?;
    found.extend(old_logs(shared, kept_ms, dry_run).await?);
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
    async fn what_came_in_part_is_kept_for_a_while() {
        let dir = tempfile::tempdir().expect("dir");
        let store = BlobStore::open(dir.path(), StoreOptions::default()).await.expect("store");
        let hash = {
            let added = store.add_bytes(b"a part".to_vec()).await.expect("add");
            keep_partial(&store, added.hash).await.expect("tagged");
            added.hash
        };
        store.tag("partial/mine", hash, Format::Raw).await.expect("a user's own");
        let now = unix_ms();
        partials(&store, now + PARTIAL_KEPT_MS / 2).await.expect("looked");
        store.run_gc_once().await.expect("gc");
        assert!(store.reader(hash).await.is_ok(), "for the next try");
        partials(&store, now + 3 * PARTIAL_KEPT_MS).await.expect("looked");
        let left: Vec<String> = store.tags("").await.expect("tags").into_iter().map(|tag| tag.name).collect();
        assert_eq!(left, ["partial/mine"]);
        store.shutdown().await;
    }

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
