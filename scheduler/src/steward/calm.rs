//! Which watched jobs are looked at, and when. As long as a brain gives signs of life, nothing need be done for the jobs that it
//! leads but to ask about a few now and then: so they are kept by brain, and cost nothing one by one.
//!
//! Whatever may end a job's calm, but for its brain's silence, calls [`Stewards::check_by`] or [`Stewards::on_fact`].

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Included, Unbounded};

use sinew_crdt_state::ids::{JobId, NodeId};
use sinew_crdt_state::rules::brain_of;

use super::Stewards;
use super::election;
use super::rejoin::counts;
use crate::brains::Brains;
use crate::config::{CHECK_EVERY, QUIET_AFTER, TAKEOVER_AFTER, WANT_MAX};
use crate::ctx::Ctx;
use crate::time::Time;
use crate::wire::Message;

/// Jobs of one brain, alive.
#[derive(Debug, Default)]
pub(super) struct Group {
    jobs: BTreeSet<JobId>,
    /// The first of those that are looked at next for whether they should be asked about.
    next: Option<JobId>,
    ask_at: Time,
    /// So many are to be asked about as soon as may be: the brain has been started anew.
    hurry: usize,
}

impl Group {
    /// The jobs whose turn it is.
    fn turn(&mut self) -> Vec<JobId> {
        let (from, until) = self.next.map_or((Unbounded, None), |next| (Included(next), Some(next)));
        let rest = self.jobs.range((from, Unbounded)).chain(until.into_iter().flat_map(|next| self.jobs.range(..next)));
        let turn: Vec<JobId> = rest.take(WANT_MAX).copied().collect();
        let after = turn.last().and_then(|last| self.jobs.range((Excluded(*last), Unbounded)).next());
        self.next = after.copied();
        turn
    }
}

impl Stewards {
    /// The job is looked at by itself from now on.
    pub(super) fn stir(&mut self, job: &JobId) {
        let Some(watched) = self.watched.get_mut(job) else { return };
        if let Some(brain) = watched.calm.take()
            && let Some(group) = self.groups.get_mut(&brain)
        {
            group.jobs.remove(job);
            if group.jobs.is_empty() {
                self.groups.remove(&brain);
            }
        }
        self.look.insert(*job);
    }

    /// Something came up that no look before could foresee: the next one must not be too late for this job.
    pub(super) fn check_by(&mut self, ctx: &Ctx, job: JobId) {
        self.stir(&job);
        let by = self.calm_until(ctx, job).max(ctx.now.at + CHECK_EVERY);
        self.check_at = self.check_at.min(by);
    }

    /// A fact may tell of another brain than the one whose signs of life have counted for the job.
    pub(crate) fn on_fact(&mut self, ctx: &Ctx, job: JobId) {
        let Some(brain) = self.watched.get(&job).and_then(|w| w.calm) else { return };
        let now = ctx.ledger.live(&job).and_then(|live| brain_of(&live.state.spec, self.leader_term(ctx, job)));
        if now != Some(brain) || !counts(ctx, job) {
            self.check_by(ctx, job);
        }
    }

    /// The node was started anew: it may have lost its disk, and know nothing of jobs that it is believed to lead.
    pub(crate) fn on_restart(&mut self, ctx: &Ctx, node: NodeId) {
        if let Some(group) = self.groups.get_mut(&node) {
            group.hurry = group.jobs.len();
            group.ask_at = ctx.now.at;
            self.check_at = self.check_at.min(ctx.now.at + CHECK_EVERY);
        }
    }

    /// Looks after the jobs whose calm has ended: stands where the brain is silent, asks where it is only quiet.
    pub(super) fn check(&mut self, ctx: &mut Ctx, brains: &mut Brains) {
        self.stir_silent(ctx);
        let mut quiet: BTreeMap<NodeId, Vec<JobId>> = BTreeMap::new();
        for job in self.look.iter().copied().collect::<Vec<_>>() {
            ctx.looks += 1;
            if brains.get(&job).is_some() {
                // It comes back when its brain here ends.
                self.look.remove(&job);
                continue;
            }
            if ctx.ledger.live(&job).is_none_or(|live| live.state.seal.is_some()) {
                self.forget(&job);
                continue;
            }
            self.recall(ctx, job);
            if ctx.leaving {
                // It votes, and stands for nothing.
                continue;
            }
            if let Some(brain) = self.watch_over(ctx, brains, job) {
                let asked = quiet.entry(brain).or_default();
                if asked.len() < WANT_MAX {
                    asked.push(job);
                }
            }
            self.calm_down(ctx, job);
        }
        self.ask_in_turn(ctx, &mut quiet);
        for (brain, jobs) in quiet {
            for job in &jobs {
                if let Some(watched) = self.watched.get_mut(job) {
                    watched.quiet_since = ctx.now.at;
                }
            }
            if !jobs.is_empty() {
                ctx.send(brain, Message::Led(jobs));
            }
        }
    }

