//! Goal: the two small files of the cold tier are read as they were written, or refused. Method:
//! round trips, and every byte inverted.

use super::*;

fn owner() -> Owner {
    Owner { store: 7, id: u128::MAX - 3, segment_bytes: 1 << 18 }
}

fn link() -> Link {
    Link { id: 9, generation: 4, is_opened: true, path: "/slow/cold".into() }
}

#[test]
fn what_was_written_is_read() {
    let read = Owner::decode(&owner().encode()).expect("whole");
    assert_eq!((read.store, read.id, read.segment_bytes), (7, u128::MAX - 3, 1 << 18));
    let read = Link::decode(&link().encode()).expect("whole");
    assert_eq!((read.id, read.generation, read.is_opened), (9, 4, true));
    assert_eq!(read.path, Path::new("/slow/cold"));
    assert!(Link::decode(&owner().encode()).is_none() && Owner::decode(&link().encode()).is_none());
}

#[test]
fn no_damage_is_taken_for_content() {
    for good in [owner().encode(), link().encode()] {
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 0x10;
            assert!(Owner::decode(&bytes).is_none() && Link::decode(&bytes).is_none(), "byte {at}");
            let cut = &good[..at];
            assert!(Owner::decode(cut).is_none() && Link::decode(cut).is_none(), "{at} bytes");
        }
    }
}

#[test]
fn only_the_last_opening_and_one_that_was_cut_short_go_on() {
    let go_on = |generation, is_opened, found| {
        let link = Link { generation, is_opened, ..link() };
        let next = link.next(Path::new("data"), Path::new("cold"), found);
        next.map(|link| (link.generation, link.is_opened)).map_err(|error| error.kind)
    };
    use crate::error::ErrorKind::{Config, Corruption};
    assert_eq!(go_on(4, true, Some(4)), Ok((5, false)));
    // Cut short before the log was opened, and after.
    assert_eq!(go_on(5, false, Some(4)), Ok((5, false)));
    assert_eq!(go_on(5, false, Some(5)), Ok((6, false)));
    assert_eq!(go_on(5, true, Some(4)), Err(Config));
    assert_eq!(go_on(5, false, Some(3)), Err(Config));
    assert_eq!(go_on(5, false, Some(6)), Err(Config));
    assert_eq!(go_on(5, true, None), Err(Corruption));
}
