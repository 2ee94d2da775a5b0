//! Pushes of several workers as one: each is held until all are there, then their gradients are
//! summed in the order of the ranks and applied once. Who is there, and in which order, is decided
//! by whoever owns the connections.

use hybridps_core::{
    is_finite, Error, ErrorKind, GradientBatch, Push, PushOutcome, Store, WORKERS_SESSION,
};
use hybridps_wire::{self as wire, Batch, Collected, Columns};

use crate::call::Call;
use crate::failure::{bad_input, guarded, Failure, Misuse};
use crate::memory::Words;
use crate::pushes::{push_of, widely};
use crate::shared::{numbers, Shared};

/// A push that waits for others: its frame, or what came of its parts.
pub(crate) enum Held {
    Frame(Words),
    Parts(Collected),
}

/// Takes a push in. None: it was a part, and others are to follow.
pub(crate) fn hold(shared: &Shared, verb: u16, frame: Words) -> Result<Option<Held>, Failure> {
    let collected = widely(shared, verb, &frame, |batches| {
        let header = push_of(shared, &frame)?.1;
        batches.iter().try_for_each(|batch| check(shared, batch))?;
        match header.total {
            0 => Ok(None),
            _ => Ok(Some(shared.parts().add((verb, 0), header, batches)?)),
        }
    })?;
    Ok(match collected {
        None => Some(Held::Frame(frame)),
        Some(whole) => whole.map(Held::Parts),
    })
}

/// What is wrong with one worker's gradients is told to it, before the others wait for it.
fn check(shared: &Shared, batch: &Batch<'_>) -> Result<(), Failure> {
    let (dim, values) = (shared.dim(batch.table)?, numbers::<f32>("values", batch)?);
    if values.len() != batch.keys.len() * dim {
        let (keys, values) = (batch.keys.len(), values.len());
        return Err(bad_input(format!("{values} float32 numbers for {keys} keys of dim {dim}")));
    }
    if !is_finite(values) {
        return Err(bad_input("a gradient is not finite; look for what made it so".into()));
    }
    Ok(())
}

impl Held {
    /// Ids of the tables that it names.
    pub(crate) fn tables(&self, call: &Call) -> Vec<u32> {
        match self {
            Self::Frame(frame) => {
                let limit = call.shared().keys_limit;
                let batches = wire::decode_batches(call.ordinal(), frame, limit);
                batches.map_or_else(|_| Vec::new(), |all| all.iter().map(|of| of.table).collect())
            }
            Self::Parts(whole) => whole.tables.iter().map(|columns| columns.table).collect(),
        }
    }

    /// Puts its gradients behind those that are there, table by table.
    fn add_to(self, call: &Call, sums: &mut Vec<Columns>) -> Result<(), Failure> {
        match self {
            Self::Frame(frame) => widely(call.shared(), call.ordinal(), &frame, |batches| {
                batches.iter().try_for_each(|batch| {
                    let values = numbers::<f32>("values", batch)?;
                    append(sums, batch.table, batch.keys, values)
                })
            }),
            Self::Parts(whole) => whole
                .tables
                .iter()
                .try_for_each(|from| append(sums, from.table, &from.keys, &from.values)),
        }
    }
}

fn append(all: &mut Vec<Columns>, table: u32, keys: &[u64], values: &[f32]) -> Result<(), Failure> {
    let at = all.iter().position(|columns| columns.table == table).unwrap_or(all.len());
    if at == all.len() {
        all.push(Columns { table, keys: Vec::new(), values: Vec::new() });
    }
    let columns = &mut all[at];
    let room = columns.keys.try_reserve(keys.len());
    room.and(columns.values.try_reserve(values.len())).map_err(|_| {
        Error::new(ErrorKind::StoreFull, "no memory for the gradients of a round; split the batch")
    })?;
    columns.keys.extend_from_slice(keys);
    columns.values.extend_from_slice(values);
    Ok(())
}

/// Applies the held pushes of a round, given in the order of their ranks, as one; their replies.
///
/// # Errors
/// A call is not held.
pub fn apply_together(calls: &[&Call], round: u64) -> Result<Vec<Words>, Misuse> {
    let mut held = Vec::with_capacity(calls.len());
    for call in calls {
        let misuse = || Misuse("a call of the round is not held: hold() it, once".into());
        held.push(call.take_held().ok_or_else(misuse)?);
    }
    let outcome = guarded(|| sum_and_apply(calls, held, round));
    let reply = |call: &&Call| match &outcome {
        Ok(outcome) => {
            let is_duplicate = *outcome == PushOutcome::Duplicate;
            wire::duplicate_reply(call.question(), is_duplicate).into()
        }
        Err(failure) => call.exception(failure),
    };
    Ok(calls.iter().map(reply).collect())
}

fn sum_and_apply(calls: &[&Call], held: Vec<Held>, round: u64) -> Result<PushOutcome, Failure> {
    let mut all = Vec::new();
    for (call, held) in calls.iter().zip(held) {
        held.add_to(call, &mut all)?;
    }
    let Some(first) = calls.first() else { return Ok(PushOutcome::Duplicate) };
    let store: &Store = &first.shared().store;
    let push = Push { session: WORKERS_SESSION, number: round, step: first.step() };
    let batches: Vec<_> = all
        .iter()
        .map(|of| GradientBatch { table: of.table, keys: &of.keys, gradients: &of.values })
        .collect();
    Ok(store.apply_gradients(push, &batches)?)
}
