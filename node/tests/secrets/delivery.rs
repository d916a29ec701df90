//! From `sinew secret set` to a sandboxed program on another node, and nowhere else.

use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::fact::Outcome;
use sinew_crdt_state::ids::Hash;
use sinew_node::api::client::ClientError;

use crate::rig::{KEY, PASSWORD, World, draft, until};

/// Prints its secrets in several ways, leaves what proves that it had them, and waits for the gate.
const SCRIPT: &str = r#"echo "printed marker"; echo "db=$DB."; echo "db=$DB" >&2; printf %s "user:$DB" | base64; cat "$SINEW_SECRETS/id"
printf %s "$DB" | cut -c1-9 | tr -d '\n'; sleep 0.3; printf %s "$DB" | cut -c10-; echo
printf %s "${#DB}" > $SINEW_OUTPUT/len; sha256sum < "$SINEW_SECRETS/id" > $SINEW_OUTPUT/sum
stat -c %a "$SINEW_SECRETS/id" > $SINEW_OUTPUT/mode; stat -f -c %T "$SINEW_SECRETS" > $SINEW_OUTPUT/where
(echo x > "$SINEW_SECRETS/id") 2>/dev/null && echo written > $SINEW_OUTPUT/written
(echo x > "$SINEW_SECRETS/new") 2>/dev/null && echo written > $SINEW_OUTPUT/written
touch "$GATE.reached"; while ! [ -e "$GATE" ]; do sleep 0.1; done
"#;

fn manifest(gate: &std::path::Path) -> String {
    let script = SCRIPT.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!(
        "type = \"batch\"\nlabels.role = \"worker\"\nenv.GATE = \"{}\"\nenv.MARKER = \"marker-in-the-ledger\"\n\
         secrets = [{{ name = \"db\", env = \"DB\" }}, {{ name = \"key\", file = \"id\" }}]\n\
         [batch]\ncommand = [\"sh\", \"run.sh\"]\ninputs = [{{ inline = \"{script}\", to = \"run.sh\" }}]\n",
        gate.display()
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_on_another_node_has_them_and_no_disk_does() {
    let mut world = World::new(3).await;
    world.set("db", &format!("{PASSWORD}\n")).await;
    world.set("key", KEY).await;
    let gate = world.scratch.path().join("gate");
    let job = world.submit(&manifest(&gate)).await;
    let reached = gate.with_extension("reached");
    until("the task runs", async || reached.exists().then_some(())).await;
    assert!(!world.holding(b"marker-in-the-ledger").is_empty(), "what is in the ledger would be found");
    world.is_clean();
    let live = world.printing(0, &job, "***\n***\n").await;
    std::fs::write(&gate, "").expect("gate");
    let view = world.sealed(0, &job).await;
    assert!(matches!(view.outcome, Some(Outcome::Completed)), "{:?}", view.outcome);
    let stored = world.printed(0, &job).await;
    for shown in [&live, &stored] {
        assert!(shown.contains("printed marker\n") && shown.contains("db=***.\n"), "{shown}");
        assert!(!shown.contains(PASSWORD) && !shown.contains("MIGHAgEAMBMGByqG"), "{shown}");
        assert!(shown.contains("***\n***\n"), "the value in two writes: {shown}");
    }
    assert!(!world.holding(b"printed marker").is_empty(), "stored logs would be found");
    world.is_clean();
    let sum = std::process::Command::new("sh")
        .args(["-c", &format!("printf '%s' '{KEY}' | sha256sum")])
        .output()
        .expect("sha256sum")
        .stdout;
    for (name, content) in [
        ("output/len", PASSWORD.len().to_string().into_bytes()),
        ("output/sum", sum),
        ("output/mode", b"400\n".to_vec()),
        ("output/where", b"tmpfs\n".to_vec()),
    ] {
        let found = view.outputs.iter().find(|out| out.output.name == name);
        assert_eq!(found.map(|out| out.output.blob.hash), Some(Hash::of(&content)), "{name}");
    }
    assert!(!view.outputs.iter().any(|out| out.output.name == "output/written"), "they are read-only");
    let gave = world.node(0).log();
    assert!(gave.contains("gave a job's secrets"), "{gave}");
    world.mesh.stop();
    world.is_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_gather_commands_and_rounds() {
    let world = World::new(2).await;
    world.set("db", PASSWORD).await;
    // A gather command has them too, and what fails says nothing of them.
    let head = "labels.role = \"worker\"\nretry.attempts = 0\nsecrets = [{ name = \"db\", env = \"DB\" }]\n";
    let batch = "command = [\"sh\", \"-c\", \"cat len; echo fails with $DB >&2; exit 3\"]\n\
                 gather = [\"sh\", \"-c\", \"printf ${#DB} > $SINEW_OUTPUT/len\"]\n";
    let job = world.submit(&format!("type = \"batch\"\n{head}[batch]\n{batch}")).await;
    let view = world.sealed(0, &job).await;
    let Some(Outcome::Failed { failure, .. }) = view.outcome else { panic!("{:?}", view.outcome) };
    assert_eq!((failure.exit, failure.stderr_tail.as_str()), (Some(3), "fails with ***\n"), "{failure:?}");
    // Map and reduce tasks.
    let input = world.scratch.path().join("in.txt");
    std::fs::write(&input, "line\n").expect("input");
    let round = format!(
        "inputs = [\"{}\"]\npartitions = 1\nmap = [\"sh\", \"-c\", \"printf 'k\\\\t%s\\\\n' ${{#DB}}; echo $DB >&2\"]\n\
         reduce = [\"sh\", \"-c\", \"cat; echo ${{#DB}}\"]\n",
        input.display()
    );
    let job = world.submit(&format!("type = \"map_reduce\"\n{head}[map_reduce]\n{round}")).await;
    let view = world.sealed(0, &job).await;
    assert!(matches!(view.outcome, Some(Outcome::Completed)), "{:?}", view.outcome);
    let n = PASSWORD.len();
    let wanted = Hash::of(format!("k\t{n}\n{n}\n").as_bytes());
    assert!(view.outputs.iter().any(|out| out.output.blob.hash == wanted), "{:?}", view.outputs);
    world.is_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_names_what_is_not_there_is_refused() {
    let world = World::new(1).await;
    world.set("db", PASSWORD).await;
    let text = "type = \"batch\"\nsecrets = [{ name = \"dbb\", env = \"DB\" }]\nbatch.command = \"true\"\n";
    let refused = world.node(0).client().submit(draft(text), |_, _, _| {}).await.expect_err("refused");
    let ClientError::Api(error) = refused else { panic!("{refused}") };
    assert_eq!((error.code, error.exit), (ErrorCode::Invalid, 2));
    assert!(error.message.contains("`dbb`") && error.message.contains("sinew secret set dbb"), "{error}");
    // Together they may be too large.
    for i in 0..5 {
        world.set(&format!("big{i}"), &"x".repeat(60_000)).await;
    }
    let uses: Vec<String> = (0..5).map(|i| format!("{{ name = \"big{i}\", file = \"f{i}\" }}")).collect();
    let text = format!("type = \"batch\"\nsecrets = [{}]\nbatch.command = \"true\"\n", uses.join(", "));
    let refused = world.node(0).client().submit(draft(&text), |_, _, _| {}).await.expect_err("refused");
    assert!(refused.to_string().contains("262144"), "{refused}");
}
