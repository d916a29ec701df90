//! Awards under way: filling their queues, renewing or giving up their leases, and starting stragglers a second time.

use std::collections::BTreeMap;

use sinew_crdt_state::fact::{Fact, Fence, Run};
use sinew_crdt_state::ids::NodeId;
use sinew_crdt_state::intervals::IntervalMap;
use sinew_crdt_state::planted::{Bug, planted};

use super::{Brain, Stage};
use crate::config::{
    BEAT_EVERY, FENCE_AFTER, LEASE, QUEUE_AHEAD, SPECULATE_AFTER, SPECULATE_ALONE_AFTER, SPECULATE_UNLIMITED_AFTER,
    WINDOW_MAX,
};
use crate::ctx::Ctx;
use crate::io::{Effect, Note};
use crate::time::{Span, Time};
use crate::wire::{Assign, Lease, Message};

/// An award as its brain sees it.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) node: NodeId,
    pub(super) slots: u32,
    /// Tasks assigned and not reported, with the time of assignment.
    pub(super) open: IntervalMap<Time>,
    pub(super) heard: Time,
    pub(super) seq: u32,
    /// Beats in a row whose count of open tasks was lower than ours.
    pub(super) mismatches: u32,
    /// Tasks per second, smoothed.
    pub(super) rate: f64,
    pub(super) reported: Time,
    pub(super) sources_sent: bool,
    /// Whether its worker knows it: one that worked for an earlier brain may not yet.
    pub(super) answered: bool,
    /// When it said what it works at since an earlier brain.
    pub(super) adopted: Option<Time>,
    /// Its tasks are past their limit: it is renewed no more.
    pub(super) overdue: bool,
}

impl Seat {
    pub(super) fn new(node: NodeId, slots: u32, now: Time) -> Self {
        Self {
            node,
            slots,
            open: IntervalMap::default(),
            heard: now,
            seq: 0,
            mismatches: 0,
            rate: 0.0,
            reported: now,
            sources_sent: false,
            answered: true,
            adopted: None,
            overdue: false,
        }
    }
}

impl Brain {
    /// Opens tasks at a seat and makes the message; `None` when there are none.
    pub(super) fn assign(&mut self, fence: Fence, runs: Vec<Run>, now: Time, again: bool) -> Option<Assign> {
        let (job, phase) = (self.job, self.phase);
        let attempts = self.starts_before(&runs);
        let seat = self.work.seats.get_mut(&fence)?;
        if runs.is_empty() {
            return None;
        }
        seat.seq += 1;
        if seat.open.is_empty() {
            seat.reported = now;
        }
        for run in &runs {
            seat.open.insert(*run, &now, |_| false);
        }
        Some(Assign { lease: Lease { job, fence }, seq: seat.seq, again, phase, runs, attempts })
    }

    /// How often each of these tasks was started before, where it was.
    fn starts_before(&self, runs: &[Run]) -> BTreeMap<u32, u32> {
        let mut starts = BTreeMap::new();
        for counts in [&self.work.attempts, &self.work.begun] {
            for run in runs.iter().filter(|_| !counts.is_empty()) {
                counts.range(run.start..run.end()).for_each(|(task, n)| *starts.entry(*task).or_default() += n);
            }
        }
        starts
    }

    /// Counts the starts that are lost with a seat. A worker takes its tasks in order, so those that ran are the first ones.
    fn count_lost(&mut self, seat: &Seat) {
        let mut open: Vec<(Time, Run)> = seat.open.iter().map(|(run, at)| (*at, run)).collect();
        open.sort_unstable();
        let tasks = open.into_iter().flat_map(|(_, run)| run.start..run.end());
        for task in tasks.take(seat.slots as usize) {
            *self.work.begun.entry(task).or_default() += 1;
        }
    }

    fn send_assign(&mut self, ctx: &mut Ctx, fence: Fence, runs: Vec<Run>, again: bool) {
        if runs.is_empty() {
            return;
        }
        self.send_sources(ctx, fence);
        let node = self.work.seats.get(&fence).map(|s| s.node);
        if let (Some(assign), Some(node)) = (self.assign(fence, runs, ctx.now.at, again), node) {
            ctx.send(node, Message::Assign(assign));
        }
    }

    pub(super) fn drop_lost_seats(&mut self, ctx: &mut Ctx) {
        let now = ctx.now.at;
        let lease = LEASE.at(self.pace);
        let lease = if planted(Bug::LeaseTooShort) { Span(lease.0 / 2) } else { lease };
        let over = |s: &Seat| now - s.heard >= lease && !planted(Bug::LeaseNeverExpires);
        let lost: Vec<Fence> = self.work.seats.iter().filter(|(_, s)| over(s)).map(|(fence, _)| *fence).collect();
        for fence in lost {
            let Some(seat) = self.work.seats.remove(&fence) else { continue };
            let lease = Lease { job: self.job, fence };
            ctx.note(Note::Lost { lease, node: seat.node, silent_ms: (now - seat.heard).as_ms() });
            ctx.state(self.job, Fact::Revoke { fence, lost: true });
            ctx.peers.gave_up(seat.node);
            self.count_lost(&seat);
            self.requeue(&seat);
            self.drop_copies_from(ctx, seat.node);
            ctx.effect(Effect::Changed(self.job));
        }
    }

