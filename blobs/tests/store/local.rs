//! One store by itself: adding, reading, exporting, tags, collection.

use std::io::SeekFrom;
use std::os::unix::fs::symlink;
use std::sync::Arc;

use sinew_blobs::{
    AddError, BlobState, BlobStore, CollectionError, ExportError, Format, GcOptions, ImportMode, NameError, ReadError,
    StoreError, StoreOptions,
};
use sinew_crdt_state::ids::Hash;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::{noise, open, options, within};

#[tokio::test]
async fn bytes_files_and_streams_come_back_as_they_were() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&dir.path().join("blobs")).await;
    // Around every limit: empty, a chunk, a chunk group, inlined, a file, with a hash tree in a file of its own.
    for (seed, len) in [0, 1, 1024, 16 << 10, 64 << 10, (64 << 10) + 1, 5 << 20].into_iter().enumerate() {
        let data = noise(seed as u64 + 1, len);
        let added = store.add_bytes(data.clone()).await.expect("add");
        assert_eq!(added.hash, Hash::of(&data));
        assert_eq!(added.size, len as u64);
        assert_eq!(store.read(added.hash, u64::MAX).await.expect("read"), data, "{len}");
        assert_eq!(store.has(added.hash).await.expect("has"), BlobState::Complete { size: len as u64 });

        let path = dir.path().join("in");
        std::fs::write(&path, &data).expect("write");
        for mode in [ImportMode::Copy, ImportMode::Reference] {
            assert_eq!(store.add_file(&path, mode, None).await.expect("add file").hash, added.hash);
        }
        let streamed = store.add_stream(&data[..]).await.expect("add stream");
        assert_eq!((streamed.hash, streamed.size), (added.hash, len as u64));

        let out = dir.path().join("out");
        assert_eq!(store.export(added.hash, &out).await.expect("export"), len as u64);
        assert_eq!(std::fs::read(&out).expect("exported"), data);
    }
    assert!(matches!(store.read(Hash([9; 32]), 10).await, Err(ReadError::Missing { .. })));
    let big = store.add_bytes(vec![7; 1000]).await.expect("add");
    assert!(matches!(store.read(big.hash, 999).await, Err(ReadError::TooLarge { size: 1000, max: 999, .. })));
    let left = std::fs::read_dir(dir.path()).expect("dir").count();
    assert_eq!(left, 3, "no temporary file of an export is left");
    store.shutdown().await;
}

#[tokio::test]
async fn ranges_and_seeks_read_exactly_what_was_asked() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(dir.path()).await;
    let data = noise(3, 3 << 20);
    let blob = store.add_bytes(data.clone()).await.expect("add");
    for (offset, len) in [(0, 1), (1000, 100), (16_383, 2), (1 << 20, 1 << 20), ((3 << 20) - 5, 100), (3 << 20, 5)] {
        let got = store.read_range(blob.hash, offset as u64, len as u64).await.expect("range");
        let end = (offset + len).min(data.len());
        assert_eq!(got, &data[offset..end], "{offset}+{len}");
    }
    let mut reader = store.reader(blob.hash).await.expect("reader");
    reader.seek(SeekFrom::End(-7)).await.expect("seek");
    let mut tail = Vec::new();
    reader.read_to_end(&mut tail).await.expect("read");
    assert_eq!(tail, &data[data.len() - 7..]);
    reader.seek(SeekFrom::Start(0)).await.expect("seek");
    let mut all = Vec::new();
    reader.read_to_end(&mut all).await.expect("read");
    assert_eq!(all, data);
    store.shutdown().await;
}

#[tokio::test]
async fn a_directory_becomes_one_hash_and_back() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&dir.path().join("blobs")).await;
    let tree = dir.path().join("tree");
    std::fs::create_dir_all(tree.join("sub/deep")).expect("mkdir");
    std::fs::write(tree.join("a.txt"), b"a").expect("write");
    std::fs::write(tree.join("sub/b.bin"), noise(1, 200_000)).expect("write");
    std::fs::write(tree.join("sub/deep/empty"), b"").expect("write");
    symlink("/etc", tree.join("link")).expect("symlink");
    let added = store.add_dir(&tree, ImportMode::Copy).await.expect("add dir");
    assert_eq!(added.left_out["link"], "a link that leads outside, to /etc");
    let names: Vec<_> = added.collection.entries.iter().map(|e| (e.name.as_str(), e.size)).collect();
    assert_eq!(names, [("a.txt", Some(1)), ("sub/b.bin", Some(200_000)), ("sub/deep/empty", Some(0))]);
    assert_eq!(added.collection.size(), Some(200_001));
    let again = store.add_dir(&tree, ImportMode::Copy).await.expect("add dir");
    assert_eq!(again.collection.hash, added.collection.hash);
    assert_eq!(store.collection(added.collection.hash).await.expect("read back"), added.collection);

    let out = dir.path().join("out");
    store.export_collection(added.collection.hash, &out).await.expect("export");
    assert_eq!(std::fs::read(out.join("sub/b.bin")).expect("file"), noise(1, 200_000));
    assert_eq!(std::fs::read(out.join("sub/deep/empty")).expect("file"), b"");

    // Everything hangs on the one temporary tag.
    let hash = added.collection.hash;
    drop(again);
    store.run_gc_once().await.expect("gc");
    store.export_collection(hash, &dir.path().join("out2")).await.expect("still whole");
    drop(added);
    let gc = store.run_gc_once().await.expect("gc");
    assert_eq!(gc.after, 0, "{gc:?}");
    store.shutdown().await;
}

