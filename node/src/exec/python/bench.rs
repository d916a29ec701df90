//! How many calls a second one machine makes through the whole of [`crate::exec::task`], without a mesh around it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::time::Instant;

use sinew_crdt_state::network::NO_NETWORK;
use sinew_crdt_state::program::{Params, PythonCall};
use sinew_crdt_state::spec::{Limits, Program, Resources};

use super::{PythonOptions, PythonRunner};
use crate::exec::cell::pool::{Sandbox, SandboxMode, SandboxOptions};
use crate::exec::files::JobFiles;
use crate::exec::guardian::NodeTag;
use crate::exec::process::ProcessRunner;
use crate::exec::procfs;
use crate::exec::runner::{Control, GRACE_DEFAULT, Health, Runner, Status};
use crate::exec::set::NO_CONTENT;
use crate::exec::slot::{Slot, WorkRoot};
use crate::exec::stop::StopHandle;
use crate::exec::task::{TaskContext, run_batch};

/// Calls of each worker before the clock starts.
const WARM_UP: u32 = 100;
/// Bytes of memory for all workers.
const MEMORY_BYTES: u64 = 2 << 30;
/// Bytes of a worker's `/tmp`.
const TMP_BYTES: u64 = 64 << 20;

/// Calls a second, and what one costs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CallRate {
    /// Calls a second, all workers together.
    pub calls_per_s: f64,
    /// CPU µs of a call in this process, which drives it.
    pub driver_cpu_us: f64,
    /// CPU µs of a call in the worker.
    pub worker_cpu_us: f64,
    /// Whether the workers were isolated, with every piece.
    pub isolated: bool,
}

/// The module and function that benches call.
pub const NOOP: (&str, &str) = ("noop", "def run(): pass\n");

/// The call of [`NOOP`].
#[must_use]
pub fn noop() -> PythonCall {
    PythonCall { call: format!("{}:run", NOOP.0), params: Params::Json("{}".to_owned()) }
}

/// Calls a function that does nothing `count` times on `threads` workers; in cells made by `exe` as far as this machine can.
///
/// # Errors
/// When there is no interpreter, or a call fails.
pub fn call_rate(exe: &Path, count: u32, threads: u32) -> io::Result<CallRate> {
    let dir = tempfile::tempdir()?;
    let root = WorkRoot::open(&dir.path().join("work"))?;
    let (runner, isolated) = runner(exe, threads)?;
    let mut placing = JobFiles::place_in(&root.input("bench")).map_err(io::Error::other)?;
    placing.add(&format!("{}.py", NOOP.0), false, &mut NOOP.1.as_bytes()).map_err(io::Error::other)?;
    let files = placing.finish();
    let bench = Bench { runner, files, next: AtomicU32::new(0), count, pids: Mutex::default() };
    let (warm, done) = (Barrier::new(threads as usize + 1), Barrier::new(threads as usize + 1));
    std::thread::scope(|scope| {
        let slots = (0..threads).map(|i| root.slot(i)).collect::<io::Result<Vec<_>>>()?;
        let (bench, warm, done) = (&bench, &warm, &done);
        let worker = |mut slot: Slot| {
            scope.spawn(move || {
                let warmed = (0..WARM_UP).try_for_each(|_| bench.call(&mut slot, true));
                warm.wait();
                let ran = warmed.and_then(|()| bench.calls(&mut slot));
                done.wait();
                ran
            })
        };
        let running: Vec<_> = slots.into_iter().map(worker).collect();
        warm.wait();
        let (began, before) = (Instant::now(), bench.cpu_us());
        done.wait();
        let (elapsed, after) = (began.elapsed(), bench.cpu_us());
        for thread in running {
            thread.join().map_err(|_| io::Error::other("a bench thread panicked"))??;
        }
        let per_call = |i: usize| (after[i] - before[i]) / f64::from(count);
        let calls_per_s = f64::from(count) / elapsed.as_secs_f64();
        Ok(CallRate { calls_per_s, driver_cpu_us: per_call(0), worker_cpu_us: per_call(1), isolated })
    })
}

fn runner(exe: &Path, slots: u32) -> io::Result<(PythonRunner, bool)> {
    let tag = NodeTag::new("bench");
    let options = SandboxOptions {
        mode: SandboxMode::BestEffort,
        exe: exe.to_owned(),
        readable: Vec::new(),
        writable: Vec::new(),
        tmp_bytes: TMP_BYTES,
        memory_bytes: MEMORY_BYTES,
        slots,
    };
    let (sandbox, missing) = Sandbox::probe(options, &tag).map_err(io::Error::other)?;
    let isolated = sandbox.is_some() && missing.is_empty();
    let bare = ProcessRunner::new(tag.clone());
    let process = sandbox.map_or(bare, |sandbox| ProcessRunner::sandboxed(tag, sandbox));
    let runner = PythonRunner::new(PythonOptions::default(), &process);
    runner.try_out();
    match runner.health() {
        Health::Ready => Ok((runner, isolated)),
        Health::Unavailable(why) => Err(io::Error::other(why)),
    }
}

struct Bench {
    runner: PythonRunner,
    files: JobFiles,
    next: AtomicU32,
    count: u32,
    /// The workers.
    pids: Mutex<BTreeSet<i32>>,
}

impl Bench {
    fn calls(&self, slot: &mut Slot) -> io::Result<()> {
        while self.next.fetch_add(1, Ordering::Relaxed) < self.count {
            self.call(slot, false)?;
        }
        Ok(())
    }

    fn call(&self, slot: &mut Slot, note: bool) -> io::Result<()> {
        let started = |control: Arc<dyn Control>| {
            if let Status::Running(Some(pid)) = control.status() {
                let mut pids = self.pids.lock().unwrap_or_else(PoisonError::into_inner);
                pids.extend(i32::try_from(pid).ok());
            }
        };
        let (stop, env) = (StopHandle::new()?, BTreeMap::new());
        let task = self.next.load(Ordering::Relaxed);
        let ctx = TaskContext {
            runner: &self.runner,
            job: "bench",
            phase: 0,
            task,
            attempt: 1,
            number: 1,
            fence: (1, 1),
            files: &self.files,
            content: &NO_CONTENT,
            volumes: &[],
            env: &env,
            secrets: None,
            limits: Limits { timeout_ms: Some(60_000), ..Limits::default() },
            resources: Resources::default(),
            network: &NO_NETWORK,
            grace: GRACE_DEFAULT,
            stop: &stop,
            live: None,
            started: note.then_some(&started),
        };
        let outcome = run_batch(&ctx, slot, &Program::Python(noop()), &[]).outcome;
        outcome.result.map(|_| ()).map_err(io::Error::other)
    }

    /// CPU µs so far, of this process and of the workers.
    fn cpu_us(&self) -> [f64; 2] {
        let of = |pid: i32| procfs::stat(pid).map_or(0, |stat| stat.cpu_ms);
        let own = of(i32::try_from(std::process::id()).unwrap_or(0));
        let workers = self.pids.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|pid| of(*pid)).sum();
        [own, workers].map(|ms: u64| std::time::Duration::from_millis(ms).as_secs_f64() * 1e6)
    }
}
