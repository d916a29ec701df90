//! What other threads see of a running module.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::exec::control::Tail;
use crate::exec::runner::{Control, Launch, Stats, Status};
use crate::exec::stop::{StopHandle, StopReason};

/// What the driving thread shares with [`Control`].
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) stop: StopHandle,
    ended: AtomicBool,
    cpu_us: AtomicU64,
    memory_bytes: AtomicU64,
    peak_bytes: AtomicU64,
    tail: Tail,
}

impl Watch {
    pub(super) fn new(launch: &Launch<'_>) -> Self {
        Self {
            stop: launch.stop.clone(),
            ended: AtomicBool::new(false),
            cpu_us: AtomicU64::new(0),
            memory_bytes: AtomicU64::new(0),
            peak_bytes: AtomicU64::new(0),
            tail: Tail::at(&launch.place),
        }
    }

    pub(super) fn set_cpu_us(&self, us: u64) {
        self.cpu_us.store(us, Ordering::Relaxed);
    }

    pub(super) fn set_memory(&self, bytes: u64) {
        self.memory_bytes.store(bytes, Ordering::Relaxed);
        self.peak_bytes.fetch_max(bytes, Ordering::Relaxed);
    }

    /// Most bytes of memory that it had.
    pub(super) fn peak_bytes(&self) -> u64 {
        self.peak_bytes.load(Ordering::Relaxed)
    }

    /// Keeps the end of stderr.
    pub(super) fn add_stderr(&self, bytes: &[u8]) {
        self.tail.add(bytes);
    }

    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }
}

impl Control for Watch {
    fn stop(&self, reason: StopReason) {
        self.stop.stop(reason);
    }

    fn status(&self) -> Status {
        if self.ended.load(Ordering::Acquire) { Status::Ended } else { Status::Running(None) }
    }

    fn stats(&self) -> Stats {
        if self.ended.load(Ordering::Acquire) {
            return Stats::default();
        }
        let cpu_ms = self.cpu_us.load(Ordering::Relaxed) / 1_000;
        Stats { cpu_ms, rss_bytes: self.memory_bytes.load(Ordering::Relaxed) }
    }

    fn logs(&self) -> Vec<u8> {
        self.tail.get()
    }
}
