//! From bytes to frames: a common buffer for small frames, memory of its own for a large one, so
//! that large frames are received where they stay.

use std::ops::Range;

use hybridps_wire::{FrameSize, Malformed};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::buffer::{as_numbers, Buffer, Words};

/// Size of the common buffer; frames larger than it get memory of their own.
const COMMON_WORDS: usize = (32 << 10) / 8;

/// Receive side of one connection.
pub(crate) struct Receiver {
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
    pub(crate) fn new(frame_limit: usize) -> Self {
        Self { frame_limit, common: Words::new(COMMON_WORDS), start: 0, end: 0, large: None }
    }

    /// Bytes of the large frame that is on its way, 0 if none is.
    pub(crate) fn frame_wanted(&self) -> usize {
        self.large.as_ref().map_or(0, |large| large.words.len() * 8)
    }

    /// True while a frame has begun and not ended.
    pub(crate) fn is_inside_frame(&self) -> bool {
        self.large.is_some() || self.end > self.start
    }

    fn place(&self) -> (&Words, Range<usize>) {
        match &self.large {
            Some(large) => (&large.words, large.filled..large.words.len() * 8),
            None => (&self.common, self.end..self.common.len() * 8),
        }
    }

    /// The place that the next bytes go to.
    pub(crate) fn buffer(&self) -> Buffer {
        let (words, bytes) = self.place();
        words.view(bytes, true)
    }

    /// Takes note of `count` bytes written there.
    pub(crate) fn received(&mut self, count: usize) -> PyResult<()> {
        let room = self.place().1.len();
        if count > room {
            return Err(PyValueError::new_err(format!(
                "received({count}), but get_buffer() gave room for {room} bytes"
            )));
        }
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
