//! The node's handle on the mesh: cheap to clone, and nothing in it blocks.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use libp2p::{Multiaddr, StreamProtocol};
use sinew_crdt_state::certificate::Credential;
use sinew_crdt_state::identity::Identity;
use sinew_crdt_state::ids::{MeshId, NodeId};
use tokio::sync::{mpsc, oneshot};

use crate::blob::BlobStream;
use crate::config::MeshConfig;
use crate::driver::{Command, Driver, Setup};
use crate::error::{OpenError, SendError, StartError};
use crate::event::{self, DropReason, FrameClass, GossipId, MeshEvents, Topic, Verdict};
use crate::lane::Link;
use crate::status::MeshStatus;
use crate::streams::StreamError;
use crate::wire::{BLOBS, SECRETS};
use crate::{driver, hello};

/// Unix milliseconds, as the daemon tells them.
pub(crate) type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Listeners report their addresses within milliseconds; past this something is broken.
const LISTEN_DEADLINE: Duration = Duration::from_secs(5);
/// Publications on their way to the driver. More than this in one turn of its loop is a runaway publisher.
const PUBLISHES_MAX: usize = 1_024;

/// What the handle reads without asking the driver.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) links: RwLock<HashMap<NodeId, Arc<Link>>>,
    pub(crate) listen: RwLock<Vec<Multiaddr>>,
    pub(crate) external: RwLock<Vec<Multiaddr>>,
    pub(crate) publishes: AtomicUsize,
}

/// Reads a lock that no panic can leave half-written: every writer replaces or inserts whole values.
pub(crate) fn read<T: Clone>(lock: &RwLock<T>) -> T {
    lock.read().unwrap_or_else(PoisonError::into_inner).clone()
}

/// A handle on the running mesh. The mesh stops when [`Mesh::shutdown`] is called or the last handle is dropped.
#[derive(Clone)]
pub struct Mesh {
    node: NodeId,
    frame_len_max: usize,
    shared: Arc<Shared>,
    driver: mpsc::UnboundedSender<Command>,
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mesh").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Mesh {
    /// Listens, starts to look for members, and returns once the listen addresses are known.
    ///
    /// `clock` tells the time in Unix milliseconds; certificates are judged by it.
    ///
    /// # Errors
    /// [`StartError`], naming the address when it is about one.
    pub async fn start(
        config: MeshConfig,
        identity: &Identity,
        credential: Credential,
        mesh: MeshId,
        clock: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Result<(Self, MeshEvents), StartError> {
        let clock = hello::shared(clock);
        credential.verify(mesh, identity.id(), clock())?;
        let (sink, events) = event::channel();
        let (driver, commands) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared::default());
        let frame_len_max = config.frame_len_max;
        let setup = Setup { config, identity, credential, mesh, clock, shared: Arc::clone(&shared), events: sink };
        let (task, listening) = Driver::new(setup, commands)?;
        let task = tokio::spawn(task.run());
        if tokio::time::timeout(LISTEN_DEADLINE, listening).await.is_err() {
            task.abort();
            return Err(StartError::ListenTimeout(LISTEN_DEADLINE.as_secs()));
        }
        Ok((Self { node: identity.id(), frame_len_max, shared, driver }, events))
    }

    /// This node.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// Queues `frame` for `to`. It is sent at most once, in order within its class while the connection lasts. A peer
    /// that is not connected is dialled, unless that has just failed; the frame waits for the outcome.
    ///
    /// # Errors
    /// [`SendError`]; the frame was not taken.
    pub fn send(&self, to: NodeId, class: FrameClass, frame: Bytes) -> Result<(), SendError> {
        if frame.len() > self.frame_len_max {
            return Err(SendError::TooLong { len: frame.len(), max: self.frame_len_max });
        }
        let links = self.shared.links.read().unwrap_or_else(PoisonError::into_inner);
        let link = links.get(&to).ok_or(SendError::NoRoute)?;
        if self.driver.is_closed() {
            return Err(SendError::Closed);
        }
        link.lane(class).push(frame)?;
        if !link.up.load(Ordering::Relaxed) {
            self.tell(Command::Dial(to));
        }
        Ok(())
    }

