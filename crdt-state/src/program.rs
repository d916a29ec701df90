//! What a task executes, and which runner of a node it takes.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::cbor;
use crate::spec::{BlobRef, Builtin};

/// What a task executes. `B` is how content is named: a blob once the job is submitted ([`Program`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProgramOf<B> {
    /// An argument vector, never given to a shell.
    Exec(Vec<String>),
    /// Code inside the daemon.
    Builtin(Builtin),
    /// A container of an image.
    Container(ContainerOf<B>),
    /// A function of a Python module.
    Python(PythonCall),
    /// A WebAssembly module.
    Wasm(WasmOf<B>),
}

/// What is wrong with a program, and its mend.
pub type Wrong = (&'static str, &'static str);

/// A program whose content is in the blob store.
pub type Program = ProgramOf<BlobRef>;
/// A container whose image, if it is an archive, is in the blob store.
pub type Container = ContainerOf<BlobRef>;
/// A module in the blob store.
pub type Wasm = WasmOf<BlobRef>;

/// A container of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerOf<B> {
    /// What it is made from.
    pub image: ImageOf<B>,
    /// Replaces the image's entry point, if given.
    pub entrypoint: Option<Vec<String>>,
    /// The arguments after the entry point; with none, the image's own.
    pub argv: Vec<String>,
    /// GPUs that it gets to itself.
    pub gpus: u32,
    /// How it is told whether it still does its work.
    pub health: Option<Box<HealthCheck>>,
}

/// A command that is run beside a task now and then, and fails when the task no longer does its work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    /// An argument vector; status 0 is healthy.
    pub command: Vec<String>,
    /// Milliseconds from the end of one check to the next.
    pub interval_ms: u64,
    /// Milliseconds that one check may take.
    pub timeout_ms: u64,
    /// This many failures in a row end the task.
    pub retries: u32,
    /// Failures in the first so many milliseconds do not count.
    pub start_ms: u64,
}

impl HealthCheck {
    /// Longest of its times: a day.
    pub const TIME_MAX_MS: u64 = 24 * 3_600_000;
    /// Shortest interval and timeout: each check starts a process.
    pub const TIME_MIN_MS: u64 = 100;
    /// Most failures in a row that can be asked for.
    pub const RETRIES_MAX: u32 = 1_000;

    /// As often as is usual for this command.
    #[must_use]
    pub const fn new(command: Vec<String>) -> Self {
        Self { command, interval_ms: 10_000, timeout_ms: 2_000, retries: 3, start_ms: 0 }
    }

    fn check(&self) -> Result<(), Wrong> {
        let times = Self::TIME_MIN_MS..=Self::TIME_MAX_MS;
        if self.command.first().is_none_or(String::is_empty) {
            return Err(("the health check has no command", "write the program and its arguments"));
        }
        if self.command.iter().any(|word| word.contains('\0')) {
            return Err(NUL);
        }
        if !times.contains(&self.interval_ms) || !times.contains(&self.timeout_ms) || self.start_ms > Self::TIME_MAX_MS
        {
            return Err(("a time of the health check is out of bounds", "write from 100ms to 24h"));
        }
        if !(1..=Self::RETRIES_MAX).contains(&self.retries) {
            return Err(("the retries of the health check are out of bounds", "write a number from 1 to 1000"));
        }
        Ok(())
    }
}

/// Where a container's image is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageOf<B> {
    /// An archive as `docker save` writes it, one image in it: it travels over the mesh.
    Archive(B),
    /// `NAME@sha256:…`, which the node's engine has or can pull.
    Digest(String),
}

/// A function of a Python module that the nodes have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PythonCall {
    /// `MODULE:FUNCTION`, such as `tasks.resize:run`.
    pub call: String,
    /// Its keyword arguments.
    pub params: Params,
}

/// Keyword arguments of a function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Params {
    /// A JSON object.
    Json(String),
    /// A CBOR map with texts as keys, in its shortest form: it can hold bytes, numbers of any kind and keys that are no text.
    Cbor(#[serde(with = "serde_bytes")] Vec<u8>),
}

