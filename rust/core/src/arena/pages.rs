//! Pages that are taken and free, and those of them that the system has given memory for.
//!
//! Where huge pages are asked for, memory comes and goes by chunks of 2 MiB: the first touch of a
//! chunk brings all of it, and to give a part of it back would break the huge page up, for good and
//! for all that lies there (measured: lookups took twice the time). So free pages of a chunk stay
//! until the last one is free, and are taken first: no chunk is opened before. Only if too many
//! stay do the emptiest chunks give theirs back, a few at a time: whoever gives pages back holds
//! locks that others wait for. Elsewhere a page goes back as soon as it is free.
//!
//! The first touch of a chunk is slow: the system zeroes all of it, and where its memory is in
//! pieces it moves others together before (measured: 4 ms and more). So some chunks are opened and
//! touched ahead, by calls that hold no lock: they are ready.

use super::runs::Runs;
use super::PAGE;

/// Bytes of a huge page.
pub(super) const CHUNK: usize = 2 << 20;
const CHUNK_PAGES: u32 = (CHUNK / PAGE) as u32;

/// Most chunks that are kept ready: what a few calls take before they touch the next.
const READY_MAX: usize = 8;
/// Chunks among which the emptiest is sought.
const LOOKS: usize = 256;

/// Chunks that are emptied at a time.
const EMPTIED: usize = 4;

/// All pages of the arena.
pub(super) struct Pages {
    /// Pages that can be taken; with huge pages, those of open chunks.
    runs: Runs,
    /// Where huge pages are asked for: chunks of which no page is taken, or has memory.
    bare: Runs,
    chunks: Vec<Chunk>,
    /// Pages that are free and have memory.
    idle: usize,
    /// Most of them outside of chunks that are ready.
    idle_max: usize,
    /// Chunks that are open and of which all pages are free, and how many are kept.
    ready: usize,
    ready_max: usize,
    /// Chunks that are being touched, by who holds no lock.
    preparing: usize,
    /// Where the next chunk to be emptied is sought.
    hand: usize,
    /// Chunks that were opened for who needed them at once.
    unprepared: u64,
}

/// A bare one has no pages with memory.
#[derive(Clone, Copy, Default)]
struct Chunk {
    taken: u16,
    /// Pages with memory, from above.
    resident: u16,
}

impl Chunk {
    fn idle(self) -> usize {
        usize::from(self.resident - self.taken)
    }

    fn is_ready(self) -> bool {
        self.taken == 0 && u32::from(self.resident) == CHUNK_PAGES
    }
}

impl Pages {
    /// With huge pages, `idle_max` bytes may stay with free pages, and as many be ready.
    pub(super) fn new(bytes: usize, is_huge: bool, idle_max: usize) -> Self {
        let (pages, chunks) = ((bytes / PAGE) as u32, bytes / CHUNK);
        Self {
            runs: if is_huge { Runs::taken(pages) } else { Runs::new(pages) },
            bare: if is_huge { Runs::new(chunks as u32) } else { Runs::taken(0) },
            chunks: vec![Chunk::default(); if is_huge { chunks } else { 0 }],
            idle: 0,
            idle_max: idle_max / PAGE,
            ready: 0,
            ready_max: if is_huge { (idle_max / CHUNK).min(READY_MAX) } else { 0 },
            preparing: 0,
            hand: 0,
            unprepared: 0,
        }
    }

    /// Bytes of free pages that have memory, or are about to.
    pub(super) fn idle_bytes(&self) -> u64 {
        (self.idle * PAGE + self.preparing * CHUNK) as u64
    }

    /// Fewer chunks are ready than should be.
    pub(super) fn is_short(&self) -> bool {
        self.ready + self.preparing < self.ready_max
    }

    /// First page of a chunk to be touched. It is nobody else's until it is `prepared`. `None` if
    /// enough are ready, or half of the `room` bytes that will be taken at most.
    pub(super) fn prepare(&mut self, room: u64) -> Option<u32> {
        let most = room / CHUNK as u64;
        if !self.is_short() || (self.ready + self.preparing + 2) as u64 > most {
            return None;
        }
        let chunk = self.bare.take(1)?;
        self.preparing += 1;
        Some(chunk * CHUNK_PAGES)
    }

    /// The chunk that begins at `page` has been touched: it is ready.
    pub(super) fn prepared(&mut self, page: u32) {
        self.preparing -= 1;
        self.open(page / CHUNK_PAGES, 1);
    }

