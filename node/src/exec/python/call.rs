//! One call of a function in a worker, driven as any other program is: it ends when the worker replies, or when it dies.

use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use sinew_crdt_state::error_code::ErrorCode;

use super::Workers;
use super::worker::{End, Reply, Said, Worker};
use crate::exec::body::{Body, Reaped};
use crate::exec::control::Shared;
use crate::exec::drive::Driver;
use crate::exec::outcome::Failure;
use crate::exec::runner::{Control, Ended, Execution, RunLimits, Streams};
use crate::exec::stop::Bound;

/// A call that takes this long is worth a look at what its children used.
const LONG: Duration = Duration::from_millis(10);

/// A call under way.
pub(in crate::exec) struct Call {
    /// Until it is over the worker is killed when its lease is. Dropped before the worker.
    bound: Option<Bound>,
    /// `None` once it has been kept or given up.
    worker: Option<Worker>,
    /// Where it is kept for the next call.
    workers: Arc<Workers>,
    slot: u32,
    /// `MODULE:FUNCTION`.
    name: String,
    began: Instant,
    said: Said,
    /// Whether the worker must end whatever it says.
    spoiled: bool,
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Call({} in {:?})", self.name, self.worker)
    }
}

impl Call {
    pub(super) fn new(worker: Worker, bound: Bound, workers: Arc<Workers>, slot: u32, name: &str) -> Self {
        let (name, began) = (name.to_owned(), Instant::now());
        let bound = Some(bound);
        Self { bound, worker: Some(worker), workers, slot, name, began, said: Said::Nothing, spoiled: false }
    }

    fn body(&self) -> &Body {
        // Asked only while the call is driven, and the worker stays until it is reaped.
        &self.worker.as_ref().expect("a call that is driven has a worker").body
    }

