//! A node's disk: what was synced stays, what was not is lost in a crash, in the order of writing.
//!
//! The daemon's journal promises that a group of records is there whole or not at all: its frame carries a checksum, and groups
//! count only in order. So a batch of records that was under way is lost whole, and so is everything behind
//! it. A disk that acknowledges what it only holds in its cache breaks the promise of durability, not that of wholeness. That
//! a batch is *partly* there must not happen with it; it can be had all the same, to see what would depend on it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use sinew_crdt_state::cbor;
use sinew_crdt_state::certificate::{Credential, Roles};
use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::fact::{Fact, Statement};
use sinew_crdt_state::ids::{DiskId, FactId, Hash, JobId, NodeId};
use sinew_crdt_state::ledger::{OwnerMark, SealedEntry};
use sinew_crdt_state::spec::BlobRef;
use sinew_crdt_state::submit_key::key_hash;
use sinew_scheduler::core::Stored;
use sinew_scheduler::io::{Record, Ticket};
use sinew_scheduler::time::Time;

use crate::distribution::Distribution;

/// Records on their way to the platter.
#[derive(Debug)]
struct Write {
    ticket: Ticket,
    records: Vec<Record>,
    due: Time,
}

/// What a disk is like.
#[derive(Debug, Clone, PartialEq)]
pub struct DiskSetup {
    /// How long an fsync takes, microseconds.
    pub fsync_us: Distribution,
    /// Records that it has room for; then it is full. `None` for no limit.
    pub room: Option<u64>,
    /// Whether a crash can leave part of a batch. The daemon's ledger promises that it does not.
    pub tears: bool,
    /// Whether it acknowledges what it holds in a cache only, and loses that in a crash.
    pub lies: bool,
}

impl Default for DiskSetup {
    fn default() -> Self {
        // An SSD.
        Self { fsync_us: Distribution::Uniform { low: 200, high: 1_999 }, room: None, tears: false, lies: false }
    }
}

impl DiskSetup {
    /// A disk whose fsyncs take this long, microseconds.
    #[must_use]
    pub fn syncing_in(fsync_us: Distribution) -> Self {
        Self { fsync_us, ..Self::default() }
    }

    /// A spinning disk under load: 30 ms, now and then a second.
    #[must_use]
    pub fn slow() -> Self {
        Self::syncing_in(Distribution::LogNormal { median: 30_000, sigma: 1.2 })
    }
}

/// What is on the platter.
#[derive(Debug, Default, Clone)]
struct Image {
    facts: BTreeMap<JobId, BTreeMap<FactId, Envelope>>,
    sealed: BTreeMap<JobId, SealedEntry>,
    owners: BTreeMap<NodeId, OwnerMark>,
    /// What stays of forgotten jobs.
    receipts: BTreeMap<JobId, Vec<Envelope>>,
    members: BTreeMap<NodeId, Credential>,
}

/// What a lying disk really has, and what it only said to have.
#[derive(Debug)]
struct Lie {
    platter: Image,
    cached: Vec<Vec<Record>>,
}

/// What a crash did to the writes under way.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Damage {
    /// Writes lost that were acknowledged.
    pub(crate) lied: u64,
    /// Writes lost that were not.
    pub(crate) unsynced: u64,
    /// Whether a batch is partly there.
    pub(crate) torn: bool,
}

/// What a node keeps across restarts, and what it is still writing.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    image: Image,
    /// Since it lies.
    lie: Option<Lie>,
    /// Blobs, with the jobs that hold them; imported ones are held by nobody and stay.
    blobs: BTreeMap<Hash, (BlobRef, BTreeSet<JobId>, bool)>,
    writes: VecDeque<Write>,
    /// Records ever written.
    written: u64,
    /// Which of the node's disks it is.
    pub(crate) id: DiskId,
    pub(crate) setup: DiskSetup,
    /// Whether it refuses writes.
    pub(crate) failing: bool,
}

