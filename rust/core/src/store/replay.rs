//! The journal at opening: its entries are merged into the log, a window of many at a time.
//!
//! Nothing else runs yet and no row is in DRAM: the memory of rows serves as the window's. What is
//! replayed is written to the log at once, so another opening reads it and writes nothing.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::Arc;

use super::engine::Engine;
use super::fetch::{count_reads, Damage, Miss, Receiver, Source, Wanted};
use super::load::side_by_side;
use super::mutate::Change;
use super::scatter::Operands;
use super::walk::check_length;
use super::whole::check_width;
use super::window::{Life, Row, Window};
use crate::error::{Error, ErrorKind, Result};
use crate::index::Location;
use crate::journal::{Entry, Journal, Stamp};
use crate::ledger::Kind;
use crate::log::{Pin, Read, Record, RecordView, Stream};
use crate::table::{stripe_of, Found, Item, State, Table};
use crate::types::{hash, Place, Push, Sequence, TableId};

/// Share of the memory for rows that a window takes; the index may still grow.
const WINDOW_SHARE: f64 = 0.75;
const WINDOW_MIN: u64 = 1 << 20;
/// Numbers of one window's rows are counted in 32 bits.
const WINDOW_MAX: u64 = 1 << 30;
/// Rows that one thread has in memory: few enough for its cache, enough for the device.
const BATCH_BYTES: usize = 512 << 10;
/// Rows between the request for one's changes and their use.
const AHEAD: usize = 8;

/// Entries on their way from the journal into the log.
pub(super) struct Replay<'a> {
    engine: &'a Engine,
    windows: HashMap<TableId, Window>,
    /// Bytes that the windows take and may take.
    bytes: u64,
    limit: u64,
    /// The last removal, whose keys may go on in the next window, and the rows that it found.
    removal: Option<(Push, u64)>,
}

impl Engine {
    /// Applies what the journal holds. The log has it then; until a checkpoint it stays in the
    /// journal, of which the sessions are made too.
    pub(super) fn replay(&self, journal: &mut Journal) -> Result<()> {
        let limit = self.replay_bytes();
        #[cfg(test)]
        let limit = tests::WINDOW_BYTES.get().unwrap_or(limit);
        let _held = self.ledger.hold(Kind::Calls, limit);
        let mut replay = Replay::new(self, limit);
        journal.replay(&mut |stamp, entry| replay.entry(stamp, &entry))?;
        replay.merge()
    }

    /// Memory that a window may take: rows leave it free, and the index may still grow.
    pub(super) fn replay_bytes(&self) -> u64 {
        let free = self.ledger.rows_max().saturating_sub(self.ledger.held(Kind::Index));
        ((free as f64 * WINDOW_SHARE) as u64).clamp(WINDOW_MIN, WINDOW_MAX)
    }
}