impl Params {
    /// The shortest form of a CBOR map.
    ///
    /// # Errors
    /// What is wrong with it, and what would be right.
    pub fn from_cbor(bytes: &[u8]) -> Result<Self, Wrong> {
        let wrong = ("the parameters are no CBOR map", "encode one map, with the parameters' names as keys");
        let value: ciborium::Value = cbor::from_slice(bytes).map_err(|_| wrong)?;
        let params = Self::Cbor(cbor::to_vec(&value));
        params.names().map(|_| params.clone())
    }

    /// The parameters' names.
    ///
    /// # Errors
    /// What is wrong with the parameters, and what would be right.
    fn names(&self) -> Result<Vec<String>, Wrong> {
        match self {
            Self::Json(text) => {
                let params = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text);
                let params = params.map_err(|_| ("the parameters are no JSON object", "write names and values"))?;
                Ok(params.into_iter().map(|(name, _)| name).collect())
            }
            Self::Cbor(bytes) => {
                let mend = "encode one map, with the parameters' names as keys, in its shortest form";
                let wrong = ("the parameters are no CBOR map", mend);
                let value: ciborium::Value = cbor::from_slice(bytes).map_err(|_| wrong)?;
                if cbor::to_vec(&value) != *bytes {
                    return Err(wrong);
                }
                let entries = value.into_map().map_err(|_| wrong)?;
                entries.into_iter().map(|(name, _)| name.into_text().map_err(|_| wrong)).collect()
            }
        }
    }
}

/// A WebAssembly module for WASI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WasmOf<B> {
    /// The module.
    pub module: B,
    /// Arguments after the program's name.
    pub argv: Vec<String>,
    /// Instructions that it may execute, counted as wasmtime counts fuel; as many as its time allows, when not set.
    pub fuel: Option<u64>,
    /// Whether clocks, random numbers and floating point are to give the same on every node.
    pub deterministic: bool,
}

impl<B> ProgramOf<B> {
    /// The runners that it takes.
    #[must_use]
    pub const fn runner(&self) -> Runners {
        match self {
            Self::Builtin(_) => Runners::NONE,
            Self::Exec(_) => Runners::PROCESS,
            Self::Container(_) => Runners::DOCKER,
            Self::Python(_) => Runners::PYTHON,
            Self::Wasm(_) => Runners::WASM,
        }
    }

    /// The content that it needs besides its files.
    #[must_use]
    pub const fn content(&self) -> Option<&B> {
        match self {
            Self::Container(ContainerOf { image: ImageOf::Archive(content), .. })
            | Self::Wasm(WasmOf { module: content, .. }) => Some(content),
            _ => None,
        }
    }

    /// The same, to change it.
    pub const fn content_mut(&mut self) -> Option<&mut B> {
        match self {
            Self::Container(ContainerOf { image: ImageOf::Archive(content), .. })
            | Self::Wasm(WasmOf { module: content, .. }) => Some(content),
            _ => None,
        }
    }

    /// The same with its content named otherwise.
    ///
    /// # Errors
    /// Whatever `name` says.
    pub fn try_map<C, E>(self, name: impl FnOnce(B) -> Result<C, E>) -> Result<ProgramOf<C>, E> {
        Ok(match self {
            Self::Exec(argv) => ProgramOf::Exec(argv),
            Self::Builtin(builtin) => ProgramOf::Builtin(builtin),
            Self::Python(call) => ProgramOf::Python(call),
            Self::Container(ContainerOf { image, entrypoint, argv, gpus, health }) => {
                let image = match image {
                    ImageOf::Archive(content) => ImageOf::Archive(name(content)?),
                    ImageOf::Digest(digest) => ImageOf::Digest(digest),
                };
                ProgramOf::Container(ContainerOf { image, entrypoint, argv, gpus, health })
            }
            Self::Wasm(WasmOf { module, argv, fuel, deterministic }) => {
                ProgramOf::Wasm(WasmOf { module: name(module)?, argv, fuel, deterministic })
            }
        })
    }

