//! The rows of one table in one stripe: header and numbers side by side, in extents of the arena.
//!
//! A pool owns its extents alone, and whoever holds the pool mutably holds its rows mutably; that
//! is what makes the pointers here sound. The first extent is as large as its rows need, and moves
//! when it grows; from 32 KiB on extents are added, large enough to have notes in the arena: their
//! number, by which a row finds its extent, and marks of dirty rows. Free rows of an extent are
//! chained through their own memory.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use super::row::{Header, RowMut};
use crate::arena::{Arena, Mark, ALIGN, GRANULE, PAGE};
use crate::prefetch::LINE;

const HEADER: usize = size_of::<Header>();
/// Rows begin at multiples of this; locations count in it.
pub(crate) const UNIT: usize = 16;
/// No extent.
const NONE: u32 = u32::MAX;

pub(crate) struct Pool {
    arena: Arc<Arena>,
    floats: u32,
    row_bytes: u32,
    extents: Vec<Extent>,
    /// The extent whose free row is taken next; those with free rows are chained.
    open: u32,
    live: usize,
    capacity: usize,
    bytes: usize,
}

struct Extent {
    /// Units of the first row.
    start: u64,
    bytes: u32,
    rows: u32,
    live: u32,
    /// One more than the number of the first free row, 0 for none. The next is in its key.
    free: u32,
    /// Neighbours in the chain of extents with free rows.
    next: u32,
    previous: u32,
}

/// A place in the round of all rows.
#[derive(Default)]
pub(crate) struct Hand {
    extent: usize,
    row: usize,
}

