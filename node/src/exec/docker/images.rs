//! The images of tasks: found in the engine, pulled by digest, or loaded from an archive that came over the mesh; each once,
//! however many tasks want it.
//!
//! What was brought here for tasks is written down, because an engine's images have no labels of ours. Only what is written
//! down is ever removed, once no job has used it for a while, and not if the machine's owner gave it a name meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bollard::errors::Error;
use bollard::models::ImageInspect;
use bollard::query_parameters::{CreateImageOptionsBuilder, ImportImageOptionsBuilder, RemoveImageOptions};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use serde::{Deserialize, Serialize};
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::program::{Container, ImageOf};
use tokio::sync::mpsc;

use super::archive::{self, Archived};
use super::engine::Engine;
use super::{Inner, registry};
use crate::exec::outcome::Failure;
use crate::exec::runner::Launch;
use crate::gather::Hosts;

/// A part of an archive on its way to the engine.
const PART_LEN: usize = 256 * 1024;
/// Parts under way: the reading thread is to stay ahead of the engine, not to fill memory.
const PARTS_AHEAD: usize = 4;
/// Longest time that an engine may take to pull or load one image.
const FETCH_MAX: Duration = Duration::from_secs(30 * 60);

/// An image that the engine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Image {
    /// What names it for good: a digest, never a tag.
    pub(super) id: String,
    /// Paths at which it wants volumes.
    pub(super) volumes: Vec<String>,
}

/// The images of this node's tasks.
#[derive(Debug)]
pub(super) struct Images {
    /// Where it is written down which were brought here.
    record: PathBuf,
    /// How long one stays that no job uses.
    keep: Duration,
    brought: Mutex<BTreeMap<String, Brought>>,
    /// By what a job says: one thread at a time looks for the same image.
    wanted: Mutex<BTreeMap<String, Arc<Mutex<Known>>>>,
}

/// An image that was brought here.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Brought {
    /// The archive's hash, or the reference that was pulled.
    from: String,
    #[serde(skip)]
    jobs: BTreeSet<String>,
    #[serde(skip, default = "Instant::now")]
    used: Instant,
}

