//! Manifests made to exhaust the reader: nesting, aliases, bulk.

use super::{FORMATS, problems, syntax};
use crate::manifest::tree::NODES_MAX;
use crate::manifest::{Format, MANIFEST_LEN_MAX, ManifestError, parse};

#[test]
fn bombs_are_refused_quickly() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let bomb = format!("{{\"env\":{}1{}}}", open.repeat(60), close.repeat(60));
        assert!(syntax(&bomb, Format::Json).message.contains("nested more than 16 deep"));
        let endless = open.repeat(MANIFEST_LEN_MAX / open.len());
        for format in FORMATS {
            assert!(matches!(parse(endless.as_bytes(), format), Err(ManifestError::Syntax { .. })), "{format:?}");
        }
    }
    let toml = format!("env = {}1{}", "[".repeat(60), "]".repeat(60));
    assert!(syntax(&toml, Format::Toml).message.contains("nested more than 16 deep"));
    assert!(matches!(
        parse(format!("a{} = 1", ".a".repeat(200_000)).as_bytes(), Some(Format::Toml)),
        Err(ManifestError::Syntax { .. })
    ));
    let yaml = format!("env: {}1{}", "[".repeat(200), "]".repeat(200));
    syntax(&yaml, Format::Yaml);
    let blocks: String = (0..500).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    syntax(&blocks, Format::Yaml);
    // Ten levels of ten: 10^10 values from 400 bytes.
    let mut laughs = "a0: &a0 [x]\n".to_owned();
    for level in 1..=10 {
        let refs = vec![format!("*a{}", level - 1); 10].join(", ");
        laughs += &format!("a{level}: &a{level} [{refs}]\n");
    }
    let error = syntax(&laughs, Format::Yaml);
    assert!(error.message.contains("too complex") || error.message.contains("more than 200000 values"), "{error}");
    let wide = format!("{{\"env\":[{}1]}}", "1,".repeat(NODES_MAX));
    assert!(syntax(&wide, Format::Json).message.contains("more than 200000 values"));
    let long = vec![b'#'; MANIFEST_LEN_MAX + 1];
    assert_eq!(parse(&long, None), Err(ManifestError::TooLong { len: long.len() }));
    assert_eq!(parse(b"name = \"\xff\"", None), Err(ManifestError::NotText { at: 8 }));
}

#[test]
fn many_problems_stay_cheap() {
    let entries: Vec<_> = (0..40_000).map(|i| format!("\"K{i}\":{i}")).collect();
    let text = format!("{{\"type\":\"batch\",\"batch\":{{\"command\":\"a\"}},\"env\":{{{}}}}}", entries.join(","));
    let found = problems(&text);
    assert_eq!(found.iter().filter(|p| p.problem == "not text").count(), 40_000);
}
