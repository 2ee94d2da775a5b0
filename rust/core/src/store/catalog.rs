//! The tables of a store: created, found, altered and dropped. Each change is an entry in the one
//! order; the manifest is the catalog as of the last one (docs/adr/0020).

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::{MappedMutexGuard, MutexGuard};

use super::engine::Engine;
use super::TableInfo;
use crate::directory::Directory;
use crate::error::{Error, Result};
use crate::journal::{Entry, Frame};
use crate::log::Pin;
use crate::manifest::{Manifest, ManifestTable};
use crate::spec::{TableChange, TableSpec};
use crate::table::{Part, State, Table};
use crate::types::{Sequence, TableId, BUCKETS};

use super::engine::Catalog;

/// Buckets that one call of `keys` walks.
const BUCKETS_PER_WALK: u32 = 64;

impl Engine {
    /// Whoever holds it defines tables; nobody else waits while the manifest is written.
    pub(super) fn define(&self) -> Result<MappedMutexGuard<'_, Directory>> {
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
        let mut manifest = self.catalog.read().manifest()?;
        let id = manifest.next_table_id;
        let defined = ManifestTable::new(id, spec.clone())?;
        let definition = defined.to_text()?;
        manifest.tables.push(defined);
        manifest.next_table_id += 1;
        let entry = Entry::CreateTable { table: id, definition: &definition };
        self.change_tables(manifest, &directory, &entry, |_| ())?;
        // No row of it can come to the log before the manifest names it.
        self.catalog.write().create(Arc::new(Table::new(id, spec.clone(), self.stripes.len())));
        self.expiring.ask();
        Ok(TableInfo { id, spec: spec.clone(), warnings: Vec::new() })
    }

    /// The table of that name, if it equals the spec in all that cannot be changed.
    fn open_as(&self, spec: &TableSpec) -> Result<Option<TableInfo>> {
        let catalog = self.catalog.read();
        let Some(&id) = catalog.by_name.get(&spec.name) else { return Ok(None) };
        let stored = catalog.by_id[&id].spec();
        let warnings = stored.open_as(spec)?;
        Ok(Some(TableInfo { id: catalog.handle(id), spec: stored, warnings }))
    }

    pub(super) fn find_table(&self, name: &str) -> Result<TableInfo> {
        let catalog = self.catalog.read();
        let id = *catalog.by_name.get(name).ok_or_else(|| not_found(name))?;
        let (spec, id) = (catalog.by_id[&id].spec(), catalog.handle(id));
        Ok(TableInfo { id, spec, warnings: Vec::new() })
    }

    pub(super) fn drop_table(&self, name: &str) -> Result<()> {
        // What is released must be known.
        self.load_rest()?;
        let table = {
            let directory = self.define()?;
            let id = self.table(self.find_table(name)?.id)?.id;
            let mut manifest = self.catalog.read().manifest()?;
            manifest.tables.retain(|table| table.id != id);
            let entry = Entry::DropTable { table: id };
            let leave = |catalog: &mut Catalog| catalog.leaving = Some(id);
            self.change_tables(manifest, &directory, &entry, leave)?;
            // Only now nothing can bring it back: compaction passes over its rows from here on.
            self.catalog.write().forget(name).ok_or_else(|| not_found(name))?
        };
        self.recent.forget(table.id);
        self.give_up_rows(&[table]);
        Ok(())
    }

    /// Gives back what tables hold that nobody can name any more.
    pub(super) fn give_up_rows(&self, tables: &[Arc<Table>]) {
        for stripe in 0..self.stripes.len() {
            for table in tables {
                // Calls ordered before the end of a table end first; later ones were refused.
                let taken = self.in_turn(stripe, |state| self.take_part(state, table));
                self.bury(stripe, taken.flatten());
            }
        }
    }

    /// Takes the part of a table that was dropped out of a stripe. What it names on NVMe is
    /// released later: until then no slot of the log is filled again.
    fn take_part(&self, state: &mut State, table: &Table) -> Option<(Box<Part>, Pin<'_>)> {
        let pin = self.tier.log.pin();
        let part = state.take_part(table.id)?;
        self.release_records(table, part.index.len());
        Some((part, pin))
    }

    /// Gives back what a part held. It may be millions of rows: no stripe is locked meanwhile.
    fn bury(&self, stripe: usize, taken: Option<(Box<Part>, Pin<'_>)>) {
        if let Some((part, pin)) = taken {
            let held = part.bury(&self.tier.log, &pin);
            drop(pin);
            self.stripes[stripe].lock().give_back(&held);
        }
    }

    pub(super) fn alter(&self, id: TableId, change: &TableChange) -> Result<()> {
        let table = {
            let directory = self.define()?;
            let table = self.table(id)?;
            let id = table.id;
            let mut spec = table.spec();
            spec.alter(change)?;
            let defined = ManifestTable::new(id, spec.clone())?;
            let definition = defined.to_text()?;
            let mut manifest = self.catalog.read().manifest()?;
            manifest.tables.iter_mut().filter(|stored| stored.id == id).for_each(|stored| {
                stored.spec = defined.spec.clone();
            });
            let entry = Entry::AlterTable { table: id, definition: &definition };
            self.change_tables(manifest, &directory, &entry, |_| table.set_spec(spec))?;
            table
        };
        self.expiring.ask();
        if table.admission().is_none() {
            self.stripes.iter().for_each(|stripe| stripe.lock().forget_candidates(id));
            self.candidates.note();
        }
        self.enforce_cap(&table).map_err(|error| {
            Error::new(error.kind, format!("{}; the new settings are stored", error.message))
        })
    }

    /// Rows above the table's cap leave DRAM.
    fn enforce_cap(&self, table: &Table) -> Result<()> {
        let mut over = 0;
        for stripe in &self.stripes {
            let step = || {
                let mut state = stripe.lock();
                self.with_log_room(&mut state, |s| s.enforce_cap(&self.tier, table.id))
            };
            over += loop {
                if let Some(over) = step()? {
                    break over;
                }
            };
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

    /// Gives a change of tables its place in the order, lets `apply` make it there, and returns
    /// when it is durable, in every mode. `manifest` is the catalog with the change.
    fn change_tables(
        &self,
        manifest: Manifest,
        directory: &Directory,
        entry: &Entry<'_>,
        apply: impl FnOnce(&mut Catalog),
    ) -> Result<()> {
        // What may be refused comes first: behind the place in the order nothing may fail.
        let draft = manifest.draft(directory)?;
        let frame = self.is_journaled().then(|| Frame::new(entry)).transpose()?;
        let mut sequencer = self.sequencer.lock();
        let sequence = self.order_entry(&mut sequencer, frame)?;
        {
            let mut catalog = self.catalog.write();
            catalog.as_of = sequence;
            apply(&mut catalog);
        }
        drop(sequencer);
        // The manifest is durable at once: what was ordered before must not come after it.
        let synced = if self.is_journaled() { self.journal().sync_to(sequence) } else { Ok(()) };
        let durable = synced.and_then(|()| draft.publish(sequence));
        durable.inspect_err(|error| self.fail(error))
    }

    /// The table of an entry of the journal; `None` if it was dropped.
    pub(super) fn find_replayed(&self, id: TableId) -> Result<Option<Arc<Table>>> {
        let catalog = self.catalog.read();
        if id >= catalog.next_id {
            let what = format!("an entry names table id {id}, the next is {}", catalog.next_id);
            return Err(self.contradiction(&what));
        }
        Ok(catalog.by_id.get(&id).cloned())
    }

    /// Makes a change of tables that the journal holds and the manifest does not: its call was cut
    /// short. Nothing else runs yet.
    pub(super) fn replay_tables(&self, sequence: Sequence, entry: &Entry<'_>) -> Result<()> {
        let directory = self.define()?;
        let mut dropped = None;
        match *entry {
            Entry::CreateTable { table, definition } => {
                let ManifestTable { spec, .. } = self.replayed_definition(table, definition)?;
                let mut catalog = self.catalog.write();
                if table != catalog.next_id || catalog.by_name.contains_key(&spec.name) {
                    return Err(self.contradiction(&format!("table id {table} is made twice")));
                }
                catalog.create(Arc::new(Table::new(table, spec, self.stripes.len())));
            }
            Entry::AlterTable { table, definition } => {
                let ManifestTable { spec, .. } = self.replayed_definition(table, definition)?;
                let known = self.find_replayed(table)?.filter(|t| t.spec().open_as(&spec).is_ok());
                let Some(known) = known else {
                    return Err(self.contradiction(&format!("table id {table} changes its shape")));
                };
                known.set_spec(spec);
            }
            Entry::DropTable { table } => {
                self.load_rest()?;
                let name = self.find_replayed(table)?.map(|table| table.name());
                dropped = name.and_then(|name| self.catalog.write().forget(&name));
            }
            _ => {}
        }
        let manifest = {
            let mut catalog = self.catalog.write();
            catalog.as_of = sequence;
            catalog.manifest()?
        };
        manifest.save(&directory)?;
        if let Some(table) = dropped {
            for stripe in 0..self.stripes.len() {
                let taken = self.take_part(&mut self.stripes[stripe].lock(), &table);
                self.bury(stripe, taken);
            }
        }
        Ok(())
    }

    fn replayed_definition(&self, id: TableId, text: &str) -> Result<ManifestTable> {
        match ManifestTable::from_text(text) {
            Ok(table) if table.id == id => Ok(table),
            Ok(table) => Err(self.contradiction(&format!("table id {id} is called {}", table.id))),
            Err(what) => Err(self.contradiction(&what)),
        }
    }

    fn contradiction(&self, what: &str) -> Error {
        let path = self.config.path.display();
        Error::corruption(format!(
            "the journal of {path} contradicts its manifest: {what}; restore the data directory \
             from a checkpoint"
        ))
    }

    pub(super) fn keys(&self, id: TableId, at: u32, keys: &mut Vec<u64>) -> Result<u32> {
        let table = self.table(id)?;
        let next = (at.min(BUCKETS) + BUCKETS_PER_WALK).min(BUCKETS);
        self.load_buckets(at.min(BUCKETS)..next)?;
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
    fn create(&mut self, table: Arc<Table>) {
        self.next_id = table.id + 1;
        self.add(table);
    }

    fn add(&mut self, table: Arc<Table>) {
        self.by_name.insert(table.name(), table.id);
        self.by_id.insert(table.id, table);
    }

    /// All tables in order of their names, each with its id and dim.
    pub(super) fn listed(&self) -> Vec<(String, TableId, u32)> {
        let entry = |table: &Arc<Table>| (table.name(), table.id, table.dim as u32);
        let mut tables: Vec<_> = self.by_id.values().map(entry).collect();
        tables.sort_unstable();
        tables
    }

    fn forget(&mut self, name: &str) -> Option<Arc<Table>> {
        let id = self.by_name.remove(name)?;
        self.leaving = None;
        self.by_id.remove(&id)
    }

    pub(super) fn manifest(&self) -> Result<Manifest> {
        let mut tables = Vec::with_capacity(self.by_id.len());
        for table in self.by_id.values() {
            let of = self.successors.iter().filter(|of| *of.1 == table.id);
            let mut formerly: Vec<TableId> = of.map(|of| *of.0).collect();
            formerly.sort_unstable();
            let is_staged = self.staged.contains(&table.id);
            let defined = ManifestTable::new(table.id, table.spec())?;
            tables.push(ManifestTable { formerly, is_staged, ..defined });
        }
        tables.sort_by_key(|table| table.id);
        Ok(Manifest { sequence: self.as_of, next_table_id: self.next_id, tables })
    }

    /// The id by which callers know a table: that of the first that it has replaced.
    fn handle(&self, id: TableId) -> TableId {
        let formers = self.successors.iter().filter(|former| *former.1 == id);
        formers.map(|former| *former.0).min().unwrap_or(id)
    }

    /// Tables that calls find.
    pub(super) fn named(&self) -> Vec<Arc<Table>> {
        self.by_name.values().filter_map(|id| self.by_id.get(id).cloned()).collect()
    }

    pub(super) fn load(manifest: Manifest, stripes: usize) -> Self {
        let Manifest { sequence, next_table_id, tables } = manifest;
        let mut catalog = Self { next_id: next_table_id, as_of: sequence, ..Self::default() };
        // What was being filled is incomplete: its rows are dead.
        for ManifestTable { id, spec, formerly, .. } in tables.into_iter().filter(|t| !t.is_staged)
        {
            catalog.successors.extend(formerly.into_iter().map(|former| (former, id)));
            catalog.add(Arc::new(Table::new(id, spec, stripes)));
        }
        catalog
    }
}

fn not_found(name: &str) -> Error {
    Error::table_not_found(format!("table {name:?} does not exist; create it first"))
}
