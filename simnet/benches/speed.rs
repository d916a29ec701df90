//! How fast the simulator is, in seconds of one core's time (other processes do not count): `cargo bench -p sinew-simnet`, or one of them with its sizes:
//! `cargo bench -p sinew-simnet -- events`, `-- idle 10000 600`, `-- claims 100 1000 100 lan`.
#![allow(clippy::disallowed_methods, reason = "a bench reads files")]

use std::os::unix::process::CommandExt;

use sinew_simnet::run::{self, Options};
use sinew_simnet::{World, cli, job, millis, seconds};

/// Where a world's gigabytes lie in small pages, looking up addresses takes a good part of the time. glibc asks for large ones when it is
/// told so before a program starts; others do not heed this.
fn with_large_pages() {
    const VARIABLE: &str = "GLIBC_TUNABLES";
    if std::env::var_os(VARIABLE).is_none() {
        let mut own = std::process::Command::new(std::env::current_exe().expect("this program"));
        let error = own.args(std::env::args_os().skip(1)).env(VARIABLE, "glibc.malloc.hugetlb=1").exec();
        panic!("cannot start again: {error}");
    }
}

fn main() {
    with_large_pages();
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let number = |i: usize, default: u64| args.get(i).map_or(default, |a| a.parse().expect("a whole number"));
    match args.first().map(String::as_str) {
        Some("events") => events(),
        Some("idle") => idle(number(1, 1_000), number(2, 60)),
        Some("claims") => claims(number(1, 100), number(2, 1_000), number(3, 10), args.get(4).map_or("lan", |a| a)),
        Some(other) => panic!("no bench is called `{other}`; there are events, idle, claims"),
        None => {
            events();
            idle(1_000, 60);
            claims(100, 1_000, 10, "lan");
            claims(100, 1_000, 10, "wan");
        }
    }
}

/// Events that reach no core: links between nodes that are down go up and down, a thousand at once.
fn events() {
    const LINKS: usize = 1_000;
    const NODES: usize = 46;
    let names: Vec<String> = (0..NODES).map(|n| format!("n{n}")).collect();
    let mut world = World::seed(1).nodes(names.iter().map(String::as_str));
    names.iter().for_each(|name| world.kill(name));
    world.run_for(seconds(30));
    let pairs = (0..NODES).flat_map(|a| (a + 1..NODES).map(move |b| (a, b))).take(LINKS);
    for (i, (a, b)) in pairs.enumerate() {
        world.flap(&names[a], &names[b], millis(5 + i as u64 % 7), millis(5 + i as u64 % 11));
    }
    let (began, before) = (cpu_s(), world.counters().events);
    world.run_for(seconds(10));
    let (took, handled) = (cpu_s() - began, world.counters().events - before);
    println!("events: {handled} handled in {took:.2} s, {:.2} M a second", handled as f64 / took / 1e6);
}

/// A mesh that idles for half of the time, and then has a task for every second slot.
fn idle(nodes: u64, virtual_s: u64) {
    let names: Vec<String> = (0..nodes).map(|n| format!("n{n}")).collect();
    let (began, memory) = (cpu_s(), resident_kb());
    let mut world = World::seed(1).nodes(names.iter().map(String::as_str));
    let started = cpu_s() - began;
    world.run_for(seconds(virtual_s / 2));
    let mut jobs = 0;
    for name in names.iter().step_by(20) {
        world.submit_later(name, &job().tasks(20).lasting(seconds(virtual_s / 4)).spread());
        jobs += 1;
    }
    world.run_for(seconds(virtual_s - virtual_s / 2));
    let took = cpu_s() - began;
    println!(
        "idle to busy: {nodes} nodes, {virtual_s} virtual s, {jobs} jobs, {} tasks run, {} events: {took:.1} s, {started:.1} of them to start; {:.1} us a node and virtual second, {} KB a node",
        world.executions_of_all(),
        world.counters().events,
        took * 1e6 / (nodes * virtual_s) as f64,
        (resident_kb() - memory) / nodes,
    );
}

/// Single jobs at a rate: how soon they start, and how many of them twice.
fn claims(nodes: u64, rate: u64, virtual_s: u64, latency: &str) {
    let jobs = rate * virtual_s;
    let text =
        format!("--seed 1 --nodes {nodes} --jobs {jobs} --duration {virtual_s}s --workload jobs --latency {latency}");
    let args: Vec<String> = text.split(' ').map(str::to_owned).collect();
    let options: Options = cli::parse(&args).expect("these are arguments");
    let began = cpu_s();
    let report = run::run(&options).expect("all invariants hold");
    let took = cpu_s() - began;
    println!("claims: {took:.1} s, {:.0} us a job, {} KB in all\n{report}", took * 1e6 / jobs as f64, resident_kb());
}

/// Time that this process had a core for so far, seconds. From Linux's `/proc`; NaN elsewhere.
fn cpu_s() -> f64 {
    let text = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    let nanoseconds: Option<f64> = text.split(' ').next().and_then(|first| first.parse().ok());
    nanoseconds.map_or(f64::NAN, |ns| ns / 1e9)
}

/// Memory in use, KB; 0 where the system does not tell.
fn resident_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rest| rest.trim().trim_end_matches(" kB").trim().parse().ok()).unwrap_or(0)
}
