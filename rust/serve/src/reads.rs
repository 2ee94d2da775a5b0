//! Answers of the verbs that read: rows are written where they are sent from, all at once or, for
//! a large reply, piece by piece (`stream`). Narrow ones, and the sums of bags, stop over in memory
//! of the call.

use std::borrow::Cow;
use std::ops::Range;

use hybridps_core::{InsertBatch, LookupBatch, PooledBatch, Store};
use hybridps_wire::{self as wire, BagBatch, Batch, Bytes, Dtype, LOOKUP, LOOKUP_POOLED};

use crate::dtype::narrow;
use crate::failure::{bad_input, Failure};
use crate::memory::{as_numbers, as_numbers_mut, Number, Words};
use crate::shared::numbers;

/// Per table the bytes of rows and of found flags.
pub(crate) type Sizes = Vec<(usize, usize)>;

/// A read, decoded.
pub(crate) struct Reading<'a> {
    verb: u16,
    dtype: Dtype,
    tables: Tables<'a>,
}

enum Tables<'a> {
    /// One row a key.
    Keys(Vec<Batch<'a>>),
    /// One row a bag.
    Bags(Vec<BagBatch<'a>>),
}

/// A run of one table's rows in the reply.
pub(crate) struct Span {
    pub(crate) table: usize,
    pub(crate) rows: Range<usize>,
    /// Those that the rows are made of: as many, or all of their bags.
    pub(crate) keys: Range<usize>,
    /// Of the rows.
    pub(crate) bytes: usize,
}

/// Some rows of one table in a reply: which, and where they and their found flags go.
pub(crate) struct Share<'a> {
    pub(crate) span: &'a Span,
    /// float32 or narrower, as the call wants them.
    pub(crate) rows: Array<'a>,
    /// Empty, or one a row.
    pub(crate) found: &'a mut [u8],
}

/// Room for numbers in a reply.
pub(crate) struct Array<'a> {
    words: &'a mut [u64],
    bytes: usize,
}

impl<'a> Array<'a> {
    /// Takes an array of `bytes` off the front of `words`; its padding is cleared.
    pub(crate) fn take(words: &mut &'a mut [u64], bytes: usize) -> Self {
        let (array, rest) = std::mem::take(words).split_at_mut(bytes.div_ceil(8));
        *words = rest;
        if let (Some(last), false) = (array.last_mut(), bytes % 8 == 0) {
            *last = 0;
        }
        Self { words: array, bytes }
    }

    pub(crate) fn numbers<T: Number>(self) -> &'a mut [T] {
        &mut as_numbers_mut(self.words)[..self.bytes / size_of::<T>()]
    }
}

impl<'a> Share<'a> {
    fn room(self) -> Room<'a> {
        (self.span, self.rows.numbers(), self.found)
    }
}

impl<'a> Reading<'a> {
    pub(crate) fn decode(verb: u16, frame: &'a [u64], keys_max: usize) -> Result<Self, Failure> {
        let tables = match verb {
            LOOKUP_POOLED => Tables::Bags(wire::decode_bags(frame, keys_max)?),
            _ => Tables::Keys(wire::decode_batches(verb, frame, keys_max)?),
        };
        Ok(Self { verb, dtype: wire::decode_dtype(verb, frame)?, tables })
    }

    /// Of each table its id and rows.
    pub(crate) fn rows(&self) -> Vec<(u32, usize)> {
        match &self.tables {
            Tables::Keys(batches) => batches.iter().map(|b| (b.table, b.keys.len())).collect(),
            Tables::Bags(batches) => batches.iter().map(|b| (b.table, b.bags.len / 4)).collect(),
        }
    }

    /// Of each table its id and keys.
    pub(crate) fn keys(&self) -> Vec<(u32, Vec<u64>)> {
        match &self.tables {
            Tables::Keys(batches) => batches.iter().map(|b| (b.table, b.keys.to_vec())).collect(),
            Tables::Bags(batches) => {
                let all = |b: &BagBatch<'_>| keys_of(b, 0..b.keys.len / b.key_bytes).into_owned();
                batches.iter().map(|b| (b.table, all(b))).collect()
            }
        }
    }

    /// How many keys these rows of a table are made of.
    pub(crate) fn keys_in(&self, table: usize, rows: Range<usize>) -> usize {
        match &self.tables {
            Tables::Keys(_) => rows.len(),
            Tables::Bags(batches) => {
                sizes_of(&batches[table])[rows].iter().map(|&size| size as usize).sum()
            }
        }
    }

    /// All rows of each table.
    fn whole(&self, sizes: &Sizes) -> Vec<Span> {
        let span = |(table, (_, count))| Span {
            table,
            rows: 0..count,
            keys: 0..self.keys_in(table, 0..count),
            bytes: sizes[table].0,
        };
        self.rows().into_iter().enumerate().map(span).collect()
    }

