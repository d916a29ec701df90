//! Deterministic mode: what is the same in every run, and is not without it.

use crate::modules::module;
use crate::wasm::Modules;

/// Prints clocks, random numbers, a NaN, a listing, and all that is said about a file, as they are in memory.
fn everything() -> Vec<u8> {
    let make =
        |name: &str| format!("(drop (call $open (i32.const 5) {{{name}}} (i32.const 1) {}))", crate::modules::WRITE);
    let made: String = ["c", "a", "d", "b"].map(make).concat();
    let body = format!(
        "(drop (call $clock_time_get (i32.const 0) (i64.const 1) (i32.const 256)))
        (drop (call $clock_time_get (i32.const 1) (i64.const 1) (i32.const 264)))
        (drop (call $clock_time_get (i32.const 1) (i64.const 1) (i32.const 272)))
        (drop (call $random_get (i32.const 280) (i32.const 32)))
        (f32.store (i32.const 312) (f32.div (f32.const -nan:0x200123) (f32.const 3)))
        {made}
        (if (call $path_filestat_get (i32.const 5) (i32.const 0) {{a}} (i32.const 320)) (then (unreachable)))
        (if (call $fd_filestat_get (i32.const 5) (i32.const 384)) (then (unreachable)))
        (if (call $fd_readdir (i32.const 5) (i32.const 65536) (i32.const 4096) (i64.const 0) (i32.const 16)) (then (unreachable)))
        (drop (call $write (i32.const 1) (i32.const 256) (i32.const 192)))
        (drop (call $write (i32.const 1) (i32.const 65536) (i32.load (i32.const 16))))
        (drop (call $environ_sizes_get (i32.const 16) (i32.const 20)))
        (drop (call $environ_get (i32.const 32768) (i32.const 65536)))
        (drop (call $write (i32.const 1) (i32.const 65536) (i32.load (i32.const 20))))"
    );
    module(&[("a", "a"), ("b", "b"), ("c", "c"), ("d", "d")], &body)
}

/// Two runs of the same task.
fn twice(deterministic: bool) -> [Vec<u8>; 2] {
    [(); 2].map(|()| {
        let mut rig = Modules::new();
        let mut program = rig.add(&everything());
        program.deterministic = deterministic;
        let ran = rig.run(&program);
        assert!(ran.result.is_ok(), "{ran:?}");
        ran.stdout
    })
}

#[test]
fn two_runs_are_the_same_and_without_it_are_not() {
    let [first, second] = twice(true);
    assert!(first.len() > 192 + 4 * 24 && first == second);
    let [first, second] = twice(false);
    assert_eq!(first.len(), second.len());
    for (what, range) in [("clock", 0..8), ("random numbers", 24..56), ("a file", 64..128)] {
        assert_ne!(first[range.clone()], second[range], "{what}");
    }
}

#[test]
fn what_is_the_same_is_what_is_documented() {
    let [out, _] = twice(true);
    let u64_at = |at: usize| u64::from_le_bytes(out[at..at + 8].try_into().expect("eight"));
    // 2000-01-01, and a millisecond for each look.
    assert_eq!((u64_at(0), u64_at(8), u64_at(16)), (946_684_800_000_000_000, 1_000_000, 2_000_000));
    assert_eq!(out[56..60], 0x7fc0_0000_u32.to_le_bytes(), "the one NaN");
    // The file: device and inode 1, no times; the directory: no links or size either.
    assert_eq!((u64_at(64), u64_at(72), u64_at(104), u64_at(112), u64_at(120)), (1, 1, 0, 0, 0));
    assert_eq!((u64_at(128), u64_at(136), u64_at(152), u64_at(160), u64_at(168)), (1, 1, 0, 0, 0));
    let text = String::from_utf8_lossy(&out[192..]);
    let places: Vec<_> = ["a", "b", "c", "d"].map(|name| text.find(name)).into();
    assert!(places.is_sorted() && places[0].is_some(), "{text}");
    assert!(
        text.contains("SINEW_TASK=1") && !text.contains("SINEW_ATTEMPT") && !text.contains("SINEW_FENCE"),
        "{text}"
    );
}

#[test]
fn each_task_has_random_numbers_of_its_own() {
    let body = "(drop (call $random_get (i32.const 256) (i32.const 32)))
        (drop (call $write (i32.const 1) (i32.const 256) (i32.const 32)))";
    let run = |task: u32| {
        let mut rig = Modules::new();
        let mut program = rig.add(&module(&[], body));
        program.deterministic = true;
        rig.bench.task = task;
        rig.run(&program).stdout
    };
    assert_eq!(run(0), run(0));
    assert_ne!(run(0), run(1));
}

#[test]
fn waiting_takes_no_time_and_is_seen_on_the_clock() {
    let mut rig = Modules::new();
    rig.bench.limits.timeout_ms = Some(20_000);
    // An hour, relative; then until 2000-01-02, absolute.
    let body = "
        (i32.store (i32.const 112) (i32.const 1))
        (i64.store (i32.const 120) (i64.const 3600000000000))
        (drop (call $poll_oneoff (i32.const 96) (i32.const 160) (i32.const 1) (i32.const 16)))
        (drop (call $clock_time_get (i32.const 1) (i64.const 1) (i32.const 256)))
        (i32.store (i32.const 112) (i32.const 0))
        (i64.store (i32.const 120) (i64.const 946771200000000000))
        (i32.store16 (i32.const 136) (i32.const 1))
        (drop (call $poll_oneoff (i32.const 96) (i32.const 160) (i32.const 1) (i32.const 16)))
        (drop (call $clock_time_get (i32.const 0) (i64.const 1) (i32.const 264)))
        (drop (call $write (i32.const 1) (i32.const 256) (i32.const 16)))";
    let mut program = rig.add(&module(&[], body));
    program.deterministic = true;
    let out = rig.run(&program).stdout;
    let u64_at = |at: usize| u64::from_le_bytes(out[at..at + 8].try_into().expect("eight"));
    assert_eq!(u64_at(0), 3_600_000_000_000);
    let day = 946_771_200_000_000_000;
    assert!((day..day + 10_000_000).contains(&u64_at(8)), "{}", u64_at(8));
    // Fuel is counted, and runs out at the same place.
    let mut spin = rig.add(&crate::modules::fill_stdout());
    (spin.deterministic, spin.fuel) = (true, Some(100_000));
    let [one, other] = [rig.run(&spin), rig.run(&spin)];
    assert!(one.stdout == other.stdout && !one.stdout.is_empty() && one.result == other.result, "{one:?}");
}
