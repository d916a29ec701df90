//! What becomes of images: whose they are, what is refused, and that a host's own stay as they were.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use bollard::query_parameters::{
    EventsOptionsBuilder, ImportImageOptionsBuilder, ListImagesOptionsBuilder, RemoveImageOptions,
    TagImageOptionsBuilder,
};
use futures::{StreamExt, TryStreamExt};
use serde_json::json;
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::program::{Container, ImageOf};
use sinew_node::exec::runner::Runner;
use sinew_node::gather::Hosts;

use crate::engine::TestEngine;
use crate::image::{Made, Recipe, digest, make, tar};
use crate::rig::{Rig, options};

/// Loads an archive as the machine's owner would.
fn load(rig: &Rig, archive: &[u8]) {
    let body = bytes::Bytes::copy_from_slice(archive);
    let options = ImportImageOptionsBuilder::default().build();
    let stream = futures::stream::iter([Ok::<_, std::io::Error>(body)]);
    let told: Result<Vec<_>, _> =
        rig.runtime.block_on(rig.client.import_image_stream(options, stream, None).try_collect());
    told.expect("load");
}

fn remove(rig: &Rig, image: &str) {
    rig.runtime.block_on(rig.client.remove_image(image, None::<RemoveImageOptions>, None)).expect("remove");
}

/// All images, by id.
fn all(rig: &Rig) -> Vec<String> {
    let options = ListImagesOptionsBuilder::default().all(true).build();
    let found = rig.runtime.block_on(rig.client.list_images(Some(options))).expect("images");
    found.into_iter().map(|image| image.id).collect()
}

/// How often an image was loaded since `since`.
fn loads(rig: &Rig, since: u64) -> usize {
    let now = sinew_node::clock::unix_ms() / 1_000 + 1;
    let filters: std::collections::HashMap<&str, Vec<&str>> = [("event", vec!["load"])].into();
    let options = EventsOptionsBuilder::default().since(&since.to_string()).until(&now.to_string()).filters(&filters);
    rig.runtime.block_on(rig.client.events(Some(options.build())).collect::<Vec<_>>()).len()
}

#[test]
fn an_archives_tags_change_nothing_on_the_host() {
    let Some(engine) = TestEngine::shared() else { return };
    let mut rig = Rig::of(&engine, |_| {});
    let tag = "host/app:1";
    let own = make(&Recipe { tags: vec![tag], mark: "the host's own", ..Recipe::default() });
    load(&rig, &own.archive);
    assert_eq!(rig.tags_of(tag), Some(vec![tag.to_owned()]));
    // The same archive, loaded as it is, would take the tag over.
    let thief = rig.image(&Recipe { tags: vec![tag, "host/new:1"], mark: "the job's", ..Recipe::default() });
    assert_eq!(rig.sh("cat /mark").text(), "the job's");
    assert_eq!(rig.tags_of(&own.id), Some(vec![tag.to_owned()]));
    assert_eq!(rig.tags_of(&thief.id), Some(Vec::new()));
    assert_eq!((rig.tags_of("host/new:1"), rig.tags_of("clobbered:latest")), (None, None));
    rig.runner.end_job("job");
    rig.runner.end_idle();
    assert_eq!((rig.tags_of(&thief.id), rig.tags_of(&own.id)), (None, Some(vec![tag.to_owned()])));
    load(&rig, &thief.archive);
    assert_eq!(rig.tags_of(&own.id), Some(Vec::new()), "the attack is one");
    rig.runtime.block_on(async {
        for id in [&thief.id, &own.id] {
            let options = bollard::query_parameters::RemoveImageOptionsBuilder::default().force(true).build();
            rig.client.remove_image(id, Some(options), None).await.expect("remove");
        }
    });
}

#[test]
fn an_image_is_loaded_once_and_goes_once_nobody_uses_it() {
    let Some(engine) = TestEngine::shared() else { return };
    let since = sinew_node::clock::unix_ms() / 1_000;
    let mut rig = Rig::of(&engine, |_| {});
    let made = rig.image(&Recipe { mark: "once", ..Recipe::default() });
    for _ in 0..3 {
        assert_eq!(rig.sh("cat /mark").text(), "once");
    }
    assert_eq!(loads(&rig, since), 1);
    // While the job goes on, it stays; the owner may remove it at any time.
    rig.runner.end_idle();
    assert_eq!(rig.tags_of(&made.id), Some(Vec::new()));
    remove(&rig, &made.id);
    assert_eq!(rig.sh("cat /mark").text(), "once");
    assert_eq!(loads(&rig, since), 2);
    // A daemon that starts anew knows it for its own.
    let next = options(&engine, &rig.node, rig.dir.path());
    let tag = sinew_node::exec::guardian::NodeTag::new(&rig.node);
    let next = sinew_node::exec::docker::DockerRunner::new(next, tag, rig.runtime.handle().clone());
    next.end_idle();
    assert_eq!(rig.tags_of(&made.id), None);
    assert_eq!(all(&rig), [] as [String; 0]);
}

