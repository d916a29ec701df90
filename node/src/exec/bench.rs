//! How many processes a second this machine starts: with nothing around them, and through the whole of [`super::task`]. The
//! first is the floor that the second is measured against.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use sinew_crdt_state::network::NO_NETWORK;
use sinew_crdt_state::spec::{Limits, Program, Resources};

use super::files::JobFiles;
use super::guardian::NodeTag;
use super::lookup;
use super::process::ProcessRunner;
use super::procfs;
use super::runner::GRACE_DEFAULT;
use super::set::NO_CONTENT;
use super::slot::WorkRoot;
use super::stop::StopHandle;
use super::task::{TaskContext, run_batch};

/// Processes a second, and what one costs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SpawnRate {
    /// By a plain loop of `posix_spawn` and wait.
    pub floor_per_s: f64,
    /// As batch tasks.
    pub runner_per_s: f64,
    /// CPU µs of one, parent and child together, in the plain loop. Unlike the rates it hardly depends on what else runs.
    pub floor_cpu_us: f64,
    /// CPU µs of one as a batch task.
    pub runner_cpu_us: f64,
}

/// Runs `true` `count` times each way on `threads` threads.
///
/// # Errors
/// When a process or a directory cannot be made.
pub fn spawn_rate(count: u32, threads: u32) -> io::Result<SpawnRate> {
    // Found beforehand and without an environment: the floor is to be no higher than it must.
    let path = std::env::var("PATH").unwrap_or_default();
    let found = lookup::find("true", Path::new("/"), false, &path).map_err(io::Error::other)?;
    let floor = |_: u32, count: u32, next: &AtomicU32| -> io::Result<()> {
        while next.fetch_add(1, Ordering::Relaxed) < count {
            if !Command::new(&found).env_clear().spawn()?.wait()?.success() {
                return Err(io::Error::other("`true` failed"));
            }
        }
        Ok(())
    };
    let dir = tempfile::tempdir()?;
    let root = WorkRoot::open(&dir.path().join("work"))?;
    let runner = ProcessRunner::new(NodeTag::new("bench"));
    let program = Program::Exec(vec!["true".to_owned()]);
    let tasks = |thread: u32, count: u32, next: &AtomicU32| -> io::Result<()> {
        let mut slot = root.slot(thread)?;
        let (env, files) = (BTreeMap::new(), JobFiles::none());
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= count {
                return Ok(());
            }
            let stop = StopHandle::new()?;
            let ctx = TaskContext {
                runner: &runner,
                job: "bench",
                phase: 0,
                task,
                attempt: 1,
                number: 1,
                fence: (1, 1),
                files: &files,
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
                started: None,
            };
            run_batch(&ctx, &mut slot, &program, &[]).outcome.result.map_err(io::Error::other)?;
        }
    };
    let (mut plain, mut whole) = (Spent::default(), Spent::default());
    // By turns, so that whatever else the machine does meanwhile hits both alike.
    for turn in 0..TURNS {
        let share = (count + turn) / TURNS;
        plain.add(&spend(share, threads, &floor)?);
        whole.add(&spend(share, threads, &tasks)?);
    }
    let (floor_per_s, floor_cpu_us) = plain.per(count);
    let (runner_per_s, runner_cpu_us) = whole.per(count);
    Ok(SpawnRate { floor_per_s, runner_per_s, floor_cpu_us, runner_cpu_us })
}

/// How often floor and runner alternate.
const TURNS: u32 = 8;

/// Time that a number of tasks took.
#[derive(Debug, Clone, Copy, Default)]
struct Spent {
    wall_s: f64,
    cpu_us: f64,
}

impl Spent {
    fn add(&mut self, more: &Self) {
        self.wall_s += more.wall_s;
        self.cpu_us += more.cpu_us;
    }

    /// Tasks a second and CPU µs of one.
    fn per(&self, count: u32) -> (f64, f64) {
        (f64::from(count) / self.wall_s, self.cpu_us / f64::from(count.max(1)))
    }
}

/// CPU µs of this process and the children it waited for, so far.
fn cpu_us() -> f64 {
    let own = i32::try_from(std::process::id()).ok().and_then(procfs::stat);
    let ms = own.map_or(0, |stat| stat.cpu_ms + stat.children_cpu_ms);
    std::time::Duration::from_millis(ms).as_secs_f64() * 1e6
}

fn spend<F>(count: u32, threads: u32, work: &F) -> io::Result<Spent>
where
    F: Fn(u32, u32, &AtomicU32) -> io::Result<()> + Sync,
{
    let (next, began, cpu_before) = (AtomicU32::new(0), Instant::now(), cpu_us());
    std::thread::scope(|scope| {
        let next = &next;
        let threads: Vec<_> = (0..threads.max(1)).map(|i| scope.spawn(move || work(i, count, next))).collect();
        let join = |t: std::thread::ScopedJoinHandle<'_, io::Result<()>>| {
            t.join().unwrap_or_else(|_| Err(io::Error::other("a bench thread panicked")))
        };
        threads.into_iter().map(join).collect::<io::Result<Vec<()>>>()
    })?;
    Ok(Spent { wall_s: began.elapsed().as_secs_f64(), cpu_us: cpu_us() - cpu_before })
}
