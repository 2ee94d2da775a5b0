//! The hot verbs of `Session`, all that carry arrays: their params as a server reads them, and
//! their results, as arrays in place (`ask` has the params as a client writes them).
//!
//! Decoders take a frame whose root is the params or results struct (see `ServerConnection` and
//! `ClientConnection`, which make it so); encoders give a header, and say where the arrays go.

use std::fmt;
use std::ops::Range;

use crate::compose::Composer;
use crate::message::{Bytes, Malformed, Message};
use crate::rpc;
use crate::schema::{is_of_one_table, Dtype, APPLY_GRADIENTS, LOOKUP, PREFETCH, REMOVE};

type Result<T> = std::result::Result<T, Malformed>;

/// Most bytes of one `Data`: its length has 29 bits.
pub const DATA_MAX: usize = (1 << 29) - 1;

/// One table's part of a hot call.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Table id.
    pub table: u32,
    /// Keys.
    pub keys: &'a [u64],
    /// Counts of `lookupOrInsert`, gradients of `applyGradients`, rows of `assign`,
    /// `scatter` and `importRows`; else empty.
    pub blob: Bytes<'a>,
}

/// One table's part of a `lookupPooled`.
#[derive(Debug, Clone, Copy)]
pub struct BagBatch<'a> {
    /// Table id.
    pub table: u32,
    /// Keys of all bags, `key_bytes` each.
    pub keys: Bytes<'a>,
    /// 4 or 8.
    pub key_bytes: usize,
    /// uint32 a bag.
    pub bags: Bytes<'a>,
    /// float32 a key, or empty.
    pub weights: Bytes<'a>,
}

/// Bytes of a key, unless a call says otherwise.
pub(crate) const KEY_BYTES: u8 = 8;

/// The push of a verb that changes rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PushHeader {
    /// Number within the session.
    pub number: u64,
    /// The trainer's step, if it gave one.
    pub step: Option<i64>,
    /// Bytes of all parts, of a push that comes in parts; else 0.
    pub total: u64,
}

/// A frame in two parts: a header, and arrays that the caller puts behind it.
#[derive(Debug)]
pub struct Layout {
    /// The first words of the frame.
    pub header: Vec<u64>,
    /// Words of the whole frame.
    pub words: usize,
    /// Where each array goes, in the order they were given; they follow the header without gaps
    /// but for the padding of each to a whole word, which must be zero.
    pub blobs: Vec<BlobAt>,
}

/// Place of an array in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobAt {
    /// First word.
    pub start: usize,
    /// Bytes.
    pub bytes: usize,
}

/// Where the rows of one table lie in a received frame, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowsAt {
    /// Rows.
    pub rows: Range<usize>,
    /// Found flags; empty if none were sent.
    pub found: Range<usize>,
}

/// Why the batches of a hot call are not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Not a message of that verb.
    Malformed(Malformed),
    /// More than a call may name.
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many the call names.
        sent: usize,
        /// How many it may.
        limit: usize,
    },
    /// A part of a push that was not announced.
    NotAnnounced {
        /// Of the push.
        number: u64,
    },
    /// The parts of a push hold more than was announced.
    TooLong {
        /// Of the push.
        number: u64,
        /// Bytes that were announced.
        total: u64,
    },
    /// There is no memory for a push in parts.
    NoMemory {
        /// Of the push.
        number: u64,
    },
}

impl From<Malformed> for Refusal {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(malformed) => malformed.fmt(f),
            Self::TooMany { what, sent, limit } => write!(
                f,
                "the call names {sent} {what} and this server takes {limit} a call; split the \
                 batch, or raise keys_limit in the server's config"
            ),
            Self::NotAnnounced { number } => write!(
                f,
                "a part of push {number} came, which was not announced on this connection; send \
                 the push again from its first part"
            ),
            Self::TooLong { number, total } => write!(
                f,
                "the parts of push {number} hold more than the {total} bytes that were announced"
            ),
            Self::NoMemory { number } => {
                write!(f, "there is no memory for the parts of push {number}; split the batch")
            }
        }
    }
}

