//! Data directories that were copied: two daemons with one key, and nodes that merely meet themselves.

use std::time::Duration;

use bytes::Bytes;
use futures::AsyncWriteExt as _;
use libp2p::multiaddr::Protocol;
use sinew_crdt_state::cbor;
use sinew_mesh::twin::TwinMessage;
use sinew_mesh::wire::{self, Hello, HelloMessage};
use sinew_mesh::{Boot, FrameClass, MeshEvent, RefusalKind};

use crate::support::{self, Attacker, Lab, Node, TCP, who};

async fn boot(lab: &Lab, seed: u8, to: &Node, boot: Boot) -> Node {
    let mut config = support::config(&[TCP], &to.addrs());
    config.boot = Some(boot);
    lab.start(seed, config).await
}

fn twin(event: &MeshEvent) -> bool {
    matches!(event, MeshEvent::Twin { .. })
}

/// The original is connected, a copy of its data directory starts, and hears who was here before, with the proof. The
/// original, and the member between the two, go on as if nothing were.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_told_of_the_one_before_and_is_not_let_in() {
    let lab = Lab::new();
    let mut between = lab.node(1, &[TCP], &[]).await;
    let mut original = boot(&lab, 2, &between, Boot { number: 3, nonce: 11 }).await;
    original.wait_up(&[between.id()]).await;
    between.wait_up(&[original.id()]).await;
    // Up is not ready yet: a copy that came before that would be let in.
    between.mesh.send(original.id(), FrameClass::Control, Bytes::from_static(b"here")).expect("connected");
    original.frames(between.id(), FrameClass::Control, 1).await;
    // The copy of a directory that was stopped counts to the same number, that of a running one further.
    for (number, nonce) in [(3, 12), (4, 13), (1, 14)] {
        let mut copy = boot(&lab, 2, &between, Boot { number, nonce }).await;
        let MeshEvent::Twin { boot, addr } = copy.next(twin).await else { unreachable!("it was asked for") };
        assert_eq!(boot, Boot { number: 3, nonce: 11 });
        assert_eq!(addr, Some(original.addrs()[0].clone()), "where the original listens");
        support::eventually("it is counted", || async { between.refusals(RefusalKind::Twin).await > 0 }).await;
        assert!(copy.mesh.status().await.peers.is_empty());
        lab.stop([copy]).await;
    }
    original.mesh.send(between.id(), FrameClass::Control, Bytes::from_static(b"still here")).expect("connected");
    assert_eq!(between.frames(original.id(), FrameClass::Control, 1).await, [Bytes::from_static(b"still here")]);
    let alarm = original.try_next(100, twin).await;
    assert!(alarm.is_none(), "{alarm:?}");
    let down = between.try_next(100, |e| matches!(e, MeshEvent::PeerDown { .. })).await;
    assert!(down.is_none(), "{down:?}");
    lab.stop([between, original]).await;
}

/// The connection of a daemon that died stands for a while. The next one takes its place at once, and what was said to the
/// one before counts for nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_daemon_takes_the_place_of_one_that_does_not_answer() {
    let lab = Lab::new();
    let mut between = lab.node(1, &[TCP], &[]).await;
    let dead = Attacker::connect(2, &between.addrs()[0], between.peer()).await;
    let mut stream = dead.open(between.peer(), wire::HELLO).await.expect("hello is open to all");
    let hello = Hello::new(lab.credential(&who(2)), &[]).of(Some(Boot { number: 3, nonce: 11 }));
    let hello = cbor::to_vec(&HelloMessage::Hello(Box::new(hello)));
    stream.write_all(&support::prefixed(&hello)).await.expect("write");
    let answer = support::read_prefixed(&mut stream).await.expect("it answers");
    assert!(matches!(wire::decode_hello(&answer), Ok(HelloMessage::Hello(_))));
    stream.write_all(&support::prefixed(&cbor::to_vec(&HelloMessage::Done))).await.expect("write");
    between.wait_up(&[dead.node]).await;
    support::eventually("ready", || async { !between.mesh.status().await.peers.is_empty() }).await;

    let mut next = boot(&lab, 2, &between, Boot { number: 4, nonce: 12 }).await;
    between.wait_down(dead.node).await;
    between.wait_up(&[next.id()]).await;
    next.wait_up(&[between.id()]).await;
    dead.wait_disconnected().await;
    assert_eq!(between.refusals(RefusalKind::Twin).await, 0);
    lab.stop([between, next]).await;
}

/// No member can end a node with a story about another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_twin_that_nobody_proves_is_not_believed() {
    let lab = Lab::new();
    let a = lab.node(1, &[TCP], &[]).await;
    let mut victim = boot(&lab, 2, &a, Boot { number: 3, nonce: 11 }).await;
    victim.wait_up(&[a.id()]).await;
    let liar = Attacker::connect(3, &victim.addrs()[0], victim.peer()).await;
    // A stranger is not even answered.
    let mut stream = liar.open(victim.peer(), wire::TWIN).await.expect("it is open to all");
    let ask = cbor::to_vec(&TwinMessage::Who { nonce: 11 });
    stream.write_all(&support::prefixed(&ask)).await.expect("write");
    assert!(support::read_prefixed(&mut stream).await.is_err(), "strangers get no signature");
    for bytes in [vec![0xff; 40], vec![0; 5_000]] {
        let mut stream = liar.open(victim.peer(), wire::TWIN).await.expect("it is open to all");
        let _ = stream.write_all(&support::prefixed(&bytes)).await;
        let _ = stream.close().await;
    }
    let alarm = victim.try_next(300, twin).await;
    assert!(alarm.is_none(), "{alarm:?}");
    lab.stop([a, victim]).await;
}

/// A peer had an address that is this node's own now, such as one on loopback: no alarm.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn meeting_oneself_is_no_alarm() {
    let lab = Lab::new();
    let a = lab.node(1, &["/ip4/0.0.0.0/tcp/0"], &[]).await;
    // An address that reaches it and that it does not know to be its own: those it knows are not dialled at all.
    let port = a.addrs().iter().flatten().find_map(|part| match part {
        Protocol::Tcp(port) => Some(port),
        _ => None,
    });
    let addr = format!("/ip4/127.0.0.2/tcp/{}", port.expect("a port"));
    a.mesh.add_peer_addrs(who(2).id(), vec![addr.parse().expect("an address")]);
    support::eventually("it dials", || async { a.mesh.status().await.dials_failed > 0 }).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(a.refusals(RefusalKind::OwnKey).await, 0);
    lab.stop([a]).await;
}
