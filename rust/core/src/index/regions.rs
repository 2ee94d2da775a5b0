//! How the regions of an index grow, shrink, split and join: each alone, by about a fifth.

use super::line::{Line, Region, BYTES, LANES};
use super::{bucket_of, set_bucket, vacancy, Index, BUCKETS_LANE, LOCATION_BITS};
use crate::arena::Arena;
use crate::effort;
use crate::types::{bucket, BUCKETS};

/// Bytes of the account of a region.
pub(super) const ACCOUNT: usize = size_of::<Region>() + size_of::<u32>();
/// Keys for each bucket from which on every bucket has a region of its own: with fewer, lines that
/// are not full and the accounts would take more than the lane that tells buckets.
const SPLIT: usize = 16;
/// Blocks up to here come in sizes a quarter apart at most; beyond, the step is a quarter.
const STEPPED: usize = 16 << 10;

/// The lanes that hold entries, as bits.
pub(super) fn lanes(is_alone: bool) -> u32 {
    if is_alone {
        (1 << LANES) - 1
    } else {
        (1 << BUCKETS_LANE) - 1
    }
}

/// Bytes of the next larger region.
fn next_bytes(bytes: usize) -> usize {
    if bytes < STEPPED {
        Arena::round(bytes + 1)
    } else {
        Arena::round(bytes / 4 * 5)
    }
}

impl Index {
    /// One region serves several buckets.
    pub(super) fn is_shared(&self) -> bool {
        self.lanes.count_ones() < LANES as u32
    }

    /// Most keys of a region of so many lines: beyond, probes grow long. It differs a little from
    /// region to region, so that those of a table do not all grow at one time.
    pub(super) fn keys_max(&self, region: usize, lines: usize) -> usize {
        keys_max(lines * self.lanes.count_ones() as usize, region)
    }

    /// Smallest number of bytes, by the steps of growth from `bytes` on, that holds `keys`.
    fn bytes_for(&self, region: usize, bytes: usize, keys: usize) -> usize {
        let mut bytes = bytes;
        while self.keys_max(region, bytes / BYTES) < keys {
            bytes = next_bytes(bytes);
        }
        bytes
    }

    /// Bytes that the next growth for so many keys, of the bucket of this hash, takes, before it
    /// gives the old ones back.
    pub(crate) fn growth_bytes(&self, hash: u64, keys: usize) -> u64 {
        let bytes = if self.is_split_due(keys) {
            self.split_bytes(&self.keys_by_bucket())
        } else {
            self.grown_for(self.region(hash), keys)
        };
        bytes as u64
    }

    /// Whether so many keys of the bucket of this hash find lanes.
    pub(crate) fn has_room(&self, hash: u64, keys: usize) -> bool {
        let region = self.region(hash);
        let most = self.keys_max(region, self.regions[region].count());
        self.counts[region] as usize + keys <= most
    }

    /// The next size of a region that holds so many keys more.
    fn grown_for(&self, region: usize, keys: usize) -> usize {
        let next = next_bytes(self.regions[region].bytes());
        self.bytes_for(region, next, self.counts[region] as usize + keys)
    }

    /// Bytes that all of it takes once new keys of these hashes are in, and while it grows for
    /// them: from above, and quickly.
    pub(crate) fn bytes_at_most(&self, new: usize) -> u64 {
        let keys = (self.keys + new) as u64;
        // At the lowest load after growth, and with a line more in every region.
        16 * keys + u64::from(self.buckets) * (2 * BYTES + ACCOUNT) as u64
    }

    /// The same to the byte, but for what single growths leave on their way, and for the old lines
    /// of the one region that grows at a time: while it does they are held too, beside rows that
    /// give way, and for that moment above the bound where there are none.
    pub(crate) fn bytes_with(&self, hashes: &[u64]) -> u64 {
        if self.is_shared() && self.keys + hashes.len() > self.split_keys() {
            let mut counts = self.keys_by_bucket();
            for &hash in hashes {
                counts[(bucket(hash) & (self.buckets - 1)) as usize] += 1;
            }
            // Regions that grow on after the split take other steps to the same number of keys.
            return (self.split_bytes(&counts) / 7 * 8) as u64;
        }
        let mut new = vec![0; self.regions.len()];
        hashes.iter().for_each(|&hash| new[self.region(hash)] += 1);
        let grown = |(region, &new): (usize, &usize)| {
            let keys = self.counts[region] as usize + new;
            self.bytes_for(region, self.regions[region].bytes(), keys) + ACCOUNT
        };
        new.iter().enumerate().map(grown).sum::<usize>() as u64
    }

    /// Bytes of the indexes of so many keys in all stripes, each bucket having as many keys, as
    /// growth leaves them.
    pub(crate) fn bytes_of(keys: u64, stripes: usize) -> u64 {
        let is_shared = keys < SPLIT as u64 * u64::from(BUCKETS);
        let (regions, is_alone) =
            if is_shared { (stripes, false) } else { (BUCKETS as usize, true) };
        let each = keys.div_ceil(regions as u64) as usize;
        // Of a stripe the one region, of a bucket its own.
        let number = |n| if is_shared { 0 } else { n };
        let bytes = |n| (grown_bytes(number(n), each, is_alone) + ACCOUNT) as u64;
        (0..regions).map(bytes).sum()
    }

    fn split_keys(&self) -> usize {
        SPLIT * self.buckets as usize
    }

    fn is_split_due(&self, keys: usize) -> bool {
        self.is_shared() && self.keys + keys > self.split_keys()
    }

