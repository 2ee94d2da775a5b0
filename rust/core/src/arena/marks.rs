//! What is noted beside the memory of large blocks: a number for every 32 KiB, by which the owner
//! finds its account of the block; and two bits for every 256 bytes, whether a row that begins
//! there may be newer than its record on NVMe. So dirty rows are found without looking at the
//! others.
//!
//! Marks may stand where they are no longer due; they are never missing where they are. Only blocks
//! of at least `ALIGN` bytes, which are aligned to it, have notes of their own.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use super::{Arena, ALIGN};

/// Bytes of memory to a bit.
pub(crate) const GRANULE: usize = 256;
/// Bytes of memory to a word of bits.
pub(super) const SPAN: usize = GRANULE * 64;

/// What is marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Newer than its record, be it by training counts alone.
    Dirty,
    /// Changed by a journal entry.
    Journaled,
}

/// Bytes that the notes on so much memory take.
pub(super) const fn bytes(space: usize) -> usize {
    2 * space / SPAN * size_of::<u64>() + space / ALIGN * size_of::<u32>()
}

impl Arena {
    #[inline(always)]
    fn word(&self, mark: Mark, span: usize) -> &AtomicU64 {
        let spans = self.bytes / SPAN;
        assert!(span < spans, "no marks for span {span}");
        let word = span + if mark == Mark::Dirty { 0 } else { spans };
        #[allow(unsafe_code, reason = "marks lie behind the blocks in one mapping")]
        // SAFETY: `word` is one of the 2 * `spans` words behind the blocks, which are zero at
        // first, aligned, mapped as long as `self`, and never touched but as these atomics.
        unsafe {
            self.base.add(self.bytes).cast::<AtomicU64>().add(word).as_ref()
        }
    }

    fn number_at(&self, offset: usize) -> &AtomicU32 {
        assert!(offset < self.bytes, "offset {offset} lies beyond the arena");
        let numbers = self.bytes + 2 * self.bytes / SPAN * size_of::<u64>();
        #[allow(unsafe_code, reason = "numbers lie behind the marks in one mapping")]
        // SAFETY: as in `word`: behind the marks there is a number for every `ALIGN` bytes.
        unsafe {
            self.base.add(numbers).cast::<AtomicU32>().add(offset / ALIGN).as_ref()
        }
    }

    /// The number that its owner gave the large block at byte `offset`.
    #[inline(always)]
    pub(crate) fn number(&self, offset: usize) -> u32 {
        self.number_at(offset).load(Relaxed)
    }

    /// Numbers a large block of so many bytes.
    pub(crate) fn set_number(&self, offset: usize, bytes: usize, number: u32) {
        for at in (offset..offset + bytes).step_by(ALIGN) {
            self.number_at(at).store(number, Relaxed);
        }
    }

    /// Marks the row that begins at byte `offset`.
    #[inline(always)]
    pub(crate) fn mark(&self, mark: Mark, offset: usize) {
        let (word, bit) = (self.word(mark, offset / SPAN), 1 << (offset / GRANULE % 64));
        if word.load(Relaxed) & bit == 0 {
            word.fetch_or(bit, Relaxed);
        }
    }

    /// Takes a mark away.
    pub(crate) fn unmark(&self, mark: Mark, offset: usize) {
        self.word(mark, offset / SPAN).fetch_and(!(1 << (offset / GRANULE % 64)), Relaxed);
    }

    /// First byte from `offset` on, below `end`, whose granule is marked.
    pub(crate) fn next_marked(&self, mark: Mark, offset: usize, end: usize) -> Option<usize> {
        let mut at = offset;
        while at < end {
            let word = self.word(mark, at / SPAN).load(Relaxed) >> (at / GRANULE % 64);
            if word != 0 {
                let found = (at / GRANULE + word.trailing_zeros() as usize) * GRANULE;
                return (found < end).then_some(found.max(offset));
            }
            at = (at / SPAN + 1) * SPAN;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_found_in_order_and_kinds_do_not_mix() {
        let arena = Arena::scratch();
        let marked = [GRANULE, 5 * GRANULE, SPAN - 1, 3 * SPAN + 7, 9 * SPAN];
        marked.iter().for_each(|&at| arena.mark(Mark::Dirty, at));
        arena.mark(Mark::Journaled, 2 * GRANULE);
        let mut found = Vec::new();
        let mut at = 0;
        while let Some(next) = arena.next_marked(Mark::Dirty, at, 9 * SPAN) {
            found.push(next / GRANULE);
            at = next + GRANULE;
        }
        let expected: Vec<usize> = marked[..4].iter().map(|at| at / GRANULE).collect();
        assert_eq!(found, expected, "the last lies at the end, which is not looked at");
        arena.unmark(Mark::Dirty, GRANULE);
        assert_eq!(arena.next_marked(Mark::Dirty, 0, SPAN), Some(5 * GRANULE));
        assert_eq!(arena.next_marked(Mark::Journaled, 3 * GRANULE, 9 * SPAN), None);
        assert_eq!(
            arena.next_marked(Mark::Journaled, 2 * GRANULE + 9, SPAN),
            Some(2 * GRANULE + 9)
        );
    }
}
