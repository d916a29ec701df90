//! Attempts to get out: other directories, the job's files, sockets, the daemon's variables and descriptors.

use sinew_node::exec::volumes::Mounted;

use crate::modules::{READ, WRITE, module, show_variables};
use crate::wasm::Modules;

/// A module that prints the error number of each attempt.
fn attempts(texts: &[(&str, &str)], attempts: &[&str]) -> Vec<u8> {
    let body: String = attempts.iter().map(|attempt| format!("(call $number {attempt})\n")).collect();
    module(texts, &body)
}

/// Error numbers as they were printed.
fn numbers(text: &str) -> Vec<u32> {
    text.lines().map(|line| line.parse().expect("a number")).collect()
}

const NOT_PERMITTED: u32 = 63;

#[test]
fn no_path_leads_out_of_the_directories() {
    let mut rig = Modules::new();
    let secret = rig.bench.dir.path().join("secret");
    std::fs::write(&secret, "the secret").expect("write");
    rig.bench.place(&[("in.txt", b"in")]);
    // From `work` and `output`, and from the job's files.
    let (up, up_input) = ("../../../../../secret", "../../../secret");
    assert_eq!(std::fs::read_to_string(rig.bench.slot().work().join(up)).expect("it is there"), "the secret");
    let input = rig.bench.files.dir().expect("files").to_owned();
    assert_eq!(std::fs::read_to_string(input.join(up_input)).expect("it is there"), "the secret");
    let through = format!("sub/../{up}");
    let texts = [
        ("up", up),
        ("up_input", up_input),
        ("through", &through),
        ("absolute", secret.to_str().expect("utf-8")),
        ("passwd", "/etc/passwd"),
        ("proc", "/proc/self/environ"),
        ("sub", "sub"),
        ("link", "link"),
        ("to", "../../../../.."),
        ("by_link", "link/secret"),
        ("placed", "in.txt"),
        ("dot", ".."),
    ];
    let open = |dir: u32, path: &str| format!("(call $open (i32.const {dir}) {{{path}}} (i32.const 0) {READ})");
    let mut tries = Vec::new();
    for dir in [3, 4, 5] {
        tries.extend(["up", "absolute", "passwd", "proc", "dot"].map(|path| open(dir, path)));
    }
    tries.push(open(3, "through"));
    tries.extend(["up_input", "passwd", "dot"].map(|path| open(6, path)));
    // The host's own link in the working directory leads out of it, too: the files are found in `/input`.
    tries.push(open(3, "placed"));
    tries.push(open(5, "by_link"));
    tries.push("(call $path_symlink {absolute} (i32.const 5) {link})".to_owned());
    let make = "(call $path_create_directory (i32.const 3) {sub})";
    let make_link = "(call $path_symlink {to} (i32.const 5) {link})";
    let mut all = vec![make, make_link];
    all.extend(tries.iter().map(String::as_str));
    let ran = rig.run_new(&attempts(&texts, &all));
    let codes = numbers(&ran.text());
    // It may make the directory and the link, which lead nowhere.
    assert_eq!((codes.len(), &codes[..2]), (all.len(), &[0, 0][..]));
    for (attempt, code) in all.iter().zip(&codes).skip(2).take(tries.len() - 1) {
        assert_eq!(*code, NOT_PERMITTED, "{attempt}");
    }
    assert_ne!(codes.last(), Some(&0), "an absolute link");
    assert!(!ran.text().contains("secret"));
    // The link is no output.
    assert!(ran.outputs.is_empty(), "{ran:?}");
}

