//! Restarts, kills and full disks.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use sinew_blobs::{AddError, BlobState, BlobStore, FetchError, FetchOptions, Format, StoreError};
use sinew_crdt_state::ids::Hash;

use super::net::Net;
use super::{noise, open, options, within};

/// Names the directory the child of [`what_was_made_durable_survives_kill_9`] works in.
const CHILD_DIR: &str = "SINEW_BLOBS_TEST_DIR";

#[tokio::test]
async fn blobs_and_tags_outlive_the_store() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(dir.path()).await;
    let mut hashes = Vec::new();
    for (seed, len) in [(1, 500), (2, 100_000), (3, 6 << 20)] {
        let added = store.add_bytes(noise(seed, len)).await.expect("add");
        store.tag(&format!("t{seed}"), added.hash, Format::Raw).await.expect("tag");
        hashes.push((added.hash, seed, len));
    }
    store.ensure_durable(hashes[0].0).await.expect("durable");
    // Dropped, not shut down: the next open waits for the database to be closed in the background.
    drop(store);
    for round in 0..2 {
        let store = within(30, open(dir.path())).await;
        for (hash, seed, len) in &hashes {
            assert_eq!(store.read(*hash, u64::MAX).await.expect("read"), noise(*seed, *len), "round {round}");
        }
        assert_eq!(store.tags("").await.expect("tags").len(), 3);
        store.run_gc_once().await.expect("gc");
        assert_eq!(store.stats().await.expect("stats").complete, 3);
        store.shutdown().await;
    }
}

/// Not a test by itself: the child process of the next one.
#[test]
fn durability_child() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let store = open(Path::new(&dir)).await;
        let small = store.add_bytes(noise(1, 4096)).await.expect("add");
        let large = store.add_bytes(noise(2, 6 << 20)).await.expect("add");
        store.tag("large", large.hash, Format::Raw).await.expect("tag");
        store.ensure_all_durable(&[small.hash, large.hash]).await.expect("durable");
        println!("\nDURABLE {} {}", small.hash, large.hash);
        std::future::pending::<()>().await;
    });
}

#[tokio::test]
async fn what_was_made_durable_survives_kill_9() {
    let dir = tempfile::tempdir().expect("dir");
    let mut child = Command::new(std::env::current_exe().expect("this binary"))
        .args(["disk::durability_child", "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD_DIR, dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("child");
    let lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
    let found = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("DURABLE ").map(str::to_owned));
    child.kill().expect("SIGKILL");
    let status = child.wait().expect("wait");
    assert!(!status.success(), "it was killed in the middle of things: {status}");
    let found = found.expect("the child got as far as durable");
    let hashes: Vec<Hash> = found.split(' ').map(|hash| hash.parse().expect("hash")).collect();
    let store = open(dir.path()).await;
    assert_eq!(store.read(hashes[0], u64::MAX).await.expect("small"), noise(1, 4096));
    assert_eq!(store.read(hashes[1], u64::MAX).await.expect("large"), noise(2, 6 << 20));
    assert_eq!(store.tags("").await.expect("tags").len(), 1);
    store.shutdown().await;
}

#[tokio::test]
async fn durability_of_what_is_not_here_fails_alone() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(dir.path()).await;
    let here = store.add_bytes(noise(1, 10)).await.expect("add");
    let (good, bad) = tokio::join!(store.ensure_durable(here.hash), store.ensure_durable(Hash([3; 32])));
    good.expect("the one that is here");
    assert!(matches!(bad, Err(sinew_blobs::StoreError::NotComplete { .. })), "{bad:?}");
    store.shutdown().await;
}

