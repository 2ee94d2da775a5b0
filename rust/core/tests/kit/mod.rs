//! What the tests of the engine share: short calls, a map that follows the same rules, images of
//! an open store.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod saved;

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hybridps_core::{
    initial_row, Assign, Durability, Error, GradientBatch, Initializer, InsertBatch, LookupBatch,
    Operation, Optimizer, Push, PushOutcome, Scatter, Store, StoreConfig, TableId, TableSpec,
};

pub const MIB: u64 = 1 << 20;

pub fn config(path: &Path, durability: Durability) -> StoreConfig {
    StoreConfig {
        path: path.to_path_buf(),
        dram_bytes: 8 * MIB,
        nvme_bytes: 64 * MIB,
        durability,
        threads: 1,
        shard: (0, 1),
        cold: None,
    }
}

pub fn spec(name: &str, dim: u32, optimizer: Optimizer) -> TableSpec {
    TableSpec {
        name: name.into(),
        dim,
        optimizer,
        learning_rate: 0.1,
        gradients: Default::default(),
        initializer: Initializer::Normal { mean: 0.0, std: 0.1 },
        seed: 3,
        admission: None,
        dtype: "float32".into(),
        dram: None,
        nvme: None,
        expiry: None,
    }
}

pub fn adam() -> Optimizer {
    Optimizer::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8 }
}

/// The inverse of the documented hash: tests choose where their keys land.
pub fn unhash(hash: u64) -> u64 {
    let mut key = hash;
    key ^= key >> 33;
    key = key.wrapping_mul(0x9cb4_b2f8_1293_37db);
    key ^= key >> 33;
    key = key.wrapping_mul(0x4f74_430c_22a5_4005);
    key ^ (key >> 33)
}

pub fn push(session: u64, number: u64) -> Push {
    Push { session, number, step: None }
}

pub fn numbers(seed: u64, n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i as u64 * 31 + seed * 7) % 17) as f32 / 8.0 - 1.0).collect()
}

pub fn apply(
    store: &Store,
    push: Push,
    table: TableId,
    keys: &[u64],
    gradients: &[f32],
) -> Result<PushOutcome, Error> {
    store.apply_gradients(push, &[GradientBatch { table, keys, gradients }])
}

pub fn assign(
    store: &Store,
    push: Push,
    table: TableId,
    keys: &[u64],
    rows: &[f32],
) -> Result<PushOutcome, Error> {
    store.assign(push, &Assign { table, keys, rows })
}

pub fn insert(store: &Store, table: TableId, dim: usize, keys: &[u64]) -> Result<Vec<f32>, Error> {
    let mut rows = vec![f32::NAN; keys.len() * dim];
    store.lookup_or_insert(&mut [InsertBatch { table, keys, counts: &[], rows: &mut rows }])?;
    Ok(rows)
}

pub fn lookup(
    store: &Store,
    table: TableId,
    dim: usize,
    keys: &[u64],
) -> Result<(Vec<f32>, Vec<u8>), Error> {
    let (mut rows, mut found) = (vec![f32::NAN; keys.len() * dim], vec![9; keys.len()]);
    store.lookup(&mut [LookupBatch { table, keys, rows: &mut rows, found: &mut found }])?;
    Ok((rows, found))
}

pub fn all_keys(store: &Store, table: TableId) -> Vec<u64> {
    let (mut keys, mut bucket) = (Vec::new(), 0);
    while bucket < 4096 {
        bucket = store.keys(table, bucket, &mut keys).unwrap();
    }
    keys.sort_unstable();
    keys
}

pub fn stat(store: &Store, table: TableId, name: &str) -> u64 {
    let stats = store.table_stats(table).unwrap();
    stats.iter().find(|stat| stat.0 == name).unwrap().1
}

pub fn store_stat(store: &Store, name: &str) -> u64 {
    store.stats().iter().find(|stat| stat.0 == name).unwrap().1
}

/// Accounts of segments and sessions, and what readers hold, are booked after they grew, each round
/// of maintenance: by so much the account may pass its bound until rows have given way.
const BOOKED_LATE: u64 = 64 << 10;

/// DRAM and files stay within their caps.
pub fn assert_caps(store: &Store) {
    let (used, limit) = (store_stat(store, "dram_bytes"), store_stat(store, "dram_limit"));
    assert!(used <= limit + BOOKED_LATE, "{used} bytes of DRAM, {limit} allowed");
    let (told, limit) = (store_stat(store, "nvme_bytes"), store_stat(store, "nvme_limit"));
    assert!(told <= limit, "{told} bytes of files, {limit} allowed");
    let taken = taken_bytes(&store.config().path);
    assert!(taken <= limit, "the files take {taken} bytes, {limit} allowed ({told} told)");
}

/// Bytes that the files of a directory take on their file system, as it says.
fn taken_bytes(path: &Path) -> u64 {
    let taken = |file: io::Result<std::fs::DirEntry>| {
        // A file of the journal may go meanwhile.
        let Ok(meta) = file.and_then(|file| file.path().symlink_metadata()) else { return 0 };
        meta.blocks() * 512
    };
    let folder = |path: PathBuf| std::fs::read_dir(path).unwrap().map(taken).sum::<u64>();
    folder(path.to_path_buf()) + folder(path.join("journal"))
}

/// The directory of a store that may be open, as a crash at one moment would leave it: taken again
/// until nothing was written meanwhile. A slot that is filled anew, or a journal file that goes,
/// while others are read would be an image of no moment.
pub fn copy(from: &Path, to: &Path) {
    loop {
        let before = changes(from);
        // Longer than times of files are apart.
        std::thread::sleep(Duration::from_millis(20));
        if to.exists() {
            std::fs::remove_dir_all(to).unwrap();
        }
        let is_whole = copy_files(from, to).is_ok();
        if is_whole && before.is_ok_and(|before| changes(from).is_ok_and(|now| now == before)) {
            return;
        }
    }
}

