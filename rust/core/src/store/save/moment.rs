//! The moment of a checkpoint: a place in the one order, at which every stripe begins to keep what
//! rows were.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLockWriteGuard;

use super::Parent;
use crate::error::Result;
use crate::spec::TableSpec;
use crate::store::engine::Engine;
use crate::table::{Since, Table, Taken, Tickets};
use crate::types::{Sequence, TableId};

/// How long training reads are held up while those before the moment end; then they go on, and it
/// is tried again.
const PAUSE: Duration = Duration::from_millis(20);
/// Tries; behind the last the moment waits for as long as one read takes.
const TRIES: usize = 50;

/// What a checkpoint is of. Until it is dropped calls keep what rows were.
pub(super) struct Moment<'a> {
    engine: &'a Engine,
    pub(super) sequence: Sequence,
    pub(super) seconds: u64,
    /// What was written to the log before has an incarnation below this one.
    pub(super) incarnation: u64,
    pub(super) tables: Vec<Saved>,
    pub(super) clients: Vec<(String, HashMap<TableId, i64>)>,
    /// Of the parent, see `incarnation`.
    pub(super) parent_incarnation: u64,
}

/// One table as of the moment.
pub(super) struct Saved {
    pub(super) table: Arc<Table>,
    pub(super) spec: TableSpec,
    pub(super) taken: Taken,
    pub(super) rows: u64,
}

impl Engine {
    /// Takes a place in the order, with the tables, settings and sessions of that place, and passes
    /// all stripes. `kept_max`: bytes at which calls wait.
    pub(super) fn take_moment(&self, parent: Option<&Parent>, kept_max: u64) -> Result<Moment<'_>> {
        // First, for whoever has it waits for the device.
        let definitions = self.directory.lock();
        let _reads_rest = self.rest_training_reads();
        let mut moment = Moment {
            engine: self,
            sequence: 0,
            seconds: 0,
            incarnation: self.oldest_open_segment()?,
            tables: Vec::new(),
            clients: Vec::new(),
            parent_incarnation: parent.map_or(0, |parent| parent.tail.incarnation),
        };
        let mut tickets = {
            let mut sequencer = self.sequencer.lock();
            moment.sequence = self.order_entry(&mut sequencer, None)?;
            moment.seconds = self.saving.date(self.clock.date());
            self.saving.date_min.fetch_max(moment.seconds + 1, Relaxed);
            moment.clients = sequencer.sessions.client_steps();
            moment.tables = self.saved_tables(moment.sequence, parent);
            let drawn = sequencer.tickets.iter_mut().enumerate().map(|(s, next)| {
                *next += 1;
                (s, *next - 1)
            });
            Tickets::new(&self.stripes, moment.sequence, drawn.collect())
        };
        drop(definitions);
        self.saving.set_limit(kept_max);
        while let Some((s, mut state)) = tickets.next_turn() {
            let buckets = self.buckets_of(s);
            for saved in &mut moment.tables {
                let account = &self.saving.kept;
                saved.rows +=
                    state.begin_keeping(saved.table.id, moment.sequence, &buckets, account);
            }
        }
        Ok(moment)
    }

    pub(super) fn buckets_of(&self, stripe: usize) -> Range<u32> {
        let own = self.tier.buckets_per_stripe;
        stripe as u32 * own..(stripe as u32 + 1) * own
    }

    /// Waits until no training read is half done, and holds new ones up.
    fn rest_training_reads(&self) -> RwLockWriteGuard<'_, ()> {
        let reads = &self.saving.training_reads;
        for _ in 0..TRIES {
            if let Some(rest) = reads.try_write_for(PAUSE) {
                return rest;
            }
            std::thread::sleep(PAUSE);
        }
        reads.write()
    }

    /// All that is written to the log from now on has this incarnation, or a later one.
    fn oldest_open_segment(&self) -> Result<u64> {
        let log = &self.tier.log;
        // Of no written segment is this asked: those that are filled now are listed alone.
        let next = log.begun_segments() + 1;
        let open = log.newer_segments(&log.pin(), Sequence::MAX)?;
        Ok(open.iter().map(|segment| segment.incarnation).min().unwrap_or(next).min(next))
    }

    fn saved_tables(&self, as_of: Sequence, parent: Option<&Parent>) -> Vec<Saved> {
        let catalog = self.catalog.read();
        let named = catalog.named().into_iter();
        let mut tables: Vec<Saved> = named
            .map(|table| {
                let taken = Taken { as_of, since: since(&table, parent) };
                Saved { spec: table.spec(), table, taken, rows: 0 }
            })
            .collect();
        tables.sort_by_key(|saved| saved.table.id);
        tables
    }
}

/// From where on changes of a table are taken, if its parent has it.
fn since(table: &Table, parent: Option<&Parent>) -> Option<Since> {
    let tail = &parent?.tail;
    let known = tail.tables.iter().any(|saved| saved.id == table.id);
    known.then_some(Since { sequence: tail.sequence, seconds: tail.seconds as u32 })
}

impl Drop for Moment<'_> {
    fn drop(&mut self) {
        self.engine.stripes.iter().for_each(|stripe| stripe.lock().end_keeping());
        self.engine.saving.set_limit(0);
    }
}
