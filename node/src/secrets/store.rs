//! Where a node keeps its user's secrets: one file, encrypted with a key that only the node's own key gives, and replaced whole.
//!
//! The file is `sinew secrets 1`, a line end, 24 bytes of nonce, and XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha) over the CBOR of
//! the entries. It protects copies of the file, such as backups, that come without the node's key; it cannot protect from whoever
//! reads the whole data directory.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use serde::{Deserialize, Serialize};
use sinew_crdt_state::cbor;
use sinew_crdt_state::identity::Identity;
use sinew_crdt_state::remote::Wrong;
use sinew_crdt_state::secret::{VALUE_LEN_MAX, check_name};
use zeroize::Zeroizing;

use super::SecretBytes;

/// The file's name in the data directory.
pub const FILE_NAME: &str = "secrets.sealed";
const HEADER: &[u8] = b"sinew secrets 1\n";
const NONCE_LEN: usize = 24;
/// Most secrets of one node: all are read for each.
const STORED_MAX: usize = 1_024;
/// Longest file: a quarter of the most that could be.
const FILE_LEN_MAX: u64 = 16 << 20;

/// Why a secret could not be stored, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The name is none.
    #[error("`{name}` is {}: {}", .wrong.0, .wrong.1)]
    Name {
        /// What was given.
        name: String,
        /// What is wrong with it.
        wrong: Wrong,
    },
    /// Too long, or empty.
    #[error(
        "a secret has 1 to {VALUE_LEN_MAX} bytes, this one has {0}: put more into an input file, encrypted, and its key into a secret"
    )]
    Len(usize),
    /// Too many, or together too large.
    #[error("this node keeps no more secrets: remove some (`sinew secret ls`, `sinew secret rm NAME`)")]
    Full,
    /// It is not there.
    #[error("this node has no secret `{0}` (`sinew secret ls` lists them)")]
    Unknown(String),
    /// The file holds something else than it should.
    #[error("{path} is damaged: {problem}; restore it from a backup, or remove it and set its secrets again")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The disk refused.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// What may be told of a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretView {
    /// Its name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// When it was set, unix ms.
    pub set_ms: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    value: SecretBytes,
    set_ms: u64,
}

type Entries = BTreeMap<String, Stored>;

/// A node's secrets. Values are in memory only while they are asked for.
#[derive(Debug)]
pub struct SecretStore {
    path: PathBuf,
    key: Zeroizing<[u8; 32]>,
    /// One change at a time.
    change: Mutex<()>,
}

impl SecretStore {
    /// The secrets of the node with this identity, in the data directory `dir`. Nothing is read yet.
    #[must_use]
    pub fn open(dir: &Path, identity: &Identity) -> Self {
        let seed = Zeroizing::new(identity.seed());
        let key = Zeroizing::new(blake3::derive_key("sinew 2026 secrets at rest", &*seed));
        Self { path: dir.join(FILE_NAME), key, change: Mutex::new(()) }
    }

    /// Stores a secret, on disk when it returns. Whether it replaced another.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn set(&self, name: &str, value: SecretBytes, now_ms: u64) -> Result<bool, StoreError> {
        check_name(name).map_err(|wrong| StoreError::Name { name: name.chars().take(80).collect(), wrong })?;
        if !(1..=VALUE_LEN_MAX).contains(&value.bytes().len()) {
            return Err(StoreError::Len(value.bytes().len()));
        }
        let _one = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entries = self.read()?;
        let replaced = entries.insert(name.to_owned(), Stored { value, set_ms: now_ms }).is_some();
        self.write(&entries)?;
        Ok(replaced)
    }

    /// Removes a secret.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove(&self, name: &str) -> Result<(), StoreError> {
        let _one = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entries = self.read()?;
        entries.remove(name).ok_or_else(|| StoreError::Unknown(name.chars().take(80).collect()))?;
        self.write(&entries)
    }

    /// What there is, by name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn list(&self) -> Result<Vec<SecretView>, StoreError> {
        let view = |(name, stored): (&String, &Stored)| SecretView {
            name: name.clone(),
            size: stored.value.bytes().len() as u64,
            set_ms: stored.set_ms,
        };
        Ok(self.read()?.iter().map(view).collect())
    }

    /// The values of these.
    ///
    /// # Errors
    /// [`StoreError`]; `Unknown` names the first that is missing.
    pub fn get<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Result<Vec<(String, SecretBytes)>, StoreError> {
        let mut entries = self.read()?;
        let mut take = |name: &str| {
            let stored = entries.remove(name).ok_or_else(|| StoreError::Unknown(name.to_owned()))?;
            Ok((name.to_owned(), stored.value))
        };
        names.into_iter().map(&mut take).collect()
    }

    fn io(&self, doing: &'static str) -> impl FnOnce(io::Error) -> StoreError {
        let path = self.path.clone();
        move |source| StoreError::Io { doing, path, source }
    }

    fn damaged(&self, problem: impl Into<String>) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), problem: problem.into() }
    }

    fn read(&self) -> Result<Entries, StoreError> {
        let meta = match std::fs::metadata(&self.path) {
            Ok(meta) => meta,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Entries::new()),
            Err(e) => return Err(self.io("look at")(e)),
        };
        let mode = meta.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(self.damaged(format!("its permissions are {:o}: chmod 600 it", mode & 0o777)));
        }
        if meta.len() > FILE_LEN_MAX {
            return Err(self.damaged("it is too long"));
        }
        let bytes = std::fs::read(&self.path).map_err(self.io("read"))?;
        let rest = bytes.strip_prefix(HEADER).ok_or_else(|| self.damaged("it does not begin as it should"))?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN).ok_or_else(|| self.damaged("it is cut short"))?;
        let plain = self.cipher().decrypt(XNonce::from_slice(nonce), Payload { msg: sealed, aad: HEADER });
        let plain = plain.map_err(|_| self.damaged("it was changed, or belongs to another node's key"))?;
        let plain = Zeroizing::new(plain);
        cbor::from_slice(&plain).map_err(|e| self.damaged(e.to_string()))
    }

    fn write(&self, entries: &Entries) -> Result<(), StoreError> {
        let plain = Zeroizing::new(cbor::to_vec(entries));
        if entries.len() > STORED_MAX || plain.len() as u64 > FILE_LEN_MAX - 1_024 {
            return Err(StoreError::Full);
        }
        let mut nonce = [0; NONCE_LEN];
        random(&mut nonce).map_err(self.io("make a nonce for"))?;
        let sealed = self.cipher().encrypt(XNonce::from_slice(&nonce), Payload { msg: &plain, aad: HEADER });
        let sealed = sealed.map_err(|_| self.damaged("it cannot be encrypted"))?;
        let write = || -> io::Result<()> {
            let dir = self.path.parent().unwrap_or(Path::new("."));
            // Readable by its owner alone from the start.
            let mut file = tempfile::Builder::new().prefix(".secrets-").tempfile_in(dir)?;
            file.write_all(&[HEADER, &nonce, &sealed].concat())?;
            file.as_file().sync_all()?;
            file.persist(&self.path)?;
            std::fs::File::open(dir)?.sync_all()
        };
        write().map_err(self.io("write"))
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new((&*self.key).into())
    }
}

