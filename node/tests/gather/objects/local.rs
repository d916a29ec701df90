//! Files in directories that a node offers.

use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::object::ObjectFile;
use sinew_node::gather::Gather;

use super::{BODY, fails, fetch, object};

fn at(path: &Path) -> ObjectFile {
    object(&format!("file://{}", path.display()), None)
}

fn offering(dirs: &[&Path]) -> Gather {
    crate::gather(&[], None).with_object_dirs(dirs.iter().map(|dir| (*dir).to_owned()).collect())
}

#[tokio::test]
async fn files_come_from_offered_directories_only() {
    let root = tempfile::tempdir().expect("dir");
    let (offered, other) = (root.path().join("offered"), root.path().join("offered-not"));
    for dir in [&offered, &other] {
        std::fs::create_dir_all(dir.join("sub")).expect("dir");
        std::fs::write(dir.join("sub/file"), BODY).expect("file");
    }
    symlink("sub/file", offered.join("inside")).expect("link");
    symlink("../offered-not/sub/file", offered.join("outside")).expect("link");
    symlink(other.join("sub/file"), offered.join("absolute")).expect("link");
    symlink("../offered-not/sub", offered.join("dir")).expect("link");
    symlink("/proc/self/exe", offered.join("magic")).expect("link");
    symlink("loop", offered.join("loop")).expect("link");
    let gather = offering(&[&offered]);
    for path in ["sub/file", "inside"] {
        assert_eq!(fetch(&gather, &at(&offered.join(path)), None).await.expect("file"), BODY, "{path}");
    }
    for path in ["outside", "absolute", "dir/file", "magic", "loop"] {
        let (code, _, message) = fails(&gather, &at(&offered.join(path)), None).await;
        assert_eq!(code, ErrorCode::Deny, "{path}: {message}");
    }
    for file in [at(&other.join("sub/file")), at(Path::new("/etc/passwd"))] {
        let (code, _, message) = fails(&gather, &file, None).await;
        assert_eq!(code, ErrorCode::Deny);
        assert!(message.contains("object_dirs"), "{message}");
    }
    let (code, _, message) = fails(&gather, &at(&offered.join("sub/../../offered-not/sub/file")), None).await;
    assert_eq!(code, ErrorCode::Invalid, "{message}");
    // Another node may have the same directory, with the file in it.
    let (code, for_good, _) = fails(&gather, &at(&offered.join("none")), None).await;
    assert_eq!((code, for_good), (ErrorCode::Fetch, false));
    let (code, ..) = fails(&offering(&[]), &at(&offered.join("sub/file")), None).await;
    assert_eq!(code, ErrorCode::Deny);
}

#[tokio::test]
async fn only_regular_files_are_read_and_checked_like_others() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("file");
    std::fs::write(&path, BODY).expect("file");
    let gather = offering(&[dir.path()]);
    let small = ObjectFile { size_max: BODY.len() as u64 - 1, ..at(&path) };
    let sha = format!("sha256:{}", "0".repeat(64)).parse().expect("hash");
    for (file, word) in [(small, "size_max"), (ObjectFile { hash: sha, ..at(&path) }, "its hash is")] {
        let (code, for_good, message) = fails(&gather, &file, None).await;
        assert_eq!((code, for_good), (ErrorCode::Fetch, true));
        assert!(message.contains(word), "{message}");
    }
    // Nobody writes into it: opening it would wait for ever.
    let pipe = dir.path().join("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR, 0).expect("pipe");
    std::fs::create_dir(dir.path().join("dir")).expect("dir");
    for path in [pipe, dir.path().join("dir")] {
        let (code, for_good, message) = fails(&gather, &at(&path), None).await;
        assert_eq!((code, for_good), (ErrorCode::Fetch, true), "{message}");
        assert!(message.contains("no regular file"), "{message}");
    }
}
