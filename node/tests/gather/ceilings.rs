//! What operators let a job's tasks write, and the disk that jobs reserve: such jobs go where there is room for them, and only there.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use sinew_crdt_state::fact::Outcome;
use sinew_node::local_mesh::{LocalMesh, LocalMeshOptions, Place};
use sinew_scheduler::view::JobView;

use crate::daemons::{draft, run};

const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// The first node takes little, the second one more.
async fn mesh() -> LocalMesh {
    let place = |args: &[&str]| Place { args: args.iter().map(|a| (*a).to_owned()).collect(), ..Place::default() };
    let places = vec![place(&["--output-max", "1MiB", "--disk", "4MiB"]), place(&["--disk", "20MiB"])];
    let exe = PathBuf::from(env!("CARGO_BIN_EXE_sinew"));
    let options = LocalMeshOptions { exe, nodes: 2, cpus: 4.0, args: Vec::new() };
    LocalMesh::start_at(&options, places).await.expect("mesh")
}

/// Tasks done on each node, by its number.
fn done(mesh: &LocalMesh, view: &JobView) -> [u64; 2] {
    assert!(matches!(view.outcome, Some(Outcome::Completed)), "{view:?}");
    [0, 1].map(|i| {
        let own = view.shares.iter().filter(|share| share.node == mesh.nodes[i].id);
        own.flat_map(|share| &share.done).sum()
    })
}

fn manifest(amounts: &str, tasks: u32, script: &str) -> String {
    format!(
        "type = \"batch\"\nstrategy = \"spread\"\nretry.attempts = 0\n{amounts}\n\
         [batch]\ntasks = {tasks}\ncommand = [\"sh\", \"-c\", {script:?}]\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_goes_where_its_tasks_may_write_as_much_as_it_wants() {
    let mut mesh = mesh().await;
    let more = run(&mesh, draft(&manifest("limits.output_max = \"2MiB\"", 8, "sleep 0.2"))).await;
    assert_eq!(done(&mesh, &more), [0, 8], "the first node lets none write so much");
    let less = run(&mesh, draft(&manifest("limits.output_max = \"1MiB\"", 8, "sleep 0.5"))).await;
    let shares = done(&mesh, &less);
    assert!(shares[0] > 0 && shares[0] + shares[1] == 8, "{shares:?}");
    let status = mesh.nodes[0].client().status().await.expect("status");
    assert_eq!(status.output_bytes_max, Some(MIB));
    mesh.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disk_is_reserved_as_memory_is() {
    let mut mesh = mesh().await;
    let large = draft(&manifest("disk = \"8MiB\"", 4, "sleep 1"));
    assert_eq!(large.limits.output_bytes_max, 8 * MIB, "what a task reserves it may write");
    let client = mesh.nodes[1].client();
    let watching = tokio::spawn(async move {
        let mut least = u64::MAX;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (all, free) = client.status().await.expect("status").disk_bytes;
            assert_eq!(all, 20 * MIB);
            if free == all && least < all {
                return least;
            }
            least = least.min(free);
            assert!(Instant::now() < deadline, "nothing was reserved, or it is not given back: {free} of {all}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let view = run(&mesh, large).await;
    assert_eq!(done(&mesh, &view), [0, 4], "the first node has no room for one");
    assert_eq!(watching.await.expect("watched"), 4 * MIB, "two at a time, of the four that there are cores for");
    // It is held to what it reserved.
    let over = draft(&manifest("disk = \"2MiB\"", 1, "head -c 3145728 /dev/zero > $SINEW_OUTPUT/x; sleep 5"));
    let view = run(&mesh, over).await;
    let Some(Outcome::Failed { failure, .. }) = &view.outcome else { panic!("{view:?}") };
    assert!(failure.message.contains("2097152"), "{failure:?}");
    mesh.stop();
}
