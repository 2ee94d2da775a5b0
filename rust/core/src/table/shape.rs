//! What all stripes share of one table: its shape, its live settings, its counters.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use parking_lot::{Mutex, RwLock};

use super::steps::Steps;
use crate::admission::Rule;
use crate::expiry::Expiry;
use crate::optimizer::Prepared;
use crate::spec::{Initializer, Optimizer, TableSpec};
use crate::types::{Sequence, TableId};

/// A table, as the rows see it.
pub(crate) struct Table {
    pub(crate) id: TableId,
    pub(crate) dim: usize,
    /// Numbers of a row: value and slots.
    pub(crate) floats: usize,
    pub(crate) optimizer: Optimizer,
    /// What its rule is given of the gradients.
    pub(crate) gradients: Prepared,
    initializer: Initializer,
    seed: u64,
    /// Live settings change under the lock; shape never does.
    spec: RwLock<TableSpec>,
    /// No key has to wait for its row.
    admits_all: AtomicBool,
    /// Bytes of DRAM that one stripe may use for this table.
    stripe_cap: AtomicU64,
    stripes: u64,
    /// Bytes of the records of all its rows, in any tier.
    pub(crate) record_bytes: AtomicU64,
    /// If its expiry counts them. Changed under the sequencer's lock.
    pub(crate) steps: Mutex<Option<Steps>>,
    pub(crate) counters: Counters,
}

macro_rules! counters {
    ($($name:ident),* $(,)?) => {
        /// Counts since open, one set a table. Relaxed: they are read for reports alone.
        #[derive(Default)]
        pub(crate) struct Counters { $(pub(crate) $name: AtomicU64),* }

        impl Counters {
            /// Names and values.
            pub(crate) fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.load(Relaxed))),*]
            }
        }
    };
}

counters!(
    unique_keys,
    probes,
    cache_hits,
    cache_misses,
    device_reads,
    background_reads,
    cold_reads,
    device_bytes_read,
    device_bytes_written,
    journal_bytes,
    bytes_updated,
    evictions,
    duplicate_pushes,
    keys_admitted,
    reads_unadmitted,
    gradients_unadmitted,
    rows_poisoned,
    corrupt_records,
    expired_rows,
);

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, n: usize) {
        if n > 0 {
            counter.fetch_add(n as u64, Relaxed);
        }
    }
}

impl Table {
    pub(crate) fn new(id: TableId, spec: TableSpec, stripes: usize) -> Self {
        let table = Self {
            id,
            dim: spec.dim as usize,
            floats: spec.row_floats(),
            optimizer: spec.optimizer,
            gradients: spec.gradients.of(&spec.optimizer),
            initializer: spec.initializer,
            seed: spec.seed,
            stripe_cap: AtomicU64::new(0),
            admits_all: AtomicBool::new(true),
            stripes: stripes as u64,
            record_bytes: AtomicU64::new(0),
            steps: Mutex::default(),
            spec: RwLock::new(spec),
            counters: Counters::default(),
        };
        table.refresh();
        table
    }

    pub(crate) fn spec(&self) -> TableSpec {
        self.spec.read().clone()
    }

    pub(crate) fn name(&self) -> String {
        self.spec.read().name.clone()
    }

    pub(crate) fn learning_rate(&self) -> f32 {
        self.spec.read().learning_rate
    }

    pub(crate) fn set_spec(&self, spec: TableSpec) {
        *self.spec.write() = spec;
        self.refresh();
    }

    /// Follows the live settings.
    fn refresh(&self) {
        let (dram, expiry, admits_all) = {
            let spec = self.spec.read();
            (spec.dram, spec.expiry, spec.admission.is_none())
        };
        let cap = dram.map_or(u64::MAX, |bytes| bytes / self.stripes);
        self.stripe_cap.store(cap, Relaxed);
        self.admits_all.store(admits_all, Relaxed);
        let mut steps = self.steps.lock();
        match (expiry, &mut *steps) {
            (Some(Expiry::AfterSteps { steps: span }), Some(known)) => known.set_span(span),
            (Some(Expiry::AfterSteps { steps: span }), none) => *none = Some(Steps::new(span)),
            _ => *steps = None,
        }
    }

    /// By which keys get a row; `None`: all do.
    pub(crate) fn admission(&self) -> Option<Rule> {
        if self.admits_all.load(Relaxed) {
            return None;
        }
        self.spec.read().admission.map(|admission| Rule::new(&admission, self.seed))
    }

    pub(crate) fn expiry(&self) -> Option<Expiry> {
        self.spec.read().expiry
    }

    /// A push of its rows has this place in the order.
    pub(crate) fn count_step(&self, step: Option<i64>, sequence: Sequence) {
        if let Some(steps) = &mut *self.steps.lock() {
            steps.count(step, sequence);
        }
    }

    pub(crate) fn stripe_cap(&self) -> u64 {
        self.stripe_cap.load(Relaxed)
    }

    /// Writes the row that `key` starts with.
    pub(crate) fn initial_row(&self, key: u64, row: &mut [f32]) {
        let (value, slots) = row.split_at_mut(self.dim);
        self.initial_value(key, value);
        self.optimizer.initial_slots(slots);
    }

    /// Writes the value of that row.
    pub(crate) fn initial_value(&self, key: u64, value: &mut [f32]) {
        crate::init::initial_row(&self.initializer, self.seed, key, value);
    }
}
