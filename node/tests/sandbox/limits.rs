//! Taking more than a task may: processes, memory, processor, disk, time.

use std::path::{Path, PathBuf};

use sinew_crdt_state::error_code::ErrorCode;
use sinew_node::exec::allowlist::Allowlist;

use crate::rig::{Rig, TMP_BYTES, eventually, processes_with};

#[test]
fn a_fork_bomb_stays_small_and_dies_with_its_task() {
    let mut rig = Rig::sandboxed();
    let mark = format!("bomb-{}", std::process::id());
    let script = format!(
        "
mark = {mark:?}
made = 0
try:
    while made < 5000:
        if os.fork() == 0:
            time.sleep(100)
            os._exit(0)
        made += 1
except OSError as e: print(made, errno.errorcode[e.errno])
"
    );
    let ran = rig.python(&script);
    let (made, why) = ran.text().split_once(' ').expect("two words");
    let made: u32 = made.parse().expect("number");
    assert!((900..=1_024).contains(&made) && why == "EAGAIN", "{made} {why}");
    assert_eq!(processes_with(&mark), [] as [i32; 0]);
    // One that never ends is ended at its time, all of it.
    rig.limits.timeout_ms = Some(500);
    let script = format!("mark = {mark:?}\nwhile True:\n    try: os.fork()\n    except OSError: pass");
    let endless = rig.python(&script);
    endless.fails_with(ErrorCode::Timeout);
    assert_eq!(processes_with(&mark), [] as [i32; 0]);
    rig.limits.timeout_ms = Some(60_000);
    assert!(rig.run(&["true"]).result.is_ok());
}

#[test]
fn ten_times_its_memory_ends_the_task_and_all_its_processes() {
    let mut rig = Rig::sandboxed();
    rig.resources.memory_bytes = 64 << 20;
    let mark = format!("glutton-{}", std::process::id());
    let child = format!("mark = {mark:?}\nif os.fork() == 0: time.sleep(100); os._exit(0)\n");
    let ran = rig.python(&format!("{child}x = [bytearray(os.urandom(1 << 20)) for _ in range(640)]\nprint('lived')"));
    ran.fails_with(ErrorCode::Oom);
    assert!(ran.failure().message.contains("67108864 bytes") && ran.stdout.is_empty(), "{ran:?}");
    assert_eq!(processes_with(&mark), [] as [i32; 0]);
    // A child that is killed for it fails the task, however its parent takes that; /tmp counts.
    let hidden = "if os.fork() == 0: x = bytearray(os.urandom(640 << 20))\nos.wait()";
    rig.python(hidden).fails_with(ErrorCode::Oom);
    rig.resources.memory_bytes = 16 << 20;
    let filled = "f = open('/tmp/x', 'wb')\nfor i in range(28): f.write(os.urandom(1 << 20))";
    rig.python(filled).fails_with(ErrorCode::Oom);
    // Within its limit it runs.
    rig.resources.memory_bytes = 256 << 20;
    assert_eq!(rig.python("x = bytearray(64 << 20)\nprint('lived')").text(), "lived");
}

#[test]
fn a_spinning_task_gets_its_share_of_the_processor() {
    for threads in [1_u32, 3] {
        let mut rig = Rig::sandboxed();
        // Little enough to be had on a machine that others use too.
        rig.resources.cpu_milli = 200;
        let script = format!(
            "
for _ in range({threads} - 1):
    if os.fork() == 0: break
else: parent = True
end = time.monotonic() + 3
while time.monotonic() < end: pass
if 'parent' in globals():
    for _ in range({threads} - 1): os.wait()
"
        );
        let usage = rig.python(&script).usage;
        let share = std::time::Duration::from_millis(usage.cpu_ms).as_secs_f64()
            / std::time::Duration::from_millis(usage.wall_ms).as_secs_f64();
        assert!((0.18..=0.22).contains(&share), "{threads} processes had {share} of a core, not 0.2: {usage:?}");
    }
}

