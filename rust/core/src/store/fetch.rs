//! The one fetch: keys whose rows lie on NVMe go in, with the places that the index named; the
//! record of each comes out, checked, under the lock of its stripe.
//!
//! All ways in which a record can fail to be what was wanted end here. A fingerprint named another
//! key's: the key is looked up again, passing over that place. The row moved while it was read: it
//! is looked up again. The record is damaged: it is read once more, for what is taken for damaged
//! once and for sound later would be a change lost; then the footer of its segment says whose it
//! is. The device goes on reading while records are handed out, some hundred at a time.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;

use super::damaged::{Damaged, Fate};
use super::engine::Engine;
use super::flights::Claims;
use crate::error::{Error, ErrorKind, Result};
use crate::log::{Pin, Read, ReadCounts, RecordView, ROW_FLOATS_MAX};
use crate::table::{stripe_of, Counters, Found, Guard, Item, State, Table};
use crate::types::{bucket, hash, Place, Sequence};

/// A table and keys of a call, of which a fetch names some.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) table: &'a Arc<Table>,
    pub(super) keys: &'a [u64],
}

/// Key `index` of source `source`: the index names `place` for it.
#[derive(Clone, Copy)]
pub(super) struct Miss {
    pub(super) source: u32,
    pub(super) index: u32,
    pub(super) place: Place,
}

impl Miss {
    /// The key must be looked up (again).
    pub(super) const UNKNOWN: Place = Place::from_bits(u64::MAX);
}

/// A key that is told to a receiver.
pub(super) struct Wanted<'a> {
    pub(super) source: usize,
    pub(super) table: &'a Arc<Table>,
    pub(super) item: Item,
    pub(super) place: Place,
}

/// A record that was read twice and is no record.
#[derive(Clone)]
pub(super) struct Damage {
    pub(super) error: Error,
    /// What the footer says of it; `None` if nothing says whose record it is.
    pub(super) sequence: Option<Sequence>,
}

/// What becomes of the keys of a fetch. Each is told once, with its stripe locked, unless the fetch
/// fails. What would have to wait for the device returns `Busy`, having changed nothing: the lock
/// is given up meanwhile, and it is told again.
pub(super) trait Receiver {
    /// True if no caller waits for these reads: they are counted apart.
    const IS_BACKGROUND: bool = false;
    /// True if a key need not be told that another fetch is reading now.
    const MAY_SKIP: bool = false;

    /// The record of the key as it was at `wanted.place`. Returns false if the row is no longer
    /// there and that matters: it is looked up again.
    fn record(
        &mut self,
        state: &mut State,
        wanted: &Wanted<'_>,
        record: &RecordView<'_>,
    ) -> Result<bool>;

