//! The image of a container that does nothing but hold a network namespace: one file, a program that waits for ever. It is made
//! here, byte by byte, because a host without a registry must have it too.

use std::io;

use serde_json::json;
use sha2::{Digest, Sha256};

/// Where the program is in the image.
pub(super) const PROGRAM: &str = "/pause";
/// Where the program is in memory, and its code behind the headers in the file.
const ADDRESS: u64 = 0x40_0000;
const HEADERS_LEN: u64 = 64 + 56;
/// `ET_EXEC`, and what the system calls x86-64 and aarch64.
const EXECUTABLE: u16 = 2;
const X86_64: u16 = 62;
const AARCH64: u16 = 183;

/// Waits for a signal, again and again.
#[rustfmt::skip]
const CODE_X86_64: &[u8] = &[
    0xb8, 0x22, 0x00, 0x00, 0x00, // mov eax, 34     (pause)
    0x0f, 0x05,                   // syscall
    0xeb, 0xf7,                   // jmp -9          (to the first)
];
/// The same; aarch64 has no `pause`, so it waits for none of no descriptors.
#[rustfmt::skip]
const CODE_AARCH64: &[u8] = &[
    0x00, 0x00, 0x80, 0xd2, // mov x0, #0       (no descriptors)
    0x01, 0x00, 0x80, 0xd2, // mov x1, #0       (none)
    0x02, 0x00, 0x80, 0xd2, // mov x2, #0       (no end)
    0x03, 0x00, 0x80, 0xd2, // mov x3, #0       (no other mask)
    0x04, 0x00, 0x80, 0xd2, // mov x4, #0       (of no length)
    0x28, 0x09, 0x80, 0xd2, // mov x8, #73      (ppoll)
    0x01, 0x00, 0x00, 0xd4, // svc #0
    0xf9, 0xff, 0xff, 0x17, // b -28            (to the first)
];

/// The program of this machine's architecture: its name to engines, and a static ELF file.
fn program() -> Option<(&'static str, Vec<u8>)> {
    match std::env::consts::ARCH {
        "x86_64" => Some(("amd64", elf(X86_64, CODE_X86_64))),
        "aarch64" => Some(("arm64", elf(AARCH64, CODE_AARCH64))),
        _ => None,
    }
}

/// An ELF file of one segment.
fn elf(machine: u16, code: &[u8]) -> Vec<u8> {
    let len = HEADERS_LEN + code.len() as u64;
    let mut file = Vec::new();
    // 64 bits, little-endian, version 1, System V.
    file.extend_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let half = |n: u16, file: &mut Vec<u8>| file.extend_from_slice(&n.to_le_bytes());
    half(EXECUTABLE, &mut file);
    half(machine, &mut file);
    file.extend_from_slice(&1_u32.to_le_bytes());
    // Entry, program headers, no section headers.
    for n in [ADDRESS + HEADERS_LEN, 64, 0] {
        file.extend_from_slice(&n.to_le_bytes());
    }
    file.extend_from_slice(&0_u32.to_le_bytes());
    // Sizes: of this header, of a program header and how many, of a section header and how many, and which has names.
    [64, 56, 1, 64, 0, 0].into_iter().for_each(|n| half(n, &mut file));
    // PT_LOAD, readable and executable; the whole file.
    for n in [1_u32, 5] {
        file.extend_from_slice(&n.to_le_bytes());
    }
    for n in [0, ADDRESS, ADDRESS, len, len, 0x1000] {
        file.extend_from_slice(&n.to_le_bytes());
    }
    file.extend_from_slice(code);
    file
}

/// The image.
pub(super) struct Pause {
    /// Its digest, as engines know it.
    pub(super) id: String,
    config: Vec<u8>,
    layer: Vec<u8>,
}

impl Pause {
    /// Of this machine's architecture; `None` where nobody has written the program.
    ///
    /// # Errors
    /// Never, in memory.
    pub(super) fn new() -> io::Result<Option<Self>> {
        let Some((architecture, program)) = program() else { return Ok(None) };
        let layer = tar([(&PROGRAM[1..], 0o755, &program[..])])?;
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": { "Entrypoint": [PROGRAM], "Labels": { "sinew": "holds a network namespace" } },
            "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
        });
        let config = serde_json::to_vec(&config)?;
        Ok(Some(Self { id: digest(&config), config, layer }))
    }

    /// It as `docker save` writes images.
    pub(super) fn archive(&self) -> io::Result<Vec<u8>> {
        let name = format!("{}.json", self.id.trim_start_matches("sha256:"));
        let manifest = serde_json::to_vec(&json!([{ "Config": name, "RepoTags": null, "Layers": ["layer.tar"] }]))?;
        tar([("layer.tar", 0o644, &self.layer[..]), (&name, 0o644, &self.config), ("manifest.json", 0o644, &manifest)])
    }
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", data_encoding::HEXLOWER.encode(&Sha256::digest(bytes)))
}

/// The same bytes each time: an image is named by them.
fn tar<const N: usize>(files: [(&str, u32, &[u8]); N]) -> io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, mode, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        header.set_mtime(0);
        tar.append_data(&mut header, name, content)?;
    }
    tar.into_inner()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn the_program_waits_until_it_is_killed() {
        let Some((_, program)) = program() else { return };
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("pause");
        std::fs::write(&path, program).expect("write");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("chmod");
        let mut child = std::process::Command::new(&path).spawn().expect("an executable");
        let pid = child.id();
        // Asleep in the kernel, in the call that it is to be in.
        let waits = || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") S "));
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while !waits() && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert!(waits() && child.try_wait().expect("wait").is_none());
        child.kill().expect("kill");
        assert_eq!(child.wait().expect("wait").signal(), Some(9));
    }

    #[test]
    fn both_programs_are_whole_and_the_image_is_the_same_each_time() {
        for (machine, code) in [(X86_64, CODE_X86_64), (AARCH64, CODE_AARCH64)] {
            let file = elf(machine, code);
            assert_eq!(file.len() as u64, HEADERS_LEN + code.len() as u64);
            assert_eq!(file[18..20], machine.to_le_bytes());
        }
        let image = || Pause::new().expect("image").expect("of this architecture");
        assert_eq!((image().id, image().archive().expect("tar")), (image().id, image().archive().expect("tar")));
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), image().archive().expect("tar")).expect("write");
        let opened = super::super::archive::open(file.path()).expect("an archive like any other");
        assert_eq!(opened.id, image().id);
    }
}
