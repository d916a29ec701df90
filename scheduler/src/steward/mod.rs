//! The steward's side: storing for brains, noticing their silence, and keeping leases alive until another brain leads
//! (step 7 of the protocol). Elections are in [`election`], catching up after the loss of a disk in [`rejoin`].
//!
//! What a member says about a lease counts only while the brain is silent to it, and the next time it hears the brain it
//! says so: a brain that decides always knows of every lease that a majority of its set has kept.

mod calm;
mod election;
mod rejoin;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::fact::Fence;
use sinew_crdt_state::ids::{DiskId, FactId, JobId, NodeId};
use sinew_crdt_state::ledger::{Admitted, Refusal};
use sinew_crdt_state::planted::{Bug, planted};
use sinew_crdt_state::rules::brain_of;
use sinew_crdt_state::spec::PACE_MIN;

use self::calm::Group;
use self::election::Campaign;
use self::rejoin::{Recall, counts, speaks};
use crate::brain::Brain;
use crate::brains::Brains;
use crate::config::{BEAT_EVERY, CHECK_EVERY, KEEP_AFTER, LEASE, REACH_AFTER, WANT_MAX};
use crate::ctx::{After, Ctx};
use crate::io::{Effect, FetchId};
use crate::sync;
use crate::time::Time;
use crate::wire::{Lease, Message};

/// A job that this node could lead.
#[derive(Debug)]
struct Watched {
    /// Since when this node has reason to expect beats: it learned of the job, or promised or saw a new term.
    since: Time,
    /// When the brain last spoke of this very job, or was asked about it.
    quiet_since: Time,
    /// Since when the brain says that it does not lead the job.
    disowned: Option<Time>,
    /// What a brain here found that the next term needs, if it stands for it.
    pace_wanted: u8,
    /// The highest term that others spoke of.
    heard_term: u32,
    // Boxed: of thousands of watched jobs hardly any has one.
    campaign: Option<Box<Campaign>>,
    /// Who was asked what this node has forgotten; `None` while it has forgotten nothing.
    recall: Option<Box<Recall>>,
    /// No campaign before this, after a refusal or a promise.
    not_before: Time,
    /// When this node's own brain was deposed although its set had answered it lately.
    led_until: Option<Time>,
    /// The brain of which nothing need be known but that it lives; `None` while the job is looked at by itself, or led here.
    calm: Option<NodeId>,
}

/// When a lease was kept alive, and at which pace it runs out.
#[derive(Debug, Clone, Copy)]
struct Kept {
    at: Time,
    pace: u8,
}

/// Acknowledgements that wait for input blobs.
#[derive(Debug)]
struct AwaitingBlobs {
    job: JobId,
    to: NodeId,
    term: u32,
    ids: Vec<FactId>,
}

#[derive(Debug, Default)]
pub(crate) struct Stewards {
    watched: BTreeMap<JobId, Watched>,
    /// Of these, the ones that are looked at one by one.
    look: BTreeSet<JobId>,
    /// The others, by their brains.
    groups: BTreeMap<NodeId, Group>,
    /// When each brain last gave a sign of life.
    heard: BTreeMap<NodeId, Time>,
    /// Leases kept alive here, and when last.
    kept: BTreeMap<(JobId, NodeId, Fence), Kept>,
    /// Jobs for which this node promised a later term, with that term's brain.
    moved: BTreeMap<JobId, (u32, NodeId)>,
    awaiting: BTreeMap<FetchId, AwaitingBlobs>,
    blobs_ready: BTreeSet<JobId>,
    beat_at: Time,
    beat_seq: u64,
    beats: std::collections::VecDeque<(u64, Time)>,
    /// When the watched jobs are looked at next: no later than the first of them may need it.
    check_at: Time,
}

/// Jobs that a set beat asks about: a quarter of a MiB.
const DOUBTS_MAX: usize = 8_192;
/// Set beats whose answers are still awaited.
const BEATS_KEPT: usize = 64;

