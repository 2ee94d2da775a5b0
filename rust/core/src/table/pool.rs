//! The rows of one table in one stripe: header and numbers side by side, in extents of the arena.
//!
//! A pool owns its extents alone, and whoever holds the pool mutably holds its rows mutably; that
//! is what makes the pointers here sound. Free rows are chained through their own memory.

use std::ptr::NonNull;
use std::sync::Arc;

use super::arena::{Arena, PAGE};
use crate::prefetch::LINE;
use crate::types::Place;

/// What precedes the numbers of a row in DRAM. 32 bytes, as on disk; the last eight differ.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Header {
    pub(crate) key: u64,
    /// The last mutating call that changed the row.
    pub(crate) sequence: u64,
    /// Unix seconds of the last training read.
    pub(crate) last_seen: u32,
    /// Training reads, saturating.
    pub(crate) frequency: u32,
    pub(crate) state: RowState,
}

const _: () = assert!(size_of::<Header>() == 32);

/// Header and numbers.
pub(crate) type RowMut<'a> = (&'a mut Header, &'a mut [f32]);

/// Packed state of a row in DRAM: bits 0-39 are the place of its record on NVMe (0: it has none);
/// that record is live, even while the row here is newer, for recovery begins with it. 40-47 are
/// the heat, then flags, then the low bits of the generation of the oldest journal file that the
/// row needs beside that record.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RowState(u64);

const PLACE: u64 = (1 << 40) - 1;
const HEAT_SHIFT: u32 = 40;
const LIVE: u64 = 1 << 48;
const DIRTY: u64 = 1 << 49;
const WINDOW: u64 = 1 << 50;
/// A journal entry made it dirty; otherwise its training counts alone are new.
const JOURNALED: u64 = 1 << 51;
const GENERATION_SHIFT: u32 = 52;
/// Journal files that exist at one time are far fewer, so the low bits tell their order.
const GENERATIONS: u32 = 1 << (64 - GENERATION_SHIFT);

macro_rules! flags {
    ($($get:ident $set:ident $bit:ident;)*) => { $(
        pub(crate) fn $get(self) -> bool {
            self.0 & $bit != 0
        }
        pub(crate) fn $set(&mut self, on: bool) {
            self.0 = if on { self.0 | $bit } else { self.0 & !$bit };
        }
    )* };
}

impl RowState {
    flags! {
        is_live set_live LIVE;
        is_in_window set_in_window WINDOW;
    }

    pub(crate) fn is_dirty(self) -> bool {
        self.0 & DIRTY != 0
    }

    /// The row's record on NVMe.
    pub(crate) fn place(self) -> Option<Place> {
        let place = self.0 & PLACE;
        (place != 0).then_some(Place(place))
    }

    pub(crate) fn set_place(&mut self, place: Place) {
        self.0 = self.0 & !PLACE | place.0;
    }

    /// The row is newer than its record: by a training read, or (`generation`) by a journal entry.
    #[inline(always)]
    pub(crate) fn make_dirty(&mut self, generation: Option<u32>) {
        self.0 |= DIRTY;
        if let (Some(generation), 0) = (generation, self.0 & JOURNALED) {
            let low = u64::from(generation % GENERATIONS) << GENERATION_SHIFT;
            self.0 = self.0 & !(u64::MAX << GENERATION_SHIFT) | JOURNALED | low;
        }
    }

    /// The row is what its record at `place` says.
    pub(crate) fn make_clean(&mut self, place: Place) {
        self.0 &= !(DIRTY | JOURNALED);
        self.set_place(place);
    }

    /// True if the row needs a journal file up to `bound`, the newest but few.
    pub(crate) fn needs_journal(self, bound: u32) -> bool {
        let generation = (self.0 >> GENERATION_SHIFT) as u32;
        let age = bound.wrapping_sub(generation) % GENERATIONS;
        self.0 & JOURNALED != 0 && age < GENERATIONS / 2
    }

    #[inline(always)]
    pub(crate) fn heat(self) -> u8 {
        (self.0 >> HEAT_SHIFT) as u8
    }

    #[inline(always)]
    pub(crate) fn set_heat(&mut self, heat: u8) {
        self.0 = self.0 & !(0xff << HEAT_SHIFT) | u64::from(heat) << HEAT_SHIFT;
    }

    #[inline(always)]
    pub(crate) fn warm(&mut self) {
        self.set_heat(self.heat().saturating_add(1));
    }
}

const HEADER: usize = size_of::<Header>();
/// Rows begin at multiples of this; locations count in it.
pub(crate) const UNIT: usize = 16;

