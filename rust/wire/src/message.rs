//! Reads one received message in place. The trust border: every pointer is bounds-checked, nothing
//! is allocated by what a peer claims, and no walk is longer than the message.
//!
//! Nesting needs no limit of its own: no function here follows more than one pointer, so depth is
//! fixed by the callers' code, never by the bytes.

use std::cell::Cell;
use std::fmt;
use std::ops::Range;

/// Why a message cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Malformed {}

type Result<T> = std::result::Result<T, Malformed>;

/// Sizes of list elements, as encoded in list pointers.
pub(crate) const BYTE: u64 = 2;
pub(crate) const COMPOSITE: u64 = 7;

/// A received message: the whole frame, segment table included.
pub struct Message<'a> {
    words: &'a [u64],
    segments: Vec<Range<usize>>,
    /// Words that pointers may still lead to. Honest messages visit each word once; overlapping
    /// pointers, with which a small message could claim to hold gigabytes, run out.
    unvisited: Cell<usize>,
}

/// A struct in a message; fields beyond its end read as zero, as the encoding demands.
#[derive(Clone, Copy)]
pub struct Struct<'m, 'a> {
    message: &'m Message<'a>,
    segment: usize,
    start: usize,
    data: usize,
    pointers: usize,
}

/// A list of structs in a message.
#[derive(Clone, Copy)]
pub struct StructList<'m, 'a> {
    first: Struct<'m, 'a>,
    count: usize,
}

/// The bytes of a `Data` or `Text`, which begin at a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes<'a> {
    /// Words that hold the bytes; the last may hold padding too.
    pub words: &'a [u64],
    /// Number of bytes.
    pub len: usize,
}

/// What a pointer leads to; positions are word indexes into the frame, checked.
enum Target {
    Null,
    Struct { segment: usize, start: usize, data: usize, pointers: usize },
    List { segment: usize, start: usize, element: u64, count: usize },
    Capability(u32),
}

impl<'a> Message<'a> {
    /// Takes a whole frame.
    ///
    /// # Errors
    /// The segment table does not describe exactly this frame.
    pub fn new(words: &'a [u64]) -> Result<Self> {
        let wrong = Malformed("segment table does not match the frame");
        let half =
            |at: usize| words.get(at / 2).map(|word| (word >> (at % 2 * 32)) as u32 as usize);
        let count = half(0).ok_or(wrong)? + 1;
        if count > crate::SEGMENTS_MAX {
            return Err(Malformed("message has too many segments"));
        }
        let mut end = count / 2 + 1;
        let mut segments = Vec::with_capacity(count);
        for segment in 0..count {
            let start = end;
            end += half(1 + segment).ok_or(wrong)?;
            segments.push(start..end);
        }
        if end != words.len() {
            return Err(wrong);
        }
        Ok(Self { words, segments, unvisited: Cell::new(2 * words.len() + 64) })
    }

    /// The root struct; empty if the root pointer is null.
    ///
    /// # Errors
    /// No root pointer, or not one to a struct.
    pub fn root(&self) -> Result<Struct<'_, 'a>> {
        let first = self.segments[0].clone();
        if first.is_empty() {
            return Err(Malformed("message has no root pointer"));
        }
        self.structure(0, first.start)
    }

    fn structure(&self, segment: usize, at: usize) -> Result<Struct<'_, 'a>> {
        match self.resolve(segment, at)? {
            Target::Null => Ok(Struct { message: self, segment, start: 0, data: 0, pointers: 0 }),
            Target::Struct { segment, start, data, pointers } => {
                Ok(Struct { message: self, segment, start, data, pointers })
            }
            _ => Err(Malformed("expected a pointer to a struct")),
        }
    }

    /// Follows the pointer at word `at` of the frame, which lies in `segment`.
    fn resolve(&self, segment: usize, at: usize) -> Result<Target> {
        let word = self.words[at];
        if word & 3 != 2 {
            return self.near(segment, at + 1, word);
        }
        let (pad_segment, pad) = self.far_target(word)?;
        if word & 4 == 0 {
            let word = *self.word(pad_segment, pad)?;
            if word & 3 == 2 {
                return Err(Malformed("far pointer leads to a far pointer"));
            }
            return self.near(pad_segment, pad + 1, word);
        }
        let (far, tag) = (*self.word(pad_segment, pad)?, *self.word(pad_segment, pad + 1)?);
        if far & 7 != 2 || tag & 2 != 0 || tag as u32 >> 2 != 0 {
            return Err(Malformed("double far pointer has a bad landing pad"));
        }
        let (segment, start) = self.far_target(far)?;
        self.near(segment, start, tag)
    }

