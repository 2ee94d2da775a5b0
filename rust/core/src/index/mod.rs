//! From key to place: one 8-byte entry finds a row in any tier.
//!
//! An entry is a 24-bit fingerprint and a 40-bit location. A line of the machine's cache holds
//! eight of them; the region of a bucket is a run of lines of its own, so that a bucket can be
//! listed alone and growth needs no keys: the home line inside a region follows from the
//! fingerprint. A full line spills into the next of its region. Bucket and fingerprint together
//! are 36 bits of the hash; the key itself is verified in the row, so a false match costs a
//! visit, never a wrong row.

mod line;
mod ring;

use crate::types::{bucket, Place};
use line::{Line, LANES};

pub(crate) use ring::LocationRing;

/// Where a row lies: a tier and an offset in units of 16 bytes. Never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Location(u64);

const NVME: u64 = 1 << 39;
const LOCATION_BITS: u32 = 40;
const LOCATION_MASK: u64 = (1 << LOCATION_BITS) - 1;
const FINGERPRINT_BITS: u32 = 24;
/// An entry that was removed: probes go on past it, inserts may take it.
const REMOVED: u64 = LOCATION_MASK;
/// Share of lanes in use at which a region counts as full: beyond, probes grow long.
const LOAD_MAX: f64 = 0.90;

impl Location {
    /// A row in the arena, `units` * 16 bytes from its start.
    pub(crate) fn dram(units: u64) -> Self {
        debug_assert!(units > 0 && units < NVME);
        Self(units)
    }

    pub(crate) fn nvme(place: Place) -> Self {
        debug_assert!(place.0 > 0 && place.0 < NVME - 1);
        Self(place.0 | NVME)
    }

    /// Arena units, or the place on NVMe.
    #[inline(always)]
    pub(crate) fn resolve(self) -> Result<u64, Place> {
        if self.0 & NVME == 0 {
            Ok(self.0)
        } else {
            Err(Place(self.0 & !NVME))
        }
    }
}

/// A lane of an index; valid until the index next changes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    line: u32,
    lane: u32,
}

/// The index of one table's keys in `buckets` neighbouring buckets.
pub(crate) struct Index {
    lines: Vec<Line>,
    buckets: u32,
    lines_per_bucket: u32,
    keys: usize,
    removed: usize,
}

/// Bits of the hash below those of the bucket. Never zero: that marks entries not in use.
#[inline(always)]
fn fingerprint(hash: u64) -> u64 {
    ((hash >> (64 - 12 - FINGERPRINT_BITS)) & ((1 << FINGERPRINT_BITS) - 1)).max(1)
}

