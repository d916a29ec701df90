//! What the kernel wrote down about processes that it ended for want of memory.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::OFlags;

/// The kernel's log, one record for each read. Only root may read it on most systems.
const LOG: &str = "/dev/kmsg";
/// Longest record.
const RECORD_LEN_MAX: usize = 8 * 1024;
/// Most records looked at: more than the log keeps by default.
const RECORDS_MAX: usize = 1 << 16;
/// How a record of such an end begins, after its header.
const OOM: &[u8] = b"oom-kill:";
/// Shorter names of containers could be parts of others.
const ID_LEN: usize = 64;

/// Whether the kernel says that it ended a process of the container with this id for want of memory. `false` where the log cannot
/// be read.
pub(super) fn is_in_kernel_log(id: &str) -> bool {
    let flags = OFlags::NONBLOCK | OFlags::CLOEXEC;
    let log = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(LOG);
    id.len() == ID_LEN && log.is_ok_and(|log| is_told(log, id))
}

fn is_told(mut log: impl Read, id: &str) -> bool {
    let mut record = vec![0; RECORD_LEN_MAX];
    for _ in 0..RECORDS_MAX {
        match log.read(&mut record) {
            Ok(0) => return false,
            Ok(len) => {
                let record = &record[..len];
                if memchr::memmem::find(record, OOM).is_some() && memchr::memmem::find(record, id.as_bytes()).is_some()
                {
                    return true;
                }
            }
            // Overwritten in between: the next read goes on after the gap.
            Err(e) if e.kind() == ErrorKind::BrokenPipe || e.kind() == ErrorKind::Interrupted => {}
            // The end of the log, or no right to read it.
            Err(_) => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives one record for each read, as the kernel does.
    struct Records(Vec<Result<String, ErrorKind>>);

    impl Read for Records {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            if self.0.is_empty() {
                return Err(ErrorKind::WouldBlock.into());
            }
            self.0.remove(0).map_err(Into::into).map(|text| {
                buffer[..text.len()].copy_from_slice(text.as_bytes());
                text.len()
            })
        }
    }

    #[test]
    fn only_an_end_for_want_of_memory_in_that_container_counts() {
        let id = "ab".repeat(32);
        let oom =
            |id: &str| Ok(format!("4,812,6629,-;oom-kill:constraint=CONSTRAINT_MEMCG,oom_memcg=/docker/{id},task=dd"));
        let other = || Ok(format!("6,811,6628,-;something about {id}"));
        let told = |records| is_told(Records(records), &id);
        assert!(told(vec![other(), Err(ErrorKind::BrokenPipe), oom(&"cd".repeat(32)), oom(&id)]));
        assert!(!told(vec![other(), oom(&"cd".repeat(32))]) && !told(vec![Err(ErrorKind::PermissionDenied), oom(&id)]));
        assert!(!is_in_kernel_log("") && !is_in_kernel_log(&id));
    }
}
