//! Placement: whom to ask, whose bid to take (J2), and what to do when nobody has room.

use std::collections::BTreeMap;

use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::fact::{Fact, Fence, Run};
use sinew_crdt_state::ids::{FactId, NodeId};
use sinew_crdt_state::planted::{Bug, planted};
use sinew_crdt_state::spec::PACE_MIN;

use super::{Brain, Seat, Stage};
use crate::config::{BID_WINDOW, LEASE, OFFERS, PLACE_AGAIN, SEATS_MAX};
use crate::ctx::Ctx;
use crate::distance::pace_for_worker;
use crate::io::{Effect, Note};
use crate::time::{Span, Time};
use crate::wire::{Lease, Message};

/// After so many rounds of offers that nobody took, or of awards that were all declined, a job waits: more is chasing room that others take first.
const FRUITLESS_MAX: u32 = 8;

/// ... at most so many times as long as others do.
const RESTS_MAX: u32 = 32;

/// What a node bids.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bid {
    pub(crate) id: FactId,
    pub(crate) slots: u32,
    pub(crate) score: i32,
    /// Bytes of the job's inputs that are there already.
    pub(crate) held_bytes: u64,
}

/// Offers that are out.
#[derive(Debug)]
pub(super) struct Placement {
    /// Asked nodes and their bids, each with the slots that were counted as taken there.
    asked: BTreeMap<NodeId, (Option<Bid>, u32)>,
    until: Time,
    wanted: u32,
}

/// What came of looking for room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sought {
    /// Nodes were asked.
    Offered,
    /// No node is known to have room for what the job needs.
    NoRoom,
    /// Those that have some do not suit this job now.
    NotForThis,
    /// The brain may not decide before its set answers again.
    OutOfTouch,
}

impl Brain {
    /// Whether tasks wait that no seat will take, and nobody has been asked.
    pub(crate) fn seeks_room(&self, ctx: &Ctx) -> bool {
        (self.stage == Stage::Running || self.asks_early())
            && self.placement.is_none()
            && self.verdict.is_none()
            && !self.canceled
            && ctx.now.at >= self.place_at
            && self.work.seats.len() < SEATS_MAX
            && self.wanted_slots() > 0
    }

    /// Whether nodes may be asked for bids while the spec is still on its way to a majority: an offer binds nobody, and is answered
    /// meanwhile. Awards wait. A spec that no other node has to store is told to none before it is on this node's disk.
    fn asks_early(&self) -> bool {
        self.stage == Stage::Storing && self.spec.brain_set.len() > 1
    }

    /// The spec is safe, so bids may be taken; those that have waited for it too long were made in other times.
    pub(super) fn drop_old_offers(&mut self, ctx: &mut Ctx) {
        if self.placement.as_ref().is_some_and(|placement| ctx.now.at >= placement.until) {
            self.drop_offers(ctx);
        }
    }

    pub(crate) fn has_seats(&self) -> bool {
        !self.work.seats.is_empty()
    }

    /// Whether it began to rest since this was asked last.
    pub(crate) fn take_rest(&mut self) -> bool {
        std::mem::take(&mut self.rests)
    }

    /// Awards what was bid once everybody has answered, or had the time to.
    pub(super) fn place(&mut self, ctx: &mut Ctx) {
        let Some(placement) = &mut self.placement else { return };
        let gone = |node: &NodeId, bid: &Option<Bid>| bid.is_none() && !ctx.peers.is_connected(*node);
        let gone: Vec<NodeId> = placement.asked.iter().filter(|(n, (bid, _))| gone(n, bid)).map(|(n, _)| *n).collect();
        for node in gone {
            self.on_no_bid(ctx, node);
        }
        let Some(placement) = &self.placement else { return };
        let complete = placement.asked.values().all(|(bid, _)| bid.is_some());
        if complete || ctx.now.at >= placement.until {
            self.award(ctx);
        }
    }

