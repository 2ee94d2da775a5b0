//! The hot verbs between frame and store: keys and gradients are read where they were received,
//! rows are written where they are sent from.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use hybridps_core::{
    Error, ErrorKind, GradientBatch, InsertBatch, LookupBatch, Push, PushOutcome, Store,
};
use hybridps_wire::{self as wire, Batch, ExceptionKind, Layout, Malformed, Refusal, VERBS};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::buffer::{as_numbers, as_numbers_mut, Buffer, Words};

const LOOKUP: u16 = 0;
const LOOKUP_OR_INSERT: u16 = 1;

/// Why a call fails: the reason of its exception, "<class>: <text>".
pub(crate) struct Failure(String);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let class = match error.kind {
            ErrorKind::BadInput => "BadInputError",
            ErrorKind::TableNotFound => "TableNotFoundError",
            ErrorKind::TableMismatch => "TableMismatchError",
            ErrorKind::StoreFull => "StoreFullError",
            ErrorKind::Corruption => "CorruptionError",
            ErrorKind::Config => "ConfigError",
            ErrorKind::Unavailable => "UnavailableError",
            _ => "HybridPSError",
        };
        Self(format!("{class}: {}", error.message))
    }
}

impl From<Malformed> for Failure {
    fn from(malformed: Malformed) -> Self {
        Self(format!("BadInputError: {malformed}"))
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self(format!("BadInputError: {refusal}"))
    }
}

fn bad_input(text: String) -> Failure {
    Failure::from(Error::bad_input(text))
}

/// What all hot calls of a connection share.
pub(crate) struct Shared {
    pub(crate) store: Arc<Store>,
    pub(crate) session: AtomicU64,
    pub(crate) frame_limit: usize,
    pub(crate) keys_limit: usize,
    /// Columns by table. Ids are never used again and a table's dim is fixed, so this never goes
    /// stale; a dropped table is refused by the store.
    dims: Mutex<HashMap<u32, usize>>,
}

/// Tables whose dim a connection remembers; beyond it, it starts over.
const DIMS_MAX: usize = 4096;

impl Shared {
    pub(crate) fn new(store: Arc<Store>, frame_limit: usize, keys_limit: usize) -> Self {
        let (session, dims) = (AtomicU64::new(0), Mutex::default());
        Self { store, session, frame_limit, keys_limit, dims }
    }

    fn dim(&self, table: u32) -> Result<usize, Failure> {
        let mut dims = self.dims.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
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

    /// The reply's shape: bytes of rows and of found flags per table.
    fn plan(&self, verb: u16, frame: &[u64]) -> Result<Vec<(usize, usize)>, Failure> {
        let batches = wire::decode_batches(verb, frame, self.keys_limit)?;
        if verb > LOOKUP_OR_INSERT {
            return Ok(Vec::new());
        }
        let want_found = verb == LOOKUP && wire::decode_want_found(frame)?;
        let mut sizes = Vec::with_capacity(batches.len());
        let mut total = 0;
        for batch in &batches {
            let rows = batch.keys.len() * self.dim(batch.table)? * 4;
            let found = if want_found { batch.keys.len() } else { 0 };
            total += rows + found + 64;
            if rows > wire::DATA_MAX || total > self.frame_limit {
                return Err(bad_input(format!(
                    "a reply of more than {} bytes was asked for; ask for fewer keys at a time",
                    self.frame_limit.min(wire::DATA_MAX)
                )));
            }
            sizes.push((rows, found));
        }
        Ok(sizes)
    }
}

/// A hot call, decoded as far as its cost.
#[pyclass(module = "hybridps._core", frozen)]
pub(crate) struct HotCall {
    shared: Arc<Shared>,
    #[pyo3(get)]
    question: u32,
    verb: u16,
    #[pyo3(get)]
    frame_bytes: usize,
    #[pyo3(get)]
    reply_bytes: usize,
    work: Mutex<Option<Work>>,
    /// Class of the error that `run` answered with.
    failure: OnceLock<String>,
}

struct Work {
    frame: Words,
    plan: Result<Vec<(usize, usize)>, Failure>,
}

impl HotCall {
    pub(crate) fn new(shared: &Arc<Shared>, question: u32, verb: u16, frame: Words) -> Self {
        let plan = shared.plan(verb, &frame);
        let reply = plan.as_ref().map_or(0, |plan| plan.iter().map(|(r, f)| r + f + 64).sum());
        Self {
            shared: Arc::clone(shared),
            question,
            verb,
            frame_bytes: frame.len() * 8,
            reply_bytes: reply,
            work: Mutex::new(Some(Work { frame, plan })),
            failure: OnceLock::new(),
        }
    }

    fn reply(&self, work: Work) -> Words {
        let done = work.plan.and_then(|plan| {
            // A panic in the engine must cost one call, not the worker that runs it.
            let call = std::panic::AssertUnwindSafe(|| self.execute(&work.frame, &plan));
            std::panic::catch_unwind(call).unwrap_or_else(|_| {
                Err(Failure("HybridPSError: internal error in the engine".to_owned()))
            })
        });
        done.unwrap_or_else(|Failure(reason)| {
            let class = reason.split(": ").next().unwrap_or_default();
            // Set once: `run` takes the work before it comes here.
            let _ = self.failure.set(class.to_owned());
            wire::exception_return(self.question, ExceptionKind::Failed, &reason).into()
        })
    }

