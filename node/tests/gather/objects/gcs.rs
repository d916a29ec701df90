//! A Google Cloud Storage endpoint of the test's own: it checks the signature and the claims of the token.

use std::time::{SystemTime, UNIX_EPOCH};

use data_encoding::BASE64URL_NOPAD;
use ring::signature::{KeyPair, RSA_PKCS1_2048_8192_SHA256, RsaKeyPair, UnparsedPublicKey};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use sinew_crdt_state::error_code::ErrorCode;

use super::{BODY, HEADERS, fails, fetch, object, secret};
use crate::server::{Asked, Server, reply};
use crate::{answer, gather};

/// Made for these tests; it opens nothing.
const KEY: &str = include_str!("service-account-of-the-tests.pem");

/// As Google gives it out, with what says where tokens come from: nobody asks there.
fn account_of(email: &str) -> String {
    json!({
        "type": "service_account",
        "project_id": "p",
        "private_key_id": "key-1",
        "private_key": KEY,
        "client_email": email,
        "token_uri": "http://127.0.0.1:1/token",
        "gcs_base_url": "http://127.0.0.1:1",
        "disable_oauth": true,
    })
    .to_string()
}

pub(crate) fn account() -> String {
    account_of("reader@p.example")
}

/// Who signed the token, if it is right.
fn signer(asked: &Asked) -> Option<String> {
    let token = asked.header("authorization")?.strip_prefix("Bearer ")?;
    let (signed, signature) = token.rsplit_once('.')?;
    let (head, claims) = signed.split_once('.')?;
    let decode = |part: &str| BASE64URL_NOPAD.decode(part.as_bytes()).ok();
    let json = |part: &str| serde_json::from_slice::<Value>(&decode(part)?).ok();
    let key = PrivatePkcs8KeyDer::from_pem_slice(KEY.as_bytes()).expect("pem");
    let key = RsaKeyPair::from_pkcs8(key.secret_pkcs8_der()).expect("key");
    let public = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key.public_key());
    public.verify(signed.as_bytes(), &decode(signature)?).ok()?;
    let (head, claims) = (json(head)?, json(claims)?);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
    let valid = claims["iat"].as_u64()? <= now && now < claims["exp"].as_u64()? && head["kid"] == "key-1";
    let scoped = claims["scope"].as_str()?.starts_with("https://www.googleapis.com/auth/");
    (valid && scoped && head["alg"] == "RS256").then(|| claims["iss"].as_str().map(str::to_owned))?
}

fn serve(asked: &Asked) -> Vec<u8> {
    let refusal =
        |status: &str, code: &str| reply(status, "", format!("<Error><Code>{code}</Code></Error>").as_bytes());
    match (asked.path.as_str(), asked.header("authorization").is_some(), signer(asked).as_deref()) {
        ("/public/x", false, _) => reply("200 OK", HEADERS, BODY),
        (_, true, None) => refusal("401 Unauthorized", "InvalidToken"),
        ("/data/a%2Fb", _, Some("reader@p.example")) => reply("200 OK", HEADERS, BODY),
        ("/data/a%2Fb", ..) => refusal("403 Forbidden", "AccessDenied"),
        _ => refusal("404 Not Found", "NoSuchKey"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_account_opens_a_bucket() {
    let dir = tempfile::tempdir().expect("dir");
    let ca = dir.path().join("ca.pem");
    let server = Server::start_tls(answer(serve), &ca);
    let gather = gather(&["localhost"], Some(&ca));
    let at = |url: &str| object(url, Some(format!("https://localhost:{}/", server.address.port())));
    let right = account();
    assert_eq!(fetch(&gather, &secret(at("gs://data/a/b")), Some(&right)).await.expect("object"), BODY);
    assert_eq!(fetch(&gather, &at("gs://public/x"), None).await.expect("object"), BODY);
    for (file, keys, word) in [
        (secret(at("gs://data/a/b")), Some(account_of("other@p.example")), "403 AccessDenied"),
        (secret(at("gs://data/a/b")), Some(right.replace("key-1", "key-2")), "401 InvalidToken"),
        (at("gs://data/a/b"), None, "not public"),
        (secret(at("gs://data/none")), Some(right), "404 NoSuchKey"),
    ] {
        let (code, for_good, message) = fails(&gather, &file, keys.as_deref()).await;
        assert_eq!((code, for_good), (ErrorCode::Fetch, true), "{message}");
        assert!(message.contains(word), "{message}");
    }
}
