//! What a manifest says of secrets, and what users get wrong with them.

use super::super::DraftSource;
use super::{draft, problems};
use crate::secret::{SecretPlace, SecretUse};

#[test]
fn secrets_and_their_mistakes() {
    let text = |secrets: &str| format!("type = \"batch\"\nenv.A = \"1\"\nsecrets = [{secrets}]\nbatch.command = \"a\"");
    let found = draft(&text("{ name = \"db\", env = \"DB\" }, { name = \"db\", file = \"k.pem\" }")).secrets;
    let of = |place| SecretUse { name: "db".to_owned(), place };
    let wanted = [of(SecretPlace::Env("DB".to_owned())), of(SecretPlace::File("k.pem".to_owned()))];
    assert_eq!(found, wanted);
    for (secrets, path, word) in [
        ("{ env = \"DB\" }", "secrets[0].name", "sinew secret set"),
        ("{ name = \"a\" }", "secrets[0]", "exactly one"),
        ("{ name = \"a\", env = \"A1\", file = \"f\" }", "secrets[0]", "exactly one"),
        ("{ name = \"a\", enf = \"A1\" }", "secrets[0].enf", "did you mean `env`"),
        ("{ name = \"a\", env = 1 }", "secrets[0].env", "quotes"),
        ("{ name = \"a b\", env = \"A1\" }", "secrets[0].name", "letters"),
        ("{ name = \"a\", env = \"A\" }", "secrets[0].env", "one of them"),
        ("{ name = \"a\", env = \"SINEW_X\" }", "secrets[0].env", "another name"),
        ("{ name = \"a\", file = \"../x\" }", "secrets[0].file", "directories"),
        ("{ name = \"a\", env = \"X\" }, { name = \"b\", env = \"X\" }", "secrets[1].env", "another `env`"),
        ("1", "secrets[0]", "keys"),
    ] {
        let found = problems(&text(secrets));
        assert!(found.iter().any(|p| p.path == path && p.mend.contains(word)), "{secrets}: {found:?}");
    }
    let git =
        "git = \"https://a/b\", revision = \"0123456789012345678901234567890123456789\", to = \"x\", token = \"T\"";
    let with = |input: &str| format!("type = \"batch\"\n[batch]\ncommand = \"a\"\ninputs = [{{ {input} }}]");
    assert!(
        matches!(&draft(&with(git)).files()[0].source, DraftSource::Git(tree) if tree.token.as_deref() == Some("T"))
    );
    assert!(problems(&with(&git.replace("https", "http"))).iter().any(|p| p.mend.contains("https://")));
    assert!(problems(&with("path = \"x\", token = \"T\"")).iter().any(|p| p.path.ends_with(".token")));
}
