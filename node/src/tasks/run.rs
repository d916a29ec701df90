//! One task from gather to teardown (R1): inputs here, program run, outputs stored, directory wiped.

use std::path::Path;
use std::time::Instant;

use futures::StreamExt;
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::fact::{self, Output};
use sinew_crdt_state::ids::NodeId;
use sinew_crdt_state::spec::{PHASE_MAP, Work};
use sinew_scheduler::io::{Input as CoreInput, RunId, StartTask, TaskResult};
use sinew_scheduler::wire::Located;

use super::TaskHost;
use super::data::{BlobRange, fetch, fetch_async, fetch_failure, keep_logs, store};

use crate::exec::files::JobFiles;
use crate::exec::mapfile::{MapIndex, PREAMBLE_LEN};
use crate::exec::merge::Input;
use crate::exec::outcome::{Failure, TaskOutcome, Usage};
use crate::exec::outputs::TREE_OUTPUT;
use crate::exec::runner::GRACE_DEFAULT;
use crate::exec::slot::Slot;
use crate::exec::stop::StopHandle;
use crate::exec::task::{MapWork, TaskContext, run_batch, run_map, run_reduce};
use crate::frames::AttemptRef;
use crate::logs::AttemptLog;
use crate::secrets::job::JobSecrets;

/// Bytes of map output sorted in memory; more is spilled. Two slots of this fit beside everything else in a small VM.
const SORT_BUDGET: usize = 64 << 20;
/// Map outputs up to this size are fetched whole: a range request for a part would cost as much.
const WHOLE_MAX: u64 = 64 * 1024;
/// Map outputs fetched at once by one reduce task.
const FETCHES: usize = 8;

/// Runs the task; never panics on bad input, always has a result.
pub(super) fn run(host: &TaskHost, slot: &mut Slot, task: &StartTask, stop: &StopHandle) -> CoreInput {
    let began = Instant::now();
    let mut missing = None;
    let (result, usage) = match attempt(host, slot, task, stop, began) {
        Ok((outputs, usage)) => (Ok(outputs), usage),
        Err((mut failure, usage)) => {
            missing = failure.out_of_reach.take().map(<[_]>::into_vec);
            (Err(failure_fact(host.means.work.shown(failure))), usage)
        }
    };
    let key = task.key;
    let job = key.lease.job.to_string();
    // Whatever is worth keeping is in the blob store by now.
    if let Err(error) = host.means.work.remove_attempt(&job, key.phase, key.task, task.run.0) {
        tracing::warn!(%error, "cannot remove an attempt's directory");
    }
    let result = TaskResult { result, usage };
    match missing {
        Some(missing) => CoreInput::Blocked { run: task.run, missing, failure: result },
        None => CoreInput::Task { run: task.run, result },
    }
}

/// The report of a task that could not even be tried.
pub(super) fn failed(run: RunId, failure: Failure) -> CoreInput {
    CoreInput::Task { run, result: TaskResult { result: Err(failure_fact(failure)), usage: fact::Usage::default() } }
}

type Attempted = Result<(Vec<Output>, fact::Usage), (Failure, fact::Usage)>;

fn attempt(host: &TaskHost, slot: &mut Slot, task: &StartTask, stop: &StopHandle, began: Instant) -> Attempted {
    let none = |f: Failure| (f, fact::Usage { gather_ms: ms_since(began), ..fact::Usage::default() });
    let cache = host.job(task.key.lease.job);
    let secrets = cache.secrets(host, task, stop).map_err(none)?;
    let attempted = attempt_with(host, slot, task, stop, began, secrets.as_deref());
    attempted.map_err(|(mut failure, usage)| {
        // What fetches inputs, and what a function raises, may name one.
        secrets.iter().for_each(|secrets| secrets.redact(&mut failure));
        (failure, usage)
    })
}

