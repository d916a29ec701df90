//! What other nodes say: which part of the core each message concerns.

use sinew_crdt_state::cbor;
use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::fact::{Fact, Statement};
use sinew_crdt_state::ids::{JobId, NodeId};
use sinew_crdt_state::planted::{Bug, planted};
use sinew_crdt_state::spec::BlobRef;

use super::{CopyFor, Core};
use crate::brain::Bid;
use crate::io::{Effect, FetchId, Note};
use crate::members;
use crate::steward::Stewards;
use crate::sync;
use crate::wire::{Advert, Card, Lease, Message, Topic};
use crate::witness::WHOLE_JOB;

impl Core {
    pub(super) fn on_message(&mut self, from: NodeId, message: Message) {
        let ctx = &mut self.ctx;
        match message {
            Message::Facts(facts) => sync::on_facts(ctx, from, &facts),
            Message::Card(card) => self.on_card(from, card),
            Message::Load(load) => ctx.peers.set_load(from, load, ctx.now.at),
            Message::Swim(bytes) => {
                if let Err(problem) = self.membership.receive(ctx.now.at, from, &bytes) {
                    ctx.offence(from, problem.to_string());
                }
            }
            Message::Offer { submit, slots } => self.worker.on_offer(ctx, from, &submit, slots),
            Message::Bid(bid) => self.on_bid(from, &bid),
            Message::NoBid { job, load } => {
                ctx.peers.set_load(from, load, ctx.now.at);
                ctx.peers.declined(from);
                if let Some(brain) = self.brains.touch(&job) {
                    brain.on_no_bid(ctx, from);
                }
            }
            Message::Interest { job, .. } => self.brains.on_interest(ctx, from, &job),
            Message::Award { award, bid, assign } => self.worker.on_award(ctx, from, &award, bid, &assign),
            Message::Decline { lease } => {
                if let Some(brain) = self.brains.touch(&lease.job) {
                    brain.on_decline(ctx, from, lease.fence);
                }
            }
            Message::Assign(assign) => self.worker.on_assign(ctx, from, &assign),
            Message::Sources { lease, start, total, items } => {
                self.worker.on_sources(ctx, from, lease, start, total, items);
            }
            Message::Report { lease, facts } => match self.brains.touch(&lease.job) {
                Some(brain) => brain.on_report(ctx, from, lease, &facts),
                None => self.on_orphan_report(from, lease, &facts),
            },
            Message::Blocked { lease, phase, tasks, missing } => {
                if let Some(brain) = self.brains.touch(&lease.job) {
                    brain.on_blocked(ctx, from, lease.fence, phase, &tasks, &missing);
                }
            }
            Message::Fetching { job, copy, done, total } => {
                if let Some(brain) = self.brains.touch(&job) {
                    brain.on_fetching(ctx, from, copy, done, total);
                }
            }
            Message::Settled { job, reports } => self.worker.on_settled(job, &reports),
            Message::Stop { lease, phase, tasks } => self.worker.on_stop(ctx, from, lease, phase, &tasks),
            Message::Release { lease } => self.worker.on_release(ctx, from, lease),
            Message::Copy { job, phase, task, from: source, blobs } => {
                self.on_copy(CopyFor { brain: from, job, phase, task }, source, blobs);
            }
            Message::WantSources { lease } => {
                if let Some(brain) = self.brains.touch(&lease.job) {
                    brain.on_want_sources(ctx, from, lease.fence);
                }
            }
            Message::Copied { job, phase: WHOLE_JOB, task, ok } => {
                self.witnesses.on_copied(ctx, from, job, task, ok);
            }
            Message::Copied { job, phase, task, ok } => {
                if let Some(brain) = self.brains.touch(&job) {
                    brain.on_copied(from, phase, task, ok);
                }
            }
            Message::WhoHolds { seq, blobs } => self.custody.on_who_holds(ctx, from, seq, blobs),
            Message::Holds { seq, blobs } => self.custody.on_holds(ctx, from, seq, &blobs),
            Message::Keep { job, blobs, holders } => self.custody.on_keep(ctx, from, job, blobs, holders),
            Message::Kept { job, ok } => self.custody.on_kept(ctx, from, job, ok),
            other => self.on_set_message(from, other),
        }
    }

