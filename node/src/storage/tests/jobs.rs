//! Jobs for tests: signed as a busy mesh signs them, and the oracle that says what a ledger should hold of them.

use std::collections::{BTreeMap, BTreeSet};

use sinew_crdt_state::envelope::{BATCH_LEN_MAX, Envelope, seal_batch};
use sinew_crdt_state::fact::{Executed, Fact, Outcome, Statement};
use sinew_crdt_state::identity::Identity;
use sinew_crdt_state::ids::{FactId, Hash, JobId, NodeId};
use sinew_crdt_state::ledger::{OwnerMark, SealedEntry};
use sinew_scheduler::core::Stored;
use sinew_scheduler::io::Record;
use sinew_scheduler::view::JobRow;

use crate::bench::ledger::{MESH, facts_of};
use crate::storage::rows::fold_row;
use crate::storage::table::keep_receipt;
use crate::storage::{StorageError, StorageReader};

pub(super) fn nodes() -> [Identity; 3] {
    [1, 2, 3].map(|n| Identity::from_seed([n; 32]))
}

/// A job as it passes through a mesh of three: its facts in the order of being stated, each with the number of its author.
pub(super) struct Job {
    pub(super) id: JobId,
    pub(super) statements: Vec<(usize, Statement)>,
}

/// The usual job: ten facts of three authors. The seal names the receipt.
pub(super) fn usual(serial: u64) -> Job {
    let [submitter, worker, _] = nodes();
    let (id, facts) = facts_of(&submitter, serial);
    let mut facts: Vec<Fact> = facts.into_iter().map(|(_, s)| s.fact).collect();
    let seal = facts.pop().expect("a seal");
    assert!(matches!(seal, Fact::Seal { .. }));
    let at_ms = 1_700_000_000_000 + serial;
    for fact in &mut facts {
        match fact {
            Fact::Award { node, .. } => *node = worker.id(),
            Fact::Accept { items, .. } => items.iter_mut().for_each(|item| item.node = worker.id()),
            _ => {}
        }
    }
    let receipt = Fact::Receipt(Executed { tasks: 1, usage: Default::default(), outputs: Hash::of(&[]) });
    let bytes = sinew_crdt_state::cbor::to_vec(&Statement { at_ms, fact: receipt.clone() });
    let named = sinew_crdt_state::change::fact_id(worker.id(), &bytes);
    let bid = facts[1].clone();
    let author = |fact: &Fact| match fact {
        Fact::Bid { .. } | Fact::Claim { .. } | Fact::Report { .. } | Fact::Receipt(_) => 1,
        _ => 0,
    };
    facts.push(receipt);
    facts.push(Fact::Seal { term: 1, outcome: Outcome::Completed, receipts: vec![(worker.id(), named)], anew: 0 });
    let mut statements: Vec<_> = facts.into_iter().map(|fact| (author(&fact), Statement { at_ms, fact })).collect();
    statements.insert(2, (2, Statement { at_ms: at_ms + 1, fact: bid }));
    Job { id, statements }
}

/// Signs what each author states of many jobs at the same stage together, as flushes do: the facts of each job in order.
pub(super) fn sign(jobs: &[Job]) -> Vec<Vec<(FactId, Envelope)>> {
    let authors = nodes();
    let mut signed: Vec<Vec<(FactId, Envelope)>> = vec![Vec::new(); jobs.len()];
    let stages = jobs.iter().map(|job| job.statements.len()).max().unwrap_or(0);
    for stage in 0..stages {
        for (number, author) in authors.iter().enumerate() {
            let mine = |(_, job): &(usize, &Job)| job.statements.get(stage).is_some_and(|(a, _)| *a == number);
            let jobs: Vec<(usize, &Job)> = jobs.iter().enumerate().filter(mine).collect();
            let batch: Vec<_> = jobs.iter().map(|(_, job)| (job.id, job.statements[stage].1.clone())).collect();
            let facts = batch.chunks(BATCH_LEN_MAX).flat_map(|batch| seal_batch(author, MESH, batch));
            for ((at, _), fact) in jobs.iter().zip(facts) {
                signed[*at].push(fact);
            }
        }
    }
    signed
}