impl std::error::Error for Refusal {}

/// The batches of a hot call.
///
/// # Errors
/// Not a message of that verb, keys that are not a whole number of 64-bit words, more than
/// `keys_max` keys in all, or more batches than that.
pub fn decode_batches(
    verb: u16,
    frame: &[u64],
    keys_max: usize,
) -> std::result::Result<Vec<Batch<'_>>, Refusal> {
    let message = Message::new(frame)?;
    let params = message.root()?;
    if is_of_one_table(verb) {
        let batch = decode_batch(params.u32(0), params.bytes(1)?, || match verb {
            REMOVE => Ok(NOTHING),
            _ => params.bytes(2),
        })?;
        check_keys(batch.keys.len(), keys_max)?;
        return Ok(vec![batch]);
    }
    let list = params.list(if verb == APPLY_GRADIENTS { 1 } else { 0 })?;
    if list.len() > keys_max {
        return Err(Refusal::TooMany { what: "tables", sent: list.len(), limit: keys_max });
    }
    let mut keys = 0;
    let mut batches = Vec::with_capacity(list.len());
    for element in list.iter() {
        let batch = decode_batch(element.u32(0), element.bytes(0)?, || match verb {
            LOOKUP | PREFETCH => Ok(NOTHING),
            _ => element.bytes(1),
        })?;
        keys += batch.keys.len();
        batches.push(batch);
    }
    check_keys(keys, keys_max)?;
    Ok(batches)
}

/// The batches of a `lookupPooled`.
///
/// # Errors
/// Not such a message, arrays that are not whole numbers, or more than `keys_max` keys in all or
/// batches.
pub fn decode_bags(
    frame: &[u64],
    keys_max: usize,
) -> std::result::Result<Vec<BagBatch<'_>>, Refusal> {
    let message = Message::new(frame)?;
    let params = message.root()?;
    let key_bytes = (params.u16(1) as u8 ^ KEY_BYTES).into();
    if !matches!(key_bytes, 4 | 8) {
        return Err(Malformed("keys are of neither 4 nor 8 bytes").into());
    }
    let list = params.list(0)?;
    if list.len() > keys_max {
        return Err(Refusal::TooMany { what: "tables", sent: list.len(), limit: keys_max });
    }
    let mut count = 0;
    let mut batches = Vec::with_capacity(list.len());
    for element in list.iter() {
        let (keys, bags, weights) = (element.bytes(0)?, element.bytes(1)?, element.bytes(2)?);
        if keys.len % key_bytes + bags.len % 4 + weights.len % 4 != 0 {
            return Err(Malformed("keys, bags or weights are not whole numbers").into());
        }
        count += keys.len / key_bytes;
        batches.push(BagBatch { table: element.u32(0), keys, key_bytes, bags, weights });
    }
    check_keys(count, keys_max)?;
    Ok(batches)
}

/// How the rows of a read, or the gradients of an `applyGradients`, travel.
///
/// # Errors
/// Not such a message, or a dtype of the future.
pub fn decode_dtype(verb: u16, frame: &[u64]) -> Result<Dtype> {
    let index = usize::from(verb == LOOKUP);
    let ordinal = Message::new(frame)?.root()?.u16(index);
    Dtype::of(ordinal).ok_or(Malformed("the dtype is none that this server knows"))
}

const NOTHING: Bytes<'static> = Bytes { words: &[], len: 0 };

fn check_keys(sent: usize, limit: usize) -> std::result::Result<(), Refusal> {
    if sent > limit {
        return Err(Refusal::TooMany { what: "keys", sent, limit });
    }
    Ok(())
}

