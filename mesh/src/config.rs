//! What the mesh is told at start, and the constants of its behaviour with their reasons. Files and flags are the
//! daemon's business.

use std::time::Duration;

use libp2p::Multiaddr;
use sinew_crdt_state::ids::NodeId;

use crate::twin::Boot;

/// Deadline of the membership exchange: two round trips and a few signature checks, on the slowest link worth having.
pub(crate) const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// A connection that has not shown membership by then is closed. Longer than [`HELLO_DEADLINE`] so that a newcomer's
/// join, which comes instead of a hello, has time to be decided.
pub(crate) const CONNECTION_DEADLINE: Duration = Duration::from_secs(12);
/// Deadline of a join on the issuer's side. Issuing is a signature; the rest is the network.
pub(crate) const JOIN_DEADLINE: Duration = Duration::from_secs(10);
/// Joins served per second, over all peers. A ticket is used once or a few times; more is someone guessing.
pub(crate) const JOIN_RATE: u32 = 4;
/// Joins served in one burst: a small lab set up by a script.
pub(crate) const JOIN_BURST: u32 = 8;

/// First redial after a working connection dropped: most drops are a restart or a cable, and work waits for it.
pub(crate) const REDIAL_FIRST: Duration = Duration::from_millis(100);
/// A membership that lasted this long was a good one. A peer that drops sooner, again and again, is redialled with
/// backoff like one that does not answer.
pub(crate) const STABLE: Duration = Duration::from_secs(5);
/// Delay after the first failed dial (feature M5).
pub(crate) const REDIAL_MIN: Duration = Duration::from_secs(1);
/// Longest delay between dials (feature M5).
pub(crate) const REDIAL_MAX: Duration = Duration::from_secs(60);
/// A member for which there is something to send is dialled again after this, however long it has been out of reach: whoever leads
/// a job with it speaks to it five times a second, and ought not to wait a minute once the way is free again.
pub(crate) const REDIAL_WANTED: Duration = Duration::from_secs(2);
/// After so many dials in vain it is five times as long.
pub(crate) const WANTED_TRIES: u32 = 30;
/// Members whose addresses are worth remembering over a restart: enough that some are where they were.
pub(crate) const KNOWN_PEERS: usize = 64;
/// ... and addresses of each.
pub(crate) const KNOWN_ADDRS: usize = 4;
/// Longest address taken from anybody. A circuit through a relay with a DNS name is about 200 bytes.
pub(crate) const ADDR_LEN_MAX: usize = 512;
/// The node with the larger id waits this long before dialling a peer that has just been discovered, so that two nodes
/// that discover each other at once rarely make two connections.
pub(crate) const YIELD_DELAY: Duration = Duration::from_millis(250);
/// Failed dials after which an address book entry that never led to a member is forgotten (mDNS finds strangers).
pub(crate) const STRANGER_DIALS_MAX: u32 = 5;
/// Addresses kept per peer: a host with several interfaces, both transports, and a relay or two.
pub(crate) const ADDRS_PER_PEER_MAX: usize = 16;
/// Peers in the address book. Ten times the largest mesh we plan for; what a malicious member could fill is bounded.
pub(crate) const ROUTES_MAX: usize = 16_384;

/// First refusal time of a peer that misbehaved or showed a bad certificate; doubles each time.
pub(crate) const BAN_MIN: Duration = Duration::from_secs(5);
/// Longest refusal time.
pub(crate) const BAN_MAX: Duration = Duration::from_secs(300);
/// Bans and logged reasons remembered. Identities are free to make, so the memory must have an end.
pub(crate) const GUARD_LEN_MAX: usize = 4_096;

/// How often connections' certificates are looked at again for expiry. Certificates live for days.
pub(crate) const EXPIRY_CHECK: Duration = Duration::from_secs(30);
/// A connection that carries no stream for this long is closed; control streams keep the useful one open, so this
/// only ends duplicates.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Pings measure the round trip and find half-open connections. Rarely, as heartbeats do the fast part.
pub(crate) const PING_INTERVAL: Duration = Duration::from_secs(15);
/// A ping unanswered for this long means the connection is dead.
pub(crate) const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections per peer: one each way, both transports, a relay, and one to spare.
pub(crate) const CONNECTIONS_PER_PEER_MAX: u32 = 8;
/// Inbound connections in handshake at once. Bounds memory under a connection flood.
pub(crate) const PENDING_INBOUND_MAX: u32 = 256;
/// Inbound readers of one class per peer. One is normal, two while streams move to a better connection.
pub(crate) const READERS_MAX: usize = 4;

/// Largest gossip message. Gossip is for digests and adverts; 64 KiB is also libp2p's customary limit.
pub(crate) const GOSSIP_LEN_MAX: usize = 64 * 1024;

/// How a node takes part in the mesh.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct MeshConfig {
    /// Where to listen.
    pub listen: Vec<Multiaddr>,
    /// Addresses dialled until they answer, with or without a `/p2p/…` at the end.
    pub bootstrap: Vec<Multiaddr>,
    /// Where members were when they were last seen: see [`crate::Mesh::known_addrs`]. Dialled at the start, and kept in mind.
    pub known: Vec<(NodeId, Vec<Multiaddr>)>,
    /// Addresses others can reach us at that we cannot see ourselves (port forwardings).
    pub external: Vec<Multiaddr>,
    /// Find members on the local network.
    pub mdns: bool,
    /// Find members through other members.
    pub kad: bool,
    /// Relay circuits for members.
    pub relay_server: bool,
    /// Reserve a circuit on bootstrap nodes that relay, unless we are known to be reachable.
    pub relay_client: bool,
    /// Let other members test whether we are reachable, and test them.
    pub autonat: bool,
    /// Turn relayed connections into direct ones by hole punching.
    pub dcutr: bool,
    /// Longest frame, in bytes, in both directions.
    pub frame_len_max: usize,
    /// Which start of its daemon this is, by which others tell it from a daemon on a copy of its data directory. Without it
    /// they cannot.
    pub boot: Option<Boot>,
}

impl MeshConfig {
    /// 4 MiB: a batch of ledger changes or a slice of a tensor, small enough to hold several per peer in memory.
    pub const FRAME_LEN_MAX_DEFAULT: usize = 4 * 1024 * 1024;

    /// Everything off but the two listeners given, for tests and closed networks.
    #[must_use]
    pub fn bare(listen: Vec<Multiaddr>) -> Self {
        Self {
            listen,
            bootstrap: Vec::new(),
            known: Vec::new(),
            external: Vec::new(),
            mdns: false,
            kad: false,
            relay_server: false,
            relay_client: false,
            autonat: false,
            dcutr: false,
            frame_len_max: Self::FRAME_LEN_MAX_DEFAULT,
            boot: None,
        }
    }
}

impl Default for MeshConfig {
    /// Listens on port 9000 of every interface, TCP and QUIC, and finds members by every means.
    fn default() -> Self {
        let listen = ["/ip4/0.0.0.0/tcp/9000", "/ip4/0.0.0.0/udp/9000/quic-v1"];
        let listen = listen.iter().map(|addr| addr.parse().expect("a literal multiaddr")).collect();
        Self {
            mdns: true,
            kad: true,
            relay_server: true,
            relay_client: true,
            autonat: true,
            dcutr: true,
            ..Self::bare(listen)
        }
    }
}
