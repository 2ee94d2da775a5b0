//! Counters by the names of the public API.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;

use super::engine::Engine;
use super::Snapshot;
use crate::error::{Error, ErrorKind, Result};
use crate::failure::Health;
use crate::ledger::{Hold, Kind, Ledger};
use crate::log::{Log, SCAN_BYTES};
use crate::table::{Counters, Part, Table};
use crate::types::TableId;

/// Where the rows of a table are, and what they take.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Rows {
    pub(super) keys: u64,
    dram: u64,
    cold: u64,
    dram_bytes: u64,
    index_bytes: u64,
    candidates: u64,
    candidates_bytes: u64,
}

impl Rows {
    fn add(&mut self, part: &Part) {
        self.keys += part.index.len() as u64;
        self.dram += part.pool.len() as u64;
        self.cold += part.index.cold() as u64;
        self.dram_bytes += part.bytes();
        self.index_bytes += part.index.bytes();
        let (keys, bytes) = part.candidates();
        self.candidates += keys;
        self.candidates_bytes += bytes;
    }
}

/// Memory that lives as long as the store.
pub(super) struct Holds {
    buffers: Hold,
    accounts: Hold,
    sessions: Hold,
    _segments: Hold,
    _journal: Hold,
}

/// The journal's tail, and entries on their way to it.
const JOURNAL_BYTES: u64 = 128 << 10;

/// Rings and page buffers of readers, and one buffer each for compaction and scrub.
fn buffer_bytes(log: &Log) -> u64 {
    log.reader_bytes() + 2 * SCAN_BYTES as u64
}

impl Holds {
    pub(super) fn new(ledger: &Arc<Ledger>, log: &Log, segments: u64) -> Self {
        Self {
            buffers: ledger.hold(Kind::Buffers, buffer_bytes(log)),
            accounts: ledger.hold(Kind::Accounts, log.account_bytes()),
            sessions: ledger.hold(Kind::Sessions, 0),
            _segments: ledger.hold(Kind::Segments, segments),
            _journal: ledger.hold(Kind::Journal, JOURNAL_BYTES),
        }
    }
}

impl Engine {
    /// Books what grows slowly and is bounded elsewhere: accounts of segments, buffers of readers,
    /// sessions.
    pub(super) fn account(&self) {
        let sessions = self.sequencer.lock().sessions.memory_bytes();
        let mut holds = self.holds.lock();
        holds.buffers.resize(buffer_bytes(&self.tier.log));
        holds.accounts.resize(self.tier.log.account_bytes());
        holds.sessions.resize(sessions);
    }

    /// Rows give back what others of the store have taken of their share. A log that is full or
    /// busy is no failure here: they will when it has room.
    pub(super) fn fit_rows(&self) -> Result<()> {
        if !self.ledger.is_over() {
            return Ok(());
        }
        for stripe in &self.stripes {
            let mut is_done = false;
            while !is_done {
                let step = stripe.lock().fit(&self.tier);
                is_done = match step {
                    Err(Error { kind: ErrorKind::StoreFull | ErrorKind::Busy, .. }) => {
                        return Ok(())
                    }
                    outcome => outcome?,
                };
            }
        }
        Ok(())
    }

    /// Rows of a table, exactly: waits for the index.
    pub(super) fn len(&self, table: TableId) -> Result<u64> {
        let table = self.table(table)?;
        self.load_rest()?;
        Ok(self.rows(&table).keys)
    }

    /// While the index is loaded, what is missing of it is counted by its image.
    pub(super) fn rows(&self, table: &Table) -> Rows {
        let mut rows = Rows { keys: self.loading.pending(table.id), ..Rows::default() };
        for stripe in &self.stripes {
            if let Some(part) = stripe.lock().parts.get(&table.id) {
                rows.add(part);
            }
        }
        rows
    }

