//! Control groups, version 2 or 1: what a cell may use of memory and processor, and how many processes it may have. Each run of
//! a daemon has a group of its own below the one it was started in, and in it one for each cell:
//!
//! ```text
//! sinew-HASH-RUN/cell-N      HASH stands for the data directory, RUN for this run of its daemon
//! ```
//!
//! Groups of earlier runs on the same data directory are removed; nobody else's are touched.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Pid;

use super::wire::Missing;
use crate::exec::guardian::NodeTag;
use crate::exec::procfs;

/// Over which a processor share is handed out: the kernel's default.
const PERIOD_US: u64 = 100_000;
/// The least quota that the kernel takes.
const QUOTA_MIN_US: u64 = 1_000;
/// Where the daemon itself goes under version 2, which wants processes in leaves only.
const DAEMON_LEAF: &str = "sinew-daemon";
/// A group can be removed once its last process is gone for good, moments after it was reaped.
const REMOVE_WITHIN: Duration = Duration::from_millis(200);
/// The same where nothing waits and nobody comes after: killed cells on a busy machine take their time.
const REMOVE_PATIENTLY: Duration = Duration::from_secs(10);

/// What one cell may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    /// Bytes.
    pub(super) memory_bytes: u64,
    /// Thousandths of a core; 0 is no limit.
    pub(super) cpu_milli: u32,
    /// Processes and threads.
    pub(super) processes: u64,
}

/// Directories in which groups are made, one per hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchies {
    v2: Option<PathBuf>,
    memory: Option<PathBuf>,
    cpu: Option<PathBuf>,
    pids: Option<PathBuf>,
}

impl Hierarchies {
    /// Where this process is, as far as groups can be made below.
    fn find() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        Self::parse(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"))
    }

    fn parse(mounts: &str, own: &str) -> Self {
        let place = |controller: &str| -> Option<PathBuf> {
            let kind = if controller.is_empty() { "cgroup2" } else { "cgroup" };
            let own = own.lines().find_map(|line| own_path(line, controller))?;
            mounts.lines().find_map(|line| mounted_at(line, kind, controller, own))
        };
        Self { v2: place(""), memory: place("memory"), cpu: place("cpu"), pids: place("pids") }
    }

    /// Each directory once.
    fn all(&self) -> Vec<&PathBuf> {
        let mut all: Vec<_> = [&self.v2, &self.memory, &self.cpu, &self.pids].into_iter().flatten().collect();
        all.sort();
        all.dedup();
        all
    }
}

/// The path in one line of `/proc/self/cgroup` (`7:cpu,cpuacct:/a/b`, or `0::/a/b` for version 2).
fn own_path<'a>(line: &'a str, controller: &str) -> Option<&'a str> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?);
    let path = path.strip_suffix(DAEMON_LEAF).map_or(path, |parent| parent.trim_end_matches('/'));
    controllers.split(',').any(|c| c == controller).then_some(path)
}

/// Where the group `own` is, if this line of `/proc/self/mountinfo` is of its hierarchy.
fn mounted_at(line: &str, kind: &str, controller: &str, own: &str) -> Option<PathBuf> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(3);
    let (root, at) = (before.next()?, before.next()?);
    let mut after = after.split(' ');
    let (is, options) = (after.next()?, after.nth(1)?);
    if is != kind || !controller.is_empty() && !options.split(',').any(|o| o == controller) {
        return None;
    }
    // In a container the mount may show less than the whole hierarchy.
    let below = if root == "/" { own } else { own.strip_prefix(root).unwrap_or("") };
    Some(Path::new(at).join(below.trim_start_matches('/')))
}

/// The groups of one run of a daemon. Dropping it removes them.
#[derive(Debug)]
pub(super) struct Cgroups {
    v2: Option<PathBuf>,
    memory: Option<PathBuf>,
    cpu: Option<PathBuf>,
    pids: Option<PathBuf>,
    next: AtomicU64,
    /// Groups whose removal was too early.
    left: Mutex<Vec<PathBuf>>,
}

