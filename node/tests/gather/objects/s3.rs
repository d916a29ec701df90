//! Against a whole S3 server, which checks signatures and keeps its objects in a directory.

use std::net::SocketAddr;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::fact::Outcome;
use sinew_crdt_state::ids::Hash;
use sinew_crdt_state::object::ObjectFile;
use sinew_node::secrets::SecretBytes;
use tokio::task::JoinHandle;

use super::{BODY, fails, fetch, object, secret};
use crate::daemons::{draft, mesh, run};
use crate::gather;

const KEY_ID: &str = "AKIAIOSFODNN7EXAMPLE";
const KEY: &str = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY";

struct S3 {
    address: SocketAddr,
    serving: JoinHandle<()>,
    _root: tempfile::TempDir,
}

impl S3 {
    /// With a bucket `data` that holds `dir/object 1`; opened by the key above, or by nobody's.
    async fn start(auth: bool) -> Self {
        let root = tempfile::tempdir().expect("dir");
        std::fs::create_dir_all(root.path().join("data/dir")).expect("bucket");
        std::fs::write(root.path().join("data/dir/object 1"), BODY).expect("object");
        let mut service = S3ServiceBuilder::new(FileSystem::new(root.path()).expect("files"));
        if auth {
            service.set_auth(SimpleAuth::from_single(KEY_ID, KEY));
        }
        let service = service.build();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let address = listener.local_addr().expect("address");
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, serving, _root: root }
    }

    fn object(&self, url: &str) -> ObjectFile {
        object(url, Some(format!("http://{}", self.address)))
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn keys(id: &str, key: &str) -> String {
    format!("access_key_id = \"{id}\"\nsecret_access_key = \"{key}\"\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_is_fetched_with_its_keys_and_not_without() {
    let s3 = S3::start(true).await;
    let gather = gather(&["127.0.0.1"], None);
    let there = secret(s3.object("s3://data/dir/object 1"));
    let right = keys(KEY_ID, KEY);
    assert_eq!(fetch(&gather, &there, Some(&right)).await.expect("object"), BODY);
    for (file, keys, word) in [
        (there.clone(), Some(keys(KEY_ID, "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEX")), "SignatureDoesNotMatch"),
        (there.clone(), Some(keys("AKIAI44QH8DHBEXAMPLE", KEY)), "do not open"),
        (ObjectFile { credentials: None, ..there.clone() }, None, "not public"),
        (secret(s3.object("s3://data/dir/object 2")), Some(right.clone()), "no such bucket or object"),
        (secret(s3.object("s3://other/dir/object 1")), Some(right.clone()), "no such bucket or object"),
    ] {
        let (code, for_good, message) = fails(&gather, &file, keys.as_deref()).await;
        assert_eq!((code, for_good), (ErrorCode::Fetch, true), "{message}");
        assert!(message.contains(word), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_public_object_is_checked_and_bounded() {
    let s3 = S3::start(false).await;
    let gather = gather(&["127.0.0.1"], None);
    let there = s3.object("s3://data/dir/object 1");
    assert_eq!(fetch(&gather, &there, None).await.expect("object"), BODY);
    let sha = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
    let (code, for_good, message) =
        fails(&gather, &ObjectFile { hash: sha.parse().expect("hash"), ..there.clone() }, None).await;
    assert_eq!((code, for_good), (ErrorCode::Fetch, true));
    assert!(message.contains(sha) && message.contains("its hash is sha256:"), "{message}");
    let (code, for_good, message) =
        fails(&gather, &ObjectFile { size_max: BODY.len() as u64 - 1, ..there.clone() }, None).await;
    assert_eq!((code, for_good), (ErrorCode::Fetch, true));
    assert!(message.contains("size_max"), "{message}");
    assert_eq!(fetch(&gather, &ObjectFile { size_max: BODY.len() as u64, ..there }, None).await.expect("object"), BODY);
}

/// Neither an endpoint, nor a name that leads to it, gets a job into the node's own network.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_inside_the_nodes_network_must_be_allowed() {
    let s3 = S3::start(false).await;
    let by_name = Some(format!("http://localhost:{}", s3.address.port()));
    let there = s3.object("s3://data/dir/object 1");
    for (rules, file, word) in [
        (&["*"][..], there.clone(), "127.0.0.1"),
        (&["*"], ObjectFile { endpoint: by_name.clone(), ..there.clone() }, "localhost"),
        (&[], there.clone(), "127.0.0.1"),
        (&[], ObjectFile { endpoint: None, region: Some("eu-west-1".to_owned()), ..there.clone() }, "eu-west-1"),
        (&["*"], object("az://container/x", Some("http://[::1]:1".to_owned())), "::1"),
        (&[], object("az://container/x", None), "acct.blob.core.windows.net"),
        (&["*"], object("gs://bucket/x", Some("http://169.254.169.254".to_owned())), "169.254.169.254"),
        (&[], object("gs://bucket/x", None), "storage.googleapis.com"),
    ] {
        let (code, _, message) = fails(&gather(rules, None), &file, None).await;
        assert_eq!(code, ErrorCode::Deny, "{message}");
        assert!(message.contains("gather_hosts") && message.contains(word), "{message}");
    }
    let named = ObjectFile { endpoint: by_name, ..there };
    assert_eq!(fetch(&gather(&["localhost"], None), &named, None).await.expect("object"), BODY);
}

/// From the manifest to the task: the submitter keeps the keys, the nodes that run the job fetch with them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_credentials_of_a_store_are_a_secret_of_the_job() {
    let s3 = S3::start(true).await;
    let mut mesh = mesh(2, "127.0.0.1").await;
    let hash = blake3::hash(BODY).to_hex();
    let manifest = format!(
        "type = \"batch\"\nstrategy = \"spread\"\nretry.attempts = 0\n[batch]\ntasks = 4\n\
         command = [\"sh\", \"-c\", \"sleep 0.3; cp object $SINEW_OUTPUT/copy\"]\n\
         inputs = [{{ url = \"s3://data/dir/object 1\", endpoint = \"http://{}\", hash = \"blake3:{hash}\", to = \"object\", \
         credentials = \"store\" }}]\n",
        s3.address
    );
    let client = mesh.nodes[0].client();
    let refused = client.submit(draft(&manifest), |_, _, _| {}).await.expect_err("it lacks the secret").to_string();
    assert!(refused.contains("store") && refused.contains("sinew secret set"), "{refused}");
    let value = SecretBytes::new(keys(KEY_ID, KEY).into_bytes());
    client.secret_set("store", value).await.expect("set");
    let view = run(&mesh, draft(&manifest)).await;
    assert!(matches!(view.outcome, Some(Outcome::Completed)), "{view:?}");
    let expected = Hash(*blake3::hash(BODY).as_bytes());
    let copies = view.outputs.iter().filter(|out| out.output.name == "output/copy" && out.output.blob.hash == expected);
    assert_eq!(copies.count(), 4, "{:?}", view.outputs);
    let nodes = view.shares.iter().filter(|share| share.done.iter().any(|done| *done > 0)).count();
    assert_eq!(nodes, 2, "one of them is not the submitter's: {:?}", view.shares);
    client.secret_set("store", SecretBytes::new(b"nothing = \"of this\"".to_vec())).await.expect("set");
    // What has a BLAKE3 hash is here already, and would not be asked for again.
    let again = manifest.replace(&format!("blake3:{hash}"), &format!("sha256:{}", "0".repeat(64)));
    let view = run(&mesh, draft(&again)).await;
    let Some(Outcome::Failed { failure, .. }) = view.outcome else { panic!("{:?}", view.outcome) };
    assert!(failure.code == ErrorCode::Invalid && failure.message.contains("secret `store`"), "{failure:?}");
    assert!(!failure.message.contains("of this"), "{failure:?}");
    mesh.stop();
}
