//! Opening and closing: what is on the devices becomes a store again, and the other way round.
//!
//! First directory, superblock and manifest; then the index, on demand from its image (`loading`),
//! or without one from the footers of all segments (`load`); then the journal (`replay`): entries
//! that a row has not seen yet are applied again.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use parking_lot::{Condvar, Mutex, RwLock};

use super::ahead::Ahead;
use super::candidates::CandidatesFile;
use super::config::{COLD_BUFFERS, SEGMENT_BUFFERS};
use super::engine::{Catalog, Engine, Wake};
use super::expiry::Expiring;
use super::flights::Flights;
use super::loading::Loading;
use super::order::Sequencer;
use super::recent::Recent;
use super::running::Running;
use super::save::Saving;
use super::scrub::Scrub;
use super::session::Sessions;
use super::stats::Holds;
use super::StoreConfig;
use crate::arena::Arena;
use crate::clock::Clock;
use crate::cold_directory::ColdDirectory;
use crate::directory::Directory;
use crate::error::{Error, ErrorKind, Result};
use crate::failure::Failure;
use crate::history::RESERVED;
use crate::journal::{Journal, JournalConfig};
use crate::ledger::Ledger;
use crate::log::{Log, LogConfig, LogEnd};
use crate::manifest::Manifest;
use crate::sequence::{call_of, next_call};
use crate::superblock::{Superblock, SuperblockFile};
use crate::table::{Stripe, Tier};
use crate::types::{Sequence, BUCKETS};

/// Reads in flight; more gains nothing (measured up to 256).
const QUEUE_DEPTH: u32 = 128;

impl Engine {
    pub(super) fn open(config: StoreConfig) -> Result<Self> {
        config.check()?;
        let directory = Directory::open(&config.path)?;
        let (superblock, manifest) = open_or_create(&directory, &config)?;
        let known = superblock.current().clone();
        check_shard(&config, &known)?;
        let wanted = config.cold.as_ref().map(|cold| &*cold.path);
        let wanted = wanted.map(|path| (path, config.cold_segment_bytes(known.segment_bytes)));
        let cold = ColdDirectory::open(&directory, known.uuid, wanted)?;
        let journal = Arc::new(OnceLock::new());
        let log = open_log(&config, &directory, &known, cold.as_ref(), &journal)?;
        if let Some(cold) = &cold {
            cold.note_opened()?;
        }
        let mut pending = Journal::open(
            JournalConfig {
                directory: directory.path().to_path_buf(),
                uuid: known.uuid,
                durability: config.durability,
                epoch: known.epoch,
            },
            known.journal,
        )?;
        let engine = Self::new(config, directory, cold, superblock, manifest, log, journal)?;
        let newest = engine.open_index(&known)?;
        engine.sequencer.lock().last = newest.max(engine.catalog.read().as_of);
        engine.load_expiry()?;
        engine.load_candidates(known.uuid);
        engine.replay(&mut pending)?;
        engine.begin()?;
        if engine.journal.set(pending).is_err() {
            return Err(Error::unavailable("the journal was opened twice"));
        }
        match engine.write_superblock(false, None) {
            // The file system is full. Its rows can be read, and the journal still has what the log
            // could not take: the ends that were known stay known.
            Err(error) if error.kind == ErrorKind::StoreFull => engine.note_refusal(&error),
            outcome => outcome?,
        }
        Ok(engine)
    }

    fn new(
        config: StoreConfig,
        directory: Directory,
        cold: Option<ColdDirectory>,
        superblock: SuperblockFile,
        manifest: Manifest,
        log: Log,
        journal: Arc<OnceLock<Journal>>,
    ) -> Result<Self> {
        let segment_bytes = superblock.current().segment_bytes;
        let ledger = Ledger::new(config.dram_bytes);
        let cold_segment_bytes = cold.as_ref().map_or(0, |cold| cold.segment_bytes);
        let buffers = SEGMENT_BUFFERS * segment_bytes + COLD_BUFFERS * cold_segment_bytes;
        let holds = Holds::new(&ledger, &log, buffers);
        config.check_rows(ledger.rows_max())?;
        let stripes = config.stripes();
        let tier = Tier {
            arena: Arc::new(Arena::new(&ledger, ledger.rows_max())?),
            log: Arc::new(log),
            buckets_per_stripe: BUCKETS / stripes as u32,
        };
        let failure = Arc::<Failure>::default();
        let clock = Clock::new();
        let sessions = Sessions::default();
        let known_sessions = sessions.known();
        let tickets = vec![0; stripes];
        let sequencer = Sequencer { last: 0, tickets, sessions, position: None, closed: None };
        Ok(Self {
            demotes_again: AtomicU64::new(0),
            demotes_from: AtomicU64::new(config.demotes_from(segment_bytes)),
            record_bytes_max: config.record_bytes_max(segment_bytes)
                + config.cold_record_bytes_max(cold_segment_bytes),
            stripes: (0..stripes).map(|_| Stripe::new(&ledger, stripes, failure.clone())).collect(),
            catalog: RwLock::new(Catalog::load(manifest, stripes)),
            sequencer: Mutex::new(sequencer),
            door: Condvar::new(),
            reserved: AtomicU64::new(0),
            known_sessions,
            running: Running::new(failure.clone()),
            recent: Recent::new(ledger.clone()),
            saving: Saving::new(clock.date()),
            clock,
            directory: Mutex::new(Some(directory)),
            cold: Mutex::new(cold),
            superblock: Mutex::new(superblock),
            record_bytes: AtomicU64::new(0),
            is_open: RwLock::new(true),
            is_closing: AtomicBool::new(false),
            failure,
            wake: Wake::default(),
            unfinished: Mutex::default(),
            compacting: Mutex::default(),
            staging: Mutex::default(),
            replacements: AtomicU64::new(0),
            scrub: Scrub::default(),
            expiring: Expiring::default(),
            untold: Mutex::default(),
            config,
            tier,
            journal,
            ledger,
            ahead: Ahead::default(),
            flights: Flights::default(),
            holds: Mutex::new(holds),
            loading: Loading::default(),
            image: Mutex::default(),
            candidates: CandidatesFile::default(),
        })
    }