    /// Asks for slots where there is room that nobody here has asked for.
    pub(crate) fn seek(&mut self, ctx: &mut Ctx) -> Sought {
        if !self.in_charge(ctx) {
            return Sought::OutOfTouch;
        }
        let wanted = self.wanted_slots();
        let mut candidates = ctx.peers.candidates(&self.spec, ctx.now.at);
        if candidates.is_empty() {
            return Sought::NoRoom;
        }
        if let Some(work) = self.work.there() {
            work.shunned.retain(|_, until| *until > ctx.now.at);
        }
        if candidates.iter().all(|(node, _)| self.work.shunned.contains_key(node)) && self.slots_held() == 0 {
            // Nobody else can take the tasks now.
            if let Err(at) = self.try_all_again(ctx.now.at) {
                self.place_at = at;
                return Sought::NotForThis;
            }
            self.work.shunned.clear();
        }
        let runs_on = self.twin().filter(|_| self.pending.is_empty()).map(|(_, node)| node);
        candidates.retain(|(node, _)| !self.work.shunned.contains_key(node) && runs_on != Some(*node));
        let Some(submit) = self.submit_envelope(ctx).filter(|_| !candidates.is_empty() && wanted > 0) else {
            self.place_at = ctx.now.at + PLACE_AGAIN;
            return Sought::NotForThis;
        };
        let mut left = wanted;
        let mut asked = BTreeMap::new();
        for (node, room) in candidates {
            if left == 0 && asked.len() >= OFFERS || asked.len() >= SEATS_MAX {
                break;
            }
            let taken = room.min(left);
            left -= taken;
            ctx.peers.offer(node, &self.spec, taken);
            asked.insert(node, (None, taken));
        }
        for node in asked.keys() {
            ctx.send(*node, Message::Offer { submit: Box::new(submit.clone()), slots: wanted });
        }
        self.placement = Some(Box::new(Placement { asked, until: ctx.now.at + BID_WINDOW.at(self.pace), wanted }));
        Sought::Offered
    }

    /// Slots beyond those held that waiting tasks could use.
    fn wanted_slots(&self) -> u32 {
        let held = self.slots_held();
        let takes = |seat: &&Seat| !self.work.shunned.contains_key(&seat.node);
        let open: u64 = self.work.seats.values().filter(takes).map(|s| s.open.count()).sum();
        let wanted = (self.pending_count() + open).saturating_sub(held);
        if self.turns_back() {
            0
        } else if self.pending.is_empty() {
            u32::from(self.twin().is_some())
        } else {
            u32::try_from(wanted).unwrap_or(u32::MAX)
        }
    }

    fn submit_envelope(&self, ctx: &Ctx) -> Option<Envelope> {
        ctx.submit_of(&self.job)
    }

    pub(super) fn placement_timeout(&self, ctx: &Ctx) -> Option<Time> {
        match &self.placement {
            Some(placement) => Some(placement.until),
            None => (self.place_at > ctx.now.at).then_some(self.place_at),
        }
    }

    pub(crate) fn on_bid(&mut self, from: NodeId, bid: Bid) {
        if let Some((asked, _)) = self.placement.as_mut().and_then(|p| p.asked.get_mut(&from)) {
            *asked = Some(bid);
        }
    }

    pub(crate) fn on_no_bid(&mut self, ctx: &mut Ctx, from: NodeId) {
        if let Some((_, taken)) = self.placement.as_mut().and_then(|p| p.asked.remove(&from)) {
            ctx.peers.offer_ended(from, &self.spec, taken);
        }
    }

    /// Takes back what offers that are out have counted as taken: nothing will come of them.
    pub(crate) fn drop_offers(&mut self, ctx: &mut Ctx) {
        if let Some(placement) = self.placement.take() {
            for (node, (_, taken)) in placement.asked {
                ctx.peers.offer_ended(node, &self.spec, taken);
            }
            ctx.peers.room_given_back();
        }
    }

    /// Counts a round that won nothing; after too many in a row the job rests, longer each time, so that others have their turn.
    pub(super) fn in_vain(&mut self, ctx: &Ctx) {
        self.fruitless += 1;
        if self.fruitless.is_multiple_of(FRUITLESS_MAX) {
            let times = (self.fruitless / FRUITLESS_MAX).min(RESTS_MAX);
            self.place_at = ctx.now.at + Span(PLACE_AGAIN.0 * u64::from(times));
            self.rests = true;
        }
    }

