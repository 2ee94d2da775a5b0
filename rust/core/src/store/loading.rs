//! The index comes on demand: a store is open before it is in memory. Whoever needs a bucket that
//! is not there loads it first; one thread loads the rest in the background.
//!
//! Buckets come in units: one bucket where the image says all of it, else the buckets that a footer
//! keeps together. A unit is loaded once, by one thread, without a lock but for its adoption; two
//! that need it wait for the one that began. Until all is loaded no segment goes, so what the image
//! says of the log stays true.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::engine::Engine;
use super::load::side_by_side;
use super::source::{Restored, Source};
use crate::error::{Error, ErrorKind, Result};
use crate::ledger::Kind;
use crate::types::{bucket, hash, TableId, BUCKETS};

/// Buckets that are loaded together where footers are read: one group of theirs.
const UNIT: u32 = 64;
/// Units that are worth a thread of their own.
const UNITS_PER_THREAD: usize = 4;
/// Pause before a unit that found no room is tried again in the background.
const RETRY: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Absent,
    /// Somebody loads it.
    Claimed,
    Loaded,
}

/// How far the index has come.
pub(super) struct Loading {
    is_done: AtomicBool,
    units: Mutex<Units>,
    changed: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Units {
    /// None when nothing is left.
    source: Option<Arc<Source>>,
    states: Vec<Unit>,
    left: usize,
    /// Keys of each table that the image counts in units that are not loaded.
    pending: HashMap<TableId, u64>,
    /// Of the DRAM that is set aside for the index, the part of one bucket.
    awaited_bytes: u64,
    /// Calls that are loading: the thread in the background lets them.
    calls: usize,
    is_stopping: bool,
}

/// A unit that the holder is to load. Given back if it was not.
struct Claim<'a> {
    loading: &'a Loading,
    unit: usize,
    source: Arc<Source>,
    is_loaded: bool,
}

impl Default for Loading {
    /// Nothing is to be loaded.
    fn default() -> Self {
        let (is_done, units) = (AtomicBool::new(true), Mutex::default());
        Self { is_done, units, changed: Condvar::new(), thread: Mutex::default() }
    }
}

impl Units {
    fn unit_buckets(&self) -> u32 {
        BUCKETS / self.states.len() as u32
    }
}

impl Loading {
    #[inline]
    pub(super) fn is_done(&self) -> bool {
        self.is_done.load(Ordering::Acquire)
    }

    fn begin(&self, source: Source, pending: HashMap<TableId, u64>, awaited_bytes: u64) {
        let unit = if source.younger().is_empty() { 1 } else { UNIT };
        let mut units = self.units.lock();
        units.states = vec![Unit::Absent; (BUCKETS / unit) as usize];
        units.left = units.states.len();
        (units.pending, units.awaited_bytes) = (pending, awaited_bytes);
        units.source = Some(Arc::new(source));
        self.is_done.store(false, Ordering::Release);
    }

    fn awaited_bytes(&self) -> u64 {
        self.units.lock().awaited_bytes
    }

    /// Units of these buckets that are not loaded.
    fn missing(&self, buckets: impl Iterator<Item = u32>) -> Vec<usize> {
        let mut wanted = vec![false; BUCKETS as usize];
        buckets.for_each(|bucket| wanted[bucket as usize] = true);
        let units = self.units.lock();
        if units.source.is_none() {
            return Vec::new();
        }
        let wanted = wanted.chunks(units.unit_buckets() as usize);
        let states = units.states.iter().zip(wanted).enumerate();
        let missing =
            states.filter(|(_, (&state, of))| state != Unit::Loaded && of.contains(&true));
        missing.map(|(n, _)| n).collect()
    }

