//! Goal: a window that is read again, for the log was full, counts none of its keys twice. Method:
//! what such a window does, twice over.

use super::{open, spec};
use crate::admission::Admission;
use crate::scratch::Scratch;
use crate::spec::TableSpec;
use crate::store::unadmitted::Counted;
use crate::store::InsertBatch;
use crate::table::{stripe_of, Item};
use crate::types::{hash, Durability};

#[test]
fn a_window_that_is_read_again_counts_once() {
    let scratch = Scratch::new();
    let store = open(&scratch, Durability::Process);
    let admission = Some(Admission::MinCount { n: 3, capacity: 1000 });
    let id = store.create_table(&TableSpec { admission, ..spec("t", 2) }).unwrap().id;
    let (engine, table) = (&*store.engine, store.engine.table(id).unwrap());
    let rule = table.admission().unwrap();
    let item = Item { key: 5, hash: hash(5), index: 0 };
    let mut state = engine.stripes[stripe_of(item.hash, engine.stripes.len())].lock();
    let mut counted = Counted::default();
    let mut left_after = |counted: &mut Counted| {
        let mut rows = [f32::NAN; 2];
        let mut batch = InsertBatch { table: id, keys: &[5], counts: &[], rows: &mut rows };
        let mut items = vec![item];
        let of = (&table, &rule);
        counted.count(engine, &mut state, of, &mut batch, &mut items).unwrap();
        (items.len(), rows)
    };
    for _ in 0..4 {
        assert_eq!(left_after(&mut counted), (0, [0.0; 2]), "answered each time, counted once");
    }
    counted.clear();
    assert_eq!(left_after(&mut counted).0, 0, "the second read");
    counted.clear();
    for _ in 0..2 {
        assert_eq!(left_after(&mut counted).0, 1, "the third, until there is a row");
    }
    assert_eq!(counted.before(item.hash), 2);
}
