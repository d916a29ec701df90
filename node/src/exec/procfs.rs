//! The few things read from `/proc` about processes. Each answer may be out of date when it arrives, and a process that is
//! gone or belongs to somebody else gives none.

use std::cell::Cell;
use std::collections::HashSet;
use std::io::Read;

/// Clock ticks per second in `/proc/PID/stat`: `USER_HZ`, which is 100 in the kernel's interface on every Linux that Rust runs on.
const TICKS_PER_S: u64 = 100;

/// What most files of `/proc` about processes fit into; the longest line of `stat` is some 400 bytes.
const FILE_LEN: usize = 1_024;

/// Most bytes of an environment that are looked at. The markers are among the first variables, but a program may have set
/// many of its own.
const ENVIRON_LEN_MAX: u64 = 4 * 1024 * 1024;

thread_local! {
    static READS: Cell<u64> = const { Cell::new(0) };
}

/// How many entries of `/proc` the calling thread has read so far about processes: files, and names in directories. This is
/// what a look costs, on any machine.
pub(super) fn reads() -> u64 {
    READS.get()
}

fn count(entries: u64) {
    READS.set(READS.get() + entries);
}

/// Reads a file of `/proc`. Those have no size to ask for, and nearly all fit at once.
fn read(path: &str) -> Option<Vec<u8>> {
    count(1);
    let mut bytes = Vec::with_capacity(FILE_LEN);
    std::fs::File::open(path).ok()?.read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// Some fields of `/proc/PID/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    /// `b'Z'` for a zombie.
    pub(super) state: u8,
    /// The parent's process id.
    pub(super) parent: i32,
    /// The process group.
    pub(super) group: i32,
    /// User and system CPU ms.
    pub(super) cpu_ms: u64,
    /// The same of children it has waited for.
    pub(super) children_cpu_ms: u64,
    /// When it started, in ticks since boot: with the id, this names one process for good.
    pub(super) started: u64,
}

/// Reads `/proc/PID/stat`.
pub(super) fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&read(&format!("/proc/{pid}/stat"))?)
}

fn parse_stat(bytes: &[u8]) -> Option<Stat> {
    // The name is in parentheses and may hold any byte, parentheses included: fields count from the last one.
    let end = memchr::memrchr(b')', bytes)?;
    let rest = std::str::from_utf8(bytes.get(end + 2..)?).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |i: usize| fields.get(i).and_then(|f| f.parse::<u64>().ok());
    Some(Stat {
        state: *fields.first()?.as_bytes().first()?,
        parent: fields.get(1)?.parse().ok()?,
        group: fields.get(2)?.parse().ok()?,
        cpu_ms: (number(11)? + number(12)?) * 1_000 / TICKS_PER_S,
        children_cpu_ms: (number(13)? + number(14)?) * 1_000 / TICKS_PER_S,
        started: number(19)?,
    })
}

/// Peak resident bytes of a process that still lives.
pub(super) fn peak_rss(pid: i32) -> Option<u64> {
    status_bytes(pid, "VmHWM:")
}

/// Resident bytes now.
pub(super) fn rss(pid: i32) -> Option<u64> {
    status_bytes(pid, "VmRSS:")
}

fn status_bytes(pid: i32, field: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(field))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1_024)
}

/// The children of a process with one thread, oldest first.
pub(super) fn children(pid: i32) -> Vec<i32> {
    // Not every kernel is built with that file.
    let all = || pids().into_iter().filter(|child| stat(*child).is_some_and(|s| s.parent == pid)).collect();
    children_of_thread(pid, pid).unwrap_or_else(all)
}

/// The children that one thread of a process has started or inherited; `None` where the kernel has no such file, or the
/// thread is gone.
fn children_of_thread(pid: i32, thread: i32) -> Option<Vec<i32>> {
    let text = String::from_utf8(read(&format!("/proc/{pid}/task/{thread}/children"))?).ok()?;
    Some(text.split_ascii_whitespace().filter_map(|child| child.parse().ok()).collect())
}

/// The children of all threads of a process.
fn children_of_threads(pid: i32) -> Vec<i32> {
    threads(pid).into_iter().filter_map(|thread| children_of_thread(pid, thread)).flatten().collect()
}

/// The threads of a process.
pub(super) fn threads(pid: i32) -> Vec<i32> {
    numbers_in(&format!("/proc/{pid}/task"))
}

/// A process and all that descend from it, as far as they are known.
pub(super) fn family(pid: i32) -> Vec<i32> {
    let below = descent(pid).map(|found| found.all).unwrap_or_default();
    std::iter::once(pid).chain(below).collect()
}

/// A process's children, and all that descend from it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Descent {
    pub(super) children: Vec<i32>,
    /// The children among them; parents before their children.
    pub(super) all: Vec<i32>,
}

