//! Copies of data directories: one that runs beside its original, and one that is put back after a while.

use std::path::Path;
use std::process::{Command, Stdio};

use sinew_crdt_state::manifest::{JobDraft, program_from_text};

use crate::support::{World, until};

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp");
    assert!(copied.success());
}

fn noop() -> JobDraft {
    JobDraft::batch(program_from_text("sinew:noop").expect("program"))
}

/// A copy that is started while the original runs ends by itself, says where the original is and what to do, and the original
/// takes jobs as if nothing were.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_beside_its_original_ends_and_says_why() {
    let mut world = World::new(3).await;
    world.mesh.nodes[2].kill();
    let (data, beside) = (world.mesh.nodes[2].data_dir.clone(), world.scratch.path().join("copy"));
    copy(&data, &beside);
    world.mesh.nodes[2].start().await.expect("the original");
    let address = world.mesh.nodes[2].client().status().await.expect("status").listen[0].clone();
    world.mesh.wait_formed().await.expect("the mesh");
    let up = Command::new(env!("CARGO_BIN_EXE_sinew"))
        .args(["up", "--listen", "/ip4/127.0.0.1/tcp/0", "--docker", "off", "--cpus", "1", "--data-dir"])
        .arg(&beside)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the copy");
    let output = tokio::task::spawn_blocking(move || up.wait_with_output()).await.expect("joined").expect("it ended");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let mends = ["sinew invite", "sinew join", "sinew init"];
    assert!(said.contains(&address) && mends.iter().all(|mend| said.contains(mend)), "{said}");
    for node in 0..3 {
        let job = world.mesh.nodes[2].client().submit(noop(), |_, _, _| {}).await.expect("submit").to_string();
        world.sealed(node, &job).await;
    }
    assert!(world.mesh.nodes.iter().all(|node| !node.log().contains(" ERROR ")), "no false alarm either");
}

/// A node that comes back on a copy of before its last jobs is told so by the others, and has them all again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_is_put_back_counts_as_a_lost_disk() {
    let mut world = World::new(3).await;
    let submit = async |world: &World, node: usize| {
        world.mesh.nodes[node].client().submit(noop(), |_, _, _| {}).await.expect("submit").to_string()
    };
    let first = submit(&world, 2).await;
    world.sealed(2, &first).await;
    world.mesh.nodes[2].kill();
    let (data, old) = (world.mesh.nodes[2].data_dir.clone(), world.scratch.path().join("backup"));
    copy(&data, &old);
    world.mesh.nodes[2].start().await.expect("it starts");
    world.mesh.wait_formed().await.expect("the mesh");
    assert!(!world.mesh.nodes[2].log().contains("restored from a copy"), "a restart is no restore");
    let jobs = [submit(&world, 2).await, submit(&world, 0).await, submit(&world, 2).await];
    for job in &jobs {
        world.sealed(0, job).await;
    }
    world.mesh.nodes[2].kill();
    std::fs::remove_dir_all(&data).expect("the disk is lost");
    copy(&old, &data);
    world.mesh.nodes[2].start().await.expect("it starts");
    let told = async || world.mesh.nodes[2].log().contains("restored from a copy").then_some(());
    until("the others tell it", told).await;
    for job in &jobs {
        world.sealed(2, job).await;
    }
    let next = submit(&world, 2).await;
    world.sealed(1, &next).await;
    world.converged().await;
}
