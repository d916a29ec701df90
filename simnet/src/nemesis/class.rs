//! The classes of faults and their names.

use std::fmt;
use std::str::FromStr;

/// A class of faults that can be switched on by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A process dies and comes back seconds later; what was not synced may be lost.
    Crash,
    /// A process dies and is there again at once.
    Restart,
    /// The mesh falls into two halves.
    Partition,
    /// One direction of one link is dead.
    OneWay,
    /// A link goes up and down around the length of a lease.
    Flap,
    /// A node loses its disk. One disk at a time: the next goes only once what was on the last one is there again, and none
    /// goes that a job rests on alone by its own terms: see `recovery`.
    Wipe,
    /// A disk refuses writes.
    FullDisk,
    /// Frames are lost by chance.
    Drop,
    /// Nodes leave and come back, at the rate of the run's churn.
    Churn,
    /// A liar tells two nodes two different things about the same.
    Equivocate,
    /// A liar bids slots that it has not got.
    FalseBid,
    /// A liar reports tasks that others were awarded.
    FalseResult,
    /// A liar sends hundreds of messages that mean nothing.
    Flood,
    /// A disk takes its time over each write.
    SlowDisk,
    /// A node's date jumps by up to 25 minutes and its clocks run up to 1 % off.
    Clock,
    /// Gossip messages arrive twice.
    Duplicate,
    /// Messages overtake each other, but for those of one stream.
    Reorder,
    /// Links carry little.
    Bandwidth,
    /// A machine, or its daemon alone, stands still and goes on.
    Pause,
    /// Some nodes can only dial out, so that no two of them have a connection.
    Nat,
    /// A process dies before, in or just after a write.
    CrashAtWrite,
    /// A process dies in a write of which a part stays.
    TornWrite,
    /// A disk calls written what it then loses in a crash. One node per run, as with [`Self::Wipe`].
    LostFsync,
    /// Liars pass on no gossip.
    Censor,
    /// Liars hold every slot of one node's gossip mesh, and keep from it and of it what they can.
    Eclipse,
    /// A sync fails; what it was to write is written again elsewhere, half a second later.
    FailedSync,
    /// A disk does not answer, and programs that write files do not end.
    HungDisk,
    /// A node dies, and some of what was on its disk is no longer what was written. It notices when it starts: one disk at a time,
    /// as with [`Self::Wipe`].
    BitRot,
    /// A node comes back on a copy of its disk of some seconds ago, as from a backup. One disk at a time, as with [`Self::Wipe`].
    Rollback,
    /// A copy of a node runs in its place for a while, from its disk of some seconds ago; then it is there again itself.
    Clone,
    /// A node is heard by everybody and hears nobody.
    Deaf,
    /// A liar takes tasks, keeps its leases, and begins none of them, then or later.
    Hog,
    /// A node leaves in good order and comes back.
    Leave,
    /// One node's links get longer, more so one way than the other.
    Distance,
}

