//! The worker's side: bids, claims, the queue of each award, reports, beats, and fencing itself when nobody answers.
//!
//! It never decides whether a result counts; it only makes sure that it runs nothing without a lease.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use sinew_crdt_state::cbor;
use sinew_crdt_state::certificate::Roles;
use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::fact::{Fact, Fence, ReportItem, Run, Statement, Usage};
use sinew_crdt_state::ids::{FactId, Hash, JobId, NodeId};
use sinew_crdt_state::planted::{Bug, planted};
use sinew_crdt_state::spec::{JobSpec, PACE_MAX, PACE_MIN, Phase, Resources};

use crate::config::{BEAT_EVERY, FENCE_AFTER, LEASE, MISSING_MAX};
use crate::ctx::Ctx;
use crate::io::{Effect, RunId, StartTask, TaskKey, TaskResult};
use crate::resources::Pool;
use crate::time::{Span, Time};
use crate::wire::{Assign, Lease, LoadDigest, Located, Message};

mod beats;
mod ending;
mod leave;
mod reports;

use ending::Going;
use reports::{envelopes, item_run, push_item};

/// Bids that are kept at least: looking through them for old ones each time would cost too much under load.
const BIDS_KEPT: usize = 64;

/// An award that this node claimed.
#[derive(Debug)]
struct Held {
    brain: NodeId,
    spec: Arc<JobSpec>,
    slots: u32,
    queue: VecDeque<(Phase, Run)>,
    running: BTreeMap<(Phase, u32), RunId>,
    /// Told to end, and not gone yet: they take room as those that run do.
    stopping: BTreeSet<RunId>,
    /// Its job ended: it is held until nothing of it is left here.
    over: bool,
    /// Its brain waits for that.
    awaited: bool,
    seq: u32,
    /// Finished, not yet reported.
    buffer: BTreeMap<Phase, Vec<ReportItem>>,
    buffered: usize,
    buffer_since: Time,
    /// Reported, not yet final.
    unsettled: Vec<FactId>,
    unsettled_sent: Time,
    /// When the last answered beat was sent.
    renewed: Time,
    stewards_renewed: BTreeMap<NodeId, Time>,
    /// The pace at which it runs out, and the one that counts from when its brain renews it next.
    pace: u8,
    pace_next: u8,
    /// How often tasks were started before they were assigned here.
    attempts: BTreeMap<(Phase, u32), u32>,
    sources: Sources,
    providers: Arc<Vec<NodeId>>,
}

#[derive(Debug, Default)]
struct Sources {
    items: Vec<Option<Located>>,
    missing: usize,
    whole: Option<Arc<Vec<Located>>>,
    /// When they were asked for, or first missed.
    asked: Option<Time>,
}

/// What this node did for a job, over all its awards.
#[derive(Debug, Default)]
struct Done {
    tasks: u64,
    usage: Usage,
    outputs: BTreeMap<(Phase, u32), Vec<Hash>>,
    reports: u32,
    /// Reports of awards that ended before they were final: offered to a new brain.
    orphans: Vec<(FactId, Fence)>,
    orphans_sent: Time,
}

#[derive(Debug)]
pub(crate) struct Worker {
    pool: Pool,
    held: BTreeMap<Lease, Held>,
    runs: BTreeMap<RunId, (Lease, Phase, u32)>,
    run_last: u64,
    done: BTreeMap<JobId, Done>,
    /// Awards that ended here although something of them is not gone yet.
    going: Vec<Going>,
    beat_at: Time,
    beat_seq: u64,
    beats: VecDeque<(u64, Time)>,
    /// Bids, and when they were made: an award renews nothing by coming late. By job as well: a fact's id is of what it says,
    /// and bids for two jobs made in one millisecond often say the same.
    bids: BTreeMap<(JobId, FactId), (Time, u8)>,
    /// Old bids are dropped once there are so many.
    bids_max: usize,
    /// Blobs that this node holds, as far as the driver told: for locality in bids. That they are kept for a job is another
    /// matter, which only the driver can see to.
    pub(crate) blobs: BTreeSet<Hash>,
    load_changed: bool,
    /// Nodes whose awards ended here since the load was told last: they still plan with the slots taken.
    ended: BTreeSet<NodeId>,
    /// Nodes that asked for slots in vain: they are told once there are some, as soon as those that had them before.
    turned_away: BTreeSet<NodeId>,
    /// When leases and unsettled reports are looked at next.
    look_at: Time,
    /// This node is about to leave, and gives back what is not done.
    gives_back: bool,
}

