//! The writer's thread: takes what waits, puts it into the journal as one group under one sync, and acknowledges it.
//!
//! When the disk refuses, nothing is dropped: it says so, keeps the group, and writes it again into another file, until the disk
//! takes it. What a failed sync left in the first file is not relied on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::StorageEvent;
use super::journal::{JournalFile, LEN_MIN};
use super::packed::pack_records;
use super::state::{Batch, Frozen, Inner, Part, State};

/// Longest wait of a record that nothing waits for.
const LAZY: Duration = Duration::from_millis(100);
/// Wait between tries on a disk that refuses.
pub(super) const RETRY: Duration = Duration::from_millis(500);
/// Most records under one sync: bounds its latency.
const GROUP_MAX: usize = 20_000;
/// Room that a checkpoint needs beside what it writes, for copies of pages and a file that grows. With less the disk counts as
/// full while everything on it can still be read: an error in the midst of a checkpoint would close the file to readers too.
pub(super) const ROOM_MIN: u64 = 1 << 20;
/// Bytes that a checkpoint may write for each byte of the journal: the packed entries, and a page of the index for each job.
pub(super) const ROOM_FACTOR: u64 = 2;
/// Journals that wait for their checkpoint at most: what they hold is in memory too. Then nothing more is taken in until one is done.
const FROZEN_MAX: usize = 4;

/// A checkpoint that takes so long is a fault: it writes some MB.
const BEHIND_MAX: Duration = Duration::from_secs(5);

/// Why a group is not on disk.
#[derive(Debug, thiserror::Error)]
enum CommitError {
    /// Nothing was tried.
    #[error("no space left on the disk: {room} bytes are free")]
    Full {
        /// Bytes free.
        room: u64,
    },
    /// Nothing was tried: checkpoints do not keep up.
    #[error("the ledger's file takes no records")]
    Behind,
    /// The journal's file failed.
    #[error("cannot write the ledger's journal: {0}")]
    Write(#[from] std::io::Error),
}

/// The journal that is written to.
#[derive(Debug)]
struct Active {
    file: JournalFile,
    at: u64,
    /// Full from here on.
    len: u64,
}

/// The writer.
#[derive(Debug)]
pub(super) struct Writer {
    inner: Arc<Inner>,
    active: Option<Active>,
    /// The number of the last group that is on disk.
    last: u64,
}

impl Writer {
    pub(super) const fn new(inner: Arc<Inner>, last: u64) -> Self {
        Self { inner, active: None, last }
    }

    pub(super) fn run(mut self) {
        while self.collect() {
            while let Err(error) = self.commit() {
                self.inner.note(Part::Writer, Some(error.to_string()));
                if matches!(error, CommitError::Write(_)) {
                    self.give_up_file();
                } else if matches!(error, CommitError::Full { .. }) {
                    // A checkpoint lets go of the room that is held for it.
                    self.freeze();
                }
                if !self.wait_to_retry() {
                    return self.finish();
                }
            }
            self.inner.note(Part::Writer, None);
            self.acknowledge();
            if self.active.as_ref().is_some_and(|active| active.at >= active.len) {
                self.inner.lock().note_full();
                self.freeze();
            }
        }
        self.finish();
    }

    /// Waits for an urgent batch, or for the oldest lazy one to have waited long enough, and takes what is there. `false` when
    /// no more will come.
    fn collect(&self) -> bool {
        let mut state = self.inner.lock();
        loop {
            let now = Instant::now();
            let due = state.queue.front().map(|oldest| LAZY.saturating_sub(now - oldest.since));
            let due = if state.queue.iter().any(|batch| batch.urgent) { Some(Duration::ZERO) } else { due };
            match due {
                None if state.closed => return false,
                Some(wait) if wait.is_zero() || state.closed => break,
                wait => state = Inner::wait(&self.inner.queued, state, wait),
            }
        }
        let mut group = Vec::new();
        let mut records = 0;
        while let Some(batch) = state.queue.pop_front() {
            records += batch.records.len();
            group.push(batch);
            if records >= GROUP_MAX {
                break;
            }
        }
        state.group = Arc::new(group);
        true
    }