fn decode_batch<'a>(
    table: u32,
    keys: Bytes<'a>,
    blob: impl FnOnce() -> Result<Bytes<'a>>,
) -> Result<Batch<'a>> {
    if keys.len % 8 != 0 {
        return Err(Malformed("keys are not a whole number of 64-bit words"));
    }
    Ok(Batch { table, keys: keys.words, blob: blob()? })
}

/// The flag `wantFound` of a `lookup`.
///
/// # Errors
/// Not such a message.
pub fn decode_want_found(frame: &[u64]) -> Result<bool> {
    Ok(Message::new(frame)?.root()?.bit(0))
}

/// The push of a verb that changes rows.
///
/// # Errors
/// Not such a message.
pub fn decode_push(frame: &[u64]) -> Result<PushHeader> {
    let message = Message::new(frame)?;
    let push = message.root()?.structure(0)?;
    let step = push.bit(64).then(|| push.u64(2) as i64);
    Ok(PushHeader { number: push.u64(0), step, total: push.u64(3) })
}

/// What a `scatter` is to do, by its number in the schema.
///
/// # Errors
/// Not such a message.
pub fn decode_operation(frame: &[u64]) -> Result<u16> {
    Ok(Message::new(frame)?.root()?.u16(2))
}

/// Where the rows of a reply lie.
///
/// # Errors
/// Not the results of `lookup` or `lookupOrInsert`.
pub fn decode_rows(frame: &[u64]) -> Result<Vec<RowsAt>> {
    let message = Message::new(frame)?;
    let list = message.root()?.list(0)?;
    list.iter()
        .map(|batch| Ok(RowsAt { rows: batch.bytes_at(0)?, found: batch.bytes_at(1)? }))
        .collect()
}

/// Reply to a read: per table the bytes of rows and of found flags (0: none asked for). The blobs
/// of the layout alternate: rows, found, rows, found ...
pub fn rows_reply(question: u32, tables: &[(usize, usize)]) -> Layout {
    let (mut composer, at) = rpc::results_return(question);
    let first = rows_results(&mut composer, at, tables.len());
    let pointers = (0..2 * tables.len()).map(|i| first + i);
    let sizes = tables.iter().flat_map(|&(rows, found)| [rows, found]);
    let blobs = place(&mut composer, pointers.zip(sizes));
    layout(composer, blobs)
}

/// The results of a read of so many tables: two pointers each, rows and found, from the returned
/// position on.
pub(crate) fn rows_results(composer: &mut Composer, at: usize, tables: usize) -> usize {
    let results = composer.structure(at, 0, 1);
    composer.list(results, tables, 0, 2)
}

/// Reply to an `assign`, `scatter`, `importRows` or `prefetch`, or to a part of a push that is not
/// its last.
pub fn empty_reply(question: u32) -> Vec<u64> {
    let (mut composer, at) = rpc::results_return(question);
    composer.structure(at, 0, 0);
    composer.frame()
}

/// Reply to a `remove`.
pub fn removed_reply(question: u32, removed: u64) -> Vec<u64> {
    let (mut composer, at) = rpc::results_return(question);
    let results = composer.structure(at, 1, 0);
    composer.words[results] = removed;
    composer.frame()
}

/// Reply to an `applyGradients`.
pub fn duplicate_reply(question: u32, duplicate: bool) -> Vec<u64> {
    let (mut composer, at) = rpc::results_return(question);
    let results = composer.structure(at, 1, 0);
    composer.words[results] = u64::from(duplicate);
    composer.frame()
}

pub(crate) fn place(
    composer: &mut Composer,
    blobs: impl Iterator<Item = (usize, usize)>,
) -> Vec<BlobAt> {
    blobs.map(|(at, bytes)| BlobAt { start: composer.blob(at, bytes), bytes }).collect()
}

pub(crate) fn layout(composer: Composer, blobs: Vec<BlobAt>) -> Layout {
    let (header, words) = composer.finish();
    Layout { header, words, blobs }
}
