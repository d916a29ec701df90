//! Runs tasks for the core: threads that gather a task's inputs, run it, and store what it left, in that order, and only
//! then report.
//!
//! The core decides how many run at once; the pool only lends it threads.

mod data;
mod gather;
mod job;
mod run;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sinew_blobs::BlobStore;
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::ids::{Hash, JobId, NodeId};
use sinew_scheduler::config::SWITCH_AFTER;
use sinew_scheduler::core::Core;
use sinew_scheduler::io::{Input, RunId, StartTask, StopWhy};
use sinew_scheduler::time::{Span, Time};

use crate::clock::{boot_ns, now};
use crate::engine::Engine;
use crate::exec::guardian::NodeTag;
use crate::exec::outcome::Failure;
use crate::exec::runner::Runner;
use crate::exec::set::RunnerSet;
use crate::exec::slot::WorkRoot;
use crate::exec::stop::{StopHandle, StopReason};
use crate::exec::switch::Switch;
use crate::exec::volumes::NodeVolumes;
use crate::gather::Gather;
use crate::job_blobs::JobBlobs;
use crate::logs::LogHub;
use crate::mesh_link::MeshLink;
use crate::prune::Leftover;
use crate::secrets::holder::Keeper;

/// What task threads share.
pub struct TaskHost {
    /// Blobs.
    pub store: BlobStore,
    /// Those that jobs keep.
    pub blobs: Arc<JobBlobs>,
    /// The way to other nodes' blobs.
    pub link: MeshLink,
    /// What it takes to run programs.
    pub means: Means,
    /// Live output.
    pub logs: LogHub,
    /// Where results go.
    pub engine: Engine,
    /// For what is asynchronous in between.
    pub runtime: tokio::runtime::Handle,
    jobs: Mutex<BTreeMap<JobId, Arc<job::JobCache>>>,
    silent: Mutex<Silent>,
}

/// What it takes to run programs.
#[derive(Debug)]
pub struct Means {
    /// Starts them.
    pub runner: Arc<RunnerSet>,
    /// Fetches inputs from outside.
    pub gather: Gather,
    /// Where they work.
    pub work: WorkRoot,
    /// The secrets of this node, and its keys.
    pub secrets: Arc<Keeper>,
    /// Marks what belongs to this run of the daemon.
    pub tag: NodeTag,
    /// Directories that jobs may use.
    pub volumes: NodeVolumes,
    /// Ends tasks whose lease is over, should this daemon not.
    pub switch: Arc<Switch>,
}

/// Nodes that say nothing although their connection looks open, and when that was looked up.
#[derive(Debug, Default)]
struct Silent {
    at: Option<Instant>,
    nodes: Arc<BTreeSet<NodeId>>,
}

/// How long a task of a job that is over may take to end: its grace, and some for what it does not heed.
const END_IN_ORDER: Span = Span::ms(3_000);

/// When a lease that ends then is over for whoever watches in the core's stead.
fn end_of(until: Time) -> u64 {
    boot_ns(until + SWITCH_AFTER)
}

/// The core is asked this often who is silent; a stalled transfer costs ten times as much.
const SILENT_EVERY: Duration = Duration::from_millis(500);

impl std::fmt::Debug for TaskHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskHost").finish_non_exhaustive()
    }
}

impl TaskHost {
    /// What task threads of a daemon share.
    #[must_use]
    pub fn new(
        store: BlobStore,
        blobs: Arc<JobBlobs>,
        link: MeshLink,
        means: Means,
        logs: LogHub,
        engine: Engine,
        runtime: tokio::runtime::Handle,
    ) -> Self {
        Self { store, blobs, link, means, logs, engine, runtime, jobs: Mutex::default(), silent: Mutex::default() }
    }

    /// Those of `providers` that answer these days; all of them when none seems to.
    async fn answering(&self, providers: Vec<NodeId>) -> Vec<NodeId> {
        let silent = self.silent_nodes().await;
        let answering: Vec<NodeId> = providers.iter().copied().filter(|n| !silent.contains(n)).collect();
        if answering.is_empty() { providers } else { answering }
    }