impl Pool {
    pub(super) fn new(arena: Arc<Arena>, floats: usize) -> Self {
        let row_bytes = row_bytes(floats) as u32;
        Self {
            arena,
            floats: floats as u32,
            row_bytes,
            extents: Vec::new(),
            open: NONE,
            live: 0,
            capacity: 0,
            bytes: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.live
    }

    pub(crate) fn row_bytes(&self) -> usize {
        self.row_bytes as usize
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(crate) fn has_free(&self) -> bool {
        self.open != NONE
    }

    /// Bytes of its extents.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// Bytes of the account of its extents, the arena's notes on them included.
    pub(super) fn account_bytes(&self) -> u64 {
        (self.extents.capacity() * size_of::<Extent>() + self.bytes / 1024) as u64
    }

    /// Bytes that the next growth takes, before it gives the old ones back.
    pub(super) fn growth_bytes(&self) -> u64 {
        self.next_extent() as u64
    }

    fn next_extent(&self) -> usize {
        let row = self.row_bytes();
        let full = extent_bytes(row);
        if self.is_large() {
            return full;
        }
        // Half as many more: one that moves is copied twice on the way, all in all.
        let rows = self.capacity + (self.capacity / 2).max(1);
        Arena::round(rows * row).min(full)
    }

    /// Extents are added to the first one, and have notes. Until then it moves when it grows.
    pub(super) fn is_large(&self) -> bool {
        self.bytes >= ALIGN
    }

    /// Adds free rows. Where the first extent becomes larger its rows move: `moved` is told from
    /// where to where. False when no address space is left.
    pub(super) fn grow(&mut self, moved: impl FnMut(&Header, u64, u64)) -> bool {
        let bytes = self.next_extent();
        let Some(offset) = self.arena.take(bytes) else { return false };
        let small = (!self.is_large()).then(|| self.extents.pop()).flatten();
        if let Some(small) = &small {
            self.forget(small);
            self.open = NONE;
        }
        self.add(offset, bytes);
        if let Some(small) = small {
            // The only other extent now, so its number is not asked for.
            self.move_rows(&small, moved);
            self.arena.give(small.start * UNIT as u64, small.bytes as usize);
        }
        true
    }

    fn add(&mut self, offset: u64, bytes: usize) {
        let number = self.extents.len() as u32;
        let rows = (bytes / self.row_bytes()) as u32;
        let start = offset / UNIT as u64;
        let (bytes, live) = (bytes as u32, 0);
        let extent = Extent { start, bytes, rows, live, free: 0, next: NONE, previous: NONE };
        if bytes as usize >= ALIGN {
            self.arena.set_number(offset as usize, bytes as usize, number);
        }
        for row in (0..rows).rev() {
            let next = if row + 1 < rows { row + 2 } else { 0 };
            let at = start + u64::from(row) * self.row_units();
            *self.header_mut(at) = Header { key: next.into(), ..Header::default() };
        }
        if self.extents.is_empty() {
            // Of many tables this is the only one.
            self.extents.reserve_exact(1);
        }
        self.extents.push(Extent { free: u32::from(rows > 0), ..extent });
        self.capacity += rows as usize;
        self.bytes += bytes as usize;
        self.link(number);
    }

    /// An extent is no longer of this pool; its live rows are about to be moved.
    fn forget(&mut self, extent: &Extent) {
        self.capacity -= extent.rows as usize;
        self.bytes -= extent.bytes as usize;
        self.live -= extent.live as usize;
    }

    /// Copies the live rows of an extent that was taken out to free rows.
    fn move_rows(&mut self, from: &Extent, mut moved: impl FnMut(&Header, u64, u64)) {
        for row in 0..from.rows {
            let old = from.start + u64::from(row) * self.row_units();
            if self.header(old).state.is_live() {
                let new = self.take().expect("there are as many free rows as there are to move");
                self.copy_row(old, new);
                self.mark(new);
                moved(self.header(new), old, new);
            }
        }
    }

    /// Gives the last extent back; its live rows, for which there must be free ones in the others,
    /// move: `moved` is told from where to where. False if there is none, or they would not fit.
    pub(super) fn shrink(&mut self, moved: impl FnMut(&Header, u64, u64)) -> bool {
        let Some(last) = self.extents.last() else { return false };
        let elsewhere = (self.capacity - self.live) - (last.rows - last.live) as usize;
        if (last.live as usize) > elsewhere {
            return false;
        }
        if last.free != 0 {
            self.unlink(self.extents.len() as u32 - 1);
        }
        let Some(last) = self.extents.pop() else { return false };
        if self.extents.len() * 4 <= self.extents.capacity() {
            self.extents.shrink_to(self.extents.len() * 2);
        }
        self.forget(&last);
        self.move_rows(&last, moved);
        self.arena.give(last.start * UNIT as u64, last.bytes as usize);
        true
    }

    /// Rows of the last extent; so many free ones let it go.
    pub(super) fn last_rows(&self) -> usize {
        self.extents.last().map_or(0, |extent| extent.rows as usize)
    }

    /// So many rows are free that the last extent can go, and none need be added soon.
    pub(super) fn is_sparse(&self) -> bool {
        let free = self.capacity - self.live;
        self.live == 0 && free > 0
            || self.extents.len() > 1 && free > 2 * self.last_rows() + self.capacity / 8
    }

    /// Takes a free row; its header is fresh, its numbers unspecified.
    pub(super) fn take(&mut self) -> Option<u64> {
        let number = self.open;
        let extent = self.extents.get(number as usize)?;
        let at = extent.start + u64::from(extent.free - 1) * self.row_units();
        let next = self.header(at).key as u32;
        let mut header = Header::default();
        header.state.set_live(true);
        *self.header_mut(at) = header;
        let extent = &mut self.extents[number as usize];
        extent.free = next;
        extent.live += 1;
        if next == 0 {
            self.unlink(number);
        }
        self.live += 1;
        Some(at)
    }

    /// Gives a row back.
    pub(super) fn give(&mut self, at: u64) {
        debug_assert!(self.header(at).state.is_live());
        let number = self.extent_of(at);
        let units = self.row_units();
        let extent = &mut self.extents[number as usize];
        let row = ((at - extent.start) / units) as u32;
        let next = std::mem::replace(&mut extent.free, row + 1);
        extent.live -= 1;
        *self.header_mut(at) = Header { key: next.into(), ..Header::default() };
        if next == 0 {
            self.link(number);
        }
        self.live -= 1;
    }

    fn extent_of(&self, at: u64) -> u32 {
        if self.extents.len() == 1 {
            return 0;
        }
        self.arena.number(at as usize * UNIT)
    }

    fn link(&mut self, number: u32) {
        let next = std::mem::replace(&mut self.open, number);
        let extent = &mut self.extents[number as usize];
        (extent.next, extent.previous) = (next, NONE);
        if let Some(next) = self.extents.get_mut(next as usize) {
            next.previous = number;
        }
    }

    fn unlink(&mut self, number: u32) {
        let (next, previous) = {
            let extent = &self.extents[number as usize];
            (extent.next, extent.previous)
        };
        if let Some(next) = self.extents.get_mut(next as usize) {
            next.previous = previous;
        }
        match self.extents.get_mut(previous as usize) {
            Some(previous) => previous.next = next,
            None => self.open = next,
        }
    }

    fn row_units(&self) -> u64 {
        (self.row_bytes() / UNIT) as u64
    }

    /// The next row after the hand, free or not, around and around. `None`: there are no rows.
    #[inline(always)]
    pub(super) fn next(&self, hand: &mut Hand) -> Option<u64> {
        if self.extents.get(hand.extent).is_none_or(|extent| hand.row >= extent.rows as usize) {
            *hand = Hand { extent: hand.extent + 1, row: 0 };
            if hand.extent >= self.extents.len() {
                hand.extent = 0;
            }
        }
        let extent = self.extents.get(hand.extent)?;
        let at = extent.start + hand.row as u64 * self.row_units();
        hand.row += 1;
        Some(at)
    }

    /// Rows that may be marked, from the `from`-th extent and the byte in it on: the place of the
    /// next group, and the rows that begin there. Small pools have no marks: all rows are one
    /// group.
    pub(super) fn next_marked(&self, mark: Mark, from: (usize, usize)) -> Option<Marked<'_>> {
        let (mut number, mut byte) = from;
        while let Some(extent) = self.extents.get(number) {
            if !self.is_large() {
                let rows = 0..if byte == 0 { extent.rows } else { 0 };
                return (byte == 0).then(|| self.marked(number, 0, extent.bytes as usize, rows));
            }
            let start = extent.start as usize * UNIT;
            let end = start + extent.bytes as usize;
            if let Some(at) = self.arena.next_marked(mark, start + byte, end) {
                let at = at - start;
                let row = self.row_bytes();
                let first = at.div_ceil(row) as u32;
                let last = ((at + GRANULE).div_ceil(row) as u32).min(extent.rows);
                return Some(self.marked(number, at, GRANULE, first.min(last)..last));
            }
            (number, byte) = (number + 1, 0);
        }
        None
    }

    fn marked(&self, extent: usize, byte: usize, bytes: usize, rows: Range<u32>) -> Marked<'_> {
        Marked { pool: self, extent, byte, bytes, rows }
    }

