//! Ctrl-C and worse: what a command started ends with it.

use std::time::{Duration, Instant};

use rand::RngExt;
use rustix::process::Signal;

use crate::support::{Daemon, Running, SINEW, processes_with, until};

#[test]
fn an_interrupted_run_ends_its_program() {
    let node = Daemon::start();
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let mark = format!("1000.{}{code}", std::process::id());
        let running = node.begin(&["run", "--", "sleep", &mark]);
        // The command itself names it too, so look for the second.
        until("the program runs", || (processes_with(&mark).len() >= 2).then_some(()));
        running.signal(signal);
        let ran = running.wait();
        assert_eq!(ran.code, code, "{ran}");
        until("the program is gone", || processes_with(&mark).is_empty().then_some(()));
    }
    // Killed outright, the command cannot cancel anything: the job runs on, and can still be cancelled.
    let mark = format!("1000.{}9", std::process::id());
    let running = node.begin(&["run", "--name", "orphan", "--", "sleep", &mark]);
    until("the program runs", || (processes_with(&mark).len() >= 2).then_some(()));
    running.signal(Signal::KILL);
    assert_eq!(running.wait().code, 137);
    let jobs: serde_json::Value = serde_json::from_slice(&node.run(&["--json", "jobs"]).done().stdout).expect("json");
    let orphan = jobs["jobs"].as_array().expect("jobs").iter().find(|j| j["name"] == "orphan").expect("it goes on");
    node.run(&["cancel", "--yes", orphan["id"].as_str().expect("id")]).done();
    until("the program is gone", || processes_with(&mark).is_empty().then_some(()));
    node.is_alive();
}

/// A demo with a temporary directory of its own, whose name marks every process that it starts.
struct Demo {
    tmp: tempfile::TempDir,
}

impl Demo {
    fn new() -> Self {
        let tmp = tempfile::Builder::new().prefix("sinew-interrupted-").tempdir().expect("dir");
        std::fs::write(tmp.path().join("text"), "one two two three three three\n".repeat(40_000)).expect("write");
        std::fs::create_dir(tmp.path().join("tmp")).expect("mkdir");
        Self { tmp }
    }

    fn begin(&self) -> Running {
        let mut command = std::process::Command::new(SINEW);
        command.args(["demo", "--input"]).arg(self.tmp.path().join("text"));
        command.env("TMPDIR", self.tmp.path().join("tmp"));
        Running::start(command)
    }

    fn processes(&self) -> Vec<u32> {
        processes_with(&self.tmp.path().to_string_lossy())
    }

    fn leftovers(&self) -> Vec<std::path::PathBuf> {
        std::fs::read_dir(self.tmp.path().join("tmp")).expect("dir").map(|e| e.expect("entry").path()).collect()
    }
}

#[test]
fn a_demo_in_a_pipe_prints_plain_lines_and_leaves_nothing() {
    let demo = Demo::new();
    let ran = demo.begin().wait();
    let text = ran.done().stdout();
    assert!(text.contains("the counts are equal") && text.contains("node 2"), "{ran}");
    let all = text + &ran.stderr;
    assert!(!all.contains(['\r', '\x1b']), "no bars, no colours in a pipe: {all:?}");
    until("its processes are gone", || demo.processes().is_empty().then_some(()));
    assert_eq!(demo.leftovers(), [] as [std::path::PathBuf; 0]);
}

/// Interrupted at any moment, the demo takes its daemons, sockets and directories with it.
#[test]
fn an_interrupted_demo_leaves_nothing() {
    let mut rng = rand::rng();
    // More often early on, while daemons are being started one after the other.
    for most in [200, 200, 200, 1_000, 1_000, 3_000] {
        let (demo, after) = (Demo::new(), Duration::from_millis(rng.random_range(20..most)));
        let mut running = demo.begin();
        if !runs_out(&mut running, after) {
            running.signal(Signal::INT);
        }
        let ran = running.wait();
        // It may have been done by then, or already tidying up.
        let done = ran.code == 0 && ran.stdout().contains("the counts are equal");
        assert!(ran.code == 130 || done, "interrupted after {after:?}: {ran}");
        until("its processes are gone", || demo.processes().is_empty().then_some(()));
        assert_eq!(demo.leftovers(), [] as [std::path::PathBuf; 0], "interrupted after {after:?}");
    }
}

/// Killed outright it cannot tidy up its directory, but its daemons notice and end by themselves.
#[test]
fn a_killed_demo_leaves_no_process() {
    let mut rng = rand::rng();
    for _ in 0..4 {
        let (demo, after) = (Demo::new(), Duration::from_millis(rng.random_range(20..3_000)));
        let mut running = demo.begin();
        if !runs_out(&mut running, after) {
            running.signal(Signal::KILL);
        }
        running.wait();
        let began = Instant::now();
        until("its processes are gone", || demo.processes().is_empty().then_some(()));
        assert!(began.elapsed() < Duration::from_secs(15), "killed after {after:?}: {:?}", began.elapsed());
    }
}

/// Waits for `after`; whether the command ended before.
fn runs_out(running: &mut Running, after: Duration) -> bool {
    let deadline = Instant::now() + after;
    while Instant::now() < deadline {
        if running.is_over() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    running.is_over()
}
