//! Figures, not judgements: run with `--run-ignored only` and read the output.

use std::time::Instant;

use futures::StreamExt;
use sinew_blobs::{FetchOptions, ImportMode};

use super::net::Net;
use super::{noise, open};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn small_blobs() {
    let dir = tempfile::tempdir_in(".").expect("dir on a disk");
    let store = open(dir.path()).await;
    const N: u32 = 2000;
    let blobs: Vec<Vec<u8>> = (0..u64::from(N)).map(|n| noise(n + 1, 4096)).collect();
    let start = Instant::now();
    let mut added = Vec::new();
    for blob in &blobs {
        added.push(store.add_bytes(blob.clone()).await.expect("add"));
    }
    println!("add_bytes 4 KiB, one after the other: {:?} each", start.elapsed() / N);
    let start = Instant::now();
    let hashes: Vec<_> = added.iter().map(|added| added.hash).collect();
    store.ensure_all_durable(&hashes).await.expect("durable");
    println!("ensure_all_durable of {N}: {:?}, {:?} each", start.elapsed(), start.elapsed() / N);

    let start = Instant::now();
    let jobs = (0..u64::from(N)).map(|n| {
        let (store, blob) = (&store, noise(n + 100_000, 4096));
        async move {
            let added = store.add_bytes(blob).await.expect("add");
            store.ensure_durable(added.hash).await.expect("durable");
        }
    });
    futures::stream::iter(jobs).buffer_unordered(64).collect::<Vec<()>>().await;
    println!("add + ensure_durable, 64 at once: {:?} each", start.elapsed() / N);

    let start = Instant::now();
    for n in 0..50u64 {
        let added = store.add_bytes(noise(n + 200_000, 4096)).await.expect("add");
        store.ensure_durable(added.hash).await.expect("durable");
    }
    println!("add + ensure_durable, one after the other: {:?} each", start.elapsed() / 50);
    let start = Instant::now();
    for n in 0..50u64 {
        let added = store.add_bytes(noise(n + 300_000, 100 << 10)).await.expect("add");
        store.ensure_durable(added.hash).await.expect("durable");
    }
    println!("the same with 100 KiB (a file each): {:?} each", start.elapsed() / 50);
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn throughput() {
    let dir = tempfile::tempdir_in(".").expect("dir on a disk");
    let (a, b) = (open(&dir.path().join("a")).await, open(&dir.path().join("b")).await);
    let size = 1 << 30;
    let file = dir.path().join("file");
    std::fs::write(&file, noise(1, size)).expect("write");
    let rate = |start: Instant| format!("{:.0} MB/s", size as f64 / 1e6 / start.elapsed().as_secs_f64());
    let start = Instant::now();
    let added = a.add_file(&file, ImportMode::Copy, None).await.expect("add");
    println!("add_file 1 GiB: {}", rate(start));
    let net = Net::default();
    let (node, _route) = net.provide(1, &a, None).await;
    let start = Instant::now();
    let stats = b.fetch(added.hash, &[node], &net, &FetchOptions::default()).await.expect("fetch");
    println!("fetch 1 GiB over loopback TCP: {} ({} received)", rate(start), stats.bytes_received);
    let start = Instant::now();
    b.ensure_durable(added.hash).await.expect("durable");
    println!("ensure_durable 1 GiB: {:?}", start.elapsed());
    let start = Instant::now();
    b.export(added.hash, &dir.path().join("out")).await.expect("export");
    println!("export 1 GiB: {}", rate(start));
    a.shutdown().await;
    b.shutdown().await;
}

/// A large blob to a file, beside `cp` and `rsync` of the same bytes. One added by reference is read through the store, piece by piece.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn export() {
    const LEN: usize = 1 << 30;
    let dir = tempfile::tempdir_in(".").expect("dir on a disk");
    let source = dir.path().join("source");
    std::fs::write(&source, noise(7, LEN)).expect("write");
    let (copied, referred) = (open(&dir.path().join("a")).await, open(&dir.path().join("b")).await);
    let blob = copied.add_file(&source, ImportMode::Copy, None).await.expect("add");
    let same = referred.add_file(&source, ImportMode::Reference, None).await.expect("add");
    let out = dir.path().join("out");
    for round in 0..3 {
        for (name, store, hash) in [("its own file", &copied, blob.hash), ("by reference", &referred, same.hash)] {
            let start = Instant::now();
            store.export(hash, &out).await.expect("export");
            println!("{round}: export of 1 GiB, {name}: {:?}", start.elapsed());
            std::fs::remove_file(&out).expect("remove");
        }
        for argv in [&["cp", "--reflink=never"][..], &["rsync"], &["sh", "-c", "cp --reflink=never $0 $1; sync $1"]] {
            let mut command = std::process::Command::new(argv[0]);
            command.args(&argv[1..]).arg(&source).arg(&out);
            let start = Instant::now();
            let status = command.status();
            println!("{round}: {argv:?}: {:?} {status:?}", start.elapsed());
            let _ = std::fs::remove_file(&out);
        }
    }
}
