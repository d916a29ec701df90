//! Reads the ledger: its file, and over it what was handed over since and is not in there yet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use redb::{ReadTransaction, ReadableDatabase, ReadableTable};
use sinew_crdt_state::cbor;
use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::fact::{Fact, Statement};
use sinew_crdt_state::ids::{DiskId, Hash, JobId, NodeId};
use sinew_crdt_state::ledger::{OwnerMark, SealedEntry, says};
use sinew_scheduler::core::Stored;
use sinew_scheduler::io::Record;
use sinew_scheduler::view::JobRow;

use super::checkpoint::{begin, decoded, opened};
use super::packed::unpack;
use super::rows::{
    APPLIED, DISK, ENDED, HEADS, INCARNATION, INDEX, KEYS, MEMBERS, META, OWNERS, PIECES, SEALS_SAY, SEEN, SEGMENTS,
    begins_with, decode_head, decode_row, encode_head, ended_job, fold_row, ids_from, job_of_key, pieces_of,
};
use super::state::{Inner, State};
use super::table::{Change, Picture};
use super::{StorageError, read_error};

/// Reads the ledger, from any thread.
#[derive(Debug, Clone)]
pub struct StorageReader {
    pub(super) inner: Arc<Inner>,
}

impl StorageReader {
    /// A view of the file, and what `memory` finds in what is not in the file, or may not be: at one moment.
    fn look<T>(&self, memory: impl FnOnce(&State) -> T) -> Result<(ReadTransaction, T), StorageError> {
        let state = self.inner.lock();
        let db = state.db.as_ref().ok_or(StorageError::Closed)?;
        let txn = db.begin_read().map_err(|e| self.failed(e))?;
        Ok((txn, memory(&state)))
    }

    /// Reads in a view of the file, unless the ledger is being closed.
    pub(super) fn with_view<T>(
        &self,
        read: impl FnOnce(&ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StorageError> {
        let (txn, closed) = self.look(|state| state.closed)?;
        if closed { Err(StorageError::Closed) } else { read(&txn).map_err(|error| self.failed(error)) }
    }

    /// An error of the file: redb refuses everything from here on, so it is opened anew.
    fn failed(&self, error: impl Into<redb::Error>) -> StorageError {
        let error = error.into();
        if matches!(error, redb::Error::Io(_) | redb::Error::PreviousIo | redb::Error::Corrupted(_)) {
            let inner = Arc::clone(&self.inner);
            let damage = super::rebuild::damage_in(&error);
            // The caller may hold the state.
            std::thread::spawn(move || {
                if let Some(why) = damage {
                    inner.damaged(&why);
                }
                inner.lock().reopen = true;
                inner.moved.notify_all();
            });
        }
        read_error(error)
    }

    /// What was wrong with the ledger when this node started, and what was done.
    #[must_use]
    pub fn remark(&self) -> Option<String> {
        self.inner.lock().remark.clone()
    }

    /// Everything a core starts from, this start's incarnation number, which is written down, and the disk's own number, drawn
    /// when the file is new: whoever lost its ledger is told apart by it from the node that it was. Called before anything is
    /// handed over. What it reads does not grow with the jobs that were forgotten.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn load(&self) -> Result<(Stored, u64, DiskId), StorageError> {
        let (incarnation, disk) = self.next_start()?;
        let (txn, ()) = self.look(|_| ())?;
        let failed = |e: redb::StorageError| self.failed(e);
        let open = |e: redb::TableError| self.failed(e);
        let mut stored = Stored::default();
        for item in txn.open_table(HEADS).map_err(open)?.iter().map_err(failed)? {
            stored.sealed.push(decode_head(item.map_err(failed)?.1.value())?);
        }
        self.complete(&txn, &mut stored.sealed)?;
        for item in txn.open_table(MEMBERS).map_err(open)?.iter().map_err(failed)? {
            stored.members.push(cbor::from_slice(item.map_err(failed)?.1.value())?);
        }
        for item in txn.open_table(OWNERS).map_err(open)?.iter().map_err(failed)? {
            let (node, mark) = item.map_err(failed)?;
            stored.owners.push((NodeId(*node.value()), cbor::from_slice::<OwnerMark>(mark.value())?));
        }
        // Ledgers of before this table have none.
        match txn.open_table(SEEN) {
            Ok(table) => {
                for item in table.iter().map_err(failed)? {
                    let (node, seen) = item.map_err(failed)?;
                    stored.seen.push((NodeId(*node.value()), cbor::from_slice(seen.value())?));
                }
            }
            Err(redb::TableError::TableDoesNotExist(_)) => {}
            Err(error) => return Err(open(error)),
        }
        // All that the journal holds is in the file by now.
        stored.mark = txn.open_table(META).map_err(open)?.get(APPLIED).map_err(failed)?.map_or(0, |v| v.value());
        for item in txn.open_table(PIECES).map_err(open)?.iter().map_err(failed)? {
            stored.facts.extend(unpack(item.map_err(failed)?.1.value())?.into_iter().flat_map(|entry| entry.facts));
        }
        Ok((stored, incarnation, disk))
    }

    /// Versions before this one did not write what a seal says; what they wrote looks like that of a job that completed. Done once:
    /// what is found is written down.
    fn complete(&self, txn: &ReadTransaction, sealed: &mut [(JobId, SealedEntry)]) -> Result<(), StorageError> {
        let complete = || {
            if txn.open_table(META)?.get(SEALS_SAY)?.is_some() {
                return Ok(());
            }
            let mut changed = Vec::new();
            for (job, head) in sealed {
                let picture = self.picture(txn, job)?;
                let seal = picture.facts.get(&head.seal).map(|e| cbor::from_slice::<Statement>(&e.payload));
                if let Some(Ok(Statement { fact: Fact::Seal { outcome, .. }, .. })) = seal {
                    head.says = says(&outcome);
                }
                changed.extend((head.says != 0).then_some((*job, *head)));
            }
            let db = self.inner.lend().ok_or(redb::Error::DatabaseClosed)?;
            let txn = begin(&db)?;
            {
                let (index, mut heads) = (txn.open_table(INDEX)?, txn.open_table(HEADS)?);
                for (job, head) in &changed {
                    if let Some(row) = index.get(&job.0)?.map(|row| row.value()) {
                        heads.insert(row, &encode_head(*job, head)[..])?;
                    }
                }
                txn.open_table(META)?.insert(SEALS_SAY, 1)?;
            }
            txn.commit()?;
            Ok(())
        };
        complete().map_err(|e: redb::Error| self.failed(e))
    }

    fn next_start(&self) -> Result<(u64, DiskId), StorageError> {
        let db = self.inner.lend().ok_or(StorageError::Closed)?;
        let next = || {
            let txn = begin(&db)?;
            let next = {
                let mut meta = txn.open_table(META)?;
                let last = meta.get(INCARNATION)?.map_or(0, |v| v.value());
                meta.insert(INCARNATION, last + 1)?;
                (last + 1, DiskId(meta.get(DISK)?.map_or(0, |v| v.value())))
            };
            txn.commit()?;
            Ok(next)
        };
        next().map_err(|e: redb::Error| self.failed(e))
    }

    /// What is known of a job: all its facts, or its receipt.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn entry(&self, job: &JobId) -> Result<Vec<Envelope>, StorageError> {
        let (txn, changes) = self.look(|state| state.changes(job))?;
        let mut picture = self.picture(&txn, job).map_err(|e| self.failed(e))?;
        for change in &changes {
            picture.add(change);
        }
        Ok(picture.facts.into_values().collect())
    }