impl Stewards {
    /// Starts to watch a job of whose brain set this node is.
    pub(crate) fn watch(&mut self, ctx: &Ctx, job: JobId) {
        let Some(live) = ctx.ledger.live(&job) else { return };
        let state = &live.state;
        if !state.spec.brain_set.contains(&ctx.own) || state.seal.is_some() {
            return;
        }
        let now = ctx.now.at;
        if let Entry::Vacant(entry) = self.watched.entry(job) {
            entry.insert(Watched {
                since: now,
                quiet_since: now,
                disowned: None,
                pace_wanted: PACE_MIN,
                heard_term: 0,
                campaign: None,
                recall: None,
                not_before: Time::default(),
                led_until: None,
                calm: None,
            });
            self.look.insert(job);
        }
        self.note_promise(ctx, job);
        self.check_by(ctx, job);
    }

    /// Remembers for whom this node must deny others.
    fn note_promise(&mut self, ctx: &Ctx, job: JobId) {
        let term = promised(ctx, job);
        let brain = ctx.ledger.live(&job).and_then(|live| brain_of(&live.state.spec, term));
        if let Some(brain) = brain.filter(|_| term > 1) {
            self.moved.insert(job, (term, brain));
        }
    }

    pub(crate) fn forget(&mut self, job: &JobId) {
        self.stir(job);
        self.look.remove(job);
        self.watched.remove(job);
        self.moved.remove(job);
        self.blobs_ready.remove(job);
    }

    /// A brain took office: expect its beats from now on.
    pub(crate) fn on_lead(&mut self, ctx: &Ctx, job: JobId, term: u32) {
        if term < promised(ctx, job) {
            return;
        }
        self.note_promise(ctx, job);
        if let Some(watched) = self.watched.get_mut(&job) {
            watched.since = ctx.now.at;
            watched.quiet_since = ctx.now.at;
            watched.disowned = None;
            if watched.campaign.as_ref().is_some_and(|c| c.term <= term) {
                watched.campaign = None;
            }
        }
    }

    /// A brain of this node was told that `term` has begun elsewhere.
    pub(crate) fn on_deposed(&mut self, ctx: &Ctx, job: JobId, term: u32) {
        let near = ctx.ledger.live(&job).is_some_and(|live| {
            // The lead that deposed it may be known by now; its own term was one before.
            election::in_touch(ctx, &live.state, live.state.slowest_before(term))
        });
        if let Some(watched) = self.watched.get_mut(&job) {
            watched.heard_term = watched.heard_term.max(term);
            watched.since = ctx.now.at;
            watched.led_until = near.then_some(ctx.now.at);
        }
    }

    /// This node has just left the lead of the job to others: see [`Watched::led_until`].
    pub(crate) fn on_handed_over(&mut self, ctx: &Ctx, job: JobId) {
        if let Some(watched) = self.watched.get_mut(&job) {
            watched.led_until = Some(ctx.now.at);
        }
    }

    /// The input blobs of a job that was submitted here are here.
    pub(crate) fn has_blobs(&mut self, job: JobId) {
        self.blobs_ready.insert(job);
    }

