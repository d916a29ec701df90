//! What the ledger's threads and readers share: what waits for the disk, what a checkpoint has yet to take, and the open file.
//!
//! Readers look through all of it, so they see what was handed over before, on disk or not, and never make anybody wait for a
//! sync. Nothing is acknowledged from here: that is the writer's, after its sync.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use redb::Database;
use sinew_crdt_state::ids::JobId;
use sinew_scheduler::io::{Record, Ticket};

use super::StorageEvent;
use super::disk::Disk;
use super::journal::{Journal, JournalFile, LEN_MAX, LEN_MIN};
use super::table::{Change, Table, job_of};
use super::watch::HUNG_AFTER;

/// A journal that fills up sooner than this is made longer: it has more to do than its length was meant for.
const GROW_WITHIN: Duration = Duration::from_secs(60);

/// Records that were handed over together.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) ticket: Ticket,
    pub(super) records: Vec<Record>,
    pub(super) urgent: bool,
    pub(super) since: Instant,
}

/// Changes that a checkpoint is to take, and the journal that holds them until then.
#[derive(Debug)]
pub(super) struct Frozen {
    pub(super) table: Arc<Table>,
    /// The last group among them.
    pub(super) group: u64,
    /// The journal's number.
    pub(super) number: u32,
    /// The journal, unless it failed: then it is not used again.
    pub(super) file: Option<JournalFile>,
}

/// Everything that is shared.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Not taken by the writer yet, oldest first.
    pub(super) queue: VecDeque<Batch>,
    /// What the writer is putting into the journal.
    pub(super) group: Arc<Vec<Batch>>,
    /// In the journal, since the last checkpoint began.
    pub(super) active: Table,
    /// In the journal, for checkpoints to take, oldest first.
    pub(super) frozen: VecDeque<Frozen>,
    /// Journals that may be written over.
    pub(super) free: Vec<JournalFile>,
    /// The length that journals should have.
    pub(super) journal_len: u64,
    /// When a journal was last full.
    pub(super) filled: Option<Instant>,
    /// The number of the next new journal.
    pub(super) next_journal: u32,
    /// The ledger's file; not there while it is opened anew after an error, and when all is over.
    pub(super) db: Option<Arc<Database>>,
    /// The one that failed, until all have let go of it.
    pub(super) old: Weak<Database>,
    /// Nothing more will be queued.
    pub(super) closed: bool,
    /// The writer has ended: what is frozen now is all there will be.
    pub(super) written: bool,
    /// All other threads have ended.
    pub(super) ended: bool,
    /// What was wrong with the ledger when it was opened, and what was done.
    pub(super) remark: Option<String>,
    /// All that counts was read since the start.
    pub(super) checked: bool,
    /// A reader met an error after which the file has to be opened anew.
    pub(super) reopen: bool,
}

impl State {
    /// Calls `look` with every table, oldest first.
    pub(super) fn tables(&self) -> impl Iterator<Item = &Table> {
        self.frozen.iter().map(|frozen| &*frozen.table).chain([&self.active])
    }

    /// Records that are not in a table yet, oldest first.
    pub(super) fn untabled(&self) -> impl Iterator<Item = &Record> {
        self.group.iter().chain(&self.queue).flat_map(|batch| &batch.records)
    }

    /// What happened to a job that is not in the file, or may not be, in order.
    pub(super) fn changes(&self, job: &JobId) -> Vec<Change> {
        let mut changes: Vec<Change> = self.tables().filter_map(|table| table.jobs.get(job)).cloned().collect();
        let mut last = Change::default();
        for record in self.untabled().filter(|record| job_of(record) == Some(*job)) {
            last.add(record.clone());
        }
        changes.push(last);
        changes
    }

    /// A journal is full: says so, for the length of the next ones.
    pub(super) fn note_full(&mut self) {
        let now = Instant::now();
        if self.filled.replace(now).is_some_and(|last| now - last < GROW_WITHIN) {
            self.journal_len = (self.journal_len * 2).min(LEN_MAX);
        }
    }
}