/// What the core hands over when a job is sealed.
pub(super) fn sealed(job: JobId, serial: u64, facts: &[(FactId, Envelope)], row: bool) -> Record {
    let submitter = nodes()[0].id();
    let seal = facts.last().expect("facts").0;
    let row = if row { fold_row(facts.iter().map(|(_, e)| e)).map(Box::new) } else { None };
    let sealed_ms = 1_700_000_100_000 + serial;
    Record::Sealed {
        job,
        entry: SealedEntry { submitter, serial, seal, sealed_ms, lacks_outputs: false, says: 0 },
        row,
    }
}

/// What a ledger should hold, the simple way.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Oracle {
    pub(super) facts: BTreeMap<JobId, BTreeMap<FactId, Envelope>>,
    pub(super) sealed: BTreeMap<JobId, SealedEntry>,
    pub(super) forgotten: BTreeSet<JobId>,
    pub(super) owners: BTreeMap<NodeId, OwnerMark>,
    pub(super) rows: BTreeMap<JobId, JobRow>,
}

impl Oracle {
    pub(super) fn add(&mut self, record: &Record) {
        match record {
            Record::Fact { id, envelope } => {
                self.facts.entry(envelope.entry).or_default().insert(*id, envelope.clone());
            }
            Record::Sealed { job, entry, .. } => {
                if !self.forgotten.contains(job) {
                    self.sealed.insert(*job, *entry);
                }
                let row = self.facts.get(job).and_then(|facts| fold_row(facts.values()));
                if let Some(row) = row {
                    self.rows.entry(*job).or_insert(row);
                }
            }
            Record::Forget { job, owner, mark } => {
                keep_receipt(self.facts.entry(*job).or_default());
                self.sealed.remove(job);
                self.forgotten.insert(*job);
                self.owners.insert(*owner, mark.clone());
            }
            Record::Retract { job } => {
                if !self.sealed.contains_key(job) && !self.forgotten.contains(job) {
                    self.facts.remove(job);
                }
            }
            Record::Member { .. } | Record::Seen { .. } | Record::Disk { .. } => {}
        }
    }

    /// Whether a ledger's readers show this, and this is what a core would start from.
    pub(super) fn differs_from(&self, reader: &StorageReader, stored: &Stored) -> Option<String> {
        let live: BTreeMap<JobId, BTreeMap<FactId, Envelope>> = self
            .facts
            .iter()
            .filter(|(job, f)| !self.sealed.contains_key(job) && !self.forgotten.contains(job) && !f.is_empty())
            .map(|(job, facts)| (*job, facts.clone()))
            .collect();
        let mut loaded: BTreeMap<JobId, BTreeMap<FactId, Envelope>> = BTreeMap::new();
        for envelope in &stored.facts {
            loaded.entry(envelope.entry).or_default().insert(envelope.fact_id(), envelope.clone());
        }
        if loaded != live {
            return Some(format!("live facts: {} jobs, not {}", loaded.len(), live.len()));
        }
        if stored.sealed.iter().copied().collect::<BTreeMap<_, _>>() != self.sealed {
            return Some(format!("sealed: {} jobs, not {}", stored.sealed.len(), self.sealed.len()));
        }
        if stored.owners.iter().cloned().collect::<BTreeMap<_, _>>() != self.owners {
            return Some("owners".to_owned());
        }
        self.differs_in(reader)
    }

    /// Whether a ledger's readers show this.
    pub(super) fn differs_in(&self, reader: &StorageReader) -> Option<String> {
        for (job, facts) in &self.facts {
            let shown = match reader.entry(job) {
                // The disk failed while the file was written: what is in memory alone is not shown as all there is.
                Err(StorageError::Closed) => return None,
                shown => shown.expect("it reads"),
            };
            if shown != facts.values().cloned().collect::<Vec<_>>() {
                return Some(format!("job {}: {} facts, not {}", job.short(), shown.len(), facts.len()));
            }
        }
        let rows: BTreeMap<JobId, JobRow> = match reader.ended(usize::MAX) {
            Err(StorageError::Closed) => return None,
            rows => rows.expect("it reads").into_iter().collect(),
        };
        if rows != self.rows {
            return Some(format!("rows: {}, not {}", rows.len(), self.rows.len()));
        }
        None
    }
}
