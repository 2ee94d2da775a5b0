//! From key to place: one 8-byte entry finds a row in any tier.
//!
//! An entry is a 24-bit fingerprint and a 40-bit location. A line of the machine's cache holds
//! eight of them; the region of a bucket is a run of lines of its own, so that a bucket can be
//! listed, copied or dropped alone, and grows, and shrinks, alone. Growth needs no keys: the home
//! line inside a region follows from the fingerprint. A full line spills into the next of its
//! region; a removal pulls spilled entries back, so that no mark of it stays. While there are few
//! keys, one region serves all buckets: there a line holds seven entries, and their buckets.
//!
//! Bucket and fingerprint together are 36 bits of the hash; the key itself is verified in the row,
//! so a false match costs a visit, never a wrong row.

mod entry;
mod line;
mod regions;
mod ring;

use std::sync::Arc;

use crate::arena::Arena;
use crate::types::{bucket, Disk, Place, BUCKETS};
use line::{Line, Region, LANES};

pub(crate) use entry::Entry;
pub(crate) use ring::LocationRing;

/// Where a row lies: a tier and an offset in units of 16 bytes. Never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Location(u64);

/// A place, not DRAM.
const NVME: u64 = 1 << Place::BITS;
const LOCATION_BITS: u32 = 40;
const LOCATION_MASK: u64 = (1 << LOCATION_BITS) - 1;
const FINGERPRINT_BITS: u32 = 24;
/// The lane that tells the buckets of the others, where one region serves all.
const BUCKETS_LANE: usize = LANES - 1;

impl Location {
    /// A row in the arena, `units` * 16 bytes from its start.
    pub(crate) fn dram(units: u64) -> Self {
        debug_assert!(units > 0 && units < NVME);
        Self(units)
    }

    pub(crate) fn nvme(place: Place) -> Self {
        debug_assert!(place.bits() > 0);
        Self(place.bits() | NVME)
    }

    fn is_cold(self) -> bool {
        self.resolve().is_err_and(|place| place.disk() == Disk::Cold)
    }

    /// Arena units, or the place of the record.
    #[inline(always)]
    pub(crate) fn resolve(self) -> Result<u64, Place> {
        if self.0 & NVME == 0 {
            Ok(self.0)
        } else {
            Err(Place::from_bits(self.0 & !NVME))
        }
    }
}

/// A lane of an index; valid until the index next changes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    region: u32,
    line: u32,
    lane: u32,
}

/// The index of one table's keys in `buckets` neighbouring buckets.
pub(crate) struct Index {
    arena: Arc<Arena>,
    /// One for each bucket, or one for all.
    regions: Box<[Region]>,
    /// Keys of each region.
    counts: Box<[u32]>,
    buckets: u32,
    /// Lanes of a line that hold entries, as bits.
    lanes: u32,
    keys: usize,
    /// Keys whose row is on the cold disk.
    cold: usize,
    /// Bytes of all regions.
    region_bytes: usize,
}

/// Bits of the hash below those of the bucket. Never zero: that marks lanes not in use.
#[inline(always)]
fn fingerprint(hash: u64) -> u64 {
    ((hash >> (64 - 12 - FINGERPRINT_BITS)) & ((1 << FINGERPRINT_BITS) - 1)).max(1)
}

/// Cells of the key space: what the index tells apart. In order of the buckets; a bucket has
/// `CELLS_A_BUCKET` of them.
pub(crate) const CELLS: u64 = BUCKETS as u64 * CELLS_A_BUCKET;
pub(crate) const CELLS_A_BUCKET: u64 = 1 << FINGERPRINT_BITS;

/// The cell of a key with this hash.
pub(crate) fn cell(hash: u64) -> u64 {
    u64::from(bucket(hash)) * CELLS_A_BUCKET + fingerprint(hash)
}

/// The line of a region of `count` at which the search for a fingerprint begins.
#[inline(always)]
fn home(fingerprint: u64, count: usize) -> usize {
    ((fingerprint * count as u64) >> FINGERPRINT_BITS) as usize
}

