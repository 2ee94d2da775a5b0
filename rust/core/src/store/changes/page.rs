//! Changes a page at a time, for who cannot take them as they are told: an answer of so many bytes,
//! and where the next one begins. Nothing is kept between two pages.
//!
//! Pages go through the key space in the order of its cells, which is that of the hash as far as
//! the index knows it. What was found is cut at a cell, so each page says exactly what it covers.

use std::collections::HashMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::find::{Found, Newest};
use super::tell::Teller;
use super::{ChangesEnd, ChangesPiece, Detail, Following, KEY_BYTES, SHARE};
use crate::error::{Error, Result};
use crate::index::{cell, CELLS, CELLS_A_BUCKET};
use crate::store::engine::Engine;
use crate::store::pressure::PATIENCE;
use crate::types::{hash, Sequence, TableId};

/// How long a page that finds little goes on looking.
const LOOK: Duration = Duration::from_millis(500);
/// Keys that are looked for beyond those a page has room for, so that few are looked for twice.
const AHEAD: u64 = 4;

/// What a page is to tell.
#[derive(Debug, Clone)]
pub struct PageQuery {
    /// Table.
    pub table: TableId,
    /// Cells [start, end) of the key space, 2^36 in all; bucket b begins at b * 2^24.
    pub cells: Range<u64>,
    /// All changes up to here are known; `None`: nothing is, and all rows are told.
    pub since: Option<Sequence>,
    /// What is told of a row.
    pub detail: Detail,
    /// Of keys and rows; a page holds at least one row, if there is any.
    pub bytes: u64,
}

/// Every key once, in one of the two lists: they may be applied in any order.
#[derive(Debug, Default)]
pub struct ChangesPage {
    /// Keys that were removed, and have no row now.
    pub removed: Vec<u64>,
    /// Keys of rows.
    pub keys: Vec<u64>,
    /// float32[n, dim], or with slots, or empty.
    pub rows: Vec<f32>,
    /// Training reads of each row, and Unix seconds of the last; empty for `Detail::Keys`.
    pub frequency: Vec<u32>,
    /// See `frequency`.
    pub last_seen: Vec<u32>,
    /// The page covers the cells below this one; that of the query's end: it was the last.
    pub next: u64,
}

/// A moment of a store.
#[derive(Debug, Clone)]
pub struct Cursor {
    /// Which store.
    pub store: u128,
    /// All changes up to here were made, later ones are above.
    pub sequence: Sequence,
    /// Its tables, by name, each with its dim.
    pub tables: Vec<(String, TableId, u32)>,
}

impl Engine {
    pub(in crate::store) fn changes_page(&self, query: &PageQuery) -> Result<ChangesPage> {
        let table = self.followed(query.table, query.since)?;
        let Range { start, end } = query.cells;
        if start >= end || end > CELLS {
            return Err(Error::bad_input(format!(
                "table {:?}: no cells {start} to {end}; give a range within 0 to {CELLS}",
                table.name()
            )));
        }
        self.check_cursor(query.since)?;
        let detail = query.detail;
        let cost = super::ChangesCost::default();
        let mut following = Following { engine: self, table, detail, cost };
        let mut page = following.page(query)?;
        // Whose table was dropped meanwhile is not told that it is empty.
        self.table_itself(following.table.id)?;
        self.check_cursor(query.since)?;
        page.settle();
        Ok(page)
    }

    fn check_cursor(&self, since: Option<Sequence>) -> Result<()> {
        let refusal = since.and_then(|since| self.refusal(since));
        refusal.map_or(Ok(()), |refusal| Err(refused(refusal)))
    }

