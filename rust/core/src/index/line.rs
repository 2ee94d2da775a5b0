//! One cache line of eight entries, compared all at once. Holds the prefetch.
//!
//! Whether an entry is wanted, empty or removed shows in its upper half alone: 24 bits of
//! fingerprint, never zero in an entry in use, above the top of the location.

pub(super) const LANES: usize = 8;

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

    /// Bit i is set if entry i was never used: no entry of the line spilled beyond it.
    #[inline(always)]
    pub(super) fn empty(&self) -> u32 {
        self.compare(u32::MAX, 0)
    }

    /// Bit i is set if entry i is empty or removed.
    #[inline(always)]
    pub(super) fn vacant(&self) -> u32 {
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

    #[inline(always)]
    pub(super) fn prefetch(&self) {
        crate::prefetch::read(std::ptr::from_ref(self).cast());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lane_is_seen_alone() {
        let removed = super::super::REMOVED;
        for lane in 0..LANES {
            let mut line = Line([3 << 40 | 9; LANES]);
            assert_eq!((line.matches(3), line.matches(2), line.vacant()), (0xff, 0, 0));
            line.0[lane] = 0;
            assert_eq!((line.empty(), line.vacant()), (1 << lane, 1 << lane));
            line.0[lane] = removed;
            assert_eq!((line.empty(), line.vacant()), (0, 1 << lane));
            line.0[lane] = 0xff_ffff << 40 | 1;
            assert_eq!((line.matches(0xff_ffff), line.matches(3)), (1 << lane, 0xff ^ 1 << lane));
        }
    }
}
