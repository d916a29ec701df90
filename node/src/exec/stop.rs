//! The handle by which another thread ends a running task. It only carries the wish: the thread that drives the task does the
//! killing, so that no signal is ever sent to a process id that was reaped and given away again.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use sinew_crdt_state::error_code::ErrorCode;
use tokio::io::unix::AsyncFd;

use super::outcome::Failure;
use super::switch::{Entry, Kind};

/// How often the wish to stop is looked for where it cannot be waited for.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Why a task is to be ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum StopReason {
    /// Somebody cancelled it.
    Cancelled = 1,
    /// This node lost the right to run it: the lease ran out, or it was given to another.
    Fenced = 2,
    /// The daemon is going down.
    Shutdown = 3,
}

impl StopReason {
    /// The failure that an attempt ended for this reason reports.
    #[must_use]
    pub fn failure(self) -> Failure {
        match self {
            Self::Cancelled => Failure::new(ErrorCode::Cancelled, "cancelled"),
            Self::Fenced => Failure::new(ErrorCode::Lost, "this node lost the lease on the attempt"),
            Self::Shutdown => Failure::new(ErrorCode::Lost, "the node was shut down"),
        }
    }
}

#[derive(Debug)]
struct Inner {
    reason: AtomicU8,
    wake: OwnedFd,
    /// Its lease, where it has one.
    entry: Option<Entry>,
}

/// Ends one attempt. Clones end the same one.
#[derive(Debug, Clone)]
pub struct StopHandle(Arc<Inner>);

impl StopHandle {
    /// A handle nobody has used yet.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn new() -> std::io::Result<Self> {
        Self::made(None)
    }

    /// One for an attempt under a lease.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn leased(entry: Entry) -> std::io::Result<Self> {
        Self::made(Some(entry))
    }

    fn made(entry: Option<Entry>) -> std::io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(Inner { reason: AtomicU8::new(0), wake, entry })))
    }

    /// Asks for the end. The first reason stands, unless the right to run is lost after it.
    pub fn stop(&self, reason: StopReason) {
        let set =
            |from| self.0.reason.compare_exchange(from, reason as u8, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if set(0) {
            // The counter only overflows after 2^64 - 2 stops, and only the first one comes here.
            let _ = rustix::io::write(&self.0.wake, &1_u64.to_ne_bytes());
        } else if reason == StopReason::Fenced {
            self.0.reason.store(reason as u8, Ordering::Release);
        }
    }

    /// Moves the end of its lease.
    pub fn set_end(&self, until_ns: u64) {
        if let Some(entry) = &self.0.entry {
            entry.set_end(until_ns);
        }
    }

    /// Has this killed when the lease is over and nobody here sees to it.
    ///
    /// # Errors
    /// That it is over.
    pub(super) fn bind(&self, kind: Kind, pid: i32, run: u64) -> Result<Bound, Failure> {
        if let Some(entry) = &self.0.entry {
            entry.bind(kind, pid, run);
        }
        let bound = Bound(self.clone());
        match self.reason() {
            Some(StopReason::Fenced) => Err(StopReason::Fenced.failure()),
            _ => Ok(bound),
        }
    }

    /// Why to end, if somebody asked, or the lease is over.
    #[must_use]
    pub fn reason(&self) -> Option<StopReason> {
        if self.0.entry.as_ref().is_some_and(Entry::is_over) {
            return Some(StopReason::Fenced);
        }
        match self.0.reason.load(Ordering::Acquire) {
            1 => Some(StopReason::Cancelled),
            2 => Some(StopReason::Fenced),
            3 => Some(StopReason::Shutdown),
            _ => None,
        }
    }

    /// Waits until somebody asks for the end, and says why.
    pub async fn stopped(&self) -> StopReason {
        #[expect(deprecated, reason = "sound for an OwnedFd, whose number never changes; what replaces it is unsafe")]
        let watched = self.wake_fd().try_clone_to_owned().and_then(AsyncFd::new);
        loop {
            if let Some(reason) = self.reason() {
                return reason;
            }
            match &watched {
                Ok(watched) if watched.readable().await.is_ok() => {}
                // Short of descriptors: then it is noticed a little later.
                _ => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }

    /// What `work` gives, unless somebody asks for the end first.
    ///
    /// # Errors
    /// Those of `work`, and that of the reason for the end.
    pub async fn unless_stopped<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        tokio::select! {
            done = work => done,
            reason = self.stopped() => Err(reason.failure()),
        }
    }

    /// Becomes readable, and stays so, once somebody asked.
    #[must_use]
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.0.wake.as_fd()
    }
}

/// Something that is killed when its attempt's lease is over; until this is dropped, which must be before it is reaped.
#[derive(Debug)]
pub(super) struct Bound(StopHandle);

impl Bound {
    /// Its process is known now.
    pub(super) fn pid(&self, kind: Kind, pid: i32, run: u64) {
        if let Some(entry) = &self.0.0.entry {
            entry.bind(kind, pid, run);
        }
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Some(entry) = &self.0.0.entry {
            entry.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_without_an_end_ends_when_told_and_other_work_is_done() {
        let stop = StopHandle::new().expect("handle");
        assert_eq!(stop.unless_stopped(async { Ok(3) }).await.expect("done"), 3);
        let other = stop.clone();
        let teller = std::thread::spawn(move || other.stop(StopReason::Cancelled));
        let ended = stop.unless_stopped(std::future::pending::<Result<(), Failure>>()).await;
        teller.join().expect("told");
        assert_eq!(ended.expect_err("stopped").code, ErrorCode::Cancelled);
        // Also where it was told before.
        let late = stop.unless_stopped(std::future::pending::<Result<(), Failure>>()).await;
        assert_eq!(late.expect_err("stopped").code, ErrorCode::Cancelled);
    }

    #[test]
    fn a_lost_right_counts_whatever_was_asked_before_and_shows_by_itself() {
        let stop = StopHandle::new().expect("handle");
        stop.stop(StopReason::Cancelled);
        stop.stop(StopReason::Shutdown);
        assert_eq!(stop.reason(), Some(StopReason::Cancelled));
        stop.stop(StopReason::Fenced);
        stop.stop(StopReason::Cancelled);
        assert_eq!(stop.reason(), Some(StopReason::Fenced));
        let switch = super::super::switch::Switch::new().expect("switch");
        let leased = StopHandle::leased(switch.enter(u64::MAX).expect("entry")).expect("handle");
        let bound = leased.bind(Kind::Group, 0, 1).expect("it may run");
        assert_eq!(leased.reason(), None);
        leased.set_end(1);
        assert_eq!(leased.reason(), Some(StopReason::Fenced));
        drop(bound);
        assert_eq!(leased.bind(Kind::Group, 0, 2).expect_err("it may not").code, ErrorCode::Lost);
    }
}
