//! What goes wrong on the way, from a server that answers as it is told.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::object::ObjectFile;

use super::{BODY, HEADERS, fails, fetch, object, secret};
use crate::server::{Asked, Server, reply};
use crate::{answer, gather};

/// Requests that one fetch makes at most.
const TRIES: usize = 4;

fn at(server: &Server, key: &str) -> ObjectFile {
    object(&format!("s3://bucket/{key}"), Some(server.url("")))
}

fn refusal(status: &str, headers: &str, code: &str) -> Vec<u8> {
    let body = format!(
        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>x</Message>\
         <AWSAccessKeyId>AKIDEXAMPLE</AWSAccessKeyId><StringToSign>topsecret</StringToSign></Error>"
    );
    reply(status, &format!("Content-Type: application/xml\r\n{headers}"), body.as_bytes())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_store_refuses_fails_at_once_and_what_passes_is_tried_again() {
    let server = Server::start(answer(|asked| match asked.path.as_str() {
        "/bucket/busy" => refusal("503 Service Unavailable", "", "SlowDown"),
        "/bucket/often" => refusal("429 Too Many Requests", "", "TooManyRequests"),
        "/bucket/closed" => refusal("403 Forbidden", "", "AccessDenied"),
        "/bucket/late" => refusal("403 Forbidden", "", "RequestTimeTooSkewed"),
        "/bucket/odd" => refusal("400 Bad Request", "", "<topsecret&>"),
        "/bucket/page" => b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n<html>".to_vec(),
        "/bucket/elsewhere" => {
            refusal("301 Moved Permanently", "x-amz-bucket-region: eu-west-3\r\n", "PermanentRedirect")
        }
        "/bucket/region" => {
            refusal("400 Bad Request", "x-amz-bucket-region: eu-west-3\r\n", "AuthorizationHeaderMalformed")
        }
        _ => refusal("404 Not Found", "", "NoSuchKey"),
    }));
    let gather = gather(&["127.0.0.1"], None);
    let keys = "access_key_id = \"AKIDEXAMPLE\"\nsecret_access_key = \"topsecret\"\n";
    let mut asked = 0;
    for (key, for_good, tries, word) in [
        ("none", true, 1, "NoSuchKey"),
        ("busy", false, TRIES, "503 SlowDown"),
        ("often", false, TRIES, "429"),
        ("closed", true, 1, "403 AccessDenied"),
        ("late", false, 1, "clock"),
        ("odd", true, 1, "says 400"),
        ("page", true, 1, "endpoint"),
        ("elsewhere", true, 1, "its region is eu-west-3"),
        ("region", true, 1, "its region is eu-west-3"),
    ] {
        let (code, found, message) = fails(&gather, &secret(at(&server, key)), Some(keys)).await;
        assert_eq!((code, found), (ErrorCode::Fetch, for_good), "{key}: {message}");
        assert!(message.contains(word), "{key}: {message}");
        assert_eq!(server.asked() - asked, tries, "{key}");
        asked = server.asked();
    }
    let file = at(&server, "x");
    drop(server);
    let (code, for_good, _) = fails(&gather, &file, None).await;
    assert_eq!((code, for_good), (ErrorCode::Fetch, false), "nobody listens any more");
}

/// The rest of an object, as asked for.
fn part(asked: &Asked) -> Vec<u8> {
    let range = asked.header("range").and_then(|range| range.strip_prefix("bytes="));
    let Some((from, to)) = range.and_then(|range| range.split_once('-')) else {
        let cut = format!("HTTP/1.1 200 OK\r\n{HEADERS}Content-Length: {}\r\n\r\n", BODY.len());
        return [cut.as_bytes(), &BODY[..7]].concat();
    };
    let (from, to): (usize, usize) = (from.parse().expect("from"), to.parse().expect("to"));
    let headers = format!("{HEADERS}Content-Range: bytes {from}-{to}/{}\r\n", BODY.len());
    reply("206 Partial Content", &headers, &BODY[from..=to])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_that_breaks_off_is_taken_up_again() {
    let (busy, count) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (busy_of, parts_of) = (Arc::clone(&busy), Arc::clone(&count));
    let server = Server::start(answer(move |asked| match asked.path.as_str() {
        "/bucket/busy" if busy_of.fetch_add(1, Ordering::SeqCst) < 2 => refusal("503 Unavailable", "", "SlowDown"),
        "/bucket/cut" => {
            parts_of.fetch_add(1, Ordering::SeqCst);
            part(asked)
        }
        "/bucket/always-cut" => {
            let head = format!("HTTP/1.1 200 OK\r\n{HEADERS}Content-Length: {}\r\n\r\n", BODY.len());
            [head.as_bytes(), &BODY[..7]].concat()
        }
        _ => reply("200 OK", HEADERS, BODY),
    }));
    let gather = gather(&["127.0.0.1"], None);
    assert_eq!(fetch(&gather, &at(&server, "busy"), None).await.expect("object"), BODY);
    assert_eq!(busy.load(Ordering::SeqCst), 3);
    assert_eq!(fetch(&gather, &at(&server, "cut"), None).await.expect("object"), BODY);
    assert_eq!(count.load(Ordering::SeqCst), 2, "it was cut, and the rest was asked for");
    let (code, for_good, message) = fails(&gather, &at(&server, "always-cut"), None).await;
    assert_eq!((code, for_good), (ErrorCode::Fetch, false), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_says_nothing_is_given_up() {
    let (hold, held) = std::sync::mpsc::channel::<()>();
    let held = Mutex::new(held);
    let server = Server::start(answer(move |_| {
        let _ = held.lock().map(|held| held.recv());
        Vec::new()
    }));
    let gather = gather(&["127.0.0.1"], None).with_silence_max(Duration::from_millis(200)).expect("gather");
    let (code, for_good, message) = fails(&gather, &at(&server, "x"), None).await;
    assert_eq!((code, for_good), (ErrorCode::Fetch, false), "{message}");
    assert!(message.contains("timed out"), "{message}");
    drop(hold);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_is_not_followed_wherever_it_leads() {
    let inner = Server::start(answer(|_| reply("200 OK", HEADERS, BODY)));
    let to = format!("Location: http://127.0.0.1:{}/bucket/x\r\n", inner.address.port());
    let outer = Server::start(answer(move |_| reply("307 Temporary Redirect", &to, b"")));
    let by_name = Some(format!("http://localhost:{}", outer.address.port()));
    for (rules, url) in
        [(&["localhost"][..], "s3://b/x"), (&["localhost", "127.0.0.1"], "az://b/x"), (&["localhost"], "gs://b/x")]
    {
        let (code, for_good, message) = fails(&gather(rules, None), &object(url, by_name.clone()), None).await;
        assert_eq!((code, for_good), (ErrorCode::Fetch, true), "{message}");
        assert!(message.contains("redirects are not followed"), "{message}");
    }
    assert_eq!((outer.asked(), inner.asked()), (3, 0));
}

/// A refusal that never ends does not fill memory, and the first of it is read all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_refusal_is_cut_off() {
    let server = Server::start(answer(|_| {
        let told =
            b"HTTP/1.1 403 Forbidden\r\nContent-Length: 1000000000000\r\n\r\n<Error><Code>Endless</Code>".to_vec();
        [told, vec![b' '; 8 << 20]].concat()
    }));
    let gather = gather(&["127.0.0.1"], None);
    let (code, for_good, message) = fails(&gather, &at(&server, "x"), None).await;
    assert_eq!((code, for_good), (ErrorCode::Fetch, true));
    assert!(message.contains("403 Endless"), "{message}");
}

const INNER: &str = "SINEW_TEST_WITH_CREDENTIALS_AROUND";

/// In a process whose environment and home hold credentials for every store and point at a metadata service, none is used.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nodes_own_credentials_are_never_used() {
    let seen: Arc<Mutex<Vec<BTreeMap<String, String>>>> = Arc::default();
    let requests = Arc::clone(&seen);
    let server = Server::start(answer(move |asked| {
        let mut headers: BTreeMap<String, String> =
            asked.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect();
        headers.insert("path".to_owned(), asked.path.clone());
        requests.lock().expect("seen").push(headers);
        reply("200 OK", HEADERS, BODY)
    }));
    if std::env::var_os(INNER).is_none() {
        let home = tempfile::tempdir().expect("home");
        std::fs::create_dir_all(home.path().join(".config/gcloud")).expect("dir");
        let user = "{\"type\":\"authorized_user\",\"client_id\":\"a\",\"client_secret\":\"b\",\"refresh_token\":\"c\"}";
        std::fs::write(home.path().join(".config/gcloud/application_default_credentials.json"), user).expect("file");
        std::fs::write(home.path().join("sa.json"), super::gcs::account()).expect("file");
        let metadata = server.url("/metadata");
        let mut again = Command::new(std::env::current_exe().expect("this test"));
        again.args(["--exact", "objects::transfer::the_nodes_own_credentials_are_never_used"]).env(INNER, "1");
        again.env("HOME", home.path()).env("GOOGLE_APPLICATION_CREDENTIALS", home.path().join("sa.json"));
        again.env("SERVICE_ACCOUNT", home.path().join("sa.json")).env("GCE_METADATA_HOST", server.address.to_string());
        for (name, value) in [
            ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
            ("AWS_SECRET_ACCESS_KEY", "topsecret"),
            ("AWS_SESSION_TOKEN", "token"),
            ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/x"),
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &metadata),
            ("AWS_METADATA_ENDPOINT", &metadata),
            ("AWS_ENDPOINT_URL", &metadata),
            ("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0"),
            ("AZURE_STORAGE_SAS_KEY", "sv=1&sig=2"),
            ("IDENTITY_ENDPOINT", &metadata),
            ("MSI_ENDPOINT", &metadata),
            ("HTTP_PROXY", &metadata),
            ("http_proxy", &metadata),
        ] {
            again.env(name, value);
        }
        let output = again.output().expect("run");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        assert_eq!(server.asked(), 0, "neither as a metadata service nor as a proxy");
        return;
    }
    let gather = gather(&["127.0.0.1"], None);
    for url in ["s3://b/x", "az://b/x", "gs://b/x"] {
        assert_eq!(fetch(&gather, &object(url, Some(server.url(""))), None).await.expect("object"), BODY);
    }
    let seen = seen.lock().expect("seen");
    assert_eq!(seen.iter().map(|headers| &*headers["path"]).collect::<Vec<_>>(), ["/b/x"; 3]);
    for headers in seen.iter() {
        let given = headers.keys().filter(|name| name.contains("auth") || name.contains("token"));
        assert_eq!(given.collect::<Vec<_>>(), Vec::<&String>::new());
    }
}
