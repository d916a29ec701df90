//! Inputs of the mesh that are out of reach: the tasks that need them wait, and are tried elsewhere and again, at no attempt's
//! cost. A map output that nobody holds any more is made anew.
//!
//! **What may be made anew** is a result of any phase but the last, while the job has no verdict: nobody was shown it, and what was
//! made from it stays. A user's results are final. The new result says how often it was made ([`Accepted::again`]), and the
//! highest counts, on every replica and in every term; the seal says how many such there are, so that nobody seals without them.
//!
//! **When** it is: some worker could not fetch it, and all who are on record for it are gone for good: silent for as long as copies
//! are waited for (`copy_again_after`), or back with another disk. Or it has been missed for that long by two nodes, although
//! those on record can be heard, or for that long with all of them in reach: then it is their files that are gone. An input that is
//! missed like that ends the job. Tasks of the later phase that run are waited for first, so
//! that no finished work is dropped.
//!
//! [`Accepted::again`]: sinew_crdt_state::fact::Accepted::again

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::fact::{Fact, Failure, Fence, ITEMS_MAX, Outcome, Run};
use sinew_crdt_state::ids::{Hash, NodeId};
use sinew_crdt_state::planted::{Bug, planted};
use sinew_crdt_state::spec::Phase;
use sinew_crdt_state::state::AcceptedResult;

use super::{Brain, Stage};
use crate::config::{BEAT_EVERY, BLOCKED_AGAIN, BLOCKED_AGAIN_MAX, LOST_LOOK_EVERY, MISSING_MAX, SHUN_FOR};
use crate::ctx::Ctx;
use crate::io::{Effect, Note};
use crate::sync;
use crate::time::{Span, Time};
use crate::view::{BlockedView, MissingView};
use crate::wire::{Lease, Message};

/// What tasks wait for.
#[derive(Debug)]
pub(super) struct Blocked {
    /// Since when.
    since: Time,
    missing: BTreeMap<Hash, Missing>,
    /// All nodes with room are asked again then.
    again: Time,
    wait: Span,
    /// Whether one who should have some of it could be heard at the last look.
    reach: bool,
    /// Lost outputs are looked for next.
    look_at: Time,
    /// Tasks of the phase before whose outputs are lost, as of the last look.
    lost: BTreeSet<u32>,
}

/// A blob that somebody could not fetch.
#[derive(Debug)]
struct Missing {
    since: Time,
    /// When somebody missed it last.
    last: Time,
    /// Two are as good as any number.
    by: BTreeSet<NodeId>,
    /// Since when all who are on record for it can be heard; they do not give it.
    heard: Option<Time>,
}

impl Brain {
    /// A worker could not begin tasks: nobody in reach gave it what they need.
    pub(crate) fn on_blocked(
        &mut self,
        ctx: &mut Ctx,
        from: NodeId,
        fence: Fence,
        phase: Phase,
        tasks: &[u32],
        missing: &[Hash],
    ) {
        if self.stage != Stage::Running || phase != self.phase {
            return;
        }
        let now = ctx.now.at;
        let Some(seat) = self.work.seats.get_mut(&fence).filter(|s| s.node == from) else { return };
        seat.reported = now;
        let mut back = Vec::new();
        for task in tasks.iter().take(ITEMS_MAX) {
            back.extend((!seat.open.take(Run { start: *task, len: 1 }).is_empty()).then_some(*task));
        }
        if back.is_empty() {
            return;
        }
        for task in back {
            let elsewhere = self.work.seats.values().any(|s| s.open.get(task).is_some());
            if !elsewhere && self.work.done.get(task).is_none() && !self.work.copying.contains_key(&task) {
                self.work.speculated.remove(&task);
                self.push_pending(task);
            }
        }
        self.work.shunned.insert(from, now + SHUN_FOR);
        let needed = self.needed(ctx);
        let blocked = self.work.blocked.get_or_insert_with(|| Box::new(Blocked::new(now)));
        for hash in missing.iter().filter(|hash| needed.contains(hash)).take(MISSING_MAX) {
            if blocked.missing.len() < MISSING_MAX || blocked.missing.contains_key(hash) {
                let missed = blocked.missing.entry(*hash).or_insert_with(|| Missing {
                    since: now,
                    last: now,
                    by: BTreeSet::new(),
                    heard: None,
                });
                missed.last = now;
                missed.by.insert(from);
            }
        }
        self.give_back_idle(ctx, from);
        ctx.effect(Effect::Changed(self.job));
    }

