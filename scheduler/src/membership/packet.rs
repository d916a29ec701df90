//! What membership messages are made of: identities, and the bytes of one packet.
//!
//! Fixed-width big-endian fields, so the size of every packet follows from its count of updates and nothing has to be
//! trusted to be short. Says nothing about whether a well-formed packet may be believed: that is `screen`'s part.

use bytes::{Buf, BufMut};
use foca::{Header, Member, Message, State};
use sinew_crdt_state::ids::NodeId;

/// Longest packet made or taken. Packets travel in streams, not in single datagrams, so the MTU does not bind; this
/// leaves room for the roughly 80 members that a newcomer is told of at once.
pub(super) const PACKET_MAX: usize = 4096;

/// First byte of every packet. Another layout gets another number and is refused here instead of misread.
const VERSION: u8 = 1;

/// Bytes of one encoded [`Identity`].
const IDENTITY_LEN: usize = NodeId::LEN + 8 + 4 + 1;

/// Bytes of one encoded member update: its identity, foca's refutation counter and the state.
const MEMBER_LEN: usize = IDENTITY_LEN + 2 + 1;

/// Why bytes are not a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// The bytes end inside a field.
    #[error("the packet ends early")]
    Truncated,
    /// Bytes follow the last announced update.
    #[error("{0} bytes follow the packet")]
    Trailing(usize),
    /// Made by a layout this version does not know.
    #[error("packet layout {0} is not known here")]
    Version(u8),
    /// No message has this number.
    #[error("{0} is not a message kind")]
    Kind(u8),
    /// No member state, or flag, has this number.
    #[error("{0} is not a member state")]
    State(u8),
    /// The item does not fit into what is left of the packet being written.
    #[error("no room left in the packet")]
    Full,
}

impl From<bytes::TryGetError> for PacketError {
    fn from(_: bytes::TryGetError) -> Self {
        Self::Truncated
    }
}

/// One life of a node in the mesh. Of two identities of a node the greater wins: field order is the order of precedence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Identity {
    pub(super) node: NodeId,
    /// The daemon run, as given to `Membership::new`.
    pub(super) incarnation: u64,
    /// Counts how often this run came back after the mesh had given it up: a mesh never takes back an identity.
    pub(super) renewal: u32,
    /// Set for the last identity of a run, the one that says goodbye. Part of the identity so that everyone who hears
    /// of the end also hears that it was wanted.
    pub(super) left: bool,
}

impl Identity {
    /// Stands for a node whose current identity is not known. Only an `Announce` may be addressed to it.
    pub(super) const fn unknown(node: NodeId) -> Self {
        Self { node, incarnation: 0, renewal: 0, left: false }
    }

    /// The least identity that wins against this one, still in the mesh.
    pub(super) fn successor(&self) -> Option<Self> {
        let (incarnation, renewal) = match self.renewal.checked_add(1) {
            Some(renewal) => (self.incarnation, renewal),
            None => (self.incarnation.checked_add(1)?, 0),
        };
        Some(Self { node: self.node, incarnation, renewal, left: false })
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.node.as_bytes());
        out.put_u64(self.incarnation);
        out.put_u32(self.renewal);
        out.put_u8(u8::from(self.left));
    }

    fn read(buf: &mut impl Buf) -> Result<Self, PacketError> {
        let mut node = [0; NodeId::LEN];
        buf.try_copy_to_slice(&mut node)?;
        let incarnation = buf.try_get_u64()?;
        let renewal = buf.try_get_u32()?;
        let left = match buf.try_get_u8()? {
            0 => false,
            1 => true,
            other => return Err(PacketError::State(other)),
        };
        Ok(Self { node: NodeId(node), incarnation, renewal, left })
    }
}

impl foca::Identity for Identity {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        self.successor()
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self > adversary
    }
}

/// One whole packet, outside foca's hands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) header: Header<Identity>,
    pub(super) updates: Vec<Member<Identity>>,
}

impl Packet {
    /// Reads exactly one packet from `bytes`.
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, PacketError> {
        let header = read_header(&mut bytes)?;
        let mut updates = Vec::new();
        if !bytes.is_empty() {
            let count = usize::from(bytes.try_get_u16()?);
            // Before anything is reserved: the count is a claim, the bytes are not.
            if bytes.len() < count * MEMBER_LEN {
                return Err(PacketError::Truncated);
            }
            updates.reserve_exact(count);
            for _ in 0..count {
                updates.push(read_member(&mut bytes)?);
            }
        }
        if bytes.is_empty() { Ok(Self { header, updates }) } else { Err(PacketError::Trailing(bytes.len())) }
    }

    /// The bytes that [`Self::parse`] and foca read.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut out = header_bytes(&self.header);
        if let Ok(count @ 1..) = u16::try_from(self.updates.len()) {
            out.put_u16(count);
            for update in &self.updates {
                out.extend_from_slice(&member_bytes(update));
            }
        }
        out
    }
}

/// The packet layout, as foca asks for it.
#[derive(Debug)]
pub(super) struct Wire;

impl foca::Codec<Identity> for Wire {
    type Error = PacketError;

    fn encode_header(&mut self, header: &Header<Identity>, buf: impl BufMut) -> Result<(), PacketError> {
        put(&header_bytes(header), buf)
    }

    fn decode_header(&mut self, mut buf: impl Buf) -> Result<Header<Identity>, PacketError> {
        read_header(&mut buf)
    }

    fn encode_member(&mut self, member: &Member<Identity>, buf: impl BufMut) -> Result<(), PacketError> {
        put(&member_bytes(member), buf)
    }

    fn decode_member(&mut self, mut buf: impl Buf) -> Result<Member<Identity>, PacketError> {
        read_member(&mut buf)
    }
}

