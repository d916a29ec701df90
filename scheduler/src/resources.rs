//! What this node has and has reserved (J3): a reservation is made whole before an award is claimed, or not at all.

use sinew_crdt_state::planted::{Bug, planted};
use sinew_crdt_state::spec::Resources;

/// Totals and what is free of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    total: Resources,
    free: Resources,
    /// Slots that may be reserved further, whatever they need.
    slots_free: u32,
    slots_max: u32,
}

/// Room for tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    /// Thousandths of cores.
    pub(crate) cpu_milli: u64,
    /// Bytes.
    pub(crate) memory_bytes: u64,
    /// Bytes.
    pub(crate) disk_bytes: u64,
}

/// Slots of `need` each that fit into so much.
pub(crate) fn slots_in(room: Room, need: Resources) -> u32 {
    // A task that asks for no CPU still takes a thread: count it as a hundredth of a core.
    let by_cpu = room.cpu_milli / u64::from(need.cpu_milli.max(10));
    let by_memory = room.memory_bytes.checked_div(need.memory_bytes).unwrap_or(u64::MAX);
    let by_disk = room.disk_bytes.checked_div(need.disk_bytes).unwrap_or(u64::MAX);
    u32::try_from(by_cpu.min(by_memory).min(by_disk)).unwrap_or(u32::MAX)
}

impl Pool {
    /// Everything free, for so many slots at most.
    #[must_use]
    pub const fn new(total: Resources, slots_max: u32) -> Self {
        Self { total, free: total, slots_free: slots_max, slots_max }
    }

    /// What is free.
    #[must_use]
    pub const fn free(&self) -> Resources {
        self.free
    }

    /// How many tasks of `need` fit now.
    #[must_use]
    pub fn slots(&self, need: Resources) -> u32 {
        let Resources { cpu_milli, memory_bytes, disk_bytes } = self.free;
        slots_in(Room { cpu_milli: cpu_milli.into(), memory_bytes, disk_bytes }, need).min(self.slots_free)
    }

    /// Reserves up to `wanted` slots of `need` each, and says how many.
    pub fn reserve(&mut self, need: Resources, wanted: u32) -> u32 {
        let slots = self.slots(need).min(wanted);
        let taken = if planted(Bug::DoubleReserve) { 0 } else { slots };
        self.free.cpu_milli -= need.cpu_milli.max(10) * taken;
        self.free.memory_bytes -= need.memory_bytes * u64::from(taken);
        self.free.disk_bytes -= need.disk_bytes * u64::from(taken);
        self.slots_free -= taken;
        slots
    }

    /// Gives back what [`Self::reserve`] took.
    pub fn release(&mut self, need: Resources, slots: u32) {
        let slots = if planted(Bug::DoubleReserve) { 0 } else { slots };
        self.free.cpu_milli += need.cpu_milli.max(10) * slots;
        self.free.memory_bytes += need.memory_bytes * u64::from(slots);
        self.free.disk_bytes += need.disk_bytes * u64::from(slots);
        self.slots_free += slots;
        assert!(
            self.free.cpu_milli <= self.total.cpu_milli
                && self.free.memory_bytes <= self.total.memory_bytes
                && self.free.disk_bytes <= self.total.disk_bytes
                && self.slots_free <= self.slots_max,
            "more was released than reserved"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_never_exceed_the_total_and_come_back() {
        let mut pool = Pool::new(Resources { cpu_milli: 2_000, memory_bytes: 100, disk_bytes: 0 }, 1_000);
        let task = Resources { cpu_milli: 500, memory_bytes: 30, disk_bytes: 0 };
        assert_eq!(pool.reserve(task, 10), 3, "memory binds");
        assert_eq!(pool.reserve(task, 1), 0);
        pool.release(task, 3);
        let light = Resources { cpu_milli: 0, memory_bytes: 0, disk_bytes: 0 };
        assert_eq!(pool.reserve(light, 1_000), 200, "even nothing counts as 10 thousandths");
        let mut few = Pool::new(Resources { cpu_milli: 2_000, memory_bytes: 100, disk_bytes: 100 }, 7);
        let large = Resources { disk_bytes: 40, ..light };
        assert_eq!((few.reserve(large, 3), few.slots(large)), (2, 0), "disk binds");
        few.release(large, 2);
        assert_eq!((few.reserve(light, 5), few.reserve(light, 5)), (5, 2), "no more slots than there may be");
        few.release(light, 7);
        assert_eq!(few.slots(light), 7);
    }
}
