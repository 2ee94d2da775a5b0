//! Who may still look at a freed slot: pins are counted by the epoch in which they were taken, and
//! every freeing begins a new epoch.

use std::collections::BTreeMap;

use parking_lot::Mutex;

#[derive(Default)]
struct Epochs {
    now: u64,
    held: BTreeMap<u64, usize>,
}

#[derive(Default)]
pub(super) struct Pins(Mutex<Epochs>);

/// While held, no slot that is freed later is punched or filled again.
pub(crate) struct Pin<'a> {
    pins: &'a Pins,
    epoch: u64,
}

impl Pins {
    pub(super) fn pin(&self) -> Pin<'_> {
        let mut epochs = self.0.lock();
        let epoch = epochs.now;
        *epochs.held.entry(epoch).or_insert(0) += 1;
        Pin { pins: self, epoch }
    }

    /// Begins an epoch; pins taken before it must be gone before what it freed is used again.
    pub(super) fn advance(&self) -> u64 {
        let mut epochs = self.0.lock();
        epochs.now += 1;
        epochs.now
    }

    /// The epoch of the oldest pin; everything freed up to it has no observer.
    pub(super) fn oldest(&self) -> u64 {
        let epochs = self.0.lock();
        epochs.held.keys().next().copied().unwrap_or(epochs.now)
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        let mut epochs = self.pins.0.lock();
        if let Some(count) = epochs.held.get_mut(&self.epoch) {
            *count -= 1;
            if *count == 0 {
                epochs.held.remove(&self.epoch);
            }
        }
    }
}
