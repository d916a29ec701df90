//! Trees from git repositories, over git's own protocol for web servers.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fs, io::Write};

use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::remote::GitTree;
use sinew_node::exec::files::JobFiles;
use sinew_node::exec::outcome::Failure;
use sinew_node::exec::stop::{StopHandle, StopReason};
use sinew_node::gather::GitInput;
use sinew_node::secrets::SecretBytes;
use tempfile::TempDir;

use crate::server::{Asked, Server, reply};
use crate::{Answer, answer, gather};

/// How the directories begin in which trees are placed.
const SCRATCH: &str = "sinew-git-test-";
/// The secret of those trees that name one.
const TOKEN: &str = "ghp_tokentokentoken";

/// A repository with some history.
pub(crate) struct Repository {
    dir: TempDir,
}

impl Repository {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let this = Self { dir };
        this.git(&["init", "--quiet", "--initial-branch=main", "."]);
        this.git(&["config", "http.uploadpack", "true"]);
        this.git(&["config", "uploadpack.allowAnySHA1InWant", "true"]);
        this
    }

    fn work(&self) -> &Path {
        self.dir.path()
    }

    fn git(&self, args: &[&str]) -> String {
        let mut command = Command::new("git");
        command.current_dir(self.work()).args(args).env("GIT_CONFIG_NOSYSTEM", "1").env("HOME", self.work());
        for who in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{who}_NAME"), "t").env(format!("GIT_{who}_EMAIL"), "t@example.org");
        }
        let output = command.output().expect("git");
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    }

    pub(crate) fn write(&self, path: &str, text: &str, mode: u32) {
        let path = self.work().join(path);
        fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
        fs::write(&path, text).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
    }

    /// Commits everything; returns the commit's id.
    pub(crate) fn commit(&self) -> String {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--message=x"]);
        self.git(&["rev-parse", "HEAD"])
    }

    /// Serves it at `/r.git`.
    pub(crate) fn serve(&self) -> Server {
        let dir = self.work().join(".git");
        Server::start(answer(move |asked| backend(&dir, asked)))
    }
}

/// What `git http-backend` says.
fn backend(dir: &Path, asked: &Asked) -> Vec<u8> {
    let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
    let Some(path) = path.strip_prefix("/r.git") else { return reply("404 Not Found", "", b"") };
    let mut command = Command::new("git");
    command.arg("http-backend").env("GIT_PROJECT_ROOT", dir).env("GIT_HTTP_EXPORT_ALL", "1");
    command.env("PATH_INFO", path).env("QUERY_STRING", query).env("REQUEST_METHOD", &asked.method);
    command.env("CONTENT_TYPE", asked.header("content-type").unwrap_or_default());
    command.env("CONTENT_LENGTH", asked.body.len().to_string()).env("GIT_CONFIG_GLOBAL", "/dev/null");
    command.env("GIT_CONFIG_COUNT", "1").env("GIT_CONFIG_KEY_0", "safe.directory").env("GIT_CONFIG_VALUE_0", "*");
    command.env("GIT_PROTOCOL", asked.header("git-protocol").unwrap_or_default());
    command.env("HTTP_CONTENT_ENCODING", asked.header("content-encoding").unwrap_or_default());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("git");
    child.stdin.take().expect("stdin").write_all(&asked.body).expect("body");
    let output = child.wait_with_output().expect("git").stdout;
    let split = output.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8_lossy(&output[..split]).into_owned();
    let status = head.lines().find_map(|line| line.strip_prefix("Status: ")).unwrap_or("200 OK").to_owned();
    let headers: String = head.lines().filter(|line| !line.starts_with("Status")).map(|l| format!("{l}\r\n")).collect();
    reply(&status, &headers, &output[split + 4..])
}

fn tree(server: &Server, revision: &str, subdir: Option<&str>) -> GitTree {
    let (url, subdir) = (server.url("/r.git"), subdir.map(str::to_owned));
    GitTree { url, revision: revision.to_owned(), subdir, token: None, size_max: 1 << 20 }
}

struct Placed {
    dir: TempDir,
}

impl Placed {
    fn root(&self) -> PathBuf {
        self.dir.path().join("input")
    }

    /// Every file below: path, content, whether it may be executed.
    fn all(&self) -> Vec<(String, String, bool)> {
        let files = walkdir::WalkDir::new(self.root()).sort_by_file_name().into_iter().map(|e| e.expect("entry"));
        files
            .filter(|entry| entry.file_type().is_file())
            .map(|entry| {
                let path = entry.path().strip_prefix(self.root()).expect("below").display().to_string();
                let mode = entry.metadata().expect("meta").permissions().mode();
                (path, fs::read_to_string(entry.path()).expect("text"), mode & 0o111 != 0)
            })
            .collect()
    }
}