    /// Blobs of the mesh that tasks of this phase may need.
    fn needed(&self, ctx: &Ctx) -> BTreeSet<Hash> {
        let mut needed: BTreeSet<Hash> = self.spec.input_blobs().iter().map(|b| b.hash).collect();
        if self.phase > 0 {
            needed.extend(super::results::located(ctx, self.job).iter().map(|l| l.blob.hash));
        }
        needed
    }

    /// Slots that wait for what does not come are for others.
    fn give_back_idle(&mut self, ctx: &mut Ctx, node: NodeId) {
        let idle = self.work.seats.iter().filter(|(_, s)| s.node == node && s.open.is_empty());
        let idle: Vec<Fence> = idle.map(|(fence, _)| *fence).collect();
        for fence in idle {
            self.work.seats.remove(&fence);
            ctx.state(self.job, Fact::Revoke { fence, lost: false });
            ctx.send(node, Message::Release { lease: Lease { job: self.job, fence } });
        }
    }

    /// A task succeeded that was given out then: if others were blocked before, what they needed is there after all.
    pub(super) fn unblocked(&mut self, given: Option<Time>) {
        if let Some(work) = self.work.there()
            && work.blocked.as_ref().is_some_and(|blocked| given.is_some_and(|at| at > blocked.since))
        {
            work.blocked = None;
        }
    }

    /// All nodes that could take a task were tried in vain: whether they may be tried once more, or else when.
    pub(super) fn try_all_again(&mut self, now: Time) -> Result<(), Time> {
        let Some(blocked) = self.work.there().and_then(|work| work.blocked.as_deref_mut()) else { return Ok(()) };
        if now < blocked.again {
            return Err(blocked.again);
        }
        blocked.wait = Span((2 * blocked.wait.0).min(BLOCKED_AGAIN_MAX.0));
        blocked.again = now + blocked.wait;
        Ok(())
    }

    /// Whether no more tasks of this phase are given out: an earlier one has to be gone back to.
    pub(super) fn turns_back(&self) -> bool {
        self.work.blocked.as_ref().is_some_and(|blocked| !blocked.lost.is_empty())
    }

    /// Looks whether those are back who should have what is missing, and which map outputs are lost. Returns whether the job went
    /// back to make some anew.
    pub(super) fn watch_blocked(&mut self, ctx: &mut Ctx) -> bool {
        let now = ctx.now.at;
        if self.work.blocked.as_ref().is_none_or(|blocked| now < blocked.look_at) {
            return false;
        }
        if let Some(blocked) = self.work.there().and_then(|work| work.blocked.as_deref_mut()) {
            // Others may have got it since.
            blocked.missing.retain(|_, missing| now - missing.last < SHUN_FOR);
        }
        let on_record = self.recorded(ctx);
        let heard = |node: &NodeId| ctx.peers.is_heard(*node, now);
        let reach = on_record.values().flatten().any(heard);
        for (hash, missing) in
            self.work.there().and_then(|w| w.blocked.as_deref_mut()).into_iter().flat_map(|b| &mut b.missing)
        {
            let all = on_record.get(hash).is_some_and(|nodes| nodes.iter().all(heard));
            missing.heard = if all { missing.heard.or(Some(now)) } else { None };
        }
        if let Some(gone) = self.lost_input(ctx) {
            self.verdict = Some(Box::new(gone));
            return false;
        }
        let lost = self.lost_outputs(ctx);
        let Some(blocked) = self.work.there().and_then(|work| work.blocked.as_deref_mut()) else { return false };
        blocked.look_at = now + LOST_LOOK_EVERY;
        blocked.lost = lost;
        let back = reach && !blocked.reach;
        blocked.reach = reach;
        if back {
            blocked.wait = BLOCKED_AGAIN;
            blocked.again = now + BLOCKED_AGAIN;
            self.place_at = now;
            self.work.shunned.clear();
        }
        let seated = self.work.seats.values().any(|s| !s.open.is_empty());
        let under_way = seated || !self.work.copying.is_empty() || !self.work.ready.is_empty();
        if !self.turns_back() || under_way || !self.work.accepts.is_empty() {
            return false;
        }
        self.go_back(ctx);
        true
    }

