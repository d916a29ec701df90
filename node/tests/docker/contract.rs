//! What every runner does: files, variables, streams, limits, and an end in good order.

use std::sync::Mutex;
use std::time::Duration;

use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::program::{Container, HealthCheck};
use sinew_crdt_state::spec::Program;
use sinew_node::exec::runner::Status;
use sinew_node::exec::stop::StopReason;
use sinew_node::exec::task::{MapWork, run_map};

use crate::engine::TestEngine;
use crate::image::Recipe;
use crate::rig::Rig;

#[test]
fn a_task_finds_its_files_and_variables_and_leaves_outputs() {
    let Some(engine) = TestEngine::shared() else { return };
    let mut rig = Rig::new(&engine);
    rig.place(&[("dir/name", "text\n"), ("own.sh", "#!/bin/sh\necho own $1")]);
    rig.env = [("KEY".to_owned(), "a b=c".to_owned()), ("SINEW_TASK".to_owned(), "forged".to_owned())].into();
    let ran = rig.sh(
        "echo $SINEW_JOB $SINEW_TASK $SINEW_ATTEMPT $SINEW_INPUT $SINEW_OUTPUT $HOME $FROM_IMAGE; echo \"$KEY\"; pwd
         cat dir/name; ./own.sh run; mkdir $SINEW_OUTPUT/sub; cat /input/dir/name > $SINEW_OUTPUT/sub/file; echo err >&2
         echo left > scratch",
    );
    assert_eq!(ran.text(), "job 1 1 /input /job/output /tmp yes\na b=c\n/job/work\ntext\nown run");
    assert_eq!((ran.stderr.as_str(), &ran.outputs["sub/file"]), ("err\n", &"text\n".to_owned()));
    assert_eq!(rig.sh("ls; ls /job/output /tmp").text(), "dir\nown.sh\n/job/output:\n\n/tmp:");
    assert!(rig.containers().is_empty(), "{:?}", rig.containers());
}

#[test]
fn entry_points_and_arguments_are_the_images_unless_given() {
    let Some(engine) = TestEngine::shared() else { return };
    let mut rig = Rig::new(&engine);
    rig.image(&Recipe { entrypoint: vec!["echo", "entry"], cmd: vec!["default"], ..Recipe::default() });
    assert_eq!(rig.run(&[]).text(), "entry default");
    assert_eq!(rig.run(&["given"]).text(), "entry given");
    rig.container.entrypoint = Some(vec!["echo".to_owned()]);
    assert_eq!(rig.run(&["other"]).text(), "other");
    rig.container.entrypoint = Some(vec!["no-such-program".to_owned()]);
    let ran = rig.run(&[]);
    assert!(ran.fails_with(ErrorCode::Invalid).contains("no-such-program") && !ran.failure().retryable, "{ran:?}");
    rig.image(&Recipe { mark: "empty", ..Recipe::default() });
    let nothing = rig.run(&[]);
    assert!(nothing.fails_with(ErrorCode::Invalid).to_lowercase().contains("command"), "{nothing:?}");
    assert!(rig.containers().is_empty());
}

#[test]
fn a_bad_exit_is_told_with_its_status_and_the_end_of_stderr() {
    let Some(engine) = TestEngine::shared() else { return };
    let mut rig = Rig::new(&engine);
    let ran = rig.sh("seq 100000 >&2; echo the end >&2; exit 7");
    ran.fails_with(ErrorCode::Exit);
    let failure = ran.failure();
    assert_eq!(failure.exit, Some(7));
    assert!(failure.stderr_tail.ends_with("100000\nthe end\n") && failure.stderr_tail.len() <= 4096, "{failure:?}");
    assert_eq!(ran.stderr.lines().count(), 100_001);
    let killed = rig.sh("kill -9 $$");
    assert_eq!((killed.failure().code, killed.failure().exit), (ErrorCode::Exit, Some(137)), "{killed:?}");
}

#[test]
fn over_time_it_is_asked_and_then_killed() {
    let Some(engine) = TestEngine::shared() else { return };
    let mut rig = Rig::new(&engine);
    rig.limits.timeout_ms = Some(2_000);
    let asked = rig.sh("trap 'echo asked >&2; exit 3' TERM; while true; do sleep 0.1; done");
    asked.fails_with(ErrorCode::Timeout);
    assert_eq!((asked.failure().exit, asked.stderr.as_str()), (Some(3), "asked\n"), "{asked:?}");
    rig.grace = Duration::from_millis(200);
    let deaf = rig.sh("trap '' TERM; while true; do sleep 0.1; done");
    deaf.fails_with(ErrorCode::Timeout);
    assert_eq!(deaf.failure().exit, Some(137), "{deaf:?}");
    assert!(rig.containers().is_empty());
}

