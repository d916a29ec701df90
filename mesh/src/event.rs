//! What the mesh tells the node, and the small types of its vocabulary.
//!
//! Events wait in three queues, read in this order: lifecycle and gossip, control frames, bulk frames. So a heartbeat
//! is never behind bulk data, a peer's [`MeshEvent::PeerUp`] precedes its frames, and its [`MeshEvent::PeerDown`] may
//! overtake frames that were still waiting.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use libp2p::gossipsub::MessageId;
use libp2p::{Multiaddr, PeerId};
use sinew_crdt_state::certificate::{Credential, Roles, Ticket};
use sinew_crdt_state::ids::{MeshId, NodeId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::blob::BlobStream;
use crate::error::Refusal;
use crate::join::JoinReply;
use crate::twin::Boot;

/// Events that a peer can cause (gossip, refusals, joins, streams) and the node has not yet read. Beyond this they are
/// dropped: a node that does not read cannot be made to hoard memory.
const OFFERS_MAX: usize = 1_024;
/// Frames of one class waiting for the node.
const FRAMES_MAX: usize = 1_024;
/// Bytes of frames of one class waiting for the node, in KiB: a few of the largest. Then the peers' streams stall.
const FRAMES_KIB_MAX: usize = 32 * 1024;

/// The two kinds of frames. Each has its own stream, so that one never waits for the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FrameClass {
    /// Small and urgent: heartbeats, bids, awards.
    Control,
    /// Anything large.
    Bulk,
}

/// What gossip is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Topic {
    /// Jobs looking for nodes.
    Advert,
}

impl Topic {
    /// Every topic.
    pub const ALL: [Self; 1] = [Self::Advert];

    /// The name on the wire. It holds the mesh's id, so that two meshes on one LAN never mix.
    #[must_use]
    pub fn name(self, mesh: &MeshId) -> String {
        let what = match self {
            Self::Advert => "advert",
        };
        format!("sinew/{}/{what}/1", mesh.short())
    }
}

/// A gossip message, to be judged with [`crate::Mesh::report_gossip`].
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct GossipId {
    pub(crate) message: MessageId,
    pub(crate) relayed_by: PeerId,
}

impl fmt::Debug for GossipId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GossipId({})", self.message)
    }
}

/// The node's judgement of a gossip message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Pass it on.
    Accept,
    /// It is invalid: stop it, and hold it against who sent it.
    Reject,
    /// Stop it, and hold it against nobody.
    Ignore,
}

/// Why the node wants a peer gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// It broke a protocol above this crate. Refused for a while, longer each time.
    Misbehaved,
    /// Its membership was revoked. Refused until [`crate::Mesh::reinstate`] or a restart.
    Revoked,
}

/// What happened in the mesh.
#[derive(Debug)]
#[non_exhaustive]
pub enum MeshEvent {
    /// A member is connected and has shown its certificate. Frames to it are taken from now on, and flow as soon as it
    /// has accepted ours; should it refuse us, a [`Self::PeerDown`] follows.
    PeerUp {
        /// Who.
        node: NodeId,
        /// What it showed.
        credential: Credential,
        /// The roles that proves.
        roles: Roles,
        /// Where it says it can be dialled, and where we reached it.
        addrs: Vec<Multiaddr>,
    },
    /// The last connection to a member closed.
    PeerDown {
        /// Who.
        node: NodeId,
    },
    /// A frame from a member.
    Frame {
        /// Who sent it.
        from: NodeId,
        /// On which stream.
        class: FrameClass,
        /// The frame.
        bytes: Bytes,
    },
    /// A gossip message; it goes no further until it is judged.
    Gossip {
        /// To judge it by.
        id: GossipId,
        /// Who signed it: a member.
        from: NodeId,
        /// Who passed it to us: a member.
        relayed_by: NodeId,
        /// What about.
        topic: Topic,
        /// The message.
        bytes: Bytes,
    },
    /// A member opened a blob stream.
    BlobStream {
        /// Who.
        from: NodeId,
        /// The stream.
        stream: BlobStream,
    },
    /// A member opened a stream for a question for secrets.
    SecretStream {
        /// Who.
        from: NodeId,
        /// The stream.
        stream: BlobStream,
    },
    /// What [`crate::Mesh::known_addrs`] gives may have changed.
    AddrsChanged,
    /// We listen on another address.
    Listening {
        /// The address.
        addr: Multiaddr,
    },
    /// A peer was refused.
    Refused {
        /// Its node id, when it has one and it is known.
        node: Option<NodeId>,
        /// Why.
        reason: Refusal,
    },
    /// Another daemon with this node's key was here before this one, and lives: it has proved it. The data directory was copied.
    Twin {
        /// Its boot.
        boot: Boot,
        /// Where it is, as a member says.
        addr: Option<Multiaddr>,
    },
    /// Someone calls with a ticket that this node signed. The signature and the expiry are already checked.
    JoinRequest {
        /// The newcomer.
        node: NodeId,
        /// Its ticket.
        ticket: Ticket,
        /// Where the answer goes. Dropping it refuses.
        reply: JoinReply,
    },
}

