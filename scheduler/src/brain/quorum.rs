//! The brain set of one job as its brain sees it: which facts a majority has on disk, and who can be reached.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::ids::{FactId, JobId, NodeId};
use sinew_crdt_state::planted::{Bug, planted};
use sinew_crdt_state::rare::{Empty, Rare};
use sinew_crdt_state::spec::JobSpec;

use crate::config::{FACTS_BYTES_MAX, IN_CHARGE_FOR, RESEND_EVERY};
use crate::ctx::{After, Ctx};
use crate::time::Time;
use crate::wire::Message;

#[derive(Debug)]
pub(super) struct Quorum {
    job: JobId,
    term: u32,
    pace: u8,
    spec: Arc<JobSpec>,
    sent: Time,
    // Of thousands of jobs that wait for room hardly any has some.
    news: Rare<News>,
}

/// What not all members know.
#[derive(Debug, Default)]
struct News {
    /// Facts that must become final, with the members that have them on disk.
    pending: BTreeMap<FactId, BTreeSet<NodeId>>,
    /// Facts to send with the next replication, for the stewards' knowledge only.
    riding: Vec<FactId>,
    fresh: Vec<FactId>,
    /// Members that knew nothing of the job when they answered the set beat sent then.
    unsure: BTreeMap<NodeId, Time>,
}

impl Empty for News {
    const EMPTY: &'static Self =
        &Self { pending: BTreeMap::new(), riding: Vec::new(), fresh: Vec::new(), unsure: BTreeMap::new() };
}

impl News {
    fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.riding.is_empty() && self.fresh.is_empty() && self.unsure.is_empty()
    }
}

impl Quorum {
    pub(super) fn new(job: JobId, (term, pace): (u32, u8), spec: Arc<JobSpec>) -> Self {
        Self { job, term, pace, spec, sent: Time::default(), news: Rare::new() }
    }

    fn majority(&self) -> usize {
        self.spec.brain_set.len() / 2 + 1
    }

    fn others(&self, ctx: &Ctx) -> Vec<NodeId> {
        self.spec.brain_set.iter().copied().filter(|n| *n != ctx.own).collect()
    }

    /// Wants these own facts on a majority's disks; they go out at the next flush.
    pub(super) fn add(&mut self, ctx: &mut Ctx, ids: &[FactId]) {
        self.add_unsaved(ids);
        ctx.after_persist(After::Own { job: self.job, ids: ids.to_vec() });
    }

    /// As [`Self::add`], for facts of which somebody else will say that they are on this node's disk.
    pub(super) fn add_unsaved(&mut self, ids: &[FactId]) {
        for id in ids {
            self.news.pending.entry(*id).or_default();
            self.news.fresh.push(*id);
        }
    }

    /// Sends this fact along with the next replication.
    pub(super) fn ride(&mut self, id: FactId) {
        self.news.riding.push(id);
    }

    /// Notes what a member has on disk and returns what became final by it.
    pub(super) fn stored(&mut self, node: NodeId, ids: &[FactId]) -> Vec<FactId> {
        if !self.spec.brain_set.contains(&node) {
            return Vec::new();
        }
        let majority = if planted(Bug::QuorumOfOne) { 1 } else { self.majority() };
        let Some(news) = self.news.there() else { return Vec::new() };
        let mut finals = Vec::new();
        for id in ids {
            let Some(holders) = news.pending.get_mut(id) else { continue };
            holders.insert(node);
            if holders.len() >= majority {
                news.pending.remove(id);
                finals.push(*id);
            }
        }
        if news.pending.is_empty() {
            // An emptied tree keeps a node.
            news.pending = BTreeMap::new();
        }
        self.news.drop_if(News::is_empty);
        finals
    }

    /// The disk of `node` was lost: what only it had stored beside this node is to be stored anew.
    pub(super) fn forget_holder(&mut self, node: NodeId) {
        for holders in self.news.there().into_iter().flat_map(|news| news.pending.values_mut()) {
            holders.remove(&node);
        }
    }

    /// The answer to the set beat sent at `sent`, and to those before, does not count for this job.
    pub(super) fn not_vouched(&mut self, node: NodeId, sent: Time) {
        let last = self.news.unsure.entry(node).or_insert(sent);
        *last = sent.max(*last);
    }

    /// Whether the answer of `node` to the set beat sent then counts for this job.
    pub(super) fn vouches(&self, node: NodeId, sent: Time) -> bool {
        self.news.unsure.get(&node).is_none_or(|unsure| sent > *unsure)
    }

    /// Whether a majority, this node included, answered a set beat that was sent lately, and after `since`.
    pub(super) fn reachable(&self, ctx: &Ctx, since: Time) -> bool {
        let Some(live) = ctx.ledger.live(&self.job) else { return false };
        let near = |t: Time| t >= since && ctx.now.at - t <= IN_CHARGE_FOR.at(self.pace);
        let contact = |n: &NodeId| ctx.peers.set_contact(*n, &live.state);
        let near = |n: &NodeId| *n == ctx.own || contact(n).is_some_and(|t| near(t) && self.vouches(*n, t));
        self.spec.brain_set.iter().filter(|n| near(n)).count() >= self.majority()
    }

    /// Sends what is new, with whatever rides along.
    pub(super) fn flush(&mut self, ctx: &mut Ctx) {
        if self.news.fresh.is_empty() {
            return;
        }
        let news = &mut *self.news;
        news.fresh = Vec::new();
        let mut ids = std::mem::take(&mut news.riding);
        ids.extend(news.pending.keys().copied());
        ids.sort_unstable();
        ids.dedup();
        self.send(ctx, &ids);
    }

    /// Repeats what was not acknowledged for too long.
    pub(super) fn resend(&mut self, ctx: &mut Ctx) {
        if !self.news.pending.is_empty()
            && self.news.fresh.is_empty()
            && ctx.now.at - self.sent >= RESEND_EVERY.at(self.pace)
        {
            let ids: Vec<FactId> = self.news.pending.keys().copied().collect();
            self.send(ctx, &ids);
        }
    }

    fn send(&mut self, ctx: &mut Ctx, ids: &[FactId]) {
        self.sent = ctx.now.at;
        let Some(live) = ctx.ledger.live(&self.job) else { return };
        // The submit comes first: without it a receiver can make nothing of the rest.
        let submit = ids.iter().filter(|id| **id == live.submit);
        let ids = submit.chain(ids.iter().filter(|id| **id != live.submit));
        let mut pages: Vec<Vec<Envelope>> = vec![Vec::new()];
        let mut bytes = 0;
        for envelope in ids.filter_map(|id| live.facts.get(id)) {
            if bytes > FACTS_BYTES_MAX {
                pages.push(Vec::new());
                bytes = 0;
            }
            bytes += envelope.payload.len();
            if let Some(page) = pages.last_mut() {
                page.push(envelope.clone());
            }
        }
        for to in self.others(ctx) {
            for facts in &pages {
                ctx.send(to, Message::Replicate { job: self.job, term: self.term, facts: facts.clone() });
            }
        }
    }

    pub(super) fn timeout(&self) -> Option<Time> {
        (!self.news.pending.is_empty()).then_some(self.sent + RESEND_EVERY.at(self.pace))
    }
}
