//! Telling what was found: rows are copied from DRAM or read from their records, some at a time.
//!
//! A row is told as it is when its turn comes. One that was removed meanwhile is passed over, for
//! its removal will be told; one that cannot be read ends the answer with an error that names it.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::find::{Listing, Newest};
use super::{ChangesEnd, ChangesPiece, Detail, Following, Tell, SHARE};
use crate::error::{Error, Result};
use crate::index::CELLS_A_BUCKET;
use crate::log::{Read, RecordView};
use crate::store::engine::Engine;
use crate::store::fetch::{batch_bytes, count_reads, Damage, Miss, Receiver, Source, Wanted};
use crate::store::pressure::PATIENCE;
use crate::table::{stripe_of, Found, Header, Item, State, Table};
use crate::types::{hash, Place, Sequence};

/// Bytes of rows that are copied under one lock, and told together; rows at most.
const PIECE_BYTES: usize = 128 << 10;
const PIECE_ROWS: usize = 512;
/// What a row takes in a piece beside its numbers, and while it is looked up.
const ROW_BYTES: usize = 96;

/// Rows that will be told together.
#[derive(Default)]
struct Piece {
    keys: Vec<u64>,
    sequences: Vec<Sequence>,
    last_seen: Vec<u32>,
    frequency: Vec<u32>,
    rows: Vec<f32>,
}

/// Tells rows of one table.
pub(super) struct Teller<'a> {
    engine: &'a Engine,
    table: &'a Arc<Table>,
    detail: Detail,
    /// Numbers that are told of a row, and rows of a piece.
    width: usize,
    rows: usize,
    piece: Piece,
    told: u64,
}

impl<'a> Teller<'a> {
    pub(super) fn new(engine: &'a Engine, table: &'a Arc<Table>, detail: Detail) -> Self {
        let width = match detail {
            Detail::Keys => 0,
            Detail::Values => table.dim,
            Detail::Rows => table.floats,
        };
        let rows = (PIECE_BYTES / (4 * width + ROW_BYTES)).clamp(1, PIECE_ROWS);
        Self { engine, table, detail, width, rows, piece: Piece::default(), told: 0 }
    }

    /// Memory that it takes.
    pub(super) fn bytes(&self) -> u64 {
        let piece = self.rows * (4 * self.width + ROW_BYTES);
        piece as u64 + batch_bytes(self.rows as u64, self.table.floats)
    }

    /// Tells what is newer, removals first. Returns how many keys were told.
    pub(super) fn tell(mut self, newest: &Newest, tell: &mut Tell<'_>) -> Result<u64> {
        for removed in newest.removed.chunks(PIECE_ROWS) {
            tell(&ChangesPiece { removed, ..self.piece.view() })?;
            self.told += removed.len() as u64;
        }
        self.tell_rows(&newest.rows, tell)?;
        Ok(self.told)
    }

    /// Tells rows of one stripe by their keys.
    pub(super) fn tell_rows(
        &mut self,
        rows: &[(u64, Sequence)],
        tell: &mut Tell<'_>,
    ) -> Result<()> {
        for rows in rows.chunks(self.rows) {
            self.gather(rows)?;
            self.hand_over(tell)?;
        }
        Ok(())
    }

    fn hand_over(&mut self, tell: &mut Tell<'_>) -> Result<()> {
        if self.piece.keys.is_empty() {
            return Ok(());
        }
        self.told += self.piece.keys.len() as u64;
        let outcome = tell(&self.piece.view());
        self.piece.clear();
        outcome
    }

    /// Copies rows into the piece: those in DRAM under the lock, then the others from the device.
    fn gather(&mut self, rows: &[(u64, Sequence)]) -> Result<()> {
        let Some(first) = rows.first() else { return Ok(()) };
        let log = &self.engine.tier.log;
        let (keys, mut misses) = (rows.iter().map(|row| row.0).collect::<Vec<u64>>(), Vec::new());
        // Before places are looked up, until they were read.
        let pin = log.pin();
        let stripes = &self.engine.stripes;
        let state = stripes[stripe_of(hash(first.0), stripes.len())].lock();
        let Some(part) = state.parts.get(&self.table.id) else { return Ok(()) };
        for (index, &(key, sequence)) in rows.iter().enumerate() {
            let item = Item { key, hash: hash(key), index: index as u32 };
            match part.find(&item, |_| false) {
                Found::Dram(at) => {
                    let (header, numbers) = part.pool.row(at);
                    self.piece.add_row(header, &numbers[..self.width], self.detail);
                }
                Found::Nvme(_) if self.detail == Detail::Keys => self.piece.add(key, sequence),
                Found::Nvme(place) => misses.push(Miss { source: 0, index: item.index, place }),
                Found::Absent => {}
            }
        }
        drop(state);
        let sources = [Source { table: self.table, keys: &keys }];
        self.engine.fetch(&pin, &sources, &mut misses, self)
    }

    /// A record that is not of this table's rows.
    fn odd(&self, record: &RecordView<'_>) -> Error {
        Error::corruption(format!(
            "table {:?}: the record of key {} holds {} numbers, not {}: assign or remove the key",
            self.table.name(),
            record.key,
            record.row.len(),
            self.table.floats
        ))
    }

