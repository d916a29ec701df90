//! How much of a ledger is read before a node works with it.
//!
//! Every page is checked when it is read. A small ledger is read whole at the start, so that damage is found and mended before
//! anything is said. Of a large one what live jobs and heads need is read; the rest, which is what ended jobs left, is read by a
//! thread while the node works. What that finds, or a reader, is named, and noted in a file beside the ledger: the next start reads
//! the whole, keeps the damaged file, and makes a new one.

use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::time::Duration;

use redb::{TableDefinition, TableError};

use super::disk::Disk;
use super::reader::StorageReader;
use super::rows::{ENDED, INDEX, KEYS, SEGMENTS};
use super::{StorageError, cannot_open};

/// Larger ledgers are not read whole at each start: some tens of milliseconds.
pub(super) const WHOLE_MAX: u64 = 64 << 20;
/// Entries that are read in one go. A view of the file holds on to pages that could be used again.
const AT_ONCE: usize = 256;
/// Between two goes: others use the disk, too.
const PAUSE: Duration = Duration::from_millis(1);

fn suspected(path: &Path) -> PathBuf {
    path.with_extension("suspect")
}

fn dir(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

fn is_suspected(disk: &dyn Disk, path: &Path) -> io::Result<bool> {
    Ok(disk.list(dir(path))?.iter().any(|there| there.file_name() == suspected(path).file_name()))
}

/// Whether a start has to read all of a ledger.
pub(super) fn reads_whole(disk: &dyn Disk, path: &Path, whole_max: u64) -> Result<bool, StorageError> {
    let look = || Ok(is_suspected(disk, path)? || disk.open(path)?.len()? <= whole_max);
    look().map_err(|error: io::Error| cannot_open(path, redb::StorageError::from(error)))
}

/// Notes that the next start has to read all of the ledger.
pub(super) fn suspect(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    drop(disk.open(&suspected(path))?);
    disk.sync_dir(dir(path))
}

/// All of it was read, or a new ledger was made.
pub(super) fn is_well(disk: &dyn Disk, path: &Path) -> Result<(), StorageError> {
    let clear = || if is_suspected(disk, path)? { disk.remove(&suspected(path)) } else { Ok(()) };
    clear().map_err(|error: io::Error| cannot_open(path, redb::StorageError::from(error)))
}

/// Reads what a start did not, until all was read, something is wrong, or the ledger is closed.
pub(super) fn run(reader: &StorageReader) {
    let checked = walk(reader, |txn, last| portion(txn, INDEX, last.as_ref(), |key| *key))
        .and_then(|()| walk(reader, |txn, last| portion(txn, ENDED, last.as_ref(), |key| *key)))
        .and_then(|()| walk(reader, |txn, last| portion(txn, SEGMENTS, last, |key| key)))
        .and_then(|()| walk(reader, |txn, last| portion(txn, KEYS, last.as_ref(), |key| *key)));
    match checked {
        Ok(()) => reader.inner.lock().checked = true,
        // The reader has named what was wrong.
        Err(error) => tracing::debug!(%error, "did not read the whole ledger"),
    }
}

/// Reads a table, one portion after another.
fn walk<L: Copy>(
    reader: &StorageReader,
    portion: impl Fn(&redb::ReadTransaction, Option<L>) -> Result<Option<L>, redb::Error>,
) -> Result<(), StorageError> {
    let mut last = None;
    loop {
        last = reader.with_view(|txn| portion(txn, last))?;
        if last.is_none() {
            return Ok(());
        }
        std::thread::sleep(PAUSE);
    }
}

/// Reads some entries of a table behind a key; gives the last one's, or nothing when there are no more.
fn portion<'k, K, V, L>(
    txn: &redb::ReadTransaction,
    table: TableDefinition<K, V>,
    last: Option<K::SelfType<'k>>,
    own: impl Fn(K::SelfType<'_>) -> L,
) -> Result<Option<L>, redb::Error>
where
    K: redb::Key + 'static,
    V: redb::Value + 'static,
{
    let from = last.map_or(Bound::Unbounded, Bound::Excluded);
    let mut reached = None;
    let table = match txn.open_table(table) {
        Ok(table) => table,
        // Some are made with the first thing in them.
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    for item in table.range::<K::SelfType<'k>>((from, Bound::Unbounded))?.take(AT_ONCE) {
        reached = Some(own(item?.0.value()));
    }
    Ok(reached)
}
