//! Answers of the pushes that carry arrays: `applyGradients`, `assign`, `scatter`,
//! `importRows`, `remove`.

use std::sync::atomic::Ordering;

use hybridps_core::{Assign, GradientBatch, Import, Push, PushOutcome, Scatter, Store};
use hybridps_wire::{
    self as wire, Batch, Bytes, Dtype, PushHeader, Pushed, ASSIGN, IMPORT_ROWS, REMOVE, SCATTER,
};

use crate::dtype::widen;
use crate::failure::{bad_input, Failure};
use crate::memory::{as_numbers, as_numbers_mut, Words};
use crate::shared::{dtype_of, numbers, Shared};
use crate::texts;

/// Keys and values of one table, wherever they lie.
type View<'a> = (u32, &'a [u64], &'a [f32]);

/// Does something with the arrays of a push as float32, however they travelled.
pub(crate) fn widely<T>(
    shared: &Shared,
    verb: u16,
    frame: &[u64],
    then: impl FnOnce(&[Batch<'_>]) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let batches = wire::decode_batches(verb, frame, shared.keys_limit)?;
    let dtype = dtype_of(verb, frame)?;
    if dtype == Dtype::Float32 {
        return then(&batches);
    }
    let wide: Vec<_> = batches.iter().map(|batch| widened(dtype, batch)).collect();
    let wide = batches.iter().zip(&wide).map(|(batch, words)| {
        let len = 2 * batch.blob.len;
        Batch { blob: Bytes { words, len }, ..*batch }
    });
    then(&wide.collect::<Vec<_>>())
}

/// Whose push it is, and what its header says.
pub(crate) fn push_of(shared: &Shared, frame: &[u64]) -> Result<(Push, PushHeader), Failure> {
    let session = shared.session.load(Ordering::Relaxed);
    if session == 0 {
        return Err(bad_input("a push before hello; say hello on this connection first".into()));
    }
    let header = wire::decode_push(frame)?;
    if header.number == 0 {
        return Err(bad_input("push number is 0; number pushes 1, 2, 3 ... in a session".into()));
    }
    Ok((Push { session, number: header.number, step: header.step }, header))
}

/// Applies a push, or takes in a part of one; the reply.
pub(crate) fn push(
    shared: &Shared,
    question: u32,
    verb: u16,
    frame: &[u64],
) -> Result<Words, Failure> {
    widely(shared, verb, frame, |batches| push_wide(shared, question, verb, frame, batches))
}

/// The gradients of a batch as float32.
fn widened(dtype: Dtype, batch: &Batch<'_>) -> Vec<u64> {
    let narrow = as_numbers::<u16>(batch.blob.words);
    let count = batch.blob.len / 2;
    let mut words = vec![0; count.div_ceil(2)];
    widen(dtype, &narrow[..count], &mut as_numbers_mut(&mut words)[..count]);
    words
}

/// A push of float32.
fn push_wide(
    shared: &Shared,
    question: u32,
    verb: u16,
    frame: &[u64],
    batches: &[Batch<'_>],
) -> Result<Words, Failure> {
    let (push, header) = push_of(shared, frame)?;
    let what = (verb, if verb == SCATTER { wire::decode_operation(frame)? } else { 0 });
    if header.total == 0 {
        let mut views = Vec::with_capacity(batches.len());
        for batch in batches {
            views.push((batch.table, batch.keys, numbers::<f32>("values", batch)?));
        }
        return apply(&shared.store, question, what, push, &views);
    }
    for batch in batches {
        numbers::<f32>("values", batch)?;
    }
    // Not in the match: the lock is not to be held while the push is applied.
    let collected = shared.parts().add(what, header, batches)?;
    match collected {
        None => Ok(wire::empty_reply(question).into()),
        Some(whole) => {
            let columns = whole.tables.iter();
            let views: Vec<View<'_>> =
                columns.map(|c| (c.table, &c.keys[..], &c.values[..])).collect();
            apply(&shared.store, question, what, push, &views)
        }
    }
}

fn apply(
    store: &Store,
    question: u32,
    (verb, operation): Pushed,
    push: Push,
    views: &[View<'_>],
) -> Result<Words, Failure> {
    Ok(match (verb, views) {
        (ASSIGN, &[(table, keys, rows)]) => {
            store.assign(push, &Assign { table, keys, rows })?;
            wire::empty_reply(question)
        }
        (SCATTER, &[(table, keys, rows)]) => {
            let operation = texts::operation(operation)?;
            store.scatter(push, &Scatter { table, operation, keys, rows })?;
            wire::empty_reply(question)
        }
        (IMPORT_ROWS, &[(table, keys, rows)]) => {
            store.import_rows(push, &Import { table, keys, rows })?;
            wire::empty_reply(question)
        }
        (REMOVE, &[(table, keys, _)]) => {
            wire::removed_reply(question, store.remove(push, table, keys)?)
        }
        (ASSIGN | IMPORT_ROWS | REMOVE | SCATTER, _) => {
            return Err(bad_input("the parts of a push name two tables".into()))
        }
        _ => {
            let batch = |&(table, keys, gradients)| GradientBatch { table, keys, gradients };
            let batches: Vec<_> = views.iter().map(batch).collect();
            let outcome = store.apply_gradients(push, &batches)?;
            wire::duplicate_reply(question, outcome == PushOutcome::Duplicate)
        }
    }
    .into())
}
