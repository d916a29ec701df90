//! What was handed over since the last checkpoint, by job: changes that lie over the ledger's file.

use std::collections::BTreeMap;

use sinew_crdt_state::cbor;
use sinew_crdt_state::certificate::Credential;
use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::fact::{Fact, Statement};
use sinew_crdt_state::facts::Facts;
use sinew_crdt_state::ids::{DiskId, FactId, JobId, NodeId};
use sinew_crdt_state::ledger::{OwnerMark, SealedEntry};
use sinew_scheduler::io::Record;
use sinew_scheduler::view::JobRow;
use sinew_scheduler::wire::Seen;

/// What happened to one job.
#[derive(Debug, Clone, Default)]
pub(super) struct Change {
    /// It was withdrawn: what lies below counts no more.
    pub(super) retracted: bool,
    /// Facts added since.
    pub(super) facts: Facts,
    /// It was sealed, or what is known of its seal changed.
    pub(super) sealed: Option<SealedEntry>,
    /// Its row in the list of ended jobs.
    pub(super) row: Option<Box<JobRow>>,
    /// It was forgotten but for its receipt.
    pub(super) forgotten: bool,
}

impl Change {
    /// Adds a record of this job.
    pub(super) fn add(&mut self, record: Record) {
        match record {
            Record::Fact { id, envelope } => {
                self.facts.insert(id, envelope);
            }
            Record::Sealed { entry, row, .. } if !self.forgotten => {
                self.sealed = Some(entry);
                self.row = row.or_else(|| self.row.take());
            }
            Record::Forget { .. } => {
                self.forgotten = true;
                self.sealed = None;
            }
            // Only what was never acknowledged is withdrawn, and no job is sealed that was not.
            Record::Retract { .. } if !self.is_ended() => {
                self.facts = Facts::default();
                self.retracted = true;
            }
            Record::Sealed { .. }
            | Record::Retract { .. }
            | Record::Member { .. }
            | Record::Seen { .. }
            | Record::Disk { .. } => {}
        }
    }

    /// Whether it says that the job is over.
    pub(super) const fn is_ended(&self) -> bool {
        self.sealed.is_some() || self.forgotten
    }
}

/// Which job a record is about.
pub(super) const fn job_of(record: &Record) -> Option<JobId> {
    match record {
        Record::Fact { envelope, .. } => Some(envelope.entry),
        Record::Sealed { job, .. } | Record::Forget { job, .. } | Record::Retract { job } => Some(*job),
        Record::Member { .. } | Record::Seen { .. } | Record::Disk { .. } => None,
    }
}

/// All changes since a checkpoint.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) jobs: BTreeMap<JobId, Change>,
    pub(super) members: BTreeMap<NodeId, Credential>,
    pub(super) owners: BTreeMap<NodeId, OwnerMark>,
    pub(super) seen: BTreeMap<NodeId, Seen>,
    /// The disk's new number, and the start that has it.
    pub(super) disk: Option<(DiskId, u64)>,
    /// What the records took in the journal.
    pub(super) bytes: u64,
}

impl Table {
    /// Adds a record.
    pub(super) fn add(&mut self, record: Record) {
        match record {
            Record::Member { credential } => {
                if let Some(node) = credential.node() {
                    self.members.insert(node, credential);
                }
            }
            Record::Seen { node, seen } => {
                self.seen.insert(node, seen);
            }
            Record::Disk { disk, incarnation } => self.disk = Some((disk, incarnation)),
            Record::Forget { owner, ref mark, .. } => {
                self.owners.insert(owner, mark.clone());
                self.change(record);
            }
            Record::Fact { .. } | Record::Sealed { .. } | Record::Retract { .. } => self.change(record),
        }
    }

    fn change(&mut self, record: Record) {
        if let Some(job) = job_of(&record) {
            self.jobs.entry(job).or_default().add(record);
        }
    }
}

/// One job, with every change so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Picture {
    pub(super) facts: BTreeMap<FactId, Envelope>,
    pub(super) sealed: Option<SealedEntry>,
    pub(super) forgotten: bool,
}

impl Picture {
    /// Adds a change. Adding it again changes nothing.
    pub(super) fn add(&mut self, change: &Change) {
        let ended = self.sealed.is_some() || self.forgotten;
        if change.retracted && !ended {
            self.facts.clear();
        }
        self.facts.extend(change.facts.iter().map(|(id, envelope)| (*id, envelope.clone())));
        self.forgotten |= change.forgotten;
        if self.forgotten {
            self.sealed = None;
            keep_receipt(&mut self.facts);
        } else {
            self.sealed = change.sealed.or(self.sealed);
        }
    }
}

/// What stays of a forgotten job: the spec, the seal, and the executors' receipts that the seal names.
pub(super) fn keep_receipt(facts: &mut BTreeMap<FactId, Envelope>) {
    let mut kept = std::collections::BTreeSet::new();
    for (id, envelope) in &*facts {
        match cbor::from_slice::<Statement>(&envelope.payload).map(|s| s.fact) {
            Ok(Fact::Submit(_)) => {
                kept.insert(*id);
            }
            Ok(Fact::Seal { receipts, .. }) => {
                kept.insert(*id);
                kept.extend(receipts.into_iter().map(|(_, receipt)| receipt));
            }
            _ => {}
        }
    }
    facts.retain(|id, _| kept.contains(id));
}
