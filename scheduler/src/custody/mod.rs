//! Copies that are made again: when a node has been gone for so long that it may be gone for good, those that hold what it
//! held see to it that another node holds it too. What is looked after are outputs of jobs, for as long as they are kept, and
//! inputs of jobs that have not ended.
//!
//! Nothing here is believed from hearsay. Who holds what is asked for anew each time ([`ask`]): a node answers for itself
//! alone, after its driver has looked, and only those count that were made holders of these very blobs, so that nobody can
//! keep copies from being made by claiming all there is. Which nodes to miss is known from the facts of jobs under way, and for ended jobs from
//! notes that the driver keeps beside the blobs, so that it outlives the job's facts. Of several that could, the holder that
//! comes first by a hash of job and node has it copied; one request is under way at a time. The other side, a node that is
//! asked to hold a copy, is in [`keep`].

mod ask;
mod keep;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use sinew_crdt_state::certificate::Roles;
use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::ids::{Hash, JobId, NodeId};
use sinew_crdt_state::ledger::LiveEntry;
use sinew_crdt_state::planted::{Bug, planted};
use sinew_crdt_state::spec::BlobRef;
use sinew_crdt_state::state::AcceptedResult;

use self::ask::{Asks, Found, Purpose};
use self::keep::Keeper;
use crate::config::{COPY_TIMEOUT, HELD_BLOBS_MAX};
use crate::ctx::Ctx;
use crate::io::{Effect, FetchId, RequestId, SharedBlobs};
use crate::sync;
use crate::time::{Span, Time};
use crate::wire::Message;

/// Holders that outputs of a job that asked for a second copy should have.
const COPIES: usize = 2;
/// What could not be copied, for want of a node that takes it, is tried again after this.
const LOOK_AGAIN: Span = Span::ms(60_000);
/// Nodes asked to hold a copy, one after the other, before it is left for later.
const TARGETS_MAX: usize = 4;
/// A driver that did not list what it keeps by then has lost the question.
const LIST_PATIENCE: Span = Span::ms(60_000);
/// Nodes whose absence is counted: a bound against floods of members that nobody ever met.
const GONE_MAX: usize = 100_000;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Custody {
    gone: BTreeMap<NodeId, Gone>,
    sweep: Option<Sweep>,
    asks: Asks,
    keeper: Keeper,
    /// No transfer is asked for before this.
    not_before: Time,
}

/// A node that is gone, or whose disk is.
#[derive(Debug)]
struct Gone {
    /// When what it held is looked at next; `None` once all of it is on other nodes.
    due: Option<Time>,
    /// It is there, with another disk.
    wiped: bool,
}

/// A look at all that this node held together with some that are gone: one look for all of them, as it goes through all tags.
#[derive(Debug)]
struct Sweep {
    nodes: BTreeSet<NodeId>,
    /// Of which it is not known yet who else holds it.
    items: VecDeque<Item>,
    /// What has too few holders.
    short: VecDeque<Short>,
    /// Whether something is to be looked at again later.
    again: bool,
    doing: Doing,
}

/// Blobs of one job that so many nodes should hold.
#[derive(Debug, Clone)]
struct Item {
    job: JobId,
    blobs: Vec<BlobRef>,
    wanted: usize,
    /// Those that should be among them: what others say does not count.
    known: BTreeSet<NodeId>,
}

/// Blobs of one job with too few holders.
#[derive(Debug)]
struct Short {
    job: JobId,
    blobs: Vec<BlobRef>,
    /// Those that there are, this node among them.
    holders: BTreeSet<NodeId>,
    /// Who was asked to hold them and has not.
    tried: BTreeSet<NodeId>,
}

#[derive(Debug)]
enum Doing {
    /// The driver lists what it keeps.
    Listing { id: FetchId, until: Time },
    /// Others say what they hold of these.
    Asking { seq: u64, items: Vec<Item> },
    /// A node fetches them.
    Copying { short: Short, target: NodeId, until: Time },
    /// Nothing, before the next.
    Next,
}

impl Custody {
    /// This node starts: members that it has no connection to count as gone from now on.
    pub(crate) fn start(&mut self, ctx: &Ctx) {
        if !sync::keeps_all(ctx) {
            return;
        }
        let far: Vec<NodeId> = ctx.peers.iter().filter(|(_, peer)| !peer.connected).map(|(node, _)| *node).collect();
        for node in far {
            self.on_gone(ctx, node);
        }
    }

