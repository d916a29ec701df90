//! A directory in the store outlives the node that it came from.

use sinew_crdt_state::ids::Hash;
use sinew_node::api::client::ClientError;
use sinew_node::api::{Reply, Request};

use crate::support::World;

async fn hash_of(world: &World, node: usize, request: Request) -> Result<Hash, ClientError> {
    let mut replies = world.mesh.nodes[node].client().ask(&request).await?;
    let mut found = None;
    while let Some(reply) = replies.next().await? {
        if let Reply::Blob { hash, .. } = reply {
            found = Some(hash);
        }
    }
    Ok(found.expect("a blob"))
}

/// A tag on another node keeps all of it there, through a collection and the loss of the first node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tagged_directory_is_whole_on_another_node() {
    let mut world = World::new(3).await;
    let dir = world.scratch.path().join("d");
    std::fs::create_dir_all(dir.join("sub")).expect("mkdir");
    std::fs::write(dir.join("sub/large"), vec![7; 3 << 20]).expect("write");
    std::fs::write(dir.join("small"), "small").expect("write");
    std::os::unix::fs::symlink("sub/large", dir.join("l")).expect("link");
    let hash = hash_of(&world, 0, Request::BlobAdd { path: dir }).await.expect("add");
    let second = world.mesh.nodes[1].client();
    assert_eq!(hash_of(&world, 1, Request::BlobWarm { hash }).await.expect("warm"), hash);
    second.act(&Request::BlobTag { name: "kept".into(), hash }).await.expect("tag");
    second.prune(true, false).await.expect("collect");
    world.kill(0);
    for node in [1, 2] {
        let out = world.scratch.path().join(format!("out{node}"));
        let get = Request::BlobGet { hash, out: out.clone() };
        world.mesh.nodes[node].client().act(&get).await.expect("get");
        assert_eq!(std::fs::read(out.join("l")).expect("through the link").len(), 3 << 20);
        assert_eq!(std::fs::read_to_string(out.join("small")).expect("file"), "small");
    }
}