    /// What is wrong with it, whoever made it.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub fn check(&self) -> Result<(), Wrong> {
        let nul = |words: &[String]| words.iter().any(|word| word.contains('\0'));
        match self {
            Self::Exec(argv) if argv.first().is_none_or(String::is_empty) => {
                Err(("the argument vector is empty", "write the program and its arguments"))
            }
            Self::Exec(argv) | Self::Wasm(WasmOf { argv, .. }) if nul(argv) => Err(NUL),
            Self::Container(container) => container.check(),
            Self::Python(call) => call.check(),
            Self::Wasm(WasmOf { fuel: Some(0), .. }) => {
                Err(("no module runs without fuel", "write a number from 1, or leave it out"))
            }
            Self::Exec(_) | Self::Builtin(_) | Self::Wasm(_) => Ok(()),
        }
    }
}

const NUL: Wrong = ("an argument holds a NUL character", "leave the NUL out");

/// Longest image reference: registries take no longer name and digest.
const REFERENCE_LEN_MAX: usize = 512;

impl<B> ContainerOf<B> {
    fn check(&self) -> Result<(), Wrong> {
        if self.entrypoint.iter().flatten().chain(&self.argv).any(|word| word.contains('\0')) {
            return Err(NUL);
        }
        if self.entrypoint.as_ref().is_some_and(|words| words.first().is_none_or(String::is_empty)) {
            return Err(("the entry point is empty", "leave it out for the image's own"));
        }
        if let ImageOf::Digest(reference) = &self.image {
            let hex = reference.split_once("@sha256:").map(|(name, hex)| (name, hex.as_bytes()));
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | ':');
            let lower_hex = |c: &u8| c.is_ascii_digit() || (b'a'..=b'f').contains(c);
            let is_digest = hex.is_some_and(|(name, hex)| {
                !name.is_empty() && name.chars().all(plain) && hex.len() == 64 && hex.iter().all(lower_hex)
            });
            if !is_digest || reference.len() > REFERENCE_LEN_MAX {
                return Err((
                    "not an image by its digest",
                    "write NAME@sha256:… with all 64 digits: a tag may mean another image tomorrow",
                ));
            }
        }
        self.health.as_ref().map_or(Ok(()), |health| health.check())
    }
}

impl PythonCall {
    /// The module and the function.
    #[must_use]
    pub fn parts(&self) -> Option<(&str, &str)> {
        self.call.split_once(':')
    }

    /// What is wrong with it, whoever made it.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub fn check(&self) -> Result<(), Wrong> {
        let name = |text: &str| {
            text.starts_with(|c: char| c.is_alphabetic() || c == '_')
                && text.chars().all(|c| c.is_alphanumeric() || c == '_')
        };
        if !self.parts().is_some_and(|(module, function)| module.split('.').all(name) && name(function)) {
            return Err(("not a call", "write MODULE:FUNCTION, such as tasks.resize:run"));
        }
        if !self.params.names()?.iter().all(|key| name(key)) {
            return Err(("a parameter has a name that is none of Python", "use letters, digits and `_`"));
        }
        Ok(())
    }
}

/// A set of runners.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Runners(u8);

impl Runners {
    /// No runner: what is built in needs none.
    pub const NONE: Self = Self(0);
    /// Programs as processes.
    pub const PROCESS: Self = Self(1);
    /// Containers.
    pub const DOCKER: Self = Self(2);
    /// Python functions.
    pub const PYTHON: Self = Self(4);
    /// WebAssembly.
    pub const WASM: Self = Self(8);
    /// Hosts outside for programs whose jobs name them ([`crate::network`]): no runner, but like one it is there or not.
    pub const NETWORK: Self = Self(16);

