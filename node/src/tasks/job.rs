//! What the tasks of one job on one node share: the job's files, placed once, and a round's chunk table.

use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::spec::{BlobRef, Chunk, Program, Work};

use sinew_scheduler::io::StartTask;

use super::data::{BlobRange, fetch, fetch_failure};
use super::{TaskHost, gather};
use crate::exec::files::{self, JobFiles};
use crate::exec::outcome::Failure;
use crate::exec::set::Content;
use crate::exec::slot::Slot;
use crate::exec::stop::StopHandle;
use crate::exec::task::TaskContext;
use crate::secrets::asker;
use crate::secrets::job::JobSecrets;

/// Largest chunk table: a hundred million chunks would not be a sane round.
const CHUNK_TABLE_MAX: u64 = 256 << 20;

/// Filled in by whichever task comes first; the others wait for it.
#[derive(Debug, Default)]
pub(super) struct JobCache {
    files: Mutex<Option<Arc<JobFiles>>>,
    content: Mutex<Option<Arc<Content>>>,
    chunks: Mutex<Option<Arc<Vec<Chunk>>>>,
    secrets: Mutex<Option<Arc<JobSecrets>>>,
}

impl JobCache {
    /// The job's secrets, if it names any.
    pub(super) fn secrets(
        &self,
        host: &TaskHost,
        task: &StartTask,
        stop: &StopHandle,
    ) -> Result<Option<Arc<JobSecrets>>, Failure> {
        if task.spec.secret_names().is_empty() {
            return Ok(None);
        }
        let mut secrets = self.secrets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(secrets) = &*secrets {
            return Ok(Some(Arc::clone(secrets)));
        }
        let values = asker::obtain(host, task, stop)?;
        let job = task.key.lease.job.to_string();
        let had = Arc::new(JobSecrets::new(&job, &host.means.tag, task.spec.env(), &task.spec.secrets, values)?);
        *secrets = Some(Arc::clone(&had));
        Ok(Some(had))
    }

    /// The job's files, placed.
    pub(super) fn files(
        &self,
        host: &TaskHost,
        task: &StartTask,
        slot: &mut Slot,
        ctx: &TaskContext<'_>,
    ) -> Result<Arc<JobFiles>, Failure> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(files) = &*files {
            return Ok(Arc::clone(files));
        }
        let placed = Arc::new(gather::files(host, task, slot, ctx)?);
        *files = Some(Arc::clone(&placed));
        Ok(placed)
    }

    /// The content of the job's programs, each a file.
    pub(super) fn content(
        &self,
        host: &TaskHost,
        task: &StartTask,
        stop: &StopHandle,
    ) -> Result<Arc<Content>, Failure> {
        let job = task.key.lease.job;
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(content) = &*content {
            return Ok(Arc::clone(content));
        }
        let mut placed = Content::new();
        for blob in task.spec.programs().filter_map(Program::content) {
            let Entry::Vacant(place) = placed.entry(blob.hash) else { continue };
            fetch(host, job, *blob, None, &task.providers, stop)?;
            let mut bytes = BlobRange::new(host, *blob, 0, blob.size);
            let path = host.means.work.content(&job.to_string()).join(blob.hash.to_string());
            files::place_one(&path, &mut bytes)?;
            place.insert(path);
        }
        let placed = Arc::new(placed);
        *content = Some(Arc::clone(&placed));
        Ok(placed)
    }

    /// One chunk of a round, and the blob that it is a part of.
    pub(super) fn chunk(
        &self,
        host: &TaskHost,
        task: &StartTask,
        stop: &StopHandle,
    ) -> Result<(BlobRef, Chunk), Failure> {
        let Work::MapReduce(round) = &*task.spec.work else {
            return Err(Failure::new(ErrorCode::Invalid, "only map-reduce rounds have chunks"));
        };
        let table = self.table(host, task, round.chunk_table, stop)?;
        let task = task.key.task;
        let bad = |what: String| Failure::new(ErrorCode::Invalid, what).for_good();
        let chunk = *table.get(task as usize).ok_or_else(|| bad(format!("the chunk table has no chunk {task}")))?;
        let input = round.inputs.get(chunk.input as usize);
        let input = *input.ok_or_else(|| bad(format!("chunk {task} is of input {}, which is missing", chunk.input)))?;
        if chunk.offset.checked_add(chunk.len).is_none_or(|end| end > input.size) {
            return Err(bad(format!("chunk {task} reaches beyond its input")));
        }
        Ok((input, chunk))
    }

    fn table(
        &self,
        host: &TaskHost,
        task: &StartTask,
        blob: BlobRef,
        stop: &StopHandle,
    ) -> Result<Arc<Vec<Chunk>>, Failure> {
        let mut chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(chunks) = &*chunks {
            return Ok(Arc::clone(chunks));
        }
        fetch(host, task.key.lease.job, blob, None, &task.providers, stop)?;
        let bytes =
            host.runtime.block_on(host.store.read(blob.hash, CHUNK_TABLE_MAX)).map_err(|e| fetch_failure(&e))?;
        let table: Vec<Chunk> = sinew_crdt_state::cbor::from_slice(&bytes).map_err(|e| {
            Failure::new(ErrorCode::Invalid, format!("the chunk table does not decode: {e}")).for_good()
        })?;
        let table = Arc::new(table);
        *chunks = Some(Arc::clone(&table));
        Ok(table)
    }
}
