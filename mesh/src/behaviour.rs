//! The composed libp2p behaviour and the swarm around it, with the parameters of each protocol. What events mean is the
//! driver's business.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::gossipsub::{
    self, IdentTopic, MessageAuthenticity, MessageId, PeerScoreParams, PeerScoreThresholds, TopicScoreParams,
};
use libp2p::identity::Keypair;
use libp2p::kad::store::MemoryStore;
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{
    PeerId, StreamProtocol, Swarm, SwarmBuilder, autonat, dcutr, identify, kad, mdns, noise, ping, relay, tcp, yamux,
};
use sinew_crdt_state::identity::Identity;
use sinew_crdt_state::ids::{Hash, MeshId};

use crate::config::{
    CONNECTIONS_PER_PEER_MAX, GOSSIP_LEN_MAX, IDLE_TIMEOUT, MeshConfig, PENDING_INBOUND_MAX, PING_INTERVAL,
    PING_TIMEOUT,
};
use crate::error::StartError;
use crate::event::Topic;
use crate::gate::Gate;
use crate::streams;
use crate::tally::{Counting, Tally};
use crate::wire::{BLOBS, BULK, BULK_PACKED, CONTROL, HELLO, JOIN, SECRETS, TWIN};

/// Frames of gossip waiting per peer. libp2p's 5,000 would let one slow peer hold 300 MB.
const GOSSIP_QUEUE_LEN: usize = 256;
/// Heartbeats of gossip kept for peers that missed them.
const GOSSIP_HISTORY: usize = 5;
/// The first grafting should not wait: a mesh of three is complete within one round trip.
const GOSSIP_INITIAL_DELAY: Duration = Duration::from_millis(100);
/// One second keeps idle cost low; flood-publishing makes first delivery independent of it.
const GOSSIP_HEARTBEAT: Duration = Duration::from_secs(1);
/// Identical content within this time is one message.
const GOSSIP_DUPLICATES: Duration = Duration::from_secs(60);
/// How often AutoNAT looks for untested addresses; its default of 5 s is a busy timer on an idle host.
const AUTONAT_INTERVAL: Duration = Duration::from_secs(60);
/// Circuits relayed at once. Each costs two streams and small buffers.
const CIRCUITS_MAX: usize = 256;
/// Bytes per relayed circuit: no limit worth the name, as relays serve members only and carry their work.
const CIRCUIT_BYTES_MAX: u64 = u64::MAX;
/// Time per relayed circuit; the members reconnect then.
const CIRCUIT_TIME_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Circuits a member may ask for per minute: reconnects of a whole small mesh.
const CIRCUITS_PER_MINUTE: NonZeroU32 = NonZeroU32::new(120).expect("not zero");

/// Gossipsub, counted.
pub(crate) type Gossip = gossipsub::Behaviour<Counting>;

/// Everything the swarm speaks. All but ping, streams and the relay client sees members only.
#[derive(NetworkBehaviour)]
pub(crate) struct Behaviour {
    limits: connection_limits::Behaviour,
    pub(crate) streams: streams::Behaviour,
    ping: ping::Behaviour,
    identify: Gate<identify::Behaviour>,
    pub(crate) gossip: Gate<Gossip>,
    pub(crate) kad: Gate<Toggle<kad::Behaviour<MemoryStore>>>,
    mdns: Toggle<mdns::tokio::Behaviour>,
    relay_client: relay::client::Behaviour,
    relay_server: Gate<Toggle<relay::Behaviour>>,
    autonat_client: Gate<Toggle<autonat::v2::client::Behaviour>>,
    autonat_server: Gate<Toggle<autonat::v2::server::Behaviour>>,
    dcutr: Gate<Toggle<dcutr::Behaviour>>,
}

impl Behaviour {
    /// Lets `peer` through every gate.
    pub(crate) fn admit(&mut self, peer: PeerId) {
        self.identify.admit(peer);
        self.gossip.admit(peer);
        self.kad.admit(peer);
        self.relay_server.admit(peer);
        self.autonat_client.admit(peer);
        self.autonat_server.admit(peer);
        self.dcutr.admit(peer);
    }