    /// A job as it is in the file.
    fn picture(&self, txn: &ReadTransaction, job: &JobId) -> Result<Picture, redb::Error> {
        let mut picture = Picture::default();
        let mut take = |entry: super::packed::Entry| {
            picture.forgotten |= entry.forgotten;
            picture.facts.extend(entry.facts.into_iter().map(|e| (e.fact_id(), e)));
        };
        if let Some(row) = txn.open_table(INDEX)?.get(&job.0)? {
            let row = row.value();
            if let Some(item) = txn.open_table(SEGMENTS)?.range(..=row)?.next_back() {
                let (first, bytes) = item?;
                let at = usize::try_from(row - first.value()).unwrap_or(usize::MAX);
                opened(bytes.value())?.into_iter().nth(at).into_iter().filter(|e| e.job == *job).for_each(&mut take);
            }
            if let Some(head) = txn.open_table(HEADS)?.get(row)? {
                let (_, sealed) = decode_head(head.value()).map_err(|e| redb::Error::Corrupted(e.to_string()))?;
                picture.sealed = Some(sealed);
            }
        } else {
            let all = pieces_of(job);
            for item in txn.open_table(PIECES)?.range::<&[u8; 40]>(all.start()..=all.end())? {
                decoded(item?.1.value())?.into_iter().for_each(&mut take);
            }
        }
        Ok(picture)
    }

