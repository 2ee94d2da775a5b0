//! Runs of free pages, which merge with their neighbours. A pure structure: pages are numbers.

use std::collections::{BTreeMap, BTreeSet};

use super::{ALIGN, PAGE};

const ALIGN_PAGES: u32 = (ALIGN / PAGE) as u32;
/// Runs of one order that are looked at: of a higher order any run will do.
const TRIES: usize = 8;

/// Free pages: runs by their first page, and the first pages by the order of the length.
pub(super) struct Runs {
    free: BTreeMap<u32, u32>,
    orders: Vec<BTreeSet<u32>>,
    taken: u32,
}

impl Runs {
    /// Pages [1, pages): page 0 stays unused, so that nothing lies at offset 0.
    pub(super) fn new(pages: u32) -> Self {
        let mut runs = Self::taken(pages - 1);
        runs.give(1, pages - 1);
        runs
    }

    /// So many pages, none of them free.
    pub(super) fn taken(pages: u32) -> Self {
        Self { free: BTreeMap::new(), orders: vec![BTreeSet::new(); 32], taken: pages }
    }

    /// First of `pages` neighbouring pages, at a low address. Long runs begin at a multiple.
    pub(super) fn take(&mut self, pages: u32) -> Option<u32> {
        let align = if pages >= ALIGN_PAGES { ALIGN_PAGES } else { 1 };
        let (run, page) = self.find(pages, align)?;
        self.cut(run, page, pages);
        Some(page)
    }

    /// Takes `pages` from `page` on, which are free.
    pub(super) fn take_at(&mut self, page: u32, pages: u32) {
        if let Some((&run, _)) = self.free.range(..=page).next_back() {
            self.cut(run, page, pages);
        }
    }

    /// Takes pages out of a run.
    fn cut(&mut self, run: u32, page: u32, pages: u32) {
        let length = self.remove(run);
        if page > run {
            self.insert(run, page - run);
        }
        let (end, run_end) = (page + pages, run + length);
        if run_end > end {
            self.insert(end, run_end - end);
        }
        self.taken += pages;
    }

    fn find(&self, pages: u32, align: u32) -> Option<(u32, u32)> {
        let fit = |run: u32| {
            let page = run.next_multiple_of(align);
            (page + pages <= run + self.free[&run]).then_some((run, page))
        };
        let mut orders = self.orders[order(pages)..].iter();
        orders.find_map(|runs| runs.iter().take(TRIES).find_map(|&run| fit(run)))
    }

    /// Takes pages back.
    pub(super) fn give(&mut self, page: u32, pages: u32) {
        self.taken -= pages;
        let (mut first, mut end) = (page, page + pages);
        if let Some((&before, &length)) = self.free.range(..first).next_back() {
            debug_assert!(before + length <= first, "page {first} is free already");
            if before + length == first {
                self.remove(before);
                first = before;
            }
        }
        if self.free.contains_key(&end) {
            end += self.remove(end);
        }
        self.insert(first, end - first);
    }

    /// The free pages of [start, end), run by run: first and number.
    pub(super) fn each_free(&self, start: u32, end: u32, mut work: impl FnMut(u32, u32)) {
        let before = self.free.range(..start).next_back();
        for (&run, &length) in before.into_iter().chain(self.free.range(start..end)) {
            let (first, last) = (run.max(start), (run + length).min(end));
            if first < last {
                work(first, last - first);
            }
        }
    }

    fn insert(&mut self, run: u32, length: u32) {
        self.free.insert(run, length);
        self.orders[order(length)].insert(run);
    }

    fn remove(&mut self, run: u32) -> u32 {
        let length = self.free.remove(&run).unwrap_or_default();
        self.orders[order(length)].remove(&run);
        length
    }
}

/// The greatest power of two in a length.
fn order(pages: u32) -> usize {
    pages.max(1).ilog2() as usize
}

#[cfg(test)]
impl Runs {
    pub(super) fn pages_taken(&self) -> u32 {
        self.taken
    }

    pub(super) fn count(&self) -> usize {
        self.free.len()
    }
}
