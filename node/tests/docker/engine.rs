//! A Docker engine of the tests' own, in a directory of its own, without networks. A supervisor ends it and removes whatever
//! it leaves when the test does, however that ends.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use bollard::{API_DEFAULT_VERSION, Docker};

use crate::rig::PATIENCE;

/// Starts and kills the engine as lines of stdin say, and at the end of stdin removes every trace. The directory is not an
/// argument, because processes are found by it.
const SUPERVISOR: &str = r#"
start() {
  dockerd --data-root "$DIR/data" --exec-root "$DIR/exec" --pidfile "$DIR/pid" -H "unix://$DIR/sock" \
    --bridge=none --iptables=false --ip-forward=false --ip-masq=false --cgroup-parent="/$NAME" \
    --exec-opt native.cgroupdriver=cgroupfs >>"$DIR/log" 2>&1 &
  daemon=$!
}
start
while read -r word; do
  case $word in
    kill)
      kill -9 "$daemon"; wait "$daemon"
      # Its containerd dies with it; but where nobody reaps that, the next engine would take it for alive.
      rm -f "$DIR/pid" "$DIR/exec/containerd/containerd.pid" ;;
    start) start ;;
  esac
done
kill "$daemon" 2>/dev/null && wait "$daemon"
for round in 1 2 3 4 5; do
  # The engine's own, and what runs in containers of an engine that was killed.
  left="$(pgrep -f "$DIR/") $(find /sys/fs/cgroup -path "*/$NAME/*" -name cgroup.procs -exec cat {} +)"
  [ -n "${left# }" ] || break
  kill -9 $left 2>/dev/null
  sleep 0.2
done
awk -v dir="$DIR/" 'index($2, dir) == 1 { print $2 }' /proc/mounts | sort -r | while read -r at; do umount -l "$at"; done
find /sys/fs/cgroup -depth -type d -path "*/$NAME*" -exec rmdir {} \; 2>/dev/null
rm -rf "$DIR"
"#;

/// A running engine.
pub(crate) struct TestEngine {
    pub(crate) dir: PathBuf,
    supervisor: Child,
    orders: Option<ChildStdin>,
}

static SHARED: Mutex<Weak<TestEngine>> = Mutex::new(Weak::new());

/// Why there is no engine here, where that is no failure.
fn excuse() -> Option<&'static str> {
    let found = |name: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
    };
    if !rustix::process::geteuid().is_root() {
        Some("an engine can only be started by root")
    } else if !found("dockerd") {
        Some("dockerd is not installed (apt-get install docker.io)")
    } else if !Path::new(crate::image::BUSYBOX).is_file() {
        Some("there is no static busybox (apt-get install busybox-static)")
    } else {
        None
    }
}

impl TestEngine {
    /// The engine of all tests of this process; `None`, with a word to the reader, where none can be and none has to.
    pub(crate) fn shared() -> Option<Arc<Self>> {
        if let Some(why) = excuse() {
            assert!(std::env::var_os("CI").is_none(), "the tests of the docker runner cannot run: {why}");
            eprintln!("NOT TESTED: {why}");
            return None;
        }
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        Some(shared.upgrade().unwrap_or_else(|| {
            let engine = Arc::new(Self::start());
            *shared = Arc::downgrade(&engine);
            engine
        }))
    }

    /// One that no other test uses, to be killed.
    pub(crate) fn own() -> Option<Self> {
        Self::shared().map(|_| Self::start())
    }

    fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("sinew-docker-").tempdir().expect("dir").keep();
        let name = dir.file_name().expect("name").to_str().expect("UTF-8").to_owned();
        let mut supervisor = Command::new("sh")
            .args(["-c", SUPERVISOR])
            .env("DIR", &dir)
            .env("NAME", name)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // What ends the tests is not to end the one that tidies up after them.
            .process_group(0)
            .spawn()
            .expect("sh");
        let orders = supervisor.stdin.take();
        let engine = Self { dir, supervisor, orders };
        engine.wait_answering();
        engine
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("sock")
    }

    /// A client of the tests' own.
    pub(crate) fn client(&self) -> Docker {
        Docker::connect_with_unix(self.socket().to_str().expect("UTF-8"), 60, API_DEFAULT_VERSION).expect("socket")
    }

    fn order(&mut self, word: &str) {
        writeln!(self.orders.as_mut().expect("a supervisor"), "{word}").expect("order");
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        let socket = self.socket();
        self.order("kill");
        crate::rig::eventually("the engine is gone", || std::os::unix::net::UnixStream::connect(&socket).is_err());
    }

    pub(crate) fn start_again(&mut self) {
        self.order("start");
        self.wait_answering();
    }

    fn wait_answering(&self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let deadline = Instant::now() + PATIENCE;
        let answers = || {
            self.socket().exists()
                && runtime.block_on(async { self.client().negotiate_version().await.is_ok_and(|_| true) })
        };
        while !answers() {
            let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "dockerd does not answer:\n{log}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for TestEngine {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.supervisor.wait();
        if !std::thread::panicking() {
            assert!(!self.dir.exists(), "{} is still there", self.dir.display());
        }
    }
}