    pub(crate) fn on_replicate(&mut self, ctx: &mut Ctx, from: NodeId, job: JobId, term: u32, facts: &[Envelope]) {
        let mut ids = Vec::new();
        let mut refused = false;
        let mut left: Vec<&Envelope> = facts.iter().collect();
        // The spec may come in the middle: what it makes sense of is tried once more after it.
        for _ in 0..2 {
            left.retain(|envelope| match ctx.admit(from, envelope) {
                Ok(Admitted::New(id) | Admitted::Known(id)) => {
                    ids.push(id);
                    false
                }
                Ok(Admitted::Late(_) | Admitted::Contradicts(_)) => false,
                Err(Refusal::Compacted) => {
                    // Or another job of the same number: the disk tells.
                    refused = true;
                    false
                }
                Err(_) => true,
            });
        }
        if refused {
            ctx.effect(Effect::Load { job, to: from });
        }
        if ctx.ledger.sealed(&job).is_some() {
            // Nothing more is taken in, so nothing may be acknowledged: whoever still decides has missed the end.
            return ctx.effect(Effect::Load { job, to: from });
        }
        let Some(live) = ctx.ledger.live(&job) else { return };
        let spec = live.state.spec.clone();
        if brain_of(&spec, term) != Some(from) || !spec.brain_set.contains(&ctx.own) {
            return ctx.offence(from, "replicates a job that it does not lead".to_owned());
        }
        let highest = promised(ctx, job);
        if term < highest && !planted(Bug::SkipTermCheck) {
            return ctx.send(from, Message::Deposed { job, term: highest });
        }
        self.watch(ctx, job);
        self.heard.insert(from, ctx.now.at);
        if let Some(watched) = self.watched.get_mut(&job) {
            watched.quiet_since = ctx.now.at;
            watched.disowned = None;
        }
        if !speaks(ctx, job) {
            // Its word would make a majority with a member that knows less than it once did.
            return;
        }
        // Only the acknowledgement of the job itself speaks for its inputs. They may be nowhere when their submitter lost its
        // disk before that: such a job can fail, and the verdict must not wait for them.
        // Of one that is cancelled nothing will be needed either.
        let submitted = ids.contains(&live.submit) && live.state.cancel.is_none();
        // All of them, also what is here for other jobs, which let go of it when they end.
        let inputs = spec.input_blobs();
        let whole = inputs.is_empty() || self.blobs_ready.contains(&job) || planted(Bug::InputsUnseen);
        let waiting = if whole || !submitted {
            ctx.after_persist(After::Send { to: from, message: Message::Stored { job, term, ids, mark: 0 } });
            Vec::new()
        } else {
            ids
        };
        let fetching = self.awaiting.values().any(|a| a.job == job);
        if whole || fetching && waiting.is_empty() {
            return;
        }
        let id = ctx.next_fetch();
        self.awaiting.insert(id, AwaitingBlobs { job, to: from, term, ids: waiting });
        if !fetching {
            let others = spec.brain_set.iter().copied().filter(|n| *n != from && *n != spec.submitter && *n != ctx.own);
            let providers = [from, spec.submitter].into_iter().chain(others).collect();
            ctx.effect(Effect::Fetch { id, job, blobs: inputs, providers });
        }
    }

    /// The brain, and the job, whose inputs this fetch brings.
    pub(crate) fn waits_for(&self, id: FetchId) -> Option<(NodeId, JobId)> {
        self.awaiting.get(&id).map(|waiting| (waiting.to, waiting.job))
    }

    /// Input blobs arrived, or did not. Returns whose, if the fetch was a steward's.
    pub(crate) fn on_fetched(&mut self, ctx: &mut Ctx, id: FetchId, ok: bool) -> Option<JobId> {
        let first = self.awaiting.remove(&id)?;
        let job = first.job;
        let same: Vec<FetchId> = self.awaiting.iter().filter(|(_, a)| a.job == first.job).map(|(i, _)| *i).collect();
        let all = std::iter::once(first).chain(same.iter().filter_map(|i| self.awaiting.remove(i)).collect::<Vec<_>>());
        for waiting in all {
            // On failure nothing is acknowledged; the brain sends again and we try again.
            if ok {
                self.blobs_ready.insert(waiting.job);
                if waiting.ids.is_empty() {
                    continue;
                }
                let message = Message::Stored { job: waiting.job, term: waiting.term, ids: waiting.ids, mark: 0 };
                ctx.after_persist(After::Send { to: waiting.to, message });
            }
        }
        Some(job)
    }

    /// A brain shows itself, and asks about the jobs that it may have lost. What ended here is not watched any more, nor is
    /// the promise remembered by which it went to another brain, so that is looked up for these jobs alone.
    pub(crate) fn on_set_beat(&mut self, ctx: &mut Ctx, from: NodeId, seq: u64, doubts: Vec<JobId>) {
        let now = ctx.now.at;
        self.heard.insert(from, now);
        if !ctx.is_sure([&from]) {
            // An answer would put a brain in touch with a member that may have voted for another one and does not know.
            return;
        }
        let member = |job: &JobId| ctx.ledger.live(job).is_some_and(|l| l.state.spec.brain_set.contains(&from));
        let kept = self.kept.iter().filter(|((job, ..), kept)| now - kept.at <= LEASE.at(kept.pace) && member(job));
        let kept = kept.map(|((job, node, fence), _)| (*node, Lease { job: *job, fence: *fence })).collect();
        let moved = self.moved.iter().filter(|(job, (_, brain))| *brain != from && member(job));
        let moved = moved.map(|(job, (term, _))| (*job, *term)).filter(|_| !planted(Bug::SkipTermCheck)).collect();
        let ended = |job: &JobId| ctx.ledger.sealed(job).is_some() || ctx.forgotten.contains_key(job);
        let (over, open): (Vec<JobId>, Vec<JobId>) = doubts.into_iter().take(DOUBTS_MAX).partition(ended);
        let unknown: Vec<JobId> = open.into_iter().filter(|job| ctx.ledger.live(job).is_none()).collect();
        sync::want(ctx, from, unknown.clone());
        let mark = ctx.boots.own_mark();
        ctx.send(from, Message::SetBeatAck { seq, disk: ctx.disk, kept, moved, over, unknown, mark });
    }

