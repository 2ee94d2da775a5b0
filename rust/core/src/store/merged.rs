//! Reads of batches that repeat their keys, for callers that leave merging to the store: each key
//! is looked up once, its row is written to where it first occurs, and copied from there.

use super::engine::Engine;
use super::{InsertBatch, LookupBatch};
use crate::batch::{spread, Unique};
use crate::error::Result;
use crate::ledger::{Hold, Kind};

/// Where the keys of a batch first occur, of one that repeats some.
struct Repeats {
    firsts: Vec<u32>,
    inverse: Vec<u32>,
    _hold: Hold,
}

impl Repeats {
    /// `None` if every key occurs once.
    fn of(engine: &Engine, keys: &[u64]) -> Option<Self> {
        let hold = engine.ledger.hold(Kind::Calls, 12 * keys.len() as u64);
        let Unique { firsts, inverse, .. } = Unique::new(keys, 1);
        (firsts.len() < keys.len()).then_some(Self { firsts, inverse, _hold: hold })
    }

    /// Counts of all occurrences where a key first occurs, saturating; empty `counts`: one each.
    fn sum(&self, counts: &[u32]) -> Vec<u32> {
        let mut sums = vec![0_u32; self.inverse.len()];
        for (at, &index) in self.inverse.iter().enumerate() {
            let sum = &mut sums[self.firsts[index as usize] as usize];
            *sum = sum.saturating_add(counts.get(at).copied().unwrap_or(1));
        }
        sums
    }

    fn spread_rows(&self, rows: &mut [f32], dim: usize) {
        spread(rows, dim, &self.inverse, &self.firsts);
    }

    fn spread_found(&self, found: &mut [u8]) {
        if !found.is_empty() {
            for (at, &index) in self.inverse.iter().enumerate() {
                found[at] = found[self.firsts[index as usize] as usize];
            }
        }
    }
}

fn firsts(repeats: &Option<Repeats>) -> Option<&[u32]> {
    repeats.as_ref().map(|repeats| &repeats.firsts[..])
}

impl Engine {
    pub(super) fn lookup_merged(&self, batches: &mut [LookupBatch<'_>]) -> Result<()> {
        let repeats: Vec<_> = batches.iter().map(|b| Repeats::of(self, b.keys)).collect();
        let mut walks = self.lookup_walks(batches)?;
        for (walk, repeats) in walks.iter_mut().zip(&repeats) {
            walk.only = firsts(repeats);
        }
        self.answer(&walks, batches)?;
        for ((batch, walk), repeats) in batches.iter_mut().zip(&walks).zip(&repeats) {
            if let Some(repeats) = repeats {
                repeats.spread_rows(batch.rows, walk.table.dim);
                repeats.spread_found(batch.found);
            }
        }
        Ok(())
    }

    pub(super) fn lookup_or_insert_merged(&self, batches: &mut [InsertBatch<'_>]) -> Result<()> {
        let mut walks = self.insert_walks(batches)?;
        let repeats: Vec<_> = batches.iter().map(|b| Repeats::of(self, b.keys)).collect();
        let sum = |(repeats, batch): (&Option<Repeats>, &InsertBatch<'_>)| {
            repeats.as_ref().map(|repeats| repeats.sum(batch.counts))
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
        for ((batch, walk), repeats) in summed.iter_mut().zip(&walks).zip(&repeats) {
            if let Some(repeats) = repeats {
                repeats.spread_rows(batch.rows, walk.table.dim);
            }
        }
        Ok(())
    }
}
