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
use sinew_crdt_state::planted::{Bug, planted};
use sinew_crdt_state::spec::BlobRef;
use sinew_crdt_state::submit_key::key_hash;
use sinew_scheduler::core::Stored;
use sinew_scheduler::io::{Record, Ticket};
use sinew_scheduler::time::Time;
use sinew_scheduler::wire::Seen;

use crate::distribution::Distribution;

/// Records on their way to the platter.
#[derive(Debug)]
struct Write {
    ticket: Ticket,
    records: Vec<Record>,
    due: Time,
    /// Whether it was acknowledged already, by a mistake.
    told: bool,
    /// Whether its sync failed and nothing was written again, by a mistake.
    lost: bool,
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
pub(crate) struct Image {
    facts: BTreeMap<JobId, BTreeMap<FactId, Envelope>>,
    sealed: BTreeMap<JobId, SealedEntry>,
    owners: BTreeMap<NodeId, OwnerMark>,
    /// What stays of forgotten jobs.
    receipts: BTreeMap<JobId, Vec<(FactId, Envelope)>>,
    members: BTreeMap<NodeId, Credential>,
    /// Which of the node's disks it is.
    id: DiskId,
    /// How often it was started from.
    starts: u64,
    /// How many writes it has taken.
    mark: u64,
    /// Starts of other nodes.
    seen: BTreeMap<NodeId, Seen>,
    /// Blobs, with the jobs that hold them; imported ones are held by nobody and stay.
    blobs: Blobs,
}

type Blobs = BTreeMap<Hash, (BlobRef, BTreeSet<JobId>, bool)>;

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
    blobs: Blobs,
    /// Which other nodes keep what this one keeps for a job, as far as it was told.
    notes: BTreeMap<(JobId, Hash), BTreeSet<NodeId>>,
    /// Forgotten jobs that may have blobs here.
    forgotten: BTreeSet<JobId>,
    writes: VecDeque<Write>,
    /// Records ever written.
    written: u64,
    pub(crate) setup: DiskSetup,
    /// Whether it refuses writes.
    pub(crate) failing: bool,
    /// Whether its next sync fails.
    pub(crate) fails_next: bool,
    /// Whether a sync failed, and nothing was written since.
    pub(crate) sync_failed: bool,
    /// Since when it does not answer.
    pub(crate) hung_since: Option<Time>,
}

