//! The mesh over real loopback sockets: members find each other and exchange frames, gossip and blobs; everyone else is
//! refused and counted, whatever they send.

mod counters;
mod support;
mod twins;
mod ways_back;

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::AsyncWriteExt as _;
use sinew_crdt_state::cbor;
use sinew_crdt_state::certificate::{Credential, Roles, Ticket, TicketBody};
use sinew_crdt_state::ids::NodeId;
use sinew_mesh::wire::{self, Hello, HelloMessage};
use sinew_mesh::{
    DropReason, FrameClass, JoinError, JoinRefusal, Mesh, MeshConfig, MeshEvent, RefusalKind, SendError, StartError,
    Topic, Transport, Verdict, join,
};
use support::{Attacker, Lab, Node, QUIC, TCP, now_ms, who};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const HOUR_MS: u64 = 3_600_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_find_each_other_and_exchange_frames() {
    let lab = Lab::new();
    let mut a = lab.node(1, &[TCP], &[]).await;
    let mut b = lab.node(2, &[TCP], &a.addrs()).await;
    let mut c = lab.node(3, &[TCP], &a.addrs()).await;
    a.wait_up(&[b.id(), c.id()]).await;
    b.wait_up(&[a.id()]).await;
    c.wait_up(&[a.id()]).await;
    // What the ledger would do: a tells b where c is.
    b.mesh.add_peer_addrs(c.id(), c.addrs());
    b.wait_up(&[c.id()]).await;
    c.wait_up(&[b.id()]).await;

    exchange(&a, &mut b).await;
    exchange(&c, &mut a).await;
    let status = a.mesh.status().await;
    assert_eq!(status.peers.len(), 2);
    assert!(status.peers.iter().all(|p| p.connections.iter().all(|c| c.transport == Transport::Tcp)));
    assert_eq!(status.refusals.values().sum::<u64>(), 0, "{:?}", status.refusals);
    assert_eq!(a.mesh.send(who(9).id(), FrameClass::Control, Bytes::new()), Err(SendError::NoRoute));
    lab.stop([a, b, c]).await;
}

