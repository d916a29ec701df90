//! How paths of outputs are read: as a shell's user writes them. Whether they are allowed is checked elsewhere.

/// `output` without what says nothing: `./x` is `x`, and `d/` is `d`. What is left may still be no path inside a directory.
#[must_use]
pub fn plain_output(output: &str) -> String {
    let mut plain = output;
    while let Some(rest) = plain.strip_prefix("./") {
        plain = rest;
    }
    let plain = plain.trim_end_matches('/');
    // The root directory is not the empty path.
    if plain.is_empty() && output.starts_with('/') { "/".to_owned() } else { plain.replace("/./", "/") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_nothing_is_left_out() {
        let cases = [
            ("./x", "x"),
            ("d/", "d"),
            ("././d/e//", "d/e"),
            ("a/./b", "a/b"),
            ("x", "x"),
            ("../x", "../x"),
            ("/", "/"),
            ("/x/", "/x"),
            ("./", ""),
        ];
        for (text, plain) in cases {
            assert_eq!(plain_output(text), plain, "{text}");
        }
    }
}
