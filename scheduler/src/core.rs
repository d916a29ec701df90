//! The core of a node: inputs in, effects out. The daemon drives it with tokio, libp2p and a disk; the simulator with an
//! event queue.
//!
//! Call [`Core::handle`] for each input, [`Core::flush`] after a batch of them, then drain [`Core::poll_effect`], and hand
//! in [`Input::Tick`] no later than [`Core::poll_timeout`].

use sinew_crdt_state::cbor;
use sinew_crdt_state::certificate::{Credential, Roles};
use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::fact::{Fact, Statement};
use sinew_crdt_state::ids::{FactId, JobId, MeshId, NodeId};
use sinew_crdt_state::ledger::{Ledger, OwnerMark, SealedEntry};
use sinew_crdt_state::spec::{BlobRef, JobSpec, Phase, Resources, SignedSpec, Source};

use crate::brain::{Bid, Brain};
use crate::brains::Brains;
use crate::config::{CARD_EVERY, CoreConfig, FORGOTTEN_FOR, load_news_every};
use crate::ctx::{After, Ctx, Setup};
use crate::io::{CancelError, Effect, FetchId, Input, NewJob, Note, Record, Request, RequestId, Response, SubmitError};
use crate::members;
use crate::membership::{Membership, MembershipConfig, MembershipEffect, NodeState};
use crate::peers::Peers;
use crate::restore::Restore;
use crate::steward::Stewards;
use crate::stored;
use crate::sync::{self, Sync};
use crate::time::{Now, Span, Time};
use crate::wire::{Advert, Card, Lease, LoadDigest, Message, Topic};
use crate::worker::{Worker, missing_blobs};

/// Nodes in the brain set of a job: one that decides and two that could. More would cost latency for little.
const BRAIN_SET: usize = 3;
/// Sealed entries are looked through for old ones this often.
const COMPACT_EVERY: Span = Span::ms(5_000);

/// A node without jobs begins to number them at its clock's milliseconds times two to this: above whatever it gave out on a
/// disk that was lost, unless it took more than 65,536 jobs in each millisecond.
const SERIALS_PER_MS_BITS: u32 = 16;

/// What was on disk when the daemon started.
#[derive(Debug, Default)]
pub struct Stored {
    /// Facts of entries that are not sealed.
    pub facts: Vec<Envelope>,
    /// Sealed entries.
    pub sealed: Vec<(JobId, SealedEntry)>,
    /// Certificates of members.
    pub members: Vec<Credential>,
    /// Which jobs of whom are forgotten.
    pub owners: Vec<(NodeId, OwnerMark)>,
    /// Blobs that this node holds.
    pub blobs: Vec<BlobRef>,
}

/// A copy that a brain asked this node to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CopyFor {
    brain: NodeId,
    job: JobId,
    phase: Phase,
    task: u32,
}

impl CopyFor {
    const fn answer(self, ok: bool) -> Message {
        Message::Copied { job: self.job, phase: self.phase, task: self.task, ok }
    }
}

/// A node's decisions.
#[derive(Debug)]
pub struct Core {
    ctx: Ctx,
    worker: Worker,
    brains: Brains,
    stewards: Stewards,
    sync: Sync,
    restore: Restore,
    membership: Membership,
    copies: std::collections::BTreeMap<FetchId, (CopyFor, Vec<BlobRef>)>,
    /// When the changed load is told.
    load_at: Option<Time>,
    packets: u32,
    /// When the load was told last, and what was.
    load_told: (Time, Option<LoadDigest>),
    compact_at: Time,
    serial_last: u64,
    /// Sealed in this batch: dropped from memory once their last facts are signed and on their way.
    dehydrate: Vec<JobId>,
}

impl Core {
    /// A node with this identity, continuing from what its disk held.
    #[must_use]
    pub fn new(setup: Setup, stored: Stored, now: Now) -> Self {
        let total = Resources { cpu_milli: setup.config.cpu_milli, memory_bytes: setup.config.memory_bytes };
        let own = setup.identity.id();
        let membership = Membership::new(own, setup.incarnation, setup.seed, MembershipConfig::default());
        let roles = setup.roles;
        let mut core = Self {
            ctx: Ctx::new(setup, now),
            worker: Worker::new(total),
            brains: Brains::default(),
            stewards: Stewards::default(),
            sync: Sync::default(),
            restore: Restore::default(),
            membership,
            copies: std::collections::BTreeMap::new(),
            load_at: None,
            packets: 0,
            load_told: (now.at, None),
            compact_at: now.at + COMPACT_EVERY,
            serial_last: 0,
            dehydrate: Vec::new(),
        };
        core.ctx.peers.up(own, roles, now.at);
        let card = core.card();
        core.ctx.peers.set_card(own, card);
        core.restore(stored);
        core.refresh_own_load();
        core
    }

