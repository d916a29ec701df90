//! A node's directory: its key (0600), its membership, the lock that keeps a second daemon out, and where the rest lies.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use sinew_crdt_state::cbor;
use sinew_crdt_state::certificate::{Credential, CredentialError, Roles, Ticket, TicketError};
use sinew_crdt_state::identity::Identity;
use sinew_crdt_state::ids::{MeshId, NodeId};
use sinew_mesh::{JoinError, JoinRefusal};

use crate::clock::unix_ms;

/// Certificates are good for a year: long enough not to bother anyone, short enough that lost keys die out.
pub const CERTIFICATE_MS: u64 = 365 * 24 * 3_600 * 1_000;
/// A join includes a dial, a handshake and a signature; ten seconds is a bad network.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);
/// An issuer takes a few joins a second; a hundred newcomers at once are served within this.
const BUSY_PATIENCE: Duration = Duration::from_secs(60);
/// Between two tries at a busy issuer.
const BUSY_WAIT: Duration = Duration::from_millis(300);
const KEY_FILE: &str = "identity.key";
const MESH_KEY_FILE: &str = "mesh.key";
const MEMBERSHIP_FILE: &str = "membership.cbor";
const LOCK_FILE: &str = "lock";
const KNOWN_FILE: &str = "peers.cbor";
/// Far above what is ever written.
const KNOWN_LEN_MAX: u64 = 1 << 20;

/// A node's directory.
#[derive(Debug, Clone)]
pub struct DataDir {
    path: PathBuf,
}

/// What a node is a member of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The mesh.
    pub mesh: MeshId,
    /// Its name.
    pub mesh_name: String,
    /// The proof.
    pub credential: Credential,
    /// Addresses (with `/p2p/...`) that the ticket named: dialled at every start.
    pub bootstrap: Vec<String>,
}

/// A new mesh was made.
#[derive(Debug, Clone)]
pub struct InitReport {
    /// This node.
    pub node: NodeId,
    /// The mesh.
    pub mesh: MeshId,
}

/// This node became a member.
#[derive(Debug, Clone)]
pub struct JoinReport {
    /// This node.
    pub node: NodeId,
    /// The mesh.
    pub mesh: MeshId,
    /// Its name.
    pub mesh_name: String,
    /// What this node may do.
    pub roles: Roles,
}

/// Why something with the data dir failed.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// The system refused.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file holds something else than it should.
    #[error("{path} is damaged: {problem}; restore it from a backup, or remove it and join the mesh anew")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// `init` or `join` where there is a membership.
    #[error("{path} belongs to mesh {mesh} (`{name}`) already; use another --data-dir")]
    AlreadyMember {
        /// The data dir.
        path: PathBuf,
        /// The mesh.
        mesh: MeshId,
        /// Its name.
        name: String,
    },
    /// `join` with a ticket for another mesh than the one the data dir belongs to.
    #[error("the ticket is for mesh {ticket}, but {path} belongs to mesh {mesh}; use another --data-dir")]
    OtherMesh {
        /// The data dir.
        path: PathBuf,
        /// The ticket's mesh.
        ticket: MeshId,
        /// The data dir's mesh.
        mesh: MeshId,
    },
    /// `up` without a membership.
    #[error("{0} belongs to no mesh: run `sinew init` for a new one, or `sinew join TICKET`")]
    NoMembership(PathBuf),
    /// Another daemon runs there.
    #[error("another daemon (process {pid}) runs on {path}; stop it first, or use another --data-dir")]
    Locked {
        /// The data dir.
        path: PathBuf,
        /// Its process.
        pid: String,
    },
    /// The ticket is no good.
    #[error(transparent)]
    Ticket(#[from] TicketError),
    /// The issuer could not be reached, or said no.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The certificate is no good (any more).
    #[error(transparent)]
    Credential(#[from] CredentialError),
}

impl DataDirError {
    /// For the command line: 2 for what the user gave, 13 for what was denied, 1 for the rest.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::AlreadyMember { .. }
            | Self::OtherMesh { .. }
            | Self::NoMembership(_)
            | Self::Ticket(TicketError::Prefix | TicketError::Damaged) => 2,
            Self::Ticket(_) | Self::Credential(_) => 13,
            _ => 1,
        }
    }
}

