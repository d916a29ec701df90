//! What every part of the core shares: the clock of the input at hand, the ledger, the peers, and what is on its way out.
//!
//! Facts stated while inputs are handled are signed together at the flush, under one signature. Until then an envelope
//! carries its number in the batch instead of a signature; the flush replaces these wherever they went.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sinew_crdt_state::cbor;
use sinew_crdt_state::certificate::Roles;
use sinew_crdt_state::change::fact_id;
use sinew_crdt_state::envelope::{BATCH_LEN_MAX, Envelope, Opened, Stamp, sign_batch};
use sinew_crdt_state::fact::{Fact, Statement};
use sinew_crdt_state::identity::{Identity, Signature};
use sinew_crdt_state::ids::{DiskId, FactId, JobId, MeshId, NodeId};
use sinew_crdt_state::ledger::{Admitted, Ledger, Refusal};
use sinew_crdt_state::planted::{Bug, planted};

use crate::boots::{Boots, Start};
use crate::config::CoreConfig;
use crate::io::{Effect, Note, Record, Ticket};
use crate::members::Members;
use crate::peers::Peers;
use crate::time::{Now, Span, Time};
use crate::wire::{Class, Message};

/// Jobs in doubt at once: the disk answers in a moment.
const DOUBTED_MAX: usize = 4_096;

/// What happens once a batch of records is on disk.
#[derive(Debug, Clone)]
pub(crate) enum After {
    /// Send this.
    Send { to: NodeId, message: Message },
    /// The own copy of these facts is safe.
    Own { job: JobId, ids: Vec<FactId> },
    /// All that the other members of the brain set know of the job is on this node's new disk.
    CaughtUp { job: JobId },
    /// The disk has another number, or was started more often than it knew.
    Renumbered { disk: DiskId, incarnation: u64 },
}

/// Replicas that differ about a sealed job for so long have not only heard of its seal at different times.
const SEALS_DIFFER_FOR: Span = Span::ms(30_000);
/// Jobs of which it is remembered that two seals were told of: bounds what members can fill the memory with.
const CONTRADICTED_MAX: usize = 1_000;

#[derive(Debug)]
pub(crate) struct Ctx {
    pub(crate) now: Now,
    pub(crate) own: NodeId,
    pub(crate) roles: Roles,
    pub(crate) mesh: MeshId,
    pub(crate) config: CoreConfig,
    pub(crate) incarnation: u64,
    pub(crate) disk: DiskId,
    pub(crate) boots: Boots,
    /// Jobs that were refused because their numbers are those of forgotten ones, until the disk has said which they are.
    pub(crate) doubted: BTreeSet<JobId>,
    pub(crate) ledger: Ledger,
    pub(crate) peers: Peers,
    pub(crate) members: Members,
    pub(crate) rng: ChaCha8Rng,
    pub(crate) storage_failing: Option<String>,
    /// Whether it does not even refuse.
    pub(crate) storage_hung: bool,
    /// Whether this node is about to leave: it takes no work, leads nothing new, and stands for nothing.
    pub(crate) leaving: bool,
    /// Jobs of which two seals were told of.
    contradicted: BTreeSet<JobId>,
    /// Jobs sealed here of which a peer has something else, since when; `None` once it was asked for.
    differing: BTreeMap<JobId, Option<Time>>,
    /// Jobs forgotten a moment ago, and when: peers that have not got round to it yet are not asked for them.
    pub(crate) forgotten: BTreeMap<JobId, Time>,
    /// Jobs whose only deciding node asked this one to hold them: they concern it.
    pub(crate) witnessed: BTreeSet<JobId>,
    identity: Identity,
    /// In the order of sending.
    outbox: Vec<(NodeId, Class, Message)>,
    /// Messages to this node itself, handled before the flush.
    pub(crate) local: VecDeque<Message>,
    effects: VecDeque<Effect>,
    /// Facts of this node since the last flush, in the order of their numbers.
    unsigned: Vec<(JobId, FactId)>,
    records: Vec<Record>,
    after: Vec<After>,
    pub(crate) waiting: BTreeMap<Ticket, Vec<After>>,
    ticket_last: u64,
    fetch_last: u64,
    /// How often a single job was looked at, for counts of work.
    pub(crate) looks: u64,
    /// Facts that arrived, were new, and may matter to a brain or steward here.
    pub(crate) fresh: VecDeque<(JobId, FactId, NodeId, Statement)>,
}

/// Who and what a core is.
#[derive(Debug)]
pub struct Setup {
    /// The node's key pair.
    pub identity: Identity,
    /// The mesh.
    pub mesh: MeshId,
    /// This node's roles.
    pub roles: Roles,
    /// Changes with every start; later starts have higher numbers.
    pub incarnation: u64,
    /// This node's disk: drawn at random when the node first started on it.
    pub disk: DiskId,
    /// Drawn at random at this start; 0 where it takes no part in telling starts apart.
    pub nonce: u64,
    /// For every random choice.
    pub seed: [u8; 32],
    /// What the operator set.
    pub config: CoreConfig,
}

