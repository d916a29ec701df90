//! Elections: standing for brain, voting, and taking office with a majority of the brain set.
//!
//! A promise not to follow lower terms is a vote fact, on disk before it is answered, so it survives a crash. Nobody promises
//! anything before a trial has shown that a majority would: a member that merely cannot hear the brain changes nothing.

use std::collections::BTreeSet;

use rand::RngExt;
use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::fact::{Fact, Fence};
use sinew_crdt_state::ids::{FactId, JobId, NodeId};
use sinew_crdt_state::planted::{Bug, planted};
use sinew_crdt_state::rules::{brain_of, next_term_of};
use sinew_crdt_state::spec::{JobSpec, PACE_MAX, PACE_MIN};
use sinew_crdt_state::state::JobState;

use super::rejoin::speaks;
use super::{Stewards, promised};
use crate::brain::{Brain, Mandate};
use crate::brains::Brains;
use crate::config::{BEAT_EVERY, CAMPAIGN_EVERY, FENCE_AFTER, LEASE, STICKY_FOR, TAKEOVER_AFTER, TAKEOVER_STAGGER};
use crate::ctx::{After, Ctx};
use crate::io::Effect;
use crate::time::{Span, Time};
use crate::wire::{Message, ShortId, short_id};

#[derive(Debug)]
pub(super) struct Campaign {
    pub(super) term: u32,
    /// Whether this only asks who would vote.
    trial: bool,
    willing: BTreeSet<NodeId>,
    voters: BTreeSet<NodeId>,
    holders: BTreeSet<(NodeId, Fence)>,
    /// Facts that this node had when it first asked for votes.
    had: BTreeSet<ShortId>,
    /// Facts that some voter has too.
    shared: BTreeSet<ShortId>,
    asked: Time,
    /// The pace that the term is to have.
    pace: u8,
    /// Whether the brain before was this node itself, so that leases may be younger than its silence tells.
    own_return: bool,
}

impl Stewards {
    /// Stands for a job whose brain is silent for too long, and asks again where votes are missing. Returns the brain when it
    /// is alive but should be asked about this job.
    pub(super) fn watch_over(&mut self, ctx: &mut Ctx, brains: &mut Brains, job: JobId) -> Option<NodeId> {
        let term = self.leader_term(ctx, job);
        let state = &ctx.ledger.live(&job)?.state;
        let (spec, pace) = (&state.spec, state.pace(term));
        let brain = brain_of(spec, term)?;
        let patience = patience(spec, ctx.own, brain, pace);
        let disowned = self.is_disowned(ctx, job, pace);
        let silent = ctx.now.at - self.brain_heard(job, brain);
        let quiet = brain != ctx.own && self.is_quiet(ctx, job);
        let watched = self.watched.get_mut(&job)?;
        if silent < patience && !disowned {
            watched.campaign = watched.campaign.take().filter(|c| !c.trial);
            if watched.campaign.is_none() {
                return quiet.then_some(brain);
            }
        }
        // With a disk that hangs there would be no vote of its own to stand with.
        if ctx.now.at < watched.not_before || ctx.storage_hung || !speaks(ctx, job) {
            return None;
        }
        let spec = spec.clone();
        match &mut watched.campaign {
            Some(campaign) if ctx.now.at - campaign.asked >= CAMPAIGN_EVERY.at(campaign.pace) => {
                campaign.asked = ctx.now.at;
                ask(ctx, job, &spec, campaign);
            }
            Some(_) => {}
            None => self.stand(ctx, job, &spec, term, brain),
        }
        self.count(ctx, brains, job);
        None
    }

    fn stand(&mut self, ctx: &mut Ctx, job: JobId, spec: &JobSpec, above: u32, brain: NodeId) {
        let Some(term) = next_term_of(spec, ctx.own, above) else { return };
        let measured = ctx.peers.pace_of_set(&spec.brain_set);
        let Some(watched) = self.watched.get_mut(&job) else { return };
        let campaign = watched.campaign.insert(Box::new(Campaign {
            term,
            trial: true,
            willing: BTreeSet::from([ctx.own]),
            voters: BTreeSet::new(),
            holders: BTreeSet::new(),
            had: BTreeSet::new(),
            shared: BTreeSet::new(),
            asked: ctx.now.at,
            pace: measured.max(watched.pace_wanted),
            own_return: brain == ctx.own,
        }));
        ask(ctx, job, spec, campaign);
    }

