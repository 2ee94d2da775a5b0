//! Answers of `lookup` and `lookupOrInsert`: rows are written where they are sent from, all at
//! once or, for a large reply, piece by piece (`stream`).

use hybridps_core::{InsertBatch, LookupBatch, Store};
use hybridps_wire::{self as wire, Batch, LOOKUP};

use crate::failure::Failure;
use crate::memory::{as_numbers_mut, Number, Words};
use crate::shared::numbers;

/// Per table the bytes of rows and of found flags.
pub(crate) type Sizes = Vec<(usize, usize)>;

/// A run of one table's keys, and where their rows and found flags go.
pub(crate) struct Share<'a> {
    pub(crate) table: u32,
    pub(crate) keys: &'a [u64],
    pub(crate) counts: &'a [u32],
    pub(crate) rows: &'a mut [f32],
    pub(crate) found: &'a mut [u8],
}

fn lookup_batch(share: Share<'_>) -> LookupBatch<'_> {
    let Share { table, keys, rows, found, .. } = share;
    LookupBatch { table, keys, rows, found }
}

pub(crate) fn read(store: &Store, verb: u16, shares: Vec<Share<'_>>) -> Result<(), Failure> {
    if verb == LOOKUP {
        return Ok(store.lookup(&mut shares.into_iter().map(lookup_batch).collect::<Vec<_>>())?);
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
    let (reply, ()) = filled(question, batches, sizes, |shares| read(store, verb, shares))?;
    Ok(reply)
}

/// The reply of a lookup; `None` if the engine would have to wait for it.
pub(crate) fn try_lookup(
    store: &Store,
    question: u32,
    batches: &[Batch<'_>],
    sizes: &[(usize, usize)],
) -> Result<Option<Words>, Failure> {
    let (reply, is_done) = filled(question, batches, sizes, |shares| {
        Ok(store.try_lookup(&mut shares.into_iter().map(lookup_batch).collect::<Vec<_>>())?)
    })?;
    Ok(is_done.then_some(reply))
}

/// A reply with the rows that `fill` writes into it.
fn filled<T>(
    question: u32,
    batches: &[Batch<'_>],
    sizes: &[(usize, usize)],
    fill: impl FnOnce(Vec<Share<'_>>) -> Result<T, Failure>,
) -> Result<(Words, T), Failure> {
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
    let outcome = fill(shares)?;
    Ok((reply, outcome))
}

/// Takes an array of `bytes` off the front of `words`; its padding is cleared.
pub(crate) fn take<'a, T: Number>(words: &mut &'a mut [u64], bytes: usize) -> &'a mut [T] {
    let (array, rest) = std::mem::take(words).split_at_mut(bytes.div_ceil(8));
    *words = rest;
    if let (Some(last), false) = (array.last_mut(), bytes % 8 == 0) {
        *last = 0;
    }
    &mut as_numbers_mut(array)[..bytes / size_of::<T>()]
}