    /// Messages of brain sets and of anti-entropy.
    fn on_set_message(&mut self, from: NodeId, message: Message) {
        let ctx = &mut self.ctx;
        match message {
            Message::Replicate { job, term, facts } => {
                self.stewards.on_replicate(ctx, from, job, term, &facts);
            }
            Message::Stored { job, ids, .. } => {
                if let Some(brain) = self.brains.touch(&job) {
                    brain.on_stored(ctx, from, &ids);
                }
            }
            Message::Deposed { job, term } => {
                if let Some(brain) = self.brains.touch(&job).filter(|b| b.term < term) {
                    if !brain.members().any(|member| member == from) {
                        return ctx.offence(from, "deposes the brain of a job in whose set it is not".to_owned());
                    }
                    brain.depose(ctx);
                    self.stewards.on_deposed(ctx, job, term);
                    sync::start(ctx, from);
                }
            }
            Message::Beat { seq, leases } => self.on_beat(from, seq, &leases),
            Message::BeatAck { seq, renewed, kept, void } => {
                self.worker.on_beat_ack(ctx, from, seq, &renewed, &kept, &void);
            }
            Message::SetBeat { seq, doubts, .. } => self.stewards.on_set_beat(ctx, from, seq, doubts),
            Message::SetBeatAck { seq, disk, kept, moved, over, unknown, .. } => {
                self.stewards.on_doubts(ctx, &mut self.brains, from, seq, &over, &unknown);
                self.stewards.on_set_beat_ack(ctx, &mut self.brains, from, seq, disk, &kept, &moved);
            }
            Message::Led(jobs) => Stewards::on_led(ctx, &self.brains, from, jobs),
            Message::NotLed(jobs) => self.stewards.on_not_led(ctx, from, &jobs),
            Message::VoteRequest { job, term, trial, have, pace } => {
                self.stewards.on_vote_request(ctx, &self.brains, from, job, term, (trial, pace), &have);
            }
            Message::Willing { job, term } => self.stewards.on_willing(ctx, &mut self.brains, from, job, term),
            Message::Vote { job, term, facts, lacks, holders, .. } => {
                self.stewards.on_vote(ctx, &mut self.brains, from, job, term, &facts, &lacks, &holders);
            }
            Message::VoteRefused { job, term, highest } => {
                self.stewards.on_vote_refused(ctx, from, job, term, highest);
            }
            Message::Recall { submit, disk, have } => Stewards::on_recall(ctx, from, &submit, disk, &have),
            Message::Recalled { job, disk, remembers, known } => {
                self.stewards.on_recalled(ctx, from, (job, disk), remembers, &known);
            }
            Message::Adopt { facts, job, award, term } => {
                sync::on_facts(ctx, from, &facts);
                self.worker.on_adopt(ctx, from, job, award, term);
            }
            Message::Holding { job, term, slots, tasks, reports } => {
                if let Some(brain) = self.brains.touch(&job) {
                    brain.on_holding(ctx, from, term, slots, &tasks, &reports);
                }
            }
            Message::Heads { heads, ask } => sync::on_heads(ctx, from, &heads, ask),
            Message::Claims(claims) => sync::on_claims(ctx, from, &claims),
            Message::Listings(listings) => sync::on_listings(ctx, from, &listings),
            Message::Want(wanted) => sync::on_want(ctx, from, &wanted),
            Message::WhoIs(nodes) => members::on_who_is(ctx, from, &nodes),
            Message::Members(credentials) => members::on_members(ctx, from, &credentials),
            _ => {}
        }
    }

    fn on_card(&mut self, from: NodeId, mut card: Card) {
        if self.ctx.on_boot(from, &card) {
            self.send_card(from);
        }
        card.seen = None;
        let known = self.ctx.peers.get(from).and_then(|peer| peer.card.as_ref());
        if known.is_some_and(|known| known.incarnation != card.incarnation) {
            self.stewards.on_restart(&self.ctx, from);
        }
        if self.ctx.peers.set_card(from, card) {
            self.brains.on_disk_lost(&mut self.ctx, from);
            self.custody.on_disk_lost(&self.ctx, from);
            self.witnesses.on_disk_lost(from);
        }
    }

    fn on_bid(&mut self, from: NodeId, bid: &Envelope) {
        if bid.author != from {
            return;
        }
        let Ok(id) = self.ctx.admit(from, bid).map(|admitted| admitted.id()) else { return };
        if let Ok(Statement { fact: Fact::Bid { slots, score, held_bytes, .. }, .. }) = cbor::from_slice(&bid.payload)
            && let Some(brain) = self.brains.touch(&bid.entry)
        {
            brain.on_bid(from, Bid { id, slots, score, held_bytes });
        }
    }

    /// A report for a job that this node does not lead: the worker may forget it once the job is over; otherwise it is
    /// told nothing, and finds the right brain by its next beat or the adoption.
    fn on_orphan_report(&mut self, from: NodeId, lease: Lease, facts: &[Envelope]) {
        let over = self.is_over(&lease.job);
        for envelope in facts {
            let _ = self.ctx.admit(from, envelope);
        }
        if over {
            let reports = facts.iter().map(Envelope::fact_id).collect();
            self.ctx.note(Note::Stale { lease, from });
            self.ctx.send(from, Message::Settled { job: lease.job, reports });
        }
    }

