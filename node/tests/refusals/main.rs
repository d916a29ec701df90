//! Bad input, bad disks and bad peers, against the real program: every one is refused with a clear message and the
//! documented exit code, and the daemon goes on.

mod cli;
mod disk;
mod fuzz_corpus;
mod hostile;
mod input;
mod interrupts;
mod outputs;
mod strangers;
mod support;

#[path = "../../../fuzz/src/seeds.rs"]
mod seeds;
#[path = "../../../fuzz/src/targets.rs"]
#[expect(unreachable_pub, reason = "the fuzz crate exports it")]
mod targets;
