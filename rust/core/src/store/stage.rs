//! The first two steps of a mutating call: each key is probed once, and records on NVMe are read
//! into memory of the call. Nothing is changed, and a damaged record is told from a sound one.
//!
//! A call has memory for a window of keys, however many it names, and for some records. What of its
//! first window is on NVMe is read here, ahead of its turn, as far as that reaches; all else, when
//! its turn has come.

use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;

use super::engine::Engine;
use super::fetch::{Damage, Miss, Receiver, Source, Wanted};
use super::mutate::{Change, Target};
use crate::error::{Error, Result};
use crate::ledger::Hold;
use crate::log::{Pin, RecordView};
use crate::table::{Counters, Found, Item, Plan, State, Table};
use crate::types::{Place, Sequence};

/// Memory of a running call, enough for a window of keys and some records read ahead.
pub(super) struct Memory {
    pub(super) window: usize,
    pub(super) records: usize,
    _hold: Hold,
}

/// Bytes of a key in a window: what is planned and found of it, and what seeks repeats before.
const KEY_BYTES: u64 = 64;
/// Bytes of a record that is read ahead, beside its numbers.
const RECORD_BYTES: u64 = 128;
/// Most of the memory of all calls that one may have: 1 / this.
const SHARE: u64 = 4;

impl Memory {
    /// For a call of `keys` keys, of rows of `floats` numbers at most. Waits for others.
    ///
    /// # Errors
    /// `StoreFull` when none has become free for long.
    pub(super) fn book(engine: &Engine, keys: usize, floats: usize) -> Result<Self> {
        let ledger = &engine.ledger;
        let (keys, record) = (keys.max(1) as u64, RECORD_BYTES + 4 * floats as u64);
        let bytes =
            (keys * (KEY_BYTES + record)).min(ledger.calls_max() / SHARE).max(KEY_BYTES + record);
        // Keys come first: one that lies in DRAM needs no more. At most half is theirs.
        let window = (bytes / 2 / KEY_BYTES).clamp(1, keys);
        let records = (bytes - window * KEY_BYTES) / record;
        let deadline = std::time::Instant::now() + super::pressure::PATIENCE;
        let hold = ledger.hold_for_call(bytes, deadline)?;
        Ok(Self { window: window as usize, records: records as usize, _hold: hold })
    }
}

/// A call that was probed: what it will change, what was seen of that, what was set aside for it.
pub(super) struct Call<'a> {
    pub(super) engine: &'a Engine,
    pub(super) targets: Vec<Target<'a>>,
    pub(super) probed: Vec<Probed>,
    /// New keys of each target whose record bytes are reserved still. Given back when dropped.
    reserved: Vec<Cell<usize>>,
}

/// What the probe saw of one target.
pub(super) struct Probed {
    /// Buckets of each window, in order.
    pub(super) windows: Vec<Range<u32>>,
    /// Whether any key lies in a stripe.
    pub(super) touched: Vec<bool>,
    /// Of the first window.
    pub(super) ahead: Ahead,
}

/// What was seen of a window, and read, ahead of the turn of its stripes.
pub(super) struct Ahead {
    pub(super) plan: Plan,
    /// For each item of the plan.
    pub(super) found: Vec<Found>,
    /// Era of the part in each stripe: addresses in DRAM hold while it lasts.
    pub(super) eras: Vec<u64>,
    staged: Vec<Staged>,
    /// Numbers of all staged records.
    numbers: Vec<f32>,
}

/// What was read of a row that a call will change.
pub(super) enum Record<'a> {
    Whole(RecordView<'a>),
    Damaged(Damage),
}

/// A record read ahead of its change.
struct Staged {
    /// Of the key, in the caller's arrays.
    index: u32,
    numbers: Range<usize>,
    place: Place,
    /// Filling of the place that was read: another one may hold another record.
    incarnation: u64,
    sequence: Sequence,
    last_seen: u32,
    frequency: u32,
    /// Why it cannot be read; key and sequence are then what the footer says.
    damage: Option<Box<Error>>,
}

