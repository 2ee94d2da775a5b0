//! PROVISIONAL: every verb over plain maps in memory, so that the rooms above can be built and
//! tried. The engine replaces this file; the public names and meanings stay.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Mutex;

use crate::error::{Error, Result};
use crate::init::initial_row;
use crate::optimizer::is_finite;
use crate::spec::{TableChange, TableSpec};
use crate::types::{bucket, hash, TableId, BUCKETS};

pub use crate::types::{Durability, Push};

/// How to open a store.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Data directory, created if absent.
    pub path: PathBuf,
    /// Bound on rows, index, statistics and buffers; at least 8 MiB.
    pub dram_bytes: u64,
    /// Bound on all files of the directory; at least 64 MiB.
    pub nvme_bytes: u64,
    /// What an acknowledgement promises.
    pub durability: Durability,
    /// Engine threads.
    pub threads: usize,
    /// This server's shard and how many there are; stored in the directory.
    pub shard: (u32, u32),
}

/// A table as the store knows it.
#[derive(Debug, Clone)]
pub struct TableInfo {
    /// Names the table in every verb.
    pub id: TableId,
    /// The stored spec, live settings included.
    pub spec: TableSpec,
    /// Live settings in which an asked spec differs.
    pub warnings: Vec<String>,
}

/// One table's part of a `lookup`.
pub struct LookupBatch<'a> {
    /// Table.
    pub table: TableId,
    /// Keys; repeats are allowed and cost a probe each.
    pub keys: &'a [u64],
    /// float32[n, dim], written whole: absent keys give zeros.
    pub rows: &'a mut [f32],
    /// Empty, or n bytes: 1 where the key has a row.
    pub found: &'a mut [u8],
}

/// One table's part of a `lookup_or_insert`.
pub struct InsertBatch<'a> {
    /// Table.
    pub table: TableId,
    /// Keys; repeats are allowed.
    pub keys: &'a [u64],
    /// Empty (one each), or n counts.
    pub counts: &'a [u32],
    /// float32[n, dim], written whole.
    pub rows: &'a mut [f32],
}

/// One table's part of an `apply_gradients`.
pub struct GradientBatch<'a> {
    /// Table.
    pub table: TableId,
    /// Keys; repeats are summed in order before the optimizer runs.
    pub keys: &'a [u64],
    /// float32[n, dim].
    pub gradients: &'a [f32],
}

/// The rows of an `assign`.
pub struct Assign<'a> {
    /// Table.
    pub table: TableId,
    /// Keys; of repeats the last wins.
    pub keys: &'a [u64],
    /// float32[n, dim].
    pub rows: &'a [f32],
}

/// What became of a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushOutcome {
    /// Applied now.
    Applied,
    /// Had been applied before; nothing changed.
    Duplicate,
}

struct Table {
    spec: TableSpec,
    rows: HashMap<u64, Vec<f32>>,
}

#[derive(Default)]
struct State {
    tables: HashMap<TableId, Table>,
    last_id: TableId,
    sessions: HashMap<u64, u64>,
}

/// A set of tables in one data directory. All verbs take `&self` and may be called from any thread.
pub struct Store {
    config: StoreConfig,
    state: Mutex<State>,
}

impl Store {
    /// Opens the directory, creating it if absent.
    ///
    /// # Errors
    /// `Config` for a setting out of range or a directory that cannot be used; `Corruption` for damage.
    pub fn open(config: StoreConfig) -> Result<Self> {
        Ok(Self { config, state: Mutex::default() })
    }

    /// The configuration it was opened with.
    pub fn config(&self) -> &StoreConfig {
        &self.config
    }

    /// Registers a session; a new session of the same `client_id` takes over from the old one, whose
    /// later calls fail. Returns the session's last applied push number, 0 if none.
    ///
    /// # Errors
    /// `Unavailable` when the session was taken over.
    pub fn attach(&self, session: u64, client_id: &str) -> Result<u64> {
        let _ = client_id;
        Ok(*self.lock().sessions.entry(session).or_insert(0))
    }

    /// Creates the table, or opens an equal one.
    ///
    /// # Errors
    /// `BadInput`, `TableMismatch`, `StoreFull`.
    pub fn create_table(&self, spec: &TableSpec) -> Result<TableInfo> {
        spec.check()?;
        let mut state = self.lock();
        if let Some((&id, table)) = state.tables.iter().find(|(_, t)| t.spec.name == spec.name) {
            let warnings = table.spec.open_as(spec)?;
            return Ok(TableInfo { id, spec: table.spec.clone(), warnings });
        }
        state.last_id += 1;
        let id = state.last_id;
        state.tables.insert(id, Table { spec: spec.clone(), rows: HashMap::new() });
        Ok(TableInfo { id, spec: spec.clone(), warnings: Vec::new() })
    }