#[test]
fn whoever_holds_its_handle_sees_it_and_ends_it() {
    let Some(engine) = TestEngine::shared() else { return };
    let mut rig = Rig::new(&engine);
    let seen = Mutex::new(None);
    let ran = std::thread::scope(|scope| {
        let started = |control: std::sync::Arc<dyn sinew_node::exec::runner::Control>| {
            let seen = &seen;
            scope.spawn(move || {
                crate::rig::eventually("it says so", || control.logs() == b"ready\n");
                crate::rig::eventually("the engine was asked", || control.stats().rss_bytes > 0);
                *seen.lock().expect("lock") = Some((control.status(), control.stats()));
                control.stop(StopReason::Cancelled);
                crate::rig::eventually("it is over", || control.status() == Status::Ended);
            });
        };
        // The second process keeps it busy, so that there is something to be seen.
        rig.watched(&["sh", "-c", "echo ready >&2; while true; do :; done"], &started)
    });
    ran.fails_with(ErrorCode::Cancelled);
    let (status, stats) = seen.into_inner().expect("lock").expect("seen");
    assert_eq!(status, Status::Running(None));
    assert!(
        stats.cpu_ms > 0 && ran.usage.cpu_ms >= stats.cpu_ms && ran.usage.max_rss_bytes >= stats.rss_bytes,
        "{ran:?}"
    );
}

#[test]
fn one_that_no_longer_does_its_work_is_ended() {
    let Some(engine) = TestEngine::shared() else { return };
    let mut rig = Rig::new(&engine);
    let check = HealthCheck::new(["sh", "-c", "echo looked; test -e /tmp/works"].map(str::to_owned).to_vec());
    rig.container.health = Some(Box::new(HealthCheck { interval_ms: 100, timeout_ms: 5_000, retries: 3, ..check }));
    // Healthy until it removes what the check looks for; it would go on for ever.
    let ran = rig.sh("touch /tmp/works; sleep 2; rm /tmp/works; echo stuck; sleep 1000");
    let message = ran.fails_with(ErrorCode::Exit);
    assert!(message.contains("unhealthy") && message.contains("status 1") && message.ends_with("looked"), "{message}");
    assert!(ran.failure().retryable && ran.stdout == "stuck\n", "{ran:?}");
    // A bad beginning is borne.
    rig.container.health.as_mut().expect("a check").start_ms = 60_000;
    assert_eq!(rig.sh("sleep 2; touch /tmp/works; echo done").text(), "done");
    assert!(rig.containers().is_empty());
}

#[test]
fn over_its_memory_it_is_killed_whoever_of_it_took_it() {
    let Some(engine) = TestEngine::shared() else { return };
    let mut rig = Rig::new(&engine);
    rig.resources.memory_bytes = 32 << 20;
    let ran = rig.sh("head -c 320000000 /dev/zero | tr '\\0' x | sort > /dev/null; echo lived");
    assert!(ran.fails_with(ErrorCode::Oom).contains("33554432 bytes"), "{ran:?}");
    let direct = rig.run(&["awk", "BEGIN { s = \"xxxxxxxxxxxxxxxx\"; while (1) s = s s }"]);
    direct.fails_with(ErrorCode::Oom);
    // What is in /tmp counts.
    rig.resources.memory_bytes = 8 << 20;
    rig.run(&["dd", "if=/dev/zero", "of=/tmp/x", "bs=1M", "count=12"]).fails_with(ErrorCode::Oom);
    assert_eq!(rig.sh("echo lived").text(), "lived");
}

#[test]
fn no_task_writes_more_than_it_may() {
    let Some(engine) = TestEngine::shared() else { return };
    let mut rig = Rig::new(&engine);
    rig.limits.output_bytes_max = 4 << 20;
    for script in [
        "while true; do cat /bin/busybox; done",
        "while true; do cat /bin/busybox; done >&2",
        "while true; do cat /bin/busybox; done > /job/output/big",
        "while true; do cat /bin/busybox; done > /job/work/big",
        "exec 3> /job/work/gone; rm /job/work/gone; head -c 30000000 /dev/zero >&3; sleep 60",
    ] {
        let ran = rig.sh(script);
        assert!(
            ran.fails_with(ErrorCode::Storage).contains("4194304") && !ran.failure().retryable,
            "{script}: {ran:?}"
        );
    }
    let within = rig.sh("head -c 3000000 /dev/zero | tr '\\0' x");
    assert_eq!((within.text().len(), within.usage.output_bytes), (3_000_000, 3_000_000));
}

#[test]
fn stdin_is_fed_to_its_end_and_stdout_taken_meanwhile() {
    let Some(engine) = TestEngine::shared() else { return };
    let mut rig = Rig::new(&engine);
    let lines: String = (0..200_000).map(|n| format!("key{n}\tvalue\n")).collect();
    let program = |argv: &[&str], rig: &Rig| {
        let argv = argv.iter().map(|a| (*a).to_owned()).collect();
        Program::Container(Container { argv, ..rig.container.clone() })
    };
    for (argv, records) in [(&["cat"][..], 200_000), (&["head", "-n", "3"][..], 3)] {
        let map = program(argv, &rig);
        let done = rig.with(&|_| {}, |ctx, slot| {
            let work = MapWork { map: &map, combine: None, partitions: 2, sort_budget: 64 << 20 };
            let done = run_map(ctx, slot, &work, &mut lines.as_bytes());
            let size = done.output.as_ref().map(|(_, index)| index.entries().iter().map(|e| e.lines).sum::<u64>());
            (done.outcome.result, size)
        });
        assert_eq!((done.0.map(|_| ()), done.1), (Ok(()), Some(records)), "{argv:?}");
    }
    assert!(rig.containers().is_empty());
}
