//! Files from web servers: checked, bounded, and from allowed hosts only.

use std::io::Read;
use std::path::Path;

use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::ids::Hash;
use sinew_crdt_state::remote::{ContentHash, HttpFile};
use sinew_node::exec::outcome::Failure;
use sinew_node::gather::{Gather, GatherError, GatherOptions, Hosts};

use crate::server::{Server, reply};
use crate::{answer, gather};

const BODY: &[u8] = b"what it should be\n";

fn file(url: String, size_max: u64) -> HttpFile {
    HttpFile { url, hash: ContentHash::Blake3(Hash(*blake3::hash(BODY).as_bytes())), size_max }
}

async fn fetch(gather: &Gather, file: &HttpFile) -> Result<Vec<u8>, Failure> {
    let dir = tempfile::tempdir().expect("dir");
    let mut got = Vec::new();
    gather.http(file, dir.path()).await?.read_to_end(&mut got).expect("read");
    assert_eq!(std::fs::read_dir(dir.path()).expect("dir").count(), 0, "nothing is left lying about");
    Ok(got)
}

/// The failure of a fetch, and whether it is for good.
async fn fails(gather: &Gather, file: &HttpFile) -> (ErrorCode, bool, String) {
    let failure = fetch(gather, file).await.expect_err("not to be had");
    (failure.code, !failure.retryable, failure.message)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_fetched_and_checked() {
    let server = Server::start(answer(|asked| match asked.path.as_str() {
        "/there" => reply("302 Found", "Location: /here?x=1\r\n", b""),
        "/here?x=1" => reply("200 OK", "", BODY),
        _ => reply("404 Not Found", "", b"no"),
    }));
    let gather = gather(&["127.0.0.1"], None);
    assert_eq!(fetch(&gather, &file(server.url("/there"), 100)).await.expect("file"), BODY);
    let sha = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
    let wrong = HttpFile { hash: sha.parse().expect("hash"), ..file(server.url("/here?x=1"), 100) };
    let (code, for_good, message) = fails(&gather, &wrong).await;
    assert_eq!((code, for_good), (ErrorCode::Fetch, true));
    // What it should have been, and what it is.
    assert!(message.contains(sha) && message.contains("its hash is sha256:"), "{message}");
    let found = message.split("its hash is ").nth(1).and_then(|rest| rest.split(',').next()).expect("a hash");
    let right = HttpFile { hash: found.parse().expect("hash"), ..wrong };
    assert_eq!(fetch(&gather, &right).await.expect("file"), BODY);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_refuses_fails_for_good_and_what_passes_does_not() {
    let server = Server::start(answer(|asked| match asked.path.as_str() {
        "/busy" => reply("503 Service Unavailable", "", b""),
        "/often" => reply("429 Too Many Requests", "", b""),
        "/cut" => b"HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\nwhat it".to_vec(),
        "/loop" => reply("302 Found", "Location: /loop\r\n", b""),
        _ => reply("404 Not Found", "", b""),
    }));
    let gather = gather(&["127.0.0.1"], None);
    for (path, for_good) in [("/none", true), ("/busy", false), ("/often", false), ("/cut", false), ("/loop", false)] {
        let (code, found, message) = fails(&gather, &file(server.url(path), 100)).await;
        assert_eq!((code, found), (ErrorCode::Fetch, for_good), "{path}: {message}");
        assert!(message.contains(path), "{message}");
    }
    let url = server.url("/busy");
    drop(server);
    let (code, for_good, _) = fails(&gather, &file(url, 100)).await;
    assert_eq!((code, for_good), (ErrorCode::Fetch, false), "nobody listens any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_is_taken_than_was_agreed() {
    let server = Server::start(answer(|asked| match asked.path.as_str() {
        "/told" => reply("200 OK", "", BODY),
        _ => [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".to_vec(), vec![b'x'; 1 << 20]].concat(),
    }));
    let gather = gather(&["127.0.0.1"], None);
    for path in ["/told", "/untold"] {
        let (code, for_good, message) = fails(&gather, &file(server.url(path), BODY.len() as u64 - 1)).await;
        assert_eq!((code, for_good), (ErrorCode::Fetch, true), "{path}");
        assert!(message.contains("size_max"), "{message}");
    }
    assert_eq!(fetch(&gather, &file(server.url("/told"), BODY.len() as u64)).await.expect("file"), BODY);
}

/// Neither an address, nor a name that leads to it, nor a redirect gets a job into the node's own network.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_that_are_not_allowed_hear_nothing() {
    let inner = Server::start(answer(|_| reply("200 OK", "", BODY)));
    let port = inner.address.port();
    let to = format!("Location: http://127.0.0.1:{port}/x\r\n");
    let outer = Server::start(answer(move |_| reply("307 Temporary Redirect", &to, b"")));
    let by_name = |server: &Server| format!("http://localhost:{}/x", server.address.port());
    for (rules, url) in [
        (&["*"][..], inner.url("/x")),
        (&["*"], by_name(&inner)),
        (&[], inner.url("/x")),
        (&["data.example"], by_name(&inner)),
        (&["localhost"], by_name(&outer)),
    ] {
        let (code, _, message) = fails(&gather(rules, None), &file(url.clone(), 100)).await;
        assert_eq!(code, ErrorCode::Deny, "{rules:?} {url}: {message}");
        assert!(message.contains("gather_hosts"), "{message}");
    }
    assert_eq!((inner.asked(), outer.asked()), (0, 1));
    let named = gather(&["localhost", "127.0.0.1"], None);
    assert_eq!(fetch(&named, &file(by_name(&outer), 100)).await.expect("file"), BODY);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_checked_and_not_left_again() {
    let dir = tempfile::tempdir().expect("dir");
    let ca = dir.path().join("ca.pem");
    let plain = Server::start(answer(|_| reply("200 OK", "", BODY)));
    let down = format!("Location: http://localhost:{}/\r\n", plain.address.port());
    let server = Server::start_tls(
        answer(move |asked| match asked.path.as_str() {
            "/down" => reply("302 Found", &down, b""),
            _ => reply("200 OK", "", BODY),
        }),
        &ca,
    );
    let url = |path: &str| file(format!("https://localhost:{}{path}", server.address.port()), 100);
    let trusting = gather(&["localhost"], Some(&ca));
    assert_eq!(fetch(&trusting, &url("/x")).await.expect("file"), BODY);
    let (code, for_good, message) = fails(&gather(&["localhost"], None), &url("/x")).await;
    assert_eq!((code, for_good), (ErrorCode::Fetch, false));
    assert!(message.to_lowercase().contains("cert"), "{message}");
    let (_, _, message) = fails(&trusting, &url("/down")).await;
    assert!(message.contains("https to http"), "{message}");
    assert_eq!(plain.asked(), 0);
}

#[test]
fn a_file_of_certificates_that_is_none_is_named() {
    let dir = tempfile::tempdir().expect("dir");
    let empty = dir.path().join("empty.pem");
    std::fs::write(&empty, "not a certificate\n").expect("write");
    for path in [&empty, Path::new("/nowhere.pem")] {
        let options = GatherOptions { hosts: Hosts::parse(&[]).expect("hosts"), ca: Some(path.to_owned()) };
        let refused = Gather::new(options, sinew_node::exec::guardian::NodeTag::new("ca")).expect_err("refused");
        assert!(matches!(&refused, GatherError::Ca { .. }), "{refused}");
        assert!(refused.to_string().contains("gather_ca") && refused.to_string().contains("PEM"), "{refused}");
    }
}