    /// Puts the group into the journal.
    fn commit(&mut self) -> Result<(), CommitError> {
        let (group, held) = self.take_turn()?;
        let records = group.iter().flat_map(|batch| &batch.records);
        if records.clone().next().is_none() {
            return Ok(());
        }
        let payload = pack_records(records);
        let needed = held.saturating_add(payload.len() as u64).saturating_mul(ROOM_FACTOR);
        let room = self.inner.journal.room();
        if room < ROOM_MIN.saturating_add(needed) {
            return Err(CommitError::Full { room });
        }
        if self.active.is_none() {
            self.active = Some(self.next_file()?);
        }
        let Some(active) = &mut self.active else { return Err(CommitError::Behind) };
        let taken = self.inner.journal.append(&mut active.file, active.at, self.last + 1, &payload)?;
        active.at += taken;
        self.last += 1;
        self.inner.lock().active.bytes += taken;
        Ok(())
    }

    /// The group, and how much the next checkpoints will have to write already. Waits for a checkpoint where too many are due.
    fn take_turn(&self) -> Result<(Arc<Vec<Batch>>, u64), CommitError> {
        let until = Instant::now() + BEHIND_MAX;
        let mut state = self.inner.lock();
        while state.frozen.len() >= FROZEN_MAX {
            let wait = until.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                return Err(CommitError::Behind);
            }
            state = Inner::wait(&self.inner.moved, state, Some(wait));
        }
        let held = state.tables().map(|table| table.bytes).sum();
        Ok((Arc::clone(&state.group), held))
    }

    /// A journal that may be written over, or a new one.
    fn next_file(&self) -> Result<Active, std::io::Error> {
        let (free, number) = {
            let mut state = self.inner.lock();
            let free = state.free.pop();
            let number = state.next_journal;
            state.next_journal += u32::from(free.is_none());
            (free, number)
        };
        // A new one is not filled up first: somebody waits.
        let file = free.map_or_else(|| self.inner.journal.prepare(number, 0), Ok)?;
        let len = file.len.max(LEN_MIN);
        Ok(Active { file, at: 0, len })
    }

    /// The group is on disk: its records go where the next checkpoint finds them, and whoever waits is told.
    fn acknowledge(&self) {
        let tickets = {
            let mut state = self.inner.lock();
            let group = std::mem::take(&mut state.group);
            let tickets = group.iter().map(|batch| batch.ticket).collect();
            // Nobody else holds it: readers look only under the lock.
            for batch in Arc::into_inner(group).into_iter().flatten() {
                for record in batch.records {
                    state.active.add(record);
                }
            }
            tickets
        };
        self.inner.tell(StorageEvent::Persisted(tickets, self.last));
    }

    /// Hands what the journal holds to the next checkpoint; another file is written from here on.
    fn freeze(&mut self) {
        let mut state = self.inner.lock();
        if state.active.bytes == 0 {
            return;
        }
        let Some(Active { file, .. }) = self.active.take() else { return };
        self.freeze_with(&mut state, file.number, Some(file));
    }

    fn freeze_with(&self, state: &mut State, number: u32, file: Option<JournalFile>) {
        let table = Arc::new(std::mem::take(&mut state.active));
        state.frozen.push_back(Frozen { table, group: self.last, number, file });
        self.inner.moved.notify_all();
    }

    /// The file failed in the midst of a group. What it holds of earlier ones counts until a checkpoint has it; nothing more is
    /// written to it, ever.
    fn give_up_file(&mut self) {
        let Some(Active { file, .. }) = self.active.take() else { return };
        let number = file.number;
        let mut state = self.inner.lock();
        if state.active.bytes > 0 {
            return self.freeze_with(&mut state, number, None);
        }
        drop(state);
        self.inner.journal.remove(number);
    }

    /// Waits before the next try. `false` when the daemon ends: what could not be written was never acknowledged.
    fn wait_to_retry(&self) -> bool {
        let until = Instant::now() + RETRY;
        let mut state = self.inner.lock();
        while !state.closed {
            let wait = until.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                return true;
            }
            state = Inner::wait(&self.inner.queued, state, Some(wait));
        }
        false
    }

    /// The last checkpoint takes what is left.
    fn finish(mut self) {
        self.freeze();
        self.inner.lock().written = true;
        self.inner.moved.notify_all();
    }
}

impl Batch {
    /// Records that are handed over now.
    pub(super) fn new(
        ticket: sinew_scheduler::io::Ticket,
        records: Vec<sinew_scheduler::io::Record>,
        urgent: bool,
    ) -> Self {
        Self { ticket, records, urgent, since: Instant::now() }
    }
}
