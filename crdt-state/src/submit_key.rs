//! Keys with which a submitter names a request, so that trying again is safe: of all requests of one submitter with one key only
//! the first makes a job, and the others are told of it. Who remembers which keys, and for how long, is decided elsewhere.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::cbor;
use crate::derivation::Derivation;
use crate::ids::{Hash, NodeId};
use crate::network::Network;
use crate::secret::SecretUse;
use crate::spec::{JobSpec, Limits, Resources, Retry, Strategy, Work};
use crate::volume::Volume;

/// Longest key, bytes: a UUID, a path or a sentence fits; it travels in every replica of the job's spec.
pub const SUBMIT_KEY_LEN_MAX: usize = 128;

/// What is wrong with `key`, if anything.
///
/// # Errors
/// What it must be.
pub fn check(key: &str) -> Result<(), &'static str> {
    if key.is_empty() || key.len() > SUBMIT_KEY_LEN_MAX || key.chars().any(char::is_control) {
        return Err("must be 1 to 128 bytes of text without control characters");
    }
    Ok(())
}

/// A submitter and its key in one hash, for tables.
#[must_use]
pub fn key_hash(submitter: NodeId, key: &str) -> Hash {
    static KEY: Derivation = Derivation::new("sinew submit key 1");
    Hash(*KEY.hasher().update(&submitter.0).update(key.as_bytes()).finalize().as_bytes())
}

/// What a request asks for, whenever and wherever it is asked: two with one digest are the same request. The number of copies
/// is left out, as a node that is alone changes it.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Asked<'a> {
    /// For people.
    pub name: &'a str,
    /// What to run.
    pub work: &'a Work,
    /// What a task reserves.
    pub resources: Resources,
    /// What a task may use.
    pub limits: Limits,
    /// What happens on failure.
    pub retry: Retry,
    /// Labels a node must have.
    pub labels: &'a BTreeMap<String, String>,
    /// How candidates are ranked.
    pub strategy: Strategy,
    /// What its programs may connect to.
    pub network: &'a Network,
    /// Secrets that the programs are given.
    pub secrets: &'a [SecretUse],
    /// Directories of nodes that it uses.
    pub volumes: &'a [Volume],
}

impl Asked<'_> {
    /// The digest.
    #[must_use]
    pub fn digest(&self) -> Hash {
        Hash::of(&cbor::to_vec(self))
    }
}

impl<'a> From<&'a JobSpec> for Asked<'a> {
    fn from(spec: &'a JobSpec) -> Self {
        Self {
            name: &spec.name,
            work: &spec.work,
            resources: spec.resources,
            limits: spec.limits,
            retry: spec.retry,
            labels: &spec.labels,
            strategy: spec.strategy,
            network: &spec.network,
            secrets: &spec.secrets,
            volumes: &spec.volumes,
        }
    }
}

impl JobSpec {
    /// Its key's hash and the request's digest, where it has a key.
    #[must_use]
    pub fn keyed(&self) -> Option<(Hash, Hash)> {
        let key = self.submit_key.as_deref()?;
        Some((key_hash(self.submitter, key), Asked::from(self).digest()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_short_texts_and_each_submitter_has_its_own() {
        assert!(check("nightly 2026-08-01").is_ok() && check(&"k".repeat(SUBMIT_KEY_LEN_MAX)).is_ok());
        for bad in ["", "a\nb", &"k".repeat(SUBMIT_KEY_LEN_MAX + 1)] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
        let (one, other) = (NodeId([1; 32]), NodeId([2; 32]));
        assert_eq!(key_hash(one, "k"), key_hash(one, "k"));
        assert_ne!(key_hash(one, "k"), key_hash(other, "k"));
        assert_ne!(key_hash(one, "k"), key_hash(one, "l"));
    }
}
