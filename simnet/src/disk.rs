//! A node's disk: what was synced stays, what was not is lost in a crash, in the order of writing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use sinew_crdt_state::cbor;
use sinew_crdt_state::certificate::Credential;
use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::fact::{Fact, Statement};
use sinew_crdt_state::ids::{FactId, Hash, JobId, NodeId};
use sinew_crdt_state::ledger::{OwnerMark, SealedEntry};
use sinew_crdt_state::spec::BlobRef;
use sinew_scheduler::core::Stored;
use sinew_scheduler::io::{Record, Ticket};
use sinew_scheduler::time::Time;

/// Records on their way to the platter.
#[derive(Debug)]
struct Write {
    ticket: Ticket,
    records: Vec<Record>,
    due: Time,
}

/// What a node keeps across restarts, and what it is still writing.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    facts: BTreeMap<JobId, BTreeMap<FactId, Envelope>>,
    sealed: BTreeMap<JobId, SealedEntry>,
    owners: BTreeMap<NodeId, OwnerMark>,
    /// What stays of forgotten jobs.
    receipts: BTreeMap<JobId, Vec<Envelope>>,
    members: BTreeMap<NodeId, Credential>,
    /// Blobs, with the jobs that hold them; imported ones are held by nobody and stay.
    blobs: BTreeMap<Hash, (BlobRef, BTreeSet<JobId>, bool)>,
    writes: VecDeque<Write>,
    /// Whether it refuses writes.
    pub(crate) failing: bool,
}

impl Disk {
    /// Queues records, to be synced at `due`; whatever was queued before goes along at the latest then.
    pub(crate) fn write(&mut self, ticket: Ticket, records: Vec<Record>, due: Time) {
        for earlier in &mut self.writes {
            earlier.due = earlier.due.min(due);
        }
        self.writes.push_back(Write { ticket, records, due });
    }

    /// When the next write is synced.
    pub(crate) fn due(&self) -> Option<Time> {
        self.writes.front().filter(|_| !self.failing).map(|w| w.due)
    }

    /// Takes the writes that are synced by `now`.
    pub(crate) fn synced(&mut self, now: Time) -> Vec<Ticket> {
        let mut done = Vec::new();
        while !self.failing && self.writes.front().is_some_and(|w| w.due <= now) {
            let Some(write) = self.writes.pop_front() else { break };
            self.apply(write.records);
            done.push(write.ticket);
        }
        done
    }

    /// The power goes: the first `kept` of the pending writes happened to reach the platter.
    pub(crate) fn crash(&mut self, kept: usize) {
        let writes = std::mem::take(&mut self.writes);
        if !self.failing {
            for write in writes.into_iter().take(kept) {
                self.apply(write.records);
            }
        }
        self.failing = false;
    }

    pub(crate) fn pending(&self) -> usize {
        self.writes.len()
    }

    fn apply(&mut self, records: Vec<Record>) {
        for record in records {
            match record {
                Record::Fact { id, envelope } => {
                    self.facts.entry(envelope.entry).or_default().insert(id, envelope);
                }
                Record::Sealed { job, entry } => {
                    self.sealed.insert(job, entry);
                }
                Record::Forget { job, owner, mark } => {
                    let kept = self.facts.remove(&job).unwrap_or_default();
                    self.receipts.insert(job, kept.into_values().filter(stays).collect());
                    self.sealed.remove(&job);
                    self.owners.insert(owner, mark);
                }
                Record::Member { credential } => {
                    if let Some(node) = credential.node() {
                        self.members.insert(node, credential);
                    }
                }
                Record::Retract { job } => {
                    self.facts.remove(&job);
                }
            }
        }
    }

    /// What a starting daemon reads.
    pub(crate) fn stored(&self) -> Stored {
        let live = self.facts.iter().filter(|(job, _)| !self.sealed.contains_key(job));
        Stored {
            members: self.members.values().cloned().collect(),
            facts: live.flat_map(|(_, facts)| facts.values().cloned()).collect(),
            sealed: self.sealed.iter().map(|(job, entry)| (*job, *entry)).collect(),
            owners: self.owners.iter().map(|(owner, mark)| (*owner, mark.clone())).collect(),
            blobs: self.blobs.values().map(|(blob, ..)| *blob).collect(),
        }
    }

    /// An entry's facts, those still being written too: a daemon reads behind its own writes.
    pub(crate) fn facts(&self, job: &JobId) -> Vec<Envelope> {
        let pending = self.writes.iter().flat_map(|w| &w.records).filter_map(|r| match r {
            Record::Fact { envelope, .. } if envelope.entry == *job => Some(envelope),
            _ => None,
        });
        let receipt = self.receipts.get(job).into_iter().flatten();
        self.facts.get(job).into_iter().flat_map(BTreeMap::values).chain(pending).chain(receipt).cloned().collect()
    }

    /// Whether only a receipt stays of the job.
    pub(crate) fn has_forgotten(&self, job: &JobId) -> bool {
        self.receipts.contains_key(job)
    }

    pub(crate) fn jobs(&self) -> impl Iterator<Item = &JobId> {
        self.facts.keys()
    }

    /// Puts a blob here that belongs to no job.
    pub(crate) fn import(&mut self, blob: BlobRef) {
        self.blobs.entry(blob.hash).or_insert_with(|| (blob, BTreeSet::new(), true)).2 = true;
    }

    /// Puts a blob here for a job.
    pub(crate) fn keep(&mut self, blob: BlobRef, job: JobId) {
        self.blobs.entry(blob.hash).or_insert_with(|| (blob, BTreeSet::new(), false)).1.insert(job);
    }

    /// A job lets go of its blobs, but for `keep`.
    pub(crate) fn end_job(&mut self, job: &JobId, keep: &[Hash]) {
        self.blobs.retain(|hash, (_, jobs, imported)| {
            if keep.contains(hash) {
                return true;
            }
            !jobs.remove(job) || *imported || !jobs.is_empty()
        });
    }

    pub(crate) fn has(&self, hash: &Hash) -> bool {
        self.blobs.contains_key(hash)
    }
}

/// Whether a fact stays when its job is forgotten.
fn stays(envelope: &Envelope) -> bool {
    let statement = cbor::from_slice::<Statement>(&envelope.payload);
    statement.is_ok_and(|s| matches!(s.fact, Fact::Submit(_) | Fact::Seal { .. } | Fact::Receipt(_)))
}