    /// A node's last connection closed. In a mesh in which not everybody is connected to everybody that says nothing.
    pub(crate) fn on_down(&mut self, ctx: &Ctx, node: NodeId) {
        if sync::keeps_all(ctx) {
            self.on_gone(ctx, node);
        }
    }

    /// The failure detector counts a node as lost.
    pub(crate) fn on_gone(&mut self, ctx: &Ctx, node: NodeId) {
        self.miss(ctx, node, false);
    }

    /// A node came back with another disk. What its jobs' facts tell it it fetches again by itself; the rest is to be seen to.
    pub(crate) fn on_disk_lost(&mut self, ctx: &Ctx, node: NodeId) {
        self.gone.remove(&node);
        self.miss(ctx, node, true);
    }

    fn miss(&mut self, ctx: &Ctx, node: NodeId, wiped: bool) {
        if node != ctx.own && self.gone.len() < GONE_MAX {
            let due = Some(ctx.now.at + Span::ms(ctx.config.copy_again_after_ms));
            self.gone.entry(node).or_insert(Gone { due, wiped });
        }
    }

    /// It is there again, with what it holds.
    pub(crate) fn on_back(&mut self, node: NodeId) {
        if self.gone.get(&node).is_some_and(|gone| gone.wiped) {
            return;
        }
        self.gone.remove(&node);
        if let Some(sweep) = &mut self.sweep
            && sweep.nodes.remove(&node)
            && sweep.nodes.is_empty()
        {
            self.sweep = None;
        }
    }

    /// The job is over: notes who else holds its outputs. The job's facts say so too, but not for as long as outputs are kept.
    pub(crate) fn on_sealed(ctx: &mut Ctx, job: JobId) {
        let Some(live) = ctx.ledger.live(&job) else { return };
        let mut by_holder: BTreeMap<NodeId, Vec<Hash>> = BTreeMap::new();
        for (_, result) in live.state.accepted.last().into_iter().flat_map(|phase| phase.iter()) {
            if let Some(other) = other_holder(result, ctx.own) {
                by_holder.entry(other).or_default().extend(result.outputs.iter().map(|o| o.blob.hash));
            }
        }
        for (other, blobs) in by_holder {
            ctx.effect(Effect::NoteHolders { job, blobs, add: vec![other], remove: Vec::new() });
        }
    }

    /// A user asks who holds these.
    pub(crate) fn on_request(&mut self, ctx: &mut Ctx, id: RequestId, job: JobId, blobs: Vec<Hash>) {
        let pages = blobs.chunks(HELD_BLOBS_MAX).map(<[Hash]>::to_vec).map(|page| (job, page)).collect();
        self.asks.start(ctx, pages, None, Purpose::Page(id));
    }

    pub(crate) fn on_who_holds(&mut self, ctx: &mut Ctx, from: NodeId, seq: u64, blobs: Vec<(JobId, Vec<Hash>)>) {
        self.asks.on_who_holds(ctx, from, seq, blobs);
    }

    /// The driver looked what is here, for the node that asked.
    pub(crate) fn on_seen(&mut self, ctx: &mut Ctx, id: FetchId, blobs: Vec<(JobId, Vec<Hash>)>) {
        self.asks.on_seen(ctx, id, blobs);
    }

    pub(crate) fn on_holds(&mut self, ctx: &mut Ctx, from: NodeId, seq: u64, blobs: &[(JobId, Vec<Hash>)]) {
        self.asks.on_holds(from, seq, blobs);
        self.take_answers(ctx);
    }

    pub(crate) fn on_keep(
        &mut self,
        ctx: &mut Ctx,
        from: NodeId,
        job: JobId,
        blobs: Vec<BlobRef>,
        holders: Vec<NodeId>,
    ) {
        self.keeper.on_keep(ctx, from, job, blobs, holders);
    }

    /// What the disk knows of a job that this node is asked to hold something of.
    pub(crate) fn on_entry(&mut self, ctx: &mut Ctx, job: JobId, facts: &[Envelope]) {
        self.keeper.on_entry(ctx, job, facts);
    }

    /// A fetch ended. Gives what is here now; `None` when it was somebody else's.
    pub(crate) fn on_fetched(&mut self, ctx: &mut Ctx, id: FetchId, ok: bool) -> Option<Vec<Hash>> {
        self.keeper.on_fetched(ctx, id, ok)
    }

