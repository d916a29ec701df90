//! Trees from git repositories, through the `git` program of this machine: one commit, without its history.
//!
//! It runs without anybody's configuration, speaks http and https only, to addresses that were checked before, follows no
//! redirects and runs no hooks. Nothing is checked out: files are read from its object store and placed like any other input.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::remote::GitTree;
use sinew_crdt_state::spec::is_safe_relative;
use url::{Host, Url};
use zeroize::Zeroizing;

use super::{Gather, scratch, wrong};
use crate::exec::files::Placing;
use crate::exec::guardian::{RUN_VAR, TAG_VAR};
use crate::exec::open_files;
use crate::exec::outcome::Failure;
use crate::exec::stop::StopHandle;
use crate::exec::sweep::{self, next_run};
use crate::secrets::SecretBytes;

/// A fetch that brings nothing new for so long is given up.
const STALL_MAX: Duration = Duration::from_secs(60);
/// How often a fetch is looked at.
const LOOK_EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
/// Most files of a tree: each becomes a file on every node.
const FILES_MAX: usize = 100_000;
/// Longest list of files: names of a page each.
const LIST_LEN_MAX: u64 = 64 << 20;
/// Bytes of git's complaints that are passed on.
const COMPLAINT_MAX: usize = 2_048;

/// An entry of a tree.
struct Entry {
    id: String,
    executable: bool,
    /// Below the directory asked for.
    path: String,
}

/// A tree that a job wants.
#[derive(Debug, Clone, Copy)]
pub struct GitInput<'a> {
    /// Which.
    pub tree: &'a GitTree,
    /// The secret that it names.
    pub token: Option<&'a SecretBytes>,
    /// The relative path under which tasks find it.
    pub to: &'a str,
}

impl Gather {
    /// Fetches a tree and places its files. Blocks; runs in `runtime` what must. The server gets the token as a password,
    /// and nobody else does.
    ///
    /// # Errors
    /// `E_DENY` for a host that is not allowed here, `E_FETCH` when the commit cannot be had (for good where nobody else would fare
    /// better), `E_INVALID` for a tree that cannot be placed, `E_STORAGE` when the disk refuses.
    pub fn git(
        &self,
        runtime: &tokio::runtime::Handle,
        input: GitInput<'_>,
        dir: &Path,
        placing: &mut Placing,
        stop: &StopHandle,
    ) -> Result<(), Failure> {
        let GitInput { tree, token, to } = input;
        let url: Url = tree.url.parse().map_err(|e| wrong(format!("`{}` is no address: {e}", tree.url)))?;
        self.hosts.check(&url)?;
        let pinned = runtime.block_on(self.pin(&url))?;
        let scratch = scratch(dir)?;
        let repository = Repository { gather: self, dir: scratch.path().join("repository"), home: scratch.path() };
        let token = match (&tree.token, token) {
            (Some(name), None) => return Err(wrong(format!("`{}`: the secret `{name}` is not here", tree.url))),
            (_, token) => token.map(|token| Authorization::new(&url, token)),
        };
        repository.fetch(tree, pinned.as_ref(), token.as_ref(), stop)?;
        let entries = repository.list(tree)?;
        repository.place(tree, &entries, to, placing)
    }

    /// The address of the host that was checked, so that a second look-up cannot give another.
    async fn pin(&self, url: &Url) -> Result<Option<String>, Failure> {
        let (Some(Host::Domain(host)), Some(port)) = (url.host(), url.port_or_known_default()) else { return Ok(None) };
        let found = self.hosts.resolve(host, port).await?;
        let addresses: Vec<String> = found.iter().map(|address| address.ip().to_string()).collect();
        Ok(Some(format!("{host}:{port}:{}", addresses.join(","))))
    }
}

/// What the server wants to see of a token. git gets it in its environment: arguments can be read by every user of the machine,
/// and a configuration would be on the disk.
struct Authorization {
    /// The setting, for this server alone.
    key: String,
    header: Zeroizing<String>,
}

