//! Drives one process to its end on the calling thread: one `poll(2)` over its three pipes, its pidfd and the stop handle.
//!
//! The process is over when its first process is: what else is in the group is killed then, and what is left in the pipes is
//! taken without waiting, because a daemonised grandchild may hold them open for ever. A program that does not read all of
//! its stdin is within its rights.
//!
//! Peak memory of a child: `wait4` reports at least the daemon's own peak, because the child borrows the daemon's memory until
//! it execs. So that figure counts only when it is above ours; below it, the highest sample taken while the program ran does.
//! A cell's figure has only the few MB of its first process below it and counts as it is.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::Signal;
use sinew_crdt_state::error_code::ErrorCode;

use super::body::Body;
use super::control::Shared;
use super::outcome::{Failure, Usage};
use super::process::Pipe;
use super::procfs;
use super::runner::{Ended, RunLimits, Streams};
use super::stop::StopReason;
use super::unlinked::Holders;

/// How often a running program is looked at for memory and for bytes written elsewhere: rare enough to cost nothing, often
/// enough that a runaway writer is stopped within a few hundred MB.
const SAMPLE_EVERY: Duration = Duration::from_millis(200);
/// How often it is looked whether one that ends in good order is to be killed after all.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// After a SIGKILL this is how long the end may take: a process that is stuck in the kernel, or a sandbox that does not answer,
/// must not hold the slot for ever.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
/// One read or write. Large enough that the poll between two of them does not count; pipes are widened to it for bulk data.
const TRANSFER_LEN: usize = 256 * 1024;
/// Bytes taken from one pipe after the program's end: more than a pipe can hold, so that only a grandchild that goes on
/// writing is cut off.
const DRAIN_MAX: u64 = 2 * 1024 * 1024;

/// Which descriptors have something to say.
#[derive(Debug, Default, Clone, Copy)]
struct Ready {
    exit: bool,
    stdin: bool,
    stdout: bool,
    stderr: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    Stdout = 0,
    Stderr = 1,
}

/// Bytes read from the source that the pipe has not taken yet.
#[derive(Debug, Default)]
struct Feed {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

#[derive(Debug)]
pub(super) struct Driver<'a> {
    body: Body,
    stdin: Option<OwnedFd>,
    /// stdout and stderr.
    pipes: Arc<[Pipe; 2]>,
    shared: Arc<Shared>,
    streams: Streams<'a>,
    limits: RunLimits,
    feed: Feed,
    buffer: Vec<u8>,
    output_bytes: u64,
    elsewhere_bytes: u64,
    peak_sampled: u64,
    next_sample: Instant,
    /// Why it is being ended; the first reason stands.
    verdict: Option<Failure>,
    /// When SIGTERM turns into SIGKILL.
    kill_at: Option<Instant>,
    /// When waiting for the effect of a SIGKILL ends.
    give_up_at: Option<Instant>,
}

impl<'a> Driver<'a> {
    pub(super) fn new(
        body: Body,
        stdin: Option<OwnedFd>,
        pipes: Arc<[Pipe; 2]>,
        shared: Arc<Shared>,
        streams: Streams<'a>,
        limits: RunLimits,
    ) -> Self {
        let now = Instant::now();
        Self {
            body,
            stdin,
            pipes,
            shared,
            streams,
            limits,
            feed: Feed::default(),
            buffer: Vec::new(),
            output_bytes: 0,
            elsewhere_bytes: 0,
            peak_sampled: 0,
            next_sample: now + SAMPLE_EVERY,
            verdict: None,
            kill_at: None,
            give_up_at: None,
        }
    }

    pub(super) fn run(mut self) -> Ended {
        let started = Instant::now();
        if let Err(e) = self.prepare_pipes() {
            self.end_now(Failure::new(ErrorCode::Lost, format!("the program's pipes could not be set up: {e}")));
        }
        loop {
            self.enforce();
            if self.give_up_at.is_some_and(|at| Instant::now() >= at) {
                break;
            }
            let ready = match self.wait() {
                Ok(ready) => ready,
                Err(e) => {
                    self.end_now(Failure::new(ErrorCode::Lost, format!("waiting for the program failed: {e}")));
                    break;
                }
            };
            if ready.stdout {
                self.take(Stream::Stdout);
            }
            if ready.stderr {
                self.take(Stream::Stderr);
            }
            if ready.exit && self.body.is_over() {
                break;
            }
            if ready.stdin {
                self.give();
            }
        }
        self.finish(started)
    }

    fn prepare_pipes(&mut self) -> std::io::Result<()> {
        for pipe in self.pipes.iter() {
            // A program may open its own pipe and read what poll has just promised us.
            rustix::io::ioctl_fionbio(&pipe.read, true)?;
        }
        let Some(stdin) = &self.stdin else { return Ok(()) };
        rustix::io::ioctl_fionbio(stdin, true)?;
        // A wider pipe saves switches between program and daemon; a user over the system's pipe budget gets the normal one.
        let _ = rustix::pipe::fcntl_setpipe_size(stdin, TRANSFER_LEN);
        let _ = rustix::pipe::fcntl_setpipe_size(&self.pipes[0].read, TRANSFER_LEN);
        Ok(())
    }

