//! What a run that held has to report, gathered from its world.

use std::collections::BTreeMap;

use sinew_crdt_state::fact::Outcome;
use sinew_crdt_state::ids::JobId;
use sinew_scheduler::io::{RequestId, Response};
use sinew_scheduler::time::{Span, Time};

use super::{Report, Running};
use crate::exec::Stopped;
use crate::world::World;

/// How the jobs of a run went.
#[derive(Debug, Default)]
struct Jobs {
    completed: u64,
    ended_otherwise: u64,
    refused: u64,
    starts: Vec<Span>,
    completions: Vec<Span>,
    ended_at: Vec<Span>,
}

impl Jobs {
    fn of(world: &World, submitted: &BTreeMap<RequestId, Time>, begin: Time) -> Self {
        let mut jobs = Self::default();
        for (id, at) in submitted {
            let Some((_, Response::Submitted(verdict))) = world.answers.get(id) else { continue };
            let Ok(job) = verdict else {
                jobs.refused += 1;
                continue;
            };
            jobs.starts.extend(world.executions_of(job).map(|e| e.start).min().map(|start| start - *at));
            match world.outcomes.get(job) {
                Some((end, Outcome::Completed)) => {
                    jobs.completed += 1;
                    jobs.completions.push(*end - *at);
                    jobs.ended_at.push(*end - begin);
                }
                Some(_) => jobs.ended_otherwise += 1,
                None => {}
            }
        }
        for times in [&mut jobs.starts, &mut jobs.completions, &mut jobs.ended_at] {
            times.sort_unstable();
        }
        jobs
    }
}

impl Running<'_> {
    pub(super) fn report(&self, converged: Span) -> Report {
        let (world, before, now) = (&self.world, &self.before, &self.world.counters);
        let jobs = Jobs::of(world, &self.submitted, self.begin);
        let mut submitted_at: Vec<Span> = self.submitted.values().map(|at| *at - self.begin).collect();
        submitted_at.sort_unstable();
        Report {
            command: self.options.command(),
            seed: self.options.seed,
            nodes: self.options.nodes,
            virtual_time: world.now - self.begin,
            jobs_submitted: self.submitted.len() as u64,
            jobs_acknowledged: world.acknowledged.len() as u64,
            jobs_completed: jobs.completed,
            jobs_ended_otherwise: jobs.ended_otherwise,
            jobs_refused: self.refused + jobs.refused,
            tasks_started: world.executions.len() as u64,
            tasks_run_again: self.run_again(),
            double_starts: self.doubles.found().len() as u64,
            starts: jobs.starts,
            completions: jobs.completions,
            submitted_at,
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
