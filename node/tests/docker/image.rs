//! Images made by hand: a static busybox, and an archive around it as `docker save` writes them.

use serde_json::json;
use sha2::{Digest, Sha256};

pub(crate) const BUSYBOX: &str = "/bin/busybox";

/// Names under which busybox does something in the images.
const APPLETS: [&str; 32] = [
    "sh", "cat", "echo", "sleep", "id", "pwd", "ls", "dd", "head", "touch", "true", "false", "grep", "wc", "ps",
    "mount", "wget", "ping", "chown", "chmod", "tr", "seq", "kill", "mkdir", "ln", "env", "sort", "df", "awk", "nc",
    "ulimit", "test",
];

/// What an image is to be like.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recipe {
    /// Tags in the archive.
    pub(crate) tags: Vec<&'static str>,
    pub(crate) entrypoint: Vec<&'static str>,
    pub(crate) cmd: Vec<&'static str>,
    pub(crate) volumes: Vec<&'static str>,
    pub(crate) user: &'static str,
    /// Makes it another image.
    pub(crate) mark: &'static str,
    pub(crate) gzip: bool,
}

/// An image in an archive.
pub(crate) struct Made {
    pub(crate) archive: Vec<u8>,
    /// `sha256:…` of its configuration.
    pub(crate) id: String,
    pub(crate) config: Vec<u8>,
    pub(crate) layer: Vec<u8>,
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", data_encoding::HEXLOWER.encode(&Sha256::digest(bytes)))
}

/// A tar of these files.
pub(crate) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        file(&mut tar, name, 0o644, content);
    }
    tar.into_inner().expect("tar")
}

fn file(tar: &mut tar::Builder<Vec<u8>>, name: &str, mode: u32, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    // Not through `append_data`, which refuses the names that some tests want.
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_cksum();
    tar.append(&header, content).expect("file");
}

fn layer(mark: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    file(&mut tar, "bin/busybox", 0o755, &std::fs::read(BUSYBOX).expect("busybox"));
    for applet in APPLETS {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox").expect("link");
    }
    file(&mut tar, "etc/passwd", 0o644, b"root:x:0:0:root:/:/bin/sh\n");
    file(&mut tar, "mark", 0o644, mark.as_bytes());
    tar.into_inner().expect("tar")
}

pub(crate) fn make(recipe: &Recipe) -> Made {
    let layer = layer(recipe.mark);
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let volumes: serde_json::Map<_, _> = recipe.volumes.iter().map(|v| ((*v).to_owned(), json!({}))).collect();
    let list = |words: &[&str]| if words.is_empty() { json!(null) } else { json!(words) };
    let config = json!({
        "architecture": arch,
        "os": "linux",
        "config": {
            "Env": ["PATH=/bin", "FROM_IMAGE=yes"],
            "Entrypoint": list(&recipe.entrypoint),
            "Cmd": list(&recipe.cmd),
            "User": recipe.user,
            "Volumes": volumes,
        },
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
    });
    let config = serde_json::to_vec(&config).expect("json");
    let stored = if recipe.gzip { gzip(&layer) } else { layer };
    let id = digest(&config);
    let config_name = format!("{}.json", &id["sha256:".len()..]);
    let manifest = json!([{ "Config": config_name, "RepoTags": recipe.tags, "Layers": ["layer/layer.tar"] }]);
    let manifest = serde_json::to_vec(&manifest).expect("json");
    let repositories = json!({ "clobbered": { "latest": "layer" } }).to_string();
    let archive = tar(&[
        ("layer/layer.tar", &stored[..]),
        (&config_name, &config[..]),
        ("repositories", repositories.as_bytes()),
        ("manifest.json", &manifest[..]),
    ]);
    Made { archive, id, config, layer: stored }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("gzip");
    encoder.finish().expect("gzip")
}
