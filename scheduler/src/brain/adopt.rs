//! Taking over: a newly elected brain reads the entry, says what it found decided, asks workers what they hold, keeps claims
//! that still run, and never has finished work done again (step 7 of the protocol).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use sinew_crdt_state::cbor;
use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::fact::{Fact, Fence, ITEMS_MAX, Outcome, ReportItem, Run, Statement};
use sinew_crdt_state::ids::{FactId, JobId, NodeId};
use sinew_crdt_state::planted::{Bug, planted};
use sinew_crdt_state::spec::Phase;

use super::{Brain, Seat, Stage};
use crate::config::{ADOPT_AGAIN, ADOPT_WAIT, ADOPT_WAIT_ALIVE, ADOPT_WAIT_GONE, LEASE};
use crate::ctx::Ctx;
use crate::io::{Effect, Note};
use crate::time::{Span, Time};
use crate::wire::{Lease, Message, ShortId, short_id};

/// What an election gives a brain to begin with.
#[derive(Debug)]
pub(crate) struct Mandate {
    pub(crate) term: u32,
    pub(crate) voters: Vec<NodeId>,
    /// Leases that members kept alive in the old brain's silence.
    pub(crate) holders: BTreeSet<(NodeId, Fence)>,
    /// Facts that a voter has too, so that a majority has them.
    pub(crate) shared: BTreeSet<ShortId>,
    /// Whether the brain before was this same node, which may have renewed leases an instant ago.
    pub(crate) own_return: bool,
    /// The term's pace, as the voters know it.
    pub(crate) pace: u8,
}

/// A node that may hold work of the job.
#[derive(Debug)]
struct Asked {
    /// The award it gets for what it holds; `None` when it can only have reports.
    award: Option<(Fence, FactId)>,
    /// Whether its lease may have been renewed just before the election.
    alive: bool,
}

/// The time between election and the first decision.
#[derive(Debug)]
pub(super) struct Adoption {
    since: Time,
    /// The slowest pace of the terms before: what they awarded may last as long.
    before: u8,
    /// Of this term.
    pace: u8,
    /// Until then somebody may hold an award that nobody here knows.
    not_before: Time,
    again: Time,
    nodes: BTreeMap<NodeId, Asked>,
    lead: Vec<FactId>,
}

impl Adoption {
    /// How long to wait for those that have not answered.
    fn until(&self, ctx: &Ctx) -> Time {
        let wait = |(node, asked): (&NodeId, &Asked)| match (asked.award.is_some(), asked.alive) {
            (true, true) => ADOPT_WAIT_ALIVE.at(self.before),
            _ if ctx.peers.is_connected(*node) => ADOPT_WAIT.at(self.before.max(self.pace)),
            (true, false) => ADOPT_WAIT_GONE.at(self.before),
            (false, _) => Span(0),
        };
        let longest = self.nodes.iter().map(wait).max().unwrap_or_default();
        if planted(Bug::AdoptAtOnce) { self.since } else { self.not_before.max(self.since + longest) }
    }

    pub(super) fn timeout(&self, ctx: &Ctx) -> Time {
        self.until(ctx).min(self.again)
    }
}

impl Brain {
    /// The brain that the members of `mandate.voters` elected.
    pub(crate) fn elected(ctx: &mut Ctx, job: JobId, mandate: Mandate) -> Option<Self> {
        let live = ctx.ledger.live(&job)?;
        let state = &live.state;
        let spec = Arc::clone(&state.spec);
        let term = mandate.term;
        // A verdict of completion whose results are not all known was never final.
        let verdict = state.finish.as_ref().map(|finish| finish.2.clone());
        let verdict = verdict.filter(|outcome| *outcome != Outcome::Completed || state.phase().is_none());
        let base: Vec<FactId> = live
            .statements()
            .filter(|(id, _, s)| matches!(s.fact, Fact::Accept { term, .. } if state.counts(*id, term)))
            .map(|(id, ..)| id)
            .collect();
        let mut brain = Self::new(ctx, job, spec, (term, mandate.pace), Stage::Running);
        let lead = brain.take_office(ctx, mandate.voters, &base, &mandate.shared);
        ctx.note(Note::Took { job, term });
        brain.load_progress(ctx);
        if let Some(outcome) = verdict {
            // It was known to a voter: say it again under this term, and go on from there.
            brain.finish(ctx, outcome);
            return Some(brain);
        }
        brain.begin_adoption(ctx, &mandate.holders, mandate.own_return, lead);
        ctx.effect(Effect::Changed(job));
        Some(brain)
    }

