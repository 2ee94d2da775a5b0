//! Keys that ask for a row: counted where they lie, admitted by the rule of their table.
//!
//! A candidate ends when its key is admitted, gets a row by another verb, or is removed.

use std::sync::Arc;

use super::part::Part;
use super::shape::Table;
use super::stripe::{accounted, State, Tier};
use crate::admission::{Block, Candidates, Rule};
use crate::error::{Error, Result};
use crate::types::TableId;

impl State {
    /// Counts `count` occurrences of a key that has no row. If it gets one now: its occurrences
    /// before.
    pub(crate) fn admit(
        &mut self,
        tier: &Tier,
        table: &Arc<Table>,
        rule: &Rule,
        (hash, count): (u64, u32),
    ) -> Option<u32> {
        self.part(tier, table);
        let Self { parts, memory, .. } = self;
        let part = parts.get_mut(&table.id)?;
        accounted(memory, part, |part| {
            let buckets = tier.buckets_per_stripe;
            let candidates = part.candidates.get_or_insert_with(|| new(buckets));
            candidates.admit(rule, hash, count)
        })
    }

    /// Rows make room for `keys` more candidates, as far as the log takes them: what it does not
    /// take now leaves later, for keys are counted in the order in which they come.
    ///
    /// # Errors
    /// `StoreFull` when candidates and index alone would pass the bound.
    pub(crate) fn reserve_candidates(
        &mut self,
        tier: &Tier,
        table: &Arc<Table>,
        keys: usize,
    ) -> Result<()> {
        let part = self.part(tier, table);
        let (candidates, row) = (part.candidates.as_deref(), part.pool.row_bytes());
        let (held, known) = candidates.map_or((0, 0), |c| (c.bytes(), c.len()));
        let growth = match candidates {
            Some(candidates) => candidates.growth_bytes(keys),
            None => Candidates::first_bytes(tier.buckets_per_stripe, keys),
        };
        // Beside them there must be room for a row, to be changed in.
        let own = part.index.bytes() + held + (size_of::<Part>() + row) as u64;
        let capped = table.stripe_cap().saturating_sub(own);
        let others = self.memory.fixed_bytes() + (size_of::<Part>() + row) as u64;
        let room = self.memory.budget().saturating_sub(others).min(capped);
        if growth > room {
            return Err(Error::store_full(format!(
                "table {:?}: no DRAM for the counts of keys that are not admitted ({known} here, \
                 {growth} bytes more needed of {room}); raise dram, or alter the admission to a \
                 smaller capacity",
                table.name(),
            )));
        }
        while !self.memory.has_room(growth) && self.give_coldest(tier).unwrap_or(false) {}
        Ok(())
    }

    /// The key is counted anew, should it come again. Returns its count until now.
    pub(crate) fn forget_candidate(&mut self, id: TableId, hash: u64) -> u32 {
        let Self { parts, memory, .. } = self;
        let Some(part) = parts.get_mut(&id).filter(|part| part.candidates.is_some()) else {
            return 0;
        };
        let forget = |candidates: &mut Box<Candidates>| candidates.forget(hash);
        accounted(memory, part, |part| part.candidates.as_mut().map_or(0, forget))
    }

    /// All keys of a table are let in from now on.
    pub(crate) fn forget_candidates(&mut self, id: TableId) {
        let Self { parts, memory, .. } = self;
        if let Some(part) = parts.get_mut(&id) {
            accounted(memory, part, |part| part.candidates = None);
        }
    }

    /// Most bytes that the candidates of all tables take in a file.
    pub(crate) fn candidates_bytes_max(&self, tier: &Tier) -> u64 {
        let candidates = self.parts.values().filter_map(|part| part.candidates.as_deref());
        candidates.map(|all| Block::bytes_max(all.len(), tier.buckets_per_stripe)).sum()
    }

    /// Candidates of all tables that fall into a bucket.
    pub(crate) fn candidates_of(&self, tier: &Tier, bucket: u32) -> Vec<Block> {
        let of = |(&table, candidates): (&TableId, &Candidates)| {
            let n = (bucket % tier.buckets_per_stripe) as usize;
            let (entries, width) = candidates.entries(n);
            let block = Block { table, bucket, width, entries: entries.map(<[u32]>::to_vec) };
            (!block.is_empty()).then_some(block)
        };
        let parts = self.parts.iter();
        let all = parts.filter_map(|(id, part)| Some((id, part.candidates.as_deref()?)));
        let mut blocks: Vec<Block> = all.filter_map(of).collect();
        blocks.sort_unstable_by_key(|block| block.table);
        blocks
    }

    /// Takes up what `candidates_of` gave, as far as there is room.
    pub(crate) fn restore_candidates(&mut self, tier: &Tier, table: &Arc<Table>, block: Block) {
        let [young, old] = &block.entries;
        if self.reserve_candidates(tier, table, young.len() + old.len()).is_err() {
            return;
        }
        self.part(tier, table);
        let Self { parts, memory, .. } = self;
        let Some(part) = parts.get_mut(&table.id) else { return };
        accounted(memory, part, |part| {
            let buckets = tier.buckets_per_stripe;
            let candidates = part.candidates.get_or_insert_with(|| new(buckets));
            let n = (block.bucket % buckets) as usize;
            candidates.restore(n, block.entries, block.width);
        });
    }
}

fn new(buckets: u32) -> Box<Candidates> {
    Box::new(Candidates::new(buckets))
}