pub(crate) struct Pool {
    arena: Arc<Arena>,
    floats: usize,
    row_bytes: usize,
    extent_pages: usize,
    rows_per_extent: usize,
    /// First page of each extent.
    extents: Vec<u32>,
    /// First free row, in units; 0: none. The next is in its `key`.
    free: u64,
    live: usize,
}

/// A place in the round of all rows.
#[derive(Default)]
pub(crate) struct Hand {
    extent: usize,
    row: usize,
}

impl Pool {
    pub(crate) fn new(arena: Arc<Arena>, floats: usize) -> Self {
        let row_bytes = (HEADER + 4 * floats).next_multiple_of(UNIT);
        let extent_pages = extent_pages(row_bytes);
        let rows_per_extent = extent_pages * PAGE / row_bytes;
        let extents = Vec::new();
        Self { arena, floats, row_bytes, extent_pages, rows_per_extent, extents, free: 0, live: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.live
    }

    pub(crate) fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    pub(crate) fn capacity(&self) -> usize {
        self.extents.len() * self.rows_per_extent
    }

    pub(crate) fn has_free(&self) -> bool {
        self.free != 0
    }

    pub(crate) fn extent_bytes(&self) -> u64 {
        (self.extent_pages * PAGE) as u64
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.extents.len() as u64 * self.extent_bytes()
    }

    /// Adds an extent of free rows. False when the arena has none left.
    pub(crate) fn grow(&mut self) -> bool {
        let Some(page) = self.arena.allocate(self.extent_pages) else { return false };
        self.extents.push(page);
        let start = page as usize * PAGE;
        for row in (0..self.rows_per_extent).rev() {
            self.chain(((start + row * self.row_bytes) / UNIT) as u64);
        }
        true
    }

    /// Takes a free row; its header is fresh, its numbers unspecified.
    pub(crate) fn take(&mut self) -> Option<u64> {
        let at = self.free;
        if at == 0 {
            return None;
        }
        self.free = self.header(at).key;
        let mut header = Header::default();
        header.state.set_live(true);
        *self.header_mut(at) = header;
        self.live += 1;
        Some(at)
    }

    /// Gives a row back.
    pub(crate) fn give(&mut self, at: u64) {
        debug_assert!(self.header(at).state.is_live());
        self.live -= 1;
        self.chain(at);
    }

    fn chain(&mut self, at: u64) {
        *self.header_mut(at) = Header { key: self.free, ..Header::default() };
        self.free = at;
    }

    /// Drops the last extent, whose rows must all be free. Returns its bytes.
    pub(crate) fn shrink(&mut self) -> u64 {
        let Some(page) = self.extents.pop() else { return 0 };
        let start = (page as usize * PAGE / UNIT) as u64;
        let end = start + (self.extent_pages * PAGE / UNIT) as u64;
        self.unchain(start..end);
        self.arena.free(page, self.extent_pages);
        self.extent_bytes()
    }

    fn unchain(&mut self, gone: std::ops::Range<u64>) {
        let mut kept = Vec::new();
        let mut at = self.free;
        while at != 0 {
            if !gone.contains(&at) {
                kept.push(at);
            }
            at = self.header(at).key;
        }
        self.free = 0;
        for at in kept.into_iter().rev() {
            self.chain(at);
        }
    }

    /// Units of row `n` in the order of extents.
    pub(crate) fn nth(&self, n: usize) -> u64 {
        let start = self.extents[n / self.rows_per_extent] as usize * PAGE;
        ((start + n % self.rows_per_extent * self.row_bytes) / UNIT) as u64
    }

    /// The next row after the hand, free or not, around and around. `None`: there are no rows.
    #[inline(always)]
    pub(crate) fn next(&self, hand: &mut Hand) -> Option<u64> {
        if hand.row >= self.rows_per_extent {
            *hand = Hand { extent: hand.extent + 1, row: 0 };
        }
        if hand.extent >= self.extents.len() {
            *hand = Hand::default();
        }
        let start = *self.extents.get(hand.extent)? as usize * PAGE;
        hand.row += 1;
        Some(((start + (hand.row - 1) * self.row_bytes) / UNIT) as u64)
    }

    /// Rows of the last extent, free or not.
    pub(crate) fn last_extent(&self) -> impl Iterator<Item = u64> + '_ {
        (self.capacity().saturating_sub(self.rows_per_extent)..self.capacity()).map(|n| self.nth(n))
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

    #[inline(always)]
    #[allow(unsafe_code, reason = "rows are laid out by hand")]
    pub(crate) fn header_mut(&mut self, at: u64) -> &mut Header {
        // SAFETY: as `header`; `&mut self` excludes all others.
        unsafe { self.pointer(at).cast::<Header>().as_mut() }
    }

    #[inline(always)]
    #[allow(unsafe_code, reason = "rows are laid out by hand")]
    pub(crate) fn row_mut(&mut self, at: u64) -> RowMut<'_> {
        // SAFETY: as `header_mut`; the numbers follow the header inside the row and do not overlap
        // it, and memory that is mapped and was never written reads as zeros, which are numbers.
        unsafe {
            let start = self.pointer(at);
            let numbers = start.add(HEADER).cast::<f32>();
            let numbers = std::slice::from_raw_parts_mut(numbers.as_ptr(), self.floats);
            (start.cast::<Header>().as_mut(), numbers)
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for &page in &self.extents {
            self.arena.free(page, self.extent_pages);
        }
    }
}

/// Fewest pages that waste at most a sixteenth behind the last row.
fn extent_pages(row_bytes: usize) -> usize {
    let whole = row_bytes.div_ceil(PAGE);
    let waste = |pages: usize| (pages * PAGE % row_bytes) as f64 / (pages * PAGE) as f64;
    (whole..whole + 16).find(|&pages| waste(pages) <= 1.0 / 16.0).unwrap_or(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_keep_what_is_written_and_free_rows_come_back() {
        let arena = Arc::new(Arena::new(1 << 20).unwrap());
        let mut pool = Pool::new(arena, 5);
        assert!(pool.take().is_none() && pool.grow());
        let rows: Vec<u64> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(rows.len(), pool.capacity());
        for &at in &rows {
            let (header, numbers) = pool.row_mut(at);
            header.key = at;
            numbers.fill(at as f32);
        }
        assert!(rows.iter().all(|&at| pool.row_mut(at).1 == [at as f32; 5]));
        pool.give(rows[3]);
        assert_eq!(pool.take(), Some(rows[3]));
        assert!(pool.grow());
        let capacity = pool.capacity();
        assert_eq!(pool.shrink(), pool.extent_bytes());
        assert!(pool.take().is_none());
        assert_eq!(pool.capacity() * 2, capacity);
    }

    #[test]
    fn the_oldest_generation_is_kept_until_the_row_is_clean() {
        let mut state = RowState::default();
        state.make_dirty(None);
        assert!(state.is_dirty() && !state.needs_journal(u32::MAX));
        for first in [0, 1, 4095, 4096, 70_000] {
            state.make_dirty(Some(first));
            state.make_dirty(Some(first + 3));
            assert!(state.needs_journal(first) && state.needs_journal(first + 5));
            assert!(first == 0 || !state.needs_journal(first - 1));
            state.make_clean(Place(9));
            assert_eq!((state.place(), state.is_dirty()), (Some(Place(9)), false));
            assert!(!state.needs_journal(first));
        }
    }

    #[test]
    fn the_hand_passes_every_row_once_a_round() {
        let arena = Arc::new(Arena::new(1 << 20).unwrap());
        let mut pool = Pool::new(arena, 5);
        let mut hand = Hand::default();
        assert_eq!(pool.next(&mut hand), None);
        assert!(pool.grow() && pool.grow() && pool.grow());
        let all: Vec<u64> = (0..pool.capacity()).map(|n| pool.nth(n)).collect();
        for _ in 0..2 {
            let round: Vec<u64> = all.iter().filter_map(|_| pool.next(&mut hand)).collect();
            assert_eq!(round, all);
        }
        // It stands in the last extent when that one goes.
        for _ in 1..all.len() {
            pool.next(&mut hand);
        }
        pool.shrink();
        assert_eq!(pool.next(&mut hand), Some(all[0]));
    }

    #[test]
    fn the_lines_of_a_row_are_enough_wherever_it_begins() {
        let arena = Arc::new(Arena::new(1 << 20).unwrap());
        for floats in 1..300 {
            let pool = Pool::new(arena.clone(), floats);
            let bytes = HEADER + 4 * floats;
            let touched = |n: usize| (n * pool.row_bytes % LINE + bytes).div_ceil(LINE);
            assert_eq!((0..LINE).map(touched).max(), Some(pool.lines(floats)), "{floats}");
        }
    }

    #[test]
    fn extents_waste_little() {
        for floats in 1..4096 {
            let row = (HEADER + 4 * floats).next_multiple_of(UNIT);
            assert!(extent_pages(row) * PAGE >= row);
            if row <= PAGE {
                let pages = extent_pages(row);
                assert!((pages * PAGE % row) * 16 <= pages * PAGE || pages == 1, "{row}");
            }
        }
    }
}
