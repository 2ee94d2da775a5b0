//! Blocks smaller than a few pages: cut from slabs, runs of pages that blocks of one size share. A
//! slab whose blocks are all free gives its pages back. A pure structure, beside the pages.

use std::collections::{BTreeMap, BTreeSet};

use super::pages::Pages;
use super::{PAGE, RUN_MIN};

/// Largest block that is cut from a slab.
pub(super) const LARGEST: usize = RUN_MIN - PAGE;
/// Blocks are multiples of a line of the processor's cache; up to here, of any number of them.
const STEP: usize = 64;
const FINE: usize = 8;
/// From there on, so many sizes to a doubling.
const PER_DOUBLING: usize = 4;
/// The sizes from `FINE` steps to `LARGEST`: five doublings.
const CLASSES: usize = FINE + 5 * PER_DOUBLING;
/// A slab has at most as many blocks as its map has bits.
const BLOCKS_MAX: usize = 64;

const _: () = assert!((STEP * FINE) << ((CLASSES - FINE) / PER_DOUBLING) == LARGEST);

/// What the account of a slab takes, about.
const ACCOUNT: u64 = 64;

/// Number of the smallest size that holds `bytes`, which are at most `LARGEST`.
pub(super) fn class(bytes: usize) -> usize {
    let steps = bytes.div_ceil(STEP).max(1);
    if steps <= FINE {
        return steps - 1;
    }
    let doubling = (steps - 1).ilog2() as usize;
    let quarter = 1 << (doubling - 2);
    let quarters = (steps - (1 << doubling)).div_ceil(quarter);
    FINE + (doubling - FINE.ilog2() as usize) * PER_DOUBLING + quarters - 1
}

/// Bytes of a block of a class.
pub(super) fn size(class: usize) -> usize {
    if class < FINE {
        return (class + 1) * STEP;
    }
    let (doubling, quarters) = ((class - FINE) / PER_DOUBLING, (class - FINE) % PER_DOUBLING + 1);
    STEP * (FINE << doubling) / PER_DOUBLING * (PER_DOUBLING + quarters)
}

/// Fewest pages that waste at most a sixteenth behind the last block.
fn slab_pages(class: usize) -> usize {
    let waste = |pages: usize| pages * PAGE - blocks(class, pages) * size(class);
    let is_good = |&pages: &usize| blocks(class, pages) > 0 && waste(pages) * 16 <= pages * PAGE;
    (1..).find(is_good).unwrap_or(1)
}

fn blocks(class: usize, pages: usize) -> usize {
    (pages * PAGE / size(class)).min(BLOCKS_MAX)
}

struct Slab {
    class: u8,
    /// Bit i is set if block i is free.
    free: u64,
}

/// All slabs, by their first page.
#[derive(Default)]
pub(super) struct Slabs {
    slabs: BTreeMap<u32, Slab>,
    /// Of each class those with free blocks.
    open: [BTreeSet<u32>; CLASSES],
    slack: u64,
}

impl Slabs {
    /// Bytes of slabs that no block takes, and of the account of all.
    pub(super) fn slack(&self) -> u64 {
        self.slack + self.slabs.len() as u64 * ACCOUNT
    }

    /// Offset of a block, at a low address. `None` if a slab is needed and no pages are free.
    pub(super) fn take(&mut self, class: usize, pages: &mut Pages) -> Option<u64> {
        let page = match self.open[class].first() {
            Some(&page) => page,
            None => self.add(class, pages)?,
        };
        let slab = self.slabs.get_mut(&page)?;
        let block = slab.free.trailing_zeros();
        slab.free &= slab.free - 1;
        if slab.free == 0 {
            self.open[class].remove(&page);
        }
        self.slack -= size(class) as u64;
        Some(page as u64 * PAGE as u64 + u64::from(block) * size(class) as u64)
    }

    fn add(&mut self, class: usize, pages: &mut Pages) -> Option<u32> {
        let page = pages.take(slab_pages(class) as u32)?;
        self.slabs.insert(page, Slab { class: class as u8, free: all_free(class) });
        self.open[class].insert(page);
        self.slack += (slab_pages(class) * PAGE) as u64;
        Some(page)
    }

    /// Takes a block back; the pages that are free with it, first and number.
    pub(super) fn give(&mut self, class: usize, offset: u64) -> Option<(u32, u32)> {
        let page = (offset / PAGE as u64) as u32;
        let (&first, slab) = self.slabs.range_mut(..=page).next_back()?;
        debug_assert_eq!(usize::from(slab.class), class, "a block of another size");
        let block = (offset - u64::from(first) * PAGE as u64) / size(class) as u64;
        debug_assert!(slab.free & 1 << block == 0, "the block is free already");
        slab.free |= 1 << block;
        self.slack += size(class) as u64;
        if slab.free != all_free(class) {
            self.open[class].insert(first);
            return None;
        }
        self.slabs.remove(&first);
        self.open[class].remove(&first);
        self.slack -= (slab_pages(class) * PAGE) as u64;
        Some((first, slab_pages(class) as u32))
    }
}

fn all_free(class: usize) -> u64 {
    u64::MAX >> (BLOCKS_MAX - blocks(class, slab_pages(class)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_grow_by_a_quarter_at_most_and_hold_what_they_are_asked_for() {
        for bytes in 1..=LARGEST {
            let class = class(bytes);
            assert!(class < CLASSES && size(class) >= bytes, "{bytes}");
            assert!(class == 0 || size(class - 1) < bytes, "{bytes} fits a smaller size");
        }
        for class in FINE..CLASSES {
            assert!(size(class) * 4 <= size(class - 1) * 5);
            assert_eq!(size(class) % STEP, 0);
            let pages = slab_pages(class);
            assert!(pages <= 16, "slabs of {} are {pages} pages", size(class));
        }
        assert_eq!(size(CLASSES - 1), LARGEST);
    }
}
