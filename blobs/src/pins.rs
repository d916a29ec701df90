//! Temporary tags: keep a blob from collection while somebody holds the guard. They live in memory only, on our side of
//! the file store, so they survive the store being reopened after a failure.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use sinew_crdt_state::ids::Hash;

use crate::store::Format;

type Counts = HashMap<(Hash, Format), usize>;

/// All temporary tags of one store.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pins(Arc<Mutex<Counts>>);

impl Pins {
    fn with<T>(&self, f: impl FnOnce(&mut Counts) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Pins `hash`. A caller that pins an existing, unreferenced blob must hold off collection meanwhile.
    pub(crate) fn pin(&self, hash: Hash, format: Format) -> TempTag {
        self.with(|counts| *counts.entry((hash, format)).or_insert(0) += 1);
        TempTag { hash, format, pins: self.clone() }
    }

    pub(crate) fn list(&self) -> Vec<(Hash, Format)> {
        self.with(|counts| counts.keys().copied().collect())
    }
}

/// Keeps a blob (and, for a hash sequence, its children) from being collected until dropped.
#[derive(Debug)]
#[must_use = "dropping it at once lets the blob be collected"]
pub struct TempTag {
    hash: Hash,
    format: Format,
    pins: Pins,
}

impl TempTag {
    /// The blob held.
    #[must_use]
    pub fn hash(&self) -> Hash {
        self.hash
    }

    /// Whether its children are held too.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }
}

impl Clone for TempTag {
    fn clone(&self) -> Self {
        self.pins.pin(self.hash, self.format)
    }
}

impl Drop for TempTag {
    fn drop(&mut self) {
        let key = (self.hash, self.format);
        self.pins.with(|counts| {
            if let Some(count) = counts.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&key);
                }
            }
        });
    }
}
