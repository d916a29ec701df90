//! The brain sets with which this node leads jobs, so that what concerns a whole set is looked at once, not job by job: whom to
//! send beats, and whether enough of them answer.

use std::collections::{BTreeMap, BTreeSet};

use sinew_crdt_state::ids::{JobId, NodeId};

use crate::config::IN_CHARGE_FOR;
use crate::ctx::Ctx;
use crate::time::Time;

/// Jobs by brain set and pace.
#[derive(Debug, Default)]
pub(crate) struct Sets {
    jobs: BTreeMap<(Vec<NodeId>, u8), BTreeSet<JobId>>,
    /// Jobs for which a set's answers may count otherwise than for the rest: looked at one by one until they do not.
    odd: BTreeSet<JobId>,
    /// Jobs that found themselves out of touch with their set when there was room for them.
    aside: BTreeSet<JobId>,
}

impl Sets {
    pub(crate) fn insert(&mut self, set: &[NodeId], pace: u8, job: JobId) {
        self.jobs.entry((set.to_vec(), pace)).or_default().insert(job);
        self.odd.insert(job);
    }

    pub(crate) fn remove(&mut self, set: &[NodeId], pace: u8, job: &JobId) {
        self.odd.remove(job);
        self.aside.remove(job);
        let key = (set.to_vec(), pace);
        if let Some(jobs) = self.jobs.get_mut(&key) {
            jobs.remove(job);
            if jobs.is_empty() {
                self.jobs.remove(&key);
            }
        }
    }

    /// Everybody in any of the sets.
    pub(crate) fn members(&self) -> BTreeSet<NodeId> {
        self.jobs.keys().flat_map(|(set, _)| set).copied().collect()
    }

    /// Answers may count otherwise for this job than for others of its set.
    pub(crate) fn mark_odd(&mut self, job: JobId) {
        self.odd.insert(job);
    }

    /// The same for all jobs with this member: it speaks from another disk than before.
    pub(crate) fn mark_odd_with(&mut self, member: NodeId) {
        for (_, jobs) in self.jobs.iter().filter(|((set, _), _)| set.contains(&member)) {
            self.odd.extend(jobs);
        }
    }

    pub(crate) fn odd(&self) -> impl Iterator<Item = &JobId> {
        self.odd.iter()
    }

    pub(crate) fn no_longer_odd(&mut self, job: &JobId) {
        self.odd.remove(job);
    }

    /// The jobs of sets of which no majority has answered lately.
    pub(crate) fn out_of_touch(&self, ctx: &Ctx) -> impl Iterator<Item = &JobId> {
        self.jobs.iter().filter(|((set, pace), _)| !answers(ctx, set, *pace)).flat_map(|(_, jobs)| jobs)
    }

    /// The job may not decide now; it is to look again once its set answers.
    pub(crate) fn put_aside(&mut self, job: JobId) {
        self.aside.insert(job);
    }

    /// A member answered: jobs that wait for their sets' answers, and may have them now.
    pub(crate) fn back_in_touch(&mut self, ctx: &Ctx, member: NodeId) -> Vec<JobId> {
        if self.aside.is_empty() {
            return Vec::new();
        }
        let mut back = Vec::new();
        let answered = |set: &Vec<NodeId>, pace: u8| set.contains(&member) && answers(ctx, set, pace);
        for (_, jobs) in self.jobs.iter().filter(|((set, pace), _)| answered(set, *pace)) {
            back.extend(jobs.intersection(&self.aside).copied());
        }
        for job in &back {
            self.aside.remove(job);
        }
        back
    }
}

/// Whether a majority of the set, this node included, answered a beat that was sent lately.
fn answers(ctx: &Ctx, set: &[NodeId], pace: u8) -> bool {
    let lately = |sent: Time| ctx.now.at - sent <= IN_CHARGE_FOR.at(pace);
    let near = |n: &NodeId| *n == ctx.own || ctx.peers.contact(*n).is_some_and(|(sent, _)| lately(sent));
    set.iter().filter(|n| near(n)).count() > set.len() / 2
}
