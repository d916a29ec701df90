//! `kill -9` of a node while it serves a blob.

use std::path::Path;

use sinew_crdt_state::ids::Hash;
use sinew_node::api::client::ClientError;
use sinew_node::api::{Reply, Request};

use crate::support::{World, until};

/// Takes a debug build about a second to move.
const SIZE: u64 = 96 << 20;

async fn one_blob(world: &World, node: usize, request: Request) -> Result<(Hash, u64), ClientError> {
    let mut replies = world.mesh.nodes[node].client().ask(&request).await?;
    let mut found = None;
    while let Some(reply) = replies.next().await? {
        if let Reply::Blob { hash, size, .. } = reply {
            found = Some((hash, size));
        }
    }
    Ok(found.expect("a blob"))
}

/// A file that no compression or deduplication helps with, added at a node.
async fn add(world: &World, node: usize) -> Hash {
    let path = world.scratch.path().join("big");
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"sinew");
    let mut text = vec![0; usize::try_from(SIZE).expect("size")];
    hasher.finalize_xof().fill(&mut text);
    std::fs::write(&path, &text).expect("write");
    one_blob(world, node, Request::BlobAdd { path }).await.expect("add").0
}

/// Bytes on disk below a directory.
fn bytes_below(dir: &Path) -> u64 {
    let entries = walkdir::WalkDir::new(dir).into_iter().filter_map(Result::ok);
    entries.filter_map(|e| e.metadata().ok()).filter(std::fs::Metadata::is_file).map(|m| m.len()).sum()
}

/// Waits until part of the blob is at a node.
async fn partly_here(world: &World, node: usize) {
    let blobs = world.mesh.nodes[node].data_dir.join("blobs");
    until("a part has arrived", async || (bytes_below(&blobs) > SIZE / 8).then_some(())).await;
}

/// A number in the last line of a node's log that tells of a fetched blob.
fn logged(world: &World, node: usize, key: &str) -> u64 {
    let log = world.mesh.nodes[node].log();
    let line = log.lines().rfind(|l| l.contains("fetched a blob")).expect("a line");
    let rest = line.split(&format!("{key}=")).nth(1).expect(key);
    rest.split(' ').next().and_then(|n| n.parse().ok()).expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_provider_finishes_what_a_killed_one_began() {
    let mut world = World::new(3).await;
    let hash = add(&world, 0).await;
    one_blob(&world, 1, Request::BlobWarm { hash }).await.expect("a second copy");
    let fetching = {
        let client = world.mesh.nodes[2].client();
        tokio::spawn(async move { client.act(&Request::BlobWarm { hash }).await })
    };
    partly_here(&world, 2).await;
    world.kill(1);
    assert!(!fetching.is_finished(), "killed while it served");
    fetching.await.expect("join").expect("the other provider finishes");
    assert!(logged(&world, 2, "faults") >= 1, "the killed provider was one of those that served");
    let out = world.scratch.path().join("out");
    world.mesh.nodes[2].client().act(&Request::BlobGet { hash, out: out.clone() }).await.expect("get");
    assert!(std::fs::read(out).expect("out") == std::fs::read(world.scratch.path().join("big")).expect("big"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_goes_on_where_its_killed_provider_left_off() {
    let mut world = World::new(2).await;
    let hash = add(&world, 0).await;
    let fetching = {
        let client = world.mesh.nodes[1].client();
        tokio::spawn(async move { client.act(&Request::BlobWarm { hash }).await })
    };
    partly_here(&world, 1).await;
    world.kill(0);
    assert!(!fetching.is_finished(), "killed while it served");
    let failed = fetching.await.expect("join").expect_err("nobody else has it");
    assert!(matches!(failed, ClientError::Api(_)), "{failed}");
    world.mesh.nodes[0].start().await.expect("restart");
    // Until the two have found each other again there is nobody to ask.
    let again = async || one_blob(&world, 1, Request::BlobWarm { hash }).await.ok();
    let (_, size) = until("the fetch is taken up again", again).await;
    assert_eq!(size, SIZE);
    let (resumed, bytes) = (logged(&world, 1, "resumed"), logged(&world, 1, "bytes"));
    eprintln!("resumed a fetch: {resumed} bytes were here, {bytes} came");
    assert!(resumed > 0 && bytes < SIZE, "{resumed} resumed, {bytes} fetched");
    let out = world.scratch.path().join("out");
    world.mesh.nodes[1].client().act(&Request::BlobGet { hash, out: out.clone() }).await.expect("get");
    assert!(std::fs::read(out).expect("out") == std::fs::read(world.scratch.path().join("big")).expect("big"));
}
