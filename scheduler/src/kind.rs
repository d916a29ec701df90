//! What a message is, without what it says: for counting traffic. Nothing is decided by it.

use crate::wire::{Message, Topic};

/// What messages are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// Offers, bids and awards: who runs what.
    Claim,
    /// Tasks, their sources, results and copies.
    Work,
    /// Workers' leases, kept alive.
    Lease,
    /// Brain and stewards: replication, beats, elections, adoption.
    BrainSet,
    /// Facts sent on to those who may lack them.
    Facts,
    /// Anti-entropy: comparing ledgers and asking for what is missing.
    Sync,
    /// Greetings: cards and certificates.
    Peer,
    /// What nodes have free, told to their connections.
    Load,
    /// The failure detector.
    Swim,
    /// Adverts by gossip, counted by copy.
    Advert,
}

impl Family {
    /// Every family, in the order of reports.
    pub const ALL: [Self; 10] = [
        Self::Claim,
        Self::Work,
        Self::Lease,
        Self::BrainSet,
        Self::Facts,
        Self::Sync,
        Self::Peer,
        Self::Load,
        Self::Swim,
        Self::Advert,
    ];

    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Claim => "claim",
            Self::Work => "work",
            Self::Lease => "lease",
            Self::BrainSet => "brain_set",
            Self::Facts => "facts",
            Self::Sync => "sync",
            Self::Peer => "peer",
            Self::Load => "load",
            Self::Swim => "swim",
            Self::Advert => "advert",
        }
    }
}

macro_rules! kinds {
    ($($variant:ident $name:literal $family:ident)*) => {
        /// The kind of a message: its variant, or its gossip topic.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        #[expect(missing_docs, reason = "the messages of the same names say what they are")]
        pub enum Kind {
            $($variant,)*
            GossipAdvert,
        }

        impl Kind {
            /// Every kind, in the order of its number.
            pub const ALL: [Self; [$(Self::$variant),*].len() + 1] =
                [$(Self::$variant,)* Self::GossipAdvert];

            /// Its name in reports.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                    Self::GossipAdvert => "gossip advert",
                }
            }

            /// What it is for.
            #[must_use]
            pub const fn family(self) -> Family {
                match self {
                    $(Self::$variant => Family::$family,)*
                    Self::GossipAdvert => Family::Advert,
                }
            }
        }

        impl Message {
            /// Its kind.
            #[must_use]
            pub const fn kind(&self) -> Kind {
                match self {
                    $(Self::$variant { .. } => Kind::$variant,)*
                }
            }
        }
    };
}

kinds! {
    Offer "offer" Claim
    Bid "bid" Claim
    NoBid "no bid" Claim
    Interest "interest" Claim
    Award "award" Claim
    Decline "decline" Claim
    Assign "assign" Work
    Sources "sources" Work
    WantSources "want sources" Work
    Blocked "blocked" Work
    Fetching "fetching" Work
    Report "report" Work
    Settled "settled" Work
    Stop "stop" Work
    Release "release" Work
    Copy "copy" Work
    Copied "copied" Work
    WhoHolds "who holds" Work
    Holds "holds" Work
    Keep "keep" Work
    Kept "kept" Work
    Beat "beat" Lease
    BeatAck "beat ack" Lease
    Replicate "replicate" BrainSet
    Stored "stored" BrainSet
    Deposed "deposed" BrainSet
    SetBeat "set beat" BrainSet
    SetBeatAck "set beat ack" BrainSet
    Led "led" BrainSet
    NotLed "not led" BrainSet
    VoteRequest "vote request" BrainSet
    Willing "willing" BrainSet
    Vote "vote" BrainSet
    VoteRefused "vote refused" BrainSet
    Recall "recall" BrainSet
    Recalled "recalled" BrainSet
    Adopt "adopt" BrainSet
    Holding "holding" BrainSet
    Facts "facts" Facts
    Claims "claims" Sync
    Listings "listings" Sync
    Want "want" Sync
    Heads "heads" Sync
    WhoIs "who is" Peer
    Members "members" Peer
    Card "card" Peer
    Load "load" Load
    Swim "swim" Swim
}

impl Kind {
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Its number, below [`Self::COUNT`].
    #[must_use]
    pub const fn number(self) -> usize {
        self as usize
    }
}

impl From<Topic> for Kind {
    fn from(topic: Topic) -> Self {
        match topic {
            Topic::Advert => Self::GossipAdvert,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_numbered_named_apart_and_every_family_has_some() {
        let names: std::collections::BTreeSet<&str> = Kind::ALL.into_iter().map(Kind::name).collect();
        assert_eq!(names.len(), Kind::COUNT);
        for (number, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind.number(), number);
        }
        for family in Family::ALL {
            assert!(Kind::ALL.iter().any(|k| k.family() == family), "{family:?}");
        }
        assert_eq!(Message::Swim(Vec::new()).kind(), Kind::Swim);
        assert_eq!(Message::SetBeat { seq: 1, doubts: Vec::new(), mark: 0 }.kind().family(), Family::BrainSet);
    }
}