struct Waiting {
    event: MeshEvent,
    _budget: OwnedSemaphorePermit,
}

/// The node's end of the event queues.
pub struct MeshEvents {
    lifecycle: mpsc::UnboundedReceiver<(MeshEvent, bool)>,
    offers: Arc<AtomicUsize>,
    control: mpsc::Receiver<Waiting>,
    bulk: mpsc::Receiver<Waiting>,
}

impl fmt::Debug for MeshEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshEvents").finish_non_exhaustive()
    }
}

impl MeshEvents {
    /// The next event, or `None` once the mesh has shut down. Dropping the future loses nothing.
    pub async fn recv(&mut self) -> Option<MeshEvent> {
        tokio::select! {
            biased;
            Some((event, offer)) = self.lifecycle.recv() => {
                if offer {
                    self.offers.fetch_sub(1, Ordering::Relaxed);
                }
                Some(event)
            }
            Some(waiting) = self.control.recv() => Some(waiting.event),
            Some(waiting) = self.bulk.recv() => Some(waiting.event),
            else => None,
        }
    }
}

/// The mesh's end of the event queues.
#[derive(Clone)]
pub(crate) struct EventSink {
    lifecycle: mpsc::UnboundedSender<(MeshEvent, bool)>,
    offers: Arc<AtomicUsize>,
    control: FrameSink,
    bulk: FrameSink,
}

/// Where readers of one class put frames; waits while the node is behind.
#[derive(Clone)]
pub(crate) struct FrameSink {
    queue: mpsc::Sender<Waiting>,
    budget: Arc<Semaphore>,
}

/// The node no longer reads events.
#[derive(Debug)]
pub(crate) struct NodeGone;

impl FrameSink {
    pub(crate) async fn put(&self, from: NodeId, class: FrameClass, bytes: Bytes) -> Result<(), NodeGone> {
        let kib = (bytes.len() / 1024 + 1).min(FRAMES_KIB_MAX);
        let kib = u32::try_from(kib).unwrap_or(u32::MAX);
        let budget = Arc::clone(&self.budget).acquire_many_owned(kib).await.map_err(|_| NodeGone)?;
        let waiting = Waiting { event: MeshEvent::Frame { from, class, bytes }, _budget: budget };
        self.queue.send(waiting).await.map_err(|_| NodeGone)
    }
}

impl EventSink {
    /// An event that the mesh itself paces. Never lost.
    pub(crate) fn tell(&self, event: MeshEvent) {
        // A node that dropped its end wants no events; the mesh goes on serving frames out.
        let _ = self.lifecycle.send((event, false));
    }

    /// An event that a peer can cause at will. `false` when the node is too far behind and it was dropped.
    pub(crate) fn offer(&self, event: MeshEvent) -> bool {
        if self.offers.fetch_add(1, Ordering::Relaxed) >= OFFERS_MAX || self.lifecycle.send((event, true)).is_err() {
            self.offers.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        true
    }

    pub(crate) const fn frames(&self, class: FrameClass) -> &FrameSink {
        match class {
            FrameClass::Control => &self.control,
            FrameClass::Bulk => &self.bulk,
        }
    }
}

/// Both ends of the event queues.
pub(crate) fn channel() -> (EventSink, MeshEvents) {
    let (lifecycle_tx, lifecycle) = mpsc::unbounded_channel();
    let offers = Arc::new(AtomicUsize::new(0));
    let frames = || {
        let (queue, rx) = mpsc::channel(FRAMES_MAX);
        (FrameSink { queue, budget: Arc::new(Semaphore::new(FRAMES_KIB_MAX)) }, rx)
    };
    let ((control_tx, control), (bulk_tx, bulk)) = (frames(), frames());
    let sink = EventSink { lifecycle: lifecycle_tx, offers: Arc::clone(&offers), control: control_tx, bulk: bulk_tx };
    (sink, MeshEvents { lifecycle, offers, control, bulk })
}
