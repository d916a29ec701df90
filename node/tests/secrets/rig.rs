//! Daemons on this machine, values to look for, and looking for them.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use sinew_crdt_state::manifest::{Format, JobDraft, parse};
use sinew_crdt_state::state::Status;
use sinew_node::api::{Reply, Request};
use sinew_node::local_mesh::{LocalMesh, LocalMeshOptions, LocalNode, Place};
use sinew_node::secrets::SecretBytes;
use sinew_scheduler::view::JobView;

/// Several times what it takes on a busy two-core machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
pub(crate) const PASSWORD: &str = "correct-horse-7391";
pub(crate) const KEY: &str =
    "-----BEGIN TEST KEY-----\nMIGHAgEAMBMGByqGSM49AgEG\nCCqGSM49AwEHBG0wawIBAQQg\n-----END TEST KEY-----\n";

/// A mesh, and a directory that its sandboxed tasks may write to.
pub(crate) struct World {
    pub(crate) mesh: LocalMesh,
    pub(crate) scratch: tempfile::TempDir,
}

impl World {
    /// The first node keeps the secrets; the next two have the label `role=worker`, further ones `role=late`.
    pub(crate) async fn new(nodes: usize) -> Self {
        let scratch = tempfile::Builder::new().prefix("sinew-secrets-test-").tempdir().expect("dir");
        std::fs::set_permissions(scratch.path(), Permissions::from_mode(0o777)).expect("chmod");
        let args = vec!["--sandbox-writable".to_owned(), scratch.path().to_string_lossy().into_owned()];
        let options = LocalMeshOptions { exe: PathBuf::from(env!("CARGO_BIN_EXE_sinew")), nodes, cpus: 1.0, args };
        let place = |i: usize| match i {
            0 => Place::default(),
            i => {
                let role = if i < 3 { "role=worker" } else { "role=late" };
                Place { args: ["--label", role].map(str::to_owned).to_vec(), ..Place::default() }
            }
        };
        let places = (0..nodes).map(place).collect();
        let mesh = LocalMesh::start_at(&options, places).await.expect("mesh");
        Self { mesh, scratch }
    }

    pub(crate) fn node(&self, i: usize) -> &LocalNode {
        &self.mesh.nodes[i]
    }

    pub(crate) async fn set(&self, name: &str, value: &str) {
        let value = SecretBytes::new(value.as_bytes().to_vec());
        self.node(0).client().secret_set(name, value).await.expect("set");
    }

    pub(crate) async fn submit(&self, text: &str) -> String {
        self.node(0).client().submit(draft(text), |_, _, _| {}).await.expect("submit").to_string()
    }

    pub(crate) async fn sealed(&self, node: usize, job: &str) -> JobView {
        let client = self.node(node).client();
        let done = async || client.job(job).await.ok().map(|(view, _)| view).filter(|v| v.status == Status::Sealed);
        until("the job is sealed", done).await
    }

    /// What the job's tasks printed, as a node tells it.
    pub(crate) async fn printed(&self, node: usize, job: &str) -> String {
        let request = Request::Logs { job: job.to_owned(), task: None, attempt: None, follow: false };
        let mut replies = self.node(node).client().ask(&request).await.expect("ask");
        let mut all = Vec::new();
        while let Ok(Some(reply)) = replies.next().await {
            let Reply::Output { data, .. } = reply else { panic!("{reply:?}") };
            all.extend(data_encoding::BASE64.decode(data.as_bytes()).expect("base64"));
        }
        String::from_utf8_lossy(&all).into_owned()
    }

    /// What the job's tasks print while they run, up to `last`, as a node that watches tells it.
    pub(crate) async fn printing(&self, node: usize, job: &str, last: &str) -> String {
        let request = Request::Logs { job: job.to_owned(), task: None, attempt: None, follow: true };
        let mut replies = self.node(node).client().ask(&request).await.expect("ask");
        let mut all = String::new();
        while !all.contains(last) {
            let next = tokio::time::timeout(PATIENCE, replies.next()).await;
            let Ok(Ok(Some(Reply::Output { data, .. }))) = next else { panic!("{next:?} after {all}") };
            all += &String::from_utf8_lossy(&data_encoding::BASE64.decode(data.as_bytes()).expect("base64"));
        }
        all
    }

    /// Files of all nodes, their logs among them, that hold `what`.
    pub(crate) fn holding(&self, what: &[u8]) -> Vec<PathBuf> {
        let files = walkdir::WalkDir::new(self.mesh.dir()).into_iter().filter_map(Result::ok);
        let files = files.filter(|entry| entry.file_type().is_file()).map(|entry| entry.path().to_owned());
        let holds = |path: &PathBuf| {
            let bytes = std::fs::read(path).unwrap_or_default();
            memchr::memmem::find(&bytes, what).is_some()
        };
        files.filter(holds).collect()
    }

    /// No value is anywhere in clear, nor encoded.
    pub(crate) fn is_clean(&self) {
        let encoded = data_encoding::BASE64.encode(PASSWORD.as_bytes());
        let lines = KEY.lines().filter(|line| !line.contains("TEST KEY"));
        for what in [PASSWORD, &encoded[..encoded.len() - 4]].into_iter().chain(lines) {
            assert_eq!(self.holding(what.as_bytes()), Vec::<PathBuf>::new(), "{what}");
        }
    }
}

/// The daemons' last words, where a test fails.
impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (i, node) in self.mesh.nodes.iter().enumerate() {
                eprintln!("--- node {i} {}\n{}", node.id.short(), node.log_tail());
            }
        }
    }
}

pub(crate) fn draft(text: &str) -> JobDraft {
    parse(text.as_bytes(), Some(Format::Toml)).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// Asks until there is an answer.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {} s in vain: {what}", PATIENCE.as_secs());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
