//! Ways out: files, processes, the kernel, the network, the daemon itself.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::{Child, Command, Stdio};

use sinew_crdt_state::error_code::ErrorCode;

use crate::rig::{
    Rig, all_refused, all_refused_with, all_worked, both, eventually, processes_with, remove_groups, secret,
};

/// A process of the host; it ends with the value.
struct Victim(Child);

impl Victim {
    fn start() -> Self {
        Self(Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().expect("sleep"))
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn neither_the_identity_key_nor_other_jobs_nor_the_host_can_be_read() {
    for (mut rig, works) in [(Rig::bare(), true), (Rig::sandboxed(), false)] {
        let base = rig.dir.path().to_owned();
        let other = rig.slot.root().job("other");
        std::fs::create_dir_all(&other).expect("mkdir");
        let other_slot = rig.slot.root().slot(1).expect("slot");
        let files = [base.join("identity.key"), other.join("input"), other_slot.work().join("data")];
        for file in &files {
            secret(file);
        }
        // This test's own file, and one that only root may read, stand for the rest of the host.
        let further = [std::env::current_exe().expect("exe"), "/etc/shadow".into()];
        let paths = [files.as_slice(), &further].concat();
        let script = format!("for path in {paths:?}: attempt(path, lambda: len(open(path, 'rb').read()) >= 0)");
        let text = rig.python(&script).text().to_owned();
        if works { all_worked(&text) } else { all_refused(&text) }
    }
    let [bare, sandboxed] = both("print(sorted(os.listdir('/')), os.uname().nodename, open('/etc/passwd').read())");
    assert!(bare.contains("'home'") && bare.contains("'sys'"), "{bare}");
    for hidden in ["'home'", "'root'", "'sys'", "'boot'", "'mnt'", "daemon:x"] {
        assert!(!sandboxed.contains(hidden), "{hidden} in {sandboxed}");
    }
    assert!(sandboxed.contains(" cell "), "{sandboxed}");
}

#[test]
fn nothing_can_be_written_outside() {
    let dir = tempfile::tempdir().expect("dir");
    let own = dir.path().join("written");
    let script = |paths: &str| format!("for path in [{paths}]: attempt(path, lambda: open(path, 'w').write('x'))");
    all_worked(Rig::bare().python(&script(&format!("{own:?}"))).text());
    std::fs::remove_file(&own).expect("it was written");
    let system = "'/x', '/usr/x', '/usr/bin/true', '/etc/x', '/etc/passwd', '/etc/ld.so.cache', '/dev/x', '/job/x', '/proc/self/comm', \
         '/proc/sys/kernel/core_pattern', '/proc/sysrq-trigger', '/input/x', '/run/x'";
    let mut rig = Rig::sandboxed();
    rig.place(&[("data", "of the job")]);
    all_refused(rig.python(&script(&format!("{own:?}, {system}, '/input/data', 'data'"))).text());
    assert!(!own.exists());
    // New names fail for the mount's sake, whoever owns the directory.
    let made = "'/x', '/usr/x', '/usr/bin/x', '/usr/lib/x', '/etc/x', '/dev/x', '/run/x', '/input/x'";
    all_refused_with("EROFS", rig.python(&script(made)).text());
    let more = "
attempt('rename', lambda: os.rename('/job/work', '/job/other'))
attempt('rmdir', lambda: os.rmdir('/job/output'))
attempt('unlink', lambda: os.unlink('/input/data'))
attempt('chmod', lambda: os.chmod('/input/data', 0o777))
attempt('link', lambda: os.link('/input/data', '/job/output/data'))
attempt('mknod', lambda: os.mknod('/job/work/sda', 0o60666, os.makedev(254, 0)))
attempt('chown', lambda: os.chown('/job/work', 0, 0))
";
    all_refused(rig.python(more).text());
    // What a program is there for works all the same.
    let own = "
for path in ['x', os.environ['SINEW_OUTPUT'] + '/x', '/tmp/x', '/var/tmp/y', '/dev/shm/x', '/dev/null']:
    attempt(path, lambda: open(path, 'w').write('x'))
";
    let ran = rig.python(own);
    all_worked(ran.text());
    assert_eq!(ran.outputs, ["x"]);
}

#[test]
fn processes_of_the_host_are_neither_seen_nor_touched() {
    let victim = Victim::start();
    let pid = victim.pid();
    // PTRACE_SEIZE is 0x4206; a seized process goes on, and is free again when the tracer ends.
    let script = format!(
        "
attempt('proc', lambda: open('/proc/{pid}/cmdline').read())
attempt('environ', lambda: open('/proc/{pid}/environ').read())
attempt('signal', lambda: os.kill({pid}, 0))
attempt('ptrace', lambda: call(libc.ptrace, 0x4206, {pid}, 0, 0))
attempt('pidfd', lambda: os.pidfd_open({pid}))
"
    );
    let [bare, sandboxed] = both(&script);
    all_worked(&bare);
    all_refused(&sandboxed);
    let count = "print(len([p for p in os.listdir('/proc') if p.isdigit()]))";
    let [bare, sandboxed] = both(count);
    assert!(bare.parse::<u32>().expect("number") > 3, "{bare}");
    assert_eq!(sandboxed, "2", "the cell's first process, and this one");
    // Not even its own kind can be traced or read.
    let own = "
pid = os.fork()
if pid == 0:
    time.sleep(30)
attempt('ptrace', lambda: call(libc.ptrace, 0x4206, pid, 0, 0))
buffer = ctypes.create_string_buffer(8)
iov = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 8)
attempt('process_vm_readv', lambda: call(libc.process_vm_readv, pid, iov, 1, iov, 1, 0))
os.kill(pid, 9)
";
    let [bare, sandboxed] = both(own);
    all_worked(&bare);
    all_refused(&sandboxed);
}

#[test]
fn no_mounts_namespaces_or_roots_of_its_own() {
    let dir = tempfile::tempdir().expect("dir");
    let at = dir.path().display();
    let bare = format!(
        "
attempt('mount', lambda: call(libc.mount, b't', b'{at}', b'tmpfs', 0, None))
attempt('umount', lambda: call(libc.umount2, b'{at}', 2))
attempt('unshare', lambda: call(libc.unshare, 0x20000))
"
    );
    all_worked(Rig::bare().python(&bare).text());
    let denied = "
attempt('mount', lambda: call(libc.mount, b't', b'/tmp', b'tmpfs', 0, None))
attempt('bind', lambda: call(libc.mount, b'/usr', b'/tmp', None, 4096, None))
attempt('remount', lambda: call(libc.mount, None, b'/usr', None, 32 | 4096, None))
attempt('umount', lambda: call(libc.umount2, b'/proc', 2))
for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
    attempt('unshare', lambda: call(libc.unshare, flag))
attempt('setns', lambda: call(libc.setns, os.open('/proc/self/ns/net', 0), 0))
attempt('chroot', lambda: os.chroot('/tmp'))
attempt('fsopen', lambda: syscall(430, 0, 0))
attempt('sethostname', lambda: call(libc.sethostname, b'x', 1))
attempt('setgroups', lambda: os.setgroups([0]))
";
    let mut rig = Rig::sandboxed();
    all_refused_with("EPERM", rig.python(denied).text());
    let unknown = "
for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
    attempt('clone', lambda: syscall(56 if os.uname().machine == 'x86_64' else 220, flag | 17, 0, 0, 0, 0))
attempt('clone3', lambda: syscall(435, 0, 0))
";
    all_refused_with("ENOSYS", rig.python(unknown).text());
    all_refused_with("EINVAL", rig.python("attempt('no such user', lambda: os.setuid(0))").text());
    let status = "print([l.split()[1] for l in open('/proc/self/status') if l.split(':')[0] in \
         ('CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb', 'NoNewPrivs', 'Seccomp')])";
    let none = "'0000000000000000'";
    let expected = format!("[{none}, {none}, {none}, {none}, {none}, '1', '2']");
    assert_eq!(Rig::sandboxed().python(status).text(), expected);
}

#[test]
fn dangerous_system_calls_are_denied() {
    // Numbers that are the same on every machine, or given by machine; arguments that are nonsense, so that a kernel that
    // looks at them objects to them.
    let harmless = "
x86 = os.uname().machine == 'x86_64'
for name, number in [('bpf', 321 if x86 else 280), ('perf_event_open', 298 if x86 else 241), ('keyctl', 250 if x86 else 219),
        ('add_key', 248 if x86 else 217), ('io_uring_setup', 425), ('io_uring_enter', 426), ('userfaultfd', 323 if x86 else 282),
        ('open_by_handle_at', 304 if x86 else 265), ('kcmp', 312 if x86 else 272), ('process_madvise', 440),
        ('pidfd_getfd', 438), ('name_to_handle_at', 303 if x86 else 264), ('move_mount', 429)]:
    try: syscall(number, -1, -1, -1, -1, -1)
    except OSError as e: print(name, errno.errorcode[e.errno])
";
    let [bare, sandboxed] = both(harmless);
    let denied = |text: &str| text.lines().filter(|line| line.ends_with(" EPERM")).count();
    assert_eq!((bare.lines().count(), sandboxed.lines().count()), (13, 13), "{bare}\n{sandboxed}");
    assert_eq!((denied(&bare), denied(&sandboxed)), (0, 13), "{bare}\n{sandboxed}");
    // These would do something, so they are tried inside only. The last four, asynchronous I/O first, do not exist there.
    let others = "
x86 = os.uname().machine == 'x86_64'
for number in (246 if x86 else 104, 175 if x86 else 105, 169 if x86 else 142, 163 if x86 else 89, 103 if x86 else 116,
        206 if x86 else 0, 209 if x86 else 2, 600, 0x40000001):
    try: print('worked', syscall(number, 0, 0, 0, 0, 0))
    except OSError as e: print(errno.errorcode[e.errno])
attempt('personality', lambda: call(libc.personality, 0x0040000))
";
    let ran = Rig::sandboxed().python(others);
    let text = ran.text();
    assert_eq!(
        text.lines().collect::<Vec<_>>(),
        [&["EPERM"; 5][..], &["ENOSYS"; 4], &["personality refused: ENOSYS"]].concat()
    );
}

#[test]
fn there_is_no_network_and_there_are_no_raw_sockets() {
    let tcp = TcpListener::bind("127.0.0.1:0").expect("listen");
    let port = tcp.local_addr().expect("addr").port();
    let name = format!("sinew-test-{port}");
    let _abstract = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).expect("name")).expect("listen");
    let script = format!(
        "
attempt('tcp', lambda: socket.create_connection(('127.0.0.1', {port}), 2) and 1)
attempt('abstract', lambda: socket.socket(socket.AF_UNIX).connect('\\0{name}'))
attempt('udp', lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port})))
attempt('raw', lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1) and 1)
attempt('packet', lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) and 1)
attempt('netlink audit', lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 9) and 1)
"
    );
    let [bare, sandboxed] = both(&script);
    all_worked(&bare);
    all_refused(&sandboxed);
    let links = "print([n for _, n in socket.if_nameindex()])";
    assert_eq!(Rig::sandboxed().python(links).text(), "['lo']");
    // The filter's answer, so that it is not a missing module's; and what is plain goes on.
    let odd = "
