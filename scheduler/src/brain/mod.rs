//! The brain of one job: it decides, and makes every decision durable on a majority of its brain set before anything
//! irrevocable depends on it.
//!
//! Here: the stages of a job and the quorum. Placement is in [`place`], results in [`results`], the end in [`end`], taking
//! over from another brain in [`adopt`].

mod adopt;
mod end;
mod place;
mod quorum;
mod results;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use sinew_crdt_state::fact::{Accepted, Fact, Fence, Outcome, Run, Statement};
use sinew_crdt_state::ids::{FactId, JobId, NodeId};
use sinew_crdt_state::intervals::IntervalMap;
use sinew_crdt_state::spec::{JobSpec, PHASE_MAP, Phase};

use self::place::Placement;
use self::quorum::Quorum;
use crate::config::{FENCE_AFTER, LEASE, SPECULATE_AFTER, SUBMIT_TIMEOUT};
use crate::ctx::Ctx;
use crate::io::{Effect, Note, RequestId, Response, SubmitError};
use crate::time::{Span, Time};
use crate::wire::{Assign, Lease, Message};

/// Where a job is in its brain's hands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stage {
    /// The spec is on its way to a majority.
    Storing,
    /// Just elected: workers are asked what they hold.
    Adopting { until: Time, asked: BTreeSet<(NodeId, Fence)> },
    /// Tasks run.
    Running,
    /// The verdict is on its way to a majority.
    Ending { finish: FactId },
    /// Decided; executors' receipts are awaited.
    Sealing { until: Time },
    /// Nothing left to do.
    Over,
}

/// An award as its brain sees it.
#[derive(Debug)]
struct Seat {
    node: NodeId,
    slots: u32,
    /// Tasks assigned and not reported, with the time of assignment.
    open: IntervalMap<Time>,
    heard: Time,
    seq: u32,
    /// Beats in a row whose count of open tasks was lower than ours.
    mismatches: u32,
    /// Tasks per second, smoothed.
    rate: f64,
    reported: Time,
    sources_sent: bool,
    /// The fence under which its worker knew it, until the worker has answered the new brain.
    adopted_from: Option<Fence>,
}

/// A finished task whose outputs are being copied to a second node.
#[derive(Debug)]
struct Copying {
    accepted: Accepted,
    target: NodeId,
    since: Time,
}

/// The brain of one job.
#[derive(Debug)]
pub(crate) struct Brain {
    job: JobId,
    spec: Arc<JobSpec>,
    pub(crate) term: u32,
    /// When this term began here.
    since: Time,
    stage: Stage,
    answer: Option<(RequestId, Time)>,
    quorum: Quorum,
    phase: Phase,
    total: u32,
    pending: VecDeque<Run>,
    later: BTreeMap<Time, Vec<u32>>,
    attempts: BTreeMap<u32, u32>,
    seats: BTreeMap<Fence, Seat>,
    epoch_last: u32,
    /// Tasks of this phase whose results count, written down or not.
    done: IntervalMap<()>,
    done_count: u32,
    copying: BTreeMap<u32, Copying>,
    ready: Vec<Accepted>,
    /// Reports to settle with the next accept.
    reports: Vec<(NodeId, FactId)>,
    /// Accept facts on their way to a majority, with the reports they settle.
    accepts: BTreeMap<FactId, Vec<(NodeId, FactId)>>,
    /// The first accept facts of this term: all of them for a small job, which then go along with the verdict.
    accept_ids: Vec<FactId>,
    accepted_at: Time,
    placement: Option<Placement>,
    place_at: Time,
    advert_at: Time,
    /// Nodes that declined or did not bid since the last news.
    verdict: Option<Outcome>,
    /// Report facts per executor: with one only, it is the receipt.
    reports_by: BTreeMap<NodeId, Vec<FactId>>,
    /// For the mean task time of the phase: tasks and microseconds.
    mean: (u64, u64),
    speculated: BTreeSet<u32>,
    rotate: usize,
}

impl Brain {
    /// The brain of a job that was just submitted here.
    pub(crate) fn submitted(ctx: &mut Ctx, job: JobId, submit: FactId, request: RequestId) -> Option<Self> {
        let spec = Arc::new(ctx.ledger.live(&job)?.state.spec.clone());
        let mut brain = Self::new(ctx, job, spec, 1, Stage::Storing);
        brain.answer = Some((request, ctx.now.at + SUBMIT_TIMEOUT));
        brain.quorum.add(ctx, &[submit]);
        Some(brain)
    }