    const NAMES: [(Self, &'static str); 5] = [
        (Self::PROCESS, "process"),
        (Self::DOCKER, "docker"),
        (Self::PYTHON, "python"),
        (Self::WASM, "wasm"),
        (Self::NETWORK, "network"),
    ];

    /// Whether every runner of `other` is in `self`.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets together.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The names of its runners.
    #[must_use]
    pub fn names(self) -> BTreeSet<&'static str> {
        Self::NAMES.iter().filter(|(r, _)| self.contains(*r)).map(|(_, n)| *n).collect()
    }
}

impl fmt::Display for Runners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = Self::NAMES.iter().filter(|(r, _)| self.contains(*r)).map(|(_, n)| *n).collect();
        f.write_str(&names.join(","))
    }
}

impl fmt::Debug for Runners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Runners({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(reference: &str) -> Program {
        let image = ImageOf::Digest(reference.to_owned());
        ProgramOf::Container(Container { image, entrypoint: None, argv: Vec::new(), gpus: 0, health: None })
    }

    fn python(call: &str, params: &str) -> Program {
        ProgramOf::Python(PythonCall { call: call.to_owned(), params: Params::Json(params.to_owned()) })
    }

    #[test]
    fn an_image_is_named_by_its_digest() {
        let hex = "0123456789abcdef".repeat(4);
        assert_eq!(image(&format!("registry.example:5000/a/b@sha256:{hex}")).check(), Ok(()));
        for wrong in ["busybox", "busybox:1.36", "busybox@sha256:12", "@sha256:", "a b@sha256:"] {
            let wrong = if wrong.ends_with(':') { format!("{wrong}{hex}") } else { wrong.to_owned() };
            assert!(image(&wrong).check().is_err_and(|(_, mend)| mend.contains("64")), "{wrong}");
        }
        assert!(image(&format!("a@sha256:{}", hex.to_uppercase())).check().is_err());
    }

    #[test]
    fn a_call_names_module_and_function_and_its_parameters_are_an_object() {
        assert_eq!(python("tasks.resize:run", r#"{"width": 3}"#).check(), Ok(()));
        for wrong in ["tasks", "tasks:", ":run", "tasks.:run", "os;x:run", "a:b:c", "1a:run"] {
            assert!(python(wrong, "{}").check().is_err_and(|(_, mend)| mend.contains("MODULE")), "{wrong}");
        }
        for wrong in ["", "[]", "3", "{", r#"{"a b": 1}"#] {
            assert!(python("a:b", wrong).check().is_err(), "{wrong}");
        }
    }

    #[test]
    fn parameters_in_cbor_are_one_map_in_its_shortest_form() {
        let call = |bytes: &[u8]| PythonCall { call: "a:b".to_owned(), params: Params::Cbor(bytes.to_vec()) };
        // {"n": 1}
        let good = [0xa1, 0x61, b'n', 0x01];
        assert_eq!((call(&good).check(), Params::from_cbor(&good)), (Ok(()), Ok(call(&good).params)));
        // The same in more bytes, and without a length.
        for longer in [&[0xa1, 0x61, b'n', 0x18, 0x01][..], &[0xbf, 0x61, b'n', 0x01, 0xff]] {
            assert!(call(longer).check().is_err());
            assert_eq!(Params::from_cbor(longer), Ok(call(&good).params));
        }
        // An end too early, bytes after it, a list, a number as a name, a name that is none, nested without end.
        let deep = [&[0xa1, 0x61, b'n'][..], &[0x81; 100], &[0x01]].concat();
        for wrong in [&good[..3], &[0xa1, 0x61, b'n', 1, 1], &[0x80], &[0xa1, 1, 1], &[0xa1, 0x61, b'-', 1], &deep] {
            assert!(call(wrong).check().is_err(), "{wrong:x?}");
        }
        assert!(Params::from_cbor(&[0x80]).is_err() && Params::from_cbor(&deep).is_err());
    }

    #[test]
    fn sets_of_runners() {
        let set = Runners::PROCESS.union(Runners::WASM);
        assert!(set.contains(Runners::WASM) && !set.contains(Runners::DOCKER) && set.contains(Runners::NONE));
        assert_eq!((set.to_string(), set.names().len()), ("process,wasm".to_owned(), 2));
    }
}
