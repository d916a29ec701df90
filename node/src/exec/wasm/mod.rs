//! The `wasm` runner: WebAssembly modules for WASI preview 1, run by `wasmtime` inside the daemon on the task's own thread. What
//! holds a module is that its code can reach nothing but its memory and the functions that it imports; it needs no namespaces,
//! and has no process that the kernel could hold.
//!
//! Entry points: [`WasmRunner`], then `modules` (compiling), `host` (what a module gets), `run` (from start to end), `clock` and
//! `fixed` (what a deterministic one sees instead). It runs components and WASI preview 2 not at all, and gives no network.

mod clock;
mod control;
mod engine;
mod fixed;
mod host;
mod modules;
mod pipes;
mod run;

use std::sync::Arc;

use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::program::{Program, Runners, Wasm};

use self::control::Watch;
use self::engine::Mode;
use self::host::Limiter;
use self::modules::Modules;
use self::pipes::Pipes;
use self::run::Instance;
use super::allowlist::Caps;
use super::outcome::Failure;
use super::runner::{Execution, Health, Launch, Prepared, Runner, View};

/// How modules are run on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WasmOptions {
    /// Bytes of memory for all tasks together.
    pub memory_bytes: u64,
    /// How many tasks share that: one that reserves none gets this part of it.
    pub slots: u32,
    /// Bytes of the largest module that is compiled.
    pub module_bytes_max: u64,
}

/// Runs WebAssembly modules.
#[derive(Debug)]
pub struct WasmRunner {
    options: WasmOptions,
    /// Or why there are none.
    modules: Result<Modules, String>,
}

impl WasmRunner {
    /// A runner, ready where this machine's processor is one that `wasmtime` knows.
    #[must_use]
    pub fn new(options: WasmOptions) -> Self {
        let modules = Modules::new(options.module_bytes_max);
        Self { options, modules: modules.map_err(|e| format!("wasmtime does not work on this machine: {e}")) }
    }

    /// A runner that runs nothing, for this reason.
    #[must_use]
    pub const fn refusing(options: WasmOptions, why: String) -> Self {
        Self { options, modules: Err(why) }
    }

    fn modules(&self) -> Result<&Modules, Failure> {
        self.modules.as_ref().map_err(|why| Failure::new(ErrorCode::Deny, why.clone()))
    }

    /// Bytes that the launch's module may have.
    fn memory_bytes(&self, launch: &Launch<'_>) -> u64 {
        let most = self.options.memory_bytes;
        match launch.place.resources.memory_bytes {
            0 => most / u64::from(self.options.slots.max(1)),
            reserved => reserved.min(most),
        }
    }
}

impl Runner for WasmRunner {
    fn kind(&self) -> Runners {
        Runners::WASM
    }

    fn health(&self) -> Health {
        self.modules.as_ref().map_or_else(|why| Health::Unavailable(why.clone()), |_| Health::Ready)
    }

    fn view(&self, _program: &Program) -> View {
        View::Cell
    }

    fn prepare(&self, launch: &Launch<'_>) -> Result<Prepared, Failure> {
        self.modules()?.get(launch, wasm(launch.program)?)?;
        let program = launch.content.unwrap_or(launch.dir).to_owned();
        Ok(Prepared { program, caps: Caps::default() })
    }

    fn start(&self, launch: &Launch<'_>, _prepared: Prepared) -> Result<Box<dyn Execution>, Failure> {
        let (modules, wasm) = (self.modules()?, wasm(launch.program)?);
        // It is there since it was prepared, but for the rare case that others took its place.
        let pre = modules.get(launch, wasm)?;
        let pipes = Pipes::default();
        let watch = Arc::new(Watch::new(launch));
        let limiter = Limiter::new(self.memory_bytes(launch), Arc::clone(&watch));
        let engine = modules.engines().get(Mode::of(wasm));
        let store = host::store(engine, launch, wasm, &pipes, limiter)?;
        let ticker = Arc::clone(modules.engines().ticker());
        let (fuel, cpu_milli) = (wasm.fuel, launch.place.resources.cpu_milli);
        Ok(Box::new(Instance { pre, store, pipes, watch, ticker, fuel, cpu_milli }))
    }

    fn end_job(&self, job: &str) {
        if let Ok(modules) = &self.modules {
            modules.end_job(job);
        }
    }
}

fn wasm(program: &Program) -> Result<&Wasm, Failure> {
    match program {
        Program::Wasm(wasm) => Ok(wasm),
        other => Err(Failure::new(ErrorCode::Invalid, format!("a program for `{}` is no module", other.runner()))),
    }
}