S = socket
for family, kind, protocol in [(38, S.SOCK_SEQPACKET, 0), (40, S.SOCK_STREAM, 0), (S.AF_PACKET, S.SOCK_RAW, 0), (S.AF_NETLINK, S.SOCK_RAW, 9),
        (S.AF_INET, S.SOCK_RAW, 1), (S.AF_INET, S.SOCK_STREAM, 132), (S.AF_INET6, S.SOCK_STREAM, 262), (S.AF_INET, S.SOCK_DGRAM, 136),
        (S.AF_INET, S.SOCK_DGRAM, 1), (S.AF_INET, S.SOCK_STREAM, 17)]:
    attempt((family, kind, protocol), lambda: S.socket(family, kind, protocol) and 1)
pair = (ctypes.c_int * 2)()
for family in (S.AF_INET, 30): attempt('pair', lambda: call(libc.socketpair, family, 1, 0, pair))
";
    let mut rig = Rig::sandboxed();
    all_refused_with("ENOSYS", rig.python(odd).text());
    let plain = "
S = socket
for family in (S.AF_INET, S.AF_INET6):
    for kind, protocol in [(S.SOCK_STREAM, 0), (S.SOCK_STREAM, 6), (S.SOCK_DGRAM, 0), (S.SOCK_DGRAM, 17)]:
        attempt('plain', lambda: S.socket(family, kind, protocol) and 1)