    fn restore(&mut self, stored: Stored) {
        let ctx = &mut self.ctx;
        for credential in &stored.members {
            members::keep(ctx, credential, false);
        }
        for (owner, mark) in stored.owners {
            ctx.ledger.restore_owner(owner, mark);
        }
        for (job, entry) in stored.sealed {
            ctx.ledger.restore_sealed(job, entry);
        }
        self.worker.blobs.extend(stored.blobs.iter().map(|b| b.hash));
        let resealed = stored::take_in(ctx, &stored.facts);
        self.serial_last = ctx.ledger.last_serial(ctx.own);
        if self.serial_last == 0 {
            // Its disk may have been lost, and with it the memory of lower numbers: none of them may come twice.
            self.serial_last = ctx.now.unix_ms << SERIALS_PER_MS_BITS;
        }
        let jobs: Vec<JobId> = ctx.ledger.iter_live().map(|(job, _)| *job).collect();
        for job in jobs {
            self.stewards.watch(&self.ctx, job);
        }
        for job in resealed {
            self.on_sealed(job);
        }
        self.restore.resume(&mut self.ctx, &self.worker.blobs);
    }

    fn card(&self) -> Card {
        let config = &self.ctx.config;
        Card {
            incarnation: self.ctx.incarnation,
            disk: self.ctx.disk,
            cpu_milli: config.cpu_milli,
            memory_bytes: config.memory_bytes,
            labels: config.labels.clone(),
            about: config.about.clone(),
        }
    }

    /// Handles one input at `now`. Call [`Self::flush`] after a batch.
    pub fn handle(&mut self, now: Now, input: Input) {
        self.ctx.now = now;
        match input {
            Input::Member(credential) => members::keep(&mut self.ctx, &credential, true),
            Input::PeerUp { node, roles } => self.on_peer_up(node, roles),
            Input::PeerDown { node } => self.on_peer_down(node),
            Input::MeshSize(nodes) => self.ctx.peers.set_mesh_size(nodes),
            Input::Message { from, message } => {
                self.ctx.peers.heard(from, now.at);
                self.on_message(from, message);
            }
            Input::Gossip { from, topic, payload } => self.on_gossip(from, topic, &payload),
            Input::Persisted(ticket) => {
                for after in self.ctx.waiting.remove(&ticket).unwrap_or_default() {
                    self.on_persisted(after);
                }
            }
            Input::StorageFailing(reason) => {
                self.ctx.storage_failing = Some(reason);
                self.refresh_own_load();
                self.brains.touch_all();
            }
            Input::StorageRecovered => {
                self.ctx.storage_failing = None;
                self.refresh_own_load();
            }
            Input::Task { run, result } => self.worker.on_task(&mut self.ctx, run, result),
            Input::Fetched { id, ok } => self.on_fetched(id, ok),
            Input::Loaded { to, facts } if to == self.ctx.own => {
                self.restore.on_loaded(&mut self.ctx, &self.worker.blobs, &facts);
            }
            Input::Loaded { to, facts } => sync::send_facts(&mut self.ctx, to, facts),
            Input::Request { id, request } => match request {
                Request::Submit(new) => self.submit(id, *new),
                Request::Cancel { job, reason } => self.cancel(id, job, reason),
            },
            Input::Rtt { node, rtt_us } => self.ctx.peers.set_rtt(node, rtt_us),
            Input::Tick => {}
        }
        self.settle();
    }