    /// Jobs of brains that may have been silent for too long for some of them.
    fn stir_silent(&mut self, ctx: &Ctx) {
        let silent = |brain: &NodeId| self.heard.get(brain).is_none_or(|at| *at + TAKEOVER_AFTER <= ctx.now.at);
        let brains: Vec<NodeId> = self.groups.keys().filter(|brain| silent(brain)).copied().collect();
        for brain in brains {
            let Some(group) = self.groups.remove(&brain) else { continue };
            for job in &group.jobs {
                if let Some(watched) = self.watched.get_mut(job) {
                    watched.calm = None;
                }
            }
            self.look.extend(group.jobs);
        }
    }

    /// Leaves the job to its brain's signs of life, where they are all that matters.
    fn calm_down(&mut self, ctx: &Ctx, job: JobId) {
        let Some(live) = ctx.ledger.live(&job).filter(|_| !self.is_busy(ctx, job)) else { return };
        let brain = brain_of(&live.state.spec, self.leader_term(ctx, job)).filter(|brain| *brain != ctx.own);
        let alive = |brain: &NodeId| self.heard.get(brain).is_some_and(|at| *at + TAKEOVER_AFTER > ctx.now.at);
        let (Some(brain), Some(watched)) = (brain.filter(alive), self.watched.get_mut(&job)) else { return };
        watched.calm = Some(brain);
        self.look.remove(&job);
        let quiet_at = watched.quiet_since.max(watched.since) + QUIET_AFTER;
        let group = self.groups.entry(brain).or_default();
        if group.jobs.is_empty() || group.jobs.len() < WANT_MAX {
            group.ask_at = if group.jobs.is_empty() { quiet_at } else { group.ask_at.min(quiet_at) };
        }
        group.jobs.insert(job);
    }

    /// Asks brains about jobs of which they have not spoken for long: so many at a time that each is asked about often where they
    /// are few, and that it costs little where they are many.
    fn ask_in_turn(&mut self, ctx: &mut Ctx, quiet: &mut BTreeMap<NodeId, Vec<JobId>>) {
        let now = ctx.now.at;
        for (brain, group) in self.groups.iter_mut().filter(|(_, group)| now >= group.ask_at) {
            let asked = quiet.entry(*brain).or_default();
            let turn = group.turn();
            ctx.looks += turn.len() as u64;
            let in_hurry = group.hurry > 0;
            group.hurry = group.hurry.saturating_sub(turn.len());
            let mut next = now + QUIET_AFTER;
            for job in turn {
                let Some(watched) = self.watched.get(&job) else { continue };
                let quiet_at = watched.quiet_since.max(watched.since) + QUIET_AFTER;
                if (in_hurry || quiet_at <= now) && asked.len() < WANT_MAX {
                    asked.push(job);
                } else {
                    next = next.min(quiet_at);
                }
            }
            group.ask_at = match group.hurry {
                0 if group.jobs.len() <= WANT_MAX => next.max(now + CHECK_EVERY),
                0 => now + QUIET_AFTER,
                _ => now + CHECK_EVERY,
            };
        }
    }

    /// When jobs are to be looked at next.
    pub(super) fn next_check(&self, ctx: &Ctx) -> Time {
        let one_by_one = self.look.iter().map(|job| self.calm_until(ctx, *job));
        let silent_at = |brain: &NodeId| self.heard.get(brain).map_or(ctx.now.at, |at| *at + TAKEOVER_AFTER);
        let groups = self.groups.iter().map(|(brain, group)| group.ask_at.min(silent_at(brain)));
        one_by_one.chain(groups).min().unwrap_or(Time(u64::MAX))
    }

    fn is_busy(&self, ctx: &Ctx, job: JobId) -> bool {
        let busy =
            self.watched.get(&job).is_none_or(|w| w.disowned.is_some() || w.campaign.is_some() || w.recall.is_some());
        busy || !counts(ctx, job)
    }

    /// Until when nothing need be done for a job that is not led here: for as long as its brain, heard of a moment ago, may yet be
    /// silent. Signs of life only move that on; whatever else may move it forward calls [`Self::check_by`].
    fn calm_until(&self, ctx: &Ctx, job: JobId) -> Time {
        let (Some(watched), Some(live)) = (self.watched.get(&job), ctx.ledger.live(&job)) else {
            return Time(u64::MAX);
        };
        let (spec, term) = (&live.state.spec, self.leader_term(ctx, job));
        match brain_of(spec, term).filter(|_| !self.is_busy(ctx, job)) {
            Some(brain) => {
                let quiet_at = watched.quiet_since.max(watched.since) + QUIET_AFTER;
                quiet_at
                    .min(self.brain_heard(job, brain) + election::patience(spec, ctx.own, brain, live.state.pace(term)))
            }
            None => Time::default(),
        }
    }

    /// Whether the job's brain, alive, has not spoken of it for long: then it should be asked.
    pub(super) fn is_quiet(&self, ctx: &Ctx, job: JobId) -> bool {
        let watched = self.watched.get(&job);
        watched.is_some_and(|w| w.disowned.is_none() && ctx.now.at - w.quiet_since.max(w.since) >= QUIET_AFTER)
    }
}
