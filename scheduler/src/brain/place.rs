//! Placement: whom to ask, whose bid to take (J2), and what to do when nobody has room.

use std::collections::BTreeMap;

use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::fact::{Fact, Fence};
use sinew_crdt_state::ids::{FactId, NodeId};

use super::{Brain, Seat, Stage};
use crate::config::{ADVERT_EVERY, BID_WINDOW, LEASE, OFFERS, PLACE_AGAIN, SEATS_MAX};
use crate::ctx::Ctx;
use crate::io::Effect;
use crate::time::Time;
use crate::wire::{Advert, Lease, Message, Topic};

/// After so many rounds of offers that nobody took, or of awards that were all declined, a job waits: more is chasing room that others take first.
const FRUITLESS_MAX: u32 = 8;

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
    /// Asked nodes and their bids.
    asked: BTreeMap<NodeId, Option<Bid>>,
    until: Time,
    wanted: u32,
}

impl Brain {
    /// Asks for slots when tasks wait that no seat will take.
    pub(super) fn place(&mut self, ctx: &mut Ctx) {
        if let Some(placement) = &mut self.placement {
            placement.asked.retain(|node, bid| bid.is_some() || ctx.peers.is_connected(*node));
            let complete = placement.asked.values().all(Option::is_some);
            if complete || ctx.now.at >= placement.until {
                self.award(ctx);
            }
            return;
        }
        let wanted = self.wanted_slots();
        if wanted == 0 || ctx.now.at < self.place_at || self.seats.len() >= SEATS_MAX {
            return;
        }
        let mut candidates = ctx.peers.candidates(&self.spec, ctx.now.at);
        if candidates.iter().all(|(node, _)| self.shunned.contains_key(node)) && self.slots_held() == 0 {
            // Nobody else can take the tasks now.
            self.shunned.clear();
        }
        candidates.retain(|(node, _)| !self.shunned.contains_key(node));
        if candidates.is_empty() {
            self.wait_for_room(ctx);
            return;
        }
        let mut slots = 0;
        let mut asked = BTreeMap::new();
        for (node, room) in candidates {
            let enough = slots >= wanted && asked.len() >= OFFERS;
            if enough || asked.len() >= SEATS_MAX {
                break;
            }
            slots = slots.saturating_add(room);
            asked.insert(node, None);
        }
        let Some(submit) = self.submit_envelope(ctx) else { return };
        for node in asked.keys() {
            ctx.send(*node, Message::Offer { submit: Box::new(submit.clone()), slots: wanted });
        }
        self.placement = Some(Placement { asked, until: ctx.now.at + BID_WINDOW, wanted });
    }

    /// Slots beyond those held that waiting tasks could use.
    fn wanted_slots(&self) -> u32 {
        let held = self.slots_held();
        let takes = |seat: &&Seat| !self.shunned.contains_key(&seat.node);
        let open: u64 = self.seats.values().filter(takes).map(|s| s.open.count()).sum();
        let wanted = (self.pending_count() + open).saturating_sub(held);
        if self.pending.is_empty() { 0 } else { u32::try_from(wanted).unwrap_or(u32::MAX) }
    }

    fn wait_for_room(&mut self, ctx: &mut Ctx) {
        self.place_at = ctx.now.at + PLACE_AGAIN;
        if ctx.now.at >= self.advert_at && self.seats.is_empty() {
            self.advert_at = ctx.now.at + ADVERT_EVERY;
            let need = self.spec.resources;
            let advert = Advert {
                job: self.job,
                cpu_milli: need.cpu_milli,
                memory_bytes: need.memory_bytes,
                labels: self.spec.labels.clone(),
                runners: self.spec.runners(),
                volumes: self.spec.needed_volumes(),
            };
            ctx.effect(Effect::Publish { topic: Topic::Advert, payload: sinew_crdt_state::cbor::to_vec(&advert) });
        }
    }

    fn submit_envelope(&self, ctx: &Ctx) -> Option<Envelope> {
        ctx.submit_of(&self.job)
    }

    pub(super) fn placement_timeout(&self) -> Option<Time> {
        match &self.placement {
            Some(placement) => Some(placement.until),
            None => (self.wanted_slots() > 0).then_some(self.place_at),
        }
    }

    pub(crate) fn on_bid(&mut self, from: NodeId, bid: Bid) {
        if let Some(asked) = self.placement.as_mut().and_then(|p| p.asked.get_mut(&from)) {
            *asked = Some(bid);
        }
    }

    pub(crate) fn on_no_bid(&mut self, from: NodeId) {
        if let Some(placement) = &mut self.placement {
            placement.asked.remove(&from);
        }
    }

    /// An idle node answered the advert: ask at once.
    pub(crate) fn on_interest(&mut self, ctx: &Ctx) {
        self.place_at = ctx.now.at;
    }

    /// Counts a round that won nothing; after too many in a row the job waits, and this returns true.
    pub(super) fn in_vain(&mut self, ctx: &mut Ctx) -> bool {
        self.fruitless += 1;
        let wait = self.fruitless.is_multiple_of(FRUITLESS_MAX);
        if wait {
            self.wait_for_room(ctx);
        }
        wait
    }

    /// Awards the best bids until enough slots are had.
    fn award(&mut self, ctx: &mut Ctx) {
        let Some(placement) = self.placement.take() else { return };
        let mut bids: Vec<(NodeId, Bid)> =
            placement.asked.into_iter().filter_map(|(node, bid)| Some((node, bid?))).collect();
        if bids.is_empty() {
            // Their answers told what they have free, so that others are asked now.
            if !self.in_vain(ctx) {
                self.place(ctx);
            }
            return;
        }
        let order: Vec<NodeId> = ctx.peers.candidates(&self.spec, ctx.now.at).into_iter().map(|(n, _)| n).collect();
        let rank = |node: &NodeId| order.iter().position(|n| n == node).unwrap_or(usize::MAX);
        // Input bytes already there weigh most, then our ranking, then the bidder's own estimate.
        bids.sort_by_key(|(node, bid)| (std::cmp::Reverse(bid.held_bytes), rank(node), std::cmp::Reverse(bid.score)));
        let mut wanted = placement.wanted;
        for (node, bid) in bids {
            if wanted == 0 || self.pending.is_empty() {
                break;
            }
            let slots = bid.slots.min(wanted).max(1);
            wanted -= slots.min(wanted);
            self.award_to(ctx, node, slots, bid.id);
        }
    }

    fn award_to(&mut self, ctx: &mut Ctx, node: NodeId, slots: u32, bid: FactId) {
        self.epoch_last += 1;
        let fence = Fence { term: self.term, epoch: self.epoch_last };
        let lease_ms = u32::try_from(LEASE.as_ms()).unwrap_or(u32::MAX);
        let (_, award) = ctx.state(self.job, Fact::Award { fence, node, slots, lease_ms });
        ctx.peers.promise(node, &self.spec, slots);
        self.seats.insert(fence, Seat::new(node, slots, ctx.now.at));
        let window = self.window(fence, self.slots_held()).max(1);
        let runs = self.take_pending(window);
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
        let Some(seat) = self.seats.get_mut(&fence).filter(|s| !s.sources_sent) else { return };
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
