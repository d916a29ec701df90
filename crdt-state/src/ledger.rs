//! The ledger: every job's facts, admitted after their checks, folded, and indexed for anti-entropy.
//!
//! It holds live entries whole and sealed ones as a digest; the bytes of both are the daemon's to store. It never decides
//! anything and never forgets an entry by itself: the scheduler tells it when to ([`Ledger::forget`]).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::certificate::Roles;
use crate::derivation::Derivation;
use crate::envelope::{Envelope, EnvelopeError, Opened, Stamp, VerifiedRoots};
use crate::fact::{FACT_LEN_MAX, Fact, Outcome, Statement};
use crate::facts::Facts;
use crate::ids::{FactId, JobId, MeshId, NodeId};
use crate::planted::{Bug, planted};
use crate::reconcile::{Digest, Index};
use crate::rules::{self, RuleError};
use crate::spec::SpecError;
use crate::state::JobState;
use crate::tally;
use crate::terms::Shares;

/// Most facts in one entry. A round of a day with 200 ms progress from dozens of nodes stays far below; a flood does not.
pub const FACTS_MAX: usize = 200_000;

/// Jobs with the number of a forgotten one that are taken in all the same. An honest submitter makes none; bounds what another
/// can make a node remember.
const TWICE_MAX: usize = 10_000;

/// Why a fact was not admitted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The envelope is bad: whoever made it is hostile or broken.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// The spec is bad.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The spec is for another mesh, or its hash is not the entry's id.
    #[error("the spec belongs to another entry or mesh")]
    Misplaced,
    /// The author may not state this.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// The author's membership is not known here (yet).
    #[error("{0} is not a known member")]
    UnknownAuthor(NodeId),
    /// The job's spec has not arrived; ask for the entry.
    #[error("the job's spec is not known yet")]
    UnknownJob,
    /// The job was sealed and forgotten.
    #[error("the job was sealed and compacted")]
    Compacted,
    /// It seals a completed job of which accepted results are missing here; ask for the entry.
    #[error("the job is sealed, but not all of its accepted results are known yet")]
    Incomplete,
    /// The entry is full.
    #[error("the job's entry has {FACTS_MAX} facts already")]
    EntryFull,
}

impl Refusal {
    /// Whether the peer that sent it did wrong, as opposed to knowing more or less than we do.
    #[must_use]
    pub const fn is_offence(&self) -> bool {
        match self {
            // Whoever passes a fact on may have seen another certificate of its author than we did.
            Self::Rule(RuleError::Role { .. }) => false,
            Self::Envelope(_) | Self::Spec(_) | Self::Misplaced | Self::Rule(_) | Self::EntryFull => true,
            Self::UnknownAuthor(_) | Self::UnknownJob | Self::Compacted | Self::Incomplete => false,
        }
    }
}

/// What admitting a fact did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admitted {
    /// It is new.
    New(FactId),
    /// It was known.
    Known(FactId),
    /// The entry is sealed; the fact changes nothing.
    Late(FactId),
    /// The entry is sealed, and the fact is another seal, by a member, that says otherwise. It changes nothing, but one of the two
    /// is wrong.
    Contradicts(FactId),
}

impl Admitted {
    /// Which fact it is about.
    #[must_use]
    pub const fn id(&self) -> FactId {
        let (Self::New(id) | Self::Known(id) | Self::Late(id) | Self::Contradicts(id)) = self;
        *id
    }
}

/// A job whose facts are in memory.
#[derive(Debug, Clone)]
pub struct LiveEntry {
    /// What the facts add up to.
    pub state: JobState,
    /// The facts.
    pub facts: Facts,
    /// The fact that brought the spec.
    pub submit: FactId,
    sum: Digest,
}

/// A sealed job, of which only this stays in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedEntry {
    /// Whose job it was.
    pub submitter: NodeId,
    /// Its number among the submitter's.
    pub serial: u64,
    /// The seal.
    pub seal: FactId,
    /// When this node learned of the seal, unix ms.
    pub sealed_ms: u64,
    /// Whether outputs that the results say are here are here no more, as after the loss of a disk: to be fetched again.
    pub lacks_outputs: bool,
    /// A digest of how the seal says that the job ended, 0 for completed.
    #[serde(default)]
    pub says: u64,
}

/// Which of a submitter's jobs are forgotten, as runs of serial numbers: first to last. Keeps late facts from resurrecting
/// them at a few bytes per gap: numbers that were never used, or whose jobs still run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OwnerMark {
    runs: BTreeMap<u64, u64>,
}