fn random(bytes: &mut [u8]) -> io::Result<()> {
    use rand::TryRng;
    rand::rngs::SysRng.try_fill_bytes(bytes).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> SecretBytes {
        SecretBytes::new(text.as_bytes().to_vec())
    }

    #[test]
    fn secrets_are_kept_encrypted_and_private() {
        let dir = tempfile::tempdir().expect("dir");
        let who = Identity::from_seed([1; 32]);
        let store = SecretStore::open(dir.path(), &who);
        assert_eq!(store.list().expect("empty"), []);
        assert!(!store.set("db", value("correct horse battery"), 5).expect("set"));
        assert!(!store.set("a.key", value("line 1\nline 2\n"), 6).expect("set"));
        assert!(store.set("db", value("staple staple staple"), 7).expect("set again"));
        let again = SecretStore::open(dir.path(), &who);
        let listed = again.list().expect("list");
        assert_eq!(listed[1], SecretView { name: "db".to_owned(), size: 20, set_ms: 7 });
        assert_eq!(again.get(["db"]).expect("get"), [("db".to_owned(), value("staple staple staple"))]);
        assert!(matches!(again.get(["db", "no"]), Err(StoreError::Unknown(name)) if name == "no"));
        let file = dir.path().join(FILE_NAME);
        let bytes = std::fs::read(&file).expect("file");
        for clear in [&b"staple"[..], b"line 1", b"a.key"] {
            assert!(!bytes.windows(clear.len()).any(|w| w == clear), "not even names are in clear");
        }
        assert_eq!(std::fs::metadata(&file).expect("meta").permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).expect("dir").count(), 1, "nothing else is left");
        again.remove("a.key").expect("remove");
        assert!(matches!(again.remove("a.key"), Err(StoreError::Unknown(_))));
        assert_eq!(again.list().expect("list").len(), 1);
    }

    #[test]
    fn a_file_that_is_not_as_it_was_is_refused() {
        let dir = tempfile::tempdir().expect("dir");
        let who = Identity::from_seed([1; 32]);
        let store = SecretStore::open(dir.path(), &who);
        store.set("db", value("correct horse"), 5).expect("set");
        let other = SecretStore::open(dir.path(), &Identity::from_seed([2; 32]));
        assert!(other.list().expect_err("another key").to_string().contains("another node"));
        let file = dir.path().join(FILE_NAME);
        let good = std::fs::read(&file).expect("file");
        for at in [0, HEADER.len(), good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&file, bad).expect("write");
            assert!(matches!(store.get(["db"]), Err(StoreError::Damaged { .. })), "byte {at}");
            assert!(store.set("x", value("y"), 6).is_err(), "and not written over");
        }
        std::fs::write(&file, &good[..20]).expect("write");
        assert!(store.list().expect_err("cut").to_string().contains("cut short"));
        std::fs::write(&file, &good).expect("write");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).expect("chmod");
        assert!(store.list().expect_err("open to others").to_string().contains("chmod 600"));
    }

    #[test]
    fn names_and_sizes_are_bounded() {
        let dir = tempfile::tempdir().expect("dir");
        let store = SecretStore::open(dir.path(), &Identity::from_seed([1; 32]));
        assert!(matches!(store.set("a/b", value("x"), 1), Err(StoreError::Name { .. })));
        assert!(matches!(store.set("a", value(""), 1), Err(StoreError::Len(0))));
        let most = "x".repeat(VALUE_LEN_MAX);
        store.set("a", value(&most), 1).expect("the longest");
        assert!(matches!(store.set("a", value(&format!("{most}x")), 1), Err(StoreError::Len(_))));
    }
}