impl Cgroups {
    /// Makes the group of this run and removes those of earlier ones. What cannot be limited comes back.
    pub(super) fn open(tag: &NodeTag, memory_bytes: u64) -> (Self, Vec<Missing>) {
        let found = Hierarchies::find();
        for dir in found.all() {
            remove_earlier(dir, tag);
        }
        let name = name_of(tag);
        let mut missing = Vec::new();
        let mut note = |piece: &str, why: String| missing.push(Missing { piece: piece.to_owned(), why });
        let mut this =
            Self { v2: None, memory: None, cpu: None, pids: None, next: AtomicU64::new(0), left: Mutex::default() };
        let unified = found.v2.as_ref().filter(|dir| has_controllers(dir));
        if let Some(dir) = unified {
            match delegate(dir).and_then(|()| make(&dir.join(&name))) {
                Ok(made) => {
                    let limited = enable(&made).and_then(|()| put(&made, "memory.max", memory_bytes));
                    match limited {
                        Ok(()) => this.v2 = Some(made),
                        Err(e) => note("limits of memory and processor", e.to_string()),
                    }
                }
                Err(e) => note("limits of memory and processor", e.to_string()),
            }
            return (this, missing);
        }
        let open = |dir: Option<&PathBuf>| match dir {
            Some(dir) => make(&dir.join(&name)),
            None => Err(io::Error::other("this machine has no such control group")),
        };
        match open(found.memory.as_ref()) {
            Ok(made) => {
                if let Err(e) = put(&made, "memory.limit_in_bytes", memory_bytes) {
                    note("memory limit", e.to_string());
                }
                this.memory = Some(made);
            }
            Err(e) => note("memory limit", e.to_string()),
        }
        match open(found.cpu.as_ref()) {
            Ok(made) => this.cpu = Some(made),
            Err(e) => note("processor share", e.to_string()),
        }
        // Processes are also limited by an rlimit, which counts those of the cell alone.
        this.pids = open(found.pids.as_ref()).ok();
        (this, missing)
    }

    /// Makes the group of a cell and puts its first process in.
    pub(super) fn enter(&self, share: Share, pid: Pid) -> io::Result<Group> {
        let name = format!("cell-{}", self.next.fetch_add(1, Ordering::Relaxed));
        let mut group = Group { dirs: Vec::new(), ooms: None };
        let made = self.fill(&mut group, &name, share, pid);
        match made {
            Ok(()) => Ok(group),
            Err(e) => {
                self.remove(group);
                Err(e)
            }
        }
    }

    fn fill(&self, group: &mut Group, name: &str, share: Share, pid: Pid) -> io::Result<()> {
        let mut add = |parent: &Option<PathBuf>, set: &dyn Fn(&Path) -> io::Result<()>| -> io::Result<()> {
            let Some(parent) = parent else { return Ok(()) };
            let dir = make(&parent.join(name))?;
            group.dirs.push(dir.clone());
            set(&dir)?;
            put(&dir, "cgroup.procs", pid.as_raw_nonzero())
        };
        add(&self.v2, &|dir| limit_v2(dir, share))?;
        add(&self.memory, &|dir| limit_memory_v1(dir, share))?;
        add(&self.cpu, &|dir| limit_cpu_v1(dir, share))?;
        add(&self.pids, &|dir| put(dir, "pids.max", share.processes))?;
        let file = |base: &Option<PathBuf>, file| base.as_ref().map(|base| base.join(name).join(file));
        let events = file(&self.v2, "memory.events").or_else(|| file(&self.memory, "memory.oom_control"));
        group.ooms = events.map(File::open).transpose()?;
        Ok(())
    }

    /// Removes a cell's group, whose processes are dead.
    pub(super) fn remove(&self, group: Group) {
        let still = group.dirs.into_iter().filter(|dir| !remove_soon(dir, REMOVE_WITHIN));
        self.left().extend(still);
    }

    /// Removes what could not be removed before.
    pub(super) fn sweep(&self) {
        self.left().retain(|dir| !is_removed(dir));
    }

    fn left(&self) -> std::sync::MutexGuard<'_, Vec<PathBuf>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for dir in std::mem::take(&mut *self.left()) {
            remove_soon(&dir, REMOVE_WITHIN);
        }
        for dir in [&self.v2, &self.memory, &self.cpu, &self.pids].into_iter().flatten() {
            remove_soon(dir, REMOVE_WITHIN);
        }
    }
}

/// A cell's group.
#[derive(Debug)]
pub(super) struct Group {
    dirs: Vec<PathBuf>,
    ooms: Option<File>,
}

