//! Reading verbs: what each does with a row, with an absent key and with a record. `walk` brings
//! them there.

use std::sync::Arc;

use super::engine::Engine;
use super::fetch::Wanted;
use super::unadmitted::Counted;
use super::walk::{check_length, Hits, Verb, Walk};
use super::{InsertBatch, LookupBatch};
use crate::batch::copy_row;
use crate::effort;
use crate::error::{Error, Result};
use crate::log::RecordView;
use crate::table::{Counters, Found, Item, RowMut, State, Table};
use crate::types::TableId;

impl Engine {
    pub(super) fn lookup(&self, batches: &mut [LookupBatch<'_>]) -> Result<()> {
        let walks = self.lookup_walks(batches)?;
        self.answer(&walks, batches)
    }

    pub(super) fn answer(&self, walks: &[Walk<'_>], batches: &mut [LookupBatch<'_>]) -> Result<()> {
        let dims = dims(walks);
        self.read(walks, &mut Lookup { batches, dims })
    }

    pub(super) fn try_lookup(&self, batches: &mut [LookupBatch<'_>]) -> Result<bool> {
        let walks = self.lookup_walks(batches)?;
        let dims = dims(&walks);
        self.try_read(&walks, &mut Lookup { batches, dims })
    }

    pub(super) fn lookup_walks<'a>(&self, batches: &[LookupBatch<'a>]) -> Result<Vec<Walk<'a>>> {
        let mut walks = Vec::with_capacity(batches.len());
        for batch in batches.iter() {
            let walk = self.walk(batch.table, batch.keys)?;
            check_length(&walk.table, batch.keys, batch.rows.len())?;
            if !batch.found.is_empty() && batch.found.len() != batch.keys.len() {
                return Err(Error::bad_input(format!(
                    "table {:?}: room for {} found flags, {} keys",
                    walk.table.name(),
                    batch.found.len(),
                    batch.keys.len()
                )));
            }
            walks.push(walk);
        }
        Ok(walks)
    }

    pub(super) fn lookup_or_insert(&self, batches: &mut [InsertBatch<'_>]) -> Result<()> {
        let walks = self.insert_walks(batches)?;
        self.insert(&walks, batches)
    }

    pub(super) fn insert_walks<'a>(&self, batches: &[InsertBatch<'a>]) -> Result<Vec<Walk<'a>>> {
        let mut walks = Vec::with_capacity(batches.len());
        for batch in batches.iter() {
            let walk = self.walk(batch.table, batch.keys)?;
            check_length(&walk.table, batch.keys, batch.rows.len())?;
            if !batch.counts.is_empty() && batch.counts.len() != batch.keys.len() {
                return Err(Error::bad_input(format!(
                    "table {:?}: {} counts for {} keys; give one for each, or none",
                    walk.table.name(),
                    batch.counts.len(),
                    batch.keys.len()
                )));
            }
            walks.push(walk);
        }
        Ok(walks)
    }

    pub(super) fn insert(&self, walks: &[Walk<'_>], batches: &mut [InsertBatch<'_>]) -> Result<()> {
        self.wait_for_space()?;
        // A checkpoint's moment is before all of it or behind.
        let _whole = self.saving.training_read();
        let dims = dims(walks);
        let tables = walks.iter().map(|walk| walk.table.clone()).collect();
        let counted = walks.iter().map(|_| Counted::default()).collect();
        let now = self.saving.date(self.clock.stamp().into()) as u32;
        self.read(walks, &mut Insert { batches, tables, dims, now, counted })
    }

    pub(super) fn prefetch(&self, table: TableId, keys: &[u64]) -> Result<()> {
        self.warm(&[self.walk(table, keys)?])
    }

    /// Brings rows into DRAM that will be needed.
    pub(super) fn warm(&self, walks: &[Walk<'_>]) -> Result<()> {
        self.read(walks, &mut Prefetch)
    }
}