/// A collection as a hostile peer would make it, bypassing the checks of `add_dir`.
async fn forge(store: &BlobStore, name: &[u8]) -> (Hash, Vec<sinew_blobs::TempTag>) {
    let file = store.add_bytes(&b"evil"[..]).await.expect("add");
    let mut meta = b"CollectionV0.".to_vec();
    meta.extend([1, u8::try_from(name.len()).expect("short")]);
    meta.extend_from_slice(name);
    let meta = store.add_bytes(meta).await.expect("add");
    let root = store.add_bytes([meta.hash.0, file.hash.0].concat()).await.expect("add");
    (root.hash, vec![file.tag, meta.tag, root.tag])
}

#[tokio::test]
async fn a_collection_cannot_write_outside_its_root() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&dir.path().join("blobs")).await;
    let out = dir.path().join("out");
    for (name, reason) in [
        (&b"../escaped"[..], NameError::Dots),
        (b"a/../../escaped", NameError::Dots),
        (b"/tmp/escaped", NameError::Absolute),
        (b"nul\0", NameError::Control),
        (b"", NameError::Empty),
    ] {
        let (hash, _tags) = forge(&store, name).await;
        let error = store.export_collection(hash, &out).await.expect_err("refused");
        let ExportError::Collection(CollectionError::Name { source, .. }) = error else { panic!("{error}") };
        assert_eq!(source, reason);
    }
    assert!(!out.exists(), "refused before anything was written");

    // A link planted in the root must not be followed either.
    let outside = dir.path().join("outside");
    std::fs::create_dir_all(&outside).expect("mkdir");
    std::fs::create_dir_all(&out).expect("mkdir");
    symlink(&outside, out.join("sub")).expect("symlink");
    let (hash, _tags) = forge(&store, b"sub/file").await;
    let error = store.export_collection(hash, &out).await.expect_err("refused");
    assert!(matches!(error, ExportError::Target { .. }), "{error}");
    assert_eq!(std::fs::read_dir(&outside).expect("dir").count(), 0);
    // A link in place of the file is replaced, not written through.
    let victim = dir.path().join("victim");
    std::fs::write(&victim, b"untouched").expect("write");
    symlink(&victim, out.join("file")).expect("symlink");
    let (hash, _tags) = forge(&store, b"file").await;
    store.export_collection(hash, &out).await.expect("export");
    assert_eq!(std::fs::read(&victim).expect("victim"), b"untouched");
    assert_eq!(std::fs::read(out.join("file")).expect("file"), b"evil");
    // Not a collection at all.
    let plain = store.add_bytes(noise(5, 64)).await.expect("add");
    let error = store.collection(plain.hash).await.expect_err("no collection");
    assert!(matches!(error, CollectionError::Read(ReadError::Missing { .. })), "{error}");
    store.shutdown().await;
}

#[tokio::test]
async fn what_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&dir.path().join("blobs")).await;
    let missing = dir.path().join("no-such-file");
    let error = store.add_file(&missing, ImportMode::Copy, None).await.expect_err("missing");
    assert!(matches!(&error, AddError::Unreadable { path, .. } if *path == missing));
    assert!(error.to_string().contains("no-such-file"), "{error}");
    let error = store.add_file(dir.path(), ImportMode::Copy, None).await.expect_err("a directory");
    assert!(matches!(error, AddError::WrongKind { .. }), "{error}");
    let error = store.add_dir(&missing, ImportMode::Copy).await.expect_err("missing");
    assert!(error.to_string().contains("no-such-file"), "{error}");
    let file = dir.path().join("file");
    std::fs::write(&file, b"x").expect("write");
    let error = store.add_dir(&file, ImportMode::Copy).await.expect_err("a file");
    assert!(matches!(error, AddError::WrongKind { .. }), "{error}");
    // A source that breaks in the middle adds nothing, however much came before.
    let broken = tokio_test_source(noise(1, 3 << 20));
    let error = store.add_stream(broken).await.expect_err("broken");
    assert!(matches!(error, AddError::Source(_)), "{error}");
    assert_eq!(store.list().await.expect("list"), []);
    let temp = std::fs::read_dir(dir.path().join("blobs/temp")).expect("temp").count();
    assert_eq!(temp, 0, "the temporary file of the broken import is gone");
    store.shutdown().await;
}

