//! What a scenario waits for and expects, in words.

use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::fact::Outcome;
use sinew_crdt_state::ids::JobId;
use sinew_scheduler::io::{Note, RequestId};
use sinew_scheduler::time::Span;

use crate::exec::{Execution, Stopped};
use crate::world::{PATIENCE, World};

type Test = dyn Fn(&World) -> Option<Seen>;

/// Something that holds in a world, or does not yet.
pub struct Condition {
    what: String,
    test: Box<Test>,
}

impl std::fmt::Debug for Condition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Condition({})", self.what)
    }
}

/// What was seen when a condition held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// The attempt's epoch, where there is one.
    pub epoch: Option<u32>,
    /// The brain's term, where there is one.
    pub term: Option<u32>,
}

impl Seen {
    /// Requires this epoch.
    ///
    /// # Panics
    /// When it is another.
    pub fn with_epoch(self, epoch: u32) -> Self {
        assert_eq!(self.epoch, Some(epoch), "another epoch");
        self
    }
}

/// Why a result was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It came under an award that is over.
    StaleEpoch,
}

fn condition(what: String, test: impl Fn(&World) -> Option<Seen> + 'static) -> Condition {
    Condition { what, test: Box::new(test) }
}

/// A task of the job runs on the node.
#[must_use]
pub fn running(job: JobId, node: &str) -> Condition {
    let name = node.to_owned();
    condition(format!("{} runs on {node}", job.short()), move |world| {
        let node = world.index(&name);
        let mut here = world.executions_of(&job).filter(|e| e.node == node && e.end.is_none());
        here.next().map(|e| Seen { epoch: Some(e.fence.epoch), term: Some(e.fence.term) })
    })
}

/// Some task of the job runs somewhere.
#[must_use]
pub fn started(job: JobId) -> Condition {
    condition(format!("{} runs", job.short()), move |world| {
        let mut here = world.executions_of(&job).filter(|e| e.end.is_none());
        here.next().map(|e| Seen { epoch: Some(e.fence.epoch), term: Some(e.fence.term) })
    })
}

/// So many tasks of the phase were executed to success, somewhere.
#[must_use]
pub fn done(job: JobId, phase: u8, tasks: usize) -> Condition {
    condition(format!("{tasks} tasks of phase {phase} of {} are done", job.short()), move |world| {
        let done = world.executions_of(&job).filter(|e| e.phase == phase && matches!(e.end, Some((_, Stopped::Done))));
        (done.count() >= tasks).then(Seen::default)
    })
}

/// So many attempts of a task have failed.
#[must_use]
pub fn failed_attempts(job: JobId, phase: u8, task: u32, times: usize) -> Condition {
    condition(format!("task {phase}/{task} of {} failed {times} times", job.short()), move |world| {
        let failed = |e: &Execution| (e.phase, e.task) == (phase, task) && matches!(e.end, Some((_, Stopped::Failed)));
        (world.executions_of(&job).filter(|e| failed(e)).count() >= times).then(Seen::default)
    })
}

/// A node that lost its disk has everything back: the jobs of whose brain sets it is, its voice in them, and outputs.
#[must_use]
pub fn recovered(node: &str) -> Condition {
    let name = node.to_owned();
    condition(format!("{node} has back what its lost disk held"), move |world| {
        world.has_recovered(world.index(&name)).then(Seen::default)
    })
}

/// The job ended, in whatever way.
#[must_use]
pub fn ended(job: JobId) -> Condition {
    condition(format!("{} ended", job.short()), move |world| world.outcomes.get(&job).map(|_| Seen::default()))
}

/// The job completed.
#[must_use]
pub fn completed(job: JobId) -> Condition {
    finished(job, Outcome::Completed)
}

/// The job ended in just this way.
#[must_use]
pub fn finished(job: JobId, outcome: Outcome) -> Condition {
    condition(format!("{} ended as {outcome:?}", job.short()), move |world| {
        world.outcomes.get(&job).filter(|(_, o)| *o == outcome).map(|_| Seen::default())
    })
}

/// The job ended in just this way as one node's disk has it.
#[must_use]
pub fn finished_at(node: &str, job: JobId, outcome: Outcome) -> Condition {
    let name = node.to_owned();
    condition(format!("{} ended as {outcome:?} at {node}", job.short()), move |world| {
        let state = world.state(&name, &job)?;
        (state.outcome() == Some(&outcome)).then(Seen::default)
    })
}

/// The job failed by this task with this code.
#[must_use]
pub fn failed(job: JobId, code: ErrorCode, task: u32) -> Condition {
    condition(format!("{} failed with {code} in task {task}", job.short()), move |world| {
        let (_, outcome) = world.outcomes.get(&job)?;
        let fits = matches!(outcome, Outcome::Failed { task: t, failure, .. } if *t == task && failure.code == code);
        fits.then(Seen::default)
    })
}