    /// A node that was asked to hold a copy says whether it does.
    pub(crate) fn on_kept(&mut self, ctx: &mut Ctx, from: NodeId, job: JobId, ok: bool) {
        let Some(sweep) = &mut self.sweep else { return };
        match std::mem::replace(&mut sweep.doing, Doing::Next) {
            Doing::Copying { short, target, .. } if target == from && short.job == job => {
                let bytes = if ok { short.blobs.iter().map(|b| b.size).sum() } else { 0 };
                self.not_before = ctx.now.at + transfer_time(ctx, bytes);
                sweep.copied(ctx, short, target, ok);
            }
            other => sweep.doing = other,
        }
    }

    /// The driver listed what it keeps that nodes which are gone held too.
    pub(crate) fn on_listed(&mut self, ctx: &mut Ctx, id: FetchId, shared: Vec<SharedBlobs>) {
        let Some(sweep) = &mut self.sweep else { return };
        if matches!(sweep.doing, Doing::Listing { id: asked, .. } if asked == id) {
            let items: Vec<Item> = shared.into_iter().flat_map(|shared| items_of(ctx, shared)).collect();
            sweep.items.extend(items.into_iter().flat_map(Item::cut));
            sweep.doing = Doing::Next;
        }
        self.tick(ctx);
    }

    pub(crate) fn tick(&mut self, ctx: &mut Ctx) {
        self.keeper.step(ctx);
        self.asks.tick(ctx);
        self.take_answers(ctx);
        let now = ctx.now.at;
        if self.sweep.is_none() {
            self.begin(ctx);
        }
        let not_before = self.not_before;
        let Some(sweep) = &mut self.sweep else { return };
        match &sweep.doing {
            Doing::Listing { until, .. } if now >= *until => {
                sweep.again = true;
                sweep.doing = Doing::Next;
            }
            Doing::Copying { until, .. } if now >= *until => {
                if let Doing::Copying { short, target, .. } = std::mem::replace(&mut sweep.doing, Doing::Next) {
                    sweep.copied(ctx, short, target, false);
                }
            }
            _ => {}
        }
        while matches!(sweep.doing, Doing::Next) {
            if let Some(short) = sweep.short.pop_front() {
                if now < not_before {
                    sweep.short.push_front(short);
                    return;
                }
                sweep.copy(ctx, short);
            } else if sweep.items.is_empty() {
                let later = sweep.again.then_some(now + LOOK_AGAIN);
                for node in &sweep.nodes {
                    self.gone.entry(*node).and_modify(|gone| gone.due = later);
                }
                self.sweep = None;
                return;
            } else {
                let items = sweep.take_page();
                let asked = items.iter().map(|i| (i.job, i.blobs.iter().map(|b| b.hash).collect())).collect();
                let known = items.iter().flat_map(|i| i.known.iter().copied()).collect();
                let seq = self.asks.start(ctx, asked, Some(&known), Purpose::Sweep);
                sweep.doing = Doing::Asking { seq, items };
            }
        }
    }

    /// Begins with the nodes that have been gone for long enough.
    fn begin(&mut self, ctx: &mut Ctx) {
        let now = ctx.now.at;
        let is_due = |gone: &Gone| gone.due.is_some_and(|at| at <= now);
        let here = |node: &NodeId, gone: &Gone| !gone.wiped && ctx.peers.is_heard(*node, now);
        self.gone.retain(|node, gone| !(is_due(gone) && (planted(Bug::NoCopyAgain) || here(node, gone))));
        let due = self.gone.iter().filter(|(_, gone)| is_due(gone));
        let nodes: BTreeSet<NodeId> = due.map(|(node, _)| *node).collect();
        if nodes.is_empty() {
            return;
        }
        let live = ctx.ledger.iter_live().filter(|(job, _)| ctx.ledger.sealed(job).is_none());
        let also = live.filter_map(|(job, live)| Some((*job, shared_by_facts(live, ctx.own, &nodes)?))).collect();
        let id = ctx.next_fetch();
        ctx.effect(Effect::ListShared { id, nodes: nodes.clone(), also });
        let doing = Doing::Listing { id, until: now + LIST_PATIENCE };
        self.sweep = Some(Sweep { nodes, items: VecDeque::new(), short: VecDeque::new(), again: false, doing });
    }