impl Group {
    /// The processes in it.
    pub(super) fn processes(&self) -> Vec<i32> {
        let read = |dir: &PathBuf| std::fs::read_to_string(dir.join("cgroup.procs")).ok();
        let text = self.dirs.first().and_then(read).unwrap_or_default();
        text.lines().filter_map(|pid| pid.parse().ok()).collect()
    }

    /// How often the kernel killed for want of memory in it.
    pub(super) fn ooms(&self) -> u64 {
        let mut bytes = [0; 512];
        let len = self.ooms.as_ref().and_then(|file| file.read_at(&mut bytes, 0).ok()).unwrap_or(0);
        let text = String::from_utf8_lossy(&bytes[..len]).into_owned();
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
    }
}

/// Removes every group of `tag`'s run: for a guardian, whose daemon cannot any more.
pub(in crate::exec) fn remove_run(tag: &NodeTag) {
    for dir in Hierarchies::find().all() {
        remove_tree(&dir.join(name_of(tag)), REMOVE_PATIENTLY);
    }
}

fn name_of(tag: &NodeTag) -> String {
    format!("sinew-{}", tag.value().replace(':', "-"))
}

fn remove_earlier(dir: &Path, tag: &NodeTag) {
    let Some((directory, _)) = tag.value().split_once(':') else { return };
    let (prefix, own) = (format!("sinew-{directory}-"), name_of(tag));
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with(&prefix) && name != own) {
            remove_tree(&entry.path(), REMOVE_WITHIN);
        }
    }
}

/// Removes a group and those in it. One that still has processes stays.
fn remove_tree(dir: &Path, within: Duration) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_soon(&entry.path(), within);
        }
    }
    remove_soon(dir, within);
}

fn is_removed(dir: &Path) -> bool {
    match std::fs::remove_dir(dir) {
        Ok(()) => true,
        Err(e) => e.kind() == ErrorKind::NotFound,
    }
}

