//! Bytes of the journal: file header, entry header, bodies. Pure; layout in docs/format.md.
//!
//! Encoding borrows the caller's arrays, decoding borrows the reader's buffer. A decoder trusts no
//! count: parts must fill the body exactly before a slice is made.

use crate::error::{Error, Result};
use crate::journal::entry::{Entry, GradientPart, SessionRecord, Stamp};
use crate::types::{Push, TableId};

#[cfg(target_endian = "big")]
compile_error!("journal bodies are little-endian views of the caller's arrays");

pub(crate) const VERSION: u32 = 1;
pub(crate) const FILE_HEADER: usize = 64;
pub(crate) const ENTRY_HEADER: usize = 32;
const FILE_MAGIC: &[u8; 8] = b"HPSJOURN";
const ENTRY_MAGIC: &[u8; 4] = b"HPJE";
const PUSH: usize = 32;
const PART: usize = 24;
const ZEROS: &[u8; 8] = &[0; 8];

const GRADIENTS: u32 = 1;
const ASSIGN: u32 = 2;
const REMOVE: u32 = 3;
const SESSIONS: u32 = 4;
const ATTACH: u32 = 5;

/// What is wrong with bytes, without a place; the caller adds file and offset.
pub(crate) type Malformed = &'static str;

/// Header of the file `generation` of the store `uuid`.
pub(crate) fn file_header(uuid: u128, generation: u32) -> [u8; FILE_HEADER] {
    let mut bytes = [0; FILE_HEADER];
    bytes[..8].copy_from_slice(FILE_MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&generation.to_le_bytes());
    bytes[16..32].copy_from_slice(&uuid.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..60]);
    bytes[60..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Version, generation and store of a file header whose crc holds.
pub(crate) fn read_file_header(bytes: &[u8; FILE_HEADER]) -> Option<(u32, u32, u128)> {
    let mut rest = Reader(bytes);
    let magic = rest.take(8)?;
    let found = (rest.u32()?, rest.u32()?, u128::from_le_bytes(rest.array()?));
    let mut crc = Reader(&bytes[60..]);
    (magic == FILE_MAGIC && crc.u32()? == crc32c::crc32c(&bytes[..60])).then_some(found)
}

/// An entry ready to be written: our own bytes first, then the caller's arrays.
pub(crate) struct Frame<'a> {
    /// Entry header and the fixed part of the body.
    prefix: Vec<u8>,
    arrays: Vec<&'a [u8]>,
    length: u64,
}

impl<'a> Frame<'a> {
    /// Lays out `entry` and computes the crc of its body: all that takes time, and needs no place
    /// in the order yet.
    ///
    /// # Errors
    /// `BadInput` when an array's length is no multiple of its number of keys.
    pub(crate) fn new(entry: &Entry<'a>) -> Result<Self> {
        let mut frame = Self { prefix: vec![0; ENTRY_HEADER], arrays: Vec::new(), length: 0 };
        let kind = frame.put_body(entry)?;
        let mut crc = crc32c::crc32c(&frame.prefix[ENTRY_HEADER..]);
        let mut body = frame.prefix.len() - ENTRY_HEADER;
        for array in &frame.arrays {
            crc = crc32c::crc32c_append(crc, array);
            body += array.len();
        }
        frame.length = (ENTRY_HEADER + body) as u64;
        let header = &mut frame.prefix[..ENTRY_HEADER];
        header[..4].copy_from_slice(ENTRY_MAGIC);
        header[4..8].copy_from_slice(&kind.to_le_bytes());
        header[8..16].copy_from_slice(&(body as u64).to_le_bytes());
        header[24..28].copy_from_slice(&crc.to_le_bytes());
        Ok(frame)
    }

    /// Bytes of header and body.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Binds the entry to its place in the order and in its file; returns its bytes in order.
    pub(crate) fn seal(&mut self, stamp: Stamp, offset: u64) -> Vec<&[u8]> {
        self.prefix[16..24].copy_from_slice(&stamp.sequence.to_le_bytes());
        let crc = header_crc(&self.prefix, stamp.generation, offset);
        self.prefix[28..32].copy_from_slice(&crc.to_le_bytes());
        let mut slices = Vec::with_capacity(self.arrays.len() + 1);
        slices.push(self.prefix.as_slice());
        slices.extend(self.arrays.iter().copied().filter(|array| !array.is_empty()));
        slices
    }

