//! The steward's side: storing for brains, noticing their silence, and electing the next (step 7 of the protocol).
//!
//! A promise not to follow lower terms is a vote fact, on disk before it is answered, so it survives a crash.

use std::collections::{BTreeMap, BTreeSet};

use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::fact::{Fact, Fence};
use sinew_crdt_state::ids::{FactId, JobId, NodeId};
use sinew_crdt_state::ledger::Admitted;
use sinew_crdt_state::rules::{brain_of, next_term_of};
use sinew_crdt_state::spec::JobSpec;

use crate::brain::Brain;
use crate::brains::Brains;
use crate::config::{BEAT_EVERY, CAMPAIGN_EVERY, LEASE, STICKY_FOR, TAKEOVER_AFTER, TAKEOVER_STAGGER};
use crate::ctx::{After, Ctx};
use crate::io::{Effect, FetchId};
use crate::time::Time;
use crate::wire::{Lease, Message, ShortId, short_id};
use crate::worker::missing_blobs;

/// A job that this node could lead.
#[derive(Debug)]
struct Watched {
    /// Since when this node has reason to expect beats: it learned of the job or of the term.
    since: Time,
    /// Leases renewed in the brain's silence.
    holders: BTreeMap<(NodeId, Fence), Time>,
    campaign: Option<Campaign>,
    /// No campaign before this, after a refusal.
    not_before: Time,
}

#[derive(Debug)]
struct Campaign {
    term: u32,
    voters: BTreeSet<NodeId>,
    holders: BTreeSet<(NodeId, Fence)>,
    asked: Time,
}

/// What is known of a brain.
#[derive(Debug, Clone, Copy)]
struct Heard {
    at: Time,
    incarnation: u64,
}

/// Acknowledgements that wait for input blobs.
#[derive(Debug)]
struct AwaitingBlobs {
    job: JobId,
    to: NodeId,
    term: u32,
    ids: Vec<FactId>,
}

#[derive(Debug, Default)]
pub(crate) struct Stewards {
    watched: BTreeMap<JobId, Watched>,
    heard: BTreeMap<NodeId, Heard>,
    awaiting: BTreeMap<FetchId, AwaitingBlobs>,
    blobs_ready: BTreeSet<JobId>,
    beat_at: Time,
    beat_seq: u64,
    beats: std::collections::VecDeque<(u64, Time)>,
    check_at: Time,
}

/// Set beats whose answers are still awaited.
const BEATS_KEPT: usize = 16;

impl Stewards {
    /// Starts to watch a job of whose brain set this node is.
    pub(crate) fn watch(&mut self, ctx: &Ctx, job: JobId) {
        let Some(live) = ctx.ledger.live(&job) else { return };
        let state = &live.state;
        if !state.spec.brain_set.contains(&ctx.own) || state.seal.is_some() {
            return;
        }
        let since = ctx.now.at;
        self.watched.entry(job).or_insert_with(|| Watched {
            since,
            holders: BTreeMap::new(),
            campaign: None,
            not_before: Time::default(),
        });
    }

    pub(crate) fn forget(&mut self, job: &JobId) {
        self.watched.remove(job);
        self.blobs_ready.remove(job);
    }

    /// A new term or brain: expect beats from now on.
    pub(crate) fn on_lead(&mut self, ctx: &Ctx, job: JobId) {
        if let Some(watched) = self.watched.get_mut(&job) {
            watched.since = ctx.now.at;
            watched.campaign = None;
            watched.holders.clear();
        }
    }

    /// The input blobs of a job that was submitted here are here.
    pub(crate) fn has_blobs(&mut self, job: JobId) {
        self.blobs_ready.insert(job);
    }

