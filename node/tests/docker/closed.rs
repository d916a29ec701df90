//! What a container is closed against.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use sinew_crdt_state::error_code::ErrorCode;
use sinew_node::exec::volumes::Mounted;

use crate::engine::TestEngine;
use crate::image::Recipe;
use crate::rig::{Rig, TMP_BYTES};

#[test]
fn it_has_no_powers_whatever_its_image_says() {
    let Some(engine) = TestEngine::shared() else { return };
    let mut rig = Rig::new(&engine);
    rig.image(&Recipe { user: "root", ..Recipe::default() });
    let ran = rig.sh("grep -E '^(Cap|NoNewPrivs|Seccomp:|Uid|Gid|Groups)' /proc/self/status");
    let status = ran.text();
    for line in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(status.contains(&format!("{line}:\t0000000000000000")), "{status}");
    }
    assert!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "{status}");
    let uid = 1_900_000_000;
    assert!(status.contains(&format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}")), "{status}");
    assert!(status.contains(&format!("Gid:\t{uid}\t{uid}\t{uid}\t{uid}")), "{status}");
    assert!(status.lines().any(|line| line.trim_end() == format!("Groups:\t{uid}")), "{status}");
    for attempt in ["chown 0 /job/work", "mount -t tmpfs x /tmp", "chmod 4777 /bin/busybox"] {
        let ran = rig.sh(attempt);
        ran.fails_with(ErrorCode::Exit);
        let refusals = ["not permitted", "Read-only", "denied"];
        assert!(refusals.iter().any(|why| ran.stderr.contains(why)), "{attempt}: {ran:?}");
    }
}

#[test]
fn only_its_own_directories_can_be_written_to() {
    let Some(engine) = TestEngine::shared() else { return };
    let mut rig = Rig::new(&engine);
    rig.place(&[("given", "text")]);
    let attempt = |path: &str| format!("touch {path} 2>/dev/null && echo wrote {path}; ");
    let shut = [
        "/x",
        "/bin/x",
        "/etc/x",
        "/input/x",
        "/input/given",
        "/proc/sys/kernel/hostname",
        "/sys/x",
        "/job/x",
        "/dev/x",
    ];
    let open = ["/tmp/x", "/job/work/x", "/job/output/x", "/dev/shm/x"];
    let script: String = shut.iter().chain(&open).map(|path| attempt(path)).collect();
    let expected: Vec<String> = open.iter().map(|path| format!("wrote {path}")).collect();
    assert_eq!(rig.sh(&format!("{script} true")).text(), expected.join("\n"));
    // Even as the owner it would not be.
    let ran = rig.sh("echo x > /input/given");
    assert!(ran.failure().stderr_tail.contains("ead-only"), "{ran:?}");
    for path in ["/tmp", "/dev/shm"] {
        let ran = rig.sh(&format!("dd if=/dev/zero of={path}/big bs=64k count={}", TMP_BYTES / 65_536 + 1));
        assert!(ran.failure().stderr_tail.contains("No space left"), "{path}: {ran:?}");
    }
}

#[test]
fn it_has_no_network_and_sees_no_process_of_the_host() {
    let Some(engine) = TestEngine::shared() else { return };
    let mut rig = Rig::new(&engine);
    assert_eq!(rig.sh("grep -c : /proc/net/dev; grep -o 'lo:' /proc/net/dev").text(), "1\nlo:");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
    let port = listener.local_addr().expect("address").port();
    for to in ["127.0.0.1", "192.0.2.1", "169.254.169.254"] {
        let ran = rig.sh(&format!("nc -w 3 {to} {port} < /dev/null"));
        let told = &ran.failure().stderr_tail;
        assert!(told.contains("refused") || told.contains("unreachable"), "{to}: {ran:?}");
    }
    let pids = rig.sh("ls /proc | grep -c '^[0-9]'");
    assert!(pids.text().parse::<u32>().expect("number") <= 5, "{pids:?}");
    assert!(!rig.sh("ps").text().contains("dockerd"));
}

#[test]
fn a_fork_bomb_stays_small_and_ends_with_its_task() {
    let Some(engine) = TestEngine::shared() else { return };
    let mut rig = Rig::new(&engine);
    // The shells and sleeps are to fit.
    rig.resources.memory_bytes = 256 << 20;
    let ran = rig.sh("i=0; while [ $i -lt 2000 ]; do sleep 100 & i=$((i + 1)); done; echo all; kill -9 -1");
    assert!(!ran.stdout.contains("all") && ran.failure().stderr_tail.contains("can't fork"), "{ran:?}");
    assert!(rig.containers().is_empty());
    assert_eq!(rig.sh("ulimit -n; ulimit -c").text(), "4096\n0");
}

