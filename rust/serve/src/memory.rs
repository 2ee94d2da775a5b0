//! Memory of frames, shared with whoever owns the socket without a copy, and seen as words, bytes
//! or numbers.
//!
//! Views are writable in two places only: where the next bytes of a socket go (nobody looks before
//! it is told that they came), and the rows of an answer (nobody here looks again). An owner that
//! writes at other times can spoil its own data; it cannot reach freed memory.

use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use crate::failure::Misuse;

/// Blocks from this size on are kept for reuse: fresh pages cost more than copying into warm ones.
const POOLED_WORDS_MIN: usize = (64 << 10) / 8;
/// Most memory kept for reuse by the process: a quarter of what frames and replies in flight may
/// take, so that the largest frames are not held twice.
const POOL_WORDS_MAX: usize = (16 << 20) / 8;

struct Pool {
    blocks: Vec<Box<[u64]>>,
    words: usize,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { blocks: Vec::new(), words: 0 });

impl Pool {
    /// The smallest block that fits without wasting more than half of it. A pool that another
    /// thread holds, perhaps one that a fork left behind, counts as empty.
    fn take(words: usize) -> Option<Box<[u64]>> {
        let mut pool = POOL.try_lock().ok()?;
        let fits = |block: &[u64]| block.len() >= words && block.len() / 2 <= words;
        let (index, _) = pool
            .blocks
            .iter()
            .enumerate()
            .filter(|(_, block)| fits(block))
            .min_by_key(|(_, block)| block.len())?;
        let block = pool.blocks.swap_remove(index);
        pool.words -= block.len();
        Some(block)
    }

    fn give(block: Box<[u64]>) {
        if block.len() < POOLED_WORDS_MIN {
            return;
        }
        if let Ok(mut pool) = POOL.try_lock() {
            if pool.words + block.len() <= POOL_WORDS_MAX {
                pool.words += block.len();
                pool.blocks.push(block);
            }
        }
    }
}

/// Words of a cache line: rows of whole lines should not straddle two.
const LINE_WORDS: usize = 8;

/// An allocation of words. Goes back to the pool when the last frame and the last view are gone.
struct Memory {
    /// The allocation.
    block: NonNull<[u64]>,
    /// Its first word in use.
    first: NonNull<u64>,
}

// SAFETY: Memory owns its allocation as a Box does; nothing in it depends on a thread.
#[allow(unsafe_code, reason = "an owned allocation behind a raw pointer")]
unsafe impl Send for Memory {}
// SAFETY: as above; who may look at the words and when is settled by Words and View.
#[allow(unsafe_code, reason = "an owned allocation behind a raw pointer")]
unsafe impl Sync for Memory {}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the pointer is that of the Box leaked in `Words::of`.
        #[allow(unsafe_code, reason = "takes the leaked allocation back")]
        let block = unsafe { Box::from_raw(self.block.as_ptr()) };
        Pool::give(block);
    }
}

/// Word-aligned memory of one frame, and the only way for Rust to look into it. Its content is
/// arbitrary until written.
pub struct Words {
    memory: Arc<Memory>,
    len: usize,
}

impl Words {
    /// Memory of so many words.
    pub fn new(len: usize) -> Self {
        if len < POOLED_WORDS_MIN {
            return vec![0; len].into();
        }
        let room = len + LINE_WORDS - 1;
        let block = Pool::take(room).unwrap_or_else(|| vec![0; room].into_boxed_slice());
        let skipped = block.as_ptr().align_offset(LINE_WORDS * 8).min(LINE_WORDS - 1);
        Self::of(block, skipped, len)
    }

    pub(crate) fn copy_of(words: &[u64]) -> Self {
        let mut copy = Self::new(words.len());
        copy.copy_from_slice(words);
        copy
    }