    pub(crate) fn on_replicate(
        &mut self,
        ctx: &mut Ctx,
        held: &BTreeSet<sinew_crdt_state::ids::Hash>,
        from: NodeId,
        job: JobId,
        term: u32,
        facts: &[Envelope],
    ) {
        let mut ids = Vec::new();
        let mut left: Vec<&Envelope> = facts.iter().collect();
        // The spec may come in the middle: what it makes sense of is tried once more after it.
        for _ in 0..2 {
            left.retain(|envelope| match ctx.admit(from, envelope) {
                Ok(Admitted::New(id) | Admitted::Known(id) | Admitted::Late(id)) => {
                    ids.push(id);
                    false
                }
                Err(_) => true,
            });
        }
        let Some(live) = ctx.ledger.live(&job) else {
            if ctx.ledger.sealed(&job).is_some() {
                ctx.after_persist(After::Send { to: from, message: Message::Stored { job, term, ids } });
            }
            return;
        };
        let spec = live.state.spec.clone();
        if brain_of(&spec, term) != Some(from) || !spec.brain_set.contains(&ctx.own) {
            return ctx.offence(from, "replicates a job that it does not lead".to_owned());
        }
        let highest = promised(ctx, job);
        if term < highest {
            return ctx.send(from, Message::Deposed { job, term: highest });
        }
        self.watch(ctx, job);
        self.note_heard(ctx, from);
        let missing = missing_blobs(&spec.input_blobs(), held);
        if missing.is_empty() || self.blobs_ready.contains(&job) {
            ctx.after_persist(After::Send { to: from, message: Message::Stored { job, term, ids } });
        } else {
            let fetching = self.awaiting.values().any(|a| a.job == job);
            let id = ctx.next_fetch();
            self.awaiting.insert(id, AwaitingBlobs { job, to: from, term, ids });
            if fetching {
                return;
            }
            ctx.effect(Effect::Fetch { id, job, blobs: missing, providers: vec![from, spec.submitter] });
        }
    }

    /// Input blobs arrived, or did not. Returns whether the fetch was a steward's.
    pub(crate) fn on_fetched(&mut self, ctx: &mut Ctx, id: FetchId, ok: bool) -> bool {
        let Some(first) = self.awaiting.remove(&id) else { return false };
        let same: Vec<FetchId> = self.awaiting.iter().filter(|(_, a)| a.job == first.job).map(|(i, _)| *i).collect();
        let all = std::iter::once(first).chain(same.iter().filter_map(|i| self.awaiting.remove(i)).collect::<Vec<_>>());
        for waiting in all {
            // On failure nothing is acknowledged; the brain sends again and we try again.
            if ok {
                self.blobs_ready.insert(waiting.job);
                let message = Message::Stored { job: waiting.job, term: waiting.term, ids: waiting.ids };
                ctx.after_persist(After::Send { to: waiting.to, message });
            }
        }
        true
    }

    pub(crate) fn on_set_beat(&mut self, ctx: &mut Ctx, from: NodeId, seq: u64, incarnation: u64) {
        let heard = self.heard.entry(from).or_insert(Heard { at: ctx.now.at, incarnation });
        heard.at = ctx.now.at;
        heard.incarnation = incarnation;
        ctx.send(from, Message::SetBeatAck { seq });
    }

    pub(crate) fn on_set_beat_ack(&self, ctx: &mut Ctx, from: NodeId, seq: u64) {
        if let Some((_, sent)) = self.beats.iter().find(|(s, _)| *s == seq) {
            ctx.peers.touch_contact(from, *sent);
        }
    }

    fn note_heard(&mut self, ctx: &Ctx, from: NodeId) {
        if let Some(heard) = self.heard.get_mut(&from) {
            heard.at = ctx.now.at;
        }
    }

    /// The last sign of life of the job's brain that counts for this job.
    fn brain_heard(&self, job: JobId, brain: NodeId) -> Time {
        let since = self.watched.get(&job).map_or(Time::default(), |w| w.since);
        self.heard.get(&brain).map_or(since, |h| h.at.max(since))
    }

    /// A worker asks this steward to renew a lease. `Some` when it may: the brain is silent, and no other is promised.
    pub(crate) fn on_lease(&mut self, ctx: &Ctx, from: NodeId, lease: Lease) -> bool {
        let Some(live) = ctx.ledger.live(&lease.job) else { return false };
        let fits = lease.fence.term >= promised(ctx, lease.job) && live.state.outcome().is_none();
        let Some(watched) = self.watched.get_mut(&lease.job) else { return false };
        if fits {
            watched.holders.insert((from, lease.fence), ctx.now.at);
        }
        fits
    }

    pub(crate) fn tick(&mut self, ctx: &mut Ctx, brains: &mut Brains) {
        if ctx.now.at >= self.beat_at {
            self.beat_at = ctx.now.at + BEAT_EVERY;
            self.beat(ctx, brains);
        }
        if ctx.now.at >= self.check_at {
            self.check_at = ctx.now.at + BEAT_EVERY;
            self.check(ctx, brains);
        }
    }

    fn beat(&mut self, ctx: &mut Ctx, brains: &Brains) {
        let mut to: BTreeSet<NodeId> = BTreeSet::new();
        for (_, brain) in brains.iter() {
            to.extend(brain.members());
        }
        to.remove(&ctx.own);
        if to.is_empty() {
            return;
        }
        self.beat_seq += 1;
        self.beats.push_back((self.beat_seq, ctx.now.at));
        if self.beats.len() > BEATS_KEPT {
            self.beats.pop_front();
        }
        for node in to {
            ctx.send(node, Message::SetBeat { seq: self.beat_seq, incarnation: ctx.incarnation });
        }
    }

