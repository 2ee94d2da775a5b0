//! Images of the index: written when a store is closed, chosen when it is opened.

use super::engine::Engine;
use super::source::Source;
use crate::directory;
use crate::error::{Error, Result};
use crate::image::{buckets, bytes_of, Entries, Image, Summary, TableKeys, Writer};
use crate::index::Index;
use crate::log::{charge, Account, SegmentId};
use crate::superblock::Superblock;
use crate::types::{Place, Sequence};

/// The file in the data directory.
const NAME: &str = "index.image";
/// An image is of no use where more than this share of the records, and this many, are younger.
const YOUNGER_SHARE: u64 = 2;
const YOUNGER_MIN: u64 = 100_000;
/// Segments that log and journal may write between two looks at the room that they leave.
const IMAGE_SPARE_SEGMENTS: u64 = 16;

impl Engine {
    /// Makes the index ready for calls: on demand from an image, or, without one that fits, from
    /// all footers at once. Returns the highest sequence seen.
    pub(super) fn open_index(&self, known: &Superblock) -> Result<Sequence> {
        let image = Image::open(&self.image_path());
        let file = |image: &Image| ImageFile { bytes: image.bytes(), end: image.summary().end };
        *self.image.lock() = image.as_ref().map(file);
        match image.map(|image| self.source(image, known)).transpose()?.flatten() {
            Some(source) => {
                let newest =
                    self.tier.log.newest_sequence().max(known.next_sequence.saturating_sub(1));
                self.stripes.iter().for_each(|stripe| stripe.lock().progress.lift(newest));
                self.begin_loading(source);
                Ok(newest)
            }
            None => self.load_index(),
        }
    }

    /// None if the image is another store's, knows too little, or is too large for the memory.
    fn source(&self, image: Image, known: &Superblock) -> Result<Option<Source>> {
        let segments = self.tier.log.segments()?;
        let Summary { uuid, end, tables, .. } = image.summary();
        let catalog = self.catalog.read();
        let is_other = |of: &TableKeys| {
            catalog.by_id.get(&of.table).is_some_and(|table| table.floats != of.floats as usize)
        };
        let keys: u64 = tables.iter().map(|of| of.keys).sum();
        let is_younger = |segment: &&(SegmentId, u32)| segment.0.incarnation > *end;
        let younger: u64 = segments.iter().filter(is_younger).map(|s| u64::from(s.1)).sum();
        let fits = *uuid == known.uuid
            && *end <= known.log_incarnation_end
            && !tables.iter().any(is_other)
            && younger <= (keys / YOUNGER_SHARE).max(YOUNGER_MIN)
            && self.index_bytes_of(tables) <= self.ledger.rows_max();
        drop(catalog);
        Ok(if fits { Source::new(image, &segments) } else { None })
    }

    /// What the index of these tables will take.
    pub(super) fn index_bytes_of(&self, tables: &[TableKeys]) -> u64 {
        tables.iter().map(|of| Index::bytes_of(of.keys, self.stripes.len())).sum()
    }

    fn image_path(&self) -> std::path::PathBuf {
        self.config.path.join(NAME)
    }

    /// Bytes of all large files.
    pub(super) fn files_bytes(&self) -> u64 {
        let files = self.tier.log.allocated_bytes() + self.journal().bytes();
        files + self.image.lock().map_or(0, |image| image.bytes) + self.candidates.bytes()
    }

    /// Closing: writes an image, if there is room for one. Without it the next opening takes
    /// longer, so a failure is no failure of the store.
    pub(super) fn write_image(&self) {
        if self.try_write_image().is_err() {
            self.remove_image();
        }
    }

    fn try_write_image(&self) -> Result<()> {
        if self.is_image_whole() {
            return Ok(());
        }
        self.load_rest()?;
        if let Some(cold) = self.tier.log.cold() {
            cold.settle()?;
        }
        let end = self.tier.log.sync()?.incarnation;
        if !self.has_room_for_image() {
            self.remove_image();
            return Ok(());
        }
        let path = self.image_path();
        let written = directory::write_temporary(&path, |file| {
            let mut capture = Capture::new(self, end);
            let mut writer = Writer::new(file);
            for bucket in buckets() {
                let (sequence, runs) = capture.bucket(bucket);
                writer.bucket(sequence, &runs)?;
            }
            writer.finish(&capture.summary())
        });
        let (file, temporary) = written?;
        directory::publish(&temporary, &path)?;
        let bytes = file.metadata().map_err(|cause| Error::io("measure", &path, &cause))?.len();
        *self.image.lock() = Some(ImageFile { bytes, end });
        Ok(())
    }

