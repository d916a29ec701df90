//! Containers find secrets as any program does: variables, and a directory in memory that they cannot write to.

use sinew_crdt_state::secret::{SecretPlace, SecretUse};
use sinew_node::exec::guardian::NodeTag;
use sinew_node::secrets::SecretBytes;
use sinew_node::secrets::job::JobSecrets;

use crate::engine::TestEngine;
use crate::rig::Rig;

#[test]
fn a_container_finds_variables_and_files_in_memory() {
    let Some(engine) = TestEngine::shared() else { return };
    let mut rig = Rig::new(&engine);
    let uses = [("db", SecretPlace::Env("DB".to_owned())), ("key", SecretPlace::File("id".to_owned()))];
    let uses = uses.map(|(name, place)| SecretUse { name: name.to_owned(), place });
    let value = |text: &str| SecretBytes::new(text.as_bytes().to_vec());
    let values = [("db".to_owned(), value("correct-horse\n")), ("key".to_owned(), value("key of many words\n"))];
    rig.secrets =
        Some(JobSecrets::new("job", &NodeTag::new("docker secrets"), &rig.env, &uses, values).expect("secrets"));
    let ran = rig.sh("echo $SINEW_SECRETS ${#DB} $DB; cat $SINEW_SECRETS/id; wc -c < $SINEW_SECRETS/id
         grep -q ' /run/secrets ro.* - tmpfs ' /proc/self/mountinfo && echo in memory
         (echo x > $SINEW_SECRETS/id) 2>/dev/null || echo refused
         (echo x > $SINEW_SECRETS/new) 2>/dev/null || echo refused");
    let lines: Vec<String> = ran.text().lines().map(|line| line.trim().to_owned()).collect();
    assert_eq!(lines, ["/run/secrets 13 ***", "***", "18", "in memory", "refused", "refused"], "{ran:?}");
    assert!(!rig.sh("ls /run/secrets").text().contains("new"));
    assert!(rig.containers().is_empty());
}
