//! Stream framing: how many bytes the next message takes, judged from its first eight bytes on,
//! before anything is allocated for it.

use crate::message::Malformed;

/// Most segments a message may have: the limit that Cap'n Proto's own stream readers set.
pub const SEGMENTS_MAX: usize = 512;

/// Size of a message on a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameSize {
    /// Undecided; the answer needs at least so many bytes from the start of the frame.
    Needs(usize),
    /// The whole frame in bytes, segment table included.
    Known(usize),
}

impl FrameSize {
    /// Reads the segment table at the start of `bytes`.
    ///
    /// # Errors
    /// Too many segments, or a frame of more than `limit` bytes.
    pub fn of(bytes: &[u8], limit: usize) -> Result<Self, Malformed> {
        let Some(count) = u32_at(bytes, 0) else { return Ok(Self::Needs(8)) };
        if count as usize >= SEGMENTS_MAX {
            return Err(Malformed("message has too many segments"));
        }
        let segments = count as usize + 1;
        let table = (4 + 4 * segments).next_multiple_of(8);
        // The sum is judged as far as it is known: a lying first segment fails at once.
        let mut words = table as u64 / 8;
        for segment in 0..segments {
            let Some(size) = u32_at(bytes, 4 + 4 * segment) else {
                return Ok(Self::Needs(table));
            };
            words += u64::from(size);
            if words > limit as u64 / 8 {
                return Err(Malformed("incoming RPC message exceeds size limit"));
            }
        }
        if bytes.len() < table {
            return Ok(Self::Needs(table));
        }
        Ok(Self::Known(words as usize * 8))
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at + 4)?;
    Some(u32::from_le_bytes(four.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(sizes: &[u32]) -> Vec<u8> {
        let mut bytes = (sizes.len() as u32 - 1).to_le_bytes().to_vec();
        for size in sizes {
            bytes.extend(size.to_le_bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    #[test]
    fn sizes_are_known_as_soon_as_the_table_is() {
        let bytes = table(&[3, 5]);
        assert_eq!(FrameSize::of(&bytes[..3], 1000), Ok(FrameSize::Needs(8)));
        assert_eq!(FrameSize::of(&bytes[..8], 1000), Ok(FrameSize::Needs(16)));
        assert_eq!(FrameSize::of(&bytes, 1000), Ok(FrameSize::Known(16 + 64)));
        assert_eq!(FrameSize::of(&table(&[0]), 1000), Ok(FrameSize::Known(8)));
    }

    #[test]
    fn lies_are_refused_from_the_first_eight_bytes() {
        assert!(FrameSize::of(&table(&[u32::MAX])[..8], 1 << 26).is_err());
        assert!(FrameSize::of(&600u32.to_le_bytes(), 1 << 26).is_err());
        assert!(FrameSize::of(&u32::MAX.to_le_bytes(), 1 << 26).is_err());
        // The limit is inclusive.
        assert_eq!(FrameSize::of(&table(&[7]), 64), Ok(FrameSize::Known(64)));
        assert!(FrameSize::of(&table(&[8]), 64).is_err());
    }
}