impl Worker {
    pub(crate) fn new(total: Resources, tasks_max: u32) -> Self {
        Self {
            pool: Pool::new(total, tasks_max),
            held: BTreeMap::new(),
            runs: BTreeMap::new(),
            run_last: 0,
            done: BTreeMap::new(),
            going: Vec::new(),
            beat_at: Time::default(),
            beat_seq: 0,
            beats: VecDeque::new(),
            bids: BTreeMap::new(),
            bids_max: BIDS_KEPT,
            blobs: BTreeSet::new(),
            load_changed: true,
            ended: BTreeSet::new(),
            turned_away: BTreeSet::new(),
            look_at: Time::default(),
            gives_back: false,
        }
    }

    pub(crate) fn load(&self, ctx: &Ctx) -> LoadDigest {
        let free = self.pool.free();
        let running: usize = self.held.values().map(|h| h.running.len()).sum();
        LoadDigest {
            cpu_milli_free: free.cpu_milli,
            memory_bytes_free: free.memory_bytes,
            running: u32::try_from(running).unwrap_or(u32::MAX),
            eligible: takes_work(ctx),
            disk_failing: ctx.storage_failing.is_some(),
            disk_bytes_taken: ctx.config.disk_bytes.saturating_sub(free.disk_bytes),
        }
    }

    pub(crate) fn take_load_changed(&mut self) -> bool {
        std::mem::take(&mut self.load_changed)
    }

    /// Whether this node holds, or reported, anything of a job that has not ended.
    pub(crate) fn works_for(&self, job: &JobId) -> bool {
        self.done.contains_key(job) || self.held.keys().any(|lease| lease.job == *job)
    }

    pub(crate) fn running(&self) -> usize {
        self.held.values().map(|h| h.running.len()).sum()
    }

    /// Nodes that plan with what is free here: their awards are held, or ended since this was asked last; then also those that
    /// wait for that.
    pub(crate) fn take_planners(&mut self) -> BTreeSet<NodeId> {
        let mut ended = std::mem::take(&mut self.ended);
        if !ended.is_empty() {
            ended.append(&mut self.turned_away);
        }
        self.held.values().map(|h| h.brain).chain(ended).collect()
    }

    /// The leases held, for invariant checks.
    pub(crate) fn leases(&self) -> impl Iterator<Item = (Lease, u32)> {
        self.held.iter().map(|(lease, h)| (*lease, h.slots))
    }

    fn fits(&self, ctx: &Ctx, spec: &JobSpec) -> u32 {
        let labels = spec.labels.iter().all(|(k, v)| ctx.config.labels.get(k) == Some(v));
        let able = labels && ctx.config.runners.contains(spec.runners()) && ctx.config.volumes.admit(spec).is_ok();
        let able = able && spec.limits.output_bytes_max <= ctx.config.output_bytes_max;
        if able && takes_work(ctx) { self.pool.slots(spec.resources) } else { 0 }
    }

    pub(crate) fn on_offer(&mut self, ctx: &mut Ctx, from: NodeId, submit: &Envelope, slots: u32) {
        if ctx.admit(from, submit).is_err() {
            return;
        }
        let job = submit.entry;
        let Some(live) = ctx.ledger.live(&job) else {
            ctx.send(from, Message::NoBid { job, load: self.load(ctx) });
            return;
        };
        let over = live.state.outcome().is_some() || live.state.cancel.is_some();
        let spec = Arc::clone(&live.state.spec);
        let can = if over { 0 } else { self.fits(ctx, &spec).min(slots) };
        if can == 0 {
            self.turned_away.extend((!over).then_some(from));
            ctx.send(from, Message::NoBid { job, load: self.load(ctx) });
            return;
        }
        let held_bytes: u64 = spec.input_blobs().iter().filter(|b| self.blobs.contains(&b.hash)).map(|b| b.size).sum();
        let free_share = u64::from(self.pool.free().cpu_milli) * 100 / u64::from(ctx.config.cpu_milli.max(1));
        let score = i32::try_from(free_share).unwrap_or(100);
        let pace = live.state.pace(live.state.term);
        let (id, bid) = ctx.state(job, Fact::Bid { slots: can, score, held_bytes, start_in_ms: 0 });
        self.note_bid((job, id), ctx.now.at, pace);
        ctx.send(from, Message::Bid(Box::new(bid)));
    }

