//! What starting a task costs, each runner in turn. A measurement, not a test: `cargo test --release --test contract cost -- --ignored
//! --nocapture`.

use crate::behaviours::subject::{Bench, Does, Subject};
use crate::process::Process;
use crate::wasm::Wasm;

const TASKS: u32 = 2_000;

/// CPU µs of this process and of those that it has waited for.
fn cpu_us() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("stat");
    let (_, fields) = stat.rsplit_once(')').expect("a name");
    let ticks = fields.split_ascii_whitespace().skip(11).take(4).map(|field| field.parse::<u64>().expect("a number"));
    // The kernel counts in hundredths of a second here.
    ticks.sum::<u64>() * 10_000
}

fn cost(what: &str, subject: impl Subject) {
    let program = subject.program(Does::Succeed);
    let mut bench = Bench::of(&subject);
    // What is made once for a job is not a task's.
    assert!(bench.run(&program).result.is_ok());
    let (before, began) = (cpu_us(), std::time::Instant::now());
    for _ in 0..TASKS {
        assert!(bench.run(&program).result.is_ok());
    }
    let wall_us = began.elapsed().as_micros() / u128::from(TASKS);
    // A cell's processes count once it has ended.
    bench.runner.end_job("job");
    drop((bench, subject));
    let each_us = (cpu_us() - before) / u64::from(TASKS);
    println!("{what}: {each_us} us of CPU and {wall_us} us a task");
}

#[test]
#[ignore = "a measurement"]
fn of_a_task_that_does_nothing() {
    cost("bare process", Process::bare());
    cost("process in a cell", Process::in_cells());
    cost("module", Wasm::new(false));
    cost("deterministic module", Wasm::new(true));
}
