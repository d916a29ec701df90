//! What an executing node has of a job's secrets, for as long as it works for the job: values by name, for whoever fetches inputs;
//! variables and files, for programs; and what takes them out of what programs print. All of it in memory.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::secret::{SecretPlace, SecretUse};
use zeroize::Zeroize;

use super::SecretBytes;
use super::files::{self, SecretFile};
use super::redact::Redactor;
use crate::exec::guardian::NodeTag;
use crate::exec::outcome::Failure;

/// A job's secrets on one node.
pub struct JobSecrets {
    job: String,
    tag: NodeTag,
    values: BTreeMap<String, SecretBytes>,
    env: Variables,
    files: Vec<SecretFile>,
    redactor: Option<Arc<Redactor>>,
    /// Directories in memory, by slot and user.
    dirs: Mutex<BTreeMap<(u32, Option<u32>), PathBuf>>,
}

impl fmt::Debug for JobSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobSecrets").field("job", &self.job).field("values", &self.values.len()).finish_non_exhaustive()
    }
}

/// Variables, some of them secrets.
struct Variables(BTreeMap<String, String>);

impl Drop for Variables {
    fn drop(&mut self) {
        self.0.values_mut().for_each(Zeroize::zeroize);
    }
}

impl JobSecrets {
    /// What `values` are to the programs of a job with the variables `env` that uses secrets so.
    ///
    /// # Errors
    /// `E_INVALID` for a value that no variable can hold, `E_FETCH` for one that is missing.
    pub fn new(
        job: &str,
        tag: &NodeTag,
        env: &BTreeMap<String, String>,
        uses: &[SecretUse],
        values: impl IntoIterator<Item = (String, SecretBytes)>,
    ) -> Result<Self, Failure> {
        let values: BTreeMap<String, SecretBytes> = values.into_iter().collect();
        let mut env = Variables(env.clone());
        let mut files = Vec::new();
        for SecretUse { name, place } in uses {
            let missing = || Failure::new(ErrorCode::Fetch, format!("the secret `{name}` did not come"));
            let value = values.get(name).ok_or_else(missing)?;
            match place {
                SecretPlace::Env(variable) => {
                    let text = std::str::from_utf8(value.line()).ok().filter(|text| !text.contains('\0'));
                    let text = text.ok_or_else(|| no_variable(name))?;
                    env.0.insert(variable.clone(), text.to_owned());
                }
                SecretPlace::File(file) => files.push(SecretFile { name: file.clone(), value: value.clone() }),
            }
        }
        let redactor = Redactor::new(values.values().map(SecretBytes::bytes));
        let redactor =
            redactor.map_err(|e| Failure::new(ErrorCode::Oom, format!("secrets cannot be searched for: {e}")))?;
        let (job, tag, dirs) = (job.to_owned(), tag.clone(), Mutex::default());
        Ok(Self { job, tag, values, env, files, redactor, dirs })
    }

    /// The value of the secret called `name`, for whoever fetches inputs with it.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&SecretBytes> {
        self.values.get(name)
    }

    /// The job's variables, with those that are secrets.
    #[must_use]
    pub const fn env(&self) -> &BTreeMap<String, String> {
        &self.env.0
    }

    /// Those that programs find as files.
    #[must_use]
    pub fn files(&self) -> &[SecretFile] {
        &self.files
    }

    /// What takes them out of what programs print; `None` when there is nothing to look for.
    #[must_use]
    pub const fn redactor(&self) -> Option<&Arc<Redactor>> {
        self.redactor.as_ref()
    }

    /// A directory of the host, in memory, with the files in it, for programs of `slot` that run as `owner`, or as this process
    /// does. `None` when there are no files.
    ///
    /// # Errors
    /// `E_DENY` when this machine has no file system in memory, `E_STORAGE` when that refuses.
    pub fn dir(&self, slot: u32, owner: Option<(u32, u32)>) -> Result<Option<PathBuf>, Failure> {
        if self.files.is_empty() {
            return Ok(None);
        }
        let key = (slot, owner.map(|(uid, _)| uid));
        let mut dirs = self.dirs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(dir) = dirs.get(&key) {
            return Ok(Some(dir.clone()));
        }
        let user = key.1.map_or_else(|| "own".to_owned(), |uid| uid.to_string());
        let dir = files::make(&self.tag, &format!("{}-{slot}-{user}", self.job), &self.files, owner)?;
        dirs.insert(key, dir.clone());
        Ok(Some(dir))
    }

    /// Takes values out of a failure's words.
    pub fn redact(&self, failure: &mut Failure) {
        if let Some(redactor) = &self.redactor {
            failure.message = redactor.text(&failure.message);
            failure.stderr_tail = redactor.text(&failure.stderr_tail);
        }
    }
}

impl Drop for JobSecrets {
    fn drop(&mut self) {
        for dir in self.dirs.get_mut().unwrap_or_else(PoisonError::into_inner).values() {
            if let Err(error) = files::remove(dir) {
                tracing::warn!(dir = %dir.display(), %error, "a job's secrets stay in memory");
            }
        }
    }
}

fn no_variable(name: &str) -> Failure {
    let message = format!(
        "the secret `{name}` is no text, or holds a NUL character, so that no variable can hold it: give it as a `file`"
    );
    Failure::new(ErrorCode::Invalid, message)
}
