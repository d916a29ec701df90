//! All jobs that this node leads: which need a step now, which next, and which wait for room.

use std::collections::{BTreeMap, BTreeSet};

use sinew_crdt_state::ids::{JobId, NodeId};

use crate::brain::{Brain, Sought};
use crate::config::WANT_MAX;
use crate::ctx::Ctx;
use crate::io::Effect;
use crate::sets::Sets;
use crate::time::Time;
use crate::waiting::{ClassId, Waiting};
use crate::wire::{Message, Topic};

/// A brain, and where it stands in the books of this file.
#[derive(Debug)]
struct Led {
    brain: Brain,
    /// Its number in order of arrival.
    arrival: u64,
    /// The class in which it waits for room.
    waits_in: Option<ClassId>,
    timer: Option<Time>,
}

#[derive(Debug, Default)]
pub(crate) struct Brains {
    // Boxed: a tree keeps room for neighbours that may come.
    map: BTreeMap<JobId, Box<Led>>,
    arrivals: u64,
    dirty: BTreeSet<JobId>,
    timers: BTreeSet<(Time, JobId)>,
    waiting: Waiting,
    sets: Sets,
    /// Jobs of brains that have ended since somebody asked: sealed, or led elsewhere.
    /// Each with the pace that its next term is to have at least.
    ended: Vec<(JobId, u8)>,
}

impl Brains {
    pub(crate) fn insert(&mut self, job: JobId, brain: Brain) {
        self.remove(&job);
        self.arrivals += 1;
        self.sets.insert(brain.set(), brain.pace(), job);
        self.map.insert(job, Box::new(Led { brain, arrival: self.arrivals, waits_in: None, timer: None }));
        self.dirty.insert(job);
    }

    fn remove(&mut self, job: &JobId) {
        let Some(led) = self.map.remove(job) else { return };
        self.sets.remove(led.brain.set(), led.brain.pace(), job);
        if let Some(class) = led.waits_in {
            self.waiting.leave(class, led.arrival);
        }
        if let Some(at) = led.timer {
            self.timers.remove(&(at, *job));
        }
    }

    pub(crate) fn get(&self, job: &JobId) -> Option<&Brain> {
        self.map.get(job).map(|led| &led.brain)
    }

    /// The brain of `job`, which will be stepped at the flush.
    pub(crate) fn touch(&mut self, job: &JobId) -> Option<&mut Brain> {
        let led = self.map.get_mut(job)?;
        self.dirty.insert(*job);
        Some(&mut led.brain)
    }

    /// The brain of `job` for a look that needs no step.
    pub(crate) fn peek_mut(&mut self, job: &JobId) -> Option<&mut Brain> {
        self.map.get_mut(job).map(|led| &mut led.brain)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&JobId, &Brain)> {
        self.map.iter().map(|(job, led)| (job, &led.brain))
    }

    /// Marks what is due by now.
    pub(crate) fn tick(&mut self, ctx: &Ctx) {
        while let Some((at, job)) = self.timers.first().copied().filter(|(at, _)| *at <= ctx.now.at) {
            self.timers.remove(&(at, job));
            if let Some(led) = self.map.get_mut(&job) {
                led.timer = None;
            }
            self.dirty.insert(job);
        }
    }

    /// Every job looks again.
    pub(crate) fn touch_all(&mut self) {
        self.dirty.extend(self.map.keys().copied());
    }

    /// Leaves every job that has other members to lead it to these: they ask about it, and are told that it is led here no more. A
    /// submit that is not acknowledged yet is refused by itself.
    pub(crate) fn step_down(&mut self, ctx: &mut Ctx) {
        for (job, led) in &mut self.map {
            if led.brain.set().len() > 1 && !led.brain.is_storing() {
                led.brain.depose(ctx);
                self.dirty.insert(*job);
            }
        }
    }

    /// Leaves every job that has other members to lead it to these, and tells them; all of them, or those that nothing speaks
    /// against leaving now. Gives what was left, with the terms.
    pub(crate) fn hand_over(&mut self, ctx: &mut Ctx, all: bool) -> Vec<(JobId, u32)> {
        let mut left = Vec::new();
        let mut told: BTreeMap<NodeId, Vec<JobId>> = BTreeMap::new();
        for (job, led) in &mut self.map {
            if led.brain.set().len() > 1 && (all || !led.brain.is_storing()) && !led.brain.is_over() {
                left.push((*job, led.brain.term));
                led.brain.members().filter(|n| *n != ctx.own).for_each(|n| told.entry(n).or_default().push(*job));
                led.brain.leave_off(ctx);
                self.dirty.insert(*job);
            }
        }
        for (node, jobs) in told {
            jobs.chunks(WANT_MAX).for_each(|jobs| ctx.send(node, Message::NotLed(jobs.to_vec())));
        }
        left
    }

    /// A peer came or went: every job that has to do with it looks again.
    pub(crate) fn on_peer_change(&mut self, node: NodeId) {
        self.dirty.extend(self.map.iter().filter(|(_, led)| led.brain.concerns(node)).map(|(job, _)| *job));
    }

    /// A node came back with another disk.
    pub(crate) fn on_disk_lost(&mut self, ctx: &mut Ctx, node: NodeId) {
        for (job, led) in self.map.iter_mut().filter(|(_, led)| led.brain.knows(node)) {
            led.brain.on_disk_lost(ctx, node);
            self.dirty.insert(*job);
        }
    }

    /// A node wants to run this job, or another one that needs the same.
    pub(crate) fn on_interest(&mut self, ctx: &mut Ctx, from: NodeId, job: &JobId) {
        if let Some(class) = self.map.get(job).and_then(|led| led.waits_in) {
            ctx.peers.may_have_room(from);
            self.waiting.interest(class);
        }
    }

