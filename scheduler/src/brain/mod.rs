//! The brain of one job: it decides, and makes every decision durable on a majority of its brain set before anything
//! irrevocable depends on it.
//!
//! Here: the stages of a job and the quorum. Placement is in [`place`], awards under way in [`seats`], results in
//! [`results`] and [`copies`], inputs out of reach in [`blocked`], workers that end nothing in [`overdue`], the end in [`end`], taking over from another brain in [`adopt`].

mod adopt;
mod blocked;
mod copies;
mod end;
mod overdue;
mod place;
mod quorum;
mod results;
mod seats;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use sinew_crdt_state::fact::{Fact, Fence, Outcome, Run, Statement};
use sinew_crdt_state::ids::{FactId, Hash, JobId, NodeId};
use sinew_crdt_state::intervals::IntervalMap;
use sinew_crdt_state::planted::{Bug, planted};
use sinew_crdt_state::rare::{Empty, Rare};
use sinew_crdt_state::spec::{JobSpec, PACE_MIN, PHASE_MAP, Phase};

use self::adopt::Adoption;
pub(crate) use self::adopt::Mandate;
use self::blocked::Blocked;
use self::copies::Copying;
pub(crate) use self::place::Bid;
use self::place::Placement;
pub(crate) use self::place::Sought;
use self::quorum::Quorum;
use self::results::Ready;
use self::seats::Seat;
use crate::config::{BEAT_EVERY, CHECK_EVERY, IN_CHARGE_FOR, LEASE, PROGRESS_EVERY, SUBMIT_TIMEOUT};
use crate::ctx::Ctx;
use crate::io::{Effect, RequestId, SubmitError};
use crate::time::{Span, Time};
use crate::wire::Message;

/// Shortest time to the next step that no message asks for: whatever is overdue and cannot be done is not tried harder.
const STEP_MIN: Span = Span::ms(1);

/// Where a job is in its brain's hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The spec is on its way to a majority.
    Storing,
    /// Just elected: workers are asked what they hold.
    Adopting,
    /// Tasks run.
    Running,
    /// The verdict is on its way to a majority; it may be there before the results that it stands for.
    Ending { finish: FactId, is_final: bool },
    /// Decided; executors' receipts are awaited.
    Sealing { until: Time },
    /// Nothing left to do.
    Over,
}

/// The brain of one job.
#[derive(Debug)]
pub(crate) struct Brain {
    job: JobId,
    spec: Arc<JobSpec>,
    pub(crate) term: u32,
    /// The term's pace: see [`crate::distance`].
    pace: u8,
    /// The pace that the next term is to have at least, because this one's is too fast for whom the job needs.
    pace_wanted: u8,
    /// When this term began here.
    since: Time,
    stage: Stage,
    // Boxed, like the others: thousands of brains that wait have none.
    adoption: Option<Box<Adoption>>,
    answer: Option<(RequestId, Time)>,
    /// The submit is being withdrawn, because of this: what is answered if that succeeds in time.
    refusal: Option<Box<SubmitError>>,
    quorum: Quorum,
    phase: Phase,
    total: u32,
    pending: VecDeque<Run>,
    epoch_last: u32,
    // Of thousands of jobs that wait for room hardly any has some.
    work: Rare<UnderWay>,
    done_count: u32,
    accepted_at: Time,
    placement: Option<Box<Placement>>,
    /// Rounds of offers in a row that nobody took.
    fruitless: u32,
    /// Looks for no room before this: it chased some in vain.
    place_at: Time,
    /// Whether it began to rest just now.
    rests: bool,
    /// When leases, copies and stragglers are looked at next.
    watch_at: Time,
    verdict: Option<Box<Outcome>>,
    /// Whether somebody who may asked to cancel, as far as this brain has looked.
    canceled: bool,
    rotate: usize,
}

