//! What a damaged segment still holds, by its footer: sound records are copied, rows that are in
//! DRAM too are written anew. If a live row stays that cannot be read, so does the segment, aside.

use std::sync::Arc;

use super::compaction::Copying;
use super::damaged::{Damaged, Fate};
use super::fetch::{count_reads, Damage, Miss, Receiver, Source, Wanted};
use crate::error::{ErrorKind, Result};
use crate::index::Location;
use crate::log::{FooterEntry, Pin, Read, RecordView, Stream};
use crate::table::{stripe_of, Counters, Found, Item, State, Table};
use crate::types::{hash, Place, BUCKETS};

/// Rows that are read together, and bytes of them: they are held in memory until they are copied.
const ROWS_MAX: usize = 64;
const BYTES_MAX: usize = 256 << 10;

impl Copying<'_> {
    /// Moves elsewhere what a scan of the segment could not read. Returns what is damaged of it.
    pub(super) fn salvage(&self) -> Result<Vec<Damaged>> {
        let log = &self.engine.tier.log;
        let mut entries = Vec::new();
        let mut is_whole =
            log.entries_of(self.segment, 0..BUCKETS, &mut |entry| entries.push(entry)).is_ok();
        entries.sort_by_key(|entry| entry.table);
        let mut damaged = Vec::new();
        for entries in entries.chunk_by(|a, b| a.table == b.table) {
            let table = self.engine.catalog.read().by_id.get(&entries[0].table).cloned();
            let Some(table) = table else { continue };
            for mark in entries.iter().filter(|entry| entry.tombstone) {
                // A footer does not say its horizon: that of a removal now covers it.
                log.append_tombstone(Stream::Compaction, table.id, mark.key, mark.sequence)?;
            }
            let rows: Vec<_> = entries.iter().filter(|entry| !entry.tombstone).collect();
            let few = (BYTES_MAX / (4 * table.floats)).clamp(1, ROWS_MAX);
            for rows in rows.chunks(few) {
                self.rescue(&table, rows, &mut damaged)?;
            }
        }
        is_whole &= damaged.iter().all(|damaged| damaged.fate != Fate::Lost);
        if is_whole {
            log.free(self.segment);
        } else {
            log.set_aside(self.segment);
        }
        Ok(damaged)
    }

    /// Moves those of some rows that are live.
    fn rescue(
        &self,
        table: &Arc<Table>,
        rows: &[&FooterEntry],
        damaged: &mut Vec<Damaged>,
    ) -> Result<()> {
        // Before the places are looked up, until they were read.
        let pin = self.engine.tier.log.pin();
        let (mut keys, mut misses, mut resident) = (Vec::new(), Vec::new(), Vec::new());
        for &entry in rows {
            match self.find(table, entry) {
                Found::Nvme(place) => {
                    misses.push(Miss { source: 0, index: keys.len() as u32, place });
                    keys.push(entry.key);
                }
                Found::Dram(_) => resident.push(entry),
                Found::Absent => {}
            }
        }
        let places = misses.iter().map(|miss| miss.place).collect();
        let mut saved = Saved { places, ..Saved::default() };
        let sources = [Source { table, keys: &keys }];
        match self.engine.fetch(&pin, &sources, &mut misses, &mut saved) {
            // A device that cannot read one of them says nothing of the others.
            Err(error) if error.kind == ErrorKind::Unavailable && rows.len() > 1 => {
                return rows.iter().try_for_each(|&row| self.rescue(table, &[row], damaged));
            }
            Err(error) if error.kind == ErrorKind::Unavailable => {
                self.note(table, rows[0], Fate::Lost, damaged);
            }
            outcome => outcome?,
        }
        damaged.append(&mut saved.lost);
        let copies = &mut saved.copies.iter();
        copies.try_for_each(|copy| self.copy_row(copy.place, table.id, &copy.view()))?;
        self.rewrite(&pin, table, &resident, &mut saved.came, damaged)?;
        drop(pin);
        // Rows that came to DRAM meanwhile, or left it: all is looked at once more.
        let rows: Vec<_> =
            rows.iter().filter(|row| saved.came.contains(&row.place)).copied().collect();
        match rows.is_empty() {
            true => Ok(()),
            false => self.rescue(table, &rows, damaged),
        }
    }

    /// Where the row of an entry is, if the entry's is its record.
    fn find(&self, table: &Table, entry: &FooterEntry) -> Found {
        let stripes = &self.engine.stripes;
        let item = Item { key: entry.key, hash: hash(entry.key), index: 0 };
        let state = stripes[stripe_of(item.hash, stripes.len())].lock();
        let Some(part) = state.parts.get(&table.id) else { return Found::Absent };
        if part.slot(item.hash, Location::nvme(entry.place)).is_some() {
            return Found::Nvme(entry.place);
        }
        match part.find(&item, |_| true) {
            Found::Dram(at) if part.pool.header(at).state.place() == Some(entry.place) => {
                Found::Dram(at)
            }
            _ => Found::Absent,
        }
    }

    /// Writes rows that are in DRAM anew. Of those that are there no more the places are told.
    fn rewrite(
        &self,
        pin: &Pin<'_>,
        table: &Arc<Table>,
        resident: &[&FooterEntry],
        gone: &mut Vec<Place>,
        damaged: &mut Vec<Damaged>,
    ) -> Result<()> {
        let tier = &self.engine.tier;
        let read = |n: usize| {
            let FooterEntry { place, row_floats, .. } = *resident[n];
            Read { place, row_floats, table: table.id }
        };
        let mut is_sound = vec![false; resident.len()];
        let counts = tier.log.read(pin, resident.len(), &read, &mut |n, record| {
            is_sound[n] = record.is_ok();
        });
        count_reads([(&**table, 1)].into_iter(), 1, counts, true);
        for (entry, is_sound) in resident.iter().zip(is_sound) {
            let item = Item { key: entry.key, hash: hash(entry.key), index: 0 };
            let rewrite = |state: &mut State| state.rewrite(tier, table.id, &item, entry.place);
            if !self.engine.outside_of_turns(item.hash, rewrite)? {
                gone.push(entry.place);
            } else if !is_sound {
                self.note(table, entry, Fate::Rewritten, damaged);
            }
        }
        Ok(())
    }

    /// Counts a damaged record, and tells of it.
    fn note(&self, table: &Table, entry: &FooterEntry, fate: Fate, damaged: &mut Vec<Damaged>) {
        let found = Damaged::row(table, entry.key, entry.place, fate);
        Counters::add(&table.counters.corrupt_records, 1);
        self.engine.note_damaged(found.clone());
        damaged.push(found);
    }
}