attempt('pair', lambda: S.socketpair() and 1)
";
    all_worked(rig.python(plain).text());
}

#[test]
fn a_daemonised_process_dies_with_its_task_whatever_it_forgets() {
    let mark = |name: &str| format!("1000.{}{name}", std::process::id());
    let script = |mark: &str| {
        format!(
            "setsid env -i /bin/sh -c '/bin/sleep {mark} & exit' </dev/null >/dev/null 2>&1; while ! pgrep -f {mark} >/dev/null; do :; done"
        )
    };
    let (bare, sandboxed) = (mark("1"), mark("2"));
    assert!(Rig::bare().run(&["sh", "-c", &script(&bare)]).result.is_ok());
    let left: Vec<i32> = processes_with(&bare);
    for pid in &left {
        let pid = rustix::process::Pid::from_raw(*pid).expect("pid");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
    }
    assert_eq!(left.len(), 1, "without its environment nothing finds it");
    let ran = Rig::sandboxed().run(&["sh", "-c", &script(&sandboxed)]);
    assert!(ran.result.is_ok(), "{ran:?}");
    assert_eq!(processes_with(&sandboxed), [] as [i32; 0]);
}

#[test]
fn nothing_of_a_cell_survives_a_daemon_that_is_killed() {
    let dir = tempfile::tempdir().expect("dir");
    let mark = format!("1000.{}3", std::process::id());
    let mut daemon = Command::new(std::env::current_exe().expect("exe"));
    daemon.args(["--exact", "escape::stand_in::for_a_daemon"]).env("SLEEP_FOR", &mark).env("TMPDIR", dir.path());
    let mut daemon = daemon.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("daemon");
    eventually("the task and what it daemonised to run", || processes_with(&mark).len() >= 3);
    daemon.kill().expect("kill -9");
    daemon.wait().expect("wait");
    eventually("all to be gone without any help", || processes_with(&mark).is_empty());
    remove_groups(dir.path());
}

