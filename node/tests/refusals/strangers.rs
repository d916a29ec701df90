//! Peers that speak raw libp2p: strangers without a good certificate, garbage on every protocol, and members that
//! announce more than they may. Each is refused, counted, logged once and disconnected.

use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::swarm::SwarmEvent;
use libp2p::{Stream, StreamProtocol, SwarmBuilder, noise, tcp, yamux};
use sinew_crdt_state::cbor;
use sinew_crdt_state::certificate::{Credential, Roles};
use sinew_crdt_state::identity::Identity;
use sinew_crdt_state::ids::NodeId;
use sinew_mesh::peer_id;
use sinew_mesh::wire::{self, Hello, HelloMessage};
use sinew_node::clock::unix_ms;
use sinew_node::datadir::DataDir;
use sinew_node::local_mesh::LocalNode;
use tokio::sync::watch;

use crate::hostile::{HOUR_MS, address, credential, fresh, is_alive, refused, warnings};
use crate::support::{DEADLINE, eventually, mesh};

/// What a header of 100 MB looks like.
const HUGE: [u8; 4] = 100_000_000_u32.to_be_bytes();

/// A raw libp2p program without any manners.
struct Attacker {
    who: Identity,
    control: libp2p_stream::Control,
    connections: watch::Receiver<Option<u32>>,
    /// Headers of the first frames that came on streams of [`wire::BULK`].
    bulk: watch::Receiver<Option<[u8; 4]>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Attacker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Attacker {
    /// Connects and says nothing.
    async fn connect(to: &LocalNode) -> Self {
        Self::connect_as(fresh(), to).await
    }

    async fn connect_as(who: Identity, to: &LocalNode) -> Self {
        let key = libp2p::identity::Keypair::ed25519_from_bytes(who.seed()).expect("32 bytes");
        let mut swarm = SwarmBuilder::with_existing_identity(key)
            .with_tokio()
            .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
            .expect("tcp")
            .with_behaviour(|_| libp2p_stream::Behaviour::new())
            .expect("behaviour")
            .with_swarm_config(|c| c.with_idle_connection_timeout(Duration::from_secs(600)))
            .build();
        let mut control = swarm.behaviour().new_control();
        let addr = address(to).await.with_p2p(peer_id(to.id)).expect("no other peer");
        swarm.dial(addr).expect("dial");
        // The daemon opens its own streams to a member: they are taken and, but for the first header, never read.
        let (header, bulk) = watch::channel(None);
        for protocol in [wire::CONTROL, wire::BULK] {
            let mut incoming = control.accept(protocol.clone()).expect("once");
            let header = header.clone();
            tokio::spawn(async move {
                let mut held = Vec::new();
                while let Some((_, mut stream)) = incoming.next().await {
                    let mut bytes = [0; 4];
                    if protocol == wire::BULK && stream.read_exact(&mut bytes).await.is_ok() {
                        header.send_replace(Some(bytes));
                    }
                    held.push(stream);
                }
            });
        }
        let (count, mut connections) = watch::channel(None);
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
        let connected = tokio::time::timeout(DEADLINE, connections.wait_for(Option::is_some)).await;
        connected.expect("in time").expect("alive");
        Self { who, control, connections, bulk, task }
    }

    async fn open(&self, to: &LocalNode, protocol: StreamProtocol) -> Option<Stream> {
        let opening = async { self.control.clone().open_stream(peer_id(to.id), protocol).await };
        tokio::time::timeout(DEADLINE, opening).await.expect("in time").ok()
    }

    /// Sends bytes on a protocol; it may be cut off before all of them are out.
    async fn send(&self, to: &LocalNode, protocol: StreamProtocol, bytes: &[u8]) -> Option<Stream> {
        let mut stream = self.open(to, protocol).await?;
        let _ = stream.write_all(bytes).await;
        let _ = stream.flush().await;
        Some(stream)
    }

    /// Shows a credential as a member does; whether it was let in.
    async fn hello(&self, to: &LocalNode, credential: Credential) -> bool {
        let hello = prefixed(&HelloMessage::Hello(Box::new(Hello::new(credential, &[]))));
        let Some(mut stream) = self.send(to, wire::HELLO, &hello).await else { return false };
        let mut header = [0; 4];
        if stream.read_exact(&mut header).await.is_err() {
            return false;
        }
        let mut answer = vec![0; u32::from_be_bytes(header) as usize];
        let read = stream.read_exact(&mut answer).await;
        let welcome = read.is_ok() && matches!(wire::decode_hello(&answer), Ok(HelloMessage::Hello(_)));
        welcome && stream.write_all(&prefixed(&HelloMessage::Done)).await.is_ok() && stream.flush().await.is_ok()
    }

    async fn wait_disconnected(&self) {
        let mut connections = self.connections.clone();
        let gone = connections.wait_for(|n| *n == Some(0));
        tokio::time::timeout(DEADLINE, gone).await.expect("disconnected in time").expect("alive");
    }
}

fn prefixed(message: &HelloMessage) -> Vec<u8> {
    let body = cbor::to_vec(message);
    [&wire::header(body.len())[..], &body].concat()
}

/// What bad credentials are made of: the mesh's own admin, and the founder of another mesh.
struct Keys {
    admin: (Identity, Credential),
    other: (Identity, Credential),
}

type Make = fn(&Keys, NodeId) -> Credential;

const BAD_CREDENTIALS: [(&str, Make); 6] = [
    ("OtherMesh", |k, who| k.other.1.issue(&k.other.0, who, Roles::ALL, unix_ms(), unix_ms() + HOUR_MS)),
    ("Forged", |k, who| {
        let mut forged = k.admin.1.issue(&k.admin.0, who, Roles::RUN, unix_ms(), unix_ms() + HOUR_MS);
        forged.chain[0].body.roles = Roles::ALL;
        forged
    }),
    ("Forged", |k, who| k.admin.1.issue(&k.other.0, who, Roles::RUN, unix_ms(), unix_ms() + HOUR_MS)),
    ("Expired", |k, who| k.admin.1.issue(&k.admin.0, who, Roles::RUN, unix_ms() - 10, unix_ms() - 1)),
    ("OtherNode", |k, _| k.admin.1.clone()),
    ("ChainLength", |_, _| Credential { chain: Vec::new() }),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_without_a_good_certificate_are_refused() {
    let rig = mesh(1).await;
    let node = &rig.nodes[0];
    let data = DataDir::at(&node.data_dir);
    let founder = fresh();
    let other = Credential::found(&fresh(), founder.id(), unix_ms(), unix_ms() + HOUR_MS);
    let admin = (data.identity().expect("key"), data.membership().expect("membership").credential);
    let keys = Keys { admin, other: (founder, other) };
    for (kind, make) in BAD_CREDENTIALS {
        let (who, before) = (fresh(), refused(node, kind).await);
        let bad = make(&keys, who.id());
        for _ in 0..3 {
            let attacker = Attacker::connect_as(who.clone(), node).await;
            assert!(!attacker.hello(node, bad.clone()).await, "{kind} was let in");
            attacker.wait_disconnected().await;
        }
        assert_eq!(refused(node, kind).await, before + 1, "{kind}");
        let lines = warnings(node, who.id());
        assert!((1..=2).contains(&lines.len()), "{kind}: once, and once that it came back: {lines:#?}");
    }
    // One that says nothing at all.
    let silent = Attacker::connect(node).await;
    silent.wait_disconnected().await;
    assert!(refused(node, "NoHello").await >= 1);
    assert_eq!(warnings(node, silent.who.id()).len(), 1);
    assert_eq!(node.client().status().await.expect("status").peers, 0);
    is_alive(node);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_every_protocol_is_refused() {
    let rig = mesh(1).await;
    let node = &rig.nodes[0];
    let noise: Vec<u8> = (0..70_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let payloads = [noise.clone(), [&HUGE[..], &noise].concat(), [&[0, 0, 0, 9][..], &noise[..9]].concat()];
    let protocols = [
        (wire::HELLO, "Malformed"),
        (wire::JOIN, "Join"),
        (wire::CONTROL, "NotMember"),
        (wire::BULK, "NotMember"),
        (wire::BLOBS, "NotMember"),
    ];
    for (protocol, kind) in protocols {
        for payload in &payloads {
            let before = refused(node, kind).await + refused(node, "JoinRate").await;
            let attacker = Attacker::connect(node).await;
            let _stream = attacker.send(node, protocol.clone(), payload).await;
            attacker.wait_disconnected().await;
            let after = refused(node, kind).await + refused(node, "JoinRate").await;
            assert!(after > before, "{protocol}: {} bytes were not counted as {kind}", payload.len());
            assert_eq!(warnings(node, attacker.who.id()).len(), 1, "{protocol}");
        }
    }
    is_alive(node);
}

/// Members who announce frames of 100 MB, or ask the blob store in gibberish.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_break_a_protocol_are_dropped() {
    let rig = mesh(1).await;
    let node = &rig.nodes[0];
    let noise: Vec<u8> = (0..400_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let cases = [
        (wire::CONTROL, [&HUGE[..], &noise].concat(), "FrameTooLong"),
        (wire::BULK, [&HUGE[..], &noise].concat(), "FrameTooLong"),
        // Packed, as its header says, but not a block; and one that would be too long unpacked.
        (
            wire::BULK_PACKED,
            [&wire::packed_header(500)[..], &1_000_u32.to_be_bytes(), &noise[..496]].concat(),
            "Malformed",
        ),
        (wire::BULK_PACKED, [&wire::packed_header(500)[..], &HUGE, &noise[..496]].concat(), "FrameTooLong"),
        // No request begins like this. One that only ends too soon may be of a stream that was given up.
        (wire::BLOBS, [&[77][..], &noise[..1_000]].concat(), "Misbehaved"),
        (wire::BLOBS, noise, "Misbehaved"),
    ];
    for (protocol, bytes, kind) in cases {
        let before = refused(node, kind).await;
        let who = fresh();
        let good = credential(node, &who, "run").await;
        let attacker = Attacker::connect_as(who, node).await;
        assert!(attacker.hello(node, good).await, "a member is let in");
        eventually("it is a peer", || async { (node.client().status().await.ok()?.peers == 1).then_some(()) }).await;
        // It speaks the older bulk protocol only, and is sent its first frames, a card and so on, unpacked.
        let mut bulk = attacker.bulk.clone();
        let first =
            tokio::time::timeout(DEADLINE, bulk.wait_for(Option::is_some)).await.expect("a frame").expect("alive");
        assert!(wire::frame_len(&first.expect("some"), 1 << 20).is_ok(), "{first:?}");
        drop(first);
        let stream = attacker.send(node, protocol.clone(), &bytes).await;
        if let Some(mut stream) = stream {
            let _ = stream.close().await;
        }
        attacker.wait_disconnected().await;
        assert_eq!(refused(node, kind).await, before + 1, "{protocol}");
        assert_eq!(warnings(node, attacker.who.id()).len(), 1, "{protocol}: {:#?}", warnings(node, attacker.who.id()));
        eventually("it is gone", || async { (node.client().status().await.ok()?.peers == 0).then_some(()) }).await;
    }
    let status = node.client().status().await.expect("status");
    let memory = std::fs::read_to_string(format!("/proc/{}/status", status.pid)).expect("the daemon's memory");
    let peak = memory.lines().find_map(|l| l.strip_prefix("VmHWM:")).expect("a peak");
    let peak_kb: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!(peak_kb < 300_000, "what was announced is not what is reserved: {peak_kb} kB");
    is_alive(node);
}
