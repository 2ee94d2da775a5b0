//! What all hot calls of a connection share, and what of a call is known before it runs.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hybridps_core::{Store, POOL_BYTES};
use hybridps_wire::{
    self as wire, Batch, Dtype, Parts, StreamedReply, APPLY_GRADIENTS, LOOKUP, LOOKUP_OR_INSERT,
    LOOKUP_POOLED, PREFETCH,
};

use crate::failure::{bad_input, Failure};
use crate::memory::{as_numbers, Number};
use crate::pieces::{pieces, PIECE_BYTES};
use crate::reads::{Reading, Sizes, Span};

/// What is known of a call before it runs.
#[derive(Default)]
pub(crate) struct Plan {
    /// Of a read, the reply's arrays.
    pub(crate) sizes: Sizes,
    /// Of a large one, where it is cut.
    pub(crate) pieces: Vec<Vec<Span>>,
    /// The order of its keys matters, also where it is answered in pieces.
    pub(crate) is_in_order: bool,
    /// Bytes that it takes besides: for rows that are summed, or widened.
    beside: usize,
    /// Bytes that a push in parts announces.
    pub(crate) announced: u64,
    /// Number and step of a push.
    pub(crate) push: (u64, Option<i64>),
}

impl Plan {
    /// About the bytes of the reply; 0 if it is small and of fixed size.
    pub(crate) fn reply_bytes(&self) -> usize {
        self.sizes.iter().map(|(rows, found)| rows + found + TABLE_BYTES).sum()
    }

    /// About the bytes that the call takes beside its frame.
    pub(crate) fn cost_bytes(&self) -> usize {
        self.reply_bytes() + self.beside
    }
}

/// Bytes of a reply's header for each table.
const TABLE_BYTES: usize = 64;
/// Tables whose dim a connection remembers; beyond it, it starts over.
const DIMS_MAX: usize = 4096;

/// State of a connection that its calls use, wherever they run.
pub(crate) struct Shared {
    pub(crate) store: Arc<Store>,
    /// Names the pushes of this connection; 0: hello was not said.
    pub(crate) session: AtomicU64,
    pub(crate) keys_limit: usize,
    frame_limit: usize,
    parts: Mutex<Parts>,
    /// Columns by table. Ids are never used again and a table's dim is fixed, so this never goes
    /// stale; a dropped table is refused by the store.
    dims: Mutex<HashMap<u32, usize>>,
}

impl Shared {
    pub(crate) fn new(store: Arc<Store>, frame_limit: usize, keys_limit: usize) -> Self {
        let (session, dims) = (AtomicU64::new(0), Mutex::default());
        Self { store, session, keys_limit, frame_limit, parts: Mutex::default(), dims }
    }

    /// The push that this connection collects.
    pub(crate) fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Columns of a table.
    pub(crate) fn dim(&self, table: u32) -> Result<usize, Failure> {
        let mut dims = self.dims.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(dim) = dims.get(&table) {
            return Ok(*dim);
        }
        let dim = self.store.spec(table)?.dim as usize;
        if dims.len() >= DIMS_MAX {
            dims.clear();
        }
        dims.insert(table, dim);
        Ok(dim)
    }

    /// What the call will take. What is wrong with a read's arrays is found here, before a byte is
    /// sent.
    pub(crate) fn plan(&self, verb: u16, frame: &[u64]) -> Result<Plan, Failure> {
        if wire::is_read(verb) {
            return self.plan_read(verb, frame);
        }
        let batches = wire::decode_batches(verb, frame, self.keys_limit)?;
        if verb == PREFETCH {
            // Nobody hears what goes wrong later.
            batches.iter().try_for_each(|batch| self.dim(batch.table).map(drop))?;
            return Ok(Plan::default());
        }
        let header = wire::decode_push(frame)?;
        let announced = if wire::is_announcement(&header, &batches) { header.total } else { 0 };
        let beside = match dtype_of(verb, frame)? {
            Dtype::Float32 => 0,
            _ => batches.iter().map(|batch| 2 * batch.blob.len).sum(),
        };
        let push = (header.number, header.step);
        Ok(Plan { announced, beside, push, ..Plan::default() })
    }

    fn plan_read(&self, verb: u16, frame: &[u64]) -> Result<Plan, Failure> {
        let reading = Reading::decode(verb, frame, self.keys_limit)?;
        reading.check()?;
        let want_found = verb == LOOKUP && wire::decode_want_found(frame)?;
        let mut plan = Plan::default();
        let (mut costs, mut total) = (Vec::new(), StreamedReply::FIXED_BYTES);
        for (n, (table, count)) in reading.rows().into_iter().enumerate() {
            let (dim, bytes) = (self.dim(table)?, reading.dtype().bytes());
            let rows = count * dim * bytes;
            // Which keys are counted last is decided by the order in which they came.
            plan.is_in_order |= verb == LOOKUP_OR_INSERT && !self.store.admits_all(table)?;
            let found = if want_found { count } else { 0 };
            total += rows + found + TABLE_BYTES;
            if rows > wire::DATA_MAX || total > self.frame_limit {
                return Err(bad_input(format!(
                    "a reply of more than {} bytes was asked for; ask for fewer keys at a time",
                    self.frame_limit.min(wire::DATA_MAX)
                )));
            }
            plan.sizes.push((rows, found));
            costs.push(reading.keys_in(n, 0..count).saturating_mul(dim * bytes));
        }
        plan.pieces = pieces(&reading, &plan.sizes, &costs);
        if verb == LOOKUP_POOLED {
            // A few threads may sum at the same time.
            plan.beside += plan.pieces.len().clamp(1, 4) * POOL_BYTES;
        }
        if reading.dtype() != Dtype::Float32 {
            plan.beside += 2 * plan.reply_bytes().min(4 * PIECE_BYTES);
        }
        Ok(plan)
    }
}

/// How the gradients of a push travel.
pub(crate) fn dtype_of(verb: u16, frame: &[u64]) -> Result<Dtype, Failure> {
    match verb {
        APPLY_GRADIENTS => Ok(wire::decode_dtype(verb, frame)?),
        _ => Ok(Dtype::Float32),
    }
}

/// The numbers of a batch's blob.
pub(crate) fn numbers<'a, T: Number>(what: &str, batch: &Batch<'a>) -> Result<&'a [T], Failure> {
    let len = batch.blob.len;
    if len % 4 != 0 {
        return Err(bad_input(format!("{what} of {len} bytes are not whole 32-bit numbers")));
    }
    Ok(&as_numbers(batch.blob.words)[..len / 4])
}
