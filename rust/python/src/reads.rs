//! Answers of `lookup` and `lookupOrInsert`: rows are written where they are sent from, all at
//! once or, for a large reply, piece by piece.

use std::ops::Range;

use hybridps_core::{InsertBatch, LookupBatch, Store};
use hybridps_wire::{self as wire, Batch, ExceptionKind, StreamedReply};

use crate::buffer::{as_numbers_mut, Words};
use crate::hot::{guarded, numbers, Failure, LOOKUP};

/// Bytes of rows that are gathered, then sent while the next ones are gathered. Measured (50,000
/// rows of 64 floats): below, hops between threads cost more; above, rows have left the cache
/// before they are sent.
pub(crate) const PIECE_BYTES: usize = 1 << 20;

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

/// A reply in pieces. When the call fails after the first one was sent, the rest is zeros, and the
/// end says why.
pub(crate) struct Stream {
    verb: u16,
    frame: Words,
    sizes: Sizes,
    reply: StreamedReply,
    /// Found flags so far; they follow all rows of their table.
    found: Vec<Vec<u8>>,
    /// The next key: its table, and its number there.
    at: (usize, usize),
    is_begun: bool,
    failure: Option<Failure>,
}

/// Keys of one table in a piece.
struct Span {
    table: usize,
    keys: Range<usize>,
    /// Bytes of their rows.
    rows: usize,
    /// Bytes of the table's found flags, if these keys are its last.
    found: usize,
}

impl Span {
    fn words(&self) -> usize {
        self.rows.div_ceil(8) + self.found.div_ceil(8)
    }
}

impl Stream {
    pub(crate) fn new(question: u32, verb: u16, frame: Words, sizes: Sizes) -> Self {
        let reply = StreamedReply::new(question, &sizes);
        let found = sizes.iter().map(|&(_, found)| vec![0; found]).collect();
        let (at, is_begun, failure) = ((0, 0), false, None);
        Self { verb, frame, sizes, reply, found, at, is_begun, failure }
    }

    /// True when all pieces were taken.
    pub(crate) fn is_done(&self) -> bool {
        self.at.0 == self.sizes.len()
    }

    /// The next piece. Fails only before the first one; nothing was said then.
    pub(crate) fn next(&mut self, store: &Store, keys_max: usize) -> Result<Words, Failure> {
        let frame = std::mem::replace(&mut self.frame, Words::new(0));
        let piece = wire::decode_batches(self.verb, &frame, keys_max)
            .map_err(Failure::from)
            .and_then(|batches| self.piece(store, &batches));
        self.frame = frame;
        piece
    }

    /// Why the call failed.
    pub(crate) fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    fn piece(&mut self, store: &Store, batches: &[Batch<'_>]) -> Result<Words, Failure> {
        let spans = self.spans(batches);
        let head = if self.is_begun { 0 } else { self.reply.head.len() };
        let body: usize = spans.iter().map(Span::words).sum();
        let tail = if self.is_done() { self.reply.tail.len() } else { 0 };
        let mut piece = Words::new(head + body + tail);
        piece[..head].copy_from_slice(&self.reply.head[..head]);
        let rows = &mut piece[head..head + body];
        if self.failure.is_none() {
            let gathered = guarded(|| self.gather(store, batches, &spans, rows));
            if !self.is_begun {
                gathered?;
            } else if let Err(failure) = gathered {
                self.failure = Some(failure);
            }
        }
        if self.failure.is_some() {
            rows.fill(0);
        }
        self.is_begun = true;
        if tail > 0 {
            piece[head + body..].copy_from_slice(&self.tail());
        }
        Ok(piece)
    }

    fn tail(&self) -> Vec<u64> {
        match &self.failure {
            None => self.reply.tail.clone(),
            Some(Failure(reason)) => self.reply.failed_tail(ExceptionKind::Failed, reason),
        }
    }

    /// The keys of the next piece; moves on behind them.
    fn spans(&mut self, batches: &[Batch<'_>]) -> Vec<Span> {
        let mut spans = Vec::new();
        let mut room = PIECE_BYTES;
        while let (Some(batch), true) = (batches.get(self.at.0), room > 0) {
            let (table, first) = self.at;
            let row = self.sizes[table].0 / batch.keys.len().max(1);
            // An even number of rows is a whole number of words.
            let count = (room / row.max(1)).max(1).next_multiple_of(2);
            let end = batch.keys.len().min(first + count);
            let is_last = end == batch.keys.len();
            let rows = (end - first) * row;
            let found = if is_last { self.sizes[table].1 } else { 0 };
            spans.push(Span { table, keys: first..end, rows, found });
            // A part of a table ends the piece, so that each has at most one span in it.
            room = if is_last { room.saturating_sub(rows) } else { 0 };
            self.at = if is_last { (table + 1, 0) } else { (table, end) };
        }
        spans
    }

    fn gather(
        &mut self,
        store: &Store,
        batches: &[Batch<'_>],
        spans: &[Span],
        mut words: &mut [u64],
    ) -> Result<(), Failure> {
        let (mut shares, mut flags) = (Vec::new(), Vec::new());
        // Each table has at most one span in a piece.
        let tables = self.found.iter_mut().skip(spans.first().map_or(0, |span| span.table));
        for (span, found) in spans.iter().zip(tables) {
            let batch = &batches[span.table];
            let rows = take(&mut words, span.rows);
            flags.push(take::<u8>(&mut words, span.found));
            let counts = numbers::<u32>("counts", batch)?;
            shares.push(Share {
                table: batch.table,
                keys: &batch.keys[span.keys.clone()],
                counts: counts.get(span.keys.clone()).unwrap_or_default(),
                rows,
                found: found.get_mut(span.keys.clone()).unwrap_or_default(),
            });
        }
        read(store, self.verb, shares)?;
        for (span, flags) in spans.iter().zip(flags) {
            flags.copy_from_slice(&self.found[span.table][..span.found]);
        }
        Ok(())
    }
}