fn attempt_with(
    host: &TaskHost,
    slot: &mut Slot,
    task: &StartTask,
    stop: &StopHandle,
    began: Instant,
    secrets: Option<&JobSecrets>,
) -> Attempted {
    let key = task.key;
    let job = key.lease.job;
    let name = job.to_string();
    let spec = &task.spec;
    let none = |f: Failure| (f, fact::Usage { gather_ms: ms_since(began), ..fact::Usage::default() });
    let cache = host.job(job);
    let content = cache.content(host, task, stop).map_err(none)?;
    let number = task.attempt.saturating_add(1);
    let of = AttemptRef { phase: key.phase, task: key.task, fence: key.lease.fence, attempt: task.run.0, number };
    let log = host.logs.attempt(job, of, host.means.work.attempt(&name, key.phase, key.task, task.run.0));
    let env = secrets.map_or_else(|| spec.env(), JobSecrets::env);
    let volumes = host.means.volumes.mount(spec).map_err(none)?;
    let no_files = JobFiles::none();
    let ctx = TaskContext {
        runner: &*host.means.runner,
        job: &name,
        phase: key.phase,
        task: key.task,
        attempt: task.run.0,
        number,
        fence: (key.lease.fence.term, key.lease.fence.epoch),
        files: &no_files,
        content: &content,
        volumes: &volumes,
        env,
        secrets,
        limits: spec.limits,
        resources: spec.resources,
        network: &spec.network,
        grace: GRACE_DEFAULT,
        stop,
        live: Some(&log),
        started: None,
    };
    let files = cache.files(host, task, slot, &ctx).map_err(none)?;
    let ctx = TaskContext { files: &files, ..ctx };
    match &*spec.work {
        Work::Batch(batch) => {
            let gather_ms = ms_since(began);
            let done = run_batch(&ctx, slot, spec.program(key.phase), &batch.outputs);
            let mut left: Vec<(String, &Path)> = Vec::new();
            left.extend(done.stdout.as_deref().map(|p| ("stdout".to_owned(), p)));
            left.extend(done.stderr.as_deref().map(|p| ("stderr".to_owned(), p)));
            left.extend(done.outputs.iter().map(|o| (format!("output/{}", o.name), o.path.as_path())));
            left.extend(done.tree.as_deref().map(|p| (TREE_OUTPUT.to_owned(), p)));
            let logs = [done.stdout.as_deref(), done.stderr.as_deref()];
            finish(host, (task, &log), done.outcome, gather_ms, &left, logs)
        }
        Work::MapReduce(round) if key.phase == PHASE_MAP => {
            let (input, chunk) = cache.chunk(host, task, stop).map_err(none)?;
            fetch(host, job, input, Some((chunk.offset, chunk.len)), &task.providers, stop).map_err(none)?;
            let gather_ms = ms_since(began);
            let mut reader = BlobRange::new(host, input, chunk.offset, chunk.len);
            let work = MapWork {
                map: &round.map,
                combine: round.combine.as_ref(),
                partitions: round.partitions,
                sort_budget: SORT_BUDGET,
            };
            let done = run_map(&ctx, slot, &work, &mut reader);
            let left: Vec<(String, &Path)> =
                done.output.iter().map(|(path, _)| ("map".to_owned(), path.as_path())).collect();
            finish(host, (task, &log), done.outcome, gather_ms, &left, [None, done.stderr.as_deref()])
        }
        Work::MapReduce(round) => {
            let sources = task.sources.clone().unwrap_or_default();
            let inputs = reduce_inputs(host, task, &sources, stop).map_err(none)?;
            let gather_ms = ms_since(began);
            let done = run_reduce(&ctx, slot, &round.reduce, inputs);
            let left: Vec<(String, &Path)> =
                done.output.iter().map(|o| ("result".to_owned(), o.path.as_path())).collect();
            finish(host, (task, &log), done.outcome, gather_ms, &left, [None, done.stderr.as_deref()])
        }
    }
}

/// Stores what a successful task left, and what any task printed; a failed one leaves nothing else.
fn finish(
    host: &TaskHost,
    (task, log): (&StartTask, &AttemptLog),
    outcome: TaskOutcome,
    gather_ms: u32,
    left: &[(String, &Path)],
    logs: [Option<&Path>; 2],
) -> Attempted {
    let usage = usage_fact(outcome.usage, gather_ms);
    let result = outcome
        .result
        .and_then(|_| if left.is_empty() { Ok(Vec::new()) } else { store(host, task.key.lease.job, left) });
    let outputs = result.as_deref().unwrap_or_default();
    let [stdout, stderr] = keep_logs(host, task.key.lease.job, log.of(), outputs, logs);
    log.ended(result.is_ok(), stdout, stderr);
    match result {
        Ok(outputs) => Ok((outputs, usage)),
        Err(failure) => Err((failure, usage)),
    }
}

/// This task's partition of every map output.
fn reduce_inputs(
    host: &TaskHost,
    task: &StartTask,
    sources: &[Located],
    stop: &StopHandle,
) -> Result<Vec<Input>, Failure> {
    let fetches = futures::stream::iter(sources.iter().enumerate()).map(|(chunk, source)| async move {
        partition_of(host, task, source).await.map(|range| range.map(|(at, len)| (chunk, source, at, len)))
    });
    let gathered = async { Ok(all_or_missing(fetches.buffered(FETCHES)).await) };
    let ranges: Vec<_> = host.runtime.block_on(stop.unless_stopped(gathered))??;
    let inputs = ranges.into_iter().flatten().map(|(chunk, source, at, len)| Input {
        name: format!(
            "the output of map task {chunk} (blob {}, made by node {})",
            source.blob.hash,
            source.node.short()
        ),
        reader: Box::new(BlobRange::new(host, source.blob, at, len)),
    });
    Ok(inputs.collect())
}