    async fn silent_nodes(&self) -> Arc<BTreeSet<NodeId>> {
        let lock = || self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let silent = lock();
            if silent.at.is_some_and(|at| at.elapsed() < SILENT_EVERY) {
                return Arc::clone(&silent.nodes);
            }
        }
        let look = |core: &Core| {
            let now = now().at;
            core.peers().iter().map(|(n, _)| *n).filter(|n| !core.peers().is_heard(*n, now)).collect()
        };
        let nodes = Arc::new(self.engine.look(look).await.unwrap_or_default());
        *lock() = Silent { at: Some(Instant::now()), nodes: Arc::clone(&nodes) };
        nodes
    }

    /// Connected nodes that say something these days, but for `known`.
    async fn connected_but(&self, known: &[NodeId]) -> Vec<NodeId> {
        let look = |core: &Core| {
            let (own, at) = (core.own(), now().at);
            let heard = core.peers().iter().map(|(n, _)| *n).filter(|n| *n != own && core.peers().is_heard(*n, at));
            heard.collect::<Vec<_>>()
        };
        let mut all = self.engine.look(look).await.unwrap_or_default();
        all.retain(|node| !known.contains(node));
        all
    }

    fn job(&self, id: JobId) -> Arc<job::JobCache> {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(jobs.entry(id).or_default())
    }

    /// Work directories that belong to no job, removed unless `dry_run` says otherwise.
    pub async fn leftovers(&self, dry_run: bool) -> Vec<Leftover> {
        let aside = {
            // No job comes to be known, and so gets a directory, as long as this is held.
            let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
            let known = |name: &str| jobs.keys().any(|job| job.to_string() == name);
            self.means.work.set_aside(known, dry_run)
        };
        let measured = tokio::task::spawn_blocking(move || {
            let one = |(name, path): (String, std::path::PathBuf)| {
                let bytes = crate::exec::files::size_under(&path, 0).ok();
                if !dry_run && let Err(error) = crate::exec::slot::delete(&path) {
                    tracing::warn!(dir = %path.display(), %error, "cannot remove a leftover work directory");
                }
                Leftover { kind: "work".to_owned(), name, bytes }
            };
            aside.into_iter().map(one).collect()
        });
        measured.await.unwrap_or_default()
    }

    /// A job ended: drops its files and lets go of its blobs, but for `keep`.
    pub async fn end_job(&self, id: JobId, keep: &[Hash]) {
        self.blobs.let_go(id, keep).await;
        let ran = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        self.logs.forget(id);
        if ran.is_none() {
            // No task of it was ever here: there is no directory, and no runner knows it.
            return;
        }
        let work = self.means.work.clone();
        let name = id.to_string();
        let runners = Arc::clone(&self.means.runner);
        let remove = move || {
            runners.end_job(&name);
            work.remove_job(&name)
        };
        let removed = tokio::task::spawn_blocking(remove).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(job = %id.short(), %error, "cannot remove the job's work directory");
        }
    }
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<(StartTask, StopHandle)>,
    /// Tasks waiting or running.
    known: BTreeMap<RunId, StopHandle>,
    /// Tasks that run on although nothing is to be reported of them any more.
    leaving: BTreeMap<RunId, StopHandle>,
    /// Threads busy with each job's tasks.
    busy: BTreeMap<JobId, u32>,
    idle: usize,
    threads: Vec<JoinHandle<()>>,
    ending: bool,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    more: Condvar,
    host: TaskHost,
}

/// The threads.
#[derive(Debug, Clone)]
pub struct TaskPool {
    shared: Arc<Shared>,
}

impl TaskPool {
    /// No threads yet; they come with the tasks.
    #[must_use]
    pub fn new(host: TaskHost) -> Self {
        Self { shared: Arc::new(Shared { queue: Mutex::default(), more: Condvar::new(), host }) }
    }