    /// The row came to DRAM meanwhile, `at` these units of the arena.
    fn resident(&mut self, state: &mut State, wanted: &Wanted<'_>, at: u64) -> Result<()>;

    /// The key has no row: it was removed meanwhile, or only another's record was named.
    fn absent(&mut self, state: &mut State, wanted: &Wanted<'_>) -> Result<()>;

    /// The row is still at `wanted.place`, and cannot be read.
    fn damaged(&mut self, state: &mut State, wanted: &Wanted<'_>, damage: Damage) -> Result<()>;
}

/// Records that wait to be handed out together: most of them, and of their numbers before the last.
const BATCH: usize = 256;
const BATCH_FLOATS: usize = 16 << 10;

/// Most bytes of such records.
pub(super) const BATCH_BYTES_MAX: u64 =
    (BATCH * size_of::<Head>() + 4 * (BATCH_FLOATS + ROW_FLOATS_MAX)) as u64;

/// Bytes of the records that a fetch of `misses` rows of `floats` numbers holds at one time.
pub(super) fn batch_bytes(misses: u64, floats: usize) -> u64 {
    (misses * (size_of::<Head>() + 4 * floats) as u64).min(BATCH_BYTES_MAX)
}

/// What was learnt of a key that is looked up again.
#[derive(Default)]
struct History {
    rejected: Vec<Place>,
    /// Damaged when it was read once.
    doubted: Option<Place>,
    /// Damaged when it was read again.
    damage: Option<(Place, Damage)>,
}

type Histories = HashMap<(u32, u32), History>;

impl Engine {
    /// Fetches the rows of `misses`, in the order of their places: it sorts them. Keys at
    /// `Miss::UNKNOWN` are looked up. `pin` was taken before the places were. After an error some
    /// keys were not told.
    ///
    /// # Errors
    /// `Unavailable` if the device fails, and what the receiver returns.
    pub(super) fn fetch(
        &self,
        pin: &Pin<'_>,
        sources: &[Source<'_>],
        misses: &mut [Miss],
        receiver: &mut impl Receiver,
    ) -> Result<()> {
        let fetch = Fetch { engine: self, pin, sources };
        let mut histories = Histories::new();
        misses.sort_unstable_by_key(|miss| miss.place);
        let known = misses.partition_point(|miss| miss.place != Miss::UNKNOWN);
        let (misses, unknown) = misses.split_at_mut(known);
        let mut again = fetch.read(misses, receiver, &mut histories, true)?;
        again.extend_from_slice(unknown);
        while !again.is_empty() {
            let mut misses = fetch.look_again(again, receiver, &mut histories)?;
            misses.sort_unstable_by_key(|miss| miss.place);
            again = fetch.read(&misses, receiver, &mut histories, false)?;
        }
        Ok(())
    }
}

struct Fetch<'a> {
    engine: &'a Engine,
    pin: &'a Pin<'a>,
    sources: &'a [Source<'a>],
}

impl<'a> Fetch<'a> {
    fn item(&self, miss: &Miss) -> Item {
        let key = self.sources[miss.source as usize].keys[miss.index as usize];
        Item { key, hash: hash(key), index: miss.index }
    }

    fn wanted(&self, miss: &Miss, item: Item) -> Wanted<'a> {
        let source = miss.source as usize;
        Wanted { source, table: self.sources[source].table, item, place: miss.place }
    }

    fn stripe(&self, item: &Item) -> usize {
        stripe_of(item.hash, self.engine.stripes.len())
    }

    fn lock(&self, item: &Item) -> Guard<'a> {
        self.engine.stripes[self.stripe(item)].lock()
    }

    /// Reads all of `misses`, sorted by place, in one batch; returns those to be looked up again.
    /// While look-ahead is at work, what another fetch reads is waited for instead.
    fn read<R: Receiver>(
        &self,
        misses: &[Miss],
        receiver: &mut R,
        histories: &mut Histories,
        is_first: bool,
    ) -> Result<Vec<Miss>> {
        let read = |n: usize| {
            let table = self.sources[misses[n].source as usize].table;
            Read { place: misses[n].place, row_floats: table.floats, table: table.id }
        };
        let flights = &self.engine.flights;
        let is_shared = R::IS_BACKGROUND || self.engine.ahead.is_busy.load(Relaxed);
        let claims = is_shared.then(|| flights.claims());
        let mut awaited = Vec::new();
        let mut wants = |n: usize| {
            let is_ours = claims.as_ref().is_none_or(|claims| claims.claim(misses[n].place));
            if !is_ours && !R::MAY_SKIP {
                awaited.push(misses[n]);
            }
            is_ours
        };
        let mut batch = Batch::default();
        let (mut again, mut damaged) = (Vec::new(), Vec::new());
        let mut outcome = Ok(());
        let log = &self.engine.tier.log;
        let counts =
            log.read_wanted(self.pin, misses.len(), &mut wants, &read, &mut |n, record| {
                let miss = &misses[n];
                match record {
                    Ok(record) => {
                        let item = self.item(miss);
                        if record.key == item.key {
                            batch.add(n as u32, self.stripe(&item), &item, &record);
                        } else {
                            let history = histories.entry((miss.source, miss.index)).or_default();
                            history.rejected.push(miss.place);
                            again.push(*miss);
                        }
                    }
                    Err(error) if error.kind == ErrorKind::Corruption => {
                        damaged.push((*miss, error))
                    }
                    Err(error) => outcome = Err(error),
                }
                if batch.is_full() && outcome.is_ok() {
                    outcome = self.hand_out(&mut batch, misses, &claims, receiver, &mut again);
                }
            });
        self.count(misses, counts, R::IS_BACKGROUND || !is_first);
        outcome?;
        self.hand_out(&mut batch, misses, &claims, receiver, &mut again)?;
        for (miss, error) in damaged {
            self.doubt(&miss, error, histories)?;
            again.push(miss);
        }
        drop(claims);
        awaited.iter().for_each(|miss| flights.wait_for(miss.place));
        again.append(&mut awaited);
        Ok(again)
    }