    fn note_bid(&mut self, bid: (JobId, FactId), now: Time, pace: u8) {
        if self.bids.len() >= self.bids_max {
            self.bids.retain(|_, (at, pace)| now - *at < FENCE_AFTER.at(*pace));
            self.bids_max = 2 * self.bids.len() + BIDS_KEPT;
        }
        self.bids.entry(bid).or_insert((now, pace));
    }

    pub(crate) fn on_advert(&self, ctx: &mut Ctx, from: NodeId, advert: &crate::wire::Advert) {
        let crate::wire::Advert { cpu_milli, memory_bytes, disk_bytes, .. } = *advert;
        let need = Resources { cpu_milli, memory_bytes, disk_bytes };
        let labels = advert.labels.iter().all(|(k, v)| ctx.config.labels.get(k) == Some(v));
        let slots = self.pool.slots(need);
        let volumes = advert.volumes.is_empty() || ctx.config.volumes.offered().cover(&advert.volumes);
        let able = labels && volumes && ctx.config.runners.contains(advert.runners);
        let able = able && advert.output_bytes_max <= ctx.config.output_bytes_max;
        if able && slots > 0 && takes_work(ctx) {
            ctx.send(from, Message::Interest { job: advert.job, slots });
        }
    }

    /// An award may have been held up on its way for longer than a lease lasts, and its brain have given it up: it counts from
    /// when the bid was made that it answers, as a beat's answer counts from when the beat was sent.
    pub(crate) fn on_award(&mut self, ctx: &mut Ctx, from: NodeId, award: &Envelope, bid: FactId, assign: &Assign) {
        let lease = assign.lease;
        if award.entry != lease.job || ctx.admit(from, award).is_err() || self.held.contains_key(&lease) {
            return;
        }
        let Ok(Statement { fact: Fact::Award { fence, node, slots, lease_ms }, .. }) = cbor::from_slice(&award.payload)
        else {
            return ctx.offence(from, "an award message without an award".to_owned());
        };
        if node != ctx.own || fence != lease.fence || award.author != from {
            return ctx.offence(from, "an award for somebody else".to_owned());
        }
        let pace = pace_of_lease(lease_ms);
        let bid_at = self.bids.remove(&(lease.job, bid)).map(|(at, _)| at);
        let bid_at = bid_at.filter(|at| ctx.now.at - *at < FENCE_AFTER.at(pace));
        if bid_at.is_some_and(|at| self.claim(ctx, from, (lease, pace), slots, at)) {
            self.on_assign(ctx, from, assign);
        } else {
            self.turned_away.insert(from);
            ctx.send(from, Message::Decline { lease });
        }
    }

    fn claim(&mut self, ctx: &mut Ctx, brain: NodeId, (lease, pace): (Lease, u8), slots: u32, bid_at: Time) -> bool {
        let Some(live) = ctx.ledger.live(&lease.job) else { return false };
        let state = &live.state;
        if lease.fence.term < state.term || state.outcome().is_some() || state.cancel.is_some() {
            return false;
        }
        let spec = Arc::clone(&state.spec);
        let slots = self.fits(ctx, &spec).min(slots);
        if slots == 0 {
            return false;
        }
        let slots = self.pool.reserve(spec.resources, slots);
        self.load_changed = true;
        let mut providers: Vec<NodeId> = vec![brain];
        providers.extend(spec.brain_set.iter().copied().filter(|n| *n != brain));
        let held = Held {
            brain,
            spec,
            slots,
            queue: VecDeque::new(),
            running: BTreeMap::new(),
            stopping: BTreeSet::new(),
            over: false,
            awaited: false,
            seq: 0,
            buffer: BTreeMap::new(),
            buffered: 0,
            buffer_since: ctx.now.at,
            unsettled: Vec::new(),
            unsettled_sent: ctx.now.at,
            renewed: bid_at,
            stewards_renewed: BTreeMap::new(),
            pace,
            pace_next: pace,
            attempts: BTreeMap::new(),
            sources: Sources::default(),
            providers: Arc::new(providers),
        };
        self.held.insert(lease, held);
        self.look_at = ctx.now.at;
        if ctx.now.at - bid_at >= BEAT_EVERY {
            self.beat_at = ctx.now.at;
        }
        let (_, claim) = ctx.state(lease.job, Fact::Claim { fence: lease.fence, slots });
        ctx.send(brain, Message::Facts(vec![claim]));
        true
    }

