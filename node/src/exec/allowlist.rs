//! Which programs may run on this node at all, where an operator wants to say so: a file (TOML or YAML) of program paths,
//! patterns for arguments, and limits. Without one, any program may run inside the sandbox.
//!
//! ```toml
//! [[program]]
//! path = "/usr/bin/sort"
//! args = ["-[nru]+"]          # one pattern for each argument from the first on, each matching it whole
//! more = "-k[0-9,]+"          # for each argument beyond those; none are allowed without this
//! args_len_max = 200          # bytes of all arguments together
//! env = ["LC_ALL"]            # variables that a job may set for it; none without this
//! timeout = "10m"
//! output_max = "100MiB"
//! ```

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use regex::Regex;
use serde::{Deserialize, Deserializer};
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::manifest::units::{UnitError, parse_duration, parse_size};

use super::outcome::Failure;

/// Bytes of arguments where an entry does not say: a command line, not a program.
const ARGS_LEN_MAX: usize = 4_096;

/// The programs that may run.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allowlist {
    /// Each way in which one may.
    #[serde(default)]
    program: Vec<Entry>,
}

/// One program and how it may be called.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    path: PathBuf,
    #[serde(default)]
    args: Vec<Whole>,
    more: Option<Whole>,
    args_len_max: Option<usize>,
    #[serde(default)]
    env: Vec<String>,
    #[serde(default, deserialize_with = "duration")]
    timeout: Option<Duration>,
    #[serde(default, deserialize_with = "size")]
    output_max: Option<u64>,
}

/// What a listed program may use, beside what its job says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Caps {
    /// The longest it may run.
    pub timeout: Option<Duration>,
    /// The most bytes that it may write.
    pub output_max: Option<u64>,
}

/// Why an allowlist was refused.
#[derive(Debug, thiserror::Error)]
pub enum AllowlistError {
    /// The file cannot be read.
    #[error("cannot read the allowlist {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It does not say what it should.
    #[error("{path}: {problem}")]
    Syntax {
        /// Which.
        path: PathBuf,
        /// Where and what.
        problem: String,
    },
}

impl Allowlist {
    /// Reads a file: YAML where its name ends so, TOML otherwise.
    ///
    /// # Errors
    /// [`AllowlistError`].
    pub fn load(path: &Path) -> Result<Self, AllowlistError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| AllowlistError::Read { path: path.to_owned(), source })?;
        let yaml = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("yaml") || e.eq_ignore_ascii_case("yml"));
        Self::parse(&text, yaml).map_err(|problem| AllowlistError::Syntax { path: path.to_owned(), problem })
    }

    fn parse(text: &str, yaml: bool) -> Result<Self, String> {
        let list: Self = if yaml {
            serde_saphyr::from_str(text).map_err(|e| e.to_string())?
        } else {
            toml::from_str(text).map_err(|e| e.to_string())?
        };
        match list.program.iter().find(|entry| !entry.path.is_absolute()) {
            Some(entry) => Err(format!("program path `{}`: give an absolute path", entry.path.display())),
            None => Ok(list),
        }
    }

    /// Whether `program` may be called with `argv` and the variables `env` of its job, and with which limits; the first entry
    /// that fits counts. Variables count because loaders and interpreters run code that they name (`LD_PRELOAD`, `BASH_ENV`).
    ///
    /// # Errors
    /// `E_DENY`, which says what is not allowed.
    pub(super) fn check(
        &self,
        program: &Path,
        argv: &[String],
        env: &BTreeMap<String, String>,
    ) -> Result<Caps, Failure> {
        let denied = |why: String| Failure::new(ErrorCode::Deny, format!("program `{}` {why}", program.display()));
        let args = argv.get(1..).unwrap_or_default();
        let mut entries = self.program.iter().filter(|entry| entry.path == program).peekable();
        if entries.peek().is_none() {
            return Err(denied("is not on this node's allowlist".to_owned()));
        }
        let mut last = None;
        for entry in entries {
            match entry.check(args).and_then(|()| entry.check_env(env)) {
                Ok(()) => return Ok(Caps { timeout: entry.timeout, output_max: entry.output_max }),
                Err(why) => last = Some(why),
            }
        }
        Err(denied(format!("is on this node's allowlist, but not as called: {}", last.unwrap_or_default())))
    }
}

impl Entry {
    fn check(&self, args: &[String]) -> Result<(), String> {
        let most = self.args_len_max.unwrap_or(ARGS_LEN_MAX);
        let len: usize = args.iter().map(String::len).sum();
        if len > most {
            return Err(format!("its arguments take {len} bytes, more than {most}"));
        }
        if args.len() < self.args.len() {
            return Err(format!("it has {} arguments, fewer than {}", args.len(), self.args.len()));
        }
        for (i, arg) in args.iter().enumerate() {
            let Some(pattern) = self.args.get(i).or(self.more.as_ref()) else {
                return Err(format!("it has {} arguments, more than {}", args.len(), self.args.len()));
            };
            if !pattern.0.is_match(arg) {
                return Err(format!("argument {} does not match its pattern", i + 1));
            }
        }
        Ok(())
    }

    fn check_env(&self, env: &BTreeMap<String, String>) -> Result<(), String> {
        match env.keys().find(|name| !self.env.contains(*name)) {
            Some(name) => Err(format!("its entry does not list the variable `{name}` in `env`")),
            None => Ok(()),
        }
    }
}

