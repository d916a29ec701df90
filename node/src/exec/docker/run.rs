//! One container from its start to its removal, driven on the calling thread: streams, limits and the wish to stop.

use std::io::Read;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bollard::container::{AttachContainerResults, LogOutput};
use bollard::errors::Error;
use bollard::query_parameters::{InspectContainerOptions, KillContainerOptionsBuilder, WaitContainerOptions};
use futures::StreamExt;
use rustix::process::Signal;
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::program::HealthCheck;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::{MissedTickBehavior, sleep_until};

use super::engine::Engine;
use super::gpus::Gpus;
use super::health::unhealthy;
use super::network::Net;
use super::shared::{Shared, sample};
use super::{Inner, oom};
use crate::exec::outcome::{Failure, Usage};
use crate::exec::runner::{Control, Ended, Execution, RunLimits, Streams};
use crate::exec::stop::{Bound, StopReason};
use crate::exec::sweep;
use crate::exec::unlinked::Holders;

/// How often bytes written elsewhere are looked at, as for processes.
const SAMPLE_EVERY: Duration = Duration::from_millis(200);
/// How often it is looked whether one that ends in good order is to be killed after all.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// After a SIGKILL this is how long the end may take: an engine that is stuck must not hold the slot for ever.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// After a container's end its last output arrives within this; nothing of it writes any more.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);
/// Read from stdin's source at once: what one write to the engine's socket takes.
const FEED_LEN: usize = 64 * 1024;
/// Far enough away to be never.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// A status above this is a signal's, by the convention of shells, engines and `tini`.
const SIGNAL_BASE: i32 = 128;
/// How the engine's own process 1 says that the image lacks the program.
const NO_PROGRAM: &str = "[FATAL tini";

/// A started container. Dropping it has it removed.
pub(super) struct Run {
    pub(super) inner: Arc<Inner>,
    pub(super) engine: Engine,
    pub(super) name: String,
    pub(super) attached: Option<AttachContainerResults>,
    pub(super) shared: Arc<Shared>,
    pub(super) memory_bytes: u64,
    pub(super) feeds_stdin: bool,
    pub(super) health: Option<Box<HealthCheck>>,
    pub(super) removed: bool,
    /// Until it is gone it is killed when its lease is over.
    pub(super) bound: Option<Bound>,
    /// What it reaches, if its job names hosts; removed with it.
    pub(super) net: Option<Net>,
    /// Held until it is gone.
    pub(super) claim: Claim,
}

/// What an attempt holds while its container may exist.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) inner: Arc<Inner>,
    pub(super) run: u64,
    pub(super) gpus: Gpus,
    pub(super) _live: sweep::Live,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.inner.release(self.run);
    }
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Run({})", self.name)
    }
}

impl Execution for Run {
    fn control(&self) -> Arc<dyn Control> {
        Arc::clone(&self.shared) as Arc<dyn Control>
    }

    fn drive(mut self: Box<Self>, streams: Streams<'_>, limits: &RunLimits) -> Ended {
        let runtime = self.inner.runtime.clone();
        let attached = self.attached.take();
        let driver = Driver::new(&self, streams, *limits);
        let ended = runtime.block_on(driver.run(attached));
        self.shared.end();
        if ended.result.as_ref().is_err_and(|why| why.code == ErrorCode::Lost) {
            // Not only at the next look: until then tasks would come here to fail.
            runtime.block_on(self.inner.doubt(&self.engine));
        }
        self.remove();
        ended
    }
}

impl Run {
    /// Removes the container and waits for that: its mounts are gone with it, and the slot's directories free.
    pub(super) fn remove(&mut self) {
        self.removed = true;
        let net = self.net.take();
        self.inner.runtime.block_on(async {
            self.inner.remove(&self.engine, &self.name).await;
            if let Some(net) = net {
                self.inner.remove(&self.engine, &net.name).await;
            }
        });
        self.bound = None;
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.removed {
            let (inner, engine, name) = (Arc::clone(&self.inner), self.engine.clone(), std::mem::take(&mut self.name));
            let net = self.net.take();
            // Whoever drops it unfinished may be anywhere, also where nothing may block.
            self.inner.runtime.spawn(async move {
                inner.remove(&engine, &name).await;
                if let Some(net) = net {
                    inner.remove(&engine, &net.name).await;
                }
            });
        }
    }
}

