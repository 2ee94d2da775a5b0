//! Bytes of the journal as they are read back: entry headers and bodies, the inverse of `format`.
//!
//! A decoder borrows the reader's buffer and trusts no count: parts must fill the body exactly
//! before a slice is made, and nothing is allocated beyond what the body can hold.

use crate::journal::entry::{Entry, GradientPart, SessionRecord};
use crate::journal::format::{
    header_crc, padding, ALTER, ASSIGN, ATTACH, CREATE, DROP, ENTRY_HEADER, ENTRY_MAGIC, GRADIENTS,
    IMPORT, REMOVE, REMOVED, SCATTER, SESSIONS,
};
use crate::scatter::Operation;
use crate::types::{Epoch, Push, TableId};

/// What is wrong with bytes, without a place; the caller adds file and offset.
pub(crate) type Malformed = &'static str;

type Decoded<T> = std::result::Result<T, Malformed>;

/// Bytes of a push without its parts, of a part without its arrays, of a session without its lists.
const PUSH: usize = 32;
const PART: usize = 24;
const SESSION: usize = 40;

/// Header of an entry whose own crc holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    kind: u32,
    /// Bytes of the body; a multiple of 8, or else it was written wrong.
    pub(crate) length: u64,
    pub(crate) sequence: u64,
    pub(crate) epoch: Epoch,
    body_crc: u32,
}

impl Header {
    /// `None` if these bytes are not the header of an entry at this place.
    pub(crate) fn read(bytes: &[u8; ENTRY_HEADER], generation: u32, offset: u64) -> Option<Self> {
        let mut rest = Reader(bytes);
        let magic = rest.take(4)?;
        let kind = rest.u32()?;
        let (length, sequence, epoch) = (rest.u64()?, rest.u64()?, rest.u64()?);
        let (body_crc, crc) = (rest.u32()?, rest.u32()?);
        let whole = magic == ENTRY_MAGIC && crc == header_crc(bytes, generation, offset);
        whole.then_some(Self { kind, length, sequence, epoch, body_crc })
    }

    /// Whether `body` is the one that was written.
    pub(crate) fn matches(&self, body: &[u64]) -> bool {
        crc32c::crc32c(bytemuck::cast_slice(body)) == self.body_crc
    }

    /// Whether the entry is one that opens a file.
    pub(crate) fn is_sessions(&self) -> bool {
        self.kind == SESSIONS
    }

    /// The entry in a body that matches.
    pub(crate) fn decode<'a>(&self, body: &'a [u64]) -> Decoded<Entry<'a>> {
        let mut rest = Reader(bytemuck::cast_slice(body));
        match self.kind {
            GRADIENTS => {
                let (push, tables) = read_push(body)?;
                Ok(Entry::Gradients { push, tables })
            }
            ASSIGN => {
                let (push, part) = read_single(body)?;
                let GradientPart { table, keys, gradients: rows, .. } = part;
                Ok(Entry::Assign { push, table, keys, rows })
            }
            IMPORT => {
                let (push, part) = read_single(body)?;
                let GradientPart { table, keys, gradients: rows, .. } = part;
                Ok(Entry::Import { push, table, keys, rows })
            }
            SCATTER => {
                let (push, part) = read_single(body)?;
                let GradientPart { table, keys, gradients: rows, learning_rate } = part;
                let number = u16::try_from(learning_rate.to_bits()).ok();
                let operation = number.and_then(Operation::of).ok_or("an operation is unknown")?;
                Ok(Entry::Scatter { push, table, operation, keys, rows })
            }
            REMOVE => {
                let (push, part) = read_single(body)?;
                if !part.gradients.is_empty() {
                    return Err("a remove holds floats");
                }
                Ok(Entry::Remove { push, table: part.table, keys: part.keys })
            }
            SESSIONS => read_sessions(rest),
            ATTACH => {
                let session = rest.u64().ok_or(SHORT)?;
                let length = rest.u32().ok_or(SHORT)?;
                let _ = rest.u32();
                let client_id = rest.text(length as usize)?;
                rest.end()?;
                Ok(Entry::Attach { session, client_id })
            }
            CREATE => {
                let (table, definition) = read_definition(rest)?;
                Ok(Entry::CreateTable { table, definition })
            }
            ALTER => {
                let (table, definition) = read_definition(rest)?;
                Ok(Entry::AlterTable { table, definition })
            }
            DROP => match read_definition(rest)? {
                (table, "") => Ok(Entry::DropTable { table }),
                _ => Err("a drop holds a definition"),
            },
            REMOVED => {
                let (session, number, rows) = rest.words().ok_or(SHORT)?;
                rest.end()?;
                Ok(Entry::Removed { session, number, rows })
            }
            _ => Err("the kind of the entry is unknown"),
        }
    }
}

