//! How tasks end that are not wanted any more. That takes time: until the driver says that nothing of a task is left, its room is
//! taken, and its award, where that was not lost, is held and renewed.

use std::collections::{BTreeSet, VecDeque};

use sinew_crdt_state::fact::{Executed, Fact, Run};
use sinew_crdt_state::ids::{Hash, JobId, NodeId};
use sinew_crdt_state::planted::{Bug, planted};
use sinew_crdt_state::rules::brain_of;
use sinew_crdt_state::spec::{Phase, Resources};

use super::{Held, Worker, push_run};
use crate::ctx::Ctx;
use crate::io::{Effect, Note, RunId, StopWhy};
use crate::wire::{Lease, Message};

/// What is not gone yet of an award that ended here.
#[derive(Debug)]
pub(super) struct Going {
    brain: NodeId,
    need: Resources,
    /// How many of its slots are still taken.
    slots: u32,
    runs: BTreeSet<RunId>,
}

impl Worker {
    /// The brain does not want these tasks any more, or any, when none is named: then it has a verdict, and waits to hear that
    /// nothing of the award is left.
    pub(crate) fn on_stop(&mut self, ctx: &mut Ctx, from: NodeId, lease: Lease, phase: Phase, tasks: &[Run]) {
        let Some(held) = self.held.get_mut(&lease) else {
            if tasks.is_empty() {
                ctx.send(from, Message::Decline { lease });
            }
            return;
        };
        if held.brain != from {
            return;
        }
        if tasks.is_empty() {
            held.awaited = true;
            return self.wind_up(ctx, lease);
        }
        for run in held.stop(ctx, |p, t| p == phase && tasks.iter().any(|r| r.start <= t && t < r.end())) {
            self.runs.remove(&run);
        }
        self.start_tasks(ctx, lease);
    }

    pub(crate) fn on_release(&mut self, ctx: &mut Ctx, from: NodeId, lease: Lease) {
        if self.held.get(&lease).is_some_and(|h| h.brain == from) {
            // What runs under it all the same is anybody's from now on.
            self.drop_held(ctx, lease, StopWhy::Fenced);
        }
    }

    /// The job ended: what runs under this award ends in good order, and then the award does.
    fn wind_up(&mut self, ctx: &mut Ctx, lease: Lease) {
        let Some(held) = self.held.get_mut(&lease) else { return };
        held.over = true;
        for run in held.stop(ctx, |_, _| true) {
            self.runs.remove(&run);
        }
        self.end_when_gone(ctx, lease);
    }

    fn end_when_gone(&mut self, ctx: &mut Ctx, lease: Lease) {
        let ended = |h: &&Held| h.over && h.running.is_empty() && h.stopping.is_empty();
        let Some((brain, awaited)) = self.held.get(&lease).filter(ended).map(|h| (h.brain, h.awaited)) else { return };
        self.drop_held(ctx, lease, StopWhy::Over);
        if awaited {
            ctx.send(brain, Message::Decline { lease });
        }
    }

    /// A new brain leads: what an earlier one wanted to end ends now.
    pub(super) fn end_at_once(&mut self, ctx: &mut Ctx, job: JobId, term: u32) {
        for lease in self.leases_of(job).into_iter().filter(|lease| lease.fence.term < term) {
            let Some(held) = self.held.get(&lease) else { continue };
            if held.over {
                self.drop_held(ctx, lease, StopWhy::Fenced);
            } else {
                held.stopping.iter().for_each(|run| ctx.effect(Effect::Stop { run: *run, why: StopWhy::Fenced }));
            }
        }
    }

    /// Nothing is left of a task that was told to end.
    pub(super) fn gone(&mut self, ctx: &mut Ctx, run: RunId) {
        let of = self.held.iter_mut().find_map(|(lease, held)| held.stopping.remove(&run).then_some(*lease));
        if let Some(lease) = of {
            self.end_when_gone(ctx, lease);
            return self.start_tasks(ctx, lease);
        }
        let Some(at) = self.going.iter().position(|going| going.runs.contains(&run)) else { return };
        let going = &mut self.going[at];
        going.runs.remove(&run);
        let free = going.slots.saturating_sub(count(&going.runs));
        going.slots -= free;
        let (brain, need, ended) = (going.brain, going.need, going.runs.is_empty());
        if ended {
            self.going.swap_remove(at);
        }
        self.free(brain, need, free);
    }

