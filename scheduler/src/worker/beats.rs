//! Leases on the side of the worker: beats and their answers, fencing itself when nobody answers, going on under a new brain.

use std::collections::BTreeMap;

use sinew_crdt_state::fact::{Fact, Fence, Run};
use sinew_crdt_state::ids::{FactId, JobId, NodeId};
use sinew_crdt_state::planted::{Bug, planted};
use sinew_crdt_state::rules::brain_of;
use sinew_crdt_state::spec::Phase;
use sinew_crdt_state::state::JobState;

use super::reports::envelopes;
use super::{Held, Worker};
use crate::config::{ASK_STEWARDS_AFTER, BEAT_EVERY, FENCE_AFTER, REPORT_EVERY, RESEND_EVERY};
use crate::ctx::Ctx;
use crate::io::{Effect, Note, RunId, StopWhy};
use crate::time::{Span, Time};
use crate::wire::{Lease, Message};

/// Beats whose answers are still awaited: older ones could not renew anything.
const BEATS_KEPT: usize = 64;

impl Worker {
    /// A new brain leads: what is held under earlier terms goes on under its one award, or, without one, ends.
    pub(crate) fn on_adopt(&mut self, ctx: &mut Ctx, from: NodeId, job: JobId, award: Option<Fence>, term: u32) {
        let leads = |state: &JobState| brain_of(&state.spec, term) == Some(from) && state.term <= term;
        if !ctx.ledger.live(&job).is_some_and(|live| leads(&live.state)) {
            return;
        }
        let old: Vec<Lease> = self.leases_of(job).into_iter().filter(|l| l.fence.term < term).collect();
        for lease in &old {
            self.report(ctx, *lease);
        }
        // What an earlier brain wanted to end must not run beside what this one starts.
        self.end_at_once(ctx, job, term);
        let old: Vec<Lease> = old.into_iter().filter(|lease| self.held.contains_key(lease)).collect();
        match award {
            Some(fence) => self.renew_as(ctx, from, Lease { job, fence }, &old),
            None => old.into_iter().for_each(|lease| self.drop_held(ctx, lease, StopWhy::Fenced)),
        }
        let held = award.and_then(|fence| self.held.get(&Lease { job, fence }));
        let mut tasks: Vec<(Phase, Run)> = Vec::new();
        if let Some(held) = held {
            tasks.extend(held.running.keys().map(|(p, t)| (*p, Run { start: *t, len: 1 })));
            tasks.extend(held.queue.iter().copied());
        }
        let slots = held.map_or(0, |h| h.slots);
        let orphans = self.done.get(&job).into_iter().flat_map(|d| d.orphans.iter().map(|(id, _)| *id));
        let reports: Vec<FactId> = orphans.chain(held.into_iter().flat_map(|h| h.unsettled.iter().copied())).collect();
        let reports = envelopes(ctx, job, &reports);
        ctx.send(from, Message::Holding { job, term, slots, tasks, reports });
        // The sooner the new brain hears a beat, the sooner it renews.
        self.beat_at = ctx.now.at;
    }

