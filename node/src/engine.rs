//! Drives the core: one thread that owns it, feeds it inputs in batches, and carries its effects out through [`Driver`].
//!
//! The thread does no I/O of its own, so heartbeats are never late for somebody's disk.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use sinew_scheduler::Setup;
use sinew_scheduler::core::{Core, Stored};
use sinew_scheduler::io::{Effect, Input};
use sinew_scheduler::time::{Span, Time};

use crate::clock::now;

/// Inputs handled between two flushes: bounds how stale an answer can get, far above what one wake-up brings.
const BATCH_MAX: usize = 4_096;

/// Carries effects out. Called on the core's thread: nothing in it may wait.
pub trait Driver: Send + 'static {
    /// Does it, or hands it to someone who will. May leave inputs that are known at once in `inputs`.
    fn carry_out(&mut self, effect: Effect, inputs: &mut Vec<Input>);
}

type Look = Box<dyn FnOnce(&Core) + Send>;

enum Command {
    Input(Input),
    Look(Look),
    Stop,
}

/// A handle on the core's thread.
#[derive(Debug, Clone)]
pub struct Engine {
    tx: Sender<Command>,
}

/// The thread itself.
#[derive(Debug)]
pub struct EngineThread {
    tx: Sender<Command>,
    thread: Option<JoinHandle<()>>,
}

/// The core's thread has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the daemon is shutting down")]
pub struct Gone;

impl Engine {
    /// A queue for a core that is not started yet; inputs wait in it.
    #[must_use]
    pub fn queue() -> (Self, EngineQueue) {
        let (tx, rx) = channel();
        (Self { tx }, EngineQueue { rx })
    }

    /// Hands an input to the core.
    pub fn input(&self, input: Input) {
        // After the end there is nobody left to be told.
        let _ = self.tx.send(Command::Input(input));
    }

    /// Looks at the core, between two batches.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn look<T: Send + 'static>(&self, look: impl FnOnce(&Core) -> T + Send + 'static) -> Result<T, Gone> {
        let (tx, rx) = tokio::sync::oneshot::channel();
        let look: Look = Box::new(move |core| {
            // Whoever asked may have left.
            let _ = tx.send(look(core));
        });
        self.tx.send(Command::Look(look)).map_err(|_| Gone)?;
        rx.await.map_err(|_| Gone)
    }
}

/// Where inputs wait until the core starts.
#[derive(Debug)]
pub struct EngineQueue {
    rx: Receiver<Command>,
}

impl EngineQueue {
    /// Starts the core on a thread of its own.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn start(
        self,
        engine: &Engine,
        setup: Setup,
        stored: Stored,
        driver: impl Driver,
    ) -> std::io::Result<EngineThread> {
        let rx = self.rx;
        let body = move || run(Core::new(setup, stored, now()), &rx, driver);
        let thread = std::thread::Builder::new().name("sinew-core".to_owned()).spawn(body)?;
        Ok(EngineThread { tx: engine.tx.clone(), thread: Some(thread) })
    }
}

impl EngineThread {
    /// Ends the core's thread and waits for it.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.tx.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for EngineThread {
    fn drop(&mut self) {
        self.end();
    }
}

fn run(mut core: Core, rx: &Receiver<Command>, mut driver: impl Driver) {
    let mut inputs: Vec<Input> = Vec::new();
    let mut flushed = Time::default();
    loop {
        if inputs.is_empty() && !wait(&mut core, rx, &mut inputs) {
            return;
        }
        // A busy core answers many at once; what comes meanwhile is handled, so that the time is not lost.
        let due = flushed + core.pace();
        loop {
            while inputs.len() < BATCH_MAX {
                let Ok(command) = rx.try_recv() else { break };
                if !take(&mut core, command, &mut inputs) {
                    return;
                }
            }
            for input in inputs.drain(..) {
                core.handle(now(), input);
            }
            let rest = due - now().at;
            if rest == Span::ms(0) {
                break;
            }
            match rx.recv_timeout(Duration::from_micros(rest.0)) {
                Ok(command) => {
                    if !take(&mut core, command, &mut inputs) {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        core.flush(now());
        flushed = now().at;
        while let Some(effect) = core.poll_effect() {
            driver.carry_out(effect, &mut inputs);
        }
    }
}

/// Waits for an input, or until the core asked to be called. Returns `false` when it is time to end.
fn wait(core: &mut Core, rx: &Receiver<Command>, inputs: &mut Vec<Input>) -> bool {
    let wait = core.poll_timeout() - now().at;
    match rx.recv_timeout(Duration::from_micros(wait.0)) {
        Ok(command) => take(core, command, inputs),
        Err(RecvTimeoutError::Timeout) => true,
        Err(RecvTimeoutError::Disconnected) => false,
    }
}

/// Returns `false` when it is time to end.
fn take(core: &mut Core, command: Command, inputs: &mut Vec<Input>) -> bool {
    match command {
        Command::Input(input) => inputs.push(input),
        Command::Look(look) => {
            // What was handed in before the question must show in the answer.
            for input in inputs.drain(..) {
                core.handle(now(), input);
            }
            look(core);
        }
        Command::Stop => return false,
    }
    true
}