/// What a job has of which anything is under way, or was in this phase.
#[derive(Debug, Default)]
struct UnderWay {
    later: BTreeMap<Time, Vec<u32>>,
    attempts: BTreeMap<u32, u32>,
    /// Starts of tasks of this phase that were lost with their node, or have a twin: they count for a task that asks which attempt it is.
    begun: BTreeMap<u32, u32>,
    seats: BTreeMap<Fence, Seat>,
    /// Tasks of this phase whose results count, written down or not.
    done: IntervalMap<()>,
    copying: BTreeMap<u32, Copying>,
    ready: Vec<Ready>,
    /// Reports that are not final yet: from whom, and how many of their results are still to become so.
    reports: BTreeMap<FactId, (NodeId, u32)>,
    /// Facts on their way to a majority that others wait for, each with the reports whose results it accepts.
    accepts: BTreeMap<FactId, Vec<FactId>>,
    /// The first accept facts of this term: all of them for a small job, which then go along with the verdict.
    accept_ids: Vec<FactId>,
    /// Members that have the verdict on disk, with the other facts that they stored along with it.
    witnesses: BTreeMap<NodeId, Vec<FactId>>,
    /// Reports that became final a moment ago, and whose they are: yet to be told.
    final_reports: Vec<(NodeId, FactId)>,
    /// Report facts per executor: with one only, it is the receipt.
    reports_by: BTreeMap<NodeId, BTreeSet<FactId>>,
    /// For the mean task time of the phase: tasks and microseconds.
    mean: (u64, u64),
    speculated: BTreeSet<u32>,
    /// How often nodes gave a task back in this term because of something that was no fault of its own.
    given_back: BTreeMap<u32, u32>,
    /// Nodes that lately could not do what a task needed, or kept tasks past their limit, each until when it gets no more.
    shunned: BTreeMap<NodeId, Time>,
    /// Nodes that were asked for a copy and said nothing, each until when it is asked for none.
    mute: BTreeMap<NodeId, Time>,
    /// What tasks wait for that is out of reach.
    blocked: Option<Box<Blocked>>,
    /// Map outputs, with nodes that held them on disks which were replaced.
    wiped: BTreeMap<Hash, BTreeSet<NodeId>>,
    /// A task of which the only attempt is to be started elsewhere too.
    twin: Option<u32>,
    /// How much of the inputs has come to members of the set, while the job is not acknowledged: bytes, of how many.
    copied: BTreeMap<NodeId, (u64, u64)>,
}

impl Empty for UnderWay {
    const EMPTY: &'static Self = &Self {
        later: BTreeMap::new(),
        attempts: BTreeMap::new(),
        begun: BTreeMap::new(),
        seats: BTreeMap::new(),
        done: IntervalMap::new(),
        copying: BTreeMap::new(),
        ready: Vec::new(),
        reports: BTreeMap::new(),
        accepts: BTreeMap::new(),
        accept_ids: Vec::new(),
        witnesses: BTreeMap::new(),
        final_reports: Vec::new(),
        reports_by: BTreeMap::new(),
        mean: (0, 0),
        speculated: BTreeSet::new(),
        given_back: BTreeMap::new(),
        shunned: BTreeMap::new(),
        mute: BTreeMap::new(),
        blocked: None,
        wiped: BTreeMap::new(),
        twin: None,
        copied: BTreeMap::new(),
    };
}

impl UnderWay {
    fn is_empty(&self) -> bool {
        let trees = self.later.is_empty()
            && self.attempts.is_empty()
            && self.begun.is_empty()
            && self.seats.is_empty()
            && self.copying.is_empty()
            && self.reports.is_empty()
            && self.accepts.is_empty()
            && self.witnesses.is_empty()
            && self.reports_by.is_empty()
            && self.speculated.is_empty()
            && self.given_back.is_empty()
            && self.shunned.is_empty()
            && self.mute.is_empty()
            && self.wiped.is_empty()
            && self.copied.is_empty();
        let ones = self.blocked.is_none() && self.twin.is_none();
        let lists = self.ready.is_empty() && self.accept_ids.is_empty() && self.final_reports.is_empty();
        trees && lists && ones && self.mean == (0, 0) && self.done.is_empty()
    }
}