fn files(of: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = ["MANIFEST", "superblock", "rows.log"].map(PathBuf::from).to_vec();
    let optional = ["index.image", "EXPIRY", "candidates"].map(PathBuf::from);
    files.extend(optional.into_iter().filter(|file| of.join(file).exists()));
    for file in std::fs::read_dir(of.join("journal"))? {
        files.push(Path::new("journal").join(file?.file_name()));
    }
    files.sort_unstable();
    Ok(files)
}

/// Each file, and when it was last changed.
fn changes(of: &Path) -> io::Result<Vec<(PathBuf, i64, i64)>> {
    let stamp = |file: PathBuf| {
        let found = std::fs::metadata(of.join(&file))?;
        Ok((file, found.ctime(), found.ctime_nsec()))
    };
    files(of)?.into_iter().map(stamp).collect()
}

fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir_all(to.join("journal"))?;
    files(from)?
        .into_iter()
        .try_for_each(|file| std::fs::copy(from.join(&file), to.join(file)).map(drop))
}

/// Flips a byte in every copy of the row of `key`; returns how many there were.
pub fn damage(path: &Path, key: u64, floats: usize) -> usize {
    let path = path.join("rows.log");
    let bytes = std::fs::read(&path).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    let is_record = |at: &usize| {
        bytes[*at..*at + 8] == key.to_le_bytes()
            && bytes[*at + 28..*at + 32] == (floats as u32).to_le_bytes()
    };
    let found: Vec<usize> = (0..bytes.len() - 48).step_by(16).filter(is_record).collect();
    for at in &found {
        file.write_all_at(&[bytes[at + 37] ^ 0x40], *at as u64 + 37).unwrap();
    }
    found.len()
}

/// A table as a map.
pub struct Model {
    pub spec: TableSpec,
    pub table: TableId,
    pub rows: HashMap<u64, Vec<f32>>,
}

impl Model {
    pub fn new(store: &Store, spec: TableSpec) -> Self {
        let table = store.create_table(&spec).unwrap().id;
        Self { spec, table, rows: HashMap::new() }
    }

    pub fn dim(&self) -> usize {
        self.spec.dim as usize
    }

    pub fn row(&mut self, key: u64) -> &mut Vec<f32> {
        let spec = &self.spec;
        self.rows.entry(key).or_insert_with(|| {
            let mut row = vec![0.0; spec.row_floats()];
            let (value, slots) = row.split_at_mut(spec.dim as usize);
            initial_row(&spec.initializer, spec.seed, key, value);
            spec.optimizer.initial_slots(slots);
            row
        })
    }

    /// Applies to both; keys are unique.
    pub fn apply(&mut self, store: &Store, push: Push, keys: &[u64], seed: u64) {
        let gradients = numbers(seed, keys.len() * self.dim());
        assert_eq!(apply(store, push, self.table, keys, &gradients).unwrap(), PushOutcome::Applied);
        self.follow(keys, &gradients);
    }

    pub fn follow(&mut self, keys: &[u64], gradients: &[f32]) {
        let TableSpec { optimizer, learning_rate: rate, gradients: options, .. } =
            self.spec.clone();
        let dim = self.dim();
        let mut scratch = vec![0.0; self.spec.row_floats() + dim];
        for (&key, gradient) in keys.iter().zip(gradients.chunks_exact(dim)) {
            optimizer.step(rate, &options, self.row(key), gradient, &mut scratch);
        }
    }

    /// Scatters in both; the operation goes round with the pushes.
    pub fn scatter(&mut self, store: &Store, push: Push, keys: &[u64], operands: &[f32]) {
        let table = self.table;
        let operation = Operation::ALL[push.number as usize % 6];
        // Far from zero, so that values stay within reach.
        let rows: Vec<f32> = operands.iter().map(|x| x * 0.25 + 1.0).collect();
        let scatter = Scatter { table, operation, keys, rows: &rows };
        assert_eq!(store.scatter(push, &scatter).unwrap(), PushOutcome::Applied);
        let dim = self.dim();
        for (&key, operand) in keys.iter().zip(rows.chunks_exact(dim)) {
            for (x, &y) in self.row(key)[..dim].iter_mut().zip(operand) {
                *x = match operation {
                    Operation::Add => *x + y,
                    Operation::Sub => *x - y,
                    Operation::Mul => *x * y,
                    Operation::Div => *x / y,
                    Operation::Min => x.min(y),
                    Operation::Max => x.max(y),
                };
            }
        }
    }

    pub fn remove(&mut self, store: &Store, push: Push, keys: &[u64]) {
        let expected = keys.iter().filter(|key| self.rows.remove(key).is_some()).count();
        assert_eq!(store.remove(push, self.table, keys).unwrap(), expected as u64);
    }

    /// Every row is there, bit for bit, and no other.
    pub fn check(&self, store: &Store) {
        let mut keys: Vec<u64> = self.rows.keys().copied().collect();
        keys.sort_unstable();
        let name = &self.spec.name;
        for keys in keys.chunks(1000) {
            let (rows, found) = lookup(store, self.table, self.dim(), keys).unwrap();
            for ((key, row), found) in keys.iter().zip(rows.chunks(self.dim())).zip(found) {
                assert!(found == 1, "{name}: key {key} is lost");
                assert_eq!(row, &self.rows[key][..self.dim()], "{name}: key {key}");
            }
        }
        assert_eq!(store.len(self.table).unwrap(), keys.len() as u64, "{name}");
        assert!(all_keys(store, self.table) == keys, "{name}: the keys listed are others");
    }
}
