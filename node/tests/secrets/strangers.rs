//! A member with a good certificate and no award asks for a job's secrets.

use std::time::Duration;

use sinew_crdt_state::certificate::Ticket;
use sinew_crdt_state::envelope::{Envelope, seal_batch};
use sinew_crdt_state::fact::{Fact, Fence, Statement};
use sinew_crdt_state::identity::Identity;
use sinew_crdt_state::ids::{JobId, MeshId};
use sinew_mesh::{Mesh, MeshConfig, MeshEvent, MeshEvents};
use sinew_node::clock::unix_ms;
use sinew_node::local_mesh::LocalNode;
use sinew_node::secrets::wire::{ANSWER_LEN_MAX, Answer, Ask, Refusal, decode_answer, read_message, write_message};
use tokio::io::AsyncWriteExt;

use crate::rig::{PASSWORD, PATIENCE, World, until};

struct Member {
    who: Identity,
    id: MeshId,
    mesh: Mesh,
    events: MeshEvents,
}

impl Member {
    async fn join(node: &LocalNode) -> Self {
        let who = Identity::from_seed(rand::random());
        let ticket = node.client().invite("run,submit".to_owned(), 3_600_000).await.expect("a ticket");
        let ticket: Ticket = ticket.parse().expect("a ticket");
        let credential = sinew_mesh::join(&ticket, &who, PATIENCE).await.expect("it is let in");
        let status = node.client().status().await.expect("status");
        let mut config = MeshConfig::bare(vec!["/ip4/127.0.0.1/tcp/0".parse().expect("addr")]);
        config.bootstrap.push(status.listen.first().expect("it listens").parse().expect("a multiaddr"));
        let (mesh, mut events) = Mesh::start(config, &who, credential, status.mesh, unix_ms).await.expect("it starts");
        loop {
            let event = tokio::time::timeout(PATIENCE, events.recv()).await.expect("in time").expect("it runs");
            if matches!(event, MeshEvent::PeerUp { node: up, .. } if up == node.id) {
                return Self { who, id: status.mesh, mesh, events };
            }
        }
    }

    fn award(&self, by: &Identity, job: JobId) -> Envelope {
        let fact = Fact::Award { fence: Fence { term: 1, epoch: 1 }, node: self.who.id(), slots: 1, lease_ms: 1_000 };
        seal_batch(by, self.id, &[(job, Statement { at_ms: unix_ms(), fact })]).swap_remove(0).1
    }

    async fn ask(&self, node: &LocalNode, award: Envelope) -> Answer {
        let exchange = async {
            let mut stream = self.mesh.open_secret_stream(node.id).await.expect("a stream");
            write_message(&mut stream, &Ask { award, phase: 0, task: 0 }).await.expect("ask");
            read_message(&mut stream, ANSWER_LEN_MAX).await.expect("an answer")
        };
        let bytes = tokio::time::timeout(PATIENCE, exchange).await.expect("in time");
        decode_answer(&bytes).expect("an answer")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_without_an_award_is_refused_and_named() {
    let world = World::new(1).await;
    world.set("db", PASSWORD).await;
    // Nobody runs it, so that it stays open.
    let text = "type = \"batch\"\nlabels.role = \"nobody\"\nsecrets = [{ name = \"db\", env = \"DB\" }]\nbatch.command = \"true\"\n";
    let job: JobId = world.submit(text).await.parse().expect("an id");
    let node = world.node(0);
    let mut member = Member::join(node).await;
    // Signed by itself, and as if by the brain.
    let mut forged = member.award(&member.who, job);
    assert!(
        matches!(member.ask(node, forged.clone()).await, Answer::Refused(Refusal::Denied(why)) if why.contains("brain"))
    );
    forged.author = node.id;
    let refused = member.ask(node, forged).await;
    assert!(matches!(refused, Answer::Refused(Refusal::Denied(why)) if why.contains("signature")));
    let unknown = member.award(&member.who, JobId([7; 32]));
    assert_eq!(member.ask(node, unknown).await, Answer::Refused(Refusal::NoJob));
    let who = member.who.id().short();
    let log = node.log();
    let named =
        |line: &&str| line.contains("E_DENY") && line.contains(&who) && line.contains("refused a job's secrets");
    assert_eq!(log.lines().filter(named).count(), 2, "{log}");
    // One that asks again and again is not even looked at.
    let mut busy = 0;
    for _ in 0..60 {
        let answer = member.ask(node, member.award(&member.who, job)).await;
        busy += usize::from(answer == Answer::Refused(Refusal::Busy));
    }
    assert!(busy > 0, "its questions are limited");
    // One that breaks the protocol is dropped.
    let mut stream = member.mesh.open_secret_stream(node.id).await.expect("a stream");
    stream.write_all(&[0xff; 64]).await.expect("write");
    stream.flush().await.expect("flush");
    let dropped = async {
        loop {
            match member.events.recv().await {
                Some(MeshEvent::PeerDown { node: down }) if down == node.id => return,
                Some(_) => {}
                None => panic!("the own mesh ended"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, dropped).await.expect("it is dropped");
    until("the daemon answers", async || node.client().status().await.ok()).await;
    tokio::time::timeout(Duration::from_secs(10), member.mesh.shutdown()).await.expect("shut down");
}
