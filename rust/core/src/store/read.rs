//! Reading verbs: one pass over the stripes, one batch of device reads for what was not in DRAM.
//!
//! The three verbs differ in what they do with a row, with an absent key and with a record; the
//! walk is the same. A record that proves to be another key's (a fingerprint said yes), or that
//! moved while it was read, is looked up again, alone.

use std::sync::Arc;

use super::engine::{now, Engine};
use super::{InsertBatch, LookupBatch};
use crate::batch::copy_row;
use crate::error::{Error, Result};
use crate::log::{Pin, Read, RecordView};
use crate::table::{stripe_of, Counters, Found, Guard, Item, Plan, Pool, State, Table, Visitor};
use crate::types::{Place, TableId};

/// Most bytes of answers that are written in one pass over the stripes. They are written in the
/// order of the stripes, at random places: so few stay in the cache, and in its page table.
const WINDOW_BYTES: usize = 1 << 20;

/// One table's keys in a call.
struct Walk<'a> {
    table: Arc<Table>,
    keys: &'a [u64],
}

impl Walk<'_> {
    /// Plans of its windows, one after the other.
    fn windows(&self, stripes: usize) -> impl Iterator<Item = Plan> + '_ {
        let width = (WINDOW_BYTES / (4 * self.table.dim)).max(1);
        let window = move |(n, keys)| Plan::window(keys, n * width, stripes);
        self.keys.chunks(width).enumerate().map(window)
    }
}

/// A key whose row may be on NVMe.
struct Miss {
    batch: usize,
    item: Item,
    place: Place,
    rejected: Vec<Place>,
}

/// What a verb does. `batch` counts the tables of the call.
trait Verb {
    /// The row is in DRAM, at `at`.
    fn hit(&mut self, engine: &Engine, pool: &mut Pool, at: u64, batch: usize, item: &Item);

    /// These keys have no row.
    fn absent(
        &mut self,
        engine: &Engine,
        state: &mut State,
        batch: usize,
        items: &[Item],
    ) -> Result<()>;

    /// The row was read. Returns false if it is no longer there: look again.
    fn record(
        &mut self,
        engine: &Engine,
        state: &mut State,
        batch: usize,
        item: &Item,
        place: Place,
        record: &RecordView<'_>,
    ) -> Result<bool>;

    /// True for reads that no caller waits for.
    const IS_BACKGROUND: bool = false;
}

/// One table's visit in one stripe: hits go to the verb, all else is noted.
struct Pass<'a, V> {
    engine: &'a Engine,
    verb: &'a mut V,
    batch: usize,
    misses: &'a mut Vec<Miss>,
    absent: &'a mut Vec<Item>,
}

impl<V: Verb> Visitor for Pass<'_, V> {
    #[inline(always)]
    fn hit(&mut self, pool: &mut Pool, at: u64, item: &Item) {
        self.verb.hit(self.engine, pool, at, self.batch, item);
    }

    fn miss(&mut self, _: usize, item: &Item, found: Found) {
        match found {
            Found::Nvme(place) => {
                let (batch, rejected) = (self.batch, Vec::new());
                self.misses.push(Miss { batch, item: *item, place, rejected });
            }
            _ => self.absent.push(*item),
        }
    }
}

/// A stripe that is locked, with what its index says of some keys.
struct Probe<'a, 'b> {
    state: Guard<'a>,
    items: &'b [Item],
    found: Vec<Found>,
}

impl<'a, 'b> Probe<'a, 'b> {
    /// `found`: memory of an earlier one.
    fn new(state: Guard<'a>, walk: &Walk<'_>, items: &'b [Item], mut found: Vec<Found>) -> Self {
        found.clear();
        if let Some(part) = state.parts.get(&walk.table.id) {
            part.probe(items, walk.table.dim, &mut found);
        }
        Self { state, items, found }
    }
}