    /// The words of a finished message.
    ///
    /// # Errors
    /// Not a whole number of words.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Misuse> {
        if bytes.len() % 8 != 0 {
            return Err(Misuse(format!(
                "a message is a whole number of 64-bit words, not {} bytes; use to_bytes()",
                bytes.len()
            )));
        }
        let mut words = Self::new(bytes.len() / 8);
        as_numbers_mut(&mut words).copy_from_slice(bytes);
        Ok(words)
    }

    fn of(block: Box<[u64]>, skipped: usize, len: usize) -> Self {
        assert!(skipped + len <= block.len(), "the words lie in the block");
        let block = NonNull::from(Box::leak(block));
        let first = block.cast::<u64>().as_ptr().wrapping_add(skipped);
        let first = NonNull::new(first).unwrap_or(block.cast());
        Self { memory: Arc::new(Memory { block, first }), len }
    }

    /// A view of some bytes. Who asks for a writable one looks at those bytes only when their owner
    /// has written them, or not any more.
    pub(crate) fn view(&self, bytes: Range<usize>, writable: bool) -> View {
        assert!(bytes.start <= bytes.end && bytes.end <= self.len * 8, "part of the memory");
        View { memory: Arc::clone(&self.memory), bytes, writable }
    }
}

impl From<Vec<u64>> for Words {
    fn from(words: Vec<u64>) -> Self {
        let len = words.len();
        Self::of(words.into_boxed_slice(), 0, len)
    }
}

impl Deref for Words {
    type Target = [u64];

    fn deref(&self) -> &[u64] {
        // SAFETY: `memory` holds at least `len` initialized words as long as self lives. No other
        // Words and so no `&mut` shares it; a view writes to it only when told (see `view`).
        #[allow(unsafe_code, reason = "the slice that the raw pointer stands for")]
        unsafe {
            std::slice::from_raw_parts(self.memory.first.as_ptr(), self.len)
        }
    }
}

impl DerefMut for Words {
    fn deref_mut(&mut self) -> &mut [u64] {
        // SAFETY: as in `deref`; `&mut self` excludes every other Rust reference.
        #[allow(unsafe_code, reason = "the slice that the raw pointer stands for")]
        unsafe {
            std::slice::from_raw_parts_mut(self.memory.first.as_ptr(), self.len)
        }
    }
}

mod number {
    /// Types of which any bits are a value and whose alignment divides that of a word.
    pub trait Number: Copy {}
    impl Number for u8 {}
    impl Number for u16 {}
    impl Number for u32 {}
    impl Number for f32 {}
}
pub(crate) use number::Number;

/// The words as numbers of a narrower type, in order of address.
pub fn as_numbers<T: Number>(words: &[u64]) -> &[T] {
    let len = std::mem::size_of_val(words) / size_of::<T>();
    // SAFETY: same memory and extent, weaker alignment, and any bits are a T (see Number).
    #[allow(unsafe_code, reason = "a view of plain numbers as plain numbers")]
    unsafe {
        std::slice::from_raw_parts(words.as_ptr().cast(), len)
    }
}

/// The words as numbers of a narrower type, in order of address.
pub(crate) fn as_numbers_mut<T: Number>(words: &mut [u64]) -> &mut [T] {
    let len = std::mem::size_of_val(words) / size_of::<T>();
    // SAFETY: as in `as_numbers`; any T is also valid bits of a word, and the borrow is exclusive.
    #[allow(unsafe_code, reason = "a view of plain numbers as plain numbers")]
    unsafe {
        std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), len)
    }
}

/// Bytes of a frame; the memory stays in place as long as a view of it lives.
pub struct View {
    memory: Arc<Memory>,
    bytes: Range<usize>,
    writable: bool,
}

impl View {
    /// The first byte. What is read or written through it is the caller's care, as told above.
    pub fn as_ptr(&self) -> *mut u8 {
        self.memory.first.as_ptr().cast::<u8>().wrapping_add(self.bytes.start)
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// True if no byte is seen.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether the bytes may be written.
    pub fn is_writable(&self) -> bool {
        self.writable
    }
}

impl From<Words> for View {
    /// A whole frame, read-only.
    fn from(words: Words) -> Self {
        words.view(0..words.len() * 8, false)
    }
}