    /// See `Store::cursor`.
    pub(in crate::store) fn cursor(&self) -> Result<Cursor> {
        let mut sequence = self.sequencer.lock().last;
        let is_newer = |s: &crate::table::Stripe| s.lock().progress.newest() > sequence;
        if self.stripes.iter().any(is_newer) {
            // Reads have made rows since the last call: another call is above them. Where none is
            // taken, these rows are told again.
            let made = self.order_nothing(&mut self.sequencer.lock());
            sequence = made.unwrap_or(sequence);
        }
        // What reads make from now on is above.
        (0..self.stripes.len()).try_for_each(|stripe| self.advance(stripe).map(drop))?;
        let tables = self.catalog.read().listed();
        let store = self.superblock.lock().current().uuid;
        Ok(Cursor { store, sequence, tables })
    }
}

fn refused(refusal: ChangesEnd) -> Error {
    Error::cursor(match refusal {
        ChangesEnd::TooOld => {
            "the cursor is too old: keys were removed since then that the store no longer names; \
             begin with since=None"
        }
        _ => {
            "the cursor is ahead of the store, which lost what came last in a crash, or is another \
             one; begin with since=None"
        }
    })
}

impl Following<'_> {
    fn page(&mut self, query: &PageQuery) -> Result<ChangesPage> {
        let began = Instant::now();
        let per_stripe = u64::from(self.engine.tier.buckets_per_stripe) * CELLS_A_BUCKET;
        let mut page = ChangesPage { next: query.cells.start, ..ChangesPage::default() };
        while page.next < query.cells.end && began.elapsed() < LOOK {
            let Some(room) = query.bytes.checked_sub(page.bytes()).filter(|&room| {
                // A page of rows that is nearly full would be filled by very few.
                page.keys.is_empty() && page.removed.is_empty() || room > query.bytes / 8
            }) else {
                break;
            };
            let stripe_end = (page.next / per_stripe + 1) * per_stripe;
            let cells = page.next..stripe_end.min(query.cells.end);
            let first = (cells.start / CELLS_A_BUCKET) as u32;
            self.engine.load_buckets(first..cells.end.div_ceil(CELLS_A_BUCKET) as u32)?;
            page.next = match query.since {
                Some(since) => self.page_since(cells, since, room, &mut page)?,
                None => self.page_copy(cells, room, &mut page)?,
            };
        }
        Ok(page)
    }

    /// What is newer in cells of one stripe, from the first on; up to which that is.
    fn page_since(
        &mut self,
        cells: Range<u64>,
        since: Sequence,
        room: u64,
        page: &mut ChangesPage,
    ) -> Result<u64> {
        let ledger = &self.engine.ledger;
        let own = Teller::new(self.engine, &self.table, self.detail).bytes();
        let memory = ledger.calls_max() / SHARE;
        let mut most = (AHEAD * (room / self.row_bytes()).max(64) * KEY_BYTES).min(memory);
        let mut end = cells.end;
        let (mut newest, _memory) = loop {
            let held = ledger.hold_for_call(most + own, Instant::now() + PATIENCE)?;
            let first = (cells.start / CELLS_A_BUCKET) as u32;
            let buckets = first..end.div_ceil(CELLS_A_BUCKET) as u32;
            match self.find(buckets.clone(), since, (most / KEY_BYTES) as usize)? {
                Found::All(newest) => break (newest, held),
                Found::Ahead => return Err(refused(ChangesEnd::Ahead)),
                // Fewer buckets, and of one bucket what all calls may hold.
                Found::TooMany if buckets.len() > 1 => {
                    end = u64::from(first + buckets.len() as u32 / 2) * CELLS_A_BUCKET;
                }
                Found::TooMany if 2 * most + own <= ledger.calls_max() => most *= 2,
                Found::TooMany => return Err(self.too_many(first)),
            }
        };
        let end = self.cut(&mut newest, cells.start..end, room);
        let teller = Teller::new(self.engine, &self.table, self.detail);
        teller.tell(&newest, &mut |piece| page.add(piece))?;
        Ok(end)
    }

    /// Leaves in `newest` what lies in the cells, as many of them as there is room for; their end.
    fn cut(&self, newest: &mut Newest, cells: Range<u64>, room: u64) -> u64 {
        let row_bytes = self.row_bytes();
        let removed = newest.removed.iter().map(|&key| (cell(hash(key)), 8));
        let rows = newest.rows.iter().map(|row| (cell(hash(row.0)), row_bytes));
        let mut found: Vec<(u64, u64)> =
            removed.chain(rows).filter(|(cell, _)| cells.contains(cell)).collect();
        found.sort_unstable();
        let mut bytes = 0;
        let over = found.iter().position(|(_, own)| {
            bytes += own;
            bytes > room
        });
        // At least one cell.
        let end = over.map_or(cells.end, |at| found[at].0.max(found[0].0 + 1));
        let is_told = |key: u64| (cells.start..end).contains(&cell(hash(key)));
        newest.removed.retain(|&key| is_told(key));
        newest.rows.retain(|row| is_told(row.0));
        end
    }

    /// All rows in cells of one bucket, from the first on; up to which that is.
    fn page_copy(&mut self, cells: Range<u64>, room: u64, page: &mut ChangesPage) -> Result<u64> {
        let bucket = cells.start / CELLS_A_BUCKET;
        let stripe = bucket / u64::from(self.engine.tier.buckets_per_stripe);
        self.engine.advance(stripe as usize)?;
        let mut part = cells.start..cells.end.min((bucket + 1) * CELLS_A_BUCKET);
        let most = (room / self.row_bytes()).max(1);
        loop {
            let (rows, width) = (self.count(&part) as u64, part.end - part.start);
            if rows == 0 {
                return Ok(part.end);
            }
            if rows <= most || width == 1 {
                break;
            }
            // Keys lie evenly over the cells: fewer cells, with a little to spare.
            part.end = part.start + (width * most / rows * 7 / 8).clamp(1, width - 1);
        }
        self.copy_cells(&part, &mut |piece| page.add(piece))?;
        Ok(part.end)
    }

    /// What a row takes in a page.
    fn row_bytes(&self) -> u64 {
        let width = match self.detail {
            Detail::Keys => 0,
            Detail::Values => self.table.dim,
            Detail::Rows => self.table.floats,
        };
        8 + 4 * width as u64
    }
}

