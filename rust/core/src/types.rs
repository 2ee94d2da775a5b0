//! The words that every room shares: keys, hashes, buckets, sequences, pushes, durability.
//!
//! Widths are fixed, because formats and placement depend on them. Nothing here allocates or
//! fails.

/// Number of buckets in every table of every store; fixed for all time by the formats.
pub const BUCKETS: u32 = 4096;
const BUCKET_BITS: u32 = BUCKETS.trailing_zeros();

/// Position of a change in the one order of a store; see `sequence`.
pub type Sequence = u64;

/// Which primary of a shard wrote; only grows.
pub(crate) type Epoch = u64;

/// Names a table inside one store; never used again after a drop.
pub type TableId = u32;

/// What a record can lie on, beside DRAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Disk {
    /// The data directory.
    Nvme,
    /// The cold directory, on a slower disk.
    Cold,
}

/// Where a record lies: the disk, and the byte offset in its log file divided by 16. 39 bits, of
/// which the highest names the disk, so 4 TiB on each. Places sort by disk, then by offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(u64);

impl Place {
    /// Records begin at multiples of this many bytes.
    pub const UNIT: u64 = 16;
    /// Bits of a place.
    pub const BITS: u32 = 39;
    /// Offsets are below this.
    pub const BYTES_MAX: u64 = Self::COLD * Self::UNIT;

    const COLD: u64 = 1 << (Self::BITS - 1);

    /// The place at byte `offset` of the log file of a disk.
    pub const fn at(disk: Disk, offset: u64) -> Self {
        debug_assert!(offset < Self::BYTES_MAX);
        match disk {
            Disk::Nvme => Self(offset / Self::UNIT),
            Disk::Cold => Self((offset / Self::UNIT) | Self::COLD),
        }
    }

    /// The place so many bytes behind this one, on the same disk.
    pub const fn plus(self, bytes: u64) -> Self {
        Self(self.0 + bytes / Self::UNIT)
    }

    /// The disk that it is on.
    pub const fn disk(self) -> Disk {
        if self.0 & Self::COLD == 0 {
            Disk::Nvme
        } else {
            Disk::Cold
        }
    }

    /// Byte offset in the log file of its disk.
    pub const fn offset(self) -> u64 {
        (self.0 & !Self::COLD) * Self::UNIT
    }

    /// All of it in the low `BITS` bits; zero for no record's place.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Of `bits`.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
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

/// The session of what workers push together; a client draws smaller ones. Its numbers are those of
/// the rounds, and a step that was applied is a duplicate in it: a worker that came back replays.
pub const WORKERS_SESSION: u64 = u64::MAX;

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
    fn a_place_tells_its_disk_and_its_offset() {
        for disk in [Disk::Nvme, Disk::Cold] {
            for offset in [0, 16, 4096, Place::BYTES_MAX - 16] {
                let place = Place::at(disk, offset);
                assert_eq!((place.disk(), place.offset()), (disk, offset));
                assert!(place.bits() < 1 << Place::BITS);
                assert_eq!(Place::from_bits(place.bits()), place);
            }
            assert_eq!(Place::at(disk, 4096).plus(32), Place::at(disk, 4128));
        }
        assert!(Place::at(Disk::Nvme, Place::BYTES_MAX - 16) < Place::at(Disk::Cold, 0));
    }

    #[test]
    fn hash_is_the_documented_one() {
        assert_eq!(hash(0), 0);
        assert_eq!(hash(1), 0xb456_bcfc_34c2_cb2c);
    }
}
