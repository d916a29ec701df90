//! What a node does to a peer that broke the protocol, as the mesh does: it closes the connection and takes none for a while, longer
//! each time. So an offence of a node that did nothing wrong costs more than a number.

use sinew_scheduler::time::{Span, Time};

use crate::queue::{Event, Index};
use crate::world::World;

/// The first refusal; each of one peer is twice as long as the one before.
const FIRST: Span = Span::ms(5_000);
/// The longest. The mesh's is five minutes, which is more than a run waits for its end.
const LONGEST: Span = Span::ms(40_000);

/// Who is refused by whom.
#[derive(Debug, Default)]
pub(crate) struct Bans(std::collections::BTreeMap<(Index, Index), (Time, u32)>);

impl Bans {
    /// Whether one of the two takes no connection with the other.
    pub(crate) fn part(&self, a: Index, b: Index, now: Time) -> bool {
        [(a, b), (b, a)].iter().any(|pair| self.0.get(pair).is_some_and(|(until, _)| *until > now))
    }

    /// A node that starts has forgotten whom it refused.
    pub(crate) fn forget(&mut self, node: Index) {
        self.0.retain(|(by, _), _| *by != node);
    }
}

impl World {
    /// A node refuses a peer from now on, for a while.
    pub(crate) fn ban(&mut self, by: Index, peer: Index) {
        let now = self.now;
        let (until, strikes) = self.links.bans.0.entry((by, peer)).or_default();
        let lasts = Span(FIRST.0 << (*strikes).min(8)).min(LONGEST);
        (*until, *strikes) = (now + lasts, strikes.saturating_add(1));
        let until = *until;
        self.counters.bans += 1;
        self.disconnect(by, peer, Span(0));
        self.queue.push(until + Span(1), Event::Connect { a: by, b: peer });
    }

    /// Whether one of these nodes refuses the other.
    #[must_use]
    pub fn is_banned(&self, a: &str, b: &str) -> bool {
        self.links.bans.part(self.index(a), self.index(b), self.now)
    }
}
