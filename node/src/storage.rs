//! The ledger on disk: one redb file, one writer thread that groups what waits into one fsync.
//!
//! Records are written in the order the core hands them over. When the disk refuses, nothing is dropped: the thread says
//! so, keeps everything, and tries on until the disk takes it.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, TableError};
use sinew_crdt_state::cbor;
use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::ids::{DiskId, FactId, JobId, NodeId};
use sinew_crdt_state::ledger::{OwnerMark, SealedEntry};
use sinew_scheduler::core::Stored;
use sinew_scheduler::io::{Record, Ticket};

/// Envelopes by job and fact id.
const FACTS: TableDefinition<&[u8; 64], &[u8]> = TableDefinition::new("facts");
/// Sealed entries by job.
const SEALED: TableDefinition<&[u8; 32], &[u8]> = TableDefinition::new("sealed");
/// Owner marks by node.
const OWNERS: TableDefinition<&[u8; 32], &[u8]> = TableDefinition::new("owners");
/// Receipts of forgotten jobs: the list of envelopes kept of them.
const RECEIPTS: TableDefinition<&[u8; 32], &[u8]> = TableDefinition::new("receipts");
/// Members' certificates by node.
const MEMBERS: TableDefinition<&[u8; 32], &[u8]> = TableDefinition::new("members");
/// Single values.
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// Page cache. The working set is the tail of what was just written; the default of a GiB would be the daemon's memory.
const CACHE_BYTES: usize = 8 << 20;
/// Longest wait of a record that nothing waits for.
const LAZY: Duration = Duration::from_millis(100);
/// Wait between tries on a disk that refuses.
const RETRY: Duration = Duration::from_millis(500);
/// A reader waits so long for what is still being written; then it reads what is there.
const CATCH_UP_MAX: Duration = Duration::from_secs(2);
/// Most records under one fsync: bounds its latency.
const GROUP_MAX: usize = 20_000;

/// Room that a commit needs beside its records, for copies of pages and a file that grows. With less the disk counts as
/// full while everything on it can still be read: an error in the midst of a write would close the file to readers too.
const ROOM_MIN: u64 = 1 << 20;

/// Why the ledger's file could not be used.
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
    /// A record is not what was written.
    #[error("the ledger holds a damaged record: {0}")]
    Damaged(#[from] cbor::DecodeError),
}

fn read_error(e: impl Into<redb::Error>) -> StorageError {
    StorageError::Read(Box::new(e.into()))
}

/// What the writer tells the daemon.
#[derive(Debug)]
pub enum StorageEvent {
    /// These batches are on disk.
    Persisted(Vec<Ticket>),
    /// The disk refuses.
    Failing(String),
    /// The disk takes records again.
    Recovered,
}

struct Batch {
    ticket: Option<Ticket>,
    records: Vec<Record>,
    urgent: bool,
    /// Let go of when the batch, and all before it, are on disk.
    _done: Option<SyncSender<()>>,
}

type Shared = Arc<RwLock<Arc<Database>>>;
/// The way to the writer, until the storage is closed.
type Orders = Arc<Mutex<Option<Sender<Batch>>>>;

fn order(orders: &Orders, batch: Batch) {
    if let Some(tx) = &*orders.lock().unwrap_or_else(PoisonError::into_inner) {
        // The writer ends only after this sender is dropped.
        let _ = tx.send(batch);
    }
}

/// The ledger's file.
#[derive(Debug)]
pub struct Storage {
    orders: Orders,
    db: Shared,
    thread: Option<JoinHandle<()>>,
}

impl Storage {
    /// Opens or creates the file, and starts the writer.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn open(path: &Path, events: impl Fn(StorageEvent) + Send + 'static) -> Result<Self, StorageError> {
        let db = Arc::new(RwLock::new(Arc::new(open_database(path)?)));
        let (tx, rx) = channel();
        let writer = Writer { rx, db: Arc::clone(&db), path: path.to_owned(), events: Box::new(events) };
        let thread = std::thread::Builder::new().name("sinew-ledger".to_owned()).spawn(move || writer.run());
        let thread = thread.map_err(|e| StorageError::Open {
            path: path.to_owned(),
            source: Box::new(redb::Error::from(redb::StorageError::from(e))),
        })?;
        Ok(Self { orders: Arc::new(Mutex::new(Some(tx))), db, thread: Some(thread) })
    }

    /// Queues records.
    pub fn persist(&self, ticket: Ticket, records: Vec<Record>, urgent: bool) {
        order(&self.orders, Batch { ticket: Some(ticket), records, urgent, _done: None });
    }

    /// A handle for reading, from any thread.
    #[must_use]
    pub fn reader(&self) -> StorageReader {
        StorageReader { db: Arc::clone(&self.db), orders: Arc::clone(&self.orders) }
    }

    /// Writes what is queued and ends the writer.
    pub fn close(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.end();
    }
}

