//! What a sweep costs, and whom it finds though it looks at the daemon's own descendants only.

use super::*;

/// Processes that have nothing to do with the daemon.
const FOREIGN: usize = 50;
/// Sweeps of a daemon in one minute.
const SWEEPS: u64 = 30;
/// Entries of `/proc` that one sweep of an idle daemon may read: a few for each thread of the daemon, of which there are two
/// here, and for each child, of which there is one.
const READS_MAX: u64 = 24;

/// Stands in for an idle daemon: `THIS __sweeper` runs this test alone and writes down what its sweeps read.
mod __sweeper {
    use super::*;

    #[test]
    fn stands_in() {
        if std::env::args().nth(1).is_none_or(|a| a != "__sweeper") {
            return;
        }
        become_subreaper().expect("subreaper");
        let tag = NodeTag::new("sweeper");
        // As the guardian is: a child that no sweep touches.
        let mut child = Command::new("sleep").arg("1000").spawn().expect("sleep");
        let mut sweeper = Sweeper::new(tag);
        let swept: Vec<_> = (0..SWEEPS).map(|_| sweeper.sweep()).collect();
        child.kill().expect("kill");
        child.wait().expect("wait");
        assert!(swept.iter().all(|s| (s.killed, s.reaped) == (0, 0)), "{swept:?}");
        let reads: u64 = swept.iter().map(|s| s.reads).sum();
        std::fs::write(std::env::var_os("READS_FILE").expect("READS_FILE"), reads.to_string()).expect("write");
    }
}

/// What an idle minute's sweeps of another process read.
fn idle_minute() -> u64 {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("reads");
    let mut sweeper = Command::new(std::env::current_exe().expect("exe"));
    let done = sweeper.arg("__sweeper").env("READS_FILE", &file).stdout(Stdio::null()).status().expect("sweeper");
    assert!(done.success());
    std::fs::read_to_string(&file).expect("read").parse().expect("a number")
}

/// Processes of this test, ended with the value.
struct Foreign(Vec<std::process::Child>);

impl Foreign {
    fn start() -> Self {
        Self((0..FOREIGN).map(|_| Command::new("sleep").arg("1000").spawn().expect("sleep")).collect())
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // Both fail only when it is gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn an_idle_minute_costs_the_same_beside_foreign_processes() {
    let alone = idle_minute();
    let foreign = Foreign::start();
    let beside = idle_minute();
    drop(foreign);
    assert_eq!(alone, beside, "entries of /proc read, alone and beside {FOREIGN} foreign processes");
    assert!((SWEEPS..=SWEEPS * READS_MAX).contains(&alone), "{alone} entries of /proc read by {SWEEPS} sweeps");
}

/// Starts `sh -c SCRIPT` as a task that nothing isolates; it ends well, and `count` processes of it stay. Then sweeps.
fn strays_of(script: &str, count: usize) {
    become_subreaper().expect("subreaper");
    let mut world = World::bare();
    let tag = world.runner.tag().clone();
    let done = world.batch(&["sh", "-c", script]);
    assert!(done.outcome.result.is_ok(), "{:?}", done.outcome);
    eventually("what it left to run", || tagged(tag.value()).len() == count);
    let mut sweeper = Sweeper::new(tag.clone());
    eventually("strays to be gone", || {
        sweeper.sweep();
        tagged(tag.value()).is_empty()
    });
}

/// An orphan goes to the nearest subreaper above it, which need not be the daemon.
#[test]
fn orphans_that_another_subreaper_holds_are_found() {
    let holder = "import ctypes, subprocess, time\n\
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)\n\
        subprocess.run(['sh', '-c', 'setsid sleep 1000 &'])\n\
        open('ready', 'w').close()\n\
        time.sleep(1000)";
    let quiet = "</dev/null >/dev/null 2>&1";
    let script = format!("setsid python3 -c \"{holder}\" {quiet} & while ! test -e ready; do sleep 0.01; done");
    strays_of(&script, 2);
}

/// A parent without the marks stands between the daemon and the stray.
#[test]
fn strays_below_a_process_without_marks_are_found() {
    let below = "export $MARKS; sleep 1000 & touch ready; wait";
    let quiet = "</dev/null >/dev/null 2>&1";
    let script = format!(
        "MARKS=\"{TAG_VAR}=${TAG_VAR} SINEW_RUN=$SINEW_RUN\"; \
         setsid env -i PATH=\"$PATH\" MARKS=\"$MARKS\" sh -c '{below}' {quiet} & \
         while ! test -e ready; do sleep 0.01; done"
    );
    strays_of(&script, 1);
}