#[test]
fn the_jobs_files_cannot_be_changed() {
    let mut rig = Modules::new();
    rig.bench.place(&[("in.txt", b"as it was"), ("dir/deep.txt", b"as it was")]);
    let input = rig.bench.files.dir().expect("files").to_owned();
    let texts = [("in", "in.txt"), ("new", "new"), ("deep", "dir/deep.txt")];
    let open = |flags: u32, path: &str, rights: &str| {
        format!("(call $open (i32.const 6) {{{path}}} (i32.const {flags}) {rights})")
    };
    let tries = [
        open(0, "in", WRITE),
        open(8, "in", WRITE),
        open(8, "in", READ),
        open(1, "new", WRITE),
        "(call $path_unlink_file (i32.const 6) {in})".to_owned(),
        "(call $path_create_directory (i32.const 6) {new})".to_owned(),
        "(call $path_symlink {in} (i32.const 6) {new})".to_owned(),
        "(call $path_rename (i32.const 6) {in} (i32.const 5) {new})".to_owned(),
        "(call $path_rename (i32.const 6) {in} (i32.const 6) {new})".to_owned(),
        // A second name where it may write.
        "(call $path_link (i32.const 6) (i32.const 0) {in} (i32.const 5) {new})".to_owned(),
        "(call $path_link (i32.const 6) (i32.const 0) {deep} (i32.const 3) {new})".to_owned(),
    ];
    let tries: Vec<&str> = tries.iter().map(String::as_str).collect();
    let ran = rig.run_new(&attempts(&texts, &tries));
    for (attempt, code) in tries.iter().zip(numbers(&ran.text())) {
        assert_ne!(code, 0, "{attempt} worked");
    }
    for name in ["in.txt", "dir/deep.txt"] {
        assert_eq!(std::fs::read(input.join(name)).expect("still there"), b"as it was");
    }
    assert_eq!(std::fs::read_dir(&input).expect("dir").count(), 2);
    // Opened for reading, it is not written to.
    let write = format!(
        "(call $number {}) (call $number (call $write (i32.load (i32.const 16)) {{in}}))
        (call $number (call $fd_filestat_set_size (i32.load (i32.const 16)) (i64.const 0)))",
        open(0, "in", READ)
    );
    let codes = numbers(&rig.run_new(&module(&texts, &write)).text());
    assert!(codes[0] == 0 && codes[1] != 0 && codes[2] != 0, "{codes:?}");
    assert_eq!(std::fs::read(input.join("in.txt")).expect("still there"), b"as it was");
}

/// Volumes are the descriptors after its own: one to read, one to write to, and no way out of either.
#[test]
fn volumes_are_read_or_written_to_as_they_were_given() {
    let mut rig = Modules::new();
    let base = rig.bench.dir.path().to_owned();
    std::fs::write(base.join("secret"), "the secret").expect("write");
    for (name, path, read_only) in [("sets", "/data/sets", true), ("out", "/data/out", false)] {
        let host = base.join(name);
        std::fs::create_dir(&host).expect("dir");
        std::fs::write(host.join("in"), "as it was").expect("file");
        std::os::unix::fs::symlink("../secret", host.join("up")).expect("link");
        rig.bench.volumes.push(Mounted { name: name.to_owned(), host, path: path.into(), read_only });
    }
    let texts = [("in", "in"), ("new", "new"), ("up", "up"), ("dots", "../secret"), ("other", "../out/in")];
    let open = |dir: u32, path: &str, flags: u32, rights: &str| {
        format!("(call $open (i32.const {dir}) {{{path}}} (i32.const {flags}) {rights})")
    };
    let works = [open(6, "in", 0, READ), open(7, "in", 0, READ), open(7, "new", 1, WRITE)];
    let refused = [
        open(6, "in", 0, WRITE),
        open(6, "new", 1, WRITE),
        "(call $path_unlink_file (i32.const 6) {in})".to_owned(),
        "(call $path_rename (i32.const 6) {in} (i32.const 7) {new})".to_owned(),
        "(call $path_link (i32.const 6) (i32.const 0) {in} (i32.const 7) {other})".to_owned(),
        open(6, "up", 0, READ),
        open(7, "up", 0, READ),
        open(6, "dots", 0, READ),
        open(7, "dots", 0, READ),
        open(6, "other", 0, READ),
    ];
    let all: Vec<&str> = works.iter().chain(&refused).map(String::as_str).collect();
    let codes = numbers(&rig.run_new(&attempts(&texts, &all)).text());
    assert_eq!(codes.len(), all.len());
    for (i, (attempt, code)) in all.iter().zip(codes).enumerate() {
        assert_eq!(code == 0, i < works.len(), "{attempt}: {code}");
    }
    assert_eq!(std::fs::read(base.join("sets/in")).expect("still there"), b"as it was");
    assert!(base.join("out/new").exists() && !base.join("sets/new").exists());
}