impl Index {
    pub(crate) fn new(buckets: u32) -> Self {
        debug_assert!(buckets.is_power_of_two());
        Self { lines: Vec::new(), buckets, lines_per_bucket: 0, keys: 0, removed: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.keys
    }

    pub(crate) fn bytes(&self) -> u64 {
        (self.lines.len() * size_of::<Line>()) as u64
    }

    /// Bytes after the next growth.
    pub(crate) fn bytes_grown(&self) -> u64 {
        u64::from(self.buckets * self.grown_lines()) * size_of::<Line>() as u64
    }

    /// Bytes that an index of `keys` keys is likely to need.
    pub(crate) fn bytes_for(&self, keys: usize) -> u64 {
        let lines = (keys as f64 / (LANES as f64 * 0.7) / f64::from(self.buckets)).ceil() as u64;
        lines.max(1) * u64::from(self.buckets) * size_of::<Line>() as u64
    }

    /// Whether these new keys find lanes without growth.
    pub(crate) fn fits(&self, hashes: &[u64]) -> bool {
        let lanes = (self.lines.len() * LANES) as f64;
        if (self.keys + self.removed + hashes.len()) as f64 >= lanes * LOAD_MAX {
            return false;
        }
        let count = self.lines_per_bucket as usize;
        let is_free = |&entry: &u64| entry == 0 || entry == REMOVED;
        self.per_bucket(hashes).into_iter().enumerate().all(|(bucket, new)| {
            let region = &self.lines[bucket * count..(bucket + 1) * count];
            new == 0 || region.iter().flat_map(|line| &line.0).filter(|e| is_free(e)).count() >= new
        })
    }

    /// Bytes that the fullest bucket of these new keys asks for alone.
    pub(crate) fn bytes_for_fullest(&self, hashes: &[u64]) -> u64 {
        let fullest = self.per_bucket(hashes).into_iter().max().unwrap_or(0);
        (fullest.div_ceil(LANES) * self.buckets as usize * size_of::<Line>()) as u64
    }

    fn per_bucket(&self, hashes: &[u64]) -> Vec<usize> {
        let mut counts = vec![0; self.buckets as usize];
        for &hash in hashes {
            counts[(bucket(hash) & (self.buckets - 1)) as usize] += 1;
        }
        counts
    }

    fn grown_lines(&self) -> u32 {
        self.lines_per_bucket + (self.lines_per_bucket / 4).max(1)
    }

    /// First line of the key's region, and its home inside.
    #[inline(always)]
    fn home(&self, hash: u64) -> (usize, usize) {
        let region = (bucket(hash) & (self.buckets - 1)) as usize * self.lines_per_bucket as usize;
        let home = (fingerprint(hash) * u64::from(self.lines_per_bucket)) >> FINGERPRINT_BITS;
        (region, home as usize)
    }

    /// Asks for the key's home line ahead of its use.
    #[inline(always)]
    pub(crate) fn prefetch(&self, hash: u64) {
        let (region, home) = self.home(hash);
        if let Some(line) = self.lines.get(region + home) {
            line.prefetch();
        }
    }

    /// The entry of this hash whose location `is_match` accepts.
    #[inline(always)]
    pub(crate) fn find(
        &self,
        hash: u64,
        mut is_match: impl FnMut(Location) -> bool,
    ) -> Option<(Slot, Location)> {
        let (region, mut home) = self.home(hash);
        let (wanted, count) = (fingerprint(hash), self.lines_per_bucket as usize);
        for _ in 0..count {
            let at = region + home;
            let line = &self.lines[at];
            let mut matches = line.matches(wanted);
            while matches != 0 {
                let lane = matches.trailing_zeros();
                let location = Location(line.0[lane as usize] & LOCATION_MASK);
                if is_match(location) {
                    return Some((Slot { line: at as u32, lane }, location));
                }
                matches &= matches - 1;
            }
            if line.empty() != 0 {
                return None;
            }
            home = if home + 1 == count { 0 } else { home + 1 };
        }
        None
    }

    /// Where a new entry of this hash would go; `None` if the region is full: `grow`, then again.
    pub(crate) fn vacancy(&self, hash: u64) -> Option<Slot> {
        if (self.keys + self.removed) as f64 >= (self.lines.len() * LANES) as f64 * LOAD_MAX {
            return None;
        }
        let (region, home) = self.home(hash);
        let count = self.lines_per_bucket as usize;
        (0..count).find_map(|step| {
            let at = region + (home + step) % count;
            let line = &self.lines[at];
            let free = line.vacant();
            (free != 0).then(|| Slot { line: at as u32, lane: free.trailing_zeros() })
        })
    }

    /// Adds the entry of a key that has none at its vacancy.
    pub(crate) fn insert(&mut self, slot: Slot, hash: u64, location: Location) {
        let lane = &mut self.lines[slot.line as usize].0[slot.lane as usize];
        debug_assert!(*lane == 0 || *lane == REMOVED);
        self.removed -= usize::from(*lane == REMOVED);
        *lane = fingerprint(hash) << LOCATION_BITS | location.0;
        self.keys += 1;
    }

    /// Points an entry elsewhere.
    #[inline(always)]
    pub(crate) fn relocate(&mut self, slot: Slot, location: Location) {
        let lane = &mut self.lines[slot.line as usize].0[slot.lane as usize];
        *lane = *lane & !LOCATION_MASK | location.0;
    }

    pub(crate) fn remove(&mut self, slot: Slot) {
        self.lines[slot.line as usize].0[slot.lane as usize] = REMOVED;
        self.keys -= 1;
        self.removed += 1;
    }

    /// A quarter more lines; removed entries are left behind.
    pub(crate) fn grow(&mut self) {
        let count = self.grown_lines();
        let old = std::mem::replace(
            &mut self.lines,
            vec![Line::default(); (self.buckets * count) as usize],
        );
        let old_count = std::mem::replace(&mut self.lines_per_bucket, count) as usize;
        self.removed = 0;
        for (at, line) in old.iter().enumerate() {
            let region = at / old_count * count as usize;
            for &entry in line.0.iter().filter(|&&entry| entry != 0 && entry != REMOVED) {
                self.reinsert(region, entry);
            }
        }
    }

    fn reinsert(&mut self, region: usize, entry: u64) {
        let count = self.lines_per_bucket as usize;
        let home = (((entry >> LOCATION_BITS) * count as u64) >> FINGERPRINT_BITS) as usize;
        for step in 0..count {
            let line = &mut self.lines[region + (home + step) % count];
            let free = line.vacant();
            if free != 0 {
                line.0[free.trailing_zeros() as usize] = entry;
                return;
            }
        }
        unreachable!("a grown region holds all that the smaller one held");
    }

    /// Locations of all keys of one of its buckets.
    pub(crate) fn bucket_locations(&self, bucket: u32) -> impl Iterator<Item = Location> + '_ {
        let count = self.lines_per_bucket as usize;
        let region = (bucket & (self.buckets - 1)) as usize * count;
        locations(&self.lines[region..region + count])
    }

