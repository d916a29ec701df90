//! Compiled modules, each kept while a job on this node needs it. Compiling takes seconds where the module is large: it is done
//! on threads of its own, so that a task that is stopped or out of time meanwhile does not wait for it.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::ids::Hash;
use sinew_crdt_state::program::Wasm;
use wasmtime::{ExternType, InstancePre, Linker, Module};

use super::engine::{Engines, Mode};
use super::host::{State, linker};
use super::run::timespec;
use crate::exec::outcome::Failure;
use crate::exec::runner::Launch;

/// Threads that compile: with two, one hostile module does not hold up everybody.
const COMPILERS: usize = 2;
/// As programs of cells: tasks give way to the daemon.
const NICE: i32 = 5;
/// The compiler recurses with the nesting of what it compiles.
const COMPILER_STACK_BYTES: usize = 8 << 20;
/// Compiled modules kept at most, beyond which those of the longest idle jobs go.
const MODULES_MAX: usize = 64;

type Key = (Hash, Mode);

/// A module that is ready to be started, or why it never will be.
type Made = Result<InstancePre<State>, Failure>;

struct Entry {
    made: OnceLock<Made>,
    /// Becomes readable, and stays so, once it is made.
    done: OwnedFd,
}

#[derive(Default)]
struct Kept {
    entry: Option<Arc<Entry>>,
    jobs: BTreeSet<String>,
    /// Tasks that wait for it.
    waiting: usize,
    used: Option<Instant>,
}

struct Order {
    key: Key,
    path: PathBuf,
    entry: Arc<Entry>,
}

struct Shared {
    engines: Engines,
    linkers: [Linker<State>; 3],
    kept: Mutex<HashMap<Key, Kept>>,
    bytes_max: u64,
}

/// The compiled modules of a node.
pub(super) struct Modules {
    shared: Arc<Shared>,
    orders: Sender<Order>,
}

impl fmt::Debug for Modules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Modules").field("kept", &self.shared.kept().len()).finish_non_exhaustive()
    }
}

impl Modules {
    /// # Errors
    /// When this machine is none that modules can be compiled for.
    pub(super) fn new(bytes_max: u64) -> wasmtime::Result<Self> {
        let engines = Engines::new()?;
        let linker = |mode| linker(engines.get(mode), mode);
        let linkers = [linker(Mode::Plain)?, linker(Mode::Fuelled)?, linker(Mode::Deterministic)?];
        let shared = Arc::new(Shared { engines, linkers, kept: Mutex::default(), bytes_max });
        let (orders, queue) = channel();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..COMPILERS {
            let (shared, queue) = (Arc::clone(&shared), Arc::clone(&queue));
            let thread = std::thread::Builder::new().name("sinew-wasm-compile".to_owned());
            thread.stack_size(COMPILER_STACK_BYTES).spawn(move || compile_all(&shared, &queue))?;
        }
        Ok(Self { shared, orders })
    }

    pub(super) fn engines(&self) -> &Engines {
        &self.shared.engines
    }

    /// The launch's module, compiled, for as long as its job is on this node.
    ///
    /// # Errors
    /// `E_INVALID` when it is none, the stop's failure or `E_TIMEOUT` when it takes too long.
    pub(super) fn get(&self, launch: &Launch<'_>, wasm: &Wasm) -> Made {
        let missing = || Failure::new(ErrorCode::Invalid, "the module is missing");
        let path = launch.content.filter(|path| path.is_file()).ok_or_else(missing)?;
        let key = (wasm.module.hash, Mode::of(wasm));
        let entry = self.order(key, path, launch.place.job)?;
        let waited = wait(&entry, launch);
        let mut kept = self.shared.kept();
        if let Some(kept) = kept.get_mut(&key) {
            kept.waiting = kept.waiting.saturating_sub(1);
        }
        if waited.is_ok() && entry.made.get().is_some_and(|made| made.as_ref().is_err_and(|why| why.retryable)) {
            kept.remove(&key);
        }
        drop(kept);
        waited
    }

    /// Finds it, or orders it.
    fn order(&self, key: Key, path: &Path, job: &str) -> Result<Arc<Entry>, Failure> {
        let lacking = |e: rustix::io::Errno| {
            Failure::new(ErrorCode::Lost, format!("this node could not give the task an event descriptor: {e}"))
        };
        let mut all = self.shared.kept();
        make_room(&mut all, &key);
        let kept = all.entry(key).or_default();
        (kept.used, kept.waiting) = (Some(Instant::now()), kept.waiting + 1);
        if !kept.jobs.contains(job) {
            kept.jobs.insert(job.to_owned());
        }
        if let Some(entry) = &kept.entry {
            return Ok(Arc::clone(entry));
        }
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let entry = Arc::new(Entry { made: OnceLock::new(), done: eventfd(0, flags).map_err(lacking)? });
        kept.entry = Some(Arc::clone(&entry));
        drop(all);
        let order = Order { key, path: path.to_owned(), entry: Arc::clone(&entry) };
        let gone = |_| Failure::new(ErrorCode::Lost, "the compilers of this node are gone");
        self.orders.send(order).map_err(gone)?;
        Ok(entry)
    }

