//! What other threads see of an execution that is driven: how to end it, what it uses, what it wrote last.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::process::Pid;

use super::cell::pool::Place;
use super::outcome::STDERR_TAIL_MAX;
use super::procfs;
use super::runner::{Control, Launch, Stats, Status};
use super::stop::{StopHandle, StopReason};
use crate::secrets::redact::Redacting;

/// Where an execution's first process is found.
#[derive(Debug, Clone, Copy)]
pub(super) enum Who {
    /// It is this one.
    Process(Pid),
    /// It is the first child of this one, or about to be.
    ChildOf(Pid),
    /// Nowhere.
    Nobody,
}

impl Who {
    fn pid(self) -> Option<i32> {
        match self {
            Self::Process(pid) => Some(pid.as_raw_nonzero().get()),
            Self::ChildOf(pid) => {
                let pid = pid.as_raw_nonzero().get();
                Some(procfs::children(pid).first().copied().unwrap_or(pid))
            }
            Self::Nobody => None,
        }
    }
}

/// The end of what a program wrote to stderr.
#[derive(Debug, Default)]
pub(super) struct Tail(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    bytes: Vec<u8>,
    redacting: Option<Redacting>,
}

impl Tail {
    /// Without the secrets of the task at `place`.
    pub(super) fn at(place: &Place<'_>) -> Self {
        let redacting = place.secrets.and_then(|secrets| Some(secrets.redactor()?.stream()));
        Self(Mutex::new(Kept { bytes: Vec::new(), redacting }))
    }

    pub(super) fn add(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Kept { bytes: tail, redacting } = &mut *kept;
        match redacting {
            Some(redacting) => {
                let mut shown = Vec::with_capacity(bytes.len());
                redacting.push(bytes, &mut shown);
                extend(tail, &shown);
            }
            None => extend(tail, bytes),
        }
    }

    pub(super) fn get(&self) -> Vec<u8> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut tail = kept.bytes.clone();
        if let Some(redacting) = &kept.redacting {
            let mut rest = Vec::new();
            redacting.clone().finish(&mut rest);
            extend(&mut tail, &rest);
        }
        tail
    }
}

fn extend(tail: &mut Vec<u8>, bytes: &[u8]) {
    let new = &bytes[bytes.len().saturating_sub(STDERR_TAIL_MAX)..];
    let keep = STDERR_TAIL_MAX - new.len();
    let drop = tail.len().saturating_sub(keep);
    tail.drain(..drop);
    tail.extend_from_slice(new);
}

/// What the driving thread shares with [`Control`].
#[derive(Debug)]
pub(super) struct Shared {
    who: Who,
    pub(super) stop: StopHandle,
    ended: AtomicBool,
    tail: Tail,
}

impl Shared {
    pub(super) fn new(who: Who, launch: &Launch<'_>) -> Self {
        let (stop, tail) = (launch.stop.clone(), Tail::at(&launch.place));
        Self { who, stop, ended: AtomicBool::new(false), tail }
    }

    /// Keeps the end of stderr.
    pub(super) fn add_stderr(&self, bytes: &[u8]) {
        self.tail.add(bytes);
    }

    pub(super) fn tail(&self) -> Vec<u8> {
        self.tail.get()
    }

    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }
}

impl Control for Shared {
    fn stop(&self, reason: StopReason) {
        self.stop.stop(reason);
    }

    fn status(&self) -> Status {
        if self.ended.load(Ordering::Acquire) {
            Status::Ended
        } else {
            Status::Running(self.who.pid().and_then(|pid| u32::try_from(pid).ok()))
        }
    }

    fn stats(&self) -> Stats {
        if self.ended.load(Ordering::Acquire) {
            return Stats::default();
        }
        let Some(pid) = self.who.pid() else { return Stats::default() };
        Stats { cpu_ms: procfs::stat(pid).map_or(0, |s| s.cpu_ms), rss_bytes: procfs::rss(pid).unwrap_or(0) }
    }

    fn logs(&self) -> Vec<u8> {
        self.tail()
    }
}
