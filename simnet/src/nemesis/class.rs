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
    pub const ALL: [Self; 13] = [
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
        }
    }

    /// Whether it needs a node that lies.
    #[must_use]
    pub const fn is_byzantine(self) -> bool {
        matches!(self, Self::Equivocate | Self::FalseBid | Self::FalseResult | Self::Flood)
    }

    /// Whether it needs a link.
    #[must_use]
    pub const fn needs_peers(self) -> bool {
        matches!(self, Self::Partition | Self::OneWay | Self::Flap | Self::Drop)
    }

    /// Shortest and longest time that one strike is in force, ms.
    pub(crate) const fn lasting_ms(self) -> (u64, u64) {
        match self {
            // Around a lease's three seconds and a connection's ten.
            Self::Crash | Self::Partition | Self::OneWay => (300, 12_000),
            // Faster than anybody notices, up to just before a brain is missed.
            Self::Restart => (10, 300),
            Self::Flap => (2_000, 8_000),
            Self::Wipe => (200, 4_000),
            Self::FullDisk => (200, 5_000),
            Self::Drop => (1_000, 8_000),
            Self::Churn => (5_000, 60_000),
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
