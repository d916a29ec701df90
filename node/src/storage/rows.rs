//! The tables in the ledger's file, and the forms of their keys and values.
//!
//! A job that has ended gets a row number, in order of sealing. Its packed entry lies in a segment with those of its neighbours,
//! under the number of the segment's first row; when it is forgotten, its receipt takes its place there. What is kept of jobs that
//! go on is in pieces: the facts of one checkpoint each.

use std::ops::RangeInclusive;

use redb::TableDefinition;
use sinew_crdt_state::cbor::{self, DecodeError};
use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::fact::{Fact, Statement};
use sinew_crdt_state::ids::{FactId, Hash, JobId, NodeId, encode_base32};
use sinew_crdt_state::ledger::SealedEntry;
use sinew_crdt_state::state::JobState;
use sinew_scheduler::view::{Ending, JobRow, row_of};

/// Facts of jobs that go on: by job and the checkpoint that added them.
pub(super) const PIECES: TableDefinition<&[u8; 40], &[u8]> = TableDefinition::new("pieces");
/// Packed entries of ended jobs, many under the number of the first row.
pub(super) const SEGMENTS: TableDefinition<u64, &[u8]> = TableDefinition::new("segments");
/// The rows of ended jobs.
pub(super) const INDEX: TableDefinition<&[u8; 32], u64> = TableDefinition::new("index");
/// What stays in memory of sealed jobs that are not forgotten, by row.
pub(super) const HEADS: TableDefinition<u64, &[u8]> = TableDefinition::new("heads");
/// What a list shows of ended jobs, by the time of submission and the job.
pub(super) const ENDED: TableDefinition<&[u8; 40], &[u8]> = TableDefinition::new("ended");
/// Owner marks by node.
pub(super) const OWNERS: TableDefinition<&[u8; 32], &[u8]> = TableDefinition::new("owners");
/// Members' certificates by node.
pub(super) const MEMBERS: TableDefinition<&[u8; 32], &[u8]> = TableDefinition::new("members");
/// The last starts of other nodes that this one heard of, by node.
pub(super) const SEEN: TableDefinition<&[u8; 32], &[u8]> = TableDefinition::new("seen");
/// Ended jobs of this node by the hashes of their submit keys: the job, and its request's digest. Made with the first of them.
pub(super) const KEYS: TableDefinition<&[u8; 32], &[u8; 64]> = TableDefinition::new("keys");
/// Single values.
pub(super) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// The last group of the journal that is in the tables.
pub(super) const APPLIED: &str = "applied";
/// The next free row.
pub(super) const NEXT_ROW: &str = "next_row";
/// How often this ledger was started from.
pub(super) const INCARNATION: &str = "incarnation";
/// The disk's number.
pub(super) const DISK: &str = "disk";
/// There where every head says what its seal says.
pub(super) const SEALS_SAY: &str = "seals_say";
/// What the journal's checksums are keyed by.
pub(super) const JOURNAL_KEYS: [&str; 2] = ["journal_key_0", "journal_key_1"];

/// A key of [`PIECES`].
pub(super) fn piece_key(job: &JobId, group: u64) -> [u8; 40] {
    let mut key = [0; 40];
    key[..32].copy_from_slice(&job.0);
    key[32..].copy_from_slice(&group.to_be_bytes());
    key
}

/// All pieces of a job.
pub(super) fn pieces_of(job: &JobId) -> RangeInclusive<[u8; 40]> {
    piece_key(job, 0)..=piece_key(job, u64::MAX)
}

/// A key of [`ENDED`].
pub(super) fn ended_key(submitted_ms: u64, job: &JobId) -> [u8; 40] {
    let mut key = [0; 40];
    key[..8].copy_from_slice(&submitted_ms.to_be_bytes());
    key[8..].copy_from_slice(&job.0);
    key
}

/// The job in a key of [`ENDED`].
pub(super) fn ended_job(key: &[u8; 40]) -> JobId {
    let mut job = [0; 32];
    job.copy_from_slice(&key[8..]);
    JobId(job)
}

type PackedRow = (String, String, u8, u64, u64, NodeId, u64);

/// A value of [`ENDED`].
pub(super) fn encode_row(row: &JobRow) -> Vec<u8> {
    let ending = match row.ending {
        None => 0,
        Some(Ending::Completed) => 1,
        Some(Ending::Failed) => 2,
        Some(Ending::Cancelled) => 3,
    };
    let (done, tasks) = row.tasks;
    cbor::to_vec(&(&row.name, &row.kind, ending, done, tasks, row.submitter, row.submitted_ms))
}

