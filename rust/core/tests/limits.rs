//! Goal: the smallest budgets that the contract allows work, whatever the other budget is.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test stops at what it did not expect")]

use hybridps_core::{Durability, ErrorKind, Store, StoreConfig};

mod scratch;
use scratch::Scratch;

fn config(scratch: &Scratch, dram_bytes: u64, nvme_bytes: u64) -> StoreConfig {
    StoreConfig {
        path: scratch.path().to_path_buf(),
        dram_bytes,
        nvme_bytes,
        durability: Durability::None,
        threads: 1,
        shard: (0, 1),
        cold: None,
    }
}

/// Found by the demonstration: the account of a large file's segments did not fit a small DRAM.
#[test]
fn the_smallest_dram_opens_beside_any_nvme() {
    for nvme in [64 << 20, 1 << 30, 16 << 30, 8 << 40] {
        let scratch = Scratch::new("limits");
        let store = Store::open(config(&scratch, 8 << 20, nvme)).unwrap();
        let stats = store.stats();
        let used = stats.iter().find(|(name, _)| *name == "dram_bytes").unwrap().1;
        assert!(used <= 4 << 20, "{used} bytes of 8 MiB are gone before the first row");
    }
}

#[test]
fn smaller_budgets_are_refused_by_name() {
    let scratch = Scratch::new("limits");
    for (dram, nvme, name) in [((8 << 20) - 1, 1 << 30, "dram"), (8 << 20, (64 << 20) - 1, "nvme")]
    {
        let error = Store::open(config(&scratch, dram, nvme)).err().unwrap();
        assert!(error.kind == ErrorKind::Config && error.message.contains(name), "{error}");
    }
}
