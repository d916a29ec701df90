//! Takes over a ledger as versions before the journal wrote it: each envelope by job and fact, sealed entries and receipts by job.
//!
//! In many transactions of bounded size, each of which moves some jobs from the old tables to the new ones whole: when it is
//! interrupted, the next start goes on with the rest.

use std::collections::BTreeSet;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableError};
use sinew_crdt_state::cbor;
use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::ids::JobId;

use super::checkpoint::{begin, fill};
use super::table::{Change, Table};

/// Envelopes by job and fact id.
pub(super) const FACTS: TableDefinition<&[u8; 64], &[u8]> = TableDefinition::new("facts");
/// Sealed entries by job.
pub(super) const SEALED: TableDefinition<&[u8; 32], &[u8]> = TableDefinition::new("sealed");
/// Receipts of forgotten jobs: the list of envelopes kept of them.
pub(super) const RECEIPTS: TableDefinition<&[u8; 32], &[u8]> = TableDefinition::new("receipts");

/// Jobs moved in one transaction: bounds its memory, and what is done again after a crash.
const JOBS_AT_ONCE: usize = 500;

/// Moves everything from the old tables, where there are any.
pub(super) fn from_facts(db: &Database) -> Result<(), redb::Error> {
    let mut jobs = 0;
    loop {
        let moved = move_some(db)?;
        if moved == 0 {
            break;
        }
        jobs += moved;
        tracing::info!(jobs, "taking over the ledger of an older version");
    }
    Ok(())
}

/// Moves some jobs; says how many there were.
fn move_some(db: &Database) -> Result<usize, redb::Error> {
    let jobs = next_jobs(db)?;
    let Some(jobs) = jobs else { return Ok(0) };
    let txn = begin(db)?;
    let mut table = Table::default();
    {
        let mut facts = txn.open_table(FACTS)?;
        let mut sealed = txn.open_table(SEALED)?;
        let mut receipts = txn.open_table(RECEIPTS)?;
        for job in &jobs {
            let mut change =
                Change { sealed: sealed.remove(&job.0)?.and_then(|v| decode(v.value())), ..Change::default() };
            let (low, high) = (fact_key(job, 0), fact_key(job, 0xff));
            for item in facts.extract_from_if::<&[u8; 64], _>(&low..=&high, |_, _| true)? {
                let envelope: Option<Envelope> = decode(item?.1.value());
                change.facts.extend(envelope.map(|e| (e.fact_id(), e)));
            }
            if let Some(receipt) = receipts.remove(&job.0)? {
                let receipt: Vec<Envelope> = decode(receipt.value()).unwrap_or_default();
                change.facts.extend(receipt.into_iter().map(|e| (e.fact_id(), e)));
                change.forgotten = change.sealed.is_none();
            }
            table.jobs.insert(*job, change);
        }
    }
    fill(&txn, &table, 0)?;
    if jobs.is_empty() {
        txn.delete_table(FACTS)?;
        txn.delete_table(SEALED)?;
        txn.delete_table(RECEIPTS)?;
    }
    txn.commit()?;
    Ok(jobs.len())
}

/// The next jobs to move; none when the tables are empty, `None` when they are not there.
fn next_jobs(db: &Database) -> Result<Option<BTreeSet<JobId>>, redb::Error> {
    let txn = db.begin_read()?;
    let mut jobs = BTreeSet::new();
    match txn.open_table(SEALED) {
        Ok(sealed) => {
            for item in sealed.iter()?.take(JOBS_AT_ONCE) {
                jobs.insert(JobId(*item?.0.value()));
            }
        }
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    if jobs.is_empty() {
        let receipts = txn.open_table(RECEIPTS)?;
        for item in receipts.iter()?.take(JOBS_AT_ONCE) {
            jobs.insert(JobId(*item?.0.value()));
        }
    }
    if jobs.is_empty() {
        let facts = txn.open_table(FACTS)?;
        let mut next = facts.first()?.map(|(key, _)| job_in(key.value()));
        while let Some(job) = next.filter(|_| jobs.len() < JOBS_AT_ONCE) {
            jobs.insert(job);
            let after = fact_key(&job, 0xff);
            next = facts.range::<&[u8; 64]>(&after..)?.next().transpose()?.map(|(key, _)| job_in(key.value()));
            next = next.filter(|next| *next != job);
        }
    }
    Ok(Some(jobs))
}

/// What does not decode was not written by us; the rest is still good.
fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let decoded = cbor::from_slice(bytes);
    decoded.inspect_err(|error| tracing::error!(%error, "the old ledger holds a damaged record; it is left out")).ok()
}

/// The first or last key that a fact of `job` can have.
fn fact_key(job: &JobId, fill: u8) -> [u8; 64] {
    let mut key = [fill; 64];
    key[..32].copy_from_slice(&job.0);
    key
}

fn job_in(key: &[u8; 64]) -> JobId {
    let mut job = [0; 32];
    job.copy_from_slice(&key[..32]);
    JobId(job)
}