    /// The rows of the `limit` jobs that were submitted last among those that are sealed or forgotten, newest first.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn ended(&self, limit: usize) -> Result<Vec<(JobId, JobRow)>, StorageError> {
        let (txn, (listed, unlisted)) = self.look(|state| {
            let ended = ended_in(state);
            let unlisted: Vec<_> = ended.iter().filter(|(_, row)| row.is_none()).map(|(job, _)| *job).collect();
            let changes = unlisted.into_iter().map(|job| (job, state.changes(&job)));
            // What was only forgotten since has its row in the file.
            let news = |c: &Change| c.sealed.is_some() || !c.facts.is_empty();
            (ended, changes.filter(|(_, c)| c.iter().any(news)).collect::<Vec<_>>())
        })?;
        let mut rows: BTreeMap<JobId, JobRow> = BTreeMap::new();
        let open = |e: redb::TableError| self.failed(e);
        let failed = |e: redb::StorageError| self.failed(e);
        let table = txn.open_table(ENDED).map_err(open)?;
        for item in table.iter().map_err(failed)?.rev().take(limit) {
            let (key, row) = item.map_err(failed)?;
            rows.insert(ended_job(key.value()), decode_row(row.value())?);
        }
        for (job, changes) in unlisted {
            if !rows.contains_key(&job) {
                rows.extend(self.fold(&txn, &job, &changes)?.map(|row| (job, row)));
            }
        }
        rows.extend(listed.into_iter().filter_map(|(job, row)| Some((job, *row?))));
        let mut rows: Vec<(JobId, JobRow)> = rows.into_iter().collect();
        rows.sort_by_key(|(job, row)| std::cmp::Reverse((row.submitted_ms, *job)));
        rows.truncate(limit);
        Ok(rows)
    }

    /// The row of a job for which the core made none: it holds more of its facts than it was told of.
    fn fold(&self, txn: &ReadTransaction, job: &JobId, changes: &[Change]) -> Result<Option<JobRow>, StorageError> {
        let row = || {
            if txn.open_table(INDEX)?.get(&job.0)?.is_some() {
                // It has its row, further down the list.
                return Ok(None);
            }
            let mut picture = self.picture(txn, job)?;
            for change in changes {
                picture.add(change);
            }
            Ok(fold_row(picture.facts.values()))
        };
        row().map_err(|e: redb::Error| self.failed(e))
    }

    /// The ended job of this node that was submitted under the key with this hash, and its request's digest.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn key(&self, hash: &Hash) -> Result<Option<(JobId, Hash)>, StorageError> {
        let (txn, recent) = self.look(|state| {
            let of_key =
                |job: &JobId, row: &JobRow| row.key.filter(|(key, _)| key == hash).map(|(_, request)| (*job, request));
            let tabled = state.tables().flat_map(|table| &table.jobs);
            let tabled = tabled.filter_map(|(job, change)| of_key(job, change.row.as_deref()?));
            let untabled = state.untabled().filter_map(|record| match record {
                Record::Sealed { job, row: Some(row), .. } => of_key(job, row),
                _ => None,
            });
            tabled.chain(untabled).next()
        })?;
        if recent.is_some() {
            return Ok(recent);
        }
        let table = match txn.open_table(KEYS) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(self.failed(error)),
        };
        let found = table.get(&hash.0).map_err(|e| self.failed(e))?;
        Ok(found.map(|value| job_of_key(value.value())))
    }

    /// Sealed or forgotten jobs whose printed id begins with `text`: `limit` at most, in order of their ids.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn find(&self, text: &str, limit: usize) -> Result<Vec<JobId>, StorageError> {
        let Some(range) = ids_from(text) else { return Ok(Vec::new()) };
        let (txn, memory) = self.look(|state| {
            let ended = ended_in(state).into_keys();
            ended.filter(|job| begins_with(job, text)).collect::<BTreeSet<_>>()
        })?;
        let mut found = memory;
        let table = txn.open_table(INDEX).map_err(|e| self.failed(e))?;
        let jobs = table.range::<&[u8; 32]>(&range.start().0..=&range.end().0).map_err(|e| self.failed(e))?;
        for item in jobs.take(limit) {
            found.insert(JobId(*item.map_err(|e| self.failed(e))?.0.value()));
        }
        Ok(found.into_iter().take(limit).collect())
    }
}

/// Jobs that are over according to what is not in the file, or may not be, with their rows where these are there too.
fn ended_in(state: &State) -> BTreeMap<JobId, Option<Box<JobRow>>> {
    let mut ended: BTreeMap<JobId, Option<Box<JobRow>>> = BTreeMap::new();
    let mut note = |job: JobId, row: Option<&Box<JobRow>>| {
        let known = ended.entry(job).or_default();
        if let Some(row) = row {
            *known = Some(row.clone());
        }
    };
    for table in state.tables() {
        for (job, change) in table.jobs.iter().filter(|(_, change)| change.is_ended()) {
            note(*job, change.row.as_ref());
        }
    }
    for record in state.untabled() {
        match record {
            Record::Sealed { job, row, .. } => note(*job, row.as_ref()),
            Record::Forget { job, .. } => note(*job, None),
            Record::Fact { .. }
            | Record::Retract { .. }
            | Record::Member { .. }
            | Record::Seen { .. }
            | Record::Disk { .. } => {}
        }
    }
    ended
}
