//! What a job computes, as one hash: program, arguments, environment and inputs, without who asked, when, and where it may run.
//! Two jobs with one key have the same outputs as far as their programs do the same each time.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::cbor;
use crate::ids::Hash;
use crate::network::Network;
use crate::object::ObjectFile;
use crate::remote::{ContentHash, HttpFile};
use crate::secret::SecretUse;
use crate::spec::{BlobRef, InputFile, JobSpec, Program, Source, Work};
use crate::volume::Volume;

/// What a job's programs find under a path, whichever way it came there.
#[derive(Serialize, PartialEq, Eq, PartialOrd, Ord)]
enum Content<'a> {
    Blake3([u8; 32]),
    Sha256([u8; 32]),
    Tree(&'a str, Option<&'a str>),
}

impl<'a> From<&'a Source> for Content<'a> {
    fn from(source: &'a Source) -> Self {
        match source {
            Source::Inline(bytes) => Self::Blake3(*blake3::hash(bytes).as_bytes()),
            Source::Blob(blob) => Self::Blake3(blob.hash.0),
            Source::Http(HttpFile { hash, .. }) | Source::Object(ObjectFile { hash, .. }) => match *hash {
                ContentHash::Blake3(hash) => Self::Blake3(hash.0),
                ContentHash::Sha256(hash) => Self::Sha256(hash),
            },
            Source::Git(tree) => Self::Tree(&tree.revision, tree.subdir.as_deref()),
        }
    }
}

#[derive(Serialize)]
enum Keyed<'a> {
    Batch {
        program: &'a Program,
        tasks: u32,
        env: &'a BTreeMap<String, String>,
        inputs: Vec<(&'a str, Content<'a>, bool)>,
        gather: Option<&'a [String]>,
        outputs: Vec<&'a str>,
        #[serde(skip_serializing_if = "is_none")]
        network: &'a Network,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        secrets: Vec<&'a SecretUse>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        volumes: Vec<&'a Volume>,
    },
    MapReduce {
        chunk_table: BlobRef,
        inputs: &'a [BlobRef],
        programs: [Option<&'a Program>; 3],
        partitions: u32,
        files: Vec<(&'a str, Content<'a>, bool)>,
        env: &'a BTreeMap<String, String>,
        #[serde(skip_serializing_if = "is_none")]
        network: &'a Network,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        secrets: Vec<&'a SecretUse>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        volumes: Vec<&'a Volume>,
    },
}

/// Left out, so that jobs without a network keep the keys that they had before there was any.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_none(network: &&Network) -> bool {
    network.is_none()
}

/// In order of their paths: in which order they are placed makes no difference.
fn files(files: &[InputFile]) -> Vec<(&str, Content<'_>, bool)> {
    let mut all: Vec<_> = files.iter().map(|f| (f.path.as_str(), Content::from(&f.source), f.executable)).collect();
    all.sort();
    all
}

