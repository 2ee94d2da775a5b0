//! An entry of the index as images keep it: what finds the row of a key that is on NVMe.

use super::{fingerprint, hash_of, Location, LOCATION_BITS, LOCATION_MASK, NVME};
use crate::types::Place;

/// Fingerprint and place of a key of one bucket. In order of their fingerprints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry(u64);

impl Entry {
    pub(crate) fn new(hash: u64, place: Place) -> Self {
        Self(fingerprint(hash) << LOCATION_BITS | Location::nvme(place).0)
    }

    /// None if no entry looks like this.
    pub(crate) fn from_bits(bits: u64) -> Option<Self> {
        let is_entry =
            bits >> LOCATION_BITS != 0 && bits & NVME != 0 && bits & LOCATION_MASK & !NVME != 0;
        is_entry.then_some(Self(bits))
    }

    pub(crate) fn bits(self) -> u64 {
        self.0
    }

    pub(crate) fn place(self) -> Place {
        Place::from_bits(self.0 & LOCATION_MASK & !NVME)
    }

    /// Whether it may be that of a key of its bucket with this hash.
    pub(crate) fn is_like(self, hash: u64) -> bool {
        self.0 >> LOCATION_BITS == fingerprint(hash)
    }

    /// Whether it comes, in order, before all that are like this hash.
    pub(crate) fn is_before(self, hash: u64) -> bool {
        self.0 >> LOCATION_BITS < fingerprint(hash)
    }

    /// A hash that the index cannot tell from that of its key.
    pub(crate) fn hash_in(self, bucket: u32) -> u64 {
        hash_of(bucket, self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::bucket;

    #[test]
    fn the_index_cannot_tell_its_hash_from_the_key_s() {
        for hash in [0, 1, 0x1234_5678_9abc_def0, u64::MAX, 0xfff0_0000_0000_0001] {
            let entry = Entry::new(hash, Place::from_bits(77));
            assert_eq!(Entry::from_bits(entry.bits()), Some(entry));
            let other = entry.hash_in(bucket(hash));
            assert_eq!((bucket(other), fingerprint(other)), (bucket(hash), fingerprint(hash)));
            assert!(entry.is_like(hash) && !entry.is_like(hash ^ 1 << 40));
            assert_eq!(entry.place(), Place::from_bits(77));
        }
    }

    #[test]
    fn what_is_no_entry_is_refused() {
        let good = Entry::new(1 << 40, Place::from_bits(1)).bits();
        assert!(Entry::from_bits(good).is_some());
        for bits in [0, good & LOCATION_MASK, good & !NVME, good & !1] {
            assert_eq!(Entry::from_bits(bits), None, "{bits:x}");
        }
    }
}