#[test]
fn what_the_owner_has_or_names_stays() {
    let Some(engine) = TestEngine::shared() else { return };
    let mut rig = Rig::of(&engine, |_| {});
    let theirs = make(&Recipe { mark: "theirs, without a name", ..Recipe::default() });
    load(&rig, &theirs.archive);
    rig.archive(&theirs.archive);
    assert_eq!(rig.sh("cat /mark").text(), "theirs, without a name");
    let ours = rig.image(&Recipe { mark: "adopted", ..Recipe::default() });
    assert_eq!(rig.sh("cat /mark").text(), "adopted");
    let name = TagImageOptionsBuilder::default().repo("host/adopted").tag("1").build();
    rig.runtime.block_on(rig.client.tag_image(&ours.id, Some(name))).expect("tag");
    rig.runner.end_job("job");
    rig.runner.end_idle();
    rig.runner.end_idle();
    assert_eq!(rig.tags_of(&ours.id), Some(vec!["host/adopted:1".to_owned()]));
    assert_eq!(rig.tags_of(&theirs.id), Some(Vec::new()));
    remove(&rig, "host/adopted:1");
    remove(&rig, &theirs.id);
}

#[test]
fn compressed_layers_run_too() {
    let Some(engine) = TestEngine::shared() else { return };
    let mut rig = Rig::of(&engine, |_| {});
    rig.image(&Recipe { mark: "compressed", gzip: true, ..Recipe::default() });
    assert_eq!(rig.sh("cat /mark").text(), "compressed");
}

/// An archive with this manifest and these further files.
fn odd(manifest: &serde_json::Value, files: &[(&str, &[u8])]) -> Vec<u8> {
    let manifest = manifest.to_string();
    let mut all = vec![("manifest.json", manifest.as_bytes())];
    all.extend_from_slice(files);
    tar(&all)
}

#[test]
fn archives_that_are_none_are_refused_with_a_reason() {
    let Some(engine) = TestEngine::shared() else { return };
    let mut rig = Rig::of(&engine, |_| {});
    let Made { config, layer, .. } = make(&Recipe { mark: "odd", ..Recipe::default() });
    let image = json!({ "Config": "c.json", "RepoTags": null, "Layers": ["l.tar"] });
    let (c, l) = (("c.json", &config[..]), ("l.tar", &layer[..]));
    let other = tar(&[("mark", &b"another layer"[..])]);
    let sparse = {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNUSparse);
        header.set_size(0);
        header.as_gnu_mut().expect("gnu").set_real_size(1 << 50);
        header.set_cksum();
        [header.as_bytes(), &[0; 1_024][..]].concat()
    };
    let whole = odd(&json!([image]), &[c, l]);
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"not a tar file, but long enough to be taken for one. ".repeat(20), "tar"),
        (Vec::new(), "manifest.json"),
        (whole[..whole.len() / 2].to_vec(), "cut off"),
        (odd(&json!([image, image]), &[c, l]), "exactly one image"),
        (odd(&json!([]), &[c, l]), "exactly one image"),
        (odd(&json!({ "Config": 1 }), &[c, l]), "malformed manifest.json"),
        (odd(&json!([image]), &[c]), "lacks `l.tar`"),
        (odd(&json!([image]), &[l, ("c.json", b"{}")]), "malformed configuration"),
        (odd(&json!([image]), &[c, l, l]), "twice"),
        (odd(&json!([image]), &[c, l, ("../../etc/cron.d/x", b"x")]), "unsafe"),
        (odd(&json!([image]), &[c, l, ("/etc/passwd", b"x")]), "unsafe"),
        (odd(&json!([{ "Config": "c.json", "Layers": ["../l.tar"] }]), &[c, l]), "unsafe"),
        (odd(&json!([{ "Config": "c.json", "Layers": ["l.tar", "l.tar"] }]), &[c, l]), "2 layers and 1"),
        (odd(&json!([image]), &[c, ("l.tar", &b"\x28\xb5\x2f\xfd......"[..])]), "compressed"),
        (odd(&json!([image]), &[c, ("l.tar", &sparse)]), "sparse"),
        (odd(&json!([image]), &[c, ("l.tar", &b"junk".repeat(500))]), "layer that is no tar"),
        // The engine finds this out.
        (odd(&json!([image]), &[c, ("l.tar", &other)]), "does not take"),
    ];
    for (archive, why) in cases {
        rig.archive(&archive);
        let ran = rig.sh("true");
        let told = ran.fails_with(ErrorCode::Invalid);
        assert!(told.contains(why) && !ran.failure().retryable, "{why}: {told}");
    }
    assert_eq!(all(&rig), [] as [String; 0]);
    // The same pieces put together properly do run.
    rig.archive(&whole);
    assert_eq!(rig.sh("cat /mark").text(), "odd");
}