/// What is wrong, by who found it.
#[derive(Debug, Default)]
struct Health {
    writer: Option<String>,
    checkpoint: Option<String>,
    watch: Option<String>,
    told: bool,
    told_hung: bool,
}

/// Who says what is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// The writer of the journal.
    Writer,
    /// The checkpoints.
    Checkpoint,
    /// Whoever looks whether the disk answers.
    Watch,
}

/// Whom the threads tell what comes about.
pub(super) type Tell = Arc<dyn Fn(StorageEvent) + Send + Sync>;

/// The state, and the means that all its users need.
pub(super) struct Inner {
    state: Mutex<State>,
    /// Something came into the queue, or it was closed.
    pub(super) queued: Condvar,
    /// Something was frozen, freed or ended.
    pub(super) moved: Condvar,
    /// The watch is to end.
    pub(super) watched: Condvar,
    pub(super) hung_after: Duration,
    health: Mutex<Health>,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) path: PathBuf,
    pub(super) journal: Journal,
    pub(super) events: Tell,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Inner {
    pub(super) fn new(state: State, path: PathBuf, disk: Arc<dyn Disk>, journal: Journal, events: Tell) -> Self {
        let state = State { journal_len: LEN_MIN, ..state };
        Self {
            state: Mutex::new(state),
            queued: Condvar::new(),
            moved: Condvar::new(),
            watched: Condvar::new(),
            hung_after: HUNG_AFTER,
            health: Mutex::default(),
            disk,
            path,
            journal,
            events,
        }
    }

    /// The state. A thread that panicked with it in its hands left it whole: every change is one step.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ledger is damaged: the next start reads all of it, and mends it.
    pub(super) fn damaged(&self, why: &str) {
        let remark =
            format!("the ledger is damaged: {why}. Start this node again: it keeps the file, and repairs what it can");
        tracing::error!("{remark}");
        if let Err(error) = super::check::suspect(&*self.disk, &self.path) {
            tracing::warn!(%error, "cannot note that the ledger is damaged");
        }
        self.lock().remark = Some(remark);
    }

    /// The open file, for longer than the state is locked. Whoever waits to open it anew hears when it is given back.
    pub(super) fn lend(&self) -> Option<Lent<'_>> {
        let db = self.lock().db.clone();
        db.map(|db| Lent { db: Some(db), inner: self })
    }

    /// Waits for `condvar`, for `wait` at most.
    pub(super) fn wait<'a>(
        condvar: &Condvar,
        state: MutexGuard<'a, State>,
        wait: Option<Duration>,
    ) -> MutexGuard<'a, State> {
        match wait {
            Some(wait) => condvar.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0,
            None => condvar.wait(state).unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// Tells the daemon.
    pub(super) fn tell(&self, event: StorageEvent) {
        (self.events)(event);
    }

    /// Notes what is wrong with a part, or that it works; tells the daemon when the disk as a whole became bad or good.
    pub(super) fn note(&self, part: Part, problem: Option<String>) {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        match part {
            Part::Writer => health.writer = problem,
            Part::Checkpoint => health.checkpoint = problem,
            Part::Watch => health.watch = problem,
        }
        let now = health.watch.clone().or_else(|| health.writer.clone()).or_else(|| health.checkpoint.clone());
        match now {
            Some(problem) if health.watch.is_some() && !health.told_hung => {
                health.told = true;
                health.told_hung = true;
                self.tell(StorageEvent::Hung(problem));
            }
            Some(problem) if !health.told => {
                health.told = true;
                self.tell(StorageEvent::Failing(problem));
            }
            None if health.told => {
                health.told = false;
                health.told_hung = false;
                self.tell(StorageEvent::Recovered);
            }
            _ => {}
        }
    }
}

/// The open file, lent.
pub(super) struct Lent<'a> {
    db: Option<Arc<Database>>,
    inner: &'a Inner,
}

impl std::ops::Deref for Lent<'_> {
    type Target = Database;

    fn deref(&self) -> &Database {
        self.db.as_ref().expect("it is given back only when this is dropped")
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.db = None;
        // Under the lock, so that nobody looks just before and waits just after.
        let state = self.inner.lock();
        self.inner.moved.notify_all();
        drop(state);
    }
}
