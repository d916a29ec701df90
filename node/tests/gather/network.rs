//! Daemons that run jobs which name hosts: who takes them, what their programs reach, and what is said where they cannot.

use std::path::PathBuf;

use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::fact::Outcome;
use sinew_crdt_state::ids::Hash;
use sinew_node::local_mesh::{LocalMesh, LocalMeshOptions, Place};

use crate::answer;
use crate::daemons::{draft, run};
use crate::server::{Server, reply};

/// Fetches what `URL` names and keeps it, or fails.
const FETCH: &str = "import os, sys, urllib.request\n\
    text = urllib.request.urlopen(os.environ['URL'], timeout=20).read().upper()\n\
    open(os.path.join(os.environ['SINEW_OUTPUT'], sys.argv[1]), 'wb').write(text)\n";

fn manifest(network: &str, url: &str, gather: bool) -> String {
    let gather = if gather { "gather = [\"python3\", \"fetch.py\", \"gathered.txt\"]\n" } else { "" };
    format!(
        "type = \"batch\"\nstrategy = \"spread\"\nretry.attempts = 0\nnetwork = [{network}]\nenv.URL = \"{url}\"\n\
         [batch]\ntasks = 6\ncommand = [\"python3\", \"fetch.py\", \"fetched.txt\"]\n{gather}\
         inputs = [{{ inline = {}, to = \"fetch.py\" }}]\n",
        serde_json::json!(FETCH)
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_that_name_hosts_run_where_an_operator_lets_them_and_reach_those() {
    let words = Server::start(answer(|_| reply("200 OK", "", b"the of and\n")));
    let port = words.address.port();
    let place = |host: Option<&str>| {
        let args = host.map(|host| vec!["--job-host".to_owned(), host.to_owned()]);
        Place { args: args.unwrap_or_default(), ..Place::default() }
    };
    let exe = PathBuf::from(env!("CARGO_BIN_EXE_sinew"));
    let options = LocalMeshOptions { exe, nodes: 2, cpus: 1.0, args: Vec::new() };
    // The node that jobs are submitted at lets none reach anything.
    let places = vec![place(None), place(Some("there.test=127.0.0.1"))];
    let mut mesh = LocalMesh::start_at(&options, places).await.expect("mesh");
    let there = format!("\"there.test:{port}\"");
    let url = |host: &str| format!("http://{host}:{port}/words");

    let view = run(&mesh, draft(&manifest(&there, &url("there.test"), true))).await;
    assert!(matches!(view.outcome, Some(Outcome::Completed)), "{:?}", view.outcome);
    let expected = Hash(*blake3::hash(b"THE OF AND\n").as_bytes());
    let found = view.outputs.iter().filter(|out| out.output.name == "output/fetched.txt");
    let hashes: Vec<Hash> = found.map(|out| out.output.blob.hash).collect();
    assert_eq!(hashes, vec![expected; 6]);
    assert_eq!(words.asked(), 7, "six tasks, and one gather command");
    let workers: Vec<_> = view.shares.iter().filter(|share| share.done.iter().any(|done| *done > 0)).collect();
    assert!(workers.len() == 1 && workers[0].node == mesh.nodes[1].id, "{:?}", view.shares);

    // Under another name, and by address: the same server is not there.
    for host in ["other.test", "127.0.0.1"] {
        let view = run(&mesh, draft(&manifest(&there, &url(host), false))).await;
        let Some(Outcome::Failed { failure, .. }) = view.outcome else { panic!("{:?}", view.outcome) };
        assert!(failure.code == ErrorCode::Exit && failure.stderr_tail.contains("URLError"), "{failure:?}");
    }
    // A host that no operator allows.
    let view = run(&mesh, draft(&manifest("\"pypi.example\"", &url("pypi.example"), false))).await;
    let Some(Outcome::Failed { failure, .. }) = view.outcome else { panic!("{:?}", view.outcome) };
    assert!(failure.code == ErrorCode::Deny && failure.message.contains("pypi.example"), "{failure:?}");
    assert!(failure.message.contains("job_hosts"), "{failure:?}");
    assert_eq!(words.asked(), 7);

    // The example, with this server in the place of its host.
    let examples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let text = std::fs::read_to_string(examples.join("network.toml")).expect("example");
    let view = run(&mesh, draft(&text.replace("example.org", &format!("there.test:{port}")))).await;
    assert!(matches!(view.outcome, Some(Outcome::Completed)), "{:?}", view.outcome);
    let page = Hash(*blake3::hash(b"the of and\n").as_bytes());
    assert!(view.outputs.iter().any(|out| out.output.name == "output/page" && out.output.blob.hash == page));
    mesh.stop();
}
