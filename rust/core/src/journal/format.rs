//! Bytes of the journal as they are written: file header, entry header, bodies. Pure; layout in
//! docs/format.md. The other way is `decode`.
//!
//! Encoding borrows the caller's arrays: they go to the kernel from where they lie.

use crate::error::{Error, Result};
use crate::journal::decode::{check_shape, Reader};
use crate::journal::entry::{Entry, GradientPart, SessionRecord, Stamp};
use crate::types::{Push, TableId};

#[cfg(target_endian = "big")]
compile_error!("journal bodies are little-endian views of the caller's arrays");

pub(crate) const VERSION: u32 = 2;
pub(crate) const FILE_HEADER: usize = 64;
pub(crate) const ENTRY_HEADER: usize = 40;
pub(super) const ENTRY_MAGIC: &[u8; 4] = b"HPJE";
/// The last field of the entry header, and what it covers.
const HEADER_CRC: usize = ENTRY_HEADER - 4;
const FILE_MAGIC: &[u8; 8] = b"HPSJOURN";
const ZEROS: &[u8; 8] = &[0; 8];

pub(super) const GRADIENTS: u32 = 1;
pub(super) const ASSIGN: u32 = 2;
pub(super) const REMOVE: u32 = 3;
pub(super) const SESSIONS: u32 = 4;
pub(super) const ATTACH: u32 = 5;
pub(super) const CREATE: u32 = 6;
pub(super) const ALTER: u32 = 7;
pub(super) const DROP: u32 = 8;
pub(super) const REMOVED: u32 = 9;
pub(super) const SCATTER: u32 = 10;
pub(super) const IMPORT: u32 = 11;

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
        header[32..HEADER_CRC].copy_from_slice(&crc.to_le_bytes());
        Ok(frame)
    }

    /// Bytes of header and body.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Binds the entry to its place in the order and in its file; returns its bytes in order.
    pub(crate) fn seal(&mut self, stamp: Stamp, offset: u64) -> Vec<&[u8]> {
        self.prefix[16..24].copy_from_slice(&stamp.sequence.to_le_bytes());
        self.prefix[24..32].copy_from_slice(&stamp.epoch.to_le_bytes());
        let crc = header_crc(&self.prefix, stamp.generation, offset);
        self.prefix[HEADER_CRC..ENTRY_HEADER].copy_from_slice(&crc.to_le_bytes());
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
            &Entry::Import { push, table, keys, rows } => {
                let part = GradientPart { table, learning_rate: 0.0, keys, gradients: rows };
                self.put_push(&push, &[part])?;
                Ok(IMPORT)
            }
            &Entry::Scatter { push, table, operation, keys, rows } => {
                // The word of the learning rate says what is done.
                let learning_rate = f32::from_bits(operation.number().into());
                let part = GradientPart { table, learning_rate, keys, gradients: rows };
                self.put_push(&push, &[part])?;
                Ok(SCATTER)
            }
            &Entry::Remove { push, table, keys } => {
                let part = GradientPart { table, learning_rate: 0.0, keys, gradients: &[] };
                self.put_push(&push, &[part])?;
                Ok(REMOVE)
            }
            Entry::Sessions { before, sessions } => {
                self.put_u64(*before);
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
            Entry::CreateTable { table, definition } => {
                self.put_definition(*table, definition);
                Ok(CREATE)
            }
            Entry::AlterTable { table, definition } => {
                self.put_definition(*table, definition);
                Ok(ALTER)
            }
            Entry::DropTable { table } => {
                self.put_definition(*table, "");
                Ok(DROP)
            }
            Entry::Removed { session, number, rows } => {
                [session, number, rows].into_iter().for_each(|&word| self.put_u64(word));
                Ok(REMOVED)
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
        self.put_u32(record.removals.len() as u32);
        self.put_u32(0);
        self.put_text(&record.client_id);
        for &(table, step) in &record.steps {
            self.put_u32(table);
            self.put_u32(0);
            self.put_u64(step as u64);
        }
        for &(number, rows) in &record.removals {
            self.put_u64(number);
            self.put_u64(rows);
        }
    }

    fn put_definition(&mut self, table: TableId, text: &str) {
        self.put_u32(table);
        self.put_u32(text.len() as u32);
        self.put_text(text);
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

pub(super) fn header_crc(header: &[u8], generation: u32, offset: u64) -> u32 {
    let crc = crc32c::crc32c(&generation.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &offset.to_le_bytes());
    crc32c::crc32c_append(crc, &header[..HEADER_CRC])
}

pub(super) const fn padding(bytes: usize) -> usize {
    bytes.wrapping_neg() % 8
}
