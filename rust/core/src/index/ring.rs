//! What was found of the latest keys of a batch.

use super::Location;

/// Locations by the number of their key; the latest `LEN` are kept.
pub(crate) struct LocationRing([u64; LocationRing::LEN]);

impl LocationRing {
    pub(crate) const LEN: usize = 128;

    #[inline(always)]
    pub(crate) fn set(&mut self, n: usize, location: Option<Location>) {
        self.0[n % Self::LEN] = location.map_or(0, |location| location.0);
    }

    #[inline(always)]
    pub(crate) fn get(&self, n: usize) -> Option<Location> {
        let location = self.0[n % Self::LEN];
        (location != 0).then_some(Location(location))
    }
}

impl Default for LocationRing {
    fn default() -> Self {
        Self([0; Self::LEN])
    }
}
