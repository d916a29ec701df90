//! What a run that held has to report, gathered from its world.

use std::collections::BTreeMap;

use sinew_crdt_state::fact::Outcome;
use sinew_crdt_state::ids::JobId;
use sinew_scheduler::io::{RequestId, Response};
use sinew_scheduler::time::{Span, Time};

use super::{Report, Running};
use crate::check::Violation;
use crate::exec::Stopped;
use crate::world::World;

/// A job that was submitted so long ago is usually over everywhere: whoever was offered it, and did not get it, drops it after
/// ten seconds.
const OVER: Span = Span::ms(14_000);

/// How the jobs of a run went. Those that are over count at once where they are dropped, the others at the end.
#[derive(Debug, Default, Clone)]
pub(super) struct Jobs {
    submitted_at: Vec<Span>,
    acknowledged: u64,
    completed: u64,
    ended_otherwise: u64,
    refused: u64,
    starts: Vec<Span>,
    completions: Vec<Span>,
    ended_at: Vec<Span>,
}

impl Jobs {
    /// One that was acknowledged; `at` when it was submitted.
    fn count(&mut self, at: Time, begin: Time, started: Option<Time>, end: Option<(Time, &Outcome)>) {
        self.acknowledged += 1;
        self.starts.extend(started.map(|start| start - at));
        match end {
            Some((end, Outcome::Completed)) => {
                self.completed += 1;
                self.completions.push(end - at);
                self.ended_at.push(end - begin);
            }
            Some(_) => self.ended_otherwise += 1,
            None => {}
        }
    }

    /// Those that were not dropped, and everything in order.
    fn finish(mut self, world: &World, submitted: &BTreeMap<RequestId, Time>, begin: Time) -> Self {
        self.submitted_at.extend(submitted.values().map(|at| *at - begin));
        for (id, at) in submitted {
            let Some((_, Response::Submitted(verdict))) = world.answers.get(id) else { continue };
            let Ok(job) = verdict else {
                self.refused += 1;
                continue;
            };
            let started = world.executions_of(job).map(|e| e.start).min();
            let end = world.outcomes.get(job).map(|(end, outcome)| (*end, outcome));
            self.count(*at, begin, started, end);
        }
        for times in [&mut self.submitted_at, &mut self.starts, &mut self.completions, &mut self.ended_at] {
            times.sort_unstable();
        }
        self
    }
}

impl Running<'_> {
    /// Counts and drops what is over for long: with nodes that stay up nobody can need it any more.
    pub(super) fn close(&mut self) -> Vec<Violation> {
        if !self.options.faults.is_empty() {
            return Vec::new();
        }
        let now = self.world.now;
        let due: Vec<_> =
            self.submitted.iter().map(|(id, at)| (*id, *at)).take_while(|(_, at)| now - *at > OVER).collect();
        let mut found = Vec::new();
        for (id, at) in due {
            let Some(closed) = self.world.close(id) else { continue };
            self.submitted.remove(&id);
            self.doubles.forget(&closed.job);
            self.jobs.submitted_at.push(at - self.begin);
            self.jobs.count(at, self.begin, closed.started, Some((closed.ended, &closed.outcome)));
            found.extend(closed.violations);
        }
        found
    }

    pub(super) fn report(&self, converged: Span) -> Report {
        let (world, before, now) = (&self.world, &self.before, &self.world.counters);
        let jobs = self.jobs.clone().finish(world, &self.submitted, self.begin);
        Report {
            command: self.options.command(),
            seed: self.options.seed,
            nodes: self.options.nodes,
            virtual_time: world.now - self.begin,
            jobs_submitted: jobs.submitted_at.len() as u64,
            jobs_acknowledged: jobs.acknowledged,
            jobs_completed: jobs.completed,
            jobs_ended_otherwise: jobs.ended_otherwise,
            jobs_refused: self.refused + jobs.refused,
            tasks_started: world.executions.len() as u64,
            tasks_run_again: self.run_again(),
            double_starts: self.doubles.found().len() as u64,
            starts: jobs.starts,
            completions: jobs.completions,
            submitted_at: jobs.submitted_at,
            completed_at: jobs.ended_at,
            frames: now.frames - before.frames,
            traffic: now.traffic.since(&before.traffic),
            forming: before.traffic.total(),
            adverts: now.gossip_published - before.gossip_published,
            gossip_duplicates: now.gossip_duplicates - before.gossip_duplicates,
            gossip_control: gossip_control(now) - gossip_control(before),
            events: now.events - before.events,
            caught: now.lies_refused,
            converged,
            fired: self.nemesis.fired().clone(),
            trace: world.trace(),
        }
    }

    /// Attempts that ended well beyond the first of each task.
    fn run_again(&self) -> u64 {
        let mut done: BTreeMap<(JobId, u8, u32), u64> = BTreeMap::new();
        for e in self.world.executions.iter().filter(|e| matches!(e.end, Some((_, Stopped::Done)))) {
            *done.entry((e.job, e.phase, e.task)).or_default() += 1;
        }
        done.values().map(|n| n - 1).sum()
    }
}

const fn gossip_control(counters: &crate::Counters) -> u64 {
    counters.ihave + counters.iwant + counters.grafts + counters.prunes
}
