//! What a job says about secrets: which ones, by name, and where its programs find them. Their values are never here: the spec is
//! in every node's ledger.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::remote::Wrong;

/// Most secrets of one job: far above use; each is a variable or a file.
pub const SECRETS_MAX: usize = 64;
/// Longest name of a secret, and of the variable or file that it becomes, bytes.
pub const NAME_LEN_MAX: usize = 64;
/// Longest value, bytes: a key or a configuration file, not data.
pub const VALUE_LEN_MAX: usize = 64 * 1024;
/// Most bytes of the values of one job's secrets together: nodes search what its tasks print for every one of them.
pub const VALUES_LEN_MAX: usize = 256 * 1024;

/// A secret that the job's programs are given.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretUse {
    /// Under which name the submitter's node has it.
    pub name: String,
    /// Where programs find it.
    pub place: SecretPlace,
}

/// Where programs find a secret.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SecretPlace {
    /// In this environment variable.
    Env(String),
    /// In this file of the directory that `SINEW_SECRETS` names.
    File(String),
}

/// Whether `name` can be a secret's: letters, digits, `_`, `-` and `.`, beginning with a letter or digit.
///
/// # Errors
/// What is wrong, and what would be right.
pub fn check_name(name: &str) -> Result<(), Wrong> {
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'-' | b'.');
    let head_ok = name.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric());
    if head_ok && name.len() <= NAME_LEN_MAX && name.bytes().all(plain) {
        return Ok(());
    }
    Err((
        "not the name of a secret",
        "use up to 64 letters, digits, `_`, `-` and `.`, beginning with a letter or a digit",
    ))
}

impl SecretPlace {
    /// What is wrong with it.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub fn check(&self) -> Result<(), Wrong> {
        match self {
            Self::Env(name) => check_variable(name),
            Self::File(name) => {
                let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'-' | b'.');
                let fine = (1..=NAME_LEN_MAX).contains(&name.len()) && name.bytes().all(plain);
                if fine && !matches!(name.as_str(), "." | "..") {
                    return Ok(());
                }
                Err((
                    "not the name of a file",
                    "use up to 64 letters, digits, `_`, `-` and `.`; there are no directories",
                ))
            }
        }
    }
}

fn check_variable(name: &str) -> Result<(), Wrong> {
    let head_ok = name.bytes().next().is_some_and(|c| c.is_ascii_alphabetic() || c == b'_');
    if !head_ok || name.len() > NAME_LEN_MAX || !name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_') {
        let mend = "use up to 64 letters, digits and `_`, not beginning with a digit";
        return Err(("not the name of an environment variable", mend));
    }
    if name.starts_with("SINEW_") {
        return Err(("names that begin with SINEW_ are reserved", "choose another name"));
    }
    Ok(())
}

/// Whether these can be a job's, whose other variables are called `is_variable`. The mistake comes with the number of the secret.
///
/// # Errors
/// What is wrong with which, and what would be right.
pub fn check(secrets: &[SecretUse], is_variable: impl Fn(&str) -> bool) -> Result<(), (usize, Wrong)> {
    let mut places = BTreeSet::new();
    for (i, secret) in secrets.iter().enumerate() {
        let wrong = |wrong: Wrong| (i, wrong);
        if i >= SECRETS_MAX {
            return Err(wrong(("more secrets than a job may have", "leave some out: 64 is the most")));
        }
        check_name(&secret.name).map_err(wrong)?;
        secret.place.check().map_err(wrong)?;
        if !places.insert(&secret.place) {
            return Err(wrong(("another secret goes to the same place", "choose another `env` or `file`")));
        }
        if matches!(&secret.place, SecretPlace::Env(name) if is_variable(name)) {
            return Err(wrong(("`env` has a variable of that name too", "leave one of them out")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str, variable: &str) -> SecretUse {
        SecretUse { name: name.to_owned(), place: SecretPlace::Env(variable.to_owned()) }
    }

    fn file(name: &str, file: &str) -> SecretUse {
        SecretUse { name: name.to_owned(), place: SecretPlace::File(file.to_owned()) }
    }

    #[test]
    fn names_and_places() {
        let fine = [env("db", "DB"), file("db", "db.key"), file("x-1.y", ".netrc"), env("0", "_A1")];
        assert_eq!(check(&fine, |_| false), Ok(()));
        let long = "x".repeat(NAME_LEN_MAX + 1);
        for (bad, word) in [
            (env("", "A"), "secret"),
            (env("a b", "A"), "secret"),
            (env("-a", "A"), "secret"),
            (env(&long, "A"), "secret"),
            (env("a", "1A"), "variable"),
            (env("a", "A-B"), "variable"),
            (env("a", "SINEW_SECRETS"), "reserved"),
            (file("a", ""), "file"),
            (file("a", ".."), "file"),
            (file("a", "x/y"), "file"),
            (file("a", &long), "file"),
        ] {
            let (at, (problem, _)) = check(&[env("ok", "OK"), bad.clone()], |_| false).expect_err("wrong");
            assert_eq!(at, 1);
            assert!(problem.contains(word), "{bad:?}: {problem}");
        }
    }

    #[test]
    fn places_do_not_collide_and_there_are_not_too_many() {
        assert!(check(&[env("a", "A"), env("b", "A")], |_| false).is_err_and(|(_, (what, _))| what.contains("same")));
        assert!(check(&[file("a", "f"), file("b", "f")], |_| false).is_err());
        assert_eq!(check(&[env("a", "f"), file("a", "f")], |_| false), Ok(()), "one secret in two places");
        assert!(check(&[env("a", "A")], |name| name == "A").is_err_and(|(_, (what, _))| what.contains("`env`")));
        let many: Vec<_> = (0..=SECRETS_MAX).map(|i| env("a", &format!("A{i}"))).collect();
        assert_eq!(check(&many[..SECRETS_MAX], |_| false), Ok(()));
        assert!(check(&many, |_| false).is_err());
    }
}
