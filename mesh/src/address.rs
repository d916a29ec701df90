//! Node ids as libp2p peer ids, and what may be done with an address a peer gave us. Nothing here dials.

use std::net::IpAddr;

use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use sinew_crdt_state::ids::NodeId;

/// How libp2p writes an ed25519 peer id: the identity multihash (code 0, 36 bytes) of the key's protobuf (type 1, a
/// 32-byte field). See the libp2p peer-id specification.
const PEER_ID_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

/// The libp2p peer id of `node`: its ed25519 key, wrapped.
///
/// # Panics
/// Never: 32 bytes behind a fixed prefix are always a well-formed peer id.
#[must_use]
pub fn peer_id(node: NodeId) -> PeerId {
    let mut bytes = [0; PEER_ID_PREFIX.len() + NodeId::LEN];
    bytes[..PEER_ID_PREFIX.len()].copy_from_slice(&PEER_ID_PREFIX);
    bytes[PEER_ID_PREFIX.len()..].copy_from_slice(node.as_bytes());
    PeerId::from_bytes(&bytes).expect("an identity multihash of 36 bytes is a peer id")
}

/// The node behind `peer`, or `None` when its key is not ed25519 (then it is no Sinew node).
#[must_use]
pub fn node_id(peer: &PeerId) -> Option<NodeId> {
    let bytes = peer.to_bytes();
    let key = bytes.strip_prefix(&PEER_ID_PREFIX)?;
    <[u8; NodeId::LEN]>::try_from(key).ok().map(NodeId)
}

/// The first IP address in `addr`.
pub(crate) fn ip(addr: &Multiaddr) -> Option<IpAddr> {
    addr.iter().find_map(|part| match part {
        Protocol::Ip4(ip) => Some(IpAddr::V4(ip)),
        Protocol::Ip6(ip) => Some(IpAddr::V6(ip)),
        _ => None,
    })
}

/// Whether the connection behind `addr` passes through a relay.
pub(crate) fn is_relayed(addr: &Multiaddr) -> bool {
    addr.iter().any(|part| matches!(part, Protocol::P2pCircuit))
}

/// The peer id that `addr` ends in, if it does.
pub(crate) fn peer_of(addr: &Multiaddr) -> Option<PeerId> {
    match addr.iter().last() {
        Some(Protocol::P2p(peer)) => Some(peer),
        _ => None,
    }
}

/// `addr` without a trailing `/p2p/…`.
pub(crate) fn without_peer(mut addr: Multiaddr) -> Multiaddr {
    if peer_of(&addr).is_some() {
        addr.pop();
    }
    addr
}

/// The addresses of `told` worth remembering, when we heard them from a peer at `heard_from`: no unspecified ones, and
/// loopback only from a peer that is itself on loopback (elsewhere it would lead back to ourselves).
pub(crate) fn usable(told: Vec<Multiaddr>, heard_from: Option<&Multiaddr>) -> Vec<Multiaddr> {
    let local = heard_from.and_then(ip).is_none_or(|ip| ip.is_loopback());
    told.into_iter()
        .map(without_peer)
        .filter(|addr| match ip(addr) {
            Some(ip) => !ip.is_unspecified() && (local || !ip.is_loopback()),
            None => !addr.is_empty(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sinew_crdt_state::identity::Identity;

    #[test]
    fn node_and_peer_ids_are_one_key() {
        let identity = Identity::from_seed([3; 32]);
        let keypair = libp2p::identity::Keypair::ed25519_from_bytes(identity.seed()).expect("32 bytes");
        let peer = keypair.public().to_peer_id();
        assert_eq!(peer_id(identity.id()), peer);
        assert_eq!(node_id(&peer), Some(identity.id()));
        assert_eq!(node_id(&PeerId::random()), None);
    }

    #[test]
    fn loopback_is_kept_only_among_loopback_peers() {
        let told = || {
            ["/ip4/127.0.0.1/tcp/1", "/ip4/0.0.0.0/tcp/1", "/ip4/10.0.0.1/tcp/1"]
                .map(|a| a.parse().expect("addr"))
                .to_vec()
        };
        let far: Multiaddr = "/ip4/10.0.0.2/tcp/5".parse().expect("addr");
        let near: Multiaddr = "/ip4/127.0.0.1/tcp/5".parse().expect("addr");
        assert_eq!(usable(told(), Some(&far)).len(), 1);
        assert_eq!(usable(told(), Some(&near)).len(), 2);
    }
}