#[test]
fn no_task_fills_the_disk_or_the_memory_with_files() {
    let mut rig = Rig::sandboxed();
    rig.limits.output_bytes_max = 8 << 20;
    let fill =
        |path: &str| format!("f = open({path:?}, 'wb', buffering=0)\nwhile True: f.write(bytes(1 << 20)) and None");
    // In the directories that are on the disk it is ended; in those that are memory it finds no room.
    for path in ["/job/output/big", "/job/work/big"] {
        rig.python(&fill(path)).fails_with(ErrorCode::Storage);
    }
    for path in ["/tmp/big", "/dev/shm/big"] {
        let ran = rig.python(&fill(path));
        ran.fails_with(ErrorCode::Exit);
        assert!(ran.failure().stderr_tail.contains("No space left"), "{ran:?}");
    }
    let most = format!(
        "
n = 0
try:
    while True: open('/tmp/%d' % n, 'w'); n += 1
except OSError as e: print(n < 70000, errno.errorcode[e.errno])
s = os.statvfs('/tmp'); print(s.f_blocks * s.f_bsize == {TMP_BYTES})
"
    );
    assert_eq!(rig.python(&most).text(), "True ENOSPC\nTrue");
    // A file that nobody can see any more counts for its writer too, and no single one gets far.
    let unlinked = "
f = open('/job/work/x', 'wb', buffering=0); os.unlink('/job/work/x')
n = 0
try:
    while n < 1000: f.write(bytes(1 << 20)); n += 1
except OSError as e: print(n, errno.errorcode[e.errno])
";
    assert_eq!(rig.python(unlinked).text(), "72 EFBIG");
}

#[test]
fn only_listed_programs_run_where_there_is_a_list() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("allow.toml");
    let list = "[[program]]\npath = '/usr/bin/sleep'\nargs = ['[0-9]+']\ntimeout = '300ms'\n\
         [[program]]\npath = '/usr/bin/head'\nmore = '.*'\noutput_max = '1MiB'\n\
         [[program]]\npath = '/job/work/own.sh'\n";
    std::fs::write(&file, list).expect("write");
    let mut rig = Rig::sandboxed();
    rig.place(&[("own.sh", "#!/bin/sh\necho own"), ("sleep", "#!/bin/sh\necho forged")]);
    rig.runner = rig.runner.only(Some(Allowlist::load(&file).expect("list")));
    rig.run(&["/usr/bin/sleep", "1000"]).fails_with(ErrorCode::Timeout);
    rig.run(&["/usr/bin/head", "-c", "10G", "/dev/zero"]).fails_with(ErrorCode::Storage);
    assert_eq!(rig.run(&["./own.sh"]).text(), "own");
    for denied in [&["/usr/bin/sleep", "-h"][..], &["sleep", "1"], &["true"], &["./sleep", "1"]] {
        let ran = rig.run(denied);
        ran.fails_with(ErrorCode::Deny);
        assert!(!ran.failure().retryable && ran.failure().message.contains("allowlist"), "{ran:?}");
    }
    // A path with dots is not even looked up.
    rig.run(&["/usr/bin/../bin/sleep", "1"]).fails_with(ErrorCode::Invalid);
    // Neither the loader nor a shell runs what the job names beside the listed program.
    for name in ["LD_PRELOAD", "BASH_ENV", "PATH"] {
        rig.env = [(name.to_owned(), "/job/work/own.sh".to_owned())].into();
        let ran = rig.run(&["./own.sh"]);
        ran.fails_with(ErrorCode::Deny);
        assert!(ran.failure().message.contains(&format!("variable `{name}`")), "{ran:?}");
    }
}

/// A file system of its own for the data directory, small enough to be filled.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Self {
        use rustix::mount::{MountFlags, mount};
        mount("small", at, "tmpfs", MountFlags::empty(), c"size=64m").expect("mount");
        Self(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).expect("unmount");
    }
}