    /// Becomes readable when the worker dies.
    pub(in crate::exec) fn end_fd(&self) -> BorrowedFd<'_> {
        self.body().end_fd()
    }

    /// Becomes readable when the worker says something.
    pub(in crate::exec) fn reply_fd(&self) -> Option<BorrowedFd<'_>> {
        let listens = self.said == Said::Nothing;
        self.worker.as_ref().filter(|_| listens).map(Worker::fd)
    }

    /// Whether it is over: the worker has replied, or said what is no reply, or died.
    pub(in crate::exec) fn is_over(&mut self) -> bool {
        if let Some(worker) = &mut self.worker
            && self.said == Said::Nothing
        {
            self.said = worker.hear();
        }
        matches!(self.said, Said::Reply(_) | Said::Garbage) || is_readable(self.end_fd())
    }

    pub(in crate::exec) fn signal(&mut self, signal: Signal) {
        self.spoiled = true;
        if let Some(worker) = &mut self.worker {
            worker.body.signal(signal);
        }
    }

    pub(in crate::exec) fn out_of_memory(&self) -> Option<Failure> {
        self.worker.as_ref().and_then(|worker| worker.body.out_of_memory())
    }

    pub(in crate::exec) fn writes(&self) -> bool {
        self.worker.as_ref().is_some_and(|worker| worker.body.writes())
    }

    pub(in crate::exec) fn processes(&self) -> Vec<i32> {
        self.worker.as_ref().map(|worker| worker.body.processes()).unwrap_or_default()
    }

    pub(in crate::exec) fn pid(&self) -> Option<i32> {
        self.worker.as_ref().and_then(|worker| worker.body.pid())
    }

    /// Whether what is said of its memory is its own.
    pub(in crate::exec) fn knows_memory(&self) -> bool {
        matches!(self.said, Said::Reply(_)) || self.worker.as_ref().is_some_and(|worker| worker.body.knows_memory())
    }

    /// Ends the worker, unless it can take another call.
    pub(in crate::exec) fn end(&mut self) {
        let good = matches!(&self.said, Said::Reply(reply) if reply.usable && is_good(reply));
        let Some(worker) = &mut self.worker else { return };
        if !good || self.spoiled || worker.left_others() {
            self.spoiled = true;
            worker.body.end();
        }
    }

    pub(in crate::exec) fn reap(&mut self) -> Result<Reaped, Failure> {
        let lost = || Failure::new(ErrorCode::Lost, "the worker is gone");
        self.bound = None;
        let mut worker = self.worker.take().ok_or_else(lost)?;
        let reply = match std::mem::replace(&mut self.said, Said::Closed) {
            Said::Reply(reply) => Some(reply),
            Said::Garbage => {
                // What the kernel killed it for comes first.
                worker.body.reap()?;
                let message = format!("the function `{}` wrote something that is no reply to the daemon", self.name);
                return Err(Failure::new(ErrorCode::Exit, message));
            }
            Said::Nothing | Said::Closed => None,
        };
        match reply {
            Some(reply) if !self.spoiled => self.keep(worker, &reply),
            reply => self.bury(&mut worker, reply.as_ref()),
        }
    }

    /// The call went well: its worker waits for the next.
    fn keep(&self, mut worker: Worker, reply: &Reply) -> Result<Reaped, Failure> {
        if let Some(why) = worker.body.out_of_memory() {
            return Err(why);
        }
        let cpu = worker.spent(self.began.elapsed() >= LONG);
        let cpu_ms = u64::try_from(cpu.as_millis()).unwrap_or(u64::MAX);
        let max_rss_bytes = worker.peak_rss(reply);
        self.workers.keep(self.slot, worker);
        Ok(Reaped { status: ExitStatus::default(), cpu_ms, max_rss_bytes, failure: None })
    }

    fn bury(&self, worker: &mut Worker, reply: Option<&Reply>) -> Result<Reaped, Failure> {
        let before = u64::try_from(worker.spent_before().as_millis()).unwrap_or(u64::MAX);
        let mut dead = worker.body.reap()?;
        dead.cpu_ms = dead.cpu_ms.saturating_sub(before);
        if let Some(reply) = reply {
            dead.status = ExitStatus::default();
            dead.max_rss_bytes = worker.peak_rss(reply);
            dead.failure = failure(&self.name, reply);
        } else if dead.status.success() {
            let message = format!("the function `{}` ended its process without returning", self.name);
            dead.failure = Some(Failure { exit: Some(0), ..Failure::new(ErrorCode::Exit, message) });
        }
        Ok(dead)
    }
}

fn is_good(reply: &Reply) -> bool {
    matches!((reply.end, reply.code), (End::Done, _) | (End::Exited, 0))
}

/// What a reply says of a call that did not end well.
fn failure(name: &str, reply: &Reply) -> Option<Failure> {
    let exit = |message: String| {
        let code = i32::from(reply.code.max(1));
        Some(Failure { exit: Some(code), ..Failure::new(ErrorCode::Exit, message) })
    };
    match reply.end {
        _ if is_good(reply) => None,
        End::Refused => Some(Failure::new(ErrorCode::Invalid, reply.message.clone()).for_good()),
        End::Raised => exit(format!("the function `{name}` failed: {}", reply.message)),
        End::Done | End::Exited => exit(format!("the function `{name}` exited with status {}", reply.code)),
    }
}

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    !matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0))
}

/// A started call.
#[derive(Debug)]
pub(super) struct StartedCall {
    pub(super) call: Box<Call>,
    pub(super) stdin: Option<OwnedFd>,
    pub(super) shared: Arc<Shared>,
}

impl Execution for StartedCall {
    fn control(&self) -> Arc<dyn Control> {
        Arc::clone(&self.shared) as Arc<dyn Control>
    }

    fn drive(self: Box<Self>, streams: Streams<'_>, limits: &RunLimits) -> Ended {
        let Self { call, stdin, shared } = *self;
        let pipes = call.worker.as_ref().map(|worker| Arc::clone(&worker.pipes)).expect("a started call has a worker");
        Driver::new(Body::Call(call), stdin, pipes, shared, streams, *limits).run()
    }
}
