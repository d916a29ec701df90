//! The store itself: opening, closing, reopening after its database failed. The operations on blobs live in the modules
//! named after them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use iroh_blobs::api::Store;
use iroh_blobs::store::fs::FsStore;
use iroh_blobs::store::fs::options::Options;
use sinew_crdt_state::ids::Hash;
use tokio::time::{Instant, sleep, timeout};

use crate::durable::Group;
use crate::error::{OpenError, StoreError};
use crate::fetch::Coalescer;
use crate::gc::{self, GcOptions, GcState, TicketSender};
use crate::pins::{Pins, TempTag};
use crate::space::Space;

/// Blobs up to this size live in the database, where thousands of them share one fsync; larger ones are files of their
/// own, each with its own fsync. 64 KiB covers map outputs and logs of small tasks, and redb still writes it in one go.
const INLINE_MAX: u64 = 64 << 10;
/// Room kept free on the disk: a database that cannot commit is dead until reopened, so imports stop before that.
const RESERVE: u64 = 64 << 20;
/// A store of this process that was just dropped closes in the background; opening it again waits this long for it.
const CLOSE_WAIT: Duration = Duration::from_secs(10);

/// How a store behaves. `StoreOptions::default()` is meant for a node.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Largest blob kept inside the database, in bytes. *Default 64 KiB.*
    pub inline_max: u64,
    /// Bytes to leave free on the disk; imports and fetches that would go below are refused. *Default 64 MiB.*
    pub reserve: u64,
    /// Collection of unreferenced blobs.
    pub gc: GcOptions,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { inline_max: INLINE_MAX, reserve: RESERVE, gc: GcOptions::default() }
    }
}

/// Whether a hash stands for one blob or for a sequence of hashes whose blobs belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Format {
    /// One blob.
    Raw,
    /// A sequence of hashes, as a collection's root is.
    HashSeq,
}

/// A content-addressed store in a directory. Cheap to clone; all clones are the same store.
#[derive(Debug, Clone)]
pub struct BlobStore(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) dir: PathBuf,
    pub(crate) options: StoreOptions,
    pub(crate) space: Space,
    pub(crate) pins: Pins,
    pub(crate) gc: GcState,
    pub(crate) durable: Group,
    pub(crate) fetching: Coalescer,
    /// Held for reading by imports: a writer knows that no temporary file is in use.
    pub(crate) imports: tokio::sync::RwLock<()>,
    open: RwLock<Option<Open>>,
    reviving: tokio::sync::Mutex<()>,
    /// Locked for as long as the store is open; keeps other processes out with a clear message.
    _lock: fs::File,
}

/// One run of the underlying file store. Replaced when its database failed.
#[derive(Debug)]
struct Open {
    dir: PathBuf,
    files: FsStore,
    tickets: TicketSender,
    /// Set once the database is closed; the collector task may end only then.
    closed: Arc<AtomicBool>,
}

impl Open {
    async fn close(&self) {
        // A dead database answers with an error at once; either way it is closed afterwards.
        let _ = timeout(CLOSE_WAIT, self.files.shutdown()).await;
        self.closed.store(true, Ordering::Release);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.closed.load(Ordering::Acquire) {
            return;
        }
        // Dropped without `shutdown`: the collector task holds the store alive until its database is gone, and closing
        // that takes an await. The thread ends as soon as the database has answered.
        let files = self.files.clone();
        let (dir, closed) = (self.dir.clone(), self.closed.clone());
        closing().insert(dir.clone());
        std::thread::spawn(move || {
            let _ = futures::executor::block_on(files.shutdown());
            closed.store(true, Ordering::Release);
            closing().remove(&dir);
        });
    }
}

impl BlobStore {
    /// Opens the store in `dir`, making it when it is not there. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`OpenError`]; [`OpenError::Locked`] when another process has it.
    pub async fn open(dir: &Path, options: StoreOptions) -> Result<Self, OpenError> {
        let directory = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Directory { path, source }
        };
        fs::create_dir_all(dir).map_err(directory(dir))?;
        let dir = fs::canonicalize(dir).map_err(directory(dir))?;
        let lock = take_lock(&dir).await?;
        wipe_temp(&dir);
        let space = Space::new(&dir, options.reserve);
        let open = load(&dir, &options, &space).await?;
        space.hold_ballast();
        let inner = Arc::new(Inner {
            space,
            pins: Pins::default(),
            gc: GcState::default(),
            durable: Group::default(),
            fetching: Coalescer::default(),
            imports: tokio::sync::RwLock::new(()),
            open: RwLock::new(Some(open)),
            reviving: tokio::sync::Mutex::new(()),
            _lock: lock,
            dir,
            options,
        });
        gc::spawn(&inner);
        Ok(Self(inner))
    }

    /// Closes the store: pending writes are committed, partial blobs keep their state. Other clones fail from then on.
    pub async fn shutdown(self) {
        self.0.gc.stop();
        let _reviving = self.0.reviving.lock().await;
        let open = self.0.open.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(open) = open {
            open.close().await;
        }
    }

    /// Keeps `hash` from collection until the guard is dropped, whether it is here or still to come.
    pub async fn temp_tag(&self, hash: Hash, format: Format) -> TempTag {
        // A collection that already decided what to delete must be over first.
        let _no_gc = self.0.gc.hold_off().await;
        self.0.pins.pin(hash, format)
    }

    /// The file store as it is now.
    pub(crate) fn files(&self) -> Result<Store, StoreError> {
        self.0.with_open(|open| Store::clone(&open.files))
    }

    pub(crate) fn tickets(&self) -> Result<TicketSender, StoreError> {
        self.0.with_open(|open| open.tickets.clone())
    }

    /// Runs `f`; when it fails because the database is dead, reopens that and runs it once more.
    pub(crate) async fn run<T, F, Fut>(&self, action: &'static str, f: F) -> Result<T, StoreError>
    where
        F: Fn(Store) -> Fut,
        Fut: Future<Output = Result<T, iroh_blobs::api::Error>>,
    {
        let first = match f(self.files()?).await {
            Ok(value) => return Ok(value),
            Err(error) => StoreError::backend(action, error),
        };
        if !self.heal().await {
            return Err(first);
        }
        f(self.files()?).await.map_err(|error| StoreError::backend(action, error))
    }

    /// Reopens the store if its database is dead. True when it was reopened just now, so trying again makes sense.
    pub(crate) async fn heal(&self) -> bool {
        // Any hash but that of the empty blob, which is answered without asking the database.
        let probe = to_iroh(Hash([0; 32]));
        let Ok(before) = self.files() else { return false };
        if before.status(probe).await.is_ok() {
            return false;
        }
        let _reviving = self.0.reviving.lock().await;
        let Ok(now) = self.files() else { return false };
        if now.status(probe).await.is_ok() {
            return true;
        }
        drop((before, now));
        self.0.revive().await
    }

    /// Reopens the store if its collector is still the one that took `tickets`, which ended.
    pub(crate) async fn replace_collector(&self, tickets: &TicketSender) {
        let _reviving = self.0.reviving.lock().await;
        if self.tickets().is_ok_and(|now| now.same_channel(tickets)) {
            self.0.revive().await;
        }
    }
}

