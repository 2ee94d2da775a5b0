//! The walk of the reading verbs: the keys of each table pass over the stripes, and what was not in
//! DRAM is read in one batch.
//!
//! The verbs differ in what they do with a row, with an absent key and with a record; the walk is
//! the same. A record that proves to be another key's (a fingerprint said yes), or that moved while
//! it was read, is looked up again, alone.

use std::sync::Arc;

use super::engine::Engine;
use super::pass::{Pass, Visits};
use crate::batch::by_width;
use crate::error::{Error, Result};
use crate::index::LocationRing;
use crate::log::{Pin, Read, RecordView};
use crate::table::{stripe_of, Counters, Found, Item, Part, Plan, RowMut, State, Table, Visitor};
use crate::types::{Place, TableId};

/// Most bytes of answers that are written in one pass over the stripes. They are written in the
/// order of the stripes, at random places: so few stay in the cache, and in its page table.
const WINDOW_BYTES: usize = 1 << 20;

/// One table's keys in a call.
pub(super) struct Walk<'a> {
    pub(super) table: Arc<Table>,
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
pub(super) trait Verb {
    /// What is done with rows in DRAM.
    type Hits<'h>: Hits
    where
        Self: 'h;

    fn hits(&mut self, batch: usize) -> Self::Hits<'_>;

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

/// What a verb does with the rows of one table that are in DRAM. Inlined: mark it so.
pub(super) trait Hits {
    /// Asks for the caller's memory that a hit will need.
    fn ask(&self, item: &Item);

    /// The row is there. Its table has N columns (0: any number).
    fn hit<const N: usize>(&mut self, row: RowMut<'_>, item: &Item);
}

/// One table's pass for a verb: hits go to it at once, absent keys stripe by stripe, all else is
/// noted.
struct Sorter<'a, V> {
    engine: &'a Engine,
    verb: &'a mut V,
    batch: usize,
    misses: &'a mut Vec<Miss>,
    absent: Vec<Item>,
    absent_keys: usize,
}

/// The same, of some keys, in a table of N columns (0: of any number).
struct Sort<'a, H, const N: usize> {
    hits: H,
    is_watching: bool,
    batch: usize,
    misses: &'a mut Vec<Miss>,
    absent: &'a mut Vec<Item>,
}

impl<H: Hits, const N: usize> Visitor for Sort<'_, H, N> {
    #[inline(always)]
    fn hit(&mut self, row: RowMut<'_>, item: &Item) {
        if self.is_watching {
            row.0.state.warm();
        }
        self.hits.hit::<N>(row, item);
    }

    #[cold]
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

fn visit<const N: usize>(
    sorter: &mut Sorter<'_, impl Verb>,
    part: &mut Part,
    items: &[Item],
    found: &LocationRing,
    first: usize,
) {
    let Sorter { verb, batch, misses, absent, .. } = sorter;
    let (hits, is_watching) = (verb.hits(*batch), part.policy.is_watching());
    let mut sort = Sort::<_, N> { hits, is_watching, batch: *batch, misses, absent };
    part.visit(items, found, first, &mut sort);
}

impl<V: Verb> Visits for Sorter<'_, V> {
    fn ask(&mut self, items: &[Item]) {
        let hits = self.verb.hits(self.batch);
        items.iter().for_each(|item| hits.ask(item));
    }

    fn visit(&mut self, part: &mut Part, items: &[Item], found: &LocationRing, first: usize) {
        by_width!(part.table.dim, visit(self, part, items, found, first));
    }

    fn absent(&mut self, items: &[Item]) {
        self.absent.extend_from_slice(items);
    }

    fn leave(&mut self, state: &mut State) -> Result<()> {
        if self.absent.is_empty() {
            return Ok(());
        }
        self.absent_keys += self.absent.len();
        let outcome = self.verb.absent(self.engine, state, self.batch, &self.absent);
        self.absent.clear();
        outcome
    }
}

impl Engine {
    pub(super) fn walk<'a>(&self, table: TableId, keys: &'a [u64]) -> Result<Walk<'a>> {
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

    pub(super) fn read<V: Verb>(&self, walks: &[Walk<'_>], verb: &mut V) -> Result<()> {
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
        let mut sorter =
            Sorter { engine: self, verb, batch, misses, absent: Vec::new(), absent_keys: 0 };
        Pass::new(&self.stripes, &walk.table, plan).run(&mut sorter)?;
        let (absent, missed) = (sorter.absent_keys, misses.len() - before);
        if V::IS_BACKGROUND {
            // Hits and misses are those that callers met.
            return Ok(());
        }
        let counters = &walk.table.counters;
        Counters::add(&counters.unique_keys, plan.items.len());
        Counters::add(&counters.probes, plan.items.len());
        Counters::add(&counters.cache_hits, plan.items.len() - missed - absent);
        Counters::add(&counters.cache_misses, missed);
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
                    verb.hits(miss.batch).hit::<0>(part.pool.row_mut(at), &miss.item);
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
