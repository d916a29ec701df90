//! The libp2p side of Sinew: one swarm that moves opaque frames, gossip and blob streams between member nodes.
//!
//! It decides who is a member (by certificate) and keeps members connected. It knows nothing of jobs, facts or blobs:
//! what a frame means is the business of the layers above, and nothing above this crate touches libp2p.
//!
//! Delivery is at most once. Frames of one class to one peer arrive in order while a connection lasts; what was queued
//! or in flight when the last connection drops is lost, and [`MeshEvent::PeerDown`] says so.

mod address;
mod behaviour;
mod blob;
mod config;
mod dialer;
mod driver;
mod error;
mod event;
mod gate;
mod guard;
mod handle;
mod hello;
mod join;
mod lane;
mod status;
mod streams;
mod tally;
#[doc(hidden)]
pub mod twin;
#[doc(hidden)]
pub mod wire;

pub use address::{node_id, peer_id};
pub use blob::BlobStream;
pub use config::MeshConfig;
pub use error::{JoinAttempt, JoinError, OpenError, Refusal, RefusalKind, SendError, StartError};
pub use event::{DropReason, FrameClass, GossipId, MeshEvent, MeshEvents, Topic, Verdict};
pub use handle::Mesh;
pub use join::{JoinRefusal, JoinReply, join};
pub use libp2p::{Multiaddr, PeerId};
pub use status::{ConnectionStatus, GossipStatus, LaneStatus, MeshStatus, NatStatus, PeerStatus, Transport};
pub use twin::Boot;