impl OwnerMark {
    /// Whether the job of this number is forgotten.
    #[must_use]
    pub fn covers(&self, serial: u64) -> bool {
        self.runs.range(..=serial).next_back().is_some_and(|(_, last)| serial <= *last)
    }

    /// Marks one number.
    pub fn add(&mut self, serial: u64) {
        if self.covers(serial) {
            return;
        }
        let before = self.runs.range(..serial).next_back().filter(|(_, last)| last.checked_add(1) == Some(serial));
        let first = before.map_or(serial, |(first, _)| *first);
        let last = serial.checked_add(1).and_then(|next| self.runs.remove(&next)).unwrap_or(serial);
        self.runs.insert(first, last);
    }

    /// The highest number marked, 0 when there is none.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.runs.last_key_value().map_or(0, |(_, last)| *last)
    }
}

/// All that a node knows about jobs.
#[derive(Debug)]
pub struct Ledger {
    mesh: MeshId,
    // Boxed: a tree keeps room for neighbours that may come.
    live: BTreeMap<JobId, Box<LiveEntry>>,
    sealed: BTreeMap<JobId, SealedEntry>,
    index: Index,
    owners: BTreeMap<NodeId, OwnerMark>,
    /// Jobs that have the number of a forgotten one and are others all the same.
    twice: BTreeSet<JobId>,
    roots: VerifiedRoots,
    shares: Shares,
    grace_ms: u64,
}

impl Ledger {
    /// An empty ledger of `mesh`.
    #[must_use]
    pub fn new(mesh: MeshId) -> Self {
        Self {
            mesh,
            live: BTreeMap::new(),
            sealed: BTreeMap::new(),
            index: Index::default(),
            owners: BTreeMap::new(),
            twice: BTreeSet::new(),
            roots: VerifiedRoots::default(),
            shares: Shares::default(),
            grace_ms: u64::MAX,
        }
    }

    /// Tells how long sealed entries are kept whole in this mesh; without it, for ever.
    pub const fn set_grace(&mut self, grace_ms: u64) {
        self.grace_ms = grace_ms;
    }

    /// Verifies an envelope from anywhere and merges its fact. `roles` tells a member's roles.
    ///
    /// # Errors
    /// [`Refusal`]; nothing has changed then.
    pub fn admit(
        &mut self,
        envelope: &Envelope,
        roles: impl Fn(NodeId) -> Option<Roles>,
        now_ms: u64,
    ) -> Result<Admitted, Refusal> {
        self.take_in(envelope, roles, now_ms, false).map(|(admitted, _)| admitted)
    }

    /// As [`Self::admit`] or, with `remains`, [`Self::admit_remains`], and gives what a new fact says.
    ///
    /// # Errors
    /// [`Refusal`]; nothing has changed then.
    pub fn take_in(
        &mut self,
        envelope: &Envelope,
        roles: impl Fn(NodeId) -> Option<Roles>,
        now_ms: u64,
        remains: bool,
    ) -> Result<(Admitted, Option<Statement>), Refusal> {
        let is_sealed = self.sealed.contains_key(&envelope.entry);
        if !is_sealed {
            envelope.check_len()?;
        }
        let id = envelope.fact_id();
        // What is known already, or comes too late, needs no signature check.
        if is_sealed {
            if self.contradicts(envelope) {
                envelope.check_len()?;
                envelope.open_as(id, self.mesh, &mut self.roots)?;
                roles(envelope.author).ok_or(Refusal::UnknownAuthor(envelope.author))?;
                return Ok((Admitted::Contradicts(id), None));
            }
            return Ok((Admitted::Late(id), None));
        }
        if self.live.get(&envelope.entry).is_some_and(|live| live.facts.contains_key(&id)) {
            return Ok((Admitted::Known(id), None));
        }
        let opened = envelope.open_as(id, self.mesh, &mut self.roots)?;
        let old = || opened.statement.at_ms.saturating_add(self.grace_ms) <= now_ms;
        if !(remains && old()) {
            self.check_complete(envelope.entry, &opened.statement)?;
        }
        let admitted = self.merge(envelope, &opened, roles, now_ms, false)?;
        let news = matches!(admitted, Admitted::New(_)).then_some(opened.statement);
        Ok((admitted, news))
    }

