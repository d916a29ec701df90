//! How many files this daemon may have open, and how many tasks that is enough for. The soft limit that daemons are started with is
//! an old one, for programs that use `select(2)`: the daemon takes what the hard one allows, and its tasks get the old one back.

use std::sync::OnceLock;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};

use super::switch::ENTRIES_MAX;

/// What the daemon itself wants: its ledger, blobs, connections and clients.
const RESERVED: u64 = 200;
/// What a task takes while it runs: a socket to its cell, its process, its streams, its directories, its logs.
const PER_TASK: u64 = 12;
/// Where there is no limit, as many as the kernel gives a process by default.
const UNLIMITED: u64 = 1 << 20;
/// More than this would be more threads than do any good.
const TASKS_MAX: u64 = ENTRIES_MAX as u64 / 4;

static BEFORE: OnceLock<Rlimit> = OnceLock::new();

/// Raises the soft limit to the hard one, and says how many files may be open now.
pub fn raise() -> u64 {
    let before = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: before.maximum, ..before };
    if before.current != before.maximum && BEFORE.get().is_none() {
        match setrlimit(Resource::Nofile, raised) {
            Ok(()) => {
                let _ = BEFORE.set(before);
            }
            Err(error) => tracing::warn!(%error, "the limit of open files stays where it is"),
        }
    }
    getrlimit(Resource::Nofile).current.unwrap_or(UNLIMITED)
}

/// Tasks that so many open files are enough for.
#[must_use]
pub fn tasks_max(files: u64) -> u32 {
    let tasks = (files.saturating_sub(RESERVED) / PER_TASK).clamp(1, TASKS_MAX);
    u32::try_from(tasks).unwrap_or(u32::MAX)
}

/// Gives a child that was just started the soft limit that this process was started with.
pub(crate) fn restore_for(child: u32) {
    let pid = i32::try_from(child).ok().and_then(Pid::from_raw);
    if let (Some(before), Some(pid)) = (BEFORE.get(), pid) {
        // It may have ended already.
        let _ = prlimit(Some(pid), Resource::Nofile, *before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_files_are_enough_for_few_tasks() {
        assert_eq!([0, 200, 224, 1_024].map(tasks_max), [1, 1, 2, 68]);
        assert_eq!(tasks_max(u64::MAX), ENTRIES_MAX / 4);
    }

    #[test]
    fn children_get_the_old_limit() {
        let files = raise();
        let now = getrlimit(Resource::Nofile);
        assert_eq!(files, now.maximum.unwrap_or(UNLIMITED));
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("spawn");
        restore_for(child.id());
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", child.id())).expect("limits");
        child.kill().and_then(|()| child.wait()).expect("ended");
        let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("a line");
        let soft = line.split_ascii_whitespace().nth(3).expect("the soft one");
        let wanted = BEFORE.get().map_or(now, |before| *before).current;
        assert_eq!(soft, wanted.map_or("unlimited".to_owned(), |n| n.to_string()));
    }
}