/// Keeps a second daemon out while it lives.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl DataDir {
    /// The directory at `path`; nothing is touched.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The local API's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path.join("sinew.sock")
    }

    /// The ledger.
    #[must_use]
    pub fn ledger(&self) -> PathBuf {
        self.path.join("ledger.redb")
    }

    /// The blob store.
    #[must_use]
    pub fn blobs(&self) -> PathBuf {
        self.path.join("blobs")
    }

    /// Where tasks work.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.path.join("work")
    }

    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
        let path = path.to_owned();
        move |source| DataDirError::Io { doing, path, source }
    }

    fn create(&self) -> Result<(), DataDirError> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.path).map_err(Self::io("create", &self.path))
    }

    /// Makes an identity and a mesh of its own.
    ///
    /// # Errors
    /// [`DataDirError`]; a directory with a membership is left alone.
    pub fn init(&self, mesh_name: &str) -> Result<InitReport, DataDirError> {
        self.refuse_member()?;
        self.create()?;
        let identity = self.identity_or_new()?;
        let mesh_key = Identity::from_seed(random_seed());
        self.write_private(MESH_KEY_FILE, &hex(&mesh_key.seed()))?;
        let now = unix_ms();
        let mesh = MeshId(mesh_key.id().0);
        // The founder's own certificate outlives everyone's: who should renew it?
        let credential = Credential::found(&mesh_key, identity.id(), now, now + 10 * CERTIFICATE_MS);
        let membership = Membership { mesh, mesh_name: mesh_name.to_owned(), credential, bootstrap: Vec::new() };
        self.write_membership(&membership)?;
        Ok(InitReport { node: identity.id(), mesh })
    }

    /// Joins the mesh that `ticket` leads to.
    ///
    /// # Errors
    /// [`DataDirError`].
    pub async fn join(&self, ticket: &Ticket) -> Result<JoinReport, DataDirError> {
        ticket.verify(unix_ms())?;
        if let Ok(member) = self.membership()
            && member.mesh != ticket.body.mesh
        {
            return Err(DataDirError::OtherMesh {
                path: self.path.clone(),
                ticket: ticket.body.mesh,
                mesh: member.mesh,
            });
        }
        self.refuse_member()?;
        self.create()?;
        let identity = self.identity_or_new()?;
        let credential = ask_patiently(ticket, &identity).await?;
        let roles = credential.verify(ticket.body.mesh, identity.id(), unix_ms())?;
        let issuer = sinew_mesh::peer_id(ticket.body.issuer);
        // Those of other members say whose they are.
        let whose = |addr: &String| if addr.contains("/p2p/") { addr.clone() } else { format!("{addr}/p2p/{issuer}") };
        let bootstrap = ticket.body.addrs.iter().map(whose).collect();
        let membership =
            Membership { mesh: ticket.body.mesh, mesh_name: ticket.body.name.clone(), credential, bootstrap };
        self.write_membership(&membership)?;
        Ok(JoinReport { node: identity.id(), mesh: membership.mesh, mesh_name: membership.mesh_name, roles })
    }

    fn refuse_member(&self) -> Result<(), DataDirError> {
        match self.membership() {
            Ok(member) => {
                Err(DataDirError::AlreadyMember { path: self.path.clone(), mesh: member.mesh, name: member.mesh_name })
            }
            Err(DataDirError::NoMembership(_)) => Ok(()),
            Err(other) => Err(other),
        }
    }

    /// This node's membership.
    ///
    /// # Errors
    /// [`DataDirError::NoMembership`] where there is none.
    pub fn membership(&self) -> Result<Membership, DataDirError> {
        let path = self.path.join(MEMBERSHIP_FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(DataDirError::NoMembership(self.path.clone())),
            Err(e) => return Err(Self::io("read", &path)(e)),
        };
        cbor::from_slice(&bytes).map_err(|e| DataDirError::Damaged { path, problem: e.to_string() })
    }

    /// This node's key.
    ///
    /// # Errors
    /// [`DataDirError`], also when others than its owner may read it.
    pub fn identity(&self) -> Result<Identity, DataDirError> {
        let path = self.path.join(KEY_FILE);
        let text = std::fs::read_to_string(&path).map_err(Self::io("read", &path))?;
        let mode = std::fs::metadata(&path).map_err(Self::io("look at", &path))?.permissions().mode();
        if mode & 0o077 != 0 {
            let problem = format!("its permissions are {:o}, others may read the key: chmod 600 it", mode & 0o777);
            return Err(DataDirError::Damaged { path, problem });
        }
        let seed = unhex(text.trim()).ok_or_else(|| DataDirError::Damaged { path, problem: "not a key".to_owned() })?;
        Ok(Identity::from_seed(seed))
    }

    fn identity_or_new(&self) -> Result<Identity, DataDirError> {
        if self.path.join(KEY_FILE).exists() {
            return self.identity();
        }
        let identity = Identity::from_seed(random_seed());
        self.write_private(KEY_FILE, &hex(&identity.seed()))?;
        Ok(identity)
    }

    /// Where members were when they were last seen. What cannot be read is none: it only saves looking for them.
    #[must_use]
    pub fn known_addrs(&self) -> Vec<(NodeId, Vec<String>)> {
        let read = || -> io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            File::open(self.path.join(KNOWN_FILE))?.take(KNOWN_LEN_MAX).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let read = read().ok().and_then(|bytes| cbor::from_slice(&bytes).ok());
        read.unwrap_or_default()
    }

    /// Writes down where members are, without waiting for the disk: after a crash an older list does as well.
    ///
    /// # Errors
    /// [`DataDirError`].
    pub fn keep_known_addrs(&self, known: &[(NodeId, Vec<String>)]) -> Result<(), DataDirError> {
        let path = self.path.join(KNOWN_FILE);
        let new = self.path.join(format!("{KNOWN_FILE}.new"));
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(&cbor::to_vec(&known))?;
            std::fs::rename(&new, &path)
        };
        write().map_err(Self::io("write", &path))
    }

    fn write_membership(&self, membership: &Membership) -> Result<(), DataDirError> {
        self.write_private(MEMBERSHIP_FILE, &cbor::to_vec(membership))
    }

    /// Writes a file that only its owner reads, whole or not at all.
    fn write_private(&self, name: &str, content: &[u8]) -> Result<(), DataDirError> {
        let path = self.path.join(name);
        let new = self.path.join(format!("{name}.new"));
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(content)?;
            file.sync_all()?;
            std::fs::rename(&new, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(Self::io("write", &path))
    }

    /// Locks the directory for a daemon.
    ///
    /// # Errors
    /// [`DataDirError::Locked`] when another daemon has it.
    pub fn lock(&self) -> Result<Lock, DataDirError> {
        let path = self.path.join(LOCK_FILE);
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file = options.map_err(Self::io("open", &path))?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            return Err(DataDirError::Locked { path: self.path.clone(), pid: pid.trim().to_owned() });
        }
        // The number is for people; on a full disk the lock holds without it.
        let _ = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
        Ok(Lock { _file: file })
    }
}