struct Driver<'r, 's> {
    run: &'r Run,
    streams: Streams<'s>,
    limits: RunLimits,
    output_bytes: u64,
    elsewhere_bytes: u64,
    /// Why it is being ended; the first reason stands.
    verdict: Option<Failure>,
    /// When SIGTERM turns into SIGKILL.
    kill_at: Option<Instant>,
    /// When waiting for the effect of a SIGKILL ends.
    give_up_at: Option<Instant>,
    stdin: Feed,
}

/// What goes to stdin.
#[derive(Debug)]
struct Feed {
    buffer: Vec<u8>,
    start: usize,
    open: bool,
}

/// What the loop woke up for.
enum Woke {
    Stop,
    Time,
    Output(Option<Result<LogOutput, Error>>),
    Fed(std::io::Result<usize>),
    Exit(Result<(), Error>),
    Unhealthy(Failure),
}

impl<'r, 's> Driver<'r, 's> {
    fn new(run: &'r Run, streams: Streams<'s>, limits: RunLimits) -> Self {
        let stdin = Feed { buffer: Vec::new(), start: 0, open: run.feeds_stdin };
        Self {
            run,
            streams,
            limits,
            output_bytes: 0,
            elsewhere_bytes: 0,
            verdict: None,
            kill_at: None,
            give_up_at: None,
            stdin,
        }
    }

    async fn run(mut self, attached: Option<AttachContainerResults>) -> Ended {
        let started = Instant::now();
        let Some(AttachContainerResults { mut output, input }) = attached else {
            let failure = Failure::new(ErrorCode::Invalid, "a container was driven twice");
            return Ended { result: Err(failure), usage: Usage::default() };
        };
        let sampler =
            tokio::spawn(sample(self.run.engine.clone(), self.run.name.clone(), Arc::clone(&self.run.shared)));
        let mut input = Some(input);
        let exited = self.watch(&mut output, &mut input).await;
        sampler.abort();
        if let Some(Err(error)) = &exited {
            let gone = self.run.engine.gone("while the task ran", error);
            self.verdict.get_or_insert(gone);
        } else if exited.is_some() {
            self.drain(&mut output).await;
        }
        self.finish(started, matches!(exited, Some(Ok(())))).await
    }

