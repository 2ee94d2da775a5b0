//! The buffer border: memory of frames, shared with Python without a copy, and seen as words, bytes
//! or numbers. All `unsafe` of the wire lies here.
//!
//! Memory is handed out writable in two places only: a receive window, while the owner of the
//! socket reads into it (Rust does not look before it is released), and the rows of an answer
//! (Rust never looks again).

use std::ffi::c_int;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;

/// Blocks from this size on are kept for reuse: fresh pages cost more than copying into warm ones.
const POOLED_WORDS_MIN: usize = (64 << 10) / 8;
/// Most memory kept for reuse by the process.
const POOL_WORDS_MAX: usize = (64 << 20) / 8;

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
        let fits = |block: &Box<[u64]>| block.len() >= words && block.len() / 2 <= words;
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

/// Word-aligned memory of one frame. Its content is arbitrary until written.
pub(crate) struct Words {
    memory: NonNull<u64>,
    capacity: usize,
    len: usize,
}

// SAFETY: Words owns its memory as a Box does; nothing in it depends on a thread.
#[allow(unsafe_code, reason = "an owned allocation behind a raw pointer")]
unsafe impl Send for Words {}
// SAFETY: as above; shared access from Rust only reads.
#[allow(unsafe_code, reason = "an owned allocation behind a raw pointer")]
unsafe impl Sync for Words {}

impl Words {
    pub(crate) fn new(len: usize) -> Self {
        let pooled = if len >= POOLED_WORDS_MIN { Pool::take(len) } else { None };
        Self::of(pooled.unwrap_or_else(|| vec![0; len].into_boxed_slice()), len)
    }

    pub(crate) fn copy_of(words: &[u64]) -> Self {
        let mut copy = Self::new(words.len());
        copy.copy_from_slice(words);
        copy
    }

    fn of(memory: Box<[u64]>, len: usize) -> Self {
        let capacity = memory.len();
        let memory = NonNull::from(Box::leak(memory)).cast();
        Self { memory, capacity, len }
    }
}

impl From<Vec<u64>> for Words {
    fn from(words: Vec<u64>) -> Self {
        let len = words.len();
        Self::of(words.into_boxed_slice(), len)
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        let whole = NonNull::slice_from_raw_parts(self.memory, self.capacity);
        // SAFETY: the pointer and length are those of the Box leaked in `of`, taken back once.
        #[allow(unsafe_code, reason = "takes the leaked allocation back")]
        let block = unsafe { Box::from_raw(whole.as_ptr()) };
        Pool::give(block);
    }
}

impl Deref for Words {
    type Target = [u64];

    fn deref(&self) -> &[u64] {
        // SAFETY: `memory` holds `capacity >= len` initialized words as long as self lives. Python
        // may write to it only through a sealed answer, which Rust does not read any more.
        #[allow(unsafe_code, reason = "the slice that the raw pointer stands for")]
        unsafe {
            std::slice::from_raw_parts(self.memory.as_ptr(), self.len)
        }
    }
}

impl DerefMut for Words {
    fn deref_mut(&mut self) -> &mut [u64] {
        // SAFETY: as in `deref`; `&mut self` excludes every other Rust reference.
        #[allow(unsafe_code, reason = "the slice that the raw pointer stands for")]
        unsafe {
            std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.len)
        }
    }
}

mod number {
    /// Types of which any bits are a value and whose alignment divides that of a word.
    pub(crate) trait Number: Copy {}
    impl Number for u8 {}
    impl Number for u32 {}
    impl Number for f32 {}
}
pub(crate) use number::Number;

