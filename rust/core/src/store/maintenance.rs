//! The one background thread: keeps the log within its cap by compaction, and the journal within
//! its share by checkpoints.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use super::engine::Engine;
use super::tail::is_checkpoint_due;
use crate::error::{Error, ErrorKind, Result};

/// Pause between rounds when nobody asks.
const PERIOD: Duration = Duration::from_millis(200);

pub(super) fn start(engine: Arc<Engine>) -> Result<JoinHandle<()>> {
    std::thread::Builder::new().name("hps-maintain".into()).spawn(move || run(&engine)).map_err(
        |cause| Error::unavailable(format!("cannot start the maintenance thread: {cause}")),
    )
}

pub(super) fn stop(engine: &Engine, thread: JoinHandle<()>) {
    engine.wake.state.lock().is_stopping = true;
    engine.wake.worker.notify_one();
    if thread.join().is_err() {
        engine.failure.break_off(&panicked());
    }
}

fn run(engine: &Engine) {
    loop {
        let mut state = engine.wake.state.lock();
        if !state.is_asked && !state.is_stopping {
            engine.wake.worker.wait_for(&mut state, PERIOD);
        }
        if state.is_stopping {
            return;
        }
        state.is_asked = false;
        drop(state);
        // A panic fails the store, but not the thread: callers wait for its rounds.
        let round = catch_unwind(AssertUnwindSafe(|| engine.maintain()));
        if round.is_err() {
            engine.failure.break_off(&panicked());
        }
        match round.unwrap_or(Ok(())) {
            // Nothing is half done then: the journal keeps what was not written back, and callers
            // are told that the store is full.
            Err(error) if error.kind == ErrorKind::StoreFull => {}
            Err(error) => engine.fail(&error),
            Ok(()) => {}
        }
        engine.wake.tell_callers();
    }
}

fn panicked() -> Error {
    Error::unavailable(
        "the maintenance thread panicked; see what the process printed, and report it",
    )
}

impl Engine {
    fn maintain(&self) -> Result<()> {
        if self.failure.check().is_err() {
            return Ok(());
        }
        self.check_devices()?;
        self.reserve_calls()?;
        self.account();
        self.fit_rows()?;
        if self.tier.log.no_space().is_some() {
            return Ok(());
        }
        self.fit_image()?;
        self.compact()?;
        self.tend_cold()?;
        if self.is_journaled() && is_checkpoint_due(&self.tail(), self.config.journal_bytes()) {
            self.checkpoint(false)?;
        }
        Ok(())
    }
}
