//! A ledger that is damaged: what can still be read goes into a new file, the damaged one is set aside, and where anything may be
//! missing on which a promise of this node stood, the disk gets a new number: the node then counts as one that lost its disk
//! (decision 007), and the others tell it what they know. Nothing of a page that is not what was written is believed.
//!
//! A job that has ended is taken over whole or not at all: what is left out here, anti-entropy brings again. Only receipts
//! of forgotten jobs come back from nobody; no promise stands on them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::path::{Path, PathBuf};
use std::sync::Once;

use redb::{Database, Key, ReadableDatabase, ReadableTable, TableDefinition, TableError, TableHandle, Value};
use sinew_crdt_state::cbor;
use sinew_crdt_state::ids::{JobId, NodeId};
use sinew_crdt_state::ledger::SealedEntry;
use sinew_scheduler::io::Record;
use sinew_scheduler::view::JobRow;

use super::checkpoint::{begin, fill};
use super::disk::{Disk, DiskFile, Overlay, Plain};
use super::journal::Journal;
use super::keeper::CACHE_BYTES;
use super::packed::{Entry, inflate, unpack, unpack_records};
use super::rows::{
    APPLIED, DISK, ENDED, HEADS, INCARNATION, INDEX, JOURNAL_KEYS, KEYS, MEMBERS, META, OWNERS, PIECES, SEEN, SEGMENTS,
    decode_head, decode_row, ended_job,
};
use super::sums::{self, Checked, Found};
use super::table::{Change, Table};
use super::{StorageError, cannot_open, draw, set_up};

/// Jobs written in one transaction.
const JOBS_AT_ONCE: usize = 500;
/// Damaged ledgers that are kept for people to look into.
const SET_ASIDE_MAX: usize = 2;

/// Why a ledger cannot be taken as it is.
pub(super) fn damage_in(error: &redb::Error) -> Option<String> {
    match error {
        redb::Error::Io(error) if sums::is_rot(error) => Some(error.to_string()),
        redb::Error::Corrupted(what) => Some(what.clone()),
        redb::Error::TableDoesNotExist(_)
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TableIsMultimap(_)
        | redb::Error::TypeDefinitionChanged { .. } => Some(error.to_string()),
        _ => None,
    }
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs what may panic: at bytes that are not checked yet, or at pages each of which is what was written once, but which do not
/// belong together, as a disk leaves them that lied about its syncs. That says no more than that they are damaged, so nothing is
/// printed. What `run` touched is dropped with it, and the file opened anew or set aside.
pub(super) fn quietly<T, E: From<redb::Error>>(run: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let loud = take_hook();
        set_hook(Box::new(move |info| {
            if !QUIET.get() {
                loud(info);
            }
        }));
    });
    QUIET.set(true);
    let ran = catch_unwind(AssertUnwindSafe(run));
    QUIET.set(false);
    ran.unwrap_or_else(|_| Err(redb::Error::Corrupted("its pages do not belong together".to_owned()).into()))
}

/// Checks a file without sums by redb's own checksums.
pub(super) fn check_bare(file: Box<dyn DiskFile>) -> Result<(), redb::Error> {
    quietly(|| -> Result<(), redb::Error> {
        let overlay = Overlay::new(Box::new(Plain(file)), None).map_err(redb::StorageError::from)?;
        let mut db = redb::Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(overlay)?;
        match db.check_integrity() {
            Ok(true) => Ok(()),
            Ok(false) => Err(redb::Error::Corrupted("its own checksums do not fit".to_owned())),
            Err(error) => Err(error.into()),
        }
    })
}

/// Reads every page that a root reaches, redb's own tables too, which only it can read: writes need them.
pub(super) fn check_own_tables(disk: &dyn Disk, path: &Path) -> Result<(), redb::Error> {
    let Found::Checked(checked) = Checked::open(disk, path).map_err(redb::StorageError::from)? else { return Ok(()) };
    let overlay = Overlay::new(checked, None).map_err(redb::StorageError::from)?;
    if redb::StorageBackend::len(&overlay).map_err(redb::StorageError::from)? == 0 {
        return Ok(());
    }
    let mut db = redb::Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(overlay)?;
    // Its second opinion on what it found is not asked for: each page was checked when it was read.
    db.check_integrity()?;
    Ok(())
}

