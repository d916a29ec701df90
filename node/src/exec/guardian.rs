//! No process of a task survives its daemon. While the daemon lives, [`super::sweep`] sees to that. When it dies, even by
//! SIGKILL, a helper does: the guardian, the same binary started once as `sinew __guardian TAG`, waits for the end of a pipe
//! that only the daemon holds, kills every process that carries the tag, and exits. And at its next start the daemon kills
//! whatever an earlier run on the same data directory left ([`reconcile_leftovers`]), should the guardian have died too.
//!
//! A daemon that lives and does nothing is no better than a dead one: the guardian also ends each attempt whose lease is over
//! ([`super::switch`]).

use std::collections::HashSet;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use super::cell::{cgroup, stay_in_memory};
use super::sweep::{Target, kill_matching};
use super::switch::{Due, Kind, Switch, Watch};

/// The variable that marks a process as belonging to a daemon.
pub const TAG_VAR: &str = "SINEW_NODE_TAG";
/// The variable that marks which attempt of that daemon a process belongs to.
pub const RUN_VAR: &str = "SINEW_RUN";
/// The hidden subcommand that is a guardian.
pub const GUARDIAN_COMMAND: &str = "__guardian";

/// Longest time spent hunting: a program that forks faster than it is killed must not keep a helper alive for ever.
const HUNT_MAX: Duration = Duration::from_secs(10);
/// Between two looks: long enough for the killed to be gone.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Bytes of the hash that stands for a data directory: no two of one machine are alike.
const DIRECTORY_BYTES: usize = 8;
/// Looks in a row that must find nothing: the first may miss a process that was just being forked.
const CLEAN_LOOKS: u32 = 2;

/// Marks the processes of one run of one daemon: `DIRECTORY:START`, where the first part is the same for each run on a data
/// directory and the second differs. So a slow guardian of the last run cannot hit the tasks of the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeTag {
    value: String,
    directory_len: usize,
}

impl NodeTag {
    /// A tag for a daemon that starts now on the data directory that `directory` names uniquely. Programs see it, so it says
    /// nothing about where that is.
    #[must_use]
    pub fn new(directory: &str) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let directory =
            data_encoding::HEXLOWER.encode(&blake3::hash(directory.as_bytes()).as_bytes()[..DIRECTORY_BYTES]);
        Self { value: format!("{directory}:{:x}-{since:x}", std::process::id()), directory_len: directory.len() }
    }

    /// Reads [`Self::value`] back.
    #[must_use]
    pub fn parse(value: &str) -> Option<Self> {
        let directory_len = value.find(':')?;
        Some(Self { value: value.to_owned(), directory_len })
    }

    /// The value of [`TAG_VAR`].
    #[must_use]
    pub fn value(&self) -> &str {
        &self.value
    }

    /// Whether `value` marks another run on the same data directory. Only one daemon holds a data directory at a time, so
    /// another run is an earlier one.
    pub(crate) fn is_earlier(&self, value: &str) -> bool {
        value != self.value && value.starts_with(&self.value[..=self.directory_len])
    }
}

/// Makes orphaned descendants of the daemon its children, so that they are seen and reaped wherever it runs: in a container
/// the process they would otherwise go to may never reap.
///
/// # Errors
/// When the kernel refuses.
pub fn become_subreaper() -> std::io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// Kills what earlier runs on the same data directory left, and says how many processes that were. For the daemon's start,
/// once it holds the directory's lock.
pub fn reconcile_leftovers(tag: &NodeTag) -> usize {
    let killed = hunt(Target::Earlier(tag));
    crate::secrets::files::remove_earlier(tag);
    killed
}

/// Kills every process of this run: for an orderly shutdown, after the slots have ended.
pub fn kill_all(tag: &NodeTag) -> usize {
    hunt(Target::All(tag))
}

fn hunt(target: Target<'_>) -> usize {
    let deadline = Instant::now() + HUNT_MAX;
    let (mut killed, mut clean) = (0, 0);
    while clean < CLEAN_LOOKS && Instant::now() < deadline {
        let hit = kill_matching(target);
        killed += hit;
        clean = if hit == 0 { clean + 1 } else { 0 };
        std::thread::sleep(LOOK_EVERY);
    }
    killed
}

/// The body of `sinew __guardian TAG [ENGINE]`, whose stderr may be a [`Switch`]: ends what is over until stdin ends, then kills
/// everything. `engine` is the socket of the Docker engine. Returns the exit code.
#[must_use]
pub fn guardian_main(tag: &str, engine: Option<&Path>) -> u8 {
    let Some(tag) = NodeTag::parse(tag) else { return 2 };
    // Known by this name and not by the number of the descriptor that it was started from.
    let _ = rustix::thread::set_name(c"sinew-guardian");
    stay_in_memory();
    match Watch::open(std::io::stderr().as_fd()) {
        Some(watch) => watch_over(watch, &tag, engine),
        None => until_eof(),
    }
    hunt(Target::All(&tag));
    cgroup::remove_run(&tag);
    crate::secrets::files::remove_run(&tag);
    0
}

/// Waits for the daemon's end.
fn until_eof() {
    let mut nothing = [0_u8; 16];
    let mut stdin = std::io::stdin().lock();
    // An error means that the pipe is as good as closed.
    while !matches!(stdin.read(&mut nothing), Ok(0) | Err(_)) {}
}