    /// None when the unit is loaded; waits where somebody else loads it.
    fn claim(&self, unit: usize) -> Option<Claim<'_>> {
        let mut units = self.units.lock();
        loop {
            let source = units.source.clone()?;
            match units.states[unit] {
                Unit::Loaded => return None,
                Unit::Claimed => self.changed.wait(&mut units),
                Unit::Absent => {
                    units.states[unit] = Unit::Claimed;
                    return Some(Claim { loading: self, unit, source, is_loaded: false });
                }
            }
        }
    }

    /// The next unit for the thread in the background, when no call is loading; None when nothing
    /// is left to be claimed, or the store is closed.
    fn next(&self) -> Option<usize> {
        let mut units = self.units.lock();
        while units.calls > 0 && !units.is_stopping {
            self.changed.wait(&mut units);
        }
        if units.is_stopping {
            return None;
        }
        units.states.iter().position(|&unit| unit == Unit::Absent)
    }

    /// Keys of a table, as the image counts them, that are not in the index yet.
    pub(super) fn pending(&self, table: TableId) -> u64 {
        if self.is_done() {
            return 0;
        }
        self.units.lock().pending.get(&table).copied().unwrap_or(0)
    }

    fn count_call(&self, change: impl Fn(usize) -> usize) {
        let mut units = self.units.lock();
        units.calls = change(units.calls);
        self.changed.notify_all();
    }

    /// Ends the thread, after the unit that it is at.
    pub(super) fn stop(&self) {
        self.units.lock().is_stopping = true;
        self.changed.notify_all();
        if let Some(thread) = self.thread.lock().take() {
            // A panic has failed the store already, and said so.
            drop(thread.join());
        }
    }
}

impl Claim<'_> {
    fn buckets(&self) -> Range<u32> {
        let unit = self.loading.units.lock().unit_buckets();
        let first = self.unit as u32 * unit;
        first..first + unit
    }

    /// The unit is loaded, of which the image counted so many keys of each table. Returns how many
    /// of those that were pending are not any more.
    fn finish(mut self, imaged: HashMap<TableId, u64>) -> HashMap<TableId, u64> {
        self.is_loaded = true;
        let mut units = self.loading.units.lock();
        units.states[self.unit] = Unit::Loaded;
        units.left -= 1;
        let mut settled = imaged;
        for (table, keys) in &mut settled {
            let pending = units.pending.entry(*table).or_default();
            *keys = (*keys).min(*pending);
            *pending -= *keys;
        }
        if units.left == 0 {
            units.source = None;
            for (table, keys) in units.pending.drain() {
                *settled.entry(table).or_default() += keys;
            }
            self.loading.is_done.store(true, Ordering::Release);
        }
        self.loading.changed.notify_all();
        settled
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if !self.is_loaded {
            self.loading.units.lock().states[self.unit] = Unit::Absent;
            self.loading.changed.notify_all();
        }
    }
}

impl Engine {
    /// The index comes from `source` from now on.
    pub(super) fn begin_loading(&self, source: Source) {
        self.adopt_accounts(&source);
        let pending: HashMap<TableId, u64> =
            source.tables().iter().map(|known| (known.table, known.keys)).collect();
        let tables = self.catalog.read().by_id.clone();
        for (table, &keys) in pending.iter().filter_map(|(id, n)| Some((tables.get(id)?, n))) {
            self.charge_records(table, keys as usize);
        }
        let awaited_bytes = self.index_bytes_of(source.tables()) / u64::from(BUCKETS);
        let of_stripe = awaited_bytes * u64::from(self.tier.buckets_per_stripe);
        self.stripes.iter().for_each(|stripe| stripe.lock().await_index(of_stripe));
        self.loading.begin(source, pending, awaited_bytes);
    }

    /// Loads what is missing of the index for these keys. Hold no lock of a stripe.
    ///
    /// # Errors
    /// `Corruption` for a damaged footer where the image does not do, `Unavailable` for a failed
    /// read; the next call tries again.
    #[inline]
    pub(super) fn load_for(&self, keys: impl IntoIterator<Item = u64>) -> Result<()> {
        if self.loading.is_done() {
            return Ok(());
        }
        self.load_units(&self.loading.missing(buckets_of(keys)))
    }

    /// Whether the index of these keys is there.
    #[inline]
    pub(super) fn is_loaded_for(&self, keys: impl IntoIterator<Item = u64>) -> bool {
        self.loading.is_done() || self.loading.missing(buckets_of(keys)).is_empty()
    }

    /// As `load_for`, of buckets.
    pub(super) fn load_buckets(&self, buckets: Range<u32>) -> Result<()> {
        if self.loading.is_done() {
            return Ok(());
        }
        self.load_units(&self.loading.missing(buckets))
    }

