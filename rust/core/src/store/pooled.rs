//! Pooled lookups: the rows of a bag of keys are summed where they are read, so that one row a bag
//! leaves instead of one a key.

use super::{LookupBatch, Store};
use crate::batch::{by_width, Unique};
use crate::error::{Error, Result};
use crate::prefetch::vectorized;
use crate::types::TableId;

/// One table's part of a `lookup_pooled`.
pub struct PooledBatch<'a> {
    /// Table.
    pub table: TableId,
    /// Keys of all bags, one bag after the other; repeats are allowed.
    pub keys: &'a [u64],
    /// uint32[b]: how many of the keys are those of each bag.
    pub bags: &'a [u32],
    /// Empty (one each), or float32[n]: what the row of each key is multiplied by.
    pub weights: &'a [f32],
    /// float32[b, dim], written whole: the sum of each bag, zeros for an empty one.
    pub sums: &'a mut [f32],
}

/// Bytes of rows that are read, then summed, at a time: they stay in the processor's cache.
pub const POOL_BYTES: usize = 512 << 10;

impl Store {
    /// Sums of rows, bag by bag, in float32 in the order of the bag; absent keys add nothing. Keys
    /// that repeat often are read once within some thousand. Never inserts, changes no statistics.
    /// Takes up to `POOL_BYTES` beside what the ledger counts.
    ///
    /// # Errors
    /// `TableNotFound`, `BadInput` for a wrong length, `Corruption` for a damaged row.
    pub fn lookup_pooled(&self, batches: &mut [PooledBatch<'_>]) -> Result<()> {
        let _call = self.engine.enter_reading()?;
        self.pool(batches, |batch| self.engine.lookup(&mut [batch]).map(|()| true)).map(drop)
    }

    /// As `lookup_pooled`, if it need not wait: see `try_lookup`.
    ///
    /// # Errors
    /// As `lookup_pooled`.
    pub fn try_lookup_pooled(&self, batches: &mut [PooledBatch<'_>]) -> Result<bool> {
        let Some(_call) = self.engine.try_enter()? else { return Ok(false) };
        self.pool(batches, |batch| self.engine.try_lookup(&mut [batch]))
    }

    /// False as soon as `read` says it.
    fn pool(
        &self,
        batches: &mut [PooledBatch<'_>],
        read: impl Fn(LookupBatch<'_>) -> Result<bool>,
    ) -> Result<bool> {
        let mut dims = Vec::with_capacity(batches.len());
        for batch in batches.iter() {
            let table = self.engine.table(batch.table)?;
            check(batch, &table.name(), table.dim)?;
            dims.push(table.dim);
        }
        let mut rows = Vec::new();
        let mut in_order = Vec::new();
        for (batch, dim) in batches.iter_mut().zip(dims) {
            batch.sums.fill(0.0);
            let mut bags = Bags { sizes: batch.bags, summed: 0 };
            let window = (POOL_BYTES / (4 * dim)).max(1);
            for start in (0..batch.keys.len()).step_by(window) {
                let end = (start + window).min(batch.keys.len());
                let all = &batch.keys[start..end];
                let unique = is_repetitive(all).then(|| Unique::new(all, 1));
                let keys = unique.as_ref().map_or(all, |unique| &unique.keys);
                rows.resize(keys.len() * dim, 0.0);
                let table = batch.table;
                if !read(LookupBatch { table, keys, rows: &mut rows, found: &mut [] })? {
                    return Ok(false);
                }
                let places = match &unique {
                    Some(unique) => &unique.inverse,
                    None => counted(&mut in_order, all.len()),
                };
                let weights = batch.weights.get(start..end).unwrap_or_default();
                add(&rows, dim, places, weights, &mut bags, batch.sums);
            }
        }
        Ok(true)
    }
}

/// Keys that are looked at to tell whether those beside them repeat.
const SAMPLE: usize = 256;
/// Share of repeats in a sample from which merging saves more than it costs: 1 / this.
const REPEATS_SHARE: usize = 32;

/// To find repeats costs about a fifth of reading a row that is in DRAM, for every key.
fn is_repetitive(keys: &[u64]) -> bool {
    let sample = &keys[..keys.len().min(SAMPLE)];
    let repeats = sample.len() - Unique::new(sample, 1).keys.len();
    repeats * REPEATS_SHARE > sample.len()
}

/// 0, 1, ... of which `count` are wanted.
fn counted(numbers: &mut Vec<u32>, count: usize) -> &[u32] {
    numbers.extend(numbers.len() as u32..count as u32);
    &numbers[..count]
}

fn check(batch: &PooledBatch<'_>, name: &str, dim: usize) -> Result<()> {
    let (keys, bags, weights) = (batch.keys.len(), batch.bags.len(), batch.weights.len());
    let held: u64 = batch.bags.iter().map(|&size| u64::from(size)).sum();
    let wrong = if held != keys as u64 {
        format!("bags of {held} keys in all, but {keys} keys")
    } else if weights != 0 && weights != keys {
        format!("{weights} weights for {keys} keys; give one for each, or none")
    } else if batch.sums.len() != bags * dim {
        format!("{} float32 numbers for {bags} bags of dim {dim}", batch.sums.len())
    } else {
        return Ok(());
    };
    Err(Error::bad_input(format!("table {name:?}: {wrong}")))
}

/// The bags that are not summed yet: a window may end within one.
struct Bags<'a> {
    sizes: &'a [u32],
    /// Of the first, the keys that were summed before.
    summed: usize,
}

vectorized! {
    /// Adds `rows[inverse[i]]` to the sums of the bags, in order of i.
    fn add(
        rows: &[f32],
        dim: usize,
        inverse: &[u32],
        weights: &[f32],
        bags: &mut Bags<'_>,
        sums: &mut [f32],
    ) {
        by_width!(dim, add_all(rows, dim, inverse, weights, bags, sums));
    }
}

#[inline(always)]
fn add_all<const N: usize>(
    rows: &[f32],
    dim: usize,
    mut inverse: &[u32],
    mut weights: &[f32],
    bags: &mut Bags<'_>,
    sums: &mut [f32],
) {
    let count = sums.len() / dim;
    while let Some(&size) = bags.sizes.first() {
        let taken = (size as usize - bags.summed).min(inverse.len());
        let bag = count - bags.sizes.len();
        let sum = &mut sums[bag * dim..(bag + 1) * dim];
        let (ids, other_ids) = inverse.split_at(taken);
        let (own, other_weights) = weights.split_at(taken.min(weights.len()));
        add_bag::<N>(rows, dim, ids, own, sum);
        (inverse, weights) = (other_ids, other_weights);
        bags.summed += taken;
        if bags.summed < size as usize {
            return;
        }
        (bags.sizes, bags.summed) = (&bags.sizes[1..], 0);
    }
}

/// Adds the rows of some keys of one bag. The sums of N columns stay in registers.
#[inline(always)]
fn add_bag<const N: usize>(
    rows: &[f32],
    dim: usize,
    ids: &[u32],
    weights: &[f32],
    sum: &mut [f32],
) {
    let Some(kept) = sum.first_chunk_mut::<N>().filter(|_| N > 0) else {
        for (n, &id) in ids.iter().enumerate() {
            add_row(&rows[id as usize * dim..][..dim], weights.get(n), sum);
        }
        return;
    };
    let mut fixed = *kept;
    for (n, &id) in ids.iter().enumerate() {
        if let Some(row) = rows[id as usize * dim..].first_chunk::<N>() {
            add_row(row, weights.get(n), &mut fixed);
        }
    }
    *kept = fixed;
}

#[inline(always)]
fn add_row(row: &[f32], weight: Option<&f32>, sum: &mut [f32]) {
    match weight {
        None => {
            for (sum, x) in sum.iter_mut().zip(row) {
                *sum += x;
            }
        }
        Some(weight) => {
            for (sum, x) in sum.iter_mut().zip(row) {
                *sum += weight * x;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::scratch::Scratch;
    use crate::store::tests::{open, push, spec};
    use crate::store::Assign;
    use crate::types::Durability;

    fn row(key: u64, dim: usize) -> Vec<f32> {
        (0..dim).map(|c| ((key * 31 + c as u64) as f32 * 0.37).sin()).collect()
    }

    /// What numbers say: zeros, then one key after the other.
    fn expected(keys: &[u64], bags: &[u32], weights: &[f32], dim: usize) -> Vec<f32> {
        let mut keys = keys.iter().enumerate();
        let sum = |size: &u32| {
            let mut sum = vec![0.0_f32; dim];
            for (n, &key) in keys.by_ref().take(*size as usize) {
                let absent = key >= 100;
                for (s, x) in sum.iter_mut().zip(row(key, dim)) {
                    *s += weights.get(n).unwrap_or(&1.0) * if absent { 0.0 } else { x };
                }
            }
            sum
        };
        bags.iter().flat_map(sum).collect()
    }

    fn store(scratch: &Scratch, dims: &[u32]) -> (Store, Vec<TableId>) {
        let store = open(scratch, Durability::None);
        let keys: Vec<u64> = (0..100).collect();
        let mut tables = Vec::new();
        for (n, &dim) in dims.iter().enumerate() {
            let table = store.create_table(&spec(&format!("t{dim}"), dim)).unwrap().id;
            let rows: Vec<f32> = keys.iter().flat_map(|&key| row(key, dim as usize)).collect();
            store.assign(push(n as u64 + 1), &Assign { table, keys: &keys, rows: &rows }).unwrap();
            tables.push(table);
        }
        (store, tables)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn sums_are_those_of_plain_addition_in_order_of_the_bag(
            bags in prop::collection::vec(prop_oneof![0..9_u32, Just(0), Just(700)], 0..12),
            seed in any::<u64>(),
            is_weighted in any::<bool>(),
        ) {
            let scratch = Scratch::new();
            let dims = [3, 16, 64, 4096];
            let (store, tables) = store(&scratch, &dims);
            let n = bags.iter().sum::<u32>() as usize;
            // Of dim 4096 a window holds 32 keys, so bags go over its end; some keys are absent.
            let keys: Vec<u64> = (0..n as u64).map(|i| (seed ^ (i * 77)) % 120).collect();
            let weights: Vec<f32> = (0..n).map(|i| (i as f32).cos()).collect();
            let weights = if is_weighted { &weights[..] } else { &[] };
            for (&table, dim) in tables.iter().zip(dims.map(|dim| dim as usize)) {
                let mut sums = vec![f32::NAN; bags.len() * dim];
                let (keys, bags, sums) = (&keys[..], &bags[..], &mut sums[..]);
                store.lookup_pooled(&mut [PooledBatch { table, keys, bags, weights, sums }])
                    .unwrap();
                prop_assert!(*sums == expected(keys, bags, weights, dim), "dim {}", dim);
            }
            prop_assert_eq!(store.len(tables[0]).unwrap(), 100, "nothing was made");
        }
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused_before_anything_is_read() {
        let scratch = Scratch::new();
        let (store, tables) = store(&scratch, &[4]);
        let refused = |keys: &[u64], bags: &[u32], weights: &[f32], sums: usize| {
            let (table, mut sums) = (tables[0], vec![7.0; sums]);
            let batch = PooledBatch { table, keys, bags, weights, sums: &mut sums };
            let error = store.lookup_pooled(&mut [batch]).unwrap_err();
            assert!(sums.iter().all(|&x| x == 7.0), "untouched");
            error.message
        };
        assert!(refused(&[1, 2], &[1], &[], 4).contains("bags of 1 keys"));
        assert!(refused(&[1], &[u32::MAX, u32::MAX], &[], 8).contains("bags of 8589934590 keys"));
        assert!(refused(&[1, 2], &[2], &[1.0], 4).contains("1 weights for 2 keys"));
        assert!(refused(&[1, 2], &[2], &[], 5).contains("5 float32"));
        let mut sums = [0.0; 4];
        let batch = PooledBatch { table: 99, keys: &[], bags: &[0], weights: &[], sums: &mut sums };
        assert!(store.lookup_pooled(&mut [batch]).is_err());
    }
}
