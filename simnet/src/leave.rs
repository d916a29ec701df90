//! Nodes that leave in good order, as a daemon does that is told to end.

use sinew_scheduler::io::{Input, Leave, Note, RunId};
use sinew_scheduler::membership::NodeState;
use sinew_scheduler::time::Span;

use crate::exec::Stopped;
use crate::queue::{Event, Index, Life, Model};
use crate::world::World;

/// A program that is told to end takes up to so long, as long as it is let.
const ENDS_WITHIN: Span = Span::ms(2_000);
/// What was said before the end is on its way by then.
const FLUSHED_AFTER: Span = Span::ms(1);

impl World {
    /// Tells a node to leave, and does not wait. Once it has left it is down.
    pub fn leave(&mut self, name: &str, how: Leave) {
        let node = self.index(name);
        self.say(node, format!("LEAVES {how:?}"));
        self.counters.leaves += 1;
        self.input(node, Input::Leave(how));
    }

    /// Whether any node has called this one suspect or lost.
    #[must_use]
    pub fn was_doubted(&self, name: &str) -> bool {
        let id = self.nodes[self.index(name)].id();
        let doubt = |note: &Note| matches!(note, Note::Peer { node, state: NodeState::Suspect | NodeState::Lost } if *node == id);
        self.notes.iter().any(|(_, _, note)| doubt(note))
    }

    /// Whether one node takes another for healthy.
    #[must_use]
    pub fn sees_well(&self, name: &str, other: &str) -> bool {
        let other = self.nodes[self.index(other)].id();
        let core = self.nodes[self.index(name)].core.as_ref();
        core.and_then(|core| core.node_state(other)) == Some(NodeState::Healthy)
    }

    /// A task is to end, and takes its time.
    pub(crate) fn drain_task(&mut self, node: Index, run: RunId) {
        let at = self.now + Span(self.dice(ENDS_WITHIN.0));
        let life = self.roll.life(node);
        if let Some(running) = self.nodes[node].runs.get_mut(&run) {
            running.ends_at = Some(at);
            self.queue.push(at, Event::TaskEnd { life, run });
        }
    }

    /// Whether a task whose time is up did what it was told, and has no result.
    pub(crate) fn was_drained(&mut self, node: Index, run: RunId) -> bool {
        let drained = |ends_at: Option<_>| ends_at.is_some_and(|at| at <= self.now);
        if !self.nodes[node].runs.get(&run).is_some_and(|running| drained(running.ends_at)) {
            return false;
        }
        let execution = self.nodes[node].runs.remove(&run).map(|running| running.execution);
        if let Some(execution) = execution {
            self.executions[execution].end = Some((self.now, Stopped::ByCore));
        }
        self.input(node, Input::NotRun(run));
        true
    }

    /// A node has left.
    pub(crate) fn has_left(&mut self, node: Index) {
        let life = self.roll.life(node);
        self.queue.push(self.now + FLUSHED_AFTER, Event::Model(Model::Gone(life)));
    }

    /// The process of a node that has left ends, with everything on its disk that was to be.
    pub(crate) fn process_ends(&mut self, life: Life) {
        if self.is_alive(life) {
            let kept = self.nodes[life.node].disk.pending();
            self.crash(life.node, kept);
            self.nodes[life.node].has_left = true;
        }
    }
}