    /// Awards the best bids until enough slots are had.
    fn award(&mut self, ctx: &mut Ctx) {
        let Some(placement) = self.placement.take() else { return };
        for (node, (_, taken)) in &placement.asked {
            ctx.peers.offer_ended(*node, &self.spec, *taken);
        }
        // The first answers of its set may have come since the spec was stored.
        if self.work.seats.is_empty() && self.is_too_fast(ctx) {
            ctx.peers.room_given_back();
            return self.depose(ctx);
        }
        let mut bids: Vec<(NodeId, Bid)> =
            placement.asked.into_iter().filter_map(|(node, (bid, _))| Some((node, bid?))).collect();
        if bids.is_empty() {
            // Their answers told what they have free; others are asked now.
            return self.in_vain(ctx);
        }
        // Whoever is too far for this pace would lose its leases as fast as it gets them.
        let need = |node: NodeId| pace_for_worker(ctx.peers.trip(node));
        let nearest = bids.iter().map(|(node, _)| need(*node)).min().unwrap_or(PACE_MIN);
        if nearest > self.pace && !planted(Bug::OnePaceForAll) {
            self.pace_wanted = self.pace_wanted.max(nearest);
            ctx.peers.room_given_back();
            self.change_pace(ctx);
            return self.in_vain(ctx);
        }
        bids.retain(|(node, _)| need(*node) <= self.pace || planted(Bug::OnePaceForAll));
        let order: Vec<NodeId> = ctx.peers.candidates(&self.spec, ctx.now.at).into_iter().map(|(n, _)| n).collect();
        let rank = |node: &NodeId| order.iter().position(|n| n == node).unwrap_or(usize::MAX);
        // Input bytes already there weigh most, then our ranking, then the bidder's own estimate.
        bids.sort_by_key(|(node, bid)| (std::cmp::Reverse(bid.held_bytes), rank(node), std::cmp::Reverse(bid.score)));
        let mut wanted = placement.wanted;
        for (node, bid) in bids {
            if wanted == 0 || self.pending.is_empty() && self.twin().is_none_or(|(_, on)| on == node) {
                break;
            }
            let slots = bid.slots.min(wanted).max(1);
            wanted -= slots.min(wanted);
            self.award_to(ctx, node, slots, bid.id);
        }
        // Where nothing was awarded there is room for others.
        ctx.peers.room_given_back();
    }

    fn award_to(&mut self, ctx: &mut Ctx, node: NodeId, slots: u32, bid: FactId) {
        self.epoch_last += 1;
        let fence = Fence { term: self.term, epoch: self.epoch_last };
        let lease_ms = u32::try_from(LEASE.at(self.pace).as_ms()).unwrap_or(u32::MAX);
        let (_, award) = ctx.state(self.job, Fact::Award { fence, node, slots, lease_ms });
        ctx.peers.promise(node, &self.spec, slots);
        self.work.seats.insert(fence, Seat::new(node, slots, ctx.now.at));
        let window = self.window(fence, self.slots_held()).max(1);
        let runs = match self.twin() {
            Some((task, _)) if self.pending.is_empty() => {
                self.work.twin = None;
                self.work.speculated.insert(task);
                *self.work.begun.entry(task).or_default() += 1;
                ctx.note(Note::Speculated { job: self.job, phase: self.phase, task });
                vec![Run { start: task, len: 1 }]
            }
            _ => self.take_pending(window),
        };
        let Some(assign) = self.assign(fence, runs, ctx.now.at, false) else { return };
        ctx.send(node, Message::Award { award: Box::new(award), bid, assign });
        self.send_sources(ctx, fence);
        ctx.effect(Effect::Changed(self.job));
    }

    /// Tells a reducer's node, once, where the map outputs are.
    pub(super) fn send_sources(&mut self, ctx: &mut Ctx, fence: Fence) {
        // 4,096 entries of about 130 bytes: half a MiB a message.
        const PAGE: usize = 4_096;
        if self.phase == 0 || self.stage != Stage::Running {
            return;
        }
        let Some(seat) = self.work.seats.get_mut(&fence).filter(|s| !s.sources_sent) else { return };
        seat.sources_sent = true;
        let items = super::results::located(ctx, self.job);
        let lease = Lease { job: self.job, fence };
        let total = u32::try_from(items.len()).unwrap_or(u32::MAX);
        let pages: Vec<Vec<_>> =
            if items.is_empty() { vec![Vec::new()] } else { items.chunks(PAGE).map(<[_]>::to_vec).collect() };
        for (i, items) in pages.into_iter().enumerate() {
            let start = u32::try_from(i * PAGE).unwrap_or(u32::MAX);
            ctx.send(seat.node, Message::Sources { lease, start, total, items });
        }
    }
}
