//! The snapshot behind `Mesh::status`.

use super::Driver;
use crate::handle::read;
use crate::status::{ConnectionStatus, MeshStatus, PeerStatus, Transport};

impl Driver {
    pub(super) fn status(&self) -> MeshStatus {
        MeshStatus {
            peers: self.peer_statuses(),
            members_known: self.members.len(),
            listen: read(&self.shared.listen),
            external: read(&self.shared.external),
            nat: self.nat,
            refusals: self.guard.counts(),
            gossip_sent: self.counters.gossip_sent,
            gossip_received: self.counters.gossip_received,
            gossip_dropped: self.counters.gossip_dropped,
            dials_failed: self.counters.dials_failed,
        }
    }

    fn peer_statuses(&self) -> Vec<PeerStatus> {
        let members = self.peers.values().filter_map(|peer| peer.member.as_ref().map(|member| (peer, member)));
        let mut peers: Vec<_> = members
            .map(|(peer, member)| PeerStatus {
                node: member.verified.node,
                roles: member.verified.roles,
                connections: peer
                    .connections
                    .iter()
                    .filter_map(|id| self.connections.get(id))
                    .map(|c| ConnectionStatus {
                        addr: c.addr.clone(),
                        transport: Transport::of(&c.addr),
                        outbound: c.outbound,
                        rtt: c.rtt,
                    })
                    .collect(),
                control: member.link.control.status(),
                bulk: member.link.bulk.status(),
            })
            .collect();
        peers.sort_by_key(|peer| peer.node);
        peers
    }
}