/// A small file system of its own, unmounted when dropped.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().expect("dir");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=20m", "tmpfs"]).arg(dir.path());
        let done = mount.stderr(Stdio::null()).status().is_ok_and(|status| status.success());
        done.then_some(Self(dir))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily, because a store that was dropped may still be closing its files.
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_is_refused_clearly_and_reads_go_on() {
    let Some(disk) = Tmpfs::mount() else {
        eprintln!("skipped: cannot mount a tmpfs here");
        return;
    };
    let elsewhere = tempfile::tempdir().expect("dir");
    let store = open(&disk.0.path().join("blobs")).await;
    let first = store.add_bytes(noise(1, 1 << 20)).await.expect("fits");
    store.ensure_durable(first.hash).await.expect("durable");

    // Too large, and known to be: refused before a byte is written.
    let error = store.add_bytes(noise(2, 18 << 20)).await.expect_err("too large");
    assert!(matches!(error, AddError::NoSpace { .. }), "{error}");
    assert!(error.to_string().contains("not enough room"), "{error}");
    // Too large, found out on the way.
    let data = noise(3, 30 << 20);
    let error = store.add_stream(&data[..]).await.expect_err("too large");
    assert!(matches!(error, AddError::NoSpace { .. }), "{error}");
    // Too large, from a provider.
    let other = open(elsewhere.path()).await;
    let big = other.add_bytes(data).await.expect("add");
    let net = Net::default();
    let (node, _route) = net.provide(1, &other, None).await;
    let error = within(30, store.fetch(big.hash, &[node], &net, &FetchOptions::default())).await.expect_err("full");
    assert!(matches!(error, FetchError::NoSpace { .. }), "{error}");

    // Somebody else fills the disk to the last byte, behind the store's back.
    fill(&disk.0.path().join("filler"));
    let mut refused = 0;
    for seed in 10..40 {
        match store.add_bytes(noise(seed, 30 << 10)).await {
            Ok(added) => drop(added),
            Err(AddError::NoSpace { .. }) => refused += 1,
            Err(error) => panic!("an unclear error: {error}"),
        }
    }
    assert!(refused > 0);
    // A tag is written all the same, or fails; either way what was there stays readable.
    let _ = store.tag("first", first.hash, Format::Raw).await;
    let _ = store.ensure_durable(first.hash).await;
    assert_eq!(store.read(first.hash, u64::MAX).await.expect("still readable"), noise(1, 1 << 20));

    std::fs::remove_file(disk.0.path().join("filler")).expect("room again");
    let after = within(30, store.add_bytes(noise(50, 1 << 20))).await.expect("works again");
    store.ensure_durable(after.hash).await.expect("durable again");
    store.shutdown().await;
    other.shutdown().await;
}

/// The database itself dies on a full disk when nothing holds writes back; the store reopens it.
#[tokio::test]
async fn a_dead_database_is_reopened() {
    let Some(disk) = Tmpfs::mount() else {
        eprintln!("skipped: cannot mount a tmpfs here");
        return;
    };
    let dir = disk.0.path().join("blobs");
    let store = BlobStore::open(&dir, sinew_blobs::StoreOptions { reserve: 0, ..options() }).await.expect("open");
    let first = store.add_bytes(noise(1, 1 << 20)).await.expect("fits");
    store.ensure_durable(first.hash).await.expect("durable");
    fill(&disk.0.path().join("filler"));
    // Tags are small as a rule and not checked against the free space; these are not small, and one commit must fail.
    let mut died = None;
    for n in 0..400 {
        let name = format!("{n}-{}", "x".repeat(60 << 10));
        if let Err(error) = store.tag_durably(&name, first.hash, Format::Raw).await {
            died = Some(error);
            break;
        }
    }
    let died = died.expect("the disk did fill");
    assert!(matches!(died, StoreError::Backend { action: "commit", .. }), "{died}");
    let read = within(30, async {
        loop {
            if let Ok(bytes) = store.read(first.hash, u64::MAX).await {
                break bytes;
            }
        }
    });
    assert_eq!(read.await, noise(1, 1 << 20));
    std::fs::remove_file(disk.0.path().join("filler")).expect("room again");
    let after = within(30, store.add_bytes(noise(50, 1 << 20))).await.expect("works again");
    store.ensure_durable(after.hash).await.expect("durable again");
    assert!(matches!(store.has(after.hash).await.expect("has"), BlobState::Complete { .. }));
    store.shutdown().await;
}

fn fill(path: &Path) {
    use std::io::Write;
    let mut file = std::fs::File::create(path).expect("filler");
    for size in [1 << 20, 4096, 1] {
        let block = vec![1u8; size];
        while file.write_all(&block).is_ok() {}
    }
}