    /// Chunks that were bare can be taken from.
    fn open(&mut self, first: u32, chunks: u32) {
        for n in first..first + chunks {
            // The first touch brings all of it.
            self.change_chunk(n, |chunk| chunk.resident = CHUNK_PAGES as u16);
        }
        self.runs.give(first * CHUNK_PAGES, chunks * CHUNK_PAGES);
    }

    /// First of `pages` neighbouring pages.
    pub(super) fn take(&mut self, pages: u32) -> Option<u32> {
        let page = match self.runs.take(pages) {
            None if !self.chunks.is_empty() => {
                let chunks = pages.div_ceil(CHUNK_PAGES);
                let first = self.bare.take(chunks)?;
                self.unprepared += u64::from(chunks);
                self.open(first, chunks);
                let page = self.runs.take(pages)?;
                self.note_taken(page, pages);
                // What lay before them has served for a part: the last is as it was.
                let is_left = |n: &u32| self.chunks[*n as usize].taken == 0;
                let left: Vec<u32> = (first..first + chunks).filter(is_left).collect();
                left.into_iter().for_each(|n| self.close(n, &mut |_, _| ()));
                page
            }
            page => {
                self.note_taken(page?, pages);
                page?
            }
        };
        Some(page)
    }

    fn note_taken(&mut self, page: u32, pages: u32) {
        self.each_chunk(page, pages, |chunk, pages| {
            chunk.taken += pages;
            // Some of them had none, if not all of the chunk has.
            chunk.resident = (chunk.resident + pages).min(CHUNK_PAGES as u16);
        });
    }

    /// Takes pages back; `discard` returns the memory of pages, first and number, to the system: of
    /// whole chunks among them, and of a few others where too many stay.
    pub(super) fn give(&mut self, page: u32, pages: u32, mut discard: impl FnMut(u32, u32)) {
        self.runs.give(page, pages);
        if self.chunks.is_empty() {
            return discard(page, pages);
        }
        self.each_chunk(page, pages, |chunk, pages| chunk.taken -= pages);
        let (first, last) = (page / CHUNK_PAGES, (page + pages - 1) / CHUNK_PAGES);
        for n in first..=last {
            let chunk = self.chunks[n as usize];
            let stays = chunk.is_ready() && self.ready <= self.ready_max;
            if chunk.taken == 0 && !stays {
                self.close(n, &mut discard);
            }
        }
        // What has come back lies in two of them: by two there are no more than before.
        for _ in 0..EMPTIED {
            if self.spread() > self.idle_max {
                let emptiest = self.emptiest([first, last]);
                self.empty(emptiest, &mut discard);
            }
        }
    }

    /// Idle pages beside those of chunks that are ready.
    fn spread(&self) -> usize {
        self.idle - self.ready * CHUNK_PAGES as usize
    }

    /// The chunk with most idle pages, but for those that are ready, of the next few and of `own`.
    fn emptiest(&mut self, own: [u32; 2]) -> u32 {
        let count = self.chunks.len();
        let next = (self.hand..self.hand + LOOKS.min(count)).map(|n| (n % count) as u32);
        self.hand = (self.hand + LOOKS) % count;
        let idle = |n: &u32| {
            let chunk = self.chunks[*n as usize];
            if chunk.is_ready() {
                0
            } else {
                chunk.idle()
            }
        };
        next.chain(own).max_by_key(idle).unwrap_or(own[0])
    }

    /// Discards the free pages of a chunk of which others are taken.
    fn empty(&mut self, n: u32, discard: &mut impl FnMut(u32, u32)) {
        if self.chunks[n as usize].taken > 0 {
            self.runs.each_free(n * CHUNK_PAGES, (n + 1) * CHUNK_PAGES, discard);
            self.change_chunk(n, |chunk| chunk.resident = chunk.taken);
        }
    }

    /// A chunk of which all pages are free is bare again.
    fn close(&mut self, n: u32, discard: &mut impl FnMut(u32, u32)) {
        self.runs.take_at(n * CHUNK_PAGES, CHUNK_PAGES);
        discard(n * CHUNK_PAGES, CHUNK_PAGES);
        self.change_chunk(n, |chunk| chunk.resident = 0);
        self.bare.give(n, 1);
    }

    /// Changes the chunks of a run of pages.
    fn each_chunk(&mut self, page: u32, pages: u32, mut change: impl FnMut(&mut Chunk, u16)) {
        if self.chunks.is_empty() {
            return;
        }
        let (mut at, end) = (page, page + pages);
        while at < end {
            let next = end.min((at / CHUNK_PAGES + 1) * CHUNK_PAGES);
            self.change_chunk(at / CHUNK_PAGES, |chunk| change(chunk, (next - at) as u16));
            at = next;
        }
    }

