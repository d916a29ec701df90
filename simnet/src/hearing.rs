//! When which node had which advert first: how gossip spreads.

use sinew_crdt_state::cbor;
use sinew_crdt_state::ids::JobId;
use sinew_scheduler::time::Time;
use sinew_scheduler::wire::{Advert, Topic};

use crate::queue::Index;
use crate::world::World;

/// An advert at a node: published there or come from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// When.
    pub at: Time,
    /// Where, by number of joining.
    pub node: usize,
    /// Whose job it tells of.
    pub job: JobId,
}

impl World {
    /// From now on it is noted when each advert reaches each node.
    pub fn note_adverts(&mut self) {
        self.heard.get_or_insert_default();
    }

    /// What was noted, in order of time. A job that waits is advertised again and again.
    #[must_use]
    pub fn adverts_heard(&self) -> &[Heard] {
        self.heard.as_deref().unwrap_or_default()
    }

    pub(crate) fn note_advert(&mut self, node: Index, topic: Topic, payload: &[u8]) {
        let Some(heard) = &mut self.heard else { return };
        if topic == Topic::Advert
            && let Ok(advert) = cbor::from_slice::<Advert>(payload)
        {
            heard.push(Heard { at: self.now, node, job: advert.job });
        }
    }
}
