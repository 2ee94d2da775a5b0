//! Records that are being read, so that look-ahead and calls do not read the same row twice.
//!
//! Whoever submits a read claims its place, and gives it up when the row is in DRAM. A call that
//! meets a place which another has claimed waits for that instead of reading; look-ahead that meets
//! one leaves it. Nobody waits while it holds a claim.

use std::cell::RefCell;
use std::collections::HashMap;

use parking_lot::{Condvar, Mutex};

use crate::types::Place;

#[derive(Default)]
pub(super) struct Flights {
    state: Mutex<State>,
    landed: Condvar,
}

#[derive(Default)]
struct State {
    /// Number of the next fetch.
    next: u64,
    /// Places, and the fetch that reads each.
    claimed: HashMap<u64, u64>,
}

/// The places that one fetch has claimed. Given up when dropped, however the fetch ends.
pub(super) struct Claims<'a> {
    flights: &'a Flights,
    owner: u64,
    places: RefCell<Vec<Place>>,
}

impl Flights {
    pub(super) fn claims(&self) -> Claims<'_> {
        let mut state = self.state.lock();
        state.next += 1;
        Claims { flights: self, owner: state.next, places: RefCell::default() }
    }

    /// Waits until nobody reads `place`.
    pub(super) fn wait_for(&self, place: Place) {
        let mut state = self.state.lock();
        while state.claimed.contains_key(&place.bits()) {
            self.landed.wait(&mut state);
        }
    }
}

impl Claims<'_> {
    /// False if the place is claimed already.
    pub(super) fn claim(&self, place: Place) -> bool {
        let mut state = self.flights.state.lock();
        if state.claimed.contains_key(&place.bits()) {
            return false;
        }
        state.claimed.insert(place.bits(), self.owner);
        self.places.borrow_mut().push(place);
        true
    }

    /// The rows of these places are in DRAM now, or are not wanted there.
    pub(super) fn land(&self, places: impl Iterator<Item = Place>) {
        let mut state = self.flights.state.lock();
        for place in places {
            if state.claimed.get(&place.bits()) == Some(&self.owner) {
                state.claimed.remove(&place.bits());
            }
        }
        drop(state);
        self.flights.landed.notify_all();
    }
}

impl Drop for Claims<'_> {
    fn drop(&mut self) {
        self.land(self.places.take().into_iter());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_claimed_once_and_waited_for_until_it_lands() {
        let flights = Flights::default();
        let (first, second) = (flights.claims(), flights.claims());
        assert!(
            first.claim(Place::from_bits(1))
                && !second.claim(Place::from_bits(1))
                && second.claim(Place::from_bits(2))
        );
        first.land([Place::from_bits(1), Place::from_bits(2)].into_iter());
        assert!(second.claim(Place::from_bits(1)), "it landed");
        assert!(!first.claim(Place::from_bits(2)), "who has not claimed a place cannot give it up");
        // What landed for one and is claimed by another outlives the first.
        drop(first);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| flights.wait_for(Place::from_bits(1)));
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert!(!waiter.is_finished());
            drop(second);
            waiter.join().unwrap();
        });
        assert!(flights.state.lock().claimed.is_empty());
    }
}
