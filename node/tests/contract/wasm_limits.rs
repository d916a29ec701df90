//! Taking more than a module may: instructions, stack, memory, tables, processor, descriptors, files, time of the compiler.

use std::sync::Arc;
use std::time::Duration;

use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::spec::Program;
use sinew_node::exec::runner::{Control, Health, Runner};
use sinew_node::exec::stop::StopHandle;
use sinew_node::exec::wasm::{WasmOptions, WasmRunner};

use crate::modules::{WRITE, module, print, spin, whole};
use crate::wasm::{Modules, OPTIONS};

#[test]
fn fuel_that_is_used_up_is_a_failure_for_good() {
    let mut rig = Modules::new();
    let mut spin = rig.add(&spin());
    spin.fuel = Some(1_000_000);
    let ran = rig.run(&spin);
    let failure = ran.fails_with(ErrorCode::Timeout);
    assert!(!failure.retryable && failure.message.contains("fuel of 1000000"), "{failure:?}");
    let mut print = rig.add(&print());
    print.fuel = Some(1_000);
    assert_eq!(rig.run(&print).text(), "hello\n");
    print.fuel = Some(1);
    rig.run(&print).fails_with(ErrorCode::Timeout);
}

#[test]
fn endless_recursion_traps_and_says_where() {
    let mut rig = Modules::new();
    let text = r#"(memory (export "memory") 1) (func $deeper (export "_start") (call $deeper))"#;
    let ran = rig.run_new(&whole(text));
    let failure = ran.fails_with(ErrorCode::Exit);
    assert!(failure.message.contains("call stack exhausted") && failure.exit.is_none(), "{failure:?}");
    assert!(failure.stderr_tail.contains("deeper"), "{failure:?}");
    assert_eq!(rig.run_new(&print()).text(), "hello\n");
}

#[test]
fn a_trap_keeps_the_end_of_stderr_and_the_backtrace() {
    let mut rig = Modules::new();
    let body = "(loop $again
        (drop (call $write (i32.const 2) {text}))
        (br_if $again (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 1000))))
        (drop (i32.load (i32.const -4)))";
    let ran = rig.run_new(&module(&[("text", "last words\n")], &format!("(local $n i32) {body}")));
    let failure = ran.fails_with(ErrorCode::Exit);
    assert!(failure.message.contains("out of bounds memory access"), "{failure:?}");
    let (words, trace) = failure.stderr_tail.rsplit_once("last words\n").expect("both");
    assert!(
        words.len() > 1_000 && trace.contains("wasm backtrace") && failure.stderr_tail.len() <= 4_096,
        "{failure:?}"
    );
}

#[test]
fn memory_is_counted_whichever_way_it_is_had() {
    let mut rig = Modules::new();
    let start = r#"(memory (export "memory") 1) (func (export "_start")"#;
    let ways = [
        // At once, more than there is; from the beginning; in several memories; as a table.
        format!("{start} (drop (memory.grow (i32.const 60000))))"),
        r#"(memory (export "memory") 2000) (func (export "_start"))"#.to_owned(),
        format!("(memory $a 600) (memory $b 600) {start})"),
        format!("(table 5000000 funcref) {start})"),
        format!("(table $t 1 funcref) {start} (drop (table.grow $t (ref.null func) (i32.const 5000000))))"),
        format!("(memory $far i64 1) {start} (drop (memory.grow $far (i64.const 0x10000000000))))"),
    ];
    for text in ways {
        let ran = rig.run_new(&whole(&text));
        let failure = ran.fails_with(ErrorCode::Oom);
        assert!(failure.message.contains("67108864 bytes"), "{text}: {failure:?}");
    }
    // What a module's own maximum forbids is its own business, and no use of memory.
    let own = r#"(memory (export "memory") 1 2)
        (func (export "_start") (if (i32.ne (memory.grow (i32.const 60000)) (i32.const -1)) (then (unreachable))))"#;
    assert!(rig.run_new(&whole(own)).result.is_ok());
    // Used up to the brim it runs, and says how much that was.
    let brim = format!("{start} (if (i32.eq (memory.grow (i32.const 1023)) (i32.const -1)) (then (unreachable))))");
    let ran = rig.run_new(&whole(&brim));
    assert_eq!((ran.text().as_str(), ran.usage.max_rss_bytes), ("", 64 << 20));
}