#[test]
fn there_are_no_sockets_and_no_descriptors_but_its_own() {
    let mut rig = Modules::new();
    // What this test has open is not what the module has open.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listener");
    let mut body = String::new();
    for fd in 6..64 {
        body += &format!("(call $number (call $write (i32.const {fd}) {{text}}))");
        body += &format!("(call $number (call $fd_filestat_get (i32.const {fd}) (i32.const 256)))");
    }
    for fd in 0..64 {
        body += &format!("(call $number (call $sock_accept (i32.const {fd}) (i32.const 0) (i32.const 16)))");
    }
    let ran = rig.run_new(&module(&[("text", "text")], &body));
    let codes = numbers(&ran.text());
    assert_eq!(codes.len(), 2 * 58 + 64);
    assert!(codes.iter().all(|code| *code != 0), "{codes:?}");
    // To send and receive is a trap at the latest.
    let send =
        "(call $number (call $sock_send (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 16)))";
    let sent = rig.run_new(&module(&[], send));
    assert!(sent.result.is_err() || numbers(&sent.text())[0] != 0, "{sent:?}");
    drop(listener);
}

#[test]
fn of_the_daemon_it_sees_neither_variables_nor_arguments() {
    let mut rig = Modules::new();
    let text = rig.run_new(&show_variables()).text();
    let mut names: Vec<&str> = text.split_terminator('\0').map(|v| v.split_once('=').expect("a variable").0).collect();
    names.sort_unstable();
    let own = ["SINEW_ATTEMPT", "SINEW_FENCE", "SINEW_INPUT", "SINEW_JOB", "SINEW_OUTPUT", "SINEW_PHASE", "SINEW_TASK"];
    assert_eq!(names, own);
    let values = ["SINEW_INPUT=/job/work", "SINEW_OUTPUT=/job/output"];
    assert!(values.iter().all(|value| text.split('\0').any(|v| v == *value)), "{text}");
    let arguments = "
        (drop (call $args_sizes_get (i32.const 16) (i32.const 20)))
        (drop (call $args_get (i32.const 32768) (i32.const 65536)))
        (drop (call $write (i32.const 1) (i32.const 65536) (i32.load (i32.const 20))))";
    let mut program = rig.add(&module(&[], arguments));
    program.argv = vec!["one".to_owned(), "two words".to_owned()];
    assert_eq!(rig.run(&program).text(), "program\0one\0two words\0");
}

#[test]
fn a_module_cannot_hold_the_daemon_in_a_host_function() {
    let mut rig = Modules::new();
    rig.bench.limits.timeout_ms = Some(60_000);
    // Buffers that reach over the end of memory, huge random numbers, waits with nonsense in them: each ends, one way or
    // another, before its task does.
    let body = "
        (call $number (call $random_get (i32.const 65536) (i32.const -65536)))
        (call $number (call $poll_oneoff (i32.const -16) (i32.const 0) (i32.const 1) (i32.const 16)))
        (call $number (call $poll_oneoff (i32.const 0) (i32.const 0) (i32.const -1) (i32.const 16)))
        (call $number (call $poll_oneoff (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 16)))
        (call $number (call $poll_oneoff (i32.const 4096) (i32.const 8192) (i32.const 8) (i32.const -2)))
        (call $number (call $fd_readdir (i32.const 5) (i32.const -8) (i32.const 64) (i64.const -1) (i32.const 16)))";
    for deterministic in [false, true] {
        for line in body.trim().lines() {
            let mut program = rig.add(&module(&[], line));
            program.deterministic = deterministic;
            let ran = rig.run(&program);
            match &ran.result {
                Ok(()) => assert!(numbers(&ran.text())[0] != 0 || line.contains("readdir"), "{line}: {ran:?}"),
                Err(why) => assert!(why.message.contains("trapped"), "{line}: {why:?}"),
            }
        }
    }
}
