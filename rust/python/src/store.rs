//! `_core.Store`: the verbs of the core with the interpreter lock released.

use std::path::PathBuf;
use std::sync::Arc;

use hybridps_core::{ColdConfig, Cursor, Detail, PageQuery, Push, Snapshot, Store, StoreConfig};
use hybridps_serve::jobs::{self, Jobs};
use hybridps_serve::local::{self, Lent, Rooms};
use hybridps_serve::texts::{self, Finding, Row, Step};
use numpy::PyArrayMethods;
use pyo3::prelude::*;

use crate::arrays::{fresh_rows, lend, Batch, Counters, Counts, Flags, Keys, Numbers, RowsOut};
use crate::errors::raise;

type CursorOut = (String, u64, Vec<(String, u32, u32)>);
type SnapshotOut = (Counters, Vec<&'static str>, Vec<(String, Vec<u64>)>);

/// The engine in this process. `process` is the one that opened it: after a fork the engine
/// threads are gone, so a child must not run its destructor.
#[pyclass(name = "Store", module = "hybridps._core", frozen, weakref)]
pub(crate) struct PyStore {
    store: Arc<Store>,
    jobs: Jobs,
    process: u32,
}

impl Drop for PyStore {
    fn drop(&mut self) {
        if std::process::id() != self.process {
            // One count that is never given back: the child leaks the store.
            std::mem::forget(Arc::clone(&self.store));
        }
    }
}

impl PyStore {
    /// The engine itself, for the connections that serve it.
    pub(crate) fn engine(&self) -> Arc<Store> {
        Arc::clone(&self.store)
    }

    fn run<T: Send>(
        &self,
        py: Python<'_>,
        verb: impl FnOnce(&Store) -> hybridps_core::Result<T> + Send,
    ) -> PyResult<T> {
        let store: &Store = &self.store;
        py.detach(|| verb(store)).map_err(raise)
    }

    /// Fresh rows of each table, as many as `count` says, which `verb` writes whole; and what it
    /// gives beside them.
    fn read<'py, T: Send>(
        &self,
        py: Python<'py>,
        batches: &[Batch<'py>],
        count: fn(&Lent<'_>) -> usize,
        verb: impl FnOnce(&Store, &[Lent<'_>], Rooms<'_>) -> hybridps_core::Result<T> + Send,
    ) -> PyResult<(Vec<RowsOut<'py>>, T)> {
        let lent = lend(batches)?;
        let dim = |of: &Lent<'_>| self.store.spec(of.table).map(|spec| spec.dim as usize);
        let rows = lent.iter().map(|of| Ok(fresh_rows(py, count(of), dim(of).map_err(raise)?)));
        let rows = rows.collect::<PyResult<Vec<_>>>()?;
        let mut borrowed: Vec<_> = rows.iter().map(PyArrayMethods::readwrite).collect();
        let rooms = borrowed.iter_mut().map(|rows| rows.as_slice_mut());
        let rooms = rooms.collect::<Result<Vec<_>, _>>()?;
        let told = self.run(py, |store| verb(store, &lent, rooms))?;
        drop(borrowed);
        Ok((rows, told))
    }
}

#[pymethods]
impl PyStore {
    #[new]
    #[pyo3(signature = (path, *, dram, nvme, durability, threads, shard=0, shards=1, scrub_rate=0,
                        cold=None))]
    #[allow(clippy::too_many_arguments, reason = "keywords of the Python constructor")]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        dram: u64,
        nvme: u64,
        durability: &str,
        threads: usize,
        shard: u32,
        shards: u32,
        scrub_rate: u64,
        cold: Option<(std::path::PathBuf, u64)>,
    ) -> PyResult<Self> {
        let config = StoreConfig {
            path,
            dram_bytes: dram,
            nvme_bytes: nvme,
            durability: texts::parse_durability(durability).map_err(raise)?,
            threads,
            shard: (shard, shards),
            cold: cold.map(|(path, cap_bytes)| ColdConfig { path, cap_bytes }),
        };
        let scrubbed = |store: Store| store.set_scrub_rate(scrub_rate).map(|()| store);
        let store = py.detach(|| Store::open(config).and_then(scrubbed)).map_err(raise)?;
        let (store, jobs) = (Arc::new(store), Jobs::default());
        Ok(Self { store, jobs, process: std::process::id() })
    }

    #[staticmethod]
    fn exists(path: PathBuf) -> bool {
        Store::exists(&path)
    }

    fn lookup<'py>(
        &self,
        py: Python<'py>,
        batches: Vec<Batch<'py>>,
        want_found: bool,
    ) -> PyResult<Vec<(RowsOut<'py>, Option<Flags>)>> {
        let (rows, found) = self.read(
            py,
            &batches,
            |of| of.keys.len(),
            |store, lent, rooms| local::lookup(store, lent, rooms, want_found),
        )?;
        Ok(rows.into_iter().zip(found.into_iter().map(|found| found.map(Flags))).collect())
    }

    fn lookup_or_insert<'py>(
        &self,
        py: Python<'py>,
        batches: Vec<Batch<'py>>,
    ) -> PyResult<Vec<RowsOut<'py>>> {
        self.read(py, &batches, |of| of.keys.len(), local::lookup_or_insert).map(|(rows, ())| rows)
    }

    fn lookup_pooled<'py>(
        &self,
        py: Python<'py>,
        batches: Vec<Batch<'py>>,
    ) -> PyResult<Vec<RowsOut<'py>>> {
        self.read(py, &batches, |of| of.numbers.len(), local::lookup_pooled).map(|(rows, ())| rows)
    }

    fn job(&self, py: Python<'_>, name: &str, request: &str) -> PyResult<String> {
        py.detach(|| self.jobs.ask(&self.store, name, request)).map_err(raise)
    }
}

