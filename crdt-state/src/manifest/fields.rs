//! A cursor over the tree that turns nodes into typed values and notes each one that is not what it should be.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::check::{join, out_of_range};
use super::problem::{Problem, quoted};
use super::suggest::closest;
use super::tree::Node;
use super::units::{UnitError, parse_cpus, parse_duration, parse_size};

/// Every table of the manifest with its keys: the one place that says which keys exist. `""` is the top, `[]` an input file.
pub(super) const TABLES: [(&str, &[&str]); 13] = [
    (
        "",
        &[
            "name",
            "key",
            "type",
            "cpus",
            "memory",
            "disk",
            "strategy",
            "copies",
            "labels",
            "limits",
            "retry",
            "env",
            "network",
            "secrets",
            "volumes",
            "batch",
            "map_reduce",
        ],
    ),
    ("limits", &["timeout", "output_max"]),
    ("retry", &["attempts", "delay"]),
    ("secrets", &["name", "env", "file"]),
    ("volumes", &["name", "path", "read_only"]),
    ("batch", &["command", "docker", "python", "wasm", "tasks", "inputs", "gather", "outputs"]),
    ("map_reduce", &["inputs", "split", "map", "combine", "reduce", "partitions", "files"]),
    ("program", &["docker", "python", "wasm"]),
    ("docker", &["image", "archive", "entrypoint", "args", "gpus", "health"]),
    ("health", &["command", "interval", "timeout", "retries", "start"]),
    ("python", &["call", "params", "params_cbor"]),
    ("wasm", &["module", "args", "fuel", "deterministic"]),
    (
        "[]",
        &[
            "path",
            "inline",
            "blob",
            "url",
            "git",
            "size",
            "hash",
            "size_max",
            "endpoint",
            "region",
            "account",
            "credentials",
            "revision",
            "subdir",
            "token",
            "to",
            "executable",
        ],
    ),
];

/// The keys of the table named `name` in [`TABLES`].
fn keys_of(name: &str) -> &'static [&'static str] {
    TABLES.iter().find(|(table, _)| *table == name).map_or(&[], |(_, keys)| keys)
}

/// A node and where it is.
#[derive(Clone)]
pub(super) struct Item<'n> {
    /// Its path.
    pub(super) path: String,
    /// What is there.
    pub(super) node: &'n Node,
}

/// A table whose keys are all accounted for.
pub(super) struct Fields<'n> {
    path: String,
    values: BTreeMap<&'n str, &'n Node>,
    /// Known keys that an unknown one seems to have meant: those are not missing as well.
    meant: Vec<&'static str>,
}

impl<'n> Fields<'n> {
    /// The table at `item`, which [`TABLES`] knows as `name`; unknown and repeated keys are noted.
    pub(super) fn open(item: &Item<'n>, name: &str, out: &mut Vec<Problem>) -> Option<Self> {
        let entries = item.table(out)?;
        let known = keys_of(name);
        let mut fields = Self { path: item.path.clone(), values: BTreeMap::new(), meant: Vec::new() };
        for (key, node) in entries {
            if known.contains(&key) {
                fields.values.insert(key, node);
                continue;
            }
            let (mend, meant) = mend_unknown(key, name, known);
            fields.meant.extend(meant);
            out.push(Problem::new(join(&item.path, key), None, "unknown key", mend));
        }
        Some(fields)
    }

    /// The value of `key`, if it has one; null is none.
    pub(super) fn get(&self, key: &str) -> Option<Item<'n>> {
        let node = self.values.get(key).filter(|node| ***node != Node::Null)?;
        Some(Item { path: join(&self.path, key), node })
    }

    /// The value of `key`, which must have one.
    pub(super) fn require(&self, key: &str, mend: &str, out: &mut Vec<Problem>) -> Option<Item<'n>> {
        let item = self.get(key);
        if item.is_none() && !self.meant.contains(&key) {
            out.push(Problem::new(join(&self.path, key), None, "missing", mend));
        }
        item
    }
}

/// What to do about an unknown `key` of table `name`, and the known key it stands for, if one is likely.
fn mend_unknown(key: &str, name: &str, known: &'static [&'static str]) -> (String, Option<&'static str>) {
    let elsewhere =
        TABLES.iter().find(|(table, keys)| !matches!(*table, "[]") && *table != name && keys.contains(&key));
    if let Some(meant) = closest(key, known.iter().copied()) {
        return (format!("did you mean `{meant}`?"), Some(meant));
    }
    if let Some((table, _)) = elsewhere {
        let place = if table.is_empty() { "the top of the manifest".to_owned() } else { format!("`[{table}]`") };
        return (format!("it belongs in {place}"), None);
    }
    (format!("use one of {}", known.join(", ")), None)
}

impl<'n> Item<'n> {
    fn wrong(&self, problem: &str, mend: impl Into<String>, out: &mut Vec<Problem>) {
        out.push(Problem::new(&self.path, self.node.describe(), problem, mend));
    }

    /// The entries of a table, each key once; repeated ones are noted and the first is kept.
    pub(super) fn table(&self, out: &mut Vec<Problem>) -> Option<Vec<(&'n str, &'n Node)>> {
        let Node::Table(entries) = self.node else {
            self.wrong("not a table", "write keys and values here", out);
            return None;
        };
        let mut seen: BTreeMap<&str, bool> = BTreeMap::new();
        let mut once = Vec::with_capacity(entries.len());
        for (key, node) in entries {
            match seen.get_mut(key.as_str()) {
                None => {
                    seen.insert(key, false);
                    once.push((key.as_str(), node));
                }
                Some(noted) if !*noted => {
                    *noted = true;
                    out.push(Problem::new(
                        join(&self.path, key),
                        None,
                        "this key is there twice",
                        "leave one of them out",
                    ));
                }
                Some(_) => {}
            }
        }
        Some(once)
    }