/// Reads every page of the ledger's tables that counts; of ended jobs only the heads, unless the `whole` ledger is to be read.
pub(super) fn walk(db: &Database, whole: bool) -> Result<(), redb::Error> {
    fn table<K: Key + 'static, V: Value + 'static>(
        txn: &redb::ReadTransaction,
        table: TableDefinition<K, V>,
    ) -> Result<String, redb::Error> {
        match txn.open_table(table) {
            Ok(there) => there.iter()?.try_for_each(|item| item.map(|_| ()))?,
            // Some are made with the first thing in them.
            Err(TableError::TableDoesNotExist(_)) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(table.name().to_owned())
    }
    let txn = db.begin_read()?;
    let mut read = vec![
        table(&txn, META)?,
        table(&txn, MEMBERS)?,
        table(&txn, OWNERS)?,
        table(&txn, SEEN)?,
        table(&txn, HEADS)?,
        table(&txn, PIECES)?,
    ];
    if whole {
        read.extend([table(&txn, INDEX)?, table(&txn, ENDED)?, table(&txn, SEGMENTS)?, table(&txn, KEYS)?]);
        for there in txn.list_tables()? {
            debug_assert!(read.iter().any(|name| name == there.name()), "{} is never checked", there.name());
        }
    }
    Ok(())
}

/// Reads a damaged ledger. After each error redb refuses everything, so it is opened again.
struct Salvager<'a> {
    disk: &'a dyn Disk,
    path: &'a Path,
    db: Option<Database>,
}

impl Salvager<'_> {
    fn open(&mut self) -> Result<&Database, redb::Error> {
        if self.db.is_none() {
            let found = Checked::open(self.disk, self.path).map_err(redb::StorageError::from)?;
            let Found::Checked(checked) = found else {
                return Err(redb::Error::Corrupted("it has no checksums".to_owned()));
            };
            let header = checked.last_header();
            let overlay = Overlay::new(checked, header).map_err(redb::StorageError::from)?;
            self.db = Some(redb::Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(overlay)?);
        }
        self.db.as_ref().ok_or(redb::Error::DatabaseClosed)
    }

    /// Hands over the rows of a table that can be read, from both ends on. Whether those are all.
    fn rows<K: Key + 'static, V: Value + 'static>(
        &mut self,
        table: TableDefinition<K, V>,
        mut take: impl FnMut(K::SelfType<'_>, V::SelfType<'_>) -> bool,
    ) -> bool {
        let mut whole = true;
        for forward in [true, false] {
            let read = quietly(|| -> Result<(), redb::Error> {
                let txn = self.open()?.begin_read()?;
                let rows = match txn.open_table(table) {
                    Ok(rows) => rows,
                    Err(TableError::TableDoesNotExist(_)) => return Ok(()),
                    Err(error) => return Err(error.into()),
                };
                let mut rows = rows.iter()?;
                while let Some(item) = if forward { rows.next() } else { rows.next_back() } {
                    let (key, value) = item?;
                    whole &= take(key.value(), value.value());
                }
                Ok(())
            });
            match read {
                Ok(()) => return whole,
                Err(error) => {
                    tracing::error!(%error, "a part of the damaged ledger cannot be read");
                    self.db = None;
                    whole = false;
                }
            }
        }
        whole
    }
}

/// What could be read.
#[derive(Default)]
struct Salvage {
    meta: BTreeMap<String, u64>,
    /// Whether all is there on which a promise of this node may stand.
    keeps_promises: bool,
    base: Table,
    jobs: BTreeMap<JobId, Change>,
    /// Keys of jobs that have ended, each with its job and its request, as they are in the file.
    keys: Vec<([u8; 32], [u8; 64])>,
}

