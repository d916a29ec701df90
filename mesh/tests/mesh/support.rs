//! A laboratory of real nodes on loopback, and attackers that speak raw libp2p.

use std::collections::HashSet;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures::{AsyncRead, AsyncReadExt, StreamExt};
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, PeerId, Stream, StreamProtocol, SwarmBuilder, noise, tcp, yamux};
use sinew_crdt_state::certificate::{Credential, Roles};
use sinew_crdt_state::identity::Identity;
use sinew_crdt_state::ids::{MeshId, NodeId};
use sinew_mesh::{FrameClass, Mesh, MeshConfig, MeshEvent, MeshEvents, RefusalKind, peer_id, wire};
use tokio::sync::watch;

/// A TCP listener on any port.
pub(crate) const TCP: &str = "/ip4/127.0.0.1/tcp/0";
/// A QUIC listener on any port.
pub(crate) const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";
/// Far longer than anything here takes; a test that waits this long has failed.
const DEADLINE: Duration = Duration::from_secs(30);

/// The identity number `seed`.
pub(crate) fn who(seed: u8) -> Identity {
    Identity::from_seed([seed; 32])
}

/// The time.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_millis()).expect("before the year 500 million")
}

/// A configuration with these listeners and bootstrap addresses and nothing else.
pub(crate) fn config(listen: &[&str], bootstrap: &[Multiaddr]) -> MeshConfig {
    let mut config = MeshConfig::bare(listen.iter().map(|a| a.parse().expect("addr")).collect());
    config.bootstrap = bootstrap.to_vec();
    config
}

/// `len` bytes that no encoding produces, the same every time.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// `bytes` behind their length.
pub(crate) fn prefixed(bytes: &[u8]) -> Vec<u8> {
    [&wire::header(bytes.len())[..], bytes].concat()
}

/// Reads one length-prefixed message.
pub(crate) async fn read_prefixed<S: AsyncRead + Unpin>(stream: &mut S) -> std::io::Result<Vec<u8>> {
    let mut header = [0; 4];
    stream.read_exact(&mut header).await?;
    let mut body = vec![0; u32::from_be_bytes(header) as usize];
    stream.read_exact(&mut body).await?;
    Ok(body)
}

/// The gossip protocol of the lab's mesh.
pub(crate) fn gossip_protocol(lab: &Lab) -> StreamProtocol {
    StreamProtocol::try_from_owned(format!("/sinew/{}/gossip/1.1.0", lab.mesh.short())).expect("a slash")
}

/// The Kademlia protocol of the lab's mesh.
pub(crate) fn kad_protocol(lab: &Lab) -> StreamProtocol {
    StreamProtocol::try_from_owned(format!("/sinew/{}/kad/1", lab.mesh.short())).expect("a slash")
}

/// Waits until `condition` holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// One mesh's keys.
pub(crate) struct Lab {
    pub(crate) mesh: MeshId,
    pub(crate) admin: Identity,
    pub(crate) founder: Credential,
}

impl Lab {
    pub(crate) fn new() -> Self {
        Self::with_mesh(99)
    }

    pub(crate) fn with_mesh(seed: u8) -> Self {
        let (key, admin) = (who(seed), who(100));
        let founder = Credential::found(&key, admin.id(), now_ms(), now_ms() + 3_600_000);
        Self { mesh: MeshId(key.id().0), admin, founder }
    }

    pub(crate) fn credential(&self, identity: &Identity) -> Credential {
        self.founder.issue(&self.admin, identity.id(), Roles::RUN, now_ms(), now_ms() + 3_600_000)
    }

    pub(crate) async fn node(&self, seed: u8, listen: &[&str], bootstrap: &[Multiaddr]) -> Node {
        self.start(seed, config(listen, bootstrap)).await
    }

    pub(crate) async fn start(&self, seed: u8, config: MeshConfig) -> Node {
        let identity = who(seed);
        self.start_as(&identity, self.credential(&identity), config).await
    }

    pub(crate) async fn start_as(&self, identity: &Identity, credential: Credential, config: MeshConfig) -> Node {
        let started = Mesh::start(config, identity, credential, self.mesh, now_ms).await;
        let (mesh, events) = started.expect("the mesh starts");
        Node { mesh, events, identity: identity.clone() }
    }

    pub(crate) async fn stop<const N: usize>(&self, nodes: [Node; N]) {
        for node in nodes {
            node.mesh.shutdown().await;
        }
    }
}

/// A running node and its events.
pub(crate) struct Node {
    pub(crate) mesh: Mesh,
    pub(crate) events: MeshEvents,
    pub(crate) identity: Identity,
}

impl Node {
    pub(crate) fn id(&self) -> NodeId {
        self.identity.id()
    }

    pub(crate) fn peer(&self) -> PeerId {
        peer_id(self.id())
    }

    pub(crate) fn addrs(&self) -> Vec<Multiaddr> {
        self.mesh.listen_addrs()
    }