    /// Applies whatever wish or limit is due.
    fn enforce(&mut self) {
        match self.shared.stop.reason() {
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
        if self.verdict.is_none() && now >= self.next_sample {
            self.sample();
            self.next_sample = Instant::now() + SAMPLE_EVERY;
        }
    }

    fn sample(&mut self) {
        if let Some(peak) = self.body.pid().and_then(procfs::peak_rss) {
            self.peak_sampled = self.peak_sampled.max(peak);
        }
        if let Some(why) = self.body.out_of_memory() {
            self.end_now(why);
        }
        let pids = self.body.processes();
        match self.sample_elsewhere(Holders::Processes(&pids)) {
            Ok(()) => self.check_cap(),
            // The disk is in need, and this one adds to that.
            Err(why) if self.body.writes() => self.end_now(why),
            Err(_) => {}
        }
    }

    fn sample_elsewhere(&mut self, holders: Holders<'_>) -> Result<(), Failure> {
        if let Some(elsewhere) = self.streams.elsewhere.as_mut() {
            self.elsewhere_bytes = elsewhere(holders)?;
        }
        Ok(())
    }

    fn end_gently(&mut self, why: Failure) {
        if self.verdict.is_none() {
            self.verdict = Some(why);
            self.stdin = None;
            self.kill_at = Some(Instant::now() + self.limits.grace);
            self.body.signal(Signal::TERM);
            // A stopped process would not see the SIGTERM before the SIGKILL.
            self.body.signal(Signal::CONT);
        }
    }

    fn end_now(&mut self, why: Failure) {
        self.verdict.get_or_insert(why);
        self.stdin = None;
        self.kill();
    }

    fn kill(&mut self) {
        self.kill_at = None;
        self.body.signal(Signal::KILL);
        self.give_up_at.get_or_insert(Instant::now() + KILL_PATIENCE);
    }

    fn wait(&self) -> Result<Ready, Errno> {
        let mut fds = [const { None }; 6];
        // With a verdict the stop handle has nothing more to say, and a readable descriptor would make the loop spin.
        let stop = self.shared.stop.wake_fd();
        fds[0] = self.verdict.is_none().then(|| PollFd::new(&stop, PollFlags::IN));
        let end = self.body.end_fd();
        fds[1] = Some(PollFd::new(&end, PollFlags::IN));
        fds[2] = self.stdin.as_ref().map(|fd| PollFd::new(fd, PollFlags::OUT));
        // What a killed program still writes is of no use: it blocks until it dies.
        let listens = self.give_up_at.is_none();
        fds[3] = listens.then(|| PollFd::new(&self.pipes[0].read, PollFlags::IN));
        fds[4] = listens.then(|| PollFd::new(&self.pipes[1].read, PollFlags::IN));
        let reply = self.body.reply_fd();
        fds[5] = reply.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN));
        let present: [bool; 6] = std::array::from_fn(|i| fds[i].is_some());
        let mut set: Vec<PollFd<'_>> = fds.into_iter().flatten().collect();
        match poll(&mut set, self.timeout().as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Ready::default()),
            Err(e) => return Err(e),
        }
        let mut events = set.iter().map(|fd| !fd.revents().is_empty());
        // In the order of `fds`. The stop handle only wakes the loop: `enforce` reads it.
        let [_, exit, stdin, stdout, stderr, reply] = present.map(|is| is && events.next().unwrap_or(false));
        Ok(Ready { exit: exit || reply, stdin, stdout, stderr })
    }

    fn timeout(&self) -> Option<Timespec> {
        let runs = self.verdict.is_none();
        let deadline = self.limits.deadline.filter(|_| runs);
        let sample = runs.then_some(self.next_sample);
        // The right to run may be lost while it ends in good order.
        let look = self.kill_at.map(|_| Instant::now() + LOOK_EVERY);
        let next = [deadline, self.kill_at, self.give_up_at, sample, look].into_iter().flatten().min()?;
        let left = next.saturating_duration_since(Instant::now());
        Some(Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        })
    }

    /// Takes one read's worth from a stream that has something.
    fn take(&mut self, stream: Stream) {
        if self.buffer.is_empty() {
            // Made anew and not resized: fresh zero pages cost nothing until they are written to.
            self.buffer = vec![0; TRANSFER_LEN];
        }
        // A read that was interrupted, or found nothing, is tried again when poll says so; a pipe knows no other errors.
        if let Ok(n) = rustix::io::read(&self.pipes[stream as usize].read, &mut self.buffer) {
            self.accept(stream, n);
        }
    }

    /// Passes the first `n` bytes of the buffer on, unless the program is being ended for a reason that makes them useless.
    fn accept(&mut self, stream: Stream, n: usize) {
        let bytes = &self.buffer[..n];
        self.output_bytes = self.output_bytes.saturating_add(n as u64);
        if stream == Stream::Stderr {
            self.shared.add_stderr(bytes);
        }
        let over = self.is_over_cap();
        let taken = match (&self.verdict, stream) {
            _ if over => Ok(()),
            (Some(_), Stream::Stdout) if !self.streams.stdout.is_log() => Ok(()),
            (_, Stream::Stdout) => self.streams.stdout.take(bytes),
            (_, Stream::Stderr) => self.streams.stderr.take(bytes),
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

    /// Writes as much as the pipe takes now, at most one buffer.
    fn give(&mut self) {
        let (Some(fd), Some(source)) = (&self.stdin, self.streams.stdin.as_mut()) else {
            self.stdin = None;
            return;
        };
        let feed = &mut self.feed;
        if feed.start == feed.end {
            if feed.buffer.is_empty() {
                feed.buffer = vec![0; TRANSFER_LEN];
            }
            match source.read(&mut feed.buffer) {
                Ok(0) => {
                    self.stdin = None;
                    return;
                }
                Ok(n) => (feed.start, feed.end) = (0, n),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => return,
                Err(e) => {
                    self.end_now(Failure::from_input(e));
                    return;
                }
            }
        }
        match rustix::io::write(fd, &feed.buffer[feed.start..feed.end]) {
            Ok(n) => feed.start += n,
            Err(Errno::INTR | Errno::AGAIN) => {}
            // EPIPE: it closed its stdin, which is no error. Nothing else can happen to a pipe.
            Err(_) => self.stdin = None,
        }
    }

    /// Takes what a pipe still holds, never waiting for more.
    fn drain(&mut self, stream: Stream) {
        let mut left = DRAIN_MAX;
        while left > 0 {
            let waiting = rustix::io::ioctl_fionread(&self.pipes[stream as usize].read).unwrap_or(0);
            if waiting == 0 {
                return;
            }
            left = left.saturating_sub(waiting);
            self.take(stream);
        }
    }

    fn finish(mut self, started: Instant) -> Ended {
        self.stdin = None;
        self.body.end();
        self.drain(Stream::Stdout);
        self.drain(Stream::Stderr);
        let knows_memory = self.body.knows_memory();
        let reaped = self.body.reap();
        self.shared.end();
        let mut usage = Usage {
            wall_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            output_bytes: self.output_bytes,
            ..Usage::default()
        };
        let exit = match reaped {
            Ok(ended) => {
                usage.cpu_ms = ended.cpu_ms;
                usage.max_rss_bytes = if knows_memory {
                    ended.max_rss_bytes.max(self.peak_sampled)
                } else {
                    peak(self.peak_sampled, ended.max_rss_bytes)
                };
                ended.failure.or_else(|| exit_failure(ended.status))
            }
            Err(why) => Some(why),
        };
        if exit.is_some() && self.verdict.is_none() {
            // Killed from outside, because nobody here saw to it.
            let fenced = self.shared.stop.reason().filter(|reason| *reason == StopReason::Fenced);
            self.verdict = fenced.map(StopReason::failure);
        }
        if exit.is_some() {
            // The write that went over the cap may be what failed the program.
            let known = self.sample_elsewhere(Holders::Nobody).is_ok();
            if known && self.verdict.is_none() && self.is_over_cap() {
                self.verdict = Some(Failure::over_output_cap(self.limits.output_max));
            }
        }
        // A verdict names the cause; the exit that it brought about is only its effect.
        let result = match (self.verdict, exit) {
            (None, None) => Ok(()),
            (Some(mut why), exit) => {
                (why.exit, why.signal) = exit.map_or((None, None), |e| (e.exit, e.signal));
                Err(why)
            }
            (None, Some(why)) => Err(why),
        };
        let result = result.map_err(|mut why| {
            why.stderr_tail = String::from_utf8_lossy(&self.shared.tail()).into_owned();
            why
        });
        Ended { result, usage }
    }
}

fn peak(sampled: u64, reported: u64) -> u64 {
    // Only long runs are sampled, so this costs a short one nothing.
    if sampled == 0 {
        return 0;
    }
    let own = procfs::peak_rss(std::process::id().try_into().unwrap_or(0)).unwrap_or(u64::MAX);
    if reported > own { reported.max(sampled) } else { sampled }
}

fn exit_failure(status: ExitStatus) -> Option<Failure> {
    if status.success() {
        return None;
    }
    let message = match (status.code(), status.signal()) {
        (Some(code), _) => format!("the program exited with status {code}"),
        (None, Some(signal)) => format!("the program was killed by signal {signal}"),
        (None, None) => "the program ended without a status".to_owned(),
    };
    let mut failure = Failure::new(ErrorCode::Exit, message);
    (failure.exit, failure.signal) = (status.code(), status.signal());
    Some(failure)
}
