//! Runs one module to its end on the calling thread. The module is a future: it gives way at each tick of its engine, when it
//! waits for input or time, and when its output is to be taken. Each time, limits are looked at. Nothing ever wakes the future:
//! it is polled again once there is a reason to.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};
use sinew_crdt_state::error_code::ErrorCode;
use wasmtime::{InstancePre, Store, Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

use super::clock::Alarm;
use super::control::Watch;
use super::engine::{Ticker, Ticking};
use super::host::State;
use super::pipes::{Pipes, Stream};
use crate::exec::outcome::{Failure, STDERR_TAIL_MAX, Usage};
use crate::exec::procfs;
use crate::exec::runner::{Control, Ended, Execution, RunLimits, Streams};
use crate::exec::unlinked::Holders;

/// How often what a module wrote to its directories is measured, as for processes.
const SAMPLE_EVERY: Duration = Duration::from_millis(200);
/// Bytes written to files that are not worth ending a task for when the disk is nearly full, as for processes.
const WRITTEN_MIN: u64 = 1 << 20;
/// Longest span over which a module may make up for processor time that it left unused.
const CATCH_UP: Duration = Duration::from_millis(100);
/// Bytes of a trap's backtrace that go into a failure, beside the end of stderr.
const BACKTRACE_MAX: usize = STDERR_TAIL_MAX / 2;

/// A module about to run.
pub(super) struct Instance {
    pub(super) pre: InstancePre<State>,
    pub(super) store: Store<State>,
    pub(super) pipes: Pipes,
    pub(super) watch: Arc<Watch>,
    pub(super) ticker: Arc<Ticker>,
    pub(super) fuel: Option<u64>,
    /// Thousandths of a core that it is held to; 0 for a whole one.
    pub(super) cpu_milli: u32,
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance").field("watch", &self.watch).finish_non_exhaustive()
    }
}

impl Execution for Instance {
    fn control(&self) -> Arc<dyn Control> {
        Arc::clone(&self.watch) as Arc<dyn Control>
    }

    fn drive(self: Box<Self>, streams: Streams<'_>, limits: &RunLimits) -> Ended {
        let Self { pre, mut store, pipes, watch, ticker, fuel, cpu_milli } = *self;
        let alarm = store.data().alarm.clone();
        let driver = Driver::new(pipes, Arc::clone(&watch), alarm, streams, *limits, cpu_milli, ticker.enter());
        let (ran, mut usage) = driver.run(async {
            let instance = pre.instantiate_async(&mut store).await?;
            instance.get_typed_func::<(), ()>(&mut store, "_start")?.call_async(&mut store, ()).await
        });
        let result = ran.and_then(|ran| judge(ran, &store, fuel));
        // Its memory goes before its end is told.
        drop(store);
        watch.end();
        usage.max_rss_bytes = watch.peak_bytes();
        let result = result.map_err(|mut why| {
            let tail = String::from_utf8_lossy(&watch.logs()).into_owned();
            // What is there already is a backtrace.
            let room = STDERR_TAIL_MAX.saturating_sub(why.stderr_tail.len());
            let from = tail.ceil_char_boundary(tail.len().saturating_sub(room));
            why.stderr_tail.insert_str(0, &tail[from..]);
            why
        });
        Ended { result, usage }
    }
}

/// What the end of `_start` means.
fn judge(ran: wasmtime::Result<()>, store: &Store<State>, fuel: Option<u64>) -> Result<(), Failure> {
    let Err(error) = ran else { return Ok(()) };
    if let Some(why) = store.data().limiter.failure() {
        return Err(why);
    }
    if let Some(I32Exit(status)) = error.downcast_ref() {
        let status = *status;
        if status == 0 {
            return Ok(());
        }
        let failure = Failure::new(ErrorCode::Exit, format!("the program exited with status {status}"));
        return Err(Failure { exit: Some(status), ..failure });
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::OutOfFuel) => {
            let fuel = fuel.unwrap_or(u64::MAX);
            let message = format!("used up its fuel of {fuel}; raise `fuel` if it needs more");
            // As much is used up everywhere.
            Err(Failure::new(ErrorCode::Timeout, message).for_good())
        }
        trap => {
            let what = trap.map_or_else(|| error.root_cause().to_string(), ToString::to_string);
            let failure = Failure::new(ErrorCode::Exit, format!("the program trapped: {what}"));
            Err(Failure { stderr_tail: backtrace(&error), ..failure })
        }
    }
}

fn backtrace(error: &wasmtime::Error) -> String {
    let Some(trace) = error.downcast_ref::<WasmBacktrace>() else { return String::new() };
    let mut text = format!("\n{trace}\n");
    text.truncate(text.floor_char_boundary(BACKTRACE_MAX));
    text
}

struct Driver<'a> {
    pipes: Pipes,
    watch: Arc<Watch>,
    alarm: Alarm,
    streams: Streams<'a>,
    limits: RunLimits,
    cpu_milli: u32,
    started: Instant,
    cpu_before: Duration,
    /// Since when processor time counts against the share, and how much had been used then.
    paced: (Instant, Duration),
    next_sample: Instant,
    written_before: u64,
    output_bytes: u64,
    elsewhere_bytes: u64,
    buffer: Vec<u8>,
    _ticking: Ticking,
}

impl<'a> Driver<'a> {
    fn new(
        pipes: Pipes,
        watch: Arc<Watch>,
        alarm: Alarm,
        streams: Streams<'a>,
        limits: RunLimits,
        cpu_milli: u32,
        ticking: Ticking,
    ) -> Self {
        let started = Instant::now();
        Self {
            pipes,
            watch,
            alarm,
            streams,
            limits,
            cpu_milli,
            started,
            cpu_before: thread_cpu(),
            paced: (started, Duration::ZERO),
            next_sample: started + SAMPLE_EVERY,
            written_before: 0,
            output_bytes: 0,
            elsewhere_bytes: 0,
            buffer: Vec::new(),
            _ticking: ticking,
        }
    }