    /// Segment and word index that a far pointer names; the index may be one past the end.
    fn far_target(&self, word: u64) -> Result<(usize, usize)> {
        let segment = (word >> 32) as usize;
        let bounds = self.segments.get(segment).ok_or(Malformed("far pointer to no segment"))?;
        let at = bounds.start + (word as u32 >> 3) as usize;
        if at > bounds.end {
            return Err(Malformed("far pointer out of bounds"));
        }
        Ok((segment, at))
    }

    fn word(&self, segment: usize, at: usize) -> Result<&u64> {
        if !self.segments[segment].contains(&at) {
            return Err(Malformed("far pointer out of bounds"));
        }
        Ok(&self.words[at])
    }

    /// Decodes a pointer that is not far, whose offset counts from word index `origin`.
    fn near(&self, segment: usize, origin: usize, word: u64) -> Result<Target> {
        if word == 0 {
            return Ok(Target::Null);
        }
        if word & 3 == 3 {
            return match word as u32 {
                3 => Ok(Target::Capability((word >> 32) as u32)),
                _ => Err(Malformed("pointer of unknown kind")),
            };
        }
        let bounds = &self.segments[segment];
        let start = origin as i64 + i64::from(word as u32 as i32 >> 2);
        let (element, count) = (word >> 32 & 7, (word >> 35) as usize);
        let (data, pointers) = ((word >> 32 & 0xffff) as usize, (word >> 48) as usize);
        let (size, target) = match word & 3 {
            0 => {
                let start = start.max(0) as usize;
                (data + pointers, Target::Struct { segment, start, data, pointers })
            }
            _ => {
                let start = start.max(0) as usize;
                (list_words(element, count), Target::List { segment, start, element, count })
            }
        };
        if start < bounds.start as i64 || start as usize + size > bounds.end {
            return Err(Malformed("pointer out of bounds"));
        }
        self.visit(size + 1)?;
        Ok(target)
    }

    fn visit(&self, words: usize) -> Result<()> {
        let left = self.unvisited.get().checked_sub(words);
        self.unvisited.set(left.ok_or(Malformed("pointers of the message overlap too much"))?);
        Ok(())
    }

    fn segment_of(&self, at: usize) -> Option<usize> {
        self.segments.iter().position(|bounds| bounds.contains(&at))
    }
}

/// Words of a list, tag included.
fn list_words(element: u64, count: usize) -> usize {
    let bits = [0, 1, 8, 16, 32, 64, 64];
    match bits.get(element as usize) {
        Some(bits) => (count * bits).div_ceil(64),
        None => count + 1,
    }
}

impl<'m, 'a> Struct<'m, 'a> {
    /// Word `index` of the data section.
    pub fn u64(&self, index: usize) -> u64 {
        if index < self.data {
            return self.message.words[self.start + index];
        }
        0
    }

    /// 32-bit field `index` of the data section.
    pub fn u32(&self, index: usize) -> u32 {
        (self.u64(index / 2) >> (index % 2 * 32)) as u32
    }

    /// 16-bit field `index` of the data section.
    pub fn u16(&self, index: usize) -> u16 {
        (self.u64(index / 4) >> (index % 4 * 16)) as u16
    }

    /// Bit `index` of the data section.
    pub fn bit(&self, index: usize) -> bool {
        self.u64(index / 64) >> (index % 64) & 1 == 1
    }

    fn pointer(&self, index: usize) -> Option<usize> {
        (index < self.pointers).then_some(self.start + self.data + index)
    }

    fn resolve(&self, index: usize) -> Result<Target> {
        match self.pointer(index) {
            Some(at) => self.message.resolve(self.segment, at),
            None => Ok(Target::Null),
        }
    }

    /// The struct that pointer `index` leads to; empty for null.
    ///
    /// # Errors
    /// The pointer leads elsewhere or out of bounds.
    pub fn structure(&self, index: usize) -> Result<Struct<'m, 'a>> {
        match self.pointer(index) {
            Some(at) => self.message.structure(self.segment, at),
            None => Ok(Struct { data: 0, pointers: 0, ..*self }),
        }
    }