fn fetch_until(tree: &GitTree, rules: &[&str], stop: &StopHandle) -> Result<Placed, Failure> {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let placed = Placed { dir: tempfile::Builder::new().prefix(SCRATCH).tempdir().expect("dir") };
    let mut placing = JobFiles::place_in(&placed.root())?;
    let scratch = placed.dir.path().join("content");
    let token = tree.token.as_ref().map(|_| SecretBytes::new(format!("{TOKEN}\n").into_bytes()));
    let input = GitInput { tree, token: token.as_ref(), to: "src" };
    let done = gather(rules, None).git(runtime.handle(), input, &scratch, &mut placing, stop);
    assert_eq!(fs::read_dir(&scratch).map_or(0, Iterator::count), 0, "nothing is left lying about");
    done.map(|()| placed)
}

fn fetch(tree: &GitTree) -> Result<Placed, Failure> {
    fetch_until(tree, &["127.0.0.1"], &StopHandle::new().expect("stop"))
}

fn fails(tree: &GitTree) -> (ErrorCode, bool, String) {
    let failure = fetch(tree).map(|_| ()).expect_err("not to be had");
    (failure.code, !failure.retryable, failure.message)
}

#[test]
fn the_files_of_a_commit_are_placed() {
    let repository = Repository::new();
    repository.write("a.txt", "old\n", 0o644);
    let old = repository.commit();
    repository.write("a.txt", "new\n", 0o644);
    repository.write("tools/run.sh", "#!/bin/sh\n", 0o755);
    repository.write("tools/deep/é x.txt", "deep\n", 0o600);
    let new = repository.commit();
    let server = repository.serve();
    let file = |path: &str, text: &str, executable| (format!("src/{path}"), text.to_owned(), executable);
    let all = fetch(&tree(&server, &new, None)).expect("tree").all();
    let wanted = [
        file("a.txt", "new\n", false),
        file("tools/deep/é x.txt", "deep\n", false),
        file("tools/run.sh", "#!/bin/sh\n", true),
    ];
    assert_eq!(all, wanted);
    // An earlier commit, and a part of one.
    assert_eq!(fetch(&tree(&server, &old, None)).expect("tree").all(), [file("a.txt", "old\n", false)]);
    let part = fetch(&tree(&server, &new, Some("tools/deep"))).expect("tree").all();
    assert_eq!(part, [file("é x.txt", "deep\n", false)]);
}

#[test]
fn what_is_not_there_or_too_large_fails_for_good() {
    let repository = Repository::new();
    repository.write("a.txt", &"x".repeat(4_000), 0o644);
    let id = repository.commit();
    let server = repository.serve();
    let missing = tree(&server, &"12".repeat(20), None);
    let nowhere = GitTree { url: server.url("/other.git"), ..tree(&server, &id, None) };
    let no_dir = tree(&server, &id, Some("none"));
    let small = GitTree { size_max: 3_999, ..tree(&server, &id, None) };
    for (tree, word) in
        [(missing, "not our ref"), (nowhere, "not found"), (no_dir, "no files in `none`"), (small, "size_max")]
    {
        let (code, for_good, message) = fails(&tree);
        assert_eq!((code, for_good), (ErrorCode::Fetch, true), "{message}");
        assert!(message.contains(word), "{message}");
    }
}

#[test]
fn links_are_refused_by_name() {
    let repository = Repository::new();
    repository.write("a.txt", "a\n", 0o644);
    std::os::unix::fs::symlink("/etc/passwd", repository.work().join("secrets")).expect("link");
    let id = repository.commit();
    let (code, for_good, message) = fails(&tree(&repository.serve(), &id, None));
    assert_eq!((code, for_good), (ErrorCode::Invalid, true));
    assert!(message.contains("secrets") && message.contains("symbolic link"), "{message}");
}

