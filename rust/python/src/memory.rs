//! `_core.Buffer`: bytes of frames by the buffer protocol, without a copy.

use std::ffi::c_int;

use hybridps_serve::{View, Words};
use pyo3::ffi;
use pyo3::prelude::*;

/// Bytes of a frame; the memory stays in place as long as a view of it lives.
#[pyclass(module = "hybridps._core", frozen)]
pub(crate) struct Buffer(pub(crate) View);

impl From<Words> for Buffer {
    fn from(words: Words) -> Self {
        Self(words.into())
    }
}

#[pymethods]
impl Buffer {
    fn __len__(&self) -> usize {
        self.0.len()
    }

    #[allow(unsafe_code, reason = "the C interface of the buffer protocol")]
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let seen = &slf.get().0;
        let (len, read_only) = (seen.len() as ffi::Py_ssize_t, c_int::from(!seen.is_writable()));
        // SAFETY: the interpreter passes a valid view; the bytes lie in memory that this Buffer,
        // which the view keeps alive, owns a share of, and which never moves.
        let filled = unsafe {
            let first = seen.as_ptr().cast();
            ffi::PyBuffer_FillInfo(view, slf.as_ptr(), first, len, read_only, flags)
        };
        match filled {
            0 => Ok(()),
            _ => Err(PyErr::fetch(slf.py())),
        }
    }
}

#[pyfunction]
pub(crate) fn tune_allocator() {
    hybridps_serve::tune_allocator();
}