impl<'a> Call<'a> {
    /// Probes, reads what is on NVMe, and reserves record bytes for new keys. `window`: most keys
    /// that there is memory for at a time; `records`: as many of their records.
    pub(super) fn probe(
        engine: &'a Engine,
        targets: Vec<Target<'a>>,
        (window, mut records): (usize, usize),
    ) -> Result<Self> {
        let keys: usize = targets.iter().map(|target| target.keys.len()).sum();
        let window = if keys <= window { window } else { (window / targets.len()).max(1) };
        let mut call = Self { engine, targets, probed: Vec::new(), reserved: Vec::new() };
        for target in &call.targets {
            let (probed, new) = engine.probe_target(target, window, &mut records)?;
            engine.reserve_records(&target.table, new)?;
            call.reserved.push(Cell::new(new));
            call.probed.push(probed);
        }
        Ok(call)
    }

    pub(super) fn tables(&self) -> Vec<Arc<Table>> {
        self.targets.iter().map(|target| target.table.clone()).collect()
    }

    /// Whether the call has keys in stripe `s`.
    pub(super) fn touches(&self, s: usize) -> bool {
        self.probed.iter().any(|probed| probed.touched[s])
    }

    /// Keys of target `n` whose record was found damaged.
    pub(super) fn damaged_keys(&self, n: usize) -> Vec<u64> {
        let staged = self.probed[n].ahead.staged.iter();
        let damaged = staged.filter(|staged| staged.damage.is_some());
        let mut keys: Vec<u64> =
            damaged.map(|staged| self.targets[n].keys[staged.index as usize]).collect();
        keys.sort_unstable();
        keys
    }

    /// A gradient, or an operand, has nothing to be added to where the old row is lost.
    pub(super) fn check_operands(&self) -> Result<()> {
        for (target, probed) in self.targets.iter().zip(&self.probed) {
            let mut damage = probed.ahead.staged.iter().filter_map(|staged| staged.damage.clone());
            let needs_old = matches!(target.change, Change::Gradients(..) | Change::Scatter(_));
            if let (true, Some(error)) = (needs_old, damage.next()) {
                return Err(*error);
            }
        }
        Ok(())
    }

    /// Says that `created` rows of target `n` were made: out of what is reserved, and charged for
    /// beyond, since a key that the probe saw may have gone before its turn came. To be called
    /// while their stripe is locked, so that who removes them gives back what is charged already.
    pub(super) fn charge_created(&self, n: usize, created: usize) {
        let reserved = self.reserved[n].get();
        self.reserved[n].set(reserved.saturating_sub(created));
        let beyond = created.saturating_sub(reserved);
        self.engine.charge_records(&self.targets[n].table, beyond);
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        for (target, n) in self.targets.iter().zip(&self.reserved) {
            self.engine.release_records(&target.table, n.get());
        }
    }
}

impl Engine {
    /// Probes all windows, and stages of the first what `records` are left. Returns how many keys
    /// are new, too.
    fn probe_target(
        &self,
        target: &Target<'_>,
        window: usize,
        records: &mut usize,
    ) -> Result<(Probed, usize)> {
        self.load_for(target.keys.iter().copied())?;
        let stripes = self.stripes.len();
        let windows = Plan::windows(&target.keys, window);
        let mut touched = vec![false; stripes];
        let (mut first, mut new) = (None, 0);
        for buckets in &windows {
            let plan = Plan::of(&target.keys, buckets.clone(), stripes);
            (0..stripes).for_each(|s| touched[s] |= !plan.range(s).is_empty());
            // While it is held, no place that the probe saw is filled again. Not longer: a call
            // that waits for its turn must not keep compaction from the slots that others need.
            let pin = self.tier.log.pin();
            let mut ahead = self.probe_window(target, plan)?;
            if first.is_none() {
                self.stage(&pin, target, &mut ahead, *records)?;
                *records = records.saturating_sub(ahead.staged.len());
            }
            new += ahead.found.iter().filter(|&&found| found == Found::Absent).count();
            first.get_or_insert(ahead);
        }
        let new = if matches!(target.change, Change::Remove) { 0 } else { new };
        let ahead = first.unwrap_or_else(|| Ahead::new(Plan::new(&[], stripes)));
        Ok((Probed { windows, touched, ahead }, new))
    }