impl Ctx {
    pub(crate) fn new(setup: Setup, mark: u64, now: Now) -> Self {
        let own = setup.identity.id();
        let start = Start { disk: setup.disk, incarnation: setup.incarnation, nonce: setup.nonce, from: mark };
        let mut ledger = Ledger::new(setup.mesh);
        ledger.set_grace(setup.config.ledger_grace_ms);
        Self {
            now,
            own,
            roles: setup.roles,
            mesh: setup.mesh,
            incarnation: setup.incarnation,
            disk: setup.disk,
            boots: Boots::new(start, now.at),
            doubted: BTreeSet::new(),
            ledger,
            peers: Peers::new(own),
            members: Members::default(),
            rng: ChaCha8Rng::from_seed(setup.seed),
            storage_failing: None,
            storage_hung: false,
            leaving: false,
            contradicted: BTreeSet::new(),
            differing: BTreeMap::new(),
            forgotten: BTreeMap::new(),
            witnessed: BTreeSet::new(),
            config: setup.config,
            identity: setup.identity,
            outbox: Vec::new(),
            local: VecDeque::new(),
            effects: VecDeque::new(),
            unsigned: Vec::new(),
            records: Vec::new(),
            after: Vec::new(),
            waiting: BTreeMap::new(),
            ticket_last: 0,
            fetch_last: 0,
            looks: 0,
            fresh: VecDeque::new(),
        }
    }

    pub(crate) const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// States a fact as this node: merged here at once, signed at the flush.
    pub(crate) fn state(&mut self, job: JobId, fact: Fact) -> (FactId, Envelope) {
        let statement = Statement { at_ms: self.now.unix_ms, fact };
        let payload = cbor::to_vec(&statement);
        let id = fact_id(self.own, &payload);
        let number = u32::try_from(self.unsigned.len()).unwrap_or(u32::MAX);
        let envelope = Envelope {
            entry: job,
            author: self.own,
            payload,
            sides: 0,
            path: Vec::new(),
            signature: placeholder(number),
        };
        let opened = Opened { id, statement };
        // Own facts follow the rules by construction; a refusal means the entry is gone or full, and then nothing is lost.
        if let Ok(Admitted::New(_)) = self.ledger.admit_own(&envelope, &opened, self.now.unix_ms) {
            self.records.push(Record::Fact { id, envelope: envelope.clone() });
            self.fresh.push_back((job, id, self.own, opened.statement));
        }
        self.unsigned.push((job, id));
        (id, envelope)
    }

    /// The fact that brought a job's spec.
    pub(crate) fn submit_of(&self, job: &JobId) -> Option<Envelope> {
        let live = self.ledger.live(job)?;
        live.facts.get(&live.submit).cloned()
    }

    /// Merges a fact from a peer; offences are reported against `from`.
    pub(crate) fn admit(&mut self, from: NodeId, envelope: &Envelope) -> Result<Admitted, Refusal> {
        self.take_in(from, envelope, false)
    }

    /// As [`Self::admit`], for an old seal when `from` has nothing more of the entry than it sent.
    pub(crate) fn admit_remains(&mut self, from: NodeId, envelope: &Envelope) -> Result<Admitted, Refusal> {
        self.take_in(from, envelope, true)
    }

    fn take_in(&mut self, from: NodeId, envelope: &Envelope, remains: bool) -> Result<Admitted, Refusal> {
        if envelope.author == self.own && from == self.own {
            return Ok(Admitted::Known(envelope.fact_id()));
        }
        let (own, own_roles, peers) = (self.own, self.roles, &self.peers);
        let roles = |node| if node == own { Some(own_roles) } else { peers.roles(node) };
        let taken = self.ledger.take_in(envelope, roles, self.now.unix_ms, remains);
        let refusal = match taken {
            Ok((admitted, news)) => {
                if let Admitted::Contradicts(other) = admitted {
                    self.two_seals(envelope, other);
                }
                if let (Admitted::New(id), Some(statement)) = (&admitted, news) {
                    self.records.push(Record::Fact { id: *id, envelope: envelope.clone() });
                    self.fresh.push_back((envelope.entry, *id, envelope.author, statement));
                }
                return Ok(admitted);
            }
            Err(refusal) => refusal,
        };
        match &refusal {
            Refusal::UnknownAuthor(author) => self.members.missing(from, *author),
            Refusal::Compacted if self.doubted.len() < DOUBTED_MAX => _ = self.doubted.insert(envelope.entry),
            offence if offence.is_offence() => self.offence(from, offence.to_string()),
            _ => {}
        }
        Err(refusal)
    }

    /// Whether a peer has had something else of a job that is sealed here for so long that it is worth a look. Once for each job.
    pub(crate) fn differs_for_long(&mut self, job: JobId) -> bool {
        if self.differing.len() >= CONTRADICTED_MAX {
            self.differing.clear();
        }
        let now = self.now.at;
        let since = self.differing.entry(job).or_insert(Some(now));
        let is_due = since.is_some_and(|since| now - since >= SEALS_DIFFER_FOR);
        if is_due {
            *since = None;
        }
        is_due
    }