    /// As `load_for`, of all that is missing.
    pub(super) fn load_rest(&self) -> Result<()> {
        self.load_buckets(0..BUCKETS)
    }

    fn load_units(&self, units: &[usize]) -> Result<()> {
        if units.is_empty() {
            return Ok(());
        }
        self.loading.count_call(|calls| calls + 1);
        let next = AtomicUsize::new(0);
        let outcome = side_by_side(units.len().div_ceil(UNITS_PER_THREAD), || {
            while let Some(&unit) = units.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.load_unit(unit)?;
            }
            Ok(())
        });
        self.loading.count_call(|calls| calls - 1);
        outcome
    }

    fn load_unit(&self, unit: usize) -> Result<()> {
        let Some(claim) = self.loading.claim(unit) else { return Ok(()) };
        let buckets = claim.buckets();
        let bytes = claim.source.bytes_of(buckets.len());
        let _memory = self.ledger.hold(Kind::Calls, bytes);
        let restored = self.restore(&claim.source, buckets.clone())?;
        let _watch = self.failure.watch();
        self.adopt(&restored, buckets)?;
        self.settle_records(&restored);
        let settled = claim.finish(restored.imaged);
        let tables = &self.catalog.read().by_id;
        for (table, keys) in settled {
            tables.get(&table).inspect(|table| self.release_records(table, keys as usize));
        }
        Ok(())
    }

    /// Adds the entries of a unit, which lies in one stripe, to the index: all of them or none.
    fn adopt(&self, restored: &Restored, buckets: Range<u32>) -> Result<()> {
        let tables = self.catalog.read().by_id.clone();
        let runs = restored.entries.iter();
        let runs: Vec<_> =
            runs.filter_map(|(at, run)| Some((at.0, tables.get(&at.1)?, run))).collect();
        let stripe = &self.stripes[(buckets.start / self.tier.buckets_per_stripe) as usize];
        let bytes = self.loading.awaited_bytes() * buckets.len() as u64;
        self.tier.arena.prepare();
        stripe.lock().index_arrives(bytes);
        for (n, (bucket, table, run)) in runs.iter().enumerate() {
            let adopted = stripe.lock().adopt_entries(&self.tier, table, *bucket, run);
            if adopted.is_err() {
                let mut state = stripe.lock();
                for (bucket, table, run) in &runs[..n] {
                    state.forget_entries(table.id, *bucket, run);
                }
                state.await_index(bytes);
                return adopted;
            }
        }
        for (_, table, run) in &runs {
            self.charge_records(table, run.len());
        }
        Ok(())
    }

    /// Begins to load what nobody asks for.
    pub(super) fn start_loading(self: &Arc<Self>) -> Result<()> {
        if self.loading.is_done() {
            return Ok(());
        }
        #[cfg(test)]
        if tests::IS_QUIET.get() {
            return Ok(());
        }
        let engine = self.clone();
        let builder = std::thread::Builder::new().name("hps-load".into());
        let thread = builder.spawn(move || engine.load_in_background()).map_err(|cause| {
            Error::unavailable(format!("cannot start the thread that loads the index: {cause}"))
        })?;
        *self.loading.thread.lock() = Some(thread);
        Ok(())
    }

    /// With pauses as long as the work, so that calls have the machine.
    fn load_in_background(&self) {
        while let Some(unit) = self.loading.next() {
            let start = Instant::now();
            match self.load_unit(unit) {
                // Rows would have to leave for a full log: perhaps not for long.
                Err(error) if error.kind == ErrorKind::StoreFull => {
                    self.failure.note_refusal(&error);
                    std::thread::sleep(RETRY);
                }
                // Whoever needs its keys is told the same.
                Err(error) => return self.fail(&error),
                Ok(()) => std::thread::sleep(start.elapsed()),
            }
        }
    }
}

fn buckets_of(keys: impl IntoIterator<Item = u64>) -> impl Iterator<Item = u32> {
    keys.into_iter().map(|key| bucket(hash(key)))
}

#[cfg(test)]
#[path = "tests/loading.rs"]
mod tests;
