//! Copies of outputs: each job has its own, and what a node held that is gone for good is copied again.

use std::collections::BTreeSet;
use std::path::PathBuf;

use sinew_crdt_state::ids::Hash;
use sinew_crdt_state::manifest::{JobDraft, program_from_text};
use sinew_crdt_state::state::Status;
use sinew_node::api::{Reply, Request};
use sinew_scheduler::view::JobView;

use crate::support::{World, until};

/// One task that leaves one file.
fn leaves(text: &str) -> JobDraft {
    JobDraft::batch(program_from_text(&format!("sh -c 'echo {text} > $SINEW_OUTPUT/o'")).expect("program"))
}

fn args(all: &[&str]) -> Vec<String> {
    all.iter().map(|arg| (*arg).to_owned()).collect()
}

impl World {
    /// Submits and waits for the end.
    async fn ends(&self, node: usize, draft: JobDraft) -> (String, JobView) {
        let job = self.mesh.nodes[node].client().submit(draft, |_, _, _| {}).await.expect("submit").to_string();
        let sealed = |view: &JobView| (view.status == Status::Sealed && view.outcome.is_some()).then(|| view.clone());
        let view = self.sees(node, &job, "the job ends", |view, _| sealed(view)).await;
        (job, view)
    }

    /// Nodes that run and keep this blob for some job.
    async fn keep(&self, hash: Hash) -> BTreeSet<usize> {
        let mut found = BTreeSet::new();
        for (number, node) in self.mesh.nodes.iter().enumerate().filter(|(_, n)| n.pid().is_some()) {
            let mut replies = node.client().ask(&Request::BlobList).await.expect("list");
            while let Some(reply) = replies.next().await.expect("list") {
                if let Reply::Blob { hash: here, tags, .. } = reply
                    && here == hash
                    && tags.iter().any(|tag| tag.starts_with("job/"))
                {
                    found.insert(number);
                }
            }
        }
        found
    }

    /// A node that runs, none of these.
    fn other(&self, not: &BTreeSet<usize>) -> usize {
        (0..self.mesh.nodes.len()).find(|n| !not.contains(n) && self.mesh.nodes[*n].pid().is_some()).expect("another")
    }

    /// The machine is gone, with its disk.
    fn lose(&mut self, node: usize) {
        self.kill(node);
        std::fs::remove_dir_all(&self.mesh.nodes[node].data_dir).expect("its directory goes");
    }

    /// The job's one file, as a node gets it.
    async fn output(&self, node: usize, job: &str, name: &str) -> String {
        let out: PathBuf = self.scratch.path().join(name);
        let get = Request::Get { job: job.to_owned(), out: out.clone() };
        self.mesh.nodes[node].client().act(&get).await.expect("get");
        std::fs::read_to_string(out.join("o")).expect("the file")
    }
}

/// Two jobs leave the same file; the first one's is pruned when it is old enough. The second one's recorded copy is its own:
/// when its maker is lost, the file is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_jobs_each_have_their_copies() {
    let mut world = World::with(3, &args(&["--ledger-grace", "10s", "--outputs-kept", "1s"])).await;
    let (first, _) = world.ends(0, leaves("same")).await;
    until("the first job is forgotten on both nodes that keep its output", async || {
        let mut forgotten = 0;
        for node in &world.mesh.nodes {
            let items = node.client().prune(true, true).await.expect("prune");
            forgotten += usize::from(items.iter().any(|i| i.kind == "outputs" && i.name == first));
        }
        (forgotten == 2).then_some(())
    })
    .await;
    let mut tries = 0;
    let (second, view) = loop {
        let (second, view) = world.ends(0, leaves("same")).await;
        for node in &world.mesh.nodes {
            node.client().prune(false, false).await.expect("prune");
        }
        // On a machine so slow that the second job is forgotten by now, this told nothing.
        let known = world.mesh.nodes[0].client().job(&second).await.is_ok_and(|(v, _)| !v.outputs.is_empty());
        tries += 1;
        if known {
            break (second, view);
        }
        assert!(tries < 4, "jobs are forgotten before they can be looked at");
    };
    let recorded = &view.outputs[0];
    let holders: BTreeSet<usize> =
        [Some(recorded.node), recorded.copy].into_iter().flatten().map(|n| world.number(n)).collect();
    let keep = world.keep(recorded.output.blob.hash).await;
    assert!(holders.is_subset(&keep), "what is recorded is there: {holders:?}, {keep:?}");
    let maker = world.number(recorded.node);
    world.kill(maker);
    let asked = world.other(&[maker].into());
    assert_eq!(world.output(asked, &second, "second").await, "same\n");
}

/// A holder is lost for good: a third node has the output soon, and the job's page says so. Then the other one is lost too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_lost_node_held_is_copied_again() {
    let mut world = World::with(4, &args(&["--copy-again-after", "1s"])).await;
    let (job, view) = world.ends(0, leaves("kept")).await;
    let hash = view.outputs[0].output.blob.hash;
    let first = until("two nodes keep it", async || Some(world.keep(hash).await).filter(|k| k.len() == 2)).await;
    let asked = world.other(&first);
    let client = world.mesh.nodes[asked].client();
    // It may yet have to hear of the end.
    let shows = async || client.job(&job).await.ok().filter(|(v, _)| v.durability.starts_with("outputs on 2 nodes: "));
    until("its page says where they are", shows).await;
    let mut gone = BTreeSet::new();
    for lost in first {
        world.lose(lost);
        gone.insert(lost);
        let now = until("a third node keeps it", async || Some(world.keep(hash).await).filter(|k| k.len() >= 2)).await;
        assert!(now.is_disjoint(&gone));
        // With two nodes of four left, it is on both.
        let asked = world.other(&gone);
        let page = world
            .sees(asked, &job, "the page names the new holders", |view, _| {
                let named = now.iter().all(|n| view.durability.contains(&world.mesh.nodes[*n].id.short()));
                named.then(|| view.durability.clone())
            })
            .await;
        assert!(page.starts_with("outputs on "), "{page}");
        assert_eq!(world.output(asked, &job, &format!("without-{lost}")).await, "kept\n");
    }
}

/// The same for a job of which the ledgers keep no more than a receipt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outputs_of_a_forgotten_job_are_copied_again() {
    let mut world = World::with(4, &args(&["--copy-again-after", "1s", "--ledger-grace", "1s"])).await;
    let (job, view) = world.ends(0, leaves("receipt")).await;
    let hash = view.outputs[0].output.blob.hash;
    let holders = until("two nodes keep it", async || Some(world.keep(hash).await).filter(|k| k.len() == 2)).await;
    until("all have forgotten it", async || {
        for holder in &holders {
            let items = world.mesh.nodes[*holder].client().prune(true, true).await.expect("prune");
            items.iter().find(|i| i.name == job)?;
        }
        Some(())
    })
    .await;
    let lost = *holders.first().expect("two");
    world.lose(lost);
    let now = until("a third node keeps it", async || Some(world.keep(hash).await).filter(|k| k.len() >= 2)).await;
    assert!(!now.contains(&lost));
    // The new one lets go of it as the others do.
    until("the new holder knows that it may go one day", async || {
        for holder in &now {
            let items = world.mesh.nodes[*holder].client().prune(true, true).await.expect("prune");
            items.iter().find(|i| i.name == job)?;
        }
        Some(())
    })
    .await;
}
