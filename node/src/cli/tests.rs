//! Every documented command line reads as it should, and wrong ones are refused with exit code 2.

use clap::{CommandFactory, Parser};
use sinew_crdt_state::certificate::Roles;
use sinew_crdt_state::manifest::{DraftProgram, DraftSource, DraftWork, Split};

use super::args::{BlobCommand, Cli, Command, MapReduceArgs, RunArgs};
use super::bench::{BenchArgs, BenchRunner};
use super::commands::{map_reduce, run};

const HASH: &str = "qobl4dzjybpynq5erfxxtnptxkjj5xzyemooa6dh2lsqm6eitjba";

fn parse(line: &[&str]) -> Cli {
    Cli::try_parse_from(line).unwrap_or_else(|e| panic!("{line:?}: {e}"))
}

/// Splits at blanks: enough for lines without quotes.
fn command(line: &str) -> Command {
    parse(&line.split(' ').collect::<Vec<_>>()).command
}

fn run_args(line: &[&str]) -> RunArgs {
    let Command::Run(args) = parse(line).command else { panic!("{line:?} is no run") };
    *args
}

fn round_args(line: &[&str]) -> MapReduceArgs {
    let Command::MapReduce(args) = parse(line).command else { panic!("{line:?} is no map-reduce") };
    *args
}

#[test]
fn the_definitions_are_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_documented_line_reads() {
    for line in [
        "sinew init",
        "sinew init --mesh lab",
        "sinew invite",
        "sinew invite --role run,submit,admin --expires 24h",
        "sinew join sinew1abc",
        "sinew up",
        "sinew up --listen /ip4/0.0.0.0/tcp/9000 --listen /ip4/0.0.0.0/udp/9000/quic-v1 --bootstrap /ip4/1.2.3.4/tcp/9 \
         --cpus 4 --memory 8GiB --label zone=a --label disk=ssd --no-mdns --kad=false --relay-server --relay-client=true \
         --autonat --dcutr --log json --config sinew.toml",
        "sinew down",
        "sinew down --wait",
        "sinew down --wait --deadline 10m",
        "sinew peers",
        "sinew status",
        "sinew jobs",
        "sinew job abc",
        "sinew logs abc",
        "sinew logs abc -f",
        "sinew wait abc def",
        "sinew cancel abc",
        "sinew cancel abc --yes",
        "sinew run -- true",
        "sinew run --cpus 0.5 --memory 64MiB --timeout 30s --input a --input b --output c -- python3 input/a --json",
        "sinew submit job.toml",
        "sinew submit -",
        "sinew map-reduce --input a --map cat --reduce cat --out out",
        "sinew map-reduce --input a b --split lines:100 --map sinew:wordcount --combine sinew:sum --reduce sinew:sum \
         --partitions 8 --file x.py y.py --out out",
        "sinew map-reduce --input a --split bytes:64MiB --map cat --reduce cat --out out",
        "sinew map-reduce --input a --split files --map cat --reduce cat --out out",
        "sinew get abc",
        "sinew get abc --out dir",
        "sinew blob add x",
        "sinew blob ls",
        "sinew blob untag name",
        "sinew demo",
        "sinew demo --nodes 3 --input a --input b",
        "sinew bench tasks --nodes 3 --tasks 1000 --runner process -- echo hi",
        "sinew bench submit --jobs 10 --rate 5 --nodes 3 --at-once 8",
        "sinew bench ledger --facts 10 --jobs 2",
        "sinew bench history --jobs 1000",
        "sinew bench blobs --size 1GiB",
        "sinew bench gossip --nodes 30",
        "sinew bench idle --seconds 5 --foreign 0",
        "sinew bench waiting --nodes 3 --jobs 10 --seconds 5",
        "sinew bench all",
        "sinew bench all --quick --out a.json --against b.json --beside ./sinew --page p.md --commit c --only gossip",
        "sinew completions bash",
        "sinew man --out man",
        "sinew __guardian tag:1",
        "sinew status --json --data-dir dir -v",
        "sinew --data-dir dir --json -vv status",
    ] {
        let words: Vec<&str> = line.split_whitespace().collect();
        parse(&words);
    }
    assert!(matches!(
        parse(&["sinew", "blob", "get", HASH, "--out", "x"]).command,
        Command::Blob(BlobCommand::Get { yes: false, .. })
    ));
    parse(&["sinew", "blob", "tag", "model", HASH]);
}