    /// Changes a chunk, and the sums over all with it.
    fn change_chunk(&mut self, n: u32, change: impl FnOnce(&mut Chunk)) {
        let chunk = &mut self.chunks[n as usize];
        self.idle -= chunk.idle();
        self.ready -= usize::from(chunk.is_ready());
        change(chunk);
        self.idle += chunk.idle();
        self.ready += usize::from(chunk.is_ready());
    }
}

#[cfg(test)]
impl Pages {
    pub(super) fn taken(&self) -> u32 {
        let chunks = self.chunks.iter().map(|chunk| u32::from(chunk.taken));
        if self.chunks.is_empty() {
            self.runs.pages_taken()
        } else {
            chunks.sum()
        }
    }

    pub(super) fn runs(&self) -> usize {
        self.runs.count()
    }

    pub(super) fn unprepared(&self) -> u64 {
        self.unprepared
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Goal: pages that are free either have been discarded or are counted as idle, pages in
        /// use are never discarded, and what gives pages back discards those of few chunks.
        /// Method: random runs beside the set of pages with memory, where a chunk is touched whole.
        #[test]
        fn free_pages_are_discarded_or_counted(
            steps in prop::collection::vec((1_u32..700, any::<prop::sample::Index>()), 1..200)
        ) {
            let idle_max = 3 * CHUNK / PAGE;
            let mut pages = Pages::new(64 * CHUNK, true, idle_max * PAGE);
            let mut taken: Vec<(u32, u32)> = Vec::new();
            let mut resident: BTreeSet<u32> = BTreeSet::new();
            for (count, pick) in steps {
                if count % 5 == 0 {
                    if let Some(page) = pages.prepare(u64::MAX) {
                        resident.extend(page..page + CHUNK_PAGES);
                        pages.prepared(page);
                    }
                } else if count % 2 == 0 && !taken.is_empty() {
                    let (page, count) = taken.swap_remove(pick.index(taken.len()));
                    let (mut gone, before) = (Vec::new(), pages.spread());
                    pages.give(page, count, |first, n| gone.extend(first..first + n));
                    let chunks = gone.iter().map(|page| page / CHUNK_PAGES);
                    let chunks: BTreeSet<u32> = chunks.collect();
                    let whole = count.div_ceil(CHUNK_PAGES) as usize + 1;
                    prop_assert!(chunks.len() <= whole + EMPTIED);
                    for page in gone {
                        let is_used = |run: &(u32, u32)| (run.0..run.0 + run.1).contains(&page);
                        prop_assert!(!taken.iter().any(is_used), "page {} is in use", page);
                        resident.remove(&page);
                    }
                    prop_assert!(pages.spread() <= before.max(idle_max));
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
                prop_assert!(pages.ready <= pages.ready_max);
                prop_assert!(resident.len() <= used as usize + pages.idle);
            }
        }

        /// Goal: where chunks are made ready between them, no run touches one first, however the
        /// free pages lie. Method: random runs of up to a megabyte come and go, a few between two
        /// times that chunks are made ready.
        #[test]
        fn what_is_taken_next_is_ready(
            steps in prop::collection::vec((1_u32..257, any::<prop::sample::Index>()), 1..400)
        ) {
            let mut pages = Pages::new(256 * CHUNK, true, 4 * CHUNK);
            let mut taken: Vec<(u32, u32)> = Vec::new();
            for (n, (count, pick)) in steps.into_iter().enumerate() {
                if n % 4 == 0 {
                    while let Some(page) = pages.prepare(u64::MAX) {
                        pages.prepared(page);
                    }
                    prop_assert_eq!(pages.ready, 4);
                }
                if count % 3 == 0 && !taken.is_empty() {
                    let (page, count) = taken.swap_remove(pick.index(taken.len()));
                    pages.give(page, count, |_, _| ());
                } else if let Some(page) = pages.take(count) {
                    taken.push((page, count));
                }
                prop_assert_eq!(pages.unprepared(), 0);
            }
        }
    }

    #[test]
    fn no_more_is_made_ready_than_half_of_what_will_be_taken() {
        let mut pages = Pages::new(64 * CHUNK, true, 4 * CHUNK);
        assert_eq!(pages.prepare(2 * CHUNK as u64 - 1), None);
        let page = pages.prepare(2 * CHUNK as u64).expect("there is room for two");
        assert_eq!(pages.idle_bytes(), CHUNK as u64, "it is booked before it is touched");
        assert_eq!(pages.prepare(2 * CHUNK as u64), None);
        pages.prepared(page);
        assert_eq!((pages.ready, pages.idle_bytes()), (1, CHUNK as u64));
    }
}
