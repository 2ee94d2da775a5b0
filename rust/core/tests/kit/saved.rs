//! Checkpoints for tests: made and restored by short calls, and stores as maps.

use std::collections::BTreeMap;
use std::path::Path;

use hybridps_core::{
    publish, ChangesQuery, Checkpoint, Detail, Draft, Durability, Error, Progress, RestoreRequest,
    SaveRequest, Store, StoreConfig, BUCKETS,
};

/// A row: bits of value and slots, last use, training reads.
pub type Row = (Vec<u32>, u32, u32);
/// Tables by name.
pub type Dump = BTreeMap<String, BTreeMap<u64, Row>>;

/// All rows of a table.
pub fn rows(store: &Store, name: &str) -> BTreeMap<u64, Row> {
    let table = store.table(name).unwrap().id;
    let query = ChangesQuery { table, buckets: 0..BUCKETS, since: None, detail: Detail::Rows };
    let mut rows = BTreeMap::new();
    store
        .changes(&query, &mut |piece| {
            let width = piece.rows.len() / piece.keys.len().max(1);
            for (n, &key) in piece.keys.iter().enumerate() {
                let bits = piece.rows[n * width..(n + 1) * width].iter().map(|x| x.to_bits());
                rows.insert(key, (bits.collect(), piece.last_seen[n], piece.frequency[n]));
            }
            Ok(())
        })
        .unwrap();
    rows
}

pub fn dump(store: &Store) -> Dump {
    store.tables().into_iter().map(|name| (name.clone(), rows(store, &name))).collect()
}

/// The rows of all servers together.
pub fn dump_all(stores: &[Store]) -> Dump {
    let mut all = Dump::new();
    for store in stores {
        for (name, rows) in dump(store) {
            let table = all.entry(name).or_default();
            for (key, row) in rows {
                assert!(table.insert(key, row).is_none(), "two servers have key {key}");
            }
        }
    }
    all
}

pub fn request(path: &Path, begun: &(String, Option<String>), rate: u64) -> SaveRequest {
    let (id, parent) = begun.clone();
    SaveRequest { path: path.to_owned(), id, parent, rate }
}

/// A checkpoint of all servers.
pub fn save(stores: &[Store], path: &Path, step: Option<i64>, full: bool) -> Checkpoint {
    let begun = stores[0].begin_checkpoint(path, full).unwrap();
    let request = request(path, &begun, 0);
    let progress = Progress::default();
    let shards = stores.iter().map(|store| store.save(&request, &progress).unwrap()).collect();
    let draft = Draft { parent: begun.1, step, extra: serde_json::Value::Null, shards };
    publish(path, &begun.0, draft).unwrap()
}

pub fn restore_of(path: &Path) -> RestoreRequest {
    let path = path.to_owned();
    RestoreRequest { path, id: None, step: None, tables: None, with_slots: true }
}

pub fn restore(stores: &[Store], request: &RestoreRequest) -> Result<(), Error> {
    for store in stores {
        store.stage_restore(request, &Progress::default())?;
    }
    stores.iter().try_for_each(Store::commit_restore)
}

/// `shards` servers, in directories below `path`.
pub fn open_shards(path: &Path, shards: u32, durability: Durability) -> Vec<Store> {
    let config = |shard| StoreConfig {
        shard: (shard, shards),
        ..super::config(&path.join(format!("{shard}-of-{shards}")), durability)
    };
    (0..shards).map(|shard| Store::open(config(shard)).unwrap()).collect()
}
