//! CBOR with the guards that bytes from a peer need. The encoding itself is `ciborium`'s.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Nesting allowed in decoded values. Our deepest type needs about eight; the rest would only serve a stack attack.
const RECURSION_MAX: usize = 32;

/// Why bytes could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not CBOR, or not of the expected shape.
    #[error("malformed CBOR: {0}")]
    Malformed(String),
    /// Bytes follow the value.
    #[error("{0} bytes follow the CBOR value")]
    Trailing(usize),
}

/// Encodes `value`.
///
/// # Panics
/// Never for the types of this workspace: they have no failing `Serialize`, and a `Vec` takes any length.
#[must_use]
pub fn to_vec<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    append(value, &mut out);
    out
}

/// Encodes `value` behind what `out` has.
///
/// # Panics
/// As [`to_vec`]: never.
pub fn append<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) {
    ciborium::into_writer(value, out).expect("writing CBOR to a Vec cannot fail");
}

/// Decodes exactly one value from `bytes`.
///
/// # Errors
/// [`DecodeError`] when the bytes are malformed, nested too deeply, or followed by others.
pub fn from_slice<T: DeserializeOwned>(mut bytes: &[u8]) -> Result<T, DecodeError> {
    let value = ciborium::de::from_reader_with_recursion_limit(&mut bytes, RECURSION_MAX)
        .map_err(|e| DecodeError::Malformed(e.to_string()))?;
    if bytes.is_empty() { Ok(value) } else { Err(DecodeError::Trailing(bytes.len())) }
}
