//! The fuzz targets under stable Rust: over their committed corpus, over what mutating it gives, and over random bytes.

use std::path::PathBuf;

use proptest::prelude::*;

use crate::seeds::seeds;
use crate::targets::{TARGETS, Target};

fn corpus(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target)
}

/// The committed seeds are what the code makes today; `SINEW_WRITE_SEEDS=1` writes them anew.
#[test]
fn every_seed_is_committed_and_current() {
    for (name, _) in TARGETS {
        for (i, seed) in seeds(name).iter().enumerate() {
            let path = corpus(name).join(format!("seed-{i:02}"));
            if std::env::var_os("SINEW_WRITE_SEEDS").is_some() {
                std::fs::create_dir_all(corpus(name)).expect("mkdir");
                std::fs::write(&path, seed).expect("write");
            }
            let committed = std::fs::read(&path).unwrap_or_default();
            assert!(committed == *seed, "{} is out of date: run this test with SINEW_WRITE_SEEDS=1", path.display());
        }
    }
}

#[test]
fn the_corpus_runs_clean() {
    for (name, run) in TARGETS {
        let mut files = 0;
        for entry in std::fs::read_dir(corpus(name)).expect("a corpus") {
            run(&std::fs::read(entry.expect("entry").path()).expect("read"));
            files += 1;
        }
        assert!(files > 0, "{name} has no corpus");
    }
}

/// Damaged inputs of each target in a normal run; `SINEW_FUZZ_ROUNDS` asks for more.
const ROUNDS: usize = 300;

/// Cuts, flips and splices of good inputs: cheap, and deeper than random bytes get.
#[test]
fn damaged_seeds_run_clean() {
    let wanted = std::env::var("SINEW_FUZZ_ROUNDS").ok().and_then(|text| text.parse().ok());
    for (name, run) in TARGETS {
        let seeds = seeds(name);
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).expect("31 bits") % below.max(1)
        };
        for _ in 0..wanted.unwrap_or(ROUNDS) {
            let mut bytes = seeds[random(seeds.len())].clone();
            for _ in 0..=random(4) {
                let at = random(bytes.len());
                match random(4) {
                    0 => bytes.truncate(at),
                    1 => bytes.extend_from_slice(&seeds[random(seeds.len())]),
                    2 => bytes.insert(at, u8::try_from(random(256)).expect("a byte")),
                    _ => {
                        if let Some(byte) = bytes.get_mut(at) {
                            *byte ^= 1 << random(8);
                        }
                    }
                }
            }
            run(&bytes);
        }
    }
}

fn any_target() -> impl Strategy<Value = Target> {
    (0..TARGETS.len()).prop_map(|i| TARGETS[i])
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) })]

    #[test]
    fn random_bytes_run_clean((_, run) in any_target(), bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        run(&bytes);
    }
}