#[test]
fn the_disk_keeps_a_reserve_whatever_a_task_hides() {
    let at = tempfile::tempdir().expect("dir");
    let _disk = SmallDisk::mount(at.path());
    let mut rig = Rig::sandboxed_in(tempfile::tempdir_in(at.path()).expect("dir"));
    let script = "
hidden = []
while True:
    hidden.append(open('/job/work/x', 'wb', buffering=0)); os.unlink('/job/work/x')
    for _ in range(10): hidden[-1].write(bytes(1 << 18)); time.sleep(0.02)
";
    let ran = rig.python(script);
    ran.fails_with(ErrorCode::Storage);
    assert!(ran.failure().message.contains("nearly full"), "{ran:?}");
    assert_eq!(rig.python("print('room again')").text(), "room again");
    drop(rig);
}

#[test]
fn space_that_files_do_not_show_counts() {
    let mut rig = Rig::sandboxed();
    rig.limits.output_bytes_max = 4 << 20;
    let held = "
fd = os.open('/job/output/x', os.O_CREAT | os.O_WRONLY)
call(libc.fallocate, fd, 1, ctypes.c_long(0), ctypes.c_long(16 << 20))
";
    rig.python(held).fails_with(ErrorCode::Storage);
    rig.python("for i in range(4000): os.mkdir('/job/output/%d' % i)").fails_with(ErrorCode::Storage);
    assert_eq!(rig.python("for i in range(900): os.mkdir('/job/output/%d' % i)").text(), "");
}

#[test]
fn directories_nested_without_end_go_with_their_task() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    // What a daemon usually has: fewer than there are directories.
    let limits = Rlimit { current: Some(1_024), ..getrlimit(Resource::Nofile) };
    setrlimit(Resource::Nofile, limits).expect("limit");
    let mut rig = Rig::sandboxed();
    let deep = "
for d in ('/job/work', '/job/output'):
    os.chdir(d)
    for i in range(6000): os.mkdir('d'); os.chdir('d')
    os.chmod('.', 0)
";
    assert!(rig.python(deep).result.is_err(), "nested too deep to be outputs");
    assert_eq!(rig.python("print(sorted(os.listdir('/job')), os.listdir('.'))").text(), "['output', 'work'] []");
    assert!(!rig.slot.root().job("stuck").exists(), "nothing was put aside");
}

#[test]
fn control_groups_go_with_their_cells() {
    let groups = || -> Vec<PathBuf> {
        let own = std::fs::read_to_string("/proc/self/cgroup").expect("cgroup");
        let bases = walk("/sys/fs/cgroup".into(), 6);
        assert!(!own.is_empty());
        bases
            .into_iter()
            .filter(|dir| dir.file_name().is_some_and(|n| n.to_string_lossy().starts_with("cell-")))
            .collect()
    };
    let mut rig = Rig::sandboxed();
    assert!(rig.run(&["true"]).result.is_ok());
    let tag = rig.runner.tag().value().replace(':', "-");
    let own = |dirs: &[PathBuf]| dirs.iter().filter(|dir| dir.to_string_lossy().contains(&tag)).count();
    assert!(own(&groups()) >= 1, "a group while the cell is kept");
    rig.runner.sandbox().expect("sandbox").end_job("job");
    eventually("the cell's groups to go", || own(&groups()) == 0);
    drop(rig);
    let left = walk("/sys/fs/cgroup".into(), 6);
    assert!(!left.iter().any(|dir| dir.to_string_lossy().contains(&tag)), "{left:?}");
}

/// Every directory below.
pub(crate) fn walk(dir: PathBuf, depth: u32) -> Vec<PathBuf> {
    let mut all = Vec::new();
    if depth > 0 {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                all.extend(walk(entry.path(), depth - 1));
            }
        }
    }
    all.push(dir);
    all
}