    fn new(
        config: &MeshConfig,
        mesh: &MeshId,
        key: &Keypair,
        relay_client: relay::client::Behaviour,
        tally: Arc<Tally>,
    ) -> Result<Self, StartError> {
        let me = key.public().to_peer_id();
        let limits = ConnectionLimits::default()
            .with_max_pending_incoming(Some(PENDING_INBOUND_MAX))
            .with_max_established_per_peer(Some(CONNECTIONS_PER_PEER_MAX));
        let identify = identify::Config::new(format!("/sinew/{}/1", mesh.short()), key.public())
            .with_agent_version(concat!("sinew/", env!("CARGO_PKG_VERSION")).to_owned())
            .with_push_listen_addr_updates(true);
        let ping = ping::Config::new().with_interval(PING_INTERVAL).with_timeout(PING_TIMEOUT);
        let toggle = |on: bool| on.then_some(());
        Ok(Self {
            limits: connection_limits::Behaviour::new(limits),
            streams: streams::Behaviour::new(vec![HELLO, JOIN, CONTROL, BULK, BULK_PACKED, BLOBS, SECRETS, TWIN]),
            ping: ping::Behaviour::new(ping),
            identify: Gate::new(identify::Behaviour::new(identify)),
            gossip: Gate::new(gossip(mesh, key, tally)?),
            kad: Gate::new(toggle(config.kad).map(|()| kademlia(mesh, me)).into()),
            mdns: toggle(config.mdns).and_then(|()| local_discovery(me)).into(),
            relay_client,
            relay_server: Gate::new(
                toggle(config.relay_server).map(|()| relay::Behaviour::new(me, relay_limits())).into(),
            ),
            autonat_client: Gate::new(toggle(config.autonat).map(|()| reachability()).into()),
            autonat_server: Gate::new(
                toggle(config.autonat).map(|()| autonat::v2::server::Behaviour::default()).into(),
            ),
            dcutr: Gate::new(toggle(config.dcutr).map(|()| dcutr::Behaviour::new(me)).into()),
        })
    }
}

fn reachability() -> autonat::v2::client::Behaviour {
    let config = autonat::v2::client::Config::default().with_probe_interval(AUTONAT_INTERVAL);
    autonat::v2::client::Behaviour::new(rand::make_rng(), config)
}

fn kademlia(mesh: &MeshId, me: PeerId) -> kad::Behaviour<MemoryStore> {
    let name = format!("/sinew/{}/kad/1", mesh.short());
    let name = StreamProtocol::try_from_owned(name).expect("it begins with a slash");
    let mut config = kad::Config::new(name);
    // Only the driver inserts, and only members; no records are kept at all.
    config.set_kbucket_inserts(kad::BucketInserts::Manual).set_record_filtering(kad::StoreInserts::FilterBoth);
    let mut kad = kad::Behaviour::with_config(me, MemoryStore::new(me), config);
    // The default waits for a confirmed public address, which a lab never has.
    kad.set_mode(Some(kad::Mode::Server));
    kad
}

fn local_discovery(me: PeerId) -> Option<mdns::tokio::Behaviour> {
    match mdns::tokio::Behaviour::new(mdns::Config::default(), me) {
        Ok(mdns) => Some(mdns),
        Err(error) => {
            tracing::warn!(%error, "mDNS is not available; members on this network are found by other means only");
            None
        }
    }
}

/// Our relays serve members, for work: libp2p's defaults (128 KiB, two minutes) are for strangers' hole punching.
fn relay_limits() -> relay::Config {
    let config = relay::Config {
        max_circuits: CIRCUITS_MAX,
        max_circuits_per_peer: CIRCUITS_MAX / 4,
        max_circuit_bytes: CIRCUIT_BYTES_MAX,
        max_circuit_duration: CIRCUIT_TIME_MAX,
        circuit_src_rate_limiters: Vec::new(),
        ..relay::Config::default()
    };
    config.circuit_src_per_peer(CIRCUITS_PER_MINUTE, Duration::from_secs(60))
}

/// The topic as libp2p wants it.
pub(crate) fn gossip_topic(topic: Topic, mesh: &MeshId) -> IdentTopic {
    IdentTopic::new(topic.name(mesh))
}

/// Content-addressed: the same words of the same author on the same topic are one message. An author that wants to
/// repeat itself within [`GOSSIP_DUPLICATES`] puts a counter or a time into the message.
fn message_id(message: &gossipsub::Message) -> MessageId {
    let source = message.source.map(|peer| peer.to_bytes()).unwrap_or_default();
    let topic = message.topic.as_str().as_bytes();
    let mut bytes = Vec::with_capacity(16 + topic.len() + source.len() + message.data.len());
    for part in [topic, &source[..], &message.data[..]] {
        bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
        bytes.extend_from_slice(part);
    }
    MessageId::from(Hash::of(&bytes).0.to_vec())
}