    /// What the threads share.
    #[must_use]
    pub fn host(&self) -> &TaskHost {
        &self.shared.host
    }

    /// Runs a task as soon as a thread is free, which is at once.
    pub fn start(&self, task: StartTask) {
        let entry = self.shared.host.means.switch.enter(end_of(task.until));
        let entry = entry.ok_or_else(|| Failure::new(ErrorCode::Lost, "this node runs as many tasks as it can"));
        let leased =
            |entry| StopHandle::leased(entry).map_err(|e| Failure::storage("open a descriptor for the task", &e));
        let stop = match entry.and_then(leased) {
            Ok(stop) => stop,
            Err(failure) => return self.shared.host.engine.input(run::failed(task.run, failure)),
        };
        let mut queue = self.shared.lock();
        queue.known.insert(task.run, stop.clone());
        let may_run = queue.may_run(&task);
        queue.waiting.push_back((task, stop));
        if !may_run {
            // Whoever finishes a task of the job takes it.
            return;
        }
        if queue.idle >= queue.waiting.iter().filter(|(task, _)| queue.may_run(task)).count() {
            drop(queue);
            self.shared.more.notify_one();
            return;
        }
        let number = u32::try_from(queue.threads.len()).unwrap_or(u32::MAX);
        let shared = Arc::clone(&self.shared);
        let name = format!("sinew-task-{number}");
        match std::thread::Builder::new().name(name).spawn(move || shared.work(number)) {
            Ok(thread) => queue.threads.push(thread),
            // Whoever becomes idle takes it; with no thread at all it waits for the next start.
            Err(error) => tracing::error!(%error, "cannot start a thread for a task"),
        }
    }

    /// Stops a task; of it no more is said than that nothing of it is left.
    pub fn stop(&self, run: RunId, why: StopWhy) {
        let mut queue = self.shared.lock();
        let waiting = queue.waiting.len();
        queue.waiting.retain(|(task, _)| task.run != run);
        // Of one that is not known the end was said.
        let Some(stop) = queue.known.remove(&run).or_else(|| queue.leaving.get(&run).cloned()) else { return };
        if queue.waiting.len() < waiting {
            drop(queue);
            return self.shared.host.engine.input(Input::NotRun(run));
        }
        match why {
            StopWhy::Fenced => stop.stop(StopReason::Fenced),
            StopWhy::Unwanted => stop.stop(StopReason::Cancelled),
            StopWhy::Over => {
                // Nobody else will run it, so that it may outlast its lease.
                stop.set_end(end_of(now().at + END_IN_ORDER));
                stop.stop(StopReason::Cancelled);
            }
        }
        queue.leaving.insert(run, stop);
    }

    /// The lease of these tasks ends then.
    pub fn renew(&self, runs: &[RunId], until: Time) {
        let end = end_of(until);
        let queue = self.shared.lock();
        let there = |run| queue.known.get(run).or_else(|| queue.leaving.get(run));
        runs.iter().filter_map(there).for_each(|stop| stop.set_end(end));
    }

    /// Ends a task in good order, and says when nothing of it is left.
    pub fn drain(&self, run: RunId) {
        let mut queue = self.shared.lock();
        let waits = queue.waiting.iter().any(|(task, _)| task.run == run);
        if waits {
            queue.waiting.retain(|(task, _)| task.run != run);
            queue.known.remove(&run);
            drop(queue);
            self.shared.host.engine.input(Input::NotRun(run));
        } else if let Some(stop) = queue.known.get(&run) {
            stop.stop(StopReason::Shutdown);
        }
    }

    /// Stops everything and waits for the threads.
    pub fn close(&self) {
        let threads = {
            let mut queue = self.shared.lock();
            queue.ending = true;
            queue.waiting.clear();
            for stop in queue.known.values().chain(queue.leaving.values()) {
                stop.stop(StopReason::Shutdown);
            }
            std::mem::take(&mut queue.threads)
        };
        self.shared.more.notify_all();
        for thread in threads {
            let _ = thread.join();
        }
    }
}

