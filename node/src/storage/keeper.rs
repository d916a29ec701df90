//! The keeper's thread: makes checkpoints, gives their journals back, and opens the ledger's file anew when it failed.
//!
//! Records are acknowledged while it works. What it cannot write stays in the journal and in memory, and is tried again.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redb::Database;

use super::checkpoint::apply;
use super::disk::Disk;
use super::journal::JournalFile;
use super::rebuild::{check_bare, damage_in};
use super::state::{Frozen, Inner, Part};
use super::sums::{Checked, Found};
use super::table::Table;
use super::writer::{RETRY, ROOM_FACTOR, ROOM_MIN};
use super::{StorageError, cannot_open};

/// Page cache. The working set is the tail of what was just written; the default of a GiB would be the daemon's memory. What is not
/// in it is in the kernel's.
pub(super) const CACHE_BYTES: usize = 4 << 20;
/// Journals kept ready. One more is written to, and those are left that a checkpoint is to take.
const FREE_MAX: usize = 1;
/// Readers let go of the old file within milliseconds, if the disk answers them.
const LET_GO: Duration = Duration::from_secs(5);

/// Why a checkpoint was not made.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    /// Nothing was tried.
    #[error("no space left on the disk: {room} bytes are free")]
    Full {
        /// Bytes free.
        room: u64,
    },
    /// The file is not open.
    #[error("the ledger's file is not open")]
    Closed,
    /// redb failed, and refuses everything from here on.
    #[error("cannot write the ledger: {0}")]
    Write(#[from] redb::Error),
}

/// Opens or makes the ledger's file, and locks it. A file without checksums is checked by redb's own, once, and gets some.
pub(super) fn open_database(disk: &dyn Disk, path: &Path) -> Result<Database, StorageError> {
    let error = |e: io::Error| cannot_open(path, redb::StorageError::from(e));
    let checked = match Checked::open(disk, path).map_err(error)? {
        Found::Checked(checked) => *checked,
        Found::Bare(file) => {
            check_bare(file).map_err(|e| cannot_open(path, e))?;
            let file = disk.open(path).and_then(|file| file.lock().map(|()| file)).map_err(error)?;
            Checked::adopt(disk, path, file).map_err(error)?
        }
    };
    let opened = redb::Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(checked);
    opened.map_err(|e| cannot_open(path, e))
}

/// The keeper.
#[derive(Debug)]
pub(super) struct Keeper {
    inner: Arc<Inner>,
}

impl Keeper {
    pub(super) const fn new(inner: Arc<Inner>) -> Self {
        Self { inner }
    }

    pub(super) fn run(self) {
        self.have_one_ready();
        while let Some(task) = self.next() {
            let done = match &task {
                Some((table, group)) => self.checkpoint(table, *group),
                None => Ok(()),
            };
            match done {
                Ok(()) if task.is_some() => {
                    self.inner.note(Part::Checkpoint, None);
                    self.give_back();
                }
                Ok(()) => {
                    if !self.reopen() && !self.wait_to_retry() {
                        return;
                    }
                }
                Err(error) => {
                    if let KeepError::Write(error) = &error
                        && let Some(why) = damage_in(error)
                    {
                        self.inner.damaged(&why);
                    }
                    self.inner.note(Part::Checkpoint, Some(error.to_string()));
                    if !matches!(error, KeepError::Full { .. }) {
                        self.reopen();
                    }
                    // The journal keeps what could not be written until the next start.
                    if !self.wait_to_retry() {
                        return;
                    }
                }
            }
        }
    }

    /// The next changes to take; `Some(None)` when only the file is to be opened anew. `None` when all is done.
    #[expect(clippy::option_option, reason = "three things to do: a checkpoint, something else, or nothing more")]
    fn next(&self) -> Option<Option<(Arc<Table>, u64)>> {
        let mut state = self.inner.lock();
        loop {
            if let Some(Frozen { table, group, .. }) = state.frozen.front() {
                return Some(Some((Arc::clone(table), *group)));
            }
            if state.written {
                return None;
            }
            if std::mem::take(&mut state.reopen) {
                return Some(None);
            }
            state = Inner::wait(&self.inner.moved, state, None);
        }
    }

    fn checkpoint(&self, table: &Table, group: u64) -> Result<(), KeepError> {
        let db = self.inner.lend().ok_or(KeepError::Closed)?;
        let room = self.inner.journal.room();
        if room < ROOM_MIN / 2 + table.bytes * ROOM_FACTOR {
            return Err(KeepError::Full { room });
        }
        Ok(apply(&db, table, group)?)
    }

    /// The oldest changes are in the ledger: readers find them there, and their journal may be written over.
    fn give_back(&self) {
        let (frozen, len, wanted) = {
            let mut state = self.inner.lock();
            let frozen = state.frozen.pop_front();
            (frozen, state.journal_len, state.free.len() < FREE_MAX)
        };
        self.inner.moved.notify_all();
        let Some(Frozen { number, file, .. }) = frozen else { return };
        match file.filter(|_| wanted) {
            Some(file) => self.offer(file, len),
            None => self.inner.journal.remove(number),
        }
    }

    fn offer(&self, mut file: JournalFile, len: u64) {
        let number = file.number;
        match self.inner.journal.lengthen(&mut file, len) {
            Ok(()) => self.inner.lock().free.push(file),
            Err(error) => {
                tracing::warn!(%error, "cannot prepare a journal of the ledger");
                self.inner.journal.remove(number);
            }
        }
    }

    /// A journal that lies ready saves the writer the time to make one.
    fn have_one_ready(&self) {
        let (number, len) = {
            let mut state = self.inner.lock();
            if state.free.len() > FREE_MAX {
                return;
            }
            state.next_journal += 1;
            (state.next_journal - 1, state.journal_len)
        };
        match self.inner.journal.prepare(number, len) {
            Ok(file) => self.inner.lock().free.push(file),
            Err(error) => tracing::warn!(%error, "cannot prepare a journal of the ledger"),
        }
    }

    /// After an error redb refuses everything until it is opened anew. Until then readers are told so. `false` when it has to
    /// be tried again.
    fn reopen(&self) -> bool {
        if !self.let_go() {
            self.inner.lock().reopen = true;
            return false;
        }
        let opened = open_database(&*self.inner.disk, &self.inner.path);
        let mut state = self.inner.lock();
        match opened {
            Ok(db) => state.db = Some(Arc::new(db)),
            Err(error) => {
                tracing::error!(%error, "cannot open the ledger anew");
                state.reopen = true;
            }
        }
        state.db.is_some()
    }

    /// Waits until nobody holds the old handle, which holds the file's lock. `false` when that takes too long: somebody hangs in it.
    fn let_go(&self) -> bool {
        let until = Instant::now() + LET_GO;
        let mut state = self.inner.lock();
        if let Some(old) = state.db.take() {
            state.old = Arc::downgrade(&old);
            drop(state);
            drop(old);
            state = self.inner.lock();
        }
        while state.old.strong_count() > 0 {
            let wait = until.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                return false;
            }
            state = Inner::wait(&self.inner.moved, state, Some(wait));
        }
        true
    }

    /// Waits before the next try. `false` when the daemon ends.
    fn wait_to_retry(&self) -> bool {
        let until = Instant::now() + RETRY;
        let mut state = self.inner.lock();
        while !state.written {
            let wait = until.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                return true;
            }
            state = Inner::wait(&self.inner.moved, state, Some(wait));
        }
        false
    }
}
