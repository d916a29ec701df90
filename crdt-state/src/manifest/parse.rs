//! Text to tree: the three formats, their limits, and syntax errors with line and column. Knows no key of the manifest.

use std::cell::Cell;
use std::fmt;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeSeed;

use super::tree::{DEPTH_MAX, NODES_MAX, Node, Seed};

/// A format of manifests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// `.toml`
    Toml,
    /// `.yaml`, `.yml`
    Yaml,
    /// `.json`
    Json,
}

impl Format {
    /// The format that a file's extension says, if it says one.
    #[must_use]
    pub fn of_path(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "toml" => Some(Self::Toml),
            "yaml" | "yml" => Some(Self::Yaml),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Toml => "TOML",
            Self::Yaml => "YAML",
            Self::Json => "JSON",
        })
    }
}

/// A text that is not what its format asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("not valid {format}{}: {message}", at(*.line, *.column))]
pub struct SyntaxError {
    /// What it was read as.
    pub format: Format,
    /// From 1, when known.
    pub line: Option<usize>,
    /// From 1, in characters, when known.
    pub column: Option<usize>,
    /// What the parser says.
    pub message: String,
}

fn at(line: Option<usize>, column: Option<usize>) -> String {
    match (line, column) {
        (Some(line), Some(column)) => format!(" at line {line}, column {column}"),
        _ => String::new(),
    }
}

/// One line for each format tried.
pub(super) fn join(errors: &[SyntaxError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Parses `text` as `format`.
pub(super) fn parse_as(text: &str, format: Format) -> Result<Node, SyntaxError> {
    let left = Cell::new(NODES_MAX);
    let seed = Seed::root(&left);
    match format {
        Format::Toml => parse_toml(text, seed),
        Format::Yaml => parse_yaml(text, seed),
        Format::Json => parse_json(text, seed),
    }
}

/// Parses `text` as whichever format takes it.
///
/// Nearly every text is some YAML (`type = "batch` is a YAML string), so that YAML comes last and must yield a table; and
/// JSON is asked only about texts that begin as its tables do, which TOML never does.
pub(super) fn parse_any(text: &str) -> Result<Node, Vec<SyntaxError>> {
    let first = if text.trim_start().starts_with('{') { Format::Json } else { Format::Toml };
    let error = match parse_as(text, first) {
        Ok(tree) => return Ok(tree),
        Err(error) => error,
    };
    match parse_as(text, Format::Yaml) {
        Ok(tree @ Node::Table(_)) => Ok(tree),
        Ok(_) => Err(vec![error]),
        Err(yaml) => Err(vec![error, yaml]),
    }
}

fn parse_toml(text: &str, seed: Seed<'_>) -> Result<Node, SyntaxError> {
    toml::Deserializer::parse(text).and_then(|parser| seed.deserialize(parser)).map_err(|error| {
        let place = error.span().map(|span| line_and_column(text, span.start));
        let (line, column) = place.unzip();
        SyntaxError { format: Format::Toml, line, column, message: one_line(error.message()) }
    })
}

fn parse_json(text: &str, seed: Seed<'_>) -> Result<Node, SyntaxError> {
    let mut parser = serde_json::Deserializer::from_str(text);
    let tree = seed.deserialize(&mut parser).and_then(|tree| parser.end().map(|()| tree));
    tree.map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let message = error.to_string();
        let message = message.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&message);
        // serde_json says line 0 when it has no place.
        let known = line > 0;
        SyntaxError {
            format: Format::Json,
            line: known.then_some(line),
            column: known.then_some(column),
            message: one_line(message),
        }
    })
}

fn parse_yaml(text: &str, seed: Seed<'_>) -> Result<Node, SyntaxError> {
    let options = serde_saphyr::options! {
        // Our own depth and count limits speak first; these bound what aliases make the parser itself do.
        budget: serde_saphyr::budget! {
            max_depth: DEPTH_MAX * 2,
            flow_nesting_limit: DEPTH_MAX * 2,
            max_nodes: NODES_MAX,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: NODES_MAX },
        // `no` is a country and `on` is a word.
        strict_booleans: true,
        // A tag we would drop is a wish we would not grant.
        reject_unsupported_tags: true,
        emit_comments: false,
        with_snippet: false,
    };
    let parsed =
        serde_saphyr::with_deserializer_from_str_with_options(text, options, |parser| seed.deserialize(parser));
    parsed.map_err(|error| {
        let place = error.location().filter(|place| place.line() > 0);
        let number = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let message = error.render_with_formatter(&serde_saphyr::UserMessageFormatter);
        let (line, column) = place.map(|place| (number(place.line()), number(place.column()))).unzip();
        // Its text ends with the place, which we say ourselves.
        let message = message.split(" at line ").next().unwrap_or(&message);
        SyntaxError { format: Format::Yaml, line, column, message: one_line(message) }
    })
}

/// A parser's message on one line, without control characters of the text it may quote, and not endless.
fn one_line(message: &str) -> String {
    // Four lines of a terminal: every message of the three parsers fits, a quoted megabyte does not.
    const MESSAGE_LEN_MAX: usize = 320;
    message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MESSAGE_LEN_MAX).collect()
}

/// Line and column, from 1, of the character at byte `offset`.
fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before: String = text.char_indices().take_while(|(at, _)| *at < offset).map(|(_, c)| c).collect();
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}