    /// Those who should have each blob that is missing.
    fn recorded(&self, ctx: &Ctx) -> BTreeMap<Hash, BTreeSet<NodeId>> {
        let Some(blocked) = &self.work.blocked else { return BTreeMap::new() };
        let mut nodes: BTreeMap<Hash, BTreeSet<NodeId>> =
            blocked.missing.keys().map(|hash| (*hash, BTreeSet::new())).collect();
        let located = if self.phase > 0 { super::results::located(ctx, self.job) } else { Vec::new() };
        for at in located {
            if let Some(on) = nodes.get_mut(&at.blob.hash) {
                on.extend([at.node].into_iter().chain(at.copy));
            }
        }
        // The rest are inputs; what is no blob is its submitter's to give.
        let holders: BTreeSet<NodeId> = self.spec.brain_set.iter().copied().chain([self.spec.submitter]).collect();
        nodes.values_mut().filter(|on| on.is_empty()).for_each(|on| on.clone_from(&holders));
        if nodes.is_empty() {
            nodes.insert(Hash([0; 32]), [self.spec.submitter].into());
        }
        nodes
    }

    /// The verdict on a job of which an input is gone: all who took it in can be heard, and for as long as others are waited for that
    /// are gone nobody got it from them.
    fn lost_input(&self, ctx: &Ctx) -> Option<Outcome> {
        let patience = Span::ms(ctx.config.copy_again_after_ms);
        let inputs = self.spec.input_blobs();
        let missing = self.work.blocked.as_ref()?.missing.iter();
        let (hash, _) = missing.into_iter().find(|(hash, missing)| {
            missing.stays(ctx.now.at, patience) && inputs.iter().any(|blob| blob.hash == **hash)
        })?;
        let failure = Failure {
            code: ErrorCode::Fetch,
            exit: None,
            message: format!("the input {hash} is lost: none of the nodes that should have it gives it"),
            stderr_tail: String::new(),
            retryable: false,
        };
        let task = self.pending.front().map_or(0, |run| run.start);
        Some(Outcome::Failed { phase: self.phase, task, node: None, failure })
    }

    /// Tasks of the phase before whose outputs some task waits for, and nobody holds.
    fn lost_outputs(&self, ctx: &Ctx) -> BTreeSet<u32> {
        let (Some(blocked), Some(before)) = (&self.work.blocked, self.phase.checked_sub(1)) else {
            return BTreeSet::new();
        };
        if planted(Bug::NeverAnew) {
            return BTreeSet::new();
        }
        let accepted = ctx.ledger.live(&self.job).and_then(|l| l.state.accepted.get(usize::from(before)));
        let with_outputs = || accepted.into_iter().flat_map(|m| m.iter()).filter(|(_, r)| !r.outputs.is_empty());
        let misses = |r: &AcceptedResult| r.outputs.iter().any(|o| blocked.missing.contains_key(&o.blob.hash));
        if !with_outputs().any(|(_, r)| misses(r)) {
            return BTreeSet::new();
        }
        let lost = with_outputs().filter(|(_, r)| self.is_lost(ctx, blocked, r));
        lost.flat_map(|(run, _)| run.start..run.end()).collect()
    }

    fn is_lost(&self, ctx: &Ctx, blocked: &Blocked, result: &AcceptedResult) -> bool {
        let (now, patience) = (ctx.now.at, Span::ms(ctx.config.copy_again_after_ms));
        let hash = |o: &sinew_crdt_state::fact::Output| o.blob.hash;
        let wiped = |node: NodeId| result.outputs.iter().any(|o| self.has_wiped(&hash(o), node));
        // In a large mesh nobody hears everybody.
        let silent = |node: NodeId| {
            sync::keeps_all(ctx) && ctx.peers.silent_for(node, now).unwrap_or(now - self.since) >= patience
        };
        let gone = |node: NodeId| wiped(node) || silent(node);
        let missed = |m: &Missing| now - m.since >= patience && m.by.len() > 1 || m.stays(now, patience);
        let long = result.outputs.iter().any(|o| blocked.missing.get(&hash(o)).is_some_and(missed));
        long || [result.node].into_iter().chain(result.copy).all(gone)
    }

    fn has_wiped(&self, hash: &Hash, node: NodeId) -> bool {
        self.work.wiped.get(hash).is_some_and(|nodes| nodes.contains(&node))
    }

    /// The disk of `node` was replaced: it has no map output any more that is recorded by now.
    pub(super) fn note_wiped(&mut self, ctx: &Ctx, node: NodeId) {
        if self.spec.phases().len() < 2 {
            return;
        }
        for at in super::results::located(ctx, self.job) {
            if at.node == node || at.copy == Some(node) {
                self.work.wiped.entry(at.blob.hash).or_default().insert(node);
            }
        }
    }

