//! The memory of all rows and indexes in DRAM: one reservation of address space, of which blocks of
//! any size are taken and given back.
//!
//! Address space costs nothing; what is held is bounded by who takes (`ledger`), and the memory of
//! free pages goes back to the system (`pages`). Blocks up to 16 KiB are cut from slabs, pages that
//! blocks of one size share (`slabs`); larger ones are runs of pages (`runs`). Free pages merge
//! with their neighbours, so what one table gives back serves any other. Nothing here knows rows.

mod marks;
mod pages;
mod runs;
mod slabs;

use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::ledger::{Hold, Kind, Ledger};
use pages::{Pages, CHUNK};
use slabs::Slabs;

pub(crate) use marks::{Mark, GRANULE};

pub(crate) const PAGE: usize = 4096;
/// Blocks from this size on are runs of whole pages.
const RUN_MIN: usize = 5 * PAGE;
/// Runs of at least so many bytes begin at a multiple of it.
pub(crate) const ALIGN: usize = 8 * PAGE;
/// Address space for each byte that may be held: room for runs of one size between others.
const SPACE: u64 = 4;
/// And at least this: slabs and alignment of a small store.
const SPACE_MIN: u64 = 256 << 20;
/// From this bound on, huge pages are asked for. Below it one of them would be much of all.
const HUGE_MIN: u64 = 128 << 20;
/// Share of the bound that may stay with free pages for the sake of huge ones: 1 / this.
const IDLE_SHARE: u64 = 64;

/// Address space of the rows and indexes of a store.
pub(crate) struct Arena {
    ledger: Arc<Ledger>,
    /// At a multiple of a huge page, inside the mapping.
    base: NonNull<u8>,
    mapping: NonNull<u8>,
    /// Bytes for blocks; behind them lie the notes.
    bytes: usize,
    mapped: usize,
    state: Mutex<State>,
    /// Fewer huge pages are ready than should be.
    is_short: AtomicBool,
}

struct State {
    pages: Pages,
    slabs: Slabs,
    slack: Hold,
}

#[allow(unsafe_code, reason = "the arena is memory shared between threads")]
// SAFETY: the arena itself is only an address range; who may touch which block is decided by those
// who took it, each of whom owns its blocks alone.
unsafe impl Send for Arena {}
#[allow(unsafe_code, reason = "the arena is memory shared between threads")]
// SAFETY: as above; what is free is behind a lock, and marks are atomic.
unsafe impl Sync for Arena {}

impl Arena {
    /// Reserves address space for holding `bytes` at a time.
    pub(crate) fn new(ledger: &Arc<Ledger>, bytes: u64) -> Result<Self> {
        let space = bytes.saturating_mul(SPACE).max(SPACE_MIN) as usize;
        let space = space.next_multiple_of(CHUNK);
        let mapped = space + marks::bytes(space) + CHUNK;
        let is_huge = bytes >= HUGE_MIN;
        let mapping = reserve(mapped, is_huge)?;
        let before = mapping.as_ptr().align_offset(CHUNK);
        #[allow(unsafe_code, reason = "pointer arithmetic inside one mapping")]
        // SAFETY: the mapping is longer by `CHUNK` than what lies behind `base`.
        let base = unsafe { mapping.add(before) };
        let idle_max = (bytes / IDLE_SHARE) as usize + CHUNK;
        let state = State {
            pages: Pages::new(space, is_huge, idle_max),
            slabs: Slabs::default(),
            slack: ledger.hold(Kind::Slack, 0),
        };
        let (ledger, is_short) = (ledger.clone(), AtomicBool::new(is_huge));
        let state = Mutex::new(state);
        Ok(Self { ledger, base, mapping, bytes: space, mapped, state, is_short })
    }

    /// Bytes that a block of at least `bytes` takes: sizes are four to a doubling, or whole pages.
    pub(crate) fn round(bytes: usize) -> usize {
        if bytes > RUN_MIN - PAGE {
            bytes.next_multiple_of(PAGE)
        } else {
            slabs::size(slabs::class(bytes))
        }
    }

    /// Offset of a new block of at least `bytes`, of unspecified content. `None` when no address
    /// space is left.
    pub(crate) fn take(&self, bytes: usize) -> Option<u64> {
        let mut state = self.state.lock();
        let State { pages, slabs, .. } = &mut *state;
        let offset = if bytes > slabs::LARGEST {
            pages.take(bytes.div_ceil(PAGE) as u32).map(|page| page as u64 * PAGE as u64)
        } else {
            slabs.take(slabs::class(bytes), pages)
        };
        state.book();
        if state.pages.is_short() {
            self.is_short.store(true, Relaxed);
        }
        offset
    }