/// The node leads the job.
#[must_use]
pub fn led_by(job: JobId, node: &str) -> Condition {
    let name = node.to_owned();
    condition(format!("{} is led by {node}", job.short()), move |world| {
        let core = world.nodes[world.index(&name)].core.as_ref()?;
        core.led().find(|(j, _)| *j == job).map(|(_, term)| Seen { epoch: None, term: Some(term) })
    })
}

/// Another node than the first brain took the job over.
#[must_use]
pub fn taken_over(job: JobId) -> Condition {
    condition(format!("{} is taken over", job.short()), move |world| {
        let took = world.took.iter().rev().find(|t| t.job == job)?;
        Some(Seen { epoch: None, term: Some(took.term) })
    })
}

/// A brain took the job over in a later term than this one.
#[must_use]
pub fn taken_over_after(job: JobId, term: u32) -> Condition {
    condition(format!("{} is taken over after term {term}", job.short()), move |world| {
        let took = world.took.iter().find(|t| t.job == job && t.term > term)?;
        Some(Seen { epoch: None, term: Some(took.term) })
    })
}

/// A brain gave up a lease of the node, for its silence.
#[must_use]
pub fn given_up(job: JobId, node: &str) -> Condition {
    let name = node.to_owned();
    condition(format!("a lease of {node} for {} is given up", job.short()), move |world| {
        let id = world.nodes[world.index(&name)].id();
        world.notes.iter().find_map(|(_, _, note)| match note {
            Note::Lost { lease, node, .. } if lease.job == job && *node == id => {
                Some(Seen { epoch: Some(lease.fence.epoch), term: Some(lease.fence.term) })
            }
            _ => None,
        })
    })
}

/// The node stopped its tasks of the job by itself.
#[must_use]
pub fn fenced(job: JobId, node: &str) -> Condition {
    let name = node.to_owned();
    condition(format!("{node} fenced itself for {}", job.short()), move |world| {
        let node = world.index(&name);
        world.notes.iter().find_map(|(_, at, note)| match note {
            Note::Fenced { lease } if lease.job == job && *at == node => {
                Some(Seen { epoch: Some(lease.fence.epoch), term: Some(lease.fence.term) })
            }
            _ => None,
        })
    })
}

/// A user was answered, in whatever way.
#[must_use]
pub fn answered(request: RequestId) -> Condition {
    condition(format!("{request:?} is answered"), move |world| world.answers.contains_key(&request).then(Seen::default))
}

/// A brain refused a result of the node for this reason.
#[must_use]
pub fn rejected_result(job: JobId, node: &str, reason: Refusal) -> Condition {
    let name = node.to_owned();
    condition(format!("a result of {node} for {} was refused: {reason:?}", job.short()), move |world| {
        let id = world.nodes[world.index(&name)].id();
        world.notes.iter().find_map(|(_, _, note)| match note {
            Note::Stale { lease, from } if lease.job == job && *from == id => {
                Some(Seen { epoch: Some(lease.fence.epoch), term: Some(lease.fence.term) })
            }
            _ => None,
        })
    })
}

/// All of these at once.
#[must_use]
pub fn all_of(conditions: Vec<Condition>) -> Condition {
    let what = conditions.iter().map(|c| c.what.clone()).collect::<Vec<_>>().join(", ");
    condition(what, move |world| {
        conditions.iter().map(|c| (c.test)(world)).collect::<Option<Vec<_>>>().map(|_| Seen::default())
    })
}

impl World {
    /// Runs until the condition holds.
    ///
    /// # Panics
    /// When two minutes pass without it.
    pub fn run_until(&mut self, condition: Condition) -> Seen {
        self.run_until_within(condition, PATIENCE)
    }

    /// Runs until the condition holds, for no longer than `span`.
    ///
    /// # Panics
    /// When it does not.
    pub fn run_until_within(&mut self, condition: Condition, span: Span) -> Seen {
        let deadline = self.now + span;
        loop {
            if let Some(seen) = (condition.test)(self) {
                return seen;
            }
            let next = self.queue.next_at().filter(|at| *at <= deadline);
            assert!(next.is_some(), "not within {} ms: {}\n{}", span.as_ms(), condition.what, self.log_tail());
            self.step();
        }
    }

    /// Lets this much time pass.
    pub fn run_for(&mut self, span: Span) {
        let until = self.now + span;
        while self.queue.next_at().is_some_and(|at| at <= until) {
            self.step();
        }
        self.now = until;
    }

    /// Requires that the condition holds now.
    ///
    /// # Panics
    /// When it does not.
    pub fn expect(&self, condition: Condition) -> Seen {
        (condition.test)(self).unwrap_or_else(|| panic!("does not hold: {}\n{}", condition.what, self.log_tail()))
    }

    /// Whether the condition holds now.
    #[must_use]
    pub fn holds(&self, condition: &Condition) -> bool {
        (condition.test)(self).is_some()
    }
}