    /// Tells the receiver what was read, stripe after stripe.
    fn hand_out(
        &self,
        batch: &mut Batch,
        misses: &[Miss],
        claims: &Option<Claims<'_>>,
        receiver: &mut impl Receiver,
        again: &mut Vec<Miss>,
    ) -> Result<()> {
        batch.heads.sort_unstable_by_key(|head| head.stripe);
        for heads in batch.heads.chunk_by(|a, b| a.stripe == b.stripe) {
            let mut state = self.engine.stripes[heads[0].stripe].lock();
            for head in heads {
                let source = misses[head.miss as usize].source as usize;
                if let Some(part) = state.parts.get(&self.sources[source].table.id) {
                    part.ask(std::slice::from_ref(&head.item));
                }
            }
            for head in heads {
                let miss = &misses[head.miss as usize];
                let wanted = self.wanted(miss, head.item);
                let record = head.view(&batch.floats);
                let mut may_sync = true;
                let is_told = loop {
                    match receiver.record(&mut state, &wanted, &record) {
                        Err(error) => Guard::unlocked(&mut state, || {
                            self.engine.wait_out(&error, &mut may_sync)?.then_some(()).ok_or(error)
                        })?,
                        Ok(is_told) => break is_told,
                    }
                };
                if !is_told {
                    again.push(*miss);
                }
            }
        }
        if let Some(claims) = claims {
            claims.land(batch.heads.iter().map(|head| misses[head.miss as usize].place));
        }
        batch.clear();
        Ok(())
    }

    /// The record of a key cannot be read. At the second time the footer says whose it is.
    fn doubt(&self, miss: &Miss, error: Error, histories: &mut Histories) -> Result<()> {
        let history = histories.entry((miss.source, miss.index)).or_default();
        if history.doubted != Some(miss.place) {
            history.doubted = Some(miss.place);
            return Ok(());
        }
        let (item, table) = (self.item(miss), self.sources[miss.source as usize].table);
        let entry = self.engine.tier.log.entry_at(miss.place, bucket(item.hash))?;
        let entry = entry.filter(|entry| entry.table == table.id && !entry.tombstone);
        if entry.as_ref().is_some_and(|entry| entry.key != item.key) {
            history.rejected.push(miss.place);
        } else {
            let sequence = entry.map(|entry| entry.sequence);
            history.damage = Some((miss.place, Damage { error, sequence }));
        }
        Ok(())
    }

    /// Looks keys up again, each alone: few are. Returns those whose rows are still on NVMe.
    fn look_again(
        &self,
        again: Vec<Miss>,
        receiver: &mut impl Receiver,
        histories: &mut Histories,
    ) -> Result<Vec<Miss>> {
        let mut misses = Vec::new();
        for miss in again {
            let mut history = histories
                .get_mut(&(miss.source, miss.index))
                .map(std::mem::take)
                .unwrap_or_default();
            let mut may_sync = true;
            let left = loop {
                match self.look_at(miss, receiver, &history) {
                    Err(error) if self.engine.wait_out(&error, &mut may_sync)? => {}
                    outcome => break outcome?,
                }
            };
            history.damage = None;
            histories.insert((miss.source, miss.index), history);
            misses.extend(left);
        }
        Ok(misses)
    }

