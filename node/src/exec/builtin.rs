//! The programs inside the daemon. They run on the slot's own thread, line by line like any mapper or reducer, and obey the
//! same time limit, output limit and stop handle.
//!
//! - `wordcount`: for each word of its input `word\t1`. A word is a maximal run of ASCII letters, ASCII digits and bytes from
//!   0x80 up (so UTF-8 letters stay together whatever they are), ASCII letters lower-cased.
//! - `sum`: for each run of lines with the same key `key\tSUM`, the sum of the integers after the first tab. Anything else there
//!   is an error that names the line. Sums are 128 bits wide.
//! - `grep PATTERN`: each line that contains the text, as `line\t1`. A tab in the line becomes the two characters `\t`: the key
//!   ends at the first tab, and the line is to be the key.
//! - `noop`: reads nothing, writes nothing.

use std::io::Read;
use std::time::Instant;

use memchr::memmem::Finder;
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::spec::Builtin;

use super::lines::Lines;
use super::mapfile::SortedSink;
use super::outcome::{Failure, Usage};
use super::runner::{Ended, RunLimits, Sink};
use super::stop::StopHandle;

/// Output gathered before it is passed on, and with it how often limits are looked at.
const BUFFER_LEN: usize = 64 * 1024;
/// Input read at once.
const INPUT_LEN: usize = 256 * 1024;
/// Lines between two looks at the limits, where little comes out.
const LINES_PER_CHECK: u32 = 4_096;
/// Characters of a bad line shown in its error.
const SHOWN_MAX: usize = 100;

/// Runs `builtin` from `input` to `out`.
pub(super) fn run(
    builtin: &Builtin,
    input: Option<&mut (dyn Read + Send)>,
    out: &mut dyn Sink,
    limits: &RunLimits,
    stop: &StopHandle,
) -> Ended {
    let began = Instant::now();
    let mut guarded = Guarded { out, buffer: Vec::new(), written: 0, limits, stop };
    let mut nothing = std::io::empty();
    let input: &mut dyn Read = match input {
        Some(input) => input,
        None => &mut nothing,
    };
    let result = guarded.check().and_then(|()| match builtin {
        Builtin::Wordcount => wordcount(input, &mut guarded),
        Builtin::Sum => sum(input, &mut guarded),
        Builtin::Grep(pattern) => grep(pattern.as_bytes(), input, &mut guarded),
        Builtin::Noop => Ok(()),
    });
    let result = result.and_then(|()| guarded.flush());
    let wall_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    // It shares the daemon's memory, and what it uses of a core it uses alone: wall time stands in for CPU time.
    let usage = Usage { wall_ms, cpu_ms: wall_ms, max_rss_bytes: 0, output_bytes: guarded.written };
    Ended { result, usage }
}

/// Output with the limits around it.
struct Guarded<'a> {
    out: &'a mut dyn Sink,
    buffer: Vec<u8>,
    written: u64,
    limits: &'a RunLimits,
    stop: &'a StopHandle,
}

