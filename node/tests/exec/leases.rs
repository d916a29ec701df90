//! Programs whose lease is over: killed without grace, also where their daemon stands still.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use sinew_node::exec::guardian::Guardian;
use sinew_node::exec::runner::Control;
use sinew_node::exec::stop::{StopHandle, StopReason};
use sinew_node::exec::switch::{Switch, boot_ns};
use sinew_node::exec::task::run_batch;

use crate::{World, eventually, exec, failure, tagged};

/// Grace is for those whose right to run is not another's by now.
#[test]
fn a_fenced_program_is_killed_without_a_word() {
    let script = "trap 'echo asked to end >&2' TERM; echo up >&2; while :; do sleep 0.02; done";
    for (reason, is_asked) in [(StopReason::Cancelled, true), (StopReason::Fenced, false)] {
        for mut world in [World::new(), World::bare()] {
            let stop = StopHandle::new().expect("handle");
            let (to_stopper, controls) = std::sync::mpsc::channel::<std::sync::Arc<dyn Control>>();
            let to_stopper = Mutex::new(to_stopper);
            let started = |control| to_stopper.lock().expect("lock").send(control).expect("stopper");
            let stopper = std::thread::spawn(move || {
                let control = controls.recv().expect("started");
                eventually("its stderr", || control.logs() == b"up\n");
                control.stop(reason);
            });
            let program = exec(&["sh", "-c", script]);
            let done = world.watched(&stop, None, Some(&started), |ctx, slot| run_batch(ctx, slot, &program, &[]));
            stopper.join().expect("stopper");
            let failure = failure(done.outcome);
            assert_eq!((failure.code, failure.signal), (reason.failure().code, Some(9)), "{failure:?}");
            assert_eq!(failure.stderr_tail.contains("asked to end"), is_asked, "{failure:?}");
            eventually("all of it to be gone", || tagged(world.runner.tag().value()).is_empty());
        }
    }
}

/// One that was asked to end in good order, and is another's before it has.
#[test]
fn grace_ends_with_the_right_to_run() {
    let mut world = World::new();
    world.grace = Duration::from_secs(3_600);
    let switch = Switch::new().expect("switch");
    let stop = StopHandle::leased(switch.enter(u64::MAX).expect("entry")).expect("handle");
    let (handle, (to_stopper, controls)) = (stop.clone(), std::sync::mpsc::channel::<std::sync::Arc<dyn Control>>());
    let to_stopper = Mutex::new(to_stopper);
    let started = |control| to_stopper.lock().expect("lock").send(control).expect("stopper");
    let stopper = std::thread::spawn(move || {
        let control = controls.recv().expect("started");
        eventually("its stderr", || control.logs() == b"up\n");
        control.stop(StopReason::Cancelled);
        eventually("that it heard that", || control.logs().ends_with(b"asked to end\n"));
        handle.set_end(1);
    });
    let program = exec(&["sh", "-c", "trap 'echo asked to end >&2' TERM; echo up >&2; while :; do sleep 0.02; done"]);
    let done = world.watched(&stop, None, Some(&started), |ctx, slot| run_batch(ctx, slot, &program, &[]));
    stopper.join().expect("stopper");
    assert_eq!(failure(done.outcome).signal, Some(9));
}

/// Stands in for a daemon that renews its task's lease as long as it goes on: `THIS __stalled` runs this test alone.
mod __stalled {
    use super::*;

    #[test]
    fn stands_in() {
        if std::env::args().nth(1).is_none_or(|a| a != "__stalled") {
            return;
        }
        let mut world = if std::env::var_os("BARE").is_some() { World::bare() } else { World::new() };
        let switch = Switch::new().expect("switch");
        let exe = Path::new(env!("CARGO_BIN_EXE_sinew"));
        let _guardian = Guardian::spawn(exe, world.runner.tag(), &switch, None).expect("guardian");
        let lease = || boot_ns() + 2_000_000_000;
        let stop = StopHandle::leased(switch.enter(lease()).expect("entry")).expect("handle");
        let renewed = stop.clone();
        std::thread::spawn(move || {
            loop {
                renewed.set_end(lease());
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let at = std::env::var_os("TAG_FILE").expect("TAG_FILE");
        std::fs::write(&at, world.runner.tag().value()).expect("write");
        let script = "trap '' TERM; setsid sleep 1000 </dev/null >/dev/null 2>&1 & sleep 1000";
        world.with(&stop, |ctx, slot| run_batch(ctx, slot, &exec(&["sh", "-c", script]), &[]));
    }
}

/// Stopped, swapped out, in a debugger: it does not see that its lease is over, and somebody else does.
#[test]
fn nothing_outlives_its_lease_where_the_daemon_stands_still() {
    for bare in [false, true] {
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join("tag");
        let mut daemon = Command::new(std::env::current_exe().expect("exe"));
        daemon.arg("__stalled").env("TAG_FILE", &file).env("TMPDIR", dir.path()).stdout(Stdio::null());
        if bare {
            daemon.env("BARE", "1");
        }
        let mut daemon = daemon.spawn().expect("daemon");
        let tag = || std::fs::read_to_string(&file).unwrap_or_default();
        // The shell and its two children.
        let all = 3;
        eventually("the task and its grandchild to run", || !tag().is_empty() && tagged(&tag()).len() == all);
        // For longer than any lease: it is renewed.
        std::thread::sleep(Duration::from_millis(2_500));
        assert_eq!(tagged(&tag()).len(), all, "it runs on as long as its lease is renewed");
        let pid = rustix::process::Pid::from_child(&daemon);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("stop");
        eventually("what ran to have been killed", || tagged(&tag()).is_empty());
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.id())).expect("stat");
        assert!(stat.contains(") T "), "it was not the daemon that saw to it: {stat}");
        rustix::process::kill_process(pid, rustix::process::Signal::CONT).expect("continue");
        assert!(daemon.wait().expect("wait").success());
    }
}
