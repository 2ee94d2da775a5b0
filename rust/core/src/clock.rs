//! Time, by two clocks: how long the store has been open, which never jumps, and the date.
//!
//! Ages and deadlines are told by the first. The second is for what people and later openings read
//! (when a row was last used); it may be set at any moment, so nothing is decided by it here.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The clocks of one store.
pub(crate) struct Clock {
    opened: Instant,
    /// Seconds by which tests let the clocks run ahead: both, and the date alone.
    #[cfg(test)]
    pub(crate) ahead: [std::sync::atomic::AtomicI64; 2],
}

impl Clock {
    /// Starts at 0.
    pub(crate) fn new() -> Self {
        Self {
            opened: Instant::now(),
            #[cfg(test)]
            ahead: Default::default(),
        }
    }

    /// Seconds since `new`, while the machine was awake.
    pub(crate) fn seconds(&self) -> u64 {
        self.opened.elapsed().as_secs().saturating_add_signed(self.ahead(0))
    }

    /// Unix seconds, as the system believes.
    pub(crate) fn date(&self) -> u64 {
        self.date_ms() / 1000
    }

    /// The same in milliseconds.
    pub(crate) fn date_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let ms = since.map_or(0, |since| since.as_millis() as u64);
        ms.saturating_add_signed(1000 * (self.ahead(0) + self.ahead(1)))
    }

    #[cfg(test)]
    fn ahead(&self, clock: usize) -> i64 {
        self.ahead[clock].load(std::sync::atomic::Ordering::Relaxed)
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self, reason = "as in tests")]
    fn ahead(&self, _: usize) -> i64 {
        0
    }
}