    fn execute(&self, frame: &[u64], plan: &[(usize, usize)]) -> Result<Words, Failure> {
        let batches = wire::decode_batches(self.verb, frame, self.shared.keys_limit)?;
        match self.verb {
            LOOKUP => self.lookup(&batches, plan),
            LOOKUP_OR_INSERT => self.lookup_or_insert(&batches, plan),
            _ => self.apply_gradients(&batches, frame),
        }
    }

    fn lookup(&self, batches: &[Batch<'_>], plan: &[(usize, usize)]) -> Result<Words, Failure> {
        let (mut reply, layout) = prepare(self.question, plan);
        let mut calls = Vec::with_capacity(batches.len());
        for (batch, (rows, found)) in batches.iter().zip(regions(&mut reply, &layout)) {
            calls.push(LookupBatch { table: batch.table, keys: batch.keys, rows, found });
        }
        self.shared.store.lookup(&mut calls)?;
        Ok(reply)
    }

    fn lookup_or_insert(
        &self,
        batches: &[Batch<'_>],
        plan: &[(usize, usize)],
    ) -> Result<Words, Failure> {
        let (mut reply, layout) = prepare(self.question, plan);
        let mut calls = Vec::with_capacity(batches.len());
        for (batch, (rows, _)) in batches.iter().zip(regions(&mut reply, &layout)) {
            let counts = numbers::<u32>("counts", batch)?;
            if !counts.is_empty() && counts.len() != batch.keys.len() {
                let (have, want) = (counts.len(), batch.keys.len());
                return Err(bad_input(format!(
                    "{have} counts for {want} keys; give none or one each"
                )));
            }
            calls.push(InsertBatch { table: batch.table, keys: batch.keys, counts, rows });
        }
        self.shared.store.lookup_or_insert(&mut calls)?;
        Ok(reply)
    }

    fn apply_gradients(&self, batches: &[Batch<'_>], frame: &[u64]) -> Result<Words, Failure> {
        let session = self.shared.session.load(Ordering::Relaxed);
        if session == 0 {
            return Err(bad_input(
                "a push before hello; say hello on this connection first".into(),
            ));
        }
        let header = wire::decode_push(frame)?;
        let mut calls = Vec::with_capacity(batches.len());
        for batch in batches {
            let gradients = numbers::<f32>("gradients", batch)?;
            calls.push(GradientBatch { table: batch.table, keys: batch.keys, gradients });
        }
        let push = Push { session, number: header.number, step: header.step };
        let outcome = self.shared.store.apply_gradients(push, &calls)?;
        let duplicate = outcome == PushOutcome::Duplicate;
        Ok(wire::duplicate_reply(self.question, duplicate).into())
    }
}

#[pymethods]
impl HotCall {
    #[getter]
    fn verb(&self) -> &'static str {
        VERBS[usize::from(self.verb)]
    }

    #[getter]
    fn code(&self) -> &str {
        self.failure.get().map_or("ok", String::as_str)
    }

    #[getter]
    fn cost(&self) -> usize {
        self.frame_bytes + self.reply_bytes
    }

    fn run(&self, py: Python<'_>) -> PyResult<Buffer> {
        let work = self.work.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let work = work.ok_or_else(|| PyRuntimeError::new_err("a HotCall runs once"))?;
        Ok(Buffer::whole(py.detach(|| self.reply(work))))
    }
}

/// The numbers of a batch's blob.
fn numbers<'a, T>(what: &str, batch: &Batch<'a>) -> Result<&'a [T], Failure>
where
    T: crate::buffer::Number,
{
    let len = batch.blob.len;
    if len % 4 != 0 {
        return Err(bad_input(format!("{what} of {len} bytes are not whole 32-bit numbers")));
    }
    Ok(&as_numbers(batch.blob.words)[..len / 4])
}

/// A reply with its header written, its padding cleared, and its rows still to come.
fn prepare(question: u32, plan: &[(usize, usize)]) -> (Words, Layout) {
    let layout = wire::rows_reply(question, plan);
    let mut reply = Words::new(layout.words);
    reply[..layout.header.len()].copy_from_slice(&layout.header);
    for blob in layout.blobs.iter().filter(|blob| blob.bytes % 8 != 0) {
        reply[blob.start + blob.bytes / 8] = 0;
    }
    (reply, layout)
}

/// Per table the rows and found flags of a reply, to be written.
fn regions<'a>(
    reply: &'a mut Words,
    layout: &'a Layout,
) -> impl Iterator<Item = (&'a mut [f32], &'a mut [u8])> {
    let mut rest = &mut reply[layout.header.len()..];
    layout.blobs.chunks_exact(2).map(move |pair| {
        let (rows, found) = (pair[0].bytes, pair[1].bytes);
        let (rows_words, after) = std::mem::take(&mut rest).split_at_mut(rows.div_ceil(8));
        let (found_words, after) = after.split_at_mut(found.div_ceil(8));
        rest = after;
        (&mut as_numbers_mut(rows_words)[..rows / 4], &mut as_numbers_mut(found_words)[..found])
    })
}