impl Engine {
    fn walk<'a>(&self, table: TableId, keys: &'a [u64]) -> Result<Walk<'a>> {
        let table = self.table(table)?;
        if keys.len() > u32::MAX as usize / 2 {
            return Err(Error::bad_input(format!(
                "table {:?}: {} keys in one call; split it, 2^31 are the most",
                table.name(),
                keys.len()
            )));
        }
        Ok(Walk { table, keys })
    }

    pub(super) fn lookup(&self, batches: &mut [LookupBatch<'_>]) -> Result<()> {
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
        let dims = dims(&walks);
        self.read(&walks, &mut Lookup { batches, dims })
    }

    pub(super) fn lookup_or_insert(&self, batches: &mut [InsertBatch<'_>]) -> Result<()> {
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
        self.wait_for_space()?;
        let dims = dims(&walks);
        let now = now() as u32;
        self.again_with_log_room(|| {
            self.read(&walks, &mut Insert { batches: &mut *batches, dims: dims.clone(), now })
        })
    }

    pub(super) fn prefetch(&self, table: TableId, keys: &[u64]) -> Result<()> {
        let walk = self.walk(table, keys)?;
        let table = walk.table.clone();
        self.read(&[walk], &mut Prefetch { table })
    }

    fn read<V: Verb>(&self, walks: &[Walk<'_>], verb: &mut V) -> Result<()> {
        let pin = self.tier.log.pin();
        let mut misses = Vec::new();
        for (batch, walk) in walks.iter().enumerate() {
            for plan in walk.windows(self.stripes.len()) {
                self.read_window(batch, walk, &plan, verb, &mut misses)?;
            }
        }
        self.read_misses(&pin, walks, misses, verb)
    }

    fn read_window<V: Verb>(
        &self,
        batch: usize,
        walk: &Walk<'_>,
        plan: &Plan,
        verb: &mut V,
        misses: &mut Vec<Miss>,
    ) -> Result<()> {
        let before = misses.len();
        let mut absent = Vec::new();
        // While one stripe is probed the rows of the one before are on their way. Stripes are
        // locked in their order, and nobody who holds one waits for an earlier one.
        let mut ahead: Option<Probe<'_, '_>> = None;
        let mut spare = Vec::new();
        for (s, stripe) in self.stripes.iter().enumerate() {
            if plan.group(s).is_empty() {
                continue;
            }
            let found = std::mem::take(&mut spare);
            let probe = Probe::new(stripe.lock(), walk, plan.group(s), found);
            if let Some(mut probe) = ahead.replace(probe) {
                self.visit(batch, walk, &mut probe, verb, misses, &mut absent)?;
                spare = probe.found;
            }
        }
        if let Some(mut probe) = ahead {
            self.visit(batch, walk, &mut probe, verb, misses, &mut absent)?;
        }
        let (counters, missed) = (&walk.table.counters, misses.len() - before);
        Counters::add(&counters.unique_keys, plan.items.len());
        Counters::add(&counters.probes, plan.items.len());
        Counters::add(&counters.cache_hits, plan.items.len() - missed - absent.len());
        Counters::add(&counters.cache_misses, missed);
        Ok(())
    }

    fn visit<V: Verb>(
        &self,
        batch: usize,
        walk: &Walk<'_>,
        probe: &mut Probe<'_, '_>,
        verb: &mut V,
        misses: &mut Vec<Miss>,
        absent: &mut Vec<Item>,
    ) -> Result<()> {
        let before = absent.len();
        match probe.state.parts.get_mut(&walk.table.id) {
            None => absent.extend_from_slice(probe.items),
            Some(part) => {
                let mut pass = Pass { engine: self, verb, batch, misses, absent };
                part.visit(probe.items, &probe.found, &mut pass);
                part.policy.age(&mut part.pool, probe.items.len());
            }
        }
        if absent.len() > before {
            verb.absent(self, &mut probe.state, batch, &absent[before..])?;
        }
        Ok(())
    }

    fn read_misses<V: Verb>(
        &self,
        pin: &Pin<'_>,
        walks: &[Walk<'_>],
        mut misses: Vec<Miss>,
        verb: &mut V,
    ) -> Result<()> {
        let mut is_first = true;
        while !misses.is_empty() {
            let again = self.read_records(pin, walks, &misses, verb, is_first)?;
            misses = self.look_again(walks, again, verb)?;
            is_first = false;
        }
        Ok(())
    }

    /// Reads all of `misses` in one batch; returns those to be looked up again.
    fn read_records<V: Verb>(
        &self,
        pin: &Pin<'_>,
        walks: &[Walk<'_>],
        misses: &[Miss],
        verb: &mut V,
        is_first: bool,
    ) -> Result<Vec<Miss>> {
        let read = |(tag, miss): (usize, &Miss)| Read {
            place: miss.place,
            row_floats: walks[miss.batch].table.floats,
            table: walks[miss.batch].table.id,
            tag: tag as u32,
        };
        let mut reads: Vec<Read> = misses.iter().enumerate().map(read).collect();
        let mut again = Vec::new();
        let mut outcome = Ok(());
        let counts = self.tier.log.read(pin, &mut reads, &mut |tag, record| {
            let miss = &misses[tag as usize];
            let result = self.use_record(walks, miss, record, verb, &mut again);
            if outcome.is_ok() {
                outcome = result;
            }
        });
        let tables = misses.iter().map(|miss| &*walks[miss.batch].table);
        count_reads(tables, counts.device_reads, counts.bytes, V::IS_BACKGROUND || !is_first);
        outcome?;
        Ok(again)
    }

    fn use_record<V: Verb>(
        &self,
        walks: &[Walk<'_>],
        miss: &Miss,
        record: Result<RecordView<'_>>,
        verb: &mut V,
        again: &mut Vec<Miss>,
    ) -> Result<()> {
        let table = &walks[miss.batch].table;
        let record = record.inspect_err(|_| Counters::add(&table.counters.corrupt_records, 1))?;
        let mut rejected = miss.rejected.clone();
        if record.key == miss.item.key {
            let mut state = self.stripe_of(&miss.item).lock();
            if verb.record(self, &mut state, miss.batch, &miss.item, miss.place, &record)? {
                return Ok(());
            }
        } else {
            rejected.push(miss.place);
        }
        again.push(Miss { batch: miss.batch, item: miss.item, place: miss.place, rejected });
        Ok(())
    }

    /// Looks single keys up again, passing over the records that were found to be other keys'.
    fn look_again<V: Verb>(
        &self,
        walks: &[Walk<'_>],
        again: Vec<Miss>,
        verb: &mut V,
    ) -> Result<Vec<Miss>> {
        let mut misses = Vec::new();
        for mut miss in again {
            let mut state = self.stripe_of(&miss.item).lock();
            let part = state.parts.get_mut(&walks[miss.batch].table.id);
            let found = part.as_ref().map_or(Found::Absent, |part| {
                part.find(&miss.item, |place| miss.rejected.contains(&place))
            });
            match (found, part) {
                (Found::Nvme(place), _) => {
                    miss.place = place;
                    misses.push(miss);
                }
                (Found::Dram(at), Some(part)) => {
                    verb.hit(self, &mut part.pool, at, miss.batch, &miss.item);
                }
                _ => verb.absent(self, &mut state, miss.batch, &[miss.item])?,
            }
        }
        Ok(misses)
    }

    fn stripe_of(&self, item: &Item) -> &crate::table::Stripe {
        &self.stripes[stripe_of(item.hash, self.stripes.len())]
    }
}

/// Columns of each table: a division per row would cost more than its copy.
fn dims(walks: &[Walk<'_>]) -> Vec<usize> {
    walks.iter().map(|walk| walk.table.dim).collect()
}

/// Attributes the device reads of a batch to its tables, in proportion to their misses.
pub(super) fn count_reads<'a>(
    tables: impl Iterator<Item = &'a Table>,
    device_reads: u64,
    bytes: u64,
    is_background: bool,
) {
    let mut shares: Vec<(&Table, u64)> = Vec::new();
    for table in tables {
        match shares.last_mut() {
            Some((last, n)) if last.id == table.id => *n += 1,
            _ => shares.push((table, 1)),
        }
    }
    let mut total: u64 = shares.iter().map(|share| share.1).sum();
    let (mut reads, mut bytes) = (device_reads, bytes);
    for (table, n) in shares {
        let (own_reads, own_bytes) = (reads * n / total, bytes * n / total);
        (reads, bytes, total) = (reads - own_reads, bytes - own_bytes, total - n);
        let counters = &table.counters;
        let counter =
            if is_background { &counters.background_reads } else { &counters.device_reads };
        Counters::add(counter, own_reads as usize);
        Counters::add(&counters.device_bytes_read, own_bytes as usize);
    }
}

pub(super) fn check_length(table: &Table, keys: &[u64], floats: usize) -> Result<()> {
    if floats == keys.len() * table.dim {
        return Ok(());
    }
    Err(Error::bad_input(format!(
        "table {:?}: {floats} float32 numbers for {} keys of dim {}; give keys * dim of them",
        table.name(),
        keys.len(),
        table.dim
    )))
}

/// Copies the value of a row.
#[inline(always)]
fn copy_value(value: &[f32], out: &mut [f32]) {
    let value = &value[..out.len()];
    match out.len() {
        8 => copy_row::<8>(value, out),
        16 => copy_row::<16>(value, out),
        17 => copy_row::<17>(value, out),
        32 => copy_row::<32>(value, out),
        64 => copy_row::<64>(value, out),
        _ => out.copy_from_slice(value),
    }
}

#[inline(always)]
fn row_of<'a>(rows: &'a mut [f32], dim: usize, item: &Item) -> &'a mut [f32] {
    let start = item.index as usize * dim;
    &mut rows[start..start + dim]
}

struct Lookup<'a, 'b> {
    batches: &'a mut [LookupBatch<'b>],
    dims: Vec<usize>,
}

impl Lookup<'_, '_> {
    #[inline(always)]
    fn answer(&mut self, batch: usize, item: &Item, dim: usize) -> &mut [f32] {
        let batch = &mut self.batches[batch];
        if let Some(found) = batch.found.get_mut(item.index as usize) {
            *found = 1;
        }
        row_of(batch.rows, dim, item)
    }
}

impl Verb for Lookup<'_, '_> {
    #[inline(always)]
    fn hit(&mut self, _: &Engine, pool: &mut Pool, at: u64, batch: usize, item: &Item) {
        pool.header_mut(at).state.warm();
        let dim = self.dims[batch];
        copy_value(pool.row(at).1, self.answer(batch, item, dim));
    }

    fn absent(&mut self, _: &Engine, _: &mut State, batch: usize, items: &[Item]) -> Result<()> {
        let dim = self.dims[batch];
        let batch = &mut self.batches[batch];
        for item in items {
            row_of(batch.rows, dim, item).fill(0.0);
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
        batch: usize,
        item: &Item,
        place: Place,
        record: &RecordView<'_>,
    ) -> Result<bool> {
        let dim = self.dims[batch];
        copy_value(record.row, self.answer(batch, item, dim));
        let id = self.batches[batch].table;
        let Some(part) = state.parts.get_mut(&id) else { return Ok(true) };
        // The row answers as of the probe; it is offered to the cache, which may refuse.
        if part.policy.is_admitted(item.hash) || part.pool.has_free() {
            let table = part.table.clone();
            state.offer(&engine.tier, &table, item, place, record)?;
        }
        Ok(true)
    }
}

struct Insert<'a, 'b> {
    batches: &'a mut [InsertBatch<'b>],
    dims: Vec<usize>,
    now: u32,
}

impl Insert<'_, '_> {
    /// Counts the read and copies the value out.
    #[inline(always)]
    fn touch(&mut self, pool: &mut Pool, at: u64, batch: usize, item: &Item) {
        let dim = self.dims[batch];
        let batch = &mut self.batches[batch];
        let count = batch.counts.get(item.index as usize).copied().unwrap_or(1);
        let (header, numbers) = pool.row_mut(at);
        header.frequency = header.frequency.saturating_add(count);
        header.last_seen = self.now;
        header.state.make_dirty(None);
        copy_value(numbers, row_of(batch.rows, dim, item));
    }
}

impl Verb for Insert<'_, '_> {
    #[inline(always)]
    fn hit(&mut self, _: &Engine, pool: &mut Pool, at: u64, batch: usize, item: &Item) {
        pool.header_mut(at).state.warm();
        self.touch(pool, at, batch, item);
    }

    fn absent(
        &mut self,
        engine: &Engine,
        state: &mut State,
        batch: usize,
        items: &[Item],
    ) -> Result<()> {
        let table = engine.table(self.batches[batch].table)?;
        let hashes: Vec<u64> = items.iter().map(|item| item.hash).collect();
        state.check_room(&engine.tier, &table, &hashes)?;
        engine.reserve_records(&table, items.len())?;
        let mut created = 0;
        // A key that repeats comes again at once: later its row may have left DRAM.
        let mut items = items.to_vec();
        items.sort_unstable_by_key(|item| (item.hash, item.index));
        let outcome = items.iter().try_for_each(|item| {
            let at = match state.part(&engine.tier, &table).find(item, |_| true) {
                Found::Dram(at) => at,
                _ => {
                    let sequence = state.applied;
                    let at = state.insert(&engine.tier, &table, item, sequence)?;
                    let part = state.part(&engine.tier, &table);
                    table.initial_row(item.key, part.pool.row_mut(at).1);
                    created += 1;
                    at
                }
            };
            let part = state.part(&engine.tier, &table);
            self.touch(&mut part.pool, at, batch, item);
            Ok(())
        });
        engine.release_records(&table, items.len() - created);
        outcome
    }

    fn record(
        &mut self,
        engine: &Engine,
        state: &mut State,
        batch: usize,
        item: &Item,
        place: Place,
        record: &RecordView<'_>,
    ) -> Result<bool> {
        let id = self.batches[batch].table;
        let Some(table) = state.parts.get(&id).map(|part| part.table.clone()) else {
            return Ok(false);
        };
        let Some(at) = state.install(&engine.tier, &table, item, place, record)? else {
            return Ok(false);
        };
        let part = state.part(&engine.tier, &table);
        self.touch(&mut part.pool, at, batch, item);
        Ok(true)
    }
}

struct Prefetch {
    table: Arc<Table>,
}

impl Verb for Prefetch {
    const IS_BACKGROUND: bool = true;

    fn hit(&mut self, _: &Engine, pool: &mut Pool, at: u64, _: usize, _: &Item) {
        pool.header_mut(at).state.warm();
    }

    fn absent(&mut self, _: &Engine, _: &mut State, _: usize, _: &[Item]) -> Result<()> {
        Ok(())
    }

    fn record(
        &mut self,
        engine: &Engine,
        state: &mut State,
        _: usize,
        item: &Item,
        place: Place,
        record: &RecordView<'_>,
    ) -> Result<bool> {
        state.offer(&engine.tier, &self.table, item, place, record)?;
        Ok(true)
    }
}