    /// What came of the module, unless a limit or a wish ended it.
    fn run(
        mut self,
        module: impl Future<Output = wasmtime::Result<()>>,
    ) -> (Result<wasmtime::Result<()>, Failure>, Usage) {
        let ended = self.poll_to_end(module);
        let ended = match ended {
            // The write that went over the cap may be what failed the program.
            Ok(Err(_)) => match self.sample_elsewhere().and_then(|()| self.check_cap()) {
                Err(why) if self.is_over_cap() => Err(why),
                _ => ended,
            },
            ended => ended,
        };
        let usage = Usage {
            wall_ms: ms(self.started.elapsed()),
            cpu_ms: ms(self.cpu()),
            max_rss_bytes: 0,
            output_bytes: self.output_bytes,
        };
        (ended, usage)
    }

    fn poll_to_end(
        &mut self,
        module: impl Future<Output = wasmtime::Result<()>>,
    ) -> Result<wasmtime::Result<()>, Failure> {
        let mut module = pin!(module);
        let mut context = Context::from_waker(Waker::noop());
        loop {
            self.enforce()?;
            let polled = module.as_mut().poll(&mut context);
            self.take(Stream::Stdout)?;
            self.take(Stream::Stderr)?;
            if let Poll::Ready(ran) = polled {
                return Ok(ran);
            }
            self.watch.set_cpu_us(u64::try_from(self.cpu().as_micros()).unwrap_or(u64::MAX));
            if self.pipes.wants_input() {
                let fed = match self.streams.stdin.as_mut() {
                    Some(source) => self.pipes.feed(*source),
                    None => self.pipes.feed(&mut std::io::empty()),
                };
                fed.map_err(Failure::from_input)?;
            } else if let Some(at) = [self.alarm.at(), self.pause()].into_iter().flatten().max() {
                self.wait_until(at);
            }
        }
    }

    /// Applies whatever wish or limit is due. There is nothing in WASI to ask a module with: it is ended at once.
    fn enforce(&mut self) -> Result<(), Failure> {
        if let Some(reason) = self.watch.stop.reason() {
            return Err(reason.failure());
        }
        let now = Instant::now();
        if self.limits.deadline.is_some_and(|at| now >= at) {
            return Err(self.limits.timeout_failure());
        }
        if now >= self.next_sample {
            self.next_sample = now + SAMPLE_EVERY;
            let before = self.written_before;
            let written = procfs::thread_written();
            match self.sample_elsewhere() {
                Ok(()) => self.check_cap()?,
                // The disk is in need, and this one adds to that.
                Err(why) if written.is_none_or(|bytes| bytes.saturating_sub(before) > WRITTEN_MIN) => return Err(why),
                Err(_) => {}
            }
            self.written_before = written.unwrap_or(before);
        }
        Ok(())
    }

    fn sample_elsewhere(&mut self) -> Result<(), Failure> {
        if let Some(elsewhere) = self.streams.elsewhere.as_mut() {
            self.elsewhere_bytes = elsewhere(Holders::Daemon)?;
        }
        Ok(())
    }

    fn is_over_cap(&self) -> bool {
        self.limits.is_over_output(self.output_bytes.saturating_add(self.elsewhere_bytes))
    }

    fn check_cap(&self) -> Result<(), Failure> {
        if self.is_over_cap() { Err(Failure::over_output_cap(self.limits.output_max)) } else { Ok(()) }
    }

    /// Passes on what was written to a stream.
    fn take(&mut self, stream: Stream) -> Result<(), Failure> {
        let mut bytes = std::mem::take(&mut self.buffer);
        self.pipes.take(stream, &mut bytes);
        let taken = self.accept(stream, &bytes);
        self.buffer = bytes;
        taken
    }

    fn accept(&mut self, stream: Stream, bytes: &[u8]) -> Result<(), Failure> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.output_bytes = self.output_bytes.saturating_add(bytes.len() as u64);
        if stream == Stream::Stderr {
            self.watch.add_stderr(bytes);
        }
        self.check_cap()?;
        match stream {
            Stream::Stdout => self.streams.stdout.take(bytes),
            Stream::Stderr => self.streams.stderr.take(bytes),
        }
    }

    fn cpu(&self) -> Duration {
        thread_cpu().saturating_sub(self.cpu_before)
    }

    /// Until when it has to wait because it has had more than its share of the processor.
    fn pause(&mut self) -> Option<Instant> {
        if self.cpu_milli == 0 || self.cpu_milli >= 1_000 {
            return None;
        }
        let (now, cpu) = (Instant::now(), self.cpu());
        let (since, before) = self.paced;
        let due = since + cpu.saturating_sub(before) * 1_000 / self.cpu_milli;
        if due + CATCH_UP < now {
            self.paced = (now, cpu);
        }
        (due > now).then_some(due)
    }

    /// Waits, unless it is to be ended or looked at sooner.
    fn wait_until(&self, at: Instant) {
        let until = self.limits.deadline.map_or(at, |deadline| deadline.min(at)).min(self.next_sample);
        let stop = self.watch.stop.wake_fd();
        // Interrupted or not, the loop looks at everything again.
        let _ = poll(&mut [PollFd::new(&stop, PollFlags::IN)], Some(&timespec(until)));
    }
}

/// How long it takes until `at`.
pub(super) fn timespec(at: Instant) -> Timespec {
    let left = at.saturating_duration_since(Instant::now());
    Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() }
}

fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
