//! The walk of the reading verbs: the keys of each table pass over the stripes, a window of some
//! thousand at a time, and what was not in DRAM is fetched.
//!
//! The verbs differ in what they do with a row, with an absent key and with a record; the walk is
//! the same. A call of any size holds the memory of a few windows.

use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::sync::Arc;
use std::time::Instant;

use super::engine::Engine;
use super::fetch::{self, Damage, Miss, Receiver, Source, Wanted};
use super::pass::{Pass, Visits};
use super::pressure::PATIENCE;
use crate::batch::by_width;
use crate::error::{Error, ErrorKind, Result};
use crate::index::LocationRing;
use crate::ledger::Hold;
use crate::log::RecordView;
use crate::table::{Counters, Found, Item, Part, Plan, RowMut, State, Table, Visitor};
use crate::types::TableId;

/// Most bytes of answers that are written in one pass over the stripes. They are written in the
/// order of the stripes, at random places: so few stay in the cache, and in its page table.
const WINDOW_BYTES: usize = 1 << 20;
/// Most keys of a window: a call has memory for so many at a time, however many it names. Misses of
/// several windows, and tables, are fetched together until they are a quarter as many.
const WINDOW_KEYS_MAX: usize = 16 << 10;
/// And in the smallest store.
const WINDOW_KEYS_MIN: usize = 512;
/// Bytes that a key takes in the plan of its window, in the misses, among those that are absent.
const KEY_BYTES: u64 = 110;

/// One table's keys in a call.
pub(super) struct Walk<'a> {
    pub(super) table: Arc<Table>,
    keys: &'a [u64],
    /// Where in `keys` those are that it is about, if not all are.
    pub(super) only: Option<&'a [u32]>,
}

impl Walk<'_> {
    /// Keys that are passed over.
    fn len(&self) -> usize {
        self.only.map_or(self.keys.len(), <[u32]>::len)
    }

    /// The plan of `most` keys, from the `first`-th on.
    fn plan(&self, first: usize, most: usize, stripes: usize) -> Plan {
        let range = first..self.len().min(first + most);
        match self.only {
            Some(only) => Plan::of_some(self.keys, &only[range], stripes),
            None => Plan::window(&self.keys[range], first, stripes),
        }
    }

    fn source(&self) -> Source<'_> {
        Source { table: &self.table, keys: self.keys }
    }
}

/// How far a call has come: so many keys of this walk, and all walks before.
#[derive(Clone, Copy, Default)]
struct Position {
    walk: usize,
    key: usize,
}

impl Position {
    /// The plan of the next window, of at most `most` keys, and the number of its walk.
    fn next(&mut self, walks: &[Walk<'_>], most: usize, stripes: usize) -> Option<(usize, Plan)> {
        while walks.get(self.walk)?.len() == self.key {
            *self = Self { walk: self.walk + 1, key: 0 };
        }
        let walk = &walks[self.walk];
        let width = (WINDOW_BYTES / (4 * walk.table.dim)).clamp(1, most);
        let plan = walk.plan(self.key, width, stripes);
        self.key += plan.items.len();
        Some((self.walk, plan))
    }

    /// Keys that are still to come.
    fn left(&self, walks: &[Walk<'_>]) -> usize {
        walks.iter().skip(self.walk).map(Walk::len).sum::<usize>() - self.key
    }
}

/// What a verb does. `batch` counts the tables of the call.
pub(super) trait Verb {
    /// What is done with rows in DRAM.
    type Hits<'h>: Hits
    where
        Self: 'h;

    fn hits(&mut self, batch: usize) -> Self::Hits<'_>;

    /// The next windows begin: those before are not read again.
    fn begin(&mut self) {}

    /// These keys have no row. Takes out those that it is done with, also before an error.
    fn absent(
        &mut self,
        engine: &Engine,
        state: &mut State,
        batch: usize,
        items: &mut Vec<Item>,
    ) -> Result<()>;

    /// The row was read. Returns false if it is no longer there: look again.
    fn record(
        &mut self,
        engine: &Engine,
        state: &mut State,
        wanted: &Wanted<'_>,
        record: &RecordView<'_>,
    ) -> Result<bool>;

    /// True if keys without a row get one.
    const MAKES_ROWS: bool = false;
    /// True for reads that no caller waits for.
    const IS_BACKGROUND: bool = false;
}

/// What a verb does with the rows of one table that are in DRAM. Inlined: mark it so.
pub(super) trait Hits {
    /// As in `Visitor`.
    const IS_AHEAD: bool = false;
    /// As in `Visitor`.
    const CHANGES: bool;
    /// As in `Visitor`.
    const WARMS: bool = true;

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
    /// Those among them that are not told yet.
    late_keys: usize,
}

/// The same, of some keys, in a table of N columns (0: of any number).
struct Sort<'a, H, const N: usize> {
    hits: H,
    batch: usize,
    misses: &'a mut Vec<Miss>,
    absent: &'a mut Vec<Item>,
}

impl<H: Hits, const N: usize> Visitor for Sort<'_, H, N> {
    const IS_AHEAD: bool = H::IS_AHEAD;
    const CHANGES: bool = H::CHANGES;
    const WARMS: bool = H::WARMS;