async fn exchange(from: &Node, to: &mut Node) {
    for class in [FrameClass::Control, FrameClass::Bulk] {
        for n in 0..50_u32 {
            let len = if class == FrameClass::Bulk { 40_000 } else { 4 };
            let mut frame = n.to_be_bytes().to_vec();
            frame.resize(len, 7);
            from.mesh.send(to.id(), class, frame.into()).expect("queued");
        }
        let got = to.frames(from.id(), class, 50).await;
        let order: Vec<_> = got.iter().map(|f| u32::from_be_bytes(f[..4].try_into().expect("4 bytes"))).collect();
        assert_eq!(order, (0..50).collect::<Vec<_>>(), "in order, none lost");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gossip_reaches_all_and_duplicates_collapse() {
    let lab = Lab::new();
    let mut a = lab.node(1, &[TCP], &[]).await;
    let mut b = lab.node(2, &[TCP], &a.addrs()).await;
    let mut c = lab.node(3, &[TCP], &a.addrs()).await;
    a.wait_up(&[b.id(), c.id()]).await;
    b.wait_up(&[a.id()]).await;
    c.wait_up(&[a.id()]).await;
    // b and c are not connected: what b says reaches c through a, once a has accepted it. c knows b from the ledger.
    c.mesh.add_member(b.id(), lab.credential(&b.identity));
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut n = 0_u32;
    let (id, bytes) = loop {
        assert!(Instant::now() < deadline, "gossip never arrived");
        // Subscriptions may still be on their way, so say something new until it is heard.
        b.mesh.publish(Topic::Advert, Bytes::from(format!("advert {n}")));
        n += 1;
        if let Some(MeshEvent::Gossip { id, from, relayed_by, topic, bytes }) = a.try_next(200, is_gossip).await {
            assert_eq!((from, relayed_by, topic), (b.id(), b.id(), Topic::Advert));
            break (id, bytes);
        }
    };
    assert!(c.try_next(300, is_gossip).await.is_none(), "nothing passes before it is judged");
    a.mesh.report_gossip(id, Verdict::Accept);
    let MeshEvent::Gossip { from, relayed_by, bytes: heard, .. } = c.next(is_gossip).await else { unreachable!() };
    assert_eq!((from, relayed_by, heard), (b.id(), a.id(), bytes.clone()));
    // The same words again are the same message.
    b.mesh.publish(Topic::Advert, bytes);
    assert!(a.try_next(500, is_gossip).await.is_none());
    assert!(b.mesh.status().await.gossip.dropped > 0);
    lab.stop([a, b, c]).await;
}

fn is_gossip(event: &MeshEvent) -> bool {
    matches!(event, MeshEvent::Gossip { .. })
}

/// Gossip by an author whose certificate was never seen goes no further than the driver.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gossip_of_unknown_authors_is_dropped() {
    let lab = Lab::new();
    let mut a = lab.node(1, &[TCP], &[]).await;
    let mut b = lab.node(2, &[TCP], &a.addrs()).await;
    let mut c = lab.node(3, &[TCP], &a.addrs()).await;
    a.wait_up(&[b.id(), c.id()]).await;
    b.wait_up(&[a.id()]).await;
    c.wait_up(&[a.id()]).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut n = 0;
    while c.refusals(RefusalKind::GossipAuthor).await == 0 {
        assert!(Instant::now() < deadline, "b's gossip never reached c");
        b.mesh.publish(Topic::Advert, Bytes::from(format!("advert {n}")));
        n += 1;
        if let Some(MeshEvent::Gossip { id, .. }) = a.try_next(200, is_gossip).await {
            a.mesh.report_gossip(id, Verdict::Accept);
        }
    }
    assert!(c.try_next(100, is_gossip).await.is_none());
    lab.stop([a, b, c]).await;
}

/// Makes a bad credential for a node from the lab, another mesh, the node's id and the time.
type Make = fn(&Lab, &Lab, NodeId, u64) -> Credential;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_certificates_are_refused_counted_and_dropped() {
    let lab = Lab::new();
    let other = Lab::with_mesh(77);
    let mut a = lab.node(1, &[TCP], &[]).await;
    let now = now_ms();
    let cases: [(u8, RefusalKind, Make); 5] = [
        (10, RefusalKind::Expired, |lab, _, id, now| lab.founder.issue(&lab.admin, id, Roles::RUN, now - 10, now - 1)),
        (11, RefusalKind::OtherMesh, |_, other, id, now| {
            other.founder.issue(&other.admin, id, Roles::RUN, now, now + HOUR_MS)
        }),
        (12, RefusalKind::Forged, |lab, _, id, now| {
            let mut forged = lab.founder.issue(&lab.admin, id, Roles::RUN, now, now + HOUR_MS);
            forged.chain[0].body.roles = Roles::ALL;
            forged
        }),
        (13, RefusalKind::OtherNode, |lab, _, _, _| lab.founder.clone()),
        (14, RefusalKind::ChainLength, |_, _, _, _| Credential { chain: Vec::new() }),
    ];
    for (seed, kind, make) in cases {
        let attacker = Attacker::connect(seed, &a.addrs()[0], a.peer()).await;
        let credential = make(&lab, &other, attacker.node, now);
        let mut stream = attacker.open(a.peer(), wire::HELLO).await.expect("hello is open to all");
        let message = HelloMessage::Hello(Box::new(Hello::new(credential, &[])));
        stream.write_all(&support::prefixed(&cbor::to_vec(&message))).await.expect("write");
        let answer = support::read_prefixed(&mut stream).await.expect("it says why");
        assert_eq!(wire::decode_hello(&answer), Ok(HelloMessage::Refused(kind)));
        attacker.wait_disconnected().await;
        assert_eq!(a.refusals(kind).await, 1, "{kind} is counted");
    }
    let leaked = a.try_next(300, |e| matches!(e, MeshEvent::PeerUp { .. } | MeshEvent::Frame { .. })).await;
    assert!(leaked.is_none(), "{leaked:?}");
    assert!(a.mesh.status().await.peers.is_empty());
    lab.stop([a]).await;
}

/// Two whole daemons of two meshes: neither takes the other, and neither redials in a loop.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_meshes_do_not_mix() {
    let (lab, other) = (Lab::new(), Lab::with_mesh(77));
    let a = lab.node(1, &[TCP], &[]).await;
    let b = other.node(2, &[TCP], &a.addrs()).await;
    support::eventually("the refusal", || async { a.refusals(RefusalKind::OtherMesh).await > 0 }).await;
    support::eventually("b hears why", || async { b.refusals(RefusalKind::RefusedUs).await > 0 }).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let refusals: u64 = b.mesh.status().await.refusals.values().sum();
    assert!(refusals <= 4, "b dialled in a loop: {refusals} refusals in 3 s");
    assert!(a.mesh.status().await.peers.is_empty() && b.mesh.status().await.peers.is_empty());
    lab.stop([a, b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_and_strangers_are_disconnected() {
    let lab = Lab::new();
    let a = lab.node(1, &[TCP], &[]).await;
    let silent = Attacker::connect(20, &a.addrs()[0], a.peer()).await;
    // A libp2p program that is no Sinew node, in b's bootstrap list.
    let stranger = Attacker::listen(21).await;
    let b = lab.node(2, &[TCP], &[stranger.addr.clone().expect("it listens")]).await;
    support::eventually("the stranger is known", || async { b.refusals(RefusalKind::Stranger).await > 0 }).await;
    silent.wait_disconnected().await;
    assert_eq!(a.refusals(RefusalKind::NoHello).await, 1);
    lab.stop([a, b]).await;
}

/// Times that an attacker tries to be quicker than gossipsub.
const QUICKER_MAX: u32 = 20;

/// Garbage and huge length prefixes on every protocol: the node lives, drops the sender and counts it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_every_protocol_is_survived() {
    let lab = Lab::new();
    let mut config = support::config(&[TCP], &[]);
    config.kad = true;
    let mut a = lab.start(1, config).await;
    let mut b = lab.node(2, &[TCP], &a.addrs()).await;
    a.wait_up(&[b.id()]).await;
    let protocols = [
        (wire::HELLO, Some(RefusalKind::Malformed)),
        (wire::JOIN, Some(RefusalKind::Join)),
        (wire::CONTROL, Some(RefusalKind::NotMember)),
        (wire::BULK, Some(RefusalKind::NotMember)),
        (wire::BLOBS, Some(RefusalKind::NotMember)),
        (support::gossip_protocol(&lab), None),
        (support::kad_protocol(&lab), None),
    ];
    let payloads = [
        support::prefixed(&support::noise(5_000)),
        vec![0xff; 70_000],
        [&[0, 0, 0, 9][..], &support::noise(9)].concat(),
    ];
    let mut seed = 30;
    for (protocol, kind) in protocols {
        for payload in &payloads {
            seed += 1;
            let mut attacker = Attacker::connect(seed, &a.addrs()[0], a.peer()).await;
            let before = match kind {
                Some(kind) => a.refusals(kind).await,
                None => 0,
            };
            // A members' protocol may be cut off before the attacker's end of the negotiation is through.
            let mut opened = attacker.open(a.peer(), protocol.clone()).await;
            // gossipsub says that it does not speak its protocol once it has noticed that the other side does not: be quicker.
            for _ in 0..QUICKER_MAX {
                if opened.is_some() || kind.is_some() {
                    break;
                }
                seed += 1;
                attacker = Attacker::connect(seed, &a.addrs()[0], a.peer()).await;
                opened = attacker.open(a.peer(), protocol.clone()).await;
            }
            assert!(opened.is_some() || kind == Some(RefusalKind::NotMember), "{protocol} is spoken");
            if let Some(mut stream) = opened {
                let _ = stream.write_all(payload).await;
                let _ = stream.flush().await;
            }
            if let Some(kind) = kind {
                attacker.wait_disconnected().await;
                assert_eq!(a.refusals(kind).await, before + 1, "{protocol} with {} bytes", payload.len());
            }
        }
    }
    b.mesh.send(a.id(), FrameClass::Control, Bytes::from_static(b"alive")).expect("queued");
    assert_eq!(a.frames(b.id(), FrameClass::Control, 1).await, [Bytes::from_static(b"alive")]);
    assert_eq!(b.try_next(10, |e| matches!(e, MeshEvent::PeerDown { .. })).await.map(|_| ()), None);
    lab.stop([a, b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_over_the_limit_drops_its_sender() {
    let lab = Lab::new();
    let mut small = MeshConfig::bare(vec![TCP.parse().expect("addr")]);
    small.frame_len_max = 100_000;
    let mut a = lab.start(1, small).await;
    let mut b = lab.node(2, &[TCP], &a.addrs()).await;
    a.wait_up(&[b.id()]).await;
    b.wait_up(&[a.id()]).await;
    assert!(matches!(a.mesh.send(b.id(), FrameClass::Bulk, vec![0; 100_001].into()), Err(SendError::TooLong { .. })));
    b.mesh.send(a.id(), FrameClass::Bulk, vec![0; 100_001].into()).expect("within b's own limit");
    a.wait_down(b.id()).await;
    assert_eq!(a.refusals(RefusalKind::FrameTooLong).await, 1);
    lab.stop([a, b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_peer_stays_away_and_a_reinstated_one_returns() {
    let lab = Lab::new();
    let mut a = lab.node(1, &[TCP], &[]).await;
    let mut b = lab.node(2, &[TCP], &a.addrs()).await;
    a.wait_up(&[b.id()]).await;
    b.wait_up(&[a.id()]).await;
    a.mesh.drop_peer(b.id(), DropReason::Revoked);
    a.wait_down(b.id()).await;
    b.wait_down(a.id()).await;
    support::eventually("b tries again in vain", || async { a.refusals(RefusalKind::Banned).await > 0 }).await;
    assert_eq!(a.refusals(RefusalKind::Revoked).await, 1);
    a.mesh.reinstate(b.id());
    a.wait_up(&[b.id()]).await;
    lab.stop([a, b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joining_by_ticket() {
    let lab = Lab::new();
    let mut a = lab.start_as(&lab.admin, lab.founder.clone(), support::config(&[TCP], &[])).await;
    let addrs: Vec<_> = a.addrs().iter().map(ToString::to_string).collect();
    let body = TicketBody {
        mesh: lab.mesh,
        name: "lab".into(),
        issuer: lab.admin.id(),
        addrs: addrs.clone(),
        roles: Roles::RUN,
        expires_ms: now_ms() + HOUR_MS,
    };
    let (admin, founder) = (lab.admin.clone(), lab.founder.clone());
    let issuer = tokio::spawn(async move {
        while let Some(event) = a.events.recv().await {
            if let MeshEvent::JoinRequest { node, ticket, reply } = event {
                let answer = match ticket.body.name.as_str() {
                    "spent" => Err(JoinRefusal::Declined),
                    _ => Ok(founder.issue(&admin, node, ticket.body.roles, now_ms(), now_ms() + HOUR_MS)),
                };
                let _ = reply.send(answer);
            }
        }
        a.mesh
    });
    let wait = Duration::from_secs(15);
    let newcomer = who(5);
    let credential = join(&Ticket::sign(&lab.admin, body.clone()), &newcomer, wait).await.expect("joined");
    assert_eq!(credential.verify(lab.mesh, newcomer.id(), now_ms()), Ok(Roles::RUN));
    let member = lab.start_as(&newcomer, credential, support::config(&[TCP], &addrs_of(&addrs))).await;
    support::eventually("the newcomer is a member", || async { !member.mesh.status().await.peers.is_empty() }).await;

    let expired = TicketBody { expires_ms: now_ms() - 1, ..body.clone() };
    let error = join(&Ticket::sign(&lab.admin, expired), &newcomer, wait).await.expect_err("expired");
    assert!(matches!(error, JoinError::Ticket(_)), "{error}");
    let mut forged = Ticket::sign(&lab.admin, body.clone());
    forged.body.roles = Roles::ALL;
    assert!(matches!(join(&forged, &newcomer, wait).await, Err(JoinError::Ticket(_))));
    let spent = Ticket::sign(&lab.admin, TicketBody { name: "spent".into(), ..body.clone() });
    assert!(matches!(join(&spent, &who(6), wait).await, Err(JoinError::Refused(JoinRefusal::Declined))));
    let other_mesh = Ticket::sign(&lab.admin, TicketBody { mesh: Lab::with_mesh(77).mesh, ..body.clone() });
    assert!(matches!(join(&other_mesh, &who(6), wait).await, Err(JoinError::Refused(JoinRefusal::OtherMesh))));
    // Signed by someone else, who is not at that address.
    let impostor = Ticket::sign(&who(8), TicketBody { issuer: who(8).id(), ..body.clone() });
    let error = join(&impostor, &who(6), wait).await.expect_err("another node answers");
    assert!(matches!(error, JoinError::Unreachable(_)) && error.to_string().contains(&addrs[0]), "{error}");
    // Nobody at that address.
    let nobody = Ticket::sign(&lab.admin, TicketBody { addrs: vec!["/ip4/127.0.0.1/tcp/1".into()], ..body });
    let error = join(&nobody, &who(6), wait).await.expect_err("nobody is there").to_string();
    assert!(error.contains("/ip4/127.0.0.1/tcp/1") && error.contains("refused"), "{error}");

    lab.stop([member]).await;
    issuer.abort();
}

fn addrs_of(texts: &[String]) -> Vec<libp2p::Multiaddr> {
    texts.iter().map(|t| t.parse().expect("addr")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_restarts_on_its_port_is_found_again() {
    let lab = Lab::new();
    let a = lab.node(1, &[TCP], &[]).await;
    let addrs = a.addrs();
    let mut b = lab.node(2, &[TCP], &addrs).await;
    b.wait_up(&[a.id()]).await;
    let id = a.id();
    a.mesh.shutdown().await;
    b.wait_down(id).await;
    let again = support::config(&[&addrs[0].to_string()], &[]);
    let mut a = lab.start(1, again).await;
    let started = Instant::now();
    b.wait_up(&[id]).await;
    a.wait_up(&[b.id()]).await;
    assert!(started.elapsed() < Duration::from_secs(5), "the redial took {:?}", started.elapsed());
    b.mesh.send(id, FrameClass::Control, Bytes::from_static(b"back")).expect("queued");
    assert_eq!(a.frames(b.id(), FrameClass::Control, 1).await, [Bytes::from_static(b"back")]);
    lab.stop([a, b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quic_carries_frames_and_blobs() {
    let lab = Lab::new();
    let mut a = lab.node(1, &[QUIC], &[]).await;
    let mut b = lab.node(2, &[QUIC], &a.addrs()).await;
    a.wait_up(&[b.id()]).await;
    b.wait_up(&[a.id()]).await;
    a.mesh.send(b.id(), FrameClass::Bulk, vec![5; 1_000_000].into()).expect("queued");
    assert_eq!(b.frames(a.id(), FrameClass::Bulk, 1).await[0].len(), 1_000_000);
    let status = a.mesh.status().await;
    assert!(status.peers[0].connections.iter().all(|c| c.transport == Transport::Quic), "{status:?}");
    echo(&a, &mut b, 4 * 1024 * 1024).await;
    lab.stop([a, b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_stream_carries_64_mib_unharmed() {
    let lab = Lab::new();
    let mut a = lab.node(1, &[TCP], &[]).await;
    let mut b = lab.node(2, &[TCP], &a.addrs()).await;
    a.wait_up(&[b.id()]).await;
    b.wait_up(&[a.id()]).await;
    echo(&a, &mut b, 64 * 1024 * 1024).await;
    lab.stop([a, b]).await;
}

async fn echo(a: &Node, b: &mut Node, len: usize) {
    let mut near = a.mesh.open_blob_stream(b.id()).await.expect("stream");
    near.write_all(&[1]).await.expect("write");
    near.flush().await.expect("flush");
    let is_stream = |e: &MeshEvent| matches!(e, MeshEvent::BlobStream { .. });
    let MeshEvent::BlobStream { from, stream: mut far } = b.next(is_stream).await else { unreachable!() };
    assert_eq!(from, a.id());
    let back = tokio::spawn(async move {
        let mut buf = vec![0; 128 * 1024];
        loop {
            let n = far.read(&mut buf).await.expect("read");
            if n == 0 {
                break far.shutdown().await.expect("shutdown");
            }
            far.write_all(&buf[..n]).await.expect("write");
        }
    });
    let sent = support::noise(len);
    let (mut read, mut write) = tokio::io::split(near);
    let expected = sent.clone();
    let writer = tokio::spawn(async move {
        write.write_all(&sent).await.expect("write");
        write.shutdown().await.expect("shutdown");
    });
    let mut got = Vec::with_capacity(len + 1);
    read.read_to_end(&mut got).await.expect("read");
    writer.await.expect("writer");
    back.await.expect("echo");
    assert!(got[0] == 1 && got[1..] == expected[..], "content differs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_in_use_is_named() {
    let lab = Lab::new();
    let a = lab.node(1, &[TCP, QUIC], &[]).await;
    for addr in a.addrs() {
        let identity = who(2);
        let config = support::config(&[&addr.to_string()], &[]);
        let credential = lab.credential(&identity);
        let error = Mesh::start(config, &identity, credential, lab.mesh, now_ms).await.expect_err("in use");
        assert!(matches!(&error, StartError::AddressInUse { addr: at } if *at == addr), "{error:?}");
        assert!(error.to_string().contains(&addr.to_string()), "{error}");
    }
    lab.stop([a]).await;
}

/// A data directory copied to a second host: whoever dials notices (the other side may only see a broken handshake),
/// and neither takes the other for a member.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copied_identity_is_noticed() {
    let lab = Lab::new();
    let a = lab.node(1, &[TCP], &[]).await;
    let b = lab.node(1, &[TCP], &a.addrs()).await;
    support::eventually("b notices", || async { b.refusals(RefusalKind::OwnKey).await > 0 }).await;
    assert!(a.mesh.status().await.peers.is_empty() && b.mesh.status().await.peers.is_empty());
    lab.stop([a, b]).await;
}

/// Both sides learn of each other in the same instant and dial.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn simultaneous_dials_converge() {
    let lab = Lab::new();
    for round in 0..5_u8 {
        let mut a = lab.node(40 + 2 * round, &[TCP, QUIC], &[]).await;
        let mut b = lab.node(41 + 2 * round, &[TCP, QUIC], &[]).await;
        a.mesh.add_peer_addrs(b.id(), b.addrs());
        b.mesh.add_peer_addrs(a.id(), a.addrs());
        // Sending pokes the dialler, so this also defeats the courtesy delay of the larger id.
        a.mesh.send(b.id(), FrameClass::Control, Bytes::from_static(b"first")).ok();
        b.mesh.send(a.id(), FrameClass::Control, Bytes::from_static(b"first")).ok();
        a.wait_up(&[b.id()]).await;
        b.wait_up(&[a.id()]).await;
        for _ in 0..20 {
            a.mesh.send(b.id(), FrameClass::Control, Bytes::from_static(b"x")).expect("queued");
            b.mesh.send(a.id(), FrameClass::Bulk, Bytes::from_static(b"y")).expect("queued");
        }
        b.frames(a.id(), FrameClass::Control, 20).await;
        a.frames(b.id(), FrameClass::Bulk, 20).await;
        lab.stop([a, b]).await;
    }
}

/// A node that can only dial out is reached through a relay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_listener_is_reached_through_a_relay() {
    let lab = Lab::new();
    let first = lab.node(1, &[TCP], &[]).await;
    let addr = first.addrs()[0].clone();
    lab.stop([first]).await;
    let mut config = support::config(&[&addr.to_string()], &[]);
    config.relay_server = true;
    // A relay offers the addresses under which it is known to be reachable.
    config.external = vec![addr];
    let mut relay = lab.start(1, config).await;
    let mut hidden = support::config(&[], &relay.addrs());
    hidden.relay_client = true;
    let mut hidden = lab.start(2, hidden).await;
    relay.wait_up(&[hidden.id()]).await;
    let circuit =
        |e: &MeshEvent| matches!(e, MeshEvent::Listening { addr } if addr.to_string().contains("p2p-circuit"));
    let MeshEvent::Listening { addr } = hidden.next(circuit).await else { unreachable!() };
    let mut caller = lab.node(3, &[TCP], &[]).await;
    caller.mesh.add_peer_addrs(hidden.id(), vec![addr]);
    caller.wait_up(&[hidden.id()]).await;
    hidden.wait_up(&[caller.id()]).await;
    caller.mesh.send(hidden.id(), FrameClass::Bulk, vec![3; 500_000].into()).expect("queued");
    assert_eq!(hidden.frames(caller.id(), FrameClass::Bulk, 1).await[0].len(), 500_000);
    let status = caller.mesh.status().await;
    assert!(status.peers.iter().any(|p| p.connections.iter().any(|c| c.transport == Transport::Relay)), "{status:?}");
    lab.stop([relay, hidden, caller]).await;
}

/// Members find each other through Kademlia with nothing but one bootstrap node in common.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kademlia_introduces_members() {
    let lab = Lab::new();
    let config = |bootstrap: &[libp2p::Multiaddr]| {
        let mut config = support::config(&[TCP], bootstrap);
        config.kad = true;
        config
    };
    let a = lab.start(1, config(&[])).await;
    let b = lab.start(2, config(&a.addrs())).await;
    let mut c = lab.start(3, config(&a.addrs())).await;
    c.wait_up(&[b.id()]).await;
    lab.stop([a, b, c]).await;
}
