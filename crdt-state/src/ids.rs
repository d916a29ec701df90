//! Typed identifiers. Each is a fixed-width byte string with one printed form; nothing here looks anything up.

use std::fmt;
use std::str::FromStr;

use data_encoding::{BASE32_NOPAD, HEXLOWER_PERMISSIVE};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a printed identifier could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseIdError {
    /// The text holds a character outside lower-case base32, and is not the hexadecimal form either.
    #[error("`{0}` is not an identifier: it should be lower-case letters and the digits 2-7, or hexadecimal digits")]
    Alphabet(String),
    /// The text decodes to the wrong number of bytes.
    #[error("`{text}` is not a whole identifier: {got} bytes instead of {want}")]
    Length {
        /// What was given.
        text: String,
        /// Bytes found.
        got: usize,
        /// Bytes needed.
        want: usize,
    },
}

/// Lower-case base32 without padding, the printed form of every id.
#[must_use]
pub fn encode_base32(bytes: &[u8]) -> String {
    let mut text = BASE32_NOPAD.encode(bytes);
    text.make_ascii_lowercase();
    text
}

/// Writes the same into `text`.
///
/// # Panics
/// When `text` is not exactly as long as that.
pub(crate) fn write_base32(bytes: &[u8], text: &mut [u8]) {
    BASE32_NOPAD.encode_mut(bytes, text);
    text.make_ascii_lowercase();
}

/// Reads [`encode_base32`]'s form back.
///
/// # Errors
/// [`ParseIdError::Alphabet`] when `text` is not base32.
pub fn decode_base32(text: &str) -> Result<Vec<u8>, ParseIdError> {
    BASE32_NOPAD.decode(text.to_ascii_uppercase().as_bytes()).map_err(|_| ParseIdError::Alphabet(text.to_owned()))
}

/// Reads `len` bytes in either form: base32 as ids are printed, or hexadecimal as other BLAKE3 tools print hashes. The
/// two have different lengths, so no text can be meant both ways.
fn decode(text: &str, len: usize) -> Result<Vec<u8>, ParseIdError> {
    let hex = || HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok();
    match (text.len() == 2 * len).then(hex).flatten() {
        Some(bytes) => Ok(bytes),
        None => decode_base32(text),
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $len:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $name(pub [u8; $len]);

        impl Ord for $name {
            /// Byte by byte from the left. The first eight settle nearly every case, without a call.
            fn cmp(&self, other: &Self) -> std::cmp::Ordering {
                let head = |id: &Self| id.0.first_chunk().map_or(0, |head| u64::from_be_bytes(*head));
                head(self).cmp(&head(other)).then_with(|| self.0.cmp(&other.0))
            }
        }

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
                Some(self.cmp(other))
            }
        }

        impl $name {
            /// Width in bytes.
            pub const LEN: usize = $len;

            /// The raw bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// The first ten printed characters: enough for people, never for programs.
            #[must_use]
            pub fn short(&self) -> String {
                let mut text = encode_base32(&self.0);
                text.truncate(10);
                text
            }
        }

        impl From<[u8; $len]> for $name {
            fn from(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&encode_base32(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.short())
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let bytes = decode(text, $len)?;
                let got = bytes.len();
                bytes.try_into().map(Self).map_err(|_| ParseIdError::Length {
                    text: text.to_owned(),
                    got,
                    want: $len,
                })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serializer.serialize_bytes(&self.0)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                    text.parse().map_err(serde::de::Error::custom)
                } else {
                    let bytes = serde_bytes::ByteArray::<$len>::deserialize(deserializer)?;
                    Ok(Self(bytes.into_array()))
                }
            }
        }
    };
}

/// A node's disk: drawn at random when a node first starts on it. A node whose disk was lost comes back under its old
/// [`NodeId`] with another of these, and so it can be told that it has forgotten everything it said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct DiskId(pub u64);

id!(
    /// A node: its ed25519 public key, also its libp2p identity.
    NodeId, 32
);
id!(
    /// A mesh: the ed25519 public key whose holder founded it.
    MeshId, 32
);
id!(
    /// A job: BLAKE3 of its signed spec.
    JobId, 32
);
id!(
    /// A fact: the automerge change hash (SHA-256) of the change that carries it.
    FactId, 32
);
id!(
    /// A blob: BLAKE3 of its content.
    Hash, 32
);

impl Hash {
    /// The BLAKE3 hash of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_ordered_byte_by_byte() {
        let mut ids: Vec<NodeId> = (0..200u8)
            .map(|n| {
                NodeId([n / 20, 7, n % 3, 0, 0, 0, 0, 9, n, 255 - n].repeat(4)[..32].try_into().expect("32 bytes"))
            })
            .collect();
        ids.extend([NodeId([0; 32]), NodeId([255; 32])]);
        let mut bytes: Vec<[u8; 32]> = ids.iter().map(|id| id.0).collect();
        ids.sort();
        bytes.sort_unstable();
        assert_eq!(ids.iter().map(|id| id.0).collect::<Vec<_>>(), bytes);
    }

    #[test]
    fn printed_form_reads_back_and_rejects_damage() {
        let id = NodeId([7; 32]);
        assert_eq!(id.to_string().parse::<NodeId>(), Ok(id));
        assert!(matches!("abc".parse::<NodeId>(), Err(ParseIdError::Length { .. } | ParseIdError::Alphabet(_))));
        assert!(matches!("???".parse::<NodeId>(), Err(ParseIdError::Alphabet(_))));
    }

    /// As `b3sum` prints it, and as this mesh does.
    #[test]
    fn a_hash_is_read_in_hexadecimal_too() {
        let hash = Hash::of(b"hello");
        let hex = "ea8f163db38682925e4491c5e58d4bb3506ef8c14eb78a86e908c5624a67200f";
        assert_eq!(hex.parse(), Ok(hash));
        assert_eq!(hex.to_uppercase().parse(), Ok(hash));
        assert_eq!(hash.to_string().parse(), Ok(hash));
        assert_eq!(serde_json::from_str::<Hash>(&format!("\"{hex}\"")).expect("json"), hash);
        assert!(hex[1..].parse::<Hash>().is_err() && format!("{hex}0").parse::<Hash>().is_err());
    }

    #[test]
    fn json_is_text_and_cbor_is_bytes() {
        let id = JobId([9; 32]);
        let json = serde_json::to_string(&id).expect("json");
        assert_eq!(json, format!("\"{id}\""));
        assert_eq!(serde_json::from_str::<JobId>(&json).expect("json"), id);
        let cbor = crate::cbor::to_vec(&id);
        assert_eq!(cbor.len(), 34);
        assert_eq!(crate::cbor::from_slice::<JobId>(&cbor).expect("cbor"), id);
    }
}