    /// The `Data` that pointer `index` leads to; empty for null.
    ///
    /// # Errors
    /// The pointer leads elsewhere or out of bounds.
    pub fn bytes(&self, index: usize) -> Result<Bytes<'a>> {
        match self.resolve(index)? {
            Target::Null => Ok(Bytes { words: &[], len: 0 }),
            Target::List { start, element: BYTE, count, .. } => Ok(Bytes {
                words: &self.message.words[start..start + count.div_ceil(8)],
                len: count,
            }),
            _ => Err(Malformed("expected a pointer to Data")),
        }
    }

    /// Where the `Data` of pointer `index` lies in the frame, in bytes.
    ///
    /// # Errors
    /// As `bytes`.
    pub(crate) fn bytes_at(&self, index: usize) -> Result<Range<usize>> {
        match self.resolve(index)? {
            Target::Null => Ok(0..0),
            Target::List { start, element: BYTE, count, .. } => Ok(start * 8..start * 8 + count),
            _ => Err(Malformed("expected a pointer to Data")),
        }
    }

    /// The `Text` that pointer `index` leads to, without its final NUL; empty for null.
    ///
    /// # Errors
    /// The pointer leads elsewhere or out of bounds, or the text is not UTF-8.
    pub fn text(&self, index: usize) -> Result<String> {
        let bytes = self.bytes(index)?;
        let mut text = bytes.to_vec();
        if text.pop().is_some_and(|last| last != 0) {
            return Err(Malformed("text does not end in NUL"));
        }
        String::from_utf8(text).map_err(|_| Malformed("text is not UTF-8"))
    }

    /// The list of structs that pointer `index` leads to; empty for null.
    ///
    /// # Errors
    /// The pointer leads elsewhere or out of bounds, or elements do not fill the list.
    pub fn list(&self, index: usize) -> Result<StructList<'m, 'a>> {
        let message = self.message;
        let (segment, start, words) = match self.resolve(index)? {
            Target::Null => {
                return Ok(StructList { first: Struct { data: 0, pointers: 0, ..*self }, count: 0 })
            }
            Target::List { segment, start, element: COMPOSITE, count } => (segment, start, count),
            _ => return Err(Malformed("expected a pointer to a list of structs")),
        };
        let tag = message.words[start];
        let count = (tag as u32 >> 2) as usize;
        let (data, pointers) = ((tag >> 32 & 0xffff) as usize, (tag >> 48) as usize);
        // Elements without words would let eight bytes stand for a billion of them.
        if tag & 3 != 0 || count * (data + pointers) > words || count > words {
            return Err(Malformed("list of structs does not match its tag"));
        }
        Ok(StructList {
            first: Struct { message, segment, start: start + 1, data, pointers },
            count,
        })
    }

    /// The index in a capability table that pointer `index` holds; `None` for null.
    ///
    /// # Errors
    /// The pointer is not a capability.
    pub fn capability(&self, index: usize) -> Result<Option<u32>> {
        match self.resolve(index)? {
            Target::Null => Ok(None),
            Target::Capability(id) => Ok(Some(id)),
            _ => Err(Malformed("expected a capability")),
        }
    }

    /// The word that makes what pointer `index` leads to the root of the same frame. A far pointer
    /// means the same everywhere; for a near one the pointer itself serves as landing pad.
    pub(crate) fn as_root(&self, index: usize) -> u64 {
        let Some(at) = self.pointer(index) else { return 0 };
        let word = self.message.words[at];
        match (word & 3, self.message.segment_of(at)) {
            (0 | 1, Some(segment)) if word != 0 => {
                let offset = at - self.message.segments[segment].start;
                crate::compose::far_pointer(segment, offset, false)
            }
            _ => word,
        }
    }
}

impl<'m, 'a> StructList<'m, 'a> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.count
    }

    /// True without elements.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The elements in order.
    pub fn iter(&self) -> impl Iterator<Item = Struct<'m, 'a>> + use<'m, 'a> {
        let (first, stride) = (self.first, self.first.data + self.first.pointers);
        (0..self.count).map(move |i| Struct { start: first.start + i * stride, ..first })
    }
}

impl Bytes<'_> {
    /// A copy of the bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.truncate(self.len);
        bytes
    }
}

/// Makes `root` the root pointer of `frame`.
pub(crate) fn set_root(frame: &mut [u64], root: u64) {
    let segments = frame.first().map_or(0, |word| *word as u32 as usize) + 1;
    if let Some(word) = frame.get_mut(segments / 2 + 1) {
        *word = root;
    }
}