impl Replay<'_> {
    fn new(engine: &Engine, limit: u64) -> Replay<'_> {
        let windows = HashMap::new();
        Replay { engine, windows, bytes: 0, limit, removal: None }
    }

    fn entry(&mut self, stamp: Stamp, entry: &Entry<'_>) -> Result<()> {
        let (sequence, uptime) = (stamp.sequence, self.engine.clock.seconds());
        let mut sequencer = self.engine.sequencer.lock();
        sequencer.last = sequencer.last.max(sequence);
        match entry {
            Entry::Sessions { sessions, .. } => {
                sequencer.sessions.clear();
                sequencer.sessions.restore(sessions.clone());
                Ok(())
            }
            Entry::Attach { session, client_id } => {
                sequencer.sessions.attach(*session, client_id, uptime).map(drop)
            }
            Entry::Gradients { push, tables } => {
                let ids: Vec<TableId> = tables.iter().map(|part| part.table).collect();
                sequencer.sessions.note(*push, &ids, uptime);
                drop(sequencer);
                tables.iter().try_for_each(|part| {
                    self.engine.replay_step(part.table, push.step, sequence);
                    let change = Change::Gradients(part.learning_rate, part.gradients);
                    self.change((sequence, *push), part.table, part.keys, change)
                })
            }
            Entry::Assign { push, table, keys, rows } => {
                sequencer.sessions.note(*push, &[*table], uptime);
                drop(sequencer);
                self.change((sequence, *push), *table, keys, Change::Rows(rows))
            }
            &Entry::Import { push, table, keys, rows } => {
                sequencer.sessions.note(push, &[table], uptime);
                drop(sequencer);
                let width = rows.len().checked_div(keys.len()).unwrap_or(0);
                self.change((sequence, push), table, keys, Change::Whole(rows, width))
            }
            &Entry::Scatter { push, table, operation, keys, rows } => {
                sequencer.sessions.note(push, &[table], uptime);
                drop(sequencer);
                let operands = Operands::of_entry(operation, keys, rows);
                self.change((sequence, push), table, keys, Change::Scatter(operands))
            }
            Entry::Remove { push, table, keys } => {
                sequencer.sessions.note(*push, &[*table], uptime);
                drop(sequencer);
                self.change((sequence, *push), *table, keys, Change::Remove)
            }
            &Entry::Removed { session, number, rows } => {
                sequencer.sessions.note_removal(session, number, rows);
                Ok(())
            }
            Entry::CreateTable { .. } | Entry::AlterTable { .. } | Entry::DropTable { .. } => {
                drop(sequencer);
                self.change_tables(sequence, entry)
            }
        }
    }

    /// A change of tables, unless the manifest has it. What comes before it is merged first.
    fn change_tables(&mut self, sequence: Sequence, entry: &Entry<'_>) -> Result<()> {
        if sequence <= self.engine.catalog.read().as_of {
            return Ok(());
        }
        self.merge()?;
        self.windows.clear();
        self.engine.replay_tables(sequence, entry)
    }

    /// Adds one entry's keys of a table to the window; a full window is merged in between.
    fn change(
        &mut self,
        of: (Sequence, Push),
        id: TableId,
        mut keys: &[u64],
        mut change: Change<'_>,
    ) -> Result<()> {
        // Entries of a dropped table are passed over: ids are never used again.
        let Some(table) = self.engine.find_replayed(id)? else { return Ok(()) };
        match change {
            Change::Whole(rows, _) => check_width(&table, keys.len(), rows.len()).map(drop)?,
            Change::Remove => {}
            _ => {
                let floats = change.rows_mut().map_or(0, |rows| rows.len());
                check_length(&table, keys, floats)?;
            }
        }
        let width = change.width(table.dim);
        let seen = self.engine.clock.stamp();
        while !keys.is_empty() {
            let room = self.limit.saturating_sub(self.bytes);
            let window = self.windows.entry(id).or_insert_with(|| Window::new(table.clone(), seen));
            let (taken, bytes) = window.collect(of, change, keys, room);
            self.bytes += bytes;
            keys = &keys[taken..];
            if let Some(rows) = change.rows_mut() {
                *rows = &rows[taken * width..];
            }
            if self.bytes >= self.limit {
                self.merge()?;
            }
        }
        Ok(())
    }

    /// Merges what was collected into the log. Where that is full, rows that were merged by then
    /// are passed over when it is done again.
    fn merge(&mut self) -> Result<()> {
        let engine = self.engine;
        for window in self.windows.values_mut().filter(|window| !window.is_empty()) {
            if engine.log_free() < engine.log_reserve() {
                engine.compact()?;
            }
            #[cfg(test)]
            tests::count_window()?;
            engine.again_with_log_room(|| engine.merge(window))?;
            engine.failure.check()?;
            let mut sequencer = engine.sequencer.lock();
            for (push, rows) in window.removals() {
                let before =
                    self.removal.filter(|&(last, _)| last == push).map_or(0, |last| last.1);
                self.removal = Some((push, before + rows));
                sequencer.sessions.note_replayed(push.session, push.number, before + rows);
            }
            drop(sequencer);
            window.clear();
        }
        self.bytes = 0;
        Ok(())
    }
}

/// A row of a window, and where the index says that its record is.
type Placed = (Option<Place>, u32);