/// What is known of an archive that was looked at before.
type Known = Option<Arc<Archived>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Images {
    /// With what is written down in `record`.
    pub(super) fn open(record: PathBuf, keep: Duration) -> Self {
        let read = std::fs::read(&record).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self { record, keep, brought: Mutex::new(read.unwrap_or_default()), wanted: Mutex::default() }
    }

    /// Makes sure that the engine has the container's image.
    ///
    /// # Errors
    /// `E_INVALID` for an image that cannot be, `E_FETCH` for one that cannot be had now, `E_DENY` for one that may not be pulled
    /// from where it is.
    pub(super) fn ensure(
        &self,
        inner: &Inner,
        engine: &Engine,
        container: &Container,
        launch: &Launch<'_>,
    ) -> Result<Image, Failure> {
        let (runtime, job) = (&inner.runtime, launch.place.job);
        let name = match &container.image {
            ImageOf::Archive(blob) => blob.hash.to_string(),
            ImageOf::Digest(reference) => reference.clone(),
        };
        let place = Arc::clone(lock(&self.wanted).entry(name.clone()).or_default());
        let mut known = lock(&place);
        let found = match &container.image {
            ImageOf::Digest(reference) => {
                let pulled = self.pulled(engine, &inner.options.hosts, reference);
                runtime.block_on(launch.stop.unless_stopped(pulled))?
            }
            ImageOf::Archive(_) => {
                let missing = || Failure::new(ErrorCode::Fetch, "the image's archive is not on this node");
                let path = launch.content.ok_or_else(missing)?;
                if known.is_none() {
                    *known = Some(Arc::new(archive::open(path)?));
                }
                let archived = known.as_ref().ok_or_else(missing)?;
                runtime.block_on(launch.stop.unless_stopped(self.loaded(engine, archived, &name, path)))?
            }
        };
        if let Some(brought) = lock(&self.brought).get_mut(&found.id) {
            brought.jobs.insert(job.to_owned());
            brought.used = Instant::now();
        }
        Ok(found)
    }

    /// An image of this program's own making, whose archive is asked for if the engine does not have it. It stays and goes like
    /// those that come with jobs.
    pub(super) async fn own(
        &self,
        engine: &Engine,
        job: &str,
        id: &str,
        archive: impl FnOnce() -> std::io::Result<Vec<u8>>,
    ) -> Result<Image, Failure> {
        let image = match inspect(engine, id).await? {
            Some(image) => image,
            None => {
                let storage = |e: std::io::Error| Failure::storage("write an image of this node's own", &e);
                let mut file = tempfile::NamedTempFile::new().map_err(storage)?;
                archive().and_then(|bytes| file.write_all(&bytes)).map_err(storage)?;
                self.loaded(engine, &archive::open(file.path())?, "this program", file.path()).await?
            }
        };
        if let Some(brought) = lock(&self.brought).get_mut(&image.id) {
            brought.jobs.insert(job.to_owned());
            brought.used = Instant::now();
        }
        Ok(image)
    }

    async fn pulled(&self, engine: &Engine, hosts: &Hosts, reference: &str) -> Result<Image, Failure> {
        if let Some(image) = inspect(engine, reference).await? {
            return Ok(image);
        }
        registry::check(hosts, reference).await?;
        let options = CreateImageOptionsBuilder::default().from_image(reference).build();
        let pull = finished(engine.docker.create_image(Some(options), None, None));
        let cannot = |why: &str| {
            let message = format!("this node's engine does not have the image {reference} and cannot pull it: {why}");
            Failure::new(ErrorCode::Fetch, message)
        };
        match tokio::time::timeout(FETCH_MAX, pull).await {
            Ok(Ok(_)) => {}
            Ok(Err(Error::DockerResponseServerError { message, .. } | Error::DockerStreamError { error: message })) => {
                return Err(cannot(&message));
            }
            Ok(Err(error)) => return Err(engine.gone("pull an image", &error)),
            Err(_) => return Err(cannot("it takes too long")),
        }
        let image = inspect(engine, reference).await?.ok_or_else(|| cannot("it is gone again"))?;
        self.note(&image.id, reference);
        Ok(image)
    }

    async fn loaded(&self, engine: &Engine, archived: &Archived, from: &str, path: &Path) -> Result<Image, Failure> {
        if let Some(image) = inspect(engine, &archived.id).await? {
            return Ok(image);
        }
        // Before it is there: nobody would know it for ours if this daemon died in between.
        self.note(&archived.id, from);
        let options = ImportImageOptionsBuilder::default().quiet(true).build();
        let load = engine.docker.import_image_stream(options, rewritten(archived.clone(), path.to_owned()), None);
        let refused = |why: &str| {
            let message = format!("the Docker engine does not take the image's archive: {why}");
            Failure::new(ErrorCode::Invalid, message).for_good()
        };
        let told = match tokio::time::timeout(FETCH_MAX, finished(load)).await {
            Ok(Ok(told)) => told.into_iter().filter_map(|info| info.stream).collect::<String>(),
            Ok(Err(Error::DockerResponseServerError { message, .. } | Error::DockerStreamError { error: message })) => {
                return Err(refused(message.trim()));
            }
            Ok(Err(error)) => return Err(engine.gone("load an image", &error)),
            Err(_) => {
                return Err(Failure::new(ErrorCode::Oom, "this node's Docker engine takes too long to load the image"));
            }
        };
        if let Some(image) = inspect(engine, &archived.id).await? {
            return Ok(image);
        }
        // Engines that keep images in containerd name them by their manifest.
        let other = loaded_id(&told).ok_or_else(|| refused("it does not say what it loaded"))?;
        let layers = layers_of(engine, &other).await?;
        if layers.as_deref() != Some(&archived.diff_ids) {
            return Err(refused("it loaded something else"));
        }
        self.note(&other, from);
        inspect(engine, &other).await?.ok_or_else(|| refused("it is gone again"))
    }

    fn note(&self, id: &str, from: &str) {
        let mut brought = lock(&self.brought);
        let entry = Brought { from: from.to_owned(), jobs: BTreeSet::new(), used: Instant::now() };
        brought.entry(id.to_owned()).or_insert(entry);
        self.write_down(&brought);
    }

    fn write_down(&self, brought: &BTreeMap<String, Brought>) {
        let written = serde_json::to_vec_pretty(brought).map_err(std::io::Error::other).and_then(|bytes| {
            let dir = self.record.parent().unwrap_or(Path::new("."));
            let mut file = tempfile::NamedTempFile::new_in(dir)?;
            file.write_all(&bytes)?;
            file.persist(&self.record).map(drop).map_err(|e| e.error)
        });
        if let Err(error) = written {
            tracing::warn!(%error, "cannot write down which images tasks brought: they stay after a restart");
        }
    }

    /// The job is over on this node.
    pub(super) fn end_job(&self, job: &str) {
        // Whoever wants one of these again looks at its archive again.
        lock(&self.wanted).retain(|_, place| Arc::strong_count(place) > 1);
        for brought in lock(&self.brought).values_mut() {
            if brought.jobs.remove(job) {
                brought.used = Instant::now();
            }
        }
    }

    /// Removes what was brought here and has not been used for long.
    pub(super) async fn sweep(&self, engine: &Engine) {
        let idle = |b: &Brought| b.jobs.is_empty() && b.used.elapsed() >= self.keep;
        let ids: Vec<String> = lock(&self.brought).iter().filter(|(_, b)| idle(b)).map(|(id, _)| id.clone()).collect();
        for id in ids {
            if self.removed(engine, &id).await {
                let mut brought = lock(&self.brought);
                brought.remove(&id);
                self.write_down(&brought);
            } else if let Some(brought) = lock(&self.brought).get_mut(&id) {
                // Another look later.
                brought.used = Instant::now();
            }
        }
    }

    /// Whether the image is none of ours any more.
    async fn removed(&self, engine: &Engine, id: &str) -> bool {
        let found = match engine.docker.inspect_image(id).await {
            Ok(found) => found,
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => return true,
            Err(_) => return false,
        };
        if found.repo_tags.is_some_and(|tags| !tags.is_empty()) {
            tracing::info!(image = id, "an image that a task brought was given a name here: it stays");
            return true;
        }
        // Never by force: a container of somebody else may be of this image.
        engine.docker.remove_image(id, None::<RemoveImageOptions>, None).await.is_ok()
    }
}