/// The other way round.
pub(super) fn decode_row(bytes: &[u8]) -> Result<JobRow, DecodeError> {
    let (name, kind, ending, done, tasks, submitter, submitted_ms) = cbor::from_slice::<PackedRow>(bytes)?;
    let ending = match ending {
        1 => Some(Ending::Completed),
        2 => Some(Ending::Failed),
        3 => Some(Ending::Cancelled),
        _ => None,
    };
    // Its key is in a table of its own.
    Ok(JobRow { name, kind, ending, tasks: (done, tasks), submitter, submitted_ms, key: None })
}

/// A value of [`KEYS`].
pub(super) fn key_value(job: JobId, request: Hash) -> [u8; 64] {
    let mut value = [0; 64];
    value[..32].copy_from_slice(&job.0);
    value[32..].copy_from_slice(&request.0);
    value
}

/// The other way round.
pub(super) fn job_of_key(value: &[u8; 64]) -> (JobId, Hash) {
    let (mut job, mut request) = ([0; 32], [0; 32]);
    job.copy_from_slice(&value[..32]);
    request.copy_from_slice(&value[32..]);
    (JobId(job), Hash(request))
}

/// The row of a job of which nobody made one, from its facts. `None` when its spec is not among them.
pub(super) fn fold_row<'a>(facts: impl IntoIterator<Item = &'a Envelope>) -> Option<JobRow> {
    let open = |e: &Envelope| Some((e.fact_id(), e.author, cbor::from_slice::<Statement>(&e.payload).ok()?));
    let opened: Vec<(FactId, NodeId, Statement)> = facts.into_iter().filter_map(open).collect();
    let spec = opened.iter().find_map(|(_, _, statement)| match &statement.fact {
        Fact::Submit(signed) => signed.open().ok(),
        _ => None,
    })?;
    Some(row_of(&JobState::fold(spec, &opened)))
}

/// The last one, what the seal says, is left out where it says that the job completed, as versions before it wrote all.
type PackedHead = (JobId, NodeId, u64, FactId, u64, bool);
type PackedHeadSaying = (JobId, NodeId, u64, FactId, u64, bool, u64);

/// A value of [`HEADS`].
pub(super) fn encode_head(job: JobId, entry: &SealedEntry) -> Vec<u8> {
    let SealedEntry { submitter, serial, seal, sealed_ms, lacks_outputs, says } = *entry;
    match says {
        0 => cbor::to_vec(&(job, submitter, serial, seal, sealed_ms, lacks_outputs)),
        says => cbor::to_vec(&(job, submitter, serial, seal, sealed_ms, lacks_outputs, says)),
    }
}

/// The other way round.
pub(super) fn decode_head(bytes: &[u8]) -> Result<(JobId, SealedEntry), DecodeError> {
    let packed = cbor::from_slice::<PackedHeadSaying>(bytes).or_else(|_| {
        let (job, submitter, serial, seal, sealed_ms, lacks) = cbor::from_slice::<PackedHead>(bytes)?;
        Ok::<_, DecodeError>((job, submitter, serial, seal, sealed_ms, lacks, 0))
    });
    let (job, submitter, serial, seal, sealed_ms, lacks_outputs, says) = packed?;
    Ok((job, SealedEntry { submitter, serial, seal, sealed_ms, lacks_outputs, says }))
}

/// The ids whose printed form begins with `text`, and perhaps some more beside them. `None` when no id does.
pub(super) fn ids_from(text: &str) -> Option<RangeInclusive<JobId>> {
    if !text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7')) {
        return None;
    }
    let pad = |with: char| {
        // 32 bytes in base32: 51 digits of 5 bits, and one digit more of which only the first bit says something.
        let mut text: String = text.to_owned();
        text.extend(std::iter::repeat_n(with, 52usize.checked_sub(text.len())?));
        let last = if text.as_bytes()[51] < b'q' && text.as_bytes()[51].is_ascii_lowercase() { 'a' } else { 'q' };
        text.truncate(51);
        text.push(last);
        text.parse::<JobId>().ok()
    };
    Some(pad('a')?..=pad('7')?)
}

/// Whether an id's printed form begins with `text`.
pub(super) fn begins_with(job: &JobId, text: &str) -> bool {
    encode_base32(&job.0).starts_with(text)
}
