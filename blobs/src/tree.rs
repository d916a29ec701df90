//! What a directory holds that the names and contents of its files do not say: which files may be executed, symbolic links,
//! empty directories; and what was left out of it. Kept as a small blob beside the files. Reads and writes no file itself.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sinew_crdt_state::cbor;

/// Longest encoded tree, bytes: a hundred thousand paths of ordinary length.
pub const TREE_LEN_MAX: u64 = 16 << 20;
/// Longest path and longest target of a link, bytes: Linux' `PATH_MAX`.
const PATH_LEN_MAX: usize = 4_096;
/// Most parts in the target of a link: looking at one of a peer's costs little, and nobody nests directories as deep.
const TARGET_PARTS_MAX: usize = 128;

/// See the module. Paths are relative to the directory, parts separated by `/`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tree {
    /// Files that may be executed.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub executables: BTreeSet<String>,
    /// Symbolic links and their targets, none of which leads out of the directory.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub links: BTreeMap<String, String>,
    /// Directories with nothing in them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub empty_dirs: BTreeSet<String>,
    /// What is not part of it, and what it is.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub left_out: BTreeMap<String, String>,
}

/// Why bytes are no tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// They do not decode.
    #[error("it does not decode: {0}")]
    Malformed(String),
    /// A path in it would lead out of the directory.
    #[error("its path `{}` is not relative and plain", .0.escape_debug())]
    Path(String),
    /// A link in it would lead out of the directory.
    #[error("its link `{}` leads out of the directory", .0.escape_debug())]
    Link(String),
}

impl Tree {
    /// Whether there is nothing to say.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The bytes to keep.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        cbor::to_vec(self)
    }

    /// Reads what another node wrote: every path in the result is plain, and no link leads out.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, TreeError> {
        let tree: Self = cbor::from_slice(bytes).map_err(|e| TreeError::Malformed(e.to_string()))?;
        let paths = tree.executables.iter().chain(tree.links.keys()).chain(&tree.empty_dirs);
        if let Some(path) = paths.into_iter().find(|path| !is_plain(path)) {
            return Err(TreeError::Path(path.clone()));
        }
        match tree.links.keys().find(|link| tree.leads_out(link)) {
            Some(link) => Err(TreeError::Link(link.clone())),
            None => Ok(tree),
        }
    }

    /// Leaves out the links that lead out of the directory, once all links in it are known.
    pub fn leave_out_links(&mut self) {
        let out: Vec<String> = self.links.keys().filter(|link| self.leads_out(link)).cloned().collect();
        for link in out {
            let target = self.links.remove(&link).unwrap_or_default();
            self.left_out.insert(link, format!("a link that leads outside, to {target}"));
        }
    }

    /// The path below the directory that a link names, as far as names tell.
    #[must_use]
    pub fn target_of(&self, link: &str) -> Option<String> {
        let target = self.links.get(link)?;
        let parts = target.split('/');
        if target.is_empty() || target.starts_with('/') || target.len() > PATH_LEN_MAX || target.contains('\0') {
            return None;
        }
        if parts.clone().nth(TARGET_PARTS_MAX).is_some() {
            return None;
        }
        let mut at: Vec<&str> = link.split('/').collect();
        at.pop();
        let mut through_link = false;
        for part in parts {
            match part {
                "" | "." => {}
                // Where a way up leads after a link, names cannot tell.
                ".." if through_link => return None,
                ".." => drop(at.pop()?),
                name => {
                    at.push(name);
                    through_link |= self.links.contains_key(&at.join("/"));
                }
            }
        }
        Some(at.join("/"))
    }

    fn leads_out(&self, link: &str) -> bool {
        self.target_of(link).is_none()
    }
}

/// Whether a path stays inside the directory that it is joined to.
fn is_plain(path: &str) -> bool {
    path.len() <= PATH_LEN_MAX && !path.contains('\0') && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(links: &[(&str, &str)]) -> Tree {
        let links = links.iter().map(|(link, target)| ((*link).to_owned(), (*target).to_owned())).collect();
        Tree { links, ..Tree::default() }
    }

    #[test]
    fn links_stay_inside_or_are_left_out() {
        let mut all = tree(&[
            ("latest", "model-1"),
            ("d/up", "../model-1"),
            ("d/top", ".."),
            ("d/dangling", "./nowhere"),
            ("abs", "/etc/passwd"),
            ("out", "../x"),
            ("d/out", "../../x"),
            // The names alone say `d`, but `d/top` is the directory itself, and what is above that is outside.
            ("sly", "d/top/.."),
        ]);
        assert_eq!(all.target_of("d/up").as_deref(), Some("model-1"));
        for link in ["abs", "out", "d/out", "sly"] {
            let bad = Tree { links: all.links.clone(), ..Tree::default() };
            assert!(bad.leads_out(link), "{link}");
            assert!(matches!(Tree::decode(&bad.encode()), Err(TreeError::Link(_))));
        }
        all.leave_out_links();
        let kept: Vec<_> = all.links.keys().map(String::as_str).collect();
        assert_eq!(kept, ["d/dangling", "d/top", "d/up", "latest"]);
        assert_eq!(all.left_out["abs"], "a link that leads outside, to /etc/passwd");
        assert_eq!(Tree::decode(&all.encode()), Ok(all));
    }

    #[test]
    fn what_a_peer_wrote_is_checked() {
        assert!(matches!(Tree::decode(b"\xff"), Err(TreeError::Malformed(_))));
        for path in ["../x", "/x", "a//b", ""] {
            let bad = Tree { empty_dirs: [path.to_owned()].into(), ..Tree::default() };
            assert_eq!(Tree::decode(&bad.encode()), Err(TreeError::Path(path.to_owned())));
        }
        let loop_ = tree(&[("a", "b"), ("b", "a"), ("c", "c/..")]);
        assert_eq!(loop_.target_of("a").as_deref(), Some("b"));
        assert!(loop_.leads_out("c"), "through itself");
    }
}
