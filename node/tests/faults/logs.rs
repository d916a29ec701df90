//! What tasks printed is whole and one attempt's, whatever became of the attempt, its node or the ledger's memory of the job.

use std::collections::BTreeMap;
use std::path::PathBuf;

use data_encoding::BASE64;
use sinew_crdt_state::manifest::{JobDraft, program_from_argv};
use sinew_node::api::client::ClientError;
use sinew_node::api::{Reply, Request};
use sinew_node::local_mesh::Place;

use crate::support::{World, until};

/// A node that leads and runs nothing, and two that do.
async fn world(flags: &[&str]) -> World {
    let args = |more: &[&str]| flags.iter().chain(more).map(|flag| (*flag).to_owned()).collect();
    let worker = || Place { args: args(&["--label", "role=worker"]), ..Place::default() };
    World::at(3, vec![Place { args: args(&[]), ..Place::default() }, worker(), worker()]).await
}

fn shell(script: &str) -> JobDraft {
    let argv = ["sh", "-c", script].map(str::to_owned).to_vec();
    let mut draft = JobDraft::batch(program_from_argv(argv).expect("program"));
    draft.labels.insert("role".to_owned(), "worker".to_owned());
    draft.retry.attempts = 0;
    draft
}

async fn submit(world: &World, draft: JobDraft) -> String {
    world.mesh.nodes[0].client().submit(draft, |_, _, _| {}).await.expect("submit").to_string()
}

