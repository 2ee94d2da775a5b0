//! Goal: whatever the index named, a fetch tells each key once and truly. Method: a receiver that
//! notes what it is told, places that are another key's, moved, gone or damaged.

use std::os::unix::fs::FileExt;

use super::{open, push, spec};
use crate::error::Result;
use crate::log::RecordView;
use crate::scratch::Scratch;
use crate::sequence::next_call;
use crate::store::fetch::{Damage, Miss, Receiver, Source, Wanted};
use crate::store::{Assign, InsertBatch, LookupBatch, Store};
use crate::table::{stripe_of, Found, Item, State};
use crate::types::{hash, Durability, Place, TableId};

const DIM: usize = 4;

#[derive(Debug, PartialEq)]
enum Told {
    Record(Vec<f32>),
    Resident,
    Absent,
    Damaged(Option<u64>),
}

/// Takes records only from where the index says that they are.
#[derive(Default)]
struct Notes(Vec<(u32, Told)>);

impl Receiver for Notes {
    fn record(
        &mut self,
        state: &mut State,
        wanted: &Wanted<'_>,
        record: &RecordView<'_>,
    ) -> Result<bool> {
        assert_eq!(record.key, wanted.item.key);
        let found = state.parts[&wanted.table.id].find(&wanted.item, |place| place != wanted.place);
        if found == Found::Nvme(wanted.place) {
            self.0.push((wanted.item.index, Told::Record(record.row.to_vec())));
        }
        Ok(found == Found::Nvme(wanted.place))
    }

    fn resident(&mut self, state: &mut State, wanted: &Wanted<'_>, at: u64) -> Result<()> {
        assert_eq!(state.parts[&wanted.table.id].pool.header(at).key, wanted.item.key);
        self.0.push((wanted.item.index, Told::Resident));
        Ok(())
    }

    fn absent(&mut self, _: &mut State, wanted: &Wanted<'_>) -> Result<()> {
        self.0.push((wanted.item.index, Told::Absent));
        Ok(())
    }

    fn damaged(&mut self, _: &mut State, wanted: &Wanted<'_>, damage: Damage) -> Result<()> {
        self.0.push((wanted.item.index, Told::Damaged(damage.sequence)));
        Ok(())
    }
}

fn row(key: u64) -> [f32; DIM] {
    [key as f32, 1.0, 2.0, 3.0]
}

/// Rows of `keys`, all on NVMe.
fn filled(scratch: &Scratch, keys: &[u64]) -> (Store, TableId) {
    let store = open(scratch, Durability::Process);
    let table = store.create_table(&spec("t", DIM as u32)).unwrap().id;
    let rows: Vec<f32> = keys.iter().flat_map(|&key| row(key)).collect();
    store.assign(push(1), &Assign { table, keys, rows: &rows }).unwrap();
    store.close().unwrap();
    (open(scratch, Durability::Process), table)
}

fn place(store: &Store, table: TableId, key: u64) -> Place {
    let item = Item { key, hash: hash(key), index: 0 };
    let state = store.engine.stripes[stripe_of(item.hash, store.engine.stripes.len())].lock();
    match state.parts[&table].find(&item, |_| false) {
        Found::Nvme(place) => place,
        found => panic!("key {key} is at {found:?}"),
    }
}

fn fetch(store: &Store, id: TableId, wanted: &[(u64, Place)]) -> Vec<(u32, Told)> {
    let table = store.engine.table(id).unwrap();
    let keys: Vec<u64> = wanted.iter().map(|wanted| wanted.0).collect();
    let sources = [Source { table: &table, keys: &keys }];
    let miss = |(index, &(_, place))| Miss { source: 0, index: index as u32, place };
    let mut misses: Vec<Miss> = wanted.iter().enumerate().map(miss).collect();
    let mut notes = Notes::default();
    store.engine.fetch(&store.engine.tier.log.pin(), &sources, &mut misses, &mut notes).unwrap();
    notes.0.sort_by_key(|told| told.0);
    notes.0
}

fn damage(scratch: &Scratch, place: Place) {
    let path = scratch.path().join("rows.log");
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let (at, mut byte) = (place.offset() + 37, [0]);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
}

