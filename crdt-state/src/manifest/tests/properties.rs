//! Properties: units read back, and nothing anyone sends makes the reader panic.

use proptest::prelude::*;

use crate::manifest::fields::TABLES;
use crate::manifest::units::{
    format_cpus, format_duration, format_size, parse_cpus, parse_duration, parse_size, parse_split,
};
use crate::manifest::{ManifestError, parse};

use super::{FORMATS, PAGE};

fn key() -> impl Strategy<Value = String> {
    let known: Vec<String> = TABLES.iter().flat_map(|(_, keys)| keys.iter().map(|k| (*k).to_owned())).collect();
    prop_oneof![4 => prop::sample::select(known), 1 => ".{0,8}"]
}

fn tree() -> impl Strategy<Value = serde_json::Value> {
    let words = ["batch", "map_reduce", "1GiB", "30s", "lines:3", "sinew:sum", "../x", "a", "99999999999999999999999d"];
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        prop::sample::select(words.to_vec()).prop_map(Into::into),
        ".{0,12}".prop_map(Into::into),
    ];
    leaf.prop_recursive(5, 60, 8, |inner| {
        prop_oneof![
            1 => prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
            3 => prop::collection::btree_map(key(), inner, 0..8)
                .prop_map(|entries| serde_json::Value::Object(entries.into_iter().collect())),
        ]
    })
}

/// Never panics, and every refusal has words and is JSON.
fn survives(bytes: &[u8]) {
    for format in FORMATS {
        match parse(bytes, format) {
            Ok(draft) => assert_eq!(draft.check(), Ok(())),
            Err(error) => {
                assert!(!error.to_string().is_empty());
                if let ManifestError::Invalid { problems } = &error {
                    assert!(!problems.0.is_empty());
                }
                serde_json::to_string(&error).expect("errors are plain data");
            }
        }
    }
}

proptest! {
    #[test]
    fn sizes_read_back(bytes: u64) {
        prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        prop_assert_eq!(parse_size(&bytes.to_string()), Ok(bytes));
    }

    #[test]
    fn round_sizes_read_back(count in 0_u64..1 << 20, shift in 0_u32..44) {
        prop_assert_eq!(parse_size(&format_size(count << shift)), Ok(count << shift));
    }

    #[test]
    fn durations_read_back(ms: u64) {
        prop_assert_eq!(parse_duration(&format_duration(ms)), Ok(ms));
    }

    #[test]
    fn cpus_read_back(milli in 1_u32..) {
        prop_assert_eq!(parse_cpus(&format_cpus(milli)), Ok(milli));
    }

    #[test]
    fn unit_parsers_survive_anything(text in "[0-9.]{0,50}[ -~]{0,6}|.{0,30}") {
        let _ = (parse_size(&text), parse_duration(&text), parse_cpus(&text), parse_split(&text));
    }

    #[test]
    fn strings_never_panic(text in "\\PC{0,200}|[\\[\\]{}:,=\"'#&*!|>\n .a-f0-9-]{0,200}") {
        survives(text.as_bytes());
    }

    #[test]
    fn bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        survives(&bytes);
    }

    #[test]
    fn trees_never_panic(tree in tree()) {
        survives(tree.to_string().as_bytes());
        if let Ok(text) = toml::to_string(&tree) {
            survives(text.as_bytes());
        }
        if let Ok(text) = serde_saphyr::to_string(&tree) {
            survives(text.as_bytes());
        }
    }

    /// A damaged manifest is refused or read, never a panic.
    #[test]
    fn damaged_examples_never_panic(at in 0..PAGE.len(), byte: u8, block in 0_usize..7) {
        let text = PAGE.split("\n```").skip(1).step_by(2).filter_map(|b| b.split_once('\n')).nth(block).map_or("", |b| b.1);
        let mut bytes = text.as_bytes().to_vec();
        if !bytes.is_empty() {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        survives(&bytes);
    }
}