    fn probe_window(&self, target: &Target<'_>, plan: Plan) -> Result<Ahead> {
        let mut ahead = Ahead::new(plan);
        let Ahead { plan, found, eras, .. } = &mut ahead;
        for (s, stripe) in self.stripes.iter().enumerate() {
            let items = plan.group(s);
            if items.is_empty() {
                continue;
            }
            let state = stripe.lock();
            let before = found.len();
            match state.parts.get(&target.table.id) {
                None => found.resize(before + items.len(), Found::Absent),
                Some(part) => {
                    eras[s] = part.era;
                    part.probe(items, found);
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
        Ok(ahead)
    }

    /// Reads the records of rows on NVMe, of the first `most`.
    fn stage(
        &self,
        pin: &Pin<'_>,
        target: &Target<'_>,
        ahead: &mut Ahead,
        most: usize,
    ) -> Result<()> {
        let items = ahead.plan.items.iter().zip(&ahead.found);
        let miss = |(item, found): (&Item, &Found)| match *found {
            Found::Nvme(place) => Some(Miss { source: 0, index: item.index, place }),
            _ => None,
        };
        let mut misses: Vec<Miss> = items.filter_map(miss).take(most).collect();
        ahead.staged.reserve_exact(misses.len());
        ahead.numbers.reserve_exact(misses.len() * target.table.floats);
        let sources = [Source { table: &target.table, keys: &target.keys }];
        self.fetch(pin, &sources, &mut misses, &mut Staging { engine: self, ahead })?;
        ahead.staged.sort_unstable_by_key(|staged| staged.index);
        Ok(())
    }
}

/// Keeps what is read. What has moved meanwhile is found again when its turn comes.
struct Staging<'a> {
    engine: &'a Engine,
    ahead: &'a mut Ahead,
}

impl Staging<'_> {
    fn add(&mut self, wanted: &Wanted<'_>, record: &RecordView<'_>, damage: Option<Error>) {
        let Ahead { numbers, staged, .. } = self.ahead;
        let first = numbers.len();
        numbers.extend_from_slice(record.row);
        staged.push(Staged {
            index: wanted.item.index,
            numbers: first..numbers.len(),
            place: wanted.place,
            incarnation: self.engine.tier.log.incarnation(wanted.place),
            sequence: record.sequence,
            last_seen: record.last_seen,
            frequency: record.frequency,
            damage: damage.map(Box::new),
        });
    }
}

impl Receiver for Staging<'_> {
    fn record(
        &mut self,
        _: &mut State,
        wanted: &Wanted<'_>,
        record: &RecordView<'_>,
    ) -> Result<bool> {
        self.add(wanted, record, None);
        Ok(true)
    }

    fn resident(&mut self, _: &mut State, _: &Wanted<'_>, _: u64) -> Result<()> {
        Ok(())
    }

    fn absent(&mut self, _: &mut State, _: &Wanted<'_>) -> Result<()> {
        Ok(())
    }

    fn damaged(&mut self, _: &mut State, wanted: &Wanted<'_>, damage: Damage) -> Result<()> {
        // Not even its footer says whose record it is.
        let Some(sequence) = damage.sequence else { return Err(damage.error) };
        let key = wanted.item.key;
        let (last_seen, frequency, tombstone, row) = (0, 0, false, &[][..]);
        let record = RecordView { key, sequence, last_seen, frequency, tombstone, row };
        self.add(wanted, &record, Some(damage.error));
        Ok(())
    }
}

impl Ahead {
    fn new(plan: Plan) -> Self {
        let found = Vec::with_capacity(plan.items.len());
        let eras = vec![0; plan.stripes()];
        Self { plan, found, eras, staged: Vec::new(), numbers: Vec::new() }
    }

    /// What was staged of the item, if that was its record at `place` and nothing else has been
    /// written there since.
    pub(super) fn staged(&self, engine: &Engine, item: &Item, place: Place) -> Option<Record<'_>> {
        let at = self.staged.binary_search_by_key(&item.index, |staged| staged.index).ok()?;
        let staged = &self.staged[at];
        if staged.place != place || staged.incarnation != engine.tier.log.incarnation(place) {
            return None;
        }
        Some(match staged.damage.clone() {
            Some(error) => {
                Record::Damaged(Damage { error: *error, sequence: Some(staged.sequence) })
            }
            None => Record::Whole(RecordView {
                key: item.key,
                sequence: staged.sequence,
                last_seen: staged.last_seen,
                frequency: staged.frequency,
                tombstone: false,
                row: &self.numbers[staged.numbers.clone()],
            }),
        })
    }
}
