//! What daemons sent, wrote and kept: counts, which other load on the machine does not change.
//!
//! Not here: fsyncs. The kernel counts them for nobody, and daemons do not either.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::meter::cpu_s;
use crate::local_mesh::{LocalMesh, LocalNode};

/// Bytes of a block as `stat(2)` counts them, on every file system.
const STAT_BLOCK: u64 = 512;
/// Directories of a node that are not its ledger.
const NOT_LEDGER: [&str; 3] = ["blobs", "work", "cache"];
/// Seals and their acknowledgements travel for a few flushes after the last result: by then they have.
const SETTLED_BY: Duration = Duration::from_secs(15);
/// Between two looks at a mesh that settles: longer than the ledger's lazy writes wait.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// One node's counts since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct NodeCounts {
    messages: u64,
    bytes: u64,
    written: u64,
    kept: u64,
    cpu_s: f64,
}

/// The counts of a mesh at one moment, the submitter's node first.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Counts {
    nodes: Vec<NodeCounts>,
    /// Bytes written to the disk that the data directories are on, by this and everything else; `None` where the system
    /// does not tell.
    device: Option<u64>,
}

impl Counts {
    /// Reads them.
    pub(super) async fn take(mesh: &LocalMesh) -> anyhow::Result<Self> {
        let mut counts = Vec::with_capacity(mesh.nodes.len());
        for node in &mesh.nodes {
            counts.push(of_node(node).await?);
        }
        // What was written before and lies in the kernel's cache is not to be counted as written after: a node's start alone leaves
        // some MB there.
        let dir = std::fs::File::open(mesh.dir())?;
        tokio::task::spawn_blocking(move || rustix::fs::syncfs(dir)).await??;
        Ok(Self { nodes: counts, device: device_bytes(mesh.dir()) })
    }

    /// Figures per job of what happened since `before`, when `jobs` jobs ran.
    pub(super) fn per_job(&self, before: &Self, jobs: f64) -> Map<String, Value> {
        let nodes: Vec<_> = self.nodes.iter().zip(&before.nodes).map(|(now, then)| now.since(*then)).collect();
        let sum = |of: fn(&NodeCounts) -> u64| nodes.iter().map(of).sum::<u64>();
        let each = |count: u64| share(count, jobs);
        let each_and_node = |count: u64| share(count, jobs * share(nodes.len() as u64, 1.0));
        let brain = nodes.first().copied().unwrap_or_default();
        // What the kernel calls written by a process counts whole folios, up to half a MiB for a page that was touched: the
        // disk's own count is nearer to the truth, though other processes' writes are in it.
        let device = self.device.zip(before.device).map(|(now, then)| now.saturating_sub(then));
        let written = device.unwrap_or_else(|| sum(|n| n.written));
        let cpu_s: f64 = nodes.iter().map(|n| n.cpu_s).sum();
        let figures = json!({
            "messages_per_job": each(sum(|n| n.messages)),
            "messages_per_job_brain": each(brain.messages),
            "bytes_per_job": each(sum(|n| n.bytes)),
            "bytes_per_job_brain": each(brain.bytes),
            "written_bytes_per_job_and_node": each_and_node(written),
            "kept_bytes_per_job_and_node": each_and_node(sum(|n| n.kept)),
            "cpu_us_per_job_settled": cpu_s * 1e6 / jobs,
        });
        figures.as_object().cloned().unwrap_or_default()
    }
}