    /// States who leads and on what grounds. Nothing is decided on these grounds until a majority has all of them.
    fn take_office(
        &mut self,
        ctx: &mut Ctx,
        voters: Vec<NodeId>,
        base: &[FactId],
        shared: &BTreeSet<ShortId>,
    ) -> Vec<FactId> {
        let mut parts: Vec<Vec<ShortId>> =
            base.chunks(ITEMS_MAX).map(|part| part.iter().map(short_id).collect()).collect();
        if parts.is_empty() {
            parts.push(Vec::new());
        }
        let mut grounds: Vec<FactId> = base.iter().filter(|id| !shared.contains(&short_id(id))).copied().collect();
        let mut lead = Vec::new();
        for base in parts {
            let lead_fact = Fact::Lead { term: self.term, voters: voters.clone(), base, pace: self.pace };
            let (id, _) = ctx.state(self.job, lead_fact);
            grounds.push(id);
            lead.push(id);
        }
        self.work.accepts.extend(grounds.iter().map(|id| (*id, Vec::new())));
        self.quorum.add(ctx, &grounds);
        lead
    }

    /// What the entry says is done, and which attempts failed.
    fn load_progress(&mut self, ctx: &Ctx) {
        let Some(live) = ctx.ledger.live(&self.job) else { return };
        let state = &live.state;
        let phases = self.spec.phases().len();
        let phase = state.phase().map_or(phases.saturating_sub(1), usize::from);
        self.resume_phase(ctx, Phase::try_from(phase).unwrap_or(0));
        for (id, author, statement) in live.statements() {
            if matches!(statement.fact, Fact::Report { .. }) {
                self.work.reports_by.entry(author).or_default().insert(id);
            }
        }
        self.pending.clear();
    }

    fn begin_adoption(
        &mut self,
        ctx: &mut Ctx,
        holders: &BTreeSet<(NodeId, Fence)>,
        own_return: bool,
        lead: Vec<FactId>,
    ) {
        let Some(live) = ctx.ledger.live(&self.job) else { return };
        let before = live.state.slowest_before(self.term);
        let kept: BTreeSet<NodeId> = holders.iter().map(|(node, _)| *node).collect();
        // Slots of each node; none for those whose awards are all over.
        let mut slots: BTreeMap<NodeId, u32> = kept.iter().map(|node| (*node, 0)).collect();
        for award in live.state.awards.values() {
            let sum = slots.entry(award.node).or_default();
            *sum = (*sum).max(if award.revoked.is_none() { award.slots } else { 0 });
        }
        let mut nodes = BTreeMap::new();
        for (node, slots) in slots {
            let may_hold = slots > 0 || kept.contains(&node);
            let award = may_hold.then(|| self.seat_for(ctx, node, slots.max(1)));
            nodes.insert(node, Asked { award, alive: own_return || kept.contains(&node) });
        }
        let now = ctx.now.at;
        self.stage = Stage::Adopting;
        // Its former life may have sent awards that reached no other disk, nor its own: their holders stop by themselves. After
        // a silence that made others elect somebody else, they have stopped already.
        let not_before = if own_return { now + ADOPT_WAIT_ALIVE.at(before) } else { now };
        let pace = self.pace;
        self.adoption = Some(Box::new(Adoption { since: now, before, pace, not_before, again: now, nodes, lead }));
        self.step_adopting(ctx);
    }

    fn seat_for(&mut self, ctx: &mut Ctx, node: NodeId, slots: u32) -> (Fence, FactId) {
        self.epoch_last += 1;
        let fence = Fence { term: self.term, epoch: self.epoch_last };
        let lease_ms = u32::try_from(LEASE.at(self.pace).as_ms()).unwrap_or(u32::MAX);
        let (award, _) = ctx.state(self.job, Fact::Award { fence, node, slots, lease_ms });
        self.work.seats.insert(fence, Seat { answered: false, ..Seat::new(node, slots, ctx.now.at) });
        (fence, award)
    }

    /// Asks whoever can be reached and has not answered; goes to work when nobody is left to wait for.
    pub(super) fn step_adopting(&mut self, ctx: &mut Ctx) {
        let Some(adoption) = &mut self.adoption else { return };
        let now = ctx.now.at;
        if now >= adoption.again {
            adoption.again = now + ADOPT_AGAIN.at(adoption.pace);
            let Some(live) = ctx.ledger.live(&self.job) else { return };
            let submit = live.submit;
            let mut messages = Vec::new();
            for (node, asked) in adoption.nodes.iter().filter(|(node, _)| ctx.peers.is_connected(**node)) {
                let ids =
                    [submit].into_iter().chain(adoption.lead.iter().copied()).chain(asked.award.map(|(_, id)| id));
                let facts = ids.filter_map(|id| live.facts.get(&id).cloned()).collect();
                let award = asked.award.map(|(fence, _)| fence);
                messages.push((*node, Message::Adopt { facts, job: self.job, award, term: self.term }));
            }
            for (node, message) in messages {
                ctx.send(node, message);
            }
        }
        if now >= adoption.until(ctx) {
            self.adopted(ctx);
        }
    }

