//! The core of a node: inputs in, effects out. The daemon drives it with tokio, libp2p and a disk; the simulator with an
//! event queue.
//!
//! Call [`Core::handle`] for each input, [`Core::flush`] after a batch of them, then drain [`Core::poll_effect`], and hand
//! in [`Input::Tick`] no later than [`Core::poll_timeout`].

use sinew_crdt_state::certificate::{Credential, Roles};
use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::fact::{Fact, Statement};
use sinew_crdt_state::ids::{FactId, JobId, MeshId, NodeId};
use sinew_crdt_state::ledger::{Ledger, OwnerMark, SealedEntry};
use sinew_crdt_state::planted::{Bug, planted};
use sinew_crdt_state::program::Runners;
use sinew_crdt_state::spec::{BlobRef, Phase, Resources, Source};

use crate::brain::Brain;
use crate::brains::Brains;
use crate::config::{CARD_EVERY, CoreConfig, FORGOTTEN_FOR, PACE, PACE_JOBS, load_news_every};
use crate::ctx::{After, Ctx, Setup};
use crate::custody::Custody;
use crate::io::{Effect, FetchId, Input, Note, Record, Request, RequestId};
use crate::members;
use crate::membership::{Membership, MembershipConfig, MembershipEffect, NodeState};
use crate::pace::Pace;
use crate::peers::Peers;
use crate::restore::Restore;
use crate::serials;
use crate::steward::Stewards;
use crate::stored;
use crate::sync::{self, Sync};
use crate::time::{Now, Span, Time};
use crate::wire::{Card, Lease, LoadDigest, Message, Seen};
use crate::witness::Witnesses;
use crate::worker::Worker;

mod boot;
mod clients;
mod leave;
mod messages;
mod requests;

/// Sealed entries are looked through for old ones this often.
const COMPACT_EVERY: Span = Span::ms(5_000);

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
    /// The last starts of other nodes that this one heard of.
    pub seen: Vec<(NodeId, Seen)>,
    /// How far the disk has come: see [`Input::Mark`].
    pub mark: u64,
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
    clients: clients::Clients,
    witnesses: Witnesses,
    sync: Sync,
    restore: Restore,
    custody: Custody,
    membership: Membership,
    copies: std::collections::BTreeMap<FetchId, (CopyFor, Vec<BlobRef>)>,
    /// Jobs submitted here whose inputs the driver is making sure of, with their submit facts.
    own_inputs: std::collections::BTreeMap<FetchId, (JobId, FactId)>,
    /// When the changed load is told.
    load_at: Option<Time>,
    packets: u32,
    /// When the load was told last, and what was.
    load_told: (Time, Option<LoadDigest>),
    compact_at: Time,
    nonce: u64,
    serial_last: u64,
    /// Numbers of this start are above this.
    serials_from: u64,
    /// Another daemon speaks for this node: nothing more is to leave here.
    muted: bool,
    /// Until when nothing here needs to be called but the failure detector, unless an input stirs it; unknown after one, and as long
    /// as this node leads jobs.
    rests_until: Option<Time>,
    /// Sealed in this batch: dropped from memory once their last facts are signed and on their way.
    dehydrate: Vec<JobId>,
    pace: Pace,
    /// How this node is about to leave.
    leaving: Option<leave::Leaving>,
}

