//! From bytes to frames: a common buffer for small frames, memory of its own for a large one, so
//! that large frames are received where they stay.

use hybridps_wire::{FrameSize, Malformed};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::buffer::{as_numbers, Window, Words};

/// Size of the common buffer; frames larger than it get memory of their own.
const COMMON_WORDS: usize = (64 << 10) / 8;

/// Receive side of one connection.
pub(crate) struct Receiver {
    window: Py<Window>,
    is_open: bool,
    frame_limit: usize,
    common: Words,
    /// Bytes of `common` that were received and not yet taken; begins at a word.
    start: usize,
    end: usize,
    large: Option<Large>,
}

/// A large frame on its way.
struct Large {
    words: Words,
    filled: usize,
}

impl Receiver {
    pub(crate) fn new(py: Python<'_>, frame_limit: usize) -> PyResult<Self> {
        let window = Py::new(py, Window::new())?;
        let common = Words::new(COMMON_WORDS);
        Ok(Self { window, is_open: false, frame_limit, common, start: 0, end: 0, large: None })
    }

    /// Bytes of the large frame that is on its way, 0 if none is.
    pub(crate) fn frame_wanted(&self) -> usize {
        match (&self.large, self.is_open) {
            (Some(large), false) => large.words.len() * 8,
            _ => 0,
        }
    }

    /// Offers the place that the next bytes go to.
    pub(crate) fn open(&mut self, py: Python<'_>) -> PyResult<Py<Window>> {
        self.close(py)?;
        let empty = || Words::new(0);
        let (words, bytes) = match &mut self.large {
            Some(large) => {
                let words = std::mem::replace(&mut large.words, empty());
                let bytes = large.filled..words.len() * 8;
                (words, bytes)
            }
            None => {
                let words = std::mem::replace(&mut self.common, empty());
                let bytes = self.end..words.len() * 8;
                (words, bytes)
            }
        };
        self.window.get().open(words, bytes);
        self.is_open = true;
        Ok(self.window.clone_ref(py))
    }

    fn close(&mut self, _py: Python<'_>) -> PyResult<()> {
        if self.is_open {
            let words = self.window.get().close()?;
            match &mut self.large {
                Some(large) => large.words = words,
                None => self.common = words,
            }
            self.is_open = false;
        }
        Ok(())
    }

    /// Takes note of `count` bytes written to the place offered.
    pub(crate) fn received(&mut self, py: Python<'_>, count: usize) -> PyResult<()> {
        let offered = if self.is_open { self.window.get().len() } else { 0 };
        if count > offered {
            return Err(PyValueError::new_err(format!(
                "received({count}), but get_buffer() offered {offered} bytes"
            )));
        }
        self.close(py)?;
        match &mut self.large {
            Some(large) => large.filled += count,
            None => self.end += count,
        }
        Ok(())
    }

    /// The next whole frame.
    pub(crate) fn next(&mut self) -> Result<Option<Words>, Malformed> {
        if let Some(large) = self.large.take() {
            if large.filled == large.words.len() * 8 {
                return Ok(Some(large.words));
            }
            self.large = Some(large);
            return Ok(None);
        }
        let bytes = &as_numbers::<u8>(&self.common)[self.start..self.end];
        if let FrameSize::Known(size) = FrameSize::of(bytes, self.frame_limit)? {
            let first = self.start / 8;
            if size <= bytes.len() {
                self.start += size;
                return Ok(Some(Words::copy_of(&self.common[first..first + size / 8])));
            }
            if size > self.common.len() * 8 {
                let mut words = Words::new(size / 8);
                let here = bytes.len().div_ceil(8);
                words[..here].copy_from_slice(&self.common[first..first + here]);
                self.large = Some(Large { words, filled: bytes.len() });
                (self.start, self.end) = (0, 0);
                return Ok(None);
            }
        }
        // What is left of the common buffer must hold the rest of any small frame.
        self.common.copy_within(self.start / 8..self.end.div_ceil(8), 0);
        (self.start, self.end) = (0, self.end - self.start);
        Ok(None)
    }
}