impl Queue {
    fn may_run(&self, task: &StartTask) -> bool {
        self.busy.get(&task.key.lease.job).copied().unwrap_or(0) < task.job_slots.max(1)
    }

    fn take_next(&mut self) -> Option<(StartTask, StopHandle)> {
        let at = self.waiting.iter().position(|(task, _)| self.may_run(task))?;
        let next = self.waiting.remove(at)?;
        *self.busy.entry(next.0.key.lease.job).or_default() += 1;
        Some(next)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next task that may run, after the end of one of `finished`'s.
    fn next(&self, finished: Option<JobId>) -> Option<(StartTask, StopHandle)> {
        let mut queue = self.lock();
        if let Some(busy) = finished.and_then(|job| queue.busy.get_mut(&job)) {
            *busy -= 1;
        }
        queue.busy.retain(|_, busy| *busy > 0);
        loop {
            if queue.ending {
                return None;
            }
            if let Some(next) = queue.take_next() {
                return Some(next);
            }
            queue.idle += 1;
            queue = self.more.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.idle -= 1;
        }
    }

    fn work(&self, number: u32) {
        let mut slot = None;
        let mut finished = None;
        while let Some((task, stop)) = self.next(finished) {
            finished = Some(task.key.lease.job);
            if slot.is_none() {
                match self.host.means.work.slot(number) {
                    Ok(made) => slot = Some(made),
                    Err(error) => {
                        let failure = Failure::storage("make the slot's directories", &error);
                        self.finish(task.run, run::failed(task.run, failure));
                        continue;
                    }
                }
            }
            let Some(slot) = slot.as_mut() else { continue };
            let id = task.run;
            let input = run::run(&self.host, slot, &task, &stop);
            self.finish(id, input);
        }
    }

    /// Reports a task's end; if it was stopped, only that it is gone.
    fn finish(&self, id: RunId, input: Input) {
        let known = {
            let mut queue = self.lock();
            queue.leaving.remove(&id);
            queue.known.remove(&id)
        };
        let Some(stop) = known else { return self.host.engine.input(Input::NotRun(id)) };
        if let Input::Task { result, .. } = &input
            && result.result.as_ref().is_err_and(|why| why.code == ErrorCode::Lost)
        {
            // Before it bids for more: what it needs for that may be gone.
            self.host.engine.input(Input::Runners(self.host.means.runner.ready()));
        }
        self.host.engine.input(report(stop.reason(), input));
    }
}

/// What is said of a task's end. That the node ends is not its failure.
fn report(ended_for: Option<StopReason>, input: Input) -> Input {
    match input {
        Input::Task { run, result } if result.result.is_err() && ended_for == Some(StopReason::Shutdown) => {
            Input::NotRun(run)
        }
        input => input,
    }
}

#[cfg(test)]
mod tests {
    use sinew_crdt_state::fact::Usage;
    use sinew_scheduler::io::TaskResult;

    use super::*;
    use crate::exec::outcome::Failure;

    #[test]
    fn a_shutdown_is_no_failure_of_what_it_ends_and_no_result_is_lost() {
        let run = RunId(7);
        let failed = || run::failed(run, Failure::new(ErrorCode::Exit, "it got a signal"));
        let done = || Input::Task { run, result: TaskResult { result: Ok(Vec::new()), usage: Usage::default() } };
        for reason in [None, Some(StopReason::Cancelled), Some(StopReason::Fenced), Some(StopReason::Shutdown)] {
            let not_run = matches!(report(reason, failed()), Input::NotRun(of) if of == run);
            assert_eq!(not_run, reason == Some(StopReason::Shutdown), "{reason:?}");
            assert!(matches!(report(reason, done()), Input::Task { .. }), "{reason:?}");
        }
    }
}
