//! Finds the input files that a submitter's paths name. Directories are walked, links to files and directories followed, loops
//! noticed; what is neither file nor directory is skipped and reported. A path that cannot be read is an error: input silently
//! left out would be a wrong result.

use std::fs::{File, FileType};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

/// An input file on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalFile {
    /// Where it is.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Walked {
    /// Files: in the order of the arguments, and under a directory sorted by the bytes of their paths.
    pub files: Vec<LocalFile>,
    /// What was left out, and why.
    pub skipped: Vec<Skipped>,
}

/// Something that is no input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Where.
    pub path: PathBuf,
    /// What it is.
    pub why: &'static str,
}

/// A path that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}: {source}", path = path.display())]
pub struct WalkError {
    /// Which.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// Finds the files that `paths` name.
///
/// # Errors
/// The first path that cannot be read.
pub fn walk(paths: &[PathBuf]) -> Result<Walked, WalkError> {
    let mut all = Walked::default();
    for path in paths {
        let first = all.files.len();
        walk_one(path, &mut all)?;
        all.files[first..]
            .sort_by(|a, b| a.path.as_os_str().as_encoded_bytes().cmp(b.path.as_os_str().as_encoded_bytes()));
    }
    Ok(all)
}

fn walk_one(root: &Path, all: &mut Walked) -> Result<(), WalkError> {
    for entry in WalkDir::new(root).follow_links(true) {
        let entry = match entry {
            Ok(entry) => entry,
            Err(e) => {
                let path = e.path().unwrap_or(root).to_owned();
                if e.loop_ancestor().is_some() {
                    all.skipped.push(Skipped { path, why: "a link back to a directory above it" });
                    continue;
                }
                return Err(WalkError { path, source: e.into() });
            }
        };
        let kind = entry.file_type();
        if kind.is_dir() {
            continue;
        }
        let path = entry.into_path();
        if !kind.is_file() {
            all.skipped.push(Skipped { path, why: name_of(kind) });
            continue;
        }
        // Opened, not only looked at: permission is found missing now and not in the middle of an import.
        match File::open(&path).and_then(|file| file.metadata()) {
            Ok(meta) => all.files.push(LocalFile { path, size: meta.len() }),
            Err(source) => return Err(WalkError { path, source }),
        }
    }
    Ok(())
}

fn name_of(kind: FileType) -> &'static str {
    match () {
        () if kind.is_socket() => "a socket",
        () if kind.is_fifo() => "a named pipe",
        () => "a device",
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn files_are_found_in_order_and_the_rest_is_reported() {
        let dir = tempfile::tempdir().expect("dir");
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("d/e")).expect("mkdir");
        for (name, text) in [("d/b", "22"), ("d/e/a", "1"), ("d/e.x", ""), ("z", "4444")] {
            std::fs::write(at(name), text).expect("write");
        }
        symlink(at("z"), at("d/a-link")).expect("link");
        symlink(at("d"), at("d/e/loop")).expect("link");
        let _socket = UnixListener::bind(at("d/sock")).expect("bind");
        let found = walk(&[at("z"), at("d")]).expect("walk");
        let names: Vec<_> =
            found.files.iter().map(|f| (f.path.strip_prefix(dir.path()).expect("under"), f.size)).collect();
        let expected = [("z", 4), ("d/a-link", 4), ("d/b", 2), ("d/e.x", 0), ("d/e/a", 1)];
        assert_eq!(names, expected.map(|(name, size)| (Path::new(name), size)));
        let mut why: Vec<_> = found.skipped.iter().map(|s| s.why).collect();
        why.sort_unstable();
        assert_eq!(why, ["a link back to a directory above it", "a socket"]);
    }

    #[test]
    fn a_missing_path_and_a_dangling_link_are_named() {
        let dir = tempfile::tempdir().expect("dir");
        let missing = walk(&[dir.path().join("nope")]).expect_err("missing").to_string();
        assert!(missing.contains("nope"), "{missing}");
        symlink("nowhere", dir.path().join("dangling")).expect("link");
        let error = walk(&[dir.path().to_owned()]).expect_err("dangling").to_string();
        assert!(error.contains("dangling"), "{error}");
    }
}
