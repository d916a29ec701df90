//! Machines that stand still: a laptop that sleeps, a virtual machine that is moved. Nothing is lost, everything is late. And daemons
//! that do so alone, stopped or swapped out, while their tasks run on.

use sinew_scheduler::io::{Input, RunId};
use sinew_scheduler::time::{Span, Time};

use crate::exec::Stopped;
use crate::queue::{Event, Index, Model};
use crate::stop::KILL_MS_MAX;
use crate::world::World;

/// A peer that says nothing for so long has its connections closed: as QUIC's default idle timeout.
const CONNECTION_SURVIVES: Span = Span::ms(10_000);

/// What programs do on a machine that has just gone on, before they are ended because their leases are over, cannot be helped.
const WAKING: Span = Span::ms(KILL_MS_MAX + 1);

/// A machine that stands still, or a daemon, and what reached it meanwhile.
#[derive(Debug)]
pub(crate) struct Frozen {
    pub(crate) since: Time,
    /// Whether its tasks go on.
    pub(crate) daemon_alone: bool,
    events: Vec<Event>,
    /// What the core would have been told.
    inputs: Vec<Input>,
}

/// A time in which a machine stood still.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pause {
    node: Index,
    from: Time,
    to: Time,
    /// Until when what still runs there is excused.
    helpless: Time,
}

impl Frozen {
    /// Keeps what the core is told for later.
    pub(crate) fn keep(&mut self, inputs: impl IntoIterator<Item = Input>) {
        self.inputs.extend(inputs);
    }

    /// The time in which it stood still.
    pub(crate) fn until(&self, node: Index, to: Time) -> Pause {
        Pause { node, from: self.since, to, helpless: to + WAKING }
    }

    /// Whether anything reached it.
    pub(crate) fn missed_something(&self) -> bool {
        !self.events.is_empty() || !self.inputs.is_empty()
    }
}

impl World {
    /// A machine stands still, its tasks too, until [`World::resume`]; a task that falls due meanwhile ends right then.
    pub fn pause(&mut self, name: &str) {
        self.counters.pauses += 1;
        self.freeze(name, false);
    }

    /// A daemon stands still until [`World::resume`], and its tasks run on: it is stopped, swapped out, or in a debugger.
    pub fn stall(&mut self, name: &str) {
        self.counters.stalls += 1;
        self.freeze(name, true);
        self.arm_switch(self.index(name));
    }

    fn freeze(&mut self, name: &str, daemon_alone: bool) {
        let node = self.index(name);
        assert!(self.nodes[node].is_up(), "{name} is down");
        self.say(node, if daemon_alone { "STALLED" } else { "PAUSED" }.to_owned());
        let frozen = Frozen { since: self.now, daemon_alone, events: Vec::new(), inputs: Vec::new() };
        assert!(self.nodes[node].frozen.replace(frozen).is_none(), "{name} is paused already");
        self.standing_still += 1;
    }

    /// Whether a daemon stands still alone.
    pub(crate) fn is_stalled(&self, node: Index) -> bool {
        self.nodes[node].frozen.as_ref().is_some_and(|f| f.daemon_alone)
    }

    /// A machine or a daemon goes on; whatever came in or fell due meanwhile happens now.
    pub fn resume(&mut self, name: &str) {
        let node = self.index(name);
        let frozen = self.nodes[node].frozen.take().expect("only a paused node goes on");
        self.standing_still -= 1;
        self.say(node, "RESUMED".to_owned());
        if !frozen.daemon_alone {
            self.pauses.push(frozen.until(node, self.now));
        }
        if self.now - frozen.since >= CONNECTION_SURVIVES {
            for peer in self.links.peers(node).collect::<Vec<_>>() {
                self.disconnect(node, peer, Span(0));
            }
        }
        // Whoever dialled it meanwhile got no answer.
        for peer in self.links.partners(node).collect::<Vec<_>>() {
            if !self.links.is_connected(node, peer) {
                self.connect_soon(node, peer, false);
            }
        }
        if !frozen.inputs.is_empty() {
            self.inputs(node, frozen.inputs);
        }
        for event in frozen.events {
            self.queue.push(self.now, event);
        }
        // The tick may be among those that were missed.
        self.roll.forget_ticks(node);
        self.schedule_tick(node);
    }

    /// Whether a machine does nothing, or has only just gone on and not yet made up for what it missed.
    pub(crate) fn stands_still(&self, node: Index) -> bool {
        let now = self.now;
        self.nodes[node].frozen.as_ref().is_some_and(|f| !f.daemon_alone)
            || self.pauses.iter().rev().take_while(|p| p.to == now).any(|p| p.node == node)
    }

    /// Hands the event back, unless it is for a machine that stands still.
    pub(crate) fn unless_frozen(&mut self, event: Event) -> Option<Event> {
        if self.standing_still == 0 {
            return Some(event);
        }
        let node = match &event {
            Event::Frame { to, .. } => to.node,
            Event::Model(Model::Gossip { to, .. } | Model::Control { to, .. }) => to.node,
            Event::Model(Model::Beat(life) | Model::Improve(life) | Model::Dialled { from: life, .. }) => life.node,
            Event::Tick(life) | Event::Disk(life) | Event::Flush(life) => life.node,
            Event::TaskEnd { life, .. } | Event::TaskGone { life, .. } | Event::Switch { life, .. } => life.node,
            Event::Fetched { life, .. } | Event::Answered { life, .. } => life.node,
            Event::Loaded { life, .. } | Event::Closed { life, .. } => life.node,
            Event::Connect { a, b } => *if self.nodes[*a].frozen.is_some() { a } else { b },
            Event::CutTimeout { .. } | Event::Model(_) => return Some(event),
        };
        if self.is_stalled(node) {
            match &event {
                Event::TaskGone { .. } | Event::Switch { .. } => return Some(event),
                Event::TaskEnd { life, run } if self.is_alive(*life) => self.ended_unseen(node, *run),
                _ => {}
            }
        }
        match &mut self.nodes[node].frozen {
            Some(frozen) => {
                frozen.events.push(event);
                None
            }
            None => Some(event),
        }
    }

    /// A program ends, and its daemon does not see it.
    fn ended_unseen(&mut self, node: Index, run: RunId) {
        if let Some(running) = self.nodes[node].runs.get(&run) {
            self.executions[running.execution].end.get_or_insert((self.now, Stopped::Done));
        }
    }

    /// Whether both nodes did something at once at some time from `from` to `to`.
    pub(crate) fn both_went_on(&self, a: Index, b: Index, from: Time, to: Time) -> bool {
        let mut at = from;
        let mut pauses: Vec<&Pause> = self.pauses.iter().filter(|p| p.node == a || p.node == b).collect();
        pauses.sort_by_key(|p| p.from);
        for pause in pauses {
            if pause.from > at {
                break;
            }
            at = at.max(pause.helpless);
        }
        at < to
    }
}