    /// A worker says what it holds: finished work is taken as it is, running work goes on.
    pub(crate) fn on_holding(
        &mut self,
        ctx: &mut Ctx,
        from: NodeId,
        term: u32,
        slots: u32,
        tasks: &[(Phase, Run)],
        reports: &[Envelope],
    ) {
        if term != self.term {
            return;
        }
        let Some(asked) = self.adoption.as_mut().and_then(|a| a.nodes.remove(&from)) else {
            return self.refuse_holding(ctx, from, reports);
        };
        for envelope in reports {
            if envelope.entry == self.job && envelope.author == from && ctx.admit(from, envelope).is_ok() {
                self.take_old_report(ctx, from, envelope);
            }
        }
        if let Some((fence, _)) = asked.award {
            self.fill_seat(ctx, from, fence, slots, tasks);
        }
        if self.adoption.as_ref().is_some_and(|a| a.nodes.is_empty() && ctx.now.at >= a.until(ctx)) {
            self.adopted(ctx);
        }
    }

    /// The answer came too late, or twice: what it says has been given to others. Its seat, if it has one, stays.
    fn refuse_holding(&mut self, ctx: &mut Ctx, from: NodeId, reports: &[Envelope]) {
        if self.work.seats.values().any(|s| s.node == from) || reports.is_empty() {
            return;
        }
        let reports = reports.iter().map(Envelope::fact_id).collect();
        ctx.send(from, Message::Settled { job: self.job, reports });
    }

    fn fill_seat(&mut self, ctx: &mut Ctx, node: NodeId, fence: Fence, slots: u32, tasks: &[(Phase, Run)]) {
        let (phase, total) = (self.phase, self.total);
        let Some(seat) = self.work.seats.get_mut(&fence) else { return };
        seat.heard = ctx.now.at;
        seat.slots = slots;
        seat.answered = true;
        seat.adopted = Some(ctx.now.at);
        for (_, run) in tasks.iter().filter(|(p, run)| *p == phase && run.start < total) {
            let run = Run { start: run.start, len: run.len.min(total - run.start) };
            seat.open.insert(run, &ctx.now.at, |_| false);
        }
        if seat.open.is_empty() || slots == 0 {
            self.work.seats.remove(&fence);
            ctx.state(self.job, Fact::Revoke { fence, lost: false });
            ctx.send(node, Message::Release { lease: Lease { job: self.job, fence } });
        }
    }

    fn take_old_report(&mut self, ctx: &mut Ctx, from: NodeId, envelope: &Envelope) {
        let Ok(Statement { fact: Fact::Report { fence, phase, items }, .. }) = cbor::from_slice(&envelope.payload)
        else {
            return;
        };
        let backed =
            ctx.ledger.live(&self.job).is_some_and(|l| l.state.awards.get(&fence).is_none_or(|a| a.node == from));
        if phase != self.phase || !backed {
            return;
        }
        let id = envelope.fact_id();
        self.open_report(from, id);
        for item in items {
            match item {
                ReportItem::Plain { run, .. } => self.succeeded(ctx, from, fence, Some(id), run, &[]),
                ReportItem::Outputs { task, outputs, .. } => {
                    self.succeeded(ctx, from, fence, Some(id), Run { start: task, len: 1 }, &outputs);
                }
                // The task is neither done nor held, so it is tried again; the ledger has counted the attempt.
                ReportItem::Failed { task, failure, .. } => {
                    if !failure.retryable {
                        let node = Some(from);
                        self.verdict = Some(Box::new(Outcome::Failed { phase, task, node, failure }));
                    }
                }
            }
        }
        if let Some((node, report)) = self.settle_report(id) {
            self.settled(ctx, node, report);
        }
    }

    /// Everyone who could answer has, or has no lease any more: what nobody finished or holds is to be done.
    fn adopted(&mut self, ctx: &mut Ctx) {
        let Some(adoption) = self.adoption.take() else { return };
        self.stage = Stage::Running;
        for (fence, _) in adoption.nodes.into_values().filter_map(|asked| asked.award) {
            self.work.seats.remove(&fence);
            ctx.state(self.job, Fact::Revoke { fence, lost: true });
        }
        let mut taken = self.work.done.clone();
        for seat in self.work.seats.values() {
            for (run, _) in seat.open.iter() {
                taken.insert(run, &(), |()| false);
            }
        }
        for task in self.work.copying.keys() {
            taken.insert(Run { start: *task, len: 1 }, &(), |()| false);
        }
        self.pending = VecDeque::from(taken.gaps(self.total));
        self.count_lost_before(ctx);
        ctx.effect(Effect::Changed(self.job));
        self.step_running(ctx);
    }

    /// Counts the starts of a single task that were lost with their awards. Of more tasks the facts do not say which ones ran.
    fn count_lost_before(&mut self, ctx: &Ctx) {
        let Some(live) = ctx.ledger.live(&self.job) else { return };
        if self.spec.phases() != [1] || self.pending.is_empty() {
            return;
        }
        let lost = live.state.awards.values().filter(|award| award.revoked == Some(true)).count();
        if lost > 0 {
            self.work.begun.insert(0, u32::try_from(lost).unwrap_or(u32::MAX));
        }
    }
}