/// Columns of each table: a division per row would cost more than its copy.
fn dims(walks: &[Walk<'_>]) -> Vec<usize> {
    walks.iter().map(|walk| walk.table.dim).collect()
}

/// Copies the value of a row of N columns (0: of any number).
#[inline(always)]
fn copy_value<const N: usize>(value: &[f32], out: &mut [f32]) {
    copy_row::<N>(&value[..out.len()], out);
}

#[inline(always)]
fn row_of<'a, const N: usize>(rows: &'a mut [f32], dim: usize, item: &Item) -> &'a mut [f32] {
    let dim = if N > 0 { N } else { dim };
    let start = item.index as usize * dim;
    &mut rows[start..start + dim]
}

struct Lookup<'a, 'b> {
    batches: &'a mut [LookupBatch<'b>],
    dims: Vec<usize>,
}

/// One table's answers.
struct Answers<'a> {
    rows: &'a mut [f32],
    found: &'a mut [u8],
    dim: usize,
}

impl Answers<'_> {
    #[inline(always)]
    fn write<const N: usize>(&mut self, item: &Item, value: &[f32]) {
        copy_value::<N>(value, row_of::<N>(self.rows, self.dim, item));
        if let Some(found) = self.found.get_mut(item.index as usize) {
            *found = 1;
        }
    }
}

impl Hits for Answers<'_> {
    const CHANGES: bool = false;

    #[inline(always)]
    fn ask(&self, item: &Item) {
        crate::prefetch::row_to_write(self.rows, self.dim, item.index);
    }

    #[inline(always)]
    fn hit<const N: usize>(&mut self, (_, numbers): RowMut<'_>, item: &Item) {
        self.write::<N>(item, numbers);
    }
}

impl Verb for Lookup<'_, '_> {
    type Hits<'h>
        = Answers<'h>
    where
        Self: 'h;

    fn hits(&mut self, batch: usize) -> Answers<'_> {
        let LookupBatch { rows, found, .. } = &mut self.batches[batch];
        Answers { rows, found, dim: self.dims[batch] }
    }

    fn absent(
        &mut self,
        _: &Engine,
        _: &mut State,
        batch: usize,
        items: &mut Vec<Item>,
    ) -> Result<()> {
        let dim = self.dims[batch];
        let batch = &mut self.batches[batch];
        for item in items.drain(..) {
            let item = &item;
            row_of::<0>(batch.rows, dim, item).fill(0.0);
            if let Some(found) = batch.found.get_mut(item.index as usize) {
                *found = 0;
            }
        }
        Ok(())
    }

    fn record(
        &mut self,
        engine: &Engine,
        state: &mut State,
        wanted: &Wanted<'_>,
        record: &RecordView<'_>,
    ) -> Result<bool> {
        let &Wanted { source, table, item, place } = wanted;
        self.hits(source).write::<0>(&item, record.row);
        let Some(part) = state.parts.get_mut(&table.id) else { return Ok(true) };
        // The row answers as of the probe; it is offered to the cache, which may refuse.
        if part.policy.is_admitted(item.hash) || part.pool.has_free() {
            state.offer(&engine.tier, table, &item, place, record)?;
        }
        Ok(true)
    }
}

struct Insert<'a, 'b> {
    batches: &'a mut [InsertBatch<'b>],
    tables: Vec<Arc<Table>>,
    dims: Vec<usize>,
    now: u32,
    /// Of each batch.
    counted: Vec<Counted>,
}

/// One table's training reads.
struct Training<'a> {
    rows: &'a mut [f32],
    counts: &'a [u32],
    dim: usize,
    now: u32,
}

impl Hits for Training<'_> {
    const CHANGES: bool = true;

    #[inline(always)]
    fn ask(&self, item: &Item) {
        crate::prefetch::row_to_write(self.rows, self.dim, item.index);
    }

    /// Counts the read and copies the value out.
    #[inline(always)]
    fn hit<const N: usize>(&mut self, (header, numbers): RowMut<'_>, item: &Item) {
        let count = self.counts.get(item.index as usize).copied().unwrap_or(1);
        header.frequency = header.frequency.saturating_add(count);
        header.last_seen = self.now;
        header.state.make_dirty(None);
        copy_value::<N>(numbers, row_of::<N>(self.rows, self.dim, item));
    }
}

