//! What was seen here lately, and when: adverts, jobs taken in, tasks started. For measuring how fast things spread and start;
//! nothing is decided by it.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use sinew_crdt_state::cbor;
use sinew_crdt_state::ids::JobId;
use sinew_scheduler::wire::Advert;

use crate::clock::unix_us;

/// Sightings of each kind that are kept: enough for a benchmark, nothing for a node's memory.
const KEPT: usize = 1_024;

/// A job, and unix microseconds.
pub type Sighting = (JobId, u64);

/// Sightings, oldest first in each list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Adverts published or heard.
    pub adverts: Vec<Sighting>,
    /// Jobs that this node was asked to take, and took: when they were handed to the core.
    pub submits: Vec<Sighting>,
    /// Tasks that the core started here.
    pub starts: Vec<Sighting>,
}

/// A list that forgets its beginning.
#[derive(Debug, Default)]
struct Ring(Mutex<VecDeque<Sighting>>);

impl Ring {
    fn push(&self, job: JobId, at_us: u64) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() == KEPT {
            seen.pop_front();
        }
        seen.push_back((job, at_us));
    }

    fn list(&self) -> Vec<Sighting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}

/// The daemon's notes.
#[derive(Debug, Default)]
pub struct Sightings {
    adverts: Ring,
    submits: Ring,
    starts: Ring,
}

impl Sightings {
    /// An advert came or goes, now.
    pub fn advert(&self, payload: &[u8]) {
        if let Ok(advert) = cbor::from_slice::<Advert>(payload) {
            self.adverts.push(advert.job, unix_us());
        }
    }

    /// A job was handed to the core at `at_us`, and the core took it.
    pub fn submit(&self, job: JobId, at_us: u64) {
        self.submits.push(job, at_us);
    }

    /// The core starts a task of a job, now.
    pub fn start(&self, job: JobId) {
        self.starts.push(job, unix_us());
    }

    /// What is remembered.
    #[must_use]
    pub fn seen(&self) -> Seen {
        Seen { adverts: self.adverts.list(), submits: self.submits.list(), starts: self.starts.list() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_stay() {
        let sightings = Sightings::default();
        for at in 0..KEPT as u64 + 3 {
            sightings.submit(JobId([7; 32]), at);
        }
        sightings.start(JobId([8; 32]));
        sightings.advert(b"no advert");
        let seen = sightings.seen();
        assert_eq!((seen.submits.len(), seen.submits[0].1, seen.starts[0].0), (KEPT, 3, JobId([8; 32])));
        assert!(seen.adverts.is_empty());
    }
}
