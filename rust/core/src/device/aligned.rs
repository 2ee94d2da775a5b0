//! Memory that a disk can read and write directly, and views of float32 rows as bytes.

#![allow(unsafe_code, reason = "aligned allocation and float views have no safe form in std")]

use std::alloc::{alloc_zeroed, dealloc, handle_alloc_error, Layout};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use super::PAGE;

#[cfg(target_endian = "big")]
compile_error!("rows are stored little-endian and are not converted");

/// Zeroed bytes, aligned to `PAGE`, of a fixed length.
pub(crate) struct AlignedBuffer {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the buffer owns its memory alone, like a Vec<u8>; no interior mutability.
unsafe impl Send for AlignedBuffer {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for AlignedBuffer {}

impl AlignedBuffer {
    /// A buffer of `bytes`, rounded up to whole pages.
    pub(crate) fn new(bytes: usize) -> Self {
        let layout = Self::layout(bytes.max(1));
        // SAFETY: the layout has a size above zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, bytes: layout.size() }
    }

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes.next_multiple_of(PAGE), PAGE)
            .expect("buffer sizes are far below isize::MAX")
    }

    /// First byte, for a kernel that fills the buffer while it is owned but not looked at.
    #[cfg(target_os = "linux")]
    pub(super) fn pointer(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this very layout, freed once.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.bytes)) }
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `bytes` initialized bytes, owned by self.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and self is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

/// The bytes of a row.
pub(crate) fn floats_as_bytes(row: &[f32]) -> &[u8] {
    // SAFETY: every byte of an f32 is initialized, u8 has no alignment, the length is the same.
    unsafe { std::slice::from_raw_parts(row.as_ptr().cast(), std::mem::size_of_val(row)) }
}

/// The row in `bytes`; none if they are not aligned to 4 or not whole floats.
pub(crate) fn bytes_as_floats(bytes: &[u8]) -> Option<&[f32]> {
    // SAFETY: any four bytes are a float32.
    let (before, row, after) = unsafe { bytes.align_to::<f32>() };
    (before.is_empty() && after.is_empty()).then_some(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_zeroed() {
        let buffer = AlignedBuffer::new(5000);
        assert_eq!(buffer.len(), 2 * PAGE);
        assert_eq!(buffer.as_ptr() as usize % PAGE, 0);
        assert!(buffer.iter().all(|&byte| byte == 0));
    }

    #[test]
    fn views_of_floats() {
        let row = [1.0f32, -0.0, f32::NAN];
        let bytes = floats_as_bytes(&row);
        assert_eq!(bytes[..4], 1.0f32.to_le_bytes());
        let back = bytes_as_floats(bytes).expect("aligned");
        assert_eq!(back.iter().map(|x| x.to_bits()).collect::<Vec<_>>().len(), 3);
        assert_eq!(back[2].to_bits(), row[2].to_bits());
        assert!(bytes_as_floats(&bytes[1..5]).is_none());
        assert!(bytes_as_floats(&bytes[..5]).is_none());
    }
}