    /// What a member says of jobs in doubt, before its answer counts for anything: some have ended, and of some it knows nothing.
    pub(crate) fn on_doubts(
        &self,
        ctx: &mut Ctx,
        brains: &mut Brains,
        from: NodeId,
        seq: u64,
        over: &[JobId],
        unknown: &[JobId],
    ) {
        let Some((_, sent)) = self.beats.iter().find(|(s, _)| *s == seq) else { return };
        for job in unknown {
            brains.not_vouched(job, from, *sent);
        }
        let mut ended = false;
        for job in over {
            if let Some(brain) = brains.touch(job).filter(|b| b.members().any(|n| n == from)) {
                brain.depose(ctx);
                ended = true;
            }
        }
        if ended {
            // How they ended.
            sync::start(ctx, from);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one message")]
    /// A member of some set answered: it may count as in touch with the brains here, but for what it says first.
    pub(crate) fn on_set_beat_ack(
        &mut self,
        ctx: &mut Ctx,
        brains: &mut Brains,
        from: NodeId,
        seq: u64,
        disk: DiskId,
        kept: &[(NodeId, Lease)],
        moved: &[(JobId, u32)],
    ) {
        for (job, term) in moved {
            let led = brains.touch(job).filter(|b| b.term < *term && b.members().any(|n| n == from));
            if let Some(brain) = led {
                brain.depose(ctx);
                self.on_deposed(ctx, *job, *term);
            }
        }
        for (node, lease) in kept {
            if let Some(brain) = brains.peek_mut(&lease.job).filter(|b| b.members().any(|n| n == from)) {
                brain.on_kept(ctx, *node, lease.fence);
            }
        }
        if let Some((_, sent)) = self.beats.iter().find(|(s, _)| *s == seq) {
            ctx.peers.measured(from, ctx.now.at - *sent, ctx.now.at);
            let other_disk = ctx.peers.touch_contact(from, *sent, disk);
            brains.on_contact(ctx, from, other_disk);
        }
    }

    /// The last sign of life of the job's brain that counts for this job.
    fn brain_heard(&self, job: JobId, brain: NodeId) -> Time {
        let since = self.watched.get(&job).map_or(Time::default(), |w| w.since);
        self.heard.get(&brain).map_or(since, |heard| since.max(*heard))
    }

    /// The highest term that may have a brain, as far as this node knows.
    fn leader_term(&self, ctx: &Ctx, job: JobId) -> u32 {
        promised(ctx, job).max(self.watched.get(&job).map_or(0, |w| w.heard_term))
    }

    /// Whether this node has nothing against a lease going on: the brain is silent, and no later one is promised.
    pub(crate) fn on_lease(&mut self, ctx: &Ctx, from: NodeId, lease: Lease) -> bool {
        let job = lease.job;
        let watched = self.watched.contains_key(&job) && speaks(ctx, job);
        let Some(live) = ctx.ledger.live(&job).filter(|_| watched) else { return false };
        let term = self.leader_term(ctx, job);
        let silent = match brain_of(&live.state.spec, term) {
            Some(brain) => ctx.now.at - self.brain_heard(job, brain) >= KEEP_AFTER.at(live.state.pace(term)),
            None => false,
        };
        let fits = silent && lease.fence.term >= term && live.state.outcome().is_none();
        if fits {
            let pace = live.state.slowest_before(term.saturating_add(1));
            self.kept.insert((job, from, lease.fence), Kept { at: ctx.now.at, pace });
        }
        fits
    }

    pub(crate) fn tick(&mut self, ctx: &mut Ctx, brains: &mut Brains) {
        if ctx.now.at >= self.check_at {
            self.kept.retain(|_, kept| ctx.now.at - kept.at <= LEASE.at(kept.pace));
            self.check(ctx, brains);
            self.check_at = self.next_check(ctx).max(ctx.now.at + CHECK_EVERY);
        }
        if ctx.now.at >= self.beat_at {
            self.beat_at = ctx.now.at + BEAT_EVERY;
            self.beat(ctx, brains);
        }
    }

    fn beat(&mut self, ctx: &mut Ctx, brains: &mut Brains) {
        let mut to: BTreeMap<NodeId, Vec<JobId>> = brains.set_members(ctx.own).map(|n| (n, Vec::new())).collect();
        if to.is_empty() {
            return;
        }
        for job in brains.in_doubt(ctx) {
            for member in brains.get(&job).into_iter().flat_map(Brain::members) {
                if let Some(doubts) = to.get_mut(&member) {
                    doubts.push(job);
                }
            }
        }
        self.beat_seq += 1;
        self.beats.push_back((self.beat_seq, ctx.now.at));
        if self.beats.len() > BEATS_KEPT {
            self.beats.pop_front();
        }
        for (node, mut doubts) in to {
            // What does not fit is asked with a later beat; the answer to this one says nothing about it.
            for job in doubts.drain(DOUBTS_MAX.min(doubts.len())..) {
                brains.not_vouched(&job, node, ctx.now.at);
            }
            ctx.reach(node, REACH_AFTER);
            let mark = ctx.boots.own_mark();
            ctx.send(node, Message::SetBeat { seq: self.beat_seq, doubts, mark });
        }
    }

    /// Jobs that were led from here until now, and may need another brain if they go on.
    pub(crate) fn after_steps(&mut self, ctx: &Ctx, brains: &mut Brains) {
        for (job, pace) in brains.take_ended() {
            if let Some(watched) = self.watched.get_mut(&job) {
                watched.pace_wanted = pace;
            }
            self.check_by(ctx, job);
        }
    }

    /// A steward asks which of these jobs are still led here.
    pub(crate) fn on_led(ctx: &mut Ctx, brains: &Brains, from: NodeId, jobs: Vec<JobId>) {
        let mut not = Vec::new();
        for job in jobs.into_iter().take(WANT_MAX).filter(|job| brains.get(job).is_none()) {
            if ctx.ledger.sealed(&job).is_some() {
                ctx.effect(Effect::Load { job, to: from });
            } else {
                not.push(job);
            }
        }
        if !not.is_empty() {
            ctx.send(from, Message::NotLed(not));
        }
    }

    pub(crate) fn on_not_led(&mut self, ctx: &Ctx, from: NodeId, jobs: &[JobId]) {
        for job in jobs {
            let brain = ctx.ledger.live(job).and_then(|l| brain_of(&l.state.spec, self.leader_term(ctx, *job)));
            if let Some(watched) = self.watched.get_mut(job).filter(|_| brain == Some(from)) {
                watched.disowned.get_or_insert(ctx.now.at);
                self.check_by(ctx, *job);
            }
        }
    }

    pub(crate) fn timeout(&self, brains: &Brains) -> Option<Time> {
        let beat = brains.iter().next().map(|_| self.beat_at);
        let check = (!self.watched.is_empty()).then_some(self.check_at);
        beat.into_iter().chain(check).min()
    }
}

/// The highest term that this node saw or promised.
pub(crate) fn promised(ctx: &Ctx, job: JobId) -> u32 {
    let Some(live) = ctx.ledger.live(&job) else { return 0 };
    let state = &live.state;
    if planted(Bug::ForgetVote) {
        return state.term;
    }
    // Whoever has forgotten what it promised may have promised as much as anybody.
    let promised = if counts(ctx, job) { state.promised_by(ctx.own) } else { state.promised_by_any() };
    promised.max(state.term)
}
