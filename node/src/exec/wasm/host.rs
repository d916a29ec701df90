//! What a module gets: three directories, its arguments and variables, clocks and random numbers, and so much memory.

use std::path::Path;
use std::sync::Arc;

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::SeedableRng;
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::program::Wasm;
use wasmtime::{Engine, Linker, ResourceLimiter, Store};
use wasmtime_wasi::p1::{self, WasiP1Ctx};
use wasmtime_wasi::{FsPerms, WasiCtxBuilder, WasiView};

use super::clock::{Alarm, Clock, Clocks, poll_oneoff};
use super::control::Watch;
use super::engine::Mode;
use super::fixed;
use super::pipes::{Pipes, Stream};
use crate::exec::cell;
use crate::exec::outcome::Failure;
use crate::exec::runner::{Launch, View};
use crate::exec::volumes;

/// What a module finds as its own name.
const ARG0: &str = "program";
/// Files and directories that a module may have open, and whatever else its host keeps for it: their descriptors are the
/// daemon's, which has others to keep.
const RESOURCES_MAX: usize = 256;
/// Linear memories and tables of one module; compilers make one of each.
const MEMORIES_MAX: usize = 4;
const TABLES_MAX: usize = 16;
/// Bytes that an entry of a table takes at most.
const TABLE_ENTRY_BYTES: u64 = 16;
/// Longest variable name or value taken from a spec, as for processes.
const VARIABLE_LEN_MAX: usize = 128 * 1024;

/// The host's side of one running module.
pub(super) struct State {
    pub(super) wasi: WasiP1Ctx,
    pub(super) limiter: Limiter,
    pub(super) clock: Arc<Clock>,
    pub(super) alarm: Alarm,
}

/// What links modules to it.
///
/// # Errors
/// When a function is there already, which none is.
pub(super) fn linker(engine: &Engine, mode: Mode) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    p1::add_to_linker_async(&mut linker, |state: &mut State| &mut state.wasi)?;
    linker.allow_shadowing(true);
    linker
        .func_wrap_async("wasi_snapshot_preview1", "poll_oneoff", |caller, args| Box::new(poll_oneoff(caller, args)))?;
    if mode == Mode::Deterministic {
        fixed::add_to(&mut linker)?;
    }
    linker.allow_shadowing(false);
    Ok(linker)
}

/// Makes a module's host.
///
/// # Errors
/// `E_INVALID` for a variable that cannot be one, `E_STORAGE` when a directory cannot be opened.
pub(super) fn store(
    engine: &Engine,
    launch: &Launch<'_>,
    wasm: &Wasm,
    pipes: &Pipes,
    limiter: Limiter,
) -> Result<Store<State>, Failure> {
    let deterministic = Mode::of(wasm) == Mode::Deterministic;
    let clock = Arc::new(Clock::new(deterministic));
    let mut wasi = WasiCtxBuilder::new();
    // Files are local, and the thread is the task's own.
    wasi.allow_blocking_current_thread(true);
    wasi.stdin(pipes.stdin()).stdout(pipes.output(Stream::Stdout)).stderr(pipes.output(Stream::Stderr));
    wasi.wall_clock(Clocks(Arc::clone(&clock))).monotonic_clock(Clocks(Arc::clone(&clock)));
    wasi.arg(ARG0).args(&wasm.argv);
    add_variables(&mut wasi, launch, deterministic)?;
    if deterministic {
        wasi.secure_random(ChaCha12Rng::from_seed(seed(launch)));
    }
    add_directories(&mut wasi, launch)?;
    let mut wasi = wasi.build_p1();
    wasi.ctx().table.set_max_capacity(RESOURCES_MAX);
    let mut store = Store::new(engine, State { wasi, limiter, clock, alarm: Alarm::default() });
    store.limiter(|state| &mut state.limiter);
    store.epoch_deadline_async_yield_and_update(1);
    if Mode::of(wasm).counts() {
        let set = store.set_fuel(wasm.fuel.unwrap_or(u64::MAX));
        set.map_err(|e| Failure::new(ErrorCode::Invalid, format!("fuel cannot be set: {e}")))?;
    }
    Ok(store)
}