    /// Finds a table by name.
    ///
    /// # Errors
    /// `TableNotFound`.
    pub fn table(&self, name: &str) -> Result<TableInfo> {
        let state = self.lock();
        let found = state.tables.iter().find(|(_, t)| t.spec.name == name);
        let (&id, table) = found.ok_or_else(|| {
            Error::table_not_found(format!("table {name:?} does not exist; create it first"))
        })?;
        Ok(TableInfo { id, spec: table.spec.clone(), warnings: Vec::new() })
    }

    /// Names of all tables, sorted.
    pub fn tables(&self) -> Vec<String> {
        let mut names: Vec<_> =
            self.lock().tables.values().map(|table| table.spec.name.clone()).collect();
        names.sort();
        names
    }

    /// Drops a table and all its rows.
    ///
    /// # Errors
    /// `TableNotFound`.
    pub fn drop_table(&self, name: &str) -> Result<()> {
        let id = self.table(name)?.id;
        self.lock().tables.remove(&id);
        Ok(())
    }

    /// The stored spec of a table.
    ///
    /// # Errors
    /// `TableNotFound` (also for a dropped table).
    pub fn spec(&self, table: TableId) -> Result<TableSpec> {
        self.with(table, |table| Ok(table.spec.clone()))
    }

    /// Changes live settings.
    ///
    /// # Errors
    /// `TableNotFound`, `BadInput`.
    pub fn alter(&self, table: TableId, change: &TableChange) -> Result<()> {
        self.with(table, |table| table.spec.alter(change))
    }

