//! No process survives its job or its daemon; and how long a lost task waits for its next award.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use sinew_crdt_state::manifest::{JobDraft, program_from_text};
use sinew_node::api::{Reply, Request};
use sinew_node::exec::guardian::TAG_VAR;
use sinew_node::local_mesh::Place;

use crate::support::{REAWARD_MAX_MS, World, daemon_of, events, until};

/// A task that says who it is and stays: its shell, and a child in a session of its own.
fn sleeper(world: &World) -> JobDraft {
    let pids = world.scratch.path().join("pids");
    std::fs::write(&pids, "").expect("pids");
    std::fs::set_permissions(&pids, Permissions::from_mode(0o666)).expect("chmod");
    let script = "setsid sleep 987 & echo $SINEW_NODE_TAG $$ $! >> \"$PIDS\"; wait";
    let mut draft = JobDraft::batch(program_from_text(&format!("sh -c '{script}'")).expect("program"));
    draft.env.insert("PIDS".to_owned(), pids.to_string_lossy().into_owned());
    draft.labels.insert("role".to_owned(), "worker".to_owned());
    draft
}

/// Daemon, shell and sleep of each attempt so far; 0 for what does not live any more.
fn attempts(world: &World) -> Vec<[u32; 3]> {
    let text = std::fs::read_to_string(world.scratch.path().join("pids")).unwrap_or_default();
    let line = |l: &str| {
        let [tag, shell, sleep] = l.split(' ').collect::<Vec<_>>()[..] else { panic!("{l}") };
        [daemon_of(tag), host_pid(tag, shell), host_pid(tag, sleep)]
    };
    text.split_inclusive('\n').filter_map(|l| l.strip_suffix('\n')).map(line).collect()
}

/// The process with this number in a sandbox of the daemon with this tag, as the host counts.
fn host_pid(tag: &str, inside: &str) -> u32 {
    let marker = format!("{TAG_VAR}={tag}").into_bytes();
    let is_it = |pid: &u32| {
        let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let status = String::from_utf8_lossy(&read("status")).into_owned();
        let numbers = status.lines().find_map(|l| l.strip_prefix("NSpid:")).unwrap_or_default();
        numbers.split_whitespace().next_back() == Some(inside)
            && read("environ").split(|b| *b == 0).any(|v| v == marker)
    };
    let pids = std::fs::read_dir("/proc").expect("proc").flatten();
    pids.filter_map(|e| e.file_name().to_str()?.parse().ok()).find(is_it).unwrap_or(0)
}

/// Whether the process exists and is not just waiting to be reaped.
fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    Path::new(&format!("/proc/{pid}")).exists() && !stat.contains(") Z ")
}

/// A brain that runs nothing itself, and two workers.
async fn world() -> World {
    let worker = || Place { args: ["--label", "role=worker"].map(str::to_owned).to_vec(), ..Place::default() };
    World::at(3, vec![Place::default(), worker(), worker()]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_daemon_leaves_no_process_and_its_task_is_awarded_anew() {
    let mut world = world().await;
    let client = world.mesh.nodes[0].client();
    let job = client.submit(sleeper(&world), |_, _, _| {}).await.expect("submit").to_string();
    let [daemon, shell, sleep] = until("the task runs", async || attempts(&world).first().copied()).await;
    assert!(alive(shell) && alive(sleep));
    let node = (1..3).find(|n| world.pid(*n) == daemon).expect("a worker runs it");
    let killed = world.kill(node);
    let began = std::time::Instant::now();
    until("its processes are gone", async || (!alive(shell) && !alive(sleep)).then_some(())).await;
    let gone = began.elapsed();
    let (revoked, awarded) = world
        .sees(0, &job, "the task is awarded anew", |_, timeline| {
            let revoked = events(timeline, "revoke").find(|e| e.detail.contains("lost"))?.at_ms;
            let awarded = events(timeline, "award").find(|e| e.at_ms >= revoked)?;
            assert!(awarded.detail.contains("term 1 epoch 2"), "{awarded:?}");
            Some((revoked, awarded.at_ms))
        })
        .await;
    let second = until("it runs again", async || attempts(&world).get(1).copied()).await;
    assert_eq!(second[0], world.pid(3 - node), "on the other worker");
    eprintln!(
        "daemon killed: its task's processes gone after {} ms; award revoked after {} ms, re-awarded after {} ms",
        gone.as_millis(),
        revoked - killed,
        awarded - killed
    );
    assert!(gone < Duration::from_secs(5) && awarded - killed < REAWARD_MAX_MS);
    // The job's end ends them too.
    client.act(&Request::Cancel { job: job.clone(), reason: "enough".to_owned() }).await.expect("cancel");
    until("its processes are gone", async || (!alive(second[1]) && !alive(second[2])).then_some(())).await;
    let (view, _) = world.sealed(0, &job).await;
    assert_eq!(view.outcome, Some(sinew_crdt_state::fact::Outcome::Cancelled));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_ends_in_good_order_leaves_no_process() {
    let mut world = world().await;
    let client = world.mesh.nodes[0].client();
    client.submit(sleeper(&world), |_, _, _| {}).await.expect("submit");
    let [daemon, shell, sleep] = until("the task runs", async || attempts(&world).first().copied()).await;
    world.mesh.stop();
    assert!(!alive(daemon) && !alive(shell) && !alive(sleep), "nothing of the task outlives its daemon");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_failed_task_printed_elsewhere_can_be_read_after_its_end() {
    let world = world().await;
    let client = world.mesh.nodes[0].client();
    let mut draft = JobDraft::batch(program_from_text("sh -c 'echo out; echo err >&2; exit 3'").expect("program"));
    draft.labels.insert("role".to_owned(), "worker".to_owned());
    draft.retry.attempts = 0;
    let job = client.submit(draft, |_, _, _| {}).await.expect("submit").to_string();
    let failed = async || client.job(&job).await.ok().filter(|(view, _)| view.is_ended());
    let (view, _) = until("the job has failed", failed).await;
    assert!(view.failures.iter().all(|(_, _, node, _)| node.short() != world.mesh.nodes[0].id.short()), "{view:?}");
    let mut replies = client.ask(&Request::Logs { job, task: None, attempt: None, follow: false }).await.expect("logs");
    let (mut out, mut err) = (String::new(), String::new());
    while let Some(reply) = replies.next().await.expect("reply") {
        let Reply::Output { stderr, data, .. } = reply else { continue };
        let bytes = data_encoding::BASE64.decode(data.as_bytes()).expect("BASE64");
        (if stderr { &mut err } else { &mut out }).push_str(&String::from_utf8(bytes).expect("text"));
    }
    assert_eq!((out.as_str(), err.as_str()), ("out\n", "err\n"));
}
