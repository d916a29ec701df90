//! Daemons that fetch a job's inputs themselves, each once, and run its gather command; and the example of a process.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::fact::Outcome;
use sinew_crdt_state::ids::Hash;
use sinew_crdt_state::manifest::{Format, JobDraft, parse};
use sinew_crdt_state::state::Status;
use sinew_node::local_mesh::{LocalMesh, LocalMeshOptions, Place};
use sinew_scheduler::view::JobView;

use crate::answer;
use crate::git::Repository;
use crate::server::{Server, reply};

/// Several times what it takes on a busy two-core machine.
const PATIENCE: Duration = Duration::from_secs(60);
const WORDS: &[u8] = b"the of and\n";
const TASKS: u32 = 9;

pub(crate) async fn mesh(nodes: usize, host: &str) -> LocalMesh {
    let args = ["--gather-host", host].map(str::to_owned).to_vec();
    let options = LocalMeshOptions { exe: PathBuf::from(env!("CARGO_BIN_EXE_sinew")), nodes, cpus: 1.0, args };
    LocalMesh::start(&options).await.expect("mesh")
}

pub(crate) fn draft(text: &str) -> JobDraft {
    parse(text.as_bytes(), Some(Format::Toml)).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

pub(crate) async fn run(mesh: &LocalMesh, draft: JobDraft) -> JobView {
    let client = mesh.nodes[0].client();
    let job = client.submit(draft, |_, _, _| {}).await.expect("submit").to_string();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (view, _) = client.job(&job).await.expect("job");
        if matches!(view.status, Status::Sealed) {
            return view;
        }
        assert!(Instant::now() < deadline, "{view:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn manifest(words: &Server, repository: &Server, revision: &str) -> String {
    let hash = blake3::hash(WORDS).to_hex();
    format!(
        "type = \"batch\"\nstrategy = \"spread\"\nretry.attempts = 0\n[batch]\ntasks = {TASKS}\n\
         command = [\"sh\", \"-c\", \"sleep 0.3; cat upper.txt > $SINEW_OUTPUT/u.txt\"]\n\
         gather = [\"sh\", \"src/upper.sh\", \"words.txt\"]\ninputs = [\n\
         {{ url = \"{}\", hash = \"blake3:{hash}\", to = \"words.txt\" }},\n\
         {{ git = \"{}\", revision = \"{revision}\", subdir = \"scripts\", to = \"src\" }},\n]\n",
        words.url("/words.txt"),
        repository.url("/r.git"),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_node_fetches_once_and_its_gather_command_prepares_the_rest() {
    let words = Server::start(answer(|_| reply("200 OK", "", WORDS)));
    let repository = Repository::new();
    repository.write("scripts/upper.sh", "tr a-z A-Z < \"$1\" > \"$SINEW_OUTPUT/upper.txt\"\n", 0o644);
    let revision = repository.commit();
    let served = repository.serve();
    let mut mesh = mesh(3, "127.0.0.1").await;
    let view = run(&mesh, draft(&manifest(&words, &served, &revision))).await;
    assert!(matches!(view.outcome, Some(Outcome::Completed)), "{:?}", view.outcome);
    let expected = Hash(*blake3::hash(b"THE OF AND\n").as_bytes());
    let found = view.outputs.iter().filter(|out| out.output.name == "output/u.txt" && out.output.blob.hash == expected);
    assert_eq!(found.count(), TASKS as usize, "{:?}", view.outputs);
    let nodes = view.shares.iter().filter(|share| share.done.iter().any(|done| *done > 0)).count();
    assert!(nodes > 1, "the tasks went to several nodes");
    assert!(words.asked() >= nodes && words.asked() <= 3, "{} fetches on {nodes} nodes", words.asked());
    mesh.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_gathered_fails_the_job_and_says_why() {
    let words = Server::start(answer(|_| reply("200 OK", "", WORDS)));
    let repository = Repository::new();
    repository.write("scripts/upper.sh", "echo no luck >&2\nexit 3\n", 0o644);
    let revision = repository.commit();
    let served = repository.serve();
    let mut mesh = mesh(1, "127.0.0.1").await;
    let view = run(&mesh, draft(&manifest(&words, &served, &revision))).await;
    let Some(Outcome::Failed { failure, .. }) = view.outcome else { panic!("{:?}", view.outcome) };
    assert_eq!((failure.code, failure.exit), (ErrorCode::Exit, Some(3)));
    assert!(failure.message.contains("gather command") && failure.stderr_tail.contains("no luck"), "{failure:?}");

    // Nodes whose operators allow other hosts only.
    let text = format!(
        "type = \"batch\"\nretry.attempts = 0\n[batch]\ncommand = \"true\"\ninputs = [{{ url = \"http://localhost:{}/w\", \
         hash = \"blake3:{}\", to = \"w\" }}]\n",
        words.address.port(),
        blake3::hash(b"nobody has this").to_hex(),
    );
    let asked = words.asked();
    let view = run(&mesh, draft(&text)).await;
    let Some(Outcome::Failed { failure, .. }) = view.outcome else { panic!("{:?}", view.outcome) };
    assert_eq!((failure.code, words.asked()), (ErrorCode::Deny, asked));
    assert!(failure.message.contains("localhost") && failure.message.contains("gather_hosts"), "{failure:?}");
    mesh.stop();
}

/// Objects are fetched once by each node, and files only where they are offered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_node_fetches_an_object_once_and_takes_offered_files() {
    let store = Server::start(answer(|asked| match asked.path.as_str() {
        "/corpus/words.txt" => reply("200 OK", "", WORDS),
        _ => reply("404 Not Found", "", b"<Error><Code>NoSuchKey</Code></Error>"),
    }));
    let dir = tempfile::tempdir().expect("dir");
    let (offered, config) = (dir.path().join("offered"), dir.path().join("sinew.toml"));
    std::fs::create_dir(&offered).expect("dir");
    std::fs::write(offered.join("more.txt"), "more\n").expect("file");
    std::fs::write(&config, format!("object_dirs = [{offered:?}]\n")).expect("settings");
    let args = ["--gather-host", "127.0.0.1", "--config", &config.to_string_lossy()].map(str::to_owned).to_vec();
    let options = LocalMeshOptions { exe: PathBuf::from(env!("CARGO_BIN_EXE_sinew")), nodes: 3, cpus: 1.0, args };
    let mut mesh = LocalMesh::start(&options).await.expect("mesh");
    let text = |file: &std::path::Path, content: &[u8]| {
        format!(
            "type = \"batch\"\nstrategy = \"spread\"\nretry.attempts = 0\n[batch]\ntasks = {TASKS}\n\
             command = [\"sh\", \"-c\", \"sleep 0.3; cat words.txt more.txt > $SINEW_OUTPUT/all.txt\"]\ninputs = [\n\
             {{ url = \"s3://corpus/words.txt\", endpoint = \"{}\", hash = \"blake3:{}\", to = \"words.txt\" }},\n\
             {{ url = \"file://{}\", hash = \"blake3:{}\", to = \"more.txt\" }},\n]\n",
            store.url(""),
            blake3::hash(WORDS).to_hex(),
            file.display(),
            blake3::hash(content).to_hex(),
        )
    };
    let view = run(&mesh, draft(&text(&offered.join("more.txt"), b"more\n"))).await;
    assert!(matches!(view.outcome, Some(Outcome::Completed)), "{:?}", view.outcome);
    let expected = Hash(*blake3::hash(b"the of and\nmore\n").as_bytes());
    let found =
        view.outputs.iter().filter(|out| out.output.name == "output/all.txt" && out.output.blob.hash == expected);
    assert_eq!(found.count(), TASKS as usize, "{:?}", view.outputs);
    let nodes = view.shares.iter().filter(|share| share.done.iter().any(|done| *done > 0)).count();
    assert!(nodes > 1, "the tasks went to several nodes");
    assert!(store.asked() >= nodes && store.asked() <= 3, "{} fetches on {nodes} nodes", store.asked());

    // One that no node has by now: what is here already under its BLAKE3 hash is not fetched.
    let view = run(&mesh, draft(&text(&config, b"settings"))).await;
    let Some(Outcome::Failed { failure, .. }) = view.outcome else { panic!("{:?}", view.outcome) };
    assert_eq!(failure.code, ErrorCode::Deny, "{failure:?}");
    assert!(failure.message.contains("object_dirs"), "{failure:?}");
    mesh.stop();
}

/// A job that uses a directory runs where one of that name is offered, and written to where that is allowed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_with_volumes_run_where_these_are_offered() {
    let dir = tempfile::tempdir().expect("dir");
    let open = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("mode");
    };
    open(dir.path(), 0o755);
    let place = |node: &str, read_only: bool| {
        let (sets, config) = (dir.path().join(node), dir.path().join(format!("{node}.toml")));
        std::fs::create_dir(&sets).expect("dir");
        open(&sets, 0o777);
        std::fs::write(sets.join("name"), node).expect("file");
        std::fs::write(&config, format!("[volumes.sets]\npath = {sets:?}\nread_only = {read_only}\n")).expect("file");
        let args = ["--config".to_owned(), config.to_string_lossy().into_owned()].to_vec();
        Place { args, ..Place::default() }
    };
    let places = vec![Place::default(), place("reads", true), place("writes", false)];
    let exe = PathBuf::from(env!("CARGO_BIN_EXE_sinew"));
    let options = LocalMeshOptions { exe, nodes: 3, cpus: 1.0, args: Vec::new() };
    let mut mesh = LocalMesh::start_at(&options, places).await.expect("mesh");
    let text = |read_only: bool, script: &str| {
        format!(
            "type = \"batch\"\nstrategy = \"spread\"\nretry.attempts = 0\n[[volumes]]\nname = \"sets\"\npath = \"/data\"\n\
             read_only = {read_only}\n[batch]\ntasks = {TASKS}\ncommand = [\"sh\", \"-c\", {script:?}]\n"
        )
    };
    let names = |view: &JobView| -> Vec<Hash> {
        let found = view.outputs.iter().filter(|out| out.output.name == "output/name");
        found.map(|out| out.output.blob.hash).collect()
    };
    let of = |name: &str| Hash(*blake3::hash(name.as_bytes()).as_bytes());
    let script = "cat /data/name > $SINEW_OUTPUT/name; sleep 0.3; touch /data/new 2>/dev/null && exit 7 || true";
    let view = run(&mesh, draft(&text(true, script))).await;
    assert!(matches!(view.outcome, Some(Outcome::Completed)), "{:?}", view.outcome);
    let found = names(&view);
    assert_eq!(found.len(), TASKS as usize);
    assert!(found.iter().all(|hash| [of("reads"), of("writes")].contains(hash)), "where it is offered");
    let view = run(&mesh, draft(&text(false, "cp /data/name $SINEW_OUTPUT/name && touch /data/of-$SINEW_TASK"))).await;
    assert!(matches!(view.outcome, Some(Outcome::Completed)), "{:?}", view.outcome);
    assert_eq!(names(&view), vec![of("writes"); TASKS as usize], "only where it is offered for writing");
    let made = |node: &str| std::fs::read_dir(dir.path().join(node)).expect("dir").count() - 1;
    assert_eq!((made("reads"), made("writes")), (0, TASKS as usize));
    mesh.stop();
}

/// The primes below `end`, from `start`.
fn primes(start: u32, end: u32) -> String {
    let prime = |n: &u32| *n > 1 && (2..*n).take_while(|d| d * d <= *n).all(|d| !n.is_multiple_of(d));
    (start..end).filter(prime).map(|n| format!("{n}\n")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_of_a_process_runs_on_three_nodes() {
    let examples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let text = std::fs::read_to_string(examples.join("process.toml")).expect("example");
    let mut draft = draft(&text);
    draft.anchor_paths(&examples.to_string_lossy());
    let mut mesh = mesh(3, "127.0.0.1").await;
    let view = run(&mesh, draft).await;
    assert!(matches!(view.outcome, Some(Outcome::Completed)), "{:?}", view.outcome);
    for task in 0..10 {
        let expected = Hash(*blake3::hash(primes(task * 300, (task + 1) * 300).as_bytes()).as_bytes());
        let found = view.outputs.iter().filter(|out| out.task == task && out.output.name == "output/primes.txt");
        let hashes: Vec<Hash> = found.map(|out| out.output.blob.hash).collect();
        assert_eq!(hashes, [expected], "task {task}");
    }
    assert!(view.shares.iter().filter(|share| share.done[0] > 0).count() > 1, "{:?}", view.shares);
    mesh.stop();
}