    /// Whether `prepare` has something to do.
    pub(crate) fn is_short(&self) -> bool {
        self.is_short.load(Relaxed)
    }

    /// Touches memory that will be taken next, as long as rows may still grow. For every call that
    /// may take some, before it locks a stripe: whoever waits for that would wait for the system.
    pub(crate) fn prepare(&self) {
        while self.is_short() {
            let room = self.ledger.rows_left();
            if room < CHUNK as u64 {
                return;
            }
            let page = {
                let mut state = self.state.lock();
                let page = state.pages.prepare(room);
                if page.is_none() {
                    self.is_short.store(state.pages.is_short(), Relaxed);
                }
                state.book();
                page
            };
            let Some(page) = page else { return };
            self.touch(page as usize * PAGE);
            let mut state = self.state.lock();
            state.pages.prepared(page);
            state.book();
        }
    }

    /// Has the system bring the memory of a chunk.
    fn touch(&self, offset: usize) {
        for page in (offset..offset + CHUNK).step_by(PAGE) {
            #[allow(unsafe_code, reason = "memory is touched before anyone has it")]
            // SAFETY: the chunk lies inside the reservation (`at` checks) and was taken for this
            // alone; any bytes are a byte.
            unsafe {
                self.at(page).as_ptr().write_volatile(0);
            }
        }
    }

    /// Takes a block back that was taken for `bytes`, or for as many as round to the same.
    pub(crate) fn give(&self, offset: u64, bytes: usize) {
        let first = (offset / PAGE as u64) as u32;
        let mut state = self.state.lock();
        let State { pages, slabs, .. } = &mut *state;
        let free = if bytes > slabs::LARGEST {
            Some((first, bytes.div_ceil(PAGE) as u32))
        } else {
            slabs.give(slabs::class(bytes), offset)
        };
        if let Some((page, count)) = free {
            // Under the lock: nobody can take a page that is being discarded.
            pages.give(page, count, |page, count| self.discard(page, count));
        }
        state.book();
    }

    /// Returns the memory of pages to the system.
    fn discard(&self, page: u32, pages: u32) {
        #[allow(unsafe_code, reason = "system call on memory")]
        // SAFETY: the range lies inside the reservation and belongs to nobody: its only owner gave
        // it back, and the lock that is held keeps it from being taken.
        unsafe {
            let start = self.base.as_ptr().add(page as usize * PAGE);
            libc::madvise(start.cast(), pages as usize * PAGE, libc::MADV_DONTNEED);
        }
    }

    /// Address of byte `offset`, not checked: to be asked for, not to be read.
    #[inline(always)]
    pub(crate) fn hint(&self, offset: usize) -> *const u8 {
        self.base.as_ptr().wrapping_add(offset)
    }

    /// Address of byte `offset`.
    #[inline(always)]
    pub(crate) fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset < self.bytes, "offset {offset} lies beyond the arena");
        #[allow(unsafe_code, reason = "pointer arithmetic inside one mapping")]
        // SAFETY: checked above to lie inside the mapping.
        unsafe {
            self.base.add(offset)
        }
    }
}

impl State {
    fn book(&mut self) {
        self.slack.resize(self.slabs.slack() + self.pages.idle_bytes());
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        #[allow(unsafe_code, reason = "system call on memory")]
        // SAFETY: mapped by `reserve`; whoever took a block holds the arena alive.
        unsafe {
            libc::munmap(self.mapping.as_ptr().cast(), self.mapped);
        }
    }
}

fn reserve(bytes: usize, is_huge: bool) -> Result<NonNull<u8>> {
    #[allow(unsafe_code, reason = "system call on memory")]
    // SAFETY: a fresh private mapping; nothing else refers to it.
    let base = unsafe {
        let base = libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        );
        // Huge pages halve the cost of a random row (measured: 42 -> 70 M rows/s).
        #[cfg(target_os = "linux")]
        if is_huge && base != libc::MAP_FAILED {
            libc::madvise(base, bytes, libc::MADV_HUGEPAGE);
        }
        base
    };
    if base == libc::MAP_FAILED {
        let cause = std::io::Error::last_os_error();
        return Err(Error::config(format!(
            "cannot reserve {bytes} bytes of address space for rows: {cause}; lower dram, or lift \
             the limit on address space (ulimit -v)"
        )));
    }
    NonNull::new(base.cast()).ok_or_else(|| Error::config("the system mapped rows at address zero"))
}

#[cfg(test)]
impl Arena {
    /// An arena of a test, with an account of its own.
    pub(crate) fn scratch() -> Arc<Self> {
        Arc::new(Self::new(&Ledger::new(64 << 20), 64 << 20).unwrap())
    }

