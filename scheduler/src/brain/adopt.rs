//! Taking over: a newly elected brain reads the entry, asks workers what they hold, keeps claims that still run, and never
//! has finished work done again (step 7 of the protocol).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use sinew_crdt_state::cbor;
use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::fact::{Fact, Fence, Outcome, ReportItem, Run, Statement};
use sinew_crdt_state::ids::{FactId, JobId, NodeId};
use sinew_crdt_state::spec::Phase;

use super::{Brain, Seat, Stage};
use crate::config::{ADOPT_WAIT, LEASE};
use crate::ctx::Ctx;
use crate::io::{Effect, Note};
use crate::wire::{Lease, Message};

/// Stands for "you hold no award that I know of": asks only for reports.
const NO_AWARD: Fence = Fence { term: 0, epoch: 0 };

impl Brain {
    /// The brain of `term`, elected by `voters`; `holders` are leases that members renewed in the old brain's silence.
    pub(crate) fn elected(
        ctx: &mut Ctx,
        job: JobId,
        term: u32,
        voters: Vec<NodeId>,
        holders: &BTreeSet<(NodeId, Fence)>,
    ) -> Option<Self> {
        let state = &ctx.ledger.live(&job)?.state;
        let spec = Arc::new(state.spec.clone());
        let ended = state.outcome().cloned();
        let mut old: BTreeMap<Fence, (NodeId, u32)> = state
            .awards
            .iter()
            .filter(|(_, a)| a.revoked.is_none() && ctx.peers.is_connected(a.node))
            .map(|(fence, a)| (*fence, (a.node, a.slots)))
            .collect();
        for (node, fence) in holders {
            let slots = state.awards.get(fence).map_or(1, |a| a.slots);
            old.entry(*fence).or_insert((*node, slots));
        }
        let reporters: BTreeSet<NodeId> =
            state.awards.values().map(|a| a.node).filter(|n| ctx.peers.is_connected(*n)).collect();
        let with_award: BTreeSet<NodeId> = old.values().map(|(n, _)| *n).collect();
        let asked: BTreeSet<(NodeId, Fence)> = old
            .iter()
            .map(|(fence, (node, _))| (*node, *fence))
            .chain(reporters.difference(&with_award).map(|n| (*n, NO_AWARD)))
            .collect();
        let stage = Stage::Adopting { until: ctx.now.at + ADOPT_WAIT, asked: asked.clone() };
        let mut brain = Self::new(ctx, job, spec, term, stage);
        let (lead, lead_envelope) = ctx.state(job, Fact::Lead { term, voters });
        brain.quorum.add(ctx, &[lead]);
        ctx.note(Note::Took { job, term });
        if let Some(outcome) = ended {
            // The verdict was known to a voter: say it again under this term, and go on from there.
            brain.load_reports(ctx);
            brain.finish(ctx, outcome);
            return Some(brain);
        }
        brain.load_progress(ctx);
        brain.ask(ctx, &old, &asked, &lead_envelope);
        ctx.effect(Effect::Changed(job));
        Some(brain)
    }

    /// What the entry says is done, and which attempts failed.
    fn load_progress(&mut self, ctx: &Ctx) {
        let Some(live) = ctx.ledger.live(&self.job) else { return };
        let state = &live.state;
        let phases = self.spec.phases().len();
        let phase = state.phase().map_or(phases.saturating_sub(1), usize::from);
        self.enter_phase(Phase::try_from(phase).unwrap_or(0));
        if let Some(accepted) = state.accepted.get(phase) {
            for (run, _) in accepted.iter() {
                self.done.insert(run, &(), |()| false);
            }
            self.done_count = u32::try_from(accepted.count()).unwrap_or(u32::MAX);
        }
        for (p, task) in state.failed_tasks().filter(|(p, _)| *p == self.phase) {
            let attempts = u32::try_from(state.failures(p, task).count()).unwrap_or(u32::MAX);
            self.attempts.insert(task, attempts);
        }
        self.load_reports(ctx);
        self.pending.clear();
    }

    fn load_reports(&mut self, ctx: &Ctx) {
        let Some(live) = ctx.ledger.live(&self.job) else { return };
        for (id, author, statement) in live.statements() {
            if matches!(statement.fact, Fact::Report { .. }) {
                self.reports_by.entry(author).or_default().push(id);
            }
        }
    }

