//! Where the index of some buckets comes from at an opening: an image, and the footers of segments
//! that are younger than it. What they give is what all footers would give.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use super::engine::Engine;
use super::load::{by_key, Dated};
use crate::error::Result;
use crate::image::{Image, TableKeys};
use crate::index::Entry;
use crate::log::{FooterEntry, SegmentId};
use crate::table::Table;
use crate::types::{bucket, hash, Disk, Place, Sequence, TableId, BUCKETS};

/// An image that fits the log, as it is at the opening.
pub(super) struct Source {
    pub(super) image: Image,
    /// Segments that the image speaks for, and all others: in growing incarnation.
    known: Vec<SegmentId>,
    younger: Vec<SegmentId>,
    /// For each slot of each disk whether it holds one of `known`: places in others are of rows
    /// that have moved or gone since.
    is_known: [Vec<bool>; 2],
    younger_records: u64,
}

/// Memory for a record in a younger footer: itself, the change that it is, the places it asks for.
const RECORD_BYTES: u64 = 160;

/// Entries by bucket and table.
type Runs = BTreeMap<(u32, TableId), Vec<Entry>>;

/// The newest record of a key that is younger than the image.
struct Change {
    entry: FooterEntry,
    hash: u64,
    /// Length of the rows of its table.
    floats: usize,
}

/// What some buckets hold, and how many keys of each table the image counts there.
#[derive(Default)]
pub(super) struct Restored {
    pub(super) entries: Runs,
    pub(super) imaged: HashMap<TableId, u64>,
    /// Records that counted as live so far, with the length of their rows, and marks of removals.
    dead: Vec<(Place, usize)>,
    marks: Vec<(Place, TableId, Sequence)>,
}

impl Source {
    /// None if the image does not fit the segments.
    pub(super) fn new(image: Image, segments: &[(SegmentId, u32)]) -> Option<Self> {
        let end = image.summary().end;
        let ids = segments.iter().map(|segment| segment.0);
        let (known, younger): (Vec<_>, Vec<_>) = ids.partition(|id| id.incarnation <= end);
        let told: HashSet<SegmentId> =
            image.summary().accounts.iter().map(|account| account.segment).collect();
        if !known.iter().all(|id| told.contains(id)) {
            return None;
        }
        let slots = known.iter().map(|id| id.slot + 1).max()? as usize;
        let mut is_known = [vec![false; slots], vec![false; slots]];
        known.iter().for_each(|id| is_known[id.disk as usize][id.slot as usize] = true);
        let is_younger = |segment: &&(SegmentId, u32)| segment.0.incarnation > end;
        let younger_records = segments.iter().filter(is_younger).map(|s| u64::from(s.1)).sum();
        Some(Self { image, known, younger, is_known, younger_records })
    }

    /// Whether the segment of a place is one that the image speaks for.
    fn is_known(&self, slot: Option<(Disk, u32)>) -> bool {
        let known = slot.map(|(disk, slot)| self.is_known[disk as usize].get(slot as usize));
        known.flatten().is_some_and(|&is_known| is_known)
    }

    pub(super) fn tables(&self) -> &[TableKeys] {
        &self.image.summary().tables
    }

    /// Memory that it takes to restore so many buckets.
    pub(super) fn bytes_of(&self, buckets: usize) -> u64 {
        let keys: u64 = self.tables().iter().map(|of| of.keys).sum();
        let bytes = keys * size_of::<Entry>() as u64 + self.younger_records * RECORD_BYTES;
        bytes * buckets as u64 / u64::from(BUCKETS)
    }

    /// Segments whose records are not in the image.
    pub(super) fn younger(&self) -> &[SegmentId] {
        &self.younger
    }
}

impl Restored {
    /// A record that counted as live until it was read. Of a dropped table nothing counts.
    fn note_dead(&mut self, entry: &FooterEntry, is_of_table: bool) {
        self.dead.push((entry.place, entry.row_floats));
        if entry.tombstone && is_of_table {
            self.marks.push((entry.place, entry.table, entry.sequence));
        }
    }
}

impl Engine {
    /// Takes over what the image tells of the log as a whole.
    pub(super) fn adopt_accounts(&self, source: &Source) {
        let log = &self.tier.log;
        source.image.summary().accounts.iter().for_each(|account| log.adopt_account(account));
        source.younger.iter().for_each(|&segment| log.adopt_unread(segment));
    }

    /// What the index holds in these buckets. Changes nothing.
    pub(super) fn restore(&self, source: &Source, buckets: Range<u32>) -> Result<Restored> {
        let mut restored = Restored::default();
        for bucket in buckets.clone() {
            let Some(runs) = source.image.read(bucket) else {
                restored.entries = self.entries_before(source, &buckets)?;
                break;
            };
            restored.entries.extend(runs.into_iter().map(|(table, run)| ((bucket, table), run)));
        }
        for ((_, table), run) in &restored.entries {
            *restored.imaged.entry(*table).or_default() += run.len() as u64;
        }
        self.drop_gone(source, &mut restored);
        if !source.younger.is_empty() {
            self.catch_up(source, &buckets, &mut restored)?;
        }
        Ok(restored)
    }

    /// Tells the log what `restore` has found to be dead.
    pub(super) fn settle_records(&self, restored: &Restored) {
        let log = &self.tier.log;
        restored.dead.iter().for_each(|&(place, floats)| log.release(place, floats));
        for &(place, table, sequence) in &restored.marks {
            log.adopt_tombstone(place, table, sequence);
        }
    }