    /// Puts everything held under `old` under `lease`. That renews nothing: only an answered beat does.
    fn renew_as(&mut self, ctx: &mut Ctx, brain: NodeId, lease: Lease, old: &[Lease]) {
        let mut all = [lease].iter().chain(old).filter_map(|l| self.held.remove(l)).collect::<Vec<_>>().into_iter();
        let Some(mut whole) = all.next() else { return };
        let mut renewed = whole.answered();
        for held in all {
            renewed = renewed.min(held.answered());
            whole.pace = whole.pace.min(held.pace);
            whole.slots += held.slots;
            whole.queue.extend(held.queue);
            whole.unsettled.extend(held.unsettled);
            whole.attempts.extend(held.attempts);
            whole.stopping.extend(held.stopping);
            for (task, run) in held.running {
                if let Some(twin) = whole.running.insert(task, run) {
                    self.runs.remove(&twin);
                    whole.stopping.insert(twin);
                    ctx.effect(Effect::Stop { run: twin, why: StopWhy::Fenced });
                }
            }
            if whole.sources.whole.is_none() {
                whole.sources = held.sources;
            }
        }
        whole.brain = brain;
        // Only the new brain's answer makes it last longer than the old one's word did.
        whole.pace_next = ctx.ledger.live(&lease.job).map_or(whole.pace, |live| live.state.pace(lease.fence.term));
        whole.pace = whole.pace.min(whole.pace_next);
        whole.renewed = renewed;
        whole.stewards_renewed.clear();
        if !old.is_empty() {
            whole.seq = 0;
            ctx.state(lease.job, Fact::Claim { fence: lease.fence, slots: whole.slots });
        }
        for run in whole.running.values() {
            if let Some(entry) = self.runs.get_mut(run) {
                entry.0 = lease;
            }
        }
        if !whole.running.is_empty() {
            // Those of the others may have had longer.
            ctx.effect(Effect::Lease { runs: whole.running.values().copied().collect(), until: whole.until() });
        }
        self.held.insert(lease, whole);
        self.look_at = ctx.now.at;
    }

    pub(crate) fn tick(&mut self, ctx: &mut Ctx) {
        let now = ctx.now.at;
        if !self.held.is_empty() && now >= self.beat_at {
            self.beat_at = now + BEAT_EVERY;
            self.beat(ctx);
        }
        if now < self.look_at {
            return;
        }
        let is_silent = |h: &Held| now >= h.fenced_at() && !planted(Bug::FenceNever);
        let silent: Vec<Lease> = self.held.iter().filter(|(_, h)| is_silent(h)).map(|(l, _)| *l).collect();
        for lease in silent {
            if let Some(brain) = self.held.get(&lease).map(|held| held.brain) {
                ctx.reach(brain, FENCE_AFTER);
            }
            ctx.note(Note::Fenced { lease });
            self.drop_held(ctx, lease, StopWhy::Fenced);
        }
        for (lease, held) in &mut self.held {
            held.ask_again(ctx, *lease);
        }
        for (job, done) in self.done.iter_mut().filter(|(_, d)| !d.orphans.is_empty()) {
            done.offer_orphans(ctx, *job);
        }
        // A renewal in between moves a lease's end on; that only makes the next look an early one.
        let fences = self.held.values().map(Held::fenced_at);
        self.look_at = fences.fold(now + RESEND_EVERY, Time::min);
    }

    fn beat(&mut self, ctx: &mut Ctx) {
        self.beat_seq += 1;
        self.beats.push_back((self.beat_seq, ctx.now.at));
        if self.beats.len() > BEATS_KEPT {
            self.beats.pop_front();
        }
        let mut by_node: BTreeMap<NodeId, Vec<(Lease, u32)>> = BTreeMap::new();
        for (lease, held) in &self.held {
            let open = (*lease, held.open());
            by_node.entry(held.brain).or_default().push(open);
            if ctx.now.at - held.renewed >= ASK_STEWARDS_AFTER.at(held.pace) {
                // A brain that restarted is only a member, until it is elected again.
                for steward in held.spec.brain_set.iter().filter(|n| **n != held.brain) {
                    by_node.entry(*steward).or_default().push(open);
                }
            }
        }
        for (node, leases) in by_node {
            ctx.send(node, Message::Beat { seq: self.beat_seq, leases });
        }
    }