    fn put_body(&mut self, entry: &Entry<'a>) -> Result<u32> {
        match entry {
            Entry::Gradients { push, tables } => {
                self.put_push(push, tables)?;
                Ok(GRADIENTS)
            }
            &Entry::Assign { push, table, keys, rows } => {
                let part = GradientPart { table, learning_rate: 0.0, keys, gradients: rows };
                self.put_push(&push, &[part])?;
                Ok(ASSIGN)
            }
            &Entry::Remove { push, table, keys } => {
                let part = GradientPart { table, learning_rate: 0.0, keys, gradients: &[] };
                self.put_push(&push, &[part])?;
                Ok(REMOVE)
            }
            Entry::Sessions { sessions } => {
                self.put_u64(sessions.len() as u64);
                sessions.iter().for_each(|session| self.put_session(session));
                Ok(SESSIONS)
            }
            Entry::Attach { session, client_id } => {
                self.put_u64(*session);
                self.put_u32(client_id.len() as u32);
                self.put_u32(0);
                self.put_text(client_id);
                Ok(ATTACH)
            }
        }
    }

    fn put_push(&mut self, push: &Push, parts: &[GradientPart<'a>]) -> Result<()> {
        self.put_u64(push.session);
        self.put_u64(push.number);
        self.put_u64(push.step.unwrap_or(0) as u64);
        self.put_u32(u32::from(push.step.is_some()));
        self.put_u32(parts.len() as u32);
        for part in parts {
            check_shape(part.keys.len() as u64, part.gradients.len() as u64).map_err(|what| {
                Error::bad_input(format!(
                    "table id {}: {} keys and {} floats: {what}",
                    part.table,
                    part.keys.len(),
                    part.gradients.len()
                ))
            })?;
            self.put_u32(part.table);
            self.put_u32(part.learning_rate.to_bits());
            self.put_u64(part.keys.len() as u64);
            self.put_u64(part.gradients.len() as u64);
        }
        for part in parts {
            self.arrays.push(bytemuck::cast_slice(part.keys));
            self.arrays.push(bytemuck::cast_slice(part.gradients));
            self.arrays.push(&ZEROS[..part.gradients.len() % 2 * 4]);
        }
        Ok(())
    }

    fn put_session(&mut self, record: &SessionRecord) {
        self.put_u64(record.session);
        self.put_u64(record.number);
        self.put_u64(record.last_used);
        self.put_u32(record.client_id.len() as u32);
        self.put_u32(record.steps.len() as u32);
        self.put_text(&record.client_id);
        for &(table, step) in &record.steps {
            self.put_u32(table);
            self.put_u32(0);
            self.put_u64(step as u64);
        }
    }

    fn put_u32(&mut self, x: u32) {
        self.prefix.extend_from_slice(&x.to_le_bytes());
    }

    fn put_u64(&mut self, x: u64) {
        self.prefix.extend_from_slice(&x.to_le_bytes());
    }

    fn put_text(&mut self, text: &str) {
        self.prefix.extend_from_slice(text.as_bytes());
        self.prefix.extend_from_slice(&ZEROS[..padding(text.len())]);
    }
}

/// Header of an entry whose own crc holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    kind: u32,
    /// Bytes of the body; a multiple of 8, or else it was written wrong.
    pub(crate) length: u64,
    pub(crate) sequence: u64,
    body_crc: u32,
}

