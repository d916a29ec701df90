//! Directories as they were: links, modes, empty directories; and hashes of which nobody says what is behind them.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use sinew_blobs::{AddError, ExportError, FetchError, FetchOptions, Format, ImportMode, NameError, ReadError};

use crate::net::{Fault, Net};
use crate::{noise, open, within};

/// What is below a directory: of a file its content and whether it may be executed, of a link its target.
fn seen(root: &Path) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).expect("read").map(|entry| entry.expect("entry")) {
            let (path, kind) = (entry.path(), entry.file_type().expect("kind"));
            let what = if kind.is_symlink() {
                format!("-> {}", std::fs::read_link(&path).expect("link").display())
            } else if kind.is_dir() {
                todo.push(path.clone());
                "directory".to_owned()
            } else {
                let mode = entry.metadata().expect("meta").permissions().mode() & 0o100;
                format!("{mode:o} {}", blake(&path))
            };
            all.insert(path.strip_prefix(root).expect("below").display().to_string(), what);
        }
    }
    all
}

fn blake(path: &Path) -> String {
    sinew_crdt_state::ids::Hash::of(&std::fs::read(path).expect("read")).to_string()
}

fn plant(tree: &Path) {
    std::fs::create_dir_all(tree.join("sub/empty/deeper")).expect("mkdir");
    std::fs::write(tree.join("model-1"), noise(1, 300_000)).expect("write");
    std::fs::write(tree.join("tool"), b"#!/bin/sh\n").expect("write");
    std::fs::set_permissions(tree.join("tool"), std::fs::Permissions::from_mode(0o755)).expect("chmod");
    symlink("model-1", tree.join("latest")).expect("link");
    symlink("../tool", tree.join("sub/tool")).expect("link");
    symlink("sub", tree.join("dir")).expect("link");
}

#[tokio::test]
async fn a_directory_comes_back_as_it_was() {
    let dir = tempfile::tempdir().expect("dir");
    let (a, b) = (open(&dir.path().join("a")).await, open(&dir.path().join("b")).await);
    let tree = dir.path().join("tree");
    plant(&tree);
    let before = seen(&tree);
    let _socket = UnixListener::bind(tree.join("sock")).expect("bind");
    let added = a.add_dir(&tree, ImportMode::Copy).await.expect("add");
    assert_eq!(added.left_out, [("sock".to_owned(), "a socket".to_owned())].into());
    let hash = added.collection.hash;
    std::fs::remove_file(tree.join("sock")).expect("remove");
    let again = a.add_dir(&tree, ImportMode::Copy).await.expect("add");
    assert_eq!(again.collection.hash, hash, "what is left out leaves no trace");

    let net = Net::default();
    let (provider, _) = net.provide(1, &a, None).await;
    let (whole, _) = within(60, b.fetch_whole(hash, &[provider], &net, &FetchOptions::default())).await.expect("fetch");
    assert_eq!(whole.format, Format::HashSeq);
    b.run_gc_once().await.expect("gc");
    let out = dir.path().join("out");
    b.export_collection(hash, &out).await.expect("export");
    assert_eq!(seen(&out), before);
    // Over what is there: links are replaced, not followed.
    b.export_collection(hash, &out).await.expect("export again");
    assert_eq!(seen(&out), before);
}

#[tokio::test]
async fn a_tag_keeps_a_directory_with_all_in_it() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&dir.path().join("a")).await;
    let tree = dir.path().join("tree");
    plant(&tree);
    let hash = store.add_dir(&tree, ImportMode::Copy).await.expect("add").collection.hash;
    let whole = store.whole(hash).await.expect("look").expect("whole");
    store.tag_durably("t", hash, whole.format).await.expect("tag");
    drop(whole);
    store.run_gc_once().await.expect("gc");
    assert!(store.whole(hash).await.expect("look").is_some_and(|whole| whole.format == Format::HashSeq));
    // With a file gone it is not whole, and no file of hashes either.
    let links = store.collection(hash).await.expect("collection").entries;
    store.tag("t", hash, Format::Raw).await.expect("tag");
    store.tag("name", links[0].hash, Format::Raw).await.expect("tag");
    store.run_gc_once().await.expect("gc");
    store.tag("t", hash, Format::HashSeq).await.expect("tag");
    assert!(store.whole(hash).await.expect("look").is_none());
}

