//! Counters by the names of the public API.

use super::engine::Engine;
use crate::error::Result;
use crate::table::{Counters, Table};
use crate::types::TableId;

/// Where the rows of a table are, and what they take.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Rows {
    pub(super) keys: u64,
    dram: u64,
    dram_bytes: u64,
    index_bytes: u64,
}

impl Engine {
    pub(super) fn rows(&self, table: &Table) -> Rows {
        let mut rows = Rows::default();
        for stripe in &self.stripes {
            let state = stripe.lock();
            if let Some(part) = state.parts.get(&table.id) {
                rows.keys += part.index.len() as u64;
                rows.dram += part.pool.len() as u64;
                rows.dram_bytes += part.bytes();
                rows.index_bytes += part.index.bytes();
            }
        }
        rows
    }

    pub(super) fn table_stats(&self, id: TableId) -> Result<Vec<(&'static str, u64)>> {
        let table = self.table(id)?;
        Ok(self.count(&table))
    }

    fn count(&self, table: &Table) -> Vec<(&'static str, u64)> {
        Self::describe(&self.rows(table), Self::record_bytes_of(table), &table.counters)
    }

    fn describe(rows: &Rows, record_bytes: u64, counters: &Counters) -> Vec<(&'static str, u64)> {
        let nvme = rows.keys - rows.dram.min(rows.keys);
        let mut list = vec![
            ("keys", rows.keys),
            ("rows_dram", rows.dram),
            ("rows_nvme", nvme),
            ("rows_cold", 0),
            ("dram_bytes", rows.dram_bytes),
            ("index_bytes", rows.index_bytes),
            ("nvme_bytes", nvme * record_bytes),
            ("cold_bytes", 0),
        ];
        list.extend(counters.list());
        list
    }

    pub(super) fn stats(&self) -> Vec<(&'static str, u64)> {
        let tables: Vec<_> = self.catalog.read().by_id.values().cloned().collect();
        let mut sums = Self::describe(&Rows::default(), 0, &Counters::default());
        for table in &tables {
            for (sum, (_, value)) in sums.iter_mut().zip(self.count(table)) {
                sum.1 += value;
            }
        }
        self.use_files(&mut sums);
        sums.push(("tables", tables.len() as u64));
        sums.push(("dram_limit", self.config.dram_bytes));
        sums.push(("nvme_limit", self.config.nvme_bytes));
        sums
    }

    /// For the store as a whole the files themselves know best.
    fn use_files(&self, sums: &mut [(&'static str, u64)]) {
        let log = &self.tier.log;
        let journal = self.journal();
        let stripes: u64 = self.stripes.iter().map(|stripe| stripe.lock().used()).sum();
        for (name, value) in sums {
            match *name {
                "dram_bytes" => *value = stripes + self.buffer_bytes,
                "nvme_bytes" => *value = log.allocated_bytes() + journal.bytes(),
                "journal_bytes" => *value = journal.bytes_written(),
                "device_bytes_read" => *value = log.bytes_read(),
                "device_bytes_written" => *value = log.bytes_written() + journal.bytes_written(),
                _ => {}
            }
        }
    }
}
