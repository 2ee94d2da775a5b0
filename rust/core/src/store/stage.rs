//! The first two steps of a mutating call: each key is probed once, and records on NVMe are read
//! into memory of the call. Nothing is changed, and a damaged record is told from a sound one.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;

use super::engine::Engine;
use super::fetch::count_reads;
use super::mutate::{Change, Effect, Target};
use crate::error::{ErrorKind, Result};
use crate::log::{Pin, Read, RecordView};
use crate::table::{stripe_of, Counters, Found, Item, Table};
use crate::types::{bucket, Place, Sequence};

/// A call that was probed: what it will change, what was seen of that, what was set aside for it.
pub(super) struct Call<'a> {
    pub(super) engine: &'a Engine,
    pub(super) targets: Vec<Target<'a>>,
    pub(super) probed: Vec<Probed>,
    /// New keys of each target whose record bytes are reserved. Given back when dropped.
    reserved: Vec<usize>,
}

/// What the probe saw of one target.
pub(super) struct Probed {
    /// For each item of the plan.
    pub(super) found: Vec<Found>,
    /// Era of the part in each stripe: addresses in DRAM hold while it lasts.
    pub(super) eras: Vec<u64>,
    pub(super) staged: HashMap<u32, Staged>,
}

/// A record read ahead of its change.
pub(super) struct Staged {
    pub(super) place: Place,
    /// Filling of the place that was read: another one may hold another record.
    incarnation: u64,
    pub(super) sequence: Sequence,
    last_seen: u32,
    frequency: u32,
    /// Or why it cannot be read; key and sequence are then what the footer says.
    row: Result<Vec<f32>>,
}

impl<'a> Call<'a> {
    /// Probes, reads what is on NVMe, and reserves record bytes for new keys.
    pub(super) fn probe(engine: &'a Engine, targets: Vec<Target<'a>>) -> Result<Self> {
        // While it is held, no place that the probe saw is filled again. Not longer: a call that
        // waits for its turn must not keep compaction from the slots that others need.
        let pin = engine.tier.log.pin();
        let mut call = Self { engine, targets, probed: Vec::new(), reserved: Vec::new() };
        for target in &call.targets {
            let mut probed = engine.probe_target(target)?;
            engine.stage(&pin, target, &mut probed)?;
            let is_removal = matches!(target.change, Change::Remove);
            let is_new = |&&found: &&Found| found == Found::Absent && !is_removal;
            let new = probed.found.iter().filter(is_new).count();
            engine.reserve_records(&target.table, new)?;
            call.reserved.push(new);
            call.probed.push(probed);
        }
        Ok(call)
    }

    /// Keys of target `n` whose record is damaged.
    pub(super) fn damaged_keys(&self, n: usize) -> Vec<u64> {
        let damaged = self.probed[n].staged.iter().filter(|(_, staged)| staged.row.is_err());
        let mut keys: Vec<u64> =
            damaged.map(|(&item, _)| self.targets[n].plan.items[item as usize].key).collect();
        keys.sort_unstable();
        keys
    }

    /// A gradient has nothing to be added to where the old row is lost.
    pub(super) fn check_gradients(&self) -> Result<()> {
        for (target, probed) in self.targets.iter().zip(&self.probed) {
            if matches!(target.change, Change::Gradients(..)) {
                probed.staged.values().try_for_each(|staged| staged.row().map(drop))?;
            }
        }
        Ok(())
    }

    /// Returns what was reserved for keys that others created meanwhile, and charges for keys that
    /// the probe saw but that were gone, or others', when their turn came.
    pub(super) fn settle(mut self, effects: &[Effect]) {
        let reserved = std::mem::take(&mut self.reserved);
        for ((target, n), effect) in self.targets.iter().zip(reserved).zip(effects) {
            if effect.created <= n {
                self.engine.release_records(&target.table, n - effect.created);
            } else {
                self.engine.charge_records(&target.table, effect.created - n);
            }
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        for (target, n) in self.targets.iter().zip(&self.reserved) {
            self.engine.release_records(&target.table, *n);
        }
    }
}

impl Engine {
    fn probe_target(&self, target: &Target<'_>) -> Result<Probed> {
        let mut found = Vec::with_capacity(target.keys.len());
        let mut eras = vec![0; self.stripes.len()];
        for (s, stripe) in self.stripes.iter().enumerate() {
            let items = target.plan.group(s);
            if items.is_empty() {
                continue;
            }
            let state = stripe.lock();
            let before = found.len();
            match state.parts.get(&target.table.id) {
                None => found.resize(before + items.len(), Found::Absent),
                Some(part) => {
                    eras[s] = part.era;
                    part.probe(items, &mut found);
                }
            }
            if !matches!(target.change, Change::Remove) {
                let is_new = |&(_, found): &(_, &Found)| *found == Found::Absent;
                let new = items.iter().zip(&found[before..]).filter(is_new);
                let new: Vec<u64> = new.map(|(item, _)| item.hash).collect();
                state.check_room(&self.tier, &target.table, &new)?;
            }
        }
        let on_nvme = found.iter().filter(|found| matches!(found, Found::Nvme(_))).count();
        let in_dram = found.iter().filter(|found| matches!(found, Found::Dram(_))).count();
        let counters = &target.table.counters;
        Counters::add(&counters.unique_keys, found.len());
        Counters::add(&counters.probes, found.len());
        Counters::add(&counters.cache_hits, in_dram);
        Counters::add(&counters.cache_misses, on_nvme);
        Ok(Probed { found, eras, staged: HashMap::new() })
    }