/// What the engine said, to its end, or the first error.
async fn finished<T>(answers: impl Stream<Item = Result<T, Error>>) -> Result<Vec<T>, Error> {
    futures::TryStreamExt::try_collect(answers).await
}

async fn inspect(engine: &Engine, name: &str) -> Result<Option<Image>, Failure> {
    let found = look(engine, name).await?;
    Ok(found.and_then(|image| {
        let volumes = image.config.and_then(|config| config.volumes).unwrap_or_default();
        Some(Image { id: image.id?, volumes })
    }))
}

/// An image that was found before.
///
/// # Errors
/// `E_LOST` if it has gone since, or the engine has.
pub(super) async fn known(engine: &Engine, id: &str) -> Result<Image, Failure> {
    let gone =
        || Failure::new(ErrorCode::Lost, format!("the image {id} was removed from this node's engine meanwhile"));
    inspect(engine, id).await?.ok_or_else(gone)
}

async fn layers_of(engine: &Engine, id: &str) -> Result<Option<Vec<String>>, Failure> {
    Ok(look(engine, id).await?.and_then(|image| image.root_fs).and_then(|fs| fs.layers))
}

async fn look(engine: &Engine, name: &str) -> Result<Option<ImageInspect>, Failure> {
    match engine.docker.inspect_image(name).await {
        Ok(image) => Ok(Some(image)),
        Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
        Err(error) => Err(engine.failure("look at an image", &error)),
    }
}

/// The digest in `Loaded image: sha256:…` or `Loaded image ID: sha256:…`.
fn loaded_id(told: &str) -> Option<String> {
    let line = told.lines().rev().find(|line| line.starts_with("Loaded image"))?;
    let at = line.find("sha256:")?;
    Some(line[at..].trim().to_owned())
}

/// The archive without its names, as it is read by a thread of its own.
fn rewritten(archived: Archived, path: PathBuf) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    let (tx, rx) = mpsc::channel(PARTS_AHEAD);
    tokio::task::spawn_blocking(move || {
        let parts = std::io::BufWriter::with_capacity(PART_LEN, Parts(tx.clone()));
        if let Err(error) = archived.write(&path, parts) {
            // Whoever would read it has gone if this fails.
            let _ = tx.blocking_send(Err(error));
        }
    });
    futures::stream::unfold(rx, |mut rx| async move { rx.recv().await.map(|part| (part, rx)) }).boxed()
}

/// Sends what is written to it.
struct Parts(mpsc::Sender<std::io::Result<Bytes>>);

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map(|()| bytes.len()).map_err(|_| std::io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_loaded_is_read_from_what_the_engine_says() {
        assert_eq!(loaded_id("Loaded image ID: sha256:ab\n").as_deref(), Some("sha256:ab"));
        assert_eq!(loaded_id("x\nLoaded image: sha256:cd\n").as_deref(), Some("sha256:cd"));
        assert_eq!(loaded_id("Loaded image: busybox:latest\n"), None);
    }

    #[test]
    fn what_is_written_down_is_known_to_the_next_daemon() {
        let dir = tempfile::tempdir().expect("dir");
        let record = dir.path().join("images.json");
        Images::open(record.clone(), Duration::ZERO).note("sha256:ab", "an archive");
        let next = Images::open(record, Duration::ZERO);
        assert_eq!(lock(&next.brought).get("sha256:ab").map(|b| b.from.as_str()), Some("an archive"));
    }
}
