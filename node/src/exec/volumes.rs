//! Directories of this node that its operator offers to jobs under a name: which a job may have, and where its programs find them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::ids::NodeId;
use sinew_crdt_state::spec::JobSpec;
use sinew_crdt_state::volume::{VOLUMES_MAX, VolumeRule, VolumeRules, is_volume_name};

use super::outcome::Failure;
use super::runner::View;

/// What an operator sets for a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeSetting {
    /// The directory.
    pub path: PathBuf,
    /// Whether jobs may only read it.
    #[serde(default = "yes")]
    pub read_only: bool,
    /// Nodes whose jobs may use it; everybody's, when not set.
    #[serde(default)]
    pub submitters: Option<BTreeSet<NodeId>>,
}

const fn yes() -> bool {
    true
}

/// A volume as a task has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mounted {
    /// Its name.
    pub name: String,
    /// The directory on this node.
    pub host: PathBuf,
    /// Where programs find it, where they do not see the host's directories.
    pub path: PathBuf,
    /// Whether they may only read it.
    pub read_only: bool,
}

/// The variables that tell programs where their volumes are.
pub(super) fn variables(volumes: &[Mounted], view: View) -> impl Iterator<Item = (String, String)> {
    volumes.iter().map(move |volume| {
        let path = if view == View::Cell { &volume.path } else { &volume.host };
        (format!("SINEW_VOLUME_{}", volume.name.to_ascii_uppercase()), path.display().to_string())
    })
}

/// What this node offers.
#[derive(Debug, Clone, Default)]
pub struct NodeVolumes {
    dirs: BTreeMap<String, PathBuf>,
    rules: VolumeRules,
    /// What programs see of the host under its own names: nothing may cover that.
    shown: Vec<PathBuf>,
}

/// A volume that cannot be offered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("setting `volumes.{name}`: {path}: {problem}")]
pub struct BadVolume {
    /// Its name.
    pub name: String,
    /// Its directory.
    pub path: PathBuf,
    /// What is wrong, and what would be right.
    pub problem: &'static str,
}

impl NodeVolumes {
    /// Volumes as an operator set them, on a node that keeps its own in `data_dir`; `bare` if programs run without a sandbox, `shown` what
    /// they see of the host with one.
    ///
    /// # Errors
    /// The first that cannot be offered.
    pub fn open(
        settings: &BTreeMap<String, VolumeSetting>,
        shown: Vec<PathBuf>,
        bare: bool,
        data_dir: &Path,
    ) -> Result<Self, BadVolume> {
        let data_dir = data_dir.canonicalize().unwrap_or_else(|_| data_dir.to_owned());
        for (name, setting) in settings {
            let path = &setting.path;
            let bad = |problem| BadVolume { name: name.clone(), path: path.clone(), problem };
            let real =
                path.canonicalize().map_err(|_| bad("cannot be reached: make the directory, or leave it out"))?;
            if !real.is_dir() {
                return Err(bad("is no directory"));
            }
            if real.starts_with(&data_dir) || data_dir.starts_with(&real) {
                return Err(bad("holds this node's own files, or lies among them: choose another directory"));
            }
        }
        let rule = |set: &VolumeSetting| VolumeRule { writable: !set.read_only, submitters: set.submitters.clone() };
        let rules = settings.iter().map(|(name, set)| (name.clone(), rule(set))).collect();
        let dirs = settings.iter().map(|(name, set)| (name.clone(), set.path.clone())).collect();
        Ok(Self { dirs, rules: VolumeRules { rules, bare }, shown })
    }

    /// Who may have what.
    #[must_use]
    pub const fn rules(&self) -> &VolumeRules {
        &self.rules
    }

    /// A job's volumes.
    ///
    /// # Errors
    /// `E_DENY` for one that the job may not have here, `E_STORAGE` for one whose directory is gone.
    pub fn mount(&self, spec: &JobSpec) -> Result<Vec<Mounted>, Failure> {
        self.rules.admit(spec).map_err(|refusal| denied(refusal.to_string()))?;
        let one = |volume: &sinew_crdt_state::volume::Volume| {
            let name = &volume.name;
            let host = self.dirs.get(name).filter(|dir| dir.is_dir());
            // Another node may have it still.
            let gone = || format!("the directory of this node's volume `{name}` is not there now");
            let host = host.ok_or_else(|| Failure::new(ErrorCode::Storage, gone()))?;
            let path = PathBuf::from(&volume.path);
            if let Some(shown) = self.shown.iter().find(|shown| shown.starts_with(&path) || path.starts_with(shown)) {
                let why = format!("volume `{name}` cannot be at {}: this node shows {}", volume.path, shown.display());
                return Err(denied(why));
            }
            Ok(Mounted { name: name.clone(), host: host.clone(), path, read_only: volume.read_only })
        };
        spec.volumes.iter().map(one).collect()
    }
}

fn denied(why: String) -> Failure {
    Failure::new(ErrorCode::Deny, why)
}

