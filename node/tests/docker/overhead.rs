//! What a task costs beside `docker run`: a measurement, for docs/performance.md.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::engine::TestEngine;
use crate::image::Recipe;
use crate::rig::Rig;

/// Pairs of runs.
const ROUNDS: u32 = 30;

/// CPU time of this process and of its children that have ended.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("stat");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    // utime, stime, cutime, cstime; a tick is 10 ms.
    let ticks: u64 = fields[11..15].iter().map(|field| field.parse::<u64>().expect("ticks")).sum();
    Duration::from_millis(ticks * 10)
}

/// Run it with `cargo nextest run --release -p sinew-node --test docker --run-ignored only --no-capture overhead`.
#[test]
#[ignore = "a measurement"]
fn overhead_of_a_task_beside_docker_run() {
    let Some(engine) = TestEngine::shared() else { return };
    let mut rig = Rig::new(&engine);
    let made = rig.image(&Recipe::default());
    assert!(rig.run(&["true"]).result.is_ok());
    let mut spent = [[Duration::ZERO; 2]; 3];
    let bare = ["--network", "none"].as_slice();
    let closed = [
        "--network",
        "none",
        "--init",
        "--read-only",
        "--cap-drop",
        "ALL",
        "--security-opt",
        "no-new-privileges",
        "--user",
        "1900000000:1900000000",
        "--memory",
        "64m",
        "--memory-swap",
        "64m",
        "--cpus",
        "1",
        "--pids-limit",
        "1025",
        "--log-driver",
        "none",
        "--tmpfs",
        "/tmp",
    ]
    .as_slice();
    for _ in 0..ROUNDS {
        let (began, used) = (Instant::now(), cpu());
        assert!(rig.run(&["true"]).result.is_ok());
        spent[0][0] += began.elapsed();
        spent[0][1] += cpu() - used;
        for (options, spent) in [bare, closed].into_iter().zip(&mut spent[1..]) {
            let (began, used) = (Instant::now(), cpu());
            let host = format!("unix://{}", engine.socket().display());
            let mut docker = Command::new("docker");
            let docker = docker.args(["-H", &host, "run", "--rm"]).args(options).args([&made.id, "true"]);
            assert!(docker.status().expect("docker").success());
            spent[0] += began.elapsed();
            spent[1] += cpu() - used;
        }
    }
    for (what, [wall, cpu]) in
        ["task", "docker run --rm --network none", "docker run with the same limits"].iter().zip(spent)
    {
        println!("{what}: {:?} each, {:?} of client CPU", wall / ROUNDS, cpu / ROUNDS);
    }
    let ratio = |other: usize| spent[0][0].as_secs_f64() / spent[other][0].as_secs_f64();
    println!("ratio: {:.2} and {:.2}", ratio(1), ratio(2));
}