    pub(crate) fn on_assign(&mut self, ctx: &mut Ctx, from: NodeId, assign: &Assign) {
        let Some(held) = self.held.get_mut(&assign.lease).filter(|h| h.brain == from) else {
            return ctx.send(from, Message::Decline { lease: assign.lease });
        };
        if assign.seq <= held.seq {
            return;
        }
        held.seq = assign.seq;
        if self.gives_back {
            // It goes back with the award.
            return;
        }
        held.attempts.extend(assign.attempts.iter().map(|(task, n)| ((assign.phase, *task), *n)));
        let total = held.spec.phases().get(usize::from(assign.phase)).copied().unwrap_or(0);
        let fine = |run: &Run| run.len > 0 && run.start.checked_add(run.len).is_some_and(|end| end <= total);
        for run in assign.runs.iter().filter(|run| fine(run)) {
            if assign.again {
                held.requeue_missing(ctx, assign.lease.job, assign.phase, *run);
            } else {
                held.queue.push_back((assign.phase, *run));
            }
        }
        self.start_tasks(ctx, assign.lease);
    }

    pub(crate) fn on_sources(
        &mut self,
        ctx: &mut Ctx,
        from: NodeId,
        lease: Lease,
        start: u32,
        total: u32,
        items: Vec<Located>,
    ) {
        let Some(held) = self.held.get_mut(&lease).filter(|h| h.brain == from) else { return };
        let chunks = held.spec.phases().first().copied().unwrap_or(0);
        let end = (start as usize).saturating_add(items.len());
        if total > chunks || end > total as usize {
            return ctx.offence(from, "sources out of range".to_owned());
        }
        let sources = &mut held.sources;
        if sources.items.len() != total as usize {
            *sources = Sources { items: vec![None; total as usize], missing: total as usize, ..Sources::default() };
        }
        for (i, item) in items.into_iter().enumerate() {
            let slot = &mut sources.items[start as usize + i];
            sources.missing -= usize::from(slot.is_none());
            *slot = Some(item);
        }
        if sources.missing == 0 {
            sources.whole = Some(Arc::new(sources.items.iter().flatten().copied().collect()));
        }
        self.start_tasks(ctx, lease);
    }

    pub(crate) fn on_task(&mut self, ctx: &mut Ctx, run: RunId, result: TaskResult) {
        let Some((lease, phase, task)) = self.runs.remove(&run) else { return self.gone(ctx, run) };
        let Some(held) = self.held.get_mut(&lease) else { return };
        held.running.remove(&(phase, task));
        if held.buffered == 0 {
            held.buffer_since = ctx.now.at;
        }
        held.buffered += 1;
        let done = self.done.entry(lease.job).or_default();
        done.usage.add(result.usage);
        if let Ok(outputs) = &result.result {
            done.tasks += 1;
            if !outputs.is_empty() {
                done.outputs.insert((phase, task), outputs.iter().map(|o| o.blob.hash).collect());
                self.blobs.extend(outputs.iter().map(|o| o.blob.hash));
            }
        }
        push_item(held.buffer.entry(phase).or_default(), task, result);
        self.start_tasks(ctx, lease);
    }

    /// A task could not begin: it goes back to its brain, and counts as nothing.
    pub(crate) fn on_blocked(&mut self, ctx: &mut Ctx, run: RunId, missing: Vec<Hash>, failure: TaskResult) {
        let Some((lease, phase, task)) = self.runs.get(&run).copied() else { return self.gone(ctx, run) };
        let Some(held) = self.held.get_mut(&lease) else { return };
        if planted(Bug::CountBlocked) || !ctx.peers.understands_fetching(held.brain) {
            return self.on_task(ctx, run, failure);
        }
        self.runs.remove(&run);
        held.running.remove(&(phase, task));
        let missing = missing.into_iter().take(MISSING_MAX).collect();
        ctx.send(held.brain, Message::Blocked { lease, phase, tasks: vec![task], missing });
        self.start_tasks(ctx, lease);
    }