/// Neither hosts that are not allowed, nor redirects to others.
#[test]
fn only_allowed_hosts_are_asked() {
    let repository = Repository::new();
    repository.write("a.txt", "a\n", 0o644);
    let id = repository.commit();
    let server = repository.serve();
    let stop = StopHandle::new().expect("stop");
    let denied = fetch_until(&tree(&server, &id, None), &["*"], &stop).map(|_| ()).expect_err("denied");
    assert_eq!((denied.code, server.asked()), (ErrorCode::Deny, 0));
    let to = server.url("/r.git");
    let away: Answer = answer(move |asked| {
        let rest = asked.path.strip_prefix("/r.git").unwrap_or_default();
        reply("302 Found", &format!("Location: {to}{rest}\r\n"), b"")
    });
    let (code, _, message) = fails(&tree(&Server::start(away), &id, None));
    assert_eq!((code, server.asked()), (ErrorCode::Fetch, 0), "{message}");
}

/// Arguments of every process of this machine, and files below the temporary directory, that hold `what`.
fn shown(what: &str) -> Vec<PathBuf> {
    let holds = |path: &PathBuf| {
        let bytes = fs::read(path).unwrap_or_default();
        bytes.windows(what.len()).any(|w| w == what.as_bytes())
    };
    let processes = fs::read_dir("/proc").expect("proc").flatten().map(|entry| entry.path().join("cmdline"));
    let placed = fs::read_dir(std::env::temp_dir()).expect("the directory for temporary files").flatten();
    let placed = placed.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(SCRATCH.as_bytes()));
    let files = placed.flat_map(|entry| walkdir::WalkDir::new(entry.path()).into_iter().flatten());
    let files = files.filter(|entry| entry.file_type().is_file()).map(walkdir::DirEntry::into_path);
    processes.chain(files).filter(holds).collect()
}

#[test]
fn a_token_reaches_its_server_and_nobody_else() {
    let repository = Repository::new();
    repository.write("a.txt", "a\n", 0o644);
    let id = repository.commit();
    let dir = repository.work().join(".git");
    let basic = data_encoding::BASE64.encode(format!("x-access-token:{TOKEN}").as_bytes());
    let wanted = format!("Basic {basic}");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (sightings, looked_for) = (Arc::clone(&seen), basic.clone());
    let server = Server::start(answer(move |asked| {
        // While git runs.
        sightings.lock().expect("lock").extend(shown(TOKEN).into_iter().chain(shown(&looked_for)));
        if asked.header("authorization") == Some(&wanted) {
            return backend(&dir, asked);
        }
        reply("401 Unauthorized", "WWW-Authenticate: Basic realm=\"r\"\r\n", b"")
    }));
    let with = |token: Option<&str>| GitTree { token: token.map(str::to_owned), ..tree(&server, &id, None) };
    let (code, for_good, message) = fails(&with(None));
    assert_eq!((code, for_good), (ErrorCode::Fetch, true), "{message}");
    let placed = fetch(&with(Some("deploy"))).expect("with the token");
    assert_eq!(placed.all(), [("src/a.txt".to_owned(), "a\n".to_owned(), false)]);
    assert!(server.asked() >= 3, "it was asked");
    assert_eq!(*seen.lock().expect("lock"), Vec::<PathBuf>::new(), "in no argument and no file");
    // Elsewhere it is not sent, whatever the server says.
    let heard = Arc::new(Mutex::new(0));
    let count = Arc::clone(&heard);
    let thief = Server::start(answer(move |asked| {
        *count.lock().expect("lock") += usize::from(asked.header("authorization").is_some());
        reply("404 Not Found", "", b"")
    }));
    let to = thief.url("/r.git/info/refs?service=git-upload-pack");
    let away = Server::start(answer(move |_| reply("302 Found", &format!("Location: {to}\r\n"), b"")));
    fails(&GitTree { token: Some("deploy".to_owned()), ..tree(&away, &id, None) });
    assert_eq!((*heard.lock().expect("lock"), away.asked() > 0), (0, true));
}

#[test]
fn a_fetch_that_hangs_is_stopped() {
    let (held, hold) = std::sync::mpsc::channel::<()>();
    let hold = Mutex::new(hold);
    let (reached, was_reached) = std::sync::mpsc::channel();
    let server = Server::start(answer(move |_| {
        let _ = reached.send(());
        let _ = hold.lock().expect("lock").recv_timeout(Duration::from_secs(60));
        Vec::new()
    }));
    let stop = StopHandle::new().expect("stop");
    let stopper = stop.clone();
    let thread = std::thread::spawn(move || {
        was_reached.recv().expect("git asks");
        stopper.stop(StopReason::Cancelled);
    });
    let failure = fetch_until(&tree(&server, &"12".repeat(20), None), &["127.0.0.1"], &stop).map(|_| ());
    assert_eq!(failure.expect_err("stopped").code, ErrorCode::Cancelled);
    thread.join().expect("thread");
    drop(held);
}