    /// A majority would vote: now in earnest, unless the brain was heard meanwhile. The candidate's own vote is a vote like
    /// any other: an answer that it gave the brain a moment ago lets that brain decide for a while yet.
    fn begin(&mut self, ctx: &mut Ctx, brains: &Brains, job: JobId) {
        if !self.may_follow(ctx, brains, job, ctx.own) {
            if let Some(watched) = self.watched.get_mut(&job) {
                watched.campaign = None;
            }
            return;
        }
        let Some(live) = ctx.ledger.live(&job) else { return };
        let spec = live.state.spec.clone();
        let had = live.facts.keys().map(short_id).collect();
        let highest = promised(ctx, job);
        let Some(watched) = self.watched.get_mut(&job) else { return };
        let Some(campaign) = watched.campaign.as_mut() else { return };
        if campaign.term <= highest {
            watched.campaign = None;
            return;
        }
        campaign.trial = false;
        campaign.asked = ctx.now.at;
        campaign.had = had;
        let (vote, _) = ctx.state(job, Fact::Vote { term: campaign.term, pace: campaign.pace });
        // The own vote counts once it is on disk.
        ctx.after_persist(After::Own { job, ids: vec![vote] });
        ask(ctx, job, &spec, campaign);
        self.note_promise(ctx, job);
    }

    pub(crate) fn on_willing(&mut self, ctx: &mut Ctx, brains: &mut Brains, from: NodeId, job: JobId, term: u32) {
        let campaign = self.watched.get_mut(&job).and_then(|w| w.campaign.as_mut());
        let Some(campaign) = campaign.filter(|c| c.trial && c.term == term) else { return };
        campaign.willing.insert(from);
        // The brain may have been heard, and answered, since the trial began: with that answer it may be in charge.
        if self.may_follow(ctx, brains, job, ctx.own) {
            self.count(ctx, brains, job);
        } else if let Some(watched) = self.watched.get_mut(&job) {
            watched.campaign = None;
        }
    }