/// A pattern that matches an argument whole.
#[derive(Debug, Clone)]
struct Whole(Regex);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bad = |e| serde::de::Error::custom(format!("pattern `{text}`: {e}"));
        // Compiled as it stands first: what is no pattern by itself must not become one between parentheses.
        Regex::new(&text).map_err(bad)?;
        Regex::new(&format!(r"\A(?:{text})\z")).map(Self).map_err(bad)
    }
}

fn unit<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    parse: fn(&str) -> Result<T, UnitError>,
) -> Result<Option<T>, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(&text).map(Some).map_err(serde::de::Error::custom)
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    Ok(unit(deserializer, parse_duration)?.map(Duration::from_millis))
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    unit(deserializer, parse_size)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOML: &str = r#"
[[program]]
path = "/usr/bin/sort"
args = ["-[nru]+"]
more = "-k[0-9,]+"
args_len_max = 12
timeout = "10m"
output_max = "1MiB"

[[program]]
path = "/usr/bin/sort"

[[program]]
path = "/usr/bin/awk"
args = ["a|b"]
"#;
    const YAML: &str = r#"
program:
  - { path: /usr/bin/sort, args: ["-[nru]+"], more: "-k[0-9,]+", args_len_max: 12, timeout: 10m, output_max: 1MiB }
  - path: /usr/bin/sort
  - path: /usr/bin/awk
    args: [a|b]
"#;

    #[test]
    fn only_what_is_listed_may_run() {
        for list in [Allowlist::parse(TOML, false).expect("TOML"), Allowlist::parse(YAML, true).expect("YAML")] {
            let check = |argv: &[&str]| {
                let argv: Vec<String> = argv.iter().map(|a| (*a).to_owned()).collect();
                list.check(&Path::new("/usr/bin").join(&argv[0]), &argv, &BTreeMap::new())
            };
            let caps = Caps { timeout: Some(Duration::from_secs(600)), output_max: Some(1 << 20) };
            assert_eq!(check(&["sort", "-n", "-k1,2"]), Ok(caps));
            assert_eq!(check(&["sort"]), Ok(Caps::default()), "the second entry");
            for (argv, why) in [
                (&["cat"][..], "not on this node's allowlist"),
                (&["sort", "-o"], "more than 0"),
                (&["sort", "-n", "-k1", "x"], "more than 0"),
                (&["sort", "-n", "-k1,22222222"], "more than 0"),
                (&["awk"], "fewer than 1"),
                (&["awk", "ab"], "argument 1"),
                (&["awk", "a\n"], "argument 1"),
                (&["awk", "xa"], "argument 1"),
                (&["awk", "a", "b"], "more than 1"),
            ] {
                let refused = check(argv).expect_err(why);
                assert!(refused.message.contains(why), "{argv:?}: {refused}");
                assert_eq!((refused.code, refused.retryable), (ErrorCode::Deny, false));
            }
        }
        let strict = Allowlist::parse("[[program]]\npath='/x'\nmore='.*'\nargs_len_max=5", false).expect("TOML");
        let refused = strict
            .check(Path::new("/x"), &["x".into(), "123".into(), "456".into()], &BTreeMap::new())
            .expect_err("too long");
        assert!(refused.message.contains("6 bytes, more than 5"), "{refused}");
        let none = Allowlist::parse("", false).expect("empty");
        assert_eq!(
            none.check(Path::new("/x"), &[], &BTreeMap::new()).expect_err("nothing may run").code,
            ErrorCode::Deny
        );
    }

    #[test]
    fn only_variables_that_an_entry_lists_reach_a_program() {
        let text = "[[program]]\npath='/x'\n[[program]]\npath='/x'\nenv=['LC_ALL', 'TZ']";
        let list = Allowlist::parse(text, false).expect("TOML");
        let check = |names: &[&str]| {
            let env = names.iter().map(|name| ((*name).to_owned(), "v".to_owned())).collect();
            list.check(Path::new("/x"), &["x".to_owned()], &env)
        };
        assert_eq!((check(&[]), check(&["TZ", "LC_ALL"])), (Ok(Caps::default()), Ok(Caps::default())));
        for name in ["LD_PRELOAD", "BASH_ENV", "PYTHONPATH", "PATH", "tz", "TZ2", ""] {
            let refused = check(&["TZ", name]).expect_err(name);
            assert!(refused.message.contains(&format!("the variable `{name}`")), "{refused}");
            assert_eq!((refused.code, refused.retryable), (ErrorCode::Deny, false));
        }
    }

    #[test]
    fn mistakes_in_the_file_are_named() {
        for (text, named) in [
            ("[[program]]\npath='sort'", "`sort`: give an absolute path"),
            ("[[program]]\npath='/x'\nargs=['(']", "pattern `(`"),
            ("[[program]]\npath='/x'\nargs=[')|(']", "pattern `)|(`"),
            ("[[program]]\npath='/x'\ntimeout='soon'", "soon"),
            ("[[program]]\npath='/x'\nargv=[]", "argv"),
            ("[[programs]]\npath='/x'", "programs"),
            ("[[program]]\nargs=[]", "path"),
        ] {
            let problem = Allowlist::parse(text, false).expect_err(text);
            assert!(problem.contains(named), "{text}: {problem}");
        }
        let missing = Allowlist::load(Path::new("/no/such/list")).expect_err("missing").to_string();
        assert!(missing.contains("/no/such/list"), "{missing}");
    }
}