impl Core {
    /// A node with this identity, continuing from what its disk held.
    #[must_use]
    pub fn new(setup: Setup, stored: Stored, now: Now) -> Self {
        let CoreConfig { cpu_milli, memory_bytes, disk_bytes, .. } = setup.config;
        let total = Resources { cpu_milli, memory_bytes, disk_bytes };
        let tasks_max = setup.config.tasks_max;
        let own = setup.identity.id();
        let membership = Membership::new(own, setup.incarnation, setup.seed, MembershipConfig::default());
        let (roles, nonce) = (setup.roles, setup.nonce);
        let mut core = Self {
            ctx: Ctx::new(setup, stored.mark, now),
            worker: Worker::new(total, tasks_max),
            brains: Brains::default(),
            stewards: Stewards::default(),
            clients: clients::Clients::new(now.at),
            witnesses: Witnesses::default(),
            sync: Sync::default(),
            restore: Restore::default(),
            custody: Custody::default(),
            membership,
            copies: std::collections::BTreeMap::new(),
            own_inputs: std::collections::BTreeMap::new(),
            load_at: None,
            packets: 0,
            load_told: (now.at, None),
            compact_at: now.at + COMPACT_EVERY,
            nonce,
            serial_last: 0,
            serials_from: 0,
            muted: false,
            rests_until: None,
            dehydrate: Vec::new(),
            pace: Pace::default(),
            leaving: None,
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
        ctx.boots.restore(stored.seen);
        for (owner, mark) in stored.owners {
            ctx.ledger.restore_owner(owner, mark);
        }
        for (job, entry) in stored.sealed {
            ctx.ledger.restore_sealed(job, entry);
        }
        self.worker.blobs.extend(stored.blobs.iter().map(|b| b.hash));
        let resealed = stored::take_in(ctx, &stored.facts);
        let last = ctx.ledger.last_serial(ctx.own);
        self.serial_last = if planted(Bug::SerialAgain) && last > 0 {
            last
        } else {
            serials::before_first(last, ctx.now.unix_ms, self.nonce)
        };
        self.serials_from = self.serial_last;
        let jobs: Vec<JobId> = ctx.ledger.iter_live().map(|(job, _)| *job).collect();
        for job in jobs {
            self.stewards.watch(&self.ctx, job);
            if let Some(live) = self.ctx.ledger.live(&job) {
                self.witnesses.watch(&self.ctx, job, &live.state);
            }
        }
        self.restore_keys();
        for job in resealed {
            self.on_sealed(job);
        }
        self.restore.resume(&mut self.ctx, &self.worker.blobs);
        self.custody.start(&self.ctx);
    }

    /// Tells everybody what can run here, if that is news.
    fn set_runners(&mut self, runners: Runners) {
        if self.ctx.config.runners == runners {
            return;
        }
        self.ctx.config.runners = runners;
        let card = self.card();
        self.ctx.peers.set_card(self.ctx.own, card);
        let peers: Vec<NodeId> = self.ctx.peers.connected().collect();
        for peer in peers {
            self.send_card(peer);
        }
    }

    fn card(&self) -> Card {
        let config = &self.ctx.config;
        Card {
            incarnation: self.ctx.incarnation,
            disk: self.ctx.disk,
            cpu_milli: config.cpu_milli,
            memory_bytes: config.memory_bytes,
            labels: config.labels.clone(),
            runners: config.runners,
            volumes: config.volumes.offered(),
            about: config.about.clone(),
            nonce: 0,
            from: 0,
            seen: None,
            copies: true,
            fetching: true,
            logs: true,
            disk_bytes: config.disk_bytes,
            output_bytes_max: (config.output_bytes_max < u64::MAX).then_some(config.output_bytes_max),
        }
    }

    /// Handles one input at `now`. Call [`Self::flush`] after a batch.
    pub fn handle(&mut self, now: Now, input: Input) {
        self.ctx.now = now;
        self.pace.count(now.at);
        if stirs(&input) {
            self.rests_until = None;
        }
        match input {
            Input::Member(credential) => members::keep(&mut self.ctx, &credential, true),
            Input::PeerUp { node, roles } => self.on_peer_up(node, roles),
            Input::PeerDown { node } => self.on_peer_down(node),
            Input::Runners(runners) => self.set_runners(runners),
            Input::MeshSize(nodes) => self.ctx.peers.set_mesh_size(nodes),
            Input::Message { from, message } => {
                self.ctx.peers.heard(from, now.at);
                self.on_mark(from, message.mark());
                self.on_message(from, message);
            }
            Input::Gossip { from, topic, payload } => self.on_gossip(from, topic, &payload),
            Input::Mark(mark) => self.ctx.boots.moved(mark),
            Input::Persisted(ticket) => {
                if self.ctx.waiting.get(&ticket).is_some_and(|after| !after.is_empty()) {
                    self.ctx.boots.promised();
                }
                for after in self.ctx.waiting.remove(&ticket).unwrap_or_default() {
                    self.on_persisted(after);
                }
            }
            Input::StorageFailing(reason) => {
                self.ctx.storage_failing = Some(reason);
                self.refresh_own_load();
                self.brains.touch_all();
            }
            Input::StorageHung(reason) => self.on_storage_hung(reason),
            Input::StorageRecovered => {
                self.ctx.storage_failing = None;
                self.ctx.storage_hung = false;
                self.refresh_own_load();
            }
            Input::Task { run, result } => self.worker.on_task(&mut self.ctx, run, result),
            Input::Blocked { run, missing, failure } => self.worker.on_blocked(&mut self.ctx, run, missing, failure),
            Input::FetchProgress { id, done, total } => self.on_fetch_progress(id, done, total),
            Input::NotRun(run) => self.worker.on_not_run(&mut self.ctx, run),
            Input::Leave(how) => self.on_leave(how),
            Input::Fetched { id, ok } => self.on_fetched(id, ok),
            Input::BlobsCame(hashes) => self.worker.blobs.extend(hashes),
            Input::BlobsLeft(left) => self.worker.blobs.clone_from(left.as_ref()),
            Input::Seen { id, blobs } => self.custody.on_seen(&mut self.ctx, id, blobs),
            Input::SharedWith { id, shared } => self.custody.on_listed(&mut self.ctx, id, shared),
            Input::Entry { job, facts } => self.custody.on_entry(&mut self.ctx, job, &facts),
            Input::Loaded { to, facts, .. } if to == self.ctx.own => {
                self.restore.on_loaded(&mut self.ctx, &self.worker.blobs, &facts);
            }
            Input::Loaded { job, to, facts } => {
                sync::on_doubt(&mut self.ctx, to, job, facts.is_empty());
                sync::send_facts(&mut self.ctx, to, facts);
            }
            Input::Request { id, request } => match request {
                Request::Submit(new) => self.submit(id, *new),
                Request::Cancel { job, reason } => self.cancel(id, job, reason),
                Request::Holders { job, blobs } => self.custody.on_request(&mut self.ctx, id, job, blobs),
            },
            Input::Rtt { node, rtt_us } => self.ctx.peers.pinged(node, Span(u64::from(rtt_us)), now.at),
            Input::Twin => self.muted = true,
            Input::Tick => {}
        }
        self.settle();
    }

    /// What this node leads goes to the other members, and what it runs to other nodes: it can write down nothing, and its programs
    /// cannot either.
    fn on_storage_hung(&mut self, reason: String) {
        self.ctx.storage_failing = Some(reason);
        if !planted(Bug::HungDiskLeads) {
            self.ctx.storage_hung = true;
            self.worker.give_up(&mut self.ctx);
            self.brains.step_down(&mut self.ctx);
        }
        self.refresh_own_load();
        self.brains.touch_all();
    }

    /// Runs due timers, lets every part that changed have its say, and turns the outcome into effects.
    pub fn flush(&mut self, now: Now) {
        self.ctx.now = now;
        if self.rests_until.is_some_and(|until| now.at < until) {
            // Most calls of a node in a large mesh: somebody looks whether it lives, or the other way round.
            self.membership.tick(now.at);
            self.poll_membership();
            return self.ctx.flush();
        }
        self.tick();
        self.worker.flush(&mut self.ctx);
        self.settle();
        if self.worker.take_load_changed() {
            self.refresh_own_load();
        }
        // Steps of brains may answer each other through this node's own worker; that ends, because every round of it
        // either starts a task or empties a queue.
        while self.brains.has_work(&self.ctx) {
            self.brains.step(&mut self.ctx);
            self.settle();
            self.worker.flush(&mut self.ctx);
            self.settle();
            // Room that a job here has just left is for the next one.
            if self.worker.take_load_changed() {
                self.refresh_own_load();
            }
        }
        self.stewards.after_steps(&self.ctx, &mut self.brains);
        self.serve_clients();
        self.step_leaving();
        self.poll_membership();
        members::ask(&mut self.ctx);
        self.ctx.flush();
        for job in std::mem::take(&mut self.dehydrate) {
            self.ctx.ledger.dehydrate(&job);
        }
        self.rests_until = self.brains.is_empty().then(|| self.rest_timeout());
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.ctx.poll_effect().filter(|_| !self.muted)
    }

    /// When [`Input::Tick`] (or a flush) is due at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Time {
        let rest = self.rests_until.unwrap_or_else(|| self.rest_timeout());
        self.membership.poll_timeout().map_or(rest, |at| rest.min(at))
    }

