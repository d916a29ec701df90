//! What users are told: a node that is cut off and goes on alone says so, trying again under a key is safe across a restart, and
//! a cancel that nobody decides is no success.

use std::process::{Command, Output};

use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::fact::Outcome;
use sinew_crdt_state::manifest::{JobDraft, program_from_text};
use sinew_crdt_state::state::Status;
use sinew_node::api::Request;

use crate::net::{Net, is_available};
use crate::support::{World, until};

fn draft(command: &str) -> JobDraft {
    JobDraft::batch(program_from_text(command).expect("program"))
}

/// The program, asked about a node.
fn sinew(world: &World, node: usize, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sinew"));
    command.arg("--data-dir").arg(&world.mesh.nodes[node].data_dir).args(args);
    command.output().expect("the program runs")
}

/// How many nodes a node sees well, itself among them.
async fn healthy(world: &World, node: usize) -> usize {
    let peers = world.mesh.nodes[node].client().peers().await.unwrap_or_default();
    peers.iter().filter(|peer| peer.state == "healthy").count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_cut_off_says_that_it_goes_on_alone_and_the_others_learn_of_it() {
    if !is_available() {
        return;
    }
    let net = Net::new(4);
    let world = World::at(4, net.places()).await;
    net.pull(3);
    until("it has noticed", async || (healthy(&world, 3).await < 3).then_some(())).await;
    let client = world.mesh.nodes[3].client();
    let taken = client.submit_told(draft("sh -c 'echo here'"), |_, _, _| {}).await.expect("submit");
    let alone = taken.alone.expect("it says so");
    assert_eq!(alone.known, 4, "it knows how large its mesh is: {alone:?}");
    assert!(alone.in_reach < 3, "{alone:?}");
    let job = taken.job.to_string();
    let (view, _) = client.job(&job).await.expect("job");
    assert!(view.durability.contains(&format!("{alone} when it was submitted")), "{}", view.durability);
    net.plug(3);
    until("the others know it", async || world.mesh.nodes[0].client().job(&job).await.ok()).await;
    let ended = async || world.mesh.nodes[0].client().job(&job).await.ok().filter(|(view, _)| view.is_ended());
    let (view, _) = until("it ends", ended).await;
    assert_eq!(view.outcome, Some(Outcome::Completed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_makes_one_job_across_a_restart() {
    let mut world = World::new(3).await;
    let keyed = |command: &str| {
        let mut draft = draft(command);
        draft.key = Some("nightly".to_owned());
        draft
    };
    let client = world.mesh.nodes[0].client();
    let first = client.submit(keyed("true"), |_, _, _| {}).await.expect("submit");
    assert_eq!(client.submit(keyed("true"), |_, _, _| {}).await.expect("again"), first);
    let ended = async || client.job(&first.to_string()).await.ok().filter(|(view, _)| view.is_ended());
    until("it ends", ended).await;
    world.kill(0);
    world.mesh.nodes[0].start().await.expect("restart");
    let client = world.mesh.nodes[0].client();
    assert_eq!(client.submit(keyed("true"), |_, _, _| {}).await.expect("after a restart"), first);
    let error = client.submit(keyed("false"), |_, _, _| {}).await.expect_err("another job");
    assert_eq!((error.exit_code(), error.code()), (2, Some(ErrorCode::Invalid)));
    assert!(error.to_string().contains(&first.to_string()), "it names the job: {error}");
    assert_eq!(client.jobs(10).await.expect("jobs").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_that_nobody_decides_exits_with_1_and_takes_effect_later() {
    let mut world = World::new(3).await;
    let client = world.mesh.nodes[0].client();
    let job = client.submit(draft("sleep 600"), |_, _, _| {}).await.expect("submit").to_string();
    until("it runs", async || {
        let (view, _) = client.job(&job).await.ok()?;
        view.phases.iter().any(|phase| phase.running > 0).then_some(())
    })
    .await;
    world.kill(1);
    world.kill(2);
    until("nobody can decide", async || {
        let (view, _) = client.job(&job).await.ok()?;
        (view.status == Status::Waiting && view.lost.len() == 2).then_some(())
    })
    .await;
    let line = client.jobs(1).await.expect("jobs").remove(0);
    assert!(line.status.starts_with("waiting for a majority: ") && line.status.contains(" lost since "), "{line:?}");
    let page = sinew(&world, 0, &["job", &job]);
    assert!(String::from_utf8_lossy(&page.stdout).contains("waiting for a majority: "), "{page:?}");
    let said = sinew(&world, 0, &["cancel", &job, "--yes"]);
    assert_eq!(said.status.code(), Some(1), "{said:?}");
    assert!(String::from_utf8_lossy(&said.stderr).contains("waiting for a majority: "), "{said:?}");
    world.mesh.nodes[1].start().await.expect("restart");
    let ended = async || client.job(&job).await.ok().filter(|(view, _)| view.is_ended());
    let (view, _) = until("the cancel takes effect", ended).await;
    assert_eq!(view.outcome, Some(Outcome::Cancelled));
    let late = client.act(&Request::Cancel { job, reason: String::new() }).await.expect_err("it has ended");
    assert_eq!(late.exit_code(), 1);
}
