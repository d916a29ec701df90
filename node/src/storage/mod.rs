//! The ledger on disk: a journal that every record is synced into before it is acknowledged, and behind it one redb file, to
//! which checkpoints bring what the journal holds.
//!
//! Records are written in the order the core hands them over. When the disk refuses, nothing is dropped: the writer says so,
//! keeps everything, and tries on until the disk takes it. Why there are two: docs/decisions/018-a-journal-before-redb.md.

mod archive;
mod check;
mod checkpoint;
mod disk;
mod journal;
mod keeper;
mod migrate;
mod packed;
mod reader;
mod rebuild;
mod rows;
mod state;
mod sums;
mod table;
#[cfg(test)]
mod tests;
mod watch;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use redb::{Database, ReadableDatabase, ReadableTable};
use sinew_crdt_state::cbor;
use sinew_crdt_state::ids::DiskId;
use sinew_scheduler::core::Stored;
use sinew_scheduler::io::{Record, Ticket};

pub use archive::Archive;
use checkpoint::{apply, begin};
use disk::{Disk, RealDisk};
pub use journal::JournalError;
use journal::{Journal, Key, LEN_MIN, Replay};
use keeper::{Keeper, open_database};
pub use reader::StorageReader;
use rows::{APPLIED, DISK, ENDED, HEADS, INDEX, JOURNAL_KEYS, MEMBERS, META, OWNERS, PIECES, SEALS_SAY, SEGMENTS};
use state::{Batch, Inner, State, Tell};
use table::Table;
use watch::{HUNG_AFTER, Watch, Watched};
use writer::Writer;