fn add_variables(wasi: &mut WasiCtxBuilder, launch: &Launch<'_>, deterministic: bool) -> Result<(), Failure> {
    for (name, value) in launch.env {
        let bad = name.is_empty() || name.contains(['=', '\0']) || value.contains('\0');
        if bad || name.len() + value.len() > VARIABLE_LEN_MAX {
            let shown: String = name.chars().take(64).collect();
            return Err(Failure::new(ErrorCode::Invalid, format!("environment variable `{shown}` cannot be set")));
        }
        if !launch.fixed_env.iter().any(|(fixed, _)| fixed == name) {
            wasi.env(name, value);
        }
    }
    for (name, value) in launch.fixed_env {
        // Which attempt this is differs from run to run.
        if !(deterministic && matches!(*name, "SINEW_ATTEMPT" | "SINEW_FENCE")) {
            wasi.env(name, value);
        }
    }
    for (name, value) in volumes::variables(launch.place.volumes, View::Cell) {
        wasi.env(name, value);
    }
    Ok(())
}

fn add_directories(wasi: &mut WasiCtxBuilder, launch: &Launch<'_>) -> Result<(), Failure> {
    let output = launch.place.dir.join("output");
    let own: [(&Path, &str); 3] = [(launch.dir, "."), (launch.dir, cell::WORK), (&output, cell::OUTPUT)];
    let place = &launch.place;
    let input = place.input.map(|dir| (dir, cell::INPUT, FsPerms::ReadOnly));
    let secrets = place.secrets.map(|secrets| secrets.dir(place.slot, None)).transpose()?.flatten();
    let secrets = secrets.as_deref().map(|dir| (dir, cell::SECRETS, FsPerms::ReadOnly));
    for (dir, name, perms) in
        own.into_iter().map(|(dir, name)| (dir, name, FsPerms::ReadWrite)).chain(input).chain(secrets)
    {
        wasi.preopened_dir(dir, name, perms).map_err(|e| {
            let error = e.downcast::<std::io::Error>().unwrap_or_else(|e| std::io::Error::other(e.to_string()));
            Failure::storage(&format!("open the task's {name}"), &error)
        })?;
    }
    for volume in launch.place.volumes {
        let perms = if volume.read_only { FsPerms::ReadOnly } else { FsPerms::ReadWrite };
        let opened = wasi.preopened_dir(&volume.host, volume.path.to_string_lossy(), perms);
        let why = |_| Failure::new(ErrorCode::Deny, format!("volume `{}` of this node cannot be opened", volume.name));
        opened.map_err(why)?;
    }
    Ok(())
}

/// The same for the same task of the same job, whoever runs it, and another for each.
fn seed(launch: &Launch<'_>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("sinew 2026 random numbers of deterministic wasm tasks");
    let phase = launch.fixed_env.iter().find(|(name, _)| *name == "SINEW_PHASE");
    for part in [launch.place.job, phase.map_or("", |(_, phase)| phase), &launch.task.to_string()] {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    hasher.finalize().into()
}

/// Holds a module to its memory. It is ended when it wants more, as a process is.
#[derive(Debug)]
pub(super) struct Limiter {
    max_bytes: u64,
    bytes: u64,
    is_over: bool,
    watch: Arc<Watch>,
}

impl Limiter {
    pub(super) const fn new(max_bytes: u64, watch: Arc<Watch>) -> Self {
        Self { max_bytes, bytes: 0, is_over: false, watch }
    }

    /// The failure of a module that wanted more than it may have.
    pub(super) fn failure(&self) -> Option<Failure> {
        self.is_over.then(|| Failure::out_of_memory(self.max_bytes))
    }

    fn grow(&mut self, by: u64) -> wasmtime::Result<bool> {
        let wanted = self.bytes.saturating_add(by);
        if wanted > self.max_bytes {
            self.is_over = true;
            wasmtime::bail!("it wants {wanted} bytes of memory and may have {}", self.max_bytes);
        }
        self.bytes = wanted;
        self.watch.set_memory(wanted);
        Ok(true)
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, current: usize, desired: usize, max: Option<usize>) -> wasmtime::Result<bool> {
        if max.is_some_and(|max| desired > max) {
            return Ok(false);
        }
        self.grow(desired.saturating_sub(current) as u64)
    }

    fn table_growing(&mut self, current: usize, desired: usize, max: Option<usize>) -> wasmtime::Result<bool> {
        if max.is_some_and(|max| desired > max) {
            return Ok(false);
        }
        self.grow((desired.saturating_sub(current) as u64).saturating_mul(TABLE_ENTRY_BYTES))
    }

    fn instances(&self) -> usize {
        1
    }

    fn tables(&self) -> usize {
        TABLES_MAX
    }

    fn memories(&self) -> usize {
        MEMORIES_MAX
    }
}