    /// Stands for every job whose brain is silent for too long; asks again where votes are missing.
    fn check(&mut self, ctx: &mut Ctx, brains: &mut Brains) {
        let jobs: Vec<JobId> = self.watched.keys().copied().collect();
        for job in jobs {
            if brains.get(&job).is_some() {
                continue;
            }
            let Some(live) = ctx.ledger.live(&job) else {
                self.forget(&job);
                continue;
            };
            let state = &live.state;
            if state.seal.is_some() {
                self.forget(&job);
                continue;
            }
            let Some(brain) = brain_of(&state.spec, state.term) else { continue };
            let silent = ctx.now.at - self.brain_heard(job, brain);
            // The brain itself, restarted, need not wait for its own silence.
            let patience = if brain == ctx.own { BEAT_EVERY } else { TAKEOVER_AFTER + stagger(&state.spec, ctx.own) };
            let Some(watched) = self.watched.get_mut(&job) else { continue };
            if silent < patience || ctx.now.at < watched.not_before {
                continue;
            }
            let spec = state.spec.clone();
            match &mut watched.campaign {
                Some(campaign) if ctx.now.at - campaign.asked >= CAMPAIGN_EVERY => {
                    campaign.asked = ctx.now.at;
                    let term = campaign.term;
                    ask_votes(ctx, job, &spec, term);
                }
                Some(_) => {}
                None => self.stand(ctx, job, &spec),
            }
            self.count(ctx, brains, job);
        }
    }

    fn stand(&mut self, ctx: &mut Ctx, job: JobId, spec: &JobSpec) {
        let Some(term) = next_term_of(spec, ctx.own, promised(ctx, job)) else { return };
        let Some(watched) = self.watched.get_mut(&job) else { return };
        watched.campaign =
            Some(Campaign { term, voters: BTreeSet::new(), holders: BTreeSet::new(), asked: ctx.now.at });
        let (vote, _) = ctx.state(job, Fact::Vote { term });
        // The own vote counts once it is on disk.
        ctx.after_persist(After::Own { job, ids: vec![vote] });
        ask_votes(ctx, job, spec, term);
    }

    /// The own vote is on disk.
    pub(crate) fn on_own_stored(&mut self, ctx: &mut Ctx, brains: &mut Brains, job: JobId, ids: &[FactId]) {
        let Some(campaign) = self.watched.get_mut(&job).and_then(|w| w.campaign.as_mut()) else { return };
        let voted = ctx.ledger.live(&job).is_some_and(|live| {
            live.state.votes.get(&campaign.term).is_some_and(|v| v.contains(&ctx.own))
                && ids.iter().any(|id| live.facts.contains_key(id))
        });
        if voted {
            campaign.voters.insert(ctx.own);
            self.count(ctx, brains, job);
        }
    }

    pub(crate) fn on_vote_request(&mut self, ctx: &mut Ctx, from: NodeId, job: JobId, term: u32, have: &[ShortId]) {
        let Some(live) = ctx.ledger.live(&job) else { return };
        let spec = live.state.spec.clone();
        let current = live.state.term;
        if brain_of(&spec, term) != Some(from) || !spec.brain_set.contains(&ctx.own) {
            return ctx.offence(from, "asks for votes that it cannot have".to_owned());
        }
        let highest = promised(ctx, job);
        let mine = live.state.votes.get(&term).is_some_and(|v| v.contains(&ctx.own));
        let brain = brain_of(&spec, current);
        let alive =
            brain.is_some_and(|b| b != from && (b == ctx.own || ctx.now.at - self.brain_heard(job, b) < STICKY_FOR));
        if !mine
            && (term <= highest
                || (alive && brain != Some(ctx.own))
                || (brain == Some(ctx.own) && self.leading(ctx, job)))
        {
            return ctx.send(from, Message::VoteRefused { job, term, highest });
        }
        if !mine {
            ctx.state(job, Fact::Vote { term });
        }
        let Some(watched) = self.watched.get_mut(&job) else { return };
        watched.campaign = None;
        watched.not_before = ctx.now.at + TAKEOVER_AFTER;
        let now = ctx.now.at;
        let holders = watched.holders.iter().filter(|(_, t)| now - **t <= LEASE).map(|(h, _)| *h).collect();
        let facts = ctx.ledger.live(&job).map(|live| {
            let lacks = live.facts.iter().filter(|(id, _)| !have.contains(&short_id(id)));
            lacks.map(|(_, e)| e.clone()).collect()
        });
        let message = Message::Vote { job, term, facts: facts.unwrap_or_default(), holders };
        ctx.after_persist(After::Send { to: from, message });
    }

