//! Batches of inputs, as the daemon's engine makes them: a core at rest is flushed after each event; a busy one handles what
//! comes, and is flushed [`Core::pace`] after the last time. What it handled and did not answer is lost in a crash.

use sinew_scheduler::core::Core;
use sinew_scheduler::io::Input;
use sinew_scheduler::time::Time;

use crate::queue::{Event, Index, Life};
use crate::world::World;

/// Where a node stands between two flushes of its core.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Batch {
    flushed: Time,
    /// Whether an event for the next flush is on its way.
    open: bool,
}

impl World {
    pub(crate) fn input(&mut self, node: Index, input: Input) {
        let asked_for = matches!(input, Input::Tick);
        self.feed(node, [input], asked_for);
    }

    pub(crate) fn inputs(&mut self, node: Index, inputs: impl IntoIterator<Item = Input>) {
        self.feed(node, inputs, false);
    }

    /// Calls the core, because it asked to be called or for another reason.
    fn feed(&mut self, node: Index, inputs: impl IntoIterator<Item = Input>, asked_for: bool) {
        let now = self.clock(node);
        if let Some(frozen) = &mut self.nodes[node].frozen {
            return frozen.keep(inputs);
        }
        if self.nodes[node].core.is_some() {
            self.calls(node, asked_for);
        }
        let n = &mut self.nodes[node];
        let Some(core) = &mut n.core else { return };
        let due = n.batch.flushed + core.pace();
        for input in inputs {
            core.handle(now, input);
        }
        self.calling = None;
        if n.batch.open {
            return;
        }
        if due > self.now {
            n.batch.open = true;
            self.counters.batches += 1;
            let life = self.roll.life(node);
            return self.queue.push(due, Event::Flush(life));
        }
        self.flush(node);
    }

    /// The time of a busy core's next flush has come.
    pub(crate) fn flush_due(&mut self, life: Life) {
        if self.is_alive(life) {
            self.flush(life.node);
        }
    }

    fn flush(&mut self, node: Index) {
        let now = self.clock(node);
        self.nodes[node].batch = Batch { flushed: self.now, open: false };
        let Some(core) = &mut self.nodes[node].core else { return };
        self.calling = Some(node);
        core.flush(now);
        self.calling = None;
        while let Some(effect) = self.nodes[node].core.as_mut().and_then(Core::poll_effect) {
            self.effect(node, effect);
        }
        self.schedule_tick(node);
    }
}
