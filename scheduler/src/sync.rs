//! Anti-entropy with one neighbour at a time (L1): whatever gossip and direct messages missed arrives in the end.
//!
//! In a mesh of up to [`CoreConfig::keep_all_max`](crate::config::CoreConfig::keep_all_max) nodes everyone keeps every entry,
//! and two neighbours compare all that they have. In a larger one that would cost each node what all others do, so a node
//! keeps what concerns it, and asks the brain sets of its entries, entry by entry.

use std::collections::{BTreeMap, BTreeSet};

use rand::RngExt;
use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::ids::{FactId, JobId, NodeId};
use sinew_crdt_state::ledger::{Admitted, LiveEntry, Refusal};
use sinew_crdt_state::reconcile::{Claim, Digest, Item, Listing, Reply};

use crate::config::{FACTS_BYTES_MAX, LOOKS, SYNC_EVERY, UNCONCERNED_FOR, WANT_MAX};
use crate::ctx::Ctx;
use crate::io::{Effect, Record};
use crate::time::{Span, Time};
use crate::wire::{Message, ShortId, short_id};
use crate::worker::Worker;

#[derive(Debug, Default)]
pub(crate) struct Sync {
    at: Time,
    /// Open entries as they were at the last look, where nodes keep only what concerns them.
    looked: BTreeMap<JobId, Look>,
}

/// An entry as it was when it was last looked at.
#[derive(Debug)]
struct Look {
    digest: Digest,
    since: Time,
    looks: u32,
}

impl Look {
    /// Soon after the last change, and now and then for ever: while much happens, and once nothing does.
    fn is_due(&self, quiet: Span) -> bool {
        let lately = quiet >= SYNC_EVERY && quiet.0 < SYNC_EVERY.0 * u64::from(LOOKS);
        lately || self.looks % LOOKS == LOOKS - 1
    }
}

impl Sync {
    pub(crate) fn tick(&mut self, ctx: &mut Ctx, worker: &Worker) {
        if ctx.now.at < self.at {
            return;
        }
        self.at = ctx.now.at + SYNC_EVERY;
        if !keeps_all(ctx) {
            return self.look(ctx, worker);
        }
        self.looked.clear();
        let peers: Vec<NodeId> = ctx.peers.connected().collect();
        if !peers.is_empty() {
            let peer = peers[ctx.rng.random_range(0..peers.len())];
            start(ctx, peer);
        }
    }

    /// Compares the open entries in which nothing happens with one of their brain set each, and drops those that do not concern
    /// this node: it was asked whether it would run something, and nothing came of it.
    fn look(&mut self, ctx: &mut Ctx, worker: &Worker) {
        let mut by_peer: BTreeMap<NodeId, Vec<(JobId, Item)>> = BTreeMap::new();
        let mut dropped = Vec::new();
        let mut looked = BTreeMap::new();
        for (job, live) in open_entries(ctx) {
            let digest = ctx.ledger.index().get(job).unwrap_or_default();
            let mut look = self.looked.remove(job).unwrap_or(Look { digest, since: ctx.now.at, looks: 0 });
            if look.digest != digest {
                (look.digest, look.since) = (digest, ctx.now.at);
            }
            let quiet = ctx.now.at - look.since;
            let others: Vec<NodeId> = set_of(live).filter(|n| *n != ctx.own).collect();
            if !set_of(live).any(|n| n == ctx.own) && !worker.works_for(job) {
                if quiet >= UNCONCERNED_FOR {
                    dropped.push(*job);
                    continue;
                }
            } else if look.is_due(quiet) {
                let turn = usize::try_from(look.looks).unwrap_or_default();
                if let Some(peer) = others.get(turn % others.len().max(1)) {
                    by_peer.entry(*peer).or_default().push((*job, Item(digest)));
                }
            }
            look.looks = look.looks.wrapping_add(1);
            looked.insert(*job, look);
        }
        self.looked = looked;
        for job in dropped {
            ctx.ledger.retract(&job);
            ctx.record(Record::Retract { job });
        }
        for (peer, heads) in by_peer {
            send_heads(ctx, peer, &heads, true);
        }
    }

    /// When [`Self::tick`] is due. Never, as long as there is nothing to compare and nobody to compare it with.
    pub(crate) fn timeout(&self, ctx: &Ctx) -> Time {
        let idle = !keeps_all(ctx) && !ctx.ledger.has_live();
        if idle { Time(u64::MAX) } else { self.at }
    }
}

/// Whether every node of this mesh keeps every entry, as far as this one knows.
pub(crate) fn keeps_all(ctx: &Ctx) -> bool {
    ctx.peers.mesh_size() <= ctx.config.keep_all_max
}

fn open_entries(ctx: &Ctx) -> impl Iterator<Item = (&JobId, &LiveEntry)> {
    ctx.ledger.iter_live().filter(|(job, _)| ctx.ledger.sealed(job).is_none())
}

/// Who must know all of an entry.
fn set_of(live: &LiveEntry) -> impl Iterator<Item = NodeId> {
    let spec = &live.state.spec;
    let submitter = Some(spec.submitter).filter(|s| !spec.brain_set.contains(s));
    spec.brain_set.iter().copied().chain(submitter)
}

fn send_heads(ctx: &mut Ctx, to: NodeId, heads: &[(JobId, Item)], ask: bool) {
    for heads in heads.chunks(WANT_MAX) {
        ctx.send(to, Message::Heads { heads: heads.to_vec(), ask });
    }
}

/// Begins an exchange with `peer`.
pub(crate) fn start(ctx: &mut Ctx, peer: NodeId) {
    if keeps_all(ctx) {
        let root = ctx.ledger.index().root();
        return ctx.send(peer, Message::Claims(vec![root]));
    }
    let both = open_entries(ctx).filter(|(_, live)| set_of(live).any(|n| n == peer));
    let heads: Vec<(JobId, Item)> =
        both.map(|(job, _)| (*job, Item(ctx.ledger.index().get(job).unwrap_or_default()))).collect();
    send_heads(ctx, peer, &heads, true);
}

/// Asks for what differs, and tells our side of it where the peer may lack something.
pub(crate) fn on_heads(ctx: &mut Ctx, from: NodeId, heads: &[(JobId, Item)], ask: bool) {
    let index = ctx.ledger.index();
    let differ = heads.iter().take(WANT_MAX).filter(|(job, theirs)| index.get(job) != Some(theirs.0));
    let differ: Vec<JobId> = differ.map(|(job, _)| *job).collect();
    let ours: Vec<(JobId, Item)> = differ.iter().filter_map(|job| Some((*job, Item(index.get(job)?)))).collect();
    if ask {
        send_heads(ctx, from, &ours, false);
    }
    want(ctx, from, differ);
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
    // An entry that is sealed here is complete: nothing of it can still matter, unless its seal says one thing here and another
    // there. Most often `to` has only not heard of the seal yet; where that lasts, its facts are asked for, once.
    jobs.retain(|job| {
        !ctx.forgotten.contains_key(job) && (ctx.ledger.sealed(job).is_none() || ctx.differs_for_long(*job))
    });
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
            Ok(Admitted::New(_) | Admitted::Known(_) | Admitted::Late(_) | Admitted::Contradicts(_)) => {}
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
