//! `_core.Store`: the verbs of the core with the interpreter lock released.

use std::path::PathBuf;
use std::sync::Arc;

use hybridps_core::{
    Assign, GradientBatch, InsertBatch, LookupBatch, PooledBatch, Push, PushOutcome, Snapshot,
    Store, StoreConfig, Unique,
};
use hybridps_serve::texts::{self, Finding, Row, Step};
use numpy::{IntoPyArray, PyArray1, PyArray2, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::arrays::{fresh_rows, slice, KeysIn, NumbersIn, RowsIn, WeightsIn};
use crate::errors::{bad_input, raise};

type RowsOut<'py> = Bound<'py, PyArray2<f32>>;
type Found<'py> = (RowsOut<'py>, Option<Bound<'py, PyAny>>);
type KeysOut<'py> = (Bound<'py, PyArray1<u64>>, u32);
type Counters = Vec<(&'static str, u64)>;
type SnapshotOut<'py> = (Bound<'py, PyDict>, Vec<&'static str>, Vec<(String, Vec<u64>)>);

/// The engine in this process. `process` is the one that opened it: after a fork the engine
/// threads are gone, so a child must not run its destructor.
#[pyclass(name = "Store", module = "hybridps._core", frozen, weakref)]
pub(crate) struct PyStore {
    store: Arc<Store>,
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

fn dict(py: Python<'_>, counters: Counters) -> PyResult<Bound<'_, PyDict>> {
    PyDict::from_sequence(&counters.into_pyobject(py)?)
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

    fn fresh_rows<'py>(&self, py: Python<'py>, table: u32, n: usize) -> PyResult<RowsOut<'py>> {
        let dim = self.store.spec(table).map_err(raise)?.dim;
        Ok(fresh_rows(py, n, dim as usize))
    }
}

#[pymethods]
impl PyStore {
    #[new]
    #[pyo3(signature = (path, *, dram, nvme, durability, threads, shard=0, shards=1, scrub_rate=0))]
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
    ) -> PyResult<Self> {
        let (durability, shard) =
            (texts::parse_durability(durability).map_err(raise)?, (shard, shards));
        let config =
            StoreConfig { path, dram_bytes: dram, nvme_bytes: nvme, durability, threads, shard };
        let scrubbed = |store: Store| store.set_scrub_rate(scrub_rate).map(|()| store);
        let store = py.detach(|| Store::open(config).and_then(scrubbed)).map_err(raise)?;
        Ok(Self { store: Arc::new(store), process: std::process::id() })
    }

    #[staticmethod]
    fn exists(path: PathBuf) -> bool {
        Store::exists(&path)
    }

    fn attach(&self, py: Python<'_>, session: u64, client_id: &str) -> PyResult<u64> {
        self.run(py, |store| store.attach(session, client_id))
    }

    fn create_table(&self, py: Python<'_>, spec: &str) -> PyResult<(u32, String, Vec<String>)> {
        let spec = texts::parse_spec(spec).map_err(raise)?;
        let info = self.run(py, |store| store.create_table(&spec))?;
        Ok((info.id, texts::spec_json(&info.spec), info.warnings))
    }

    fn table(&self, py: Python<'_>, name: &str) -> PyResult<(u32, String)> {
        let info = self.run(py, |store| store.table(name))?;
        Ok((info.id, texts::spec_json(&info.spec)))
    }

    fn io_description(&self) -> String {
        self.store.io_description()
    }

    fn health(&self) -> (&'static str, String) {
        texts::health_text(self.store.health())
    }

    fn tables(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        self.run(py, |store| Ok(store.tables()))
    }

    fn drop_table(&self, py: Python<'_>, name: &str) -> PyResult<()> {
        self.run(py, |store| store.drop_table(name))
    }

    fn spec(&self, py: Python<'_>, table: u32) -> PyResult<String> {
        self.run(py, |store| Ok(texts::spec_json(&store.spec(table)?)))
    }

    fn alter(&self, py: Python<'_>, table: u32, change: &str) -> PyResult<()> {
        self.run(py, |store| store.alter(table, &texts::parse_change(change)?))
    }

    fn lookup<'py>(
        &self,
        py: Python<'py>,
        batches: Vec<(u32, KeysIn<'py>)>,
        want_found: bool,
    ) -> PyResult<Vec<Found<'py>>> {
        let arrays: Vec<_> = batches
            .iter()
            .map(|(t, k)| self.fresh_rows(py, *t, k.len()?))
            .collect::<PyResult<_>>()?;
        let mut borrowed: Vec<_> = arrays.iter().map(PyArrayMethods::readwrite).collect();
        let flags = |(_, k): &(u32, KeysIn<'_>)| {
            vec![0; k.len().map_or(0, |n| n * usize::from(want_found))]
        };
        let mut found: Vec<Vec<u8>> = batches.iter().map(flags).collect();
        let mut calls = Vec::new();
        for (((table, keys), rows), found) in batches.iter().zip(&mut borrowed).zip(&mut found) {
            let (keys, rows) = (slice(keys)?, rows.as_slice_mut()?);
            calls.push(LookupBatch { table: *table, keys, rows, found });
        }
        self.run(py, |store| store.lookup_merged(&mut calls))?;
        drop(borrowed);
        let replies = arrays.into_iter().zip(found).map(|(rows, found)| {
            let found = want_found.then(|| found.into_pyarray(py).call_method1("view", ("?",)));
            Ok((rows, found.transpose()?))
        });
        replies.collect()
    }

    fn lookup_or_insert<'py>(
        &self,
        py: Python<'py>,
        batches: Vec<(u32, KeysIn<'py>, Option<NumbersIn<'py>>)>,
    ) -> PyResult<Vec<RowsOut<'py>>> {
        let arrays: Vec<_> = batches
            .iter()
            .map(|(t, k, _)| self.fresh_rows(py, *t, k.len()?))
            .collect::<PyResult<_>>()?;
        let mut borrowed: Vec<_> = arrays.iter().map(PyArrayMethods::readwrite).collect();
        let mut calls = Vec::new();
        for ((table, keys, counts), rows) in batches.iter().zip(&mut borrowed) {
            let counts = counts.as_ref().map_or(Ok(&[][..]), slice)?;
            let (keys, rows) = (slice(keys)?, rows.as_slice_mut()?);
            if !counts.is_empty() && counts.len() != keys.len() {
                return Err(bad_input("lookup_or_insert: counts and keys differ in length"));
            }
            calls.push(InsertBatch { table: *table, keys, counts, rows });
        }
        self.run(py, |store| store.lookup_or_insert_merged(&mut calls))?;
        drop(borrowed);
        Ok(arrays)
    }

    fn lookup_pooled<'py>(
        &self,
        py: Python<'py>,
        batches: Vec<(u32, KeysIn<'py>, NumbersIn<'py>, Option<WeightsIn<'py>>)>,
    ) -> PyResult<Vec<RowsOut<'py>>> {
        let sums = batches.iter().map(|(t, _, bags, _)| self.fresh_rows(py, *t, bags.len()?));
        let arrays: Vec<_> = sums.collect::<PyResult<_>>()?;
        let mut borrowed: Vec<_> = arrays.iter().map(PyArrayMethods::readwrite).collect();
        let mut calls = Vec::new();
        for ((table, keys, bags, weights), sums) in batches.iter().zip(&mut borrowed) {
            let weights = weights.as_ref().map_or(Ok(&[][..]), slice)?;
            let (keys, bags, sums) = (slice(keys)?, slice(bags)?, sums.as_slice_mut()?);
            calls.push(PooledBatch { table: *table, keys, bags, weights, sums });
        }
        self.run(py, |store| store.lookup_pooled(&mut calls))?;
        drop(borrowed);
        Ok(arrays)
    }

    fn apply_gradients(
        &self,
        py: Python<'_>,
        session: u64,
        number: u64,
        step: Option<i64>,
        batches: Vec<(u32, KeysIn<'_>, RowsIn<'_>)>,
    ) -> PyResult<bool> {
        let mut calls = Vec::new();
        for (table, keys, gradients) in &batches {
            let (keys, gradients) = (slice(keys)?, slice(gradients)?);
            calls.push(GradientBatch { table: *table, keys, gradients });
        }
        let push = Push { session, number, step };
        let outcome = self.run(py, |store| store.apply_gradients(push, &calls))?;
        Ok(outcome == PushOutcome::Duplicate)
    }

    fn assign(
        &self,
        py: Python<'_>,
        session: u64,
        number: u64,
        table: u32,
        keys: KeysIn<'_>,
        rows: RowsIn<'_>,
    ) -> PyResult<()> {
        let assign = Assign { table, keys: slice(&keys)?, rows: slice(&rows)? };
        let push = Push { session, number, step: None };
        self.run(py, |store| store.assign(push, &assign)).map(drop)
    }

    fn remove(
        &self,
        py: Python<'_>,
        session: u64,
        number: u64,
        table: u32,
        keys: KeysIn<'_>,
    ) -> PyResult<u64> {
        let keys = slice(&keys)?;
        self.run(py, |store| store.remove(Push { session, number, step: None }, table, keys))
    }

    fn prefetch(&self, py: Python<'_>, batches: Vec<(u32, KeysIn<'_>)>) -> PyResult<()> {
        for (table, keys) in &batches {
            let keys = slice(keys)?;
            self.run(py, |store| store.look_ahead(*table, &Unique::new(keys, 1).keys))?;
        }
        Ok(())
    }

    fn size(&self, py: Python<'_>, table: u32) -> PyResult<u64> {
        self.run(py, |store| store.len(table))
    }

    fn keys<'py>(&self, py: Python<'py>, table: u32, bucket: u32) -> PyResult<KeysOut<'py>> {
        let mut keys = Vec::new();
        let next = self.run(py, |store| store.keys(table, bucket, &mut keys))?;
        Ok((keys.into_pyarray(py), next))
    }

    fn table_stats<'py>(&self, py: Python<'py>, table: u32) -> PyResult<Bound<'py, PyDict>> {
        dict(py, self.run(py, |store| store.table_stats(table))?)
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        dict(py, self.run(py, |store| Ok(store.stats()))?)
    }

    fn snapshot<'py>(&self, py: Python<'py>) -> PyResult<SnapshotOut<'py>> {
        let Snapshot { store, tables } = self.run(py, |store| Ok(store.snapshot()))?;
        let (names, tables) = texts::counters(tables);
        Ok((dict(py, store)?, names, tables))
    }

    fn inspect(&self, py: Python<'_>, table: u32, keys: KeysIn<'_>) -> PyResult<Vec<Row>> {
        let keys = slice(&keys)?;
        self.run(py, |store| Ok(texts::rows(store.inspect(table, keys)?)))
    }

    fn scrub(&self, py: Python<'_>, start: u64, step_bytes: u64) -> PyResult<Step> {
        self.run(py, |store| Ok(texts::step(store.scrub(start, step_bytes)?)))
    }

    fn take_damaged(&self) -> (Vec<Finding>, u64) {
        texts::told(self.store.take_damaged())
    }

    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        self.run(py, Store::flush)
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.run(py, Store::close)
    }
}
