//! Machines that differ: which one a node gets, and how long a task takes on it.

use sinew_crdt_state::spec::Phase;
use sinew_scheduler::time::Span;

use crate::node::NodeSetup;
use crate::plan::Plan;
use crate::queue::Index;
use crate::world::World;

impl World {
    /// Nodes that are made from here on have one of these each, drawn at random. Listing one twice doubles its chance.
    #[must_use]
    pub fn machines(mut self, machines: impl IntoIterator<Item = NodeSetup>) -> Self {
        self.machines = machines.into_iter().collect();
        self
    }

    pub(crate) fn machine(&mut self) -> NodeSetup {
        if self.machines.is_empty() {
            return self.setup.clone();
        }
        let pick = self.pick(self.machines.len());
        self.machines[pick].clone()
    }

    /// How long an attempt takes here.
    pub(crate) fn work_of(&mut self, node: Index, plan: &Plan, phase: Phase, task: u32) -> Span {
        let dice = self.dice(1_000);
        let work = match plan.spread_of(phase, task) {
            Some(distribution) => Span(self.draw(&distribution)),
            None => plan.duration(phase, task, dice),
        };
        Span(work.0.saturating_mul(100) / u64::from(self.nodes[node].setup.speed_percent.max(1)))
    }
}
