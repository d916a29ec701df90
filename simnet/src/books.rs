//! What the world itself knows of the jobs that scenarios submit: how their tasks behave, what they are called, what was
//! executed. A job that is over everywhere can be checked and dropped ([`World::close`]), so that a long run costs memory for
//! what is under way only.

use std::collections::BTreeMap;

use sinew_crdt_state::fact::Outcome;
use sinew_crdt_state::ids::JobId;
use sinew_scheduler::io::{RequestId, Response};
use sinew_scheduler::time::Time;

use crate::check::Violation;
use crate::exec::Execution;
use crate::plan::Plan;
use crate::world::World;

#[derive(Debug, Default)]
pub(crate) struct Books {
    plans: BTreeMap<String, Plan>,
    names: BTreeMap<JobId, String>,
    /// Places in the world's list of executions.
    executed: BTreeMap<JobId, Vec<usize>>,
    submitted: u64,
}

impl Books {
    /// Names a job that is about to be submitted.
    pub(crate) fn submit(&mut self, plan: &Plan) -> String {
        let name = format!("job-{}", self.submitted);
        self.submitted += 1;
        self.plans.insert(name.clone(), plan.clone());
        name
    }

    /// The same under a name that the caller gives: for a request that is asked several times.
    pub(crate) fn submit_as(&mut self, name: &str, plan: &Plan) {
        self.plans.insert(name.to_owned(), plan.clone());
    }

    /// A task of the job of this name starts, as an execution of this number.
    pub(crate) fn start(&mut self, job: JobId, name: &str, execution: usize) {
        self.executed.entry(job).or_default().push(execution);
        self.names.entry(job).or_insert_with(|| name.to_owned());
    }

    fn drop(&mut self, job: &JobId) {
        self.executed.remove(job);
        if let Some(name) = self.names.remove(job) {
            self.plans.remove(&name);
        }
    }
}

/// A job that is over and was dropped.
#[derive(Debug)]
pub(crate) struct Closed {
    pub(crate) job: JobId,
    pub(crate) outcome: Outcome,
    /// When its first task started.
    pub(crate) started: Option<Time>,
    /// When its seal was first seen.
    pub(crate) ended: Time,
    /// What does not hold for it.
    pub(crate) violations: Vec<Violation>,
}

impl World {
    pub(crate) fn plan_of(&self, name: &str) -> Plan {
        self.books.plans.get(name).cloned().unwrap_or_else(crate::plan::job)
    }

    pub(crate) fn name_of(&self, job: &JobId) -> String {
        self.books.names.get(job).cloned().unwrap_or_default()
    }

    /// Jobs of this name of which a task started.
    pub(crate) fn jobs_called(&self, name: &str) -> impl Iterator<Item = JobId> {
        self.books.names.iter().filter(move |(_, called)| *called == name).map(|(job, _)| *job)
    }

    /// All attempts of a job's tasks, in order of their starts.
    pub fn executions_of(&self, job: &JobId) -> impl Iterator<Item = &Execution> {
        self.books.executed.get(job).into_iter().flatten().map(|i| &self.executions[*i])
    }

    /// Checks and drops the job of a request if it was acknowledged and nobody has anything left to do for it. Its facts go
    /// from all disks: only for worlds in which nobody can need them any more, where no node goes down or loses its disk.
    pub(crate) fn close(&mut self, request: RequestId) -> Option<Closed> {
        let (_, Response::Submitted(Ok(job))) = self.answers.get(&request)? else { return None };
        let job = *job;
        let (ended, outcome) = self.outcomes.get(&job).filter(|_| self.is_over(&job))?.clone();
        let mut violations = self.check_acknowledged(&job);
        violations.extend(self.audit_job(&job));
        let started = self.executions_of(&job).map(|e| e.start).min();
        self.books.drop(&job);
        self.answers.remove(&request);
        self.acknowledged.remove(&job);
        self.outcomes.remove(&job);
        for node in &mut self.nodes {
            node.disk.drop_job(&job);
        }
        Some(Closed { job, outcome, started, ended, violations })
    }

    /// Whether every disk that should know the job has it sealed, and no core anything of it in memory.
    fn is_over(&self, job: &JobId) -> bool {
        self.nodes.iter().all(|node| {
            let Some(core) = &node.core else { return false };
            let done = if node.disk.knows(job) { node.disk.has_sealed(job) } else { !core.keeps_all() };
            done && core.ledger().live(job).is_none()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{job, round};
    use crate::units::{millis, seconds};

    fn world() -> World {
        World::seed(3).nodes(["a", "b", "c", "d"])
    }

    #[test]
    fn a_job_that_is_over_is_dropped_from_books_and_disks() {
        let mut world = world();
        let requests = [world.submit_later("a", &job().tasks(3)), world.submit_later("b", &round(4, 2))];
        world.run_for(millis(50));
        assert!(requests.iter().all(|request| world.close(*request).is_none()), "they have hardly begun");
        world.run_until_idle();
        world.run_for(seconds(1));
        let blobs = world.nodes.iter().map(|n| n.disk.blob_count()).sum::<usize>();
        for request in requests {
            let closed = world.close(request).expect("it is over");
            assert_eq!((closed.outcome, closed.violations), (Outcome::Completed, Vec::new()));
            assert!(closed.started.is_some_and(|started| started < closed.ended));
            assert!(world.close(request).is_none() && world.executions_of(&closed.job).next().is_none());
            assert!(world.nodes.iter().all(|n| !n.disk.knows(&closed.job) && n.disk.has_sealed(&closed.job)));
        }
        assert_eq!((world.acknowledged(), world.known_jobs().len(), world.books.plans.len()), (0, 0, 0));
        assert!(world.nodes.iter().map(|n| n.disk.blob_count()).sum::<usize>() < blobs, "outputs went too");
        world.check_invariants();
    }

    #[test]
    fn what_does_not_hold_is_found_before_a_job_is_dropped() {
        let mut world = world();
        let request = world.submit_later("a", &job());
        world.run_until_idle();
        world.run_for(seconds(1));
        world.books.executed.clear();
        let closed = world.close(request).expect("it is over");
        assert_eq!(closed.violations, [Violation::Invented(closed.job, 0, 0)]);
    }
}