    fn split_bytes(&self, counts: &[usize]) -> usize {
        let bytes = |(bucket, &keys): (usize, &usize)| own_bytes(bucket, keys);
        counts.iter().enumerate().map(bytes).sum::<usize>() + counts.len() * ACCOUNT
    }

    /// Keys of every bucket, where one region serves all.
    fn keys_by_bucket(&self) -> Vec<usize> {
        let mut counts = vec![0; self.buckets as usize];
        self.entries(self.regions[0]).for_each(|(bucket, _)| counts[bucket as usize] += 1);
        counts
    }

    /// One step towards room for so many keys of the bucket of this hash. False if no address space
    /// is left; nothing has changed.
    pub(crate) fn grow(&mut self, hash: u64, keys: usize) -> bool {
        if self.is_split_due(keys) {
            return self.split();
        }
        let region = self.region(hash);
        self.resize(region, self.grown_for(region, keys))
    }

    /// Moves a region to `bytes` of its own.
    fn resize(&mut self, region: usize, bytes: usize) -> bool {
        let Some(mut new) = Region::take(&self.arena, bytes) else { return false };
        let old = self.regions[region];
        effort::note(self.counts[region] as usize);
        {
            let lines = new.lines_mut(&self.arena);
            for (bucket, entry) in self.entries(old) {
                put(lines, self.lanes, self.is_shared(), bucket, entry);
            }
        }
        self.region_bytes = self.region_bytes + bytes - old.bytes();
        self.regions[region] = new;
        old.give(&self.arena);
        true
    }

    /// Where few keys are left a region becomes smaller, and so few regions become one.
    pub(super) fn shrink(&mut self, region: usize) {
        let (keys, bytes) = (self.counts[region] as usize, self.regions[region].bytes());
        if !self.is_shared() && self.buckets > 1 && self.keys < self.split_keys() / 4 {
            self.join();
        } else if keys == 0 || keys * 5 / 2 < self.keys_max(region, bytes / BYTES) {
            let wanted = self.bytes_for(region, 0, if keys == 0 { 0 } else { keys * 5 / 4 });
            if wanted < bytes {
                self.resize(region, wanted);
            }
        }
    }

    /// A region for every bucket, from one for all.
    fn split(&mut self) -> bool {
        let counts = self.keys_by_bucket();
        let wanted = counts.iter().enumerate().map(|(bucket, &keys)| own_bytes(bucket, keys));
        self.arrange(&wanted.collect::<Vec<_>>(), lanes(true))
    }

    /// One region for all buckets, from one for each.
    fn join(&mut self) {
        let lanes = lanes(false);
        let mut bytes = 0;
        while keys_max(bytes / BYTES * BUCKETS_LANE, 0) < self.keys {
            bytes = next_bytes(bytes);
        }
        // If no address space is left they stay as they are.
        self.arrange(&[bytes], lanes);
    }

    /// Moves all entries to regions of these sizes.
    fn arrange(&mut self, bytes: &[usize], lanes: u32) -> bool {
        let mut regions = Vec::with_capacity(bytes.len());
        for &bytes in bytes {
            match Region::take(&self.arena, bytes) {
                Some(region) => regions.push(region),
                None => {
                    regions.iter().for_each(|region| region.give(&self.arena));
                    return false;
                }
            }
        }
        effort::note(self.keys);
        let mut counts = vec![0; regions.len()];
        let is_shared = lanes.count_ones() < LANES as u32;
        for (n, &old) in self.regions.iter().enumerate() {
            for (bucket, entry) in self.entries(old) {
                let bucket = if self.is_shared() { bucket } else { n as u32 };
                let region = bucket as usize & (regions.len() - 1);
                put(regions[region].lines_mut(&self.arena), lanes, is_shared, bucket, entry);
                counts[region] += 1;
            }
        }
        self.regions.iter().for_each(|region| region.give(&self.arena));
        (self.regions, self.counts) = (regions.into(), counts.into());
        (self.lanes, self.region_bytes) = (lanes, bytes.iter().sum());
        true
    }

    /// Entries of a region; with their buckets, if it serves several.
    pub(super) fn entries(&self, region: Region) -> impl Iterator<Item = (u32, u64)> + '_ {
        let (lines, lanes) = (region.count(), self.lanes.count_ones());
        (0..lines).flat_map(move |n| {
            let line = region.lines(&self.arena)[n];
            let entries = (0..lanes).map(move |lane| {
                (bucket_of(&line, lane) & (self.buckets - 1), line.0[lane as usize])
            });
            entries.filter(|entry| entry.1 != 0)
        })
    }
}

/// Most keys for so many lanes: seven eighths to fifteen sixteenths, but small regions fill up.
fn keys_max(lanes: usize, region: usize) -> usize {
    lanes - lanes * (8 - region % 5) / 64
}

/// Bytes of the region of one bucket with so many keys, and a little room.
fn own_bytes(bucket: usize, keys: usize) -> usize {
    grown_bytes(bucket, keys, true)
}

fn grown_bytes(region: usize, keys: usize, is_alone: bool) -> usize {
    let lanes = lanes(is_alone).count_ones() as usize;
    let mut bytes = 0;
    while keys_max(bytes / BYTES * lanes, region) < keys {
        bytes = next_bytes(bytes);
    }
    bytes
}

fn put(lines: &mut [Line], lanes: u32, is_shared: bool, bucket: u32, entry: u64) {
    let Some((line, lane)) = vacancy(lines, lanes, entry >> LOCATION_BITS) else {
        unreachable!("a region is made for what it will hold");
    };
    lines[line].0[lane as usize] = entry;
    if is_shared {
        set_bucket(&mut lines[line], lane, bucket);
    }
}