    /// An answer of `node` to a beat sent at `sent` says nothing about this job.
    pub(crate) fn not_vouched(&mut self, job: &JobId, node: NodeId, sent: Time) {
        if let Some(led) = self.map.get_mut(job) {
            led.brain.not_vouched(node, sent);
            self.sets.mark_odd(*job);
        }
    }

    /// A member of some set answered a beat, for the first time from this disk or as before.
    pub(crate) fn on_contact(&mut self, ctx: &Ctx, node: NodeId, other_disk: bool) {
        if other_disk {
            self.sets.mark_odd_with(node);
        }
        self.dirty.extend(self.sets.back_in_touch(ctx, node));
    }

    /// Members of the sets of jobs led here, without this node.
    pub(crate) fn set_members(&self, own: NodeId) -> impl Iterator<Item = NodeId> {
        self.sets.members().into_iter().filter(move |n| *n != own)
    }

    /// Jobs of which members must be asked if this node still leads them.
    pub(crate) fn in_doubt(&mut self, ctx: &mut Ctx) -> BTreeSet<JobId> {
        let suspects: BTreeSet<JobId> = self.sets.out_of_touch(ctx).chain(self.sets.odd()).copied().collect();
        ctx.looks += suspects.len() as u64;
        let mut doubts = BTreeSet::new();
        for job in suspects {
            let Some(led) = self.map.get_mut(&job) else { continue };
            if led.brain.goes_with_its_set(ctx) {
                self.sets.no_longer_odd(&job);
            }
            if led.brain.is_in_doubt(ctx) {
                doubts.insert(job);
            }
            if led.brain.change_pace(ctx) {
                self.dirty.insert(job);
            }
        }
        doubts
    }

    /// Steps every job that needs it, then gives room to those that wait. Steps may touch others, by messages to this node itself, so
    /// callers loop.
    pub(crate) fn step(&mut self, ctx: &mut Ctx) {
        for job in std::mem::take(&mut self.dirty) {
            let Some(led) = self.map.get_mut(&job) else { continue };
            ctx.looks += 1;
            led.brain.step(ctx);
            self.after_step(ctx, job);
        }
        if self.waiting.is_due(&ctx.peers, ctx.now.at) {
            self.give_room(ctx);
        }
    }

    fn after_step(&mut self, ctx: &mut Ctx, job: JobId) {
        let Some(led) = self.map.get_mut(&job) else { return };
        if led.brain.is_over() {
            led.brain.drop_offers(ctx);
            let pace = led.brain.pace_wanted();
            self.remove(&job);
            self.ended.push((job, pace));
            return;
        }
        if led.brain.take_rest() {
            self.waiting.rest(led.brain.spec(), ctx.now.at);
        }
        match (led.waits_in, led.brain.seeks_room(ctx)) {
            (None, true) => {
                led.waits_in = Some(self.waiting.join(led.brain.spec(), led.arrival, job, ctx.now.at));
            }
            (Some(class), false) => {
                led.waits_in = None;
                self.waiting.leave(class, led.arrival);
            }
            _ => {}
        }
        set_timer(&mut self.timers, ctx, job, led);
    }

    /// Gives what room there is to the jobs that have waited longest, one of each class in turn.
    fn give_room(&mut self, ctx: &mut Ctx) {
        let mut due = self.waiting.take_due(&ctx.peers, ctx.now.at);
        while let Some(class) = due.pop_front() {
            if self.give_room_to(ctx, class) {
                due.push_back(class);
            }
        }
        self.waiting.looked(ctx.now.at);
    }

    /// Looks for room for the first job of a class. Returns whether it is worth looking for the next one.
    fn give_room_to(&mut self, ctx: &mut Ctx, class: ClassId) -> bool {
        let Some(job) = self.waiting.first(class) else { return false };
        let Some(led) = self.map.get_mut(&job) else { return false };
        ctx.looks += 1;
        match led.brain.seek(ctx) {
            Sought::NoRoom => {
                let ask_at = ctx.peers.ask_at(led.brain.spec(), ctx.now.at);
                let advert = self.waiting.no_room(class, led.brain.has_seats(), ask_at, ctx.now.at);
                if let Some(advert) = advert {
                    let payload = sinew_crdt_state::cbor::to_vec(&advert);
                    ctx.effect(Effect::Publish { topic: Topic::Advert, payload });
                }
                return false;
            }
            Sought::Offered => {
                self.waiting.served(class);
                self.waiting.moved(class);
            }
            Sought::NotForThis => {}
            Sought::OutOfTouch => self.sets.put_aside(job),
        }
        led.waits_in = None;
        self.waiting.leave(class, led.arrival);
        set_timer(&mut self.timers, ctx, job, led);
        true
    }

    pub(crate) fn take_ended(&mut self) -> Vec<(JobId, u8)> {
        std::mem::take(&mut self.ended)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    pub(crate) fn has_work(&self, ctx: &Ctx) -> bool {
        !self.dirty.is_empty() || self.waiting.is_due(&ctx.peers, ctx.now.at)
    }

    pub(crate) fn timeout(&self) -> Option<Time> {
        let first = self.timers.first().map(|(at, _)| *at);
        first.into_iter().chain(self.waiting.timeout()).min()
    }
}

fn set_timer(timers: &mut BTreeSet<(Time, JobId)>, ctx: &Ctx, job: JobId, led: &mut Led) {
    let at = led.brain.timeout(ctx);
    if let Some(old) = led.timer.filter(|old| at != Some(*old)) {
        timers.remove(&(old, job));
    }
    timers.extend(at.map(|at| (at, job)));
    led.timer = at;
}
