//! What a row in DRAM carries beside its numbers: a header, of which one word is packed state.

use super::heat::Heat;
use crate::types::Place;

/// What precedes the numbers of a row in DRAM. 32 bytes, as on disk; the last eight differ.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Header {
    pub(crate) key: u64,
    /// Of its last change, or of its making.
    pub(crate) sequence: u64,
    /// Unix seconds when it was last seen in training: read for it, pushed or assigned.
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
/// A journal entry made it dirty; otherwise its training counts alone are new.
const JOURNALED: u64 = 1 << 50;
/// It is kept for a batch that was announced, until that has visited it.
const PLEDGED: u64 = 1 << 51;
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
        is_pledged set_pledged PLEDGED;
    }

    pub(crate) fn is_dirty(self) -> bool {
        self.0 & DIRTY != 0
    }

    /// The row's record on NVMe.
    pub(crate) fn place(self) -> Option<Place> {
        let place = self.0 & PLACE;
        (place != 0).then_some(Place::from_bits(place))
    }

    pub(crate) fn set_place(&mut self, place: Place) {
        self.0 = self.0 & !PLACE | place.bits();
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
    pub(crate) fn heat(self) -> Heat {
        Heat::from_bits((self.0 >> HEAT_SHIFT) as u8)
    }

    #[inline(always)]
    pub(crate) fn set_heat(&mut self, heat: Heat) {
        self.0 = self.0 & !(0xff << HEAT_SHIFT) | u64::from(heat.bits()) << HEAT_SHIFT;
    }

    /// What tells whether the row must be marked.
    #[inline(always)]
    pub(super) fn newness(self) -> u64 {
        self.0 & (DIRTY | JOURNALED)
    }

    pub(super) fn is_journaled(self) -> bool {
        self.0 & JOURNALED != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            state.make_clean(Place::from_bits(9));
            assert_eq!((state.place(), state.is_dirty()), (Some(Place::from_bits(9)), false));
            assert!(!state.needs_journal(first));
        }
    }
}