    /// What the image should have said, by the footers of the segments that it speaks for.
    fn entries_before(&self, source: &Source, buckets: &Range<u32>) -> Result<Runs> {
        let mut dated = self.footers(&source.known, buckets)?;
        let mut entries = Runs::new();
        for of_key in by_key(&mut dated) {
            let Some(Dated { entry, .. }) = of_key.last() else { continue };
            if !entry.tombstone {
                let hash = hash(entry.key);
                let run = entries.entry((bucket(hash), entry.table)).or_default();
                run.push(Entry::new(hash, entry.place));
            }
        }
        Ok(entries)
    }

    fn footers(&self, segments: &[SegmentId], buckets: &Range<u32>) -> Result<Vec<Dated>> {
        let mut dated = Vec::new();
        for (rank, &segment) in segments.iter().enumerate() {
            self.tier.log.entries_of(segment, buckets.clone(), &mut |entry| {
                dated.push(Dated { entry, segment: rank as u32 });
            })?;
        }
        Ok(dated)
    }

    /// Takes out the rows of dropped tables, and those in segments that are not there any more:
    /// such a row was written elsewhere or removed before its segment went.
    fn drop_gone(&self, source: &Source, restored: &mut Restored) {
        let tables = &self.catalog.read().by_id;
        let log = &self.tier.log;
        let is_there = |entry: &Entry| source.is_known(log.slot_of(entry.place()));
        let floats: HashMap<TableId, usize> =
            source.tables().iter().map(|known| (known.table, known.floats as usize)).collect();
        let Restored { entries, dead, .. } = restored;
        entries.retain(|(_, table), run| {
            run.retain(is_there);
            let is_dropped = !tables.contains_key(table);
            if is_dropped {
                let floats = floats.get(table).copied().unwrap_or(0);
                dead.extend(run.iter().map(|entry| (entry.place(), floats)));
            }
            !is_dropped
        });
    }

    /// Brings entries up to date with what was appended after the image.
    fn catch_up(
        &self,
        source: &Source,
        buckets: &Range<u32>,
        restored: &mut Restored,
    ) -> Result<()> {
        let mut dated = self.footers(&source.younger, buckets)?;
        let changes = self.changes(&mut dated, restored)?;
        let Restored { entries, dead, .. } = restored;
        entries.values_mut().for_each(|run| run.sort_unstable());
        let keys = self.keys_of_places(source, buckets, &changes, entries)?;
        let (mut old, mut new) = (HashSet::new(), Vec::new());
        for Change { entry, hash, floats } in &changes {
            let at = (bucket(*hash), entry.table);
            // The copy of a mark that the image knew: what it removed was not there any more.
            if entry.tombstone && entry.sequence <= source.image.sequence(at.0) {
                continue;
            }
            for alike in like(entries, at, *hash) {
                if keys.get(&alike.place()) == Some(&entry.key) {
                    dead.push((alike.place(), *floats));
                    old.insert(alike.place());
                }
            }
            if !entry.tombstone {
                new.push((at, Entry::new(*hash, entry.place)));
            }
        }
        entries.values_mut().for_each(|run| run.retain(|entry| !old.contains(&entry.place())));
        new.into_iter().for_each(|(at, entry)| entries.entry(at).or_default().push(entry));
        Ok(())
    }

    /// The record of each key that counts. All others are settled: they counted as live so far.
    fn changes(&self, dated: &mut [Dated], restored: &mut Restored) -> Result<Vec<Change>> {
        let tables: HashMap<TableId, Arc<Table>> = self.catalog.read().by_id.clone();
        let mut changes = Vec::new();
        for of_key in by_key(dated) {
            let Some((Dated { entry, .. }, older)) = of_key.split_last() else { continue };
            let table = tables.get(&entry.table);
            older.iter().for_each(|older| restored.note_dead(&older.entry, table.is_some()));
            if table.is_none() || entry.tombstone {
                restored.note_dead(entry, table.is_some());
            }
            if let Some(table) = table {
                self.check_length_of(table, entry)?;
                changes.push(Change { entry: *entry, hash: hash(entry.key), floats: table.floats });
            }
        }
        Ok(changes)
    }

    /// Whose the records are that may be older ones of changed keys: entries do not say it, but the
    /// footers of their segments do.
    fn keys_of_places(
        &self,
        source: &Source,
        buckets: &Range<u32>,
        changes: &[Change],
        entries: &Runs,
    ) -> Result<HashMap<Place, u64>> {
        let mut asked = HashSet::new();
        for Change { entry, hash, .. } in changes {
            let alike = like(entries, (bucket(*hash), entry.table), *hash);
            asked.extend(alike.iter().map(|entry| entry.place()));
        }
        let slots: HashSet<(Disk, u32)> =
            asked.iter().filter_map(|&place| self.tier.log.slot_of(place)).collect();
        let mut keys = HashMap::with_capacity(asked.len());
        for &segment in
            source.known.iter().filter(|segment| slots.contains(&(segment.disk, segment.slot)))
        {
            self.tier.log.entries_of(segment, buckets.clone(), &mut |entry| {
                if asked.contains(&entry.place) {
                    keys.insert(entry.place, entry.key);
                }
            })?;
        }
        Ok(keys)
    }
}

/// Entries of sorted runs that may be those of a key with this hash.
fn like(entries: &Runs, at: (u32, TableId), hash: u64) -> &[Entry] {
    let run = entries.get(&at).map_or(&[][..], Vec::as_slice);
    let first = run.partition_point(|entry| entry.is_before(hash));
    let alike = run[first..].iter().take_while(|entry| entry.is_like(hash)).count();
    &run[first..first + alike]
}
