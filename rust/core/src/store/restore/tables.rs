//! Tables that are filled, and how they come to their names.

use std::sync::atomic::Ordering;
use std::sync::Arc;

use super::Staging;
use crate::directory::Directory;
use crate::error::{Error, Result};
use crate::manifest::{Manifest, ManifestTable};
use crate::spec::TableSpec;
use crate::store::engine::{Catalog, Engine};
use crate::table::Table;
use crate::types::{hash, Sequence, TableId};

impl Engine {
    /// Makes tables that no call finds. After a crash they are gone, and their ids used up.
    pub(super) fn stage_tables(&self, specs: Vec<TableSpec>) -> Result<Vec<Arc<Table>>> {
        let directory = self.define()?;
        let mut manifest = self.catalog.read().manifest()?;
        let mut tables = Vec::with_capacity(specs.len());
        for spec in specs {
            let id = manifest.next_table_id;
            manifest.next_table_id += 1;
            let defined = ManifestTable::new(id, spec.clone())?;
            manifest.tables.push(ManifestTable { is_staged: true, ..defined });
            tables.push(Arc::new(Table::new(id, spec, self.stripes.len())));
        }
        self.publish(manifest, &directory, |catalog| {
            for table in &tables {
                catalog.next_id = table.id + 1;
                catalog.staged.insert(table.id);
                catalog.by_id.insert(table.id, table.clone());
            }
        })?;
        Ok(tables)
    }

    /// Makes the filled tables those of their names. Durable when it returns.
    ///
    /// # Errors
    /// `BadInput` if there are none; `StoreFull` if they cannot be written, and stay as they are.
    pub(in crate::store) fn commit_restore(&self) -> Result<()> {
        let mut staging = self.staging.lock();
        let Some(Staging { tables, clients }) = &*staging else {
            return Err(Error::bad_input("no restore waits for its commit; begin it again"));
        };
        self.restore_steps(clients)?;
        // All rows are in the log then, and the steps in the journal.
        self.checkpoint(true)?;
        let replaced = {
            let directory = self.define()?;
            let manifest = successor(&self.catalog.read(), tables)?;
            let mut replaced = Vec::new();
            self.publish(manifest, &directory, |catalog| {
                replaced.extend(tables.iter().filter_map(|table| catalog.succeed(table)));
                self.replacements.fetch_add(1, Ordering::Release);
            })?;
            replaced
        };
        *staging = None;
        self.give_up_rows(&replaced);
        Ok(())
    }

    /// Gives up what was filled and not committed.
    pub(in crate::store) fn give_up_restore(&self) -> Result<()> {
        let Some(Staging { tables, .. }) = self.staging.lock().take() else { return Ok(()) };
        {
            let directory = self.define()?;
            let mut manifest = self.catalog.read().manifest()?;
            manifest.tables.retain(|stored| tables.iter().all(|table| table.id != stored.id));
            self.publish(manifest, &directory, |catalog| {
                for table in &tables {
                    catalog.staged.remove(&table.id);
                    catalog.by_id.remove(&table.id);
                }
            })?;
        }
        self.give_up_rows(&tables);
        Ok(())
    }

    /// Publishes a catalog that no entry of the journal tells of: it is whole, and no push names
    /// what is new in it before. `apply` makes it that of the calls.
    fn publish(
        &self,
        manifest: Manifest,
        directory: &Directory,
        apply: impl FnOnce(&mut Catalog),
    ) -> Result<()> {
        let draft = manifest.draft(directory)?;
        let sequence = self.order_entry(&mut self.sequencer.lock(), None)?;
        // What was ordered before must not come after it.
        let durable = self.journal().sync().and_then(|_| draft.publish(sequence));
        durable.inspect_err(|error| self.fail(error))?;
        let mut catalog = self.catalog.write();
        catalog.as_of = sequence;
        apply(&mut catalog);
        Ok(())
    }

    fn restore_steps(&self, clients: &[(String, Vec<(TableId, i64)>)]) -> Result<()> {
        let mut sequencer = self.sequencer.lock();
        let last = sequencer.last;
        for (n, (client_id, steps)) in clients.iter().enumerate() {
            // A session that nobody drew.
            let stand_in = hash(last + n as u64 + 1);
            let uptime = self.clock.seconds();
            sequencer.sessions.restore_steps(client_id, steps, stand_in, uptime)?;
        }
        Ok(())
    }

    /// The sequence of rows that are filled in: above all that was, below the next call.
    pub(super) fn order_of_rows(&self) -> Result<Sequence> {
        self.order_entry(&mut self.sequencer.lock(), None)
    }
}

/// The manifest in which filled tables have their names.
fn successor(catalog: &Catalog, tables: &[Arc<Table>]) -> Result<Manifest> {
    let mut manifest = catalog.manifest()?;
    for table in tables {
        let name = table.name();
        let mut formerly = Vec::new();
        manifest.tables.retain(|stored| {
            let is_replaced = !stored.is_staged && stored.spec.name == name;
            if is_replaced {
                formerly.extend_from_slice(&stored.formerly);
                formerly.push(stored.id);
            }
            !is_replaced
        });
        let own = manifest.tables.iter_mut().find(|stored| stored.id == table.id);
        let own = own.ok_or_else(|| Error::unavailable("a table that was filled is gone"))?;
        (own.is_staged, own.formerly) = (false, formerly);
    }
    Ok(manifest)
}

impl Catalog {
    /// Gives a filled table its name; returns the one that it replaces.
    fn succeed(&mut self, table: &Arc<Table>) -> Option<Arc<Table>> {
        self.staged.remove(&table.id);
        let former = self.by_name.insert(table.name(), table.id)?;
        self.successors.values_mut().filter(|id| **id == former).for_each(|id| *id = table.id);
        self.successors.insert(former, table.id);
        self.by_id.remove(&former)
    }
}
