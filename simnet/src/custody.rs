//! Blobs as drivers see to them: who keeps what for which job, what is noted about others, and what is pruned.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sinew_crdt_state::fact::Outcome;
use sinew_crdt_state::ids::{Hash, JobId, NodeId};
use sinew_crdt_state::spec::Phase;
use sinew_scheduler::io::{FetchId, Input, SharedBlobs};
use sinew_scheduler::time::Span;

use crate::check::Violation;
use crate::queue::{Event, Index};
use crate::world::World;

/// A look at what the store has.
const LOOK_TIME: Span = Span::ms(1);

impl World {
    pub(crate) fn look(&mut self, node: Index, id: FetchId, blobs: Vec<(JobId, Vec<Hash>)>) {
        let disk = &self.nodes[node].disk;
        let here = |(job, hashes): (JobId, Vec<Hash>)| {
            let kept: Vec<Hash> = hashes.into_iter().filter(|hash| disk.keeps(&job, hash)).collect();
            (!kept.is_empty()).then_some((job, kept))
        };
        let blobs = blobs.into_iter().filter_map(here).collect();
        self.driver_answers(node, Input::Seen { id, blobs });
    }

    pub(crate) fn list_shared(
        &mut self,
        node: Index,
        id: FetchId,
        others: &BTreeSet<NodeId>,
        also: &[(JobId, Vec<Hash>)],
    ) {
        let shared = self.nodes[node].disk.shared_with(others, also);
        let shared = shared.into_iter().map(|((job, holders), blobs)| SharedBlobs { job, blobs, holders }).collect();
        self.driver_answers(node, Input::SharedWith { id, shared });
    }

    pub(crate) fn read_entry(&mut self, node: Index, job: JobId) {
        let facts = self.nodes[node].disk.facts(&job);
        self.driver_answers(node, Input::Entry { job, facts });
    }

    fn driver_answers(&mut self, node: Index, input: Input) {
        let life = self.roll.life(node);
        self.queue.push(self.now + LOOK_TIME, Event::Answered { life, input: Box::new(input) });
    }

    /// A node lets go of the outputs of jobs that it has forgotten, as if their time were over, and collects.
    pub fn prune_outputs(&mut self, name: &str) {
        let node = self.index(name);
        self.nodes[node].disk.prune();
        let left = Arc::new(self.nodes[node].disk.blobs());
        self.say(node, format!("PRUNED: {} blobs left", left.len()));
        self.input(node, Input::BlobsLeft(left));
    }

    /// Nodes that are up and keep a task's output for its job.
    #[must_use]
    pub fn keepers(&self, job: &JobId, phase: Phase, task: u32) -> Vec<String> {
        let name = self.name_of(job);
        let Some(blob) = self.plan_of(&name).output(&name, phase, task) else { return Vec::new() };
        let keeps = |n: &&crate::node::Node| n.is_up() && n.disk.keeps(job, &blob.hash);
        self.nodes.iter().filter(keeps).map(|n| n.name.clone()).collect()
    }

    /// Nodes that are up and keep every input of a job for it.
    #[must_use]
    pub fn input_keepers(&self, job: &JobId) -> Vec<String> {
        let name = self.name_of(job);
        let inputs = self.plan_of(&name).inputs(&name);
        let keeps = |n: &&crate::node::Node| n.is_up() && inputs.iter().all(|blob| n.disk.keeps(job, &blob.hash));
        self.nodes.iter().filter(keeps).map(|n| n.name.clone()).collect()
    }

    /// Requires that final outputs are where the results of their jobs say, on nodes that are up, and kept for these jobs.
    ///
    /// # Panics
    /// When one is not.
    pub fn check_recorded_copies(&self) {
        let mut found = self.copies_missing();
        for (job, node) in self.promised() {
            let keeps = |hash: &Hash| self.nodes[node].disk.keeps(&job.0, hash);
            if !job.1.iter().all(keeps) {
                found.push(Violation::CopyMissing(self.nodes[node].name.clone(), job.0));
            }
        }
        assert!(found.is_empty(), "{found:?}\n{}", self.log_tail());
    }

    /// Requires that every final output of a completed job is kept on two nodes that are up, no matter which: what a node
    /// that is gone held has been copied again.
    ///
    /// # Panics
    /// When one is not.
    pub fn check_copied_again(&self) {
        let mut found = Vec::new();
        for job in self.acknowledged.keys().filter(|job| self.completed_with_copies(job)) {
            let plan = self.plan_of(&self.name_of(job));
            let phases = plan.tasks_by_phase();
            let Some((phase, tasks)) = (0..).zip(&phases).last() else { continue };
            let few = (0..*tasks).filter(|task| {
                let left = plan.output(&self.name_of(job), phase, *task).is_some();
                left && self.keepers(job, phase, *task).len() < 2
            });
            found.extend(few.map(|task| Violation::TooFewCopies(*job, phase, task)));
        }
        assert!(found.is_empty(), "{found:?}\n{}", self.log_tail());
    }

    fn completed_with_copies(&self, job: &JobId) -> bool {
        let completed = matches!(self.outcomes.get(job), Some((_, Outcome::Completed)));
        completed && self.plan_of(&self.name_of(job)).is_copied()
    }

    /// Final outputs of jobs whose facts are still whole somewhere, by the nodes that are up and said to hold them.
    fn promised(&self) -> Vec<((JobId, Vec<Hash>), Index)> {
        let mut all = Vec::new();
        for job in self.acknowledged.keys() {
            let states = self.nodes.iter().filter(|n| !n.disk.has_forgotten(job)).map(|n| self.state(&n.name, job));
            let Some(state) = states.flatten().find(|s| s.outcome() == Some(&Outcome::Completed)) else { continue };
            let mut by_node: BTreeMap<Index, Vec<Hash>> = BTreeMap::new();
            for (_, result) in state.accepted.last().into_iter().flat_map(|phase| phase.iter()) {
                for holder in result.copy.into_iter().flat_map(|copy| [copy, result.node]) {
                    if let Some(node) = self.index_of(holder).filter(|n| self.nodes[*n].is_up()) {
                        by_node.entry(node).or_default().extend(result.outputs.iter().map(|o| o.blob.hash));
                    }
                }
            }
            all.extend(by_node.into_iter().map(|(node, hashes)| ((*job, hashes), node)));
        }
        all
    }
}
