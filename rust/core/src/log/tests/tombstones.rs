//! Goal: what was removed never comes back, and its mark does not stay for ever. Method: random
//! puts, removals, compactions, syncs and openings beside a map; in the end everything is removed.

use std::collections::{BTreeMap, HashMap};

use super::*;
use crate::log::FooterEntry;
use crate::types::BUCKETS;
use proptest::prelude::*;

const SLOTS: u64 = 40;
const FLOATS: usize = 24;

/// Tables over a log, with an index in memory and whatever compaction the log asks for.
struct Model {
    device: FaultyDevice,
    log: Log,
    index: BTreeMap<(TableId, u64), Kept>,
    sequence: u64,
}

impl Model {
    fn new(slots: u64) -> Self {
        let device = FaultyDevice::default();
        let log = open(&device, slots, LogEnd::default());
        // Nobody asks what was removed.
        log.raise_floor(u64::MAX);
        Self { device, log, index: BTreeMap::new(), sequence: 0 }
    }

    fn put(&mut self, table: TableId, key: u64) {
        self.sequence += 1;
        let new = append(&self.log, Stream::Rows, table, key, self.sequence, FLOATS);
        let new = new.expect("there is room for rows");
        if let Some(old) = self.index.insert((table, key), new) {
            self.log.release(old.place, old.floats);
        }
    }

    fn remove(&mut self, table: TableId, key: u64) {
        let Some(old) = self.index.remove(&(table, key)) else { return };
        self.sequence += 1;
        let marked = self.log.append_tombstone(Stream::Rows, table, key, self.sequence);
        marked.expect("there is room for marks");
        self.log.release(old.place, old.floats);
    }

    fn is_short(&self) -> bool {
        self.log.free_segments() + self.log.freed_segments() < 8
    }

    /// Bytes that compaction copied.
    fn compact(&mut self) -> u64 {
        let mut copied = 0;
        loop {
            while let Some(segment) = self.log.victim(self.is_short()) {
                copied += self.compact_segment(segment);
            }
            let freed = self.log.freed_segments();
            self.log.sync().expect("sync");
            if self.log.freed_segments() == freed {
                return copied;
            }
        }
    }

    fn compact_segment(&mut self, segment: crate::log::SegmentId) -> u64 {
        let (log, index, elders) = (&self.log, &mut self.index, self.log.elders());
        let mut copied = 0;
        log.scan(segment, &mut |place, table, record| {
            let record = record.expect("record");
            if record.tombstone {
                if !elders.are_gone(segment, table, record.horizon()) {
                    log.copy_tombstone(table, &record).expect("compaction finds room");
                    copied += 32;
                }
            } else if let Some(kept) = index.get_mut(&(table, record.key)) {
                if kept.place == place {
                    let (key, sequence) = (kept.key, kept.sequence);
                    *kept = append(log, Stream::Compaction, table, key, sequence, FLOATS)
                        .expect("compaction finds room");
                    copied += 128;
                }
            }
        })
        .expect("scan");
        log.free(segment);
        copied
    }

    /// Opens the log again as recovery does: the newest record of each key counts.
    fn reopen(&mut self, slots: u64) {
        let end = self.log.sync().expect("sync");
        self.log.stop();
        self.device = FaultyDevice::new(self.device.image());
        self.log = open(&self.device, slots, end);
        self.log.raise_floor(u64::MAX);
        let mut newest: HashMap<(TableId, u64), FooterEntry> = HashMap::new();
        self.log
            .entries(0..BUCKETS, &mut |entry| {
                if entry.tombstone {
                    self.log.adopt_tombstone(entry.place, entry.table, entry.sequence);
                }
                let known = newest.entry((entry.table, entry.key)).or_insert(entry);
                if entry.sequence >= known.sequence {
                    *known = entry;
                }
            })
            .expect("entries");
        let mut found = BTreeMap::new();
        for ((table, key), entry) in newest.into_iter().filter(|(_, entry)| !entry.tombstone) {
            self.log.adopt(entry.place, entry.row_floats);
            let FooterEntry { sequence, place, row_floats: floats, .. } = entry;
            found.insert((table, key), Kept { table, key, sequence, floats, place });
        }
        let lost = self.index.keys().find(|key| !found.contains_key(*key));
        let back = found.keys().find(|key| !self.index.contains_key(*key));
        assert_eq!((lost, back), (None, None), "lost, and come back");
        for (key, kept) in &self.index {
            assert_eq!(found[key].sequence, kept.sequence, "{key:?}");
        }
        self.index = found;
    }

