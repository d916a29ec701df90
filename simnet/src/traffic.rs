//! What nodes sent, by kind: messages and bytes.
//!
//! Direct messages count when they go out on a connection, gossip for every copy from one node to the next. Not counted:
//! handshakes, acknowledgements of the transport, and gossipsub's own control messages (grafts, prunes, announcements), which
//! [`crate::Counters`] has by number.

use std::fmt;

use sinew_crdt_state::cbor;
use sinew_scheduler::kind::{Family, Kind};
use sinew_scheduler::wire::Message;

/// Messages, and the bytes in them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    /// How many.
    pub messages: u64,
    /// Their bytes as encoded; for gossip, with what gossipsub adds.
    pub bytes: u64,
}

impl std::ops::AddAssign for Sent {
    fn add_assign(&mut self, other: Self) {
        self.messages += other.messages;
        self.bytes += other.bytes;
    }
}

/// Traffic by kind.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Traffic([Sent; Kind::COUNT]);

impl Default for Traffic {
    fn default() -> Self {
        Self([Sent::default(); Kind::COUNT])
    }
}

impl fmt::Debug for Traffic {
    /// What there was, by name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.kinds().map(|(kind, sent)| (kind.name(), sent.messages))).finish()
    }
}

impl Traffic {
    /// What was sent of a kind.
    #[must_use]
    pub const fn of(&self, kind: Kind) -> Sent {
        self.0[kind.number()]
    }

    /// The kinds that were sent at all.
    pub fn kinds(&self) -> impl Iterator<Item = (Kind, Sent)> {
        Kind::ALL.into_iter().map(|kind| (kind, self.of(kind))).filter(|(_, sent)| sent.messages > 0)
    }

    /// What was sent of a family.
    #[must_use]
    pub fn family(&self, family: Family) -> Sent {
        self.sum(|kind| kind.family() == family)
    }

    /// Everything.
    #[must_use]
    pub fn total(&self) -> Sent {
        self.sum(|_| true)
    }

    fn sum(&self, wanted: impl Fn(Kind) -> bool) -> Sent {
        let mut sum = Sent::default();
        for kind in Kind::ALL.into_iter().filter(|kind| wanted(*kind)) {
            sum += self.of(kind);
        }
        sum
    }

    /// What was sent since `before`, an earlier state of the same counts.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let mut since = *self;
        for (sent, before) in since.0.iter_mut().zip(&before.0) {
            sent.messages -= before.messages;
            sent.bytes -= before.bytes;
        }
        since
    }

    pub(crate) fn count(&mut self, kind: Kind, bytes: u64) {
        self.0[kind.number()] += Sent { messages: 1, bytes };
    }

    /// Encodes messages as one frame, in place of what `frame` holds, and counts each with its own bytes.
    pub(crate) fn encode(&mut self, messages: &[Message], frame: &mut Vec<u8>) {
        frame.clear();
        array_head(messages.len(), frame);
        for message in messages {
            let begin = frame.len();
            cbor::append(message, frame);
            self.count(message.kind(), (frame.len() - begin) as u64);
        }
    }
}

/// How CBOR begins an array of so many items (RFC 8949, 3).
fn array_head(len: usize, head: &mut Vec<u8>) {
    match (u8::try_from(len), u16::try_from(len)) {
        (Ok(len @ 0..=23), _) => head.push(0x80 | len),
        (Ok(len), _) => head.extend([0x98, len]),
        (_, Ok(len)) => {
            head.push(0x99);
            head.extend(len.to_be_bytes());
        }
        _ => {
            head.push(0x9b);
            head.extend((len as u64).to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame made message by message is the one that the daemon makes at once.
    #[test]
    fn frames_are_those_of_the_daemon_and_every_byte_is_some_message_s() {
        for len in [1_u64, 2, 23, 24, 255, 256, 300] {
            let messages: Vec<Message> = (0..len)
                .map(|seq| {
                    if seq % 2 == 0 {
                        Message::SetBeat { seq, doubts: Vec::new(), mark: 0 }
                    } else {
                        Message::WhoIs(Vec::new())
                    }
                })
                .collect();
            let mut traffic = Traffic::default();
            let mut frame = vec![7; 9];
            traffic.encode(&messages, &mut frame);
            assert_eq!(frame, cbor::to_vec(&messages), "{len}");
            let mut head = Vec::new();
            array_head(messages.len(), &mut head);
            let head = head.len() as u64;
            assert_eq!(traffic.total(), Sent { messages: len, bytes: frame.len() as u64 - head });
            assert_eq!(traffic.of(Kind::SetBeat).messages, len.div_ceil(2));
            assert_eq!(traffic.family(Family::Peer).messages, len / 2);
        }
    }

    #[test]
    fn what_was_sent_since_then_is_the_difference() {
        let mut traffic = Traffic::default();
        traffic.count(Kind::Swim, 40);
        let before = traffic;
        traffic.count(Kind::Swim, 50);
        traffic.count(Kind::GossipAdvert, 300);
        let since = traffic.since(&before);
        assert_eq!(since.kinds().map(|(kind, _)| kind).collect::<Vec<_>>(), [Kind::Swim, Kind::GossipAdvert]);
        assert_eq!(since.total(), Sent { messages: 2, bytes: 350 });
        assert_eq!(format!("{since:?}"), r#"{"swim": 1, "gossip advert": 1}"#);
    }
}