    pub(crate) async fn refusals(&self, kind: RefusalKind) -> u64 {
        self.mesh.status().await.refusals.get(&kind).copied().unwrap_or(0)
    }

    /// The next event that `wanted` picks; the others are dropped.
    pub(crate) async fn next(&mut self, wanted: impl Fn(&MeshEvent) -> bool) -> MeshEvent {
        let millis = u64::try_from(DEADLINE.as_millis()).expect("short");
        self.try_next(millis, wanted).await.expect("the event comes in time")
    }

    /// Like [`Self::next`], for at most `millis`.
    pub(crate) async fn try_next(&mut self, millis: u64, wanted: impl Fn(&MeshEvent) -> bool) -> Option<MeshEvent> {
        let search = async {
            loop {
                let event = self.events.recv().await.expect("the mesh runs");
                if wanted(&event) {
                    return event;
                }
            }
        };
        tokio::time::timeout(Duration::from_millis(millis), search).await.ok()
    }

    pub(crate) async fn wait_up(&mut self, nodes: &[NodeId]) {
        let mut missing: HashSet<_> = nodes.iter().copied().collect();
        while !missing.is_empty() {
            if let MeshEvent::PeerUp { node, .. } = self.next(|e| matches!(e, MeshEvent::PeerUp { .. })).await {
                missing.remove(&node);
            }
        }
    }

    pub(crate) async fn wait_down(&mut self, who: NodeId) {
        self.next(|e| matches!(e, MeshEvent::PeerDown { node } if *node == who)).await;
    }

    /// The next `count` frames of a class from a peer.
    pub(crate) async fn frames(&mut self, who: NodeId, wanted: FrameClass, count: usize) -> Vec<Bytes> {
        let mut got = Vec::new();
        while got.len() < count {
            let is =
                |e: &MeshEvent| matches!(e, MeshEvent::Frame { from, class, .. } if *from == who && *class == wanted);
            if let MeshEvent::Frame { bytes, .. } = self.next(is).await {
                got.push(bytes);
            }
        }
        got
    }
}

/// A raw libp2p node without any manners.
pub(crate) struct Attacker {
    pub(crate) node: NodeId,
    pub(crate) addr: Option<Multiaddr>,
    control: libp2p_stream::Control,
    connections: watch::Receiver<Option<u32>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Attacker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Attacker {
    /// Connects to `peer` and says nothing.
    pub(crate) async fn connect(seed: u8, addr: &Multiaddr, peer: PeerId) -> Self {
        let mut this = Self::start(seed, Some(addr.clone().with_p2p(peer).expect("no other peer"))).await;
        let connected = this.connections.wait_for(|n| n.is_some_and(|n| n > 0));
        tokio::time::timeout(DEADLINE, connected).await.expect("in time").expect("alive");
        this
    }

    /// Listens on loopback and speaks nothing.
    pub(crate) async fn listen(seed: u8) -> Self {
        Self::start(seed, None).await
    }

    async fn start(seed: u8, dial: Option<Multiaddr>) -> Self {
        let identity = who(seed);
        let key = libp2p::identity::Keypair::ed25519_from_bytes(identity.seed()).expect("32 bytes");
        let mut swarm = SwarmBuilder::with_existing_identity(key)
            .with_tokio()
            .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
            .expect("tcp")
            .with_behaviour(|_| libp2p_stream::Behaviour::new())
            .expect("behaviour")
            .with_swarm_config(|c| c.with_idle_connection_timeout(Duration::from_secs(600)))
            .build();
        let control = swarm.behaviour().new_control();
        let mut addr = None;
        match dial {
            Some(to) => swarm.dial(to).expect("dial"),
            None => {
                swarm.listen_on(TCP.parse().expect("addr")).expect("listen");
                while addr.is_none() {
                    if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                        addr = Some(address);
                    }
                }
            }
        }
        let (count, connections) = watch::channel(None);
        let task = tokio::spawn(async move {
            loop {
                match swarm.select_next_some().await {
                    SwarmEvent::ConnectionEstablished { num_established, .. } => {
                        count.send_replace(Some(num_established.get()));
                    }
                    SwarmEvent::ConnectionClosed { num_established, .. } => {
                        count.send_replace(Some(num_established));
                    }
                    _ => {}
                }
            }
        });
        Self { node: identity.id(), addr, control, connections, task }
    }

    /// Opens a stream, or `None` when the protocol is not spoken.
    pub(crate) async fn open(&self, peer: PeerId, protocol: StreamProtocol) -> Option<Stream> {
        let mut control = self.control.clone();
        tokio::time::timeout(DEADLINE, control.open_stream(peer, protocol)).await.expect("in time").ok()
    }

    /// Waits until the other side has closed the connection.
    pub(crate) async fn wait_disconnected(&self) {
        let mut connections = self.connections.clone();
        let gone = connections.wait_for(|n| *n == Some(0));
        tokio::time::timeout(DEADLINE, gone).await.expect("disconnected in time").expect("alive");
    }
}