impl Engine {
    /// Brings the rows of a window up to date in the log and the index.
    fn merge(&self, window: &Window) -> Result<()> {
        self.load_for((0..window.rows() as u32).map(|n| window.key(n)))?;
        // What the index names stays until it was read.
        let pin = self.tier.log.pin();
        let mut order = self.find_rows(window);
        // Neighbours in the log are read together. New rows come first, as they were named.
        order.sort_unstable();
        let batch = (BATCH_BYTES / (4 * window.table.floats)).max(1);
        let next = AtomicUsize::new(0);
        let work = || -> Result<()> {
            let mut batches = Batch::new(self, window, batch);
            loop {
                let first = next.fetch_add(batch, Relaxed).min(order.len());
                let end = (first + batch).min(order.len());
                if first == end {
                    return Ok(());
                }
                // One that failed stops the others.
                let outcome = batches.run(&pin, &order[first..end]);
                outcome.inspect_err(|_| next.store(order.len(), Relaxed))?;
            }
        };
        side_by_side(order.len().div_ceil(batch), work)?;
        let last = window.last();
        for stripe in &self.stripes {
            stripe.lock().progress.lift(last);
        }
        Ok(())
    }

    fn find_rows(&self, window: &Window) -> Vec<Placed> {
        let states: Vec<_> = self.stripes.iter().map(|stripe| stripe.lock()).collect();
        let id = window.table.id;
        let parts: Vec<_> = states.iter().map(|state| state.parts.get(&id)).collect();
        let find = |n: u32| {
            let item = item_of(window.key(n));
            let part = parts[stripe_of(item.hash, parts.len())]?;
            on_nvme(part.find(&item, |_| false))
        };
        (0..window.rows() as u32).map(|n| (find(n), n)).collect()
    }
}

/// Some rows of a window: read together, changed, written.
struct Batch<'a> {
    engine: &'a Engine,
    window: &'a Window,
    rows: Vec<Row>,
    numbers: Vec<f32>,
    scratch: Vec<f32>,
    /// Rows whose record is another key's, or did not verify: they are read again, alone.
    odd: Vec<usize>,
}

impl<'a> Batch<'a> {
    fn new(engine: &'a Engine, window: &'a Window, rows: usize) -> Self {
        let floats = window.table.floats;
        Self {
            engine,
            window,
            rows: Vec::with_capacity(rows),
            numbers: vec![0.0; rows * floats],
            scratch: vec![0.0; floats + window.table.dim],
            odd: Vec::new(),
        }
    }

    fn run(&mut self, pin: &Pin<'_>, placed: &[Placed]) -> Result<()> {
        self.rows.clear();
        self.rows.extend(placed.iter().map(|&(_, n)| Row::absent(self.window.key(n))));
        self.read(pin, placed)?;
        let (engine, window) = (self.engine, self.window);
        let numbers = self.numbers.chunks_exact_mut(window.table.floats);
        for ((i, row), numbers) in self.rows.iter_mut().enumerate().zip(numbers) {
            if let Some(&(_, ahead)) = placed.get(i + AHEAD) {
                window.prefetch(ahead);
            }
            window.apply(placed[i].1, row, numbers, &mut self.scratch);
            if row.is_changed {
                engine.settle(&window.table, row, numbers)?;
            }
        }
        Ok(())
    }

    fn read(&mut self, pin: &Pin<'_>, placed: &[Placed]) -> Result<()> {
        let Self { engine, window, rows, numbers, odd, .. } = self;
        let (table, log) = (&*window.table, &engine.tier.log);
        // Those without a record come first.
        let new = placed.partition_point(|placed| placed.0.is_none());
        let (rows, found) = (&mut rows[new..], &placed[new..]);
        let numbers = &mut numbers[new * table.floats..];
        let place = |n: usize| found[n].0.unwrap_or(Place::from_bits(0));
        let read = |n| Read { place: place(n), row_floats: table.floats, table: table.id };
        odd.clear();
        let mut outcome = Ok(());
        let counts = log.read(pin, found.len(), &read, &mut |n, record| {
            let numbers = &mut numbers[n * table.floats..(n + 1) * table.floats];
            match record {
                Ok(record) if is_row_of(&record, rows[n].key, table) => {
                    rows[n].read(place(n), &record, numbers);
                }
                Err(error) if error.kind != ErrorKind::Corruption => outcome = Err(error),
                _ => odd.push(n),
            }
        });
        count_reads(std::iter::once((table, 1)), 1, counts, true);
        outcome?;
        for &n in &*odd {
            let keys = &[rows[n].key];
            let sources = &[Source { table: &window.table, keys }];
            let misses = &mut [Miss { source: 0, index: 0, place: place(n) }];
            let numbers = &mut numbers[n * table.floats..(n + 1) * table.floats];
            engine.fetch(pin, sources, misses, &mut Odd { row: &mut rows[n], numbers })?;
        }
        Ok(())
    }
}