    /// Puts a seat's open tasks back, but for those that someone else finished or runs too.
    fn requeue(&mut self, seat: &Seat) {
        for (run, _) in seat.open.iter() {
            for gap in self.work.done.gaps_in(run) {
                for task in gap.start..gap.end() {
                    let elsewhere = self.work.seats.values().any(|s| s.open.get(task).is_some());
                    if !elsewhere && !self.work.copying.contains_key(&task) {
                        self.push_pending(task);
                    }
                }
            }
        }
    }

    pub(super) fn push_pending(&mut self, task: u32) {
        match self.pending.back_mut() {
            Some(run) if run.end() == task => run.len += 1,
            _ => self.pending.push_back(Run { start: task, len: 1 }),
        }
    }

    pub(super) fn pending_count(&self) -> u64 {
        self.pending.iter().map(|r| u64::from(r.len)).sum()
    }

    /// Fills the queues of all seats.
    pub(super) fn top_up(&mut self, ctx: &mut Ctx) {
        if !self.pending.is_empty() && !self.turns_back() {
            let slots = self.slots_held();
            let fences: Vec<Fence> = self.work.seats.keys().copied().collect();
            for fence in fences {
                let window = if self.is_leaving(ctx, fence) { 0 } else { self.window(fence, slots) };
                let runs = self.take_pending(window);
                self.send_assign(ctx, fence, runs, false);
            }
        }
        let last = usize::from(self.phase) + 1 == self.spec.phases().len();
        if last && self.pending.is_empty() && self.work.later.is_empty() && self.work.twin.is_none() {
            self.release_idle(ctx);
        }
    }

    /// Whether the node of a seat said that it takes nothing more, although its disk works: what it has it will give back.
    fn is_leaving(&self, ctx: &Ctx, fence: Fence) -> bool {
        let load = self.work.seats.get(&fence).and_then(|seat| ctx.peers.get(seat.node)?.load);
        load.is_some_and(|load| !load.eligible && !load.disk_failing)
    }

    pub(super) fn slots_held(&self) -> u64 {
        self.work.seats.values().filter(|s| !self.work.shunned.contains_key(&s.node)).map(|s| u64::from(s.slots)).sum()
    }

    /// How many more tasks the seat should get: about [`QUEUE_AHEAD`] of work, at least two per slot, and towards the end of
    /// a phase no more than a fair share of what is left. `slots` are those of all seats.
    pub(super) fn window(&self, fence: Fence, slots: u64) -> u32 {
        let Some(seat) = self.work.seats.get(&fence).filter(|s| !self.work.shunned.contains_key(&s.node)) else {
            return 0;
        };
        let share =
            (self.pending_count() * u64::from(seat.slots)).div_ceil(2 * slots.max(1)).max(u64::from(seat.slots));
        #[expect(clippy::cast_precision_loss, reason = "a fraction of a second")]
        let seconds = QUEUE_AHEAD.as_ms() as f64 / 1e3;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the range first")]
        let ahead = (seat.rate * seconds).clamp(0.0, f64::from(WINDOW_MAX)) as u64;
        let want = ahead.max(u64::from(seat.slots) * 2).min(share);
        u32::try_from(want.saturating_sub(seat.open.count())).unwrap_or(u32::MAX)
    }

    pub(super) fn take_pending(&mut self, mut wanted: u32) -> Vec<Run> {
        let mut runs = Vec::new();
        while wanted > 0 {
            let Some(run) = self.pending.front_mut() else { break };
            let len = run.len.min(wanted);
            runs.push(Run { start: run.start, len });
            run.start += len;
            run.len -= len;
            wanted -= len;
            if run.len == 0 {
                self.pending.pop_front();
            }
        }
        runs
    }

    fn release_idle(&mut self, ctx: &mut Ctx) {
        let idle: Vec<Fence> = self.work.seats.iter().filter(|(_, s)| s.open.is_empty()).map(|(f, _)| *f).collect();
        let keep_one = idle.len() == self.work.seats.len();
        for fence in idle.into_iter().skip(usize::from(keep_one)) {
            if let Some(seat) = self.work.seats.remove(&fence) {
                ctx.state(self.job, Fact::Revoke { fence, lost: false });
                ctx.send(seat.node, Message::Release { lease: Lease { job: self.job, fence } });
            }
        }
    }