impl NodeCounts {
    fn since(self, then: Self) -> Self {
        Self {
            messages: self.messages.saturating_sub(then.messages),
            bytes: self.bytes.saturating_sub(then.bytes),
            written: self.written.saturating_sub(then.written),
            kept: self.kept.saturating_sub(then.kept),
            cpu_s: self.cpu_s - then.cpu_s,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn share(count: u64, of: f64) -> f64 {
    count as f64 / of
}

async fn of_node(node: &LocalNode) -> anyhow::Result<NodeCounts> {
    let status = node.client().status().await?;
    let traffic = status.traffic;
    Ok(NodeCounts {
        messages: traffic.messages_sent,
        bytes: traffic.control.sent_bytes + traffic.bulk.sent_bytes,
        written: written_bytes(status.pid),
        kept: ledger_bytes(&node.data_dir),
        cpu_s: cpu_s(status.pid),
    })
}

/// Waits until all nodes know the same and none learns more, or for [`SETTLED_BY`]; whether they did.
pub(super) async fn settled(mesh: &LocalMesh) -> anyhow::Result<bool> {
    let deadline = Instant::now() + SETTLED_BY;
    let mut last = Vec::new();
    while Instant::now() < deadline {
        let mut roots = Vec::new();
        for node in &mesh.nodes {
            let status = node.client().status().await?;
            roots.push((status.ledger_root, status.ledger_entries));
        }
        if roots == last && roots.iter().all(|(root, _)| *root == roots[0].0) {
            return Ok(true);
        }
        last = roots;
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(false)
}

/// Bytes that a process has made the kernel write to disks. A file system in memory counts as none.
fn written_bytes(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes:"));
    line.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
}

/// Bytes written so far to the disk under `dir`: sectors in the seventh field (Linux, Documentation/block/stat.rst).
fn device_bytes(dir: &Path) -> Option<u64> {
    /// What a sector is there, whatever the disk's own are.
    const SECTOR: u64 = 512;
    let device = std::fs::metadata(dir).ok()?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let text = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?;
    text.split_whitespace().nth(6)?.parse::<u64>().ok()?.checked_mul(SECTOR)
}

/// Bytes of disk that a node's ledger takes: blocks, for its file grows ahead of what is in it.
fn ledger_bytes(data_dir: &Path) -> u64 {
    let below_top = walkdir::WalkDir::new(data_dir).into_iter().filter_entry(|entry| {
        entry.depth() != 1 || !entry.file_name().to_str().is_some_and(|name| NOT_LEDGER.contains(&name))
    });
    let files = below_top.flatten().filter_map(|entry| entry.metadata().ok()).filter(std::fs::Metadata::is_file);
    files.map(|file| file.blocks() * STAT_BLOCK).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_of_the_time_between_and_tell_the_brain_from_all() {
        let node = |messages, written| NodeCounts { messages, written, bytes: messages * 10, ..NodeCounts::default() };
        let before = Counts { nodes: vec![node(5, 100), node(1, 0)], device: Some(5_000) };
        let mut after = Counts { nodes: vec![node(25, 500), node(11, 200)], device: None };
        let figures = after.per_job(&before, 10.0);
        assert_eq!(figures["messages_per_job"], 3.0);
        assert_eq!(figures["messages_per_job_brain"], 2.0);
        assert_eq!(figures["bytes_per_job"], 30.0);
        assert_eq!(figures["written_bytes_per_job_and_node"], 30.0);
        after.device = Some(7_000);
        let figures = after.per_job(&before, 10.0);
        assert_eq!(figures["written_bytes_per_job_and_node"], 100.0, "the disk knows better");
    }

    #[test]
    fn a_ledger_is_what_is_not_blobs_or_work() {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::create_dir_all(dir.path().join("blobs/data")).expect("mkdir");
        std::fs::create_dir_all(dir.path().join("segments/blobs")).expect("mkdir");
        std::fs::write(dir.path().join("blobs/data/big"), vec![1; 1 << 20]).expect("write");
        assert_eq!(ledger_bytes(dir.path()), 0);
        for name in ["ledger.redb", "segments/blobs/1"] {
            let file = std::fs::File::create(dir.path().join(name)).expect("create");
            std::io::Write::write_all(&mut &file, &vec![1; 64 << 10]).expect("write");
            file.sync_all().expect("sync");
        }
        let found = ledger_bytes(dir.path());
        assert!((128 << 10..1 << 20).contains(&found), "{found}");
    }
}
