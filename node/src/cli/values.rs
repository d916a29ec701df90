//! How single values on the command line are read, where the manifest's own units do not say it.

/// A text that is no `K=V`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` has no `=`: write {form}")]
pub(crate) struct PairError {
    given: String,
    form: &'static str,
}

/// Why a number of cores was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no number of cores: write one such as 4 or 2.5, or 0 to run nothing here")]
pub(crate) struct CoresError(String);

/// Reads a label, `K=V`.
pub(crate) fn parse_label(text: &str) -> Result<(String, String), PairError> {
    pair(text, "K=V, such as zone=a")
}

/// Reads an environment variable, `NAME=VALUE`.
pub(crate) fn parse_env(text: &str) -> Result<(String, String), PairError> {
    pair(text, "NAME=VALUE")
}

/// Reads the cores that a node offers. Unlike a task's they may be 0: such a node submits and stores, but runs nothing.
pub(crate) fn parse_offered_cores(text: &str) -> Result<f64, CoresError> {
    let cores: f64 = text.trim().parse().map_err(|_| CoresError(text.to_owned()))?;
    if cores.is_finite() && cores >= 0.0 { Ok(cores) } else { Err(CoresError(text.to_owned())) }
}

fn pair(text: &str, form: &'static str) -> Result<(String, String), PairError> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(PairError { given: text.to_owned(), form }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_and_cores_read_and_say_what_is_wrong() {
        assert_eq!(parse_label("zone=a=b"), Ok(("zone".into(), "a=b".into())));
        assert_eq!(parse_env("A="), Ok(("A".into(), String::new())));
        assert!(parse_label("zone").expect_err("no =").to_string().contains("K=V"));
        assert!(parse_env("=x").is_err());
        assert_eq!(parse_offered_cores("2.5"), Ok(2.5));
        assert_eq!(parse_offered_cores("0"), Ok(0.0));
        for bad in ["-1", "NaN", "inf", "two", ""] {
            assert!(parse_offered_cores(bad).is_err(), "{bad}");
        }
    }
}
