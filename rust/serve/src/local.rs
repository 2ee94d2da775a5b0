//! The verbs that carry arrays, asked by a caller in this process: the arrays are lent for the call
//! and go to the engine as they are.

use hybridps_core::{
    Assign, Error, GradientBatch, Import, InsertBatch, Inspected, LookupBatch, PooledBatch, Push,
    PushOutcome, Result, Scatter, Statistics, Store, TableId, Unique,
};

use crate::texts;

/// The arrays of one table, told apart by what they hold. One that was not given is empty.
pub struct Lent<'a> {
    /// Whose they are.
    pub table: TableId,
    /// uint64[n].
    pub keys: &'a [u64],
    /// uint32: a count of each key; of a pooled read, how many keys each bag has.
    pub numbers: &'a [u32],
    /// float32: rows or gradients, n * dim; of a pooled read, a weight of each key.
    pub values: &'a [f32],
}

/// Room for the rows of each table, in the order of the tables; float32, written whole.
pub type Rooms<'a> = Vec<&'a mut [f32]>;

/// Rows, and a flag of each key where they are wanted; absent keys give zeros.
///
/// # Errors
/// Those of the engine.
pub fn lookup(
    store: &Store,
    lent: &[Lent<'_>],
    rooms: Rooms<'_>,
    want_found: bool,
) -> Result<Vec<Option<Vec<u8>>>> {
    let flags = |of: &Lent<'_>| want_found.then(|| vec![0; of.keys.len()]);
    let mut flags: Vec<_> = lent.iter().map(flags).collect();
    let mut calls = Vec::with_capacity(lent.len());
    for ((of, rows), found) in lent.iter().zip(rooms).zip(&mut flags) {
        let found = found.as_deref_mut().unwrap_or_default();
        calls.push(LookupBatch { table: of.table, keys: of.keys, rows, found });
    }
    store.lookup_merged(&mut calls)?;
    Ok(flags)
}

/// Rows for training; absent keys are created.
///
/// # Errors
/// Those of the engine.
pub fn lookup_or_insert(store: &Store, lent: &[Lent<'_>], rooms: Rooms<'_>) -> Result<()> {
    let batch = |(&Lent { table, keys, numbers: counts, .. }, rows)| InsertBatch {
        table,
        keys,
        counts,
        rows,
    };
    store.lookup_or_insert_merged(&mut lent.iter().zip(rooms).map(batch).collect::<Vec<_>>())
}

/// The sum of each bag's rows.
///
/// # Errors
/// Those of the engine.
pub fn lookup_pooled(store: &Store, lent: &[Lent<'_>], rooms: Rooms<'_>) -> Result<()> {
    let batch = |(&Lent { table, keys, numbers: bags, values: weights }, sums)| PooledBatch {
        table,
        keys,
        bags,
        weights,
        sums,
    };
    store.lookup_pooled(&mut lent.iter().zip(rooms).map(batch).collect::<Vec<_>>())
}

/// Runs the optimizer; true if the push had been applied before.
///
/// # Errors
/// Those of the engine.
pub fn apply_gradients(store: &Store, push: Push, lent: &[Lent<'_>]) -> Result<bool> {
    let batch =
        |&Lent { table, keys, values: gradients, .. }| GradientBatch { table, keys, gradients };
    let outcome = store.apply_gradients(push, &lent.iter().map(batch).collect::<Vec<_>>())?;
    Ok(outcome == PushOutcome::Duplicate)
}

/// Sets values of one table.
///
/// # Errors
/// Those of the engine; `BadInput`: the arrays are not of one table.
pub fn assign(store: &Store, push: Push, lent: &[Lent<'_>]) -> Result<()> {
    let &Lent { table, keys, values: rows, .. } = only(lent)?;
    store.assign(push, &Assign { table, keys, rows }).map(drop)
}

/// Changes values of one table; the operation by its number in the schema.
///
/// # Errors
/// Those of the engine; `BadInput`: the arrays are not of one table, or no such operation.
pub fn scatter(store: &Store, push: Push, operation: u16, lent: &[Lent<'_>]) -> Result<()> {
    let &Lent { table, keys, values: rows, .. } = only(lent)?;
    let operation = texts::operation(operation)?;
    store.scatter(push, &Scatter { table, operation, keys, rows }).map(drop)
}

/// Sets whole rows of one table.
///
/// # Errors
/// Those of the engine; `BadInput`: the arrays are not of one table.
pub fn import_rows(store: &Store, push: Push, lent: &[Lent<'_>]) -> Result<()> {
    let &Lent { table, keys, values: rows, .. } = only(lent)?;
    store.import_rows(push, &Import { table, keys, rows }).map(drop)
}

/// A page of whole rows, as `import_rows` takes them: keys, rows, and where the next one begins.
///
/// # Errors
/// Those of the engine.
pub fn export_rows(
    store: &Store,
    table: TableId,
    (start, end): (u64, u64),
    with_slots: bool,
    bytes: u64,
) -> Result<(Vec<u64>, Vec<f32>, u64)> {
    let page = store.export_rows(table, start..end, with_slots, bytes)?;
    let width = page.rows.len() / page.keys.len().max(1);
    let mut rows = Vec::with_capacity(page.rows.len() + 2 * page.keys.len());
    for (n, numbers) in page.rows.chunks_exact(width.max(1)).enumerate() {
        rows.extend_from_slice(numbers);
        rows.extend([page.frequency[n], page.last_seen[n]].map(f32::from_bits));
    }
    Ok((page.keys, rows, page.next))
}

/// Removes rows of one table; how many there were.
///
/// # Errors
/// Those of the engine; `BadInput`: the arrays are not of one table.
pub fn remove(store: &Store, push: Push, lent: &[Lent<'_>]) -> Result<u64> {
    let of = only(lent)?;
    store.remove(push, of.table, of.keys)
}

/// Looks ahead for keys.
///
/// # Errors
/// Those of the engine.
pub fn prefetch(store: &Store, lent: &[Lent<'_>]) -> Result<()> {
    lent.iter().try_for_each(|of| store.look_ahead(of.table, &Unique::new(of.keys, 1).keys))
}

/// Rows of one table as they are stored.
///
/// # Errors
/// Those of the engine; `BadInput`: the arrays are not of one table.
pub fn inspect(store: &Store, lent: &[Lent<'_>]) -> Result<Vec<Inspected>> {
    let of = only(lent)?;
    store.inspect(of.table, of.keys)
}

/// What is known of rows of one table beside their numbers.
///
/// # Errors
/// Those of the engine; `BadInput`: the arrays are not of one table.
pub fn statistics(store: &Store, lent: &[Lent<'_>]) -> Result<Statistics> {
    let of = only(lent)?;
    store.statistics(of.table, of.keys)
}

/// Keys of a bucket and those behind it, and the bucket that the next call begins with.
///
/// # Errors
/// Those of the engine.
pub fn keys(store: &Store, table: TableId, bucket: u32) -> Result<(Vec<u64>, u32)> {
    let mut keys = Vec::new();
    let next = store.keys(table, bucket, &mut keys)?;
    Ok((keys, next))
}

/// The arrays of a verb of one table.
fn only<'a, 'b>(lent: &'a [Lent<'b>]) -> Result<&'a Lent<'b>> {
    match lent {
        [of] => Ok(of),
        _ => Err(Error::bad_input(format!("arrays of {} tables; give those of one", lent.len()))),
    }
}