/// A file whose length is that of a list of hashes is a file, and a directory that cannot be asked for is none.
#[tokio::test]
async fn what_is_behind_a_hash_is_found_out() {
    let dir = tempfile::tempdir().expect("dir");
    let (a, b) = (open(&dir.path().join("a")).await, open(&dir.path().join("b")).await);
    let file = a.add_bytes(noise(3, 320)).await.expect("add");
    let tree = dir.path().join("tree");
    plant(&tree);
    let added = a.add_dir(&tree, ImportMode::Copy).await.expect("add");
    let net = Net::default();
    let (provider, _) = net.provide(1, &a, None).await;
    let options = FetchOptions::default();
    let (whole, _) = within(60, b.fetch_whole(file.hash, &[provider], &net, &options)).await.expect("fetch");
    assert_eq!((whole.format, whole.size), (Format::Raw, 320));
    // The reader of the list of names breaks off before it comes.
    let root = added.collection.hash;
    b.fetch(root, &[provider], &net, &options).await.expect("the root alone");
    let (cut, _) = net.provide(2, &a, Some(Fault::CutAfter(8))).await;
    let once = FetchOptions { retries: 0, ..FetchOptions::default() };
    let error = within(60, b.fetch_whole(root, &[cut], &net, &once)).await.expect_err("cannot tell");
    assert!(matches!(error, FetchError::AllFailed { .. }), "{error}");
}

#[tokio::test]
async fn names_that_cannot_be_kept_are_refused() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&dir.path().join("a")).await;
    let cases: [(&[u8], NameError); 2] = [(b"caf\xe9", NameError::Encoding), (b".sinew-tree", NameError::Reserved)];
    for (n, (name, why)) in cases.into_iter().enumerate() {
        let tree = dir.path().join(n.to_string());
        std::fs::create_dir(&tree).expect("mkdir");
        let path = tree.join(std::ffi::OsStr::from_bytes(name));
        std::fs::write(&path, b"x").expect("write");
        let error = store.add_dir(&tree, ImportMode::Copy).await.expect_err("refused");
        assert!(matches!(&error, AddError::Name { path: p, source } if *p == path && *source == why), "{error}");
    }
}

/// A name as long as file systems allow, and content whose file in the store was damaged.
#[tokio::test]
async fn an_export_is_whole_or_not_there() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&dir.path().join("a")).await;
    let data = noise(4, (5 << 20) + 17);
    let blob = store.add_bytes(data.clone()).await.expect("add");
    let out = dir.path().join("out");
    std::fs::create_dir(&out).expect("mkdir");
    let long = "n".repeat(255);
    assert_eq!(store.export(blob.hash, &out.join(&long)).await.expect("export"), data.len() as u64);
    assert!(std::fs::read(out.join(&long)).expect("read") == data);
    // Writing to what was handed out changes nothing in the store.
    std::fs::write(out.join(&long), b"mine").expect("write");
    store.export_below(blob.hash, &out, "d/x", true).await.expect("export");
    assert!(std::fs::read(out.join("d/x")).expect("read") == data);
    assert_eq!(std::fs::metadata(out.join("d/x")).expect("meta").permissions().mode() & 0o100, 0o100);

    let data_dir = dir.path().join("a/data");
    let mut files = std::fs::read_dir(&data_dir).expect("read").map(|entry| entry.expect("entry").path());
    let file = files.find(|path| path.extension().is_some_and(|ext| ext == "data")).expect("its file");
    let mut rotten = data;
    rotten[3 << 20] ^= 1;
    std::fs::write(&file, rotten).expect("damage");
    let error = store.export(blob.hash, &out.join("y")).await.expect_err("damaged");
    assert!(matches!(error, ExportError::Read(ReadError::Damaged { .. })), "{error}");
    let names: Vec<_> = std::fs::read_dir(&out).expect("read").map(|entry| entry.expect("entry").file_name()).collect();
    assert_eq!(names.len(), 2, "nothing of it stays: {names:?}");
}