/// Ends what is over, until the daemon's end.
fn watch_over(mut watch: Watch, tag: &NodeTag, engine: Option<&Path>) {
    // One that goes off on waking where the machine slept.
    let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK);
    let Ok(timer) = timer else { return until_eof() };
    let stdin = std::io::stdin();
    let mut bytes = [0_u8; 64];
    loop {
        let (due, next) = watch.look();
        if !due.is_empty() {
            end_all(&watch, &due, tag, engine);
            continue;
        }
        let never = next == u64::MAX;
        let (seconds, rest) = if never { (0, 0) } else { (next / 1_000_000_000, next % 1_000_000_000) };
        let at = Timespec { tv_sec: seconds.cast_signed(), tv_nsec: rest.cast_signed() };
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let set = Itimerspec { it_interval: zero, it_value: at };
        if timerfd_settime(&timer, TimerfdTimerFlags::ABSTIME, &set).is_err() {
            return until_eof();
        }
        let mut fds = [PollFd::new(&stdin, PollFlags::IN), PollFd::new(&timer, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(Errno::INTR) => continue,
            Err(_) => return until_eof(),
            Ok(_) => {}
        }
        if !fds[0].revents().is_empty() && matches!(rustix::io::read(&stdin, &mut bytes), Ok(0) | Err(_)) {
            return;
        }
    }
}

/// Kills what has run for as long as it may.
fn end_all(watch: &Watch, due: &[Due], tag: &NodeTag, engine: Option<&Path>) {
    for due in due.iter().filter(|due| due.pid > 0) {
        let Some(pid) = Pid::from_raw(due.pid) else { continue };
        let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        // Not reaped as long as its entry stands, so that the number is still its own.
        if watch.stands(due) {
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            if due.kind == Kind::Group {
                let _ = kill_process_group(pid, Signal::KILL);
            }
        }
    }
    let containers: Vec<u64> = due.iter().filter(|due| due.kind == Kind::Container).map(|due| due.run).collect();
    if let Some(engine) = engine.filter(|_| !containers.is_empty()) {
        let (engine, tag) = (engine.to_owned(), tag.clone());
        // An engine that does not answer keeps nobody else waiting.
        let asked = move || {
            // Again: one may just have been starting.
            for _ in 0..ENGINE_ASKED {
                containers.iter().for_each(|run| kill_container(&engine, &container_name(&tag, *run)));
                std::thread::sleep(ENGINE_AGAIN);
            }
        };
        let _ = std::thread::Builder::new().spawn(asked);
    }
    // What has left its group, and what is in a container, by the marks that it carries.
    let marked: HashSet<u64> = due.iter().filter(|due| due.kind != Kind::Cell).map(|due| due.run).collect();
    if !marked.is_empty() {
        kill_matching(Target::Runs(tag, &marked));
    }
}

/// The name of the container of one run: `sinew-DAEMON-RUN`, of what names take.
pub(super) fn container_name(tag: &NodeTag, run: u64) -> String {
    let daemon = tag.value().replace(|c: char| !c.is_ascii_alphanumeric() && c != '-', "-");
    format!("sinew-{daemon}-{run}")
}

/// How often an engine is asked to kill a container, and after how long each time.
const ENGINE_ASKED: u32 = 3;
const ENGINE_AGAIN: Duration = Duration::from_millis(300);
/// How long an engine may take to answer.
const ENGINE_PATIENCE: Duration = Duration::from_secs(10);

/// Asks a Docker engine to kill a container. It fails for one that has ended, or is yet to be made: that one is removed by the
/// daemon, or at its next start.
fn kill_container(engine: &Path, name: &str) {
    let ask = || -> std::io::Result<()> {
        let mut stream = UnixStream::connect(engine)?;
        stream.set_read_timeout(Some(ENGINE_PATIENCE))?;
        stream.set_write_timeout(Some(ENGINE_PATIENCE))?;
        let request = format!(
            "POST /containers/{name}/kill?signal=SIGKILL HTTP/1.1\r\nHost: docker\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes())?;
        let mut answer = [0; 64];
        stream.read(&mut answer).map(|_| ())
    };
    let _ = ask();
}

/// A started guardian. It fires when this is dropped, or when the process that holds it dies.
#[derive(Debug)]
pub struct Guardian {
    child: Child,
    switch: Arc<Switch>,
}

impl Guardian {
    /// Starts a guardian for `tag` from the daemon's own binary, which also watches `switch`. `engine` is the socket of the Docker
    /// engine whose containers it is to kill.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn spawn(exe: &Path, tag: &NodeTag, switch: &Arc<Switch>, engine: Option<&PathBuf>) -> std::io::Result<Self> {
        let mut command = Command::new(exe);
        command.arg0("sinew").arg(GUARDIAN_COMMAND).arg(tag.value()).args(engine);
        // Its own group: Ctrl-C in the daemon's terminal must not reach it. An empty environment: should this daemon be
        // somebody's task itself, its guardian is not to be mistaken for that task for longer than it lives.
        command.env_clear().stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
        command.stderr(switch.memory().try_clone_to_owned()?);
        let mut child = command.spawn()?;
        if let Some(stdin) = &child.stdin {
            rustix::io::ioctl_fionbio(stdin, true)?;
            switch.connect(stdin.as_fd().try_clone_to_owned()?);
        } else {
            // It was asked for.
            let _ = child.kill();
        }
        Ok(Self { child, switch: Arc::clone(switch) })
    }

    /// Whether it still watches; start another one when not.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        self.switch.disconnect();
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_tell_runs_and_directories_apart() {
        let (a, b) = (NodeTag::new("node a"), NodeTag::new("node a"));
        assert!(!a.value().contains("node"), "{}", a.value());
        assert!(a.is_earlier(b.value()) && !a.is_earlier(a.value()));
        assert!(!a.is_earlier(NodeTag::new("node").value()) && !NodeTag::new("node").is_earlier(a.value()));
        assert_eq!(NodeTag::parse(a.value()), Some(a));
        assert_eq!(guardian_main("no-colon", None), 2);
    }
}