/// The words as numbers of a narrower type, in order of address.
pub(crate) fn as_numbers<T: Number>(words: &[u64]) -> &[T] {
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

/// Fills in `view`.
///
/// # Safety
/// `view` is valid for writing, and `memory` for `len` bytes (also for writing if `writable`) as
/// long as `owner` lives.
#[allow(unsafe_code, reason = "the C interface of the buffer protocol")]
unsafe fn export(
    view: *mut ffi::Py_buffer,
    owner: &Bound<'_, PyAny>,
    memory: *mut u8,
    len: usize,
    writable: bool,
    flags: c_int,
) -> PyResult<()> {
    let read_only = c_int::from(!writable);
    let (memory, len) = (memory.cast(), len as ffi::Py_ssize_t);
    match ffi::PyBuffer_FillInfo(view, owner.as_ptr(), memory, len, read_only, flags) {
        0 => Ok(()),
        _ => Err(PyErr::fetch(owner.py())),
    }
}

/// Bytes of a frame, for Python.
#[pyclass(module = "hybridps._core", frozen)]
pub(crate) struct Buffer {
    words: Arc<Words>,
    bytes: Range<usize>,
    writable: bool,
}

impl Buffer {
    /// A whole frame, read-only.
    pub(crate) fn whole(words: Words) -> Self {
        let bytes = 0..words.len() * 8;
        Self { words: Arc::new(words), bytes, writable: false }
    }

    /// A writable part of a frame that Rust gives up to Python; `bytes` lies inside it.
    pub(crate) fn part(words: &Arc<Words>, bytes: Range<usize>) -> Self {
        assert!(bytes.start <= bytes.end && bytes.end <= words.len() * 8, "part of the frame");
        Self { words: Arc::clone(words), bytes, writable: true }
    }
}

#[pymethods]
impl Buffer {
    fn __len__(&self) -> usize {
        self.bytes.len()
    }

    #[allow(unsafe_code, reason = "the C interface of the buffer protocol")]
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let this = slf.get();
        let memory = this.words.memory.as_ptr().cast::<u8>().add(this.bytes.start);
        // SAFETY: the interpreter passes a valid view; the range was checked when the Buffer was
        // made, and the Buffer, which the view keeps alive, owns the memory, which never moves.
        export(view, slf.as_any(), memory, this.bytes.len(), this.writable, flags)
    }
}

/// What `get_buffer` returns: the place that the next bytes of a socket go to.
#[pyclass(module = "hybridps._core", frozen)]
pub(crate) struct Window {
    state: Mutex<WindowState>,
}

struct WindowState {
    words: Words,
    bytes: Range<usize>,
    exports: usize,
}

impl Window {
    pub(crate) fn new() -> Self {
        let state = WindowState { words: Words::new(0), bytes: 0..0, exports: 0 };
        Self { state: Mutex::new(state) }
    }

    /// Offers `bytes` of `words` to be written.
    pub(crate) fn open(&self, words: Words, bytes: Range<usize>) {
        assert!(bytes.start <= bytes.end && bytes.end <= words.len() * 8, "part of the memory");
        let mut state = self.lock();
        assert_eq!(state.exports, 0, "a window is opened after it was closed");
        *state = WindowState { words, bytes, exports: 0 };
    }

    /// Bytes offered.
    pub(crate) fn len(&self) -> usize {
        self.lock().bytes.len()
    }

    /// Takes the memory back.
    ///
    /// # Errors
    /// BufferError while a view of the window is alive.
    pub(crate) fn close(&self) -> PyResult<Words> {
        let mut state = self.lock();
        if state.exports > 0 {
            return Err(PyBufferError::new_err(
                "a view of the receive buffer is alive; release it before received()",
            ));
        }
        state.bytes = 0..0;
        Ok(std::mem::replace(&mut state.words, Words::new(0)))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, WindowState> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[pymethods]
impl Window {
    fn __len__(&self) -> usize {
        self.len()
    }

    #[allow(unsafe_code, reason = "the C interface of the buffer protocol")]
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let mut state = slf.get().lock();
        let memory = state.words.memory.as_ptr().cast::<u8>().add(state.bytes.start);
        // SAFETY: the interpreter passes a valid view; the range was checked in `open`; the memory
        // stays in place until `close`, which refuses while this view counts as an export.
        export(view, slf.as_any(), memory, state.bytes.len(), true, flags)?;
        state.exports += 1;
        Ok(())
    }

    #[allow(unsafe_code, reason = "the C interface of the buffer protocol")]
    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {
        self.lock().exports -= 1;
    }
}

/// Keeps blocks of some MiB inside malloc instead of returning each to the kernel: three quarters
/// of the cost of replies built by pycapnp were fresh pages.
#[pyfunction]
pub(crate) fn tune_allocator() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        let settings = [
            (libc::M_MMAP_THRESHOLD, c_int::MAX),
            (libc::M_TRIM_THRESHOLD, c_int::MAX),
            (libc::M_TOP_PAD, 64 << 20),
        ];
        for (parameter, value) in settings {
            // SAFETY: mallopt takes plain integers and may be called at any time; a refused value
            // leaves the default, which is only slower.
            #[allow(unsafe_code, reason = "glibc offers these settings only in C")]
            unsafe {
                libc::mallopt(parameter, value);
            }
        }
    }
}