    /// Reads the records of rows on NVMe; a record of another key sends its own to the next place.
    fn stage(&self, pin: &Pin<'_>, target: &Target<'_>, probed: &mut Probed) -> Result<()> {
        let mut rejected: HashMap<u32, Vec<Place>> = HashMap::new();
        let mut pending: Vec<u32> = (0..probed.found.len() as u32)
            .filter(|&n| matches!(probed.found[n as usize], Found::Nvme(_)))
            .collect();
        let mut is_first = true;
        while !pending.is_empty() {
            let others = self.read_staged(pin, target, probed, &pending, is_first)?;
            pending.clear();
            for n in others {
                let item = &target.plan.items[n as usize];
                let refused = rejected.entry(n).or_default();
                if let Found::Nvme(place) = probed.found[n as usize] {
                    refused.push(place);
                }
                let state = self.stripes[stripe_of(item.hash, self.stripes.len())].lock();
                let part = state.parts.get(&target.table.id);
                let found =
                    part.map_or(Found::Absent, |part| part.find(item, |p| refused.contains(&p)));
                probed.found[n as usize] = found;
                if matches!(found, Found::Nvme(_)) {
                    pending.push(n);
                }
            }
            is_first = false;
        }
        Ok(())
    }

    /// Reads the places of `pending`; returns those whose record is another key's.
    fn read_staged(
        &self,
        pin: &Pin<'_>,
        target: &Target<'_>,
        probed: &mut Probed,
        pending: &[u32],
        is_first: bool,
    ) -> Result<Vec<u32>> {
        let table = &target.table;
        let Probed { found, staged, .. } = probed;
        let place = |n: u32| match found[n as usize] {
            Found::Nvme(place) => Some(place),
            _ => None,
        };
        let read = |&n: &u32| place(n).map(|place| (n, read_of(table, place)));
        let mut reads: Vec<(u32, Read)> = pending.iter().filter_map(read).collect();
        reads.sort_unstable_by_key(|(_, read)| read.place);
        let (mut others, mut damaged) = (Vec::new(), Vec::new());
        let mut outcome = Ok(());
        let read = |n: usize| reads[n].1;
        let counts = self.tier.log.read(pin, reads.len(), &read, &mut |n, record| {
            let n = reads[n].0;
            match record {
                Ok(record) if record.key == target.plan.items[n as usize].key => {
                    staged.extend(place(n).map(|place| (n, self.staged(place, &record))));
                }
                Ok(_) => others.push(n),
                Err(error) if error.kind == ErrorKind::Corruption => damaged.push(n),
                Err(error) => outcome = Err(error),
            }
        });
        count_reads(std::iter::once((&**table, 1)), 1, counts, !is_first);
        outcome?;
        for n in damaged {
            let Some(place) = place(n) else { continue };
            match self.read_alone(pin, table, &target.plan.items[n as usize], place)? {
                Some(own) => drop(staged.insert(n, own)),
                None => others.push(n),
            }
        }
        Ok(others)
    }

    /// Reads one record. `None`: another key's. One that stays damaged when it is read again is
    /// known by its footer, and counted.
    pub(super) fn read_alone(
        &self,
        pin: &Pin<'_>,
        table: &Table,
        item: &Item,
        place: Place,
    ) -> Result<Option<Staged>> {
        let mut outcome = Ok(None);
        // Twice: what is taken for damaged once, and sound later, would be a change lost.
        for _ in 0..2 {
            let counts =
                self.tier.log.read(pin, 1, &|_| read_of(table, place), &mut |_, record| {
                    let own = |record: &RecordView<'_>| record.key == item.key;
                    outcome = record.map(|r| own(&r).then(|| self.staged(place, &r)));
                });
            count_reads(std::iter::once((table, 1)), 1, counts, true);
            if !matches!(&outcome, Err(error) if error.kind == ErrorKind::Corruption) {
                return outcome;
            }
        }
        table.counters.corrupt_records.fetch_add(1, Relaxed);
        match self.tier.log.entry_at(place, bucket(item.hash))? {
            Some(entry) if entry.table == table.id && !entry.tombstone => {
                Ok((entry.key == item.key).then(|| Staged {
                    place,
                    incarnation: self.tier.log.incarnation(place),
                    sequence: entry.sequence,
                    last_seen: 0,
                    frequency: 0,
                    row: outcome.map(|_| Vec::new()),
                }))
            }
            _ => outcome,
        }
    }

    fn staged(&self, place: Place, record: &RecordView<'_>) -> Staged {
        Staged {
            place,
            incarnation: self.tier.log.incarnation(place),
            sequence: record.sequence,
            last_seen: record.last_seen,
            frequency: record.frequency,
            row: Ok(record.row.to_vec()),
        }
    }

    /// Whether `place`, which the index names now, holds what was staged.
    pub(super) fn is_there(&self, staged: &Staged, place: Place) -> bool {
        staged.place == place && staged.incarnation == self.tier.log.incarnation(place)
    }
}

impl Staged {
    /// The numbers of the row.
    ///
    /// # Errors
    /// `Corruption` if the record is damaged.
    pub(super) fn row(&self) -> Result<&[f32]> {
        self.row.as_deref().map_err(Clone::clone)
    }

    /// The record of `key`, with these numbers.
    pub(super) fn view<'a>(&self, key: u64, row: &'a [f32]) -> RecordView<'a> {
        RecordView {
            key,
            sequence: self.sequence,
            last_seen: self.last_seen,
            frequency: self.frequency,
            tombstone: false,
            row,
        }
    }
}

fn read_of(table: &Table, place: Place) -> Read {
    Read { place, row_floats: table.floats, table: table.id }
}
