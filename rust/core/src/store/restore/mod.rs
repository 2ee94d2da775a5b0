//! Tables from a checkpoint: all of them replace those of their names, or nothing changes.
//!
//! First everything is looked at that can be wrong without reading rows. Then the rows are read,
//! checked and put into tables that no call finds; when all are there and on the device, one new
//! manifest gives these the names (docs/adr/0030). Whatever goes wrong before, or a crash, leaves
//! the store as it was.

mod install;
mod tables;

use std::path::PathBuf;
use std::sync::Arc;

use super::engine::Engine;
use crate::checkpoint::{count_differs, Chain, Progress};
use crate::columns::GROUP;
use crate::error::{Error, Result};
use crate::spec::TableSpec;
use crate::table::Table;
use crate::types::{shard_of_bucket, BUCKETS};

/// What is asked.
#[derive(Debug, Clone)]
pub struct RestoreRequest {
    /// Directory of checkpoints.
    pub path: PathBuf,
    /// The checkpoint; `None`: the newest of `step`, or of all.
    pub id: Option<String>,
    /// See `id`.
    pub step: Option<i64>,
    /// Names; `None`: all tables of the checkpoint.
    pub tables: Option<Vec<String>>,
    /// Slots as they were; else those of fresh rows, of the present table's optimizer.
    pub with_slots: bool,
}

/// What was read, and waits for its commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The checkpoint.
    pub id: String,
    /// Its step.
    pub step: Option<i64>,
    /// Rows of this server, by table.
    pub tables: Vec<(String, u64)>,
}

/// Tables that are filled, until they replace those of their names.
pub(super) struct Staging {
    tables: Vec<Arc<Table>>,
    /// Clients with their last steps in these tables.
    clients: Vec<(String, Vec<(crate::types::TableId, i64)>)>,
}

impl Engine {
    /// Fills tables from a checkpoint. `commit_restore` makes them those of their names.
    pub(super) fn stage_restore(
        &self,
        request: &RestoreRequest,
        progress: &Progress,
    ) -> Result<Restored> {
        let chain = Chain::open(&request.path, request.id.as_deref(), request.step)?;
        let specs = self.fitting_specs(&chain, request)?;
        self.give_up_restore()?;
        let tables = self.stage_tables(specs)?;
        let filled = self.fill(&chain, &tables, request.with_slots, progress);
        let clients = clients_of(&chain, &tables);
        *self.staging.lock() = Some(Staging { tables, clients });
        match filled {
            Ok(tables) => {
                let Chain { checkpoint, .. } = chain;
                Ok(Restored { id: checkpoint.id, step: checkpoint.step, tables })
            }
            Err(error) => self.give_up_restore().and(Err(error)),
        }
    }

    /// The specs that the tables will have.
    ///
    /// # Errors
    /// `TableNotFound` for one that the checkpoint has not, `TableMismatch` naming each difference
    /// to the table that it would replace.
    fn fitting_specs(&self, chain: &Chain, request: &RestoreRequest) -> Result<Vec<TableSpec>> {
        let all = || chain.checkpoint.tables.keys().cloned().collect();
        let mut names: Vec<String> = request.tables.clone().unwrap_or_else(all);
        names.sort_unstable();
        names.dedup();
        let mut specs = Vec::with_capacity(names.len());
        let mut problems = Vec::new();
        for name in &names {
            let id = &chain.checkpoint.id;
            let saved = chain.spec(name).ok_or_else(|| {
                let known: Vec<&String> = chain.checkpoint.tables.keys().collect();
                Error::table_not_found(format!(
                    "checkpoint {id} has no table {name:?}; it has {known:?}"
                ))
            })?;
            let present = self.find_table(name).ok().map(|info| info.spec);
            match spec_of(saved, present, request.with_slots) {
                Ok(spec) => specs.push(spec),
                Err(error) => problems.push(error.message),
            }
        }
        if problems.is_empty() {
            return Ok(specs);
        }
        Err(Error::table_mismatch(problems.join("; ")))
    }

    /// Reads the rows that this server owns. Returns how many each table has.
    fn fill(
        &self,
        chain: &Chain,
        tables: &[Arc<Table>],
        with_slots: bool,
        progress: &Progress,
    ) -> Result<Vec<(String, u64)>> {
        let (shard, shards) = self.config.shard;
        let is_own = |bucket: u32| shard_of_bucket(bucket, shards) == shard;
        let owns_all = shards == 1;
        progress.expect(chain.bytes() / u64::from(shards));
        let sequence = self.order_of_rows()?;
        let mut filled = Vec::with_capacity(tables.len());
        for table in tables {
            let name = table.name();
            let mut rows = 0;
            for link in &chain.links {
                let before = rows;
                for group in 0..BUCKETS / GROUP {
                    if !(group * GROUP..(group + 1) * GROUP).any(is_own) {
                        continue;
                    }
                    self.check_going_on(progress)?;
                    link.visit_group(&name, group, is_own, &mut |columns, counted| {
                        rows += counted.len() as u64;
                        progress.add(columns.bytes() as u64);
                        self.install(table, columns, counted, with_slots, sequence)
                    })?;
                }
                let newest = &link.files[0];
                let said = newest.position(&name).map(|at| newest.tail.tables[at].rows);
                if owns_all && rows - before != said.unwrap_or(0) {
                    let said = said.unwrap_or(0);
                    return Err(count_differs(newest.path(), &name, rows - before, said));
                }
            }
            filled.push((name, rows));
        }
        Ok(filled)
    }

    fn check_going_on(&self, progress: &Progress) -> Result<()> {
        progress.check()?;
        if self.is_closing.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(Error::unavailable("the store is being closed"));
        }
        self.failure.check()
    }
}

/// What a restored table will be: as it was saved, or with the optimizer and rate of the present.
fn spec_of(saved: &TableSpec, present: Option<TableSpec>, with_slots: bool) -> Result<TableSpec> {
    let Some(present) = present else { return Ok(saved.clone()) };
    if with_slots {
        present.open_as(saved).map_err(|error| {
            Error::table_mismatch(format!(
                "the checkpoint does not fit: {}; drop the table first, or, if the optimizer alone \
                 differs, restore with slots=False",
                error.message
            ))
        })?;
        return Ok(saved.clone());
    }
    let asked = TableSpec { optimizer: present.optimizer, ..saved.clone() };
    present.open_as(&asked)?;
    let TableSpec { optimizer, learning_rate, gradients, .. } = present;
    Ok(TableSpec { optimizer, learning_rate, gradients, ..saved.clone() })
}

/// The last steps of all clients in these tables, on any of the servers that were saved.
fn clients_of(
    chain: &Chain,
    tables: &[Arc<Table>],
) -> Vec<(String, Vec<(crate::types::TableId, i64)>)> {
    let ids: Vec<_> = tables.iter().map(|table| (table.name(), table.id)).collect();
    let mut clients = Vec::new();
    for client in chain.links.iter().flat_map(|link| &link.files[0].tail.clients) {
        let id = |name: &String| ids.iter().find(|(own, _)| own == name).map(|own| own.1);
        let steps = client.steps.iter().filter_map(|(name, step)| Some((id(name)?, *step)));
        clients.push((client.client_id.clone(), steps.collect()));
    }
    clients
}
