//! A snapshot of the mesh for people and metrics.

use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::time::Duration;

use libp2p::Multiaddr;
use sinew_crdt_state::certificate::Roles;
use sinew_crdt_state::ids::NodeId;

use crate::error::RefusalKind;

/// What carries a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP with noise and yamux.
    Tcp,
    /// QUIC.
    Quic,
    /// Another member relays it.
    Relay,
}

impl Transport {
    pub(crate) fn of(addr: &Multiaddr) -> Self {
        use libp2p::multiaddr::Protocol;
        if crate::address::is_relayed(addr) {
            Self::Relay
        } else if addr.iter().any(|part| matches!(part, Protocol::QuicV1)) {
            Self::Quic
        } else {
            Self::Tcp
        }
    }
}

/// Whether others can dial us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NatStatus {
    /// Nobody has tested it yet.
    #[default]
    Unknown,
    /// Another member has dialled us.
    Public,
    /// Other members tried and failed.
    Private,
}

/// One connection.
#[derive(Debug, Clone)]
pub struct ConnectionStatus {
    /// The remote end.
    pub addr: Multiaddr,
    /// What carries it.
    pub transport: Transport,
    /// Whether we dialled it.
    pub outbound: bool,
    /// The last ping's round trip.
    pub rtt: Option<Duration>,
}

/// Traffic of one frame class with one peer, since this node started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LaneStatus {
    /// Frames written.
    pub frames_sent: u64,
    /// Bytes written, headers not counted.
    pub bytes_sent: u64,
    /// Frames read.
    pub frames_received: u64,
    /// Bytes read, headers not counted.
    pub bytes_received: u64,
    /// Frames taken for sending that were lost with a connection.
    pub frames_lost: u64,
    /// Frames waiting.
    pub queue_len: usize,
}

impl AddAssign for LaneStatus {
    fn add_assign(&mut self, more: Self) {
        self.frames_sent += more.frames_sent;
        self.bytes_sent += more.bytes_sent;
        self.frames_received += more.frames_received;
        self.bytes_received += more.bytes_received;
        self.frames_lost += more.frames_lost;
        self.queue_len += more.queue_len;
    }
}

/// Gossip, since this node started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GossipStatus {
    /// Messages published.
    pub published: u64,
    /// Messages of others handed to the node, each once.
    pub delivered: u64,
    /// Messages not published or not handed over: no subscriber, published before, or a full queue.
    pub dropped: u64,
    /// Messages that peers sent, those that were here already among them.
    pub copies: u64,
    /// Bytes of these, as on the wire.
    pub copies_bytes: u64,
    /// Peers in this node's gossip mesh for adverts now.
    pub advert_peers: usize,
}

/// One connected member.
#[derive(Debug, Clone)]
pub struct PeerStatus {
    /// Who.
    pub node: NodeId,
    /// Its roles.
    pub roles: Roles,
    /// Its connections; never empty.
    pub connections: Vec<ConnectionStatus>,
    /// Control frames.
    pub control: LaneStatus,
    /// Bulk frames.
    pub bulk: LaneStatus,
}

/// The mesh as this node sees it.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct MeshStatus {
    /// Connected members.
    pub peers: Vec<PeerStatus>,
    /// Members known by certificate, connected or not.
    pub members_known: usize,
    /// Where we listen.
    pub listen: Vec<Multiaddr>,
    /// Where others reach us.
    pub external: Vec<Multiaddr>,
    /// Whether others can dial us.
    pub nat: NatStatus,
    /// Refusals since start, by reason.
    pub refusals: BTreeMap<RefusalKind, u64>,
    /// Control frames with all peers since start.
    pub control: LaneStatus,
    /// Bulk frames with all peers since start.
    pub bulk: LaneStatus,
    /// Gossip since start.
    pub gossip: GossipStatus,
    /// Dials that failed.
    pub dials_failed: u64,
}