    /// Runs due timers, lets every part that changed have its say, and turns the outcome into effects.
    pub fn flush(&mut self, now: Now) {
        self.ctx.now = now;
        self.tick();
        self.worker.flush(&mut self.ctx);
        self.settle();
        // Steps of brains may answer each other through this node's own worker; that ends, because every round of it
        // either starts a task or empties a queue.
        while self.brains.has_work() {
            self.brains.step(&mut self.ctx);
            self.settle();
            self.worker.flush(&mut self.ctx);
            self.settle();
        }
        if self.worker.take_load_changed() {
            self.refresh_own_load();
        }
        self.poll_membership();
        members::ask(&mut self.ctx);
        self.ctx.flush();
        for job in std::mem::take(&mut self.dehydrate) {
            self.ctx.ledger.dehydrate(&job);
        }
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.ctx.poll_effect()
    }

    /// When [`Input::Tick`] (or a flush) is due at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Time {
        let always = self.sync.timeout(&self.ctx).min(self.compact_at);
        [
            self.worker.timeout(),
            self.brains.timeout(),
            self.stewards.timeout(&self.brains),
            self.membership.poll_timeout(),
            self.load_at,
            self.restore.timeout(),
        ]
        .into_iter()
        .flatten()
        .fold(always, Time::min)
    }

    fn tick(&mut self) {
        let now = self.ctx.now.at;
        self.worker.tick(&mut self.ctx);
        self.stewards.tick(&mut self.ctx, &mut self.brains);
        self.brains.tick(&self.ctx);
        self.sync.tick(&mut self.ctx, &self.worker);
        self.restore.tick(&mut self.ctx, &self.worker.blobs);
        self.membership.tick(now);
        if self.load_at.is_some_and(|at| now >= at) {
            self.load_at = None;
            self.tell_load();
        }
        if now >= self.compact_at {
            self.compact_at = now + COMPACT_EVERY;
            self.compact();
        }
        self.settle();
    }

    /// Handles messages to this node itself, and facts that are news to its brains and stewards, until none are left.
    fn settle(&mut self) {
        loop {
            if let Some(message) = self.ctx.local.pop_front() {
                let own = self.ctx.own;
                self.on_message(own, message);
            } else if let Some((job, id, author, statement)) = self.ctx.fresh.pop_front() {
                self.on_fact(job, id, author, &statement);
            } else {
                return;
            }
        }
    }

    fn on_peer_up(&mut self, node: NodeId, roles: Roles) {
        self.ctx.peers.up(node, roles, self.ctx.now.at);
        self.membership.peer_up(self.ctx.now.at, node);
        let card = self.card();
        self.ctx.send(node, Message::Card(card));
        let load = self.worker.load(&self.ctx);
        self.ctx.send(node, Message::Load(load));
        sync::start(&mut self.ctx, node);
        self.restore.on_peer_up(&self.ctx);
        self.brains.on_peer_change(node);
    }

    fn on_peer_down(&mut self, node: NodeId) {
        self.ctx.peers.down(node);
        self.membership.peer_down(self.ctx.now.at, node);
        self.brains.on_peer_change(node);
    }

    fn on_persisted(&mut self, after: After) {
        match after {
            After::Send { to, message } => self.ctx.send(to, message),
            After::CaughtUp { job } => self.stewards.on_caught_up(&mut self.ctx, job),
            After::Own { job, ids } => {
                let own = self.ctx.own;
                if let Some(brain) = self.brains.touch(&job) {
                    brain.on_stored(&mut self.ctx, own, &ids);
                }
                self.stewards.on_own_stored(&mut self.ctx, &mut self.brains, job, &ids);
            }
        }
    }

    fn on_fact(&mut self, job: JobId, id: FactId, author: NodeId, statement: &Statement) {
        if let Some(brain) = self.brains.touch(&job) {
            brain.on_fact(&mut self.ctx, id, author, statement);
        }
        match &statement.fact {
            Fact::Submit(_) => self.stewards.watch(&self.ctx, job),
            Fact::Accept { items, .. } => self.restore.on_accept(&self.ctx, &self.worker.blobs, job, items),
            Fact::Lead { term, .. } => self.stewards.on_lead(&self.ctx, job, *term),
            // A verdict that a later brain did not repeat is none.
            Fact::Finish { .. } if self.ctx.ledger.live(&job).is_some_and(|l| l.state.outcome().is_some()) => {
                self.worker.on_job_end(&mut self.ctx, job);
                self.ctx.effect(Effect::Changed(job));
            }
            Fact::Seal { .. } => self.on_sealed(job),
            _ => {}
        }
    }

    fn on_sealed(&mut self, job: JobId) {
        self.worker.on_job_end(&mut self.ctx, job);
        self.stewards.forget(&job);
        if self.ctx.ledger.sealed(&job).is_none() {
            return;
        }
        self.restore.on_sealed(&mut self.ctx, &self.worker.blobs, job);
        if let Some(live) = self.ctx.ledger.live(&job)
            && let Some(outcome) = live.state.outcome().cloned()
        {
            let last = live.state.accepted.last();
            let keep = last.into_iter().flat_map(|m| m.iter().flat_map(|(_, r)| r.outputs.iter().map(|o| o.blob.hash)));
            let keep = keep.collect();
            self.ctx.effect(Effect::EndJob { job, keep, outcome });
        }
        self.ctx.effect(Effect::Changed(job));
        self.dehydrate.push(job);
    }

    fn on_message(&mut self, from: NodeId, message: Message) {
        let ctx = &mut self.ctx;
        match message {
            Message::Facts(facts) => sync::on_facts(ctx, from, &facts),
            Message::Card(card) => self.on_card(from, card),
            Message::Load(load) => ctx.peers.set_load(from, load, ctx.now.at),
            Message::Swim(bytes) => {
                if let Err(problem) = self.membership.receive(ctx.now.at, from, &bytes) {
                    ctx.offence(from, problem.to_string());
                }
            }
            Message::Offer { submit, slots } => self.worker.on_offer(ctx, from, &submit, slots),
            Message::Bid(bid) => self.on_bid(from, &bid),
            Message::NoBid { job, load } => {
                ctx.peers.set_load(from, load, ctx.now.at);
                ctx.peers.declined(from);
                if let Some(brain) = self.brains.touch(&job) {
                    brain.on_no_bid(from);
                }
            }
            Message::Interest { job, .. } => {
                if let Some(brain) = self.brains.touch(&job) {
                    brain.on_interest(ctx);
                }
            }
            Message::Award { award, bid, assign } => self.worker.on_award(ctx, from, &award, bid, &assign),
            Message::Decline { lease } => {
                if let Some(brain) = self.brains.touch(&lease.job) {
                    brain.on_decline(ctx, from, lease.fence);
                }
            }
            Message::Assign(assign) => self.worker.on_assign(ctx, from, &assign),
            Message::Sources { lease, start, total, items } => {
                self.worker.on_sources(ctx, from, lease, start, total, items);
            }
            Message::Report { lease, facts } => match self.brains.touch(&lease.job) {
                Some(brain) => brain.on_report(ctx, from, lease, &facts),
                None => self.on_orphan_report(from, lease, &facts),
            },
            Message::Settled { job, reports } => self.worker.on_settled(job, &reports),
            Message::Stop { lease, phase, tasks } => self.worker.on_stop(ctx, from, lease, phase, &tasks),
            Message::Release { lease } => self.worker.on_release(ctx, from, lease),
            Message::Copy { job, phase, task, from: source, blobs } => {
                self.on_copy(CopyFor { brain: from, job, phase, task }, source, blobs);
            }
            Message::WantSources { lease } => {
                if let Some(brain) = self.brains.touch(&lease.job) {
                    brain.on_want_sources(ctx, from, lease.fence);
                }
            }
            Message::Copied { job, phase, task, ok } => {
                if let Some(brain) = self.brains.touch(&job) {
                    brain.on_copied(from, phase, task, ok);
                }
            }
            other => self.on_set_message(from, other),
        }
    }

    /// Messages of brain sets and of anti-entropy.
    fn on_set_message(&mut self, from: NodeId, message: Message) {
        let ctx = &mut self.ctx;
        match message {
            Message::Replicate { job, term, facts } => {
                self.stewards.on_replicate(ctx, &self.worker.blobs, from, job, term, &facts);
            }
            Message::Stored { job, ids, .. } => {
                if let Some(brain) = self.brains.touch(&job) {
                    brain.on_stored(ctx, from, &ids);
                }
            }
            Message::Deposed { job, term } => {
                if let Some(brain) = self.brains.touch(&job).filter(|b| b.term < term) {
                    brain.depose(ctx);
                    self.stewards.on_deposed(ctx, job, term);
                    sync::start(ctx, from);
                }
            }
            Message::Beat { seq, leases } => self.on_beat(from, seq, &leases),
            Message::BeatAck { seq, renewed, kept, void } => {
                self.worker.on_beat_ack(ctx, from, seq, &renewed, &kept, &void);
            }
            Message::SetBeat { seq, doubts } => self.stewards.on_set_beat(ctx, from, seq, doubts),
            Message::SetBeatAck { seq, disk, kept, moved, over, unknown } => {
                self.stewards.on_doubts(ctx, &mut self.brains, from, seq, &over, &unknown);
                self.stewards.on_set_beat_ack(ctx, &mut self.brains, from, seq, disk, &kept, &moved);
            }
            Message::Led(jobs) => Stewards::on_led(ctx, &self.brains, from, jobs),
            Message::NotLed(jobs) => self.stewards.on_not_led(ctx, from, &jobs),
            Message::VoteRequest { job, term, trial, have } => {
                self.stewards.on_vote_request(ctx, &self.brains, from, job, term, trial, &have);
            }
            Message::Willing { job, term } => self.stewards.on_willing(ctx, &mut self.brains, from, job, term),
            Message::Vote { job, term, facts, lacks, holders } => {
                self.stewards.on_vote(ctx, &mut self.brains, from, job, term, &facts, &lacks, &holders);
            }
            Message::VoteRefused { job, term, highest } => {
                self.stewards.on_vote_refused(ctx, from, job, term, highest);
            }
            Message::Recall { submit, disk, have } => Stewards::on_recall(ctx, from, &submit, disk, &have),
            Message::Recalled { job, disk, remembers, known } => {
                self.stewards.on_recalled(ctx, from, (job, disk), remembers, &known);
            }
            Message::Adopt { facts, job, award, term } => {
                sync::on_facts(ctx, from, &facts);
                self.worker.on_adopt(ctx, from, job, award, term);
            }
            Message::Holding { job, term, slots, tasks, reports } => {
                if let Some(brain) = self.brains.touch(&job) {
                    brain.on_holding(ctx, from, term, slots, &tasks, &reports);
                }
            }
            Message::Heads { heads, ask } => sync::on_heads(ctx, from, &heads, ask),
            Message::Claims(claims) => sync::on_claims(ctx, from, &claims),
            Message::Listings(listings) => sync::on_listings(ctx, from, &listings),
            Message::Want(wanted) => sync::on_want(ctx, from, &wanted),
            Message::WhoIs(nodes) => members::on_who_is(ctx, from, &nodes),
            Message::Members(credentials) => members::on_members(ctx, from, &credentials),
            _ => {}
        }
    }

    fn on_card(&mut self, from: NodeId, card: Card) {
        if self.ctx.peers.set_card(from, card) {
            self.brains.on_disk_lost(&mut self.ctx, from);
        }
    }

    fn on_bid(&mut self, from: NodeId, bid: &Envelope) {
        if bid.author != from || self.ctx.admit(from, bid).is_err() {
            return;
        }
        if let Ok(Statement { fact: Fact::Bid { slots, score, held_bytes, .. }, .. }) = cbor::from_slice(&bid.payload)
            && let Some(brain) = self.brains.touch(&bid.entry)
        {
            brain.on_bid(from, Bid { id: bid.fact_id(), slots, score, held_bytes });
        }
    }

    /// A report for a job that this node does not lead: the worker may forget it once the job is over; otherwise it is
    /// told nothing, and finds the right brain by its next beat or the adoption.
    fn on_orphan_report(&mut self, from: NodeId, lease: Lease, facts: &[Envelope]) {
        let over = self.is_over(&lease.job);
        for envelope in facts {
            let _ = self.ctx.admit(from, envelope);
        }
        if over {
            let reports = facts.iter().map(Envelope::fact_id).collect();
            self.ctx.note(Note::Stale { lease, from });
            self.ctx.send(from, Message::Settled { job: lease.job, reports });
        }
    }

    fn on_beat(&mut self, from: NodeId, seq: u64, leases: &[(Lease, u32)]) {
        let (mut renewed, mut kept, mut void) = (Vec::new(), Vec::new(), Vec::new());
        for (lease, open) in leases {
            let over = self.is_over(&lease.job);
            match self.brains.peek_mut(&lease.job) {
                Some(brain) => match brain.on_lease(&mut self.ctx, from, lease.fence, *open) {
                    Some(true) => renewed.push(*lease),
                    Some(false) => void.push(*lease),
                    None => {}
                },
                None if over => void.push(*lease),
                None if self.stewards.on_lease(&self.ctx, from, *lease) => kept.push(*lease),
                None => {}
            }
        }
        self.ctx.send(from, Message::BeatAck { seq, renewed, kept, void });
    }

    /// Whether the job has ended, as far as this node knows.
    fn is_over(&self, job: &JobId) -> bool {
        let ledger = &self.ctx.ledger;
        ledger.sealed(job).is_some() || ledger.live(job).is_some_and(|l| l.state.outcome().is_some())
    }

    fn on_copy(&mut self, copy: CopyFor, source: NodeId, blobs: Vec<BlobRef>) {
        let CopyFor { brain, job, .. } = copy;
        let known = self.ctx.ledger.live(&job).is_some_and(|l| l.state.spec.brain_set.contains(&brain));
        if !known {
            return self.ctx.send(brain, copy.answer(false));
        }
        if self.copies.values().any(|(under_way, _)| *under_way == copy) {
            return;
        }
        let missing = missing_blobs(&blobs, &self.worker.blobs);
        if missing.is_empty() {
            return self.ctx.send(brain, copy.answer(true));
        }
        let id = self.ctx.next_fetch();
        self.copies.insert(id, (copy, blobs));
        self.ctx.effect(Effect::Fetch { id, job, blobs: missing, providers: vec![source] });
    }

    fn on_fetched(&mut self, id: FetchId, ok: bool) {
        if let Some((copy, blobs)) = self.copies.remove(&id) {
            if ok {
                self.worker.blobs.extend(blobs.iter().map(|b| b.hash));
            }
            self.ctx.send(copy.brain, copy.answer(ok));
        } else if let Some(hashes) = self.restore.on_fetched(&self.ctx, id, ok) {
            self.worker.blobs.extend(hashes);
        } else {
            self.stewards.on_fetched(&mut self.ctx, id, ok);
        }
    }

    fn on_gossip(&mut self, from: NodeId, topic: Topic, payload: &[u8]) {
        let now = self.ctx.now.at;
        self.ctx.peers.heard(from, now);
        let decoded = match topic {
            Topic::Advert => cbor::from_slice(payload).map(|advert: Advert| {
                self.worker.on_advert(&mut self.ctx, from, &advert);
            }),
        };
        if decoded.is_err() {
            self.ctx.offence(from, "malformed gossip".to_owned());
        }
    }

    fn refresh_own_load(&mut self) {
        let load = self.worker.load(&self.ctx);
        let own = self.ctx.own;
        self.ctx.peers.set_load(own, load, self.ctx.now.at);
        if self.load_told.1 != Some(load) {
            let soon = load_news_every(self.ctx.peers.connections());
            self.load_at = self.load_at.or(Some(self.load_told.0 + soon));
        }
        // Whoever has awards running here plans with these numbers: tell them at once. So when an award ends: its brain would
        // otherwise take the slots for taken until the next digest, and after some time find no node with room.
        for node in self.worker.take_planners() {
            if node != own && self.ctx.peers.is_connected(node) {
                self.ctx.send(node, Message::Load(load));
            }
        }
    }

    /// Tells every connected peer what is free here.
    fn tell_load(&mut self) {
        let load = self.worker.load(&self.ctx);
        self.load_told = (self.ctx.now.at, Some(load));
        let peers: Vec<NodeId> = self.ctx.peers.connected().collect();
        for node in peers {
            self.ctx.send(node, Message::Load(load));
        }
    }

    fn poll_membership(&mut self) {
        while let Some(effect) = self.membership.poll_effect() {
            match effect {
                MembershipEffect::Send { to, bytes } => self.send_packet(to, bytes),
                MembershipEffect::Changed { node, to, .. } => {
                    if matches!(to, NodeState::Suspect | NodeState::Lost) {
                        self.ctx.peers.gave_up(node);
                    }
                    self.ctx.note(Note::Peer { node, state: to });
                }
            }
        }
    }

    /// A packet of the failure detector, and what is free here: it fits into the same frame.
    fn send_packet(&mut self, to: NodeId, bytes: Vec<u8>) {
        self.packets = self.packets.wrapping_add(1);
        if self.packets.is_multiple_of(CARD_EVERY) {
            self.ctx.send(to, Message::Card(self.card()));
        }
        let load = self.worker.load(&self.ctx);
        self.ctx.send(to, Message::Swim(bytes));
        self.ctx.send(to, Message::Load(load));
    }

    fn submit(&mut self, id: RequestId, new: NewJob) {
        match self.signed(new) {
            Ok(signed) => {
                let job = signed.id();
                let (submit, _) = self.ctx.state(job, Fact::Submit(signed));
                self.stewards.has_blobs(job);
                if let Some(brain) = Brain::submitted(&mut self.ctx, job, submit, id) {
                    self.brains.insert(job, brain);
                }
            }
            Err(error) => self.ctx.effect(Effect::Answer { id, response: Response::Submitted(Err(error)) }),
        }
    }

    fn signed(&mut self, new: NewJob) -> Result<SignedSpec, SubmitError> {
        if !self.ctx.roles.contains(Roles::SUBMIT) {
            return Err(SubmitError::Role);
        }
        if let Some(reason) = &self.ctx.storage_failing {
            return Err(SubmitError::Disk(reason.clone()));
        }
        let serial = self.serial_last + 1;
        let brain_set = self.choose_brain_set(serial);
        let alone = brain_set.len() == 1 && self.ctx.peers.connected().next().is_none();
        let (own, disk) = (self.ctx.own, self.ctx.disk);
        let spec = JobSpec {
            mesh: self.ctx.mesh,
            submitter: self.ctx.own,
            serial,
            submitted_ms: self.ctx.now.unix_ms,
            brain_disks: brain_set.iter().map(|n| if *n == own { disk } else { self.ctx.peers.disk(*n) }).collect(),
            brain_set,
            name: new.name,
            work: new.work,
            resources: new.resources,
            limits: new.limits,
            retry: new.retry,
            labels: new.labels,
            strategy: new.strategy,
            copies: if alone { 1 } else { new.copies },
        };
        let signed = SignedSpec::sign(self.ctx.identity(), &spec);
        signed.open()?;
        self.serial_last = serial;
        Ok(signed)
    }

    /// This node and two stewards, chosen by rendezvous hashing over healthy nodes whose card has come; this node alone where
    /// there are fewer than two.
    fn choose_brain_set(&self, serial: u64) -> Vec<NodeId> {
        let own = self.ctx.own;
        let healthy = |n: &NodeId| {
            let runs = self.ctx.peers.roles(*n).is_some_and(|r| r.contains(Roles::RUN));
            runs && !matches!(self.membership.state(*n), Some(NodeState::Lost | NodeState::Suspect | NodeState::Left))
        };
        // One whose card has not come would be named with a disk that it does not have: it would have to be recalled into the
        // set, by both others, and two such could never be.
        let known = |n: &NodeId| self.ctx.peers.get(*n).is_some_and(|peer| peer.card.is_some());
        let mut others: Vec<([u8; 32], NodeId)> = self
            .ctx
            .peers
            .connected()
            .filter(|n| healthy(n) && known(n))
            .map(|n| {
                let mut hasher = blake3::Hasher::new_derive_key("sinew rendezvous 1");
                hasher.update(&own.0).update(&serial.to_le_bytes()).update(&n.0);
                (*hasher.finalize().as_bytes(), n)
            })
            .collect();
        others.sort_unstable();
        let mut set = vec![own];
        if others.len() + 1 >= BRAIN_SET {
            set.extend(others.into_iter().take(BRAIN_SET - 1).map(|(_, n)| n));
        }
        set
    }

    fn cancel(&mut self, id: RequestId, job: JobId, reason: String) {
        let verdict = self.try_cancel(job, reason);
        self.ctx.effect(Effect::Answer { id, response: Response::Cancelled(verdict) });
    }

    fn try_cancel(&mut self, job: JobId, reason: String) -> Result<(), CancelError> {
        if self.ctx.ledger.sealed(&job).is_some() {
            return Err(CancelError::Ended);
        }
        let live = self.ctx.ledger.live(&job).ok_or(CancelError::Unknown(job))?;
        if live.state.outcome().is_some() {
            return Err(CancelError::Ended);
        }
        let spec = live.state.spec.clone();
        if spec.submitter != self.ctx.own && !self.ctx.roles.contains(Roles::ADMIN) {
            return Err(CancelError::Denied);
        }
        let reason = sinew_crdt_state::rules::clip(reason);
        let (_, cancel) = self.ctx.state(job, Fact::Cancel { reason });
        let submit = self.ctx.submit_of(&job);
        let own = self.ctx.own;
        for member in spec.brain_set.into_iter().filter(|n| *n != own) {
            let facts = submit.iter().cloned().chain([cancel.clone()]).collect();
            self.ctx.send(member, Message::Facts(facts));
        }
        Ok(())
    }

    /// Drops sealed entries from memory and, after their grace time, for good.
    fn compact(&mut self) {
        let ctx = &mut self.ctx;
        let at = ctx.now.at;
        ctx.forgotten.retain(|_, since| at - *since < FORGOTTEN_FOR);
        let grace = ctx.config.ledger_grace_ms;
        let now = ctx.now.unix_ms;
        let old: Vec<JobId> = ctx
            .ledger
            .iter_sealed()
            .filter(|(_, s)| s.sealed_ms.saturating_add(grace) <= now)
            .map(|(j, _)| *j)
            .collect();
        for job in old {
            if let Some((entry, mark)) = ctx.ledger.forget(&job) {
                ctx.forgotten.insert(job, ctx.now.at);
                ctx.record(Record::Forget { job, owner: entry.submitter, mark });
            }
        }
    }

    /// The ledger, for views.
    #[must_use]
    pub const fn ledger(&self) -> &Ledger {
        &self.ctx.ledger
    }

    /// The other nodes, for views.
    #[must_use]
    pub const fn peers(&self) -> &Peers {
        &self.ctx.peers
    }

    /// A node's state as the failure detector sees it.
    #[must_use]
    pub fn node_state(&self, node: NodeId) -> Option<NodeState> {
        if node == self.ctx.own { Some(NodeState::Healthy) } else { self.membership.state(node) }
    }

    /// This node.
    #[must_use]
    pub const fn own(&self) -> NodeId {
        self.ctx.own
    }

    /// The mesh.
    #[must_use]
    pub const fn mesh(&self) -> MeshId {
        self.ctx.mesh
    }

    /// What the operator set.
    #[must_use]
    pub const fn config(&self) -> &CoreConfig {
        &self.ctx.config
    }

    /// Why the disk refuses records, if it does.
    #[must_use]
    pub fn storage_problem(&self) -> Option<&str> {
        self.ctx.storage_failing.as_deref()
    }

    /// Whether this node has everything back that was on a disk it lost: its word counts in the brain sets of all open jobs
    /// that it knows, and no output is missing. What it has not heard of yet is another matter.
    #[must_use]
    pub fn has_recovered(&self) -> bool {
        let (own, disk) = (self.ctx.own, self.ctx.disk);
        let open = self.ctx.ledger.iter_live().filter(|(job, _)| self.ctx.ledger.sealed(job).is_none());
        let mut sets = open.map(|(_, live)| &live.state).filter(|state| state.spec.brain_set.contains(&own));
        self.restore.is_done(&self.ctx) && sets.all(|state| state.trusts(own, disk))
    }

    /// Tasks running here.
    #[must_use]
    pub fn running(&self) -> usize {
        self.worker.running()
    }

    /// Jobs that this node leads, with their terms.
    pub fn led(&self) -> impl Iterator<Item = (JobId, u32)> {
        self.brains.iter().map(|(job, brain)| (*job, brain.term))
    }

    /// Whether this node keeps every job of the mesh; otherwise those that concern it.
    #[must_use]
    pub fn keeps_all(&self) -> bool {
        sync::keeps_all(&self.ctx)
    }

    /// Leases that this node holds, with their slots: for invariant checks.
    pub fn leases(&self) -> impl Iterator<Item = (Lease, u32)> {
        self.worker.leases()
    }

    pub(crate) fn brain(&self, job: &JobId) -> Option<&Brain> {
        self.brains.get(job)
    }

    /// Notes that blobs are here, for locality in bids.
    pub fn holds(&mut self, blobs: impl IntoIterator<Item = BlobRef>) {
        self.worker.blobs.extend(blobs.into_iter().map(|b| b.hash));
    }
}

/// The blobs that inline or referenced inputs name, for callers that prepare a job.
#[must_use]
pub fn blobs_of(source: &Source) -> Option<BlobRef> {
    match source {
        Source::Blob(blob) => Some(*blob),
        Source::Inline(_) => None,
    }
}