/// A row whose first read gave no record of it: what a careful fetch tells.
struct Odd<'a> {
    row: &'a mut Row,
    numbers: &'a mut [f32],
}

impl Receiver for Odd<'_> {
    const IS_BACKGROUND: bool = true;

    fn record(&mut self, _: &mut State, of: &Wanted<'_>, record: &RecordView<'_>) -> Result<bool> {
        if record.row.len() != self.numbers.len() {
            let error = Error::corruption(format!(
                "table {:?}: the record of key {} holds {} numbers, not {}",
                of.table.name(),
                of.item.key,
                record.row.len(),
                self.numbers.len()
            ));
            return Err(error);
        }
        self.row.read(of.place, record, self.numbers);
        Ok(true)
    }

    /// No row is in DRAM while the journal is replayed.
    fn resident(&mut self, _: &mut State, _: &Wanted<'_>, _: u64) -> Result<()> {
        Ok(())
    }

    fn absent(&mut self, _: &mut State, _: &Wanted<'_>) -> Result<()> {
        Ok(())
    }

    fn damaged(&mut self, _: &mut State, of: &Wanted<'_>, damage: Damage) -> Result<()> {
        self.row.place = Some(of.place);
        // What is known of nothing is past every entry: it stays as it is.
        let sequence = damage.sequence.unwrap_or(Sequence::MAX);
        (self.row.life, self.row.sequence) = (Life::Damaged, sequence);
        Ok(())
    }
}

impl Engine {
    /// Writes a changed row to the log, and tells the index.
    fn settle(&self, table: &Arc<Table>, row: &Row, numbers: &[f32]) -> Result<()> {
        let item = item_of(row.key);
        let append = || {
            let Row { key, sequence, last_seen, frequency, .. } = *row;
            let record = Record { key, sequence, last_seen, frequency, row: numbers };
            self.tier.log.append(Stream::Rows, table.id, &record)
        };
        let stripe = &self.stripes[stripe_of(item.hash, self.stripes.len())];
        if table.admission().is_some() {
            stripe.lock().forget_candidate(table.id, item.hash);
        }
        match (row.life, row.place) {
            (Life::Present, Some(old)) => {
                let new = append()?;
                stripe.lock().supersede(&self.tier, table.id, item.hash, old, new);
            }
            (Life::Present, None) => {
                let new = append()?;
                stripe.lock().adopt(&self.tier, table, row.key, new)?;
                self.charge_records(table, 1);
            }
            (Life::Absent, Some(old)) => {
                let state: &mut State = &mut stripe.lock();
                let old = Location::nvme(old);
                if state.remove(&self.tier, table.id, &item, old, row.sequence)? {
                    self.release_records(table, 1);
                }
            }
            (Life::Absent, None) => {
                // An opening that was cut short may have left a record of the row that these
                // entries made and removed, younger than an old mark of its removal knows.
                let log = &self.tier.log;
                log.append_tombstone(Stream::Rows, table.id, row.key, row.sequence)?;
            }
            (Life::Damaged, _) => {}
        }
        Ok(())
    }
}

/// A record that holds the row of `key`, whole.
fn is_row_of(record: &RecordView<'_>, key: u64, table: &Table) -> bool {
    record.key == key && !record.tombstone && record.row.len() == table.floats
}

fn item_of(key: u64) -> Item {
    Item { key, hash: hash(key), index: 0 }
}

/// No row is in DRAM while the journal is replayed.
fn on_nvme(found: Found) -> Option<Place> {
    match found {
        Found::Nvme(place) => Some(place),
        Found::Dram(_) | Found::Absent => None,
    }
}

#[cfg(test)]
#[path = "tests/replay.rs"]
mod tests;
