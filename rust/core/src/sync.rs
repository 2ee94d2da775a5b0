//! Locks, as the rooms whose schedules are explored take them. With the feature `schedules` they
//! are those of shuttle, which runs a test again and again and decides at each step which thread
//! goes on; see `schedules_tests.rs`.

#[cfg(not(feature = "schedules"))]
pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard};

#[cfg(feature = "schedules")]
pub(crate) use explored::{Condvar, Mutex, MutexGuard};

/// The same names and methods over shuttle's types. No lock is poisoned: a panic ends the test.
#[cfg(feature = "schedules")]
mod explored {
    use std::ops::{Deref, DerefMut};
    use std::time::Instant;

    use shuttle::sync;

    const HELD: &str = "a guard holds its lock but while it waits";
    const WHOLE: &str = "a panic ends the schedule";

    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(sync::Mutex<T>);

    #[derive(Debug)]
    pub(crate) struct MutexGuard<'a, T> {
        lock: &'a sync::Mutex<T>,
        guard: Option<sync::MutexGuard<'a, T>>,
    }

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            MutexGuard { lock: &self.0, guard: Some(self.0.lock().expect(WHOLE)) }
        }

        pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            let guard = self.0.try_lock().ok()?;
            Some(MutexGuard { lock: &self.0, guard: Some(guard) })
        }
    }

    impl<T> MutexGuard<'_, T> {
        pub(crate) fn unlocked<U>(guard: &mut Self, work: impl FnOnce() -> U) -> U {
            guard.guard = None;
            let done = work();
            guard.guard = Some(guard.lock.lock().expect(WHOLE));
            done
        }

        pub(crate) fn bump(guard: &mut Self) {
            Self::unlocked(guard, || ());
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            self.guard.as_ref().expect(HELD)
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.guard.as_mut().expect(HELD)
        }
    }

    #[derive(Debug, Default)]
    pub(crate) struct Condvar(sync::Condvar);

    /// No time passes in an explored schedule: a wait that would time out is a wait that hangs.
    pub(crate) struct NeverTimedOut;

    impl NeverTimedOut {
        pub(crate) fn timed_out(&self) -> bool {
            false
        }
    }

    impl Condvar {
        pub(crate) fn new() -> Self {
            Self(sync::Condvar::new())
        }

        pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            let held = guard.guard.take().expect(HELD);
            guard.guard = Some(self.0.wait(held).expect(WHOLE));
        }

        pub(crate) fn wait_until<T>(
            &self,
            guard: &mut MutexGuard<'_, T>,
            _: Instant,
        ) -> NeverTimedOut {
            self.wait(guard);
            NeverTimedOut
        }

        pub(crate) fn notify_one(&self) {
            self.0.notify_one();
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }
    }
}