    /// Locations of all keys.
    pub(crate) fn locations(&self) -> impl Iterator<Item = Location> + '_ {
        locations(&self.lines)
    }
}

fn locations(lines: &[Line]) -> impl Iterator<Item = Location> + '_ {
    let entries = lines.iter().flat_map(|line| line.0);
    entries.filter(|&e| e != 0 && e != REMOVED).map(|entry| Location(entry & LOCATION_MASK))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::types::hash;

    fn insert(index: &mut Index, key: u64, units: u64) {
        let slot = loop {
            match index.vacancy(hash(key)) {
                Some(slot) => break slot,
                None => index.grow(),
            }
        };
        index.insert(slot, hash(key), Location::dram(units));
    }

    fn find(index: &Index, key: u64, units: u64) -> Option<(Slot, Location)> {
        index.find(hash(key), |location| location == Location::dram(units))
    }

    /// Goal: the index is a map. Method: random inserts, removals and moves beside a HashMap.
    #[derive(Debug, Clone)]
    enum Step {
        Insert(u16),
        Remove(u16),
        Relocate(u16),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..600_u16).prop_map(Step::Insert),
            1 => (0..600_u16).prop_map(Step::Remove),
            1 => (0..600_u16).prop_map(Step::Relocate),
        ]
    }

    proptest! {
        #[test]
        fn is_a_map(steps in prop::collection::vec(step(), 1..2000)) {
            let mut index = Index::new(16);
            let mut model: HashMap<u64, u64> = HashMap::new();
            let mut next = 1;
            for step in steps {
                next += 1;
                match step {
                    Step::Insert(key) if !model.contains_key(&key.into()) => {
                        insert(&mut index, key.into(), next);
                        model.insert(key.into(), next);
                    }
                    Step::Remove(key) => if let Some(units) = model.remove(&key.into()) {
                        let (slot, _) = find(&index, key.into(), units).unwrap();
                        index.remove(slot);
                    },
                    Step::Relocate(key) => if let Some(units) = model.get_mut(&key.into()) {
                        let (slot, _) = find(&index, key.into(), *units).unwrap();
                        index.relocate(slot, Location::dram(next));
                        *units = next;
                    },
                    Step::Insert(_) => {}
                }
            }
            prop_assert_eq!(index.len(), model.len());
            for (&key, &units) in &model {
                prop_assert!(find(&index, key, units).is_some());
            }
            let mut found: Vec<_> = index.locations().map(|l| l.resolve().unwrap()).collect();
            let mut expected: Vec<_> = model.values().copied().collect();
            found.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_large_index_costs_about_eleven_bytes_a_key() {
        let mut index = Index::new(64);
        for key in (1..).filter(|&key| bucket(hash(key)) < 64).take(100_000) {
            insert(&mut index, key, key);
        }
        let bytes = index.bytes() as f64 / index.len() as f64;
        assert!(bytes < 12.5, "{bytes}");
    }

    #[test]
    fn tiers_do_not_mix() {
        assert_eq!(Location::nvme(Place(7)).resolve(), Err(Place(7)));
        assert_eq!(Location::dram(7).resolve(), Ok(7));
        assert_ne!(Location::nvme(Place(7)), Location::dram(7));
    }
}
