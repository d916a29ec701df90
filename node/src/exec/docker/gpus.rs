//! Which GPUs of this machine are taken: two tasks never get the same one.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// The numbers of GPUs in use.
#[derive(Debug, Clone, Default)]
pub(super) struct GpuPool(Arc<Mutex<BTreeSet<u32>>>);

/// GPUs that a task has. Dropping it gives them back.
#[derive(Debug)]
pub(super) struct Gpus {
    pool: GpuPool,
    pub(super) numbers: Vec<u32>,
}

impl GpuPool {
    /// The lowest free ones. Whether the machine has as many, its engine says when the container starts.
    pub(super) fn take(&self, wanted: u32) -> Gpus {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let numbers: Vec<u32> = (0..).filter(|n| !taken.contains(n)).take(wanted as usize).collect();
        taken.extend(&numbers);
        Gpus { pool: self.clone(), numbers }
    }
}

impl Drop for Gpus {
    fn drop(&mut self) {
        let mut taken = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        taken.retain(|n| !self.numbers.contains(n));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_gpu_is_given_twice() {
        let pool = GpuPool::default();
        let (one, two) = (pool.take(1), pool.take(2));
        assert_eq!((&one.numbers[..], &two.numbers[..]), (&[0][..], &[1, 2][..]));
        drop(one);
        assert_eq!(pool.take(2).numbers, [0, 3]);
        assert!(pool.take(0).numbers.is_empty());
    }
}