/// What all of these gave. Where several are out of reach the failure names them together, as far as they come to light soon.
async fn all_or_missing<T>(fetches: impl futures::Stream<Item = Result<T, Failure>>) -> Result<Vec<T>, Failure> {
    let mut fetches = std::pin::pin!(fetches);
    let (mut had, mut away): (Vec<T>, Vec<Failure>) = (Vec::new(), Vec::new());
    while let Some(fetched) = fetches.next().await {
        match fetched {
            Ok(one) => had.push(one),
            Err(failure) if failure.out_of_reach.is_none() => return Err(failure),
            Err(failure) => away.push(failure),
        }
        if away.len() >= FETCHES {
            break;
        }
    }
    let missing = away.iter().flat_map(|failure| failure.out_of_reach.iter().flatten().copied()).collect();
    away.into_iter().next().map_or(Ok(had), |first| Err(first.out_of_reach(missing)))
}

/// Fetches the index and then the task's range of one map output; `None` when the partition is empty there.
async fn partition_of(host: &TaskHost, task: &StartTask, source: &Located) -> Result<Option<(u64, u64)>, Failure> {
    let job = task.key.lease.job;
    let blob = source.blob;
    let mut providers: Vec<NodeId> = vec![source.node];
    providers.extend(source.copy);
    providers.extend(task.providers.iter().copied());
    let whole = blob.size <= WHOLE_MAX;
    let read = |at, len| async move { host.store.read_range(blob.hash, at, len).await.map_err(|e| fetch_failure(&e)) };
    let first = if whole { None } else { Some((0, PREAMBLE_LEN as u64)) };
    fetch_async(host, job, blob, first, &providers).await?;
    let bad = |e: &dyn std::error::Error| {
        let who = source.node.short();
        Failure::new(ErrorCode::Fetch, format!("the map output {} of node {who} is malformed: {e}", blob.hash))
    };
    let preamble = read(0, (PREAMBLE_LEN as u64).min(blob.size)).await?;
    let header = MapIndex::header_len(&preamble).map_err(|e| bad(&e))? as u64;
    if !whole {
        fetch_async(host, job, blob, Some((0, header.min(blob.size))), &providers).await?;
    }
    let index = MapIndex::parse(&read(0, header.min(blob.size)).await?, blob.size).map_err(|e| bad(&e))?;
    let Some(range) = index.range_of(task.key.task).filter(|r| !r.is_empty()) else { return Ok(None) };
    let (at, len) = (range.start, range.end - range.start);
    if !whole {
        fetch_async(host, job, blob, Some((at, len)), &providers).await?;
    }
    Ok(Some((at, len)))
}

fn ms_since(began: Instant) -> u32 {
    u32::try_from(began.elapsed().as_millis()).unwrap_or(u32::MAX)
}

fn usage_fact(usage: Usage, gather_ms: u32) -> fact::Usage {
    let ms = |v: u64| u32::try_from(v).unwrap_or(u32::MAX);
    fact::Usage {
        gather_ms,
        wall_ms: ms(usage.wall_ms),
        cpu_ms: ms(usage.cpu_ms),
        max_rss_bytes: usage.max_rss_bytes,
        output_bytes: usage.output_bytes,
    }
}

fn failure_fact(failure: Failure) -> fact::Failure {
    // A shell's convention for programs that a signal ended.
    let exit = failure.exit.or_else(|| failure.signal.map(|s| 128 + s));
    fact::Failure {
        code: failure.code,
        exit,
        message: failure.message,
        stderr_tail: failure.stderr_tail,
        retryable: failure.retryable,
    }
}

#[cfg(test)]
mod tests {
    use sinew_crdt_state::ids::Hash;

    use super::*;

    /// What is out of reach is named together; anything else that is wrong is what counts.
    #[tokio::test]
    async fn blobs_out_of_reach_are_named_together() {
        let away = |n: u8| Failure::new(ErrorCode::Fetch, "away").out_of_reach(vec![Hash([n; 32])]);
        let gather = |all: Vec<Result<u8, Failure>>| all_or_missing(futures::stream::iter(all));
        assert_eq!(gather(vec![Ok(1), Ok(2)]).await.expect("all"), [1, 2]);
        let failure = gather(vec![Err(away(1)), Ok(2), Err(away(3))]).await.expect_err("two are away");
        assert_eq!(failure.out_of_reach.as_deref(), Some(&[Hash([1; 32]), Hash([3; 32])][..]));
        let broken = Failure::new(ErrorCode::Fetch, "not sorted");
        let failure = gather(vec![Err(away(1)), Err(broken)]).await.expect_err("one is broken");
        assert_eq!((failure.out_of_reach, failure.message.as_str()), (None, "not sorted"));
        let many = (0..=u8::try_from(FETCHES).expect("few")).map(|n| Err(away(n))).collect();
        let failure = gather(many).await.expect_err("all are away");
        assert_eq!(failure.out_of_reach.map(|all| all.len()), Some(FETCHES), "no more is waited for");
    }
}