impl Header {
    /// `None` if these bytes are not the header of an entry at this place.
    pub(crate) fn read(bytes: &[u8; ENTRY_HEADER], generation: u32, offset: u64) -> Option<Self> {
        let mut rest = Reader(bytes);
        let magic = rest.take(4)?;
        let kind = rest.u32()?;
        let (length, sequence) = (rest.u64()?, rest.u64()?);
        let (body_crc, crc) = (rest.u32()?, rest.u32()?);
        let whole = magic == ENTRY_MAGIC && crc == header_crc(bytes, generation, offset);
        whole.then_some(Self { kind, length, sequence, body_crc })
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
    pub(crate) fn decode<'a>(&self, body: &'a [u64]) -> std::result::Result<Entry<'a>, Malformed> {
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
            REMOVE => {
                let (push, part) = read_single(body)?;
                if !part.gradients.is_empty() {
                    return Err("a remove holds floats");
                }
                Ok(Entry::Remove { push, table: part.table, keys: part.keys })
            }
            SESSIONS => Ok(Entry::Sessions { sessions: read_sessions(rest)? }),
            ATTACH => {
                let session = rest.u64().ok_or(SHORT)?;
                let length = rest.u32().ok_or(SHORT)?;
                let _ = rest.u32();
                let client_id = rest.text(length as usize)?;
                rest.end()?;
                Ok(Entry::Attach { session, client_id })
            }
            _ => Err("the kind of the entry is unknown"),
        }
    }
}

const SHORT: Malformed = "counts exceed the body";

fn header_crc(header: &[u8], generation: u32, offset: u64) -> u32 {
    let crc = crc32c::crc32c(&generation.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &offset.to_le_bytes());
    crc32c::crc32c_append(crc, &header[..28])
}

const fn padding(bytes: usize) -> usize {
    bytes.wrapping_neg() % 8
}

fn check_shape(keys: u64, floats: u64) -> std::result::Result<(), Malformed> {
    if floats.checked_rem(keys).unwrap_or(floats) != 0 {
        return Err("floats are no multiple of keys");
    }
    Ok(())
}

fn read_single(body: &[u64]) -> std::result::Result<(Push, GradientPart<'_>), Malformed> {
    let (push, parts) = read_push(body)?;
    match parts[..] {
        [part] => Ok((push, part)),
        _ => Err("an assign or remove names not one table"),
    }
}

fn read_push(body: &[u64]) -> std::result::Result<(Push, Vec<GradientPart<'_>>), Malformed> {
    let mut rest = Reader(bytemuck::cast_slice(body));
    let (session, number, step) =
        rest.u64().zip(rest.u64()).zip(rest.u64()).map(flat).ok_or(SHORT)?;
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

fn flat(((a, b), c): ((u64, u64), u64)) -> (u64, u64, u64) {
    (a, b, c)
}

fn split(words: &[u64], at: u64) -> std::result::Result<(&[u64], &[u64]), Malformed> {
    usize::try_from(at).ok().and_then(|at| words.split_at_checked(at)).ok_or(SHORT)
}

fn read_sessions(mut rest: Reader<'_>) -> std::result::Result<Vec<SessionRecord>, Malformed> {
    let count = rest.u64().ok_or(SHORT)?;
    // A record has at least 32 bytes, so this bounds the allocation by the body.
    if count > rest.0.len() as u64 / 32 {
        return Err(SHORT);
    }
    let mut sessions = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let (session, number, last_used) =
            rest.u64().zip(rest.u64()).zip(rest.u64()).map(flat).ok_or(SHORT)?;
        let (length, steps) = rest.u32().zip(rest.u32()).ok_or(SHORT)?;
        let client_id = rest.text(length as usize)?.to_owned();
        let steps = read_steps(&mut rest, steps as usize)?;
        sessions.push(SessionRecord { session, client_id, number, last_used, steps });
    }
    rest.end()?;
    Ok(sessions)
}

fn read_steps(
    rest: &mut Reader<'_>,
    count: usize,
) -> std::result::Result<Vec<(TableId, i64)>, Malformed> {
    let bytes = count.checked_mul(16).and_then(|n| rest.take(n)).ok_or(SHORT)?;
    let steps = bytes.chunks_exact(16).filter_map(|step| {
        let mut step = Reader(step);
        let (table, _) = step.u32().zip(step.u32())?;
        Some((table, step.u64()? as i64))
    });
    Ok(steps.collect())
}

/// Takes numbers off the front of bytes; `None` past their end.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.array()?))
    }

    fn text(&mut self, length: usize) -> std::result::Result<&'a str, Malformed> {
        let bytes = self.take(length).ok_or(SHORT)?;
        self.take(padding(length)).ok_or(SHORT)?;
        std::str::from_utf8(bytes).map_err(|_| "a client id is not UTF-8")
    }

    fn end(&self) -> std::result::Result<(), Malformed> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err("the body is longer than its content")
        }
    }
}