    /// Reads rows; never inserts, changes no statistics.
    ///
    /// # Errors
    /// `TableNotFound`, `BadInput` for a wrong length, `Corruption` for a damaged row.
    pub fn lookup(&self, batches: &mut [LookupBatch<'_>]) -> Result<()> {
        for batch in batches {
            self.with(batch.table, |table| {
                let dim = table.spec.dim as usize;
                check_rows(&table.spec, batch.keys, batch.rows.len())?;
                for (i, key) in batch.keys.iter().enumerate() {
                    let row = table.rows.get(key);
                    let out = &mut batch.rows[i * dim..(i + 1) * dim];
                    match row {
                        Some(row) => out.copy_from_slice(&row[..dim]),
                        None => out.fill(0.0),
                    }
                    if let Some(found) = batch.found.get_mut(i) {
                        *found = u8::from(row.is_some());
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Reads rows for training: inserts absent keys at their initial row, counts, marks last use.
    ///
    /// # Errors
    /// As `lookup`, and `StoreFull`.
    pub fn lookup_or_insert(&self, batches: &mut [InsertBatch<'_>]) -> Result<()> {
        for batch in batches {
            self.with(batch.table, |table| {
                let dim = table.spec.dim as usize;
                check_rows(&table.spec, batch.keys, batch.rows.len())?;
                for (out, &key) in batch.rows.chunks_exact_mut(dim).zip(batch.keys) {
                    out.copy_from_slice(&table.row(key)[..dim]);
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Runs the optimizer once per unique key. All or nothing.
    ///
    /// # Errors
    /// `TableNotFound`, `BadInput` (lengths, non-finite gradients, steps that do not grow),
    /// `StoreFull`, `Unavailable`.
    pub fn apply_gradients(
        &self,
        push: Push,
        batches: &[GradientBatch<'_>],
    ) -> Result<PushOutcome> {
        for batch in batches {
            self.with(batch.table, |t| check_rows(&t.spec, batch.keys, batch.gradients.len()))?;
            check_finite("gradients", batch.gradients)?;
        }
        if !self.advance(push) {
            return Ok(PushOutcome::Duplicate);
        }
        for batch in batches {
            self.with(batch.table, |table| {
                let dim = table.spec.dim as usize;
                let unique = crate::batch::Unique::new(batch.keys, 1);
                let mut sums = vec![0.0; unique.keys.len() * dim];
                crate::batch::sum_rows(batch.gradients, dim, &unique.inverse, &mut sums);
                let (optimizer, rate) = (table.spec.optimizer, table.spec.learning_rate);
                let mut scratch = vec![0.0; table.spec.row_floats()];
                for (gradient, &key) in sums.chunks_exact(dim).zip(&unique.keys) {
                    optimizer.step(rate, table.row(key), gradient, &mut scratch);
                }
                Ok(())
            })?;
        }
        Ok(PushOutcome::Applied)
    }

    /// Sets values; absent keys get fresh slots, present ones keep theirs.
    ///
    /// # Errors
    /// As `apply_gradients`.
    pub fn assign(&self, push: Push, assign: &Assign<'_>) -> Result<PushOutcome> {
        self.with(assign.table, |t| check_rows(&t.spec, assign.keys, assign.rows.len()))?;
        check_finite("rows", assign.rows)?;
        if !self.advance(push) {
            return Ok(PushOutcome::Duplicate);
        }
        self.with(assign.table, |table| {
            let dim = table.spec.dim as usize;
            for (row, &key) in assign.rows.chunks_exact(dim).zip(assign.keys) {
                table.row(key)[..dim].copy_from_slice(row);
            }
            Ok(PushOutcome::Applied)
        })
    }

    /// Removes rows, slots and statistics; returns how many there were. A repeated push removes
    /// nothing and returns 0.
    ///
    /// # Errors
    /// `TableNotFound`, `Unavailable`.
    pub fn remove(&self, push: Push, table: TableId, keys: &[u64]) -> Result<u64> {
        if !self.advance(push) {
            return Ok(0);
        }
        self.with(table, |t| {
            Ok(keys.iter().filter(|key| t.rows.remove(key).is_some()).count() as u64)
        })
    }

    /// Brings rows into DRAM; never inserts.
    ///
    /// # Errors
    /// `TableNotFound`.
    pub fn prefetch(&self, table: TableId, keys: &[u64]) -> Result<()> {
        let _ = keys;
        self.with(table, |_| Ok(()))
    }

    /// Rows of a table, in all tiers.
    ///
    /// # Errors
    /// `TableNotFound`.
    pub fn len(&self, table: TableId) -> Result<u64> {
        self.with(table, |t| Ok(t.rows.len() as u64))
    }

    /// Appends the keys of buckets [bucket, next) to `keys` and returns next; 4096 ends the walk.
    ///
    /// # Errors
    /// `TableNotFound`.
    pub fn keys(&self, table: TableId, at: u32, keys: &mut Vec<u64>) -> Result<u32> {
        let next = (at + 64).min(BUCKETS);
        self.with(table, |t| {
            keys.extend(t.rows.keys().filter(|&&k| (at..next).contains(&bucket(hash(k)))));
            Ok(next)
        })
    }

    /// Counters of one table, by the names of the public API.
    ///
    /// # Errors
    /// `TableNotFound`.
    pub fn table_stats(&self, table: TableId) -> Result<Vec<(&'static str, u64)>> {
        let keys = self.len(table)?;
        Ok(STATS.iter().map(|&name| (name, if name.starts_with("k") { keys } else { 0 })).collect())
    }

    /// Sums over all tables, and the limits.
    pub fn stats(&self) -> Vec<(&'static str, u64)> {
        let tables = self.lock().tables.len() as u64;
        let mut stats: Vec<_> = STATS.iter().map(|&name| (name, 0)).collect();
        stats.extend([("tables", tables), ("dram_limit", self.config.dram_bytes)]);
        stats.push(("nvme_limit", self.config.nvme_bytes));
        stats
    }

    /// Returns when all that was acknowledged before is on the device.
    ///
    /// # Errors
    /// `Unavailable` when the device failed.
    pub fn flush(&self) -> Result<()> {
        Ok(())
    }

    /// Flushes and closes; later calls fail with `Unavailable`. Idempotent.
    ///
    /// # Errors
    /// As `flush`.
    pub fn close(&self) -> Result<()> {
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn with<T>(&self, id: TableId, f: impl FnOnce(&mut Table) -> Result<T>) -> Result<T> {
        let mut state = self.lock();
        let table = state.tables.get_mut(&id).ok_or_else(|| {
            Error::table_not_found(format!("table id {id} does not exist or was dropped"))
        })?;
        f(table)
    }

    fn advance(&self, push: Push) -> bool {
        let mut state = self.lock();
        let last = state.sessions.entry(push.session).or_insert(0);
        let fresh = push.number > *last;
        *last = push.number.max(*last);
        fresh
    }
}

const STATS: [&str; 22] = [
    "keys",
    "rows_dram",
    "rows_nvme",
    "rows_cold",
    "dram_bytes",
    "index_bytes",
    "nvme_bytes",
    "cold_bytes",
    "unique_keys",
    "probes",
    "cache_hits",
    "cache_misses",
    "device_reads",
    "background_reads",
    "device_bytes_read",
    "device_bytes_written",
    "journal_bytes",
    "bytes_updated",
    "evictions",
    "duplicate_pushes",
    "gradients_unadmitted",
    "rows_poisoned",
];

impl Table {
    fn row(&mut self, key: u64) -> &mut Vec<f32> {
        let spec = &self.spec;
        self.rows.entry(key).or_insert_with(|| {
            let mut row = vec![0.0; spec.row_floats()];
            let (value, slots) = row.split_at_mut(spec.dim as usize);
            initial_row(&spec.initializer, spec.seed, key, value);
            spec.optimizer.initial_slots(slots);
            row
        })
    }
}

fn check_rows(spec: &TableSpec, keys: &[u64], floats: usize) -> Result<()> {
    if floats == keys.len() * spec.dim as usize {
        return Ok(());
    }
    Err(Error::bad_input(format!(
        "table {:?}: {floats} float32 numbers for {} keys of dim {}; give keys * dim of them",
        spec.name,
        keys.len(),
        spec.dim
    )))
}

fn check_finite(what: &str, numbers: &[f32]) -> Result<()> {
    if is_finite(numbers) {
        return Ok(());
    }
    let at = numbers.iter().position(|x| !x.is_finite()).unwrap_or(0);
    Err(Error::bad_input(format!(
        "{what} hold {} at position {at}; only finite numbers are applied",
        numbers[at]
    )))
}
