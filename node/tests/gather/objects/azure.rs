//! An Azure Blob endpoint of the test's own: it recomputes signatures as Microsoft describes them (Shared Key, service SAS).

use std::collections::BTreeMap;

use data_encoding::{BASE64, HEXLOWER};
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::object::ObjectFile;

use super::{BODY, HEADERS, fails, fetch, hmac_sha256, object, secret};
use crate::server::{Asked, Server, reply};
use crate::{answer, gather};

const KEY: &[u8] = b"a key of the account";

/// What <https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key> says is signed; our requests have no
/// body, no conditions and no query.
fn shared_key(asked: &Asked) -> String {
    let ours: BTreeMap<String, &str> = asked
        .headers
        .iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim()))
        .filter(|(name, _)| name.starts_with("x-ms-"))
        .collect();
    let ours: String = ours.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    let [date, range] = ["date", "range"].map(|name| asked.header(name).unwrap_or_default());
    let signed = format!("{}\n\n\n\n\n\n{date}\n\n\n\n\n{range}\n{ours}/acct{}", asked.method, asked.path);
    format!("SharedKey acct:{}", BASE64.encode(&hmac_sha256(KEY, signed.as_bytes())))
}

/// A service SAS for reading the blob, version 2020-12-06: 16 fields, of which those that are not used are empty.
fn sas(blob: &str) -> String {
    let (start, end, version) = ("2026-01-01T00:00:00Z", "2999-01-01T00:00:00Z", "2020-12-06");
    let fields = ["r", start, end, blob, "", "", "https", version, "b", "", "", "", "", "", "", ""];
    let signature = BASE64.encode(&hmac_sha256(KEY, fields.join("\n").as_bytes()));
    let quoted = url::form_urlencoded::byte_serialize(signature.as_bytes()).collect::<String>();
    format!("sv={version}&st={start}&se={end}&sr=b&sp=r&spr=https&sig={quoted}")
}

/// Refuses as Azure does, which echoes what was signed.
fn refused(asked: &Asked) -> Vec<u8> {
    let told = format!(
        "<Error><Code>AuthenticationFailed</Code><AuthenticationErrorDetail>{} {}</AuthenticationErrorDetail></Error>",
        asked.path,
        asked.header("authorization").unwrap_or_default()
    );
    reply("403 Forbidden", "x-ms-error-code: AuthenticationFailed\r\n", told.as_bytes())
}

fn serve(asked: &Asked) -> Vec<u8> {
    let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
    let pairs = |query: &str| url::form_urlencoded::parse(query.as_bytes()).into_owned().collect::<BTreeMap<_, _>>();
    let opened = match asked.header("authorization") {
        Some(given) => given == shared_key(asked),
        None => pairs(query) == pairs(&sas(&format!("/blob/acct{path}"))),
    };
    match path {
        _ if asked.method != "GET" || asked.header("x-ms-version").is_none() => reply("400 Bad Request", "", b""),
        "/public/x" if query.is_empty() => reply("200 OK", HEADERS, BODY),
        _ if !opened => refused(asked),
        "/data/a/b%20c" => reply("200 OK", HEADERS, BODY),
        _ => reply("404 Not Found", "x-ms-error-code: BlobNotFound\r\n", b""),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_key_opens_a_container() {
    let server = Server::start(answer(serve));
    let gather = gather(&["127.0.0.1"], None);
    let at = |url: &str| object(url, Some(server.url("")));
    let keys = |key: &[u8]| format!("account_key = \"{}\"\n", BASE64.encode(key));
    let right = keys(KEY);
    assert_eq!(fetch(&gather, &secret(at("az://data/a/b c")), Some(&right)).await.expect("blob"), BODY);
    assert_eq!(fetch(&gather, &at("az://public/x"), None).await.expect("blob"), BODY);
    let other = ObjectFile { account: Some("other".to_owned()), ..secret(at("az://data/a/b c")) };
    for (file, keys, word) in [
        (secret(at("az://data/a/b c")), Some(keys(b"another key entirely")), "403 AuthenticationFailed"),
        (other, Some(right.clone()), "do not open"),
        (at("az://data/a/b c"), None, "not public"),
        (secret(at("az://data/none")), Some(right.clone()), "404 BlobNotFound"),
    ] {
        let (code, for_good, message) = fails(&gather, &file, keys.as_deref()).await;
        assert_eq!((code, for_good), (ErrorCode::Fetch, true), "{message}");
        assert!(message.contains(word), "{message}");
        assert!(!message.contains("SharedKey"), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sas_token_opens_a_blob() {
    let dir = tempfile::tempdir().expect("dir");
    let ca = dir.path().join("ca.pem");
    let server = Server::start_tls(answer(serve), &ca);
    let gather = gather(&["localhost"], Some(&ca));
    let at = |url: &str| secret(object(url, Some(format!("https://localhost:{}", server.address.port()))));
    let token = |token: String| format!("sas_token = \"{token}\"\n");
    let right = token(sas("/blob/acct/data/a/b%20c"));
    assert_eq!(fetch(&gather, &at("az://data/a/b c"), Some(&right)).await.expect("blob"), BODY);
    let elsewhere = token(format!("?{}", sas("/blob/acct/data/elsewhere")));
    let forged = token(right.replace("sp=r", "sp=rwd").split('"').nth(1).expect("token").to_owned());
    for keys in [elsewhere, forged, token(format!("sv=2020-12-06&sig={}", HEXLOWER.encode(KEY)))] {
        let (code, for_good, message) = fails(&gather, &at("az://data/a/b c"), Some(&keys)).await;
        assert_eq!((code, for_good), (ErrorCode::Fetch, true), "{message}");
        assert!(message.contains("403 AuthenticationFailed") && !message.contains("sig="), "{message}");
    }
    // Nothing of the token in what is said when nobody answers, either.
    let file = at("az://data/a/b c");
    drop(server);
    let (code, for_good, message) = fails(&gather, &file, Some(&right)).await;
    assert_eq!((code, for_good), (ErrorCode::Fetch, false));
    assert!(!message.contains("sig"), "{message}");
}
