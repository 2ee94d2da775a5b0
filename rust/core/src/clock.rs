//! Time, by three clocks: how long the store has been open, which never jumps; the date; and the
//! date as it is reckoned with, which follows that one and does not jump either.
//!
//! Ages and deadlines of a running store are told by the first. The second is what people read; it
//! may be set at any moment, so nothing is decided by it. What outlives the store, the age of a
//! row, is told by the third: no correction of the system's clock, and no time in which the store
//! was closed, makes all rows old at once.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

/// So many seconds in which the store was closed count whole.
const CLOSED_SECONDS: u64 = 60;
/// Where it is behind, the reckoned date goes so many times as fast as time.
const PACE: u64 = 2;

/// The clocks of one store.
pub(crate) struct Clock {
    opened: Instant,
    reckoned: Mutex<Reckoned>,
    /// Seconds by which tests let the clocks run ahead: both, and the date alone.
    #[cfg(test)]
    pub(crate) ahead: [std::sync::atomic::AtomicI64; 2],
}

/// A date that was reckoned with, and when.
struct Reckoned {
    date: u64,
    /// Seconds since the store was opened.
    at: u64,
}

impl Clock {
    /// Starts at 0.
    pub(crate) fn new() -> Self {
        let clock = Self {
            opened: Instant::now(),
            reckoned: Mutex::new(Reckoned { date: 0, at: 0 }),
            #[cfg(test)]
            ahead: Default::default(),
        };
        clock.reckoned.lock().date = clock.date();
        clock
    }

    /// Goes on from the date that the store reckoned with when it was last open.
    pub(crate) fn resume(&self, date: u64) {
        let now = self.date();
        let mut reckoned = self.reckoned.lock();
        reckoned.date = now.clamp(date, date.saturating_add(CLOSED_SECONDS));
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

    /// Unix seconds to reckon ages with. Never goes back, and forward no more than twice as fast as
    /// time passes; so it is behind the date for a while if that was set forward.
    pub(crate) fn reckoned(&self) -> u64 {
        let (now, date) = (self.seconds(), self.date());
        let mut reckoned = self.reckoned.lock();
        let passed = now.saturating_sub(reckoned.at);
        let most = reckoned.date.saturating_add(PACE * passed);
        *reckoned = Reckoned { date: date.clamp(reckoned.date, most), at: now.max(reckoned.at) };
        reckoned.date
    }

    /// What a row is stamped with that is seen now: nothing is older by the reckoned date.
    pub(crate) fn stamp(&self) -> u32 {
        self.date().max(self.reckoned()).try_into().unwrap_or(u32::MAX)
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    const DAY: i64 = 86_400;

    /// The system's clock is read, so a second may pass between two looks.
    fn assert_near(seen: u64, wanted: u64) {
        assert!((wanted..wanted + 30).contains(&seen), "{seen} is not {wanted}");
    }

    #[test]
    fn a_date_that_jumps_is_followed_at_twice_the_pace() {
        let clock = Clock::new();
        let start = clock.reckoned();
        clock.ahead[1].store(40 * DAY, Relaxed);
        assert_near(clock.reckoned(), start);
        assert_near(clock.stamp().into(), start + 40 * 86_400);
        clock.ahead[0].store(10 * DAY, Relaxed);
        assert_near(clock.reckoned(), start + 20 * 86_400);
        clock.ahead[0].store(50 * DAY, Relaxed);
        assert_near(clock.reckoned(), start + 90 * 86_400);
        // Set back: it waits until the date has come as far.
        clock.ahead[1].store(-40 * DAY, Relaxed);
        assert_near(clock.reckoned(), start + 90 * 86_400);
        assert_near(clock.stamp().into(), start + 90 * 86_400);
        clock.ahead[0].store(140 * DAY, Relaxed);
        assert_near(clock.reckoned(), start + 100 * 86_400);
    }

    #[test]
    fn a_store_that_was_closed_for_long_does_not_age_by_that_at_once() {
        let clock = Clock::new();
        let now = clock.date();
        clock.resume(now - 20);
        assert_near(clock.reckoned(), now);
        clock.resume(now - 86_400);
        assert_near(clock.reckoned(), now - 86_400 + CLOSED_SECONDS);
        clock.resume(now + 86_400);
        assert_near(clock.reckoned(), now + 86_400);
    }
}