    fn take_answers(&mut self, ctx: &mut Ctx) {
        while let Some((seq, purpose, found)) = self.asks.take_answered() {
            match purpose {
                Purpose::Page(id) => ask::answer(ctx, id, found),
                Purpose::Sweep => {
                    if let Some(sweep) = &mut self.sweep {
                        sweep.answered(ctx, seq, &found);
                    }
                }
            }
        }
    }

    pub(crate) fn timeout(&self) -> Option<Time> {
        let sweep = self.sweep.as_ref().and_then(|sweep| match &sweep.doing {
            Doing::Listing { until, .. } | Doing::Copying { until, .. } => Some(*until),
            Doing::Asking { .. } => None,
            Doing::Next => Some(self.not_before),
        });
        let due = if self.sweep.is_none() { self.gone.values().filter_map(|gone| gone.due).min() } else { None };
        [sweep, due, self.asks.timeout(), self.keeper.timeout()].into_iter().flatten().min()
    }
}

impl Sweep {
    /// The next items, as many as one question may name.
    fn take_page(&mut self) -> Vec<Item> {
        let (mut page, mut blobs) = (Vec::new(), 0);
        while let Some(item) = self.items.pop_front() {
            if !page.is_empty() && blobs + item.blobs.len() > HELD_BLOBS_MAX {
                self.items.push_front(item);
                break;
            }
            blobs += item.blobs.len();
            page.push(item);
        }
        page
    }

    /// It is known who holds the items asked about: notes that where enough do, and queues what too few do.
    fn answered(&mut self, ctx: &mut Ctx, seq: u64, found: &Found) {
        let Doing::Asking { seq: asked, items } = &mut self.doing else { return };
        if *asked != seq {
            return;
        }
        let items = std::mem::take(items);
        self.doing = Doing::Next;
        for item in items {
            // Where holders differ from blob to blob each set of them is a case of its own.
            let mut by_holders: BTreeMap<BTreeSet<NodeId>, Vec<BlobRef>> = BTreeMap::new();
            for blob in &item.blobs {
                let holds = |(_, held): &(&NodeId, &BTreeSet<(JobId, Hash)>)| held.contains(&(item.job, blob.hash));
                let holders = found.iter().filter(|(node, _)| item.known.contains(node)).filter(holds);
                let holders = holders.map(|(node, _)| *node).collect();
                by_holders.entry(holders).or_default().push(*blob);
            }
            let own = ctx.own;
            for (holders, blobs) in by_holders.into_iter().filter(|(holders, _)| holders.contains(&own)) {
                if holders.len() >= item.wanted {
                    self.note(ctx, item.job, &blobs, &holders);
                } else if first_of(item.job, &holders) == Some(ctx.own) {
                    self.short.push_back(Short { job: item.job, blobs, holders, tried: BTreeSet::new() });
                } else {
                    // Another holder sees to it; whether it did is looked at later.
                    self.again = true;
                }
            }
        }
    }

    /// Writes down who holds these now, in place of the node that is gone.
    fn note(&self, ctx: &mut Ctx, job: JobId, blobs: &[BlobRef], holders: &BTreeSet<NodeId>) {
        let add: Vec<NodeId> = holders.iter().copied().filter(|n| *n != ctx.own).collect();
        let blobs = blobs.iter().map(|b| b.hash).collect();
        // One that came back with another disk may hold it again.
        let remove = self.nodes.difference(holders).copied().collect();
        ctx.effect(Effect::NoteHolders { job, blobs, add, remove });
        ctx.effect(Effect::Changed(job));
    }

    /// Asks a node to hold these.
    fn copy(&mut self, ctx: &mut Ctx, short: Short) {
        let now = ctx.now.at;
        let able = |node: &NodeId| {
            let runs = ctx.peers.roles(*node).is_some_and(|roles| roles.contains(Roles::RUN));
            runs && ctx.peers.is_heard(*node, now) && ask::answers(ctx, *node)
        };
        let free = |node: &NodeId| !short.holders.contains(node) && !short.tried.contains(node);
        let others: BTreeSet<NodeId> = ctx.peers.connected().filter(able).filter(free).collect();
        let target = first_of(short.job, &others).filter(|_| short.tried.len() < TARGETS_MAX);
        let Some(target) = target else {
            self.again = true;
            return;
        };
        let holders = short.holders.iter().copied().filter(|n| *n != ctx.own).collect();
        let bytes = short.blobs.iter().map(|b| b.size).sum();
        let until = now + COPY_TIMEOUT + transfer_time(ctx, bytes);
        ctx.send(target, Message::Keep { job: short.job, blobs: short.blobs.clone(), holders });
        self.doing = Doing::Copying { short, target, until };
    }