    /// Back to the phase before, for what is lost of it alone.
    fn go_back(&mut self, ctx: &mut Ctx) {
        let Some(blocked) = self.work.there().and_then(|work| work.blocked.take()) else { return };
        let before = self.phase.saturating_sub(1);
        self.drop_offers(ctx);
        self.enter_phase(before);
        let lost: Vec<u32> = blocked.lost.into_iter().filter(|task| *task < self.total).collect();
        let note = Note::MadeAnew { job: self.job, term: self.term, phase: before, tasks: lost.clone() };
        self.pending = VecDeque::new();
        self.work.done.insert(Run { start: 0, len: self.total }, &(), |()| false);
        for task in lost {
            self.work.done.take(Run { start: task, len: 1 });
            self.push_pending(task);
            self.done_count += 1;
        }
        self.done_count = self.total - self.done_count;
        self.work.shunned.clear();
        self.place_at = ctx.now.at;
        ctx.note(note);
        ctx.effect(Effect::Changed(self.job));
    }

    /// When what is out of reach is looked at next.
    pub(super) fn blocked_timeout(&self, now: Time) -> Option<Time> {
        // Overdue is what cannot be done while the set does not answer: it is not tried harder.
        self.work.blocked.as_ref().map(|blocked| blocked.look_at.max(now + BEAT_EVERY))
    }

    /// Goes on with a phase in which something may be done already.
    pub(super) fn resume_phase(&mut self, ctx: &Ctx, phase: Phase) {
        self.enter_phase(phase);
        if let Some(live) = ctx.ledger.live(&self.job) {
            let state = &live.state;
            if let Some(accepted) = state.accepted.get(usize::from(phase)).filter(|_| !planted(Bug::TakeoverForgets)) {
                for (run, _) in accepted.iter() {
                    self.work.done.insert(run, &(), |()| false);
                }
                self.done_count = u32::try_from(accepted.count()).unwrap_or(u32::MAX);
            }
            for (p, task) in state.failed_tasks().filter(|(p, _)| *p == phase) {
                // What was given back was no attempt.
                let counted = state.failures(p, task).filter(|failed| failed.failure.code != ErrorCode::Lost);
                let attempts = u32::try_from(counted.count()).unwrap_or(u32::MAX);
                self.work.attempts.insert(task, attempts);
            }
        }
        if self.done_count > 0 {
            self.pending = VecDeque::from(self.work.done.gaps(self.total));
        }
        for seat in self.work.there().into_iter().flat_map(|work| work.seats.values_mut()) {
            seat.sources_sent = false;
        }
    }

    /// How often a result of this task that is about to count was made before.
    pub(super) fn made_before(&self, ctx: &Ctx, task: u32) -> u32 {
        if usize::from(self.phase) + 1 == self.spec.phases().len() {
            return 0;
        }
        let accepted = ctx.ledger.live(&self.job).and_then(|l| l.state.accepted.get(usize::from(self.phase)));
        accepted.and_then(|m| m.get(task)).map_or(0, |result| result.again.saturating_add(1))
    }

    /// What the job waits for, for people.
    pub(crate) fn blocked_view(&self, ctx: &Ctx) -> Option<BlockedView> {
        let blocked = self.work.blocked.as_ref()?;
        let waited = ctx.now.at - blocked.since;
        let located = if self.phase > 0 { super::results::located(ctx, self.job) } else { Vec::new() };
        let missing = blocked.missing.keys().map(|hash| {
            let at = located.iter().find(|at| at.blob.hash == *hash);
            let holders = at.map(|at| [at.node].into_iter().chain(at.copy).collect()).unwrap_or_default();
            MissingView { blob: *hash, holders }
        });
        Some(BlockedView { since_ms: ctx.now.unix_ms.saturating_sub(waited.as_ms()), missing: missing.collect() })
    }
}

impl Missing {
    /// Whether it has been missed for so long although all on record could be heard.
    fn stays(&self, now: Time, patience: Span) -> bool {
        now - self.since >= patience && self.heard.is_some_and(|heard| now - heard >= patience)
    }
}

impl Blocked {
    const fn new(now: Time) -> Self {
        Self {
            since: now,
            missing: BTreeMap::new(),
            again: now,
            wait: Span(BLOCKED_AGAIN.0 / 2),
            reach: true,
            look_at: now,
            lost: BTreeSet::new(),
        }
    }
}