impl JobSpec {
    /// The job's key: BLAKE3 over what it computes.
    #[must_use]
    pub fn key(&self) -> Hash {
        // By name: with other values the job is taken for the same.
        let mut secrets: Vec<&SecretUse> = self.secrets.iter().collect();
        secrets.sort_unstable();
        // Where they are and what they are called; what is in them nobody knows.
        let mut volumes: Vec<&Volume> = self.volumes.iter().collect();
        volumes.sort_unstable();
        let keyed = match &*self.work {
            Work::Batch(batch) => {
                let mut outputs: Vec<&str> = batch.outputs.iter().map(String::as_str).collect();
                outputs.sort_unstable();
                Keyed::Batch {
                    program: &batch.program,
                    tasks: batch.tasks,
                    env: &batch.env,
                    inputs: files(&batch.inputs),
                    gather: batch.gather.as_deref(),
                    outputs,
                    network: &self.network,
                    secrets,
                    volumes,
                }
            }
            Work::MapReduce(round) => Keyed::MapReduce {
                chunk_table: round.chunk_table,
                inputs: &round.inputs,
                programs: [Some(&round.map), round.combine.as_ref(), Some(&round.reduce)],
                partitions: round.partitions,
                files: files(&round.files),
                env: &round.env,
                network: &self.network,
                secrets,
                volumes,
            },
        };
        let mut hasher = blake3::Hasher::new_derive_key("sinew job key 1");
        Hash(*hasher.update(&cbor::to_vec(&keyed)).finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{DiskId, MeshId, NodeId};
    use crate::manifest::{DraftContext, DraftWork, JobDraft};
    use crate::remote::GitTree;

    /// The spec of a manifest, whose local paths' contents are their names.
    fn spec(text: &str, serial: u64) -> JobSpec {
        let draft: JobDraft = crate::manifest::parse(text.as_bytes(), None).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let DraftWork::Batch(batch) = draft.work.clone() else { panic!("a batch") };
        let program = batch.program.clone().try_map(|_| Err(())).expect("no content");
        let inputs = draft.files().iter().map(|f| InputFile {
            path: f.to.clone(),
            source: Source::Inline(f.to.clone().into_bytes()),
            executable: f.executable,
        });
        let work = batch.resolve(draft.env.clone(), program, inputs.collect());
        let node = NodeId([u8::try_from(serial).expect("small"); 32]);
        let (brain_set, brain_disks) = (vec![node], vec![DiskId(serial)]);
        let mesh = MeshId([9; 32]);
        draft.into_spec(
            DraftContext { mesh, submitter: node, serial, submitted_ms: serial, brain_set, brain_disks },
            work,
        )
    }

    const TEXT: &str = "type = \"batch\"\nenv.A = \"1\"\n[batch]\ncommand = [\"a\", \"b\"]\ninputs = [\"x\", \"y\"]\noutputs = [\"o\", \"p\"]\n";

    #[test]
    fn the_same_work_has_the_same_key_whoever_asks() {
        let key = spec(TEXT, 1).key();
        let same = [
            TEXT.to_owned(),
            TEXT.replace("\"x\", \"y\"", "\"y\", \"x\""),
            TEXT.replace("\"o\", \"p\"", "\"p\", \"o\""),
            format!("network = \"none\"\n{TEXT}"),
            format!("cpus = 3\nname = \"other\"\ncopies = 1\nlabels.a = \"b\"\nlimits.timeout = \"1s\"\n{TEXT}"),
        ];
        for (serial, text) in (2..).zip(same) {
            assert_eq!(spec(&text, serial).key(), key, "{text}");
        }
        // Pinned: a key that changed with a version would never be found again.
        assert_eq!(key.to_string(), "i7ig4bbmlczjwgsgbpeabh7lf2ymfyc6hb5u5r647v5hqlu66plq");
    }

    #[test]
    fn other_work_has_another_key() {
        let mut keys = vec![spec(TEXT, 1).key()];
        for (from, to) in [
            ("\"b\"]", "\"c\"]"),
            ("A = \"1\"", "A = \"2\""),
            ("\"y\"", "\"z\""),
            ("[\"x\"", "[{ path = \"x\", executable = true }"),
            ("[batch]", "network = [\"h.example\"]\n[batch]"),
            ("[batch]", "network = [\"h.example:80\"]\n[batch]"),
            ("[batch]", "[batch]\ntasks = 2"),
            ("[batch]", "[batch]\ngather = [\"g\"]"),
            ("\"o\", ", ""),
            ("type", "secrets = [{ name = \"s\", env = \"S\" }]\ntype"),
            ("type", "secrets = [{ name = \"t\", env = \"S\" }]\ntype"),
            ("type", "secrets = [{ name = \"s\", file = \"S\" }]\ntype"),
            ("[batch]", "[[volumes]]\nname = \"v\"\npath = \"/v\"\n[batch]"),
            ("[batch]", "[[volumes]]\nname = \"w\"\npath = \"/v\"\n[batch]"),
            ("[batch]", "[[volumes]]\nname = \"v\"\npath = \"/v\"\nread_only = false\n[batch]"),
        ] {
            let text = TEXT.replacen(from, to, 1);
            assert_ne!(text, TEXT);
            keys.push(spec(&text, 1).key());
        }
        let all = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), all);
    }

    #[test]
    fn a_file_is_the_same_however_it_comes() {
        let with = |source: Source| {
            let mut spec = spec(TEXT, 1);
            let Work::Batch(batch) = std::sync::Arc::make_mut(&mut spec.work) else { panic!("a batch") };
            batch.inputs[0].source = source;
            spec.key()
        };
        let hash = Hash(*blake3::hash(b"x").as_bytes());
        let url = || "https://a/b".to_owned();
        let same = [
            Source::Inline(b"x".to_vec()),
            Source::Blob(BlobRef { hash, size: 1 }),
            Source::Http(HttpFile { url: url(), hash: ContentHash::Blake3(hash), size_max: 7 }),
            Source::Object(ObjectFile {
                url: "s3://b/k".to_owned(),
                hash: ContentHash::Blake3(hash),
                size_max: 7,
                endpoint: None,
                region: None,
                account: None,
                credentials: None,
            }),
        ];
        assert!(same.map(with).iter().all(|key| *key == spec(TEXT, 1).key()));
        let git = |revision: &str| {
            let token = (revision != "1").then(|| "deploy".to_owned());
            with(Source::Git(GitTree { url: url(), revision: revision.to_owned(), subdir: None, token, size_max: 1 }))
        };
        assert_ne!(git(&"1".repeat(40)), git(&"2".repeat(40)));
    }
}
