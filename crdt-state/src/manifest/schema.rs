//! The manifest as a JSON Schema, for editors and other tools. What a key means is read from its row in `docs/manifest.md`.

use serde_json::{Map, Value, json};

use super::check::{COPIES, NAME_LEN_MAX, PARTITIONS, TASKS};
use super::fields::TABLES;
use crate::program::HealthCheck;
use crate::secret::{NAME_LEN_MAX as SECRET_NAME_LEN_MAX, SECRETS_MAX};
use crate::submit_key::SUBMIT_KEY_LEN_MAX;
use crate::volume::VOLUMES_MAX;

const PAGE: &str = include_str!("../../../docs/manifest.md");

/// The schema, of JSON Schema 2020-12. It says what form a manifest has; `sinew submit` checks more.
#[must_use]
pub fn schema() -> Value {
    let program = json!({ "anyOf": [{ "$ref": "#/$defs/command" }, { "$ref": "#/$defs/program" }] });
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Sinew job manifest",
        "type": "object",
        "additionalProperties": false,
        "required": ["type"],
        "properties": table("", |key| match key {
            "name" => json!({ "type": "string", "minLength": 1, "maxLength": NAME_LEN_MAX }),
            "key" => json!({ "type": "string", "minLength": 1, "maxLength": SUBMIT_KEY_LEN_MAX }),
            "type" => json!({ "enum": ["batch", "map_reduce"] }),
            "cpus" => json!({ "anyOf": [{ "type": "number", "minimum": 0.001 }, { "type": "string" }] }),
            "memory" | "disk" => reference("size"),
            "strategy" => json!({ "enum": ["binpack", "spread"] }),
            "copies" => count(*COPIES.start(), *COPIES.end()),
            "labels" | "env" => json!({ "type": "object", "additionalProperties": { "type": "string" } }),
            "network" => json!({ "anyOf": [
                { "const": "none" },
                { "type": "array", "items": { "type": "string", "minLength": 1 }, "minItems": 1 },
            ] }),
            "secrets" => json!({ "type": "array", "items": reference("secret"), "maxItems": SECRETS_MAX }),
            other => reference(other),
        }),
        "allOf": [needs("batch", "map_reduce"), needs("map_reduce", "batch")],
        "$defs": {
            "size": { "anyOf": [
                { "type": "integer", "minimum": 0 },
                { "type": "string", "pattern": "^[0-9]+(\\.[0-9]+)? ?([kMGT]?B|[KMGT]iB)$" },
            ] },
            "duration": { "type": "string", "pattern": "^[0-9]+(\\.[0-9]+)? ?(ms|s|m|h|d)$" },
            "texts": { "type": "array", "items": { "type": "string" } },
            "command": { "anyOf": [
                { "type": "string", "minLength": 1 },
                { "type": "array", "items": { "type": "string" }, "minItems": 1 },
            ] },
            "limits": object("limits", &[], |key| reference(if key == "timeout" { "duration" } else { "size" })),
            "retry": object("retry", &[], |key| match key {
                "attempts" => count(0, u32::MAX),
                _ => reference("duration"),
            }),
            "secret": with(object("secrets", &["name"], |_| json!({
                "type": "string", "minLength": 1, "maxLength": SECRET_NAME_LEN_MAX,
            })), "oneOf", &one_of(&["env", "file"])),
            "volumes": {
                "type": "array",
                "maxItems": VOLUMES_MAX,
                "items": object("volumes", &["name", "path"], |key| match key {
                    "name" => json!({ "type": "string", "pattern": "^[a-z][a-z0-9_]{0,31}$" }),
                    "path" => json!({ "type": "string", "pattern": "^/." }),
                    _ => json!({ "type": "boolean" }),
                }),
            },
            "batch": with(object("batch", &[], |key| match key {
                "tasks" => count(*TASKS.start(), *TASKS.end()),
                "inputs" => json!({ "type": "array", "items": reference("input") }),
                "outputs" => reference("texts"),
                "gather" => json!({ "type": "array", "items": { "type": "string" }, "minItems": 1 }),
                other => reference(other),
            }), "oneOf", &one_of(&["command", "docker", "python", "wasm"])),
            "map_reduce": object("map_reduce", &["inputs", "map", "reduce"], |key| match key {
                "inputs" => json!({ "type": "array", "items": { "type": "string", "minLength": 1 }, "minItems": 1 }),
                "split" => json!({ "type": "string", "pattern": "^(files|lines:[0-9]+|bytes:.+)$" }),
                "partitions" => count(*PARTITIONS.start(), *PARTITIONS.end()),
                "files" => json!({ "type": "array", "items": reference("input") }),
                _ => program.clone(),
            }),
            "program": with(object("program", &[], reference), "oneOf", &one_of(&["docker", "python", "wasm"])),
            "docker": with(object("docker", &[], |key| match key {
                "image" => json!({ "type": "string", "pattern": "@sha256:[0-9a-f]{64}$" }),
                "archive" => json!({ "type": "string", "minLength": 1 }),
                "gpus" => count(0, 1_024),
                "health" => reference("health"),
                _ => reference("texts"),
            }), "oneOf", &one_of(&["image", "archive"])),
            "health": object("health", &["command"], |key| match key {
                "command" => reference("texts"),
                "retries" => count(1, HealthCheck::RETRIES_MAX),
                _ => reference("duration"),
            }),
            "python": object("python", &["call"], |key| match key {
                "call" => json!({ "type": "string", "pattern": "^[^:]+:[^:]+$" }),
                "params_cbor" => json!({ "type": "string", "contentEncoding": "base64" }),
                _ => json!({ "type": "object" }),
            }),
            "wasm": object("wasm", &["module"], |key| match key {
                "module" => json!({ "type": "string", "minLength": 1 }),
                "fuel" => json!({ "type": "integer", "minimum": 1 }),
                "deterministic" => json!({ "type": "boolean" }),
                _ => reference("texts"),
            }),
            "input": { "anyOf": [{ "type": "string", "minLength": 1 }, input()] },
        },
    })
}

