//! Pages that are taken and free, and those of them that the system has given memory for.
//!
//! Where huge pages are asked for, memory comes and goes by chunks of 2 MiB: the first touch of a
//! chunk brings all of it, and to give a part of it back would break the huge page up, for good and
//! for all that lies there (measured: lookups took twice the time). So free pages of a chunk stay
//! until the last one is free, and are taken again first. Only if too many stay do the emptiest
//! chunks give theirs back. Elsewhere a page goes back as soon as it is free.

use super::runs::Runs;
use super::PAGE;

/// Bytes of a huge page.
pub(super) const CHUNK: usize = 2 << 20;
const CHUNK_PAGES: u32 = (CHUNK / PAGE) as u32;

/// All pages of the arena.
pub(super) struct Pages {
    runs: Runs,
    /// By chunk, where huge pages are asked for.
    chunks: Vec<Chunk>,
    /// Pages that are free and have memory.
    idle: usize,
    idle_max: usize,
}

#[derive(Clone, Copy, Default)]
struct Chunk {
    taken: u16,
    /// Pages with memory, from above.
    resident: u16,
}

impl Pages {
    /// With huge pages, `idle_max` bytes may stay with free pages.
    pub(super) fn new(bytes: usize, is_huge: bool, idle_max: usize) -> Self {
        let chunks = if is_huge { bytes.div_ceil(CHUNK) } else { 0 };
        Self {
            runs: Runs::new((bytes / PAGE) as u32),
            chunks: vec![Chunk::default(); chunks],
            idle: 0,
            idle_max: idle_max / PAGE,
        }
    }

    /// Bytes of free pages that have memory.
    pub(super) fn idle_bytes(&self) -> u64 {
        (self.idle * PAGE) as u64
    }

    /// First of `pages` neighbouring pages.
    pub(super) fn take(&mut self, pages: u32) -> Option<u32> {
        let page = self.runs.take(pages)?;
        self.each_chunk(page, pages, |chunk, pages| {
            chunk.taken += pages;
            let touched = if chunk.resident == 0 { CHUNK_PAGES as u16 } else { pages };
            chunk.resident = (chunk.resident + touched).min(CHUNK_PAGES as u16);
        });
        Some(page)
    }

    /// Takes pages back; `discard` returns the memory of pages, first and number, to the system.
    pub(super) fn give(&mut self, page: u32, pages: u32, mut discard: impl FnMut(u32, u32)) {
        self.runs.give(page, pages);
        if self.chunks.is_empty() {
            return discard(page, pages);
        }
        self.each_chunk(page, pages, |chunk, pages| chunk.taken -= pages);
        for n in page / CHUNK_PAGES..=(page + pages - 1) / CHUNK_PAGES {
            if self.chunks[n as usize].taken == 0 {
                self.empty(n, &mut discard);
            }
        }
        // Down to half: to look for the emptiest at every page that comes back would be dear.
        let most = if self.idle > self.idle_max { self.idle_max / 2 } else { self.idle };
        while self.idle > most {
            let idle = |n: &u32| {
                let chunk = self.chunks[*n as usize];
                chunk.resident - chunk.taken
            };
            let Some(emptiest) = (0..self.chunks.len() as u32).max_by_key(idle) else { break };
            self.empty(emptiest, &mut discard);
        }
    }

    /// Discards the free pages of a chunk.
    fn empty(&mut self, n: u32, discard: &mut impl FnMut(u32, u32)) {
        let (start, end) = (n * CHUNK_PAGES, (n + 1) * CHUNK_PAGES);
        self.runs.each_free(start, end, discard);
        let chunk = &mut self.chunks[n as usize];
        self.idle -= usize::from(chunk.resident - chunk.taken);
        chunk.resident = chunk.taken;
    }

    /// Changes the chunks of a run of pages, and the sum of idle ones with them.
    fn each_chunk(&mut self, page: u32, pages: u32, mut change: impl FnMut(&mut Chunk, u16)) {
        if self.chunks.is_empty() {
            return;
        }
        let (mut at, end) = (page, page + pages);
        while at < end {
            let next = end.min((at / CHUNK_PAGES + 1) * CHUNK_PAGES);
            let chunk = &mut self.chunks[(at / CHUNK_PAGES) as usize];
            self.idle -= usize::from(chunk.resident - chunk.taken);
            change(chunk, (next - at) as u16);
            self.idle += usize::from(chunk.resident - chunk.taken);
            at = next;
        }
    }
}

#[cfg(test)]
impl Pages {
    pub(super) fn taken(&self) -> u32 {
        self.runs.taken()
    }

    pub(super) fn runs(&self) -> usize {
        self.runs.count()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Goal: pages that are free either have been discarded or are counted as idle, and pages
        /// in use are never discarded. Method: random runs beside the set of pages with memory,
        /// where a chunk is touched whole.
        #[test]
        fn free_pages_are_discarded_or_counted(
            steps in prop::collection::vec((1_u32..700, any::<prop::sample::Index>()), 1..200)
        ) {
            let idle_max = 3 * CHUNK / PAGE;
            let mut pages = Pages::new(64 * CHUNK, true, idle_max * PAGE);
            let mut taken: Vec<(u32, u32)> = Vec::new();
            let mut resident: BTreeSet<u32> = BTreeSet::new();
            for (count, pick) in steps {
                if count % 2 == 0 && !taken.is_empty() {
                    let (page, count) = taken.swap_remove(pick.index(taken.len()));
                    let mut gone = Vec::new();
                    pages.give(page, count, |first, n| gone.extend(first..first + n));
                    for page in gone {
                        let is_used = |run: &(u32, u32)| (run.0..run.0 + run.1).contains(&page);
                        prop_assert!(!taken.iter().any(is_used), "page {} is in use", page);
                        resident.remove(&page);
                    }
                    prop_assert!(pages.idle <= idle_max);
                } else if let Some(page) = pages.take(count) {
                    taken.push((page, count));
                    for page in page..page + count {
                        let chunk = page / CHUNK_PAGES * CHUNK_PAGES;
                        if resident.range(chunk..chunk + CHUNK_PAGES).next().is_none() {
                            resident.extend(chunk..chunk + CHUNK_PAGES);
                        }
                        resident.insert(page);
                    }
                }
                let used: u32 = taken.iter().map(|run| run.1).sum();
                prop_assert_eq!(pages.taken(), used);
                // Page 0 is no one's.
                prop_assert!(resident.len() <= used as usize + pages.idle + 1);
            }
        }
    }
}
