//! What a task left in its output directory: files, and what a [`Tree`] says of links, modes and empty directories. A program
//! made all of it: no link is followed.

use std::collections::BTreeSet;
use std::fs::FileType;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use sinew_blobs::{TREE_LEN_MAX, Tree};
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::spec::is_safe_relative;
use walkdir::{DirEntry, WalkDir};

use super::cell;
use super::files::{DEPTH_MAX, OutputFile};
use super::outcome::Failure;

/// The name of the output that holds a task's [`Tree`], beside `stdout` and `output/...`.
pub(crate) const TREE_OUTPUT: &str = "tree";
/// Most files, links and directories that one task may leave: each file becomes a blob and an entry in its receipt.
const ENTRIES_MAX: usize = 100_000;
/// The bit of a file's mode that says whether its owner may execute it.
const OWNER_MAY_EXECUTE: u32 = 0o100;

/// What is kept of an output directory.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Left {
    /// Its regular files, by name.
    pub(super) files: Vec<OutputFile>,
    /// What else is to be said of it.
    pub(super) tree: Tree,
}

fn invalid(message: String) -> Failure {
    Failure::new(ErrorCode::Invalid, message)
}

fn unreadable(error: walkdir::Error) -> Failure {
    Failure::storage("read the output directory", &error.into())
}

/// Lists what is under `dir`. With `keep` only what is named there, or under a directory named there.
///
/// # Errors
/// `E_EXIT` when a kept path is not there, `E_INVALID` for a name that is no UTF-8, too many entries or too deep nesting,
/// `E_STORAGE` when the directory cannot be read.
pub(super) fn outputs(dir: &Path, keep: &[String]) -> Result<Left, Failure> {
    let mut left = Left::default();
    let (mut dirs, mut parents) = (BTreeSet::new(), BTreeSet::new());
    for entry in WalkDir::new(dir).min_depth(1).follow_links(false).max_depth(DEPTH_MAX + 1).sort_by_file_name() {
        let entry = entry.map_err(unreadable)?;
        if entry.depth() > DEPTH_MAX {
            return Err(invalid(format!("output/ is nested more than {DEPTH_MAX} deep")));
        }
        let name = entry.path().strip_prefix(dir).ok().and_then(Path::to_str);
        let Some(name) = name.map(str::to_owned).filter(|n| is_safe_relative(n)) else {
            let shown = Path::new(cell::OUTPUT).join(entry.path().strip_prefix(dir).unwrap_or(Path::new("")));
            return Err(invalid(format!("output file {shown:?} has a name that other nodes could not write")));
        };
        parents.extend(name.rsplit_once('/').map(|(parent, _)| parent.to_owned()));
        if !is_kept(keep, &name) {
            continue;
        }
        if entry.file_type().is_dir() {
            dirs.insert(name);
        } else {
            left.take(name, entry)?;
        }
        if left.files.len() + left.tree.links.len() + dirs.len() > ENTRIES_MAX {
            return Err(invalid(format!("more than {ENTRIES_MAX} entries in output/: pack them into an archive")));
        }
    }
    left.tree.empty_dirs = dirs.difference(&parents).cloned().collect();
    left.check(keep)?;
    left.files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(left)
}

impl Left {
    fn take(&mut self, name: String, entry: DirEntry) -> Result<(), Failure> {
        let kind = entry.file_type();
        if kind.is_file() {
            let meta = entry.metadata().map_err(unreadable)?;
            if meta.permissions().mode() & OWNER_MAY_EXECUTE != 0 {
                self.tree.executables.insert(name.clone());
            }
            self.files.push(OutputFile { name, path: entry.into_path(), size: meta.len() });
        } else if kind.is_symlink() {
            let target = std::fs::read_link(entry.path());
            let target = target.map_err(|e| Failure::storage("read the output directory", &e))?;
            match target.into_os_string().into_string() {
                Ok(target) => drop(self.tree.links.insert(name, target)),
                Err(target) => {
                    let why = format!("a link to a name that is not UTF-8, {}", target.to_string_lossy());
                    self.tree.left_out.insert(name, why);
                }
            }
        } else {
            self.tree.left_out.insert(name, kind_name(kind).to_owned());
        }
        Ok(())
    }

