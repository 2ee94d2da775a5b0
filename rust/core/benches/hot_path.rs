//! CPU time per id of the in-memory path: `cargo bench -p hybridps-core`. For engineers at the
//! engine; figures for users are taken through the public API (`benchmarks/`).

use std::time::Instant;

use hybridps_core::{
    Durability, GradientBatch, Initializer, InsertBatch, LookupBatch, Optimizer, Push, Store,
    StoreConfig, TableSpec,
};

const KEYS: u64 = 1_000_000;
const BATCH: usize = 42_000;

fn spec(dim: u32) -> TableSpec {
    TableSpec {
        name: format!("t{dim}"),
        dim,
        optimizer: Optimizer::Adagrad { initial_accumulator: 0.0, eps: 1e-10 },
        learning_rate: 0.05,
        gradients: Default::default(),
        initializer: Initializer::Normal { mean: 0.0, std: 0.01 },
        seed: 1,
        admission: None,
        dtype: "float32".into(),
        dram: None,
        nvme: None,
        expiry: None,
    }
}

fn batches() -> Vec<Vec<u64>> {
    let mut state = 1_u64;
    let mut draw = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) % KEYS
    };
    let mut batch = || {
        let mut numbers = std::collections::HashSet::with_capacity(BATCH);
        std::iter::repeat_with(&mut draw).filter(|&n| numbers.insert(n)).take(BATCH).collect()
    };
    let keys = |numbers: Vec<u64>| numbers.into_iter().map(|n| n * 0x9e37_79b9).collect();
    (0..16).map(|_| keys(batch())).collect()
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Times one part, if it is asked for: `cargo bench -p hybridps-core -- [PART [ROUNDS]]`.
fn time(label: &str, dim: u32, mut work: impl FnMut(&[u64])) {
    let mut asked = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    if asked.next().is_some_and(|part| !label.starts_with(&part)) {
        return;
    }
    let rounds = asked.next().and_then(|rounds| rounds.parse().ok()).unwrap_or(5);
    let batches = batches();
    let times = (0..rounds)
        .flat_map(|_| &batches)
        .map(|keys| {
            let start = Instant::now();
            work(keys);
            start.elapsed().as_nanos() as f64 / keys.len() as f64
        })
        .collect();
    eprintln!("{label:<20} dim {dim:>3}: {:>6.1} ns per unique key", median(times));
}

/// Batches that DRAM cannot hold: most rows are read, and most of DRAM is evicted, each time.
fn turnover() {
    let (dim, keys) = (16_usize, 150_000_u64);
    let path = std::env::temp_dir().join(format!("hps-bench-turnover-{}", std::process::id()));
    let store = Store::open(StoreConfig {
        path: path.clone(),
        dram_bytes: 12 << 20,
        nvme_bytes: 4 << 30,
        durability: Durability::None,
        threads: 1,
        shard: (0, 1),
        cold: None,
    })
    .expect("the temporary directory can be used");
    let table = store.create_table(&spec(dim as u32)).expect("the table is new").id;
    let (mut rows, gradients) = (vec![0.0; BATCH * dim], vec![0.01; BATCH * dim]);
    let mut number = 0;
    time("turnover", dim as u32, |drawn| {
        number += 1;
        let mut own: Vec<u64> = drawn.iter().map(|key| key / 0x9e37_79b9 % keys).collect();
        own.sort_unstable();
        own.dedup();
        let rows = &mut rows[..own.len() * dim];
        store
            .lookup_or_insert(&mut [InsertBatch { table, keys: &own, counts: &[], rows }])
            .expect("lookup_or_insert");
        let push = Push { session: 1, number, step: None };
        let gradients = &gradients[..own.len() * dim];
        store
            .apply_gradients(push, &[GradientBatch { table, keys: &own, gradients }])
            .expect("apply_gradients");
    });
    drop(store);
    drop(std::fs::remove_dir_all(path));
}

fn main() {
    turnover();
    let path = std::env::temp_dir().join(format!("hps-bench-{}", std::process::id()));
    let store = Store::open(StoreConfig {
        path: path.clone(),
        dram_bytes: 4 << 30,
        nvme_bytes: 8 << 30,
        durability: Durability::None,
        threads: 1,
        shard: (0, 1),
        cold: None,
    })
    .expect("the temporary directory can be used");
    store.attach(1, "").expect("a new store takes sessions");
    for dim in [16_u32, 64] {
        let table = store.create_table(&spec(dim)).expect("the table is new").id;
        let all: Vec<u64> = (0..KEYS).map(|k| k * 0x9e37_79b9).collect();
        let mut rows = vec![0.0; all.len() * dim as usize];
        let start = Instant::now();
        store
            .lookup_or_insert(&mut [InsertBatch {
                table,
                keys: &all,
                counts: &[],
                rows: &mut rows,
            }])
            .expect("the table fits");
        let each = start.elapsed().as_nanos() as f64 / all.len() as f64;
        eprintln!("{:<20} dim {dim:>3}: {each:>6.1} ns per unique key", "insert");
        rows.truncate(BATCH * dim as usize);
        time("lookup", dim, |keys| {
            let batch = LookupBatch { table, keys, rows: &mut rows, found: &mut [] };
            store.lookup(&mut [batch]).expect("lookup");
        });
        time("lookup_or_insert", dim, |keys| {
            let batch = InsertBatch { table, keys, counts: &[], rows: &mut rows };
            store.lookup_or_insert(&mut [batch]).expect("lookup_or_insert");
        });
        let gradients = vec![0.01; BATCH * dim as usize];
        let mut number = u64::from(dim) * 1000;
        time("apply_gradients", dim, |keys| {
            number += 1;
            let push = Push { session: 1, number, step: None };
            let batch = GradientBatch { table, keys, gradients: &gradients };
            store.apply_gradients(push, &[batch]).expect("apply_gradients");
        });
    }
    drop(store);
    drop(std::fs::remove_dir_all(path));
}