const SHORT: Malformed = "counts exceed the body";

pub(super) fn check_shape(keys: u64, floats: u64) -> Decoded<()> {
    if floats.checked_rem(keys).unwrap_or(floats) != 0 {
        return Err("floats are no multiple of keys");
    }
    Ok(())
}

fn read_single(body: &[u64]) -> Decoded<(Push, GradientPart<'_>)> {
    let (push, parts) = read_push(body)?;
    match parts[..] {
        [part] => Ok((push, part)),
        _ => Err("a push other than gradients names not one table"),
    }
}

fn read_push(body: &[u64]) -> Decoded<(Push, Vec<GradientPart<'_>>)> {
    let mut rest = Reader(bytemuck::cast_slice(body));
    let (session, number, step) = rest.words().ok_or(SHORT)?;
    let (has_step, count) = rest.u32().zip(rest.u32()).ok_or(SHORT)?;
    let push = Push { session, number, step: (has_step != 0).then_some(step as i64) };
    let count = count as usize;
    if count > rest.0.len() / PART {
        return Err(SHORT);
    }
    let mut words = &body[(PUSH + count * PART) / 8..];
    let mut parts = Vec::with_capacity(count);
    for _ in 0..count {
        let (table, rate) = rest.u32().zip(rest.u32()).ok_or(SHORT)?;
        let (keys, floats) = rest.u64().zip(rest.u64()).ok_or(SHORT)?;
        check_shape(keys, floats)?;
        let (keys, after) = split(words, keys)?;
        let (numbers, after) = split(after, floats.div_ceil(2))?;
        words = after;
        let numbers: &[f32] = bytemuck::cast_slice(numbers);
        let gradients = &numbers[..floats as usize];
        parts.push(GradientPart { table, learning_rate: f32::from_bits(rate), keys, gradients });
    }
    if !words.is_empty() {
        return Err("parts do not fill the body");
    }
    Ok((push, parts))
}

fn split(words: &[u64], at: u64) -> Decoded<(&[u64], &[u64])> {
    usize::try_from(at).ok().and_then(|at| words.split_at_checked(at)).ok_or(SHORT)
}

fn read_definition(mut rest: Reader<'_>) -> Decoded<(TableId, &str)> {
    let (table, length) = rest.u32().zip(rest.u32()).ok_or(SHORT)?;
    let text = rest.text(length as usize)?;
    rest.end()?;
    Ok((table, text))
}

fn read_sessions(mut rest: Reader<'_>) -> Decoded<Entry<'static>> {
    let (before, count) = rest.u64().zip(rest.u64()).ok_or(SHORT)?;
    // This bounds the allocation by the body.
    if count > (rest.0.len() / SESSION) as u64 {
        return Err(SHORT);
    }
    let mut sessions = Vec::with_capacity(count as usize);
    for _ in 0..count {
        sessions.push(read_session(&mut rest)?);
    }
    rest.end()?;
    Ok(Entry::Sessions { before, sessions })
}

fn read_session(rest: &mut Reader<'_>) -> Decoded<SessionRecord> {
    let (session, number, last_used) = rest.words().ok_or(SHORT)?;
    let (length, steps) = rest.u32().zip(rest.u32()).ok_or(SHORT)?;
    let (removals, _) = rest.u32().zip(rest.u32()).ok_or(SHORT)?;
    let client_id = rest.text(length as usize)?.to_owned();
    let steps = rest.pairs(steps)?.map(|(table, step)| (table as TableId, step as i64)).collect();
    let removals = rest.pairs(removals)?.collect();
    Ok(SessionRecord { session, client_id, number, last_used, steps, removals })
}

/// Takes numbers off the front of bytes; `None` past their end.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.array()?))
    }

    fn words(&mut self) -> Option<(u64, u64, u64)> {
        Some((self.u64()?, self.u64()?, self.u64()?))
    }

    /// So many pairs of words; of a table and its step the first word is the table.
    fn pairs(&mut self, count: u32) -> Decoded<impl Iterator<Item = (u64, u64)> + 'a> {
        let bytes = (count as usize).checked_mul(16).and_then(|n| self.take(n)).ok_or(SHORT)?;
        Ok(bytes.chunks_exact(16).filter_map(|pair| {
            let mut pair = Reader(pair);
            pair.u64().zip(pair.u64())
        }))
    }

    fn text(&mut self, length: usize) -> Decoded<&'a str> {
        let bytes = self.take(length).ok_or(SHORT)?;
        self.take(padding(length)).ok_or(SHORT)?;
        std::str::from_utf8(bytes).map_err(|_| "a text is not UTF-8")
    }

    fn end(&self) -> Decoded<()> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err("the body is longer than its content")
        }
    }
}