impl Salvage {
    fn read(disk: &dyn Disk, path: &Path) -> Self {
        let mut from = Salvager { disk, path, db: None };
        let mut salvage = Self::default();
        let mut meta = BTreeMap::new();
        let mut keeps = from.rows(META, |name, number| {
            meta.insert(name.to_owned(), number);
            true
        });
        keeps &= meta.contains_key(DISK);
        salvage.meta = meta;
        let base = &mut salvage.base;
        keeps &= from.rows(MEMBERS, |node, bytes| {
            let credential = cbor::from_slice(bytes);
            credential.map(|credential| base.members.insert(NodeId(*node), credential)).is_ok()
        });
        keeps &= from.rows(OWNERS, |owner, bytes| {
            cbor::from_slice(bytes).map(|mark| base.owners.insert(NodeId(*owner), mark)).is_ok()
        });
        // What these say keeps no promise: they are taken as far as they can be read.
        from.rows(SEEN, |node, bytes| {
            cbor::from_slice(bytes).map(|seen| base.seen.insert(NodeId(*node), seen)).is_ok()
        });
        from.rows(KEYS, |key, job| {
            salvage.keys.push((*key, *job));
            true
        });
        let mut heads: BTreeMap<JobId, SealedEntry> = BTreeMap::new();
        keeps &= from.rows(HEADS, |_, bytes| decode_head(bytes).map(|(job, head)| heads.insert(job, head)).is_ok());
        let mut listed: BTreeMap<JobId, JobRow> = BTreeMap::new();
        from.rows(ENDED, |key, bytes| decode_row(bytes).map(|row| listed.insert(ended_job(key), row)).is_ok());
        let jobs = &mut salvage.jobs;
        let mut add = |entry: Entry, ended: bool| {
            let change = jobs.entry(entry.job).or_default();
            change.facts.extend(entry.facts.into_iter().map(|envelope| (envelope.fact_id(), envelope)));
            if ended {
                change.forgotten = entry.forgotten;
                change.sealed = heads.get(&entry.job).copied().filter(|_| !entry.forgotten);
                change.row = listed.remove(&entry.job).map(Box::new);
            }
        };
        from.rows(SEGMENTS, |_, bytes| {
            let entries = inflate(bytes).and_then(|bytes| unpack(&bytes));
            entries.map(|entries| entries.into_iter().for_each(|entry| add(entry, true))).is_ok()
        });
        keeps &= from.rows(PIECES, |_, bytes| {
            unpack(bytes).map(|entries| entries.into_iter().for_each(|entry| add(entry, false))).is_ok()
        });
        keeps &= heads.keys().all(|job| salvage.jobs.contains_key(job));
        salvage.keeps_promises = keeps;
        salvage
    }

    /// Adds what the journal holds. Behind a gap only what stands by itself counts: facts and certificates.
    fn replay(&mut self, disk: &dyn Disk, journal: &Journal) -> Result<(Table, u64), StorageError> {
        let applied = self.meta.get(APPLIED).copied().unwrap_or(0);
        let (replay, gap) = journal.found(applied)?;
        let mut table = Table::default();
        let mut last = applied;
        for (group, payload) in replay.groups {
            let behind = gap.as_ref().is_some_and(|gap| group > gap.group);
            let Ok(records) = unpack_records(&payload) else {
                self.keeps_promises = false;
                continue;
            };
            let counts = |r: &Record| !behind || matches!(r, Record::Fact { .. } | Record::Member { .. });
            records.into_iter().filter(counts).for_each(|record| table.add(record));
            last = group;
        }
        if let Some(gap) = gap {
            self.keeps_promises = false;
            let kept = set_aside(disk, &gap.path);
            kept.map_err(|source| super::JournalError::Read { path: gap.path, source })?;
        }
        Ok((table, last))
    }
}

/// Makes a new ledger of what can be read of the one at `path`, in its place. Says what was done, for people.
pub(super) fn rebuild(disk: &std::sync::Arc<dyn Disk>, path: &Path, why: &str) -> Result<String, StorageError> {
    tracing::error!(path = %path.display(), why, "the ledger is damaged; what can be read goes into a new one");
    let mut salvage = Salvage::read(&**disk, path);
    let new = rebuilt(path, "redb");
    for old in [&new, &rebuilt(path, "sums")] {
        let _ = disk.remove(old);
    }
    let key = JOURNAL_KEYS.map(|name| salvage.meta.get(name).copied());
    let replayed = match key {
        [Some(a), Some(b)] => {
            let journal = Journal::new(std::sync::Arc::clone(disk), path, super::Key::new([a, b]));
            Some(salvage.replay(&**disk, &journal)?)
        }
        _ => None,
    };
    let kept = salvage.keeps_promises;
    let jobs = salvage.jobs.len();
    write(&**disk, &new, salvage, replayed).map_err(|error| cannot_open(&new, error))?;
    let flag = disk.open(&rebuilt(path, "done")).and_then(|file| file.sync());
    flag.and_then(|()| disk.sync_dir(dir(path))).map_err(|e| cannot_open(path, redb::StorageError::from(e)))?;
    let aside = finish(&**disk, path)?;
    let aside = aside.map(|aside| format!(" The damaged file is kept as {}.", aside.display())).unwrap_or_default();
    let then = if kept {
        "all that this node promised was there; receipts of forgotten jobs may be gone"
    } else {
        "this node counts as one that lost its disk until the others have told it what they know"
    };
    let remark = format!("the ledger was damaged ({why}); {jobs} jobs could be read, and {then}.{aside}");
    tracing::error!("{remark}");
    Ok(remark)
}

