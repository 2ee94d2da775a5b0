//! The words that every room shares: keys, hashes, buckets, sequences, pushes, durability.
//!
//! Widths are fixed, because formats and placement depend on them. Nothing here allocates or
//! fails.

/// Number of buckets in every table of every store; fixed for all time by the formats.
pub const BUCKETS: u32 = 4096;
const BUCKET_BITS: u32 = BUCKETS.trailing_zeros();

/// Position of a change in the one order of a store; see `sequence`.
pub type Sequence = u64;

/// Names a table inside one store; never used again after a drop.
pub type TableId = u32;

/// Where a record lies on NVMe: byte offset in the log file divided by 16. 39 bits, so 8 TiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(pub u64);

impl Place {
    /// Records begin at multiples of this many bytes.
    pub const UNIT: u64 = 16;

    /// The place at byte `offset` of the log file.
    pub const fn at(offset: u64) -> Self {
        Self(offset / Self::UNIT)
    }

    /// Byte offset in the log file.
    pub const fn offset(self) -> u64 {
        self.0 * Self::UNIT
    }
}

/// What survives what; see the public API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Rows are durable after `flush` or `close`.
    None,
    /// An acknowledged push survives the process.
    Process,
    /// The same, and at most 200 ms are lost at a power cut.
    Interval,
    /// An acknowledged push survives a power cut.
    Always,
}

/// Who mutates, and how often before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Push {
    /// Session given to `attach`.
    pub session: u64,
    /// 1, 2, 3 ... within the session.
    pub number: u64,
    /// The trainer's step, if it gave one.
    pub step: Option<i64>,
}

/// The one documented hash of a key: the 64-bit finalizer of MurmurHash3. A bijection, so two
/// keys never share all 64 bits; placement, index and sketches each use their own bits of it.
#[inline(always)]
pub const fn hash(key: u64) -> u64 {
    let mut h = key;
    h ^= h >> 33;
    h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^= h >> 33;
    h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

/// Bucket of a key: the top bits of its hash.
#[inline(always)]
pub const fn bucket(hash: u64) -> u32 {
    (hash >> (64 - BUCKET_BITS)) as u32
}

/// Shard that owns a bucket when `shards` servers share all buckets in equal ranges.
#[inline(always)]
pub const fn shard_of_bucket(bucket: u32, shards: u32) -> u32 {
    (bucket as u64 * shards as u64 / BUCKETS as u64) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_cover_buckets_in_order() {
        for shards in [1, 2, 3, 7, 4096] {
            let owners: Vec<u32> = (0..BUCKETS).map(|b| shard_of_bucket(b, shards)).collect();
            assert!(owners.windows(2).all(|w| w[0] <= w[1]));
            assert_eq!((owners[0], owners[4095]), (0, shards - 1));
        }
    }

    #[test]
    fn hash_is_the_documented_one() {
        assert_eq!(hash(0), 0);
        assert_eq!(hash(1), 0xb456_bcfc_34c2_cb2c);
    }
}
