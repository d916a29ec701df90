//! All jobs that this node leads: which need a step now, and which next.

use std::collections::{BTreeMap, BTreeSet};

use sinew_crdt_state::ids::{JobId, NodeId};

use crate::brain::Brain;
use crate::ctx::Ctx;
use crate::time::Time;

#[derive(Debug, Default)]
pub(crate) struct Brains {
    map: BTreeMap<JobId, Brain>,
    dirty: BTreeSet<JobId>,
    timers: BTreeSet<(Time, JobId)>,
    timer_of: BTreeMap<JobId, Time>,
    /// Jobs that found no room, in order of arrival: served first when something frees up.
    seen_news: u64,
    /// Jobs of brains that have ended since somebody asked: sealed, or led elsewhere.
    ended: Vec<JobId>,
}

impl Brains {
    pub(crate) fn insert(&mut self, job: JobId, brain: Brain) {
        self.map.insert(job, brain);
        self.dirty.insert(job);
    }

    pub(crate) fn get(&self, job: &JobId) -> Option<&Brain> {
        self.map.get(job)
    }

    /// The brain of `job`, which will be stepped at the flush.
    pub(crate) fn touch(&mut self, job: &JobId) -> Option<&mut Brain> {
        let brain = self.map.get_mut(job)?;
        self.dirty.insert(*job);
        Some(brain)
    }

    /// The brain of `job` for a look that needs no step.
    pub(crate) fn peek_mut(&mut self, job: &JobId) -> Option<&mut Brain> {
        self.map.get_mut(job)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&JobId, &Brain)> {
        self.map.iter()
    }

    /// Marks what is due by now, and jobs that wait for room when there is news of some.
    pub(crate) fn tick(&mut self, ctx: &Ctx) {
        while let Some((at, job)) = self.timers.first().copied().filter(|(at, _)| *at <= ctx.now.at) {
            self.timers.remove(&(at, job));
            self.timer_of.remove(&job);
            self.dirty.insert(job);
        }
        if self.seen_news != ctx.peers.news {
            self.seen_news = ctx.peers.news;
            for (job, brain) in &mut self.map {
                if brain.is_waiting_for_room() {
                    brain.on_interest(ctx);
                    self.dirty.insert(*job);
                }
            }
        }
    }

    /// Every job looks again.
    pub(crate) fn touch_all(&mut self) {
        self.dirty.extend(self.map.keys().copied());
    }

    /// A peer came or went: every job that has to do with it looks again.
    pub(crate) fn on_peer_change(&mut self, node: NodeId) {
        self.dirty.extend(self.map.iter().filter(|(_, b)| b.concerns(node)).map(|(job, _)| *job));
    }

    /// A node came back with another disk.
    pub(crate) fn on_disk_lost(&mut self, ctx: &mut Ctx, node: NodeId) {
        for (job, brain) in self.map.iter_mut().filter(|(_, b)| b.knows(node)) {
            brain.on_disk_lost(ctx, node);
            self.dirty.insert(*job);
        }
    }

    /// Steps every job that needs it. Steps may touch others, by messages to this node itself, so callers loop.
    pub(crate) fn step(&mut self, ctx: &mut Ctx) {
        for job in std::mem::take(&mut self.dirty) {
            let Some(brain) = self.map.get_mut(&job) else { continue };
            brain.step(ctx);
            if let Some(old) = self.timer_of.remove(&job) {
                self.timers.remove(&(old, job));
            }
            if brain.is_over() {
                self.map.remove(&job);
                self.ended.push(job);
            } else if let Some(at) = brain.timeout(ctx) {
                self.timers.insert((at, job));
                self.timer_of.insert(job, at);
            }
        }
    }

    pub(crate) fn take_ended(&mut self) -> Vec<JobId> {
        std::mem::take(&mut self.ended)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    pub(crate) fn has_work(&self) -> bool {
        !self.dirty.is_empty()
    }

    pub(crate) fn timeout(&self) -> Option<Time> {
        self.timers.first().map(|(at, _)| *at)
    }
}
