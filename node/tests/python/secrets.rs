//! Functions find secrets as any program does, and what they raise says nothing of them.

use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::secret::{SecretPlace, SecretUse};
use sinew_node::secrets::SecretBytes;
use sinew_node::secrets::job::JobSecrets;

use crate::rig::Rig;

const MODULE: &str = r#"
import os, sys
def has():
    path = os.environ["SINEW_SECRETS"] + "/id"
    print("db", os.environ["DB"])
    try: open(path, "w")
    except OSError: refused = True
    return {"db": len(os.environ["DB"]), "key": len(open(path).read()), "mode": oct(os.stat(path).st_mode), "refused": refused}
def fails(): raise ValueError("with " + os.environ["DB"])
"#;

#[test]
fn functions_find_variables_and_files() {
    for mut rig in Rig::each() {
        rig.place(&[("m.py", MODULE)]);
        let uses = [("db", SecretPlace::Env("DB".to_owned())), ("key", SecretPlace::File("id".to_owned()))];
        let uses = uses.map(|(name, place)| SecretUse { name: name.to_owned(), place });
        let value = |text: &str| SecretBytes::new(text.as_bytes().to_vec());
        let values = [("db".to_owned(), value("correct-horse\n")), ("key".to_owned(), value("a key\n"))];
        rig.secrets = Some(JobSecrets::new("job", &rig.tag(), &rig.env, &uses, values).expect("secrets"));
        // Twice in one worker.
        for _ in 0..2 {
            let ran = rig.call("m:has");
            let wanted = serde_json::json!({ "db": 13, "key": 6, "mode": "0o100400", "refused": true });
            // Root, bare, may write to anything.
            let root = !rig.sandboxed && rustix::process::geteuid().is_root();
            if !root {
                assert_eq!(ran.value(), wanted);
            }
            assert_eq!(ran.stdout, "db ***\n");
        }
        let ran = rig.call("m:fails");
        let failure = ran.result.expect_err("it raises");
        assert_eq!(failure.code, ErrorCode::Exit);
        assert!(failure.stderr_tail.contains("with ***") && !failure.stderr_tail.contains("horse"), "{failure:?}");
    }
}