fn gossip(mesh: &MeshId, key: &Keypair, tally: Arc<Tally>) -> Result<Gossip, StartError> {
    let config = gossipsub::ConfigBuilder::default()
        .protocol_id_prefix(format!("/sinew/{}/gossip", mesh.short()))
        .max_transmit_size(GOSSIP_LEN_MAX)
        .validate_messages()
        .validation_mode(gossipsub::ValidationMode::Strict)
        .message_id_fn(message_id)
        .duplicate_cache_time(GOSSIP_DUPLICATES)
        .heartbeat_initial_delay(GOSSIP_INITIAL_DELAY)
        .heartbeat_interval(GOSSIP_HEARTBEAT)
        // Three laptops cannot satisfy libp2p's D = 6; with more nodes 4 still reaches all in a few hops.
        .mesh_n_low(2)
        .mesh_n(4)
        .mesh_n_high(8)
        .mesh_outbound_min(1)
        .gossip_lazy(4)
        .history_length(GOSSIP_HISTORY)
        .history_gossip(3)
        .flood_publish(true)
        .connection_handler_queue_len(GOSSIP_QUEUE_LEN)
        .build()
        .map_err(|_| StartError::Gossip("the parameters contradict each other"))?;
    let signed = MessageAuthenticity::Signed(key.clone());
    let mut gossip = Gossip::new_with_transform(signed, config, Counting(tally)).map_err(StartError::Gossip)?;
    let topics = Topic::ALL.map(|topic| gossip_topic(topic, mesh));
    let params = PeerScoreParams {
        topics: topics.iter().map(|topic| (topic.hash(), topic_score())).collect(),
        // libp2p can only exempt single addresses from the colocation penalty, and members share one on loopback, in
        // containers and behind NAT. Certificates already stop one host from posing as many, so it is off.
        ip_colocation_factor_weight: 0.0,
        ..PeerScoreParams::default()
    };
    gossip
        .with_peer_score(params, PeerScoreThresholds::default())
        .map_err(|_| StartError::Gossip("the score parameters are out of range"))?;
    for topic in &topics {
        gossip.subscribe(topic).map_err(|_| StartError::Gossip("the topics could not be subscribed to"))?;
    }
    Ok(gossip)
}

/// Good deeds count a little, invalid messages a lot, silence nothing: an idle mesh is healthy.
fn topic_score() -> TopicScoreParams {
    TopicScoreParams {
        topic_weight: 1.0,
        time_in_mesh_weight: 0.01,
        time_in_mesh_quantum: Duration::from_secs(1),
        time_in_mesh_cap: 100.0,
        first_message_deliveries_weight: 0.1,
        first_message_deliveries_cap: 100.0,
        mesh_message_deliveries_weight: 0.0,
        mesh_failure_penalty_weight: 0.0,
        invalid_message_deliveries_weight: -10.0,
        invalid_message_deliveries_decay: 0.9,
        ..TopicScoreParams::default()
    }
}

pub(crate) fn keypair(identity: &Identity) -> Keypair {
    Keypair::ed25519_from_bytes(identity.seed()).expect("an ed25519 seed is any 32 bytes")
}

/// A swarm on TCP (noise, yamux) and QUIC, with DNS names and relayed addresses, around the behaviour that `make` gives.
pub(crate) fn swarm<B, F>(key: Keypair, make: F) -> Result<Swarm<B>, StartError>
where
    B: NetworkBehaviour,
    F: FnOnce(&Keypair, relay::client::Behaviour) -> B,
{
    // rust-yamux sizes windows by itself (256 KiB at first, then by round trip and use, up to 1 GiB per connection),
    // and libp2p 0.57 lets nothing but the number of streams be set; the defaults carry a loopback at full speed.
    let swarm = SwarmBuilder::with_existing_identity(key)
        .with_tokio()
        .with_tcp(tcp::Config::new().nodelay(true), noise::Config::new, yamux::Config::default)
        .map_err(StartError::Noise)?
        .with_quic()
        .with_dns()
        .map_err(StartError::Dns)?
        .with_relay_client(noise::Config::new, yamux::Config::default)
        .map_err(StartError::Noise)?
        .with_behaviour(make)
        .unwrap_or_else(|never| match never {})
        .with_swarm_config(|config| config.with_idle_connection_timeout(IDLE_TIMEOUT))
        .build();
    Ok(swarm)
}

/// The node's swarm. It does not listen yet.
pub(crate) fn node_swarm(
    config: &MeshConfig,
    mesh: &MeshId,
    identity: &Identity,
    tally: Arc<Tally>,
) -> Result<Swarm<Behaviour>, StartError> {
    // The builder wants a constructor that cannot fail, so the parameters that can are tried out first.
    let key = keypair(identity);
    gossip(mesh, &key, Arc::default())?;
    swarm(key, |key, relay_client| {
        Behaviour::new(config, mesh, key, relay_client, tally).expect("the same parameters were accepted just now")
    })
}