    /// Of all tables; each stripe is locked once, however many tables there are.
    fn all_rows(&self) -> HashMap<TableId, Rows> {
        let mut rows: HashMap<TableId, Rows> = HashMap::new();
        for stripe in &self.stripes {
            for (&table, part) in &stripe.lock().parts {
                rows.entry(table).or_default().add(part);
            }
        }
        rows
    }

    pub(super) fn table_stats(&self, id: TableId) -> Result<Vec<(&'static str, u64)>> {
        let table = self.table(id)?;
        let rows = self.rows(&table);
        Ok(Self::describe(&rows, Self::record_bytes_of(&table), &table.counters))
    }

    fn describe(rows: &Rows, record_bytes: u64, counters: &Counters) -> Vec<(&'static str, u64)> {
        let nvme = rows.keys.saturating_sub(rows.dram + rows.cold);
        let mut list = vec![
            ("keys", rows.keys),
            ("rows_dram", rows.dram),
            ("rows_nvme", nvme),
            ("rows_cold", rows.cold),
            ("dram_bytes", rows.dram_bytes),
            ("index_bytes", rows.index_bytes),
            ("nvme_bytes", nvme * record_bytes),
            ("cold_bytes", rows.cold * record_bytes),
            ("candidates", rows.candidates),
            ("candidates_bytes", rows.candidates_bytes),
        ];
        list.extend(counters.list());
        list
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let tables = self.catalog.read().named();
        let rows = self.all_rows();
        let count = |table: Arc<Table>| {
            let mut rows = rows.get(&table.id).copied().unwrap_or_default();
            rows.keys += self.loading.pending(table.id);
            let counters = Self::describe(&rows, Self::record_bytes_of(&table), &table.counters);
            (table.name(), counters)
        };
        let mut tables: Vec<_> = tables.into_iter().map(count).collect();
        tables.sort_unstable();
        Snapshot { store: self.sum(&tables), tables }
    }

    fn sum(&self, tables: &[(String, Vec<(&'static str, u64)>)]) -> Vec<(&'static str, u64)> {
        let mut sums = Self::describe(&Rows::default(), 0, &Counters::default());
        for (_, counters) in tables {
            for (sum, (_, value)) in sums.iter_mut().zip(counters) {
                sum.1 += value;
            }
        }
        self.account();
        sums.extend(self.ledger.list());
        self.use_files(&mut sums);
        // Summed over servers they say how many are.
        let health = self.health();
        sums.push(("stores_degraded", u64::from(matches!(health, Health::Degraded(_)))));
        sums.push(("stores_failed", u64::from(matches!(health, Health::Failed(_)))));
        let scrub = &self.scrub;
        sums.push(("scrubbed_bytes", scrub.bytes.load(Relaxed)));
        sums.push(("scrub_passes", scrub.passes.load(Relaxed)));
        sums.push(("scrub_damaged", scrub.damaged.load(Relaxed)));
        sums.push(("tables", tables.len() as u64));
        sums.push(("dram_limit", self.config.dram_bytes));
        sums.push(("nvme_limit", self.config.nvme_bytes));
        let cold = self.config.cold.as_ref();
        sums.push(("cold_limit", cold.map_or(0, |cold| cold.cap_bytes)));
        sums
    }

    /// For the store as a whole the files themselves know best.
    fn use_files(&self, sums: &mut [(&'static str, u64)]) {
        let log = &self.tier.log;
        let journal = self.journal();
        for (name, value) in sums {
            match *name {
                "dram_bytes" => *value = self.ledger.total(),
                "nvme_bytes" => *value = self.files_bytes(),
                "cold_bytes" => *value = log.cold().map_or(0, |cold| cold.allocated_bytes()),
                "journal_bytes" => *value = journal.bytes_written(),
                "device_bytes_read" => *value = log.bytes_read(),
                "device_bytes_written" => *value = log.bytes_written() + journal.bytes_written(),
                _ => {}
            }
        }
    }
}
