//! Frames packed for the way: LZ4 blocks. A frame of many facts repeats itself: authors, jobs, and the upper part of Merkle
//! paths that facts of one batch share.
//!
//! Packed: `u32 BE length unpacked ‖ LZ4 block`.

use lz4_flex::block::{compress_into, decompress_into, get_maximum_output_size};

/// Shorter frames travel as they are: there is little in them to be found twice.
const PACKED_FROM: usize = 512;
/// Bytes in front of the block.
const HEAD_LEN: usize = 4;
/// What one byte of an LZ4 block can stand for at most.
const RATIO_MAX: usize = 255;

/// Why a packed frame was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnpackError {
    /// It announces more than the limit.
    #[error("it announces {len} bytes unpacked, the limit is {max}")]
    TooLong {
        /// Announced length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// Not a block, or not one of the length announced.
    #[error("it does not unpack to the length that it announces")]
    Damaged,
}

/// Packs a frame; `None` when it would not become shorter.
#[must_use]
pub fn pack(frame: &[u8]) -> Option<Vec<u8>> {
    if frame.len() < PACKED_FROM {
        return None;
    }
    let len = u32::try_from(frame.len()).ok()?;
    let mut packed = vec![0; HEAD_LEN + get_maximum_output_size(frame.len())];
    let (head, block) = packed.split_at_mut(HEAD_LEN);
    head.copy_from_slice(&len.to_be_bytes());
    let block_len = compress_into(frame, block).ok()?;
    packed.truncate(HEAD_LEN + block_len);
    (packed.len() < frame.len()).then_some(packed)
}

/// Unpacks what [`pack`] made, if it is at most `max` bytes. What is set aside for it grows with what arrived.
///
/// # Errors
/// [`UnpackError`].
pub fn unpack(packed: &[u8], max: usize) -> Result<Vec<u8>, UnpackError> {
    let (head, block) = packed.split_first_chunk::<HEAD_LEN>().ok_or(UnpackError::Damaged)?;
    let len = usize::try_from(u32::from_be_bytes(*head)).unwrap_or(usize::MAX);
    if len > max {
        return Err(UnpackError::TooLong { len, max });
    }
    if len > block.len().saturating_mul(RATIO_MAX) {
        return Err(UnpackError::Damaged);
    }
    let mut frame = vec![0; len];
    match decompress_into(block, &mut frame) {
        Ok(written) if written == len => Ok(frame),
        _ => Err(UnpackError::Damaged),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_repeats_gets_shorter_and_what_does_not_stays() {
        let frame: Vec<u8> = (0..2_000u32).flat_map(|n| (n % 64).to_le_bytes()).collect();
        let packed = pack(&frame).expect("it repeats");
        assert!(packed.len() * 10 < frame.len(), "{} of {}", packed.len(), frame.len());
        assert_eq!(unpack(&packed, frame.len()), Ok(frame.clone()));
        let max = frame.len() - 1;
        assert_eq!(unpack(&packed, max), Err(UnpackError::TooLong { len: frame.len(), max }));
        let mut digests = blake3::Hasher::new().finalize_xof();
        let mut random = [0; 4_096];
        digests.fill(&mut random);
        assert_eq!(pack(&random), None);
        assert_eq!(pack(&[0; PACKED_FROM - 1]), None);
    }

    #[test]
    fn a_short_block_cannot_have_much_set_aside() {
        let mut bomb = u32::MAX.to_be_bytes().to_vec();
        bomb.extend([0x1f; 100]);
        assert_eq!(unpack(&bomb, usize::MAX), Err(UnpackError::Damaged));
        assert_eq!(unpack(&[0, 0, 0], 10), Err(UnpackError::Damaged));
        let mut cut = pack(&[7; 1_000]).expect("it repeats");
        cut.pop();
        assert_eq!(unpack(&cut, 1_000), Err(UnpackError::Damaged));
        let mut longer = pack(&[7; 1_000]).expect("it repeats");
        longer[..4].copy_from_slice(&1_001_u32.to_be_bytes());
        assert_eq!(unpack(&longer, 2_000), Err(UnpackError::Damaged));
    }

    proptest! {
        #[test]
        fn packing_loses_nothing(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..64), times in 1..8_usize) {
            let frame = parts.concat().repeat(times);
            if let Some(packed) = pack(&frame) {
                prop_assert_eq!(unpack(&packed, frame.len()), Ok(frame));
            }
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = unpack(&bytes, 1 << 16);
        }
    }
}
