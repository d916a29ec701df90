//! A small network of its own for each test: one namespace a node, a bridge in another, and cables that can be pulled.
//!
//! Pulling a cable takes the node's port off the bridge. Both ends stay up, so nobody is told: packets vanish, which is
//! what a partition is. Everything goes with the value, also on a panic, and the next run removes what a killed one left.

use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sinew_node::clock::unix_ms;
use sinew_node::local_mesh::Place;

/// All names begin with this, followed by the process that made them.
const PREFIX: &str = "sinew-t";

/// One network at a time in a process: their names are the process's.
static ONE: Mutex<()> = Mutex::new(());

/// The network.
pub(crate) struct Net {
    name: String,
    nodes: usize,
    _one: MutexGuard<'static, ()>,
}

/// Runs `ip`, which must succeed.
fn ip(args: &str) {
    let output = Command::new("ip").args(args.split(' ')).output().expect("run ip");
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
}

fn list() -> Vec<String> {
    let output = Command::new("ip").args(["netns", "list"]).output().expect("run ip");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter_map(|l| l.split_whitespace().next()).map(str::to_owned).collect()
}

/// Whether namespaces can be made here. In CI they must be; elsewhere a test says why it does not run.
pub(crate) fn is_available() -> bool {
    let problem = match Command::new("ip").args(["netns", "list"]).output() {
        Err(error) => format!("`ip` (package iproute2) does not run: {error}"),
        Ok(output) if !output.status.success() => String::from_utf8_lossy(&output.stderr).into_owned(),
        Ok(_) if !rustix::process::geteuid().is_root() => "network namespaces need root".to_owned(),
        Ok(_) => return true,
    };
    assert!(std::env::var_os("CI").is_none(), "partitions cannot be tested: {problem}");
    eprintln!("skipped: {problem}");
    false
}

impl Net {
    /// A bridge and so many nodes at it.
    pub(crate) fn new(nodes: usize) -> Self {
        // A test that failed has let go of its network all the same.
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        sweep();
        let net = Self { name: format!("{PREFIX}{}", std::process::id()), nodes, _one: one };
        let hub = net.hub();
        ip(&format!("netns add {hub}"));
        ip(&format!("-n {hub} link add br0 type bridge"));
        ip(&format!("-n {hub} link set br0 up"));
        for i in 0..nodes {
            let node = net.namespace(i);
            ip(&format!("netns add {node}"));
            ip(&format!("-n {hub} link add port{i} type veth peer name eth0 netns {node}"));
            ip(&format!("-n {hub} link set port{i} master br0 up"));
            ip(&format!("-n {node} addr add 10.213.0.{}/24 dev eth0", i + 1));
            ip(&format!("-n {node} link set eth0 up"));
            ip(&format!("-n {node} link set lo up"));
        }
        net
    }

    fn hub(&self) -> String {
        format!("{}-hub", self.name)
    }

    fn namespace(&self, node: usize) -> String {
        format!("{}-{node}", self.name)
    }

    /// Where the daemons go. They listen on TCP only.
    pub(crate) fn places(&self) -> Vec<Place> {
        let place = |i: usize| Place {
            // Not `ip netns exec`, which hides the control groups that sandboxes need.
            prefix: vec!["nsenter".to_owned(), format!("--net=/run/netns/{}", self.namespace(i))],
            listen: Some(format!("/ip4/10.213.0.{}/tcp/9000", i + 1)),
            args: Vec::new(),
        };
        (0..self.nodes).map(place).collect()
    }

    /// Cuts a node off; returns when, unix ms.
    pub(crate) fn pull(&self, node: usize) -> u64 {
        let at = unix_ms();
        ip(&format!("-n {} link set port{node} nomaster", self.hub()));
        assert!(!self.reaches(node), "the cable was pulled");
        at
    }

    /// Connects it again.
    pub(crate) fn plug(&self, node: usize) {
        ip(&format!("-n {} link set port{node} master br0", self.hub()));
        assert!(self.reaches(node), "the cable was plugged in");
    }

    /// Whether a node can open a TCP connection to its neighbour.
    fn reaches(&self, node: usize) -> bool {
        let (from, to) = (self.namespace(node), (node + 1) % self.nodes + 1);
        let dial = format!("timeout 1 bash -c '</dev/tcp/10.213.0.{to}/9000' 2>/dev/null");
        Command::new("ip").args(["netns", "exec", &from, "sh", "-c", &dial]).status().expect("run ip").success()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Removes what runs left that were killed.
fn sweep() {
    for name in list() {
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()).and_then(|p| p.parse::<u32>().ok());
        if pid.is_some_and(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()) {
            remove(&name);
        }
    }
}

fn remove(prefix: &str) {
    for name in list().iter().filter(|n| n.starts_with(prefix)) {
        // A failure leaves it for the next run; a panic here would hide the one that led here.
        let _ = Command::new("ip").args(["netns", "del", name]).status();
    }
}