impl Guarded<'_> {
    fn check(&self) -> Result<(), Failure> {
        if let Some(reason) = self.stop.reason() {
            return Err(reason.failure());
        }
        if self.limits.deadline.is_some_and(|at| Instant::now() >= at) {
            return Err(self.limits.timeout_failure());
        }
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER_LEN { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Failure> {
        self.check()?;
        self.written += self.buffer.len() as u64;
        if self.limits.is_over_output(self.written) {
            return Err(Failure::over_output_cap(self.limits.output_max));
        }
        self.out.take(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}

/// What a byte becomes inside a word; 0 for a byte that is in none.
const WORD_BYTE: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte: u8 = 255;
    while byte > 0 {
        if byte >= 0x80 || byte.is_ascii_alphanumeric() {
            table[byte as usize] = byte.to_ascii_lowercase();
        }
        byte -= 1;
    }
    table
};

fn wordcount(input: &mut dyn Read, out: &mut Guarded<'_>) -> Result<(), Failure> {
    let mut buffer = vec![0; INPUT_LEN];
    let mut in_word = false;
    loop {
        let n = match input.read(&mut buffer) {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            other => other.map_err(Failure::from_input)?,
        };
        if n == 0 {
            break;
        }
        out.check()?;
        for piece in buffer[..n].chunks(BUFFER_LEN) {
            for byte in piece {
                match WORD_BYTE[usize::from(*byte)] {
                    0 if in_word => {
                        out.buffer.extend_from_slice(b"\t1\n");
                        in_word = false;
                    }
                    0 => {}
                    letter => {
                        out.buffer.push(letter);
                        in_word = true;
                    }
                }
            }
            out.put(b"")?;
        }
    }
    if in_word { out.put(b"\t1\n") } else { Ok(()) }
}

fn grep(pattern: &[u8], input: &mut dyn Read, out: &mut Guarded<'_>) -> Result<(), Failure> {
    let finder = Finder::new(pattern);
    each_line(input, out, |line, out| {
        if finder.find(line).is_none() {
            return Ok(());
        }
        for (i, part) in line.split(|b| *b == b'\t').enumerate() {
            if i > 0 {
                out.put(b"\\t")?;
            }
            out.put(part)?;
        }
        out.put(b"\t1\n")
    })
}

fn each_line<'a>(
    input: &mut dyn Read,
    out: &mut Guarded<'a>,
    mut f: impl FnMut(&[u8], &mut Guarded<'a>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut lines = Lines::new(input, INPUT_LEN);
    let mut count = 0_u32;
    while lines.advance().map_err(Failure::from_input)? {
        count = (count + 1) % LINES_PER_CHECK;
        if count == 0 {
            out.check()?;
        }
        f(lines.line().unwrap_or_default(), out)?;
    }
    Ok(())
}

fn sum(input: &mut dyn Read, out: &mut Guarded<'_>) -> Result<(), Failure> {
    let mut fold = SumFold::new(PlainLines { out: &mut *out });
    let mut lines = Lines::new(input, INPUT_LEN);
    let mut count = 0_u32;
    while lines.advance().map_err(Failure::from_input)? {
        count = (count + 1) % LINES_PER_CHECK;
        if count == 0 {
            fold.sink.out.check()?;
        }
        fold.line(0, lines.line().unwrap_or_default())?;
    }
    fold.finish().map(|_| ())
}

struct PlainLines<'a, 'b> {
    out: &'a mut Guarded<'b>,
}

impl SortedSink for PlainLines<'_, '_> {
    fn line(&mut self, _: u32, line: &[u8]) -> Result<(), Failure> {
        self.out.put(line)?;
        self.out.put(b"\n")
    }
}

/// Turns consecutive lines of one key into one with their sum. Output is in the order of the input, because no key followed by
/// a tab is the beginning of another one followed by a tab.
#[derive(Debug)]
pub(super) struct SumFold<S> {
    sink: S,
    /// The partition and sum of the key that is being summed.
    open: Option<(u32, i128)>,
    key: Vec<u8>,
    line_number: u64,
}

impl<S: SortedSink> SumFold<S> {
    pub(super) const fn new(sink: S) -> Self {
        Self { sink, open: None, key: Vec::new(), line_number: 0 }
    }

    pub(super) fn finish(mut self) -> Result<S, Failure> {
        self.emit()?;
        Ok(self.sink)
    }

    fn emit(&mut self) -> Result<(), Failure> {
        let Some((partition, total)) = self.open.take() else { return Ok(()) };
        self.key.push(b'\t');
        self.key.extend_from_slice(total.to_string().as_bytes());
        self.sink.line(partition, &self.key)
    }
}

impl<S: SortedSink> SortedSink for SumFold<S> {
    fn line(&mut self, partition: u32, line: &[u8]) -> Result<(), Failure> {
        self.line_number += 1;
        let parsed = memchr::memchr(b'\t', line).and_then(|tab| {
            let number = std::str::from_utf8(&line[tab + 1..]).ok()?.parse::<i128>().ok()?;
            Some((&line[..tab], number))
        });
        let (key, number) = parsed.ok_or_else(|| not_summable(self.line_number, line, "is no `key<TAB>integer`"))?;
        match &mut self.open {
            Some((at, total)) if *at == partition && self.key == key => {
                let sum = total.checked_add(number);
                *total =
                    sum.ok_or_else(|| not_summable(self.line_number, line, "makes the sum of its key too large"))?;
            }
            _ => {
                self.emit()?;
                self.key.clear();
                self.key.extend_from_slice(key);
                self.open = Some((partition, number));
            }
        }
        Ok(())
    }
}

fn not_summable(number: u64, line: &[u8], why: &str) -> Failure {
    let beginning = &line[..line.len().min(4 * SHOWN_MAX)];
    let shown: String = String::from_utf8_lossy(beginning).chars().take(SHOWN_MAX).collect();
    Failure::new(ErrorCode::Invalid, format!("sinew:sum: line {number} {why}: {shown:?}"))
}

#[cfg(test)]
mod tests {
    use super::super::stop::StopReason;
    use super::*;

    #[derive(Default)]
    struct Bytes(Vec<u8>);

    impl Sink for Bytes {
        fn take(&mut self, bytes: &[u8]) -> Result<(), Failure> {
            self.0.extend_from_slice(bytes);
            Ok(())
        }
    }

    fn limits(output_max: u64) -> RunLimits {
        let began = Instant::now();
        RunLimits { began, deadline: None, output_max, output_before: 0, grace: std::time::Duration::ZERO }
    }

    fn output(builtin: &Builtin, input: &[u8]) -> Result<String, Failure> {
        let (mut out, mut input, stop) = (Bytes::default(), input, StopHandle::new().expect("handle"));
        let ended = run(builtin, Some(&mut input), &mut out, &limits(1 << 20), &stop);
        ended.result.map(|()| String::from_utf8_lossy(&out.0).into_owned())
    }

    #[test]
    fn words_are_lower_cased_runs() {
        let out = output(&Builtin::Wordcount, "Ab, cD9\n\0ab\tÜber".as_bytes());
        assert_eq!(out.as_deref(), Ok("ab\t1\ncd9\t1\nab\t1\nÜber\t1\n"));
        assert_eq!(output(&Builtin::Wordcount, b"").as_deref(), Ok(""));
    }

    #[test]
    fn sums_or_the_line_that_cannot_be_summed() {
        let out = output(&Builtin::Sum, b"a\t1\na\t-3\n\t5\nb c\t170141183460469231731687303715884105727");
        assert_eq!(out.as_deref(), Ok("a\t-2\n\t5\nb c\t170141183460469231731687303715884105727\n"));
        for (bad, shown) in [("x\t1\ny\tz\n", "line 2"), ("plain\n", "plain"), ("k\t1\t1\n", "line 1")] {
            let failure = output(&Builtin::Sum, bad.as_bytes()).expect_err(bad);
            assert!(failure.code == ErrorCode::Invalid && failure.message.contains(shown), "{failure}");
        }
        let over = output(&Builtin::Sum, b"k\t170141183460469231731687303715884105727\nk\t1\n").expect_err("overflow");
        assert!(over.message.contains("too large"), "{over}");
    }

    #[test]
    fn grep_keeps_the_line_as_the_key() {
        let out = output(&Builtin::Grep("b.".into()), b"a b.c\td\nno\nb.");
        assert_eq!(out.as_deref(), Ok("a b.c\\td\t1\nb.\t1\n"));
    }

    #[test]
    fn limits_hold() {
        let (mut out, stop) = (Bytes::default(), StopHandle::new().expect("handle"));
        let mut endless = std::io::repeat(b'\n').chain(std::io::empty());
        let deadline = Some(Instant::now() + std::time::Duration::from_millis(50));
        let ended =
            run(&Builtin::Wordcount, Some(&mut endless), &mut out, &RunLimits { deadline, ..limits(1 << 20) }, &stop);
        assert_eq!(ended.result.expect_err("time").code, ErrorCode::Timeout);
        let mut endless = std::io::repeat(b'a');
        let ended = run(&Builtin::Wordcount, Some(&mut endless), &mut out, &limits(1 << 20), &stop);
        assert_eq!(ended.result.expect_err("output").code, ErrorCode::Storage);
        assert!(out.0.len() <= 1 << 20);
        stop.stop(StopReason::Cancelled);
        let ended = run(&Builtin::Noop, None, &mut out, &limits(1 << 20), &stop);
        assert_eq!(ended.result.expect_err("cancel").code, ErrorCode::Cancelled);
    }
}
