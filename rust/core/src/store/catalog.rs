//! The tables of a store: created, found, altered and dropped, durable through the manifest.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::{MappedMutexGuard, MutexGuard};

use super::engine::Engine;
use super::TableInfo;
use crate::directory::Directory;
use crate::error::{Error, Result};
use crate::manifest::{Manifest, ManifestTable};
use crate::spec::{TableChange, TableSpec};
use crate::table::Table;
use crate::types::{TableId, BUCKETS};

use super::engine::Catalog;

/// Buckets that one call of `keys` walks.
const BUCKETS_PER_WALK: u32 = 64;

impl Engine {
    /// Whoever holds it defines tables; nobody else waits while the manifest is written. What it
    /// says is durable before the catalog shows it.
    fn define(&self) -> Result<MappedMutexGuard<'_, Directory>> {
        MutexGuard::try_map(self.directory.lock(), Option::as_mut)
            .map_err(|_| Error::unavailable("the store is closed; open it again"))
    }

    pub(super) fn create_table(&self, spec: &TableSpec) -> Result<TableInfo> {
        spec.check()?;
        if let Some(info) = self.open_as(spec)? {
            return Ok(info);
        }
        let directory = self.define()?;
        // Another call may have made it meanwhile.
        if let Some(info) = self.open_as(spec)? {
            return Ok(info);
        }
        let mut manifest = self.catalog.read().manifest();
        let id = manifest.next_table_id;
        manifest.tables.push(ManifestTable { id, spec: spec.clone() });
        manifest.next_table_id += 1;
        self.save(&manifest, &directory)?;
        let mut catalog = self.catalog.write();
        catalog.add(Arc::new(Table::new(id, spec.clone(), self.stripes.len())));
        catalog.next_id += 1;
        Ok(TableInfo { id, spec: spec.clone(), warnings: Vec::new() })
    }

    /// The table of that name, if it equals the spec in all that cannot be changed.
    fn open_as(&self, spec: &TableSpec) -> Result<Option<TableInfo>> {
        let catalog = self.catalog.read();
        let Some(id) = catalog.by_name.get(&spec.name) else { return Ok(None) };
        let stored = catalog.by_id[id].spec();
        let warnings = stored.open_as(spec)?;
        Ok(Some(TableInfo { id: *id, spec: stored, warnings }))
    }

    pub(super) fn find_table(&self, name: &str) -> Result<TableInfo> {
        let catalog = self.catalog.read();
        let id = *catalog.by_name.get(name).ok_or_else(|| not_found(name))?;
        Ok(TableInfo { id, spec: catalog.by_id[&id].spec(), warnings: Vec::new() })
    }

    pub(super) fn drop_table(&self, name: &str) -> Result<()> {
        let table = {
            let directory = self.define()?;
            let id = self.find_table(name)?.id;
            let mut manifest = self.catalog.read().manifest();
            manifest.tables.retain(|table| table.id != id);
            self.save(&manifest, &directory)?;
            self.catalog.write().forget(name).ok_or_else(|| not_found(name))?
        };
        // Calls ordered before the drop end first; later ones do not find the table any more.
        self.for_each_stripe_in_turn(|state| {
            let keys = state.parts.get(&table.id).map_or(0, |part| part.index.len());
            state.drop_part(&self.tier, table.id);
            self.release_records(&table, keys);
            Ok(())
        })
    }

    pub(super) fn alter(&self, id: TableId, change: &TableChange) -> Result<()> {
        let table = {
            let directory = self.define()?;
            let table = self.table(id)?;
            let mut spec = table.spec();
            spec.alter(change)?;
            let mut manifest = self.catalog.read().manifest();
            let stored = manifest.tables.iter_mut().filter(|stored| stored.id == id);
            stored.for_each(|stored| stored.spec = spec.clone());
            self.save(&manifest, &directory)?;
            table.set_spec(spec);
            table
        };
        self.enforce_cap(&table).map_err(|error| {
            Error::new(error.kind, format!("{}; the new settings are stored", error.message))
        })
    }

    /// Rows above the table's cap leave DRAM.
    fn enforce_cap(&self, table: &Table) -> Result<()> {
        let mut over = 0;
        for stripe in &self.stripes {
            let mut state = stripe.lock();
            over += self.with_log_room(&mut state, |s| s.enforce_cap(&self.tier, table.id))?;
        }
        if over == 0 {
            return Ok(());
        }
        Err(Error::store_full(format!(
            "table {:?}: its index, and a few rows in each of {} stripes, take {over} bytes more \
             than dram={}; raise dram, or remove keys",
            table.name(),
            self.stripes.len(),
            table.spec().dram.unwrap_or(u64::MAX)
        )))
    }

    fn save(&self, manifest: &Manifest, directory: &Directory) -> Result<()> {
        // The manifest is durable at once: what was pushed before must not come after it.
        if self.is_journaled() {
            self.journal().sync()?;
        }
        manifest.save(directory)
    }

    pub(super) fn keys(&self, id: TableId, at: u32, keys: &mut Vec<u64>) -> Result<u32> {
        let table = self.table(id)?;
        let next = (at.min(BUCKETS) + BUCKETS_PER_WALK).min(BUCKETS);
        let start = keys.len();
        // Rows that move between the two looks are not found: look again.
        while !self.list(&table, at..next, keys)? {
            keys.truncate(start);
        }
        Ok(next)
    }

    /// Lists the keys of some buckets: of rows in DRAM from the rows, of others from the footers.
    /// False if a row moved meanwhile.
    fn list(&self, table: &Table, buckets: Range<u32>, keys: &mut Vec<u64>) -> Result<bool> {
        // Places that were seen are not filled again meanwhile.
        let _pin = self.tier.log.pin();
        let mut on_nvme = HashSet::new();
        for bucket in buckets.clone() {
            let state = self.stripes[(bucket / self.tier.buckets_per_stripe) as usize].lock();
            let Some(part) = state.parts.get(&table.id) else { continue };
            for location in part.index.bucket_locations(bucket) {
                match location.resolve() {
                    Ok(at) => keys.push(part.pool.header(at).key),
                    Err(place) => drop(on_nvme.insert(place)),
                }
            }
        }
        if !on_nvme.is_empty() {
            // What was just appended has no footer yet.
            self.tier.log.sync()?;
            self.tier.log.entries(buckets, &mut |entry| {
                if entry.table == table.id && on_nvme.remove(&entry.place) {
                    keys.push(entry.key);
                }
            })?;
        }
        Ok(on_nvme.is_empty())
    }
}

impl Catalog {
    pub(super) fn add(&mut self, table: Arc<Table>) {
        self.by_name.insert(table.name(), table.id);
        self.by_id.insert(table.id, table);
    }

    fn forget(&mut self, name: &str) -> Option<Arc<Table>> {
        let id = self.by_name.remove(name)?;
        self.by_id.remove(&id)
    }

    fn manifest(&self) -> Manifest {
        let mut tables: Vec<_> = self
            .by_id
            .values()
            .map(|table| ManifestTable { id: table.id, spec: table.spec() })
            .collect();
        tables.sort_by_key(|table| table.id);
        Manifest { next_table_id: self.next_id, tables }
    }

    pub(super) fn load(manifest: Manifest, stripes: usize) -> Self {
        let mut catalog = Self { next_id: manifest.next_table_id, ..Self::default() };
        for ManifestTable { id, spec } in manifest.tables {
            catalog.add(Arc::new(Table::new(id, spec, stripes)));
        }
        catalog
    }
}

fn not_found(name: &str) -> Error {
    Error::table_not_found(format!("table {name:?} does not exist; create it first"))
}