/// Stdout and stderr as a node tells them; nothing of what was given up.
async fn logs(world: &World, node: usize, job: &str, attempt: Option<u32>) -> Result<(String, String), ClientError> {
    let request = Request::Logs { job: job.to_owned(), task: None, attempt, follow: false };
    let mut replies = world.mesh.nodes[node].client().ask(&request).await?;
    let mut streams: BTreeMap<bool, Vec<u8>> = BTreeMap::new();
    while let Some(reply) = replies.next().await? {
        match reply {
            Reply::Output { stderr, data, .. } => {
                streams.entry(stderr).or_default().extend(BASE64.decode(data.as_bytes()).expect("BASE64"));
            }
            Reply::Anew { stderr, .. } => streams.entry(stderr).or_default().clear(),
            Reply::Attempt { .. } => {}
            Reply::Missing { stderr, .. } => streams.entry(stderr).or_default().extend(b"[missing]"),
            other => panic!("{other:?}"),
        }
    }
    let mut text = |stderr| String::from_utf8(streams.remove(&stderr).unwrap_or_default()).expect("text");
    Ok((text(false), text(true)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_task_keeps_all_that_it_printed_over_a_restart() {
    let mut world = world(&[]).await;
    let job = submit(&world, shell("seq 1 20000; seq 1 20000 >&2; echo the reason; exit 3")).await;
    let (view, _) = world.sealed(0, &job).await;
    let ran = world.number(view.failures.first().expect("it failed").2);
    let numbers: String = (1..=20_000).map(|n| format!("{n}\n")).collect();
    let expected = (format!("{numbers}the reason\n"), numbers);
    for node in [0, ran, 3 - ran] {
        world.sealed(node, &job).await;
        assert!(logs(&world, node, &job, None).await.expect("logs") == expected, "on node {node}");
    }
    world.kill(ran);
    world.mesh.nodes[ran].start().await.expect("it starts again");
    until("the node is back, with what it kept", async || {
        (logs(&world, 0, &job, None).await.ok()? == expected).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_and_a_cancelled_task_show_what_they_printed_up_to_the_last_word() {
    let world = world(&[]).await;
    let script = "trap 'echo last words; echo and here >&2; exit 0' TERM; echo first; while :; do :; done";
    let job = submit(&world, shell(script)).await;
    for node in 0..3 {
        until("what it has printed so far", async || {
            let (out, _) = logs(&world, node, &job, None).await.ok()?;
            (out == "first\n").then_some(())
        })
        .await;
    }
    let cancel = Request::Cancel { job: job.clone(), reason: "enough".to_owned() };
    world.mesh.nodes[0].client().act(&cancel).await.expect("cancel");
    for node in 0..3 {
        world.sealed(node, &job).await;
        let told = logs(&world, node, &job, None).await.expect("logs");
        assert_eq!(told, ("first\nlast words\n".to_owned(), "and here\n".to_owned()), "on node {node}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_attempt_has_a_number_and_its_own_output() {
    let world = world(&[]).await;
    let mut draft = shell("echo attempt $SINEW_ATTEMPT; [ $SINEW_ATTEMPT = 3 ]");
    draft.retry.attempts = 2;
    draft.retry.delay_ms = 1;
    let job = submit(&world, draft).await;
    world.sealed(1, &job).await;
    let told = async |attempt| logs(&world, 1, &job, attempt).await.map(|(out, _)| out);
    assert_eq!(told(None).await.expect("the one that counts"), "attempt 3\n");
    for number in 1..=3 {
        assert_eq!(told(Some(number)).await.expect("one of them"), format!("attempt {number}\n"));
    }
    let error = told(Some(4)).await.expect_err("there was none").to_string();
    assert!(error.contains("attempt 4"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_attempt_counts_and_its_output_is_not_mixed_with_the_next_ones() {
    let mut world = world(&[]).await;
    let marks = world.scratch.path().join("marks");
    std::fs::create_dir(&marks).expect("dir");
    std::fs::set_permissions(&marks, std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("chmod");
    let mut draft = shell(
        "echo attempt $SINEW_ATTEMPT; : > \"$MARKS/$SINEW_ATTEMPT.$SINEW_NODE_TAG\"; [ $SINEW_ATTEMPT -gt 1 ] || sleep 987; echo end",
    );
    draft.env.insert("MARKS".to_owned(), marks.to_string_lossy().into_owned());
    let job = submit(&world, draft).await;
    let first = until("it runs", async || {
        let mut names = std::fs::read_dir(&marks).expect("read").flatten().map(|e| e.file_name());
        names.next().and_then(|name| name.into_string().ok())
    })
    .await;
    let tag = first.strip_prefix("1.").expect("the first attempt is number 1");
    let lost = (1..3).find(|n| world.pid(*n) == crate::support::daemon_of(tag)).expect("a worker runs it");
    let request = Request::Logs { job: job.clone(), task: None, attempt: None, follow: true };
    let mut replies = world.mesh.nodes[0].client().ask(&request).await.expect("logs");
    let live = replies.next().await.expect("reply").expect("it has printed something");
    assert!(matches!(live, Reply::Output { attempt: 1, .. }), "{live:?}");
    world.kill(lost);
    let mut rest = Vec::new();
    while let Some(reply) = replies.next().await.expect("reply") {
        rest.push(reply);
    }
    let anew =
        rest.iter().position(|r| matches!(r, Reply::Anew { stderr: false, .. })).expect("the second one differs");
    assert!(rest[..anew].iter().any(|r| matches!(r, Reply::Attempt { attempt: 2, .. })), "{rest:?}");
    let second: Vec<u8> = rest[anew..]
        .iter()
        .filter_map(|r| if let Reply::Output { data, stderr: false, .. } = r { Some(data) } else { None })
        .flat_map(|data| BASE64.decode(data.as_bytes()).expect("BASE64"))
        .collect();
    assert_eq!(String::from_utf8_lossy(&second), "attempt 2\nend\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outputs_and_logs_are_found_by_the_job_after_the_ledger_has_forgotten_it() {
    let world = world(&["--ledger-grace", "1s"]).await;
    let job = submit(&world, shell("echo printed; echo precious > $SINEW_OUTPUT/o")).await;
    let failed = submit(&world, shell("echo in vain; exit 1")).await;
    for job in [&job, &failed] {
        let forgotten = async |node: usize| {
            let (view, _) = world.mesh.nodes[node].client().job(job).await.ok()?;
            (view.is_ended() && view.outputs.is_empty() && view.failures.is_empty()).then_some(())
        };
        for node in 0..3 {
            until("the ledger has forgotten it", async || forgotten(node).await).await;
        }
    }
    for node in 0..3 {
        let out: PathBuf = world.scratch.path().join(format!("out{node}"));
        let get = Request::Get { job: job.clone(), out: out.clone() };
        world.mesh.nodes[node].client().act(&get).await.expect("get");
        assert_eq!(std::fs::read_to_string(out.join("o")).expect("the output"), "precious\n");
        assert_eq!(logs(&world, node, &job, None).await.expect("logs").0, "printed\n");
        assert_eq!(logs(&world, node, &failed, None).await.expect("logs").0, "in vain\n");
    }
    // Once they are let go of, the answer is an error that says until when they were there.
    for node in &world.mesh.nodes {
        node.client().prune(false, true).await.expect("pruned");
    }
    let error = logs(&world, 0, &job, None).await.expect_err("gone").to_string();
    assert!(error.contains("kept until"), "{error}");
}