    /// Gossips `data` to every member. Content-addressed: the same bytes again within a minute go nowhere, so put a
    /// counter or a time into what repeats. Lost when no member is connected.
    pub fn publish(&self, topic: Topic, data: Bytes) {
        if self.shared.publishes.fetch_add(1, Ordering::Relaxed) >= PUBLISHES_MAX
            || self.driver.send(Command::Publish(topic, data)).is_err()
        {
            self.shared.publishes.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Judges a gossip message. Until then it goes no further; one that is never judged is forgotten in seconds.
    pub fn report_gossip(&self, id: GossipId, verdict: Verdict) {
        self.tell(Command::Judge(id, verdict));
    }

    /// Opens a blob stream to a connected member.
    ///
    /// # Errors
    /// [`OpenError`]; when the member is not connected, a dial was started if an address is known.
    pub async fn open_blob_stream(&self, to: NodeId) -> Result<BlobStream, OpenError> {
        self.open(to, BLOBS, "/sinew/blobs/1").await
    }

    /// Opens a stream for one question for secrets to a connected member.
    ///
    /// # Errors
    /// [`OpenError`], as for a blob stream.
    pub async fn open_secret_stream(&self, to: NodeId) -> Result<BlobStream, OpenError> {
        self.open(to, SECRETS, "/sinew/secrets/1").await
    }

    async fn open(&self, to: NodeId, protocol: StreamProtocol, name: &'static str) -> Result<BlobStream, OpenError> {
        let (reply, opened) = oneshot::channel();
        self.driver.send(Command::Open(to, protocol, reply)).map_err(|_| OpenError::Closed)?;
        match opened.await {
            Ok(Ok(stream)) => Ok(BlobStream::new(stream)),
            Ok(Err(StreamError::Unsupported)) => Err(OpenError::Unsupported(name)),
            Ok(Err(StreamError::Io(error))) => Err(error.into()),
            Err(_) if self.driver.is_closed() => Err(OpenError::Closed),
            Err(_) => Err(OpenError::NotConnected),
        }
    }

    /// Remembers where `node` can be dialled, and dials it if it is not connected.
    pub fn add_peer_addrs(&self, node: NodeId, addrs: Vec<Multiaddr>) {
        self.tell(Command::Learn(node, addrs));
    }

    /// Where members were when they were last seen, those seen last first: to be remembered over a restart
    /// ([`MeshConfig::known`]). A few addresses of a few dozen members; empty once the mesh has shut down.
    pub async fn known_addrs(&self) -> Vec<(NodeId, Vec<Multiaddr>)> {
        let (reply, known) = oneshot::channel();
        self.tell(Command::Known(reply));
        known.await.unwrap_or_default()
    }

    /// Nothing is heard of `node` although something should be: dials it at once, beside its connection if there is one. Asked for
    /// too often it does nothing.
    pub fn reach(&self, node: NodeId) {
        self.tell(Command::Reach(node));
    }

    /// Stops dialling `node`: it left the mesh. A connection that stands is not touched.
    pub fn forget_peer(&self, node: NodeId) {
        self.tell(Command::Forget(node));
    }

    /// Teaches the mesh a member's credential from elsewhere (the ledger), so that its gossip is accepted before it has
    /// connected. An invalid one is ignored.
    pub fn add_member(&self, node: NodeId, credential: Credential) {
        self.tell(Command::Member(node, Box::new(credential)));
    }

    /// Disconnects `node` and refuses it: for a while that doubles each time, or until it is reinstated.
    pub fn drop_peer(&self, node: NodeId, reason: DropReason) {
        self.tell(Command::Drop(node, reason));
    }

    /// Forgives `node` everything: bans and revocation.
    pub fn reinstate(&self, node: NodeId) {
        self.tell(Command::Reinstate(node));
    }

    /// Shows `credential` from now on: this node's certificate was renewed.
    pub fn set_credential(&self, credential: Credential) {
        self.tell(Command::Credential(Box::new(credential)));
    }

    /// Where we listen, interface by interface.
    #[must_use]
    pub fn listen_addrs(&self) -> Vec<Multiaddr> {
        read(&self.shared.listen)
    }

    /// Where others are known to reach us: configured, or tested by AutoNAT.
    #[must_use]
    pub fn external_addrs(&self) -> Vec<Multiaddr> {
        read(&self.shared.external)
    }

    /// A snapshot; empty once the mesh has shut down.
    pub async fn status(&self) -> MeshStatus {
        let (reply, status) = oneshot::channel();
        self.tell(Command::Status(reply));
        status.await.unwrap_or_default()
    }

    /// Closes every connection and listener, and returns when that is done.
    pub async fn shutdown(self) {
        let (reply, done) = oneshot::channel();
        self.tell(Command::Shutdown(reply));
        let _ = done.await;
    }

    fn tell(&self, command: driver::Command) {
        // A driver that is gone has shut down, on purpose; commands to it are void.
        let _ = self.driver.send(command);
    }
}