mod stand_in {
    use super::Rig;

    /// Not a test of its own: a daemon to be killed, with a task and no guardian.
    #[test]
    fn for_a_daemon() {
        let Ok(mark) = std::env::var("SLEEP_FOR") else { return };
        let script = format!("setsid env -i sleep {mark} & setsid sleep {mark} & sleep {mark}");
        let mut rig = Rig::sandboxed();
        rig.note_tag();
        rig.run(&["sh", "-c", &script]);
    }
}

#[test]
fn outputs_lead_nowhere_else() {
    let mut rig = Rig::sandboxed();
    let key = rig.dir.path().join("identity.key");
    secret(&key);
    let script = format!(
        "
out = os.environ['SINEW_OUTPUT']
os.symlink({key:?}, out + '/key')
os.symlink('/etc', out + '/etc')
os.symlink('../../..', out + '/up')
os.mkfifo(out + '/fifo')
socket.socket(socket.AF_UNIX).bind(out + '/socket')
os.mkdir(out + '/d'); open(out + '/d/..x', 'w').write('kept')
attempt('dots', lambda: open(out + '/../x', 'w').write('x'))
"
    );
    let ran = rig.python(&script);
    all_refused(ran.text());
    assert_eq!(ran.outputs, ["d/..x"]);
    // What it made of its output directory is gone; the next task finds an empty one.
    assert_eq!(rig.python("print(os.listdir(os.environ['SINEW_OUTPUT']))").text(), "[]");
    let locked = "os.mkdir('a', 0); os.mkdir('/tmp/b'); open('/tmp/b/c', 'w'); os.chmod('/tmp/b', 0); os.chmod('.', 0)";
    assert!(rig.python(locked).result.is_ok());
    assert_eq!(rig.python("print(os.listdir('.'), os.listdir('/tmp'))").text(), "[] []");
}

#[test]
fn tasks_find_nothing_of_those_before_them() {
    let mut rig = Rig::sandboxed();
    let leave = "for d in ('.', '/tmp', '/dev/shm', '/tmp/deep'): os.makedirs(d, exist_ok=True); open(d + '/left', 'w').write('x')";
    let look = "print(os.listdir('.'), os.listdir('/tmp'), os.listdir('/dev/shm'))";
    for (first, second) in [("job", "job"), ("job", "other job")] {
        let script = format!("import os\n{leave}");
        assert!(rig.run_as(first, &["python3", "-c", &script]).result.is_ok());
        let script = format!("import os\n{look}");
        assert_eq!(rig.run_as(second, &["python3", "-c", &script]).text(), "[] [] []");
    }
}

