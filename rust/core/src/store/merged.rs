//! Reads of batches that repeat their keys, for callers that leave merging to the store: each key
//! is looked up once, its row is written to where it first occurs, and copied from there.

use super::engine::Engine;
use super::{InsertBatch, LookupBatch};
use crate::batch::{spread, Unique};
use crate::error::Result;

/// Counts of all occurrences where a key first occurs, saturating; empty `counts`: one each.
fn sum(unique: &Unique, counts: &[u32]) -> Vec<u32> {
    let mut sums = vec![0_u32; unique.inverse.len()];
    for (at, &index) in unique.inverse.iter().enumerate() {
        let sum = &mut sums[unique.firsts[index as usize] as usize];
        *sum = sum.saturating_add(counts.get(at).copied().unwrap_or(1));
    }
    sums
}

fn spread_found(unique: &Unique, found: &mut [u8]) {
    if !found.is_empty() {
        for (at, &index) in unique.inverse.iter().enumerate() {
            found[at] = found[unique.firsts[index as usize] as usize];
        }
    }
}

/// Of a batch that repeats some keys.
fn repeated(keys: &[u64]) -> Option<Unique> {
    Some(Unique::new(keys, 1)).filter(|unique| unique.keys.len() < keys.len())
}

fn firsts(unique: &Option<Unique>) -> Option<&[u32]> {
    unique.as_ref().map(|unique| &unique.firsts[..])
}

impl Engine {
    pub(super) fn lookup_merged(&self, batches: &mut [LookupBatch<'_>]) -> Result<()> {
        let repeats: Vec<_> = batches.iter().map(|batch| repeated(batch.keys)).collect();
        let mut walks = self.lookup_walks(batches)?;
        for (walk, repeats) in walks.iter_mut().zip(&repeats) {
            walk.only = firsts(repeats);
        }
        self.answer(&walks, batches)?;
        for ((batch, walk), repeats) in batches.iter_mut().zip(&walks).zip(&repeats) {
            if let Some(unique) = repeats {
                spread(batch.rows, walk.table.dim, &unique.inverse, &unique.firsts);
                spread_found(unique, batch.found);
            }
        }
        Ok(())
    }

    pub(super) fn lookup_or_insert_merged(&self, batches: &mut [InsertBatch<'_>]) -> Result<()> {
        let mut walks = self.insert_walks(batches)?;
        let repeats: Vec<_> = batches.iter().map(|batch| repeated(batch.keys)).collect();
        let sum = |(unique, batch): (&Option<Unique>, &InsertBatch<'_>)| {
            unique.as_ref().map(|unique| sum(unique, batch.counts))
        };
        let sums: Vec<Option<Vec<u32>>> = repeats.iter().zip(batches.iter()).map(sum).collect();
        let mut summed: Vec<InsertBatch<'_>> = Vec::with_capacity(batches.len());
        for ((batch, sums), (walk, repeats)) in
            batches.iter_mut().zip(&sums).zip(walks.iter_mut().zip(&repeats))
        {
            walk.only = firsts(repeats);
            let counts = sums.as_deref().unwrap_or(batch.counts);
            let InsertBatch { table, keys, rows, .. } = batch;
            summed.push(InsertBatch { table: *table, keys, counts, rows });
        }
        self.insert(&walks, &mut summed)?;
        let tables: Vec<_> = walks.into_iter().map(|walk| walk.table).collect();
        for ((batch, table), repeats) in summed.iter_mut().zip(tables).zip(repeats) {
            if let Some(unique) = repeats {
                spread(batch.rows, table.dim, &unique.inverse, &unique.firsts);
                self.recent.keep(table.id, batch.keys, unique);
            }
        }
        Ok(())
    }
}