    fn copied(&mut self, ctx: &mut Ctx, mut short: Short, target: NodeId, ok: bool) {
        if ok {
            short.holders.insert(target);
            self.note(ctx, short.job, &short.blobs, &short.holders);
        } else {
            short.tried.insert(target);
            self.short.push_front(short);
        }
    }
}

impl Item {
    /// In parts of which each fits into one question.
    fn cut(self) -> impl Iterator<Item = Self> {
        let parts: Vec<Vec<BlobRef>> = self.blobs.chunks(HELD_BLOBS_MAX).map(<[BlobRef]>::to_vec).collect();
        parts.into_iter().map(move |blobs| Self {
            job: self.job,
            blobs,
            wanted: self.wanted,
            known: self.known.clone(),
        })
    }
}

/// Of a job under way, what this node and one of `gone` hold by its facts, if anything: inputs and results.
fn shared_by_facts(live: &LiveEntry, own: NodeId, gone: &BTreeSet<NodeId>) -> Option<Vec<Hash>> {
    let state = &live.state;
    let results = state.accepted.iter().flat_map(|phase| phase.iter().map(|(_, result)| result));
    let results = results.filter(|result| other_holder(result, own).is_some_and(|other| gone.contains(&other)));
    let mut blobs: Vec<BlobRef> = results.flat_map(|r| r.outputs.iter().map(|o| o.blob)).collect();
    let set = &state.spec.brain_set;
    if set.contains(&own) && set.iter().any(|node| gone.contains(node)) {
        blobs.extend(state.spec.input_blobs());
    }
    let hashes: Vec<Hash> = blobs.iter().filter(|b| b.size > 0).map(|b| b.hash).collect();
    (!hashes.is_empty()).then_some(hashes)
}

/// What to ask about blobs that this node holds with others: inputs of a job under way belong on its whole brain set.
fn items_of(ctx: &Ctx, shared: SharedBlobs) -> Vec<Item> {
    let SharedBlobs { job, blobs, holders } = shared;
    let open = ctx.ledger.live(&job).filter(|_| ctx.ledger.sealed(&job).is_none());
    let inputs: BTreeSet<Hash> =
        open.iter().flat_map(|live| live.state.spec.input_blobs()).map(|blob| blob.hash).collect();
    let (inputs, outputs): (Vec<BlobRef>, Vec<BlobRef>) = blobs.into_iter().partition(|b| inputs.contains(&b.hash));
    let known: BTreeSet<NodeId> = holders.into_iter().chain([ctx.own]).collect();
    let set: BTreeSet<NodeId> = open.iter().flat_map(|live| live.state.spec.brain_set.iter().copied()).collect();
    let inputs = Item { job, blobs: inputs, wanted: set.len(), known: known.union(&set).copied().collect() };
    let items = [Item { job, blobs: outputs, wanted: COPIES, known }, inputs];
    items.into_iter().filter(|item| !item.blobs.is_empty()).collect()
}

/// The other of the two nodes that hold a result's outputs, if this node is one.
fn other_holder(result: &AcceptedResult, own: NodeId) -> Option<NodeId> {
    let copy = result.copy?;
    if result.node == own { Some(copy) } else { (copy == own).then_some(result.node) }
}

/// Of these nodes the one that comes first for the job: the same everywhere, and another one for other jobs.
fn first_of(job: JobId, nodes: &BTreeSet<NodeId>) -> Option<NodeId> {
    let rank = |node: &&NodeId| {
        let mut hasher = blake3::Hasher::new_derive_key("sinew custody 1");
        hasher.update(&job.0).update(&node.0);
        *hasher.finalize().as_bytes()
    };
    nodes.iter().min_by_key(rank).copied()
}

/// How long so many bytes may take, at the rate that the operator allows.
fn transfer_time(ctx: &Ctx, bytes: u64) -> Span {
    Span(bytes.saturating_mul(1_000_000) / ctx.config.copy_bytes_per_s.max(1))
}