impl Index {
    pub(crate) fn new(arena: Arc<Arena>, buckets: u32) -> Self {
        debug_assert!(buckets.is_power_of_two() && buckets <= 256);
        let lanes = regions::lanes(buckets == 1);
        let (regions, counts) = (vec![Region::default()].into(), vec![0].into());
        Self { arena, regions, counts, buckets, lanes, keys: 0, cold: 0, region_bytes: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.keys
    }

    /// Keys whose row is on the cold disk, and not in DRAM.
    pub(crate) fn cold(&self) -> usize {
        self.cold
    }

    pub(crate) fn bytes(&self) -> u64 {
        (self.region_bytes + self.regions.len() * regions::ACCOUNT) as u64
    }

    #[inline(always)]
    fn region(&self, hash: u64) -> usize {
        bucket(hash) as usize & (self.regions.len() - 1)
    }

    /// Asks for the key's home line ahead of its use.
    #[inline(always)]
    pub(crate) fn prefetch(&self, hash: u64) {
        let region = self.regions[self.region(hash)];
        region.prefetch(&self.arena, home(fingerprint(hash), region.count()));
    }

    /// The entry of this hash whose location `is_match` accepts.
    #[inline(always)]
    pub(crate) fn find(
        &self,
        hash: u64,
        mut is_match: impl FnMut(Location) -> bool,
    ) -> Option<(Slot, Location)> {
        let region = self.region(hash);
        let (wanted, lines) = (fingerprint(hash), self.regions[region].lines(&self.arena));
        let (mut at, is_shared) = (home(wanted, lines.len()), self.is_shared());
        for _ in 0..lines.len() {
            let line = &lines[at];
            let mut matches = line.matches(wanted) & self.lanes;
            while matches != 0 {
                let lane = matches.trailing_zeros();
                let location = Location(line.0[lane as usize] & LOCATION_MASK);
                let is_other =
                    is_shared && (bucket_of(line, lane) ^ bucket(hash)) & (self.buckets - 1) != 0;
                if !is_other && is_match(location) {
                    let slot = Slot { region: region as u32, line: at as u32, lane };
                    return Some((slot, location));
                }
                matches &= matches - 1;
            }
            if line.empty() & self.lanes != 0 {
                return None;
            }
            at = if at + 1 == lines.len() { 0 } else { at + 1 };
        }
        None
    }

    /// Where a new entry of this hash would go; `None` if the region is full: `grow`, then again.
    pub(crate) fn vacancy(&self, hash: u64) -> Option<Slot> {
        let region = self.region(hash);
        let lines = self.regions[region].lines(&self.arena);
        if self.counts[region] as usize >= self.keys_max(region, lines.len()) {
            return None;
        }
        vacancy(lines, self.lanes, fingerprint(hash)).map(|(line, lane)| Slot {
            region: region as u32,
            line: line as u32,
            lane,
        })
    }

    /// Adds the entry of a key that has none at its vacancy.
    pub(crate) fn insert(&mut self, slot: Slot, hash: u64, location: Location) {
        let is_shared = self.is_shared();
        let line = self.line_mut(slot);
        debug_assert_eq!(line.0[slot.lane as usize], 0);
        line.0[slot.lane as usize] = fingerprint(hash) << LOCATION_BITS | location.0;
        if is_shared {
            set_bucket(line, slot.lane, bucket(hash));
        }
        self.counts[slot.region as usize] += 1;
        self.keys += 1;
        self.cold += usize::from(location.is_cold());
    }

    /// Points an entry elsewhere.
    #[inline(always)]
    pub(crate) fn relocate(&mut self, slot: Slot, location: Location) {
        let lane = &mut self.line_mut(slot).0[slot.lane as usize];
        let old = Location(*lane & LOCATION_MASK);
        *lane = *lane & !LOCATION_MASK | location.0;
        self.cold = self.cold + usize::from(location.is_cold()) - usize::from(old.is_cold());
    }

    #[inline(always)]
    fn line_mut(&mut self, slot: Slot) -> &mut Line {
        &mut self.regions[slot.region as usize].lines_mut(&self.arena)[slot.line as usize]
    }

    /// Takes an entry away; where few are left memory is given back.
    pub(crate) fn remove(&mut self, slot: Slot) {
        let (lanes, is_shared) = (self.lanes, self.is_shared());
        let lines = self.regions[slot.region as usize].lines_mut(&self.arena);
        let old = Location(lines[slot.line as usize].0[slot.lane as usize] & LOCATION_MASK);
        self.cold -= usize::from(old.is_cold());
        close(lines, lanes, is_shared, slot);
        self.counts[slot.region as usize] -= 1;
        self.keys -= 1;
        self.shrink(slot.region as usize);
    }

    /// Locations of all keys of one of its buckets.
    pub(crate) fn bucket_locations(&self, bucket: u32) -> impl Iterator<Item = Location> + '_ {
        self.bucket_entries(bucket).map(|(_, location)| location)
    }

