//! The thread of durability mode `interval`: syncs soon after something was appended.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, Result};

/// Of the promised 200 ms the last 50 belong to the device.
const DELAY: Duration = Duration::from_millis(150);
/// So much unsynced data is synced at once, since its fdatasync would outlast those 50 ms.
const URGENT_BYTES: u64 = 16 << 20;

/// A thread that calls `sync` at most `DELAY` after the first append that is not synced.
#[derive(Debug)]
pub(crate) struct Timer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    owner: u32,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// When the first unsynced append was, if there is one.
    since: Option<Instant>,
    bytes: u64,
    stop: bool,
}

impl Timer {
    /// Starts the thread. `sync` has its own way to remember a failure.
    pub(crate) fn start(sync: impl Fn() + Send + 'static) -> Result<Self> {
        let shared = Arc::<Shared>::default();
        let run = shared.clone();
        let thread = thread::Builder::new()
            .name("hps-journal".into())
            .spawn(move || {
                while run.wait() {
                    sync()
                }
            })
            .map_err(|cause| {
                Error::unavailable(format!("cannot start the journal's thread: {cause}"))
            })?;
        Ok(Self { shared, thread: Some(thread), owner: std::process::id() })
    }

    /// Says that `bytes` were appended.
    pub(crate) fn appended(&self, bytes: u64) {
        let mut state = self.shared.state.lock();
        let was_urgent = state.bytes >= URGENT_BYTES;
        state.bytes += bytes;
        let is_first = state.since.is_none();
        if is_first {
            state.since = Some(Instant::now());
        }
        if is_first || (!was_urgent && state.bytes >= URGENT_BYTES) {
            self.shared.changed.notify_one();
        }
    }
}

impl Shared {
    /// Waits until a sync is due; false when it is time to stop.
    fn wait(&self) -> bool {
        let mut state = self.state.lock();
        loop {
            let due = state.since.map(|since| since + DELAY);
            match due {
                _ if state.stop => return false,
                None => self.changed.wait(&mut state),
                Some(due) if state.bytes >= URGENT_BYTES || Instant::now() >= due => break,
                Some(due) => {
                    self.changed.wait_until(&mut state, due);
                }
            }
        }
        (state.since, state.bytes) = (None, 0);
        true
    }
}

impl Drop for Timer {
    /// A child of fork has no such thread, and perhaps a lock that nobody will ever release.
    fn drop(&mut self) {
        if std::process::id() != self.owner {
            return;
        }
        self.shared.state.lock().stop = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
