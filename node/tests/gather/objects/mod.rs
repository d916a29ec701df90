//! Objects from stores: an S3 server that checks signatures, endpoints of the tests' own that check what Azure and Google check,
//! and directories of the node.

mod azure;
mod gcs;
mod local;
mod s3;
mod transfer;

use std::io::Read;

use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::ids::Hash;
use sinew_crdt_state::object::ObjectFile;
use sinew_crdt_state::remote::ContentHash;
use sinew_node::exec::outcome::Failure;
use sinew_node::gather::Gather;

const BODY: &[u8] = b"what it should be\n";
/// When everything here was last modified.
const HEADERS: &str = "ETag: \"e1\"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n";

/// An object with this content.
fn object(url: &str, endpoint: Option<String>) -> ObjectFile {
    ObjectFile {
        url: url.to_owned(),
        hash: ContentHash::Blake3(Hash(*blake3::hash(BODY).as_bytes())),
        size_max: 100,
        endpoint,
        region: None,
        account: url.starts_with("az://").then(|| "acct".to_owned()),
        credentials: None,
    }
}

/// The same, with a secret.
fn secret(object: ObjectFile) -> ObjectFile {
    ObjectFile { credentials: Some("KEYS".to_owned()), ..object }
}

async fn fetch(gather: &Gather, file: &ObjectFile, secret: Option<&str>) -> Result<Vec<u8>, Failure> {
    let dir = tempfile::tempdir().expect("dir");
    let mut got = Vec::new();
    gather.object(file, secret.map(str::as_bytes), dir.path()).await?.read_to_end(&mut got).expect("read");
    assert_eq!(std::fs::read_dir(dir.path()).expect("dir").count(), 0, "nothing is left lying about");
    Ok(got)
}

/// The failure of a fetch, whether it is for good, and what it says; which names the object and nothing of the secret.
async fn fails(gather: &Gather, file: &ObjectFile, secret: Option<&str>) -> (ErrorCode, bool, String) {
    let failure = fetch(gather, file, secret).await.expect_err("not to be had");
    assert!(failure.message.contains(&file.url), "{}", failure.message);
    let words = secret.into_iter().flat_map(|text| text.split(['"', '\n', ' ', '&', '?', '=']));
    for word in words.filter(|word| word.len() > 6 && !NO_SECRETS.contains(word)) {
        assert!(!failure.message.contains(word), "{word} in {}", failure.message);
    }
    (failure.code, !failure.retryable, failure.message)
}

/// Words of a secret's form.
const NO_SECRETS: [&str; 9] = [
    "access_key_id",
    "secret_access_key",
    "session_token",
    "account_key",
    "sas_token",
    "private_key",
    "PRIVATE",
    "client_email",
    "private_key_id",
];

/// The `ring` key that a test's server checks with.
fn hmac_sha256(key: &[u8], text: &[u8]) -> Vec<u8> {
    ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key), text).as_ref().to_vec()
}

/// None of this gets a secret's text into a message; each is the job's fault, wherever it runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_that_are_none_of_a_store_are_refused_and_not_quoted() {
    let gather = crate::gather(&["*"], None);
    let key = "access_key_id = \"AKIDEXAMPLE\"\n";
    let s3 = || secret(object("s3://bucket/key", None));
    let az = || secret(object("az://container/key", None));
    let gs = || secret(object("gs://bucket/key", None));
    for (file, text) in [
        (s3(), String::new()),
        (s3(), "wJalrXUtnFEMI/K7MDENG".to_owned()),
        (s3(), key.to_owned()),
        (s3(), format!("{key}secret_access_key = 1234567")),
        (s3(), format!("{key}secret_access_key = \"topsecret\"\nwJalrXUtnFEMI = \"x\"")),
        (s3(), "access_key_id = \"AKID\\nX-Evil\"\nsecret_access_key = \"topsecret\"".to_owned()),
        (az(), String::new()),
        (az(), "account_key = \"c2VjcmV0c2VjcmV0\"\nsas_token = \"sv=1&sig=topsecret\"".to_owned()),
        (az(), "account_key = \"not base64 !!!!\"".to_owned()),
        (gs(), "{\"client_email\":\"somebody@example\"}".to_owned()),
        (
            gs(),
            "{\"client_email\":\"somebody@example\",\"private_key\":\"topsecret\",\"private_key_id\":\"keyid-12\"}"
                .to_owned(),
        ),
    ] {
        let (code, for_good, message) = fails(&gather, &file, Some(&text)).await;
        assert_eq!((code, for_good), (ErrorCode::Invalid, true), "{text}: {message}");
    }
    let (code, _, message) = fails(&gather, &s3(), None).await;
    assert_eq!(code, ErrorCode::Invalid);
    assert!(message.contains("KEYS"), "{message}");
    // What would be told to anybody on the way.
    for (file, text) in [
        (ObjectFile { endpoint: Some("http://127.0.0.1:1".to_owned()), ..az() }, "sas_token = \"sv=1&sig=topsecret\""),
        (ObjectFile { endpoint: Some("http://127.0.0.1:1".to_owned()), ..gs() }, &*gcs::account()),
    ] {
        let (code, _, message) = fails(&gather, &file, Some(text)).await;
        assert_eq!(code, ErrorCode::Invalid);
        assert!(message.contains("in the clear"), "{message}");
    }
}
