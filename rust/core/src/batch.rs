//! From repeated ids to unique keys and back: de-duplication by hash, summing, restoring.
//!
//! Clients do this before the wire, the in-process store before the engine. `np.unique` sorts and
//! costs 75 ns an id; this costs a few.

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
}

const EMPTY: u32 = u32::MAX;

impl Unique {
    /// Finds the unique keys of `ids` (below 2^32 of them) for `shards` servers.
    pub fn new(ids: &[u64], shards: u32) -> Self {
        let (keys, inverse) = deduplicate(ids);
        if shards <= 1 {
            let offsets = vec![0, keys.len()];
            return Self { keys, offsets, inverse };
        }
        Self::group(keys, inverse, shards)
    }

    fn group(keys: Vec<u64>, mut inverse: Vec<u32>, shards: u32) -> Self {
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
        Self { keys: grouped, offsets, inverse }
    }
}

/// Open addressing over indexes into `keys`, at most half full.
fn deduplicate(ids: &[u64]) -> (Vec<u64>, Vec<u32>) {
    assert!(ids.len() < EMPTY as usize, "a batch holds fewer than 2^32 - 1 ids");
    let size = (ids.len() * 2).next_power_of_two().max(16);
    let shift = 64 - size.trailing_zeros();
    let mut slots = vec![EMPTY; size];
    let mut keys = Vec::with_capacity(ids.len() / 2 + 8);
    let mut inverse = Vec::with_capacity(ids.len());
    for &id in ids {
        let mut slot = (id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> shift) as usize;
        let index = loop {
            match slots[slot] {
                EMPTY => {
                    slots[slot] = keys.len() as u32;
                    keys.push(id);
                    break slots[slot];
                }
                index if keys[index as usize] == id => break index,
                _ => slot = (slot + 1) & (size - 1),
            }
        };
        inverse.push(index);
    }
    (keys, inverse)
}

/// `out[i] = rows[inverse[i]]`, rows of `dim` columns.
pub fn gather(rows: &[f32], dim: usize, inverse: &[u32], out: &mut [f32]) {
    for (out, &index) in out.chunks_exact_mut(dim).zip(inverse) {
        let start = index as usize * dim;
        out.copy_from_slice(&rows[start..start + dim]);
    }
}

/// `out[inverse[i]] += rows[i]` in order of i, from zero; the first of each is copied, not added,
/// so that -0.0 and bits of single occurrences survive.
pub fn sum_rows(rows: &[f32], dim: usize, inverse: &[u32], out: &mut [f32]) {
    let mut seen = vec![false; out.len() / dim];
    for (row, &index) in rows.chunks_exact(dim).zip(inverse) {
        let start = index as usize * dim;
        let sum = &mut out[start..start + dim];
        if std::mem::replace(&mut seen[index as usize], true) {
            for (s, x) in sum.iter_mut().zip(row) {
                *s += x;
            }
        } else {
            sum.copy_from_slice(row);
        }
    }
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