    /// Leaves out the links that lead to nothing that is kept, and sees to it that all that was asked for is there.
    fn check(&mut self, keep: &[String]) -> Result<(), Failure> {
        let tree = &mut self.tree;
        tree.leave_out_links();
        let astray = |link: &&String| !is_kept(keep, &tree.target_of(link).unwrap_or_default());
        for link in tree.links.keys().filter(astray).cloned().collect::<Vec<_>>() {
            let target = tree.links.remove(&link).unwrap_or_default();
            tree.left_out.insert(link, format!("a link to {target}, which is not among the outputs to keep"));
        }
        for kept in keep {
            let names = self.files.iter().map(|file| &file.name).chain(tree.links.keys()).chain(&tree.empty_dirs);
            if names.into_iter().any(|name| covers(kept, name)) {
                continue;
            }
            return Err(match tree.left_out.iter().find(|(name, _)| covers(kept, name)) {
                Some((name, what)) => invalid(format!("output/{name} cannot be kept: it is {what}")),
                None => Failure::new(
                    ErrorCode::Exit,
                    format!("the program left no output/{kept}: it belongs into the directory that SINEW_OUTPUT names"),
                ),
            });
        }
        if tree.encode().len() as u64 > TREE_LEN_MAX {
            return Err(invalid("too many links and long names in output/: pack them into an archive".to_owned()));
        }
        Ok(())
    }
}

/// What something is that is no file, directory or link.
fn kind_name(kind: FileType) -> &'static str {
    match () {
        () if kind.is_socket() => "a socket",
        () if kind.is_fifo() => "a named pipe",
        () => "a device",
    }
}

fn is_kept(keep: &[String], name: &str) -> bool {
    keep.is_empty() || keep.iter().any(|kept| covers(kept, name))
}

fn covers(kept: &str, name: &str) -> bool {
    let kept = kept.trim_end_matches('/');
    name.strip_prefix(kept).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn kept(dir: &Path, keep: &[&str]) -> Result<Left, Failure> {
        outputs(dir, &keep.iter().map(|k| (*k).to_owned()).collect::<Vec<_>>())
    }

    fn names(left: &Left) -> Vec<&str> {
        left.files.iter().map(|f| f.name.as_str()).collect()
    }

    #[test]
    fn kept_paths_select_and_missing_ones_fail() {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::create_dir_all(dir.path().join("d/none")).expect("mkdir");
        for name in ["d/x", "dd", "e"] {
            std::fs::write(dir.path().join(name), "1").expect("write");
        }
        let left = kept(dir.path(), &["d/"]).expect("kept");
        assert_eq!((names(&left), &left.tree.empty_dirs), (vec!["d/x"], &["d/none".to_owned()].into()));
        assert_eq!(kept(dir.path(), &[]).expect("all").files.len(), 3);
        assert!(kept(dir.path(), &["d/none"]).expect("a directory").files.is_empty());
        let missing = kept(dir.path(), &["e", "nope"]).expect_err("missing");
        assert!(missing.code == ErrorCode::Exit && missing.message.contains("output/nope"), "{missing}");
    }

    #[test]
    fn links_modes_and_empty_directories_are_kept_and_the_rest_is_named() {
        let dir = tempfile::tempdir().expect("dir");
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("a/empty")).expect("mkdir");
        std::fs::write(at("tool"), "x").expect("write");
        std::fs::set_permissions(at("tool"), Permissions::from_mode(0o755)).expect("chmod");
        symlink("tool", at("latest")).expect("link");
        symlink("/etc/passwd", at("out")).expect("link");
        let _socket = UnixListener::bind(at("sock")).expect("bind");
        let left = kept(dir.path(), &[]).expect("all");
        assert_eq!(names(&left), ["tool"]);
        assert_eq!(left.tree.executables, ["tool".to_owned()].into());
        assert_eq!(left.tree.empty_dirs, ["a/empty".to_owned()].into());
        assert_eq!(left.tree.links, [("latest".to_owned(), "tool".to_owned())].into());
        let left_out: Vec<_> = left.tree.left_out.into_iter().collect();
        let expected = [("out", "a link that leads outside, to /etc/passwd"), ("sock", "a socket")];
        assert_eq!(left_out, expected.map(|(name, what)| (name.to_owned(), what.to_owned())));
        // What was asked for by name and cannot be kept fails, with what it is.
        let failure = kept(dir.path(), &["sock"]).expect_err("a socket");
        assert!(failure.code == ErrorCode::Invalid && failure.message.contains("output/sock"), "{failure}");
        let failure = kept(dir.path(), &["latest"]).expect_err("its target is not kept");
        assert!(failure.message.contains("a link to tool"), "{failure}");
        assert_eq!(kept(dir.path(), &["latest", "tool"]).expect("both").tree.links.len(), 1);
    }
}