fn open_database(path: &Path) -> Result<Database, StorageError> {
    let opened = redb::Builder::new().set_cache_size(CACHE_BYTES).create(path);
    opened.map_err(|e| StorageError::Open { path: path.to_owned(), source: Box::new(e.into()) })
}

struct Writer {
    rx: Receiver<Batch>,
    db: Shared,
    path: PathBuf,
    events: Box<dyn Fn(StorageEvent) + Send>,
}

impl Writer {
    fn run(self) {
        let mut failing = false;
        let mut open = true;
        while open {
            let mut group = Vec::new();
            open = self.collect(&mut group);
            while !group.is_empty() {
                match self.commit(&group) {
                    Ok(()) => {
                        if std::mem::take(&mut failing) {
                            (self.events)(StorageEvent::Recovered);
                        }
                        (self.events)(StorageEvent::Persisted(group.iter().filter_map(|b| b.ticket).collect()));
                        group.clear();
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut failing, true) {
                            (self.events)(StorageEvent::Failing(error.to_string()));
                        }
                        if !open {
                            return;
                        }
                        open = self.wait_and_take(&mut group);
                        if matches!(error, CommitError::Write(_)) {
                            self.reopen();
                        }
                    }
                }
            }
        }
    }

    /// Waits for an urgent batch, or for the oldest lazy one to have waited long enough. `false` when no more will come.
    fn collect(&self, group: &mut Vec<Batch>) -> bool {
        let Ok(first) = self.rx.recv() else { return false };
        let deadline = Instant::now() + if first.urgent { Duration::ZERO } else { LAZY };
        let mut urgent = first.urgent;
        let mut records = first.records.len();
        group.push(first);
        loop {
            let wait = if urgent { Duration::ZERO } else { deadline.saturating_duration_since(Instant::now()) };
            match self.rx.recv_timeout(wait) {
                Ok(batch) => {
                    urgent |= batch.urgent;
                    records += batch.records.len();
                    group.push(batch);
                    if records >= GROUP_MAX {
                        return true;
                    }
                }
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    fn wait_and_take(&self, group: &mut Vec<Batch>) -> bool {
        match self.rx.recv_timeout(RETRY) {
            Ok(batch) => group.push(batch),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return false,
        }
        true
    }

    /// After an I/O error redb refuses everything until it is opened anew.
    fn reopen(&self) {
        let mut slot = self.db.write().unwrap_or_else(PoisonError::into_inner);
        // The old handle holds the file's lock: let go of it first, with an empty database in its place.
        let Ok(placeholder) = Database::builder().create_with_backend(redb::backends::InMemoryBackend::new()) else {
            return;
        };
        *slot = Arc::new(placeholder);
        if let Ok(db) = open_database(&self.path) {
            *slot = Arc::new(db);
        }
    }

    fn commit(&self, group: &[Batch]) -> Result<(), CommitError> {
        if group.iter().all(|b| b.records.is_empty()) {
            return Ok(());
        }
        let room = rustix::fs::statvfs(&self.path).map_or(u64::MAX, |fs| fs.f_bavail.saturating_mul(fs.f_frsize));
        let needed: u64 = group.iter().flat_map(|b| &b.records).map(record_len).sum();
        if room < ROOM_MIN.saturating_add(needed.saturating_mul(2)) {
            return Err(CommitError::Full { room });
        }
        let db = Arc::clone(&self.db.read().unwrap_or_else(PoisonError::into_inner));
        commit(&db, group.iter().flat_map(|b| &b.records)).map_err(|e| CommitError::Write(Box::new(e)))
    }
}

/// Why a group of records is not on disk.
#[derive(Debug, thiserror::Error)]
enum CommitError {
    /// Nothing was tried.
    #[error("no space left on the disk: {room} bytes are free")]
    Full {
        /// Bytes free.
        room: u64,
    },
    /// redb failed, and refuses everything from here on.
    #[error(transparent)]
    Write(Box<redb::Error>),
}

fn record_len(record: &Record) -> u64 {
    match record {
        Record::Fact { envelope, .. } => envelope.payload.len() as u64,
        Record::Member { .. } | Record::Sealed { .. } | Record::Forget { .. } | Record::Retract { .. } => 0,
    }
}

fn commit<'a>(db: &Database, records: impl Iterator<Item = &'a Record>) -> Result<(), redb::Error> {
    let mut txn = db.begin_write()?;
    txn.set_durability(Durability::Immediate)?;
    {
        let mut facts = txn.open_table(FACTS)?;
        let mut sealed = txn.open_table(SEALED)?;
        let mut owners = txn.open_table(OWNERS)?;
        let mut receipts = txn.open_table(RECEIPTS)?;
        for record in records {
            match record {
                Record::Fact { id, envelope } => {
                    facts.insert(&fact_key(&envelope.entry, id), &cbor::to_vec(envelope)[..])?;
                }
                Record::Sealed { job, entry } => {
                    sealed.insert(&job.0, &cbor::to_vec(entry)[..])?;
                }
                Record::Member { credential } => {
                    if let Some(node) = credential.node() {
                        txn.open_table(MEMBERS)?.insert(&node.0, &cbor::to_vec(credential)[..])?;
                    }
                }
                Record::Retract { job } => {
                    facts.retain_in::<&[u8; 64], _>(
                        &fact_key(job, &FactId([0; 32]))..=&fact_key(job, &FactId([0xff; 32])),
                        |_, _| false,
                    )?;
                }
                Record::Forget { job, owner, mark } => {
                    let kept = receipt_of(&facts, job)?;
                    receipts.insert(&job.0, &cbor::to_vec(&kept)[..])?;
                    facts.retain_in::<&[u8; 64], _>(
                        &fact_key(job, &FactId([0; 32]))..=&fact_key(job, &FactId([0xff; 32])),
                        |_, _| false,
                    )?;
                    sealed.remove(&job.0)?;
                    owners.insert(&owner.0, &cbor::to_vec(mark)[..])?;
                }
            }
        }
    }
    txn.commit()?;
    Ok(())
}

/// What stays of a forgotten job: the spec, the seal, and the executors' receipts that the seal names.
fn receipt_of(
    facts: &impl ReadableTable<&'static [u8; 64], &'static [u8]>,
    job: &JobId,
) -> Result<Vec<Envelope>, redb::StorageError> {
    use sinew_crdt_state::fact::{Fact, Statement};
    let all = envelopes_in(facts, job)?;
    let statement = |e: &Envelope| cbor::from_slice::<Statement>(&e.payload).ok().map(|s| s.fact);
    let named: Vec<FactId> = all
        .iter()
        .filter_map(statement)
        .filter_map(|f| if let Fact::Seal { receipts, .. } = f { Some(receipts) } else { None })
        .flat_map(|r| r.into_iter().map(|(_, id)| id))
        .collect();
    let keep = |e: &Envelope| {
        matches!(statement(e), Some(Fact::Submit(_) | Fact::Seal { .. })) || named.contains(&e.fact_id())
    };
    Ok(all.into_iter().filter(keep).collect())
}

fn envelopes_in(
    facts: &impl ReadableTable<&'static [u8; 64], &'static [u8]>,
    job: &JobId,
) -> Result<Vec<Envelope>, redb::StorageError> {
    let (low, high) = (fact_key(job, &FactId([0; 32])), fact_key(job, &FactId([0xff; 32])));
    let mut found = Vec::new();
    for item in facts.range::<&[u8; 64]>(&low..=&high)? {
        let (_, value) = item?;
        // What does not decode was not written by us; the rest is still good.
        found.extend(cbor::from_slice::<Envelope>(value.value()));
    }
    Ok(found)
}

fn fact_key(job: &JobId, id: &FactId) -> [u8; 64] {
    let mut key = [0; 64];
    key[..32].copy_from_slice(&job.0);
    key[32..].copy_from_slice(&id.0);
    key
}

/// Reads the ledger's file.
#[derive(Debug, Clone)]
pub struct StorageReader {
    db: Shared,
    orders: Orders,
}

impl StorageReader {
    /// Waits until what was queued before is on disk, so that readers see it; not for ever on a disk that refuses.
    fn catch_up(&self) {
        let (tx, rx) = sync_channel(1);
        order(&self.orders, Batch { ticket: None, records: Vec::new(), urgent: true, _done: Some(tx) });
        let _ = rx.recv_timeout(CATCH_UP_MAX);
    }

    fn db(&self) -> Arc<Database> {
        Arc::clone(&self.db.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Everything a core starts from, this start's incarnation number, which is written down, and the disk's own number, drawn
    /// when the file is new: whoever lost its ledger is told apart by it from the node that it was.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn load(&self) -> Result<(Stored, u64, DiskId), StorageError> {
        let db = self.db();
        let (incarnation, disk) = next_start(&db).map_err(|e| StorageError::Read(Box::new(e)))?;
        let txn = db.begin_read().map_err(read_error)?;
        let mut stored = Stored::default();
        let sealed = txn.open_table(SEALED).map_err(read_error)?;
        for item in sealed.iter().map_err(read_error)? {
            let (job, entry) = item.map_err(read_error)?;
            stored.sealed.push((JobId(*job.value()), cbor::from_slice::<SealedEntry>(entry.value())?));
        }
        let members = txn.open_table(MEMBERS).map_err(read_error)?;
        for item in members.iter().map_err(read_error)? {
            let (_, credential) = item.map_err(read_error)?;
            stored.members.push(cbor::from_slice(credential.value())?);
        }
        let owners = txn.open_table(OWNERS).map_err(read_error)?;
        for item in owners.iter().map_err(read_error)? {
            let (node, mark) = item.map_err(read_error)?;
            stored.owners.push((NodeId(*node.value()), cbor::from_slice::<OwnerMark>(mark.value())?));
        }
        let done: std::collections::BTreeSet<JobId> = stored.sealed.iter().map(|(job, _)| *job).collect();
        let facts = txn.open_table(FACTS).map_err(read_error)?;
        for item in facts.iter().map_err(read_error)? {
            let (key, value) = item.map_err(read_error)?;
            let mut job = [0; 32];
            job.copy_from_slice(&key.value()[..32]);
            if !done.contains(&JobId(job)) {
                stored.facts.push(cbor::from_slice(value.value())?);
            }
        }
        Ok((stored, incarnation, disk))
    }

    /// What is on disk of a job: all its facts, or its receipt.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn entry(&self, job: &JobId) -> Result<Vec<Envelope>, StorageError> {
        self.catch_up();
        let txn = self.db().begin_read().map_err(read_error)?;
        let facts = match txn.open_table(FACTS) {
            Ok(table) => envelopes_in(&table, job).map_err(read_error)?,
            Err(TableError::TableDoesNotExist(_)) => Vec::new(),
            Err(e) => return Err(read_error(e)),
        };
        if !facts.is_empty() {
            return Ok(facts);
        }
        match txn.open_table(RECEIPTS) {
            Ok(table) => match table.get(&job.0).map_err(read_error)? {
                Some(value) => Ok(cbor::from_slice(value.value())?),
                None => Ok(Vec::new()),
            },
            Err(TableError::TableDoesNotExist(_)) => Ok(Vec::new()),
            Err(e) => Err(read_error(e)),
        }
    }

    /// Jobs that are sealed or forgotten, in order of their ids.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn ended_jobs(&self) -> Result<Vec<JobId>, StorageError> {
        self.catch_up();
        let txn = self.db().begin_read().map_err(read_error)?;
        let mut jobs = Vec::new();
        for definition in [SEALED, RECEIPTS] {
            match txn.open_table(definition) {
                Ok(table) => {
                    for item in table.iter().map_err(read_error)? {
                        jobs.push(JobId(*item.map_err(read_error)?.0.value()));
                    }
                }
                Err(TableError::TableDoesNotExist(_)) => {}
                Err(e) => return Err(read_error(e)),
            }
        }
        jobs.sort_unstable();
        Ok(jobs)
    }
}