#[test]
fn every_key_is_told_once_wherever_its_row_is() {
    let scratch = Scratch::new();
    let (store, table) = filled(&scratch, &(0..2000).collect::<Vec<_>>());
    let places: Vec<Place> = (0..2000).map(|key| place(&store, table, key)).collect();
    let count = |keys: &[u64]| {
        let mut rows = vec![0.0; keys.len() * DIM];
        let batch = InsertBatch { table, keys, counts: &[], rows: &mut rows };
        store.lookup_or_insert(&mut [batch]).unwrap();
    };
    count(&[5]);
    store.remove(push(2), table, &[6]).unwrap();
    // All honest; 5 is in DRAM by now, 6 is gone.
    let mut wanted: Vec<(u64, Place)> = (0..2000).zip(places.iter().copied()).collect();
    // Another key's place, for a row, for one in DRAM, and for none.
    wanted.extend([(7, places[1999]), (5, places[1999]), (5000, places[1999])]);
    let told = fetch(&store, table, &wanted);
    assert_eq!(told.len(), wanted.len());
    for (index, told) in told {
        let expected = match wanted[index as usize].0 {
            5 => Told::Resident,
            6 | 5000 => Told::Absent,
            key => Told::Record(row(key).to_vec()),
        };
        assert_eq!(told, expected, "{index}");
    }
}

/// Keys whose bucket and fingerprint are the same: the index cannot tell them apart.
fn twins<const N: usize>() -> [u64; N] {
    std::array::from_fn(|n| super::unhash(0x1234_5678_9abc_0000 | n as u64))
}

#[test]
fn keys_that_the_index_cannot_tell_apart_are_told_truly() {
    let scratch = Scratch::new();
    let keys = twins::<9>();
    let (store, table) = filled(&scratch, &keys[..8]);
    // Of all places any may be named first.
    for &named in &keys[..8] {
        let named = place(&store, table, named);
        let wanted = keys.map(|key| (key, named));
        let told = fetch(&store, table, &wanted);
        for ((index, told), key) in told.into_iter().zip(keys) {
            assert_eq!(keys[index as usize], key);
            let is_there = key != keys[8];
            let expected = if is_there { Told::Record(row(key).to_vec()) } else { Told::Absent };
            assert_eq!(told, expected);
        }
    }
    let (mut rows, mut found) = (vec![9.0; keys.len() * DIM], vec![9; keys.len()]);
    let batch = LookupBatch { table, keys: &keys, rows: &mut rows, found: &mut found };
    store.lookup(&mut [batch]).unwrap();
    assert_eq!(rows[..8 * DIM], keys[..8].iter().flat_map(|&key| row(key)).collect::<Vec<_>>());
    assert_eq!((&rows[8 * DIM..], &found[..]), (&[0.0; DIM][..], &[1, 1, 1, 1, 1, 1, 1, 1, 0][..]));
}

#[test]
fn damage_is_told_of_the_key_that_has_it_alone() {
    let scratch = Scratch::new();
    let keys = twins::<4>();
    let (store, table) = filled(&scratch, &keys[..3]);
    let places: Vec<Place> = keys[..3].iter().map(|&key| place_of(&store, table, key)).collect();
    damage(&scratch, places[1]);
    // The opening, the table, and then the call.
    let made = next_call(next_call(next_call(0)));
    for &named in &places {
        let told = fetch(&store, table, &keys.map(|key| (key, named)));
        let expected = [
            (0, Told::Record(row(keys[0]).to_vec())),
            (1, Told::Damaged(Some(made))),
            (2, Told::Record(row(keys[2]).to_vec())),
            (3, Told::Absent),
        ];
        assert_eq!(told, expected);
    }
    let corrupt = store.table_stats(table).unwrap();
    assert!(corrupt.contains(&("corrupt_records", 3)), "once a fetch: {corrupt:?}");
    // A row that is in DRAM by the time its old record turns out to be damaged is no loss.
    store.assign(push(2), &Assign { table, keys: &keys[1..2], rows: &row(1) }).unwrap();
    assert_eq!(fetch(&store, table, &[(keys[1], places[1])]), [(0, Told::Resident)]);
}

/// The record of exactly this key, whichever of its twins the index names first.
fn place_of(store: &Store, id: TableId, key: u64) -> Place {
    struct Where(Option<Place>);
    impl Receiver for Where {
        fn record(&mut self, _: &mut State, w: &Wanted<'_>, _: &RecordView<'_>) -> Result<bool> {
            self.0 = Some(w.place);
            Ok(true)
        }
        fn resident(&mut self, _: &mut State, _: &Wanted<'_>, _: u64) -> Result<()> {
            Ok(())
        }
        fn absent(&mut self, _: &mut State, _: &Wanted<'_>) -> Result<()> {
            Ok(())
        }
        fn damaged(&mut self, _: &mut State, _: &Wanted<'_>, _: Damage) -> Result<()> {
            Ok(())
        }
    }
    let table = store.engine.table(id).unwrap();
    let sources = [Source { table: &table, keys: &[key] }];
    let mut misses = [Miss { source: 0, index: 0, place: place(store, id, key) }];
    let mut found = Where(None);
    store.engine.fetch(&store.engine.tier.log.pin(), &sources, &mut misses, &mut found).unwrap();
    found.0.unwrap()
}