    /// Pages that are in use.
    pub(crate) fn pages_taken(&self) -> u32 {
        self.state.lock().pages.taken()
    }

    /// Huge pages whose first touch was that of who took them.
    pub(crate) fn unprepared(&self) -> u64 {
        self.state.lock().pages.unprepared()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Goal: blocks never overlap, keep what is written to them, and all that was given back
        /// is one run again. Method: random sizes beside a map of what is taken.
        #[test]
        fn blocks_are_whose_they_are(
            steps in prop::collection::vec((1_usize..100_000, any::<prop::sample::Index>()), 1..300)
        ) {
            let arena = Arena::scratch();
            let mut taken: BTreeMap<u64, (usize, u8)> = BTreeMap::new();
            for (n, (wish, pick)) in steps.into_iter().enumerate() {
                let is_giving = !taken.is_empty() && wish % 3 == 0;
                // Small sizes as often as large ones.
                let bytes = wish >> (wish % 13);
                if is_giving {
                    let (&offset, &(bytes, mark)) = pick.get(&taken.iter().collect::<Vec<_>>());
                    for at in [0, bytes - 1] {
                        prop_assert_eq!(read(&arena, offset as usize + at), mark);
                    }
                    arena.give(offset, bytes);
                    taken.remove(&offset);
                } else {
                    let bytes = bytes.max(1);
                    let (offset, held) = (arena.take(bytes).unwrap(), Arena::round(bytes));
                    let step = if bytes > slabs::LARGEST { PAGE } else { 63 };
                    prop_assert!(held >= bytes && held <= bytes + bytes / 4 + step);
                    prop_assert!(held < ALIGN || offset % ALIGN as u64 == 0);
                    prop_assert_eq!(offset % 64, 0);
                    let before = taken.range(..=offset).next_back();
                    let after = taken.range(offset..).next();
                    let end = |block: (&u64, &(usize, u8))| {
                        block.0 + Arena::round(block.1 .0) as u64
                    };
                    prop_assert!(before.is_none_or(|block| end(block) <= offset));
                    prop_assert!(after.is_none_or(|(at, _)| offset + held as u64 <= *at));
                    for at in [0, bytes - 1] {
                        write(&arena, offset as usize + at, n as u8);
                    }
                    taken.insert(offset, (bytes, n as u8));
                }
            }
            for (offset, (bytes, _)) in taken {
                arena.give(offset, bytes);
            }
            prop_assert_eq!(arena.pages_taken(), 0);
            let state = arena.state.lock();
            prop_assert_eq!(state.pages.runs(), 1);
            prop_assert_eq!(state.slack.bytes(), 0);
        }
    }

    #[allow(unsafe_code, reason = "a test of raw memory")]
    fn read(arena: &Arena, offset: usize) -> u8 {
        // SAFETY: the test took the block and shares it with nobody.
        unsafe { arena.at(offset).read() }
    }

    #[allow(unsafe_code, reason = "a test of raw memory")]
    fn write(arena: &Arena, offset: usize, value: u8) {
        // SAFETY: as in `read`.
        unsafe { arena.at(offset).write(value) }
    }

    /// Freed memory of one size once served no other size.
    #[test]
    fn what_any_size_gives_back_serves_any_other() {
        let arena = Arena::scratch();
        let mut most = 0;
        for round in 0..40 {
            let bytes = (64 << (round % 11)) | (64 * (round % 3));
            let taken: Vec<u64> = (0..(8 << 20) / bytes)
                .map(|_| arena.take(bytes).expect("address space is several times what is held"))
                .collect();
            most = most.max(arena.pages_taken() as usize * PAGE);
            taken.into_iter().for_each(|offset| arena.give(offset, bytes));
        }
        assert!(most <= 11 << 20, "{most} bytes of pages for 8 MiB of blocks");
    }

    #[test]
    fn free_pages_go_back_to_the_system() {
        let arena = Arena::scratch();
        let offset = arena.take(4 << 20).unwrap();
        write(&arena, offset as usize + 5000, 7);
        arena.give(offset, 4 << 20);
        let again = arena.take(4 << 20).unwrap();
        assert_eq!((again, read(&arena, again as usize + 5000)), (offset, 0));
    }

    #[test]
    fn slack_is_what_is_free_between_blocks_of_a_page() {
        let ledger = Ledger::new(64 << 20);
        let arena = Arena::new(&ledger, 64 << 20).unwrap();
        let offset = arena.take(256).unwrap();
        assert!((3840..=3840 + 128).contains(&ledger.held(Kind::Slack)));
        arena.give(offset, 256);
        assert_eq!(ledger.held(Kind::Slack), 0);
    }
}