/// A number that no other disk has.
fn draw() -> u64 {
    use rand::TryRng;
    // Without a generator the time does: two disks of one node are never new in the same microsecond.
    rand::rngs::SysRng.try_next_u64().unwrap_or_else(|_| crate::clock::unix_us())
}

fn next_start(db: &Database) -> Result<(u64, DiskId), redb::Error> {
    let mut txn = db.begin_write()?;
    txn.set_durability(Durability::Immediate)?;
    let next = {
        let mut meta = txn.open_table(META)?;
        let last = meta.get("incarnation")?.map_or(0, |v| v.value());
        meta.insert("incarnation", last + 1)?;
        let known = meta.get("disk")?.map(|v| v.value());
        let disk = known.unwrap_or_else(draw);
        meta.insert("disk", disk)?;
        // Readers expect every table.
        txn.open_table(FACTS)?;
        txn.open_table(SEALED)?;
        txn.open_table(OWNERS)?;
        txn.open_table(MEMBERS)?;
        txn.open_table(RECEIPTS)?;
        (last + 1, DiskId(disk))
    };
    txn.commit()?;
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_keeps_its_number_and_each_start_gets_a_new_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let start = |name: &str| {
            let storage = Storage::open(&dir.path().join(name), |_| {}).expect("a ledger");
            let (_, incarnation, disk) = storage.reader().load().expect("it reads");
            storage.close();
            (incarnation, disk)
        };
        let (first, disk) = start("ledger.redb");
        assert_eq!(start("ledger.redb"), (first + 1, disk), "the same file");
        let (_, other) = start("other.redb");
        assert_ne!(other, disk, "a file that was lost and made again is another disk");
    }
}
