//! Takes values out of what programs print, wherever the pieces in which it comes are cut: `***` in place of each value, of each
//! longer line of it, and of what base64 and percent-encoding make of these. A program that wants its secrets printed prints them in
//! another way; this is against accidents.

use std::collections::VecDeque;
use std::sync::Arc;

use aho_corasick::automaton::{Automaton, StateID};
use aho_corasick::nfa::contiguous::NFA;
use aho_corasick::{Anchored, MatchKind};
use data_encoding::{BASE64, BASE64URL};
use zeroize::Zeroizing;

/// Values shorter than this are left in: they occur by chance.
const VALUE_LEN_MIN: usize = 4;
/// Lines of a longer value that are shorter than this are left in.
const LINE_LEN_MIN: usize = 8;
/// What stands in a value's place.
const MARK: &[u8] = b"***";

/// What to look for.
#[derive(Debug)]
pub struct Redactor {
    automaton: NFA,
    start: StateID,
    len_max: usize,
}

type Pattern = Zeroizing<Vec<u8>>;

impl Redactor {
    /// Looks for these values. `None` when there is nothing to look for.
    ///
    /// # Errors
    /// What the automaton says when they are too many.
    pub fn new<'v>(values: impl Iterator<Item = &'v [u8]>) -> Result<Option<Arc<Self>>, String> {
        let mut patterns: Vec<Pattern> = values.flat_map(patterns_of).collect();
        patterns.sort_unstable_by(|a, b| a.as_slice().cmp(b.as_slice()));
        patterns.dedup_by(|a, b| a.as_slice() == b.as_slice());
        let Some(len_max) = patterns.iter().map(|pattern| pattern.len()).max() else { return Ok(None) };
        let mut builder = NFA::builder();
        // Every match, also inside others, so that no end of one stands behind the mark of another.
        builder.match_kind(MatchKind::Standard).prefilter(false);
        let automaton = builder.build(patterns.iter().map(|pattern| pattern.as_slice())).map_err(|e| e.to_string())?;
        let start = automaton.start_state(Anchored::No).map_err(|e| e.to_string())?;
        Ok(Some(Arc::new(Self { automaton, start, len_max })))
    }

    /// Begins with a stream.
    #[must_use]
    pub fn stream(self: &Arc<Self>) -> Redacting {
        Redacting {
            state: self.start,
            redactor: Arc::clone(self),
            pending: Vec::new(),
            base: 0,
            at: 0,
            idle_at: 0,
            covered: VecDeque::new(),
            marked_to: None,
        }
    }

    /// A whole text.
    #[must_use]
    pub fn text(self: &Arc<Self>, text: &str) -> String {
        let (mut stream, mut out) = (self.stream(), Vec::with_capacity(text.len()));
        stream.push(text.as_bytes(), &mut out);
        stream.finish(&mut out);
        String::from_utf8_lossy(&out).into_owned()
    }
}

/// What is looked for because of one value.
fn patterns_of(value: &[u8]) -> Vec<Pattern> {
    let value = value.trim_ascii_end();
    let mut texts: Vec<&[u8]> = Vec::new();
    if value.len() >= VALUE_LEN_MIN {
        texts.push(value);
    }
    let lines: Vec<&[u8]> = value.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).collect();
    if lines.len() > 1 {
        texts.extend(lines.into_iter().filter(|line| line.len() >= LINE_LEN_MIN));
    }
    texts.into_iter().flat_map(forms).collect()
}

/// A text as it is, and encoded.
fn forms(text: &[u8]) -> Vec<Pattern> {
    let mut forms =
        vec![text.to_vec(), percent(text, false, false), percent(text, true, false), percent(text, false, true)];
    for encoding in [BASE64, BASE64URL] {
        let whole = encoding.encode(text);
        forms.push(whole.trim_end_matches('=').as_bytes().to_vec());
        forms.push(whole.into_bytes());
        // Among other things, as in `user:password`: what of it does not depend on its neighbours.
        for before in 0..3_usize {
            let shifted = Zeroizing::new([vec![0; before], text.to_vec()].concat());
            let encoded = Zeroizing::new(encoding.encode(&shifted).into_bytes());
            let own = (before * 8).div_ceil(6)..shifted.len() * 8 / 6;
            forms.extend(encoded.get(own).filter(|own| own.len() >= VALUE_LEN_MIN).map(<[u8]>::to_vec));
        }
    }
    forms.into_iter().map(Zeroizing::new).collect()
}