    fn remove_all(&mut self) {
        let keys: Vec<_> = self.index.keys().copied().collect();
        keys.into_iter().for_each(|(table, key)| self.remove(table, key));
    }

    fn used_segments(&self) -> u64 {
        (self.log.used_bytes() - 4096) / SEGMENT
    }
}

#[derive(Debug, Clone)]
enum Step {
    Put { table: TableId, from: u64, keys: u64 },
    Remove { table: TableId, from: u64, keys: u64 },
    Compact,
    Sync,
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = || (1u32..4, 0u64..8000, 100u64..2500);
    let step = prop_oneof![
        4 => range().prop_map(|(table, from, keys)| Step::Put { table, from, keys }),
        4 => range().prop_map(|(table, from, keys)| Step::Remove { table, from, keys }),
        2 => Just(Step::Compact),
        1 => Just(Step::Sync),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 20..80)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 60, ..Default::default() })]
    #[test]
    fn removed_keys_stay_away_and_their_marks_go(steps in steps()) {
        let mut model = Model::new(SLOTS);
        for step in steps {
            match step {
                Step::Put { table, from, keys } => {
                    (from..from + keys).for_each(|key| model.put(table, key));
                }
                Step::Remove { table, from, keys } => {
                    (from..from + keys).for_each(|key| model.remove(table, key));
                }
                Step::Compact => drop(model.compact()),
                Step::Sync => drop(model.log.sync().expect("sync")),
                Step::Reopen => model.reopen(SLOTS),
            }
            if model.is_short() || model.log.free_segments() < 8 {
                model.compact();
            }
        }
        model.remove_all();
        model.compact();
        model.reopen(SLOTS);
        model.compact();
        // A few segments of marks are no matter, nor are those that were just sealed.
        assert!(model.used_segments() <= 14, "{} segments for no row", model.used_segments());
    }
}

/// Keys come and go for ever beside a table that is never touched. Once the old table's segments
/// stayed for ever, and with them every mark of a removal.
#[test]
fn keys_that_come_and_go_do_not_fill_the_log() {
    for beside in [None, Some(2), Some(1)] {
        let mut model = Model::new(SLOTS);
        if let Some(table) = beside {
            (1 << 40..(1 << 40) + 6000).for_each(|key| model.put(table, key));
        }
        let mut copied = 0;
        for round in 0..60u64 {
            for key in round * 3000..(round + 1) * 3000 {
                model.put(1, key);
                if round % 2 == 0 {
                    model.remove(1, key);
                }
            }
            for key in round * 3000..(round + 1) * 3000 {
                model.remove(1, key);
            }
            copied += model.compact();
            if round % 20 == 19 {
                model.reopen(SLOTS);
            }
        }
        let rows = if beside.is_some() { 6000 * 128 / SEGMENT + 1 } else { 0 };
        assert!(model.used_segments() < rows + 20, "{} segments", model.used_segments());
        // 180,000 rows of 128 bytes went through.
        assert!(copied < 60 * 3000 * 128, "{copied} bytes were copied for nothing");
    }
}

/// Syncs one after the other seal what compaction fills, and each time a slot is gone.
#[test]
fn a_log_that_is_full_to_the_last_slot_is_compacted_nevertheless() {
    let mut model = Model::new(12);
    let mut key = 0;
    while model.log.has_room() {
        model.put(1, key);
        key += 1;
    }
    while append(&model.log, Stream::Rows, 1, 1 << 50, 1, FLOATS).is_ok() {}
    // As compaction would, with a sync behind every copy.
    let mut sealed = 0;
    while model.log.free_segments() > 0 {
        append(&model.log, Stream::Compaction, 1, 1 << 50, 1, FLOATS).expect("reserved");
        model.log.sync().expect("sync");
        sealed += 1;
    }
    assert_eq!(sealed, 2);
    for key in 0..key / 2 {
        let old = model.index.remove(&(1, key * 2)).expect("put before");
        model.log.release(old.place, old.floats);
    }
    let (kept, used) = (model.index.len(), model.used_segments());
    let victim = model.log.victim(true).expect("half of it is dead");
    model.compact_segment(victim);
    model.compact();
    assert_eq!(model.index.len(), kept);
    assert!(model.used_segments() < used * 3 / 4, "{} of {used}", model.used_segments());
    check(&model.log, &model.index.values().copied().collect::<Vec<_>>());
    model.put(1, 0);
}