    fn ask(
        &mut self,
        ctx: &mut Ctx,
        old: &BTreeMap<Fence, (NodeId, u32)>,
        asked: &BTreeSet<(NodeId, Fence)>,
        lead: &Envelope,
    ) {
        let submit = ctx.submit_of(&self.job);
        for (fence, (node, slots)) in old {
            self.epoch_last += 1;
            let new = Fence { term: self.term, epoch: self.epoch_last };
            let lease_ms = u32::try_from(LEASE.as_ms()).unwrap_or(u32::MAX);
            let (_, award) = ctx.state(self.job, Fact::Award { fence: new, node: *node, slots: *slots, lease_ms });
            let mut seat = Seat::new(*node, *slots, ctx.now.at);
            seat.adopted_from = Some(*fence);
            self.seats.insert(new, seat);
            let facts = submit.iter().cloned().chain([lead.clone(), award]).collect();
            let old = Lease { job: self.job, fence: *fence };
            ctx.send(*node, Message::Adopt { facts, old, new: Some(new), term: self.term });
        }
        for (node, _) in asked.iter().filter(|(_, fence)| *fence == NO_AWARD) {
            let facts = submit.iter().cloned().chain([lead.clone()]).collect();
            let old = Lease { job: self.job, fence: NO_AWARD };
            ctx.send(*node, Message::Adopt { facts, old, new: None, term: self.term });
        }
    }

    /// A worker says what it holds: finished work is taken as it is, running work goes on.
    pub(crate) fn on_holding(
        &mut self,
        ctx: &mut Ctx,
        from: NodeId,
        old: Lease,
        tasks: &[(Phase, Run)],
        reports: &[Envelope],
    ) {
        let Stage::Adopting { asked, .. } = &mut self.stage else { return };
        if !asked.remove(&(from, old.fence)) {
            return;
        }
        let all_answered = asked.is_empty();
        for envelope in reports {
            if envelope.entry == self.job && envelope.author == from && ctx.admit(from, envelope).is_ok() {
                self.take_old_report(ctx, from, envelope);
            }
        }
        let seat = self.seats.iter_mut().find(|(_, s)| s.node == from && s.adopted_from == Some(old.fence));
        if let Some((fence, seat)) = seat {
            seat.heard = ctx.now.at;
            seat.adopted_from = None;
            let fence = *fence;
            let current = tasks.iter().filter(|(p, r)| *p == self.phase && r.start < self.total).map(|(_, r)| *r);
            for run in current {
                let run = Run { start: run.start, len: run.len.min(self.total - run.start) };
                seat.open.insert(run, &ctx.now.at, |_| false);
            }
            if seat.open.is_empty() {
                self.seats.remove(&fence);
                ctx.send(from, Message::Release { lease: Lease { job: self.job, fence } });
            }
        }
        if all_answered {
            self.adopted(ctx);
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
        let id: FactId = envelope.fact_id();
        let known = self.reports_by.entry(from).or_default();
        if !known.contains(&id) {
            known.push(id);
        }
        self.reports.push((from, id));
        for item in items {
            match item {
                ReportItem::Plain { run, .. } => self.succeeded(ctx, from, fence, run, &[]),
                ReportItem::Outputs { task, outputs, .. } => {
                    self.succeeded(ctx, from, fence, Run { start: task, len: 1 }, &outputs);
                }
                // The task is neither done nor held, so it is tried again; the ledger has counted the attempt.
                ReportItem::Failed { task, failure, .. } => {
                    if !failure.retryable {
                        let node = Some(from);
                        self.verdict = Some(Outcome::Failed { phase, task, node, failure });
                    }
                }
            }
        }
    }

    /// Everyone who could answer has: what nobody finished or holds is to be done.
    pub(super) fn adopted(&mut self, ctx: &mut Ctx) {
        self.stage = Stage::Running;
        // Whoever has not answered is stopped by its next beat, and its tasks are awarded anew.
        self.seats.retain(|_, seat| seat.adopted_from.is_none());
        let mut taken = self.done.clone();
        for seat in self.seats.values() {
            for (run, _) in seat.open.iter() {
                taken.insert(run, &(), |()| false);
            }
        }
        for task in self.copying.keys() {
            taken.insert(Run { start: *task, len: 1 }, &(), |()| false);
        }
        self.pending = VecDeque::from(taken.gaps(self.total));
        ctx.effect(Effect::Changed(self.job));
        self.step_running(ctx);
    }
}
