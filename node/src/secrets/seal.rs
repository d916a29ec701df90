//! Sealing values to one node: a sealed box (X25519, XSalsa20-Poly1305, as libsodium's `crypto_box_seal`) to the X25519 form of the
//! node's ed25519 key. What it is for is inside, so that no answer serves another question.

use crypto_box::aead::OsRng;
use crypto_box::{PublicKey, SecretKey};
use ed25519_dalek::{SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use sinew_crdt_state::cbor;
use sinew_crdt_state::fact::Fence;
use sinew_crdt_state::identity::Identity;
use sinew_crdt_state::ids::{JobId, NodeId};
use sinew_crdt_state::spec::Phase;
use zeroize::Zeroizing;

use super::SecretBytes;

/// Whom values are for, and what for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purpose {
    /// The job.
    pub job: JobId,
    /// The award.
    pub fence: Fence,
    /// The task's phase.
    pub phase: Phase,
    /// The task.
    pub task: u32,
    /// Who asked.
    pub asker: NodeId,
}

#[derive(Serialize, Deserialize)]
struct Contents {
    purpose: Purpose,
    values: Vec<(String, SecretBytes)>,
}

/// Why an answer cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// No key, or one that anybody could read with.
    #[error("the node's key cannot be sealed to")]
    Key,
    /// Not for this node, changed on its way, or not an answer at all.
    #[error("the answer cannot be opened with this node's key")]
    Closed,
    /// The answer to another question.
    #[error("the answer is to another question")]
    OtherPurpose,
}

/// Seals `values` for `purpose.asker`.
///
/// # Errors
/// [`SealError::Key`].
pub fn seal(purpose: Purpose, values: Vec<(String, SecretBytes)>) -> Result<Vec<u8>, SealError> {
    let key = VerifyingKey::from_bytes(&purpose.asker.0).map_err(|_| SealError::Key)?;
    if key.is_weak() {
        return Err(SealError::Key);
    }
    let to = PublicKey::from(key.to_montgomery().to_bytes());
    let plain = Zeroizing::new(cbor::to_vec(&Contents { purpose, values }));
    to.seal(&mut OsRng, &plain).map_err(|_| SealError::Key)
}

/// Opens what was sealed to `identity`, if it is for `purpose`.
///
/// # Errors
/// [`SealError`].
pub fn open(identity: &Identity, purpose: &Purpose, sealed: &[u8]) -> Result<Vec<(String, SecretBytes)>, SealError> {
    let seed = Zeroizing::new(identity.seed());
    let scalar = Zeroizing::new(SigningKey::from_bytes(&seed).to_scalar_bytes());
    let own = SecretKey::from_bytes(*scalar);
    let plain = Zeroizing::new(own.unseal(sealed).map_err(|_| SealError::Closed)?);
    let contents: Contents = cbor::from_slice(&plain).map_err(|_| SealError::Closed)?;
    if contents.purpose == *purpose { Ok(contents.values) } else { Err(SealError::OtherPurpose) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn purpose(asker: &Identity) -> Purpose {
        let fence = Fence { term: 2, epoch: 7 };
        Purpose { job: JobId([3; 32]), fence, phase: 0, task: 4, asker: asker.id() }
    }

    #[test]
    fn only_whom_it_is_for_can_open_it_and_only_as_the_answer_it_is() {
        let (asker, other) = (Identity::from_seed([1; 32]), Identity::from_seed([2; 32]));
        let values = vec![("db".to_owned(), SecretBytes::new(b"correct horse".to_vec()))];
        let wanted = purpose(&asker);
        let sealed = seal(wanted, values.clone()).expect("seal");
        assert_eq!(open(&asker, &wanted, &sealed), Ok(values.clone()));
        assert_ne!(seal(wanted, values).expect("seal"), sealed, "never the same twice");
        assert!(!sealed.windows(7).any(|w| w == b"correct"));
        assert_eq!(open(&other, &wanted, &sealed), Err(SealError::Closed));
        for at in [0, 40, sealed.len() - 1] {
            let mut bad = sealed.clone();
            bad[at] ^= 1;
            assert_eq!(open(&asker, &wanted, &bad), Err(SealError::Closed), "byte {at}");
        }
        assert_eq!(open(&asker, &wanted, &sealed[..20]), Err(SealError::Closed));
        for other in [
            Purpose { job: JobId([4; 32]), ..wanted },
            Purpose { fence: Fence { term: 2, epoch: 8 }, ..wanted },
            Purpose { task: 5, ..wanted },
            Purpose { phase: 1, ..wanted },
        ] {
            assert_eq!(open(&asker, &other, &sealed), Err(SealError::OtherPurpose));
        }
    }

    #[test]
    fn nothing_is_sealed_to_what_is_no_key() {
        // Points of order 1, 4 and 2: anybody could open what is sealed to them.
        let (mut neutral, mut minus) = ([0; 32], [0xff; 32]);
        (neutral[0], minus[0], minus[31]) = (1, 0xec, 0x7f);
        for bytes in [neutral, [0; 32], minus] {
            let asker = NodeId(bytes);
            let purpose = Purpose { asker, ..purpose(&Identity::from_seed([1; 32])) };
            assert_eq!(seal(purpose, Vec::new()), Err(SealError::Key), "{bytes:?}");
        }
    }
}