impl Brain {
    /// The brain of a job that was just submitted here. That the job is on this node's disk is for the caller to say.
    pub(crate) fn submitted(ctx: &mut Ctx, job: JobId, submit: FactId, request: RequestId) -> Option<Self> {
        let spec = Arc::clone(&ctx.ledger.live(&job)?.state.spec);
        let first = (1, spec.pace);
        let mut brain = Self::new(ctx, job, spec, first, Stage::Storing);
        brain.answer = Some((request, ctx.now.at + SUBMIT_TIMEOUT));
        brain.quorum.add_unsaved(&[submit]);
        Some(brain)
    }

    fn new(ctx: &Ctx, job: JobId, spec: Arc<JobSpec>, (term, pace): (u32, u8), stage: Stage) -> Self {
        let now = ctx.now.at;
        let mut brain = Self {
            job,
            term,
            pace,
            pace_wanted: PACE_MIN,
            since: now,
            stage,
            adoption: None,
            answer: None,
            refusal: None,
            quorum: Quorum::new(job, (term, pace), Arc::clone(&spec)),
            phase: 0,
            total: 0,
            pending: VecDeque::new(),
            epoch_last: 0,
            work: Rare::new(),
            done_count: 0,
            accepted_at: now,
            placement: None,
            fruitless: 0,
            place_at: now,
            rests: false,
            watch_at: now,
            verdict: None,
            canceled: false,
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
        self.done_count = 0;
        if let Some(work) = self.work.there() {
            work.done = IntervalMap::default();
            work.attempts.clear();
            work.begun.clear();
            work.given_back.clear();
            work.later.clear();
            work.mean = (0, 0);
            work.speculated.clear();
            work.twin = None;
            work.blocked = None;
        }
    }

    /// Whether the job has to do with `node`. One that only waits for room has not: there is news when a node has some.
    pub(crate) fn concerns(&self, node: NodeId) -> bool {
        // Somebody who comes back may bring what is out of reach.
        self.work.blocked.is_some()
            || !self.only_waits()
                && (self.spec.brain_set.contains(&node)
                    || self.work.seats.values().any(|s| s.node == node)
                    || self.work.copying.values().any(|c| c.target == Some(node))
                    || self.placement.is_some())
    }

    /// Whether nothing of the job is under way anywhere: all it needs is room.
    fn only_waits(&self) -> bool {
        self.stage == Stage::Running
            && !self.pending.is_empty()
            && self.placement.is_none()
            && self.work.seats.is_empty()
            && self.work.copying.is_empty()
            && self.work.ready.is_empty()
            && self.work.accepts.is_empty()
            && self.work.later.is_empty()
            && self.verdict.is_none()
            && !self.canceled
    }

    /// Whether something of the job may be on the disk of `node` alone beside this one's.
    pub(crate) fn knows(&self, node: NodeId) -> bool {
        self.spec.phases().len() > 1
            || self.spec.brain_set.contains(&node)
            || self.work.copying.values().any(|c| c.accepted.node == node)
    }

    /// The phase, its finished tasks, and its assigned ones.
    pub(crate) fn progress(&self) -> (Phase, u64, u64) {
        let running = self.work.seats.values().map(|s| s.open.count()).sum::<u64>() + self.work.copying.len() as u64;
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

    /// The brain set, in its order.
    pub(crate) fn set(&self) -> &[NodeId] {
        &self.spec.brain_set
    }

    pub(crate) fn spec(&self) -> &JobSpec {
        &self.spec
    }

    pub(crate) fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// Whether this brain may decide and renew leases: a majority of its set answered, lately, a beat that it sent in this
    /// term. The first brain needs no answers for a moment: nobody else can have been elected yet.
    fn in_charge(&self, ctx: &Ctx) -> bool {
        planted(Bug::SkipInCharge)
            || self.term == 1 && ctx.now.at - self.since <= IN_CHARGE_FOR.at(self.pace)
            || self.quorum.reachable(ctx, self.since)
    }

    /// Whether members must be asked if this brain still leads: it was out of touch with them, and meanwhile another one may
    /// have been elected, and even have brought the job to its end. So may they while its spec seems to be still on its
    /// way: that they have it may be what this brain has not heard.
    pub(crate) fn is_in_doubt(&self, ctx: &Ctx) -> bool {
        self.stage != Stage::Over && !self.in_charge(ctx)
    }

    pub(crate) const fn pace(&self) -> u8 {
        self.pace
    }

    pub(crate) const fn pace_wanted(&self) -> u8 {
        self.pace_wanted
    }

    /// Gives the term up where its pace is too fast for the members of its set that answer, so that none is ever in charge, or for
    /// every node that would work for it: this node stands again, for a term with the pace that was measured. Says whether it did.
    pub(crate) fn change_pace(&mut self, ctx: &mut Ctx) -> bool {
        if matches!(self.stage, Stage::Storing | Stage::Over) || planted(Bug::OnePaceForAll) {
            return false;
        }
        let tried = ctx.now.at - self.since >= LEASE.at(self.pace);
        let too_fast = tried && !self.in_charge(ctx) && self.is_too_fast(ctx);
        let changes = too_fast || tried && self.pace_wanted > self.pace;
        if changes {
            self.depose(ctx);
        }
        changes
    }

    /// Whether not even the fastest answers of its set keep a brain of this pace in charge; notes which pace would do.
    pub(super) fn is_too_fast(&mut self, ctx: &Ctx) -> bool {
        let set = &self.spec.brain_set;
        let too_fast = ctx.peers.pace_of_set_at_best(set) > self.pace && !planted(Bug::OnePaceForAll);
        if too_fast {
            self.pace_wanted = self.pace_wanted.max(ctx.peers.pace_of_set(set));
        }
        too_fast
    }

    /// Whether the answers of its set's members count for this job just as for any other: they come from disks that it trusts, and
    /// no beat before its time, nor one that said nothing about it, can be among those that count.
    pub(crate) fn goes_with_its_set(&self, ctx: &Ctx) -> bool {
        let Some(live) = ctx.ledger.live(&self.job) else { return false };
        let plain = |n: NodeId| {
            let contact = ctx.peers.contact(n);
            contact.is_none_or(|(sent, disk)| live.state.trusts(n, disk) && self.quorum.vouches(n, sent))
        };
        ctx.now.at - self.since > IN_CHARGE_FOR.at(self.pace) && self.members().filter(|n| *n != ctx.own).all(plain)
    }

    /// An answer of `node` to a beat sent at `sent` says nothing about this job.
    pub(crate) fn not_vouched(&mut self, node: NodeId, sent: Time) {
        self.quorum.not_vouched(node, sent);
    }

    /// Takes note of a fact about the job, own or foreign.
    pub(crate) fn on_fact(&mut self, ctx: &mut Ctx, id: FactId, author: NodeId, statement: &Statement) {
        match &statement.fact {
            Fact::Submit(_) => return,
            Fact::Lead { term, .. } if *term > self.term => self.depose(ctx),
            Fact::Vote { term, .. } if *term > self.term && author == ctx.own => self.depose(ctx),
            // Another brain's seal, or that of this node before it crashed: the job is over, whatever this one was about to do.
            Fact::Seal { term, .. } if author != ctx.own || *term != self.term => self.depose(ctx),
            _ => {}
        }
        self.quorum.ride(id);
    }

    /// Another brain leads a higher term: this one ends without another word.
    pub(crate) fn depose(&mut self, ctx: &mut Ctx) {
        if planted(Bug::IgnoreDeposed) {
            return;
        }
        let is_stored = std::mem::replace(&mut self.stage, Stage::Over) != Stage::Storing;
        if self.refusal.is_some() {
            return self.answer_unknown(ctx, "another node decides for it");
        }
        // A higher term needed a majority that knew the spec, but nobody has said that it has the inputs.
        if !is_stored && !self.spec.input_blobs().is_empty() {
            return self
                .answer_unknown(ctx, "another node decides for it, and its inputs may be on this node alone yet");
        }
        // The job is safe, and goes on elsewhere.
        self.answer_submit(ctx, Ok(self.job));
    }

    /// This node leaves, and decides for the job no more. Nobody else may ever do, where no majority has stored it.
    pub(crate) fn leave_off(&mut self, ctx: &mut Ctx) {
        if self.stage == Stage::Storing && !planted(Bug::LeaveAcknowledges) {
            self.stage = Stage::Over;
            return self.answer_unknown(ctx, "this node left before a majority of its brain set had stored it");
        }
        self.depose(ctx);
    }

    /// These facts are on `node`'s disk.
    pub(crate) fn on_stored(&mut self, ctx: &mut Ctx, node: NodeId, ids: &[FactId]) {
        if let Stage::Ending { finish, .. } = self.stage
            && ids.contains(&finish)
        {
            self.work.witnesses.entry(node).or_insert_with(|| ids.to_vec());
        }
        for id in self.quorum.stored(node, ids) {
            self.on_final(ctx, id);
        }
        let final_reports = self.work.there().map(|work| std::mem::take(&mut work.final_reports)).unwrap_or_default();
        // The seal, sent a moment ago, tells executors as much and more.
        if !self.is_over() {
            for (node, report) in final_reports {
                self.settled(ctx, node, report);
            }
        }
    }

    /// A fact of this term became final.
    fn on_final(&mut self, ctx: &mut Ctx, id: FactId) {
        if let Some(reports) = self.work.there().and_then(|work| work.accepts.remove(&id)) {
            for report in reports {
                let closed = self.close_part(report);
                self.work.final_reports.extend(closed);
            }
        }
        match &mut self.stage {
            Stage::Storing => {
                self.stage = Stage::Running;
                self.forget_copied();
                self.drop_old_offers(ctx);
                // One that is being withdrawn is answered once it has ended.
                if self.refusal.is_none() {
                    self.answer_submit(ctx, Ok(self.job));
                }
                ctx.effect(Effect::Changed(self.job));
                // Its set was thought to be nearer than its first answers show: better before anything is awarded.
                if self.is_too_fast(ctx) {
                    self.depose(ctx);
                }
            }
            Stage::Ending { finish, is_final } => {
                *is_final |= *finish == id;
                // A verdict without the results that it stands for could not be restated by the next brain.
                if *is_final && self.work.accepts.is_empty() {
                    self.finished(ctx);
                }
            }
            _ => {}
        }
    }

    /// Does whatever is due. Called whenever something about the job changed or a timer ran out.
    pub(crate) fn step(&mut self, ctx: &mut Ctx) {
        self.quorum.resend(ctx);
        match self.stage {
            Stage::Storing => self.step_storing(ctx),
            Stage::Adopting => self.step_adopting(ctx),
            Stage::Running => self.step_running(ctx),
            Stage::Sealing { until } => self.step_sealing(ctx, until),
            Stage::Ending { .. } | Stage::Over => {}
        }
        if self.stage != Stage::Storing && self.answer.is_some_and(|(_, deadline)| ctx.now.at >= deadline) {
            self.answer_unknown(ctx, "its withdrawal was not decided in time");
        }
        self.quorum.flush(ctx);
    }

    fn step_storing(&mut self, ctx: &mut Ctx) {
        let Some((_, deadline)) = self.answer else { return };
        // The disk may yet write it, and others may have it. Under a key the next try is told of this job, so that it can stay.
        if let Some(reason) = ctx.storage_failing.clone()
            && self.refusal.is_none()
            && self.spec.submit_key.is_none()
        {
            self.withdraw(ctx, SubmitError::Disk(reason));
        }
        // Where only this disk counts, waiting for it would change nothing.
        let hopeless = ctx.storage_failing.is_some() && self.spec.brain_set.len() == 1;
        if ctx.now.at >= deadline || hopeless {
            let why = match &ctx.storage_failing {
                Some(reason) => format!("the disk failed ({reason})"),
                None => self.why_not_stored(),
            };
            if planted(Bug::RefuseUnknown) {
                return self.drop_unknown(ctx);
            }
            if self.refusal.is_none() && self.spec.submit_key.is_none() {
                self.withdraw(ctx, SubmitError::Disk(why.clone()));
            }
            self.answer_unknown(ctx, &why);
        }
    }

    fn step_running(&mut self, ctx: &mut Ctx) {
        self.canceled = ctx.ledger.live(&self.job).is_some_and(|l| l.state.cancel.is_some());
        if !self.in_charge(ctx) {
            return;
        }
        let look = ctx.now.at >= self.watch_at;
        if look {
            self.watch_at = ctx.now.at + CHECK_EVERY;
            self.end_overdue(ctx);
            self.drop_lost_seats(ctx);
            self.watch_copies(ctx);
        }
        if self.canceled && !planted(Bug::IgnoreCancel) && self.verdict.is_none() {
            self.verdict = Some(Box::new(Outcome::Cancelled));
        }
        if let Some(work) = self.work.there() {
            while let Some(entry) = work.later.first_entry().filter(|e| *e.key() <= ctx.now.at) {
                for task in entry.remove() {
                    self.pending.push_front(Run { start: task, len: 1 });
                }
            }
            work.shunned.retain(|_, until| *until > ctx.now.at);
            work.mute.retain(|_, until| *until > ctx.now.at);
            self.work.drop_if(UnderWay::is_empty);
        }
        self.write_accepts(ctx);
        if self.step_phase(ctx) {
            return;
        }
        self.watch_blocked(ctx);
        self.top_up(ctx);
        if look {
            self.speculate(ctx);
        }
        self.place(ctx);
    }

    /// Moves on when the phase is complete or the verdict is known. Returns whether the job is ending.
    fn step_phase(&mut self, ctx: &mut Ctx) -> bool {
        if let Some(verdict) = self.verdict.take() {
            self.finish(ctx, *verdict);
            return true;
        }
        let missing = u32::from(planted(Bug::FinishEarly));
        while self.done_count + missing == self.total && self.work.copying.is_empty() && self.work.ready.is_empty() {
            let last = usize::from(self.phase) + 1 == self.spec.phases().len();
            if last {
                self.finish(ctx, Outcome::Completed);
                return true;
            }
            if !self.work.accepts.is_empty() {
                return false;
            }
            self.resume_phase(ctx, self.phase + 1);
            ctx.effect(Effect::Changed(self.job));
        }
        false
    }

    /// When [`Self::step`] should be called next, whatever happens.
    pub(crate) fn timeout(&self, ctx: &Ctx) -> Option<Time> {
        let stage = match &self.stage {
            Stage::Storing => self.answer.map(|(_, deadline)| deadline),
            Stage::Ending { .. } if self.answer.is_some() => self.answer.map(|(_, deadline)| deadline),
            Stage::Adopting => self.adoption.as_ref().map(|adoption| adoption.timeout(ctx)),
            // Past its time only a verdict is missing, which another brain overruled: whoever has the right will tell.
            Stage::Sealing { until } if *until <= ctx.now.at => Some(ctx.now.at + BEAT_EVERY),
            Stage::Sealing { until } => Some(*until),
            Stage::Running => self.running_timeout(ctx),
            Stage::Ending { .. } | Stage::Over => None,
        };
        stage.into_iter().chain(self.quorum.timeout()).min()
    }

    fn running_timeout(&self, ctx: &Ctx) -> Option<Time> {
        if self.only_waits() {
            // Its place in the queue, or whoever changes something, calls it.
            let place = (self.place_at > ctx.now.at).then_some(self.place_at);
            return place.into_iter().chain(self.blocked_timeout(ctx.now.at)).min();
        }
        // Leases, stragglers and loss of contact are looked at once a beat. So is everything that is due while this brain
        // may not decide: it can do nothing about it before it is in touch again, and must not spin meanwhile.
        let mut at = ctx.now.at + BEAT_EVERY;
        if !self.in_charge(ctx) {
            return Some(at);
        }
        at = at.min(self.work.later.keys().next().copied().unwrap_or(at));
        if !self.work.ready.is_empty() {
            at = at.min(self.accepted_at + PROGRESS_EVERY);
        }
        Some(at.min(self.placement_timeout(ctx).unwrap_or(at)).max(ctx.now.at + STEP_MIN))
    }

    /// Tells an executor that a report of it is final.
    fn settled(&self, ctx: &mut Ctx, node: NodeId, report: FactId) {
        ctx.send(node, Message::Settled { job: self.job, reports: vec![report] });
    }
}
