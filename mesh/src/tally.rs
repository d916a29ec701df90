//! Counts gossip as it comes off the wire, copies included: gossipsub tells of each message once only.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use libp2p::gossipsub::{DataTransform, Message, RawMessage, TopicHash};

/// Copies of gossip messages received since start, those of messages that were here already among them.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    copies: AtomicU64,
    bytes: AtomicU64,
}

impl Tally {
    /// How many copies, and how many bytes they had on the wire.
    pub(crate) fn read(&self) -> (u64, u64) {
        (self.copies.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

/// Passes everything on as it is. Gossipsub asks it before it looks for duplicates, so it sees every copy.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counting(pub(crate) Arc<Tally>);

impl DataTransform for Counting {
    fn inbound_transform(&self, raw: RawMessage) -> Result<Message, io::Error> {
        self.0.copies.fetch_add(1, Ordering::Relaxed);
        self.0.bytes.fetch_add(raw.raw_protobuf_len() as u64, Ordering::Relaxed);
        Ok(Message { source: raw.source, data: raw.data, sequence_number: raw.sequence_number, topic: raw.topic })
    }

    fn outbound_transform(&self, _: &TopicHash, data: Vec<u8>) -> Result<Vec<u8>, io::Error> {
        Ok(data)
    }
}