#[test]
fn many_memories_and_tables_are_refused() {
    let mut rig = Modules::new();
    let start = r#"(memory (export "memory") 1) (func (export "_start"))"#;
    for many in ["(memory 0)".repeat(8), "(table 0 funcref)".repeat(40)] {
        let ran = rig.run_new(&whole(&format!("{many} {start}")));
        assert!(ran.result.is_err(), "{many}");
    }
}

#[test]
fn a_module_without_a_reservation_gets_its_share() {
    let mut rig = Modules::with(WasmRunner::new(WasmOptions { memory_bytes: 8 << 20, slots: 4, ..OPTIONS }));
    rig.bench.resources.memory_bytes = 0;
    let ran = rig.run_new(&crate::modules::devour());
    assert!(ran.fails_with(ErrorCode::Oom).message.contains("2097152 bytes"), "{ran:?}");
    // And never more than there is.
    rig.bench.resources.memory_bytes = 1 << 40;
    let ran = rig.run_new(&crate::modules::devour());
    assert!(ran.fails_with(ErrorCode::Oom).message.contains("8388608 bytes"), "{ran:?}");
}

#[test]
fn a_spinning_module_gets_its_share_of_the_processor() {
    let mut rig = Modules::new();
    rig.bench.resources.cpu_milli = 200;
    rig.bench.limits.timeout_ms = Some(3_000);
    let spin = rig.add(&spin());
    let usage = rig.run(&spin).usage;
    let share = Duration::from_millis(usage.cpu_ms).as_secs_f64() / Duration::from_millis(usage.wall_ms).as_secs_f64();
    assert!((0.18..=0.22).contains(&share), "it had {share} of a core, not 0.2: {usage:?}");
}

#[test]
fn open_files_are_the_daemons_and_few() {
    let mut rig = Modules::new();
    let body = format!(
        "(local $n i32)
        (loop $again
            (if (i32.eqz (call $open (i32.const 5) {{name}} (i32.const 1) {WRITE}))
                (then
                    (local.set $n (i32.add (local.get $n) (i32.const 1)))
                    (br_if $again (i32.lt_u (local.get $n) (i32.const 5000))))))
        (call $number (local.get $n))"
    );
    let ran = rig.run_new(&module(&[("name", "one")], &body));
    match &ran.result {
        Ok(()) => assert!(ran.text().trim().parse::<u32>().expect("a number") < 300, "{ran:?}"),
        Err(why) => assert!(why.code == ErrorCode::Exit && why.message.contains("resource"), "{why:?}"),
    }
    let open = std::fs::read_dir("/proc/self/fd").expect("own descriptors").flatten();
    let own = open.filter_map(|fd| std::fs::read_link(fd.path()).ok()).filter(|to| to.ends_with("output/one"));
    assert_eq!(own.count(), 0, "descriptors of a module that has ended are open");
}

#[test]
fn neither_many_files_nor_holes_get_past_the_cap() {
    let mut rig = Modules::new();
    rig.bench.limits.output_bytes_max = 8 << 20;
    // A name of eight digits, counted up.
    let many = format!(
        "(local $at i32)
        (loop $again
            (if (call $open (i32.const 4) {{name}} (i32.const 1) {WRITE}) (then (unreachable)))
            (drop (call $fd_close (i32.load (i32.const 16))))
            (local.set $at (i32.const 1031))
            (loop $carry
                (i32.store8 (local.get $at) (i32.add (i32.load8_u (local.get $at)) (i32.const 1)))
                (if (i32.gt_u (i32.load8_u (local.get $at)) (i32.const 57))
                    (then
                        (i32.store8 (local.get $at) (i32.const 48))
                        (local.set $at (i32.sub (local.get $at) (i32.const 1)))
                        (br $carry))))
            (br $again))"
    );
    let ran = rig.run_new(&module(&[("name", "00000000")], &many));
    assert!(ran.fails_with(ErrorCode::Storage).message.contains("8388608 bytes"), "{ran:?}");
    let hole = "(if (call $open (i32.const 5) {name} (i32.const 1) (i64.const 0x400040)) (then (unreachable)))
        (if (call $fd_filestat_set_size (i32.load (i32.const 16)) (i64.const 0x10000000000)) (then (unreachable)))";
    let ran = rig.run_new(&module(&[("name", "hole")], hole));
    assert!(ran.fails_with(ErrorCode::Storage).message.contains("8388608 bytes"), "{ran:?}");
}