    pub(crate) fn on_beat_ack(
        &mut self,
        ctx: &mut Ctx,
        from: NodeId,
        seq: u64,
        renewed: &[Lease],
        kept: &[Lease],
        void: &[Lease],
    ) {
        let Some((_, sent)) = self.beats.iter().find(|(s, _)| *s == seq).copied() else { return };
        ctx.peers.measured(from, ctx.now.at - sent, ctx.now.at);
        let sent = if planted(Bug::RenewAtArrival) { ctx.now.at } else { sent };
        let mut moved: BTreeMap<Time, Vec<RunId>> = BTreeMap::new();
        for lease in renewed {
            if let Some(held) = self.held.get_mut(lease).filter(|h| h.brain == from) {
                held.renew(&mut moved, |held| {
                    held.renewed = held.renewed.max(sent);
                    held.pace = held.pace_next;
                });
            }
        }
        for lease in kept {
            if let Some(held) = self.held.get_mut(lease).filter(|h| h.spec.brain_set.contains(&from)) {
                held.renew(&mut moved, |held| {
                    held.stewards_renewed.insert(from, sent);
                });
            }
        }
        for (until, runs) in moved {
            ctx.effect(Effect::Lease { runs, until });
        }
        for lease in void {
            // One that is over anyway is not renewed: its tasks may take what is left of it to end in good order.
            if self.held.get(lease).is_some_and(|h| h.brain == from && !h.over) {
                ctx.note(Note::Fenced { lease: *lease });
                self.drop_held(ctx, *lease, StopWhy::Fenced);
            }
        }
    }

    pub(crate) fn timeout(&self) -> Option<Time> {
        let reports = self.held.values().filter(|h| h.buffered > 0).map(|h| h.buffer_since + REPORT_EVERY).min();
        let beat = (!self.held.is_empty()).then_some(self.beat_at);
        let look = (!self.held.is_empty() || self.done.values().any(|d| !d.orphans.is_empty())).then_some(self.look_at);
        reports.into_iter().chain(beat).chain(look).min()
    }
}

impl Held {
    /// Repeats what was not answered: reports, and the wish for sources.
    pub(super) fn ask_again(&mut self, ctx: &mut Ctx, lease: Lease) {
        let now = ctx.now.at;
        if !self.unsettled.is_empty() && now - self.unsettled_sent >= RESEND_EVERY.at(self.pace) {
            self.unsettled_sent = now;
            let facts = envelopes(ctx, lease.job, &self.unsettled);
            ctx.send(self.brain, Message::Report { lease, facts });
        }
        let waits = self.queue.front().is_some_and(|(phase, _)| *phase > 0) && self.sources.whole.is_none();
        if waits && now - *self.sources.asked.get_or_insert(now) >= RESEND_EVERY {
            self.sources.asked = Some(now);
            ctx.send(self.brain, Message::WantSources { lease });
        }
    }

    /// When it is over, unless a beat is answered before.
    pub(super) fn fenced_at(&self) -> Time {
        let after = FENCE_AFTER.at(self.pace);
        self.answered() + if planted(Bug::FenceTooLate) { Span(2 * after.0) } else { after }
    }

    /// Notes an answer; if the lease's end moves with it, what runs under it is entered in `moved` under the new end.
    fn renew(&mut self, moved: &mut BTreeMap<Time, Vec<RunId>>, note: impl FnOnce(&mut Self)) {
        let before = self.fenced_at();
        note(self);
        if self.fenced_at() != before && !(self.running.is_empty() && self.stopping.is_empty()) {
            moved.entry(self.until()).or_default().extend(self.running.values().chain(&self.stopping));
        }
    }

    /// When it is over, as the driver is told.
    pub(super) fn until(&self) -> Time {
        if planted(Bug::NoSwitch) { Time(u64::MAX) } else { self.fenced_at() }
    }

    /// When the last beat was sent that someone with the say answered: the brain, or else a majority of its set.
    pub(super) fn answered(&self) -> Time {
        let mut times: Vec<Time> = self.stewards_renewed.values().copied().collect();
        times.sort_unstable_by(|a, b| b.cmp(a));
        let by_majority = times.get(self.spec.majority() - 1).copied().unwrap_or_default();
        self.renewed.max(by_majority)
    }
}