    /// Looks one key up and tells what there is of it. Returns the miss if it must be read.
    fn look_at(
        &self,
        mut miss: Miss,
        receiver: &mut impl Receiver,
        history: &History,
    ) -> Result<Option<Miss>> {
        let item = self.item(&miss);
        let mut state = self.lock(&item);
        let part = state.parts.get(&self.sources[miss.source as usize].table.id);
        let is_rejected = |place| history.rejected.contains(&place);
        let found = part.map_or(Found::Absent, |part| part.find(&item, is_rejected));
        match (found, &history.damage) {
            (Found::Nvme(place), Some((damaged, damage))) if place == *damaged => {
                let wanted = self.wanted(&miss, item);
                let told = receiver.damaged(&mut state, &wanted, damage.clone());
                // What is told again is counted then.
                if !matches!(&told, Err(error) if error.kind == ErrorKind::Busy) {
                    let lost = Damaged::row(wanted.table, item.key, place, Fate::Lost);
                    self.engine.note_damaged(lost);
                    Counters::add(&wanted.table.counters.corrupt_records, 1);
                }
                told?;
            }
            (Found::Nvme(place), _) => {
                miss.place = place;
                return Ok(Some(miss));
            }
            (Found::Dram(at), _) => {
                receiver.resident(&mut state, &self.wanted(&miss, item), at)?;
            }
            (Found::Absent, _) => receiver.absent(&mut state, &self.wanted(&miss, item))?,
        }
        Ok(None)
    }

    /// Attributes the device reads of a batch to its tables, in proportion to their misses.
    fn count(&self, misses: &[Miss], counts: ReadCounts, is_background: bool) {
        let mut shares = vec![0_usize; self.sources.len()];
        misses.iter().for_each(|miss| shares[miss.source as usize] += 1);
        let tables = self.sources.iter().zip(shares).map(|(source, n)| (&**source.table, n as u64));
        count_reads(tables, misses.len() as u64, counts, is_background);
    }
}

/// Attributes device reads to tables, in proportion to their shares of `total`.
pub(super) fn count_reads<'a>(
    shares: impl Iterator<Item = (&'a Table, u64)>,
    mut total: u64,
    counts: ReadCounts,
    is_background: bool,
) {
    let ReadCounts { device_reads: mut reads, cold_reads: mut cold, mut bytes } = counts;
    for (table, n) in shares.filter(|share| share.1 > 0) {
        let (own_reads, own_bytes) = (reads * n / total, bytes * n / total);
        let own_cold = cold * n / total;
        (reads, bytes, total) = (reads - own_reads, bytes - own_bytes, total - n);
        cold -= own_cold;
        let counters = &table.counters;
        if !is_background {
            Counters::add(&counters.cold_reads, own_cold as usize);
        }
        let counter =
            if is_background { &counters.background_reads } else { &counters.device_reads };
        Counters::add(counter, own_reads as usize);
        Counters::add(&counters.device_bytes_read, own_bytes as usize);
    }
}

/// Records that were read, copied out of the device's buffers.
#[derive(Default)]
struct Batch {
    heads: Vec<Head>,
    floats: Vec<f32>,
}

struct Head {
    stripe: usize,
    item: Item,
    /// Position in the misses.
    miss: u32,
    last_seen: u32,
    frequency: u32,
    sequence: Sequence,
    /// First of its numbers, and how many.
    first: u32,
    length: u32,
}

impl Batch {
    fn add(&mut self, miss: u32, stripe: usize, item: &Item, record: &RecordView<'_>) {
        let (first, length) = (self.floats.len() as u32, record.row.len() as u32);
        self.floats.extend_from_slice(record.row);
        let RecordView { sequence, last_seen, frequency, .. } = *record;
        let item = *item;
        self.heads.push(Head { stripe, item, miss, last_seen, frequency, sequence, first, length });
    }

    fn is_full(&self) -> bool {
        self.heads.len() >= BATCH || self.floats.len() >= BATCH_FLOATS
    }

    fn clear(&mut self) {
        self.heads.clear();
        self.floats.clear();
    }
}

impl Head {
    fn view<'a>(&self, floats: &'a [f32]) -> RecordView<'a> {
        RecordView {
            key: self.item.key,
            sequence: self.sequence,
            last_seen: self.last_seen,
            frequency: self.frequency,
            tombstone: false,
            row: &floats[self.first as usize..(self.first + self.length) as usize],
        }
    }
}