/// Why the ledger could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// It could not be opened.
    #[error("cannot open the ledger {path}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<redb::Error>,
    },
    /// It could not be read.
    #[error("cannot read the ledger: {0}")]
    Read(#[source] Box<redb::Error>),
    /// The journal could not be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A record is not what was written.
    #[error("the ledger holds a damaged record: {0}")]
    Damaged(#[from] cbor::DecodeError),
    /// The file is being opened anew after an error, or is closed for good. Trying again may help.
    #[error("the ledger's file is not open: the disk failed, or the node is ending")]
    Closed,
}

impl From<redb::Error> for StorageError {
    fn from(error: redb::Error) -> Self {
        read_error(error)
    }
}

fn read_error(e: impl Into<redb::Error>) -> StorageError {
    match e.into() {
        // The file was closed while it was read, or it failed before: it is being opened anew.
        redb::Error::DatabaseClosed | redb::Error::PreviousIo => StorageError::Closed,
        error => StorageError::Read(Box::new(error)),
    }
}

fn cannot_open(path: &Path, e: impl Into<redb::Error>) -> StorageError {
    StorageError::Open { path: path.to_owned(), source: Box::new(e.into()) }
}

/// What the writer tells the daemon.
#[derive(Debug)]
pub enum StorageEvent {
    /// These batches are on disk, which has come so far: the number of the last group in its journal.
    Persisted(Vec<Ticket>, u64),
    /// The disk refuses.
    Failing(String),
    /// The disk does not answer at all.
    Hung(String),
    /// The disk takes records again.
    Recovered,
}

/// What a node starts from: see [`StorageReader::load`].
pub type Loaded = (Stored, u64, DiskId);

/// The ledger.
#[derive(Debug)]
pub struct Storage {
    inner: Arc<Inner>,
    threads: Vec<JoinHandle<()>>,
    /// Without the watch over it.
    disk: Arc<dyn Disk>,
}

impl Storage {
    /// Opens or creates the ledger, takes in what its journal holds, and starts its threads.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn open(path: &Path, events: impl Fn(StorageEvent) + Send + Sync + 'static) -> Result<Self, StorageError> {
        Self::open_on(Arc::new(RealDisk), path, HUNG_AFTER, check::WHOLE_MAX, Arc::new(events))
    }

    /// Reads what a node starts from. A ledger that turns out to be damaged only then is closed, mended, and read again. What is
    /// not read now of a large one is read by a thread from here on.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn load(mut self) -> Result<(Self, Loaded), StorageError> {
        let loaded = self.reader().load();
        if !loaded.as_ref().is_err_and(|error| damage_in(error).is_some()) {
            let loaded = loaded?;
            if !self.inner.lock().checked {
                let reader = self.reader();
                self.start("sinew-check", move || check::run(&reader))?;
            }
            return Ok((self, loaded));
        }
        let (disk, path) = (Arc::clone(&self.disk), self.inner.path.clone());
        check::suspect(&*disk, &path).map_err(|e| cannot_open(&path, redb::StorageError::from(e)))?;
        self.end();
        let again =
            Self::open_on(disk, &path, self.inner.hung_after, check::WHOLE_MAX, Arc::clone(&self.inner.events))?;
        let loaded = again.reader().load()?;
        Ok((again, loaded))
    }

    /// Opens a ledger. One longer than `whole_max` is not read whole before it is worked with.
    fn open_on(
        disk: Arc<dyn Disk>,
        path: &Path,
        hung_after: Duration,
        whole_max: u64,
        events: Tell,
    ) -> Result<Self, StorageError> {
        let watch = Arc::new(Watch::default());
        let bare = Arc::clone(&disk);
        let disk: Arc<dyn Disk> = Arc::new(Watched { disk, watch: Arc::clone(&watch) });
        rebuild::finish(&*disk, path)?;
        let whole = check::reads_whole(&*disk, path, whole_max)?;
        let (opened, remark) = match rebuild::quietly(|| open_whole(&disk, path, whole)) {
            Ok(opened) => (opened, None),
            Err(error) => match damage_in(&error) {
                Some(why) => {
                    let remark = rebuild::rebuild(&disk, path, &why)?;
                    (open_whole(&disk, path, true)?, Some(remark))
                }
                None => return Err(error),
            },
        };
        if whole {
            check::is_well(&*disk, path)?;
        }
        let (db, journal, replay) = opened;
        let free = reuse(&journal, &replay, path)?;
        let next_journal = free.iter().map(|file| file.number).chain(replay.files.last().copied()).max();
        let next_journal = next_journal.map_or(0, |last| last + 1);
        let state = State { db: Some(Arc::new(db)), free, next_journal, remark, checked: whole, ..State::default() };
        let mut inner = Inner::new(state, path.to_owned(), disk, journal, events);
        inner.hung_after = hung_after;
        let inner = Arc::new(inner);
        let (writer, keeper) = (Writer::new(Arc::clone(&inner), replay.last), Keeper::new(Arc::clone(&inner)));
        let watched = Arc::clone(&inner);
        let mut storage = Self { inner, threads: Vec::new(), disk: bare };
        storage.start("sinew-ledger", move || writer.run())?;
        storage.start("sinew-keeper", move || keeper.run())?;
        storage.start("sinew-watch", move || watch::run(&watched, &watch))?;
        Ok(storage)
    }

    fn start(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), StorageError> {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
        let thread = thread.map_err(|e| cannot_open(&self.inner.path, redb::StorageError::from(e)))?;
        self.threads.push(thread);
        Ok(())
    }

    /// Queues records.
    pub fn persist(&self, ticket: Ticket, records: Vec<Record>, urgent: bool) {
        let mut state = self.inner.lock();
        let wakes = urgent || state.queue.is_empty();
        state.queue.push_back(Batch::new(ticket, records, urgent));
        drop(state);
        if wakes {
            self.inner.queued.notify_all();
        }
    }

    /// A handle for reading, from any thread.
    #[must_use]
    pub fn reader(&self) -> StorageReader {
        StorageReader { inner: Arc::clone(&self.inner) }
    }

    /// Writes what is queued, makes a last checkpoint, and ends the threads.
    pub fn close(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.inner.lock().closed = true;
        self.inner.queued.notify_all();
        self.inner.moved.notify_all();
        for thread in self.threads.drain(..) {
            // The last one looks whether the others are stuck.
            if thread.thread().name() == Some("sinew-watch") {
                self.inner.lock().ended = true;
                self.inner.watched.notify_all();
            }
            let _ = thread.join();
        }
        // Readers may outlive the storage; the file is closed all the same.
        let db = self.inner.lock().db.take();
        drop(db);
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.end();
    }
}