    /// Marks a row that is newer than its record.
    #[inline(always)]
    pub(super) fn mark(&self, at: u64) {
        let state = self.header(at).state;
        if state.is_dirty() && self.is_large() {
            self.arena.mark(Mark::Dirty, at as usize * UNIT);
            if state.is_journaled() {
                self.arena.mark(Mark::Journaled, at as usize * UNIT);
            }
        }
    }

    /// Marks a row that is about to be changed by who does not say how.
    fn mark_both(&self, at: u64) {
        if self.is_large() {
            self.arena.mark(Mark::Dirty, at as usize * UNIT);
            self.arena.mark(Mark::Journaled, at as usize * UNIT);
        }
    }

    /// Takes the mark of a group of rows away.
    pub(super) fn unmark(&self, mark: Mark, (extent, byte): (usize, usize)) {
        if self.is_large() {
            self.arena.unmark(mark, self.extents[extent].start as usize * UNIT + byte);
        }
    }

    #[inline(always)]
    fn pointer(&self, at: u64) -> NonNull<u8> {
        self.arena.at(at as usize * UNIT)
    }

    /// Lines of the machine's cache that the header and the first `floats` numbers of a row touch
    /// at most.
    pub(crate) fn lines(&self, floats: usize) -> usize {
        // Rows begin at multiples of this within a line.
        let step = 1 << self.row_bytes.trailing_zeros().min(LINE.trailing_zeros());
        (LINE - step + HEADER + 4 * floats).div_ceil(LINE)
    }

    /// Asks for the header and the first `floats` numbers of rows ahead of their use.
    #[inline(always)]
    pub(crate) fn prefetch(&self, rows: impl Iterator<Item = u64>, floats: usize) {
        // Counts that the compiler knows become straight code: 4 % of a lookup at dim 16.
        match self.lines(floats) {
            2 => self.prefetch_each::<2>(rows, 2),
            5 => self.prefetch_each::<5>(rows, 5),
            lines => self.prefetch_each::<0>(rows, lines),
        }
    }

    #[inline(always)]
    fn prefetch_each<const N: usize>(&self, rows: impl Iterator<Item = u64>, lines: usize) {
        for at in rows {
            self.prefetch_lines(at, if N > 0 { N } else { lines });
        }
    }

    /// Asks for so many lines from the beginning of a row. Any `at` is allowed.
    #[inline(always)]
    pub(crate) fn prefetch_lines(&self, at: u64, lines: usize) {
        crate::prefetch::lines(self.arena.hint(at as usize * UNIT), lines);
    }

