//! `_core.Store`: the verbs of the core with the interpreter lock released.

use std::sync::Arc;

use hybridps_core::{
    Assign, Durability, GradientBatch, Health, InsertBatch, LookupBatch, Push, PushOutcome,
    Snapshot, Store, StoreConfig, TableChange,
};
use numpy::{IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::arrays::{fresh_rows, parse_spec, slice, KeysIn, RowsIn};
use crate::errors::{bad_input, raise, ConfigError, HybridPSError};

type Found<'py> = (Bound<'py, PyArray2<f32>>, Option<Bound<'py, PyAny>>);

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

type SnapshotOut<'py> = (Bound<'py, PyDict>, Vec<&'static str>, Vec<(String, Vec<u64>)>);

fn names(counters: &[(&'static str, u64)]) -> Vec<&'static str> {
    counters.iter().map(|(name, _)| *name).collect()
}

fn durability(name: &str) -> PyResult<Durability> {
    Ok(match name {
        "none" => Durability::None,
        "process" => Durability::Process,
        "interval" => Durability::Interval,
        "always" => Durability::Always,
        other => {
            return Err(ConfigError::new_err(format!(
                "durability is {other:?}; give \"none\", \"process\", \"interval\" or \"always\""
            )))
        }
    })
}

fn parse_change(change: &str) -> PyResult<TableChange> {
    let unreadable = |what: &str| bad_input(format!("change of a table is not readable: {what}"));
    let fields: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(change).map_err(|e| unreadable(&e.to_string()))?;
    let mut parsed = TableChange::default();
    for (name, value) in fields {
        let cap = || match value.is_null() {
            true => Ok(None),
            false => value.as_u64().map(Some).ok_or_else(|| unreadable(&name)),
        };
        match name.as_str() {
            "learning_rate" => {
                let rate = value.as_f64().ok_or_else(|| unreadable(&name))?;
                parsed.learning_rate = Some(rate as f32);
            }
            "dram" => parsed.dram = Some(cap()?),
            "nvme" => parsed.nvme = Some(cap()?),
            _ => return Err(unreadable(&format!("no live setting is called {name:?}"))),
        }
    }
    Ok(parsed)
}

fn to_json(spec: &hybridps_core::TableSpec) -> PyResult<String> {
    serde_json::to_string(spec).map_err(|e| HybridPSError::new_err(e.to_string()))
}

fn counters<'py>(py: Python<'py>, stats: Vec<(&'static str, u64)>) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, value) in stats {
        dict.set_item(name, value)?;
    }
    Ok(dict)
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

    /// One fresh reply array for each batch.
    fn replies<'py>(
        &self,
        py: Python<'py>,
        batches: impl Iterator<Item = (u32, usize)>,
    ) -> PyResult<Vec<Bound<'py, PyArray2<f32>>>> {
        batches
            .map(|(table, n)| {
                let dim = self.store.spec(table).map_err(raise)?.dim;
                Ok(fresh_rows(py, n, dim as usize))
            })
            .collect()
    }
}

#[pymethods]
impl PyStore {
    #[new]
    #[pyo3(signature = (path, *, dram, nvme, durability, threads, shard=0, shards=1))]
    #[allow(clippy::too_many_arguments, reason = "keywords of the Python constructor")]
    fn new(
        py: Python<'_>,
        path: std::path::PathBuf,
        dram: u64,
        nvme: u64,
        durability: &str,
        threads: usize,
        shard: u32,
        shards: u32,
    ) -> PyResult<Self> {
        let config = StoreConfig {
            path,
            dram_bytes: dram,
            nvme_bytes: nvme,
            durability: self::durability(durability)?,
            threads,
            shard: (shard, shards),
        };
        let store = py.detach(|| Store::open(config)).map_err(raise)?;
        Ok(Self { store: Arc::new(store), process: std::process::id() })
    }

    #[staticmethod]
    fn exists(path: std::path::PathBuf) -> bool {
        Store::exists(&path)
    }

    fn attach(&self, py: Python<'_>, session: u64, client_id: &str) -> PyResult<u64> {
        self.run(py, |store| store.attach(session, client_id))
    }

    fn create_table(&self, py: Python<'_>, spec: &str) -> PyResult<(u32, String, Vec<String>)> {
        let spec = parse_spec(spec)?;
        let info = self.run(py, |store| store.create_table(&spec))?;
        Ok((info.id, to_json(&info.spec)?, info.warnings))
    }

    fn table(&self, py: Python<'_>, name: &str) -> PyResult<(u32, String)> {
        let info = self.run(py, |store| store.table(name))?;
        Ok((info.id, to_json(&info.spec)?))
    }

    fn io_description(&self) -> String {
        self.store.io_description()
    }

    fn health(&self) -> (&'static str, String) {
        match self.store.health() {
            Health::Ok => ("ok", String::new()),
            Health::Degraded(reason) => ("degraded", reason),
            Health::Failed(reason) => ("failed", reason),
        }
    }

    fn tables(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        self.run(py, |store| Ok(store.tables()))
    }

    fn drop_table(&self, py: Python<'_>, name: &str) -> PyResult<()> {
        self.run(py, |store| store.drop_table(name))
    }

    fn spec(&self, py: Python<'_>, table: u32) -> PyResult<String> {
        to_json(&self.run(py, |store| store.spec(table))?)
    }

    fn alter(&self, py: Python<'_>, table: u32, change: &str) -> PyResult<()> {
        let change = parse_change(change)?;
        self.run(py, |store| store.alter(table, &change))
    }

    fn lookup<'py>(
        &self,
        py: Python<'py>,
        batches: Vec<(u32, KeysIn<'py>)>,
        want_found: bool,
    ) -> PyResult<Vec<Found<'py>>> {
        let arrays = self.replies(py, batches.iter().map(|(t, k)| (*t, k.len().unwrap_or(0))))?;
        let mut borrowed: Vec<_> = arrays.iter().map(|array| array.readwrite()).collect();
        let mut found: Vec<Vec<u8>> = Vec::new();
        for (_, keys) in &batches {
            found.push(vec![0; if want_found { slice(keys)?.len() } else { 0 }]);
        }
        let mut calls = Vec::new();
        for (((table, keys), rows), found) in batches.iter().zip(&mut borrowed).zip(&mut found) {
            let (keys, rows) = (slice(keys)?, rows.as_slice_mut()?);
            calls.push(LookupBatch { table: *table, keys, rows, found });
        }
        self.run(py, |store| store.lookup(&mut calls))?;
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
        batches: Vec<(u32, KeysIn<'py>, Option<PyReadonlyArray1<'py, u32>>)>,
    ) -> PyResult<Vec<Bound<'py, PyArray2<f32>>>> {
        let sizes = batches.iter().map(|(t, k, _)| (*t, k.len().unwrap_or(0)));
        let arrays = self.replies(py, sizes)?;
        let mut borrowed: Vec<_> = arrays.iter().map(|array| array.readwrite()).collect();
        let mut calls = Vec::new();
        for ((table, keys, counts), rows) in batches.iter().zip(&mut borrowed) {
            let counts = counts.as_ref().map_or(Ok(&[][..]), slice)?;
            let (keys, rows) = (slice(keys)?, rows.as_slice_mut()?);
            if !counts.is_empty() && counts.len() != keys.len() {
                return Err(bad_input("lookup_or_insert: counts and keys differ in length"));
            }
            calls.push(InsertBatch { table: *table, keys, counts, rows });
        }
        self.run(py, |store| store.lookup_or_insert(&mut calls))?;
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
            self.run(py, |store| store.look_ahead(*table, keys))?;
        }
        Ok(())
    }

    fn size(&self, py: Python<'_>, table: u32) -> PyResult<u64> {
        self.run(py, |store| store.len(table))
    }

    fn keys<'py>(
        &self,
        py: Python<'py>,
        table: u32,
        bucket: u32,
    ) -> PyResult<(Bound<'py, PyArray1<u64>>, u32)> {
        let mut keys = Vec::new();
        let next = self.run(py, |store| store.keys(table, bucket, &mut keys))?;
        Ok((keys.into_pyarray(py), next))
    }

    fn table_stats<'py>(&self, py: Python<'py>, table: u32) -> PyResult<Bound<'py, PyDict>> {
        counters(py, self.run(py, |store| store.table_stats(table))?)
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        counters(py, self.run(py, |store| Ok(store.stats()))?)
    }

    /// The store's counters, the names of a table's, and each table with their values.
    fn snapshot<'py>(&self, py: Python<'py>) -> PyResult<SnapshotOut<'py>> {
        let Snapshot { store, tables } = self.run(py, |store| Ok(store.snapshot()))?;
        let names = tables.first().map_or(Vec::new(), |(_, counters)| names(counters));
        let values = |counters: Vec<(_, u64)>| counters.into_iter().map(|(_, n)| n).collect();
        let tables = tables.into_iter().map(|(name, counters)| (name, values(counters))).collect();
        Ok((counters(py, store)?, names, tables))
    }

    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        self.run(py, Store::flush)
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.run(py, Store::close)
    }
}