/// A name that is no class of faults.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown fault `{given}`: known are {known}, and `all`, `honest`, `byzantine`, `none`")]
pub struct UnknownClass {
    given: String,
    known: String,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 34] = [
        Self::Crash,
        Self::Restart,
        Self::Partition,
        Self::OneWay,
        Self::Flap,
        Self::Wipe,
        Self::FullDisk,
        Self::Drop,
        Self::Churn,
        Self::Equivocate,
        Self::FalseBid,
        Self::FalseResult,
        Self::Flood,
        Self::SlowDisk,
        Self::Clock,
        Self::Duplicate,
        Self::Reorder,
        Self::Bandwidth,
        Self::Pause,
        Self::Nat,
        Self::CrashAtWrite,
        Self::TornWrite,
        Self::LostFsync,
        Self::Censor,
        Self::Eclipse,
        Self::FailedSync,
        Self::HungDisk,
        Self::BitRot,
        Self::Rollback,
        Self::Clone,
        Self::Deaf,
        Self::Hog,
        Self::Leave,
        Self::Distance,
    ];

    /// Its name on the command line and in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::Restart => "restart",
            Self::Partition => "partition",
            Self::OneWay => "one-way",
            Self::Flap => "flap",
            Self::Wipe => "wipe",
            Self::FullDisk => "full-disk",
            Self::Drop => "drop",
            Self::Churn => "churn",
            Self::Equivocate => "equivocate",
            Self::FalseBid => "false-bid",
            Self::FalseResult => "false-result",
            Self::Flood => "flood",
            Self::SlowDisk => "slow-disk",
            Self::Clock => "clock",
            Self::Duplicate => "duplicate",
            Self::Reorder => "reorder",
            Self::Bandwidth => "bandwidth",
            Self::Pause => "pause",
            Self::Nat => "nat",
            Self::CrashAtWrite => "crash-at-write",
            Self::TornWrite => "torn-write",
            Self::LostFsync => "lost-fsync",
            Self::Censor => "censor",
            Self::Eclipse => "eclipse",
            Self::FailedSync => "failed-sync",
            Self::HungDisk => "hung-disk",
            Self::BitRot => "bit-rot",
            Self::Rollback => "rollback",
            Self::Clone => "clone",
            Self::Deaf => "deaf",
            Self::Hog => "hog",
            Self::Leave => "leave",
            Self::Distance => "distance",
        }
    }

    /// Whether it needs a node that lies.
    #[must_use]
    pub const fn is_byzantine(self) -> bool {
        self.is_said_at_once() || matches!(self, Self::Censor | Self::Eclipse | Self::Hog)
    }

    /// Whether it is over as soon as it is said.
    pub(crate) const fn is_said_at_once(self) -> bool {
        matches!(self, Self::Equivocate | Self::FalseBid | Self::FalseResult | Self::Flood)
    }

    /// Whether it needs a link.
    #[must_use]
    pub const fn needs_peers(self) -> bool {
        matches!(
            self,
            Self::Partition
                | Self::OneWay
                | Self::Deaf
                | Self::Flap
                | Self::Drop
                | Self::Duplicate
                | Self::Reorder
                | Self::Bandwidth
                | Self::Nat
                | Self::Distance
        )
    }

    /// Shortest and longest time that one strike is in force, ms.
    pub(crate) const fn lasting_ms(self) -> (u64, u64) {
        match self {
            // Around a lease's three seconds and a connection's ten.
            Self::Crash | Self::Partition | Self::OneWay => (300, 12_000),
            // Until after a submit has been given up.
            Self::Deaf => (1_000, 20_000),
            // Faster than anybody notices, up to just before a brain is missed.
            Self::Restart => (10, 300),
            Self::Flap => (2_000, 8_000),
            // From before its programs have ended to long after it is gone.
            Self::Leave => (500, 12_000),
            // From shorter than anybody measures to long enough for a job.
            Self::Distance => (1_000, 15_000),
            Self::Wipe | Self::BitRot | Self::Rollback => (200, 4_000),
            Self::FailedSync => (500, 3_000),
            // From less than anybody notices to long after it was noticed.
            Self::HungDisk => (1_000, 15_000),
            // The copy is started twice in it.
            Self::Clone => (2_000, 15_000),
            Self::FullDisk => (200, 5_000),
            Self::Drop => (1_000, 8_000),
            Self::Churn => (5_000, 60_000),
            Self::SlowDisk | Self::Duplicate | Self::Reorder | Self::Bandwidth => (1_000, 8_000),
            Self::Clock => (1_000, 15_000),
            // From less than a lease to more than a connection lives.
            Self::Pause => (300, 12_000),
            Self::Nat => (2_000, 12_000),
            // Some of it goes by until the write comes.
            Self::CrashAtWrite | Self::TornWrite => (1_000, 6_000),
            Self::LostFsync => (2_000, 8_000),
            // Long enough to be given something.
            Self::Hog => (2_000, 15_000),
            // Several heartbeats, and several adverts.
            Self::Censor | Self::Eclipse => (3_000, 15_000),
            // Said at once.
            Self::Equivocate | Self::FalseBid | Self::FalseResult | Self::Flood => (1, 1),
        }
    }

    /// Its place in [`Self::ALL`].
    pub(crate) const fn order(self) -> u32 {
        self as u32
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Class {
    type Err = UnknownClass;

    fn from_str(text: &str) -> Result<Self, UnknownClass> {
        Self::ALL
            .into_iter()
            .find(|c| c.name() == text)
            .ok_or_else(|| UnknownClass { given: text.to_owned(), known: Self::ALL.map(Self::name).join(", ") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_classes_and_unknown_ones_list_the_known() {
        for (number, class) in Class::ALL.into_iter().enumerate() {
            assert_eq!(class.name().parse(), Ok(class));
            assert_eq!(class.order() as usize, number);
        }
        let error = "crsh".parse::<Class>().unwrap_err().to_string();
        assert!(error.contains("`crsh`") && error.contains("partition"), "{error}");
    }
}