    fn new(ctx: &Ctx, job: JobId, spec: Arc<JobSpec>, term: u32, stage: Stage) -> Self {
        let now = ctx.now.at;
        let mut brain = Self {
            job,
            term,
            since: now,
            stage,
            answer: None,
            quorum: Quorum::new(job, term, spec.brain_set.clone()),
            phase: 0,
            total: 0,
            pending: VecDeque::new(),
            later: BTreeMap::new(),
            attempts: BTreeMap::new(),
            seats: BTreeMap::new(),
            epoch_last: 0,
            done: IntervalMap::default(),
            done_count: 0,
            copying: BTreeMap::new(),
            ready: Vec::new(),
            reports: Vec::new(),
            accepts: BTreeMap::new(),
            accept_ids: Vec::new(),
            accepted_at: now,
            placement: None,
            place_at: now,
            advert_at: now,
            verdict: None,
            reports_by: BTreeMap::new(),
            mean: (0, 0),
            speculated: BTreeSet::new(),
            rotate: 0,
            spec,
        };
        brain.enter_phase(PHASE_MAP);
        brain
    }

    fn enter_phase(&mut self, phase: Phase) {
        self.phase = phase;
        self.total = self.spec.phases().get(usize::from(phase)).copied().unwrap_or(0);
        self.pending =
            if self.total > 0 { VecDeque::from([Run { start: 0, len: self.total }]) } else { VecDeque::new() };
        self.done = IntervalMap::default();
        self.done_count = 0;
        self.attempts.clear();
        self.later.clear();
        self.mean = (0, 0);
        self.speculated.clear();
    }

    /// Whether tasks wait for a slot somewhere.
    pub(crate) fn is_waiting_for_room(&self) -> bool {
        self.stage == Stage::Running && !self.pending.is_empty() && self.placement.is_none()
    }

    /// Whether the job has to do with `node`.
    pub(crate) fn concerns(&self, node: NodeId) -> bool {
        self.spec.brain_set.contains(&node)
            || self.seats.values().any(|s| s.node == node)
            || self.copying.values().any(|c| c.target == node)
            || self.is_waiting_for_room()
    }

    /// The phase, its finished tasks, and its assigned ones.
    pub(crate) fn progress(&self) -> (Phase, u64, u64) {
        let running = self.seats.values().map(|s| s.open.count()).sum::<u64>() + self.copying.len() as u64;
        (self.phase, u64::from(self.done_count), running)
    }

    /// Whether the job is not acknowledged yet.
    pub(crate) fn is_storing(&self) -> bool {
        self.stage == Stage::Storing
    }