#[test]
fn wrong_lines_are_usage_errors() {
    for line in [
        "sinew",
        "sinew fly",
        "sinew status --fly",
        "sinew run",
        "sinew run true",
        "sinew run --cpus 0 -- true",
        "sinew run --memory lots -- true",
        "sinew run --timeout 30 -- true",
        "sinew run --label zone -- true",
        "sinew down --deadline 10m",
        "sinew down --wait --deadline soon",
        "sinew invite --role root",
        "sinew invite --expires soon",
        "sinew up --cpus=-1",
        "sinew up --label zone",
        "sinew wait",
        "sinew map-reduce --map cat --reduce cat --out out",
        "sinew map-reduce --input a --split words --map cat --reduce cat --out out",
        "sinew blob get nonsense --out x",
        "sinew blob",
        "sinew bench tasks --nodes 0",
        "sinew bench",
    ] {
        let error = Cli::try_parse_from(line.split(' ')).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}

#[test]
fn values_arrive_in_their_units() {
    let Command::Invite { role, expires } = command("sinew invite --role run,admin --expires 90m") else {
        panic!("invite")
    };
    assert_eq!((role, expires), (Roles::RUN.union(Roles::ADMIN), 90 * 60_000));
    let Command::Up(up) = command("sinew up --cpus 2.5 --memory 1GiB --label zone=a --mdns --no-kad --dcutr=false")
    else {
        panic!("up")
    };
    assert_eq!((up.cpus, up.memory, up.mdns, up.no_kad), (Some(2.5), Some(1 << 30), Some(true), true));
    assert_eq!((up.dcutr, up.relay_server, up.label), (Some(false), None, vec![("zone".into(), "a".into())]));
    let Command::Bench(bench) = command("sinew bench tasks --tasks 5 --runner noop") else { panic!("bench") };
    let runner = Some(BenchRunner::Noop);
    assert_eq!(bench, BenchArgs::Tasks { nodes: 3, tasks: 5, runner, command: Vec::new() });
    let Command::Bench(bench) = command("sinew bench blobs --size 64MiB") else { panic!("bench") };
    assert_eq!(bench, BenchArgs::Blobs { size: 64 << 20 });
}

#[test]
fn run_becomes_a_draft_of_one_task() {
    let dir = tempfile::tempdir().expect("dir");
    let script = dir.path().join("x.py");
    std::fs::write(&script, "print(1)").expect("write");
    let script = script.to_str().expect("utf-8");
    let args = run_args(&[
        "sinew",
        "run",
        "--cpus",
        "0.5",
        "--memory",
        "64MiB",
        "--timeout",
        "30s",
        "--input",
        script,
        "--output",
        "r.json",
        "--env",
        "A=b",
        "--label",
        "zone=a",
        "--",
        "python3",
        "input/x.py",
        "a b",
        "--json",
    ]);
    let draft = run::draft(&args).expect("draft");
    draft.check().expect("a good draft");
    assert_eq!((draft.resources.cpu_milli, draft.resources.memory_bytes), (500, 64 << 20));
    assert_eq!((draft.limits.timeout_ms, draft.retry.attempts, draft.labels.len()), (Some(30_000), 0, 1));
    let DraftWork::Batch(batch) = &draft.work else { panic!("a batch") };
    let argv = ["python3", "input/x.py", "a b", "--json"].map(str::to_owned).to_vec();
    assert_eq!(
        (&batch.program, batch.tasks, &batch.outputs),
        (&DraftProgram::Exec(argv), 1, &vec!["r.json".to_owned()])
    );
    assert_eq!((&batch.inputs[0].to[..], &batch.inputs[0].source), ("x.py", &DraftSource::Path(script.to_owned())));
    assert!(!parse(&["sinew", "run", "--", "x", "--json"]).json);
}

#[test]
fn map_reduce_splits_commands_but_gives_none_to_a_shell() {
    let dir = tempfile::tempdir().expect("dir");
    let input = dir.path().to_str().expect("utf-8");
    let line = |map: &'static str| {
        round_args(&[
            "sinew",
            "map-reduce",
            "--input",
            input,
            "--map",
            map,
            "--reduce",
            "sinew:sum",
            "--split",
            "lines:9",
            "--out",
            "o",
        ])
    };
    let draft = map_reduce::draft(&line("python3 'my map.py' $HOME | cat")).expect("draft");
    draft.check().expect("a good draft");
    let DraftWork::MapReduce(round) = &draft.work else { panic!("a round") };
    let words = ["python3", "my map.py", "$HOME", "|", "cat"].map(str::to_owned).to_vec();
    assert_eq!((&round.map, round.split, round.partitions), (&DraftProgram::Exec(words), Split::Lines(9), 4));

    let unclosed = map_reduce::draft(&line("python3 'x.py")).expect_err("a quote is open");
    assert_eq!(unclosed.exit_code(), 2);
    assert!(unclosed.to_string().starts_with("--map: a quote is not closed"), "{unclosed}");
    let missing = round_args(&[
        "sinew",
        "map-reduce",
        "--input",
        "/nowhere/at/all",
        "--map",
        "cat",
        "--reduce",
        "cat",
        "--out",
        "o",
    ]);
    assert_eq!(map_reduce::draft(&missing).expect_err("missing").exit_code(), 2);
}
