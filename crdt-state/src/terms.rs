//! A job's spec as nodes keep it. Jobs come by the thousand, and most of what thousands of them ask for is the same: so all
//! but what tells them apart is behind two pointers, and jobs that ask for the same share it.
//!
//! What is shared is found by comparison with what came lately, not by a hash: it only saves memory, and nothing depends on
//! whether it was found. What is signed and sent is [`SpecFields`], which this knows nothing more than.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Weak};

use serde::{Deserialize, Serialize};

use crate::ids::{DiskId, MeshId, NodeId};
use crate::network::Network;
use crate::secret::SecretUse;
use crate::spec::{Alone, Limits, Resources, Retry, SpecFields, Strategy, Work};
use crate::volume::Volume;

/// A complete job. All that is not a field here is one of [`Terms`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "SpecFields", into = "SpecFields")]
pub struct JobSpec {
    /// See [`SpecFields::serial`].
    pub serial: u64,
    /// See [`SpecFields::submitted_ms`].
    pub submitted_ms: u64,
    /// See [`SpecFields::name`].
    pub name: String,
    /// See [`SpecFields::work`].
    pub work: Arc<Work>,
    /// See [`SpecFields::submit_key`].
    pub submit_key: Option<String>,
    terms: Arc<Terms>,
}

/// What jobs of one submitter have in common as a rule. The fields are those of [`SpecFields`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "SpecFields says what each is")]
pub struct Terms {
    pub mesh: MeshId,
    pub submitter: NodeId,
    pub brain_set: Vec<NodeId>,
    pub brain_disks: Vec<DiskId>,
    pub resources: Resources,
    pub limits: Limits,
    pub retry: Retry,
    pub labels: BTreeMap<String, String>,
    pub strategy: Strategy,
    pub copies: u8,
    pub network: Network,
    pub secrets: Vec<SecretUse>,
    pub volumes: Vec<Volume>,
    pub alone: Option<Alone>,
    pub pace: u8,
}

impl Deref for JobSpec {
    type Target = Terms;

    fn deref(&self) -> &Terms {
        &self.terms
    }
}

impl DerefMut for JobSpec {
    fn deref_mut(&mut self) -> &mut Terms {
        Arc::make_mut(&mut self.terms)
    }
}

impl From<SpecFields> for JobSpec {
    fn from(fields: SpecFields) -> Self {
        let terms = Terms {
            mesh: fields.mesh,
            submitter: fields.submitter,
            brain_set: fields.brain_set,
            brain_disks: fields.brain_disks,
            resources: fields.resources,
            limits: fields.limits,
            retry: fields.retry,
            labels: fields.labels,
            strategy: fields.strategy,
            copies: fields.copies,
            network: fields.network,
            secrets: fields.secrets,
            volumes: fields.volumes,
            alone: fields.alone,
            pace: fields.pace,
        };
        Self {
            serial: fields.serial,
            submitted_ms: fields.submitted_ms,
            name: fields.name,
            work: Arc::new(fields.work),
            submit_key: fields.submit_key,
            terms: Arc::new(terms),
        }
    }
}

impl From<JobSpec> for SpecFields {
    fn from(spec: JobSpec) -> Self {
        let terms = Arc::unwrap_or_clone(spec.terms);
        Self {
            mesh: terms.mesh,
            submitter: terms.submitter,
            serial: spec.serial,
            submitted_ms: spec.submitted_ms,
            brain_set: terms.brain_set,
            brain_disks: terms.brain_disks,
            name: spec.name,
            work: Arc::unwrap_or_clone(spec.work),
            resources: terms.resources,
            limits: terms.limits,
            retry: terms.retry,
            labels: terms.labels,
            strategy: terms.strategy,
            copies: terms.copies,
            network: terms.network,
            secrets: terms.secrets,
            volumes: terms.volumes,
            alone: terms.alone,
            submit_key: spec.submit_key,
            pace: terms.pace,
        }
    }
}

