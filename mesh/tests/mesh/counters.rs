//! What is counted is what went over the wire.

use std::time::{Duration, Instant};

use bytes::Bytes;
use sinew_mesh::{FrameClass, MeshEvent, Topic, Verdict};

use crate::support::{Lab, Node, TCP, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_are_counted_at_both_ends_and_outlive_the_connection() {
    let lab = Lab::new();
    let mut a = lab.node(1, &[TCP], &[]).await;
    let mut b = lab.node(2, &[TCP], &a.addrs()).await;
    a.wait_up(&[b.id()]).await;
    b.wait_up(&[a.id()]).await;
    for (class, len) in [(FrameClass::Control, 5_usize), (FrameClass::Bulk, 70_000)] {
        for _ in 0..3 {
            a.mesh.send(b.id(), class, vec![1; len].into()).expect("queued");
        }
        b.frames(a.id(), class, 3).await;
    }
    // A frame is counted once its write has returned, which the other end may see first.
    eventually("all frames are counted", async || a.mesh.status().await.bulk.frames_sent == 3).await;
    let sent = a.mesh.status().await;
    let got = b.mesh.status().await;
    // Bulk frames travel packed, and are counted as they travel.
    let bulk = sent.bulk.bytes_sent;
    assert!((3..2_100).contains(&bulk), "{bulk} bytes for three times 70,000 equal ones");
    assert_eq!((sent.control.frames_sent, sent.control.bytes_sent), (3, 15));
    assert_eq!((got.control.frames_received, got.control.bytes_received, got.bulk.bytes_received), (3, 15, bulk));
    assert_eq!((got.control.frames_sent, got.bulk.frames_sent), (0, 0));
    // The counters are of the node, whoever is still known.
    let gone = b.id();
    b.mesh.shutdown().await;
    a.wait_down(gone).await;
    a.mesh.forget_peer(gone);
    let after = a.mesh.status().await;
    assert!(after.peers.is_empty());
    assert_eq!((after.control.frames_sent, after.bulk.bytes_sent), (3, bulk));
    a.mesh.shutdown().await;
}

/// Accepts what a node hears until it has heard `wanted`.
async fn pass_on_until(node: &mut Node, wanted: &Bytes) {
    loop {
        let MeshEvent::Gossip { id, bytes, .. } = node.next(|e| matches!(e, MeshEvent::Gossip { .. })).await else {
            unreachable!()
        };
        node.mesh.report_gossip(id, Verdict::Accept);
        if bytes == *wanted {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_copy_of_a_gossip_message_is_counted() {
    let lab = Lab::new();
    let mut a = lab.node(1, &[TCP], &[]).await;
    let mut b = lab.node(2, &[TCP], &a.addrs()).await;
    let mut c = lab.node(3, &[TCP], &[a.addrs(), b.addrs()].concat()).await;
    a.wait_up(&[b.id(), c.id()]).await;
    b.wait_up(&[a.id(), c.id()]).await;
    c.wait_up(&[a.id(), b.id()]).await;
    for node in [&a, &b, &c] {
        eventually("the gossip mesh is whole", async || node.mesh.status().await.gossip.advert_peers == 2).await;
    }
    let before = c.mesh.status().await.gossip;
    let words = Bytes::from_static(b"an advert");
    a.mesh.publish(Topic::Advert, words.clone());
    pass_on_until(&mut b, &words).await;
    pass_on_until(&mut c, &words).await;
    // The author sends to both, and each of them to the other, unless it had it from there already.
    let deadline = Instant::now() + Duration::from_secs(5);
    let copies = loop {
        let copies = b.mesh.status().await.gossip.copies + c.mesh.status().await.gossip.copies;
        if copies >= 3 || Instant::now() > deadline {
            break copies;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!((3..=4).contains(&copies), "{copies} copies");
    let after = c.mesh.status().await.gossip;
    assert_eq!((after.delivered - before.delivered, a.mesh.status().await.gossip.published), (1, 1));
    let each = after.copies_bytes / after.copies;
    assert!((100..400).contains(&each), "a signed message of nine bytes took {each}");
    lab.stop([a, b, c]).await;
}
