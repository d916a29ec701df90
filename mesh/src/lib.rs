//! The libp2p swarm: membership, streams, gossip.
