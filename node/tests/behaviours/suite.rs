//! The behaviours that every runner has in common.

use std::sync::{Arc, Mutex};

use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::network::NO_NETWORK;
use sinew_node::exec::cell::pool::Place;
use sinew_node::exec::runner::{Control, Health, Launch, RunLimits, Stats, Status};
use sinew_node::exec::stop::{StopHandle, StopReason};
use sinew_node::exec::switch::Switch;

use super::subject::{Bench, Does, MEMORY_BYTES, Subject, bytes_under, eventually, lines};

/// Makes a module of tests, one for each behaviour, of a subject that an expression makes: `None` where it cannot be tested.
macro_rules! contract {
    ($name:ident, $subject:expr) => {
        mod $name {
            use super::*;

            crate::behaviours::suite::contract!(@each $subject;
                it_is_ready, it_succeeds, it_tells_the_exit_status, it_prints, it_copies_stdin, it_reads_and_writes_files,
                it_sees_its_variables, it_ends_at_its_deadline, it_ends_when_told, it_ends_with_its_lease,
                it_is_watched, it_keeps_to_its_memory,
                it_keeps_to_its_output_on_stdout, it_keeps_to_its_output_in_files, it_is_missed_before_it_starts,
                it_finds_nothing_of_the_task_before);
        }
    };
    (@each $subject:expr; $($behaviour:ident),*) => {
        $(
            #[test]
            fn $behaviour() {
                if let Some(subject) = $subject {
                    crate::behaviours::suite::$behaviour(&subject);
                }
            }
        )*
    };
}
pub(crate) use contract;

pub(crate) fn it_is_ready(subject: &impl Subject) {
    let runner = subject.runner();
    assert_eq!(runner.health(), Health::Ready);
    assert_eq!(subject.program(Does::Succeed).runner(), runner.kind());
}

pub(crate) fn it_succeeds(subject: &impl Subject) {
    let mut bench = Bench::of(subject);
    let ran = bench.run(&subject.program(Does::Succeed));
    assert_eq!((ran.text().as_str(), ran.outputs.len(), ran.usage.output_bytes), ("", 0, 0));
}

pub(crate) fn it_tells_the_exit_status(subject: &impl Subject) {
    let ran = Bench::of(subject).run(&subject.program(Does::ExitThree));
    let failure = ran.fails_with(ErrorCode::Exit);
    assert_eq!((failure.exit, failure.signal), (Some(3), None));
    assert!(failure.message.contains("status 3") && failure.stderr_tail.contains("that was wrong"), "{failure:?}");
    assert!(ran.stderr.contains("that was wrong"));
}

pub(crate) fn it_prints(subject: &impl Subject) {
    let ran = Bench::of(subject).run(&subject.program(Does::Print));
    assert_eq!((ran.text().as_str(), ran.usage.output_bytes), ("hello\n", 6));
}

pub(crate) fn it_copies_stdin(subject: &impl Subject) {
    let mut bench = Bench::of(subject);
    let copy = subject.program(Does::CopyStdin);
    for count in [0, 1, 50_000] {
        let input = lines(count);
        assert!(bench.map(&copy, &input).concat() == input, "{count} lines");
    }
    // As a batch task it has no input, and finds that out.
    assert_eq!(bench.run(&copy).text(), "");
}

pub(crate) fn it_reads_and_writes_files(subject: &impl Subject) {
    let mut bench = Bench::of(subject);
    let text = lines(10_000);
    bench.place(&[("in.txt", &text)]);
    let ran = bench.run(&subject.program(Does::CopyFile));
    assert_eq!(ran.text(), "");
    assert!(ran.outputs == [("out.txt".to_owned(), text.clone())]);
    assert_eq!(ran.usage.output_bytes, text.len() as u64);
}

pub(crate) fn it_sees_its_variables(subject: &impl Subject) {
    let mut bench = Bench::of(subject);
    bench.env = [("GREETING", "hello"), ("SINEW_TASK", "forged")].map(|(n, v)| (n.to_owned(), v.to_owned())).into();
    let text = bench.run(&subject.program(Does::ShowVariables)).text();
    let variables: Vec<&str> = text.split(['\n', '\0']).collect();
    for wanted in ["GREETING=hello", "SINEW_TASK=1", "SINEW_JOB=job", "SINEW_PHASE=batch"] {
        assert!(variables.contains(&wanted), "{wanted}: {variables:?}");
    }
    assert!(!variables.contains(&"SINEW_TASK=forged"), "{variables:?}");
}

