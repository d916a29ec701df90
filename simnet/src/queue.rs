//! The event queue: what happens next, in order of time, and of arrival where times are equal.

use std::cmp::Reverse;

use dary_heap::QuaternaryHeap;
use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::ids::{JobId, NodeId};
use sinew_scheduler::io::{FetchId, Input, RunId};
use sinew_scheduler::time::{Span, Time};
use sinew_scheduler::wire::{Message, Topic};

/// What happens inside the models, unknown to any core.
#[derive(Debug)]
pub(crate) enum Model {
    /// A flapping link changes.
    Flap { a: Index, b: Index, number: u64, up: Span, down: Span },
    /// A gossip message arrives.
    Gossip { from: Index, to: Life, rumour: u64 },
    /// Heartbeats announce a gossip message.
    Announce { rumour: u64, round: u32 },
    /// A graft or a prune arrives.
    Control { from: Index, to: Life, topic: Topic, graft: bool },
    /// A heartbeat with work for the overlay.
    Beat(Life),
    /// A node under attack looks whether its gossip mesh could be better.
    Improve(Life),
    /// A dial for a message ends.
    Dialled { from: Life, to: Index },
    /// A connection made for a message may have become idle.
    Idle { a: Index, b: Index },
    /// The process of a node that left ends.
    Gone(Life),
}

/// A node's number in its world.
pub(crate) type Index = usize;

/// A node during one life: events for an earlier one are void.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) node: Index,
    pub(crate) incarnation: u32,
}

#[derive(Debug)]
pub(crate) enum Event {
    /// A frame arrives.
    Frame { from: Index, to: Life, messages: Vec<Message> },
    /// The core asked to be called.
    Tick(Life),
    /// The disk finished a write.
    Disk(Life),
    /// A busy core has collected inputs for long enough.
    Flush(Life),
    /// A task's time is up.
    TaskEnd { life: Life, run: RunId },
    /// A task that was stopped is gone.
    TaskGone { life: Life, run: RunId },
    /// The lease of a task is over whose daemon may stand still.
    Switch { life: Life, run: RunId },
    /// A fetch ends.
    Fetched { life: Life, id: FetchId },
    /// An entry was read from disk.
    Loaded { life: Life, job: JobId, to: NodeId, facts: Vec<Envelope> },
    /// A driver answers its core.
    Answered { life: Life, input: Box<Input> },
    /// Two nodes try to connect.
    Connect { a: Index, b: Index },
    /// A node notices that a connection is gone.
    Closed { life: Life, peer: Index },
    /// A cut has lasted as long as a connection survives.
    CutTimeout { a: Index, b: Index, cut: u64 },
    /// A model's own event.
    Model(Model),
}

/// Bits of a key that tell an event's place: so many events can wait at once, two to this power.
const PLACE_BITS: u32 = 26;
/// Bits that number the events: a day of ten million a second, and more.
const NUMBER_BITS: u32 = 64 - PLACE_BITS;

/// Events in order. The heap holds keys rather than the events, which are large and would be moved about: a key is the
/// time, the event's number, and its place, from the highest bit down. Four keys side by side are one look at memory, so that each
/// has four below it rather than two.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    heap: QuaternaryHeap<Reverse<u128>>,
    events: Vec<Option<Event>>,
    free: Vec<usize>,
    last: u64,
}

impl Queue {
    pub(crate) fn push(&mut self, at: Time, event: Event) {
        self.last += 1;
        let place = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() - 1
        });
        assert!(place >> PLACE_BITS == 0 && self.last >> NUMBER_BITS == 0, "too many events: {} wait", self.heap.len());
        self.events[place] = Some(event);
        let order = self.last << PLACE_BITS | place as u64;
        self.heap.push(Reverse(u128::from(at.0) << 64 | u128::from(order)));
    }

    pub(crate) fn next_at(&self) -> Option<Time> {
        self.heap.peek().map(|Reverse(key)| time_of(*key))
    }

    pub(crate) fn pop(&mut self) -> Option<(Time, Event)> {
        let Reverse(key) = self.heap.pop()?;
        let place = (key & ((1 << PLACE_BITS) - 1)) as usize;
        self.free.push(place);
        self.events[place].take().map(|event| (time_of(key), event))
    }
}

const fn time_of(key: u128) -> Time {
    Time((key >> 64) as u64)
}
