//! How modules are compiled and executed: one engine for each way, and the thread that interrupts what runs.
//!
//! Running code looks at its engine's epoch at each loop and call. A [`Ticker`] counts the epoch up while something runs, and
//! then the code gives way to [`super::run`], which looks at the clock, the stop handle and what has been written.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use sinew_crdt_state::program::Wasm;
use wasmtime::{Config, Engine, OptLevel, WasmBacktraceDetails, WasmFeatures};

/// Time between two looks at a running module: a stop is noticed this late. Short against a lease, long against the
/// microsecond that a look takes.
const TICK: Duration = Duration::from_millis(10);
/// Bytes of stack for calls inside a module, as in a browser. Beyond it a module traps.
const STACK_BYTES: usize = 1 << 20;
/// Bytes of stack for the host functions that it calls, on top.
const HOST_STACK_BYTES: usize = 1 << 20;
/// Frames of a trap's backtrace.
const FRAMES_MAX: usize = 20;

/// Ways to execute a module. Each is compiled differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Mode {
    /// As fast as it can be.
    Plain,
    /// Instructions are counted.
    Fuelled,
    /// The same everywhere; instructions are counted too.
    Deterministic,
}

impl Mode {
    const ALL: [Self; 3] = [Self::Plain, Self::Fuelled, Self::Deterministic];

    pub(super) const fn of(wasm: &Wasm) -> Self {
        match wasm {
            Wasm { deterministic: true, .. } => Self::Deterministic,
            Wasm { fuel: Some(_), .. } => Self::Fuelled,
            Wasm { .. } => Self::Plain,
        }
    }

    /// Whether instructions are counted.
    pub(super) const fn counts(self) -> bool {
        !matches!(self, Self::Plain)
    }

    fn engine(self) -> wasmtime::Result<Engine> {
        let mut config = Config::new();
        config
            .consume_fuel(self.counts())
            .epoch_interruption(true)
            .max_wasm_stack(STACK_BYTES)
            .async_stack_size(STACK_BYTES + HOST_STACK_BYTES)
            .cranelift_opt_level(OptLevel::Speed)
            // What a module names as its source would have to be parsed by the daemon.
            .wasm_backtrace_details(WasmBacktraceDetails::Disable)
            .wasm_backtrace_max_frames(std::num::NonZeroUsize::new(FRAMES_MAX))
            .wasm_features(WasmFeatures::THREADS, false);
        if self == Self::Deterministic {
            config.cranelift_nan_canonicalization(true).relaxed_simd_deterministic(true);
        }
        Engine::new(&config)
    }
}

/// The engines of a node.
#[derive(Debug)]
pub(super) struct Engines {
    engines: [Engine; 3],
    ticker: Arc<Ticker>,
}

impl Engines {
    /// # Errors
    /// When this machine's processor or system is none that code can be made for.
    pub(super) fn new() -> wasmtime::Result<Self> {
        let [plain, fuelled, deterministic] = Mode::ALL.map(Mode::engine);
        let engines = [plain?, fuelled?, deterministic?];
        let ticker = Arc::new(Ticker::default());
        let (ticked, beat) = (engines.clone(), Arc::clone(&ticker));
        std::thread::Builder::new().name("sinew-wasm-ticks".to_owned()).spawn(move || beat.run(&ticked))?;
        Ok(Self { engines, ticker })
    }

    pub(super) const fn get(&self, mode: Mode) -> &Engine {
        &self.engines[mode as usize]
    }

    /// The clock, for whoever runs something.
    pub(super) const fn ticker(&self) -> &Arc<Ticker> {
        &self.ticker
    }
}

impl Drop for Engines {
    fn drop(&mut self) {
        self.ticker.change(|beats| beats.over = true);
    }
}

/// Counts the epoch up while something runs, and rests otherwise.
#[derive(Debug, Default)]
pub(super) struct Ticker {
    beats: Mutex<Beats>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Beats {
    running: usize,
    over: bool,
}

impl Ticker {
    /// Keeps the ticks going until the answer is dropped.
    pub(super) fn enter(self: &Arc<Self>) -> Ticking {
        self.change(|beats| beats.running += 1);
        Ticking(Arc::clone(self))
    }

    fn change(&self, how: impl FnOnce(&mut Beats)) {
        how(&mut self.beats.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_one();
    }

    fn run(&self, engines: &[Engine]) {
        let mut beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        while !beats.over {
            beats = if beats.running == 0 {
                self.changed.wait(beats).unwrap_or_else(PoisonError::into_inner)
            } else {
                let (beats, _) = self.changed.wait_timeout(beats, TICK).unwrap_or_else(PoisonError::into_inner);
                engines.iter().for_each(Engine::increment_epoch);
                beats
            };
        }
    }
}

/// Something runs.
#[derive(Debug)]
pub(super) struct Ticking(Arc<Ticker>);

impl Drop for Ticking {
    fn drop(&mut self) {
        // Without a wake-up: the ticker finds out at its next tick.
        self.0.beats.lock().unwrap_or_else(PoisonError::into_inner).running -= 1;
    }
}
