//! The generic value that all three formats parse into, bounded in depth and in number of values.
//!
//! A table keeps its keys in order and keeps duplicates, so that the reader can name them.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::problem::quoted;

/// Deepest nesting. A manifest needs four; the rest is room for a message about the wrong key instead of this limit.
pub(super) const DEPTH_MAX: usize = 16;
/// Most values. One for every five bytes of the longest manifest: only YAML aliases make more.
pub(super) const NODES_MAX: usize = 200_000;
/// How the `toml` crate passes a date to a generic visitor: as a table with this one key.
const TOML_DATE_KEY: &str = "$__toml_private_datetime";

/// A value of any format.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    /// JSON's and YAML's null.
    Null,
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Int(i128),
    /// A number with a point or an exponent.
    Float(f64),
    /// Text.
    Text(String),
    /// TOML's dates and times, which no key of ours takes.
    Date(String),
    /// A list.
    List(Vec<Self>),
    /// A table, in order, duplicates included.
    Table(Vec<(String, Self)>),
}

impl Node {
    /// What it is, for a message.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::Int(value) => value.to_string(),
            Self::Float(value) => value.to_string(),
            Self::Text(text) => quoted(text),
            Self::Date(text) => format!("the date {text}"),
            Self::List(items) => format!("a list of {}", items.len()),
            Self::Table(_) => "a table".to_owned(),
        }
    }
}

/// Builds one [`Node`], and the nodes under it, within the limits.
#[derive(Clone, Copy)]
pub(super) struct Seed<'a> {
    depth: usize,
    left: &'a Cell<usize>,
}

impl<'a> Seed<'a> {
    /// The seed of a document's root; `left` starts at [`NODES_MAX`].
    pub(super) const fn root(left: &'a Cell<usize>) -> Self {
        Self { depth: 0, left }
    }

    fn below<E: Error>(self) -> Result<Self, E> {
        if self.depth == DEPTH_MAX {
            return Err(E::custom(format_args!("nested more than {DEPTH_MAX} deep; a manifest needs four")));
        }
        Ok(Self { depth: self.depth + 1, left: self.left })
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        let left = self.left.get().checked_sub(1);
        self.left.set(left.ok_or_else(|| D::Error::custom(format_args!("more than {NODES_MAX} values")))?);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of a manifest")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Int(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Int(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Float(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.to_owned()))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Node, E> {
        Ok(Node::Text(value))
    }

    fn visit_unit<E: Error>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let below = self.below()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(below)? {
            list.push(item);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let below = self.below()?;
        let mut table = Vec::new();
        while let Some(key) = entries.next_key::<String>()? {
            table.push((key, entries.next_value_seed(below)?));
        }
        match table.as_mut_slice() {
            [(key, Node::Text(date))] if key == TOML_DATE_KEY => Ok(Node::Date(std::mem::take(date))),
            _ => Ok(Node::Table(table)),
        }
    }
}
