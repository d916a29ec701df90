//! Blobs as a task's thread needs them: fetched on demand, read as a plain stream, stored and made durable.

use std::io::{self, Read};
use std::path::Path;

use bytes::{Buf, Bytes};
use sinew_blobs::{BlobStore, FetchError, FetchOptions, ImportMode};
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::fact::Output;
use sinew_crdt_state::ids::{JobId, NodeId};
use sinew_crdt_state::spec::BlobRef;
use sinew_scheduler::io::Input;

use super::TaskHost;
use crate::exec::outcome::Failure;
use crate::exec::stop::StopHandle;
use crate::frames::{AttemptRef, LogPart};
use crate::kept_logs;

/// Bytes read from the store at once: large enough that the store's overhead per read does not show.
const PIECE: u64 = 256 * 1024;

/// An error of the blob store as a task's failure, worth another try.
pub(super) fn fetch_failure(error: &dyn std::error::Error) -> Failure {
    Failure::new(ErrorCode::Fetch, error.to_string())
}

/// Nobody gave a blob: where that is because nobody could be asked or had it, it may be had another time.
fn not_fetched(error: &FetchError) -> Failure {
    let failure = fetch_failure(error);
    match error {
        FetchError::NoProviders { hash } | FetchError::AllFailed { hash, .. } => failure.out_of_reach(vec![*hash]),
        FetchError::NoSpace { .. } | FetchError::Collection(_) | FetchError::Local { .. } => failure,
    }
}

/// Sees to it that a blob, or a range of it, is here, unless the task is to stop. Whole blobs are kept for the job.
pub(super) fn fetch(
    host: &TaskHost,
    job: JobId,
    blob: BlobRef,
    range: Option<(u64, u64)>,
    providers: &[NodeId],
    stop: &StopHandle,
) -> Result<(), Failure> {
    host.runtime.block_on(stop.unless_stopped(fetch_async(host, job, blob, range, providers)))?;
    if range.is_none() && blob.size > 0 {
        host.engine.input(Input::BlobsCame(vec![blob.hash]));
    }
    Ok(())
}

/// [`fetch`] for asynchronous callers.
pub(super) async fn fetch_async(
    host: &TaskHost,
    job: JobId,
    blob: BlobRef,
    range: Option<(u64, u64)>,
    providers: &[NodeId],
) -> Result<(), Failure> {
    let own = host.link.mesh().node();
    let others: Vec<NodeId> = providers.iter().copied().filter(|n| *n != own).collect();
    if blob.size == 0 {
        return Ok(());
    }
    let others = host.answering(others).await;
    let max_size = range.map_or(blob.size, |(_, len)| len);
    let options = FetchOptions { range, max_size, ..FetchOptions::default() };
    if let Err(error) = host.store.fetch(blob.hash, &others, &host.link, &options).await {
        // What those held that are gone may have been copied since to any other node.
        let elsewhere = match &error {
            FetchError::NoProviders { .. } | FetchError::AllFailed { .. } => host.connected_but(&others).await,
            _ => Vec::new(),
        };
        if elsewhere.is_empty() {
            return Err(not_fetched(&error));
        }
        let fetched = host.store.fetch(blob.hash, &elsewhere, &host.link, &options).await;
        fetched.map_err(|_| not_fetched(&error))?;
    }
    if range.is_none() {
        let tagged = host.blobs.keep(job, blob.hash).await;
        tagged.map_err(|e| fetch_failure(&e))?;
    }
    Ok(())
}

/// A range of a local blob as a plain stream.
pub(super) struct BlobRange {
    store: BlobStore,
    runtime: tokio::runtime::Handle,
    blob: BlobRef,
    at: u64,
    end: u64,
    piece: Bytes,
}

impl BlobRange {
    pub(super) fn new(host: &TaskHost, blob: BlobRef, offset: u64, len: u64) -> Self {
        let end = offset.saturating_add(len).min(blob.size);
        Self { store: host.store.clone(), runtime: host.runtime.clone(), blob, at: offset, end, piece: Bytes::new() }
    }
}

impl Read for BlobRange {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() && self.at < self.end {
            let len = PIECE.min(self.end - self.at);
            let piece = self.runtime.block_on(self.store.read_range(self.blob.hash, self.at, len));
            self.piece = piece.map_err(|e| fetch_failure(&e).into_input_error())?;
            if self.piece.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.at += self.piece.len() as u64;
        }
        let len = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..len]);
        Ok(len)
    }
}

/// Stores files as blobs of the job, on disk for good before it returns.
pub(super) fn store(host: &TaskHost, job: JobId, files: &[(String, &std::path::Path)]) -> Result<Vec<Output>, Failure> {
    let failed = |e: &dyn std::error::Error| Failure::new(ErrorCode::Storage, format!("cannot store an output: {e}"));
    host.runtime.block_on(async {
        let mut outputs = Vec::with_capacity(files.len());
        let mut hashes = Vec::with_capacity(files.len());
        for (name, path) in files {
            let added = host.store.add_file(path, ImportMode::Copy, None).await.map_err(|e| failed(&e))?;
            host.blobs.keep(job, added.hash).await.map_err(|e| failed(&e))?;
            hashes.push(added.hash);
            outputs.push(Output { name: name.clone(), blob: BlobRef { hash: added.hash, size: added.size } });
        }
        host.store.ensure_all_durable(&hashes).await.map_err(|e| failed(&e))?;
        Ok(outputs)
    })
}

/// Keeps what an attempt printed, stdout and stderr: on disk for good before it returns, by the node's own word where no output of the
/// task names it. What cannot be kept is no reason to fail a task.
pub(super) fn keep_logs(
    host: &TaskHost,
    job: JobId,
    of: AttemptRef,
    outputs: &[Output],
    logs: [Option<&Path>; 2],
) -> [LogPart; 2] {
    let mut parts = [LogPart::default(); 2];
    for ((part, path), name) in parts.iter_mut().zip(logs).zip(["stdout", "stderr"]) {
        let named = outputs.iter().find(|output| output.name == name).map(|output| output.blob);
        *part = match (named, path) {
            (Some(blob), _) => LogPart { size: blob.size, hash: Some(blob.hash) },
            (None, Some(path)) => match host.runtime.block_on(keep_log(host, job, of, name == "stderr", path)) {
                Ok(part) => part,
                Err(error) => {
                    tracing::warn!(job = %job.short(), task = of.task, %error, "cannot keep what a task printed on {name}");
                    LogPart::default()
                }
            },
            (None, None) => LogPart::default(),
        };
    }
    parts
}

async fn keep_log(
    host: &TaskHost,
    job: JobId,
    of: AttemptRef,
    stderr: bool,
    path: &Path,
) -> Result<LogPart, Box<dyn std::error::Error + Send + Sync>> {
    let added = host.store.add_file(path, ImportMode::Copy, None).await?;
    let part = LogPart { size: added.size, hash: Some(added.hash) };
    kept_logs::keep(&host.store, job, of, stderr, part).await?;
    host.store.ensure_all_durable(&[added.hash]).await?;
    Ok(part)
}