/// A table of an input file: exactly one content, and what belongs to it.
fn input() -> Value {
    let table = object("[]", &[], |key| match key {
        "size" | "size_max" => reference("size"),
        "executable" => json!({ "type": "boolean" }),
        "url" => json!({ "type": "string", "pattern": "^(https?|s3|az|gs|file)://" }),
        "git" | "endpoint" => json!({ "type": "string", "pattern": "^https?://" }),
        "hash" => json!({ "type": "string", "pattern": "^((sha256|blake3):[0-9a-fA-F]{64}|blake3:[a-z2-7]{52})$" }),
        "revision" => json!({ "type": "string", "pattern": "^([0-9a-f]{40}|[0-9a-f]{64})$" }),
        _ => json!({ "type": "string" }),
    });
    let goes_with = json!({
        "inline": ["to"], "blob": ["to", "size"], "url": ["to", "hash"], "git": ["to", "revision"],
    });
    let one = one_of(&["path", "inline", "blob", "url", "git"]);
    with(with(table, "oneOf", &one), "dependentRequired", &goes_with)
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/$defs/{name}") })
}

fn count(low: u32, high: u32) -> Value {
    json!({ "type": "integer", "minimum": low, "maximum": high })
}

/// Exactly one of `keys` is there.
fn one_of(keys: &[&str]) -> Value {
    keys.iter().map(|key| json!({ "required": [key] })).collect()
}

/// With `type = "KIND"` there is a table of that name, and not the other.
fn needs(kind: &str, other: &str) -> Value {
    json!({
        "if": { "properties": { "type": { "const": kind } }, "required": ["type"] },
        "then": { "required": [kind], "not": { "required": [other] } },
    })
}

fn with(mut object: Value, key: &str, value: &Value) -> Value {
    object[key] = value.clone();
    object
}

fn object(name: &str, required: &[&str], of_key: impl Fn(&str) -> Value) -> Value {
    let mut object = json!({ "type": "object", "additionalProperties": false, "properties": table(name, of_key) });
    if !required.is_empty() {
        object["required"] = json!(required);
    }
    object
}

/// The keys of a table as [`TABLES`] has them, each with its meaning.
fn table(name: &str, of_key: impl Fn(&str) -> Value) -> Value {
    let keys = TABLES.iter().find(|(table, _)| *table == name).map_or(&[][..], |(_, keys)| keys);
    let described = keys.iter().map(|key| {
        let path = match name {
            "" | "[]" => (*key).to_owned(),
            "program" => format!("batch.{key}"),
            name => format!("{name}.{key}"),
        };
        let mut value = of_key(key);
        if let Some(meaning) = meaning(&path) {
            value["description"] = meaning.into();
        }
        ((*key).to_owned(), value)
    });
    Value::Object(described.collect::<Map<_, _>>())
}

