//! Writes messages of one segment, and wraps a finished message into another without walking it.

use crate::message::{Malformed, Message, BYTE, COMPOSITE};

/// Words before the root pointer: the segment table of a message of one segment.
const TABLE: usize = 1;

pub(crate) const fn struct_pointer(offset: i64, data: u16, pointers: u16) -> u64 {
    ((offset as u64 & 0x3fff_ffff) << 2) | (data as u64) << 32 | (pointers as u64) << 48
}

pub(crate) const fn list_pointer(offset: i64, element: u64, count: usize) -> u64 {
    1 | (offset as u64 & 0x3fff_ffff) << 2 | element << 32 | (count as u64) << 35
}

pub(crate) const fn far_pointer(segment: usize, offset: usize, double: bool) -> u64 {
    2 | (double as u64) << 2 | ((offset as u64) & 0x1fff_ffff) << 3 | (segment as u64) << 32
}

/// A capability pointer to entry 0 of the capability table.
pub(crate) const CAPABILITY: u64 = 3;

/// A message under construction. Positions are word indexes into the frame; objects are laid out
/// in the order in which they are asked for.
pub(crate) struct Composer {
    pub(crate) words: Vec<u64>,
    /// Words of the frame, blobs that follow the header included.
    len: usize,
}

impl Composer {
    /// Position of the root pointer.
    pub(crate) const ROOT: usize = TABLE;

    pub(crate) fn new() -> Self {
        Self { words: vec![0; TABLE + 1], len: TABLE + 1 }
    }

    fn allocate(&mut self, words: usize) -> usize {
        debug_assert_eq!(self.len, self.words.len(), "blobs come last");
        self.len += words;
        self.words.resize(self.len, 0);
        self.len - words
    }

    /// A new struct at the pointer at `at`; returns its position. Pointers follow the data.
    pub(crate) fn structure(&mut self, at: usize, data: u16, pointers: u16) -> usize {
        let start = self.allocate(usize::from(data) + usize::from(pointers));
        self.words[at] = struct_pointer((start - at - 1) as i64, data, pointers);
        start
    }

    /// A new list of `count` structs; returns the position of the first.
    pub(crate) fn list(&mut self, at: usize, count: usize, data: u16, pointers: u16) -> usize {
        let words = count * (usize::from(data) + usize::from(pointers));
        let start = self.allocate(1 + words);
        self.words[at] = list_pointer((start - at - 1) as i64, COMPOSITE, words);
        self.words[start] = struct_pointer(count as i64, data, pointers);
        start + 1
    }

    /// A new `Text`.
    pub(crate) fn text(&mut self, at: usize, text: &str) {
        let bytes = text.len() + 1;
        let start = self.allocate(bytes.div_ceil(8));
        self.words[at] = list_pointer((start - at - 1) as i64, BYTE, bytes);
        for (word, chunk) in self.words[start..].iter_mut().zip(text.as_bytes().chunks(8)) {
            let mut eight = [0; 8];
            eight[..chunk.len()].copy_from_slice(chunk);
            *word = u64::from_le_bytes(eight);
        }
    }

    /// Room for a `Data` of `bytes` behind the header, to be filled by the caller; returns its
    /// first word. An empty one stays a null pointer.
    pub(crate) fn blob(&mut self, at: usize, bytes: usize) -> usize {
        let start = self.len;
        if bytes > 0 {
            self.words[at] = list_pointer((start - at - 1) as i64, BYTE, bytes);
            self.len += bytes.div_ceil(8);
        }
        start
    }

    /// A `Data` of `bytes` at word `place.1` of segment `place.0`, in a message that becomes
    /// segment `own` of the same frame. An empty one stays a null pointer.
    pub(crate) fn far_blob(&mut self, at: usize, own: usize, place: (usize, usize), bytes: usize) {
        if bytes > 0 {
            let pad = self.allocate(2);
            self.words[at] = far_pointer(own, pad - TABLE, true);
            self.words[pad] = far_pointer(place.0, place.1, false);
            self.words[pad + 1] = list_pointer(0, BYTE, bytes);
        }
    }

    /// The message without its segment table, to be a segment of another frame.
    pub(crate) fn into_segment(mut self) -> Vec<u64> {
        self.words.split_off(TABLE)
    }

    /// The header, with the segment table filled in, and the words of the whole frame.
    pub(crate) fn finish(mut self) -> (Vec<u64>, usize) {
        self.words[0] = ((self.len - TABLE) as u64) << 32;
        (self.words, self.len)
    }

    /// The finished message, which has no blobs.
    pub(crate) fn frame(self) -> Vec<u64> {
        self.finish().0
    }

    /// The finished message with the root of the message `content` as what the pointer at `at`
    /// leads to. `content` is copied word for word, not walked.
    ///
    /// # Errors
    /// `content` is not a frame whose root is a struct or null.
    pub(crate) fn wrap(self, at: usize, content: &[u64]) -> Result<Vec<u64>, Malformed> {
        let message = Message::new(content)?;
        message.root()?;
        match content.first() {
            Some(word) if *word as u32 == 0 => Ok(self.wrap_one(at, content)),
            _ => Ok(self.wrap_many(at, content)),
        }
    }

    /// All in one segment: relative pointers survive the move; the old root pointer is dropped.
    fn wrap_one(mut self, at: usize, content: &[u64]) -> Vec<u64> {
        let root = content[TABLE];
        let offset = i64::from(root as u32 as i32 >> 2);
        let is_empty = root >> 32 == 0;
        self.words[at] = match root {
            0 => 0,
            _ if is_empty => struct_pointer(-1, 0, 0),
            _ => {
                let start = self.words.len() as i64 + offset;
                (root & !0xffff_ffff) | struct_pointer(start - at as i64 - 1, 0, 0)
            }
        };
        self.words.extend_from_slice(&content[TABLE + 1..]);
        self.len = self.words.len();
        self.frame()
    }

    /// The segments keep their numbers, so far pointers inside survive; ours comes last, and the
    /// root pointer of the first one leads to it.
    fn wrap_many(mut self, at: usize, content: &[u64]) -> Vec<u64> {
        let count = content[0] as u32 as usize + 1;
        let (table, body) = content.split_at(count / 2 + 1);
        let root = body[0];
        let mut ours = self.words.split_off(TABLE);
        let at = at - TABLE;
        if root == 0 || root & 3 == 2 {
            ours[at] = root;
        } else {
            let offset = 1 + i64::from(root as u32 as i32 >> 2);
            ours[at] = far_pointer(count, ours.len(), true);
            ours.push(far_pointer(0, offset.max(0) as usize, false));
            ours.push(root & !0xffff_ffff);
        }
        let size = |i: usize| (table[i.div_ceil(2)] >> ((1 + i) % 2 * 32)) & 0xffff_ffff;
        let sizes: Vec<u64> = (0..count).map(size).chain([ours.len() as u64]).collect();
        let mut frame = vec![0; count.div_ceil(2) + 1];
        frame[0] = count as u64;
        for (i, size) in sizes.iter().enumerate() {
            frame[i.div_ceil(2)] |= size << ((1 + i) % 2 * 32);
        }
        frame.push(far_pointer(count, 0, false));
        frame.extend_from_slice(&body[1..]);
        frame.extend(ours);
        frame
    }
}