/// Yields `data`, then an error.
fn tokio_test_source(data: Vec<u8>) -> impl tokio::io::AsyncRead + Send + Unpin {
    struct Broken(std::io::Cursor<Vec<u8>>);
    impl tokio::io::AsyncRead for Broken {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
            buf: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            let before = buf.filled().len();
            std::task::ready!(std::pin::Pin::new(&mut self.0).poll_read(cx, buf))?;
            if buf.filled().len() == before {
                return std::task::Poll::Ready(Err(std::io::ErrorKind::ConnectionReset.into()));
            }
            std::task::Poll::Ready(Ok(()))
        }
    }
    Broken(std::io::Cursor::new(data))
}

#[tokio::test]
async fn collection_takes_the_untagged_and_nothing_else() {
    let dir = tempfile::tempdir().expect("dir");
    let protected = noise(40, 100);
    let protected_hash = Hash::of(&protected);
    let protect: sinew_blobs::ProtectFn =
        Arc::new(move || Box::pin(async move { Some(vec![(protected_hash, Format::Raw)]) }));
    let gc = GcOptions { interval: None, protect: Some(protect) };
    let store = BlobStore::open(dir.path(), StoreOptions { gc, ..options() }).await.expect("open");
    let mut kept = Vec::new();
    let mut lost = Vec::new();
    let mut guards = Vec::new();
    for (seed, len) in [(1, 100), (2, 100_000), (3, 6 << 20)] {
        let tagged = store.add_bytes(noise(seed, len)).await.expect("add");
        store.tag(&format!("keep/{seed}"), tagged.hash, Format::Raw).await.expect("tag");
        let held = store.add_bytes(noise(seed + 10, len)).await.expect("add");
        let dropped = store.add_bytes(noise(seed + 20, len)).await.expect("add");
        let untagged = store.add_bytes(noise(seed + 30, len)).await.expect("add");
        store.tag("for a while", untagged.hash, Format::Raw).await.expect("tag");
        assert!(store.untag("for a while").await.expect("untag"));
        assert!(!store.untag("for a while").await.expect("untag"));
        kept.extend([tagged.hash, held.hash]);
        lost.extend([dropped.hash, untagged.hash]);
        guards.push(held.tag);
    }
    kept.push(store.add_bytes(protected).await.expect("add").hash);
    let tags: Vec<_> = store.tags("keep/").await.expect("tags").into_iter().map(|tag| tag.name).collect();
    assert_eq!(tags, ["keep/1", "keep/2", "keep/3"]);

    let stats = within(20, store.run_gc_once()).await.expect("gc");
    assert_eq!((stats.before, stats.after), (13, 7));
    for hash in &kept {
        assert!(matches!(store.has(*hash).await.expect("has"), BlobState::Complete { .. }), "{hash}");
        store.read(*hash, u64::MAX).await.expect("read");
    }
    for hash in &lost {
        assert_eq!(store.has(*hash).await.expect("has"), BlobState::Missing);
    }
    drop(guards);
    assert_eq!(within(20, store.run_gc_once()).await.expect("gc").after, 4);
    let files = std::fs::read_dir(dir.path().join("data")).expect("data").count();
    // The two tagged blobs that are too large for the database, one of them with a hash tree of its own.
    assert_eq!(files, 3, "files of collected blobs are gone");
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adding_while_collecting_loses_nothing() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(dir.path()).await;
    let collector = {
        let store = store.clone();
        tokio::spawn(async move {
            for _ in 0..20 {
                store.run_gc_once().await.expect("gc");
            }
        })
    };
    let mut rounds = 0;
    while !collector.is_finished() {
        // The same two blobs again and again, each time dropped: most of the time one is about to be collected.
        for (seed, len) in [(1, 1000), (2, 200_000)] {
            let data = noise(seed, len);
            let added = store.add_bytes(data.clone()).await.expect("add");
            assert_eq!(store.read(added.hash, u64::MAX).await.expect("held, so here"), data);
            rounds += 1;
        }
    }
    collector.await.expect("collector");
    assert!(rounds > 10, "{rounds}");
    store.shutdown().await;
}

#[tokio::test]
async fn a_closed_store_says_so() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(dir.path()).await;
    let other = store.clone();
    assert!(matches!(BlobStore::open(dir.path(), options()).await, Err(sinew_blobs::OpenError::Locked { .. })));
    store.shutdown().await;
    assert!(matches!(other.list().await, Err(StoreError::Closed)));
}

#[tokio::test]
async fn damage_on_the_disk_is_an_error_and_never_wrong_bytes() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(dir.path()).await;
    let added = store.add_bytes(noise(8, 1 << 20)).await.expect("add");
    let file = std::fs::read_dir(dir.path().join("data")).expect("data").next().expect("one").expect("entry").path();
    let mut bytes = std::fs::read(&file).expect("read");
    bytes[700_000] ^= 1;
    std::fs::write(&file, bytes).expect("damage");
    let error = store.read(added.hash, u64::MAX).await.expect_err("damaged");
    assert!(matches!(error, ReadError::Damaged { .. }), "{error}");
    store.read_range(added.hash, 0, 1000).await.expect("the rest is fine");
    let error = store.export(added.hash, &dir.path().join("out")).await.expect_err("damaged");
    assert!(matches!(error, ExportError::Read(ReadError::Damaged { .. })), "{error}");
    assert!(!dir.path().join("out").exists());
    store.shutdown().await;
}
