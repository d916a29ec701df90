//! The network policy of a manifest.

use super::{draft, problems};
use crate::manifest::{JobDraft, Problem};

#[test]
fn a_network_policy_names_hosts_and_its_mistakes_are_named() {
    let batch = |network: &str| format!("type = \"batch\"\nnetwork = {network}\n[batch]\ncommand = \"a\"");
    assert_eq!(draft(&batch("\"none\"")), draft("type = \"batch\"\n[batch]\ncommand = \"a\""));
    let some = draft(&batch("[\"PyPI.org\", \"db.example.org:5432\"]"));
    let endpoints: Vec<_> = some.network.endpoints().collect();
    assert_eq!(endpoints, [("db.example.org", 5_432), ("pypi.org", 80), ("pypi.org", 443)]);
    let json = serde_json::to_string(&some).expect("json");
    assert_eq!(serde_json::from_str::<JobDraft>(&json).expect("json"), some);
    for (network, path, words) in [
        ("\"mesh\"", "network", ["services of the mesh", "pypi.org"]),
        ("[\"a.example\", \"mesh\"]", "network[1]", ["`mesh`", "not available"]),
        ("\"all\"", "network", ["not a network policy", "none"]),
        ("\"pypi.org\"", "network", ["not a network policy", "brackets"]),
        ("true", "network", ["not a network policy", "brackets"]),
        ("[]", "network", ["no host", "leave it out"]),
        ("[3]", "network[0]", ["not text", "quotes"]),
        ("[\"*.example.org\"]", "network[0]", ["pattern", "exact name"]),
        ("[\"10.0.0.1\"]", "network[0]", ["address", "job_hosts"]),
        ("[\"a.example:99999\"]", "network[0]", ["port", "65535"]),
    ] {
        let found = problems(&batch(network));
        let hit = |p: &Problem| p.path == path && p.problem.contains(words[0]) && p.mend.contains(words[1]);
        assert!(found.len() == 1 && hit(&found[0]), "{network}: {found:?}");
    }
    let many: Vec<String> = (0..33).map(|i| format!("\"h{i}.example\"")).collect();
    let found = problems(&batch(&format!("[{}]", many.join(", "))));
    assert!(found.len() == 1 && found[0].mend.contains("32"), "{found:?}");
    let module =
        |more: &str| format!("type = \"batch\"\nnetwork = [\"a.example\"]\n[batch]\nwasm.module = \"m.wasm\"\n{more}");
    let found = problems(&module(""));
    assert!(found.len() == 1 && found[0].path == "network" && found[0].mend.contains("gather"), "{found:?}");
    assert!(!draft(&module("gather = [\"sh\", \"fetch.sh\"]")).network.is_none());
}