    /// As [`Self::admit`], for what a peer sent that was asked for the whole entry and had no more: takes a seal without all
    /// that it seals once its grace time is over, as then nobody has the rest any more. The time alone would not do: this
    /// node's date may be years ahead of the others'.
    ///
    /// # Errors
    /// [`Refusal`]; nothing has changed then.
    pub fn admit_remains(
        &mut self,
        envelope: &Envelope,
        roles: impl Fn(NodeId) -> Option<Roles>,
        now_ms: u64,
    ) -> Result<Admitted, Refusal> {
        self.take_in(envelope, roles, now_ms, true).map(|(admitted, _)| admitted)
    }

    /// After a seal nothing more is taken in, so a completed job's waits until all that it seals is here: otherwise this
    /// node would never learn where the missing outputs are.
    fn check_complete(&self, entry: JobId, statement: &Statement) -> Result<(), Refusal> {
        let Fact::Seal { term, outcome: Outcome::Completed, anew, .. } = &statement.fact else { return Ok(()) };
        let whole = self.live.get(&entry).is_none_or(|live| live.state.is_whole(*term, *anew));
        if whole || planted(Bug::SealUnseen) { Ok(()) } else { Err(Refusal::Incomplete) }
    }

    /// Merges an envelope from this node's own disk or hand: no signature check, and no look at the owner's mark. What the disk
    /// holds of a job that is not forgotten is of a job that is not, whatever number it shares with one that is.
    ///
    /// # Errors
    /// [`Refusal`], as for [`Self::admit`].
    pub fn admit_own(&mut self, envelope: &Envelope, opened: &Opened, now_ms: u64) -> Result<Admitted, Refusal> {
        self.check_complete(envelope.entry, &opened.statement)?;
        self.merge(envelope, opened, |_| Some(Roles::ALL), now_ms, !planted(Bug::TwiceForgotten))
    }

    /// Signs an own fact that was merged before.
    pub fn set_signed(&mut self, entry: &JobId, id: &FactId, stamp: &Stamp) {
        if let Some(held) = self.live.get_mut(entry).and_then(|live| live.facts.get_mut(id)) {
            held.stamp(stamp);
        }
    }

    /// Whether it is a seal that says otherwise than the one known here.
    fn contradicts(&self, envelope: &Envelope) -> bool {
        let Some(sealed) = self.sealed.get(&envelope.entry) else { return false };
        if envelope.payload.len() > FACT_LEN_MAX {
            return false;
        }
        match crate::cbor::from_slice::<Statement>(&envelope.payload).map(|statement| statement.fact) {
            Ok(Fact::Seal { outcome, .. }) => says(&outcome) != sealed.says,
            _ => false,
        }
    }

    fn merge(
        &mut self,
        envelope: &Envelope,
        opened: &Opened,
        roles: impl Fn(NodeId) -> Option<Roles>,
        now_ms: u64,
        own: bool,
    ) -> Result<Admitted, Refusal> {
        let entry = envelope.entry;
        if self.sealed.contains_key(&entry) {
            return Ok(Admitted::Late(opened.id));
        }
        if let Some(live) = self.live.get(&entry) {
            if live.facts.contains_key(&opened.id) {
                return Ok(Admitted::Known(opened.id));
            }
            if live.facts.len() >= FACTS_MAX {
                return Err(Refusal::EntryFull);
            }
            let author_roles = roles(envelope.author).ok_or(Refusal::UnknownAuthor(envelope.author))?;
            rules::check(&live.state.spec, envelope.author, author_roles, &opened.statement.fact)?;
            if let Fact::Submit(signed) = &opened.statement.fact
                && signed.id() != entry
            {
                return Err(Refusal::Misplaced);
            }
        } else {
            let state = self.open_submit(envelope, &opened.statement, &roles, own)?;
            let live = LiveEntry { state, facts: Facts::default(), submit: opened.id, sum: 0 };
            self.live.insert(entry, Box::new(live));
        }
        self.insert(envelope, opened, now_ms);
        Ok(Admitted::New(opened.id))
    }

    fn open_submit(
        &mut self,
        envelope: &Envelope,
        statement: &Statement,
        roles: impl Fn(NodeId) -> Option<Roles>,
        own: bool,
    ) -> Result<JobState, Refusal> {
        let Fact::Submit(signed) = &statement.fact else { return Err(Refusal::UnknownJob) };
        if signed.id() != envelope.entry {
            return Err(Refusal::Misplaced);
        }
        // The submitter's signature on the envelope covers the job's id, and so every byte of this: a second check of the same
        // author's word would tell nothing. That the author is the submitter is one of the rules.
        let mut spec = signed.decode()?;
        if spec.mesh != self.mesh {
            return Err(Refusal::Misplaced);
        }
        let author_roles = roles(envelope.author).ok_or(Refusal::UnknownAuthor(envelope.author))?;
        rules::check(&spec, envelope.author, author_roles, &statement.fact)?;
        let covered = self.owners.get(&spec.submitter).is_some_and(|mark| mark.covers(spec.serial));
        if covered && !own && !self.twice.contains(&envelope.entry) && !planted(Bug::ResurrectForgotten) {
            return Err(Refusal::Compacted);
        }
        self.shares.share(&mut spec);
        Ok(JobState::new(spec))
    }

