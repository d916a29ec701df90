//! Writes ended jobs straight into a new ledger, past the journal: to see what a long history costs without living through it.

use std::path::Path;

use redb::Database;
use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::ids::{FactId, JobId, NodeId};
use sinew_crdt_state::ledger::OwnerMark;
use sinew_scheduler::view::JobRow;

use super::checkpoint::{begin, fill};
use super::disk::RealDisk;
use super::keeper::open_database;
use super::table::{Change, Table};
use super::{StorageError, cannot_open, set_up};

/// Jobs in one transaction: bounds its memory.
const JOBS_AT_ONCE: usize = 5_000;

/// A ledger that is being filled.
#[derive(Debug)]
pub struct Archive {
    db: Database,
    owner: NodeId,
    mark: OwnerMark,
    table: Table,
}

impl Archive {
    /// A new ledger, or one that has room for more; all jobs are `owner`'s.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn open(path: &Path, owner: NodeId) -> Result<Self, StorageError> {
        let db = open_database(&RealDisk, path)?;
        set_up(&db).map_err(|e| cannot_open(path, e))?;
        Ok(Self { db, owner, mark: OwnerMark::default(), table: Table::default() })
    }

    /// Adds a job that is forgotten but for its receipt.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn add(
        &mut self,
        job: JobId,
        serial: u64,
        receipt: Vec<(FactId, Envelope)>,
        row: JobRow,
    ) -> Result<(), StorageError> {
        self.mark.add(serial);
        let facts = receipt.into_iter().collect();
        self.table.jobs.insert(job, Change { facts, row: Some(Box::new(row)), forgotten: true, ..Change::default() });
        if self.table.jobs.len() >= JOBS_AT_ONCE { self.write() } else { Ok(()) }
    }

    /// Writes what is left.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn finish(mut self) -> Result<(), StorageError> {
        self.write()
    }

    fn write(&mut self) -> Result<(), StorageError> {
        let mut table = std::mem::take(&mut self.table);
        table.owners.insert(self.owner, self.mark.clone());
        let write = || {
            let txn = begin(&self.db)?;
            fill(&txn, &table, 0)?;
            txn.commit()?;
            Ok(())
        };
        write().map_err(|e: redb::Error| super::read_error(e))
    }
}
