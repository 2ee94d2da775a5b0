//! How much is done while a stripe is locked: others wait for it. Counted in rows and entries of
//! the index that are touched, where a test asks; otherwise nothing of this is there.

/// So many rows or entries are touched.
#[inline(always)]
pub(crate) fn note(_count: usize) {
    #[cfg(test)]
    counted::note(_count);
}

#[cfg(test)]
pub(crate) use counted::{most, reset, Span};

#[cfg(test)]
mod counted {
    use std::cell::Cell;

    thread_local! {
        static DONE: Cell<usize> = const { Cell::new(0) };
        static MOST: Cell<usize> = const { Cell::new(0) };
    }

    pub(super) fn note(count: usize) {
        DONE.set(DONE.get() + count);
    }

    /// Most that this thread has done under one lock since `reset`.
    pub(crate) fn most() -> usize {
        MOST.get()
    }

    pub(crate) fn reset() {
        MOST.set(0);
    }

    /// The time for which a stripe is locked.
    pub(crate) struct Span(usize);

    impl Span {
        pub(crate) fn begin() -> Self {
            Self(DONE.get())
        }

        /// The lock was given up, and is held again.
        pub(crate) fn again(&mut self) {
            *self = Self::begin();
        }

        pub(crate) fn end(&self) {
            MOST.set(MOST.get().max(DONE.get() - self.0));
        }
    }

    impl Drop for Span {
        fn drop(&mut self) {
            self.end();
        }
    }
}
