//! Which known word an unknown one may have meant.

/// Longest word compared: the distance costs the product of both lengths, and no key of ours is half as long.
const WORD_LEN_MAX: usize = 40;

/// The known word closest to `word`: one it abbreviates, or one that a third of its letters turns it into.
pub(super) fn closest<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    // Three letters: `mem` says memory, `m` could say anything.
    const ABBREVIATION_LEN_MIN: usize = 3;
    if word.len() > WORD_LEN_MAX {
        return None;
    }
    let word = word.to_lowercase().replace(['-', ' '], "_");
    known
        .filter_map(|candidate| {
            let distance = strsim::osa_distance(&word, &candidate.to_lowercase());
            let abbreviates = word.len() >= ABBREVIATION_LEN_MIN && candidate.starts_with(&word);
            let near = distance <= (candidate.len().max(word.len()) / 3).max(1) && distance < candidate.len();
            (near || abbreviates).then_some((distance, candidate))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::closest;

    #[test]
    fn typos_abbreviations_and_hyphens_are_understood_and_noise_is_not() {
        let known = || ["batch", "command", "map_reduce", "memory", "outputs"].into_iter();
        let cases = [
            ("comand", Some("command")),
            ("mem", Some("memory")),
            ("Map-Reduce", Some("map_reduce")),
            ("output", Some("outputs")),
            ("mapreduce", Some("map_reduce")),
            ("xyzzy", None),
            ("m", None),
            ("", None),
        ];
        for (word, expected) in cases {
            assert_eq!(closest(word, known()), expected, "{word}");
        }
        assert_eq!(closest(&"x".repeat(1_000_000), known()), None);
    }
}