    /// What is changed from here on is newer than all that was ever given out, also before a crash
    /// that has taken some of it. That is on the device before the first change.
    fn begin(&self) -> Result<()> {
        let mut sequencer = self.sequencer.lock();
        let mut file = self.superblock.lock();
        let known = file.current().clone();
        let found = sequencer.last;
        let first = next_call(found.max(known.next_sequence - 1));
        let mut history = known.history.clone();
        if !known.clean {
            history.note_crash(first);
        }
        history.whole = first;
        let next_sequence = first + RESERVED;
        self.tier.log.raise_floor(history.floor);
        file.write(Superblock { next_sequence, history, clean: false, ..known })?;
        self.reserved.store(next_sequence, Relaxed);
        sequencer.last = first;
        drop((sequencer, file));
        self.stripes.iter().for_each(|stripe| stripe.lock().progress.lift(first));
        Ok(())
    }

    /// Writes everything back and gives the directory up.
    pub(super) fn close(&self) -> Result<()> {
        let outcome = self.failure.check().and_then(|()| self.write_all());
        // Also after a failure nothing is written once the directory may be another's.
        self.tier.log.stop();
        self.cold.lock().take();
        self.directory.lock().take();
        outcome
    }

    /// After this the log alone holds every row.
    fn write_all(&self) -> Result<()> {
        if self.loading.is_done() {
            self.compact()?;
        }
        self.checkpoint(true)?;
        self.write_image();
        self.write_superblock(true, None)
    }
}

fn open_or_create(
    directory: &Directory,
    config: &StoreConfig,
) -> Result<(SuperblockFile, Manifest)> {
    if let Some(file) = SuperblockFile::open(directory)? {
        return Ok((file, Manifest::load(directory)?));
    }
    let manifest = Manifest::default();
    manifest.save(directory)?;
    let first = Superblock::new(config.shard, config.segment_bytes())?;
    Ok((SuperblockFile::create(directory, first)?, manifest))
}

fn check_shard(config: &StoreConfig, known: &Superblock) -> Result<()> {
    let stored = (known.shard, known.shards);
    if stored == config.shard {
        return Ok(());
    }
    Err(Error::config(format!(
        "{} holds shard {}/{}, asked for {}/{}; give the stored one, or another directory",
        config.path.display(),
        stored.0,
        stored.1,
        config.shard.0,
        config.shard.1
    )))
}

fn open_log(
    config: &StoreConfig,
    directory: &Directory,
    known: &Superblock,
    cold: Option<&ColdDirectory>,
    journal: &Arc<OnceLock<Journal>>,
) -> Result<Log> {
    let journal = journal.clone();
    let before_write = move |sequence: Sequence| match journal.get() {
        Some(journal) => journal.sync_to(call_of(sequence)),
        // Recovery: what it replays was read from the journal's files.
        None => Ok(()),
    };
    let nvme = LogConfig {
        path: directory.file("rows.log"),
        segment_bytes: known.segment_bytes,
        capacity_bytes: config.log_bytes(known.segment_bytes),
        buffers: SEGMENT_BUFFERS as usize,
        queue_depth: QUEUE_DEPTH,
        before_write: Arc::new(before_write),
    };
    let cold = cold.map(|cold| LogConfig {
        path: cold.log(),
        segment_bytes: cold.segment_bytes,
        capacity_bytes: config.cold_log_bytes(cold.segment_bytes),
        buffers: COLD_BUFFERS as usize,
        ..nvme.clone()
    });
    let mut log = Log::open(nvme, LogEnd { incarnation: known.log_incarnation_end })?;
    if let Some(cold) = cold {
        log.open_cold(cold)?;
    }
    Ok(log)
}