/// The last cell of the row that begins with `path`.
fn meaning(path: &str) -> Option<String> {
    let row = PAGE.lines().find(|line| line.starts_with(&format!("| `{path}` | ")))?;
    let cell = row.trim_end_matches(['|', ' ']).rsplit(" | ").next()?;
    Some(cell.replace('`', ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn validator() -> jsonschema::Validator {
        jsonschema::options().with_draft(jsonschema::Draft::Draft202012).build(&schema()).expect("a schema")
    }

    fn json_of(text: &str) -> Value {
        toml::from_str(text).expect("toml")
    }

    #[test]
    fn the_documented_manifests_are_valid() {
        let validator = validator();
        let mut seen = 0;
        for block in PAGE.split("\n```").skip(1).step_by(2) {
            let (language, text) = block.split_once('\n').expect("lines");
            let manifest: Value = match language {
                "toml" => json_of(text),
                "json" => serde_json::from_str(text).expect("json"),
                "yaml" => serde_saphyr::from_str(text).expect("yaml"),
                _ => continue,
            };
            let errors: Vec<String> = validator.iter_errors(&manifest).map(|e| e.to_string()).collect();
            assert!(errors.is_empty(), "{errors:?}\n{text}");
            seen += 1;
        }
        assert!(seen >= 8, "{seen}");
    }

    #[test]
    fn what_is_no_manifest_is_not_valid() {
        let validator = validator();
        let good = "type = \"batch\"\n[batch]\ncommand = \"a\"\n";
        assert!(validator.is_valid(&json_of(good)));
        for (from, to) in [
            ("type = \"batch\"\n", ""),
            ("\"batch\"", "\"service\""),
            ("command", "comand"),
            ("[batch]", "copies = 3\n[batch]"),
            ("[batch]", "memory = \"12 apples\"\n[batch]"),
            ("[batch]", "network = \"all\"\n[batch]"),
            ("[batch]", "network = []\n[batch]"),
            ("[batch]", "[[volumes]]\nname = \"v\"\n[batch]"),
            ("[batch]", "[[volumes]]\nname = \"V\"\npath = \"/v\"\n[batch]"),
            ("[batch]", "limits.timeout = 30\n[batch]"),
            ("[batch]", "map_reduce.inputs = [\"x\"]\n[batch]"),
            ("command = \"a\"", "command = []"),
            ("command = \"a\"", "command = \"a\"\nwasm.module = \"m\""),
            ("command = \"a\"", "tasks = 2"),
            ("command = \"a\"", "docker.image = \"busybox\""),
            ("command = \"a\"", "docker.archive = \"a\"\ndocker.image = \"b\""),
            ("command = \"a\"", "wasm.module = \"m\"\nwasm.fuel = 0"),
            ("command = \"a\"", "command = \"a\"\ninputs = [{ inline = \"x\" }]"),
            ("command = \"a\"", "command = \"a\"\ninputs = [{ url = \"ftp://x\", to = \"y\" }]"),
            ("[batch]", "secrets = [{ name = \"a\" }]\n[batch]"),
            ("[batch]", "secrets = [{ name = \"a\", env = \"A\", file = \"a\" }]\n[batch]"),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good);
            assert!(!validator.is_valid(&json_of(&bad)), "{bad}");
            assert!(super::super::parse(bad.as_bytes(), None).is_err(), "the reader agrees: {bad}");
        }
    }

    #[test]
    fn every_key_is_described() {
        fn walk(value: &Value, path: &str, missing: &mut Vec<String>) {
            let Value::Object(object) = value else { return };
            if let Some(Value::Object(properties)) = object.get("properties").filter(|_| !path.ends_with("/if")) {
                let plain = properties.iter().filter(|(_, of)| of.get("description").is_none());
                missing.extend(plain.map(|(key, _)| format!("{path}/{key}")));
            }
            object.iter().for_each(|(key, value)| walk(value, &format!("{path}/{key}"), missing));
        }
        let mut missing = Vec::new();
        walk(&schema(), "", &mut missing);
        missing.retain(|path| !path.contains("/allOf"));
        assert!(missing.is_empty(), "{missing:?}");
        assert_eq!(
            schema()["properties"]["copies"]["description"],
            "Nodes that must hold each output before its task counts as finished: 1 or 2."
        );
    }
}
