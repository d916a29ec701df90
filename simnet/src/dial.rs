//! Who connects to whom: everybody to everybody in a small mesh, to some in a large one, and to anyone for whom there is a
//! message. A connection made for a message goes when it has been idle for a while.

use sinew_scheduler::time::Span;
use sinew_scheduler::wire::{Class, Message};

use crate::queue::{Event, Index, Model};
use crate::world::World;

/// Up to this many nodes, everybody keeps a connection to everybody.
const FULL_MESH_MAX: usize = 50;
/// Peers that each node of a larger mesh dials and keeps; as many dial it. Enough to stay connected through the loss of half.
const KEPT: usize = 12;
/// Peers that are full are passed over so many times: better one connection too many than none.
const TRIES: usize = 4;
/// A dial that failed so recently is not repeated for a message: as the mesh's first redial.
const JUST_FAILED: Span = Span::ms(100);
/// A connection that nobody asked to keep goes after this: as the mesh's.
const IDLE: Span = Span::ms(60_000);
/// A handshake takes so many.
pub(crate) const DIAL_ROUND_TRIPS: u64 = 2;

impl World {
    /// Nodes of a mesh of more than `full_mesh_max` keep connections to `kept` peers that they dial, and to those that dial
    /// them. Say so before nodes join.
    #[must_use]
    pub const fn connections(mut self, full_mesh_max: usize, kept: usize) -> Self {
        self.links.limits = (full_mesh_max, kept);
        self
    }

    /// How many connections a node has.
    #[must_use]
    pub fn connections_of(&self, name: &str) -> usize {
        self.links.peers(self.index(name)).count()
    }

    /// The peers that a node that just joined dials.
    pub(crate) fn choose_peers(&mut self, node: Index) -> Vec<Index> {
        let (full_mesh_max, kept) = self.links.limits;
        let mesh = self.nodes.len().max(self.links.expected);
        if mesh <= full_mesh_max || node <= kept {
            return (0..node).collect();
        }
        let mut chosen = std::collections::BTreeSet::new();
        while chosen.len() < kept {
            let mut peer = self.pick(node);
            for _ in 0..TRIES {
                if self.links.partners(peer).count() < 2 * kept {
                    break;
                }
                peer = self.pick(node);
            }
            chosen.insert(peer);
        }
        chosen.into_iter().collect()
    }

    /// Whether a node that no connection is kept to would take one for a message or a fetch.
    pub(crate) fn would_answer(&self, from: Index, to: Index) -> bool {
        let public = |n: Index| !self.nodes[n].setup.dials_out_only;
        let there = self.nodes[to].is_up() && !self.links.is_cut(from, to) && (public(from) || public(to));
        there && !self.links.are_partners(from, to) && !self.links.bans.part(from, to, self.now)
    }

    /// Sends once a connection is there, or never. A dial that just failed is not repeated.
    pub(crate) fn dial_for(&mut self, from: Index, to: Index, class: Class, messages: Vec<Message>) {
        let failed = self.links.failed.get(&(from, to));
        if failed.is_some_and(|at| self.now - *at < JUST_FAILED) {
            return;
        }
        let waiting = self.links.waiting.entry((from, to)).or_default();
        waiting.push((class, messages));
        if waiting.len() == 1 {
            self.counters.dials += 1;
            let wait = Span(DIAL_ROUND_TRIPS * self.round_trip(from, to).0);
            let life = self.roll.life(from);
            self.queue.push(self.now + wait, Event::Model(Model::Dialled { from: life, to }));
        }
    }

    pub(crate) fn dialled(&mut self, from: crate::queue::Life, to: Index) {
        let waiting = self.links.waiting.remove(&(from.node, to)).unwrap_or_default();
        if !self.is_alive(from) {
            return;
        }
        let from = from.node;
        self.try_connect(from, to);
        if !self.links.is_connected(from, to) {
            self.links.failed.insert((from, to), self.now);
            return;
        }
        self.links.failed.remove(&(from, to));
        if !self.links.are_partners(from, to) {
            let now = self.now;
            if self.links.make_casual(from, to, now) {
                self.queue.push(now + IDLE, Event::Model(Model::Idle { a: from, b: to }));
            }
        }
        for (class, messages) in waiting {
            self.send(from, to, class, messages);
        }
    }

    pub(crate) fn idle(&mut self, a: Index, b: Index) {
        let Some(used) = self.links.casual(a, b) else { return };
        if !self.links.is_connected(a, b) {
            self.links.end_casual(a, b);
        } else if self.now - used < IDLE {
            self.queue.push(used + IDLE, Event::Model(Model::Idle { a, b }));
        } else {
            self.links.end_casual(a, b);
            self.counters.idle_closed += 1;
            self.disconnect(a, b, Span(0));
        }
    }
}

/// What [`World::connections`] is unless set.
pub(crate) const LIMITS: (usize, usize) = (FULL_MESH_MAX, KEPT);

#[cfg(test)]
mod tests {
    use sinew_scheduler::time::Time;

    use super::*;
    use crate::units::seconds;

    #[test]
    fn a_message_makes_a_connection_and_idleness_ends_it() {
        let mut world = World::seed(1).connections(1, 1).nodes(["a", "b", "c", "d"]);
        let (from, to) = (0..4)
            .flat_map(|a| (a + 1..4).map(move |b| (a, b)))
            .find(|(a, b)| !world.links.is_connected(*a, *b))
            .expect("not everybody is connected");
        world.dial_for(from, to, Class::Bulk, vec![Message::WhoIs(Vec::new())]);
        assert!(!world.links.is_connected(from, to), "a dial takes time");
        world.run_for(seconds(1));
        assert!(world.links.is_connected(from, to) && world.counters.dials == 1);
        world.idle(from, to);
        assert!(world.links.is_connected(from, to), "it was used just now");
        world.links.make_casual(from, to, Time(0));
        world.run_for(IDLE);
        world.links.make_casual(from, to, Time(0));
        world.idle(from, to);
        assert!(!world.links.is_connected(from, to) && world.counters.idle_closed > 0);
    }

    #[test]
    fn a_dial_to_a_node_that_is_down_drops_what_waits() {
        let mut world = World::seed(2).connections(1, 1).nodes(["a", "b", "c", "d"]);
        let to = (1..4).find(|b| !world.links.is_connected(0, *b)).expect("not everybody is connected");
        world.kill(["a", "b", "c", "d"][to]);
        world.dial_for(0, to, Class::Bulk, vec![Message::WhoIs(Vec::new())]);
        world.run_for(Span::ms(20));
        assert!(world.links.waiting.is_empty() && !world.links.is_connected(0, to));
        world.dial_for(0, to, Class::Bulk, vec![Message::WhoIs(Vec::new())]);
        assert!(world.links.waiting.is_empty(), "it has just failed");
    }
}