/// All of `bytes` or nothing: foca goes on with what it had when an item does not fit.
fn put(bytes: &[u8], mut buf: impl BufMut) -> Result<(), PacketError> {
    if buf.remaining_mut() < bytes.len() {
        return Err(PacketError::Full);
    }
    buf.put_slice(bytes);
    Ok(())
}

fn header_bytes(header: &Header<Identity>) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + 2 * IDENTITY_LEN + 2 + MEMBER_LEN);
    out.put_u8(VERSION);
    header.src.write(&mut out);
    out.put_u16(header.src_incarnation);
    header.dst.write(&mut out);
    let (kind, third, number) = match &header.message {
        Message::Ping(number) => (0, None, Some(*number)),
        Message::Ack(number) => (1, None, Some(*number)),
        Message::PingReq { target, probe_number } => (2, Some(target), Some(*probe_number)),
        Message::IndirectPing { origin, probe_number } => (3, Some(origin), Some(*probe_number)),
        Message::IndirectAck { target, probe_number } => (4, Some(target), Some(*probe_number)),
        Message::ForwardedAck { origin, probe_number } => (5, Some(origin), Some(*probe_number)),
        Message::Announce => (6, None, None),
        Message::Feed => (7, None, None),
        // Custom broadcasts are disabled, so foca never makes a `Broadcast`; without them it is an empty gossip.
        Message::Gossip | Message::Broadcast => (8, None, None),
        Message::TurnUndead => (9, None, None),
    };
    out.put_u8(kind);
    if let Some(third) = third {
        third.write(&mut out);
    }
    if let Some(number) = number {
        out.put_u8(number);
    }
    out
}

fn read_header(buf: &mut impl Buf) -> Result<Header<Identity>, PacketError> {
    let version = buf.try_get_u8()?;
    if version != VERSION {
        return Err(PacketError::Version(version));
    }
    let src = Identity::read(buf)?;
    let src_incarnation = buf.try_get_u16()?;
    let dst = Identity::read(buf)?;
    let message = match buf.try_get_u8()? {
        0 => Message::Ping(buf.try_get_u8()?),
        1 => Message::Ack(buf.try_get_u8()?),
        2 => Message::PingReq { target: Identity::read(buf)?, probe_number: buf.try_get_u8()? },
        3 => Message::IndirectPing { origin: Identity::read(buf)?, probe_number: buf.try_get_u8()? },
        4 => Message::IndirectAck { target: Identity::read(buf)?, probe_number: buf.try_get_u8()? },
        5 => Message::ForwardedAck { origin: Identity::read(buf)?, probe_number: buf.try_get_u8()? },
        6 => Message::Announce,
        7 => Message::Feed,
        8 => Message::Gossip,
        9 => Message::TurnUndead,
        other => return Err(PacketError::Kind(other)),
    };
    Ok(Header { src, src_incarnation, dst, message })
}

fn member_bytes(member: &Member<Identity>) -> Vec<u8> {
    let mut out = Vec::with_capacity(MEMBER_LEN);
    member.id().write(&mut out);
    out.put_u16(member.incarnation());
    out.put_u8(match member.state() {
        State::Alive => 0,
        State::Suspect => 1,
        State::Down => 2,
    });
    out
}

fn read_member(buf: &mut impl Buf) -> Result<Member<Identity>, PacketError> {
    let id = Identity::read(buf)?;
    let incarnation = buf.try_get_u16()?;
    let state = match buf.try_get_u8()? {
        0 => State::Alive,
        1 => State::Suspect,
        2 => State::Down,
        other => return Err(PacketError::State(other)),
    };
    Ok(Member::new(id, incarnation, state))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(byte: u8) -> Identity {
        Identity { node: NodeId([byte; 32]), incarnation: 7, renewal: 2, left: byte == 3 }
    }

    #[test]
    fn every_message_reads_back_and_no_cut_of_it_does() {
        let third = identity(3);
        let messages = [
            Message::Ping(1),
            Message::Ack(2),
            Message::PingReq { target: third, probe_number: 3 },
            Message::IndirectPing { origin: third, probe_number: 4 },
            Message::IndirectAck { target: third, probe_number: 5 },
            Message::ForwardedAck { origin: third, probe_number: 6 },
            Message::Announce,
            Message::Feed,
            Message::Gossip,
            Message::TurnUndead,
        ];
        for message in messages {
            let header = Header { src: identity(1), src_incarnation: 9, dst: identity(2), message };
            let updates = vec![Member::new(third, 1, State::Suspect), Member::new(identity(4), 0, State::Down)];
            let packet = Packet { header, updates };
            let bytes = packet.to_bytes();
            assert_eq!(Packet::parse(&bytes), Ok(packet.clone()));
            let header_len = header_bytes(&packet.header).len();
            for cut in (0..bytes.len()).filter(|cut| *cut != header_len) {
                assert_eq!(Packet::parse(&bytes[..cut]), Err(PacketError::Truncated), "{cut} of {packet:?}");
            }
            assert_eq!(Packet::parse(&[&bytes[..], &[0]].concat()), Err(PacketError::Trailing(1)));
        }
    }

    #[test]
    fn a_successor_wins_even_where_a_counter_ends() {
        use foca::Identity as _;
        let last = Identity { renewal: u32::MAX, ..identity(1) };
        for id in [identity(1), identity(3), last] {
            let next = id.successor().expect("not at the very end");
            assert!(next.win_addr_conflict(&id) && !id.win_addr_conflict(&next));
        }
        assert_eq!(Identity { incarnation: u64::MAX, ..last }.successor(), None);
    }
}
