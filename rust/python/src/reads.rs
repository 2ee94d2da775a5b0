//! Answers of `lookup` and `lookupOrInsert`: rows are written where they are sent from, all at
//! once or, for a large reply, piece by piece.

use std::ops::Range;
use std::sync::OnceLock;

use hybridps_core::{InsertBatch, LookupBatch, Store};
use hybridps_wire::{self as wire, Batch, ExceptionKind, StreamedReply};

use crate::buffer::{as_numbers_mut, Words};
use crate::hot::{guarded, numbers, Failure, Shared, LOOKUP};

/// Bytes of rows that are gathered, then sent while the next ones are gathered. Measured (50,000
/// rows of 64 floats): below, hops between threads cost more; above, rows have left the cache
/// before they are sent.
pub(crate) const PIECE_BYTES: usize = 1 << 19;

/// Per table the bytes of rows and of found flags.
pub(crate) type Sizes = Vec<(usize, usize)>;

/// A run of one table's keys, and where their rows and found flags go.
struct Share<'a> {
    table: u32,
    keys: &'a [u64],
    counts: &'a [u32],
    rows: &'a mut [f32],
    found: &'a mut [u8],
}

fn read(store: &Store, verb: u16, shares: Vec<Share<'_>>) -> Result<(), Failure> {
    if verb == LOOKUP {
        let batch =
            |Share { table, keys, rows, found, .. }| LookupBatch { table, keys, rows, found };
        return Ok(store.lookup(&mut shares.into_iter().map(batch).collect::<Vec<_>>())?);
    }
    let batch = |Share { table, keys, counts, rows, .. }| InsertBatch { table, keys, counts, rows };
    Ok(store.lookup_or_insert(&mut shares.into_iter().map(batch).collect::<Vec<_>>())?)
}

/// The reply in one piece.
pub(crate) fn whole(
    store: &Store,
    question: u32,
    verb: u16,
    batches: &[Batch<'_>],
    sizes: &[(usize, usize)],
) -> Result<Words, Failure> {
    let layout = wire::rows_reply(question, sizes);
    let mut reply = Words::new(layout.words);
    let (header, mut rest) = reply.split_at_mut(layout.header.len());
    header.copy_from_slice(&layout.header);
    let mut shares = Vec::with_capacity(batches.len());
    for (batch, &(rows, found)) in batches.iter().zip(sizes) {
        let (rows, found) = (take(&mut rest, rows), take(&mut rest, found));
        let counts = numbers::<u32>("counts", batch)?;
        shares.push(Share { table: batch.table, keys: batch.keys, counts, rows, found });
    }
    read(store, verb, shares)?;
    Ok(reply)
}

/// Takes an array of `bytes` off the front of `words`; its padding is cleared.
fn take<'a, T: crate::buffer::Number>(words: &mut &'a mut [u64], bytes: usize) -> &'a mut [T] {
    let (array, rest) = std::mem::take(words).split_at_mut(bytes.div_ceil(8));
    *words = rest;
    if let (Some(last), false) = (array.last_mut(), bytes % 8 == 0) {
        *last = 0;
    }
    &mut as_numbers_mut(array)[..bytes / size_of::<T>()]
}

/// A reply in pieces, which any threads may gather in any order; the last one comes when all others
/// are there: it says what went wrong in one of them. What goes wrong in the first fails the call
/// before anything is sent.
pub(crate) struct Stream {
    frame: Words,
    reply: StreamedReply,
    /// Keys of each piece but the last.
    pieces: Vec<Vec<Span>>,
    /// Found flags of each.
    found: Vec<OnceLock<Vec<u8>>>,
    failure: OnceLock<Failure>,
}

/// A run of one table's keys, and the bytes of their rows.
struct Span {
    table: usize,
    keys: Range<usize>,
    rows: usize,
}

impl Stream {
    /// `keys`: of each table, as `sizes`.
    pub(crate) fn new(question: u32, frame: Words, sizes: &Sizes, keys: &[usize]) -> Self {
        let reply = StreamedReply::new(question, sizes);
        let pieces = cut(sizes, keys);
        let found = pieces.iter().map(|_| OnceLock::new()).collect();
        Self { frame, reply, pieces, found, failure: OnceLock::new() }
    }