    fn insert(&mut self, envelope: &Envelope, opened: &Opened, now_ms: u64) {
        let entry = envelope.entry;
        let Some(live) = self.live.get_mut(&entry) else { return };
        tally::merged();
        let rebase = live.state.apply(opened.id, envelope.author, &opened.statement);
        live.facts.insert(opened.id, envelope.clone());
        if rebase {
            let all: Vec<_> = live.statements().collect();
            live.state.rebase(all.iter().map(|(id, _, statement)| (*id, statement)));
        }
        live.sum = live.sum.wrapping_add(short_digest(opened.id));
        let mut digest = live.sum;
        if let Some((seal, says)) = live.state.seal.as_ref().map(|seal| (seal.1, says(&seal.2))) {
            digest = sealed_digest(entry, says);
            let spec = &live.state.spec;
            let (submitter, serial) = (spec.submitter, spec.serial);
            let sealed = SealedEntry { submitter, serial, seal, sealed_ms: now_ms, lacks_outputs: false, says };
            self.sealed.insert(entry, sealed);
        }
        self.index.set(entry, Some(digest));
    }

    /// Restores a sealed entry from disk.
    pub fn restore_sealed(&mut self, entry: JobId, sealed: SealedEntry) {
        self.index.set(entry, Some(sealed_digest(entry, sealed.says)));
        self.sealed.insert(entry, sealed);
    }

    /// A job that was refused as forgotten is another one than the forgotten job of its number: the disk knows nothing of it. It is
    /// taken in from now on. Returns whether there is room to remember that.
    pub fn take_twice(&mut self, entry: JobId) -> bool {
        self.twice.len() < TWICE_MAX && self.twice.insert(entry)
    }

    /// Restores an owner's mark from disk.
    pub fn restore_owner(&mut self, owner: NodeId, mark: OwnerMark) {
        self.owners.insert(owner, mark);
    }

    /// Notes whether outputs of a sealed job are missing here. Returns the entry, when there is one.
    pub fn set_lacking(&mut self, entry: &JobId, lacks_outputs: bool) -> Option<SealedEntry> {
        let sealed = self.sealed.get_mut(entry)?;
        sealed.lacks_outputs = lacks_outputs;
        Some(*sealed)
    }

    /// Drops a sealed entry's facts from memory, keeping its digest. The facts stay on disk.
    pub fn dehydrate(&mut self, entry: &JobId) -> Option<Box<LiveEntry>> {
        self.sealed.contains_key(entry).then(|| self.live.remove(entry)).flatten()
    }

    /// Forgets a sealed entry for good and marks its serial, so that late facts cannot bring it back.
    pub fn forget(&mut self, entry: &JobId) -> Option<(SealedEntry, OwnerMark)> {
        let sealed = self.sealed.remove(entry)?;
        self.live.remove(entry);
        self.twice.remove(entry);
        self.index.set(*entry, None);
        let mark = self.owners.entry(sealed.submitter).or_default();
        mark.add(sealed.serial);
        Some((sealed, mark.clone()))
    }

    /// Drops a live entry that was never acknowledged, as when the disk refused its spec.
    pub fn retract(&mut self, entry: &JobId) {
        if !self.sealed.contains_key(entry) && self.live.remove(entry).is_some() {
            self.index.set(*entry, None);
        }
    }

    /// A live entry, or a sealed one whose facts are still in memory.
    #[must_use]
    pub fn live(&self, entry: &JobId) -> Option<&LiveEntry> {
        self.live.get(entry).map(Box::as_ref)
    }

    /// A sealed entry.
    #[must_use]
    pub fn sealed(&self, entry: &JobId) -> Option<&SealedEntry> {
        self.sealed.get(entry)
    }

    /// Whether there are live entries.
    #[must_use]
    pub fn has_live(&self) -> bool {
        !self.live.is_empty()
    }

    /// How many live entries there are.
    #[must_use]
    pub fn live_count(&self) -> usize {
        self.live.len()
    }