    /// Fills the award's free slots from its queue, and hands on as many more as the driver may hold ready.
    fn start_tasks(&mut self, ctx: &mut Ctx, lease: Lease) {
        let job_slots = self.leases_of(lease.job).iter().filter_map(|l| self.held.get(l)).map(|h| h.slots).sum();
        let Some(held) = self.held.get_mut(&lease) else { return };
        // A machine that stood still learns of a task's end before its timers fire: the lease may be long over.
        if held.over || ctx.now.at >= held.fenced_at() {
            return;
        }
        let ahead = ctx.config.start_ahead.saturating_mul(held.slots) + u32::from(planted(Bug::OneTaskTooMany));
        while held.running.len() + held.stopping.len() < held.slots.saturating_add(ahead) as usize {
            let Some((phase, run)) = held.queue.front_mut() else { return };
            let (phase, task) = (*phase, run.start);
            if phase > 0 && held.sources.whole.is_none() {
                return;
            }
            run.start += 1;
            run.len -= 1;
            if run.len == 0 {
                held.queue.pop_front();
            }
            if held.running.contains_key(&(phase, task)) {
                continue;
            }
            self.run_last += 1;
            let run = RunId(self.run_last);
            held.running.insert((phase, task), run);
            self.runs.insert(run, (lease, phase, task));
            let attempt = held.attempts.remove(&(phase, task)).unwrap_or(0);
            ctx.effect(Effect::Start(StartTask {
                run,
                until: held.until(),
                key: TaskKey { lease, phase, task },
                attempt,
                job_slots,
                spec: Arc::clone(&held.spec),
                providers: Arc::clone(&held.providers),
                sources: if phase > 0 { held.sources.whole.clone() } else { None },
            }));
        }
    }

    fn leases_of(&self, job: JobId) -> Vec<Lease> {
        let low = Lease { job, fence: Fence { term: 0, epoch: 0 } };
        self.held.range(low..).take_while(|(l, _)| l.job == job).map(|(l, _)| *l).collect()
    }
}

impl Held {
    /// Tasks not yet reported.
    fn open(&self) -> u32 {
        let queued: u32 = self.queue.iter().map(|(_, r)| r.len).sum();
        let rest = self.running.len() + self.buffered;
        queued.saturating_add(u32::try_from(rest).unwrap_or(u32::MAX))
    }

    /// Queues the tasks of `run` that are neither queued, running, nor reported already.
    fn requeue_missing(&mut self, ctx: &Ctx, job: JobId, phase: Phase, run: Run) {
        let mut known = sinew_crdt_state::intervals::IntervalMap::default();
        let queued = self.queue.iter().filter(|(p, _)| *p == phase).map(|(_, r)| *r);
        let running = self.running.keys().filter(|(p, _)| *p == phase).map(|(_, t)| Run { start: *t, len: 1 });
        let buffered = self.buffer.get(&phase).into_iter().flatten().map(item_run);
        for r in queued.chain(running).chain(buffered) {
            known.insert(r, &(), |()| false);
        }
        for envelope in envelopes(ctx, job, &self.unsettled) {
            if let Ok(Statement { fact: Fact::Report { phase: p, items, .. }, .. }) =
                cbor::from_slice(&envelope.payload)
                && p == phase
            {
                // A failed task that is assigned again is to be run again.
                let done = items.iter().filter(|i| !matches!(i, ReportItem::Failed { .. }));
                done.map(item_run).for_each(|r| known.insert(r, &(), |()| false));
            }
        }
        for task in run.start..run.end() {
            if known.get(task).is_none() {
                push_run(&mut self.queue, phase, task);
            }
        }
    }
}

/// The pace at which a brain gives leases of this length.
fn pace_of_lease(lease_ms: u32) -> u8 {
    let pace = Span::ms(u64::from(lease_ms)).0 / LEASE.0;
    u8::try_from(pace).unwrap_or(PACE_MAX).clamp(PACE_MIN, PACE_MAX)
}

/// Whether this node takes work at all.
fn takes_work(ctx: &Ctx) -> bool {
    ctx.storage_failing.is_none() && !ctx.leaving && ctx.roles.contains(Roles::RUN)
}

fn push_run(queue: &mut VecDeque<(Phase, Run)>, phase: Phase, task: u32) {
    match queue.back_mut() {
        Some((p, run)) if *p == phase && run.end() == task => run.len += 1,
        _ => queue.push_back((phase, Run { start: task, len: 1 })),
    }
}