    /// How long after a flush the driver may collect inputs for the next one. Many small batches cost several times as much
    /// as a few large ones.
    #[must_use]
    pub fn pace(&self) -> Span {
        let collects = self.pace.is_busy() && self.ctx.ledger.live_count() > PACE_JOBS;
        if collects { PACE } else { Span::ms(0) }
    }

    /// When anything but the failure detector is due.
    fn rest_timeout(&self) -> Time {
        let always = self.sync.timeout(&self.ctx).min(self.compact_at);
        [
            self.worker.timeout(),
            self.brains.timeout(),
            self.stewards.timeout(&self.brains),
            self.load_at,
            self.restore.timeout(),
            self.custody.timeout(),
            self.clients.timeout(),
            self.witnesses.timeout(),
            self.leaving.as_ref().and_then(|leaving| leaving.timeout(self.ctx.now.at)),
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
        self.custody.tick(&mut self.ctx);
        self.tick_witnesses();
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
        self.clients.changed = self.ctx.now.at;
        self.ctx.peers.up(node, roles, self.ctx.now.at);
        self.membership.peer_up(self.ctx.now.at, node);
        self.send_card(node);
        let load = self.worker.load(&self.ctx);
        self.ctx.send(node, Message::Load(load));
        sync::start(&mut self.ctx, node);
        self.restore.on_peer_up(&self.ctx);
        self.custody.on_back(node);
        self.brains.on_peer_change(node);
    }

    fn on_peer_down(&mut self, node: NodeId) {
        self.clients.changed = self.ctx.now.at;
        self.ctx.peers.down(node);
        self.custody.on_down(&self.ctx, node);
        self.membership.peer_down(self.ctx.now.at, node);
        self.brains.on_peer_change(node);
    }

    fn on_persisted(&mut self, after: After) {
        match after {
            After::Send { to, mut message } => {
                message.set_mark(self.ctx.boots.own_mark());
                self.ctx.send(to, message);
            }
            After::Renumbered { disk, incarnation } => self.on_renumbered(disk, incarnation),
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
        self.stewards.on_fact(&self.ctx, job);
        match &statement.fact {
            Fact::Submit(_) => {
                self.note_serial(job);
                self.stewards.watch(&self.ctx, job);
                if let Some(live) = self.ctx.ledger.live(&job) {
                    self.witnesses.watch(&self.ctx, job, &live.state);
                }
            }
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
        self.worker.on_job_sealed(&mut self.ctx, job);
        self.stewards.forget(&job);
        if self.ctx.ledger.sealed(&job).is_none() {
            return;
        }
        self.restore.on_sealed(&mut self.ctx, &self.worker.blobs, job);
        self.witnesses.on_sealed(&self.ctx, job);
        if let Some(live) = self.ctx.ledger.live(&job)
            && let Some(outcome) = live.state.outcome().cloned()
        {
            let last = live.state.accepted.last();
            let keep = last.into_iter().flat_map(|m| m.iter().flat_map(|(_, r)| r.outputs.iter().map(|o| o.blob.hash)));
            let keep = keep.collect();
            self.ctx.effect(Effect::EndJob { job, keep, outcome });
        }
        Custody::on_sealed(&mut self.ctx, job);
        self.ctx.effect(Effect::Changed(job));
        self.dehydrate.push(job);
    }

    fn tick_witnesses(&mut self) {
        let mut witnesses = std::mem::take(&mut self.witnesses);
        let reach = self.reach_if(&witnesses);
        witnesses.tick(&mut self.ctx, &reach);
        self.witnesses = witnesses;
    }

    /// Who could be a witness, where there is something to witness.
    fn reach_if(&self, witnesses: &Witnesses) -> Vec<NodeId> {
        if witnesses.timeout().is_some_and(|at| self.ctx.now.at >= at) { self.reach().others } else { Vec::new() }
    }

    /// Other nodes that hold all of a job that only this node decides for.
    pub(crate) fn witnesses(&self, job: &JobId) -> usize {
        self.witnesses.count(&self.ctx, job)
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
                MembershipEffect::RoundTrip { node, trip } => self.ctx.peers.measured(node, trip, self.ctx.now.at),
                MembershipEffect::Changed { node, to, .. } => {
                    if matches!(to, NodeState::Suspect | NodeState::Lost | NodeState::Left) {
                        self.ctx.peers.gave_up(node);
                    }
                    if matches!(to, NodeState::Suspect | NodeState::Lost) {
                        self.ctx.reach(node, Span::ms(0));
                    }
                    match to {
                        NodeState::Lost | NodeState::Left => self.custody.on_gone(&self.ctx, node),
                        NodeState::Healthy => self.custody.on_back(node),
                        NodeState::Joining | NodeState::Suspect => {}
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
            self.send_card(to);
        }
        let load = self.worker.load(&self.ctx);
        self.ctx.send(to, Message::Swim(bytes));
        self.ctx.send(to, Message::Load(load));
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
                ctx.witnessed.remove(&job);
                self.witnesses.forget(&job);
                self.clients.keys.retain(|_, (of, _)| *of != job);
                ctx.record(Record::Forget { job, owner: entry.submitter, mark });
                ctx.effect(Effect::Forgot { job });
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

    /// How often any part of this node looked at a single job since it started: what grows with the number of jobs, for counts of
    /// work.
    #[must_use]
    pub const fn looks(&self) -> u64 {
        self.ctx.looks
    }

    /// How much of the inputs of a submit that waits for its answer has come to the other members of its set: bytes, and of how many.
    #[must_use]
    pub fn submit_progress(&self, request: RequestId) -> Option<(u64, u64)> {
        let asked = |brain: &&Brain| brain.waits().is_some_and(|(id, _)| id == request);
        self.brains.iter().map(|(_, brain)| brain).find(asked)?.copied()
    }

    pub(crate) fn blocked(&self, brain: &Brain) -> Option<crate::view::BlockedView> {
        brain.blocked_view(&self.ctx)
    }

    pub(crate) fn brain(&self, job: &JobId) -> Option<&Brain> {
        self.brains.get(job)
    }
}

/// Whether an input may give any part of a node that leads no job something to do, now or sooner than it said, beyond what
/// answers it. A beat that was answered only moves deadlines on.
const fn stirs(input: &Input) -> bool {
    match input {
        Input::Tick | Input::Rtt { .. } => false,
        Input::Message { message, .. } => match message {
            Message::Swim(_) | Message::Load(_) => false,
            Message::BeatAck { void, .. } => !void.is_empty(),
            Message::SetBeat { doubts, .. } => !doubts.is_empty(),
            _ => true,
        },
        _ => true,
    }
}

/// The blobs that inline or referenced inputs name, for callers that prepare a job.
#[must_use]
pub fn blobs_of(source: &Source) -> Option<BlobRef> {
    match source {
        Source::Blob(blob) => Some(*blob),
        Source::Inline(_) | Source::Http(_) | Source::Git(_) | Source::Object(_) => None,
    }
}
