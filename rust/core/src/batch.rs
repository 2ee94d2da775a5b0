//! From repeated ids to unique keys and back: de-duplication by hash, summing, restoring.
//!
//! Clients do this before the wire, the in-process store before the engine. `np.unique` sorts and
//! costs 75 ns an id; this costs a few.

use std::cell::Cell;

use crate::optimizer::{magnitude, INFINITY_BITS};
use crate::prefetch::vectorized;
use crate::types::{bucket, hash, shard_of_bucket};

/// The unique keys of a batch, grouped by shard, in order of first occurrence within a shard.
#[derive(Debug, Default)]
pub struct Unique {
    /// uint64[u], shard after shard.
    pub keys: Vec<u64>,
    /// Shard s owns `keys[offsets[s]..offsets[s + 1]]`.
    pub offsets: Vec<usize>,
    /// uint32[n]: id i of the batch is `keys[inverse[i]]`.
    pub inverse: Vec<u32>,
    /// uint32[u], growing: where in the batch its keys first occur, whatever their shard.
    pub firsts: Vec<u32>,
}

impl Unique {
    /// Finds the unique keys of `ids` (below 2^32 of them) for `shards` servers.
    pub fn new(ids: &[u64], shards: u32) -> Self {
        let unique = deduplicate(ids);
        match shards {
            0 | 1 => unique,
            _ => unique.grouped(shards),
        }
    }

    fn grouped(self, shards: u32) -> Self {
        let Self { keys, mut inverse, firsts, .. } = self;
        let shard = |key: u64| shard_of_bucket(bucket(hash(key)), shards) as usize;
        let mut offsets = vec![0; shards as usize + 1];
        for &key in &keys {
            offsets[shard(key) + 1] += 1;
        }
        for s in 0..shards as usize {
            offsets[s + 1] += offsets[s];
        }
        let mut next = offsets.clone();
        let mut grouped = vec![0; keys.len()];
        let mut moved = vec![0; keys.len()];
        for (old, &key) in keys.iter().enumerate() {
            let place = &mut next[shard(key)];
            grouped[*place] = key;
            moved[old] = *place as u32;
            *place += 1;
        }
        for index in &mut inverse {
            *index = moved[*index as usize];
        }
        Self { keys: grouped, offsets, inverse, firsts }
    }
}

/// Ids between the request for a slot and its use.
const AHEAD: usize = 16;

/// Most bytes of slots that a thread keeps for its next batch: fresh pages would cost more than
/// the search.
const KEPT_BYTES: usize = 8 << 20;

thread_local! {
    static KEPT: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
}

/// Open addressing: a slot holds the index of a key. Few slots at first, which fit the cache; when
/// a sample of the batch shows how much it repeats itself, as many as it will need.
struct Slots {
    slots: Vec<u32>,
    shift: u32,
    /// Keys at which the number of slots is looked at again.
    limit: usize,
}

const FREE: u32 = u32::MAX;

impl Slots {
    fn new(ids: usize) -> Self {
        let size = (ids / 2).next_power_of_two().max(64);
        let mut slots = Self::sized(size);
        slots.limit = size / 16;
        slots
    }

    fn sized(size: usize) -> Self {
        let mut slots = KEPT.take();
        slots.clear();
        slots.resize(size, FREE);
        Self { slots, shift: 64 - size.trailing_zeros(), limit: size / 5 * 3 }
    }

    /// Room for as many keys as a batch will have whose first part had these, at least for one
    /// more.
    #[cold]
    fn review(&mut self, keys: &[u64], seen: usize, ids: usize) {
        let expected = (keys.len() * ids / seen).max(keys.len() + 1);
        let size = (expected / 3 * 5 + 5).next_power_of_two();
        self.limit = self.slots.len() / 5 * 3;
        if size <= self.slots.len() {
            return;
        }
        drop(std::mem::replace(self, Self { slots: Vec::new(), shift: 0, limit: 0 }));
        *self = Self::sized(size);
        for (index, &key) in keys.iter().enumerate() {
            let mut at = self.home(key);
            while self.slots[at] != FREE {
                at = (at + 1) & (self.slots.len() - 1);
            }
            self.slots[at] = index as u32;
        }
    }