    /// The brain set.
    pub(crate) fn members(&self) -> impl Iterator<Item = NodeId> {
        self.spec.brain_set.iter().copied()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// Whether this brain may decide and renew leases: a majority of its set answered lately, or it has just begun.
    fn in_charge(&self, ctx: &Ctx) -> bool {
        ctx.now.at - self.since <= crate::config::IN_CHARGE_FOR || self.quorum.reachable(ctx)
    }

    /// Takes note of a fact about the job, own or foreign.
    pub(crate) fn on_fact(&mut self, ctx: &mut Ctx, id: FactId, author: NodeId, statement: &Statement) {
        match &statement.fact {
            Fact::Submit(_) => return,
            Fact::Lead { term, .. } if *term > self.term => self.depose(ctx),
            Fact::Vote { term } if *term > self.term && author == ctx.own => self.depose(ctx),
            _ => {}
        }
        self.quorum.ride(id);
    }

    /// Another brain leads a higher term: this one ends without another word.
    pub(crate) fn depose(&mut self, ctx: &mut Ctx) {
        self.stage = Stage::Over;
        if let Some((request, _)) = self.answer.take() {
            // A higher term needed a majority that knew the spec: the job is safe, and goes on elsewhere.
            ctx.effect(Effect::Answer { id: request, response: Response::Submitted(Ok(self.job)) });
        }
    }

    /// These facts are on `node`'s disk.
    pub(crate) fn on_stored(&mut self, ctx: &mut Ctx, node: NodeId, ids: &[FactId]) {
        for id in self.quorum.stored(node, ids) {
            self.on_final(ctx, id);
        }
    }

    /// A fact of this term became final.
    fn on_final(&mut self, ctx: &mut Ctx, id: FactId) {
        if let Some(reports) = self.accepts.remove(&id) {
            let mut by_node: BTreeMap<NodeId, Vec<FactId>> = BTreeMap::new();
            for (node, report) in reports {
                by_node.entry(node).or_default().push(report);
            }
            for (node, reports) in by_node {
                ctx.send(node, Message::Settled { job: self.job, reports });
            }
            return;
        }
        match &self.stage {
            Stage::Storing => {
                self.stage = Stage::Running;
                if let Some((request, _)) = self.answer.take() {
                    ctx.effect(Effect::Answer { id: request, response: Response::Submitted(Ok(self.job)) });
                }
                ctx.effect(Effect::Changed(self.job));
            }
            Stage::Ending { finish } if *finish == id => self.finished(ctx),
            _ => {}
        }
    }

    /// Does whatever is due. Called whenever something about the job changed or a timer ran out.
    pub(crate) fn step(&mut self, ctx: &mut Ctx) {
        self.quorum.resend(ctx);
        match self.stage.clone() {
            Stage::Storing => self.step_storing(ctx),
            Stage::Adopting { until, asked } => {
                if ctx.now.at >= until || asked.iter().all(|(n, _)| !ctx.peers.is_connected(*n)) {
                    self.adopted(ctx);
                }
            }
            Stage::Running => self.step_running(ctx),
            Stage::Sealing { until } => self.step_sealing(ctx, until),
            Stage::Ending { .. } | Stage::Over => {}
        }
        self.quorum.flush(ctx);
    }

    fn step_storing(&mut self, ctx: &mut Ctx) {
        let Some((request, deadline)) = self.answer else { return };
        let problem = match &ctx.storage_failing {
            Some(reason) => SubmitError::Disk(reason.clone()),
            None if ctx.now.at >= deadline => SubmitError::NoMajority(SUBMIT_TIMEOUT.as_ms()),
            None => return,
        };
        self.withdraw(ctx, request, problem);
    }

    fn step_running(&mut self, ctx: &mut Ctx) {
        if !self.in_charge(ctx) {
            return;
        }
        self.drop_lost_seats(ctx);
        self.drop_slow_copies(ctx);
        let canceled = ctx.ledger.live(&self.job).is_some_and(|l| l.state.cancel.is_some());
        if canceled && self.verdict.is_none() {
            self.verdict = Some(Outcome::Cancelled);
        }
        while let Some(entry) = self.later.first_entry().filter(|e| *e.key() <= ctx.now.at) {
            for task in entry.remove() {
                self.pending.push_front(Run { start: task, len: 1 });
            }
        }
        self.write_accepts(ctx);
        if self.step_phase(ctx) {
            return;
        }
        self.top_up(ctx);
        self.speculate(ctx);
        self.place(ctx);
    }

    /// Moves on when the phase is complete or the verdict is known. Returns whether the job is ending.
    fn step_phase(&mut self, ctx: &mut Ctx) -> bool {
        if let Some(verdict) = self.verdict.take() {
            self.finish(ctx, verdict);
            return true;
        }
        while self.done_count == self.total && self.copying.is_empty() && self.ready.is_empty() {
            let last = usize::from(self.phase) + 1 == self.spec.phases().len();
            if last {
                self.finish(ctx, Outcome::Completed);
                return true;
            }
            if !self.accepts.is_empty() {
                return false;
            }
            self.enter_phase(self.phase + 1);
            ctx.effect(Effect::Changed(self.job));
        }
        false
    }

    fn drop_lost_seats(&mut self, ctx: &mut Ctx) {
        let now = ctx.now.at;
        let lost: Vec<Fence> =
            self.seats.iter().filter(|(_, s)| now - s.heard >= LEASE).map(|(fence, _)| *fence).collect();
        for fence in lost {
            let Some(seat) = self.seats.remove(&fence) else { continue };
            let lease = Lease { job: self.job, fence };
            ctx.note(Note::Lost { lease, node: seat.node, silent_ms: (now - seat.heard).as_ms() });
            ctx.state(self.job, Fact::Revoke { fence, lost: true });
            ctx.peers.gave_up(seat.node);
            self.requeue(&seat);
            // Outputs that only the lost node has are as good as gone.
            let gone: Vec<u32> =
                self.copying.iter().filter(|(_, c)| c.accepted.node == seat.node).map(|(task, _)| *task).collect();
            for task in gone {
                self.copying.remove(&task);
                self.pending.push_front(Run { start: task, len: 1 });
            }
            ctx.effect(Effect::Changed(self.job));
        }
    }

    /// Puts a seat's open tasks back, but for those that someone else finished or runs too.
    fn requeue(&mut self, seat: &Seat) {
        for (run, _) in seat.open.iter() {
            for gap in self.done.gaps_in(run) {
                for task in gap.start..gap.end() {
                    let elsewhere = self.seats.values().any(|s| s.open.get(task).is_some());
                    if !elsewhere && !self.copying.contains_key(&task) {
                        self.push_pending(task);
                    }
                }
            }
        }
    }

    fn push_pending(&mut self, task: u32) {
        match self.pending.back_mut() {
            Some(run) if run.end() == task => run.len += 1,
            _ => self.pending.push_back(Run { start: task, len: 1 }),
        }
    }

    fn pending_count(&self) -> u64 {
        self.pending.iter().map(|r| u64::from(r.len)).sum()
    }

    /// Fills the queues of all seats.
    fn top_up(&mut self, ctx: &mut Ctx) {
        let fences: Vec<Fence> = self.seats.keys().copied().collect();
        for fence in fences {
            self.top_up_seat(ctx, fence);
        }
        let last = usize::from(self.phase) + 1 == self.spec.phases().len();
        if last && self.pending.is_empty() && self.later.is_empty() {
            self.release_idle(ctx);
        }
    }

    fn top_up_seat(&mut self, ctx: &mut Ctx, fence: Fence) {
        if self.pending.is_empty() {
            return;
        }
        self.send_sources(ctx, fence);
        let window = self.window(fence);
        let runs = self.take_pending(window);
        let Some(seat) = self.seats.get_mut(&fence) else { return };
        if let Some(assign) = seat.assign(self.job, fence, self.phase, runs, ctx.now.at, false) {
            ctx.send(seat.node, Message::Assign(assign));
        }
    }

    /// How many more tasks the seat should get: about [`crate::config::QUEUE_AHEAD`] of work, at least two per slot, and
    /// towards the end of a phase no more than a fair share of what is left.
    fn window(&self, fence: Fence) -> u32 {
        let Some(seat) = self.seats.get(&fence) else { return 0 };
        let slots: u64 = self.seats.values().map(|s| u64::from(s.slots)).sum();
        let share =
            (self.pending_count() * u64::from(seat.slots)).div_ceil(2 * slots.max(1)).max(u64::from(seat.slots));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the range first")]
        let ahead = (seat.rate * 0.2).clamp(0.0, f64::from(crate::config::WINDOW_MAX)) as u64;
        let want = ahead.max(u64::from(seat.slots) * 2).min(share);
        u32::try_from(want.saturating_sub(seat.open.count())).unwrap_or(u32::MAX)
    }

    fn take_pending(&mut self, mut wanted: u32) -> Vec<Run> {
        let mut runs = Vec::new();
        while wanted > 0 {
            let Some(run) = self.pending.front_mut() else { break };
            let len = run.len.min(wanted);
            runs.push(Run { start: run.start, len });
            run.start += len;
            run.len -= len;
            wanted -= len;
            if run.len == 0 {
                self.pending.pop_front();
            }
        }
        runs
    }

    fn release_idle(&mut self, ctx: &mut Ctx) {
        let idle: Vec<Fence> = self.seats.iter().filter(|(_, s)| s.open.is_empty()).map(|(f, _)| *f).collect();
        let keep_one = idle.len() == self.seats.len();
        for fence in idle.into_iter().skip(usize::from(keep_one)) {
            if let Some(seat) = self.seats.remove(&fence) {
                ctx.send(seat.node, Message::Release { lease: Lease { job: self.job, fence } });
            }
        }
    }

    /// Starts the slowest tasks a second time where a slot is idle (B1: stragglers are speculated).
    fn speculate(&mut self, ctx: &mut Ctx) {
        if !self.pending.is_empty() || self.mean.0 == 0 {
            return;
        }
        let slow = Span(2 * self.mean.1 / self.mean.0).max(SPECULATE_AFTER);
        let straggler = self
            .seats
            .values()
            .flat_map(|s| s.open.iter().map(move |(r, at)| (s.node, r, *at)))
            .find(|(_, run, at)| run.len == 1 && ctx.now.at - *at >= slow && !self.speculated.contains(&run.start));
        let Some((node, run, _)) = straggler else { return };
        let idle = self.seats.iter().find(|(_, s)| s.node != node && s.open.count() < u64::from(s.slots));
        if let Some((fence, _)) = idle {
            let fence = *fence;
            self.speculated.insert(run.start);
            self.send_sources(ctx, fence);
            let Some(seat) = self.seats.get_mut(&fence) else { return };
            if let Some(assign) = seat.assign(self.job, fence, self.phase, vec![run], ctx.now.at, false) {
                ctx.send(seat.node, Message::Assign(assign));
            }
        }
    }

    /// A beat's question about one lease: does it go on? `None` when this brain cannot say.
    pub(crate) fn on_lease(&mut self, ctx: &mut Ctx, from: NodeId, fence: Fence, open: u32) -> Option<bool> {
        if self.is_over() || !self.in_charge(ctx) || matches!(self.stage, Stage::Adopting { .. }) {
            return None;
        }
        let job = self.job;
        let phase = self.phase;
        let Some(seat) = self.seats.get_mut(&fence).filter(|s| s.node == from) else { return Some(false) };
        seat.heard = ctx.now.at;
        // Tasks may be under way in either direction; fewer than expected for a whole fencing time means some got lost.
        if u64::from(open) < seat.open.count() {
            seat.mismatches += 1;
            if u64::from(seat.mismatches) * crate::config::BEAT_EVERY.0 >= FENCE_AFTER.0 {
                seat.mismatches = 0;
                let runs: Vec<Run> = seat.open.iter().map(|(r, _)| r).collect();
                seat.sources_sent = false;
                let again = seat.assign(job, fence, phase, runs, ctx.now.at, true);
                self.send_sources(ctx, fence);
                ctx.send(from, Message::Assign(again?));
            }
        } else {
            seat.mismatches = 0;
        }
        Some(true)
    }

    pub(crate) fn on_decline(&mut self, ctx: &mut Ctx, from: NodeId, fence: Fence) {
        if self.seats.get(&fence).is_none_or(|s| s.node != from) {
            return;
        }
        if let Some(seat) = self.seats.remove(&fence) {
            ctx.state(self.job, Fact::Revoke { fence, lost: false });
            self.requeue(&seat);
        }
    }

    /// When [`Self::step`] should be called next, whatever happens.
    pub(crate) fn timeout(&self, ctx: &Ctx) -> Option<Time> {
        let stage = match &self.stage {
            Stage::Storing => self.answer.map(|(_, deadline)| deadline),
            Stage::Adopting { until, .. } | Stage::Sealing { until } => Some(*until),
            Stage::Running => Some(self.running_timeout(ctx)),
            Stage::Ending { .. } | Stage::Over => None,
        };
        stage.into_iter().chain(self.quorum.timeout()).min()
    }

    fn running_timeout(&self, ctx: &Ctx) -> Time {
        // Leases, stragglers and loss of contact are looked at once a beat.
        let mut at = ctx.now.at + crate::config::BEAT_EVERY;
        at = at.min(self.later.keys().next().copied().unwrap_or(at));
        if !self.ready.is_empty() {
            at = at.min(self.accepted_at + crate::config::PROGRESS_EVERY);
        }
        at.min(self.placement_timeout().unwrap_or(at))
    }
}

impl Seat {
    fn new(node: NodeId, slots: u32, now: Time) -> Self {
        Self {
            node,
            slots,
            open: IntervalMap::default(),
            heard: now,
            seq: 0,
            mismatches: 0,
            rate: 0.0,
            reported: now,
            sources_sent: false,
            adopted_from: None,
        }
    }

    /// Notes the tasks as open and makes the message; `None` when there are none.
    fn assign(
        &mut self,
        job: JobId,
        fence: Fence,
        phase: Phase,
        runs: Vec<Run>,
        now: Time,
        again: bool,
    ) -> Option<Assign> {
        if runs.is_empty() {
            return None;
        }
        self.seq += 1;
        if self.open.is_empty() {
            self.reported = now;
        }
        for run in &runs {
            self.open.insert(*run, &now, |_| false);
        }
        Some(Assign { lease: Lease { job, fence }, seq: self.seq, again, phase, runs })
    }
}