    pub(crate) fn pieces(&self) -> usize {
        self.pieces.len() + 1
    }

    /// Piece `n`; only the first can fail.
    pub(crate) fn piece(&self, n: usize, verb: u16, shared: &Shared) -> Result<Words, Failure> {
        let Some(spans) = self.pieces.get(n) else { return Ok(self.last()) };
        let head = if n == 0 { self.reply.head.len() } else { 0 };
        let words: usize = spans.iter().map(|span| span.rows.div_ceil(8)).sum();
        let mut piece = Words::new(head + words);
        piece[..head].copy_from_slice(&self.reply.head[..head]);
        let rows = &mut piece[head..];
        match guarded(|| self.gather(spans, verb, shared, rows)) {
            Ok(found) => drop(self.found[n].set(found)),
            Err(failure) if n == 0 => return Err(failure),
            Err(failure) => {
                rows.fill(0);
                // The first failure stands for all.
                drop(self.failure.set(failure));
            }
        }
        Ok(piece)
    }

    /// Why the call failed after its first piece.
    pub(crate) fn failure(&self) -> Option<&Failure> {
        self.failure.get()
    }

    /// Found flags of the spans, one after the other; empty if nobody asked for them.
    fn gather(
        &self,
        spans: &[Span],
        verb: u16,
        shared: &Shared,
        mut words: &mut [u64],
    ) -> Result<Vec<u8>, Failure> {
        let batches = wire::decode_batches(verb, &self.frame, shared.keys_limit)?;
        let is_found_wanted = self.reply.blobs[batches.len()..].iter().any(|blob| blob.bytes > 0);
        let keys: usize = spans.iter().map(|span| span.keys.len()).sum();
        let mut found = vec![0; if is_found_wanted { keys } else { 0 }];
        let (mut shares, mut flags) = (Vec::with_capacity(spans.len()), &mut found[..]);
        for span in spans {
            let batch = &batches[span.table];
            let (own, rest) = flags.split_at_mut(span.keys.len().min(flags.len()));
            flags = rest;
            shares.push(Share {
                table: batch.table,
                keys: &batch.keys[span.keys.clone()],
                counts: numbers("counts", batch)?.get(span.keys.clone()).unwrap_or_default(),
                rows: take(&mut words, span.rows),
                found: own,
            });
        }
        read(&shared.store, verb, shares)?;
        Ok(found)
    }

    /// Found flags of all tables, and the Return.
    fn last(&self) -> Words {
        let tail = match self.failure.get() {
            None => self.reply.tail.clone(),
            Some(Failure(reason)) => self.reply.failed_tail(ExceptionKind::Failed, reason),
        };
        let flags = &self.reply.blobs[self.reply.blobs.len() / 2..];
        let words: usize = flags.iter().map(|blob| blob.bytes.div_ceil(8)).sum();
        let mut piece = Words::new(words + tail.len());
        let (mut rest, end) = piece.split_at_mut(words);
        end.copy_from_slice(&tail);
        let mut found = self.found.iter().flat_map(|found| found.get().into_iter().flatten());
        for blob in flags {
            // Nothing is left of them when a piece failed.
            let flags: &mut [u8] = take(&mut rest, blob.bytes);
            flags.fill_with(|| found.next().copied().unwrap_or(0));
        }
        piece
    }
}

/// Cuts the keys of all tables into pieces of about `PIECE_BYTES` of rows.
fn cut(sizes: &Sizes, keys: &[usize]) -> Vec<Vec<Span>> {
    let mut pieces = vec![Vec::new()];
    let mut room = PIECE_BYTES;
    for (table, (&(bytes, _), &keys)) in sizes.iter().zip(keys).enumerate() {
        let row = bytes / keys.max(1);
        let mut start = 0;
        while start < keys {
            if room == 0 {
                pieces.push(Vec::new());
                room = PIECE_BYTES;
            }
            // An even number of rows is a whole number of words.
            let count = (room / row).max(1).next_multiple_of(2).min(keys - start);
            let rows = count * row;
            if let Some(piece) = pieces.last_mut() {
                piece.push(Span { table, keys: start..start + count, rows });
            }
            start += count;
            // A part of a table ends its piece, full or nearly.
            room = if start < keys { 0 } else { room.saturating_sub(rows) };
        }
    }
    pieces
}