    /// All live entries.
    pub fn iter_live(&self) -> impl Iterator<Item = (&JobId, &LiveEntry)> {
        self.live.iter().map(|(job, live)| (job, &**live))
    }

    /// All sealed entries.
    pub fn iter_sealed(&self) -> impl Iterator<Item = (&JobId, &SealedEntry)> {
        self.sealed.iter()
    }

    /// The index for anti-entropy.
    #[must_use]
    pub const fn index(&self) -> &Index {
        &self.index
    }

    /// The highest serial of `owner` that is live, sealed or forgotten here.
    #[must_use]
    pub fn last_serial(&self, owner: NodeId) -> u64 {
        let live = self.live.values().filter(|e| e.state.spec.submitter == owner).map(|e| e.state.spec.serial);
        let sealed = self.sealed.values().filter(|e| e.submitter == owner).map(|e| e.serial);
        let mark = self.owners.get(&owner);
        live.chain(sealed).chain(mark.map(OwnerMark::last)).max().unwrap_or(0)
    }
}

impl LiveEntry {
    /// The facts in the order of their authors' clocks, for timelines and listings.
    pub fn statements(&self) -> impl Iterator<Item = (FactId, NodeId, Statement)> {
        self.facts.iter().filter_map(|(id, envelope)| {
            crate::cbor::from_slice(&envelope.payload).ok().map(|statement| (*id, envelope.author, statement))
        })
    }

    /// The digest that anti-entropy compares.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.sum
    }
}

fn short_digest(id: FactId) -> Digest {
    let mut low = [0; 16];
    low.copy_from_slice(&id.0[..16]);
    u128::from_le_bytes(low)
}

/// A sealed entry is known by how its seal says that the job ended; what else a replica has of it no longer matters, not even which
/// seal. Two brains may both have sealed it in good faith, with other receipts, and replicas that hold one seal each must not look
/// different for ever. Two seals that say different things are another matter: replicas that hold them do look different.
fn sealed_digest(entry: JobId, says: u64) -> Digest {
    static SEALED: Derivation = Derivation::new("sinew sealed entry 1");
    let mut hasher = SEALED.hasher();
    hasher.update(&entry.0);
    if says != 0 {
        hasher.update(&says.to_le_bytes());
    }
    short_digest(FactId(*hasher.finalize().as_bytes()))
}

/// What a seal says, for [`SealedEntry::says`].
#[must_use]
pub fn says(outcome: &Outcome) -> u64 {
    static SAYS: Derivation = Derivation::new("sinew seal says 1");
    if matches!(outcome, Outcome::Completed) {
        return 0;
    }
    let hash = SAYS.hasher().update(&crate::cbor::to_vec(outcome)).finalize();
    let first = hash.as_bytes().first_chunk().expect("a hash of 32 bytes has 8");
    u64::from_le_bytes(*first).max(1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Completed is what versions before this one take every sealed entry for.
    #[test]
    fn sealed_entries_differ_by_what_their_seals_say() {
        use crate::error_code::ErrorCode;
        use crate::fact::Failure;
        let failed = |message: &str| Outcome::Failed {
            phase: 0,
            task: 0,
            node: None,
            failure: Failure {
                code: ErrorCode::Exit,
                exit: Some(1),
                message: message.to_owned(),
                stderr_tail: String::new(),
                retryable: false,
            },
        };
        let outcomes = [Outcome::Completed, Outcome::Cancelled, failed("one"), failed("other")];
        let digests: BTreeSet<Digest> = outcomes.iter().map(|o| sealed_digest(JobId([7; 32]), says(o))).collect();
        assert_eq!(digests.len(), outcomes.len());
        assert_eq!(says(&Outcome::Completed), 0);
        assert_eq!(says(&failed("one")), says(&failed("one")));
    }

    proptest! {
        /// Against a plain set, in as many runs as there are gaps.
        #[test]
        fn marks_are_sets_of_numbers(numbers in prop::collection::vec(0u64..40, 0..60)) {
            let mut mark = OwnerMark::default();
            let model: BTreeSet<u64> = numbers.iter().copied().collect();
            numbers.iter().for_each(|n| mark.add(*n));
            for n in 0..42 {
                prop_assert_eq!(mark.covers(n), model.contains(&n));
            }
            prop_assert_eq!(mark.last(), model.last().copied().unwrap_or(0));
            let runs = model.iter().filter(|n| **n == 0 || !model.contains(&(**n - 1))).count();
            prop_assert_eq!(mark.runs.len(), runs);
        }
    }
}