/// What the jobs that came last ask for.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    terms: Recent<Terms>,
    work: Recent<Work>,
}

impl Shares {
    /// Puts what is known already in the place of what is the same.
    pub(crate) fn share(&mut self, spec: &mut JobSpec) {
        self.terms.share(&mut spec.terms);
        self.work.share(&mut spec.work);
    }
}

/// Values looked at for each new job: enough for a dozen users at a time, and a comparison with each takes well under what
/// decoding a spec does, as most differ in their first words.
const RECENT_MAX: usize = 16;

/// The last different values that are still in use. Weak: the jobs alone keep them.
#[derive(Debug)]
struct Recent<T> {
    values: Vec<Weak<T>>,
    /// The next one to be replaced.
    oldest: usize,
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self { values: Vec::new(), oldest: 0 }
    }
}

impl<T: PartialEq> Recent<T> {
    fn share(&mut self, value: &mut Arc<T>) {
        let known = self.values.iter().filter_map(Weak::upgrade).find(|known| *known == *value);
        if let Some(known) = known {
            *value = known;
        } else if self.values.len() < RECENT_MAX {
            self.values.push(Arc::downgrade(value));
        } else {
            self.values[self.oldest] = Arc::downgrade(value);
            self.oldest = (self.oldest + 1) % RECENT_MAX;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cbor;
    use crate::spec::{Batch, Builtin, Program};

    fn fields(serial: u64, label: &str) -> SpecFields {
        let batch = Batch {
            program: Program::Builtin(Builtin::Noop),
            tasks: 1,
            env: BTreeMap::new(),
            inputs: Vec::new(),
            gather: None,
            outputs: Vec::new(),
        };
        SpecFields {
            mesh: MeshId([1; 32]),
            submitter: NodeId([2; 32]),
            serial,
            submitted_ms: serial,
            brain_set: vec![NodeId([2; 32])],
            brain_disks: vec![DiskId(3)],
            name: "alike".to_owned(),
            work: Work::Batch(batch),
            resources: Resources::default(),
            limits: Limits::default(),
            retry: Retry::default(),
            labels: BTreeMap::from([("is".to_owned(), label.to_owned())]),
            strategy: Strategy::default(),
            copies: 1,
            network: Network::default(),
            secrets: Vec::new(),
            volumes: Vec::new(),
            alone: Some(Alone { in_reach: 1, known: 5 }),
            submit_key: Some(format!("key-{serial}")),
            pace: 3,
        }
    }

    /// What is signed is what was signed before specs were shared: the fields, in their order.
    #[test]
    fn a_spec_is_written_as_its_fields() {
        let written = cbor::to_vec(&fields(7, "x"));
        assert_eq!(cbor::to_vec(&JobSpec::from(fields(7, "x"))), written);
        let read: JobSpec = cbor::from_slice(&written).expect("a spec");
        assert_eq!(SpecFields::from(read), fields(7, "x"));
    }

    #[test]
    fn jobs_that_ask_for_the_same_share_it_and_others_do_not() {
        let mut shares = Shares::default();
        let mut take = |serial, label: &str| {
            let mut spec = JobSpec::from(fields(serial, label));
            shares.share(&mut spec);
            assert_eq!(SpecFields::from(spec.clone()), fields(serial, label), "it says the same");
            spec
        };
        let (first, second, other) = (take(1, "x"), take(2, "x"), take(3, "y"));
        assert!(Arc::ptr_eq(&first.terms, &second.terms) && Arc::ptr_eq(&first.work, &second.work));
        assert!(!Arc::ptr_eq(&first.terms, &other.terms) && Arc::ptr_eq(&first.work, &other.work));
        for n in 0..50_u32 {
            take(4, &n.to_string());
        }
        assert_eq!(take(5, "x").serial, 5, "forgotten, and not missed");
        assert!(shares.terms.values.len() <= RECENT_MAX);
    }
}