impl Disk {
    /// An empty disk of `owner`, in place of `before` if there was one.
    pub(crate) fn new(setup: DiskSetup, owner: NodeId, before: Option<DiskId>) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("sinew simnet disk 1");
        hasher.update(&owner.0).update(&before.unwrap_or_default().0.to_le_bytes());
        let mut id = [0; 8];
        id.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        Self { setup, id: DiskId(u64::from_le_bytes(id)), ..Self::default() }
    }

    /// Queues records, to be synced at `due`; whatever was queued before goes along at the latest then.
    pub(crate) fn write(&mut self, ticket: Ticket, records: Vec<Record>, due: Time) {
        for earlier in &mut self.writes {
            earlier.due = earlier.due.min(due);
        }
        self.written += records.len() as u64;
        self.writes.push_back(Write { ticket, records, due });
    }

    /// The last write never came about.
    pub(crate) fn drop_last(&mut self) {
        self.writes.pop_back();
    }

    /// Whether the last write found no room.
    pub(crate) fn is_full(&self) -> bool {
        self.setup.room.is_some_and(|room| self.written > room)
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
            self.remember(&write.records);
            self.image.apply(write.records);
            done.push(write.ticket);
        }
        done
    }

    /// Keeps what is on the platter apart while the disk lies. A disk that is honest again has flushed its cache.
    fn remember(&mut self, records: &[Record]) {
        if !self.setup.lies {
            self.lie = None;
            return;
        }
        let image = &self.image;
        let lie = self.lie.get_or_insert_with(|| Lie { platter: image.clone(), cached: Vec::new() });
        lie.cached.push(records.to_vec());
    }

    /// The power goes: the first `kept` of the pending writes happened to reach the platter, and of the next one, where the
    /// disk tears, so many of 1,000 parts.
    pub(crate) fn crash(&mut self, kept: usize, part: usize) -> Damage {
        let (mut pending, mut lied) = (Vec::new(), 0);
        if let Some(lie) = self.lie.take()
            && self.setup.lies
        {
            self.image = lie.platter;
            lied = lie.cached.len();
            pending = lie.cached;
        }
        if !self.failing {
            pending.extend(std::mem::take(&mut self.writes).into_iter().map(|w| w.records));
        }
        self.writes.clear();
        self.failing = false;
        let lost = pending.len().saturating_sub(kept);
        let cached = lied.saturating_sub(kept);
        let mut damage = Damage { lied: cached as u64, unsynced: (lost - cached) as u64, torn: false };
        let mut pending = pending.into_iter();
        for records in pending.by_ref().take(kept) {
            self.image.apply(records);
        }
        if self.setup.tears
            && let Some(mut records) = pending.next()
        {
            let whole = records.len();
            records.truncate(whole * part / 1_000);
            damage.torn = !records.is_empty() && records.len() < whole;
            self.image.apply(records);
        }
        damage
    }

    /// Records that it was ever asked to write.
    pub(crate) const fn asked_to_write(&self) -> u64 {
        self.written
    }

    pub(crate) fn pending(&self) -> usize {
        self.writes.len() + self.lie.as_ref().map_or(0, |lie| lie.cached.len())
    }

    /// What a starting daemon reads.
    pub(crate) fn stored(&self) -> Stored {
        let live = self.image.facts.iter().filter(|(job, _)| !self.image.sealed.contains_key(job));
        Stored {
            members: self.image.members.values().cloned().collect(),
            facts: live.flat_map(|(_, facts)| facts.values().cloned()).collect(),
            sealed: self.image.sealed.iter().map(|(job, entry)| (*job, *entry)).collect(),
            owners: self.image.owners.iter().map(|(owner, mark)| (*owner, mark.clone())).collect(),
            blobs: self.blobs.values().map(|(blob, ..)| *blob).collect(),
        }
    }

    /// Whether something of the job is on the platter.
    pub(crate) fn knows(&self, job: &JobId) -> bool {
        self.image.facts.contains_key(job) || self.has_forgotten(job)
    }

    /// Whether the job's seal is on the platter.
    pub(crate) fn has_sealed(&self, job: &JobId) -> bool {
        self.image.sealed.contains_key(job) || self.has_forgotten(job)
    }

    /// The job's facts and blobs go. That it is sealed stays.
    pub(crate) fn drop_job(&mut self, job: &JobId) {
        if self.image.facts.remove(job).is_none() && self.image.receipts.remove(job).is_none() {
            return;
        }
        self.blobs.retain(|_, (_, jobs, imported)| !jobs.remove(job) || *imported || !jobs.is_empty());
    }

    /// Whether only a receipt stays of the job.
    pub(crate) fn has_forgotten(&self, job: &JobId) -> bool {
        self.image.receipts.contains_key(job)
    }

    /// An entry's facts, those still being written too: a daemon reads behind its own writes.
    pub(crate) fn facts(&self, job: &JobId) -> Vec<Envelope> {
        let pending = self.writes.iter().flat_map(|w| &w.records).filter_map(|r| match r {
            Record::Fact { envelope, .. } if envelope.entry == *job => Some(envelope),
            _ => None,
        });
        let receipt = self.image.receipts.get(job).into_iter().flatten();
        self.image
            .facts
            .get(job)
            .into_iter()
            .flat_map(BTreeMap::values)
            .chain(pending)
            .chain(receipt)
            .cloned()
            .collect()
    }

    /// Facts of an entry that no crash can take away any more.
    pub(crate) fn written(&self, job: &JobId) -> usize {
        self.image.facts.get(job).map_or(0, BTreeMap::len)
    }

    pub(crate) fn jobs(&self) -> impl Iterator<Item = &JobId> {
        self.image.facts.keys()
    }

    /// Members with this role whose certificates are on the platter.
    pub(crate) fn members_with(&self, role: Roles) -> usize {
        self.image.members.values().filter(|credential| credential.roles().contains(role)).count()
    }

    /// The ended job that `submitter` gave this key, as a daemon finds it.
    pub(crate) fn job_of_key(&self, submitter: NodeId, key: &str) -> Option<(JobId, Hash)> {
        let wanted = key_hash(submitter, key);
        let ended = self.image.sealed.keys().chain(self.image.receipts.keys());
        ended.copied().find_map(|job| {
            let spec =
                self.facts(&job).iter().find_map(|e| match cbor::from_slice::<Statement>(&e.payload).ok()?.fact {
                    Fact::Submit(signed) => signed.decode().ok(),
                    _ => None,
                })?;
            let (hash, request) = spec.keyed()?;
            (hash == wanted).then_some((job, request))
        })
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

    /// Every blob vanishes; says how many.
    pub(crate) fn lose_blobs(&mut self) -> u64 {
        std::mem::take(&mut self.blobs).len() as u64
    }

    pub(crate) fn has(&self, hash: &Hash) -> bool {
        self.blobs.contains_key(hash)
    }

    #[cfg(test)]
    pub(crate) fn blob_count(&self) -> usize {
        self.blobs.len()
    }
}

impl Image {
    fn apply(&mut self, records: Vec<Record>) {
        for record in records {
            match record {
                Record::Fact { id, envelope } => {
                    self.facts.entry(envelope.entry).or_default().insert(id, envelope);
                }
                Record::Sealed { job, entry, .. } => {
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
}

/// Whether a fact stays when its job is forgotten.
fn stays(envelope: &Envelope) -> bool {
    let statement = cbor::from_slice::<Statement>(&envelope.payload);
    statement.is_ok_and(|s| matches!(s.fact, Fact::Submit(_) | Fact::Seal { .. } | Fact::Receipt(_)))
}
