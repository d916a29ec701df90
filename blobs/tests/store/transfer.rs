//! Between stores: fetching, resuming, several providers, and peers that misbehave.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sinew_blobs::{
    BlobState, BlobStore, CollectionError, FetchError, FetchOptions, FetchProgress, Format, ImportMode, ProviderFault,
    ServeError,
};
use sinew_crdt_state::ids::{Hash, NodeId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::net::{Fault, Net};
use super::{noise, open, within};

const MIB: u64 = 1 << 20;

/// `n` stores that hold `data` and an empty one.
async fn stores(dir: &std::path::Path, n: usize, data: &[u8]) -> (Vec<BlobStore>, BlobStore, Hash) {
    let mut full = Vec::new();
    for index in 0..n {
        let store = open(&dir.join(format!("p{index}"))).await;
        let added = store.add_bytes(data.to_vec()).await.expect("add");
        store.tag("t", added.hash, Format::Raw).await.expect("tag");
        full.push(store);
    }
    (full, open(&dir.join("empty")).await, Hash::of(data))
}

/// Options that give up at the first fault.
fn once() -> FetchOptions {
    FetchOptions { retries: 0, stall_timeout: Duration::from_secs(2), ..FetchOptions::default() }
}

#[tokio::test]
async fn a_blob_comes_from_one_provider() {
    let dir = tempfile::tempdir().expect("dir");
    for len in [1, 5000, 70_000, 8 << 20] {
        let data = noise(len, usize::try_from(len).expect("small"));
        let (full, empty, hash) = stores(&dir.path().join(len.to_string()), 1, &data).await;
        let net = Net::default();
        let (node, _route) = net.provide(1, &full[0], None).await;
        let last = Arc::new(std::sync::Mutex::new(FetchProgress::default()));
        let seen = last.clone();
        let on_progress: sinew_blobs::OnFetchProgress = Arc::new(move |p| *seen.lock().expect("progress") = p);
        let options = FetchOptions { on_progress: Some(on_progress), ..FetchOptions::default() };
        let stats = within(30, empty.fetch(hash, &[node], &net, &options)).await.expect("fetch");
        assert_eq!(empty.read(hash, u64::MAX).await.expect("read"), data);
        assert_eq!(stats.payload_bytes, len);
        assert!(stats.bytes_received >= len && stats.bytes_received < len + len / 200 + 2000, "{stats:?}");
        let expect = FetchProgress { fetched: len, resumed: 0, size: Some(len) };
        assert_eq!(*last.lock().expect("progress"), expect);
        let again = empty.fetch(hash, &[], &net, &options).await.expect("here already");
        assert_eq!((again.bytes_received, again.resumed_bytes), (0, len));
        empty.ensure_durable(hash).await.expect("durable");
    }
}

#[tokio::test]
async fn only_the_range_asked_for_comes() {
    let dir = tempfile::tempdir().expect("dir");
    let data = noise(1, 8 << 20);
    let (full, empty, hash) = stores(dir.path(), 1, &data).await;
    let net = Net::default();
    let (node, route) = net.provide(1, &full[0], None).await;
    let options = FetchOptions { range: Some((3_000_000, 100_000)), ..FetchOptions::default() };
    within(30, empty.fetch(hash, &[node], &net, &options)).await.expect("fetch");
    assert!(route.sent() < 150_000, "{}", route.sent());
    assert_eq!(empty.read_range(hash, 3_000_000, 100_000).await.expect("range"), &data[3_000_000..3_100_000]);
    let BlobState::Partial { have, bytes, size } = empty.has(hash).await.expect("has") else { panic!("partial") };
    assert!(have.len() == 1 && have[0].start <= 3_000_000 && have[0].end >= 3_100_000, "{have:?}");
    assert!((100_000..140_000).contains(&bytes) && size.is_none());
    assert!(empty.read(hash, u64::MAX).await.is_err());
    // The same range again costs nothing; a range past the end proves the size.
    within(30, empty.fetch(hash, &[], &net, &options)).await.expect("here already");
    let tail = FetchOptions { range: Some((100 << 20, 10)), ..FetchOptions::default() };
    within(30, empty.fetch(hash, &[node], &net, &tail)).await.expect("fetch");
    assert!(matches!(empty.has(hash).await.expect("has"), BlobState::Partial { size: Some(s), .. } if s == 8 * MIB));
    // The rest completes it.
    let stats = within(30, empty.fetch(hash, &[node], &net, &FetchOptions::default())).await.expect("fetch");
    assert!(stats.resumed_bytes > 100_000, "{stats:?}");
    assert_eq!(empty.read(hash, u64::MAX).await.expect("read"), data);
}

#[tokio::test]
async fn after_a_cut_only_the_rest_is_sent() {
    let dir = tempfile::tempdir().expect("dir");
    let data = noise(2, 32 << 20);
    let (full, empty, hash) = stores(dir.path(), 1, &data).await;
    let net = Net::default();
    let (node, route) = net.provide(1, &full[0], Some(Fault::CutAfter(20 * MIB))).await;
    let error = within(30, empty.fetch(hash, &[node], &net, &once())).await.expect_err("cut");
    assert!(route.fired(), "the cut happened");
    let FetchError::AllFailed { faults, .. } = &error else { panic!("{error}") };
    assert!(matches!(faults[..], [(n, ProviderFault::Cut(_))] if n == node), "{error}");
    assert!(error.to_string().contains(&node.short()) && error.to_string().contains(&hash.to_string()), "{error}");
    route.heal();
    let stats = within(30, empty.fetch(hash, &[node], &net, &once())).await.expect("the rest");
    assert!(stats.resumed_bytes > 19 * MIB, "{stats:?}");
    assert_eq!(empty.read(hash, u64::MAX).await.expect("read"), data);
    // Everything that ever came over the wire, less the blob and its hash tree, was sent twice.
    let twice = route.sent().saturating_sub(32 * MIB + 32 * MIB / 256);
    println!("sent twice: {twice} of {}", 32 * MIB);
    assert!(twice < 32 * MIB / 100, "{twice}");
}

#[tokio::test]
async fn a_cut_within_one_call_is_bridged() {
    let dir = tempfile::tempdir().expect("dir");
    let (full, empty, hash) = stores(dir.path(), 1, &noise(3, 8 << 20)).await;
    let net = Net::default();
    let (node, route) = net.provide(1, &full[0], Some(Fault::CutOnceAfter(3 * MIB))).await;
    let stats = within(30, empty.fetch(hash, &[node], &net, &FetchOptions::default())).await.expect("fetch");
    assert!(route.fired(), "the cut happened");
    assert_eq!(stats.per_provider[0].streams, 2);
    assert!(route.sent() < 8 * MIB + 8 * MIB / 100, "{}", route.sent());
}

#[tokio::test]
async fn partial_blobs_resume_after_a_restart() {
    let dir = tempfile::tempdir().expect("dir");
    let data = noise(4, 16 << 20);
    let (full, empty, hash) = stores(dir.path(), 1, &data).await;
    let net = Net::default();
    let (node, route) = net.provide(1, &full[0], Some(Fault::CutAfter(10 * MIB))).await;
    within(30, empty.fetch(hash, &[node], &net, &once())).await.expect_err("cut");
    assert!(route.fired());
    route.heal();
    drop(empty);
    let empty = within(30, open(&dir.path().join("empty"))).await;
    let stats = within(30, empty.fetch(hash, &[node], &net, &once())).await.expect("the rest");
    assert!(stats.resumed_bytes > 9 * MIB, "{stats:?}");
    assert_eq!(empty.read(hash, u64::MAX).await.expect("read"), data);
}

#[tokio::test]
async fn when_a_provider_dies_the_next_goes_on() {
    let dir = tempfile::tempdir().expect("dir");
    let data = noise(5, 12 << 20);
    let (full, empty, hash) = stores(dir.path(), 2, &data).await;
    let net = Net::default();
    let nobody = NodeId([77; 32]);
    let (first, dying) = net.provide(1, &full[0], Some(Fault::CutAfter(5 * MIB))).await;
    let (second, healthy) = net.provide(2, &full[1], None).await;
    let stats = within(30, empty.fetch(hash, &[nobody, first, second], &net, &once())).await.expect("fetch");
    assert!(dying.fired(), "the first died");
    assert!(healthy.sent() < 8 * MIB, "the second only sent the rest: {}", healthy.sent());
    assert!(matches!(stats.per_provider[0].fault, Some(ProviderFault::Unreachable(_))));
    assert!(matches!(stats.per_provider[1].fault, Some(ProviderFault::Cut(_))));
    assert!(stats.per_provider[2].fault.is_none());
    assert_eq!(empty.read(hash, u64::MAX).await.expect("read"), data);
}

#[tokio::test]
async fn a_stalled_provider_is_left() {
    let dir = tempfile::tempdir().expect("dir");
    let data = noise(6, 4 << 20);
    let (full, empty, hash) = stores(dir.path(), 2, &data).await;
    let net = Net::default();
    let (first, stuck) = net.provide(1, &full[0], Some(Fault::StallAfter(MIB))).await;
    let (second, _healthy) = net.provide(2, &full[1], None).await;
    let options = FetchOptions { stall_timeout: Duration::from_millis(300), ..once() };
    let stats = within(30, empty.fetch(hash, &[first, second], &net, &options)).await.expect("fetch");
    assert!(stuck.fired(), "it stalled");
    assert!(matches!(stats.per_provider[0].fault, Some(ProviderFault::Stalled(_))), "{stats:?}");
    assert_eq!(empty.read(hash, u64::MAX).await.expect("read"), data);
}

#[tokio::test]
async fn a_large_blob_comes_from_two_at_once() {
    let dir = tempfile::tempdir().expect("dir");
    let data = noise(7, 64 << 20);
    let (full, empty, hash) = stores(dir.path(), 2, &data).await;
    let net = Net::default();
    let (first, one) = net.provide(1, &full[0], None).await;
    let (second, two) = net.provide(2, &full[1], None).await;
    let stats = within(60, empty.fetch(hash, &[first, second], &net, &FetchOptions::default())).await.expect("fetch");
    assert!(one.sent() > 8 * MIB && two.sent() > 8 * MIB, "{} and {}", one.sent(), two.sent());
    assert!(stats.bytes_received < 65 * MIB, "nothing came twice: {}", stats.bytes_received);
    assert_eq!(empty.read(hash, u64::MAX).await.expect("read"), data);
}

#[tokio::test]
async fn a_small_blob_does_not_bother_the_second() {
    let dir = tempfile::tempdir().expect("dir");
    let (full, empty, hash) = stores(dir.path(), 2, &noise(8, 1 << 20)).await;
    let net = Net::default();
    let (first, _one) = net.provide(1, &full[0], None).await;
    let (second, two) = net.provide(2, &full[1], None).await;
    within(30, empty.fetch(hash, &[first, second], &net, &FetchOptions::default())).await.expect("fetch");
    assert_eq!(two.streams.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn corrupt_bytes_are_rejected_and_their_sender_named() {
    let dir = tempfile::tempdir().expect("dir");
    let data = noise(9, 24 << 20);
    let (full, empty, hash) = stores(dir.path(), 2, &data).await;
    let net = Net::default();
    let (liar, flipped) = net.provide(1, &full[0], Some(Fault::FlipAt(3_000_000))).await;
    let (honest, _route) = net.provide(2, &full[1], None).await;
    let error = within(30, empty.fetch(hash, &[liar], &net, &FetchOptions::default())).await.expect_err("corrupt");
    assert!(flipped.fired(), "a byte was flipped");
    let FetchError::AllFailed { faults, .. } = &error else { panic!("{error}") };
    assert!(matches!(faults[..], [(n, ProviderFault::Corrupt)] if n == liar), "{error}");
    let stats = within(30, empty.fetch(hash, &[liar, honest], &net, &FetchOptions::default())).await.expect("fetch");
    assert!(matches!(stats.per_provider[0].fault, Some(ProviderFault::Corrupt)), "{stats:?}");
    assert_eq!(empty.read(hash, u64::MAX).await.expect("read"), data);
}

#[tokio::test]
async fn a_lie_about_the_size_only_costs_the_liar() {
    let dir = tempfile::tempdir().expect("dir");
    let data = noise(10, 24 << 20);
    let (full, empty, hash) = stores(dir.path(), 2, &data).await;
    let net = Net::default();
    // Byte 2 of the header: 4 MiB more than there are.
    let (liar, flipped) = net.provide(1, &full[0], Some(Fault::FlipAt(2))).await;
    let (honest, _route) = net.provide(2, &full[1], None).await;
    let stats = within(30, empty.fetch(hash, &[liar, honest], &net, &FetchOptions::default())).await.expect("fetch");
    assert!(flipped.fired(), "the size was changed");
    assert!(stats.per_provider[0].fault.is_some(), "{stats:?}");
    assert_eq!(empty.read(hash, u64::MAX).await.expect("read"), data);
}

#[tokio::test]
async fn oversize_and_absent_blobs_are_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let data = noise(11, 2 << 20);
    let (full, empty, hash) = stores(dir.path(), 1, &data).await;
    let net = Net::default();
    let (node, route) = net.provide(1, &full[0], None).await;
    let options = FetchOptions { max_size: MIB, ..FetchOptions::default() };
    let error = within(30, empty.fetch(hash, &[node], &net, &options)).await.expect_err("too large");
    let FetchError::AllFailed { faults, .. } = &error else { panic!("{error}") };
    let too_large = ProviderFault::TooLarge { size: 2 * MIB, max: MIB };
    assert_eq!(faults[0].1.to_string(), too_large.to_string());
    assert_eq!(empty.has(hash).await.expect("has"), BlobState::Missing, "nothing was stored");
    let options = FetchOptions { range: Some((0, 1000)), ..options };
    within(30, empty.fetch(hash, &[node], &net, &options)).await.expect("a small range of it is fine");

    let streams = route.streams.load(Ordering::Relaxed);
    let error = within(30, empty.fetch(Hash([8; 32]), &[node], &net, &once())).await.expect_err("absent");
    assert!(matches!(&error, FetchError::AllFailed { faults, .. } if matches!(faults[0].1, ProviderFault::Missing)));
    assert_eq!(route.streams.load(Ordering::Relaxed), streams + 1, "asked once");
    let error = empty.fetch(Hash([8; 32]), &[], &net, &once()).await.expect_err("nobody");
    assert!(matches!(error, FetchError::NoProviders { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_waiters_share_one_download() {
    let dir = tempfile::tempdir().expect("dir");
    let (full, empty, hash) = stores(dir.path(), 1, &noise(12, 8 << 20)).await;
    let net = Net::default();
    let (node, route) = net.provide(1, &full[0], None).await;
    let fetches = (0..10).map(|_| {
        let (empty, net) = (empty.clone(), net.clone());
        tokio::spawn(async move { empty.fetch(hash, &[node], &net, &FetchOptions::default()).await })
    });
    let mut leaders = 0;
    for fetch in fetches.collect::<Vec<_>>() {
        let stats = within(30, fetch).await.expect("task").expect("fetch");
        leaders += u32::from(stats.bytes_received > 0);
    }
    assert_eq!(leaders, 1);
    assert!(route.sent() < 9 * MIB, "{}", route.sent());
    // A failure is shared too, and does not stick.
    let missing = Hash([8; 32]);
    let options = once();
    let providers = [node];
    let fetches = (0..10).map(|_| empty.fetch(missing, &providers, &net, &options));
    let before = route.streams.load(Ordering::Relaxed);
    for result in futures::future::join_all(fetches).await {
        result.expect_err("absent");
    }
    assert_eq!(route.streams.load(Ordering::Relaxed), before + 1);
    empty.fetch(missing, &[node], &net, &options).await.expect_err("absent");
    assert_eq!(route.streams.load(Ordering::Relaxed), before + 2, "a later call asks again");
}

#[tokio::test]
async fn a_collection_comes_with_its_files() {
    let dir = tempfile::tempdir().expect("dir");
    let tree = dir.path().join("tree");
    std::fs::create_dir_all(tree.join("sub")).expect("mkdir");
    for n in 0..600u64 {
        std::fs::write(tree.join(format!("sub/{n:03}")), noise(n + 1, 3000)).expect("write");
    }
    std::fs::write(tree.join("large"), noise(1000, 20 << 20)).expect("write");
    std::fs::write(tree.join("empty"), b"").expect("write");
    let (a, b) = (open(&dir.path().join("a")).await, open(&dir.path().join("b")).await);
    let added = a.add_dir(&tree, ImportMode::Copy).await.expect("add");
    let _also = b.add_dir(&tree, ImportMode::Copy).await.expect("add");
    let empty = open(&dir.path().join("empty")).await;
    let net = Net::default();
    let (first, one) = net.provide(1, &a, None).await;
    let (second, two) = net.provide(2, &b, None).await;
    let (providers, options) = ([first, second], FetchOptions::default());
    let fetch = empty.fetch_collection(added.collection.hash, &providers, &net, &options);
    let (collection, stats) = within(60, fetch).await.expect("fetch");
    assert_eq!(collection, added.collection);
    let streams = one.streams.load(Ordering::Relaxed) + two.streams.load(Ordering::Relaxed);
    assert!(streams < 40, "many files per stream: {streams}");
    assert!(stats.bytes_received < 30 * MIB, "{stats:?}");
    let out = dir.path().join("out");
    empty.export_collection(collection.hash, &out).await.expect("export");
    assert_eq!(std::fs::read(out.join("sub/599")).expect("file"), noise(600, 3000));
    assert_eq!(std::fs::read(out.join("large")).expect("file"), noise(1000, 20 << 20));
    // A cut in the middle of the files loses none that came.
    let third = open(&dir.path().join("third")).await;
    let (cut, route) = net.provide(3, &a, Some(Fault::CutAfter(MIB))).await;
    within(60, third.fetch_collection(collection.hash, &[cut], &net, &once())).await.expect_err("cut");
    assert!(route.fired());
    let (_, stats) = within(60, third.fetch_collection(collection.hash, &[first], &net, &once())).await.expect("rest");
    assert!(stats.resumed_bytes > MIB / 2, "{stats:?}");
    // Something else under that hash is said to be no collection.
    let plain = a.add_bytes(noise(3, 33)).await.expect("add");
    let error = third.fetch_collection(plain.hash, &[first], &net, &once()).await.expect_err("plain");
    let FetchError::Collection(error) = error else { panic!("{error}") };
    assert!(matches!(*error, CollectionError::Malformed { .. }), "{error}");
}

/// Sends `request` to a store and returns what it says and what the peer gets.
async fn ask(store: &BlobStore, request: &[u8]) -> (Result<sinew_blobs::ServeStats, ServeError>, Vec<u8>) {
    let (peer, ours) = tokio::io::duplex(1 << 20);
    let (reader, writer) = tokio::io::split(ours);
    let (mut from, mut to) = tokio::io::split(peer);
    let client = async {
        let _ = to.write_all(request).await;
        let _ = to.shutdown().await;
        let mut answer = Vec::new();
        let _ = from.read_to_end(&mut answer).await;
        answer
    };
    within(30, async { tokio::join!(store.serve(reader, writer), client) }).await
}

#[tokio::test]
async fn garbage_and_greed_are_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(dir.path()).await;
    let data = noise(1, 3000);
    let hash = store.add_bytes(data.clone()).await.expect("add");
    // Get of everything: tag, hash, ranges [(0, [0]), (1, [])].
    let get = |ranges: &[u8]| [&[0][..], &hash.hash.0, ranges].concat();
    let (result, answer) = ask(&store, &get(&[2, 0, 1, 0, 1, 0])).await;
    assert_eq!(result.expect("served").sent_bytes, 3008);
    assert_eq!(answer, [&3000u64.to_le_bytes()[..], &data].concat());

    for (what, request) in [("noise", noise(5, 500)), ("trailing bytes", get(&[2, 0, 1, 0, 1, 0, 99]))] {
        let (result, answer) = ask(&store, &request).await;
        assert!(matches!(result, Err(ServeError::Garbage(_) | ServeError::Refused(_))), "{what}: {result:?}");
        assert!(result.is_err_and(|error| error.is_offence()) && answer.is_empty(), "{what}");
    }
    let (result, _) = ask(&store, &[8, 1, 2, 3]).await;
    assert!(matches!(result, Err(ServeError::Refused(_))), "push: {result:?}");
    let (result, _) = ask(&store, &[&[1][..], &hash.hash.0, &[1, 0]].concat()).await;
    assert!(matches!(result, Err(ServeError::Refused(_))), "observe: {result:?}");
    let (result, _) = ask(&store, &vec![0; 300 << 10]).await;
    assert!(matches!(result, Err(ServeError::TooLong { .. })), "long: {result:?}");
    // The child number 2^62 of a sequence: the library would count there.
    let far = [1, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x40, 1, 0];
    let (result, _) = ask(&store, &get(&far)).await;
    assert!(matches!(result, Err(ServeError::Refused(_))), "far: {result:?}");
    let (result, answer) = ask(&store, &[&[0][..], &[7; 32], &[2, 0, 1, 0, 1, 0]].concat()).await;
    assert!(matches!(result, Err(ServeError::Missing { .. })), "missing: {result:?}");
    assert!(answer.is_empty());
    // Several at once: GetMany of [hash], ranges [(0, [0])].
    let many = [&[9, 1][..], &hash.hash.0, &[1, 0, 1, 0]].concat();
    let (result, answer) = ask(&store, &many).await;
    result.expect("served");
    assert_eq!(answer.len(), 3008);
    store.read(hash.hash, u64::MAX).await.expect("unharmed");
    store.shutdown().await;
}

/// What a fetch that is given up leaves on its stream, and what a cut of the link leaves of any request.
#[tokio::test]
async fn a_request_that_ends_early_is_no_offence() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(dir.path()).await;
    let get = [&[0][..], &[7; 32], &[2, 0, 1, 0, 1, 0]].concat();
    let many = [&[9, 1][..], &[7; 32], &[1, 0, 1, 0]].concat();
    for whole in [get, many] {
        for cut in 0..whole.len() {
            let (result, answer) = ask(&store, &whole[..cut]).await;
            let error = result.expect_err("it is not whole");
            assert!(matches!(error, ServeError::Cut(_)) && !error.is_offence(), "{cut} bytes of {whole:?}: {error:?}");
            assert!(answer.is_empty());
        }
    }
    store.shutdown().await;
}
