//! What a scenario may look at besides conditions: who leads and stores a job, what runs where, what a ledger holds.

use std::collections::BTreeSet;

use sinew_crdt_state::ids::JobId;
use sinew_crdt_state::spec::Phase;
use sinew_scheduler::io::{RequestId, Response};

use crate::exec::Execution;
use crate::world::World;

impl World {
    /// The names of a job's brain set, its first brain first.
    ///
    /// # Panics
    /// When no node knows the job.
    #[must_use]
    pub fn brain_set(&self, job: &JobId) -> Vec<String> {
        let spec = self.nodes.iter().find_map(|n| self.state(&n.name, job)).expect("some node knows the job").spec;
        spec.brain_set.iter().map(|id| self.name_of_node(*id)).collect()
    }

    /// The names of the job's stewards: its brain set without its first brain.
    #[must_use]
    pub fn stewards(&self, job: &JobId) -> Vec<String> {
        self.brain_set(job).split_off(1)
    }

    /// The names of all nodes that are in no way part of the job's brain set.
    #[must_use]
    pub fn bystanders(&self, job: &JobId) -> Vec<String> {
        let set = self.brain_set(job);
        self.nodes.iter().map(|n| n.name.clone()).filter(|name| !set.contains(name)).collect()
    }

    /// The names of all whose bids for the job some disk has.
    #[must_use]
    pub fn bidders(&self, job: &JobId) -> BTreeSet<String> {
        let states = self.nodes.iter().filter_map(|n| self.state(&n.name, job));
        states.flat_map(|s| s.bids.keys().copied().collect::<Vec<_>>()).map(|id| self.name_of_node(id)).collect()
    }

    /// Nodes that lead the job, as they see it themselves, with their terms.
    #[must_use]
    pub fn leaders(&self, job: &JobId) -> Vec<(String, u32)> {
        let leads = |core: &sinew_scheduler::core::Core| core.led().find(|(led, _)| led == job).map(|(_, term)| term);
        self.nodes.iter().filter_map(|n| Some((n.name.clone(), leads(n.core.as_ref()?)?))).collect()
    }

    /// Tasks of the job that run on the node now.
    #[must_use]
    pub fn running_on(&self, name: &str, job: &JobId) -> Vec<(Phase, u32)> {
        let node = self.index(name);
        self.executions_of(job).filter(|e| e.node == node && e.end.is_none()).map(|e| (e.phase, e.task)).collect()
    }

    /// All attempts of one task, in order of their starts.
    #[must_use]
    pub fn attempts(&self, job: &JobId, phase: Phase, task: u32) -> Vec<Execution> {
        self.executions_of(job).filter(|e| (e.phase, e.task) == (phase, task)).copied().collect()
    }

    /// Tasks of a phase whose results the node's disk calls accepted.
    #[must_use]
    pub fn accepted_at(&self, name: &str, job: &JobId, phase: Phase) -> u32 {
        let Some(state) = self.state(name, job) else { return 0 };
        state.accepted.get(usize::from(phase)).map_or(0, |map| map.iter().map(|(run, _)| run.len).sum())
    }

    /// Facts of the job on the node's disk for good.
    #[must_use]
    pub fn written_at(&self, name: &str, job: &JobId) -> usize {
        self.nodes[self.index(name)].disk.written(job)
    }

    /// Whether a user at the node is told that the job has ended.
    #[must_use]
    pub fn is_told_of_end(&self, name: &str, job: &JobId) -> bool {
        let core = self.nodes[self.index(name)].core.as_ref();
        core.and_then(|core| core.view(job)).is_some_and(|view| view.is_ended())
    }

    /// What a user was answered, if anything yet.
    #[must_use]
    pub fn answer_to(&self, request: RequestId) -> Option<&Response> {
        self.answers.get(&request).map(|(_, response)| response)
    }

    /// Attempts of all jobs' tasks, in order of their starts.
    #[must_use]
    pub fn all_executions(&self) -> &[Execution] {
        &self.executions
    }

    /// Nodes that are up and have the output of a task on their disks.
    #[must_use]
    pub fn holders(&self, job: &JobId, phase: Phase, task: u32) -> usize {
        let names: Vec<String> = self.nodes.iter().map(|n| n.name.clone()).collect();
        self.holders_among(&names, job, phase, task)
    }

    /// Those of these nodes that are up and have the output of a task on their disks.
    #[must_use]
    pub fn holders_among(&self, names: &[String], job: &JobId, phase: Phase, task: u32) -> usize {
        let name = self.name_of(job);
        let Some(blob) = self.plan_of(&name).output(&name, phase, task) else { return 0 };
        self.nodes.iter().filter(|n| names.contains(&n.name) && n.is_up() && n.disk.has(&blob.hash)).count()
    }

    /// The names of the nodes on record for the output of a task, by the disk of the node of this name.
    #[must_use]
    pub fn recorded_holders(&self, name: &str, job: &JobId, phase: Phase, task: u32) -> BTreeSet<String> {
        let state = self.state(name, job);
        let accepted = state.as_ref().and_then(|s| s.accepted.get(usize::from(phase))).and_then(|m| m.get(task));
        let nodes = accepted.into_iter().flat_map(|r| [r.node].into_iter().chain(r.copy));
        nodes.map(|id| self.name_of_node(id)).collect()
    }

    /// How many nodes there are, up or not.
    #[must_use]
    pub const fn known_nodes(&self) -> usize {
        self.nodes.len()
    }

    /// The node's number by which executions name it.
    #[must_use]
    pub fn number(&self, name: &str) -> usize {
        self.index(name)
    }
}
