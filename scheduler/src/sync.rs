//! Anti-entropy with one neighbour at a time (L1): whatever gossip and direct messages missed arrives in the end.

use std::collections::BTreeSet;

use rand::RngExt;
use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::ids::{FactId, JobId, NodeId};
use sinew_crdt_state::ledger::{Admitted, Refusal};
use sinew_crdt_state::reconcile::{Claim, Listing, Reply};

use crate::config::{FACTS_BYTES_MAX, SYNC_EVERY, WANT_MAX};
use crate::ctx::Ctx;
use crate::io::Effect;
use crate::time::Time;
use crate::wire::{Message, ShortId, short_id};

#[derive(Debug, Default)]
pub(crate) struct Sync {
    at: Time,
}

impl Sync {
    pub(crate) fn tick(&mut self, ctx: &mut Ctx) {
        if ctx.now.at < self.at {
            return;
        }
        self.at = ctx.now.at + SYNC_EVERY;
        let peers: Vec<NodeId> = ctx.peers.connected().collect();
        if !peers.is_empty() {
            let peer = peers[ctx.rng.random_range(0..peers.len())];
            start(ctx, peer);
        }
    }

    pub(crate) const fn timeout(&self) -> Time {
        self.at
    }
}

/// Begins an exchange with `peer`.
pub(crate) fn start(ctx: &mut Ctx, peer: NodeId) {
    let root = ctx.ledger.index().root();
    ctx.send(peer, Message::Claims(vec![root]));
}

pub(crate) fn on_claims(ctx: &mut Ctx, from: NodeId, claims: &[Claim]) {
    let reply = ctx.ledger.index().answer_claims(claims);
    answer(ctx, from, reply);
}

pub(crate) fn on_listings(ctx: &mut Ctx, from: NodeId, listings: &[Listing]) {
    let reply = ctx.ledger.index().answer_listings(listings);
    answer(ctx, from, reply);
}

fn answer(ctx: &mut Ctx, to: NodeId, reply: Reply) {
    if !reply.claims.is_empty() {
        ctx.send(to, Message::Claims(reply.claims));
    }
    if !reply.listings.is_empty() {
        ctx.send(to, Message::Listings(reply.listings));
    }
    want(ctx, to, reply.wanted);
}

/// Asks `to` for what it knows of these entries and we do not.
pub(crate) fn want(ctx: &mut Ctx, to: NodeId, mut jobs: Vec<JobId>) {
    // An entry that is sealed here is complete: nothing of it can still matter.
    jobs.retain(|job| ctx.ledger.sealed(job).is_none() && !ctx.forgotten.contains_key(job));
    jobs.truncate(WANT_MAX);
    if jobs.is_empty() {
        return;
    }
    let wanted = jobs
        .into_iter()
        .map(|job| {
            let have = ctx.ledger.live(&job).map(|l| l.facts.keys().map(short_id).collect()).unwrap_or_default();
            (job, have)
        })
        .collect();
    ctx.send(to, Message::Want(wanted));
}

pub(crate) fn on_want(ctx: &mut Ctx, from: NodeId, wanted: &[(JobId, Vec<ShortId>)]) {
    let mut page = Page::default();
    for (job, have) in wanted.iter().take(WANT_MAX) {
        let Some(live) = ctx.ledger.live(job) else {
            // Sealed, or forgotten but for a receipt: it is on disk, if at all.
            ctx.effect(Effect::Load { job: *job, to: from });
            continue;
        };
        let have: std::collections::BTreeSet<ShortId> = have.iter().copied().collect();
        // The spec first: without it the receiver can make nothing of the rest. The seal last: nothing counts after it.
        let seal = live.state.seal.as_ref().map(|s| s.1);
        let ends = [Some(live.submit), seal];
        let fact = |id: &FactId| live.facts.get(id).filter(|_| !have.contains(&short_id(id)));
        let rest = live.facts.keys().filter(|id| !ends.contains(&Some(**id))).filter_map(fact);
        let facts: Vec<Envelope> =
            fact(&live.submit).into_iter().chain(rest).chain(seal.as_ref().and_then(fact)).cloned().collect();
        for envelope in facts {
            page.push(ctx, from, envelope);
        }
    }
    page.send(ctx, from);
}

/// Sends an entry's facts in messages of bounded size, the seal last.
pub(crate) fn send_facts(ctx: &mut Ctx, to: NodeId, mut facts: Vec<Envelope>) {
    let mut page = Page::default();
    let seal = facts.first().and_then(|e| ctx.ledger.sealed(&e.entry)).map(|s| s.seal);
    facts.sort_by_cached_key(|e| Some(e.fact_id()) == seal);
    for envelope in facts {
        page.push(ctx, to, envelope);
    }
    page.send(ctx, to);
}

#[derive(Default)]
struct Page {
    facts: Vec<Envelope>,
    bytes: usize,
}

impl Page {
    fn push(&mut self, ctx: &mut Ctx, to: NodeId, envelope: Envelope) {
        self.bytes += envelope.payload.len() + 160;
        self.facts.push(envelope);
        if self.bytes >= FACTS_BYTES_MAX {
            self.send(ctx, to);
        }
    }

    fn send(&mut self, ctx: &mut Ctx, to: NodeId) {
        self.bytes = 0;
        let facts = std::mem::take(&mut self.facts);
        if !facts.is_empty() {
            ctx.send(to, Message::Facts(facts));
        }
    }
}

/// Merges facts; asks for the rest of the entry where the spec is missing, or what a seal seals.
pub(crate) fn on_facts(ctx: &mut Ctx, from: NodeId, facts: &[Envelope]) {
    let mut unknown: Vec<JobId> = Vec::new();
    let mut retry: Vec<&Envelope> = Vec::new();
    let mut news = false;
    let mut refused: BTreeSet<JobId> = BTreeSet::new();
    for envelope in facts {
        match ctx.admit(from, envelope) {
            Err(Refusal::UnknownJob | Refusal::Incomplete) => retry.push(envelope),
            // Forgotten here, and still open there: what stayed of it tells how it ended.
            Err(Refusal::Compacted) => {
                ctx.effect(Effect::Load { job: envelope.entry, to: from });
                refused.insert(envelope.entry);
            }
            // What cannot be judged now will not be judged otherwise when it is sent again.
            Err(_) => _ = refused.insert(envelope.entry),
            Ok(admitted) => news |= matches!(admitted, Admitted::New(_)),
        }
    }
    for envelope in retry {
        match ctx.admit(from, envelope) {
            Ok(Admitted::New(_) | Admitted::Known(_) | Admitted::Late(_)) => {}
            // An answer that brought nothing new will not become better by asking again at once: this is all there is.
            Err(Refusal::Incomplete) if !news => _ = ctx.admit_remains(from, envelope),
            Err(_) if refused.contains(&envelope.entry) => {}
            Err(_) => unknown.push(envelope.entry),
        }
    }
    unknown.sort_unstable();
    unknown.dedup();
    want(ctx, from, unknown);
}