    pub(crate) fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Finds what is wrong with the arrays beside the keys.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        match &self.tables {
            Tables::Keys(batches) => batches.iter().try_for_each(check_counts),
            Tables::Bags(batches) => batches.iter().try_for_each(check_bags),
        }
    }

    /// Writes the rows. `waits`: false if the engine is not to wait, whose answer says whether it
    /// would have had to.
    pub(crate) fn fill(
        &self,
        store: &Store,
        mut shares: Vec<Share<'_>>,
        waits: bool,
    ) -> Result<bool, Failure> {
        if self.dtype == Dtype::Float32 {
            let rooms = shares.into_iter().map(Share::room).collect();
            return self.read(store, rooms, waits);
        }
        let size = |share: &Share<'_>| share.rows.bytes / self.dtype.bytes();
        let mut wide: Vec<Vec<f32>> = shares.iter().map(|share| vec![0.0; size(share)]).collect();
        let rooms = wide.iter_mut().zip(&mut shares);
        let rooms = rooms.map(|(wide, share)| (share.span, &mut wide[..], &mut *share.found));
        let is_done = self.read(store, rooms.collect(), waits)?;
        for (share, wide) in shares.into_iter().zip(&wide) {
            let dim = wide.len() / share.span.rows.len().max(1);
            narrow(self.dtype, wide, share.rows.numbers())
                .map_err(|at| beyond(wide[at], at % dim))?;
        }
        Ok(is_done)
    }

    /// Rows of 32 bits.
    fn read(&self, store: &Store, rooms: Vec<Room<'_>>, waits: bool) -> Result<bool, Failure> {
        let batches = match &self.tables {
            Tables::Bags(batches) => return pooled(store, batches, rooms, waits),
            Tables::Keys(batches) => batches,
        };
        if self.verb == LOOKUP {
            let mut parts = Vec::new();
            for (span, rows, found) in rooms {
                let Batch { table, keys, .. } = batches[span.table];
                parts.push(LookupBatch { table, keys: &keys[span.keys.clone()], rows, found });
            }
            return Ok(match waits {
                true => store.lookup(&mut parts).map(|()| true)?,
                false => store.try_lookup(&mut parts)?,
            });
        }
        let mut parts = Vec::new();
        for (span, rows, _) in rooms {
            let batch = &batches[span.table];
            let counts = numbers::<u32>("counts", batch)?;
            let counts = counts.get(span.keys.clone()).unwrap_or_default();
            let keys = &batch.keys[span.keys.clone()];
            parts.push(InsertBatch { table: batch.table, keys, counts, rows });
        }
        store.lookup_or_insert(&mut parts)?;
        Ok(true)
    }
}

/// Of a span, where its rows of 32 bits and its found flags go.
type Room<'a> = (&'a Span, &'a mut [f32], &'a mut [u8]);

fn pooled(
    store: &Store,
    batches: &[BagBatch<'_>],
    rooms: Vec<Room<'_>>,
    waits: bool,
) -> Result<bool, Failure> {
    let keys_of = |room: &Room<'_>| keys_of(&batches[room.0.table], room.0.keys.clone());
    let keys: Vec<_> = rooms.iter().map(keys_of).collect();
    let mut parts = Vec::with_capacity(rooms.len());
    for ((span, sums, _), keys) in rooms.into_iter().zip(&keys) {
        let batch = &batches[span.table];
        let weights = whole::<f32>(&batch.weights).get(span.keys.clone()).unwrap_or_default();
        let bags = &sizes_of(batch)[span.rows.clone()];
        parts.push(PooledBatch { table: batch.table, keys, bags, weights, sums });
    }
    Ok(match waits {
        true => store.lookup_pooled(&mut parts).map(|()| true)?,
        false => store.try_lookup_pooled(&mut parts)?,
    })
}

/// The whole numbers of 32 bits in an array.
fn whole<'a, T: Number>(array: &Bytes<'a>) -> &'a [T] {
    &as_numbers(array.words)[..array.len / 4]
}

fn sizes_of<'a>(batch: &BagBatch<'a>) -> &'a [u32] {
    whole(&batch.bags)
}

fn keys_of<'a>(batch: &BagBatch<'a>, range: Range<usize>) -> Cow<'a, [u64]> {
    if batch.key_bytes == 8 {
        return Cow::Borrowed(&batch.keys.words[range]);
    }
    let narrow = &whole::<u32>(&batch.keys)[range];
    Cow::Owned(narrow.iter().map(|&key| u64::from(key)).collect())
}

fn check_counts(batch: &Batch<'_>) -> Result<(), Failure> {
    let (have, want) = (numbers::<u32>("counts", batch)?.len(), batch.keys.len());
    if have == 0 || have == want {
        return Ok(());
    }
    Err(bad_input(format!("{have} counts for {want} keys; give none or one each")))
}

fn check_bags(batch: &BagBatch<'_>) -> Result<(), Failure> {
    let (keys, weights) = (batch.keys.len / batch.key_bytes, batch.weights.len / 4);
    let held: u64 = sizes_of(batch).iter().map(|&size| u64::from(size)).sum();
    if held != keys as u64 {
        return Err(bad_input(format!("bags of {held} keys in all, but {keys} keys")));
    }
    if weights != 0 && weights != keys {
        return Err(bad_input(format!("{weights} weights for {keys} keys; give none or one each")));
    }
    Ok(())
}

fn beyond(number: f32, column: usize) -> Failure {
    bad_input(format!(
        "a row holds {number} at column {column}, which float16 does not reach; connect with \
         wire_dtype=\"bfloat16\" or \"float32\""
    ))
}

/// The reply in one piece; None if the engine would have to wait for it, and `waits` is false.
pub(crate) fn whole_reply(
    store: &Store,
    question: u32,
    reading: &Reading<'_>,
    sizes: &Sizes,
    waits: bool,
) -> Result<Option<Words>, Failure> {
    let layout = wire::rows_reply(question, sizes);
    let mut reply = Words::new(layout.words);
    let (header, mut rest) = reply.split_at_mut(layout.header.len());
    header.copy_from_slice(&layout.header);
    let spans = reading.whole(sizes);
    let mut shares = Vec::with_capacity(sizes.len());
    for (span, &(rows, found)) in spans.iter().zip(sizes) {
        let (rows, found) = (Array::take(&mut rest, rows), Array::take(&mut rest, found).numbers());
        shares.push(Share { span, rows, found });
    }
    let is_done = reading.fill(store, shares, waits)?;
    Ok(is_done.then_some(reply))
}