/// Removes a group, for which its last process must have been gone for a moment.
fn remove_soon(dir: &Path, within: Duration) -> bool {
    let deadline = Instant::now() + within;
    while !is_removed(dir) {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

fn make(dir: &Path) -> io::Result<PathBuf> {
    match std::fs::create_dir(dir) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => {
            Err(io::Error::new(e.kind(), format!("cannot make {}: {e}", dir.display())))
        }
        _ => Ok(dir.to_owned()),
    }
}

fn put(dir: &Path, file: &str, value: impl ToString) -> io::Result<()> {
    let value = value.to_string();
    let written = std::fs::write(dir.join(file), &value);
    written.map_err(|e| io::Error::new(e.kind(), format!("cannot set {file} of {} to {value}: {e}", dir.display())))
}

/// Whether version 2 has here what is needed; on machines with both, version 1 has it.
fn has_controllers(dir: &Path) -> bool {
    let text = std::fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    let has = |wanted: &str| text.split_ascii_whitespace().any(|c| c == wanted);
    has("cpu") && has("memory") && has("pids")
}

/// Makes `dir` one that hands out its controllers: its processes, which must be this one and its children, go to a leaf. The
/// root of all groups needs no leaf.
fn delegate(dir: &Path) -> io::Result<()> {
    if dir.join("cgroup.type").exists() {
        let leaf = make(&dir.join(DAEMON_LEAF))?;
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        let inside = std::fs::read_to_string(dir.join("cgroup.procs"))?;
        let is_ours = |pid: &i32| *pid == own || procfs::stat(*pid).is_some_and(|stat| stat.parent == own);
        for pid in inside.lines().filter_map(|pid| pid.parse().ok()).filter(is_ours) {
            put(&leaf, "cgroup.procs", pid)?;
        }
    }
    enable(dir)
}

fn enable(dir: &Path) -> io::Result<()> {
    put(dir, "cgroup.subtree_control", "+cpu +memory +pids")
}

fn quota_us(cpu_milli: u32) -> Option<u64> {
    (cpu_milli > 0).then(|| (u64::from(cpu_milli) * PERIOD_US / 1_000).max(QUOTA_MIN_US))
}

fn limit_v2(dir: &Path, share: Share) -> io::Result<()> {
    put(dir, "memory.max", share.memory_bytes)?;
    put(dir, "memory.oom.group", 1)?;
    // Where there is no swap, there is no such file.
    if dir.join("memory.swap.max").exists() {
        put(dir, "memory.swap.max", 0)?;
    }
    let quota = quota_us(share.cpu_milli).map_or("max".to_owned(), |quota| quota.to_string());
    put(dir, "cpu.max", format!("{quota} {PERIOD_US}"))?;
    put(dir, "pids.max", share.processes)
}

fn limit_memory_v1(dir: &Path, share: Share) -> io::Result<()> {
    put(dir, "memory.limit_in_bytes", share.memory_bytes)?;
    // Memory and swap together; only where the kernel accounts swap.
    if dir.join("memory.memsw.limit_in_bytes").exists() {
        put(dir, "memory.memsw.limit_in_bytes", share.memory_bytes)?;
    }
    Ok(())
}

fn limit_cpu_v1(dir: &Path, share: Share) -> io::Result<()> {
    put(dir, "cpu.cfs_period_us", PERIOD_US)?;
    match quota_us(share.cpu_milli) {
        Some(quota) => put(dir, "cpu.cfs_quota_us", quota),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:4 - cgroup cgroup rw,cpu,cpuacct\n\
        36 31 0:33 /docker/ab /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

    #[test]
    fn hierarchies_of_both_versions_are_found_where_this_process_is() {
        let own = "4:memory:/docker/ab/x\n2:cpu,cpuacct:/user\n0::/\n";
        let found = Hierarchies::parse(V1, own);
        assert_eq!(found.memory.as_deref(), Some(Path::new("/sys/fs/cgroup/memory/x")));
        assert_eq!(found.cpu.as_deref(), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct/user")));
        assert_eq!((found.v2.as_deref(), found.pids), (Some(Path::new("/sys/fs/cgroup/unified")), None));
        let unified = "25 22 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = Hierarchies::parse(unified, "0::/system.slice/sinew.service/sinew-daemon\n");
        assert_eq!(found.v2.as_deref(), Some(Path::new("/sys/fs/cgroup/system.slice/sinew.service")));
        assert_eq!(found.memory, None);
    }

    /// Plain files stand for version 2's: this machine may have neither version, or have it elsewhere.
    #[test]
    fn version_2_gets_its_limits() {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::write(dir.path().join("cgroup.controllers"), "cpuset cpu io memory pids\n").expect("write");
        assert!(has_controllers(dir.path()));
        delegate(dir.path()).expect("the root hands out its controllers");
        let read = |file: &str| std::fs::read_to_string(dir.path().join(file)).expect("read");
        assert_eq!(read("cgroup.subtree_control"), "+cpu +memory +pids");
        limit_v2(dir.path(), Share { memory_bytes: 1 << 20, cpu_milli: 1_500, processes: 9 }).expect("limits");
        assert_eq!((read("memory.max").as_str(), read("memory.oom.group").as_str()), ("1048576", "1"));
        assert_eq!((read("cpu.max").as_str(), read("pids.max").as_str()), ("150000 100000", "9"));
        limit_v2(dir.path(), Share { memory_bytes: 1, cpu_milli: 0, processes: 9 }).expect("limits");
        assert_eq!(read("cpu.max"), "max 100000");
        std::fs::write(dir.path().join("cgroup.controllers"), "hugetlb\n").expect("write");
        assert!(!has_controllers(dir.path()));
        std::fs::write(dir.path().join("events"), "low 0\noom 3\noom_kill 2\noom_group_kill 1\n").expect("write");
        let ooms = File::open(dir.path().join("events")).expect("open");
        assert_eq!(Group { dirs: Vec::new(), ooms: Some(ooms) }.ooms(), 2);
    }

    #[test]
    fn earlier_runs_go_and_others_stay() {
        let dir = tempfile::tempdir().expect("dir");
        let (earlier, own, other) = (NodeTag::new("a"), NodeTag::new("a"), NodeTag::new("b"));
        for tag in [&earlier, &own, &other] {
            std::fs::create_dir_all(dir.path().join(name_of(tag)).join("cell-0")).expect("mkdir");
        }
        std::fs::create_dir(dir.path().join("sinew-daemon")).expect("mkdir");
        remove_earlier(dir.path(), &own);
        let left: Vec<_> = std::fs::read_dir(dir.path()).expect("read").flatten().map(|e| e.file_name()).collect();
        assert!(left.len() == 3 && !left.contains(&name_of(&earlier).into()), "{left:?}");
    }
}
