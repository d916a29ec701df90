//! Who is who: what nearly every event asks about nodes, kept apart from the nodes, which are large and far apart in memory.

use sinew_crdt_state::ids::NodeId;
use sinew_scheduler::time::Time;

use crate::lookup::Lookup;
use crate::queue::{Index, Life};

/// A node's process as the event queue sees it.
#[derive(Debug, Default)]
struct Pulse {
    /// Counts up with every start and every end.
    incarnation: u32,
    /// The tick that counts; others are leftovers.
    tick_at: Option<Time>,
    /// When its core wants to be called, as it said when it was called last.
    due_at: Time,
}

/// What a tick is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ticked {
    /// Nothing: it was for an earlier life, or an earlier one came in between.
    Void,
    /// The core is to be called.
    Due,
    /// The core has since asked to be called later: another tick is needed then.
    Later(Time),
}

#[derive(Debug, Default)]
pub(crate) struct Roll {
    ids: Vec<NodeId>,
    pulses: Vec<Pulse>,
    /// By the first eight bytes of the id.
    by_id: Lookup<Index>,
}

impl Roll {
    /// The next node.
    ///
    /// # Panics
    /// When an id begins as another one's does, which chance does not bring about.
    pub(crate) fn add(&mut self, id: NodeId) -> Index {
        let node = self.ids.len();
        let taken = self.by_id.insert(short(id), node);
        assert!(taken.is_none(), "two nodes with ids that begin with the same eight bytes");
        self.ids.push(id);
        self.pulses.push(Pulse::default());
        node
    }

    pub(crate) fn id(&self, node: Index) -> NodeId {
        self.ids[node]
    }

    pub(crate) fn index_of(&self, id: NodeId) -> Option<Index> {
        let node = self.by_id.get(&short(id)).copied();
        debug_assert!(node.is_none_or(|node| self.ids[node] == id), "no id begins as another one's does");
        node
    }

    pub(crate) fn life(&self, node: Index) -> Life {
        Life { node, incarnation: self.pulses[node].incarnation }
    }

    pub(crate) fn is_current(&self, life: Life) -> bool {
        self.pulses[life.node].incarnation == life.incarnation
    }

    /// What is meant for the node as it was is void from here on.
    pub(crate) fn begin_life(&mut self, node: Index) -> u32 {
        let pulse = &mut self.pulses[node];
        pulse.tick_at = None;
        pulse.incarnation += 1;
        pulse.incarnation
    }

    /// Its core wants to be called then. Returns whether a tick must be put into the queue: one that is there already, and comes
    /// no later, will look again.
    pub(crate) fn call_at(&mut self, node: Index, at: Time, now: Time) -> bool {
        let pulse = &mut self.pulses[node];
        pulse.due_at = at;
        let needed = pulse.tick_at.is_none_or(|tick| at < tick || tick <= now);
        if needed {
            pulse.tick_at = Some(at);
        }
        needed
    }

    /// A tick comes out of the queue: what to do about it.
    pub(crate) fn ticked(&mut self, life: Life, now: Time) -> Ticked {
        let pulse = &mut self.pulses[life.node];
        if pulse.incarnation != life.incarnation || pulse.tick_at != Some(now) {
            return Ticked::Void;
        }
        let due = pulse.due_at <= now;
        pulse.tick_at = (!due).then_some(pulse.due_at);
        if due { Ticked::Due } else { Ticked::Later(pulse.due_at) }
    }

    /// Its ticks were lost: the next time that its core wants to be called, another is needed.
    pub(crate) fn forget_ticks(&mut self, node: Index) {
        self.pulses[node].tick_at = None;
    }
}

fn short(id: NodeId) -> u64 {
    id.0.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}
