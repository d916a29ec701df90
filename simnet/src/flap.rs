//! Links that go up and down by themselves, and what other models ask the queue for.

use sinew_scheduler::time::Span;

use crate::queue::{Event, Index, Model};
use crate::world::World;

impl World {
    /// A link goes down, stays so for `down`, is up for `up`, and so on until [`World::steady`].
    ///
    /// # Panics
    /// When either time is zero: the clock would stand still.
    pub fn flap(&mut self, a: &str, b: &str, up: Span, down: Span) {
        assert!(up.0 > 0 && down.0 > 0, "a link is up and down for some time each");
        let (a, b) = (self.index(a), self.index(b));
        self.say(a, format!("LINK to {b} FLAPS"));
        self.links.flap_last += 1;
        let number = self.links.flap_last;
        self.links.flaps.insert((a, b), number);
        self.flap_changes(a, b, number, up, down);
    }

    /// No link flaps any more; those that are down come up.
    pub fn steady(&mut self) {
        for (a, b) in std::mem::take(&mut self.links.flaps).into_keys() {
            self.mend(a, b);
            self.mend(b, a);
        }
    }

    fn flap_changes(&mut self, a: Index, b: Index, number: u64, up: Span, down: Span) {
        if self.links.flaps.get(&(a, b)) != Some(&number) {
            return;
        }
        let wait = if self.links.is_cut(a, b) {
            self.mend(a, b);
            self.mend(b, a);
            up
        } else {
            self.counters.flaps += 1;
            self.cut(a, b);
            self.cut(b, a);
            down
        };
        self.queue.push(self.now + wait, Event::Model(Model::Flap { a, b, number, up, down }));
    }

    pub(crate) fn model(&mut self, event: Model) {
        match event {
            Model::Flap { a, b, number, up, down } => self.flap_changes(a, b, number, up, down),
            Model::Gossip { from, to, rumour } => self.gossip_arrived(from, to, rumour),
            Model::Announce { rumour, round } => self.announce(rumour, round),
            Model::Control { from, to, topic, graft } => self.control_arrived(from, to, topic, graft),
            Model::Beat(life) => self.beat(life),
            Model::Improve(life) => self.improve(life),
            Model::Dialled { from, to } => self.dialled(from, to),
            Model::Idle { a, b } => self.idle(a, b),
            Model::Gone(life) => self.process_ends(life),
        }
    }
}