    #[inline(always)]
    #[allow(unsafe_code, reason = "rows are laid out by hand")]
    pub(crate) fn header(&self, at: u64) -> &Header {
        // SAFETY: `at` came from this pool (by way of its table's index), so it is the start of a
        // row in an extent that only this pool owns; `&self` excludes writers.
        unsafe { self.pointer(at).cast::<Header>().as_ref() }
    }

    /// For changes that make no row dirty: those go through `row_mut`.
    #[inline(always)]
    #[allow(unsafe_code, reason = "rows are laid out by hand")]
    pub(crate) fn header_mut(&mut self, at: u64) -> &mut Header {
        // SAFETY: as `header`; `&mut self` excludes all others.
        unsafe { self.pointer(at).cast::<Header>().as_mut() }
    }

    /// A row to read.
    #[allow(unsafe_code, reason = "rows are laid out by hand")]
    pub(crate) fn row(&self, at: u64) -> (&Header, &[f32]) {
        let header = self.header(at);
        // SAFETY: as `header`; the numbers follow it inside the row, and memory that is mapped and
        // was never written reads as zeros, which are numbers.
        let numbers = unsafe {
            let start = self.pointer(at).add(HEADER).cast::<f32>();
            std::slice::from_raw_parts(start.as_ptr(), self.floats as usize)
        };
        (header, numbers)
    }

    /// A row to change, which a write-back will look at.
    pub(crate) fn row_mut(&mut self, at: u64) -> RowMut<'_> {
        self.mark_both(at);
        self.row_unmarked(at)
    }

    /// The same for who marks it afterwards if it became dirty, or only looks at it.
    #[inline(always)]
    #[allow(unsafe_code, reason = "rows are laid out by hand")]
    pub(crate) fn row_unmarked(&mut self, at: u64) -> RowMut<'_> {
        // SAFETY: as `header_mut`; the numbers follow the header inside the row and do not overlap
        // it, and memory that is mapped and was never written reads as zeros, which are numbers.
        unsafe {
            let start = self.pointer(at);
            let numbers = start.add(HEADER).cast::<f32>();
            let numbers = std::slice::from_raw_parts_mut(numbers.as_ptr(), self.floats as usize);
            (start.cast::<Header>().as_mut(), numbers)
        }
    }

    #[allow(unsafe_code, reason = "rows are laid out by hand")]
    fn copy_row(&mut self, from: u64, to: u64) {
        // SAFETY: both are rows of this pool, or of the extent that it is about to give back, of so
        // many bytes; `&mut self` excludes all others, and two rows do not overlap.
        unsafe {
            let (from, to) = (self.pointer(from), self.pointer(to));
            std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), self.row_bytes());
        }
    }
}

/// A group of rows that may be marked.
pub(super) struct Marked<'a> {
    pool: &'a Pool,
    extent: usize,
    byte: usize,
    bytes: usize,
    rows: Range<u32>,
}

impl Marked<'_> {
    /// Where the group is: its extent and byte.
    pub(super) fn place(&self) -> (usize, usize) {
        (self.extent, self.byte)
    }

    /// Where to go on.
    pub(super) fn after(&self) -> (usize, usize) {
        (self.extent, self.byte + self.bytes)
    }

    /// The live rows of the group.
    pub(super) fn rows(&self) -> Vec<u64> {
        let start = self.pool.extents[self.extent].start;
        let rows = self.rows.clone().map(|row| start + u64::from(row) * self.pool.row_units());
        rows.filter(|&at| self.pool.header(at).state.is_live()).collect()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for extent in &self.extents {
            self.arena.give(extent.start * UNIT as u64, extent.bytes as usize);
        }
    }
}

/// Bytes of a row of so many numbers, with its header.
pub(crate) fn row_bytes(floats: usize) -> usize {
    (HEADER + 4 * floats).next_multiple_of(UNIT)
}

/// Fewest pages, from `ALIGN` on, that waste at most a sixteenth behind the last row.
fn extent_bytes(row_bytes: usize) -> usize {
    let whole = row_bytes.max(ALIGN).div_ceil(PAGE);
    let waste = |pages: usize| (pages * PAGE % row_bytes) as f64 / (pages * PAGE) as f64;
    PAGE * (whole..whole + 16).find(|&pages| waste(pages) <= 1.0 / 16.0).unwrap_or(whole)
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