/// What is damaged, where an error says that something is.
fn damage_in(error: &StorageError) -> Option<String> {
    match error {
        StorageError::Open { source, .. } | StorageError::Read(source) => rebuild::damage_in(source),
        StorageError::Journal(error @ JournalError::Damaged { .. }) => Some(error.to_string()),
        StorageError::Damaged(error) => Some(error.to_string()),
        StorageError::Journal(JournalError::Read { .. }) | StorageError::Closed => None,
    }
}

/// Opens a ledger, reads the pages of it that count now, or the `whole`, and takes in what its journal holds.
fn open_whole(disk: &Arc<dyn Disk>, path: &Path, whole: bool) -> Result<(Database, Journal, Replay), StorageError> {
    if whole {
        rebuild::check_own_tables(&**disk, path).map_err(|e| cannot_open(path, e))?;
    }
    let db = open_database(&**disk, path)?;
    let failed = |e: redb::Error| cannot_open(path, e);
    let key = set_up(&db).map_err(failed)?;
    migrate::from_facts(&db).map_err(failed)?;
    rebuild::walk(&db, whole).map_err(failed)?;
    let journal = Journal::new(Arc::clone(disk), path, key);
    let replay = catch_up(&db, &journal, path)?;
    Ok((db, journal, replay))
}

/// Draws the ledger's own numbers when it is new, and makes its tables: readers expect every one.
fn set_up(db: &Database) -> Result<Key, redb::Error> {
    let txn = begin(db)?;
    let (key, is_new) = {
        let mut meta = txn.open_table(META)?;
        let is_first = meta.get(DISK)?.is_none();
        let mut is_new = is_first;
        let mut number = |name: &str, drawn: u64| -> Result<u64, redb::Error> {
            if let Some(known) = meta.get(name)?.map(|v| v.value()) {
                return Ok(known);
            }
            is_new = true;
            meta.insert(name, drawn)?;
            Ok(drawn)
        };
        number(DISK, draw())?;
        if is_first {
            number(SEALS_SAY, 1)?;
        }
        (Key::new([number(JOURNAL_KEYS[0], draw())?, number(JOURNAL_KEYS[1], draw())?]), is_new)
    };
    if !is_new {
        txn.abort()?;
        return Ok(key);
    }
    txn.open_table(PIECES)?;
    txn.open_table(SEGMENTS)?;
    txn.open_table(INDEX)?;
    txn.open_table(HEADS)?;
    txn.open_table(ENDED)?;
    txn.open_table(OWNERS)?;
    txn.open_table(MEMBERS)?;
    txn.commit()?;
    Ok(key)
}

/// A number that no other disk has.
fn draw() -> u64 {
    use rand::TryRng;
    // Without a generator the time does: two disks of one node are never new in the same microsecond.
    rand::rngs::SysRng.try_next_u64().unwrap_or_else(|_| crate::clock::unix_us())
}

/// Brings what the journal holds into the file.
fn catch_up(db: &Database, journal: &Journal, path: &Path) -> Result<Replay, StorageError> {
    let applied = (|| {
        let txn = db.begin_read()?;
        Ok(txn.open_table(META)?.get(APPLIED)?.map_or(0, |v| v.value()))
    })();
    let applied = applied.map_err(|e: redb::Error| cannot_open(path, e))?;
    let replay = journal.replay(applied)?;
    if !replay.groups.is_empty() {
        let mut table = Table::default();
        for (_, group) in &replay.groups {
            packed::unpack_records(group)?.into_iter().for_each(|record| table.add(record));
        }
        apply(db, &table, replay.last).map_err(|e| cannot_open(path, e))?;
        tracing::info!(groups = replay.groups.len(), "took in the ledger's journal");
    }
    Ok(replay)
}

/// The first journal, ready to be written over; the others are deleted. All that they hold is in the file.
fn reuse(journal: &Journal, replay: &Replay, path: &Path) -> Result<Vec<journal::JournalFile>, StorageError> {
    let first = replay.files.first().copied().unwrap_or(0);
    replay.files.iter().skip(1).for_each(|number| journal.remove(*number));
    let file = journal.prepare(first, LEN_MIN);
    Ok(vec![file.map_err(|e| cannot_open(path, redb::StorageError::from(e)))?])
}
