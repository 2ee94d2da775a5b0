//! Goal: what no caller can see or provoke from outside. Method: the engine's own doors, and looks
//! at the rows in DRAM.

mod ahead;
mod cold;
mod effort;
mod faults;
mod fetch;
mod full;
mod memory;
mod merged;
mod panic;
mod pass;
mod power;
mod repeats;
mod rows;
mod saved;
mod tables;
mod unadmitted;
mod waits;

use std::path::Path;

use crate::scratch::Scratch;
use crate::spec::{Initializer, Optimizer, TableSpec};
use crate::store::{Store, StoreConfig};
use crate::table::Tickets;
use crate::types::{Durability, Push};

pub(super) fn config(scratch: &Scratch, durability: Durability) -> StoreConfig {
    StoreConfig {
        path: scratch.path().to_path_buf(),
        dram_bytes: 8 << 20,
        nvme_bytes: 64 << 20,
        durability,
        threads: 1,
        shard: (0, 1),
        cold: None,
    }
}

pub(super) fn open(scratch: &Scratch, durability: Durability) -> Store {
    let store = Store::open(config(scratch, durability)).unwrap();
    // Many tests look at the index themselves: all of it is there.
    store.engine.load_rest().unwrap();
    store
}

pub(super) fn spec(name: &str, dim: u32) -> TableSpec {
    TableSpec {
        name: name.into(),
        dim,
        optimizer: Optimizer::Sgd,
        learning_rate: 1.0,
        gradients: Default::default(),
        initializer: Initializer::Zeros,
        seed: 0,
        admission: None,
        dtype: "float32".into(),
        dram: None,
        nvme: None,
        expiry: None,
    }
}

pub(super) fn push(number: u64) -> Push {
    Push { session: 1, number, step: None }
}

/// The inverse of the documented hash: tests choose where their keys land.
pub(super) fn unhash(hash: u64) -> u64 {
    let mut key = hash;
    key ^= key >> 33;
    key = key.wrapping_mul(0x9cb4_b2f8_1293_37db);
    key ^= key >> 33;
    key = key.wrapping_mul(0x4f74_430c_22a5_4005);
    key ^ (key >> 33)
}

/// All later calls wait before stripe `first` and those behind it, until this is dropped.
pub(super) fn hold(store: &'static Store, first: usize) -> Tickets<'static> {
    let mut sequencer = store.engine.sequencer.lock();
    let drawn = (first..sequencer.tickets.len()).map(|s| (s, sequencer.tickets[s])).collect();
    sequencer.tickets[first..].iter_mut().for_each(|next| *next += 1);
    Tickets::new(&store.engine.stripes, sequencer.last, drawn)
}

/// What a killed process leaves of a store that stands still.
pub(super) fn copy(from: &Path) -> Scratch {
    let to = Scratch::in_memory();
    copy_files(from, to.path());
    to
}

fn copy_files(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
        let name = to.join(entry.file_name().unwrap());
        if entry.is_dir() {
            copy_files(&entry, &name);
        } else {
            std::fs::copy(&entry, &name).unwrap();
        }
    }
}