    /// The own vote is on disk.
    pub(crate) fn on_own_stored(&mut self, ctx: &mut Ctx, brains: &mut Brains, job: JobId, ids: &[FactId]) {
        let campaign = self.watched.get_mut(&job).and_then(|w| w.campaign.as_mut());
        let Some(campaign) = campaign.filter(|c| !c.trial) else { return };
        let voted = ctx.ledger.live(&job).is_some_and(|live| {
            live.state.votes.get(&campaign.term).is_some_and(|v| v.contains(&ctx.own))
                && ids.iter().any(|id| live.facts.contains_key(id))
        });
        if voted {
            campaign.voters.insert(ctx.own);
            self.count(ctx, brains, job);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one message")]
    pub(crate) fn on_vote_request(
        &mut self,
        ctx: &mut Ctx,
        brains: &Brains,
        from: NodeId,
        job: JobId,
        term: u32,
        (trial, pace): (bool, u8),
        have: &[ShortId],
    ) {
        let Some(live) = ctx.ledger.live(&job) else {
            if ctx.ledger.sealed(&job).is_some() {
                ctx.effect(Effect::Load { job, to: from });
            }
            return;
        };
        let spec = &live.state.spec;
        let fair = (PACE_MIN..=PACE_MAX).contains(&pace);
        if brain_of(spec, term) != Some(from) || !spec.brain_set.contains(&ctx.own) || !fair {
            return ctx.offence(from, "asks for votes that it cannot have".to_owned());
        }
        if !speaks(ctx, job) {
            // What it promised before its disk was lost, nobody can tell it yet.
            return;
        }
        if trial && ctx.storage_hung {
            // The vote itself would never come.
            return;
        }
        let voted = live.state.votes.get(&term).is_some_and(|v| v.contains(&ctx.own));
        let highest = promised(ctx, job);
        // A vote stands for the pace too: whoever asks again must ask for the same.
        let again = voted && term == highest && live.state.pace(term) == pace;
        if !(again || term > highest && self.may_follow(ctx, brains, job, from)) {
            return ctx.send(from, Message::VoteRefused { job, term, highest });
        }
        if trial {
            return ctx.send(from, Message::Willing { job, term });
        }
        if !voted {
            ctx.state(job, Fact::Vote { term, pace });
        }
        self.promise(ctx, job, pace);
        self.send_vote(ctx, from, job, term, have);
    }

    /// Whether nothing speaks against following `candidate`: the brain so far, or silence of the brain for long enough.
    fn may_follow(&self, ctx: &Ctx, brains: &Brains, job: JobId, candidate: NodeId) -> bool {
        let Some(live) = ctx.ledger.live(&job) else { return false };
        let spec = &live.state.spec;
        let term = self.leader_term(ctx, job);
        let pace = live.state.pace(term);
        let slowest = live.state.slowest_before(term.saturating_add(1));
        // Whoever led until just now votes for no successor before the leases that it renewed last have run out: their
        // holders may not be within the successor's reach.
        let led_until = self.watched.get(&job).and_then(|w| w.led_until);
        if led_until.is_some_and(|until| ctx.now.at - until < FENCE_AFTER.at(slowest)) {
            return false;
        }
        match brain_of(spec, term) {
            Some(brain) if brain == candidate => true,
            // A brain that reaches a majority will not be voted out by itself. And one that was started just now may have renewed
            // leases until a moment before.
            Some(brain) if brain == ctx.own => {
                let renewed_none =
                    ctx.boots.began_before(ctx.now.at, FENCE_AFTER.at(pace)) || planted(Bug::VoteAtStart);
                renewed_none && (brains.get(&job).is_none() || !in_touch(ctx, &live.state, pace))
            }
            Some(brain) => {
                let silent = ctx.now.at - self.brain_heard(job, brain);
                self.is_disowned(ctx, job, pace) || silent >= STICKY_FOR.at(pace) || planted(Bug::VoteWhileHeard)
            }
            None => false,
        }
    }

    /// Whether the brain said so long ago that it does not lead the job, that whatever it renewed in a former life has run out. Until
    /// then a disowned job waits like any other.
    fn is_disowned(&self, ctx: &Ctx, job: JobId, pace: u8) -> bool {
        let since = self.watched.get(&job).and_then(|w| w.disowned);
        let wait = if planted(Bug::DisownedAtOnce) { Span(0) } else { FENCE_AFTER.at(pace) };
        since.is_some_and(|since| ctx.now.at - since >= wait)
    }

    /// A vote was given: the elected one gets time to show itself.
    fn promise(&mut self, ctx: &Ctx, job: JobId, pace: u8) {
        self.note_promise(ctx, job);
        if let Some(watched) = self.watched.get_mut(&job) {
            watched.campaign = None;
            watched.disowned = None;
            watched.since = ctx.now.at;
            watched.not_before = ctx.now.at + TAKEOVER_AFTER.at(pace);
        }
    }

    fn send_vote(&self, ctx: &mut Ctx, to: NodeId, job: JobId, term: u32, have: &[ShortId]) {
        let Some(live) = ctx.ledger.live(&job) else { return };
        let have: BTreeSet<ShortId> = have.iter().copied().collect();
        let own: BTreeSet<ShortId> = live.facts.keys().map(short_id).collect();
        let facts = live.facts.iter().filter(|(id, _)| !have.contains(&short_id(id))).map(|(_, e)| e.clone()).collect();
        let lacks = have.difference(&own).copied().collect();
        let holders = self.holders(ctx, job).collect();
        let message = Message::Vote { job, term, facts, lacks, holders, mark: 0 };
        ctx.after_persist(After::Send { to, message });
    }

    fn holders(&self, ctx: &Ctx, job: JobId) -> impl Iterator<Item = (NodeId, Fence)> {
        let now = ctx.now.at;
        let recent = self.kept.iter().filter(move |((j, ..), kept)| *j == job && now - kept.at <= LEASE.at(kept.pace));
        recent.map(|((_, node, fence), _)| (*node, *fence))
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one message")]
    pub(crate) fn on_vote(
        &mut self,
        ctx: &mut Ctx,
        brains: &mut Brains,
        from: NodeId,
        job: JobId,
        term: u32,
        facts: &[Envelope],
        lacks: &[ShortId],
        holders: &[(NodeId, Fence)],
    ) {
        let mut shared: BTreeSet<ShortId> = BTreeSet::new();
        for envelope in facts.iter().filter(|e| e.entry == job) {
            if ctx.admit(from, envelope).is_ok() {
                shared.insert(short_id(&envelope.fact_id()));
            }
        }
        let voted = ctx.ledger.live(&job).is_some_and(|l| l.state.votes.get(&term).is_some_and(|v| v.contains(&from)));
        let Some(watched) = self.watched.get_mut(&job) else { return };
        let Some(campaign) = watched.campaign.as_mut().filter(|c| c.term == term && !c.trial) else { return };
        if voted {
            let lacks: BTreeSet<ShortId> = lacks.iter().copied().collect();
            campaign.shared.extend(campaign.had.difference(&lacks).copied().chain(shared));
            campaign.voters.insert(from);
            campaign.holders.extend(holders.iter().copied());
            self.count(ctx, brains, job);
        }
    }

    pub(crate) fn on_vote_refused(&mut self, ctx: &mut Ctx, from: NodeId, job: JobId, term: u32, highest: u32) {
        let member = ctx.ledger.live(&job).is_some_and(|l| l.state.spec.brain_set.contains(&from));
        let Some(watched) = self.watched.get_mut(&job).filter(|_| member) else { return };
        if watched.campaign.as_ref().is_some_and(|c| c.term == term && highest >= term) {
            let pace = watched.campaign.as_ref().map_or(PACE_MIN, |campaign| campaign.pace);
            // Someone is ahead: stand again later, with a higher term, unless a brain shows up first.
            watched.campaign = None;
            watched.heard_term = watched.heard_term.max(highest);
            let every = CAMPAIGN_EVERY.at(pace);
            let jitter = Span(ctx.rng.random_range(0..every.0));
            watched.not_before = ctx.now.at + every + jitter;
        }
    }

    /// Goes on to the vote when a majority is willing, and takes office when a majority has voted.
    fn count(&mut self, ctx: &mut Ctx, brains: &mut Brains, job: JobId) {
        let Some(live) = ctx.ledger.live(&job) else { return };
        let majority = if planted(Bug::ElectedByOne) { 1 } else { live.state.spec.majority() };
        let Some(watched) = self.watched.get_mut(&job) else { return };
        let Some(campaign) = &watched.campaign else { return };
        if campaign.trial {
            if campaign.willing.len() >= majority {
                self.begin(ctx, brains, job);
            }
            return;
        }
        if campaign.voters.len() < majority || !campaign.voters.contains(&ctx.own) {
            return;
        }
        let Some(campaign) = watched.campaign.take() else { return };
        let alone = campaign.voters.len() == 1;
        let mandate = Mandate {
            term: campaign.term,
            voters: campaign.voters.into_iter().collect(),
            holders: campaign.holders.into_iter().chain(self.holders(ctx, job)).collect(),
            shared: if alone { campaign.had } else { campaign.shared },
            own_return: campaign.own_return,
            pace: campaign.pace,
        };
        if let Some(brain) = Brain::elected(ctx, job, mandate) {
            brains.insert(job, brain);
            // It may decide once a majority has answered its first beat.
            self.beat_at = ctx.now.at;
        }
    }
}

/// Whether a majority of the set answered a beat of this node lately.
pub(super) fn in_touch(ctx: &Ctx, state: &JobState, pace: u8) -> bool {
    let spec = &state.spec;
    let lately = |t: Time| ctx.now.at - t <= STICKY_FOR.at(pace);
    let near = |n: &NodeId| *n == ctx.own || ctx.peers.set_contact(*n, state).is_some_and(lately);
    spec.brain_set.iter().filter(|n| near(n)).count() >= spec.majority()
}

/// How long `brain` may be silent before `own` stands for it.
pub(super) fn patience(spec: &JobSpec, own: NodeId, brain: NodeId, pace: u8) -> Span {
    // The brain itself, restarted, need not wait for its own silence.
    if brain == own { BEAT_EVERY } else { (TAKEOVER_AFTER + stagger(spec, own)).at(pace) }
}

fn stagger(spec: &JobSpec, own: NodeId) -> Span {
    let rank = spec.brain_set.iter().position(|n| *n == own).unwrap_or(0).saturating_sub(1);
    Span(TAKEOVER_STAGGER.0 * rank as u64)
}

fn ask(ctx: &mut Ctx, job: JobId, spec: &JobSpec, campaign: &Campaign) {
    let have: Vec<ShortId> = campaign.had.iter().copied().collect();
    let own = ctx.own;
    for member in spec.brain_set.iter().copied().filter(|n| *n != own) {
        let (term, trial, pace) = (campaign.term, campaign.trial, campaign.pace);
        let message = Message::VoteRequest { job, term, trial, have: have.clone(), pace };
        ctx.send(member, message);
    }
}