    /// Until the container has ended; `None` when it does not, killed as it is.
    async fn watch(&mut self, output: &mut Output, input: &mut Option<Input>) -> Option<Result<(), Error>> {
        let engine = self.run.engine.clone();
        let exit = wait_exit(&engine, &self.run.name);
        tokio::pin!(exit);
        let run = self.run;
        let unhealthy = unhealthy(&engine, &run.name, run.health.as_deref());
        tokio::pin!(unhealthy);
        let stop = self.run.shared.stop.clone();
        let mut look = tokio::time::interval(SAMPLE_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut listens = true;
        loop {
            self.enforce();
            if self.give_up_at.is_some_and(|at| Instant::now() >= at) {
                return None;
            }
            self.refill(input).await;
            let runs = self.verdict.is_none();
            let next = self.next_deadline();
            let feeding = self.stdin.open && input.is_some();
            let woke = tokio::select! {
                exited = &mut exit => Woke::Exit(exited),
                _ = stop.stopped(), if runs => Woke::Stop,
                why = &mut unhealthy, if runs => Woke::Unhealthy(why),
                item = output.next(), if listens => Woke::Output(item),
                fed = feed(input, &self.stdin.buffer[self.stdin.start..]), if feeding => Woke::Fed(fed),
                _ = look.tick(), if runs => { self.look(); Woke::Time }
                () = sleep_until(next.into()) => Woke::Time,
            };
            match woke {
                Woke::Exit(exited) => return Some(exited),
                Woke::Output(Some(Ok(item))) => self.take(&item),
                // The end, or the engine's: then waiting for the exit tells.
                Woke::Output(_) => listens = false,
                Woke::Fed(Ok(n)) if n > 0 => self.stdin.start += n,
                // It closed its stdin, which is no error.
                Woke::Fed(_) => self.stdin.open = false,
                Woke::Unhealthy(why) => self.end_gently(why),
                Woke::Stop | Woke::Time => {}
            }
        }
    }

    /// Applies whatever wish or limit is due.
    fn enforce(&mut self) {
        match self.run.shared.stop.reason() {
            // Others may have it by now.
            Some(reason @ StopReason::Fenced) if self.verdict.is_none() || self.kill_at.is_some() => {
                self.end_now(reason.failure());
            }
            Some(reason) if self.verdict.is_none() => self.end_gently(reason.failure()),
            _ => {}
        }
        let now = Instant::now();
        if self.verdict.is_none() && self.limits.deadline.is_some_and(|at| now >= at) {
            self.end_gently(self.limits.timeout_failure());
        }
        if self.kill_at.is_some_and(|at| now >= at) {
            self.kill();
        }
    }

    fn next_deadline(&self) -> Instant {
        let deadline = self.limits.deadline.filter(|_| self.verdict.is_none());
        // The right to run may be lost while it ends in good order.
        let look = self.kill_at.map(|_| Instant::now() + LOOK_EVERY);
        let next = [deadline, self.kill_at, self.give_up_at, look].into_iter().flatten().min();
        next.unwrap_or_else(|| Instant::now() + NEVER)
    }

    fn look(&mut self) {
        let Some(elsewhere) = self.streams.elsewhere.as_mut() else { return };
        let pids = self.run.shared.processes();
        match elsewhere(Holders::Processes(&pids)) {
            Ok(bytes) => {
                self.elsewhere_bytes = bytes;
                self.check_cap();
            }
            Err(why) => self.end_now(why),
        }
    }

    fn end_gently(&mut self, why: Failure) {
        if self.verdict.is_none() {
            self.verdict = Some(why);
            self.stdin.open = false;
            self.kill_at = Some(Instant::now() + self.limits.grace);
            self.signal("SIGTERM");
        }
    }

    fn end_now(&mut self, why: Failure) {
        self.verdict.get_or_insert(why);
        self.stdin.open = false;
        self.kill();
    }

    fn kill(&mut self) {
        self.kill_at = None;
        self.give_up_at.get_or_insert(Instant::now() + KILL_PATIENCE);
        self.signal("SIGKILL");
    }

    /// Sends a signal without waiting for the engine's answer, which the loop must not depend on.
    fn signal(&self, signal: &'static str) {
        let (docker, name) = (self.run.engine.docker.clone(), self.run.name.clone());
        tokio::spawn(async move {
            let options = KillContainerOptionsBuilder::default().signal(signal).build();
            // It fails for a container that has ended: good.
            let _ = docker.kill_container(&name, Some(options)).await;
        });
    }

    fn take(&mut self, item: &LogOutput) {
        let bytes = item.as_ref();
        self.output_bytes = self.output_bytes.saturating_add(bytes.len() as u64);
        let is_stdout = matches!(item, LogOutput::StdOut { .. });
        if !is_stdout {
            self.run.shared.add_stderr(bytes);
        }
        let taken = match (&self.verdict, is_stdout) {
            _ if self.is_over_cap() => Ok(()),
            (Some(_), true) if !self.streams.stdout.is_log() => Ok(()),
            (_, true) => self.streams.stdout.take(bytes),
            (_, false) => self.streams.stderr.take(bytes),
        };
        if let Err(why) = taken {
            self.end_now(why);
        }
        self.check_cap();
    }

    fn is_over_cap(&self) -> bool {
        self.limits.is_over_output(self.output_bytes.saturating_add(self.elsewhere_bytes))
    }

    fn check_cap(&mut self) {
        if self.verdict.is_none() && self.is_over_cap() {
            self.end_now(Failure::over_output_cap(self.limits.output_max));
        }
    }

    /// Has something ready for stdin, or closes it.
    async fn refill(&mut self, input: &mut Option<Input>) {
        if self.stdin.open && self.stdin.start == self.stdin.buffer.len() {
            self.stdin.start = 0;
            self.stdin.buffer.resize(FEED_LEN, 0);
            let read = self.streams.stdin.as_mut().map_or(Ok(0), |source| read_some(source, &mut self.stdin.buffer));
            self.stdin.buffer.truncate(*read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => self.stdin.open = false,
                Ok(_) => {}
                Err(e) => self.end_now(Failure::from_input(e)),
            }
        }
        if !self.stdin.open
            && let Some(mut input) = input.take()
        {
            // An engine that does not hear of it is about to be found out by the wait for the exit.
            let _ = tokio::time::timeout(SAMPLE_EVERY, input.shutdown()).await;
        }
    }

    async fn drain(&mut self, output: &mut Output) {
        let until = tokio::time::Instant::now() + DRAIN_PATIENCE;
        while let Ok(Some(Ok(item))) = tokio::time::timeout_at(until, output.next()).await {
            self.take(&item);
        }
    }

    async fn finish(mut self, started: Instant, exited: bool) -> Ended {
        let run = self.run;
        let exit = if exited { self.exit_failure().await } else { Some(self.lost()) };
        if exit.is_some() && self.verdict.is_none() {
            // Killed from outside, because nobody here saw to it.
            let fenced = run.shared.stop.reason().filter(|reason| *reason == StopReason::Fenced);
            self.verdict = fenced.map(StopReason::failure);
        }
        if exit.is_some() && self.verdict.is_none() {
            // The write that went over the cap may be what failed the program.
            if let Some(Ok(bytes)) = self.streams.elsewhere.as_mut().map(|elsewhere| elsewhere(Holders::Nobody)) {
                self.elsewhere_bytes = bytes;
            }
            if self.is_over_cap() {
                self.verdict = Some(Failure::over_output_cap(self.limits.output_max));
            }
        }
        let result = match (self.verdict, exit) {
            (None, None) => Ok(()),
            (Some(mut why), exit) => {
                (why.exit, why.signal) = exit.map_or((None, None), |e| (e.exit, e.signal));
                Err(why)
            }
            (None, Some(why)) => Err(why),
        };
        let result = result.map_err(|mut why| {
            why.stderr_tail = String::from_utf8_lossy(&run.shared.logs()).into_owned();
            why
        });
        let (cpu_ms, max_rss_bytes) = run.shared.used();
        let usage = Usage {
            wall_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            cpu_ms,
            max_rss_bytes,
            output_bytes: self.output_bytes,
        };
        Ended { result, usage }
    }

    fn lost(&self) -> Failure {
        let at = self.run.engine.socket.display();
        Failure::new(ErrorCode::Lost, format!("the Docker engine at {at} did not end the task's container"))
    }

    /// Why the container ended badly, if it did.
    async fn exit_failure(&self) -> Option<Failure> {
        let run = self.run;
        let (id, state) = match run.engine.docker.inspect_container(&run.name, None::<InspectContainerOptions>).await {
            Ok(found) => (found.id.unwrap_or_default(), found.state.unwrap_or_default()),
            Err(error @ Error::DockerResponseServerError { .. }) => {
                // Somebody else removed it: how it ended is not known.
                let message = format!("the task's container is gone from the Docker engine: {error}");
                return Some(Failure::new(ErrorCode::Lost, message));
            }
            Err(error) => return Some(run.engine.gone("after the task's end", &error)),
        };
        let code = i32::try_from(state.exit_code.unwrap_or(-1)).unwrap_or(-1);
        let killed = self.verdict.is_none() && code == SIGNAL_BASE + Signal::KILL.as_raw();
        // Of a container that ends at once with its last process the engine often misses why.
        if state.oom_killed == Some(true) || (killed && oom::is_in_kernel_log(&id)) {
            return Some(Failure::out_of_memory(run.memory_bytes));
        }
        (code != 0).then(|| self.exit_of(code))
    }

    fn exit_of(&self, code: i32) -> Failure {
        let told = self.run.shared.logs();
        let told = String::from_utf8_lossy(&told);
        if matches!(code, 126 | 127)
            && let Some(line) = told.lines().rev().find(|line| line.starts_with(NO_PROGRAM))
        {
            let message = format!("the image's program does not start: {line}");
            return Failure::new(ErrorCode::Invalid, message).for_good();
        }
        let message = if code > SIGNAL_BASE {
            format!("the program exited with status {code}, as after signal {}", code - SIGNAL_BASE)
        } else {
            format!("the program exited with status {code}")
        };
        Failure { exit: Some(code), ..Failure::new(ErrorCode::Exit, message) }
    }
}

type Output = Pin<Box<dyn futures::Stream<Item = Result<LogOutput, Error>> + Send>>;
type Input = Pin<Box<dyn AsyncWrite + Send>>;

fn read_some(source: &mut (dyn Read + Send), buffer: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match source.read(buffer) {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

async fn feed(input: &mut Option<Input>, bytes: &[u8]) -> std::io::Result<usize> {
    match input {
        Some(input) => input.write(bytes).await,
        None => std::future::pending().await,
    }
}

/// Waits for the container's end, whatever its status.
async fn wait_exit(engine: &Engine, name: &str) -> Result<(), Error> {
    match engine.docker.wait_container(name, None::<WaitContainerOptions>).next().await {
        Some(Ok(_) | Err(Error::DockerContainerWaitError { .. })) => Ok(()),
        Some(Err(error)) => Err(error),
        None => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
    }
}