/// Joins, waiting where the issuer is busy with others: a whole lab may come at once.
async fn ask_patiently(ticket: &Ticket, identity: &Identity) -> Result<Credential, JoinError> {
    let began = Instant::now();
    loop {
        match sinew_mesh::join(ticket, identity, JOIN_TIMEOUT).await {
            Err(JoinError::Refused(JoinRefusal::Busy)) if began.elapsed() < BUSY_PATIENCE => {
                tokio::time::sleep(BUSY_WAIT).await;
            }
            other => return other,
        }
    }
}

fn random_seed() -> [u8; 32] {
    use rand::TryRng;
    let mut seed = [0; 32];
    rand::rngs::SysRng.try_fill_bytes(&mut seed).expect("the system's random source works on every system we run on");
    seed
}

fn hex(bytes: &[u8]) -> Vec<u8> {
    data_encoding::HEXLOWER.encode(bytes).into_bytes()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    data_encoding::HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_makes_a_private_key_once() {
        let dir = tempfile::tempdir().expect("dir");
        let data = DataDir::at(&dir.path().join("node"));
        let report = data.init("lab").expect("init");
        assert_eq!(data.identity().expect("key").id(), report.node);
        let member = data.membership().expect("membership");
        assert_eq!(member.credential.verify(report.mesh, report.node, unix_ms()), Ok(Roles::ALL));
        assert!(matches!(data.init("other"), Err(DataDirError::AlreadyMember { .. })));
        let key = data.path().join(KEY_FILE);
        assert_eq!(std::fs::metadata(&key).expect("key").permissions().mode() & 0o777, 0o600);
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).expect("chmod");
        assert!(data.identity().expect_err("readable by others").to_string().contains("chmod 600"));
    }

    #[test]
    fn what_is_known_of_others_is_there_again_and_damage_is_no_obstacle() {
        let dir = tempfile::tempdir().expect("dir");
        let data = DataDir::at(dir.path());
        assert_eq!(data.known_addrs(), []);
        let known = vec![(NodeId([7; 32]), vec!["/ip4/10.0.0.1/tcp/9000".to_owned()])];
        data.keep_known_addrs(&known).expect("written");
        assert_eq!(data.known_addrs(), known);
        std::fs::write(dir.path().join(KNOWN_FILE), b"\xff\xff torn").expect("write");
        assert_eq!(data.known_addrs(), []);
    }

    #[test]
    fn one_daemon_at_a_time() {
        let dir = tempfile::tempdir().expect("dir");
        let data = DataDir::at(dir.path());
        let lock = data.lock().expect("first");
        let error = data.lock().expect_err("second").to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(lock);
        data.lock().expect("free again");
    }
}
