//! Where jobs find what they did not bring: volumes of nodes, objects in stores.

use super::{draft, problems};
use crate::manifest::DraftSource;
use crate::object::ObjectFile;
use crate::volume::Volume;

#[test]
fn volumes_and_their_mistakes() {
    let manifest = |volumes: &str| format!("type = \"batch\"\n{volumes}\n[batch]\ncommand = \"a\"");
    let two = "[[volumes]]\nname = \"sets\"\npath = \"/data\"\n[[volumes]]\nname = \"out\"\npath = \"/out\"\nread_only = false";
    let volume = |name: &str, path: &str, read_only| Volume { name: name.to_owned(), path: path.to_owned(), read_only };
    assert_eq!(draft(&manifest(two)).volumes, [volume("sets", "/data", true), volume("out", "/out", false)]);
    for (text, path, word) in [
        ("[[volumes]]\nname = \"a\"", "volumes[0].path", "/data"),
        ("[[volumes]]\npath = \"/a\"", "volumes[0].name", "operators"),
        ("[[volumes]]\nname = \"A\"\npath = \"/a\"", "volumes[0]", "lower-case"),
        ("[[volumes]]\nname = \"a\"\npath = \"/job/output\"", "volumes[0]", "of its own"),
        ("[[volumes]]\nname = \"a\"\npath = \"/a/../etc\"", "volumes[0]", "without `..`"),
        ("[[volumes]]\nname = \"a\"\npath = \"/a\"\nread_only = \"yes\"", "volumes[0].read_only", "true or false"),
        ("[[volumes]]\nname = \"a\"\npath = \"/a\"\nreadonly = true", "volumes[0].readonly", "read_only"),
        ("[volumes]\nname = \"a\"\npath = \"/a\"", "volumes", "brackets"),
        (&two.replace("\"out\"", "\"sets\""), "volumes[1]", "once"),
        (&two.replace("\"/out\"", "\"/data/x\""), "volumes[1]", "of its own"),
    ] {
        let found = problems(&manifest(text));
        assert!(found.iter().any(|p| p.path == path && p.mend.contains(word)), "{text}: {found:?}");
    }
}

#[test]
fn objects_and_their_mistakes() {
    let hash = format!("blake3:{}", "0a".repeat(32));
    let batch = |url: &str, more: &str| {
        let input = format!("url = \"{url}\", hash = \"{hash}\", to = \"x\"{more}");
        format!("type = \"batch\"\n[batch]\ncommand = \"a\"\ninputs = [{{ {input} }}]")
    };
    let read = draft(&batch("s3://b/a/k", ", endpoint = \"http://minio:9000\", region = \"eu-west-1\", size_max = 9"));
    let object = ObjectFile {
        url: "s3://b/a/k".to_owned(),
        hash: hash.parse().expect("hash"),
        size_max: 9,
        endpoint: Some("http://minio:9000".to_owned()),
        region: Some("eu-west-1".to_owned()),
        account: None,
        credentials: None,
    };
    assert_eq!(read.files()[0].source, DraftSource::Object(object));
    for (url, more, path, word) in [
        ("s3://b", "", "", "without empty parts"),
        ("az://c/k", "", "", "account"),
        ("gs://b/k", ", region = \"x\"", "", "leave it out"),
        ("file:///a/../b", "", "", "absolute path"),
        ("https://a/b", ", region = \"x\"", ".region", "s3://"),
        ("s3://b/k", ", endpoint = \"minio:9000\"", "", "https://"),
        ("s3://b/k", ", credentials = \"a/b\"", "", "letters"),
    ] {
        let found = problems(&batch(url, more));
        let path = format!("batch.inputs[0]{path}");
        assert!(found.iter().any(|p| p.path == path && p.mend.contains(word)), "{url}{more}: {found:?}");
    }
}