impl Inner {
    fn with_open<T>(&self, f: impl FnOnce(&Open) -> T) -> Result<T, StoreError> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.as_ref().map(f).ok_or(StoreError::Closed)
    }

    async fn revive(&self) -> bool {
        let old = self.open.write().unwrap_or_else(PoisonError::into_inner).take();
        let Some(old) = old else { return false };
        tracing::warn!(dir = %self.dir.display(), "the blob database failed; reopening it");
        old.close().await;
        match load(&self.dir, &self.options, &self.space).await {
            Ok(open) => {
                *self.open.write().unwrap_or_else(PoisonError::into_inner) = Some(open);
                true
            }
            Err(error) => {
                tracing::error!(%error, "the blob database did not reopen");
                // Keep the dead one in place: a later call finds it dead and tries again.
                *self.open.write().unwrap_or_else(PoisonError::into_inner) = Some(old);
                false
            }
        }
    }

    pub(crate) fn data_file(&self, hash: Hash) -> PathBuf {
        self.dir.join("data").join(format!("{}.data", to_iroh(hash).to_hex()))
    }

    pub(crate) fn outboard_file(&self, hash: Hash) -> PathBuf {
        self.dir.join("data").join(format!("{}.obao4", to_iroh(hash).to_hex()))
    }

    /// Removes temporary files that a failed import left, unless another import is running.
    pub(crate) fn sweep_temp(&self) {
        if let Ok(_alone) = self.imports.try_write() {
            wipe_temp(&self.dir);
        }
    }
}

async fn take_lock(dir: &Path) -> Result<fs::File, OpenError> {
    let path = dir.join("lock");
    let file = fs::File::create(&path).map_err(|source| OpenError::Directory { path: path.clone(), source })?;
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Err(OpenError::Locked { path: dir.to_owned() }),
        Err(fs::TryLockError::Error(source)) => return Err(OpenError::Directory { path, source }),
    }
    Ok(file)
}

/// Directories whose store was dropped in this process and is still closing its database.
fn closing() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    static CLOSING: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    CLOSING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for an earlier store of this process that is still closing its database.
async fn wait_closed(dir: &Path) {
    let deadline = Instant::now() + CLOSE_WAIT;
    while closing().contains(dir) && Instant::now() < deadline {
        sleep(Duration::from_millis(5)).await;
    }
}

async fn load(dir: &Path, options: &StoreOptions, space: &Space) -> Result<Open, OpenError> {
    match load_once(dir, options).await {
        // A commit on a full disk fails whatever it writes; with the ballast gone there is room for it.
        Err(error) if space.drop_ballast() => {
            tracing::warn!(%error, "opening the blob database again without the ballast file");
            load_once(dir, options).await
        }
        result => result,
    }
}

async fn load_once(dir: &Path, options: &StoreOptions) -> Result<Open, OpenError> {
    let database = dir.join("blobs.db");
    wait_closed(dir).await;
    let closed = Arc::new(AtomicBool::new(false));
    let (tickets, config) = gc::channel(closed.clone());
    let mut settings = Options::new(dir);
    settings.inline.max_data_inlined = options.inline_max;
    settings.gc = Some(config);
    let files = FsStore::load_with_opts(database, settings)
        .await
        .map_err(|error| OpenError::Database { path: dir.to_owned(), source: io::Error::other(error) })?;
    Ok(Open { dir: dir.to_owned(), files, tickets, closed })
}

fn wipe_temp(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir.join("temp")) else { return };
    for entry in entries.flatten() {
        if let Err(error) = fs::remove_file(entry.path()) {
            tracing::debug!(%error, "a temporary file stays");
        }
    }
}

pub(crate) fn to_iroh(hash: Hash) -> iroh_blobs::Hash {
    iroh_blobs::Hash::from(hash.0)
}

pub(crate) fn from_iroh(hash: iroh_blobs::Hash) -> Hash {
    Hash(*hash.as_bytes())
}