impl Disk {
    /// An empty disk of `owner`, in place of `before` if there was one.
    pub(crate) fn new(setup: DiskSetup, owner: NodeId, before: Option<DiskId>) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("sinew simnet disk 1");
        hasher.update(&owner.0).update(&before.unwrap_or_default().0.to_le_bytes());
        let mut id = [0; 8];
        id.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        let image = Image { id: DiskId(u64::from_le_bytes(id)), ..Image::default() };
        Self { setup, image, ..Self::default() }
    }

    /// Which of the node's disks it is.
    pub(crate) const fn id(&self) -> DiskId {
        self.image.id
    }

    /// How many writes it has taken.
    pub(crate) const fn mark(&self) -> u64 {
        self.image.mark
    }

    /// Counts a start, on the platter before anything else is said. Returns its number.
    pub(crate) fn count_start(&mut self) -> u64 {
        self.image.starts += 1;
        self.image.starts
    }

    /// What is on the platter, with the blobs.
    pub(crate) fn image(&self) -> Image {
        let platter = self.lie.as_ref().map_or(&self.image, |lie| &lie.platter);
        Image { blobs: self.blobs.clone(), ..platter.clone() }
    }

    /// Another image is on the platter.
    pub(crate) fn replace(&mut self, mut image: Image) {
        self.blobs = std::mem::take(&mut image.blobs);
        self.image = image;
        self.lie = None;
        self.writes.clear();
    }

    /// Every submit fact there is.
    pub(crate) fn submits(&self) -> impl Iterator<Item = &Envelope> {
        let receipts = self.image.receipts.values().flatten().map(|(_, envelope)| envelope);
        let kept = self.image.facts.values().flat_map(BTreeMap::values).chain(receipts);
        kept.filter(|e| cbor::from_slice::<Statement>(&e.payload).is_ok_and(|s| matches!(s.fact, Fact::Submit(_))))
    }

    /// Queues records, to be synced at `due`; whatever was queued before goes along at the latest then.
    pub(crate) fn write(&mut self, ticket: Ticket, records: Vec<Record>, due: Time) {
        for earlier in &mut self.writes {
            earlier.due = earlier.due.min(due);
        }
        self.written += records.len() as u64;
        self.writes.push_back(Write { ticket, records, due, told: false, lost: false });
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
        self.writes.front().filter(|_| self.answers()).map(|w| w.due)
    }

    /// Takes the writes that are synced by `now`.
    pub(crate) fn synced(&mut self, now: Time) -> Vec<Ticket> {
        let mut done = Vec::new();
        while self.answers() && self.writes.front().is_some_and(|w| w.due <= now) {
            let Some(write) = self.writes.pop_front() else { break };
            if !write.lost {
                self.remember(&write.records);
                self.image.apply(write.records);
                self.image.mark += 1;
            }
            done.extend((!write.told).then_some(write.ticket));
        }
        done
    }

    const fn answers(&self) -> bool {
        !self.failing && self.hung_since.is_none()
    }

    /// The sync under way fails. What it was to write is written again elsewhere at `again`, as the daemon's journal does. Gives what
    /// is acknowledged all the same, which nothing may be.
    pub(crate) fn fail_sync(&mut self, again: Time) -> Vec<Ticket> {
        self.fails_next = false;
        self.sync_failed = true;
        let mut told = Vec::new();
        for write in &mut self.writes {
            write.due = write.due.max(again);
            write.lost |= planted(Bug::SyncRetried);
            if planted(Bug::PersistedAfterFailedSync) && !std::mem::replace(&mut write.told, true) {
                told.push(write.ticket);
            }
        }
        told
    }

    /// Some of what is on it is no longer what was written: of jobs that go on only the specs can be read, and which end they came
    /// to is gone. A node that starts on it notices: it is another disk.
    pub(crate) fn rot(&mut self, owner: NodeId) {
        let sealed = &self.image.sealed;
        for (_, facts) in self.image.facts.iter_mut().filter(|(job, _)| !sealed.contains_key(job)) {
            facts.retain(|_, envelope| is_submit(envelope));
        }
        if !planted(Bug::DamageBelieved) {
            self.image.id = Self::new(self.setup.clone(), owner, Some(self.id())).id();
        }
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
        if self.answers() {
            let written = std::mem::take(&mut self.writes).into_iter().filter(|w| !w.lost);
            pending.extend(written.map(|w| w.records));
        }
        self.writes.clear();
        self.failing = false;
        (self.fails_next, self.sync_failed, self.hung_since) = (false, false, None);
        let lost = pending.len().saturating_sub(kept);
        let cached = lied.saturating_sub(kept);
        let mut damage = Damage { lied: cached as u64, unsynced: (lost - cached) as u64, torn: false };
        let mut pending = pending.into_iter();
        for records in pending.by_ref().take(kept) {
            self.image.apply(records);
            self.image.mark += 1;
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
            seen: self.image.seen.iter().map(|(node, seen)| (*node, seen.clone())).collect(),
            mark: self.image.mark,
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
        self.facts_by_id(job).map(|(_, envelope)| envelope.clone()).collect()
    }

    /// The same with their ids, by which they were written: checks read them often, and each id is a hash.
    pub(crate) fn facts_by_id(&self, job: &JobId) -> impl Iterator<Item = (FactId, &Envelope)> {
        let job = *job;
        let pending = self.writes.iter().flat_map(|w| &w.records).filter_map(move |r| match r {
            Record::Fact { id, envelope } if envelope.entry == job => Some((*id, envelope)),
            _ => None,
        });
        let receipt = self.image.receipts.get(&job).into_iter().flatten().map(|(id, envelope)| (*id, envelope));
        let facts = self.image.facts.get(&job).into_iter().flatten().map(|(id, envelope)| (*id, envelope));
        facts.chain(pending).chain(receipt)
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
            let spec = self.facts_by_id(&job).find_map(|(_, e)| {
                match cbor::from_slice::<Statement>(&e.payload).ok()?.fact {
                    Fact::Submit(signed) => signed.decode().ok(),
                    _ => None,
                }
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

    /// Whether a blob is here and kept for this job.
    pub(crate) fn keeps(&self, job: &JobId, hash: &Hash) -> bool {
        self.blobs.get(hash).is_some_and(|(_, jobs, _)| jobs.contains(job))
    }

    /// The job is forgotten: its blobs may go once somebody prunes.
    pub(crate) fn forgot(&mut self, job: JobId) {
        self.forgotten.insert(job);
    }

    /// Lets go of the blobs of forgotten jobs, and of whatever nobody keeps any more.
    pub(crate) fn prune(&mut self) {
        for job in std::mem::take(&mut self.forgotten) {
            self.end_job(&job, &[]);
        }
        self.blobs.retain(|_, (_, jobs, imported)| *imported || !jobs.is_empty());
    }

    pub(crate) fn note_holders(&mut self, job: JobId, blobs: &[Hash], add: &[NodeId], remove: &[NodeId]) {
        for hash in blobs {
            let holders = self.notes.entry((job, *hash)).or_default();
            holders.extend(add);
            holders.retain(|node| !remove.contains(node));
        }
    }

    /// What is here, kept for a job, and noted to be on one of these nodes too, or among `also`, by jobs and all holders noted.
    pub(crate) fn shared_with(
        &self,
        nodes: &BTreeSet<NodeId>,
        also: &[(JobId, Vec<Hash>)],
    ) -> BTreeMap<(JobId, BTreeSet<NodeId>), Vec<BlobRef>> {
        let noted = self.notes.iter().filter(|(_, holders)| !holders.is_disjoint(nodes)).map(|(key, _)| *key);
        let also = also.iter().flat_map(|(job, hashes)| hashes.iter().map(|hash| (*job, *hash)));
        let wanted: BTreeSet<(JobId, Hash)> = noted.chain(also).collect();
        let mut shared: BTreeMap<(JobId, BTreeSet<NodeId>), Vec<BlobRef>> = BTreeMap::new();
        for (job, hash) in wanted {
            if let Some((blob, ..)) = self.blobs.get(&hash).filter(|(_, jobs, _)| jobs.contains(&job)) {
                let holders = self.notes.get(&(job, hash)).cloned().unwrap_or_default();
                shared.entry((job, holders)).or_default().push(*blob);
            }
        }
        shared
    }

    /// Everything that is here.
    pub(crate) fn blobs(&self) -> BTreeSet<Hash> {
        self.blobs.keys().copied().collect()
    }

    /// A job lets go of its blobs, but for `keep`.
    pub(crate) fn end_job(&mut self, job: &JobId, keep: &[Hash]) {
        self.notes.retain(|(of, hash), _| of != job || keep.contains(hash));
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
                    debug_assert_eq!(id, envelope.fact_id(), "facts are written by their ids");
                    self.facts.entry(envelope.entry).or_default().insert(id, envelope);
                }
                Record::Sealed { job, entry, .. } => {
                    self.sealed.insert(job, entry);
                }
                Record::Forget { job, owner, mark } => {
                    let kept = self.facts.remove(&job).unwrap_or_default();
                    self.receipts.insert(job, kept.into_iter().filter(|(_, e)| stays(e)).collect());
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
                Record::Seen { node, seen } => {
                    self.seen.insert(node, seen);
                }
                Record::Disk { disk, incarnation } => {
                    self.id = disk;
                    self.starts = self.starts.max(incarnation);
                }
            }
        }
    }
}

fn is_submit(envelope: &Envelope) -> bool {
    cbor::from_slice::<Statement>(&envelope.payload).is_ok_and(|s| matches!(s.fact, Fact::Submit(_)))
}

/// Whether a fact stays when its job is forgotten.
fn stays(envelope: &Envelope) -> bool {
    let statement = cbor::from_slice::<Statement>(&envelope.payload);
    statement.is_ok_and(|s| matches!(s.fact, Fact::Submit(_) | Fact::Seal { .. } | Fact::Receipt(_)))
}