impl ChangesPage {
    fn bytes(&self) -> u64 {
        (8 * (self.removed.len() + self.keys.len()) + 4 * self.rows.len()) as u64
    }

    #[allow(clippy::unnecessary_wraps, reason = "what a `Tell` returns")]
    fn add(&mut self, piece: &ChangesPiece<'_>) -> Result<()> {
        self.removed.extend_from_slice(piece.removed);
        self.keys.extend_from_slice(piece.keys);
        self.rows.extend_from_slice(piece.rows);
        self.frequency.extend_from_slice(piece.frequency);
        self.last_seen.extend_from_slice(piece.last_seen);
        Ok(())
    }

    /// The last word on every key alone: a row that moved while it was copied is told twice, and a
    /// key that has a row again was not removed.
    fn settle(&mut self) {
        let last: HashMap<u64, usize> = self.keys.iter().copied().zip(0..).collect();
        self.removed.retain(|key| !last.contains_key(key));
        if last.len() == self.keys.len() {
            return;
        }
        let width = self.rows.len() / self.keys.len();
        let is_last = |n: &usize| last[&self.keys[*n]] == *n;
        let kept: Vec<usize> = (0..self.keys.len()).filter(is_last).collect();
        for (to, &from) in kept.iter().enumerate() {
            self.keys[to] = self.keys[from];
            self.rows.copy_within(from * width..(from + 1) * width, to * width);
            for of_rows in [&mut self.frequency, &mut self.last_seen] {
                if let Some(&number) = of_rows.get(from) {
                    of_rows[to] = number;
                }
            }
        }
        self.frequency.truncate(kept.len());
        self.last_seen.truncate(kept.len());
        self.keys.truncate(kept.len());
        self.rows.truncate(kept.len() * width);
    }
}
