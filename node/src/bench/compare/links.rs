//! What one way between two daemons costs on this machine: a frame from handle to handle, through queues, tasks, noise, yamux
//! and TCP.

use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use sinew_crdt_state::identity::Identity;
use sinew_mesh::{FrameClass, Mesh, MeshEvent, MeshEvents};

use super::super::blobs::member;

/// Round trips measured.
const TIMES: usize = 200;
/// Between two of them: long enough for every thread on the way to have gone to sleep, as it has on a mesh at a gentle rate.
const APART: Duration = Duration::from_millis(10);
/// Bytes of a frame: what a small message takes.
const LEN: usize = 200;

async fn frame(events: &mut MeshEvents) -> anyhow::Result<()> {
    while !matches!(events.recv().await.context("the mesh ended")?, MeshEvent::Frame { .. }) {}
    Ok(())
}

async fn answer(mesh: Mesh, mut events: MeshEvents) {
    while let Some(event) = events.recv().await {
        if let MeshEvent::Frame { from, class, bytes, .. } = event {
            // A frame that does not go is missed at the other end.
            let _ = mesh.send(from, class, bytes);
        }
    }
}

/// Half of each of some round trips of a frame between two members in this process, beside whatever else runs.
pub(super) async fn one_way() -> anyhow::Result<Vec<Duration>> {
    let mesh_key = Identity::from_seed([9; 32]);
    let (a, mut a_events) = member(&mesh_key, 1, None).await?;
    while !matches!(a_events.recv().await.context("the mesh ended")?, MeshEvent::Listening { .. }) {}
    let (b, mut b_events) = member(&mesh_key, 2, Some(&a)).await?;
    let echo = tokio::spawn(answer(a.clone(), a_events));
    while !matches!(b_events.recv().await.context("the mesh ended")?, MeshEvent::PeerUp { .. }) {}
    let payload = Bytes::from(vec![7; LEN]);
    let mut half = Vec::with_capacity(TIMES);
    // The first opens the streams.
    for number in 0..=TIMES {
        tokio::time::sleep(APART).await;
        let began = Instant::now();
        b.send(a.node(), FrameClass::Control, payload.clone())?;
        frame(&mut b_events).await?;
        if number > 0 {
            half.push(began.elapsed() / 2);
        }
    }
    echo.abort();
    b.shutdown().await;
    a.shutdown().await;
    Ok(half)
}
