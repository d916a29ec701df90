//! Tasks of one job on one slot share a cell: what one leaves there that is neither file nor process is not to be found by the next,
//! and of the machine a cell shows what programs need and no more.

use sinew_crdt_state::error_code::ErrorCode;

use super::rig::Rig;

/// Runs one task after another of the same job, and gives what each printed.
fn one_after_another(scripts: &[&str]) -> Vec<String> {
    let mut rig = Rig::sandboxed();
    scripts.iter().map(|script| rig.python(script).text().to_owned()).collect()
}

#[test]
fn no_shared_memory_queue_or_semaphore_passes_to_the_next_task() {
    let look = "
def there(name, f):
    try: return [name] if call(f) is not None else []
    except OSError: return []
print(there('memory', lambda *_: libc.shmget(0x1234, 0, 0)), there('queue', lambda *_: libc.msgget(0x77, 0)),
      there('semaphores', lambda *_: libc.semget(0x88, 0, 0)))
";
    for (what, leave) in [
        ("memory", "call(libc.shmget, 0x1234, 1 << 20, 0o1666)"),
        ("queue", "call(libc.msgget, 0x77, 0o1666)"),
        ("semaphores", "call(libc.semget, 0x88, 3, 0o1666)"),
    ] {
        let both = format!("{leave}{look}");
        let said = one_after_another(&[&both, look]);
        assert!(said[0].contains(&format!("['{what}']")), "{what} could not be left: {}", said[0]);
        assert_eq!(said[1], "[] [] []", "{what}");
    }
    // POSIX queues are not there at all.
    let queue = "attempt('queue', lambda: call(libc.mq_open, b'/left', os.O_CREAT | os.O_RDWR, 0o666, None))";
    assert_eq!(one_after_another(&[queue]), ["queue refused: ENOSYS"]);
    // One that leaves none keeps its cell: the processes' numbers go on.
    let said = one_after_another(&["print(os.getpid())", "print(os.getpid())"]);
    let [first, second] = [0, 1].map(|i| said[i].parse::<i32>().expect("pid"));
    assert!(second > first, "{said:?}");
}

#[test]
fn no_attribute_or_mode_of_a_directory_passes_to_the_next_task() {
    let directories = "directories = ['.', os.environ['SINEW_OUTPUT'], '/tmp', '/dev/shm']";
    let look = "print([(oct(os.stat(d).st_mode & 0o7777), os.listxattr(d)) for d in directories])";
    let leave = "
for d in directories:
    os.setxattr(d, 'user.note', b'left by a task')
    acl = (2).to_bytes(4, 'little') + b''.join(t.to_bytes(2, 'little') + (7).to_bytes(2, 'little') + i.to_bytes(4, 'little')
        for t, i in [(1, 0xffffffff), (2, 1000), (4, 0xffffffff), (16, 0xffffffff), (32, 0xffffffff)])
    for name in ('system.posix_acl_access', 'system.posix_acl_default'): os.setxattr(d, name, acl)
    os.chmod(d, 0o1777)
";
    let before = format!("{directories}\n{look}");
    let between = format!("{directories}\n{leave}\n{look}");
    let said = one_after_another(&[&before, &between, &before]);
    assert!(said[1].matches("user.note").count() == 4 && said[1].matches("posix_acl_default").count() == 4, "{said:?}");
    assert_eq!(said[0], said[2]);
}

#[test]
fn proc_shows_of_the_machine_what_programs_need_and_no_more() {
    let script = "
shown = []
for name in os.listdir('/proc'):
    path = '/proc/' + name
    if name.isdigit() or os.path.islink(path): continue
    try: holds = bool(os.listdir(path)) if os.path.isdir(path) else bool(open(path, 'rb').read(64))
    except OSError: holds = False
    if holds: shown.append(name)
print(' '.join(sorted(shown)))
";
    let [text] = [Rig::sandboxed().python(script).text().to_owned()];
    let shown: Vec<&str> = text.split(' ').collect();
    for needed in ["cpuinfo", "filesystems", "loadavg", "meminfo", "stat", "sys", "uptime", "version"] {
        assert!(shown.contains(&needed), "{needed} is missing: {text}");
    }
    for hidden in
        ["cmdline", "config.gz", "diskstats", "keys", "kallsyms", "locks", "modules", "partitions", "bus", "irq", "fs"]
    {
        assert!(!shown.contains(&hidden), "{hidden} is shown: {text}");
    }
    assert!(shown.len() <= 12, "{text}");
    let written = "
for path in ('/proc/sys/kernel/hostname', '/proc/sys/vm/overcommit_memory', '/proc/sysrq-trigger', '/proc/self/oom_score_adj'):
    attempt(path, lambda: open(path, 'w').write('1') and None)
";
    let refused = Rig::sandboxed().python(written).text().to_owned();
    assert_eq!(
        refused.matches(" refused: ").count(),
        4 - usize::from(refused.contains("sysrq-trigger worked")),
        "{refused}"
    );
}

/// What a task has deleted and still holds takes up the disk as any other file does.
#[test]
fn files_that_are_deleted_and_held_count() {
    let hold = [
        ("an open file", "f = open('x', 'wb'); os.unlink('x'); f.write(b'x' * (24 << 20)); f.flush()"),
        (
            "a mapped file that is closed",
            "f = open('x', 'w+b'); f.write(b'x' * (24 << 20)); f.flush(); import mmap; m = mmap.mmap(f.fileno(), 4096); f.close(); os.unlink('x')",
        ),
        (
            "a file of a process that it started",
            "
if os.fork() == 0:
    f = open(os.environ['SINEW_OUTPUT'] + '/x', 'wb'); os.unlink(f.name); f.write(b'x' * (24 << 20)); f.flush(); time.sleep(60)
",
        ),
        (
            "a file without a name from the start",
            "fd = os.open('.', os.O_TMPFILE | os.O_RDWR, 0o600); [os.write(fd, b'x' * (1 << 20)) for _ in range(24)]",
        ),
    ];
    for (what, script) in hold {
        let mut rig = Rig::sandboxed();
        rig.limits.output_bytes_max = 8 << 20;
        let ran = rig.python(&format!("{script}\ntime.sleep(60)"));
        assert_eq!(ran.failure().code, ErrorCode::Storage, "{what}: {ran:?}");
    }
    // What is deleted and closed does not count, nor does what it has open without deleting it.
    let mut rig = Rig::sandboxed();
    rig.limits.output_bytes_max = 8 << 20;
    let within = "
for i in range(8):
    f = open('x', 'wb'); os.unlink('x'); f.write(b'x' * (4 << 20)); f.close()
f = open('/usr/bin/env', 'rb')
time.sleep(1)
print('done')
";
    assert_eq!(rig.python(within).text(), "done");
}