    /// Whether this node leads the job and is in touch with a majority: then it will not be voted out.
    fn leading(&self, ctx: &Ctx, job: JobId) -> bool {
        let Some(live) = ctx.ledger.live(&job) else { return false };
        let spec = &live.state.spec;
        let near = spec
            .brain_set
            .iter()
            .filter(|n| **n == ctx.own || ctx.peers.set_contact(**n).is_some_and(|t| ctx.now.at - t <= STICKY_FOR))
            .count();
        near >= spec.majority()
    }

    pub(crate) fn on_vote(
        &mut self,
        ctx: &mut Ctx,
        brains: &mut Brains,
        from: NodeId,
        job: JobId,
        term: u32,
        facts: &[Envelope],
        holders: &[(NodeId, Fence)],
    ) {
        for envelope in facts.iter().filter(|e| e.entry == job) {
            let _ = ctx.admit(from, envelope);
        }
        let voted = ctx.ledger.live(&job).is_some_and(|l| l.state.votes.get(&term).is_some_and(|v| v.contains(&from)));
        let Some(watched) = self.watched.get_mut(&job) else { return };
        let Some(campaign) = watched.campaign.as_mut().filter(|c| c.term == term) else { return };
        if voted {
            campaign.voters.insert(from);
            campaign.holders.extend(holders.iter().copied());
            self.count(ctx, brains, job);
        }
    }

    pub(crate) fn on_vote_refused(&mut self, ctx: &Ctx, job: JobId, term: u32, highest: u32) {
        use rand::RngExt;
        let Some(watched) = self.watched.get_mut(&job) else { return };
        if watched.campaign.as_ref().is_some_and(|c| c.term == term && highest >= term) {
            // Someone is ahead: stand again later, with a higher term, unless a brain shows up first.
            watched.campaign = None;
        }
        let mut rng = ctx.rng.clone();
        watched.not_before = ctx.now.at + CAMPAIGN_EVERY + crate::time::Span(rng.random_range(0..CAMPAIGN_EVERY.0));
    }

    /// Takes office when a majority has voted.
    fn count(&mut self, ctx: &mut Ctx, brains: &mut Brains, job: JobId) {
        let Some(live) = ctx.ledger.live(&job) else { return };
        let majority = live.state.spec.majority();
        let Some(watched) = self.watched.get_mut(&job) else { return };
        let won = watched.campaign.as_ref().is_some_and(|c| c.voters.len() >= majority && c.voters.contains(&ctx.own));
        if !won {
            return;
        }
        let Some(campaign) = watched.campaign.take() else { return };
        let now = ctx.now.at;
        let own = watched.holders.iter().filter(|(_, t)| now - **t <= LEASE).map(|(h, _)| *h);
        let holders: BTreeSet<(NodeId, Fence)> = campaign.holders.iter().copied().chain(own).collect();
        let voters = campaign.voters.iter().copied().collect();
        if let Some(brain) = Brain::elected(ctx, job, campaign.term, voters, &holders) {
            brains.insert(job, brain);
        }
    }

    pub(crate) fn timeout(&self, brains: &Brains) -> Option<Time> {
        let beat = brains.iter().next().map(|_| self.beat_at);
        let check = (!self.watched.is_empty()).then_some(self.check_at);
        beat.into_iter().chain(check).min()
    }
}

/// The highest term that this node saw or promised.
pub(crate) fn promised(ctx: &Ctx, job: JobId) -> u32 {
    let Some(live) = ctx.ledger.live(&job) else { return 0 };
    let voted = live.state.votes.iter().rev().find(|(_, v)| v.contains(&ctx.own)).map_or(0, |(t, _)| *t);
    voted.max(live.state.term)
}

fn stagger(spec: &JobSpec, own: NodeId) -> crate::time::Span {
    let rank = spec.brain_set.iter().position(|n| *n == own).unwrap_or(0).saturating_sub(1);
    crate::time::Span(TAKEOVER_STAGGER.0 * rank as u64)
}

fn ask_votes(ctx: &mut Ctx, job: JobId, spec: &JobSpec, term: u32) {
    let have: Vec<ShortId> = ctx.ledger.live(&job).map(|l| l.facts.keys().map(short_id).collect()).unwrap_or_default();
    let own = ctx.own;
    for member in spec.brain_set.iter().copied().filter(|n| *n != own) {
        ctx.send(member, Message::VoteRequest { job, term, have: have.clone() });
    }
}

impl std::ops::Add for crate::time::Span {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}