/// The user's name where a secret is a bare token: the servers at hand take any.
const TOKEN_USER: &str = "x-access-token";

impl Authorization {
    /// The secret is `USER:PASSWORD`, or a token.
    fn new(url: &Url, secret: &SecretBytes) -> Self {
        let line = secret.line();
        let user = if line.contains(&b':') { String::new() } else { format!("{TOKEN_USER}:") };
        let pair = Zeroizing::new([user.as_bytes(), line].concat());
        let encoded = Zeroizing::new(data_encoding::BASE64.encode(&pair));
        let header = Zeroizing::new(format!("Authorization: Basic {}", *encoded));
        Self { key: format!("http.{}/.extraHeader", url.origin().ascii_serialization()), header }
    }

    fn give_to(&self, command: &mut Command) {
        command
            .env("GIT_CONFIG_COUNT", "1")
            .env("GIT_CONFIG_KEY_0", &self.key)
            .env("GIT_CONFIG_VALUE_0", &*self.header);
    }
}

struct Repository<'a> {
    gather: &'a Gather,
    dir: PathBuf,
    home: &'a Path,
}

impl Repository<'_> {
    fn command(&self, run: u64) -> Command {
        let mut command = Command::new("git");
        command.env_clear().process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        for name in ["PATH", "LANG"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
            .env("HOME", self.home)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_DIR", &self.dir)
            .env("GIT_OPTIONAL_LOCKS", "0")
            .env(TAG_VAR, self.gather.tag.value())
            .env(RUN_VAR, run.to_string())
            .args(["-c", "core.hooksPath=/dev/null", "-c", "protocol.allow=never", "-c", "protocol.http.allow=always"])
            .args(["-c", "protocol.https.allow=always", "-c", "http.followRedirects=false", "-c", "http.proxy="])
            .args(["-c", "transfer.fsckObjects=true", "-c", "gc.auto=0", "-c", "maintenance.auto=false"])
            .args(["-c", "credential.helper=", "-c", "submodule.recurse=false"]);
        command
    }

    fn fetch(
        &self,
        tree: &GitTree,
        pinned: Option<&String>,
        token: Option<&Authorization>,
        stop: &StopHandle,
    ) -> Result<(), Failure> {
        let run = next_run();
        let mut init = self.command(run);
        // A repository of 40-digit ids cannot hold one of 64.
        let format = if tree.revision.len() == 64 { "--object-format=sha256" } else { "--object-format=sha1" };
        init.args(["init", "--quiet", "--bare", format]);
        Running::start(init, run)?.finish(None, stop, "git init")?;
        let run = next_run();
        let mut fetch = self.command(run);
        if let Some(pinned) = pinned {
            fetch.arg("-c").arg(format!("http.curloptResolve={pinned}"));
        }
        if let Some(ca) = &self.gather.ca {
            fetch.arg("-c").arg(format!("http.sslCAInfo={}", ca.display()));
        }
        if let Some(token) = token {
            token.give_to(&mut fetch);
        }
        fetch.args(["fetch", "--quiet", "--depth=1", "--no-tags", "--no-recurse-submodules", "--no-write-fetch-head"]);
        fetch.args(["--", &tree.url, &tree.revision]);
        Running::start(fetch, run)?.finish(Some((&self.dir, tree.size_max)), stop, &tree.url)
    }

    /// The files of the tree; submodules are left out, and links are refused.
    fn list(&self, tree: &GitTree) -> Result<Vec<Entry>, Failure> {
        let run = next_run();
        let mut list = self.command(run);
        list.args(["ls-tree", "-r", "-z", "--full-tree", &tree.revision, "--"]);
        let prefix = tree.subdir.as_ref().map(|dir| format!("{dir}/"));
        list.args(&prefix).stdout(Stdio::piped());
        let mut running = Running::start(list, run)?;
        let mut listed = Vec::new();
        if let Some(stdout) = running.child.stdout.take() {
            let read = stdout.take(LIST_LEN_MAX + 1).read_to_end(&mut listed);
            read.map_err(|e| Failure::storage("read a tree", &e))?;
        }
        if listed.len() as u64 > LIST_LEN_MAX {
            return Err(wrong(format!("`{}` has more files than a job may be given", tree.url)));
        }
        running.finish(None, &StopHandle::new().map_err(|e| Failure::storage("open a descriptor", &e))?, &tree.url)?;
        let mut entries = Vec::new();
        for line in listed.split(|byte| *byte == 0).filter(|line| !line.is_empty()) {
            entries.extend(self.entry(tree, line, prefix.as_deref())?);
            if entries.len() > FILES_MAX {
                return Err(wrong(format!("`{}` has more than {FILES_MAX} files", tree.url)));
            }
        }
        if entries.is_empty() {
            let place = tree.subdir.as_deref().map_or_else(String::new, |dir| format!(" in `{dir}`"));
            return Err(wrong(format!("`{}` has no files{place} at {}", tree.url, tree.revision)));
        }
        Ok(entries)
    }

    /// Reads `MODE TYPE ID<TAB>PATH`; `None` for a submodule.
    fn entry(&self, tree: &GitTree, line: &[u8], prefix: Option<&str>) -> Result<Option<Entry>, Failure> {
        let odd = |what: &str| {
            let shown = String::from_utf8_lossy(line);
            let shown: String = shown.split('\t').next_back().unwrap_or_default().chars().take(200).collect();
            Failure::new(ErrorCode::Invalid, format!("`{}`: `{shown}` {what}", tree.url)).for_good()
        };
        let text = std::str::from_utf8(line).map_err(|_| odd("has a name that is not UTF-8"))?;
        let (meta, path) = text.split_once('\t').ok_or_else(|| odd("is no entry of a tree"))?;
        let mut meta = meta.split(' ');
        let (mode, _, id) = (meta.next(), meta.next(), meta.next());
        let executable = match mode {
            Some("100644" | "100664") => false,
            Some("100755") => true,
            Some("160000") => return Ok(None),
            Some("120000") => return Err(odd("is a symbolic link: take a subdir without links")),
            _ => return Err(odd("is no file")),
        };
        let path = prefix.map_or(Some(path), |prefix| path.strip_prefix(prefix)).ok_or_else(|| odd("is elsewhere"))?;
        if !is_safe_relative(path) {
            return Err(odd("is no plain relative path"));
        }
        let id = id.filter(|id| id.bytes().all(|b| b.is_ascii_hexdigit())).ok_or_else(|| odd("has no id"))?;
        Ok(Some(Entry { id: id.to_owned(), executable, path: path.to_owned() }))
    }

    fn place(&self, tree: &GitTree, entries: &[Entry], to: &str, placing: &mut Placing) -> Result<(), Failure> {
        let run = next_run();
        let mut cat = self.command(run);
        cat.args(["cat-file", "--batch"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut running = Running::start(cat, run)?;
        let broken = || Failure::new(ErrorCode::Fetch, format!("`{}`: git stopped in the middle", tree.url));
        let (Some(mut ask), Some(answers)) = (running.child.stdin.take(), running.child.stdout.take()) else {
            return Err(broken());
        };
        let (mut answers, mut total) = (BufReader::new(answers), 0_u64);
        for entry in entries {
            ask.write_all(format!("{}\n", entry.id).as_bytes()).map_err(|_| broken())?;
            let mut head = String::new();
            answers.by_ref().take(256).read_line(&mut head).map_err(|_| broken())?;
            let len = head.trim_end().strip_prefix(&format!("{} blob ", entry.id)).and_then(|len| len.parse().ok());
            let len: u64 = len.ok_or_else(broken)?;
            total = total.saturating_add(len);
            if total > tree.size_max {
                return Err(wrong(format!("`{}` has more than {} bytes: raise size_max", tree.url, tree.size_max)));
            }
            let mut content = answers.by_ref().take(len);
            placing.add(&format!("{to}/{}", entry.path), entry.executable, &mut content)?;
            if content.limit() > 0 || answers.read_exact(&mut [0]).is_err() {
                return Err(broken());
            }
        }
        Ok(())
    }
}

/// A git process and its group; ended when dropped.
struct Running {
    child: Child,
    pid: Option<Pid>,
    _live: sweep::Live,
}

impl Running {
    fn start(mut command: Command, run: u64) -> Result<Self, Failure> {
        let mut live = sweep::enter(run);
        let child = command.spawn().map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                Failure::new(ErrorCode::Fetch, "this node has no `git`, which an input needs")
            }
            _ => Failure::new(ErrorCode::Lost, format!("this node could not start git: {e}")),
        })?;
        open_files::restore_for(child.id());
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            live.leader(pid);
        }
        Ok(Self { child, pid, _live: live })
    }

    /// Waits for its end, and ends it when it is to stop, stalls, or fills `grows` beyond its bytes.
    fn finish(mut self, grows: Option<(&Path, u64)>, stop: &StopHandle, what: &str) -> Result<(), Failure> {
        let complaints = self.child.stderr.take();
        let complaints = std::thread::spawn(move || {
            let mut tail = Vec::new();
            if let Some(stderr) = complaints {
                let mut stderr = stderr.take(1 << 20);
                let _ = stderr.read_to_end(&mut tail);
            }
            tail.split_off(tail.len().saturating_sub(COMPLAINT_MAX))
        });
        self.watch(grows, stop, what)?;
        // Nothing of its group is to hold on to the pipe; as long as it is not reaped, the group's number is its own.
        self.kill();
        let status = self.child.wait().map_err(|e| Failure::storage("wait for git", &e))?;
        let complaints = complaints.join().unwrap_or_default();
        if status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&complaints);
        let said = said.trim().lines().map(str::trim).collect::<Vec<_>>().join("; ");
        let failure = Failure::new(ErrorCode::Fetch, format!("`{what}` cannot be had: {said}"));
        // What the server does not have or give to this node it would not give to another.
        let firm = ["not our ref", "couldn't find remote ref", "Authentication failed", "could not read Username"];
        let firm =
            firm.iter().any(|words| said.contains(words)) || said.contains("repository") && said.contains("not found");
        Err(if firm { failure.for_good() } else { failure })
    }

    fn watch(&self, grows: Option<(&Path, u64)>, stop: &StopHandle, what: &str) -> Result<(), Failure> {
        let Some(pid) = self.pid else { return Ok(()) };
        let pidfd = pidfd_open(pid, PidfdFlags::empty());
        let pidfd = pidfd.map_err(|e| Failure::storage("watch git", &e.into()))?;
        let (mut size, mut grew) = (0, Instant::now());
        loop {
            let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
            let ready = poll(&mut fds, Some(&LOOK_EVERY)).unwrap_or(0);
            if ready > 0 {
                return Ok(());
            }
            if let Some(reason) = stop.reason() {
                return Err(reason.failure());
            }
            if let Some((dir, size_max)) = grows {
                let now = size_of(dir);
                if now > size_max {
                    return Err(wrong(format!("`{what}` takes more than {size_max} bytes: raise size_max")));
                }
                if now != size {
                    (size, grew) = (now, Instant::now());
                }
            }
            if grew.elapsed() > STALL_MAX {
                let message = format!("`{what}` cannot be had: nothing came for {} s", STALL_MAX.as_secs());
                return Err(Failure::new(ErrorCode::Fetch, message));
            }
        }
    }

    fn kill(&self) {
        if let Some(pid) = self.pid {
            // It fails when nobody is left.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            self.kill();
            let _ = self.child.wait();
        }
    }
}

/// Bytes of the files below `dir`.
fn size_of(dir: &Path) -> u64 {
    let files = walkdir::WalkDir::new(dir).into_iter().filter_map(Result::ok);
    files.filter_map(|entry| entry.metadata().ok()).filter(std::fs::Metadata::is_file).map(|meta| meta.len()).sum()
}