/// Records that were read after all, and rows that are lost.
#[derive(Default)]
struct Saved {
    /// Where the rows are wanted from: one that has moved is safe.
    places: Vec<Place>,
    copies: Vec<Copied>,
    /// Places whose rows came to DRAM.
    came: Vec<Place>,
    lost: Vec<Damaged>,
}

/// A record in memory.
struct Copied {
    place: Place,
    key: u64,
    sequence: u64,
    last_seen: u32,
    frequency: u32,
    row: Vec<f32>,
}

impl Copied {
    fn view(&self) -> RecordView<'_> {
        let Self { key, sequence, last_seen, frequency, ref row, .. } = *self;
        RecordView { key, sequence, last_seen, frequency, tombstone: false, row }
    }
}

impl Receiver for Saved {
    const IS_BACKGROUND: bool = true;

    /// It is copied later: here, under the lock, no buffer may be waited for.
    fn record(
        &mut self,
        _: &mut State,
        wanted: &Wanted<'_>,
        record: &RecordView<'_>,
    ) -> Result<bool> {
        if self.places.contains(&wanted.place) {
            let RecordView { key, sequence, last_seen, frequency, row, .. } = *record;
            let (place, row) = (wanted.place, row.to_vec());
            self.copies.push(Copied { place, key, sequence, last_seen, frequency, row });
        }
        Ok(true)
    }

    fn resident(&mut self, _: &mut State, wanted: &Wanted<'_>, _: u64) -> Result<()> {
        self.came.push(wanted.place);
        Ok(())
    }

    fn absent(&mut self, _: &mut State, _: &Wanted<'_>) -> Result<()> {
        Ok(())
    }

    fn damaged(&mut self, _: &mut State, wanted: &Wanted<'_>, _: Damage) -> Result<()> {
        self.lost.push(Damaged::row(wanted.table, wanted.item.key, wanted.place, Fate::Lost));
        Ok(())
    }
}
