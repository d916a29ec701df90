//! A snapshot of the mesh for people and metrics.

use std::collections::BTreeMap;
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
    /// Gossip messages published.
    pub gossip_sent: u64,
    /// Gossip messages handed to the node.
    pub gossip_received: u64,
    /// Gossip messages not published or not handed over: no subscriber, a duplicate, or a full queue.
    pub gossip_dropped: u64,
    /// Dials that failed.
    pub dials_failed: u64,
}
