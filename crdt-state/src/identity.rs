//! A node's key pair and domain-separated signatures. Where the key is kept is the daemon's business.

mod keys;
mod memo;

use std::fmt;

use ed25519_dalek::{Signer, SigningKey};
use serde::{Deserialize, Serialize};

use crate::ids::NodeId;
use crate::tally;

pub use memo::remember_signatures;

/// What a signature is for. A signature made for one domain is worthless in another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Domain {
    /// A batch of ledger changes.
    Envelope,
    /// A job spec.
    Spec,
    /// A membership certificate.
    Certificate,
    /// An invitation ticket.
    Ticket,
    /// A load digest or an advert on gossip.
    Gossip,
    /// A daemon's word that it lives.
    Boot,
}

impl Domain {
    const fn tag(self) -> &'static [u8] {
        match self {
            Self::Envelope => b"sinew/envelope/1\0",
            Self::Spec => b"sinew/spec/1\0",
            Self::Certificate => b"sinew/certificate/1\0",
            Self::Ticket => b"sinew/ticket/1\0",
            Self::Gossip => b"sinew/gossip/1\0",
            Self::Boot => b"sinew/boot/1\0",
        }
    }
}

/// An ed25519 signature, 64 bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; 64]);

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({:02x}{:02x}…)", self.0[0], self.0[1])
    }
}

impl Serialize for Signature {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serde_bytes::Bytes::new(&self.0).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(serde_bytes::ByteArray::<64>::deserialize(deserializer)?.into_array()))
    }
}

/// The signature does not fit the key, the domain and the bytes, or the key is no valid point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not verify")]
pub struct BadSignature;

/// A key pair: a node's, or a mesh's founding pair.
#[derive(Clone)]
pub struct Identity {
    key: SigningKey,
    id: NodeId,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.id).finish()
    }
}

impl Identity {
    /// The pair that `seed` (32 secret bytes) determines.
    #[must_use]
    pub fn from_seed(seed: [u8; 32]) -> Self {
        let key = SigningKey::from_bytes(&seed);
        let id = NodeId(key.verifying_key().to_bytes());
        Self { key, id }
    }

    /// The secret seed, for the key file and for libp2p.
    #[must_use]
    pub fn seed(&self) -> [u8; 32] {
        self.key.to_bytes()
    }

    /// The public half.
    #[must_use]
    pub const fn id(&self) -> NodeId {
        self.id
    }

    /// Signs `message` for `domain`.
    #[must_use]
    pub fn sign(&self, domain: Domain, message: &[u8]) -> Signature {
        tally::signed();
        let signature = Signature(self.key.sign(&framed(domain, message)).to_bytes());
        if let Some(key) = memo::key(&self.id.0, domain, message, &signature) {
            memo::remember(key);
        }
        signature
    }
}

/// Checks `signature` by `author` over `message` in `domain`, strictly (RFC 8032 plus no small-order keys), so that
/// every replica comes to the same verdict.
///
/// # Errors
/// [`BadSignature`].
pub fn verify(author: &[u8; 32], domain: Domain, message: &[u8], signature: &Signature) -> Result<(), BadSignature> {
    tally::checked();
    let known = memo::key(author, domain, message, signature);
    if known.as_ref().is_some_and(memo::holds) {
        return Ok(());
    }
    let key = keys::of(author).ok_or(BadSignature)?;
    let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
    key.verify_strict(&framed(domain, message), &signature).map_err(|_| BadSignature)?;
    if let Some(key) = known {
        memo::remember(key);
    }
    Ok(())
}

fn framed(domain: Domain, message: &[u8]) -> Vec<u8> {
    let tag = domain.tag();
    let mut out = Vec::with_capacity(tag.len() + message.len());
    out.extend_from_slice(tag);
    out.extend_from_slice(message);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_in_its_domain_only() {
        let who = Identity::from_seed([1; 32]);
        let signature = who.sign(Domain::Spec, b"x");
        assert_eq!(verify(who.id().as_bytes(), Domain::Spec, b"x", &signature), Ok(()));
        assert_eq!(verify(who.id().as_bytes(), Domain::Envelope, b"x", &signature), Err(BadSignature));
        assert_eq!(verify(who.id().as_bytes(), Domain::Spec, b"y", &signature), Err(BadSignature));
        assert_eq!(verify(&[0; 32], Domain::Spec, b"x", &signature), Err(BadSignature));
    }
}