/// A registry with one image, on loopback, without encryption.
struct Registry {
    reference: String,
    port: u16,
}

impl Registry {
    fn start(made: &Made) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let port = listener.local_addr().expect("address").port();
        let part = |kind: &str, bytes: &[u8]| json!({ "mediaType": format!("application/vnd.docker.{kind}"), "size": bytes.len(), "digest": digest(bytes) });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": part("container.image.v1+json", &made.config),
            "layers": [part("image.rootfs.diff.tar.gzip", &made.layer)],
        })
        .to_string()
        .into_bytes();
        let reference = format!("127.0.0.1:{port}/team/app@{}", digest(&manifest));
        let parts = Arc::new(vec![manifest, made.config.clone(), made.layer.clone()]);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let parts = Arc::clone(&parts);
                // The engine may hang up at any time.
                std::thread::spawn(move || drop(answer(&stream, &parts)));
            }
        });
        Self { reference, port }
    }
}

fn answer(mut stream: &TcpStream, parts: &[Vec<u8>]) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        if head.is_empty() && byte[0] == 0x16 {
            // It tries encryption first: not here.
            return Ok(());
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default();
    let kind = "application/vnd.docker.distribution.manifest.v2+json";
    let part = parts.iter().find(|part| path.ends_with(&digest(part)));
    let (status, body): (_, &[u8]) = match part {
        Some(part) => ("200 OK", part),
        None if path == "/v2/" => ("200 OK", b"{}"),
        None => ("404 Not Found", b"{\"errors\":[{\"code\":\"MANIFEST_UNKNOWN\",\"message\":\"manifest unknown\"}]}"),
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nDocker-Distribution-Api-Version: registry/2.0\r\n\
         Docker-Content-Digest: {}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n",
        digest(body)
    )?;
    if head.starts_with("GET") { stream.write_all(body) } else { Ok(()) }
}

#[test]
fn an_image_named_by_its_digest_is_pulled_once_and_goes_again() {
    let Some(engine) = TestEngine::shared() else { return };
    let mut rig = Rig::of(&engine, |_| {});
    let registry = Registry::start(&make(&Recipe { mark: "pulled", gzip: true, ..Recipe::default() }));
    let of = |reference: &str| Container {
        image: ImageOf::Digest(reference.to_owned()),
        entrypoint: None,
        argv: Vec::new(),
        gpus: 0,
        health: None,
    };
    rig.container = of(&registry.reference);
    assert_eq!(rig.sh("cat /mark").text(), "pulled");
    assert_eq!(rig.sh("cat /mark").text(), "pulled");
    rig.runner.end_job("job");
    rig.runner.end_idle();
    assert_eq!(rig.tags_of(&registry.reference), None);
    // Of one that nobody has, the reason is told.
    let digest = "0123456789abcdef".repeat(4);
    rig.container = of(&format!("127.0.0.1:{}/team/app@sha256:{digest}", registry.port));
    let ran = rig.sh("true");
    assert!(ran.fails_with(ErrorCode::Fetch).contains("manifest unknown") && ran.failure().retryable, "{ran:?}");
}

#[test]
fn a_registry_that_the_operator_does_not_allow_is_not_asked() {
    let Some(engine) = TestEngine::shared() else { return };
    let made = make(&Recipe { mark: "pulled", gzip: true, ..Recipe::default() });
    for rules in [&["*"][..], &["registry.example"], &[]] {
        let rules: Vec<String> = rules.iter().map(|rule| (*rule).to_owned()).collect();
        let mut rig = Rig::of(&engine, |options| options.hosts = Hosts::parse(&rules).expect("rules"));
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        listener.set_nonblocking(true).expect("set");
        let port = listener.local_addr().expect("address").port();
        rig.container = Container {
            image: ImageOf::Digest(format!("127.0.0.1:{port}/team/app@{}", digest(&made.config))),
            entrypoint: None,
            argv: Vec::new(),
            gpus: 0,
            health: None,
        };
        let ran = rig.sh("true");
        let message = ran.fails_with(ErrorCode::Deny);
        assert!(message.contains("127.0.0.1") && message.contains("gather_hosts"), "{message}");
        assert!(listener.accept().is_err(), "nobody has connected");
    }
}