    #[inline(always)]
    fn home(&self, id: u64) -> usize {
        (mix(id) >> self.shift) as usize
    }

    #[inline(always)]
    fn prefetch(&self, id: u64) {
        let slot = &self.slots[self.home(id)];
        crate::prefetch::read(std::ptr::from_ref(slot).cast());
    }

    /// Index of `id` in `keys`; a new one is added.
    #[inline(always)]
    fn index(&mut self, keys: &mut Vec<u64>, id: u64) -> u32 {
        let mut at = self.home(id);
        loop {
            let index = self.slots[at];
            if index == FREE {
                self.slots[at] = keys.len() as u32;
                keys.push(id);
                return keys.len() as u32 - 1;
            }
            if keys[index as usize] == id {
                return index;
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        if self.slots.capacity() * size_of::<u32>() <= KEPT_BYTES {
            KEPT.set(std::mem::take(&mut self.slots));
        }
    }
}

#[inline(always)]
fn mix(id: u64) -> u64 {
    let high = id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    high ^ high >> 32
}

fn deduplicate(ids: &[u64]) -> Unique {
    assert!(ids.len() < FREE as usize, "a batch holds fewer than 2^32 - 1 ids");
    let mut slots = Slots::new(ids.len());
    let mut keys = Vec::with_capacity(ids.len());
    let mut inverse = Vec::with_capacity(ids.len());
    let mut firsts = Vec::new();
    for (n, &id) in ids.iter().enumerate() {
        if let Some(&next) = ids.get(n + AHEAD) {
            slots.prefetch(next);
        }
        if keys.len() > slots.limit {
            slots.review(&keys, n, ids.len());
        }
        let index = slots.index(&mut keys, id);
        if keys.len() > firsts.len() {
            firsts.push(n as u32);
        }
        inverse.push(index);
    }
    Unique { offsets: vec![0, keys.len()], keys, inverse, firsts }
}

/// Runs `$run::<N>` where `$dim` is a common width N, known to the compiler: rows become plain
/// vector moves. `$run::<0>` serves all others.
macro_rules! by_width {
    ($dim:expr, $run:ident($($argument:expr),*)) => {
        match $dim {
            8 => $run::<8>($($argument),*),
            16 => $run::<16>($($argument),*),
            17 => $run::<17>($($argument),*),
            32 => $run::<32>($($argument),*),
            64 => $run::<64>($($argument),*),
            128 => $run::<128>($($argument),*),
            _ => $run::<0>($($argument),*),
        }
    };
}

pub(crate) use by_width;

/// Copies a row of N columns (0: of any number).
#[inline(always)]
pub(crate) fn copy_row<const N: usize>(from: &[f32], to: &mut [f32]) {
    match (from.first_chunk::<N>(), to.first_chunk_mut::<N>()) {
        (Some(from), Some(to)) if N > 0 => *to = *from,
        _ => to.copy_from_slice(from),
    }
}

vectorized! {
    /// `out[i] = rows[inverse[i]]`, rows of `dim` columns.
    pub fn gather(rows: &[f32], dim: usize, inverse: &[u32], out: &mut [f32]) {
        by_width!(dim, gather_rows(rows, dim, inverse, out));
    }
}

#[inline(always)]
fn gather_rows<const N: usize>(rows: &[f32], dim: usize, inverse: &[u32], out: &mut [f32]) {
    for (out, &index) in out.chunks_exact_mut(dim).zip(inverse) {
        let start = index as usize * dim;
        copy_row::<N>(&rows[start..start + dim], out);
    }
}

vectorized! {
    /// `out[inverse[i]]` of a batch whose keys first occur at `firsts`: where each key first occurs
    /// its row is already, from there it is copied to the key's other places.
    pub(crate) fn spread(rows: &mut [f32], dim: usize, inverse: &[u32], firsts: &[u32]) {
        by_width!(dim, spread_rows(rows, dim, inverse, firsts));
    }
}

#[inline(always)]
fn spread_rows<const N: usize>(rows: &mut [f32], dim: usize, inverse: &[u32], firsts: &[u32]) {
    let dim = if N > 0 { N } else { dim };
    for (at, &index) in inverse.iter().enumerate() {
        let first = firsts[index as usize] as usize;
        if first < at {
            let (before, own) = rows.split_at_mut(at * dim);
            copy_row::<N>(&before[first * dim..(first + 1) * dim], &mut own[..dim]);
        }
    }
}

vectorized! {
    /// `out[inverse[i]] += rows[i]` in order of i; a key without rows gets -0.0. Returns whether
    /// all sums are finite, as they cannot be if a row is not.
    pub fn sum_rows(rows: &[f32], dim: usize, inverse: &[u32], out: &mut [f32]) -> bool {
        by_width!(dim, sum_each(rows, dim, inverse, out))
    }
}

#[inline(always)]
fn sum_each<const N: usize>(rows: &[f32], dim: usize, inverse: &[u32], out: &mut [f32]) -> bool {
    // Minus zero changes no bit of what is added to it, so no first occurrence is a special case:
    // a branch on that would be guessed wrong every other time.
    out.fill(-0.0);
    let dim = if N > 0 { N } else { dim };
    let mut worst = 0;
    for (row, &index) in rows.chunks_exact(dim).zip(inverse) {
        let start = index as usize * dim;
        let sum = &mut out[start..start + dim];
        for i in 0..dim {
            sum[i] += row[i];
            worst = magnitude(sum[i]).max(worst);
        }
    }
    worst < INFINITY_BITS
}

/// Counts summed per key, saturating.
pub fn sum_counts(counts: &[u32], inverse: &[u32], unique: usize) -> Vec<u32> {
    let mut sums = vec![0_u32; unique];
    for (&count, &index) in counts.iter().zip(inverse) {
        let sum = &mut sums[index as usize];
        *sum = sum.saturating_add(count);
    }
    sums
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn unique_keys_restore_the_batch(
            ids in prop::collection::vec(prop_oneof![0..50_u64, any::<u64>()], 0..700),
            shards in 1..5_u32,
        ) {
            let unique = Unique::new(&ids, shards);
            let restored: Vec<u64> =
                unique.inverse.iter().map(|&i| unique.keys[i as usize]).collect();
            prop_assert_eq!(&restored, &ids);
            let mut seen: HashMap<u64, usize> = HashMap::new();
            for &key in &unique.keys {
                prop_assert!(seen.insert(key, 0).is_none(), "key {} twice", key);
            }
            for s in 0..shards {
                let own = &unique.keys[unique.offsets[s as usize]..unique.offsets[s as usize + 1]];
                let owner = |&key: &u64| shard_of_bucket(bucket(hash(key)), shards);
                prop_assert!(own.iter().all(|key| owner(key) == s));
            }
        }

        #[test]
        fn sums_are_those_of_plain_addition(
            inverse in prop::collection::vec(0..9_u32, 0..60),
            dim in 1..20_usize,
        ) {
            let rows: Vec<f32> = (0..inverse.len() * dim).map(|i| (i as f32).sin()).collect();
            let mut sums = vec![0.0; 9 * dim];
            prop_assert!(sum_rows(&rows, dim, &inverse, &mut sums));
            let mut expected = vec![-0.0; 9 * dim];
            for (row, &index) in rows.chunks(dim).zip(&inverse) {
                for (s, x) in expected[index as usize * dim..].iter_mut().zip(row) {
                    *s += x;
                }
            }
            prop_assert_eq!(&sums, &expected);
            let mut out = vec![0.0; rows.len()];
            gather(&sums, dim, &inverse, &mut out);
            for (row, &index) in out.chunks(dim).zip(&inverse) {
                prop_assert_eq!(row, &sums[index as usize * dim..][..dim]);
            }
        }
    }
}
