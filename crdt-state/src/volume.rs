//! Volumes: directories that a node's operator offers to jobs under a name. What a job asks for, what a node says it has, and the
//! operator's rules that decide.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::ids::NodeId;
use crate::program::Runners;
use crate::remote::Wrong;
use crate::spec::JobSpec;

/// Most volumes of a job, and of a node: they travel in every node's card and become mounts.
pub const VOLUMES_MAX: usize = 16;
/// Longest name of one, bytes.
pub const VOLUME_NAME_LEN_MAX: usize = 32;
/// Longest path at which one appears, bytes.
const PATH_LEN_MAX: usize = 256;
/// Where programs find their own directories and the system's: nothing may cover these, or lie in them.
const TAKEN: [&str; 18] = [
    "/bin", "/boot", "/dev", "/etc", "/input", "/job", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/root", "/run",
    "/sbin", "/sys", "/tmp", "/usr", "/var/tmp",
];

/// A volume as a job asks for it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// As operators call it.
    pub name: String,
    /// Where its programs find it: an absolute path.
    pub path: String,
    /// Whether they may only read it.
    pub read_only: bool,
}

/// Whether `name` is one that a volume may have.
#[must_use]
pub fn is_volume_name(name: &str) -> bool {
    let rest = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_';
    name.len() <= VOLUME_NAME_LEN_MAX
        && name.bytes().next().is_some_and(|c| c.is_ascii_lowercase())
        && name.bytes().all(rest)
}

/// Whether one of two paths is the other, or lies below it.
fn overlap(a: &str, b: &str) -> bool {
    let below =
        |path: &str, dir: &str| path.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    below(a, b) || below(b, a)
}

impl Volume {
    /// What is wrong with it.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub fn check(&self) -> Result<(), Wrong> {
        if !is_volume_name(&self.name) {
            return Err(("not the name of a volume", "write a lower-case letter, then up to 31 of a-z, 0-9 and `_`"));
        }
        let clean = |part: &str| !matches!(part, "" | "." | "..");
        let plain = self.path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(clean));
        if !plain || self.path.len() > PATH_LEN_MAX || self.path.chars().any(char::is_control) {
            return Err(("not a path for a volume", "write an absolute path without `..`, such as /data"));
        }
        if TAKEN.iter().any(|taken| overlap(&self.path, taken)) {
            return Err(("something else is there", "choose a directory of its own, such as /data"));
        }
        Ok(())
    }
}

/// Checks all volumes of a job, each for itself and against the others.
///
/// # Errors
/// The number of the first bad one, what is wrong with it, and what would be right.
pub fn check_volumes(volumes: &[Volume]) -> Result<(), (usize, Wrong)> {
    if volumes.len() > VOLUMES_MAX {
        return Err((VOLUMES_MAX, ("a job has at most 16 volumes", "leave some out")));
    }
    for (i, volume) in volumes.iter().enumerate() {
        volume.check().map_err(|wrong| (i, wrong))?;
        for other in &volumes[..i] {
            if other.name == volume.name {
                return Err((i, ("this volume is there twice", "name each volume once")));
            }
            if overlap(&other.path, &volume.path) {
                return Err((i, ("another volume is there", "give each a directory of its own")));
            }
        }
    }
    Ok(())
}

/// Names of volumes, and whether each can be written to: what a node offers, or what a job needs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, bool>")]
pub struct Volumes(BTreeMap<String, bool>);

/// A peer named more volumes, or odder ones, than there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a list of volumes: at most {VOLUMES_MAX}, each with a name of up to {VOLUME_NAME_LEN_MAX} bytes")]
pub struct BadVolumes;

impl TryFrom<BTreeMap<String, bool>> for Volumes {
    type Error = BadVolumes;

    fn try_from(volumes: BTreeMap<String, bool>) -> Result<Self, BadVolumes> {
        let fine = volumes.len() <= VOLUMES_MAX && volumes.keys().all(|name| is_volume_name(name));
        if fine { Ok(Self(volumes)) } else { Err(BadVolumes) }
    }
}

impl Volumes {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all of `needed` are here, writable where they must be.
    #[must_use]
    pub fn cover(&self, needed: &Self) -> bool {
        needed.0.iter().all(|(name, write)| self.0.get(name).is_some_and(|writable| *writable || !write))
    }

    /// The names, each with whether it is writable.
    pub fn iter(&self) -> impl Iterator<Item = (&str, bool)> {
        self.0.iter().map(|(name, writable)| (name.as_str(), *writable))
    }
}

impl JobSpec {
    /// The volumes that a node needs for it.
    #[must_use]
    pub fn needed_volumes(&self) -> Volumes {
        Volumes(self.volumes.iter().map(|volume| (volume.name.clone(), !volume.read_only)).collect())
    }
}

/// An operator's rule for one volume.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VolumeRule {
    /// Whether jobs may write to it.
    pub writable: bool,
    /// Who may use it; everybody, when not set.
    pub submitters: Option<BTreeSet<NodeId>>,
}

/// An operator's rules for all volumes of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VolumeRules {
    /// By name.
    pub rules: BTreeMap<String, VolumeRule>,
    /// Whether programs run without a sandbox here, which could not keep them from writing.
    pub bare: bool,
}

