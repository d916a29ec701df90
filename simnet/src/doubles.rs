//! Tasks that run in two places at once, found as a run goes: every execution is looked at once, when it is new.

use std::collections::{BTreeMap, BTreeSet};

use sinew_crdt_state::ids::JobId;
use sinew_crdt_state::spec::Phase;
use sinew_scheduler::io::Note;
use sinew_scheduler::time::Time;
use sinew_scheduler::wire::Lease;

use crate::exec::Execution;
use crate::world::World;

/// A task of some job.
pub(crate) type Task = (JobId, Phase, u32);

/// What was seen of a world so far.
#[derive(Debug, Default)]
pub(crate) struct Doubles {
    executions_seen: usize,
    notes_seen: usize,
    by_task: BTreeMap<Task, Vec<usize>>,
    /// When a brain gave an award up, first.
    given_up: BTreeMap<Lease, Time>,
    /// Tasks that a brain started a second time because they took long, first.
    speculated: BTreeMap<Task, Time>,
    found: BTreeSet<Task>,
    /// Pairs of which the earlier one's machine stands still: whether it goes on with the task is not yet known.
    undecided: Vec<(usize, usize)>,
}

impl Doubles {
    /// Looks at what is new. Executions must be looked at no earlier than they start, which they always are.
    pub(crate) fn look(&mut self, world: &World) {
        for (at, _, note) in &world.notes[self.notes_seen..] {
            match note {
                Note::Lost { lease, .. } | Note::Back { lease } => _ = self.given_up.entry(*lease).or_insert(*at),
                Note::Speculated { job, phase, task } => {
                    self.speculated.entry((*job, *phase, *task)).or_insert(*at);
                }
                _ => {}
            }
        }
        self.notes_seen = world.notes.len();
        for (number, e) in world.executions.iter().enumerate().skip(self.executions_seen) {
            let earlier = self.by_task.entry((e.job, e.phase, e.task)).or_default();
            self.undecided.extend(earlier.iter().map(|a| (*a, number)));
            earlier.push(number);
        }
        for (a, b) in std::mem::take(&mut self.undecided) {
            let (a_ran, b_ran) = (&world.executions[a], &world.executions[b]);
            if a_ran.end.is_none() && world.stands_still(a_ran.node) {
                self.undecided.push((a, b));
            } else if doubled(world, a_ran, b_ran, &self.given_up, &self.speculated) {
                self.found.insert((b_ran.job, b_ran.phase, b_ran.task));
            }
        }
        self.executions_seen = world.executions.len();
    }

    /// The job is over: what starts of it now is found by other means, as it comes too late.
    pub(crate) fn forget(&mut self, job: &JobId) {
        let tasks: Vec<Task> =
            self.by_task.range((*job, 0, 0)..=(*job, Phase::MAX, u32::MAX)).map(|(task, _)| *task).collect();
        for task in tasks {
            self.by_task.remove(&task);
        }
    }

    /// The tasks found so far.
    pub(crate) const fn found(&self) -> &BTreeSet<Task> {
        &self.found
    }
}

/// Whether `b` started while `a` ran elsewhere, although their brain meant the task to run once. A brain that starts a
/// straggler a second time says so, and does it without having given the first award up, which may be one that it has from an earlier
/// brain.
fn doubled(
    world: &World,
    a: &Execution,
    b: &Execution,
    given_up: &BTreeMap<Lease, Time>,
    speculated: &BTreeMap<Task, Time>,
) -> bool {
    let end = |e: &Execution| e.end.map_or(Time(u64::MAX), |(at, _)| at);
    let overlap = a.node != b.node && world.both_went_on(a.node, b.node, b.start, end(a).min(end(b)));
    let lost = |e: &Execution| given_up.get(&Lease { job: e.job, fence: e.fence }).is_some_and(|at| *at <= b.start);
    // An older award than the one that was given up: a straggler whose twin ran first. What was given up and begins only
    // then came late, whatever ran before it.
    let older_lost = |older: &Execution, newer: &Execution| older.fence.epoch < newer.fence.epoch && lost(older);
    let meant = speculated.get(&(b.job, b.phase, b.task)).is_some_and(|at| *at <= b.start && a.start <= *at);
    let other_term = a.fence.term != b.fence.term && !meant;
    overlap && (other_term || older_lost(a, b) || older_lost(b, a))
}