    /// Whether the image that there is says all: nothing was written to the log since.
    fn is_image_whole(&self) -> bool {
        let Some(ImageFile { end, .. }) = *self.image.lock() else { return false };
        let newest = self.tier.log.segments().map(|segments| segments.last().copied());
        newest.is_ok_and(|newest| newest.is_none_or(|(segment, _)| segment.incarnation <= end))
    }

    /// Files that must be kept come first: the image goes when they need its room, then the file of
    /// candidates.
    pub(super) fn fit_image(&self) -> Result<()> {
        let spare = IMAGE_SPARE_SEGMENTS * self.tier.log.segment_bytes();
        if self.files_bytes() + spare <= self.config.nvme_bytes {
            return Ok(());
        }
        if self.image.lock().is_none() {
            return self.remove_candidates();
        }
        // What was not read of it yet would have to come from the footers.
        self.load_rest()?;
        self.remove_image();
        Ok(())
    }

    /// Whether a new image fits under the cap of all files. An old one goes first where both do
    /// not.
    fn has_room_for_image(&self) -> bool {
        let (mut keys, mut runs) = (0, 0);
        for stripe in &self.stripes {
            for part in stripe.lock().parts.values() {
                let own = part.index.len() as u64;
                keys += own;
                runs += own.min(u64::from(self.tier.buckets_per_stripe));
            }
        }
        let tables = self.catalog.read().by_id.len() as u64;
        let segments = self.tier.log.accounts().len() as u64;
        let bytes = bytes_of(keys, runs, tables, segments);
        if self.files_bytes() + bytes > self.config.nvme_bytes {
            self.remove_image();
        }
        self.files_bytes() + bytes <= self.config.nvme_bytes
    }

    /// Takes the image away: there is no room for it, or it could not be written whole.
    pub(super) fn remove_image(&self) {
        // It is a hint: one that stays is good for what it says.
        if directory::remove_if_present(&self.image_path()).is_ok() {
            *self.image.lock() = None;
        }
    }
}

/// What is known of the file.
#[derive(Clone, Copy)]
pub(super) struct ImageFile {
    bytes: u64,
    /// Segments up to this incarnation are spoken for.
    end: u64,
}

/// What an image says, as it is collected.
struct Capture<'a> {
    engine: &'a Engine,
    end: u64,
    tables: std::collections::BTreeMap<crate::types::TableId, TableKeys>,
    /// Of each slot, the bytes of rows that were collected.
    live: [Vec<u64>; 2],
}

impl<'a> Capture<'a> {
    fn new(engine: &'a Engine, end: u64) -> Self {
        Self { engine, end, tables: Default::default(), live: Default::default() }
    }

    /// The entries of a bucket, and the last call that they are as of.
    fn bucket(&mut self, bucket: u32) -> (Sequence, Vec<Entries>) {
        let tier = &self.engine.tier;
        let state = self.engine.stripes[(bucket / tier.buckets_per_stripe) as usize].lock();
        let (sequence, runs) =
            (state.progress.newest(), state.entries_of(&tier.log, bucket, self.end));
        drop(state);
        let mut entries = Vec::with_capacity(runs.len());
        for (table, run) in runs {
            let floats = table.floats as u32;
            let of = TableKeys { table: table.id, floats, keys: 0 };
            self.tables.entry(table.id).or_insert(of).keys += run.len() as u64;
            run.iter().for_each(|entry| self.count(entry.place(), charge(table.floats)));
            entries.push((table.id, run));
        }
        (sequence, entries)
    }

    fn count(&mut self, place: Place, bytes: u64) {
        let Some((disk, slot)) = self.engine.tier.log.slot_of(place) else { return };
        let (live, slot) = (&mut self.live[disk as usize], slot as usize);
        live.resize(live.len().max(slot + 1), 0);
        live[slot] += bytes;
    }

    fn summary(self) -> Summary {
        let engine = self.engine;
        let accounts = engine.tier.log.accounts().into_iter();
        let accounts = accounts.filter(|account| account.segment.incarnation <= self.end);
        let account = |account: Account| {
            let SegmentId { disk, slot, .. } = account.segment;
            let live_bytes = self.live[disk as usize].get(slot as usize).copied().unwrap_or(0);
            Account { live_bytes, ..account }
        };
        let uuid = engine.superblock.lock().current().uuid;
        Summary {
            uuid,
            end: self.end,
            tables: self.tables.values().copied().collect(),
            accounts: accounts.map(account).collect(),
        }
    }
}
