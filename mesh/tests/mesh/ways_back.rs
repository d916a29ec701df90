//! How members that lost each other, or a way to each other, come together again.

use bytes::Bytes;
use libp2p::Multiaddr;
use sinew_mesh::{FrameClass, RefusalKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::support::{self, Lab, TCP};

/// Only one node introduced the others to each other; it is gone when they start again, on the addresses that they had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_find_each_other_again_without_whoever_introduced_them() {
    let lab = Lab::new();
    let a = lab.node(1, &[TCP], &[]).await;
    let mut b = lab.node(2, &[TCP], &a.addrs()).await;
    let c = lab.node(3, &[TCP], &a.addrs()).await;
    b.mesh.add_peer_addrs(c.id(), c.addrs());
    b.wait_up(&[a.id(), c.id()]).await;
    let known = b.mesh.known_addrs().await;
    let known_of = |node| known.iter().find(|(known, _)| *known == node).map(|(_, addrs)| addrs.clone());
    assert!(known_of(c.id()).is_some_and(|addrs| addrs.contains(&c.addrs()[0])), "{known:?}");
    let c_listens = c.addrs()[0].to_string();
    lab.stop([a, b, c]).await;
    let c = lab.node(3, &[&c_listens], &[]).await;
    let mut config = support::config(&[TCP], &[]);
    config.known = known;
    let mut b = lab.start(2, config).await;
    b.wait_up(&[c.id()]).await;
    lab.stop([b, c]).await;
}

/// A node that goes down has said something just before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_said_last_arrives() {
    let lab = Lab::new();
    for round in 0..10_u8 {
        let mut a = lab.node(10 + 2 * round, &[TCP], &[]).await;
        let mut b = lab.node(11 + 2 * round, &[TCP], &a.addrs()).await;
        a.wait_up(&[b.id()]).await;
        b.wait_up(&[a.id()]).await;
        // The first frame shows that its stream is open; the others are in the queue when the end comes.
        a.mesh.send(b.id(), FrameClass::Control, Bytes::from_static(b"first")).expect("queued");
        b.frames(a.id(), FrameClass::Control, 1).await;
        for n in 0..200_u32 {
            let mut frame = n.to_be_bytes().to_vec();
            frame.resize(20_000, 1);
            a.mesh.send(b.id(), FrameClass::Control, frame.into()).expect("queued");
        }
        let from = a.id();
        a.mesh.shutdown().await;
        b.frames(from, FrameClass::Control, 200).await;
        lab.stop([b]).await;
    }
}

/// Carries connections to `to`, until it is told to swallow what comes.
async fn swallower(to: Multiaddr) -> (Multiaddr, watch::Sender<bool>) {
    let port = |addr: &Multiaddr| {
        addr.iter().find_map(|part| match part {
            libp2p::multiaddr::Protocol::Tcp(port) => Some(port),
            _ => None,
        })
    };
    let to = port(&to).expect("a TCP port");
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("bind");
    let addr = format!("/ip4/127.0.0.1/tcp/{}", listener.local_addr().expect("addr").port());
    let (swallows, told) = watch::channel(false);
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let Ok(far) = TcpStream::connect(("127.0.0.1", to)).await else { continue };
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            tokio::spawn(carry(near_in, far_out, told.clone()));
            tokio::spawn(carry(far_in, near_out, told.clone()));
        }
    });
    (addr.parse().expect("addr"), swallows)
}

async fn carry(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    swallows: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n) = from.read(&mut buffer).await {
        if n == 0 {
            // An end is swallowed too.
            return if *swallows.borrow() {
                std::future::pending().await
            };
        }
        if !*swallows.borrow() && to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}

/// The way between two members swallows everything, without a word to either. Both go another way as soon as one is told that
/// nothing is heard.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_leads_nowhere_is_left_for_a_new_one() {
    let lab = Lab::new();
    let mut b = lab.node(2, &[TCP], &[]).await;
    let (way, swallows) = swallower(b.addrs()[0].clone()).await;
    let mut a = lab.node(1, &[], std::slice::from_ref(&way)).await;
    a.wait_up(&[b.id()]).await;
    b.wait_up(&[a.id()]).await;
    a.mesh.send(b.id(), FrameClass::Control, Bytes::from_static(b"before")).expect("queued");
    b.frames(a.id(), FrameClass::Control, 1).await;
    b.mesh.send(a.id(), FrameClass::Control, Bytes::from_static(b"before")).expect("queued");
    a.frames(b.id(), FrameClass::Control, 1).await;

    swallows.send_replace(true);
    a.mesh.add_peer_addrs(b.id(), b.addrs());
    a.mesh.reach(b.id());
    support::eventually("a second connection", || async {
        a.mesh.status().await.peers.iter().any(|peer| peer.connections.len() > 1)
    })
    .await;
    // What was sent the old way is lost, as with any connection that breaks; so more is sent until some arrives.
    let heard = |event: &sinew_mesh::MeshEvent| matches!(event, sinew_mesh::MeshEvent::Frame { .. });
    let (mut at_b, mut at_a) = (None, None);
    while at_b.is_none() || at_a.is_none() {
        a.mesh.send(b.id(), FrameClass::Control, Bytes::from_static(b"after")).expect("queued");
        b.mesh.send(a.id(), FrameClass::Control, Bytes::from_static(b"after")).expect("queued");
        at_b = at_b.or(b.try_next(100, heard).await);
        at_a = at_a.or(a.try_next(100, heard).await);
    }
    let status = a.mesh.status().await;
    let old = status.peers[0].connections.iter().any(|connection| connection.addr == way.clone());
    assert!(old, "the old connection has not been noticed to be dead: {status:?}");
    lab.stop([a, b]).await;
}

/// A link that comes and goes leaves streams at the other end whose connections nobody has noticed to be dead. That is no offence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_half_open_connections_of_a_member_are_no_offence() {
    let lab = Lab::new();
    let mut b = lab.node(2, &[TCP], &[]).await;
    for start in 0..7 {
        let (way, swallows) = swallower(b.addrs()[0].clone()).await;
        let mut a = lab.node(1, &[], &[way]).await;
        a.wait_up(&[b.id()]).await;
        for class in [FrameClass::Control, FrameClass::Bulk] {
            a.mesh.send(b.id(), class, Bytes::from_static(b"here")).expect("queued");
            b.frames(a.id(), class, 1).await;
        }
        swallows.send_replace(true);
        let banned = b.refusals(RefusalKind::Banned).await;
        assert_eq!(banned, 0, "after {start} starts");
        a.mesh.shutdown().await;
    }
    let noted = b.refusals(RefusalKind::TooManyStreams).await;
    assert!(noted > 0, "there were too many at once, or this test shows nothing");
    lab.stop([b]).await;
}