fn push(session: u64, number: u64, step: Option<i64>) -> Push {
    Push { session, number, step }
}

verbs! { impl PyStore, store:
    attach(session: u64, client_id: &str) -> u64 = store.attach(session, client_id);
    create_table(spec: &str) -> (u32, String, Vec<String>) = texts::create_table(store, spec);
    table(name: &str) -> (u32, String) = texts::table(store, name);
    tables() -> Vec<String> = Ok(store.tables());
    drop_table(name: &str) -> () = store.drop_table(name);
    spec(table: u32) -> String = store.spec(table).map(|spec| texts::spec_json(&spec));
    alter(table: u32, change: &str) -> () = store.alter(table, &texts::parse_change(change)?);

    apply_gradients(session: u64, number: u64, step: Option<i64>; batches) -> bool =
        local::apply_gradients(store, push(session, number, step), &batches);
    assign(session: u64, number: u64; batches) -> () =
        local::assign(store, push(session, number, None), &batches);
    scatter(session: u64, number: u64, operation: u16; batches) -> () =
        local::scatter(store, push(session, number, None), operation, &batches);
    import_rows(session: u64, number: u64; batches) -> () =
        local::import_rows(store, push(session, number, None), &batches);
    remove(session: u64, number: u64; batches) -> u64 =
        local::remove(store, push(session, number, None), &batches);
    prefetch(; batches) -> () = local::prefetch(store, &batches);

    size(table: u32) -> u64 = store.len(table);
    keys(table: u32, bucket: u32) -> (Keys, u32) =
        local::keys(store, table, bucket).map(|(keys, next)| (Keys(keys), next));
    export_rows(table: u32, cells: (u64, u64), with_slots: bool, most_bytes: u64)
        -> (Keys, Numbers, u64) =
        local::export_rows(store, table, cells, with_slots, most_bytes)
            .map(|(keys, rows, next)| (Keys(keys), Numbers(rows), next));
    expire(table: u32, bucket: u32, now: Option<u64>) -> (u64, u32) =
        store.expire(table, bucket, now);
    cursor() -> CursorOut = store.cursor().map(moment);
    changes(table: u32, cells: (u64, u64), since: Option<u64>, most_bytes: u64)
        -> (Keys, Keys, Numbers, u64) = page(store, table, cells, since, most_bytes);
    table_stats(table: u32) -> Counters = store.table_stats(table);
    stats() -> Counters = Ok(store.stats());
    snapshot() -> SnapshotOut = Ok(told(store.snapshot()));
    inspect(; batches) -> Vec<Row> = local::inspect(store, &batches).map(texts::rows);
    statistics(; batches) -> (Counts, Counts, Vec<u8>) = local::statistics(store, &batches)
        .map(|of| (Counts(of.frequencies), Counts(of.last_seen), texts::tiers(&of.tiers)));
    scrub(start: u64, step_bytes: u64) -> Step = store.scrub(start, step_bytes).map(texts::step);
    take_damaged() -> (Vec<Finding>, u64) = Ok(texts::told(store.take_damaged()));
    health() -> (&'static str, String) = Ok(texts::health_text(store.health()));
    io_description() -> String = Ok(store.io_description());
    flush() -> () = store.flush();
    close() -> () = store.close();
}

fn told(Snapshot { store, tables }: Snapshot) -> SnapshotOut {
    let (names, tables) = texts::counters(tables);
    (store.into(), names, tables)
}

fn moment(Cursor { store, sequence, tables }: Cursor) -> CursorOut {
    (format!("{store:032x}"), sequence, tables)
}

fn page(
    store: &Store,
    table: u32,
    (start, end): (u64, u64),
    since: Option<u64>,
    bytes: u64,
) -> hybridps_core::Result<(Keys, Keys, Numbers, u64)> {
    let query = PageQuery { table, cells: start..end, since, detail: Detail::Values, bytes };
    let page = store.changes_page(&query)?;
    Ok((page.removed.into(), page.keys.into(), page.rows.into(), page.next))
}

#[pyfunction]
pub(crate) fn checkpoints(py: Python<'_>, path: PathBuf) -> PyResult<(String, Vec<String>)> {
    py.detach(|| jobs::checkpoints(path)).map_err(raise)
}

#[pyfunction]
pub(crate) fn verify_checkpoint(
    py: Python<'_>,
    path: PathBuf,
    id: Option<&str>,
) -> PyResult<String> {
    py.detach(|| jobs::verify(path, id)).map_err(raise)
}

#[pyfunction]
pub(crate) fn prune_checkpoints(
    py: Python<'_>,
    path: PathBuf,
    keep: u64,
    every_s: Option<f64>,
) -> PyResult<Vec<String>> {
    py.detach(|| hybridps_core::prune(&path, keep, every_s)).map_err(raise)
}