/// Why a job may not have a volume on a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VolumeRefusal {
    /// There is none of that name.
    #[error("this node offers no volume `{0}`")]
    Unknown(String),
    /// It is not offered for writing.
    #[error("this node offers volume `{0}` read-only: write read_only = true, or use another node")]
    ReadOnly(String),
    /// Its operator names who may use it, and that is somebody else.
    #[error("the job's submitter may not use volume `{0}` of this node")]
    Submitter(String),
    /// Read-only cannot be kept.
    #[error("programs run without a sandbox on this node, so nothing keeps them from writing to volume `{0}`")]
    Bare(String),
}

impl VolumeRules {
    /// What peers are told: names, and whether they can be written to.
    #[must_use]
    pub fn offered(&self) -> Volumes {
        Volumes(self.rules.iter().map(|(name, rule)| (name.clone(), rule.writable)).collect())
    }

    /// Whether a job may have its volumes here.
    ///
    /// # Errors
    /// The first that it may not.
    pub fn admit(&self, spec: &JobSpec) -> Result<(), VolumeRefusal> {
        for volume in &spec.volumes {
            let name = || volume.name.clone();
            let rule = self.rules.get(&volume.name).ok_or_else(|| VolumeRefusal::Unknown(name()))?;
            if rule.submitters.as_ref().is_some_and(|some| !some.contains(&spec.submitter)) {
                return Err(VolumeRefusal::Submitter(name()));
            }
            if !volume.read_only && !rule.writable {
                return Err(VolumeRefusal::ReadOnly(name()));
            }
            let runs_bare = [Runners::PROCESS, Runners::PYTHON].iter().any(|kind| spec.runners().contains(*kind));
            if volume.read_only && self.bare && runs_bare {
                return Err(VolumeRefusal::Bare(name()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(name: &str, path: &str) -> Volume {
        Volume { name: name.to_owned(), path: path.to_owned(), read_only: true }
    }

    #[test]
    fn a_volume_covers_nothing_that_is_there() {
        for path in ["/data", "/srv/data/sets", "/var/lib/data", "/jobs", "/inputs/x", "/home/me"] {
            assert_eq!(volume("data", path).check(), Ok(()), "{path}");
        }
        for path in [
            "",
            "/",
            "data",
            "/data/",
            "//data",
            "/data/../etc",
            "/./data",
            "/job",
            "/job/output/x",
            "/input",
            "/usr",
            "/usr/share/x",
            "/etc",
            "/proc/1",
            "/dev/shm",
            "/tmp/x",
            "/var",
            "/var/tmp/x",
            "/lib64",
            "/data\n",
        ] {
            assert!(volume("data", path).check().is_err(), "{path}");
        }
        for taken in TAKEN {
            for path in [taken.to_owned(), format!("{taken}/x")] {
                assert!(volume("data", &path).check().is_err(), "{path}");
            }
        }
        let long = format!("/{}", "x".repeat(PATH_LEN_MAX));
        assert!(volume("data", &long).check().is_err());
        for name in ["", "Data", "1data", "_x", "a-b", "a/b", "..", &"x".repeat(VOLUME_NAME_LEN_MAX + 1)] {
            assert!(volume(name, "/data").check().is_err(), "{name}");
        }
        let two =
            |a: (&str, &str), b: (&str, &str)| check_volumes(&[volume(a.0, a.1), volume(b.0, b.1)]).map_err(|e| e.0);
        assert_eq!(two(("a", "/a"), ("b", "/ab")), Ok(()));
        assert_eq!(two(("a", "/a"), ("b", "/a/b")), Err(1));
        assert_eq!(two(("a", "/a/b"), ("b", "/a")), Err(1));
        assert_eq!(two(("a", "/a"), ("a", "/b")), Err(1));
        let many: Vec<_> = (0..=VOLUMES_MAX).map(|i| volume(&format!("v{i}"), &format!("/v{i}"))).collect();
        assert!(check_volumes(&many[1..]).is_ok() && check_volumes(&many).is_err());
    }

    #[test]
    fn what_is_offered_covers_what_is_needed() {
        let of = |all: &[(&str, bool)]| Volumes(all.iter().map(|(name, write)| ((*name).to_owned(), *write)).collect());
        let offered = of(&[("a", false), ("b", true)]);
        for (needed, fits) in [
            (of(&[]), true),
            (of(&[("a", false)]), true),
            (of(&[("a", true)]), false),
            (of(&[("b", true), ("a", false)]), true),
            (of(&[("b", false)]), true),
            (of(&[("c", false)]), false),
        ] {
            assert_eq!(offered.cover(&needed), fits, "{needed:?}");
        }
    }

    #[test]
    fn what_peers_say_is_bounded() {
        let read = |all: BTreeMap<String, bool>| crate::cbor::from_slice::<Volumes>(&crate::cbor::to_vec(&all)).is_ok();
        let many = |n: usize| (0..n).map(|i| (format!("v{i}"), true)).collect();
        assert!(read(many(VOLUMES_MAX)) && !read(many(VOLUMES_MAX + 1)));
        assert!(!read([("x".repeat(VOLUME_NAME_LEN_MAX + 1), true)].into()));
        assert!(!read([("../x".to_owned(), true)].into()));
    }
}