    /// Starts the slowest tasks a second time where a slot is idle (B1: stragglers are speculated).
    pub(super) fn speculate(&mut self, ctx: &mut Ctx) {
        if !self.pending.is_empty() || self.work.seats.is_empty() {
            return;
        }
        let alone = self.work.mean.0 == 0;
        let slow =
            if alone { self.slow_alone() } else { Span(2 * self.work.mean.1 / self.work.mean.0).max(SPECULATE_AFTER) };
        let straggler = self.work.seats.values().flat_map(|s| s.open.iter().map(move |(r, at)| (s.node, r, *at))).find(
            |(_, run, at)| run.len == 1 && ctx.now.at - *at >= slow && !self.work.speculated.contains(&run.start),
        );
        let Some((node, run, _)) = straggler else { return };
        let takes = |s: &Seat| s.open.count() < u64::from(s.slots) && !self.work.shunned.contains_key(&s.node);
        let idle = self.work.seats.iter().find(|(_, s)| s.node != node && takes(s)).map(|(fence, _)| *fence);
        if idle.is_none() && alone && self.may_run_twice() && self.work.twin.is_none() {
            // Its own award is the only one: somebody who has room is looked for.
            self.work.twin = Some(run.start);
        }
        if let Some(fence) = idle {
            self.work.speculated.insert(run.start);
            *self.work.begun.entry(run.start).or_default() += 1;
            ctx.note(Note::Speculated { job: self.job, phase: self.phase, task: run.start });
            self.send_assign(ctx, fence, vec![run], false);
        }
    }

    /// After how long a task is slow of which no other tells how long it takes.
    fn slow_alone(&self) -> Span {
        let half = |limit: u64| Span(limit.saturating_mul(500)).max(SPECULATE_ALONE_AFTER);
        self.spec.limits.timeout_ms.map_or(SPECULATE_UNLIMITED_AFTER, half)
    }

    /// Whether a task may be started a second time only because it takes long: not where its user wants no second attempt, nor where
    /// it writes what outlives it.
    fn may_run_twice(&self) -> bool {
        !planted(Bug::NoTwin) && self.spec.retry.attempts > 0 && self.spec.volumes.iter().all(|volume| volume.read_only)
    }

    /// The node that the task to be started a second time runs on, if it still does.
    pub(super) fn twin(&self) -> Option<(u32, NodeId)> {
        let task = self.work.twin?;
        let seat = self.work.seats.values().find(|s| s.open.get(task).is_some())?;
        Some((task, seat.node))
    }

    /// A beat's question about one lease: does it go on? `None` when this brain cannot say.
    pub(crate) fn on_lease(&mut self, ctx: &mut Ctx, from: NodeId, fence: Fence, open: u32) -> Option<bool> {
        if self.is_over() || !self.in_charge(ctx) {
            return None;
        }
        let adopting = self.stage == Stage::Adopting;
        let Some(seat) = self.work.seats.get_mut(&fence).filter(|s| s.node == from && s.answered) else {
            // Who has not said yet what it holds must not take silence, nor a hasty word, for an answer.
            return (!adopting && fence.term <= self.term).then_some(false);
        };
        if seat.overdue {
            return Some(false);
        }
        let (now, fence_after) = (ctx.now.at, FENCE_AFTER.at(self.pace));
        self.fruitless = 0;
        seat.heard = now;
        // Tasks may be under way in either direction; fewer than expected for a whole fencing time, without any report,
        // means that some got lost.
        if u64::from(open) >= seat.open.count() || now - seat.reported < fence_after {
            seat.mismatches = 0;
        } else {
            seat.mismatches += 1;
        }
        if u64::from(seat.mismatches) * BEAT_EVERY.0 >= fence_after.0 && self.stage == Stage::Running {
            seat.mismatches = 0;
            let runs: Vec<Run> = seat.open.iter().map(|(r, _)| r).collect();
            self.send_assign(ctx, fence, runs, true);
        }
        Some(true)
    }

    /// Members of the brain set kept a lease alive while they could not hear this brain.
    pub(crate) fn on_kept(&mut self, ctx: &Ctx, node: NodeId, fence: Fence) {
        if let Some(seat) = self.work.seats.get_mut(&fence).filter(|s| s.node == node) {
            seat.heard = seat.heard.max(ctx.now.at);
        }
    }

    pub(crate) fn on_decline(&mut self, ctx: &mut Ctx, from: NodeId, fence: Fence) {
        if self.work.seats.get(&fence).is_none_or(|s| s.node != from) {
            return;
        }
        if let Some(seat) = self.work.seats.remove(&fence) {
            if matches!(self.stage, Stage::Ending { .. } | Stage::Sealing { .. }) {
                // Nothing of it runs there any more: that is what was asked for.
                return;
            }
            ctx.note(Note::Back { lease: Lease { job: self.job, fence } });
            ctx.state(self.job, Fact::Revoke { fence, lost: false });
            self.requeue(&seat);
            ctx.peers.declined(from);
            self.in_vain(ctx);
        }
    }

    /// A worker's reduce tasks wait for sources that did not arrive whole.
    pub(crate) fn on_want_sources(&mut self, ctx: &mut Ctx, from: NodeId, fence: Fence) {
        if let Some(seat) = self.work.seats.get_mut(&fence).filter(|s| s.node == from) {
            seat.sources_sent = false;
            self.send_sources(ctx, fence);
        }
    }
}
