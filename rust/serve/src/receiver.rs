//! From bytes to frames: a common buffer for small frames, memory of its own for a large one, so
//! that large frames are received where they stay.

use hybridps_wire::{FrameSize, Malformed};

use crate::failure::Misuse;
use crate::memory::{as_numbers, as_numbers_mut, View, Words};

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
    len: usize,
    /// None until somebody reads on: what a peer merely announced costs nothing. Its first bytes
    /// wait in the common buffer so long.
    words: Option<Words>,
    filled: usize,
}

impl Receiver {
    pub(crate) fn new(frame_limit: usize) -> Self {
        Self { frame_limit, common: Words::new(COMMON_WORDS), start: 0, end: 0, large: None }
    }

    /// Bytes of the large frame that is on its way, 0 if none is.
    pub(crate) fn frame_wanted(&self) -> usize {
        self.large.as_ref().map_or(0, |large| large.len * 8)
    }

    /// True while a frame has begun and not ended.
    pub(crate) fn is_inside_frame(&self) -> bool {
        self.large.is_some() || self.end > self.start
    }

    /// The place that the next bytes go to.
    pub(crate) fn buffer(&mut self) -> View {
        let Some(large) = &mut self.large else {
            return self.common.view(self.end..self.common.len() * 8, true);
        };
        let words = large.words.get_or_insert_with(|| {
            let mut words = Words::new(large.len);
            let first = self.start / 8..self.end.div_ceil(8);
            words[..first.len()].copy_from_slice(&self.common[first]);
            (self.start, self.end) = (0, 0);
            words
        });
        words.view(large.filled..large.len * 8, true)
    }

    /// Takes in bytes that came another way; how many there was room for.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> usize {
        drop(self.buffer());
        let (words, filled) = match &mut self.large {
            Some(Large { words: Some(words), filled, .. }) => (words, filled),
            _ => (&mut self.common, &mut self.end),
        };
        let room = &mut as_numbers_mut::<u8>(words)[*filled..];
        let count = room.len().min(bytes.len());
        room[..count].copy_from_slice(&bytes[..count]);
        count
    }

    /// Takes note of `count` bytes written there.
    pub(crate) fn received(&mut self, count: usize) -> Result<(), Misuse> {
        let (filled, room) = match &mut self.large {
            Some(Large { words: Some(words), filled, .. }) => (filled, words.len() * 8),
            Some(Large { filled, .. }) => {
                let room = *filled;
                (filled, room)
            }
            None => (&mut self.end, self.common.len() * 8),
        };
        if count > room - *filled {
            return Err(Misuse(format!(
                "received({count}), but get_buffer() gave room for {} bytes",
                room - *filled
            )));
        }
        *filled += count;
        Ok(())
    }

    /// The next whole frame.
    pub(crate) fn next(&mut self) -> Result<Option<Words>, Malformed> {
        if let Some(large) = &mut self.large {
            if large.filled < large.len * 8 {
                return Ok(None);
            }
            let words = large.words.take();
            self.large = None;
            return Ok(words);
        }
        let bytes = &as_numbers::<u8>(&self.common)[self.start..self.end];
        if let FrameSize::Known(size) = FrameSize::of(bytes, self.frame_limit)? {
            let first = self.start / 8;
            if size <= bytes.len() {
                self.start += size;
                return Ok(Some(Words::copy_of(&self.common[first..first + size / 8])));
            }
            if size > self.common.len() * 8 {
                self.large = Some(Large { len: size / 8, words: None, filled: bytes.len() });
                return Ok(None);
            }
        }
        // What is left of the common buffer must hold the rest of any small frame.
        self.common.copy_within(self.start / 8..self.end.div_ceil(8), 0);
        (self.start, self.end) = (0, self.end - self.start);
        Ok(None)
    }
}
