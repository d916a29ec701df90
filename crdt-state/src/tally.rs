//! Counts of what costs most, for tests and benches: they hold still where clocks do not. Nothing is decided by them.
//!
//! Each thread counts for itself, so that a simulated mesh, which lives on one thread, and a daemon's core, which has one
//! of its own, count what is theirs.

use std::cell::Cell;

/// What this thread did since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Signatures made.
    pub signed: u64,
    /// Signatures asked to be checked, those that [`crate::identity::remember_signatures`] knows included.
    pub checked: u64,
    /// Facts merged into a ledger.
    pub facts: u64,
}

thread_local! {
    static TALLY: Cell<Tally> = const { Cell::new(Tally { signed: 0, checked: 0, facts: 0 }) };
}

/// The counts of this thread.
#[must_use]
pub fn tally() -> Tally {
    TALLY.get()
}

impl Tally {
    /// What was counted since `before`, an earlier state of the same counts.
    #[must_use]
    pub const fn since(self, before: Self) -> Self {
        Self {
            signed: self.signed - before.signed,
            checked: self.checked - before.checked,
            facts: self.facts - before.facts,
        }
    }
}

fn count(one: impl FnOnce(&mut Tally)) {
    let mut tally = TALLY.get();
    one(&mut tally);
    TALLY.set(tally);
}

pub(crate) fn signed() {
    count(|t| t.signed += 1);
}

pub(crate) fn checked() {
    count(|t| t.checked += 1);
}

pub(crate) fn merged() {
    count(|t| t.facts += 1);
}