    /// Reads records of a listing that are still where it names them. Returns false if some are
    /// not; appends keys of those that have to be looked up to `others`.
    fn tell_places(
        &mut self,
        listing: &Listing,
        others: &mut Vec<(u64, Sequence)>,
        tell: &mut Tell<'_>,
    ) -> Result<bool> {
        let (log, table) = (&self.engine.tier.log, self.table);
        let mut are_all_there = true;
        for places in listing.places.chunks(self.rows) {
            let pin = log.pin();
            let holds = |place: &&Place| log.still_holds(&pin, **place, listing.newest);
            let held: Vec<Place> = places.iter().filter(holds).copied().collect();
            are_all_there &= held.len() == places.len();
            let read =
                |n: usize| Read { place: held[n], row_floats: table.floats, table: table.id };
            let mut damaged = Vec::new();
            let counts = log.read(&pin, held.len(), &read, &mut |n, record| match record {
                Ok(record) if record.row.len() == table.floats => {
                    self.piece.add_record(&record, self.width, self.detail);
                }
                Ok(record) => damaged.push((held[n], self.odd(&record))),
                Err(error) => damaged.push((held[n], error)),
            });
            count_reads(std::iter::once((&**table, 1)), 1, counts, true);
            for (place, error) in damaged {
                // Whose it is its footer says; then it is read with care.
                match log.entry_at(place, listing.bucket)? {
                    Some(entry) => others.push((entry.key, entry.sequence)),
                    None => return Err(error),
                }
            }
            drop(pin);
            self.hand_over(tell)?;
        }
        Ok(are_all_there)
    }
}

impl Receiver for Teller<'_> {
    const IS_BACKGROUND: bool = true;

    fn record(&mut self, _: &mut State, _: &Wanted<'_>, record: &RecordView<'_>) -> Result<bool> {
        if record.row.len() != self.table.floats {
            return Err(self.odd(record));
        }
        self.piece.add_record(record, self.width, self.detail);
        Ok(true)
    }

    fn resident(&mut self, state: &mut State, wanted: &Wanted<'_>, at: u64) -> Result<()> {
        if let Some(part) = state.parts.get(&wanted.table.id) {
            let (header, numbers) = part.pool.row(at);
            self.piece.add_row(header, &numbers[..self.width], self.detail);
        }
        Ok(())
    }

    fn absent(&mut self, _: &mut State, _: &Wanted<'_>) -> Result<()> {
        Ok(())
    }

    fn damaged(&mut self, _: &mut State, wanted: &Wanted<'_>, damage: Damage) -> Result<()> {
        Err(Error::corruption(format!(
            "table {:?}: the row of key {} cannot be told: {}",
            self.table.name(),
            wanted.item.key,
            damage.error.message
        )))
    }
}

impl Piece {
    fn add(&mut self, key: u64, sequence: Sequence) {
        self.keys.push(key);
        self.sequences.push(sequence);
    }

    fn add_row(&mut self, header: &Header, numbers: &[f32], detail: Detail) {
        self.add(header.key, header.sequence);
        if detail != Detail::Keys {
            self.last_seen.push(header.last_seen);
            self.frequency.push(header.frequency);
            self.rows.extend_from_slice(numbers);
        }
    }

    fn add_record(&mut self, record: &RecordView<'_>, width: usize, detail: Detail) {
        self.add(record.key, record.sequence);
        if detail != Detail::Keys {
            self.last_seen.push(record.last_seen);
            self.frequency.push(record.frequency);
            self.rows.extend_from_slice(&record.row[..width]);
        }
    }

    fn view(&self) -> ChangesPiece<'_> {
        ChangesPiece {
            removed: &[],
            keys: &self.keys,
            sequences: &self.sequences,
            last_seen: &self.last_seen,
            frequency: &self.frequency,
            rows: &self.rows,
        }
    }

    fn clear(&mut self) {
        self.keys.clear();
        self.sequences.clear();
        self.last_seen.clear();
        self.frequency.clear();
        self.rows.clear();
    }
}

impl Following<'_> {
    /// All rows of buckets of one stripe, bucket by bucket.
    pub(super) fn copy(&mut self, buckets: Range<u32>, tell: &mut Tell<'_>) -> Result<ChangesEnd> {
        let mut up_to = Sequence::MAX;
        for bucket in buckets {
            up_to = up_to.min(self.copy_bucket(bucket, tell)?);
        }
        Ok(ChangesEnd::UpTo(up_to))
    }

    fn copy_bucket(&mut self, bucket: u32, tell: &mut Tell<'_>) -> Result<Sequence> {
        let stripe = bucket / self.engine.tier.buckets_per_stripe;
        let up_to = self.engine.advance(stripe as usize)?;
        let first = u64::from(bucket) * CELLS_A_BUCKET;
        self.copy_cells(&(first..first + CELLS_A_BUCKET), tell)?;
        Ok(up_to)
    }

    /// All rows of cells of one bucket, whose stripe has advanced before.
    pub(super) fn copy_cells(&mut self, cells: &Range<u64>, tell: &mut Tell<'_>) -> Result<()> {
        let ledger = &self.engine.ledger;
        let mut most = ledger.calls_max() / SHARE;
        let mut told_to = 0;
        loop {
            let mut teller = Teller::new(self.engine, &self.table, self.detail);
            let deadline = Instant::now() + PATIENCE;
            let _memory = ledger.hold_for_call(most + teller.bytes(), deadline)?;
            let Some(mut listing) = self.list(cells, (most / super::KEY_BYTES) as usize) else {
                most *= 2;
                if most + teller.bytes() > ledger.calls_max() {
                    return Err(self.too_many((cells.start / CELLS_A_BUCKET) as u32));
                }
                continue;
            };
            // What was told from where it lies is not told again when others have moved.
            listing.places.retain(|&place| self.engine.tier.log.incarnation(place) > told_to);
            let mut others = std::mem::take(&mut listing.rows);
            let are_all_there = teller.tell_places(&listing, &mut others, tell)?;
            teller.tell_rows(&others, tell)?;
            self.cost.told += teller.told;
            if are_all_there {
                return Ok(());
            }
            told_to = listing.newest;
        }
    }
}