#[test]
fn its_share_of_the_processor_and_its_memory_are_limits_of_the_kernel() {
    let Some(engine) = TestEngine::shared() else { return };
    let mut rig = Rig::new(&engine);
    let v2 = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let files = if v2 {
        "cd /sys/fs/cgroup; cat cpu.max memory.max memory.swap.max pids.max"
    } else {
        "cd /sys/fs/cgroup; echo $(cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us); cat memory/memory.limit_in_bytes \
         memory/memory.memsw.limit_in_bytes pids/pids.max"
    };
    rig.resources.cpu_milli = 250;
    rig.resources.memory_bytes = 48 << 20;
    let swap = if v2 { 0 } else { 48 << 20 };
    assert_eq!(rig.sh(files).text(), format!("25000 100000\n{}\n{swap}\n1025", 48 << 20));
    // More than there is becomes all there is; no reservation of memory is an equal share.
    rig.resources.cpu_milli = 1_000_000;
    rig.resources.memory_bytes = 0;
    let all = rig.sh(files);
    assert!(all.text().contains(&format!("\n{}\n", 128 << 20)), "{all:?}");
    rig.resources.cpu_milli = 200;
    let burnt = rig
        .sh("end=$(($(cut -d. -f1 /proc/uptime 2>/dev/null || awk '{ print int($1) }' /proc/uptime) + 4)); \
         while [ $(awk '{ print int($1) }' /proc/uptime) -lt $end ]; do :; done");
    let share = std::time::Duration::from_millis(burnt.usage.cpu_ms).as_secs_f64()
        / std::time::Duration::from_millis(burnt.usage.wall_ms).as_secs_f64();
    assert!(share > 0.05 && share < 0.22, "it had {share} of a core: {burnt:?}");
}

#[test]
fn volumes_of_an_image_are_memory_and_leave_nothing() {
    let Some(engine) = TestEngine::shared() else { return };
    let mut rig = Rig::new(&engine);
    rig.image(&Recipe { volumes: vec!["/data", "/var/lib/x"], ..Recipe::default() });
    let ran =
        rig.sh(&format!("echo x > /var/lib/x/y; dd if=/dev/zero of=/data/big bs=64k count={}", TMP_BYTES / 65_536 + 1));
    assert!(ran.failure().stderr_tail.contains("No space left"), "{ran:?}");
    let volumes = rig.runtime.block_on(rig.client.list_volumes(None::<bollard::query_parameters::ListVolumesOptions>));
    assert_eq!(volumes.expect("volumes").volumes.unwrap_or_default(), []);
    for path in ["/job/output", "/job", "/proc/x", "/input/x"] {
        rig.image(&Recipe { volumes: vec![path], ..Recipe::default() });
        assert!(rig.sh("true").fails_with(ErrorCode::Invalid).contains(path));
    }
}

#[test]
fn a_gpu_that_is_not_there_is_told_as_that() {
    let Some(engine) = TestEngine::shared() else { return };
    let mut rig = Rig::new(&engine);
    rig.container.gpus = 40;
    assert!(rig.sh("true").fails_with(ErrorCode::NoGpu).contains("GPU"));
    rig.container.gpus = u32::MAX;
    rig.sh("true").fails_with(ErrorCode::NoGpu);
    assert!(rig.containers().is_empty());
}

#[test]
fn volumes_are_read_or_written_to_as_they_were_given() {
    let Some(engine) = TestEngine::shared() else { return };
    let dir = tempfile::tempdir().expect("dir");
    let open = |path: &std::path::Path| std::fs::set_permissions(path, Permissions::from_mode(0o777)).expect("mode");
    open(dir.path());
    let volume = |name: &str, path: &str, read_only| {
        let host = dir.path().join(name);
        std::fs::create_dir(&host).expect("dir");
        open(&host);
        std::fs::write(host.join("file"), name).expect("file");
        Mounted { name: name.to_owned(), host, path: path.into(), read_only }
    };
    let mut rig = Rig::new(&engine);
    rig.volumes = vec![volume("sets", "/data/sets", true), volume("out", "/data/out", false)];
    let ran = rig.sh("cat $SINEW_VOLUME_SETS/file; echo text > /data/out/new; touch /data/sets/new || echo refused");
    assert_eq!(ran.text(), "setsrefused");
    assert!(ran.stderr.contains("Read-only"), "{ran:?}");
    assert_eq!(std::fs::read_to_string(dir.path().join("out/new")).expect("file"), "text\n");
    // What a link says is looked up in the container.
    std::os::unix::fs::symlink(dir.path().join("out/file"), dir.path().join("sets/link")).expect("link");
    rig.sh("cat /data/sets/link").fails_with(ErrorCode::Exit);
    assert_eq!(std::fs::read_dir(dir.path().join("sets")).expect("dir").count(), 2);
}