    #[inline(always)]
    fn hit(&mut self, row: RowMut<'_>, item: &Item) {
        self.hits.hit::<N>(row, item);
    }

    #[cold]
    fn miss(&mut self, _: usize, item: &Item, found: Found) {
        match found {
            Found::Nvme(place) => {
                self.misses.push(Miss { source: self.batch as u32, index: item.index, place });
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
    let mut sort = Sort::<_, N> { hits: verb.hits(*batch), batch: *batch, misses, absent };
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
        let log = &self.engine.tier.log;
        match self.verb.absent(self.engine, state, self.batch, &mut self.absent) {
            // A row must leave for a new one, and the device would have to be waited for: that is
            // done where no stripe is held.
            Err(error)
                if error.kind == ErrorKind::Busy
                    || (is_full(&error) && log.freed_segments() > 0) =>
            {
                let late = |item: Item| Miss {
                    source: self.batch as u32,
                    index: item.index,
                    place: Miss::UNKNOWN,
                };
                self.late_keys += self.absent.len();
                self.misses.extend(self.absent.drain(..).map(late));
                Ok(())
            }
            outcome => outcome,
        }
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
        Ok(Walk { table, keys, only: None })
    }

    pub(super) fn read<V: Verb>(&self, walks: &[Walk<'_>], verb: &mut V) -> Result<()> {
        let replacements = self.replacements.load(Acquire);
        self.load_for(walks.iter().flat_map(|walk| walk.keys.iter().copied()))?;
        let mut position = Position::default();
        loop {
            let left = position.left(walks);
            if left == 0 || (V::IS_BACKGROUND && self.ahead.is_stopping.load(Relaxed)) {
                return self.check_not_replaced(walks, replacements);
            }
            let _memory = self.hold_for_window(walks, left)?;
            if V::MAKES_ROWS {
                self.tier.arena.prepare();
            }
            let mut next = position;
            verb.begin();
            // If the log was full: keys of these windows that were read by then are counted again.
            self.again_with_log_room(|| {
                next = position;
                self.read_windows(walks, &mut next, verb)
            })?;
            position = next;
        }
    }

    /// The rows of a table that was replaced meanwhile may have gone before they were looked at.
    fn check_not_replaced(&self, walks: &[Walk<'_>], before: u64) -> Result<()> {
        if self.replacements.load(Acquire) == before {
            return Ok(());
        }
        walks.iter().try_for_each(|walk| self.table_itself(walk.table.id).map(drop))
    }

    /// Books the memory of the next windows. Calls that ask while there is none take turns, window
    /// by window.
    fn hold_for_window(&self, walks: &[Walk<'_>], left: usize) -> Result<Hold> {
        let bytes = self.window_bytes(walks, left);
        match self.ledger.try_hold_for_call(bytes) {
            Some(hold) => Ok(hold),
            None => self.ledger.hold_for_call(bytes, Instant::now() + PATIENCE),
        }
    }

    /// Bytes of the next windows of a call that has so many keys left.
    fn window_bytes(&self, walks: &[Walk<'_>], left: usize) -> u64 {
        let keys = left.min(self.window_keys()) as u64;
        let floats = walks.iter().map(|walk| walk.table.floats).max().unwrap_or(0);
        keys * KEY_BYTES + fetch::batch_bytes(keys, floats)
    }

    /// Most keys of a window: a third of what calls may hold serves one.
    fn window_keys(&self) -> usize {
        let bytes = (self.ledger.calls_max() / 3).saturating_sub(fetch::BATCH_BYTES_MAX);
        ((bytes / KEY_BYTES) as usize).clamp(WINDOW_KEYS_MIN, WINDOW_KEYS_MAX)
    }

    /// Reads windows, until there is enough to fetch or no more keys.
    fn read_windows<V: Verb>(
        &self,
        walks: &[Walk<'_>],
        position: &mut Position,
        verb: &mut V,
    ) -> Result<()> {
        let sources: Vec<Source<'_>> = walks.iter().map(Walk::source).collect();
        let most = self.window_keys();
        // Before the places are looked up, until they were read; not for longer, for as long no
        // slot of the log that is freed is filled again.
        let pin = self.tier.log.pin();
        let mut misses = Vec::new();
        // Look-ahead gathers more: rows of several batches that share a page cost one read.
        let enough = if V::IS_BACKGROUND { most / 2 } else { most / 4 };
        while misses.len() < enough {
            let Some((n, plan)) = position.next(walks, most, self.stripes.len()) else { break };
            let pass = Pass::new(&self.stripes, &walks[n].table, &plan);
            if let Some(tally) = self.read_window(n, pass, verb, &mut misses)? {
                tally.note(&walks[n].table, plan.items.len());
            }
        }
        if !misses.is_empty() {
            // Rows that are read may be installed. Who finds all of them in DRAM touches nothing.
            self.tier.arena.prepare();
        }
        self.fetch(&pin, &sources, &mut misses, &mut Fetching { engine: self, verb })
    }

    /// As `read`, if nothing has to be waited for: no row is on NVMe, and no other call holds a
    /// stripe. Else false, with nothing counted.
    pub(super) fn try_read<V: Verb>(&self, walks: &[Walk<'_>], verb: &mut V) -> Result<bool> {
        if !self.is_loaded_for(walks.iter().flat_map(|walk| walk.keys.iter().copied())) {
            return Ok(false);
        }
        let replacements = self.replacements.load(Acquire);
        let mut position = Position::default();
        let bytes = self.window_bytes(walks, position.left(walks));
        let Some(_memory) = self.ledger.try_hold_for_call(bytes) else { return Ok(false) };
        let most = self.window_keys();
        let mut misses = Vec::new();
        let mut tallies = Vec::new();
        while let Some((n, plan)) = position.next(walks, most, self.stripes.len()) {
            let pass = Pass::new(&self.stripes, &walks[n].table, &plan).impatient();
            match self.read_window(n, pass, verb, &mut misses)? {
                Some(tally) if misses.is_empty() => tallies.push((n, plan.items.len(), tally)),
                _ => return Ok(false),
            }
        }
        tallies.iter().for_each(|(n, keys, tally)| tally.note(&walks[*n].table, *keys));
        self.check_not_replaced(walks, replacements).map(|()| true)
    }

    /// None if the pass stopped.
    fn read_window<V: Verb>(
        &self,
        batch: usize,
        pass: Pass<'_>,
        verb: &mut V,
        misses: &mut Vec<Miss>,
    ) -> Result<Option<Tally>> {
        let before = misses.len();
        let (absent, absent_keys, late_keys) = (Vec::new(), 0, 0);
        let mut sorter =
            Sorter { engine: self, verb, batch, misses, absent, absent_keys, late_keys };
        let is_whole = pass.run(&mut sorter)?;
        let (absent, late) = (sorter.absent_keys, sorter.late_keys);
        let missed = misses.len() - before - late;
        Ok(is_whole.then_some(Tally { absent, missed, is_background: V::IS_BACKGROUND }))
    }
}

/// What became of the keys of a window.
struct Tally {
    absent: usize,
    missed: usize,
    is_background: bool,
}

impl Tally {
    fn note(&self, table: &Table, keys: usize) {
        if self.is_background {
            // Hits and misses are those that callers met.
            return;
        }
        let counters = &table.counters;
        Counters::add(&counters.unique_keys, keys);
        Counters::add(&counters.probes, keys);
        Counters::add(&counters.cache_hits, keys - self.missed - self.absent);
        Counters::add(&counters.cache_misses, self.missed);
    }
}

fn is_full(error: &Error) -> bool {
    error.kind == ErrorKind::StoreFull
}

/// A verb, as the fetch sees it.
struct Fetching<'a, V> {
    engine: &'a Engine,
    verb: &'a mut V,
}

impl<V: Verb> Receiver for Fetching<'_, V> {
    const IS_BACKGROUND: bool = V::IS_BACKGROUND;
    const MAY_SKIP: bool = V::IS_BACKGROUND;

    fn record(
        &mut self,
        state: &mut State,
        wanted: &Wanted<'_>,
        record: &RecordView<'_>,
    ) -> Result<bool> {
        self.verb.record(self.engine, state, wanted, record)
    }

    fn resident(&mut self, state: &mut State, wanted: &Wanted<'_>, at: u64) -> Result<()> {
        if let Some(part) = state.parts.get_mut(&wanted.table.id) {
            self.verb.hits(wanted.source).hit::<0>(part.row_to_change(at), &wanted.item);
        }
        Ok(())
    }

    fn absent(&mut self, state: &mut State, wanted: &Wanted<'_>) -> Result<()> {
        self.verb.absent(self.engine, state, wanted.source, &mut vec![wanted.item])
    }

    fn damaged(&mut self, _: &mut State, _: &Wanted<'_>, damage: Damage) -> Result<()> {
        match V::IS_BACKGROUND {
            true => Ok(()),
            false => Err(damage.error),
        }
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