    /// The job is over: modules that no other needs go.
    pub(super) fn end_job(&self, job: &str) {
        self.shared.kept().retain(|_, kept| !kept.jobs.remove(job) || !kept.jobs.is_empty());
    }
}

fn make_room(all: &mut HashMap<Key, Kept>, wanted: &Key) {
    if all.len() < MODULES_MAX || all.contains_key(wanted) {
        return;
    }
    let idle = all.iter().filter(|(_, kept)| kept.waiting == 0).min_by_key(|(_, kept)| kept.used);
    if let Some(key) = idle.map(|(key, _)| *key) {
        all.remove(&key);
    }
}

fn wait(entry: &Entry, launch: &Launch<'_>) -> Made {
    loop {
        if let Some(made) = entry.made.get() {
            return made.clone();
        }
        if let Some(reason) = launch.stop.reason() {
            return Err(reason.failure());
        }
        let deadline = launch.limits.deadline;
        if deadline.is_some_and(|at| Instant::now() >= at) {
            return Err(launch.limits.timeout_failure());
        }
        let stop = launch.stop.wake_fd();
        let mut fds = [PollFd::new(&entry.done, PollFlags::IN), PollFd::new(&stop, PollFlags::IN)];
        // Interrupted or not: what there is to see is looked at again.
        let _ = poll(&mut fds, deadline.map(timespec).as_ref());
    }
}

impl Shared {
    fn kept(&self) -> MutexGuard<'_, HashMap<Key, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anybody still waits for it; if not, it is forgotten.
    fn is_wanted(&self, order: &Order) -> bool {
        let mut kept = self.kept();
        // Under the same key may be a later one with an order of its own.
        let own = |kept: &&Kept| kept.entry.as_ref().is_some_and(|entry| Arc::ptr_eq(entry, &order.entry));
        let waiting = kept.get(&order.key).filter(own).map(|kept| kept.waiting);
        if waiting == Some(0) {
            kept.remove(&order.key);
        }
        waiting.is_some_and(|waiting| waiting > 0)
    }

    fn make(&self, key: Key, path: &Path) -> Made {
        let bytes = self.read(path)?;
        let (_, mode) = key;
        let invalid =
            |e: wasmtime::Error| Failure::new(ErrorCode::Invalid, format!("the module cannot be run: {}", chain(&e)));
        let module = Module::from_binary(self.engines.get(mode), &bytes).map_err(invalid)?;
        match module.get_export("_start") {
            Some(ExternType::Func(start)) if start.params().len() + start.results().len() == 0 => {}
            _ => {
                let message = "the module cannot be run: it exports no function `_start` without parameters and results; \
                               build it as a WASI command (wasm32-wasip1), not as a library";
                return Err(Failure::new(ErrorCode::Invalid, message));
            }
        }
        self.linkers[mode as usize].instantiate_pre(&module).map_err(|e| {
            let message = format!("the module cannot be run: {}; only WASI preview 1 can be imported", chain(&e));
            Failure::new(ErrorCode::Invalid, message)
        })
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>, Failure> {
        let storage = |e| Failure::storage("read the module", &e);
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(storage)?;
        file.take(self.bytes_max.saturating_add(1)).read_to_end(&mut bytes).map_err(storage)?;
        if bytes.len() as u64 > self.bytes_max {
            let max = self.bytes_max;
            let message = format!("the module has more than {max} bytes, which this node does not compile");
            return Err(Failure::new(ErrorCode::Invalid, message));
        }
        Ok(bytes)
    }
}

/// What went wrong and why, in one line.
fn chain(error: &wasmtime::Error) -> String {
    error.chain().map(ToString::to_string).collect::<Vec<_>>().join(": ").replace('\n', " ")
}

fn compile_all(shared: &Shared, queue: &Mutex<Receiver<Order>>) {
    // Without it they are as urgent as the daemon, which is no reason not to compile.
    let _ = rustix::process::setpriority_process(None, NICE);
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(order) = next else { return };
        if !shared.is_wanted(&order) {
            continue;
        }
        let made = catch_unwind(AssertUnwindSafe(|| shared.make(order.key, &order.path)));
        let failed = |_| Err(Failure::new(ErrorCode::Invalid, "the module cannot be run: the compiler failed on it"));
        let _ = order.entry.made.set(made.unwrap_or_else(failed));
        // The counter cannot overflow: this is written once.
        let _ = rustix::io::write(order.entry.done.as_fd(), &1_u64.to_ne_bytes());
    }
}
