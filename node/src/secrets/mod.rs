//! Secrets: values that a user keeps on the node from which jobs are submitted, and that reach only nodes that run such a job.
//!
//! [`store`] keeps them, [`holder`] gives them out against an award, [`asker`] asks for them, [`wire`] and [`seal`] are what
//! passes between the two, [`job`] is what an executing node has of them, [`files`] the files in memory that programs see, and
//! [`redact`] takes them out of what programs print. No value is ever in the ledger, in a blob, in a log or on a disk in clear.

pub mod asker;
pub mod files;
pub mod holder;
pub mod job;
pub mod redact;
pub mod seal;
pub mod store;
pub mod wire;

use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// A value. Overwritten when dropped, and never printed.
#[derive(Clone, PartialEq, Eq, Default, Zeroize, ZeroizeOnDrop)]
pub struct SecretBytes(Vec<u8>);

impl SecretBytes {
    /// Takes the bytes over.
    #[must_use]
    pub const fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes, all of them.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Without the line end that editors and `echo` leave behind the last line: what a password or token is.
    #[must_use]
    pub fn line(&self) -> &[u8] {
        let bytes = self.0.strip_suffix(b"\n").unwrap_or(&self.0);
        bytes.strip_suffix(b"\r").unwrap_or(bytes)
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretBytes({} bytes)", self.0.len())
    }
}

impl Serialize for SecretBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            let mut text = data_encoding::BASE64.encode(&self.0);
            let done = text.serialize(serializer);
            text.zeroize();
            done
        } else {
            serializer.serialize_bytes(&self.0)
        }
    }
}

impl<'de> Deserialize<'de> for SecretBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let mut text = String::deserialize(deserializer)?;
            // Never the text itself in the error.
            let bytes = data_encoding::BASE64.decode(text.as_bytes()).map_err(|_| D::Error::custom("not base64"));
            text.zeroize();
            bytes.map(Self)
        } else {
            Ok(Self(serde_bytes::ByteBuf::deserialize(deserializer)?.into_vec()))
        }
    }
}

#[cfg(test)]
mod tests {
    use sinew_crdt_state::cbor;

    use super::*;

    #[test]
    fn values_travel_and_are_not_printed() {
        let value = SecretBytes::new(b"s3cret\xff\r\n".to_vec());
        assert_eq!(format!("{value:?}"), "SecretBytes(9 bytes)");
        assert_eq!((value.line(), value.bytes().len()), (&b"s3cret\xff"[..], 9));
        assert_eq!(cbor::from_slice::<SecretBytes>(&cbor::to_vec(&value)), Ok(value.clone()));
        let json = serde_json::to_string(&value).expect("json");
        assert_eq!(serde_json::from_str::<SecretBytes>(&json).expect("json"), value);
        assert!(serde_json::from_str::<SecretBytes>("\"s3cret!\"").is_err_and(|e| !e.to_string().contains("s3cret")));
    }
}