#[test]
fn the_cells_first_process_is_out_of_reach() {
    let script = "
for path in ('/proc/1/exe', '/proc/1/mem', '/proc/1/environ', '/proc/1/root/etc/shadow', '/proc/1/cwd/x', '/proc/1/fd', '/proc/1/maps'):
    attempt(path, lambda: os.open(path, os.O_RDONLY))
attempt('exe', lambda: os.open('/proc/1/exe', os.O_WRONLY))
attempt('exe path', lambda: os.readlink('/proc/1/exe'))
attempt('old root', lambda: os.open('/proc/self/root/root', os.O_RDONLY))
";
    let mut rig = Rig::sandboxed();
    all_refused(rig.python(script).text());
    // Nor do calls that take a process's number change what it may use or when it runs; for programs themselves they work.
    let tamper = "
import resource, struct
x86 = os.uname().machine == 'x86_64'
ioprio, setattr = (251, 314) if x86 else (30, 274)
limit = struct.pack('QQ', 3, 3)
attr = ctypes.create_string_buffer(struct.pack('IIQiIQQQ', 48, 0, 0, 10, 0, 0, 0, 0))
param = ctypes.create_string_buffer(struct.pack('i', 0))
for pid in PIDS:
    attempt('prlimit', lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE, (3000, 3000)) and 1)
    attempt('affinity', lambda: os.sched_setaffinity(pid, [min(os.sched_getaffinity(0))]))
    attempt('scheduler', lambda: os.sched_setscheduler(pid, os.SCHED_BATCH, os.sched_param(0)))
    attempt('param', lambda: call(libc.sched_setparam, pid, param))
    attempt('attr', lambda: call(libc.syscall, ctypes.c_long(setattr), pid, attr, 0))
    attempt('nice', lambda: os.setpriority(os.PRIO_PROCESS, pid, 10))
    attempt('ioprio', lambda: syscall(ioprio, 1, pid, 3 << 13))
";
    all_worked(rig.python(&tamper.replace("PIDS", "(0, os.getpid())")).text());
    all_refused_with("ENOSYS", rig.python(&tamper.replace("PIDS", "(1,)")).text());
    let several = "
for which in (os.PRIO_PGRP, os.PRIO_USER): attempt('nice', lambda: os.setpriority(which, 0, 12))
for which in (2, 3): attempt('ioprio', lambda: syscall(251 if os.uname().machine == 'x86_64' else 30, which, 0, 3 << 13))
";
    all_refused_with("ENOSYS", rig.python(several).text());
    // It takes no signal from its own, and the next task still finds it.
    let before = "for s in (9, 15, 19, 1): os.kill(1, s)\nprint(len(os.listdir('/proc/self/fd')))";
    assert_eq!(rig.python(before).text(), "4", "three descriptors, and the one that reads the directory");
    assert_eq!(rig.python("print('on')").text(), "on");
    // The same of the host's own, where the program is bare.
    let own = "attempt('exe', lambda: os.readlink('/proc/%d/exe' % os.getppid()) and 1)";
    all_worked(Rig::bare().python(own).text());
}

#[test]
fn a_huge_environment_hurts_only_its_task() {
    let mut rig = Rig::sandboxed();
    for i in 0..30 {
        rig.env.insert(format!("BIG{i}"), "x".repeat(100_000));
    }
    let ran = rig.run(&["true"]);
    ran.fails_with(ErrorCode::Invalid);
    assert!(ran.failure().message.contains("longer than the system takes"), "{ran:?}");
    rig.env.retain(|name, _| name.len() == 4);
    assert_eq!(rig.python("print(len(os.environ['BIG3']))").text(), "100000");
}

#[test]
fn terminals_and_devices_are_not_there() {
    let script = "print(sorted(os.listdir('/dev')))";
    let expected = "['fd', 'full', 'null', 'random', 'shm', 'stderr', 'stdin', 'stdout', 'urandom', 'zero']";
    assert_eq!(Rig::sandboxed().python(script).text(), expected);
    let controlling = "attempt('tty', lambda: os.open('/dev/tty', os.O_RDWR))\nattempt('sid', lambda: os.tcgetpgrp(0))";
    all_refused(Rig::sandboxed().python(controlling).text());
}
