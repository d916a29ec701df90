//! The node that has the secrets goes away and comes back.

use sinew_crdt_state::fact::Outcome;

use crate::rig::{PASSWORD, World, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_waits_for_the_submitters_node_without_failing() {
    let mut world = World::new(4).await;
    world.set("db", PASSWORD).await;
    // The only node that could run it is not there.
    world.mesh.nodes[3].kill();
    let text = "type = \"batch\"\nlabels.role = \"late\"\nretry.attempts = 0\nsecrets = [{ name = \"db\", env = \"DB\" }]\n\
                [batch]\ncommand = [\"sh\", \"-c\", \"printf ${#DB} > $SINEW_OUTPUT/len\"]\n";
    let job = world.submit(text).await;
    world.mesh.nodes[0].kill();
    world.mesh.nodes[3].start().await.expect("start");
    let waits = "waiting for the node that has the job's secrets";
    until("the task waits", async || world.node(3).log().contains(waits).then_some(())).await;
    world.mesh.nodes[0].start().await.expect("start");
    let view = world.sealed(3, &job).await;
    assert!(matches!(view.outcome, Some(Outcome::Completed)), "{:?}", view.outcome);
    assert_eq!(view.phases[0].done, 1);
}