    /// Of every key of one of its buckets a hash that the index cannot tell from the key's, and the
    /// location.
    pub(crate) fn bucket_entries(&self, bucket: u32) -> impl Iterator<Item = (u64, Location)> + '_ {
        let own = bucket & (self.buckets - 1);
        let region = self.regions[own as usize & (self.regions.len() - 1)];
        let is_shared = self.is_shared();
        let entries = self.entries(region).filter(move |e| !is_shared || e.0 == own);
        entries.map(move |(_, bits)| (hash_of(bucket, bits), Location(bits & LOCATION_MASK)))
    }

    /// Locations of all keys.
    pub(crate) fn locations(&self) -> impl Iterator<Item = Location> + '_ {
        let entries = self.regions.iter().flat_map(|&region| self.entries(region));
        entries.map(|entry| Location(entry.1 & LOCATION_MASK))
    }
}

/// What bucket and fingerprint say of a hash; its other bits are zero.
fn hash_of(bucket: u32, entry: u64) -> u64 {
    let known = u64::from(bucket) << FINGERPRINT_BITS | entry >> LOCATION_BITS;
    known << (64 - BUCKETS.trailing_zeros() - FINGERPRINT_BITS)
}

/// Line and lane for a new entry. `None` if every line is full.
fn vacancy(lines: &[Line], lanes: u32, fingerprint: u64) -> Option<(usize, u32)> {
    let first = home(fingerprint, lines.len());
    (first..lines.len()).chain(0..first).find_map(|at| {
        let empty = lines[at].empty() & lanes;
        (empty != 0).then(|| (at, empty.trailing_zeros()))
    })
}

/// Empties a lane. What had passed over its line when that was full comes back into it, and so on:
/// else a search would end too early.
fn close(lines: &mut [Line], lanes: u32, is_shared: bool, slot: Slot) {
    let count = lines.len();
    let (mut hole, mut lane) = (slot.line as usize, slot.lane);
    let mut at = hole;
    for _ in 1..count {
        if lines[at].empty() & lanes != 0 {
            // Nothing went past a line with an empty lane.
            break;
        }
        at = if at + 1 == count { 0 } else { at + 1 };
        let way = (at + count - hole) % count;
        let has_passed = |&from: &u32| {
            let entry = lines[at].0[from as usize];
            let home = home(entry >> LOCATION_BITS, count);
            entry != 0 && (at + count - home) % count >= way
        };
        let passed = (0..LANES as u32).filter(|lane| lanes & 1 << lane != 0).find(has_passed);
        if let Some(from) = passed {
            lines[hole].0[lane as usize] = lines[at].0[from as usize];
            if is_shared {
                let bucket = bucket_of(&lines[at], from);
                set_bucket(&mut lines[hole], lane, bucket);
            }
            (hole, lane) = (at, from);
        }
    }
    lines[hole].0[lane as usize] = 0;
}

/// The bucket of an entry, of a line that says so: its low eight bits.
fn bucket_of(line: &Line, lane: u32) -> u32 {
    (line.0[BUCKETS_LANE] >> (8 * lane)) as u32 & 0xff
}

fn set_bucket(line: &mut Line, lane: u32, bucket: u32) {
    let all = &mut line.0[BUCKETS_LANE];
    *all = *all & !(0xff << (8 * lane)) | u64::from(bucket & 0xff) << (8 * lane);
}

impl Drop for Index {
    fn drop(&mut self) {
        self.regions.iter().for_each(|region| region.give(&self.arena));
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