pub(crate) fn it_ends_at_its_deadline(subject: &impl Subject) {
    let mut bench = Bench::of(subject);
    // What has to be compiled or unpacked is, so that the time is the program's own.
    bench.limits.timeout_ms = Some(60_000);
    assert!(bench.run(&subject.program(Does::Succeed)).result.is_ok());
    for does in [Does::Spin, Does::Linger] {
        bench.limits.timeout_ms = Some(1_500);
        let ran = bench.run(&subject.program(does));
        let failure = ran.fails_with(ErrorCode::Timeout);
        assert!(failure.message.contains("1500 ms"), "{failure:?}");
        assert!(ran.usage.wall_ms >= 1_500, "{:?}", ran.usage);
    }
}

pub(crate) fn it_ends_when_told(subject: &impl Subject) {
    let mut bench = Bench::of(subject);
    for (does, reason) in [(Does::Spin, StopReason::Cancelled), (Does::Linger, StopReason::Fenced)] {
        let stop = StopHandle::new().expect("handle");
        let started = |control: Arc<dyn Control>| {
            assert!(matches!(control.status(), Status::Running(_)));
            control.stop(reason);
        };
        bench.watched(&subject.program(does), &stop, Some(&started)).fails_with(reason.failure().code);
        assert_eq!(stop.reason(), Some(reason));
    }
    // One that was ended before it began does not begin.
    let stop = StopHandle::new().expect("handle");
    stop.stop(StopReason::Cancelled);
    let started = |_: Arc<dyn Control>| panic!("it began");
    bench.watched(&subject.program(Does::Spin), &stop, Some(&started)).fails_with(ErrorCode::Cancelled);
}

/// Nobody tells it: whoever would may stand still.
pub(crate) fn it_ends_with_its_lease(subject: &impl Subject) {
    let mut bench = Bench::of(subject);
    let switch = Switch::new().expect("switch");
    for does in [Does::Spin, Does::Linger] {
        let stop = StopHandle::leased(switch.enter(u64::MAX).expect("entry")).expect("handle");
        let started = |_: Arc<dyn Control>| stop.set_end(1);
        bench.watched(&subject.program(does), &stop, Some(&started)).fails_with(ErrorCode::Lost);
    }
    // One whose lease is over does not begin.
    let stop = StopHandle::leased(switch.enter(1).expect("entry")).expect("handle");
    let started = |_: Arc<dyn Control>| panic!("it began");
    bench.watched(&subject.program(Does::Spin), &stop, Some(&started)).fails_with(ErrorCode::Lost);
    // The slot is none the worse for it.
    assert_eq!(bench.run(&subject.program(Does::Print)).text(), "hello\n");
}

/// Status, logs and statistics while it runs and afterwards.
pub(crate) fn it_is_watched(subject: &impl Subject) {
    let mut bench = Bench::of(subject);
    let program = subject.program(Does::Linger);
    let knows_stats = subject.knows_stats();
    let stop = StopHandle::new().expect("handle");
    let seen: Mutex<Option<Arc<dyn Control>>> = Mutex::new(None);
    let started = |control: Arc<dyn Control>| *seen.lock().expect("lock") = Some(control);
    let ran = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let control = || seen.lock().expect("lock").clone();
            eventually("its start", || control().is_some());
            let control = control().expect("started");
            eventually("its words", || control.logs() == b"here\n");
            eventually("its use of memory", || !knows_stats || control.stats().rss_bytes > 0);
            assert!(matches!(control.status(), Status::Running(_)));
            control.stop(StopReason::Cancelled);
        });
        let ran = bench.watched(&program, &stop, Some(&started));
        watcher.join().expect("watched");
        ran
    });
    assert_eq!(ran.fails_with(ErrorCode::Cancelled).stderr_tail, "here\n");
    let control = seen.into_inner().expect("lock").expect("started");
    assert_eq!((control.status(), control.stats()), (Status::Ended, Stats::default()));
    assert_eq!(control.logs(), b"here\n");
}