/// All processes that descend from `pid`, found from parent to child, so that other processes of the machine cost nothing. `None`
/// where the kernel does not list children.
pub(super) fn descent(pid: i32) -> Option<Descent> {
    children_of_thread(pid, pid)?;
    let mut found = Descent::default();
    let mut seen = HashSet::from([pid]);
    // A parent that dies before it is looked at leaves its children to `pid`: those show at the second turn.
    for _ in 0..2 {
        let mut next = found.all.len();
        found.children = children_of_threads(pid);
        found.all.extend(found.children.iter().filter(|child| seen.insert(**child)));
        while let Some(parent) = found.all.get(next).copied() {
            // A number may be given away in the midst of this: nothing is walked twice.
            let below = children_of_threads(parent);
            found.all.extend(below.into_iter().filter(|child| seen.insert(*child)));
            next += 1;
        }
    }
    Some(found)
}

/// Bytes that a process and the children it waited for have written: to disks, or by system calls to anything, whichever is
/// more. The first misses file systems in memory, the second what is written through mapped memory.
pub(super) fn written(pid: i32) -> Option<u64> {
    written_in(&format!("/proc/{pid}/io"))
}

/// Bytes that the calling thread has written.
pub(super) fn thread_written() -> Option<u64> {
    written_in("/proc/thread-self/io")
}

fn written_in(path: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    field("write_bytes:").max(field("wchar:"))
}

/// The environment a process was started with; empty for a zombie.
pub(super) fn environ(pid: i32) -> Option<Vec<u8>> {
    count(1);
    let mut bytes = Vec::new();
    let file = std::fs::File::open(format!("/proc/{pid}/environ")).ok()?;
    file.take(ENVIRON_LEN_MAX).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// The value of `name` in an environment.
pub(super) fn variable<'a>(environ: &'a [u8], name: &str) -> Option<&'a str> {
    let value = environ.split(|b| *b == 0).find_map(|v| v.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
    std::str::from_utf8(value).ok()
}

/// The ids of all processes.
pub(super) fn pids() -> Vec<i32> {
    numbers_in("/proc")
}

fn numbers_in(dir: &str) -> Vec<i32> {
    count(1);
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let numbers: Vec<i32> = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    count(numbers.len() as u64);
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_stat_and_environment_are_read() {
        let pid = i32::try_from(std::process::id()).expect("pid");
        let own = stat(pid).expect("stat");
        assert_eq!(own.parent, rustix::process::getppid().expect("parent").as_raw_nonzero().get());
        assert!(own.state != b'Z' && own.started > 0);
        // In this order: another test's thread may be allocating meanwhile.
        let resident = rss(pid).expect("rss");
        assert!(peak_rss(pid).expect("peak") >= resident);
        assert!(pids().contains(&pid));
        assert_eq!(variable(b"A=1\0BC=x=y\0", "BC"), Some("x=y"));
        assert_eq!(variable(b"A=1\0BC=2\0", "B"), None);
    }

    /// A shell on another thread than the first, and a program below it.
    #[test]
    fn descent_goes_through_every_thread_and_down() {
        let own = i32::try_from(std::process::id()).expect("pid");
        let started = std::thread::spawn(move || {
            let mut shell = std::process::Command::new("sh");
            shell.args(["-c", "sleep 1000 & echo $!; wait"]).stdout(std::process::Stdio::piped());
            let mut shell = shell.spawn().expect("shell");
            let mut line = String::new();
            let out = shell.stdout.take().expect("stdout");
            std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).expect("line");
            let below: i32 = line.trim().parse().expect("pid");
            let child = i32::try_from(shell.id()).expect("pid");
            let before = reads();
            let found = descent(own).expect("this kernel lists children");
            let cost = reads() - before;
            for pid in [below, child] {
                let pid = rustix::process::Pid::from_raw(pid).expect("pid");
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
            }
            shell.wait().expect("wait");
            (child, below, found, cost)
        });
        let (child, below, found, cost) = started.join().expect("thread");
        assert!(found.children.contains(&child) && !found.children.contains(&below), "{found:?}");
        let place = |pid| found.all.iter().position(|p| *p == pid).expect("found");
        assert!(place(child) < place(below), "{found:?}");
        assert!(cost > 0);
    }

    #[test]
    fn a_name_with_parentheses_does_not_shift_fields() {
        let line = b"7 (a) Z (b) S 1 2 3 4 5 6 7 8 9 10 100 50 2 1 15 16 17 18 999 20 21\n";
        let stat = parse_stat(line).expect("stat");
        assert_eq!((stat.state, stat.parent, stat.group), (b'S', 1, 2));
        assert_eq!((stat.cpu_ms, stat.children_cpu_ms, stat.started), (1_500, 30, 999));
    }
}
