//! One cache line of eight entries, compared all at once. Holds the prefetch.
//!
//! Whether an entry is wanted or empty shows in its upper half alone: 24 bits of fingerprint, never
//! zero in an entry in use, above the top of the location.

use crate::arena::Arena;

pub(super) const LANES: usize = 8;
/// Bytes of a line.
pub(super) const BYTES: usize = size_of::<Line>();

const FINGERPRINT_MASK: u32 = !0xff;

#[repr(C, align(64))]
#[derive(Clone, Copy, Default)]
pub(super) struct Line(pub(super) [u64; LANES]);

impl Line {
    /// Bit i is set if entry i has this fingerprint.
    #[inline(always)]
    pub(super) fn matches(&self, fingerprint: u64) -> u32 {
        self.compare(FINGERPRINT_MASK, (fingerprint as u32) << 8)
    }

    /// Bit i is set if entry i is empty.
    #[inline(always)]
    pub(super) fn empty(&self) -> u32 {
        self.matches(0)
    }

    /// Bit i is set if the upper half of entry i, masked, is `wanted`.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    #[allow(
        unsafe_code,
        reason = "compilers do not find this in a loop, and it is half of a probe"
    )]
    fn compare(&self, mask: u32, wanted: u32) -> u32 {
        use std::arch::x86_64::{
            _mm_and_si128, _mm_castps_si128, _mm_cmpeq_epi32, _mm_load_ps, _mm_movemask_epi8,
            _mm_packs_epi16, _mm_packs_epi32, _mm_set1_epi32, _mm_setzero_si128, _mm_shuffle_ps,
        };
        // SAFETY: SSE2 is part of x86-64; four aligned loads of 16 bytes cover exactly the line.
        unsafe {
            let start = self.0.as_ptr().cast::<f32>();
            let compare = |at: usize| {
                let (low, high) = (_mm_load_ps(start.add(at)), _mm_load_ps(start.add(at + 4)));
                let upper = _mm_castps_si128(_mm_shuffle_ps::<0b11_01_11_01>(low, high));
                let masked = _mm_and_si128(upper, _mm_set1_epi32(mask as i32));
                _mm_cmpeq_epi32(masked, _mm_set1_epi32(wanted as i32))
            };
            let equal = _mm_packs_epi32(compare(0), compare(8));
            _mm_movemask_epi8(_mm_packs_epi16(equal, _mm_setzero_si128())) as u32
        }
    }

    /// Bit i is set if the upper half of entry i, masked, is `wanted`.
    #[cfg(not(target_arch = "x86_64"))]
    #[inline(always)]
    fn compare(&self, mask: u32, wanted: u32) -> u32 {
        let equal = |lane: usize| u32::from((self.0[lane] >> 32) as u32 & mask == wanted);
        (0..LANES).fold(0, |all, lane| all | equal(lane) << lane)
    }
}

/// A run of lines in the arena: where it begins, in lines, above how many there are. Whoever has
/// one took its memory, and owns it alone.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Region(u64);

const COUNT_BITS: u32 = 24;
/// Most lines of a region.
pub(super) const LINES_MAX: usize = (1 << COUNT_BITS) - 1;

impl Region {
    /// Takes memory for lines that fill `bytes`, all empty. `None` if no address space is left.
    pub(super) fn take(arena: &Arena, bytes: usize) -> Option<Self> {
        if bytes == 0 {
            return Some(Self::default());
        }
        let start = arena.take(bytes)? / BYTES as u64;
        let mut region = Self(start << COUNT_BITS | (bytes / BYTES) as u64);
        region.lines_mut(arena).fill(Line::default());
        Some(region)
    }

    pub(super) fn give(self, arena: &Arena) {
        if self.count() > 0 {
            arena.give(self.start() as u64, self.bytes());
        }
    }

    #[inline(always)]
    pub(super) fn count(self) -> usize {
        self.0 as usize & LINES_MAX
    }

    pub(super) fn bytes(self) -> usize {
        self.count() * BYTES
    }

    #[inline(always)]
    fn start(self) -> usize {
        (self.0 >> COUNT_BITS) as usize * BYTES
    }

    /// Asks for a line ahead of its use.
    #[inline(always)]
    pub(super) fn prefetch(self, arena: &Arena, line: usize) {
        crate::prefetch::read(arena.hint(self.start() + line * BYTES));
    }

    #[inline(always)]
    #[allow(unsafe_code, reason = "lines are laid out by hand")]
    pub(super) fn lines(&self, arena: &Arena) -> &[Line] {
        // SAFETY: the memory was taken by `take`, which wrote every line; it is aligned to lines,
        // and its owner lends it as long as this is borrowed.
        unsafe {
            let start = arena.at(self.start()).cast::<Line>();
            std::slice::from_raw_parts(start.as_ptr(), self.count())
        }
    }

    #[inline(always)]
    #[allow(unsafe_code, reason = "lines are laid out by hand")]
    pub(super) fn lines_mut(&mut self, arena: &Arena) -> &mut [Line] {
        // SAFETY: as `lines`; `&mut self` excludes all others. In `take` nothing was written yet,
        // but any bytes are a line.
        unsafe {
            let start = arena.at(self.start()).cast::<Line>();
            std::slice::from_raw_parts_mut(start.as_ptr(), self.count())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lane_is_seen_alone() {
        for lane in 0..LANES {
            let mut line = Line([3 << 40 | 9; LANES]);
            assert_eq!((line.matches(3), line.matches(2), line.empty()), (0xff, 0, 0));
            line.0[lane] = 0;
            assert_eq!((line.matches(3), line.empty()), (0xff ^ 1 << lane, 1 << lane));
            line.0[lane] = 0xff_ffff << 40 | 1;
            assert_eq!((line.matches(0xff_ffff), line.matches(3)), (1 << lane, 0xff ^ 1 << lane));
        }
    }

    #[test]
    fn a_region_is_empty_when_taken_whatever_was_there() {
        let arena = Arena::scratch();
        for _ in 0..2 {
            let mut region = Region::take(&arena, 128).unwrap();
            assert!(region.lines(&arena).iter().all(|line| line.empty() == 0xff));
            region.lines_mut(&arena).fill(Line([u64::MAX; LANES]));
            region.give(&arena);
        }
        assert_eq!(arena.pages_taken(), 0);
    }
}
