//! The error codes that users, scripts and the ledger see. A code says what kind of thing went wrong; the sentence beside it
//! says what to do. Nothing here decides what happens next, beyond whether another try can help.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a task, or a request, failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ErrorCode {
    /// Not allowed.
    Deny,
    /// What was asked for cannot work, here or elsewhere.
    Invalid,
    /// Over its memory limit.
    Oom,
    /// Over its time limit.
    Timeout,
    /// No GPU that fits.
    NoGpu,
    /// An input could not be had, or was not what it should be.
    Fetch,
    /// The program failed: a non-zero exit or a signal.
    Exit,
    /// The node or the lease was lost, or the node could not run it for a reason of its own. Counts as no attempt.
    Lost,
    /// Somebody cancelled it.
    Cancelled,
    /// Too much output, or the disk refused.
    Storage,
    /// Whether it happened could not be found out.
    Unknown,
}

impl ErrorCode {
    /// Every code.
    pub const ALL: [Self; 11] = [
        Self::Deny,
        Self::Invalid,
        Self::Oom,
        Self::Timeout,
        Self::NoGpu,
        Self::Fetch,
        Self::Exit,
        Self::Lost,
        Self::Cancelled,
        Self::Storage,
        Self::Unknown,
    ];

    /// The printed form.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deny => "E_DENY",
            Self::Invalid => "E_INVALID",
            Self::Oom => "E_OOM",
            Self::Timeout => "E_TIMEOUT",
            Self::NoGpu => "E_NOGPU",
            Self::Fetch => "E_FETCH",
            Self::Exit => "E_EXIT",
            Self::Lost => "E_LOST",
            Self::Cancelled => "E_CANCELLED",
            Self::Storage => "E_STORAGE",
            Self::Unknown => "E_UNKNOWN",
        }
    }

    /// Whether another attempt may end differently. A failure can still say no: an output over its cap is `E_STORAGE`, and
    /// would be over it again.
    #[must_use]
    pub const fn retryable(self) -> bool {
        !matches!(self, Self::Deny | Self::Invalid | Self::Cancelled)
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that names no error code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no error code of this version")]
pub struct UnknownErrorCode(pub String);

impl FromStr for ErrorCode {
    type Err = UnknownErrorCode;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|code| code.as_str() == text).ok_or_else(|| UnknownErrorCode(text.to_owned()))
    }
}

impl Serialize for ErrorCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ErrorCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_reads_back_in_text_and_json() {
        for code in ErrorCode::ALL {
            assert_eq!(code.to_string().parse(), Ok(code));
            let json = serde_json::to_string(&code).expect("json");
            assert_eq!(json, format!("\"{code}\""));
            assert_eq!(serde_json::from_str::<ErrorCode>(&json).expect("json"), code);
        }
        assert!("E_OTHER".parse::<ErrorCode>().is_err());
        assert!(!ErrorCode::Invalid.retryable() && ErrorCode::Timeout.retryable());
    }
}
