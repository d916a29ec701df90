//! No process of a task survives its daemon. While the daemon lives, [`super::sweep`] sees to that. When it dies, even by
//! SIGKILL, a helper does: the guardian, the same binary started once as `sinew __guardian TAG`, waits for the end of a pipe
//! that only the daemon holds, kills every process that carries the tag, and exits. And at its next start the daemon kills
//! whatever an earlier run on the same data directory left ([`reconcile_leftovers`]), should the guardian have died too.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::cell::cgroup;
use super::sweep::{Target, kill_matching};

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

/// The body of `sinew __guardian TAG`: blocks until stdin ends, then kills. Returns the exit code.
#[must_use]
pub fn guardian_main(tag: &str) -> u8 {
    let Some(tag) = NodeTag::parse(tag) else { return 2 };
    let mut nothing = [0_u8; 16];
    let mut stdin = std::io::stdin().lock();
    // Nobody writes; an error means that the pipe is as good as closed.
    while !matches!(stdin.read(&mut nothing), Ok(0) | Err(_)) {}
    hunt(Target::All(&tag));
    cgroup::remove_run(&tag);
    crate::secrets::files::remove_run(&tag);
    0
}

/// A started guardian. It fires when this is dropped, or when the process that holds it dies.
#[derive(Debug)]
pub struct Guardian {
    child: Child,
}

impl Guardian {
    /// Starts a guardian for `tag` from the daemon's own binary.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn spawn(exe: &Path, tag: &NodeTag) -> std::io::Result<Self> {
        let mut command = Command::new(exe);
        command.arg(GUARDIAN_COMMAND).arg(tag.value());
        // Its own group: Ctrl-C in the daemon's terminal must not reach it. An empty environment: should this daemon be
        // somebody's task itself, its guardian is not to be mistaken for that task for longer than it lives.
        command.env_clear().stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        Ok(Self { child: command.spawn()? })
    }

    /// Whether it still watches; start another one when not.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
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
        assert_eq!(guardian_main("no-colon"), 2);
    }
}
