//! The snapshot behind `Mesh::status`.

use super::Driver;
use crate::behaviour::gossip_topic;
use crate::event::Topic;
use crate::handle::read;
use crate::status::{ConnectionStatus, GossipStatus, LaneStatus, MeshStatus, PeerStatus, Transport};

impl Driver {
    pub(super) fn status(&self) -> MeshStatus {
        let [control, bulk] = self.totals();
        MeshStatus {
            peers: self.peer_statuses(),
            members_known: self.members.len(),
            listen: read(&self.shared.listen),
            external: read(&self.shared.external),
            nat: self.nat,
            refusals: self.guard.counts(),
            control,
            bulk,
            gossip: self.gossip_status(),
            dials_failed: self.counters.dials_failed,
        }
    }

    /// Control and bulk frames with all peers, connected or not.
    fn totals(&self) -> [LaneStatus; 2] {
        let mut totals = self.counters.forgotten;
        for link in self.shared.links.read().unwrap_or_else(std::sync::PoisonError::into_inner).values() {
            totals[0] += link.control.status();
            totals[1] += link.bulk.status();
        }
        totals
    }

    fn gossip_status(&self) -> GossipStatus {
        let (copies, copies_bytes) = self.tally.read();
        let topic = gossip_topic(Topic::Advert, &self.mesh).hash();
        GossipStatus {
            published: self.counters.gossip_sent,
            delivered: self.counters.gossip_received,
            dropped: self.counters.gossip_dropped,
            copies,
            copies_bytes,
            advert_peers: self.swarm.behaviour().gossip.inner().mesh_peers(&topic).count(),
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