/// Percent-encoding (RFC 3986, all but unreserved characters), or that of forms, with `+` for blanks.
fn percent(text: &[u8], lower: bool, form: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for byte in text {
        match byte {
            b' ' if form => out.push(b'+'),
            b if b.is_ascii_alphanumeric() || b"-._~".contains(b) => out.push(*b),
            b if lower => out.extend_from_slice(format!("%{b:02x}").as_bytes()),
            b => out.extend_from_slice(format!("%{b:02X}").as_bytes()),
        }
    }
    out
}

/// A stream from which values are taken out. Of what came, it keeps back only what may be the beginning of one.
#[derive(Debug, Clone)]
pub struct Redacting {
    redactor: Arc<Redactor>,
    state: StateID,
    /// What has not been given out yet.
    pending: Vec<u8>,
    /// Where in the stream that begins.
    base: u64,
    /// Where in the stream it ends.
    at: u64,
    /// Up to here no value that may still come has begun.
    idle_at: u64,
    /// What of it is to be taken out: ranges in order that do not touch.
    covered: VecDeque<(u64, u64)>,
    /// The end of the range whose mark was given out last.
    marked_to: Option<u64>,
}

impl Redacting {
    /// Takes `bytes` and gives out what can be.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let redactor = Arc::clone(&self.redactor);
        let automaton = &redactor.automaton;
        self.pending.extend_from_slice(bytes);
        for byte in bytes {
            self.state = automaton.next_state(Anchored::No, self.state, *byte);
            self.at += 1;
            if self.state == redactor.start {
                self.idle_at = self.at;
            } else if automaton.is_match(self.state) {
                let of = |index| automaton.pattern_len(automaton.match_pattern(self.state, index));
                let longest = (0..automaton.match_len(self.state)).map(of).max().unwrap_or(0);
                self.cover(self.at - longest as u64, self.at);
            }
        }
        let reach = (redactor.len_max as u64).saturating_sub(1);
        self.give_out(self.idle_at.max(self.at.saturating_sub(reach)), out);
    }

    /// Gives out the rest: nothing more comes.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        self.give_out(self.at, out);
        (self.state, self.idle_at) = (self.redactor.start, self.at);
    }

    fn cover(&mut self, mut from: u64, to: u64) {
        while let Some((before, _)) = self.covered.pop_back_if(|(_, end)| *end >= from) {
            from = from.min(before);
        }
        self.covered.push_back((from, to));
    }

    /// Gives out everything before `until`. No value that is still to be found begins there.
    fn give_out(&mut self, until: u64, out: &mut Vec<u8>) {
        let mut done = 0_usize;
        let len = |from: u64, to: u64| usize::try_from(to.saturating_sub(from)).unwrap_or(usize::MAX);
        while self.base < until {
            let Some((from, to)) = self.covered.front().copied().filter(|(from, _)| *from < until) else {
                let plain = len(self.base, until);
                out.extend_from_slice(&self.pending[done..done + plain]);
                (done, self.base) = (done + plain, until);
                break;
            };
            let plain = len(self.base, from);
            out.extend_from_slice(&self.pending[done..done + plain]);
            if self.marked_to.is_none_or(|marked| marked < from) {
                out.extend_from_slice(MARK);
            }
            let upto = to.min(until);
            (done, self.base) = (done + plain + len(from.max(self.base), upto), upto);
            self.marked_to = Some(to);
            self.covered.pop_front();
            if upto < to {
                self.covered.push_front((upto, to));
            }
        }
        self.pending.drain(..done);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn redactor(values: &[&[u8]]) -> Arc<Redactor> {
        Redactor::new(values.iter().copied()).expect("builds").expect("something to look for")
    }

    fn in_pieces<'b>(redactor: &Arc<Redactor>, pieces: impl IntoIterator<Item = &'b [u8]>) -> Vec<u8> {
        let (mut stream, mut out) = (redactor.stream(), Vec::new());
        pieces.into_iter().for_each(|piece| stream.push(piece, &mut out));
        stream.finish(&mut out);
        out
    }

    const KEY: &[u8] = b"-----BEGIN KEY-----\nMIGHAgEAMBMGByqG\nshort\nSM49AgEGCCqGSM49\n-----END KEY-----\n";

    #[test]
    fn values_are_taken_out_wherever_pieces_are_cut() {
        let redactor = redactor(&[b"hunter2!", b"hunter2! and more\n", b"aaaa", KEY, &[0xff, 0, 0xfe, 1, 2]]);
        let mut text = b"x hunter2 hunter2! hunter2! and mor, hunter2! and more. aaa aaaaaa\n".to_vec();
        text.extend_from_slice(KEY);
        text.extend_from_slice(b"only SM49AgEGCCqGSM49, and \xff\x00\xfe\x01\x02 in binary; the end is hunter2");
        let whole = in_pieces(&redactor, [&text[..]]);
        let wanted: &[u8] =
            b"x hunter2 *** *** and mor, ***. aaa ***\n***\nonly ***, and *** in binary; the end is hunter2";
        assert_eq!(String::from_utf8_lossy(&whole), String::from_utf8_lossy(wanted));
        for at in 0..=text.len() {
            let (a, b) = text.split_at(at);
            assert_eq!(in_pieces(&redactor, [a, b]), whole, "cut at {at}");
            for next in 0..=b.len() {
                let (b, c) = b.split_at(next);
                assert_eq!(in_pieces(&redactor, [a, b, c]), whole, "cut at {at} and {}", at + next);
            }
        }
        assert_eq!(in_pieces(&redactor, text.chunks(1)), whole, "byte by byte");
    }

    #[test]
    fn what_cannot_be_a_value_any_more_is_given_out_at_once() {
        let redactor = redactor(&[b"hunter2!"]);
        let (mut stream, mut out) = (redactor.stream(), Vec::new());
        stream.push(b"password: hun", &mut out);
        assert_eq!(out, b"password: ");
        stream.push(b"ting? ", &mut out);
        assert_eq!(out, b"password: hunting? ");
        // What goes on for ever is not kept for ever.
        let redactor = self::redactor(&[b"aaaa"]);
        let (mut stream, mut out) = (redactor.stream(), Vec::new());
        for _ in 0..10_000 {
            stream.push(b"aaaaaaa", &mut out);
        }
        assert!(stream.pending.len() < 8 && out == b"***", "{} bytes kept", stream.pending.len());
    }

    #[test]
    fn encoded_values_are_taken_out() {
        let value = b"p\xc3\xa4ss w?rd/+>~";
        let redactor = redactor(&[value]);
        let url = "p%C3%A4ss%20w%3Frd%2F%2B%3E~";
        for form in [url.to_owned(), url.to_lowercase(), url.replace("%20", "+")] {
            assert_eq!(redactor.text(&format!("<{form}>")), "<***>", "{form}");
        }
        for before in ["", "a", "ab", "abc", "user:"] {
            for after in ["", "x", "xy", "xyz"] {
                let text = [before.as_bytes(), value, after.as_bytes()].concat();
                for encoding in [BASE64, BASE64URL] {
                    let encoded = encoding.encode(&text);
                    let shown = redactor.text(&encoded);
                    assert!(shown.contains("***") && !shown.contains(&encoded[12..18]), "{encoded}: {shown}");
                }
            }
        }
        assert_eq!(redactor.text(&BASE64.encode(value)), "***", "and its padding");
    }

    #[test]
    fn values_that_occur_by_chance_are_left_in() {
        assert!(Redactor::new([&b"abc\n"[..], b""].into_iter()).expect("builds").is_none());
        assert_eq!(redactor(&[b"abc", b"abcd"]).text("abc abcd"), "abc ***");
        assert_eq!(redactor(&[b"one\ntwo two two\n"]).text("one, two two two"), "one, ***");
    }

    /// The plain way: marks every occurrence of every pattern, then writes runs of marked bytes as one mark.
    fn plain_way(patterns: &[Vec<u8>], text: &[u8]) -> Vec<u8> {
        // Ranges that touch become one, as in the stream.
        let mut ranges: Vec<(usize, usize)> = Vec::new();
        for pattern in patterns {
            for at in 0..text.len().saturating_sub(pattern.len() - 1) {
                if text[at..].starts_with(pattern) {
                    ranges.push((at, at + pattern.len()));
                }
            }
        }
        ranges.sort_unstable();
        let (mut out, mut at, mut marked) = (Vec::new(), 0, None);
        for (from, to) in ranges {
            if from > at {
                out.extend_from_slice(&text[at..from]);
            }
            if marked.is_none_or(|marked| marked < from) {
                out.extend_from_slice(MARK);
            }
            at = at.max(to);
            marked = Some(marked.unwrap_or(0).max(to));
        }
        out.extend_from_slice(&text[at..]);
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

        #[test]
        fn the_stream_says_what_the_plain_way_says(
            values in prop::collection::vec("[ab]{4,9}", 1..4),
            text in "[abc]{0,80}",
            cuts in prop::collection::vec(0_usize..80, 0..6),
        ) {
            let values: Vec<&[u8]> = values.iter().map(String::as_bytes).collect();
            let redactor = redactor(&values);
            let patterns: Vec<Vec<u8>> = values.iter().flat_map(|v| patterns_of(v)).map(|p| p.to_vec()).collect();
            let text = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).chain([0, text.len()]).collect();
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|w| &text[w[0]..w[1]]);
            prop_assert_eq!(in_pieces(&redactor, pieces), plain_way(&patterns, text));
        }
    }
}