#[test]
fn modules_that_cannot_run_say_why_before_they_start() {
    let mut rig = Modules::new();
    let cases: [(&[u8], &str); 6] = [
        (b"hello", "module"),
        (b"(module (func (export \"_start\")))", "module"),
        (&whole(r#"(memory (export "memory") 1)"#), "`_start`"),
        (&whole(r#"(func (export "_start") (param i32))"#), "`_start`"),
        (&whole(r#"(import "env" "system" (func)) (func (export "_start"))"#), "env::system"),
        (&whole(r#"(memory (export "memory") 1 1 shared) (func (export "_start"))"#), "threads"),
    ];
    for (bytes, why) in cases {
        // The second time it is known already.
        for _ in 0..2 {
            let ran = rig.run_new(bytes);
            let failure = ran.fails_with(ErrorCode::Invalid);
            assert!(failure.message.contains(why) && !failure.retryable, "{why}: {failure:?}");
        }
    }
    let large = module(&[("filler", &"x".repeat(2 << 20))], "");
    let ran = rig.run_new(&large);
    assert!(ran.fails_with(ErrorCode::Invalid).message.contains("1048576 bytes"), "{ran:?}");
    assert_eq!(rig.run_new(&print()).text(), "hello\n");
}

/// A module that takes long to compile: many functions of many instructions.
fn laborious() -> Vec<u8> {
    let function = format!(
        "(func (param i32) (result i32) (local.get 0) {})",
        "(i32.mul (i32.const 7)) (i32.add (i32.const 3))".repeat(2_000)
    );
    whole(&format!(r#"(memory (export "memory") 1) {} (func (export "_start"))"#, function.repeat(12)))
}

/// Whether a compiler of this process has something to do.
fn compiles() -> bool {
    let threads = std::fs::read_dir("/proc/self/task").expect("own threads").flatten();
    let stats = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("stat")).ok());
    stats.into_iter().any(|stat| stat.contains("(sinew-wasm-comp) R"))
}

#[test]
fn compiling_ends_with_the_tasks_time_or_wish() {
    let mut rig = Modules::new();
    let module = rig.add(&laborious());
    rig.bench.limits.timeout_ms = Some(20);
    let ran = rig.run(&module);
    assert!(ran.fails_with(ErrorCode::Timeout).message.contains("20 ms"), "{ran:?}");
    rig.bench.limits.timeout_ms = None;
    let stop = StopHandle::new().expect("handle");
    let started = |_: Arc<dyn Control>| panic!("it began");
    let cancelled = std::thread::scope(|scope| {
        // The module is another in this mode, and so compiled anew.
        let program = Program::Wasm(sinew_crdt_state::program::Wasm { fuel: Some(1), ..module.clone() });
        let stop = &stop;
        let bench = &mut rig.bench;
        let running = scope.spawn(move || bench.watched(&program, stop, Some(&started)));
        crate::behaviours::subject::eventually("a compiler at work", compiles);
        stop.stop(sinew_node::exec::stop::StopReason::Cancelled);
        running.join().expect("ran")
    });
    cancelled.fails_with(ErrorCode::Cancelled);
    // Given its time, it runs.
    assert!(rig.run(&module).result.is_ok());
}

#[test]
fn a_runner_that_is_turned_off_says_so() {
    let runner = WasmRunner::refusing(OPTIONS, "turned off here".to_owned());
    assert_eq!(runner.health(), Health::Unavailable("turned off here".to_owned()));
    let ran = Modules::with(runner).run_new(&print());
    assert!(ran.fails_with(ErrorCode::Deny).message.contains("turned off here"), "{ran:?}");
}