/// What is wrong with a node's volumes as they are written, and what would be right.
pub(crate) fn check(settings: &BTreeMap<String, VolumeSetting>) -> Result<(), (String, &'static str)> {
    if settings.len() > VOLUMES_MAX {
        return Err((settings.len().to_string(), "a node offers at most 16 volumes"));
    }
    match settings.keys().find(|name| !is_volume_name(name)) {
        Some(name) => Err((name.clone(), "give each a name of a lower-case letter, then up to 31 of a-z, 0-9 and `_`")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use sinew_crdt_state::ids::{DiskId, MeshId};
    use sinew_crdt_state::manifest::{DraftContext, DraftWork, Format, JobDraft, parse};

    use super::*;

    /// A job of node 1 that asks for these volumes: names, paths, whether read-only.
    fn spec(program: &str, volumes: &[(&str, &str, bool)]) -> JobSpec {
        let tables = volumes.iter().map(|(name, path, read_only)| {
            format!("[[volumes]]\nname = {name:?}\npath = {path:?}\nread_only = {read_only}\n")
        });
        let text = format!("type = \"batch\"\n{}[batch]\n{program}\n", tables.collect::<String>());
        let draft: JobDraft = parse(text.as_bytes(), Some(Format::Toml)).unwrap_or_else(|e| panic!("{e}"));
        let DraftWork::Batch(batch) = draft.work.clone() else { panic!("a batch") };
        let program = batch.program.clone().try_map(|_| Err(())).expect("no content");
        let work = batch.resolve(draft.env.clone(), program, Vec::new());
        let submitter = NodeId([1; 32]);
        let (brain_set, brain_disks) = (vec![submitter], vec![DiskId(1)]);
        let context =
            DraftContext { mesh: MeshId([9; 32]), submitter, serial: 1, submitted_ms: 1, brain_set, brain_disks };
        draft.into_spec(context, work)
    }

    const SH: &str = "command = [\"sh\"]";

    fn offer(dir: &Path, read_only: bool, submitters: Option<u8>) -> VolumeSetting {
        let submitters = submitters.map(|node| BTreeSet::from([NodeId([node; 32])]));
        VolumeSetting { path: dir.to_owned(), read_only, submitters }
    }

    #[test]
    fn a_job_gets_what_is_offered_to_it_and_nothing_else() {
        let (dir, data) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
        let settings = BTreeMap::from([
            ("sets".to_owned(), offer(dir.path(), true, None)),
            ("out".to_owned(), offer(dir.path(), false, None)),
            ("ours".to_owned(), offer(dir.path(), true, Some(1))),
            ("theirs".to_owned(), offer(dir.path(), true, Some(2))),
        ]);
        let open = |bare| NodeVolumes::open(&settings, vec!["/opt/venv".into()], bare, data.path()).expect("volumes");
        let node = open(false);
        let mounted = node.mount(&spec(SH, &[("sets", "/a", true), ("out", "/b", false)])).expect("volumes");
        let seen: Vec<_> = mounted.iter().map(|m| (&*m.name, m.path.to_str().expect("path"), m.read_only)).collect();
        assert_eq!(seen, [("sets", "/a", true), ("out", "/b", false)]);
        assert!(mounted.iter().all(|m| m.host == dir.path()));
        // Read-only unless both sides say otherwise.
        assert!(node.mount(&spec(SH, &[("out", "/b", true)])).expect("volume")[0].read_only);
        assert!(node.mount(&spec(SH, &[("ours", "/b", true)])).is_ok() && node.mount(&spec(SH, &[])).is_ok());
        for (volume, word) in [
            (("none", "/a", true), "offers no volume `none`"),
            (("sets", "/a", false), "read-only"),
            (("theirs", "/a", true), "submitter"),
            (("sets", "/opt/venv/lib", true), "/opt/venv"),
            (("sets", "/opt", true), "/opt/venv"),
        ] {
            let refused = node.mount(&spec(SH, &[volume])).expect_err("refused");
            assert_eq!(refused.code, ErrorCode::Deny, "{refused}");
            assert!(refused.message.contains(word), "{refused}");
        }
        let bare = open(true);
        let refused = bare.mount(&spec(SH, &[("sets", "/a", true)])).expect_err("refused");
        assert!(refused.code == ErrorCode::Deny && refused.message.contains("sandbox"), "{refused}");
        assert!(bare.mount(&spec(SH, &[("out", "/a", false)])).is_ok());
        let python = "python.call = \"a:b\"";
        assert!(bare.mount(&spec(python, &[("sets", "/a", true)])).is_err());
        // A container's engine keeps it.
        let digest = "0".repeat(64);
        let container = format!("docker.image = \"x@sha256:{digest}\"");
        assert!(bare.mount(&spec(&container, &[("sets", "/a", true)])).is_ok());
        drop(dir);
        let refused = node.mount(&spec(SH, &[("sets", "/a", true)])).expect_err("gone");
        assert!(refused.code == ErrorCode::Storage && refused.message.contains("not there"), "{refused}");
    }

    #[test]
    fn a_nodes_own_files_are_not_offered() {
        let dir = tempfile::tempdir().expect("dir");
        let (data, file) = (dir.path().join("data"), dir.path().join("file"));
        std::fs::create_dir_all(data.join("work")).expect("dir");
        std::fs::write(&file, "").expect("file");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&data, &link).expect("link");
        for path in [&data, &data.join("work"), dir.path(), &link, &file, &dir.path().join("none")] {
            let settings = BTreeMap::from([("sets".to_owned(), offer(path, true, None))]);
            let refused = NodeVolumes::open(&settings, Vec::new(), false, &data).expect_err("refused").to_string();
            assert!(refused.contains("volumes.sets") && refused.contains(&path.display().to_string()), "{refused}");
        }
    }
}
