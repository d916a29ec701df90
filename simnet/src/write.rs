//! Writing: when a disk's syncs end, and crashes at a chosen write.

use sinew_scheduler::io::{Input, Record, Ticket};
use sinew_scheduler::time::Span;

use crate::disk::DiskSetup;
use crate::queue::{Event, Index};
use crate::world::World;

/// A write that nothing waits for is synced after this at the latest.
const LAZY_SYNC: Span = Span::ms(100);

/// As in the daemon's ledger: a disk that does not answer for so long hangs ...
pub(crate) const HUNG_AFTER: Span = Span::ms(5_000);
/// ... and what a sync lost is written again after this.
const WRITTEN_AGAIN_AFTER: Span = Span::ms(500);

/// Where in a write a node crashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashPoint {
    /// The core asked for it, nothing of it reached the disk.
    Before,
    /// It is on its way together with all before it; what of it stays is the disk's to say.
    During,
    /// It is on the platter, the core has not heard of that.
    After,
}

/// A crash to come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CrashAt {
    /// Writes to let pass before.
    writes: u64,
    point: CrashPoint,
    /// The write that it waits for, once that is on its way.
    ticket: Option<Ticket>,
}

impl World {
    /// A node crashes at the write that follows so many others.
    ///
    /// # Panics
    /// When the node is down.
    pub fn crash_at_write(&mut self, name: &str, writes: u64, point: CrashPoint) {
        let node = self.index(name);
        assert!(self.nodes[node].is_up(), "{name} is down");
        self.nodes[node].crash_at = Some(CrashAt { writes, point, ticket: None });
    }

    /// A node's disk is like this from now on. One that stops lying has flushed its cache.
    pub fn set_disk(&mut self, name: &str, setup: DiskSetup) {
        let node = self.index(name);
        self.say(node, format!("DISK is {setup:?}"));
        self.watch.lying |= setup.lies;
        self.nodes[node].disk.setup = setup;
    }

    /// Whether a node's process runs.
    #[must_use]
    pub fn is_up(&self, name: &str) -> bool {
        self.nodes[self.index(name)].is_up()
    }

    pub(crate) fn persist(&mut self, node: Index, ticket: Ticket, records: Vec<Record>, urgent: bool) {
        let fsync = self.nodes[node].disk.setup.fsync_us;
        let took = Span(self.draw(&fsync));
        let wait = if urgent { took } else { LAZY_SYNC.max(took) };
        let pending = self.nodes[node].disk.pending();
        let due = self.now + wait;
        self.counters.writes += 1;
        self.nodes[node].disk.write(ticket, records, due);
        if self.crash_is_due(node, ticket) {
            self.fell.insert(node);
            return self.crash(node, pending);
        }
        if self.nodes[node].disk.is_full() && !self.nodes[node].disk.failing {
            self.say(node, "DISK IS FULL".to_owned());
            self.counters.full_disks += 1;
            self.nodes[node].disk.failing = true;
        }
        if self.nodes[node].disk.failing {
            self.input(node, Input::StorageFailing("no space left on device".to_owned()));
        }
        self.schedule_disk(node);
    }

    /// Whether the node crashes at the write that was just asked for. One that crashes after it waits for its end.
    fn crash_is_due(&mut self, node: Index, ticket: Ticket) -> bool {
        let Some(crash) = &mut self.nodes[node].crash_at else { return false };
        if crash.ticket.is_some() {
            return false;
        }
        if crash.writes > 0 {
            crash.writes -= 1;
            return false;
        }
        if crash.point == CrashPoint::Before {
            // Nothing of it was there, so nothing of it can be torn.
            self.nodes[node].disk.drop_last();
            return true;
        }
        crash.ticket = Some(ticket);
        crash.point == CrashPoint::During
    }

    pub(crate) fn disk_synced(&mut self, node: Index) {
        self.nodes[node].disk_at = None;
        let disk = &mut self.nodes[node].disk;
        if disk.hung_since.is_some_and(|since| self.now - since >= HUNG_AFTER) {
            return self.input(node, Input::StorageHung("the disk has not answered for 5 s".to_owned()));
        }
        if disk.fails_next && disk.due().is_some_and(|due| due <= self.now) {
            return self.sync_fails(node);
        }
        let done = disk.synced(self.now);
        let awaited = self.nodes[node].crash_at.and_then(|c| c.ticket);
        if awaited.is_some_and(|ticket| done.contains(&ticket)) {
            // All that was acknowledged so far, which a lying disk has in its cache only.
            self.fell.insert(node);
            return self.crash(node, 0);
        }
        if !done.is_empty() {
            let recovered = std::mem::take(&mut self.nodes[node].disk.sync_failed).then_some(Input::StorageRecovered);
            let mark = Input::Mark(self.nodes[node].disk.mark());
            self.counters.syncs += 1;
            self.inputs(node, recovered.into_iter().chain([mark]).chain(done.into_iter().map(Input::Persisted)));
        }
        self.schedule_disk(node);
    }

    fn sync_fails(&mut self, node: Index) {
        self.say(node, "SYNC FAILED".to_owned());
        self.counters.failed_syncs += 1;
        let told = self.nodes[node].disk.fail_sync(self.now + WRITTEN_AGAIN_AFTER);
        let failing = Input::StorageFailing("cannot write the ledger's journal: input/output error".to_owned());
        self.inputs(node, [failing].into_iter().chain(told.into_iter().map(Input::Persisted)));
        self.schedule_disk(node);
    }

    pub(crate) fn schedule_disk(&mut self, node: Index) {
        if !self.nodes[node].is_up() {
            return;
        }
        let Some(due) = self.nodes[node].disk.due() else { return };
        let due = due.max(self.now);
        if self.nodes[node].disk_at.is_none_or(|at| due < at) {
            self.nodes[node].disk_at = Some(due);
            let life = self.roll.life(node);
            self.queue.push(due, Event::Disk(life));
        }
    }
}
