//! A job's files come together on a node: what the spec holds, blobs, what is fetched from outside, and what the job's own gather
//! command makes of them.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;

use sinew_blobs::ImportMode;
use sinew_crdt_state::program::Program;
use sinew_crdt_state::remote::ContentHash;
use sinew_crdt_state::spec::{Batch, BlobRef, InputFile, Source, Work};
use sinew_scheduler::io::StartTask;

use super::TaskHost;
use super::data::{BlobRange, fetch};
use crate::exec::files::{JobFiles, Placing};
use crate::exec::outcome::Failure;
use crate::exec::slot::Slot;
use crate::exec::task::{TaskContext, run_gather};
use crate::gather::GitInput;
use crate::secrets::SecretBytes;

/// Places the files of the task's job, and runs its gather command if it has one.
pub(super) fn files(
    host: &TaskHost,
    task: &StartTask,
    slot: &mut Slot,
    ctx: &TaskContext<'_>,
) -> Result<JobFiles, Failure> {
    let (wanted, command) = match &*task.spec.work {
        Work::Batch(Batch { inputs, gather, .. }) => (inputs, gather.as_ref()),
        Work::MapReduce(round) => (&round.files, None),
    };
    if wanted.is_empty() && command.is_none() {
        return Ok(JobFiles::none());
    }
    let dir = host.means.work.input(&task.key.lease.job.to_string());
    let mut placing = JobFiles::place_in(&dir)?;
    for file in wanted {
        if let Some(reason) = ctx.stop.reason() {
            return Err(reason.failure());
        }
        place(host, task, ctx, file, &mut placing)?;
    }
    let placed = placing.finish();
    match command {
        Some(argv) => gather(host, task, slot, &TaskContext { files: &placed, ..*ctx }, argv),
        None => Ok(placed),
    }
}

fn place(
    host: &TaskHost,
    task: &StartTask,
    ctx: &TaskContext<'_>,
    file: &InputFile,
    placing: &mut Placing,
) -> Result<(), Failure> {
    let job = task.key.lease.job;
    match &file.source {
        Source::Inline(bytes) => placing.add(&file.path, file.executable, &mut &bytes[..]),
        Source::Blob(blob) => {
            fetch(host, job, *blob, None, &task.providers, ctx.stop)?;
            placing.add(&file.path, file.executable, &mut BlobRange::new(host, *blob, 0, blob.size))
        }
        Source::Http(remote) => {
            let dir = host.means.work.content(&job.to_string());
            let fetching = host.means.gather.http(remote, &dir);
            placing.add(
                &file.path,
                file.executable,
                &mut *remote_file(host, task, remote.hash, ctx.stop.unless_stopped(fetching))?,
            )
        }
        Source::Object(object) => {
            let secret = secret(ctx, object.credentials.as_deref()).map(SecretBytes::bytes);
            let dir = host.means.work.content(&job.to_string());
            let fetching = host.means.gather.object(object, secret, &dir);
            placing.add(
                &file.path,
                file.executable,
                &mut *remote_file(host, task, object.hash, ctx.stop.unless_stopped(fetching))?,
            )
        }
        Source::Git(tree) => {
            let dir = host.means.work.content(&job.to_string());
            let token = secret(ctx, tree.token.as_deref());
            let input = GitInput { tree, token, to: &file.path };
            host.means.gather.git(&host.runtime, input, &dir, placing, ctx.stop)
        }
    }
}

/// The job's secret of this name; a job has each that its inputs name.
fn secret<'a>(ctx: &TaskContext<'a>, name: Option<&str>) -> Option<&'a SecretBytes> {
    ctx.secrets?.get(name?)
}

/// The content of a file that is fetched. Under a BLAKE3 hash it may be here already, and is kept as a blob for as long as the job
/// is.
fn remote_file(
    host: &TaskHost,
    task: &StartTask,
    hash: ContentHash,
    fetching: impl Future<Output = Result<File, Failure>>,
) -> Result<Box<dyn Read>, Failure> {
    let job = task.key.lease.job;
    let dir = host.means.work.content(&job.to_string());
    let ContentHash::Blake3(hash) = hash else {
        return Ok(Box::new(host.runtime.block_on(fetching)?));
    };
    let blob = host.runtime.block_on(async {
        let storage =
            |e: &dyn std::error::Error| Failure::storage("keep a fetched input", &std::io::Error::other(e.to_string()));
        let here = host.store.reader(hash).await.ok().map(|reader| reader.size());
        let size = match here {
            Some(size) => size,
            None => {
                let file = fetching.await?;
                let named = tempfile::Builder::new().tempfile_in(&dir).map_err(|e| storage(&e))?;
                let mut copy = (file, named.as_file());
                std::io::copy(&mut copy.0, &mut copy.1).map_err(|e| storage(&e))?;
                host.store.add_file(named.path(), ImportMode::Copy, None).await.map_err(|e| storage(&e))?.size
            }
        };
        host.blobs.keep(job, hash).await.map_err(|e| storage(&e))?;
        Ok::<_, Failure>(BlobRef { hash, size })
    })?;
    Ok(Box::new(BlobRange::new(host, blob, 0, blob.size)))
}

/// Runs the gather command where tasks run; what it leaves are further files.
fn gather(
    host: &TaskHost,
    task: &StartTask,
    slot: &mut Slot,
    ctx: &TaskContext<'_>,
    argv: &[String],
) -> Result<JobFiles, Failure> {
    let done = run_gather(&TaskContext { live: None, ..*ctx }, slot, &Program::Exec(argv.to_vec()));
    let added = done.outcome.result.and_then(|_| {
        let mut placing = ctx.files.reopen()?;
        for output in &done.outputs {
            let opened = File::open(&output.path).and_then(|file| Ok((file.metadata()?.permissions().mode(), file)));
            let (mode, mut file) = opened.map_err(|e| Failure::storage("read what the gather command left", &e))?;
            placing.add(&output.name, mode & 0o100 != 0, &mut file)?;
        }
        Ok(placing.finish())
    });
    let (job, key) = (task.key.lease.job.to_string(), task.key);
    if let Err(error) = host.means.work.remove_attempt(&job, key.phase, key.task, task.run.0) {
        tracing::warn!(%error, "cannot remove what a gather command left");
    }
    added.map_err(|mut failure| {
        failure.message = format!("the job's gather command: {}", failure.message);
        failure
    })
}