    /// Gives slots back.
    fn free(&mut self, brain: NodeId, need: Resources, slots: u32) {
        self.pool.release(need, slots);
        self.load_changed = true;
        self.ended.insert(brain);
    }

    /// Ends an award here: stops what runs, gives the slots back as soon as they are free, keeps unsettled reports for the brain
    /// that leads next.
    pub(super) fn drop_held(&mut self, ctx: &mut Ctx, lease: Lease, why: StopWhy) {
        self.report(ctx, lease);
        let Some(held) = self.held.remove(&lease) else { return };
        let open = held.open();
        let why = if planted(Bug::FenceWithGrace) { StopWhy::Over } else { why };
        for run in held.running.values() {
            self.runs.remove(run);
        }
        let runs: BTreeSet<RunId> = held.running.into_values().chain(held.stopping).collect();
        for run in runs.iter().filter(|_| !planted(Bug::TasksOutliveLease)) {
            ctx.effect(Effect::Stop { run: *run, why });
        }
        let taken = held.slots.min(count(&runs));
        let need = held.spec.resources;
        if !planted(Bug::LeakReservation) || open == 0 {
            if taken > 0 {
                self.going.push(Going { brain: held.brain, need, slots: taken, runs });
            }
            self.free(held.brain, need, held.slots - taken);
        }
        let orphans = held.unsettled.into_iter().map(|id| (id, lease.fence));
        if !held.over {
            self.done.entry(lease.job).or_default().orphans.extend(orphans);
        } else if let Some(done) = self.done.get_mut(&lease.job) {
            done.orphans.extend(orphans);
        }
        self.look_at = ctx.now.at;
    }

    /// Gives everything up: the disk hangs, and nothing that runs here can be expected to end.
    pub(crate) fn give_up(&mut self, ctx: &mut Ctx) {
        self.bids.clear();
        for lease in self.held.keys().copied().collect::<Vec<_>>() {
            ctx.note(Note::Fenced { lease });
            self.drop_held(ctx, lease, StopWhy::Fenced);
        }
    }

    /// The job is sealed: nobody else will run anything of it.
    pub(crate) fn on_job_sealed(&mut self, ctx: &mut Ctx, job: JobId) {
        for lease in self.leases_of(job) {
            self.drop_held(ctx, lease, StopWhy::Over);
        }
        self.on_job_end(ctx, job);
    }

    /// The job ended, unless a later brain says otherwise: everything for it stops, and this node signs what it did.
    pub(crate) fn on_job_end(&mut self, ctx: &mut Ctx, job: JobId) {
        for lease in self.leases_of(job) {
            self.report(ctx, lease);
            self.wind_up(ctx, lease);
        }
        let Some(done) = self.done.remove(&job) else { return };
        if done.reports > 1 {
            let mut hasher = blake3::Hasher::new();
            for hash in done.outputs.values().flatten() {
                hasher.update(&hash.0);
            }
            let outputs = Hash(*hasher.finalize().as_bytes());
            let executed = Executed { tasks: done.tasks, usage: done.usage, outputs };
            let (_, receipt) = ctx.state(job, Fact::Receipt(executed));
            let brain = ctx.ledger.live(&job).and_then(|l| brain_of(&l.state.spec, l.state.term));
            if let Some(brain) = brain {
                ctx.send(brain, Message::Facts(vec![receipt]));
            }
        }
    }
}

impl Held {
    /// Tells tasks to end, and takes them from the queue. Those that ran.
    fn stop(&mut self, ctx: &mut Ctx, hit: impl Fn(Phase, u32) -> bool) -> Vec<RunId> {
        let mut kept = VecDeque::new();
        for (p, run) in self.queue.drain(..) {
            for task in run.start..run.end() {
                if !hit(p, task) {
                    push_run(&mut kept, p, task);
                }
            }
        }
        self.queue = kept;
        let stopped: Vec<RunId> = self.running.extract_if(.., |(p, t), _| hit(*p, *t)).map(|(_, run)| run).collect();
        stopped.iter().for_each(|run| ctx.effect(Effect::Stop { run: *run, why: StopWhy::Unwanted }));
        if !planted(Bug::RoomAtOnce) {
            self.stopping.extend(&stopped);
        }
        stopped
    }
}

fn count(runs: &BTreeSet<RunId>) -> u32 {
    u32::try_from(runs.len()).unwrap_or(u32::MAX)
}
