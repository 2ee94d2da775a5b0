//! One cache line of eight entries: compares without a branch per entry. Holds the prefetch.

pub(super) const LANES: usize = 8;

#[repr(C, align(64))]
#[derive(Clone, Copy, Default)]
pub(super) struct Line(pub(super) [u64; LANES]);

impl Line {
    /// Bit i is set if entry i has this fingerprint. Written for the vectorizer: eight independent
    /// compares, one mask.
    #[inline(always)]
    pub(super) fn matches(&self, fingerprint: u64) -> u32 {
        self.mask(|entry| entry >> super::LOCATION_BITS == fingerprint)
            & !self.mask(|entry| entry == 0)
    }

    /// Bit i is set if entry i is exactly `wanted`.
    #[inline(always)]
    pub(super) fn matches_entry(&self, wanted: u64) -> u32 {
        self.mask(|entry| entry == wanted)
    }

    #[inline(always)]
    fn mask(&self, test: impl Fn(u64) -> bool) -> u32 {
        (0..LANES).fold(0, |mask, lane| mask | u32::from(test(self.0[lane])) << lane)
    }

    #[inline(always)]
    pub(super) fn prefetch(&self) {
        crate::prefetch::read(std::ptr::from_ref(self).cast());
    }
}
