//! Who holds what, asked for anew: nodes in reach answer for themselves once their drivers have looked.

use std::collections::{BTreeMap, BTreeSet};

use sinew_crdt_state::ids::{Hash, JobId, NodeId};

use crate::config::HELD_BLOBS_MAX;
use crate::ctx::Ctx;
use crate::io::{Effect, FetchId, RequestId, Response};
use crate::time::{Span, Time};
use crate::wire::Message;

/// Who has not answered by then counts as holding nothing: a round trip across the world and a busy disk.
const ASK_WAIT: Span = Span::ms(2_000);
/// Looks for others under way at most. Further questions go unanswered, as if they had been lost.
const LOOKS_MAX: usize = 1_024;

/// Who holds which of the blobs that were asked about.
pub(super) type Found = BTreeMap<NodeId, BTreeSet<(JobId, Hash)>>;

/// What a question is for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose {
    /// To see whether something must be copied.
    Sweep,
    /// For a user.
    Page(RequestId),
}

#[derive(Debug)]
struct Ask {
    purpose: Purpose,
    asked: BTreeSet<(JobId, Hash)>,
    /// Who has yet to answer, and how often: a long question goes in parts.
    waiting: BTreeMap<NodeId, usize>,
    found: Found,
    until: Time,
}

#[derive(Debug, Default)]
pub(super) struct Asks {
    last: u64,
    open: BTreeMap<u64, Ask>,
    answered: Vec<u64>,
    /// Questions of others.
    looks: BTreeMap<FetchId, (NodeId, u64)>,
}

impl Asks {
    /// Asks every node that is heard, or those of `whom`, this one included.
    pub(super) fn start(
        &mut self,
        ctx: &mut Ctx,
        blobs: Vec<(JobId, Vec<Hash>)>,
        whom: Option<&BTreeSet<NodeId>>,
        purpose: Purpose,
    ) -> u64 {
        self.last += 1;
        let seq = self.last;
        let now = ctx.now.at;
        let parts = cut(blobs);
        let wanted = |node: &NodeId| whom.is_none_or(|whom| whom.contains(node));
        let heard = ctx.peers.connected().filter(|n| ctx.peers.is_heard(*n, now) && wanted(n) && answers(ctx, *n));
        let nodes: Vec<NodeId> = heard.chain([ctx.own]).collect();
        let asked = parts.iter().flatten().flat_map(|(job, hashes)| hashes.iter().map(|h| (*job, *h))).collect();
        for node in &nodes {
            for part in &parts {
                ctx.send(*node, Message::WhoHolds { seq, blobs: part.clone() });
            }
        }
        let waiting: BTreeMap<NodeId, usize> = nodes.into_iter().map(|node| (node, parts.len())).collect();
        self.open.insert(seq, Ask { purpose, asked, waiting, found: Found::new(), until: now + ASK_WAIT });
        if parts.is_empty() {
            self.answered.push(seq);
        }
        seq
    }

    pub(super) fn on_who_holds(&mut self, ctx: &mut Ctx, from: NodeId, seq: u64, blobs: Vec<(JobId, Vec<Hash>)>) {
        let count: usize = blobs.iter().map(|(_, hashes)| hashes.len()).sum();
        if count > HELD_BLOBS_MAX || blobs.len() > HELD_BLOBS_MAX {
            return ctx.offence(from, format!("asks about {count} blobs at once: {HELD_BLOBS_MAX} at most"));
        }
        if self.looks.len() < LOOKS_MAX {
            let id = ctx.next_fetch();
            self.looks.insert(id, (from, seq));
            ctx.effect(Effect::Look { id, blobs });
        }
    }

    pub(super) fn on_seen(&mut self, ctx: &mut Ctx, id: FetchId, blobs: Vec<(JobId, Vec<Hash>)>) {
        if let Some((from, seq)) = self.looks.remove(&id) {
            ctx.send(from, Message::Holds { seq, blobs });
        }
    }

    /// Nodes may name only what they were asked about, and nobody but themselves.
    pub(super) fn on_holds(&mut self, from: NodeId, seq: u64, blobs: &[(JobId, Vec<Hash>)]) {
        let Some(ask) = self.open.get_mut(&seq) else { return };
        let Some(left) = ask.waiting.get_mut(&from) else { return };
        *left -= 1;
        if *left == 0 {
            ask.waiting.remove(&from);
        }
        let said = blobs.iter().flat_map(|(job, hashes)| hashes.iter().map(|h| (*job, *h)));
        ask.found.entry(from).or_default().extend(said.filter(|pair| ask.asked.contains(pair)));
        if ask.waiting.is_empty() {
            self.answered.push(seq);
        }
    }

    pub(super) fn tick(&mut self, ctx: &Ctx) {
        let late = self.open.iter().filter(|(seq, ask)| ctx.now.at >= ask.until && !self.answered.contains(seq));
        let late: Vec<u64> = late.map(|(seq, _)| *seq).collect();
        self.answered.extend(late);
    }

    /// A question that all have answered, or had the time to.
    pub(super) fn take_answered(&mut self) -> Option<(u64, Purpose, Found)> {
        while let Some(seq) = self.answered.pop() {
            if let Some(ask) = self.open.remove(&seq) {
                return Some((seq, ask.purpose, ask.found));
            }
        }
        None
    }

    pub(super) fn timeout(&self) -> Option<Time> {
        self.open.values().map(|ask| ask.until).min()
    }
}

/// Whether the node is of a build that knows these messages.
pub(super) fn answers(ctx: &Ctx, node: NodeId) -> bool {
    ctx.peers.get(node).and_then(|peer| peer.card.as_ref()).is_some_and(|card| card.copies)
}

/// Tells a user who holds what.
pub(super) fn answer(ctx: &mut Ctx, id: RequestId, found: Found) {
    let some = found.into_iter().filter(|(_, held)| !held.is_empty());
    let holders = some.map(|(node, held)| (node, held.into_iter().map(|(_, hash)| hash).collect())).collect();
    ctx.effect(Effect::Answer { id, response: Response::Holders(holders) });
}

/// In parts of bounded size. No single list is longer than a part.
fn cut(blobs: Vec<(JobId, Vec<Hash>)>) -> Vec<Vec<(JobId, Vec<Hash>)>> {
    let mut parts: Vec<Vec<(JobId, Vec<Hash>)>> = Vec::new();
    let mut count = 0;
    for (job, hashes) in blobs {
        if parts.is_empty() || count + hashes.len() > HELD_BLOBS_MAX {
            parts.push(Vec::new());
            count = 0;
        }
        count += hashes.len();
        if let Some(part) = parts.last_mut() {
            part.push((job, hashes));
        }
    }
    parts
}