    /// Two seals of a job say different things: told once for each job.
    fn two_seals(&mut self, envelope: &Envelope, other: FactId) {
        let (job, author) = (envelope.entry, envelope.author);
        let Some(known) = self.ledger.sealed(&job).map(|sealed| sealed.seal) else { return };
        if self.contradicted.len() < CONTRADICTED_MAX && self.contradicted.insert(job) {
            self.note(Note::TwoSeals { job, known, other, author });
        }
    }

    pub(crate) fn offence(&mut self, peer: NodeId, what: String) {
        self.peers.count_offence(peer);
        self.effects.push_back(Effect::Offence { peer, what });
    }

    /// Something was asked of `node` and not answered: after a while it is dialled anew.
    pub(crate) fn reach(&mut self, node: NodeId, silent_for: Span) {
        if self.peers.out_of_reach(node, silent_for, self.now.at) {
            self.effect(Effect::Reach(node));
        }
    }

    pub(crate) fn note(&mut self, note: Note) {
        self.effects.push_back(Effect::Note(note));
    }

    pub(crate) fn effect(&mut self, effect: Effect) {
        self.effects.push_back(effect);
    }

    pub(crate) fn record(&mut self, record: Record) {
        self.records.push(record);
    }

    /// Sends at the flush.
    pub(crate) fn send(&mut self, to: NodeId, message: Message) {
        if to == self.own {
            self.local.push_back(message);
        } else {
            self.outbox.push((to, message.class(), message));
        }
    }

    /// Does something once everything recorded so far, and in this batch, is on disk.
    pub(crate) fn after_persist(&mut self, after: After) {
        match after {
            After::Send { to, message } if planted(Bug::SendBeforePersist) => self.send(to, message),
            after => self.after.push(after),
        }
    }

    pub(crate) fn next_fetch(&mut self) -> crate::io::FetchId {
        self.fetch_last += 1;
        crate::io::FetchId(self.fetch_last)
    }

    /// Signs, groups and queues everything that was collected since the last flush.
    pub(crate) fn flush(&mut self) {
        self.sign();
        if !self.records.is_empty() || !self.after.is_empty() {
            self.records.extend(self.boots.due(self.now.at));
            self.ticket_last += 1;
            let ticket = Ticket(self.ticket_last);
            let urgent = !self.after.is_empty();
            self.waiting.insert(ticket, std::mem::take(&mut self.after));
            self.effects.push_back(Effect::Persist { ticket, records: std::mem::take(&mut self.records), urgent });
        }
        self.hand_out();
    }

    /// Puts what goes to one node on one stream together.
    fn hand_out(&mut self) {
        let mut outbox = std::mem::take(&mut self.outbox);
        outbox.sort_by_key(|(to, class, _)| (*to, *class));
        let mut rest = outbox.into_iter();
        while let Some((to, class, first)) = rest.next() {
            let more = rest.as_slice().iter().take_while(|(t, c, _)| (*t, *c) == (to, class)).count();
            let mut messages = Vec::with_capacity(1 + more);
            messages.push(first);
            messages.extend(rest.by_ref().take(more).map(|(.., message)| message));
            self.effects.push_back(Effect::Send { to, class, messages });
        }
    }

    fn sign(&mut self) {
        if self.unsigned.is_empty() {
            return;
        }
        let unsigned = std::mem::take(&mut self.unsigned);
        let batches = unsigned.chunks(BATCH_LEN_MAX);
        let stamps: Vec<Stamp> = batches.flat_map(|batch| sign_batch(&self.identity, self.mesh, batch)).collect();
        let patch = |envelope: &mut Envelope| {
            if let Some(stamp) = number_of(envelope).and_then(|n| stamps.get(n)) {
                envelope.stamp(stamp);
            }
        };
        for ((job, id), stamp) in unsigned.iter().zip(&stamps) {
            self.ledger.set_signed(job, id, stamp);
        }
        for record in &mut self.records {
            if let Record::Fact { envelope, .. } = record {
                patch(envelope);
            }
        }
        let gated = self.after.iter_mut().filter_map(|a| match a {
            After::Send { message, .. } => Some(message),
            After::Own { .. } | After::CaughtUp { .. } | After::Renumbered { .. } => None,
        });
        for message in self.outbox.iter_mut().map(|(_, _, message)| message).chain(gated) {
            message.for_each_envelope(patch);
        }
    }

    pub(crate) fn poll_effect(&mut self) -> Option<Effect> {
        let next = self.effects.pop_front();
        if next.is_none() {
            // Not kept for the next call, like the outbox: where thousands of cores take turns, memory that another one has just
            // given back is still in a cache, and this core's own would not be.
            self.effects = VecDeque::new();
        }
        next
    }
}

/// A signature's place: zeros but for the batch number, which no real signature can be mistaken for.
fn placeholder(number: u32) -> Signature {
    let mut bytes = [0; 64];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    Signature(bytes)
}

fn number_of(envelope: &Envelope) -> Option<usize> {
    let (number, rest) = envelope.signature.0.split_first_chunk::<4>()?;
    rest.iter().all(|b| *b == 0).then(|| u32::from_le_bytes(*number) as usize)
}
