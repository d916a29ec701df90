//! Whole manifests: what users get wrong, what strangers send, and that three formats and one page of documentation agree.

mod hostile;
mod network;
mod places;
mod properties;
mod secrets;

use serde_json::json;

use super::fields::TABLES;
use super::*;
use crate::ids::{DiskId, Hash, MeshId, NodeId};
use crate::program::{ContainerOf, HealthCheck, ImageOf, Params, PythonCall, WasmOf};
use crate::remote::{GitTree, HttpFile};
use crate::spec::{BlobRef, Builtin, InputFile, Limits, Program, Resources, Retry, Source, Strategy, Work};

const PAGE: &str = include_str!("../../../../docs/manifest.md");
const FORMATS: [Option<Format>; 4] = [Some(Format::Toml), Some(Format::Yaml), Some(Format::Json), None];

fn draft(text: &str) -> JobDraft {
    parse(text.as_bytes(), None).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn problems(text: &str) -> Vec<Problem> {
    match parse(text.as_bytes(), None) {
        Err(ManifestError::Invalid { problems }) => problems.0,
        other => panic!("expected problems, got {other:?}"),
    }
}

fn paths(text: &str) -> Vec<String> {
    problems(text).into_iter().map(|p| p.path).collect()
}

fn syntax(text: &str, format: Format) -> SyntaxError {
    match parse(text.as_bytes(), Some(format)) {
        Err(ManifestError::Syntax { mut errors }) => errors.remove(0),
        other => panic!("expected a syntax error, got {other:?}"),
    }
}

#[test]
fn five_mistakes_are_all_reported_with_their_paths() {
    let text = r#"
        type = "batch"
        copies = 3
        [limits]
        timeout = "30"
        [env]
        SINEW_HOME = "/tmp"
        [batch]
        comand = ["true"]
        inputs = ["a", { inline = "x", to = "../b" }]
    "#;
    let found = problems(text);
    let mut paths: Vec<_> = found.iter().map(|p| p.path.as_str()).collect();
    paths.sort_unstable();
    assert_eq!(paths, ["batch.comand", "batch.inputs[1].to", "copies", "env.SINEW_HOME", "limits.timeout"]);
    let told = Problems(found).to_string();
    assert!(PAGE.contains(&format!("```text\n{told}\n```")), "the page shows another list than:\n{told}");
}

#[test]
fn unknown_keys_come_with_a_suggestion_or_their_right_place() {
    let text = r#"
        type = "batch"
        nmae = "x"
        mem = "1GB"
        timeout = "30s"
        xyzzy = 1
        [batch]
        command = "true"
        cpus = 2
    "#;
    let mend = |path: &str| problems(text).into_iter().find(|p| p.path == path).expect("reported").mend;
    assert_eq!(mend("nmae"), "did you mean `name`?");
    assert_eq!(mend("mem"), "did you mean `memory`?");
    assert_eq!(mend("timeout"), "it belongs in `[limits]`");
    assert_eq!(mend("batch.cpus"), "it belongs in the top of the manifest");
    assert!(mend("xyzzy").contains("use one of name, "));
    assert_eq!(problems(text).len(), 5);
}

#[test]
fn each_wrong_value_is_one_problem_at_its_own_path() {
    let text = r#"
        name = ""
        type = "batch"
        cpus = "lots"
        memory = -1
        strategy = "binpak"
        copies = "2"
        labels = { zone = 1, "a b" = "c" }
        env = { A = 1, "2B" = "x" }
        [limits]
        timeout = "0s"
        output_max = "1 parsec"
        [retry]
        attempts = -1
        delay = [1]
        [batch]
        command = ["sinew:wordcnt"]
        tasks = 0
        inputs = [3, { path = "a", inline = "b" }, { blob = "abc", size = 1, to = "c" }, { inline = "x" }, "dir/..",
                  { path = 1 }, { path = "p", to = "q", executable = "yes", size = 3 }]
        outputs = ["ok", "/abs", 7, "ok"]
    "#;
    let mut found = paths(text);
    found.sort();
    let mut expected = [
        "name",
        "cpus",
        "memory",
        "strategy",
        "copies",
        "labels.zone",
        "labels.\"a b\"",
        "env.A",
        "env.\"2B\"",
        "limits.timeout",
        "limits.output_max",
        "retry.attempts",
        "retry.delay",
        "batch.command",
        "batch.tasks",
        "batch.inputs[0]",
        "batch.inputs[1]",
        "batch.inputs[2].blob",
        "batch.inputs[3].to",
        "batch.inputs[4]",
        "batch.inputs[5].path",
        "batch.inputs[6].executable",
        "batch.inputs[6].size",
        "batch.outputs[1]",
        "batch.outputs[2]",
        "batch.outputs[3]",
    ]
    .map(str::to_owned);
    // An env key that is no bare word but plain letters and digits is still printed bare.
    expected[8] = "env.2B".to_owned();
    expected.sort();
    assert_eq!(found, expected);
}

#[test]
fn rounds_report_all_their_mistakes_too() {
    let text = r#"
        type = "map-reduce"
        [map_reduce]
        inputs = []
        split = "words:3"
        map = "sinew:sum"
        combine = "a 'b"
        reduce = []
        partitions = 5000
        files = [{ inline = "1", to = "a" }, { inline = "2", to = "a/b" }, { inline = "3", to = "a" }]
    "#;
    let mut found = paths(text);
    found.sort();
    let at = |key: &str| format!("map_reduce.{key}");
    let mut expected: Vec<_> =
        ["inputs", "split", "map", "combine", "reduce", "partitions", "files[1].to", "files[2].to"].map(at).into();
    expected.push("type".to_owned());
    expected.sort();
    assert_eq!(found, expected);
    let kind = problems(text).into_iter().find(|p| p.path == "type").expect("type");
    assert_eq!(kind.mend, "did you mean \"map_reduce\"?");
}

#[test]
fn types_and_their_tables_must_agree() {
    for later in ["service", "system", "sysbatch", "parameter_server"] {
        let found = problems(&format!("type = \"{later}\""));
        assert_eq!((found[0].path.as_str(), found[0].problem.as_str()), ("type", "not available in this version"));
        assert_eq!(found.len(), 1);
    }
    assert_eq!(paths("type = \"batch\""), ["batch"]);
    assert_eq!(
        paths("type = \"map_reduce\"\n[map_reduce]"),
        ["map_reduce.inputs", "map_reduce.map", "map_reduce.reduce"]
    );
    assert_eq!(paths("[batch]\ncommand = \"true\"\ntasks = 0"), ["type", "batch.tasks"]);
    assert_eq!(paths("type = \"batch\"\n[batch]\ncommand=\"true\"\n[map_reduce]"), ["map_reduce"]);
    assert_eq!(paths("{}"), ["type"]);
    assert_eq!(paths(""), ["type"]);
    assert_eq!(
        parse(b"", Some(Format::Yaml)).map_err(|e| e.to_string()),
        Err(format!("the manifest: empty; {}", "write type = \"batch\" or type = \"map_reduce\""))
    );
    assert!(
        matches!(parse(b"[1]", Some(Format::Json)), Err(ManifestError::Invalid { problems }) if problems.0[0].path.is_empty())
    );
}

#[test]
fn repeated_keys_are_refused_in_every_format() {
    assert_eq!(paths(r#"{"type":"batch","batch":{"command":"a","tasks":0},"type":"batch"}"#), ["type", "batch.tasks"]);
    let toml = syntax("type = \"batch\"\ncopies = 1\ncopies = 2\n", Format::Toml);
    assert_eq!((toml.line, toml.column), (Some(3), Some(1)), "{toml}");
    assert!(toml.message.contains("duplicate"), "{toml}");
    let yaml = syntax("type: batch\ncopies: 1\ncopies: 2\n", Format::Yaml);
    assert_eq!(yaml.line, Some(3), "{yaml}");
    assert!(yaml.message.contains("duplicate"), "{yaml}");
}

#[test]
fn syntax_errors_say_line_and_column() {
    let toml = syntax("name = \"é\"\ntype = \"batch\nx = 1", Format::Toml);
    assert_eq!((toml.line, toml.column), (Some(2), Some(14)), "{toml}");
    let json = syntax("{\n  \"type\": batch\n}", Format::Json);
    assert_eq!((json.line, json.column), (Some(2), Some(11)), "{json}");
    assert!(!json.message.contains(" at line"), "{json}");
    let yaml = syntax("type: batch\nbatch: [a, b\n", Format::Yaml);
    assert!(yaml.line.is_some() && yaml.column.is_some(), "{yaml}");
    assert!(!yaml.message.contains(" at line"), "{yaml}");
    assert!(yaml.to_string().starts_with("not valid YAML at line "), "{yaml}");
    let two = syntax("type: batch\n---\ntype: batch\n", Format::Yaml);
    assert_eq!((two.line, two.message.contains("document")), (Some(3), true), "{two}");
    let Err(ManifestError::Syntax { errors }) = parse(b"type = \"batch", None) else { panic!("no format takes this") };
    assert_eq!(errors[0].format, Format::Toml);
}

#[test]
fn every_format_gives_the_same_draft() {
    let toml = r#"
        name = "n"
        type = "map_reduce"
        cpus = 0.25
        memory = 1024
        labels = { gpu = "no" }
        limits.timeout = "1m"
        [map_reduce]
        inputs = ["a", "b"]
        split = "lines:10"
        map = "sinew:grep 'x y'"
        reduce = ["python3", "r.py"]
        files = [{ path = "bin/r.py", executable = true }]
    "#;
    let yaml = r#"
name: n
type: map_reduce
cpus: 0.25
memory: 1024
labels: { gpu: no }
limits: { timeout: 1m }
map_reduce:
  inputs: [a, b]
  split: lines:10
  map: sinew:grep 'x y'
  combine: ~
  reduce: [python3, r.py]
  files:
    - path: bin/r.py
      executable: true
"#;
    let json = json!({
        "name": "n", "type": "map_reduce", "cpus": 0.25, "memory": 1024, "labels": { "gpu": "no" },
        "limits": { "timeout": "1m" },
        "map_reduce": {
            "inputs": ["a", "b"], "split": "lines:10", "map": "sinew:grep 'x y'", "combine": null,
            "reduce": ["python3", "r.py"], "files": [{ "path": "bin/r.py", "executable": true }],
        },
    })
    .to_string();
    let mut expected = JobDraft::map_reduce(
        vec!["a".to_owned(), "b".to_owned()],
        DraftProgram::Builtin(Builtin::Grep("x y".to_owned())),
        DraftProgram::Exec(vec!["python3".to_owned(), "r.py".to_owned()]),
    );
    expected.name = Some("n".to_owned());
    expected.resources = Resources { cpu_milli: 250, memory_bytes: 1024, disk_bytes: 0 };
    expected.labels = [("gpu".to_owned(), "no".to_owned())].into();
    expected.limits = Limits { timeout_ms: Some(60_000), ..Limits::default() };
    let DraftWork::MapReduce(round) = &mut expected.work else { panic!("a round") };
    round.split = Split::Lines(10);
    let mut file = DraftFile::from_path("bin/r.py").expect("has a name");
    file.executable = true;
    round.files = vec![file];

    for (text, format) in [(toml, Format::Toml), (yaml, Format::Yaml), (&json, Format::Json)] {
        assert_eq!(parse(text.as_bytes(), Some(format)), Ok(expected.clone()), "{format}");
        assert_eq!(parse(format!("\u{feff}{text}").as_bytes(), None), Ok(expected.clone()), "{format}, by trying");
    }
}

#[test]
fn what_a_task_reserves_of_the_disk_it_may_write_and_no_more() {
    let amounts = |text: &str| {
        let draft = draft(&format!("type = \"batch\"\n{text}\nbatch.command = \"true\""));
        (draft.resources.disk_bytes, draft.limits.output_bytes_max)
    };
    assert_eq!(amounts(""), (0, 1 << 30));
    assert_eq!(amounts("disk = \"8GiB\""), (8 << 30, 8 << 30));
    assert_eq!(amounts("disk = \"1MiB\"\nlimits.timeout = \"1s\""), (1 << 20, 1 << 20));
    assert_eq!(amounts("disk = \"2MiB\"\nlimits.output_max = \"1MiB\""), (2 << 20, 1 << 20));
    let wrong = "type = \"batch\"\ndisk = \"1MiB\"\nlimits.output_max = \"2MiB\"\nbatch.command = \"true\"";
    let problems = parse(wrong.as_bytes(), Some(Format::Toml)).expect_err("more than is reserved").to_string();
    for said in ["limits.output_max", "2097152", "1048576", "`disk`"] {
        assert!(problems.contains(said), "{said}: {problems}");
    }
    assert_eq!(paths("type = \"batch\"\ndisk = \"lots\"\nbatch.command = \"true\""), ["disk"]);
}

#[test]
fn defaults_are_those_of_the_spec() {
    let small = draft("type = \"batch\"\nbatch.command = '''python3 'my x.py' \\\"'''");
    let argv = ["python3", "my x.py", "\""].map(str::to_owned).into();
    assert_eq!(small, JobDraft::batch(DraftProgram::Exec(argv)));
    assert_eq!(
        (small.resources, small.limits, small.retry),
        (Resources::default(), Limits::default(), Retry::default())
    );
    assert_eq!((small.strategy, small.copies, small.display_name()), (Strategy::Binpack, 2, "python3".to_owned()));
}

#[test]
fn a_dated_value_and_a_null_byte_are_told() {
    assert_eq!(
        problems("type=\"batch\"\nname=2026-01-01\n[batch]\ncommand=\"a\"")[0].found.as_deref(),
        Some("the date 2026-01-01")
    );
    assert_eq!(
        paths("type=\"batch\"\nenv.A=\"a\\u0000b\"\n[batch]\ncommand=[\"a\\u0000\"]"),
        ["env.A", "batch.command"]
    );
}

#[test]
fn cli_drafts_meet_the_same_bounds() {
    let mut draft = JobDraft::batch(DraftProgram::Exec(Vec::new()));
    draft.copies = 0;
    draft.resources.cpu_milli = 0;
    draft.env.insert("SINEW_TASK".to_owned(), "1".to_owned());
    let DraftWork::Batch(batch) = &mut draft.work else { panic!("a batch") };
    batch.inputs = vec![DraftFile::inline("a/../b", "x".repeat(70_000))];
    let found: Vec<_> = draft.check().expect_err("five mistakes").0.into_iter().map(|p| p.path).collect();
    let expected =
        ["cpus", "copies", "env.SINEW_TASK", "batch.command", "batch.inputs[0].to", "batch.inputs[0].inline"];
    assert_eq!(found, expected);

    let mut bulky = JobDraft::batch(DraftProgram::Builtin(Builtin::Noop));
    let DraftWork::Batch(batch) = &mut bulky.work else { panic!("a batch") };
    batch.inputs = (0..5).map(|i| DraftFile::inline(format!("f{i}"), "x".repeat(60_000))).collect();
    let found = bulky.check().expect_err("longer than a spec").0;
    assert_eq!((found.len(), found[0].path.as_str()), (1, ""));
    assert_eq!(program_from_text("sinew:nope"), program_from_argv(vec!["sinew:nope".to_owned()]));
    assert_eq!(program_from_text(" "), Err(ProgramError::Empty));
    assert_eq!(program_from_text("'a"), Err(ProgramError::Quote));
}

#[test]
fn drafts_resolve_into_specs_and_travel_as_json() {
    let mut draft =
        draft("type = \"batch\"\nenv.A = \"b\"\n[batch]\ncommand = \"bin/x\"\ninputs = [\"d/in.txt\", \"/abs/y\"]");
    draft.anchor_paths("/home/me");
    let sources: Vec<_> = draft.files().iter().map(|f| f.source.clone()).collect();
    assert_eq!(sources, ["/home/me/d/in.txt", "/abs/y"].map(|p| DraftSource::Path(p.to_owned())));
    let json = serde_json::to_string(&draft).expect("json");
    assert_eq!(serde_json::from_str::<JobDraft>(&json).expect("json"), draft);

    let source = Source::Blob(BlobRef { hash: Hash([1; 32]), size: 3 });
    let files = vec![InputFile { path: "in.txt".to_owned(), source, executable: false }];
    let DraftWork::Batch(batch) = &draft.work else { panic!("a batch") };
    let program = Program::Exec(vec!["bin/x".to_owned()]);
    let work = batch.resolve(draft.env.clone(), program, files.clone());
    let node = NodeId([2; 32]);
    let context = DraftContext {
        mesh: MeshId([3; 32]),
        submitter: node,
        serial: 7,
        submitted_ms: 9,
        brain_set: vec![node],
        brain_disks: vec![DiskId(1)],
    };
    let spec = draft.into_spec(context, work);
    assert_eq!((spec.name.as_str(), spec.serial, spec.phases()), ("x", 7, vec![1]));
    assert!(matches!(&*spec.work, Work::Batch(batch) if batch.inputs == files && batch.env["A"] == "b"));
}

#[test]
fn programs_of_other_runners() {
    let batch = |text: &str| match draft(&format!("type = \"batch\"\n{text}")).work {
        DraftWork::Batch(batch) => batch.program,
        DraftWork::MapReduce(_) => panic!("a batch"),
    };
    let hex = "ab".repeat(32);
    let docker = batch(&format!(
        "[batch.docker]\nimage = \"a/b@sha256:{hex}\"\nargs = [\"-v\"]\ngpus = 2\n\
         health = {{ command = [\"check\"], interval = \"1s\", start = \"1m\" }}"
    ));
    let image = ImageOf::Digest(format!("a/b@sha256:{hex}"));
    let check = HealthCheck::new(vec!["check".to_owned()]);
    let health = Some(Box::new(HealthCheck { interval_ms: 1_000, start_ms: 60_000, ..check }));
    let container = ContainerOf { image, entrypoint: None, argv: vec!["-v".to_owned()], gpus: 2, health };
    assert_eq!(docker, DraftProgram::Container(container));
    let archive = batch("[batch.docker]\narchive = \"i.tar\"\nentrypoint = [\"sh\"]");
    let path = |p: &str| DraftContent::Path(p.to_owned());
    assert_eq!(archive.content(), Some(&path("i.tar")));
    let python =
        batch("[batch.python]\ncall = \"tasks.a:run\"\nparams = { n = 3, list = [1.5, \"x\"], deep = { on = true } }");
    let params = Params::Json(r#"{"deep":{"on":true},"list":[1.5,"x"],"n":3}"#.to_owned());
    assert_eq!(python, DraftProgram::Python(PythonCall { call: "tasks.a:run".to_owned(), params }));
    let bytes = batch("[batch.python]\ncall = \"a:b\"\nparams_cbor = \"oWFuAQ==\"");
    let params = Params::Cbor(vec![0xa1, 0x61, b'n', 1]);
    assert_eq!(bytes, DraftProgram::Python(PythonCall { call: "a:b".to_owned(), params }));
    let wasm = batch("[batch.wasm]\nmodule = \"m.wasm\"\nfuel = 5_000_000_000\ndeterministic = true");
    let (argv, fuel) = (Vec::new(), Some(5_000_000_000));
    assert_eq!(wasm, DraftProgram::Wasm(WasmOf { module: path("m.wasm"), argv, fuel, deterministic: true }));

    let round = "type = \"map_reduce\"\n[map_reduce]\ninputs = [\"d\"]\nmap = { wasm = { module = \"m.wasm\" } }\nreduce = \"cat\"";
    let mut round = draft(round);
    round.anchor_paths("/home/me");
    let DraftWork::MapReduce(round) = round.work else { panic!("a round") };
    assert_eq!(round.map.content(), Some(&path("/home/me/m.wasm")));
}

#[test]
fn mistakes_in_programs_of_other_runners_are_named() {
    for (text, path, mend) in [
        ("command = \"a\"\n[batch.wasm]\nmodule = \"m\"", "batch.command", "exactly one"),
        ("[batch.wasm]\nmodule = \"m\"\n[batch.python]\ncall = \"a:b\"", "batch.wasm", "exactly one"),
        ("[batch.docker]\nimage = \"busybox\"", "batch.docker", "64 digits"),
        ("[batch.docker]\nargs = []", "batch.docker", "image"),
        ("[batch.docker]\narchive = \"a\"\ngpu = 1", "batch.docker.gpu", "gpus"),
        ("[batch.docker]\narchive = \"a\"\nhealth.retries = 2", "batch.docker.health.command", "program"),
        ("[batch.docker]\narchive = \"a\"\nhealth = { command = [] }", "batch.docker", "program"),
        (
            "[batch.docker]\narchive = \"a\"\nhealth = { command = [\"a\"], interval = \"1ms\" }",
            "batch.docker",
            "100ms",
        ),
        ("[batch.docker]\narchive = \"a\"\nhealth = { command = [\"a\"], timeout = \"25h\" }", "batch.docker", "24h"),
        (
            "[batch.docker]\narchive = \"a\"\nhealth = { command = [\"a\"], retries = 0 }",
            "batch.docker.health.retries",
            "1000",
        ),
        ("[batch.python]\ncall = \"run\"", "batch.python", "MODULE:FUNCTION"),
        ("[batch.python]\ncall = \"a:b\"\nparams_cbor = \"?\"", "batch.python.params_cbor", "base64"),
        ("[batch.python]\ncall = \"a:b\"\nparams_cbor = \"gA==\"", "batch.python.params_cbor", "map"),
        ("[batch.python]\ncall = \"a:b\"\nparams_cbor = \"oA==\"\nparams = {}", "batch.python.params_cbor", "one of"),
        ("[batch.python]\ncall = \"a:b\"\nparams = [1]", "batch.python.params", "keys"),
        ("[batch.python]\ncall = \"a:b\"\nparams = { x = nan }", "batch.python.params.x", "text"),
        ("[batch.python]\ncall = \"a:b\"\nparams = { x = 1979-05-27 }", "batch.python.params.x", "quotes"),
        ("[batch.wasm]\nmodule = \"m\"\nfuel = 0", "batch.wasm.fuel", "from 1"),
        ("[batch.wasm]\nfuel = 1", "batch.wasm.module", ".wasm"),
    ] {
        let found = problems(&format!("type = \"batch\"\n[batch]\n{text}"));
        let hit = found.iter().any(|p| p.path == path && p.mend.contains(mend));
        assert!(hit, "{text}: {found:?}");
    }
}

#[test]
fn remote_inputs_and_their_mistakes() {
    let hash = format!("sha256:{}", "0a".repeat(32));
    let id = "0123456789".repeat(4);
    let batch =
        |input: &str| format!("type = \"batch\"\n[batch]\ncommand = \"a\"\ninputs = [{{ {input}, to = \"x\" }}]");
    let source = |input: &str| draft(&batch(input)).files()[0].source.clone();
    let http = HttpFile { url: "https://a/b".to_owned(), hash: hash.parse().expect("hash"), size_max: 1 << 30 };
    assert_eq!(source(&format!("url = \"https://a/b\", hash = \"{hash}\"")), DraftSource::Http(http));
    let git = GitTree {
        url: "http://a/b".to_owned(),
        revision: id.clone(),
        subdir: Some("d".to_owned()),
        token: None,
        size_max: 9,
    };
    let text = format!("git = \"http://a/b\", revision = \"{id}\", subdir = \"d\", size_max = 9");
    assert_eq!(source(&text), DraftSource::Git(git));
    for (input, path, word) in [
        ("url = \"https://a/b\"".to_owned(), "hash", "sha256"),
        ("url = \"https://a/b\", hash = \"x\"".to_owned(), "hash", "sha256"),
        (format!("url = \"ftp://a/x\", hash = \"{hash}\""), "", "https://"),
        (format!("url = \"https://me:pw@a/b\", hash = \"{hash}\""), "", "every node"),
        ("git = \"https://a/b\", revision = \"main\"".to_owned(), "", "branch"),
        ("git = \"https://a/b\"".to_owned(), "revision", "commit"),
        ("path = \"a\", revision = \"main\"".to_owned(), "revision", "leave it out"),
        ("path = \"a\", url = \"https://a/b\"".to_owned(), "", "exactly one"),
    ] {
        let path = if path.is_empty() { "batch.inputs[0]".to_owned() } else { format!("batch.inputs[0].{path}") };
        let found = problems(&batch(&input));
        assert!(found.iter().any(|p| p.path == path && p.mend.contains(word)), "{input}: {found:?}");
    }
    let gather = draft("type = \"batch\"\n[batch]\ncommand = \"a\"\ngather = [\"sh\", \"g.sh\"]");
    let DraftWork::Batch(batch) = gather.work else { panic!("a batch") };
    assert_eq!(batch.gather, Some(vec!["sh".to_owned(), "g.sh".to_owned()]));
    let empty = problems("type = \"batch\"\n[batch]\ncommand = \"a\"\ngather = []");
    assert_eq!(empty[0].path, "batch.gather");
}

#[test]
fn errors_are_json_for_machines() {
    let error = parse(b"type = \"batch\"\ncopies = 9\n[batch]\ncommand = \"a\"", None).expect_err("copies");
    let expected = json!({ "kind": "invalid", "problems": [{
        "path": "copies", "found": "9", "problem": "out of range", "mend": "write a whole number from 1 to 2",
    }]});
    assert_eq!(serde_json::to_value(&error).expect("json"), expected);
    let syntax = serde_json::to_value(parse(b"{", Some(Format::Json)).expect_err("syntax")).expect("json");
    assert_eq!((&syntax["kind"], &syntax["errors"][0]["line"]), (&json!("syntax"), &json!(1)));
}

/// Every fenced block of the page is a valid manifest of the language it names, and every key is on the page.
#[test]
fn the_documented_examples_are_valid_and_every_key_is_documented() {
    let mut kinds = Vec::new();
    for block in PAGE.split("\n```").skip(1).step_by(2) {
        let (language, text) = block.split_once('\n').expect("a block has lines");
        let format = match Format::of_path(std::path::Path::new(&format!("x.{language}"))) {
            Some(format) => format,
            None if language == "text" => continue,
            None => panic!("block in an unknown language: {language}"),
        };
        let draft = parse(text.as_bytes(), Some(format)).unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert_eq!(parse(text.as_bytes(), None), Ok(draft.clone()), "by trying");
        kinds.push((format, matches!(draft.work, DraftWork::Batch(_)), draft));
    }
    assert!(kinds.iter().filter(|(_, batch, _)| *batch).count() >= 2);
    assert!(kinds.iter().filter(|(_, batch, _)| !*batch).count() >= 2);
    assert_eq!(kinds[0].2, kinds[1].2, "the page says that its YAML is its TOML");
    for (table, keys) in TABLES {
        for key in keys {
            // A program inside a round has the keys that one of a batch has.
            let table = if table == "program" { "batch" } else { table };
            let path = if matches!(table, "" | "[]") { (*key).to_owned() } else { format!("{table}.{key}") };
            assert!(PAGE.contains(&format!("\n| `{path}` | ")), "{path} is not in a table of the page");
        }
    }
}
