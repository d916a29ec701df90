//! What attempts printed, kept on the node that ran them under the job's id: each stream is a blob, and a tag tells of what. The logs
//! of a task that succeeded are outputs of it, which its report names; these are the others, of which no fact can tell.

use std::collections::BTreeMap;

use sinew_blobs::{BlobStore, Format, StoreError, Tag};
use sinew_crdt_state::fact::Fence;
use sinew_crdt_state::ids::JobId;

use crate::clock::unix_ms;
use crate::frames::{AttemptLogs, AttemptRef, LogPart};

/// Tags of what attempts printed begin with this.
const PREFIX: &str = "log/";

/// Whether a tag's name begins as those of kept logs do.
#[must_use]
pub fn is_log_tag(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// A tag, read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Named {
    job: JobId,
    of: AttemptRef,
    stderr: bool,
    size: u64,
    /// When it was kept, unix ms.
    at_ms: u64,
}

impl Named {
    fn name(&self) -> String {
        let AttemptRef { phase, task, fence: Fence { term, epoch }, attempt, number } = self.of;
        let stream = if self.stderr { "stderr" } else { "stdout" };
        let (job, size, at_ms) = (self.job, self.size, self.at_ms);
        format!("{PREFIX}{job}/{phase}.{task}.{term}.{epoch}.{attempt}.{number}/{stream}/{size}/{at_ms}")
    }

    /// `None` of a tag that somebody else set.
    fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix(PREFIX)?.split('/');
        let job = parts.next()?.parse().ok()?;
        let mut of = parts.next()?.split('.');
        let fields = [of.next()?, of.next()?, of.next()?, of.next()?, of.next()?, of.next()?];
        let [phase, task, term, epoch, attempt, number] = fields;
        let fence = Fence { term: term.parse().ok()?, epoch: epoch.parse().ok()? };
        let of = AttemptRef {
            phase: phase.parse().ok()?,
            task: task.parse().ok()?,
            fence,
            attempt: attempt.parse().ok()?,
            number: number.parse().ok()?,
        };
        let stderr = match parts.next()? {
            "stdout" => false,
            "stderr" => true,
            _ => return None,
        };
        let named = Self { job, of, stderr, size: parts.next()?.parse().ok()?, at_ms: parts.next()?.parse().ok()? };
        (parts.next().is_none() && named.name() == name).then_some(named)
    }
}

/// Keeps one stream of an attempt. The blob is here already.
///
/// # Errors
/// [`StoreError`].
pub async fn keep(
    store: &BlobStore,
    job: JobId,
    of: AttemptRef,
    stderr: bool,
    part: LogPart,
) -> Result<(), StoreError> {
    let Some(hash) = part.hash else { return Ok(()) };
    let named = Named { job, of, stderr, size: part.size, at_ms: unix_ms() };
    store.tag(&named.name(), hash, Format::Raw).await
}

/// What is kept here of what a job's attempts printed.
///
/// # Errors
/// [`StoreError`].
pub async fn list(store: &BlobStore, job: JobId) -> Result<Vec<AttemptLogs>, StoreError> {
    let mut found: BTreeMap<AttemptRef, AttemptLogs> = BTreeMap::new();
    for tag in store.tags(&format!("{PREFIX}{job}/")).await? {
        let Some(named) = Named::parse(&tag.name) else { continue };
        let blank = AttemptLogs {
            attempt: named.of,
            running: false,
            good: false,
            stdout: LogPart::default(),
            stderr: LogPart::default(),
        };
        let logs = found.entry(named.of).or_insert(blank);
        let part = LogPart { size: named.size, hash: Some(tag.hash) };
        *(if named.stderr { &mut logs.stderr } else { &mut logs.stdout }) = part;
    }
    Ok(found.into_values().collect())
}

/// A job whose logs are kept here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobLogs {
    /// The job.
    pub job: JobId,
    /// Bytes, those of equal blobs each time.
    pub bytes: u64,
    /// When the last of them was kept, unix ms.
    pub at_ms: u64,
    /// Their tags.
    pub tags: Vec<Tag>,
}

/// All jobs of which logs are kept here.
///
/// # Errors
/// [`StoreError`].
pub async fn by_job(store: &BlobStore) -> Result<Vec<JobLogs>, StoreError> {
    let mut found: BTreeMap<JobId, JobLogs> = BTreeMap::new();
    for tag in store.tags(PREFIX).await? {
        let Some(named) = Named::parse(&tag.name) else { continue };
        let blank = JobLogs { job: named.job, bytes: 0, at_ms: 0, tags: Vec::new() };
        let logs = found.entry(named.job).or_insert(blank);
        logs.bytes = logs.bytes.saturating_add(named.size);
        logs.at_ms = logs.at_ms.max(named.at_ms);
        logs.tags.push(tag);
    }
    Ok(found.into_values().collect())
}

#[cfg(test)]
mod tests {
    use sinew_blobs::StoreOptions;

    use super::*;

    #[tokio::test]
    async fn what_attempts_printed_is_found_by_the_job_and_told_apart() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = BlobStore::open(dir.path(), StoreOptions::default()).await.expect("a store");
        let (job, other) = (JobId([1; 32]), JobId([2; 32]));
        let of =
            |epoch, attempt| AttemptRef { phase: 0, task: 7, fence: Fence { term: 1, epoch }, attempt, number: epoch };
        let mut kept = Vec::new();
        for (of, stderr, text) in [(of(1, 4), false, "one"), (of(1, 4), true, "two"), (of(2, 4), false, "three")] {
            let added = store.add_bytes(text.as_bytes().to_vec()).await.expect("added");
            let part = LogPart { size: added.size, hash: Some(added.hash) };
            keep(&store, job, of, stderr, part).await.expect("kept");
            kept.push(part);
        }
        store
            .tag(&format!("{PREFIX}{job}/mine"), kept[0].hash.expect("a hash"), Format::Raw)
            .await
            .expect("a user's own");
        let none = LogPart::default();
        let logs = |attempt, stdout, stderr| AttemptLogs { attempt, running: false, good: false, stdout, stderr };
        let expected = [logs(of(1, 4), kept[0], kept[1]), logs(of(2, 4), kept[2], none)];
        assert_eq!(list(&store, job).await.expect("listed"), expected);
        assert_eq!(list(&store, other).await.expect("listed"), []);
        let jobs = by_job(&store).await.expect("listed");
        assert_eq!(jobs.iter().map(|j| (j.job, j.bytes, j.tags.len())).collect::<Vec<_>>(), [(job, 11, 3)]);
        store.shutdown().await;
    }
}