fn write(disk: &dyn Disk, path: &Path, salvage: Salvage, replayed: Option<(Table, u64)>) -> Result<(), redb::Error> {
    let io = |error: io::Error| redb::Error::from(redb::StorageError::from(error));
    let Found::Checked(checked) = Checked::open(disk, path).map_err(io)? else {
        return Err(redb::Error::Corrupted("a file is in the way".to_owned()));
    };
    let db = redb::Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(*checked)?;
    set_up(&db)?;
    let txn = begin(&db)?;
    {
        let mut meta = txn.open_table(META)?;
        for name in [JOURNAL_KEYS[0], JOURNAL_KEYS[1], INCARNATION] {
            if let Some(number) = salvage.meta.get(name) {
                meta.insert(name, number)?;
            }
        }
        let number = salvage.meta.get(DISK).copied().filter(|_| salvage.keeps_promises);
        meta.insert(DISK, number.unwrap_or_else(draw))?;
        let mut keys = txn.open_table(KEYS)?;
        for (key, job) in &salvage.keys {
            keys.insert(key, job)?;
        }
    }
    fill(&txn, &salvage.base, 0)?;
    txn.commit()?;
    let mut jobs = salvage.jobs.into_iter().peekable();
    while jobs.peek().is_some() {
        let table = Table { jobs: jobs.by_ref().take(JOBS_AT_ONCE).collect(), ..Table::default() };
        let txn = begin(&db)?;
        fill(&txn, &table, 0)?;
        txn.commit()?;
    }
    if let Some((table, last)) = replayed {
        super::checkpoint::apply(&db, &table, last)?;
    }
    Ok(())
}

/// Puts a new ledger that is complete in the old one's place. After a crash in the midst it goes on where it was.
pub(super) fn finish(disk: &dyn Disk, path: &Path) -> Result<Option<PathBuf>, StorageError> {
    let error = |e: io::Error| cannot_open(path, redb::StorageError::from(e));
    let there = disk.list(dir(path)).map_err(error)?;
    let done = rebuilt(path, "done");
    let is_there = |path: &Path| there.iter().any(|there| there.file_name() == path.file_name());
    if !is_there(&done) {
        return Ok(None);
    }
    let mut aside = None;
    for ending in ["sums", "redb"] {
        let (new, old) = (rebuilt(path, ending), path.with_extension(ending));
        if !is_there(&new) {
            continue;
        }
        if is_there(&old) {
            aside = Some(set_aside(disk, &old).map_err(error)?);
        }
        disk.rename(&new, &old).map_err(error)?;
    }
    disk.sync_dir(dir(path)).map_err(error)?;
    disk.remove(&done).map_err(error)?;
    Ok(aside)
}

/// Gives a damaged file a name under which nobody looks for it, and lets older ones of its kind go.
pub(super) fn set_aside(disk: &dyn Disk, path: &Path) -> io::Result<PathBuf> {
    let name = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let prefix = name(".damaged-");
    let prefix = prefix.to_string_lossy();
    let mut old: Vec<PathBuf> =
        disk.list(dir(path))?.into_iter().filter(|p| p.to_string_lossy().starts_with(&*prefix)).collect();
    old.sort_unstable();
    let beyond = (old.len() + 1).saturating_sub(SET_ASIDE_MAX);
    for old in &old[..beyond] {
        disk.remove(old)?;
    }
    let aside = name(&format!(".damaged-{}", crate::clock::unix_us()));
    disk.rename(path, &aside)?;
    Ok(aside)
}

fn rebuilt(path: &Path, ending: &str) -> PathBuf {
    path.with_extension(format!("rebuilt.{ending}"))
}

pub(super) fn dir(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}