pub(crate) fn it_keeps_to_its_memory(subject: &impl Subject) {
    if !subject.limits_memory() {
        return;
    }
    let mut bench = Bench::of(subject);
    let ran = bench.run(&subject.program(Does::Devour));
    let failure = ran.fails_with(ErrorCode::Oom);
    assert!(failure.message.contains(&MEMORY_BYTES.to_string()), "{failure:?}");
    assert!(ran.usage.max_rss_bytes <= 2 * MEMORY_BYTES, "{:?}", ran.usage);
    // The slot is none the worse for it.
    assert_eq!(bench.run(&subject.program(Does::Print)).text(), "hello\n");
}

pub(crate) fn it_keeps_to_its_output_on_stdout(subject: &impl Subject) {
    let mut bench = Bench::of(subject);
    bench.limits.output_bytes_max = 1 << 20;
    let ran = bench.run(&subject.program(Does::FillStdout));
    let failure = ran.fails_with(ErrorCode::Storage);
    assert!(!failure.retryable && failure.message.contains("1048576 bytes"), "{failure:?}");
    assert!(ran.stdout.len() <= 1 << 20, "{} bytes were kept", ran.stdout.len());
}

pub(crate) fn it_keeps_to_its_output_in_files(subject: &impl Subject) {
    let mut bench = Bench::of(subject);
    bench.limits.output_bytes_max = 1 << 20;
    let ran = bench.run(&subject.program(Does::FillFile));
    let failure = ran.fails_with(ErrorCode::Storage);
    assert!(!failure.retryable && failure.message.contains("1048576 bytes"), "{failure:?}");
    assert!(ran.outputs.is_empty());
    // Beside its last words, which are kept.
    let slot = bench.slot().work().parent().expect("the slot's directory");
    assert_eq!(bytes_under(slot), 0, "what it wrote is still there");
}

pub(crate) fn it_is_missed_before_it_starts(subject: &impl Subject) {
    let mut bench = Bench::of(subject);
    let program = subject.program(Does::NotExist);
    let stop = StopHandle::new().expect("handle");
    let knows_absence = subject.knows_absence();
    let started = |_: Arc<dyn Control>| assert!(!knows_absence, "it began");
    let ran = bench.watched(&program, &stop, Some(&started));
    assert!(!ran.fails_with(ErrorCode::Invalid).retryable);
    if !knows_absence {
        return;
    }
    // It is the preparation that finds out.
    let limits = RunLimits {
        began: std::time::Instant::now(),
        deadline: None,
        output_max: 1 << 20,
        output_before: 0,
        grace: std::time::Duration::ZERO,
    };
    let place = Place {
        slot: 0,
        dir: bench.dir.path(),
        generation: 0,
        job: "job",
        input: None,
        volumes: &[],
        output_max: 1 << 20,
        resources: bench.resources,
        network: &NO_NETWORK,
        secrets: None,
    };
    let launch = Launch {
        program: &program,
        content: program.content().and_then(|blob| bench.content.get(&blob.hash)).map(AsRef::as_ref),
        task: 1,
        dir: bench.slot().work(),
        place,
        has_files: false,
        env: &bench.env,
        fixed_env: &[],
        run: 1,
        feeds_stdin: false,
        limits,
        stop: &stop,
    };
    let refused = bench.runner.prepare(&launch).expect_err("prepared what is not there");
    assert_eq!(refused.code, ErrorCode::Invalid, "{refused:?}");
    bench.runner.end_job("job");
}

pub(crate) fn it_finds_nothing_of_the_task_before(subject: &impl Subject) {
    let mut bench = Bench::of(subject);
    bench.place(&[("in.txt", b"text")]);
    let copy = subject.program(Does::CopyFile);
    for _ in 0..3 {
        assert_eq!(bench.run(&copy).outputs, [("out.txt".to_owned(), b"text".to_vec())]);
    }
    assert!(bench.run(&subject.program(Does::Succeed)).outputs.is_empty());
}
