//! Lost disks: when the next one may be lost, and whether all was made good again at rest.
//!
//! The protocol promises to survive one lost disk at a time. The next may be lost once the node that lost the last one holds
//! again what it held: in between, two are missing, and with them perhaps both copies of something.

use std::collections::BTreeSet;

use sinew_crdt_state::fact::Outcome;
use sinew_crdt_state::ids::{Hash, JobId, NodeId};
use sinew_crdt_state::spec::JobSpec;
use sinew_crdt_state::state::{AcceptedResult, JobState};
use sinew_scheduler::core::Core;

use crate::check::Violation;
use crate::queue::Index;
use crate::world::World;

impl World {
    /// Whether the node's disk may be lost, when those of `lost` were before: all the others have recovered, and no job rests on
    /// this disk alone. Jobs that are not acknowledged yet count too: one whose set lost two disks is never decided, not even
    /// given up.
    pub(crate) fn may_lose_disk(&self, node: Index, lost: &BTreeSet<Index>) -> bool {
        let others_fine = lost.iter().all(|n| *n == node || self.has_recovered(*n));
        others_fine && !self.known_jobs().iter().any(|job| self.rests_on(node, job))
    }

    /// Whether something of the job is on this node only, by the job's own terms: its brain set is the submitter's node alone,
    /// as fewer than three nodes were in reach, or its outputs are not copied.
    fn rests_on(&self, node: Index, job: &JobId) -> bool {
        self.spec_anywhere(job).filter(|spec| spec.brain_set.len() == 1 || spec.copies == 1).is_some_and(|spec| {
            spec.brain_set == [self.nodes[node].id()] || self.executions_of(job).any(|e| e.node == node)
        })
    }

    /// Whether the node has on its disk every job of whose brain set it is, its voice in them, and every output that
    /// any node believes to be there.
    pub(crate) fn has_recovered(&self, node: Index) -> bool {
        let n = &self.nodes[node];
        let recovered = n.disk.pending() == 0 && n.core.as_ref().is_some_and(Core::has_recovered);
        recovered && self.known_jobs().iter().all(|job| self.holds_its_part(node, job))
    }

    fn holds_its_part(&self, node: Index, job: &JobId) -> bool {
        let n = &self.nodes[node];
        let states = self.states(job);
        let member = states.first().is_some_and(|state| state.spec.brain_set.contains(&n.id()));
        (n.disk.knows(job) || !member) && self.lacks(node, &states).is_empty()
    }

    /// The job's state as folded from each disk that has its spec.
    fn states(&self, job: &JobId) -> Vec<JobState> {
        self.nodes.iter().filter_map(|n| self.state(&n.name, job)).collect()
    }

    fn spec_anywhere(&self, job: &JobId) -> Option<std::sync::Arc<JobSpec>> {
        self.nodes.iter().find_map(|n| self.state(&n.name, job)).map(|state| state.spec)
    }

    /// Outputs of a job that some node believes to be on this one's disk and that are not, by what all disks say of it: of a
    /// running job all, of one that has ended the final ones.
    fn lacks(&self, node: Index, states: &[JobState]) -> BTreeSet<Hash> {
        let n = &self.nodes[node];
        let believed: BTreeSet<Hash> = states
            .iter()
            .flat_map(|state| match state.outcome() {
                Some(Outcome::Completed) => held_by(state, state.accepted.len() - 1, n.id()),
                Some(_) => Vec::new(),
                None => held_by(state, 0, n.id()),
            })
            .collect();
        believed.into_iter().filter(|hash| !n.disk.has(hash)).collect()
    }

    /// At rest: final outputs of completed jobs that are missing on a node that should hold them.
    pub(crate) fn copies_missing(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        for job in self.acknowledged.keys() {
            let states = self.states(job);
            let up = self.nodes.iter().enumerate().filter(|(_, n)| n.is_up());
            let lacking = up.filter(|(node, _)| !self.lacks(*node, &states).is_empty());
            found.extend(lacking.map(|(_, n)| Violation::CopyMissing(n.name.clone(), *job)));
        }
        found
    }
}

/// Outputs that the results from this phase on say to be on the node and on another.
fn held_by(state: &JobState, first: usize, node: NodeId) -> Vec<Hash> {
    let holds = |r: &AcceptedResult| r.copy.is_some() && (r.node == node || r.copy == Some(node));
    let results = state.accepted.iter().skip(first).flat_map(|phase| phase.iter().map(|(_, result)| result));
    results.filter(|r| holds(r)).flat_map(|r| r.outputs.iter().map(|o| o.blob.hash)).collect()
}