    fn on_beat(&mut self, from: NodeId, seq: u64, leases: &[(Lease, u32)]) {
        let (mut renewed, mut kept, mut void) = (Vec::new(), Vec::new(), Vec::new());
        for (lease, open) in leases {
            let over = self.is_over(&lease.job);
            match self.brains.peek_mut(&lease.job) {
                Some(brain) => match brain.on_lease(&mut self.ctx, from, lease.fence, *open) {
                    Some(true) => renewed.push(*lease),
                    Some(false) => void.push(*lease),
                    None => {}
                },
                None if over => void.push(*lease),
                None if self.stewards.on_lease(&self.ctx, from, *lease) => kept.push(*lease),
                None => {}
            }
        }
        self.ctx.send(from, Message::BeatAck { seq, renewed, kept, void });
    }

    /// Whether the job has ended, as far as this node knows.
    fn is_over(&self, job: &JobId) -> bool {
        let ledger = &self.ctx.ledger;
        ledger.sealed(job).is_some() || ledger.live(job).is_some_and(|l| l.state.outcome().is_some())
    }

    fn on_copy(&mut self, copy: CopyFor, source: NodeId, blobs: Vec<BlobRef>) {
        let CopyFor { brain, job, .. } = copy;
        let open = self.ctx.ledger.live(&job).is_some_and(|l| l.state.spec.brain_set.contains(&brain));
        // Who decides alone has submitted the job; the outputs of one that is over are held as well.
        let whole = copy.phase == WHOLE_JOB;
        let ended = whole && self.ctx.ledger.sealed(&job).is_some_and(|entry| entry.submitter == brain);
        let known = open || ended;
        if whole && known {
            self.ctx.witnessed.insert(job);
        }
        if !known {
            return self.ctx.send(brain, copy.answer(false));
        }
        if self.copies.values().any(|(under_way, _)| *under_way == copy) {
            return;
        }
        if planted(Bug::HaveUnseen) && blobs.iter().all(|b| self.worker.blobs.contains(&b.hash)) {
            return self.ctx.send(brain, copy.answer(true));
        }
        // Also what is here already: it may be kept for another job only, which lets go of it, or be here no more.
        let id = self.ctx.next_fetch();
        self.copies.insert(id, (copy, blobs.clone()));
        self.ctx.effect(Effect::Fetch { id, job, blobs, providers: vec![source] });
        if planted(Bug::CopiedTooSoon) {
            self.ctx.send(brain, copy.answer(true));
        }
    }

    /// A fetch has come so far: whoever waits for it is told.
    pub(super) fn on_fetch_progress(&mut self, id: FetchId, done: u64, total: u64) {
        let waits = match self.copies.get(&id) {
            Some((copy, _)) if copy.phase != WHOLE_JOB => Some((copy.brain, copy.job, Some((copy.phase, copy.task)))),
            Some(_) => None,
            None => self.stewards.waits_for(id).map(|(to, job)| (to, job, None)),
        };
        if let Some((to, job, copy)) = waits.filter(|(to, ..)| self.ctx.peers.understands_fetching(*to)) {
            self.ctx.send(to, Message::Fetching { job, copy, done, total });
        }
    }

    pub(super) fn on_fetched(&mut self, id: FetchId, ok: bool) {
        if let Some((copy, blobs)) = self.copies.remove(&id) {
            if ok {
                self.worker.blobs.extend(blobs.iter().map(|b| b.hash));
            }
            self.ctx.send(copy.brain, copy.answer(ok));
        } else if let Some(hashes) = self.restore.on_fetched(&mut self.ctx, id, ok) {
            self.worker.blobs.extend(hashes);
        } else if let Some(hashes) = self.custody.on_fetched(&mut self.ctx, id, ok) {
            self.worker.blobs.extend(hashes);
        } else if let Some((job, submit)) = self.own_inputs.remove(&id) {
            self.on_own_inputs(job, submit, ok);
        } else if let Some(job) = self.stewards.on_fetched(&mut self.ctx, id, ok).filter(|_| ok) {
            self.has_inputs(job);
        }
    }

    /// The inputs of a job are here, and worth a word in bids for others that need the same.
    pub(super) fn has_inputs(&mut self, job: JobId) {
        let inputs = self.ctx.ledger.live(&job).map(|live| live.state.spec.input_blobs()).unwrap_or_default();
        self.worker.blobs.extend(inputs.iter().map(|b| b.hash));
    }

    pub(super) fn on_gossip(&mut self, from: NodeId, topic: Topic, payload: &[u8]) {
        let now = self.ctx.now.at;
        self.ctx.peers.heard(from, now);
        let decoded = match topic {
            Topic::Advert => cbor::from_slice(payload).map(|advert: Advert| {
                self.worker.on_advert(&mut self.ctx, from, &advert);
            }),
        };
        if decoded.is_err() {
            self.ctx.offence(from, "malformed gossip".to_owned());
        }
    }
}
