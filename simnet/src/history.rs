//! What clients asked and what they were told, checked against what happened: a refused job never runs, a cancel that was
//! acknowledged ends its job, one key never makes two jobs, a node that goes on alone says so, and what was once shown of a job
//! that is over stays.
//!
//! Nothing is said here about answers that did not come, nor about outcomes that were called unknown.

use std::collections::{BTreeMap, BTreeSet};

use sinew_crdt_state::certificate::Roles;
use sinew_crdt_state::fact::Outcome;
use sinew_crdt_state::ids::{DiskId, Hash, JobId};
use sinew_crdt_state::state::JobState;
use sinew_scheduler::io::{RequestId, Response, SubmitError};
use sinew_scheduler::time::{Span, Time};

use crate::check::{Violation, results};
use crate::queue::Index;
use crate::world::World;

/// A worker that could not hear of a cancel has fenced itself by then.
const LAST_START: Span = Span::ms(3_000);
/// Of larger jobs the results are not remembered.
const RESULTS_MAX: u64 = 20_000;

/// What a client asked for.
#[derive(Debug, Clone)]
pub(crate) enum Asked {
    /// To take the job of this name.
    Submit { name: String, key: Option<String> },
    /// To end a job.
    Cancel { job: JobId },
}

#[derive(Debug)]
struct Call {
    node: Index,
    disk: DiskId,
    /// Members that run work, by the certificates on its disk at that time.
    members: usize,
    asked: Asked,
    answer: Option<(Time, Response)>,
}

/// All calls of a run.
#[derive(Debug, Default)]
pub(crate) struct History {
    calls: BTreeMap<RequestId, Call>,
    /// What was first shown of each job that is over: how it ended, and a digest of whose results count.
    shown: BTreeMap<JobId, (Outcome, Option<Hash>)>,
    /// What was seen to be wrong while the world ran.
    found: Vec<Violation>,
}

impl World {
    /// A client asks.
    pub(crate) fn note_call(&mut self, node: Index, id: RequestId, asked: Asked) {
        let disk = &self.nodes[node].disk;
        let call = Call { node, disk: disk.id(), members: disk.members_with(Roles::RUN), asked, answer: None };
        self.history.calls.insert(id, call);
    }

    /// ... and is answered.
    pub(crate) fn note_answer(&mut self, node: Index, id: RequestId, response: &Response) {
        let now = self.now;
        if let Response::Submitted(Ok(job)) = response
            && self.is_alone_unsaid(node, id, job)
        {
            self.history.found.push(Violation::AloneUnsaid(*job));
        }
        if let Some(call) = self.history.calls.get_mut(&id) {
            call.answer = Some((now, response.clone()));
        }
    }

    /// Whether a node takes a job alone, knew of three members or more when it was asked, and does not say so. One that lost its
    /// disk, or has joined this moment, knows of nobody yet.
    fn is_alone_unsaid(&self, node: Index, id: RequestId, job: &JobId) -> bool {
        let known = self.history.calls.get(&id).map_or(0, |call| call.members);
        let n = &self.nodes[node];
        let Some(live) = n.core.as_ref().and_then(|core| core.ledger().live(job)) else { return false };
        let spec = &live.state.spec;
        spec.brain_set.len() == 1 && spec.alone.is_none() && known >= 3
    }

    /// A node shows that a job is over.
    pub(crate) fn note_end(&mut self, node: Index, job: JobId) {
        let Some(live) = self.nodes[node].core.as_ref().and_then(|core| core.ledger().live(&job)) else { return };
        let Some(outcome) = live.state.outcome().cloned() else { return };
        let digest = digest(&live.state);
        let (first, shown) = self.history.shown.entry(job).or_insert_with(|| (outcome.clone(), digest));
        let differs = shown.is_some() && digest.is_some() && *shown != digest;
        if *first != outcome {
            self.history.found.push(Violation::TwoSeals(job));
        } else if differs {
            self.history.found.push(Violation::AcceptReplaced(job));
        }
        if shown.is_none() {
            *shown = digest;
        }
    }

    /// What clients were told and is not so, as far as it can be seen while things are under way.
    pub(crate) fn broken_words(&self) -> Vec<Violation> {
        let mut found = self.history.found.clone();
        let mut jobs: BTreeMap<(Index, DiskId, &str), BTreeSet<JobId>> = BTreeMap::new();
        for call in self.history.calls.values() {
            match (&call.asked, &call.answer) {
                (Asked::Submit { name, key: None }, Some((_, Response::Submitted(Err(error))))) if refuses(error) => {
                    found.extend(self.jobs_called(name).map(Violation::RefusedRan));
                }
                (Asked::Submit { name, key: Some(key) }, answer) => {
                    let of_key = jobs.entry((call.node, call.disk, key)).or_default();
                    of_key.extend(self.jobs_called(name));
                    of_key.extend(answer.as_ref().and_then(|(_, response)| job_in(response)));
                }
                (Asked::Cancel { job }, Some((at, Response::Cancelled(Ok(()))))) => {
                    let late = self
                        .executions_of(job)
                        .any(|e| e.start > *at + LAST_START && e.end.is_none_or(|(end, _)| end > e.start));
                    found.extend(late.then_some(Violation::CancelledRan(*job)));
                }
                _ => {}
            }
        }
        let twice = jobs.into_iter().filter(|((node, ..), jobs)| jobs.len() > 1 && !self.watch.forgot.contains(node));
        found.extend(twice.filter_map(|(_, jobs)| jobs.first().copied()).map(Violation::KeyTwice));
        found
    }

    /// The same once everything is at rest.
    pub(crate) fn broken_words_at_rest(&self) -> Vec<Violation> {
        let acknowledged = |call: &Call| match (&call.asked, &call.answer) {
            (Asked::Cancel { job }, Some((_, Response::Cancelled(Ok(()))))) => Some(*job),
            _ => None,
        };
        let cancelled: BTreeSet<JobId> = self.history.calls.values().filter_map(acknowledged).collect();
        let ended = |job: &JobId| self.outcomes.get(job).is_some_and(|(_, outcome)| *outcome == Outcome::Cancelled);
        cancelled.into_iter().filter(|job| !ended(job)).map(Violation::CancelUndone).collect()
    }
}

/// Whether the answer says that there is no such job.
const fn refuses(error: &SubmitError) -> bool {
    !matches!(error, SubmitError::Unknown { .. })
}

/// The job that an answer to a submit names as the caller's.
const fn job_in(response: &Response) -> Option<JobId> {
    match response {
        Response::Submitted(Ok(job) | Err(SubmitError::Unknown { job, .. })) => Some(*job),
        _ => None,
    }
}

/// Of a job that completed: whose results count.
fn digest(state: &JobState) -> Option<Hash> {
    let counted: u64 = state.accepted.iter().map(sinew_crdt_state::intervals::IntervalMap::count).sum();
    if state.outcome() != Some(&Outcome::Completed) || state.phase().is_some() || counted > RESULTS_MAX {
        return None;
    }
    Some(Hash::of(format!("{:?}", results(state)).as_bytes()))
}