    /// A table of texts. An entry that is none is noted and kept empty, so that its key is checked too.
    pub(super) fn text_table(&self, out: &mut Vec<Problem>) -> BTreeMap<String, String> {
        let entries = self.table(out).unwrap_or_default();
        let read = |(key, node): (&str, &'n Node)| {
            let text = Item { path: join(&self.path, key), node }.text(out).unwrap_or_default();
            (key.to_owned(), text.to_owned())
        };
        entries.into_iter().map(read).collect()
    }

    /// The items of a list.
    pub(super) fn list(&self, out: &mut Vec<Problem>) -> Vec<Self> {
        let Node::List(items) = self.node else {
            self.wrong("not a list", "put it in brackets, such as [\"a.txt\"]", out);
            return Vec::new();
        };
        items.iter().enumerate().map(|(i, node)| Item { path: format!("{}[{i}]", self.path), node }).collect()
    }

    /// The texts of a list. One that is none is noted and replaced by another, so that the others keep their numbers.
    pub(super) fn texts(&self, out: &mut Vec<Problem>) -> Vec<String> {
        let items = self.list(out).into_iter().enumerate();
        items.map(|(i, item)| item.text(out).map_or_else(|| stand_in(i), str::to_owned)).collect()
    }

    /// A text.
    pub(super) fn text(&self, out: &mut Vec<Problem>) -> Option<&'n str> {
        match self.node {
            Node::Text(text) => return Some(text),
            // Never suggest the text: 1.10 would come back as 1.1.
            Node::Int(_) | Node::Float(_) | Node::Bool(_) => self.wrong("not text", "put quotes around it", out),
            _ => self.wrong("not text", "write text in quotes", out),
        }
        None
    }

    /// A truth value.
    pub(super) fn flag(&self, out: &mut Vec<Problem>) -> Option<bool> {
        let Node::Bool(value) = self.node else {
            self.wrong("neither true nor false", "write true or false, without quotes", out);
            return None;
        };
        Some(*value)
    }

    /// A whole number in `range`.
    pub(super) fn count(&self, range: &RangeInclusive<u32>, out: &mut Vec<Problem>) -> Option<u32> {
        let Node::Int(value) = self.node else {
            let mend = format!("write a whole number from {} to {}, without quotes", range.start(), range.end());
            self.wrong("not a whole number", mend, out);
            return None;
        };
        let count = u32::try_from(*value).ok().filter(|count| range.contains(count));
        if count.is_none() {
            out.push(out_of_range(&self.path, value, range));
        }
        count
    }

    /// A size in bytes: a number of them, or text with a unit.
    pub(super) fn size(&self, out: &mut Vec<Problem>) -> Option<u64> {
        self.unit(&self.number_or_text(), parse_size, out)
    }

    /// A duration in milliseconds: text with a unit.
    pub(super) fn duration(&self, out: &mut Vec<Problem>) -> Option<u64> {
        self.unit(&self.number_or_text(), parse_duration, out)
    }

    /// Thousandths of a core: a number of cores, also as text.
    pub(super) fn cpus(&self, out: &mut Vec<Problem>) -> Option<u32> {
        self.unit(&self.number_or_text(), parse_cpus, out)
    }

    /// What a parser of units makes of `text`.
    pub(super) fn unit<T>(
        &self,
        text: &str,
        parse: impl Fn(&str) -> Result<T, UnitError>,
        out: &mut Vec<Problem>,
    ) -> Option<T> {
        let noted = |error: UnitError| self.wrong(&error.fault.to_string(), error.quantity.mend(), out);
        parse(text).map_err(noted).ok()
    }

    /// A number as it would be written, or the text; anything else as its description, which no unit parser takes.
    fn number_or_text(&self) -> String {
        match self.node {
            Node::Text(text) => text.clone(),
            other => other.describe(),
        }
    }

    /// The one of `words` that the text is.
    pub(super) fn choice<T: Copy>(&self, words: &[(&'static str, T)], out: &mut Vec<Problem>) -> Option<T> {
        let text = self.text(out)?;
        let found = words.iter().find(|(word, _)| *word == text);
        if found.is_none() {
            let names = || words.iter().map(|(word, _)| *word);
            let mend = closest(text, names()).map_or_else(
                || format!("write one of {}", names().collect::<Vec<_>>().join(", ")),
                |word| format!("did you mean \"{word}\"?"),
            );
            out.push(Problem::new(&self.path, quoted(text), "not one of the choices", mend));
        }
        found.map(|(_, value)| *value)
    }
}

/// Puts problems in the order in which the page lists their keys; those of one key stay as they are.
pub(super) fn sort(problems: &mut [Problem]) {
    let rank = |table: &str, key: &str| keys_of(table).iter().position(|known| *known == key).unwrap_or(usize::MAX);
    problems.sort_by_cached_key(|problem| {
        let mut parts = problem.path.split(['.', '[']);
        let (table, key) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let item =
            parts.next().and_then(|number| number.strip_suffix(']')).and_then(|number| number.parse::<usize>().ok());
        (!table.is_empty(), rank("", table), rank(table, key), item)
    });
}

/// A value for a place whose own is wrong: valid and unlike its neighbours, so that it causes no problem of its own.
pub(super) fn stand_in(i: usize) -> String {
    format!("stand-in-{i}")
}