impl Verb for Insert<'_, '_> {
    type Hits<'h>
        = Training<'h>
    where
        Self: 'h;

    const MAKES_ROWS: bool = true;

    fn hits(&mut self, batch: usize) -> Training<'_> {
        let InsertBatch { rows, counts, .. } = &mut self.batches[batch];
        Training { rows, counts, dim: self.dims[batch], now: self.now }
    }

    fn begin(&mut self) {
        self.counted.iter_mut().for_each(Counted::clear);
    }

    fn absent(
        &mut self,
        engine: &Engine,
        state: &mut State,
        batch: usize,
        items: &mut Vec<Item>,
    ) -> Result<()> {
        // Not what may have replaced it meanwhile: that was not looked at.
        let table = engine.table_itself(self.tables[batch].id)?;
        let admission = table.admission();
        if let Some(rule) = &admission {
            let (counted, batch) = (&mut self.counted[batch], &mut self.batches[batch]);
            counted.count(engine, state, (&table, rule), batch, items)?;
        }
        let hashes: Vec<u64> = items.iter().map(|item| item.hash).collect();
        state.check_room(&engine.tier, &table, &hashes)?;
        engine.reserve_records(&table, items.len())?;
        let (mut done, mut created) = (0, 0);
        effort::note(items.len());
        // A key that repeats comes again at once: later its row may have left DRAM.
        items.sort_unstable_by_key(|item| (item.hash, item.index));
        let outcome = items.iter().try_for_each(|item| {
            let at = match state.part(&engine.tier, &table).find(item, |_| true) {
                Found::Dram(at) => at,
                _ => {
                    let sequence = state.create(item.hash);
                    let at = state.insert(&engine.tier, &table, item, sequence)?;
                    let part = state.part(&engine.tier, &table);
                    let (header, numbers) = part.pool.row_mut(at);
                    header.frequency = self.counted[batch].before(item.hash);
                    table.initial_row(item.key, numbers);
                    created += 1;
                    at
                }
            };
            let part = state.part(&engine.tier, &table);
            self.hits(batch).hit::<0>(part.row_to_change(at), item);
            done += 1;
            Ok(())
        });
        engine.release_records(&table, items.len() - created);
        if admission.is_some() {
            Counters::add(&table.counters.keys_admitted, created);
        }
        items.drain(..done);
        outcome
    }

    fn record(
        &mut self,
        engine: &Engine,
        state: &mut State,
        wanted: &Wanted<'_>,
        record: &RecordView<'_>,
    ) -> Result<bool> {
        let &Wanted { source, table, item, place } = wanted;
        let Some(at) = state.install(&engine.tier, table, &item, place, record)? else {
            return Ok(false);
        };
        let part = state.part(&engine.tier, table);
        self.hits(source).hit::<0>(part.row_to_change(at), &item);
        Ok(true)
    }
}

struct Prefetch;

impl Hits for () {
    const IS_AHEAD: bool = true;
    const CHANGES: bool = false;

    #[inline(always)]
    fn ask(&self, _: &Item) {}

    #[inline(always)]
    fn hit<const N: usize>(&mut self, _: RowMut<'_>, _: &Item) {}
}

impl Verb for Prefetch {
    type Hits<'h> = ();

    const IS_BACKGROUND: bool = true;

    fn hits(&mut self, _: usize) {}

    fn absent(&mut self, _: &Engine, _: &mut State, _: usize, items: &mut Vec<Item>) -> Result<()> {
        items.clear();
        Ok(())
    }

    fn record(
        &mut self,
        engine: &Engine,
        state: &mut State,
        wanted: &Wanted<'_>,
        record: &RecordView<'_>,
    ) -> Result<bool> {
        state.bring(&engine.tier, wanted.table, &wanted.item, wanted.place, record)?;
        Ok(true)
    }
}
