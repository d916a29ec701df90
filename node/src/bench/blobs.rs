//! A blob from one daemon to another, beside the same bytes over a raw stream of the same mesh.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use serde_json::{Value, json};
use sinew_crdt_state::certificate::Credential;
use sinew_crdt_state::identity::Identity;
use sinew_crdt_state::ids::{Hash, MeshId};
use sinew_mesh::{Mesh, MeshConfig, MeshEvent, MeshEvents};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::api::{Reply, Request};
use crate::clock::unix_ms;
use crate::local_mesh::{LocalMesh, LocalMeshOptions};

const PIECE: usize = 256 * 1024;

pub(super) async fn run(size: u64) -> anyhow::Result<Value> {
    let exe = std::env::current_exe()?;
    let raw_before = raw_stream(size).await?;
    let mesh = LocalMesh::start(&LocalMeshOptions { exe, nodes: 2, cpus: 1.0, args: Vec::new() }).await?;
    let path = mesh.dir().join("blob");
    write_random(&path, size)?;
    let mut added = mesh.nodes[0].client().ask(&Request::BlobAdd { path }).await?;
    let mut hash: Option<Hash> = None;
    while let Some(reply) = added.next().await? {
        if let Reply::Blob { hash: h, .. } = reply {
            hash = Some(h);
        }
    }
    let hash = hash.context("the daemon did not name the blob")?;
    let began = Instant::now();
    let mut fetched = mesh.nodes[1].client().ask(&Request::BlobWarm { hash }).await?;
    while fetched.next().await?.is_some() {}
    let elapsed = began.elapsed().as_secs_f64();
    drop(mesh);
    let raw_after = raw_stream(size).await?;
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let mb = size as f64 / 1e6;
    let (rate, raw) = (mb / elapsed, f64::midpoint(raw_before, raw_after));
    Ok(json!({
        "bench": "blobs", "bytes": size, "elapsed_s": elapsed, "mb_per_s": rate, "floor_raw_stream_mb_per_s": raw,
        "ratio_to_floor": rate / raw,
    }))
}

fn write_random(path: &Path, size: u64) -> std::io::Result<()> {
    let mut file = std::io::BufWriter::with_capacity(PIECE, std::fs::File::create(path)?);
    let mut reader = blake3::Hasher::new().update(b"bench").finalize_xof();
    let mut left = size;
    let mut piece = vec![0; PIECE];
    while left > 0 {
        let len = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        reader.fill(&mut piece[..len]);
        file.write_all(&piece[..len])?;
        left -= len as u64;
    }
    file.flush()
}

/// A member in this process, with a mesh of nothing but members.
pub(super) async fn member(
    mesh_key: &Identity,
    seed: u8,
    bootstrap: Option<&Mesh>,
) -> anyhow::Result<(Mesh, MeshEvents)> {
    let identity = Identity::from_seed([seed; 32]);
    let now = unix_ms();
    let credential = Credential::found(mesh_key, identity.id(), now, now + 3_600_000);
    let mut config = MeshConfig::bare(vec!["/ip4/127.0.0.1/tcp/0".parse()?]);
    if let Some(other) = bootstrap {
        config.bootstrap = other.listen_addrs();
    }
    Ok(Mesh::start(config, &identity, credential, MeshId(mesh_key.id().0), unix_ms).await?)
}

/// MB/s of `size` bytes of memory over one stream between two nodes in this process.
async fn raw_stream(size: u64) -> anyhow::Result<f64> {
    let mesh_key = Identity::from_seed([9; 32]);
    let (a, mut a_events) = member(&mesh_key, 1, None).await?;
    while !matches!(a_events.recv().await.context("the mesh ended")?, MeshEvent::Listening { .. }) {}
    let (b, mut b_events) = member(&mesh_key, 2, Some(&a)).await?;
    let sink = tokio::spawn(async move {
        while let Some(event) = a_events.recv().await {
            if let MeshEvent::BlobStream { mut stream, .. } = event {
                let mut buffer = vec![0; PIECE];
                let mut got = 0u64;
                while got < size {
                    match stream.read(&mut buffer).await {
                        Ok(n) if n > 0 => got += n as u64,
                        _ => break,
                    }
                }
                // The sender's clock stops when the last byte was taken.
                let _ = stream.write_all(&[1]).await;
                let _ = stream.shutdown().await;
            }
        }
    });
    while !matches!(b_events.recv().await.context("the mesh ended")?, MeshEvent::PeerUp { .. }) {}
    let mut stream = b.open_blob_stream(a.node()).await?;
    let piece = vec![7; PIECE];
    let began = Instant::now();
    let mut left = size;
    while left > 0 {
        let len = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        stream.write_all(&piece[..len]).await?;
        left -= len as u64;
    }
    stream.shutdown().await?;
    stream.read_exact(&mut [0]).await?;
    let elapsed = began.elapsed().as_secs_f64();
    sink.abort();
    b.shutdown().await;
    a.shutdown().await;
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    Ok(size as f64 / 1e6 / elapsed)
}
