//! Goal: rows keep what is written to them wherever they are moved, and memory follows their
//! number. Method: random steps beside a map; sizes of rows from the smallest to the largest.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn write(pool: &mut Pool, at: u64, key: u64) {
    let (header, numbers) = pool.row_mut(at);
    header.key = key;
    numbers.fill(key as f32);
}

fn is_intact(pool: &mut Pool, at: u64, key: u64) -> bool {
    let (header, numbers) = pool.row_mut(at);
    header.key == key && header.state.is_live() && numbers.iter().all(|&x| x == key as f32)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn rows_keep_what_is_written(
        floats in prop::sample::select(vec![1_usize, 5, 32, 300, 2000, 9000, 16_384]),
        steps in prop::collection::vec((0..10_u8, any::<prop::sample::Index>()), 1..600),
    ) {
        let arena = Arena::scratch();
        let mut pool = Pool::new(arena.clone(), floats);
        let mut rows: HashMap<u64, u64> = HashMap::new();
        for (key, (step, pick)) in steps.into_iter().enumerate() {
            let key = key as u64;
            match step {
                0..=5 => {
                    if !pool.has_free() {
                        let mut moves = HashMap::new();
                        let note = |row: &Header, old, new| _ = moves.insert(old, (new, row.key));
                        prop_assert!(pool.grow(note));
                        move_all(&mut rows, &moves);
                    }
                    let at = pool.take().unwrap();
                    write(&mut pool, at, key);
                    prop_assert!(rows.values().all(|&other| other != at));
                    rows.insert(key, at);
                }
                6..=8 if !rows.is_empty() => {
                    let key = *pick.get(&rows.keys().copied().collect::<Vec<_>>());
                    let at = rows.remove(&key).unwrap();
                    prop_assert!(is_intact(&mut pool, at, key));
                    pool.give(at);
                }
                _ => {
                    let mut moves = HashMap::new();
                    let note = |row: &Header, old, new| _ = moves.insert(old, (new, row.key));
                    let has_shrunk = pool.shrink(note);
                    prop_assert!(has_shrunk || moves.is_empty());
                    move_all(&mut rows, &moves);
                }
            }
            prop_assert_eq!(pool.len(), rows.len());
        }
        for (&key, &at) in &rows {
            prop_assert!(is_intact(&mut pool, at, key));
        }
        let mut hand = Hand::default();
        let round: Vec<u64> = (0..pool.capacity()).filter_map(|_| pool.next(&mut hand)).collect();
        let mut live: Vec<u64> =
            round.iter().copied().filter(|&at| pool.header(at).state.is_live()).collect();
        let mut expected: Vec<u64> = rows.values().copied().collect();
        live.sort_unstable();
        expected.sort_unstable();
        prop_assert_eq!(live, expected, "the hand meets every row once a round");
        drop(pool);
        prop_assert_eq!(arena.pages_taken(), 0);
    }

    /// Goal: marks lead to every dirty row. Method: some of many rows, of any width, are made
    /// dirty; those are found, and few others.
    #[test]
    fn marks_lead_to_every_dirty_row(
        floats in prop::sample::select(vec![1_usize, 5, 32, 300, 5000]),
        dirty in prop::collection::btree_set(0..2000_usize, 0..40),
    ) {
        let mut pool = Pool::new(Arena::scratch(), floats);
        let mut rows = Vec::new();
        for key in 0..2000 {
            while !pool.has_free() {
                let mut moves = HashMap::new();
                pool.grow(|_, old, new| _ = moves.insert(old, new));
                rows.iter_mut().for_each(|at| *at = moves.get(at).copied().unwrap_or(*at));
            }
            let at = pool.take().unwrap();
            pool.header_mut(at).key = key;
            rows.push(at);
        }
        for &n in &dirty {
            pool.row_unmarked(rows[n]).0.state.make_dirty(Some(1));
            pool.mark(rows[n]);
        }
        let (mut from, mut found, mut looked_at) = ((0, 0), std::collections::BTreeSet::new(), 0);
        while let Some(group) = pool.next_marked(Mark::Journaled, from) {
            for at in group.rows() {
                looked_at += 1;
                if pool.header(at).state.is_dirty() {
                    found.insert(pool.header(at).key as usize);
                }
            }
            from = group.after();
        }
        prop_assert_eq!(&found, &dirty);
        prop_assert!(looked_at <= dirty.len() * (1 + GRANULE / 32), "{} rows", looked_at);
    }
}

fn move_all(rows: &mut HashMap<u64, u64>, moves: &HashMap<u64, (u64, u64)>) {
    for (old, (new, key)) in moves {
        let at = rows.get_mut(key).expect("only live rows move");
        assert_eq!(at, old);
        *at = *new;
    }
}

#[test]
fn memory_follows_the_rows() {
    let arena = Arena::scratch();
    for floats in [1, 32, 128, 1000, 4096, 12_288] {
        let mut pool = Pool::new(arena.clone(), floats);
        let mut rows = Vec::new();
        while rows.len() < 3 || rows.len() * pool.row_bytes() < 2 << 20 {
            while !pool.has_free() {
                let mut moves = HashMap::new();
                assert!(pool.grow(|_, old, new| {
                    moves.insert(old, new);
                }));
                rows.iter_mut().for_each(|at| *at = moves.get(at).copied().unwrap_or(*at));
            }
            rows.push(pool.take().unwrap());
            let needed = rows.len() * pool.row_bytes();
            let most = (needed * 9 / 4).min(needed * 17 / 16 + 2 * extent_bytes(pool.row_bytes()));
            assert!(pool.bytes() as usize <= most + 512, "{} for {needed}", pool.bytes());
        }
        assert_eq!(pool.capacity() * pool.row_bytes() / (1 << 20), 2);
        while let Some(at) = rows.pop() {
            pool.give(at);
            // Rows at the end left first, so none has to move.
            while pool.is_sparse() && pool.shrink(|_, _, _| {}) {}
        }
        assert_eq!(pool.bytes(), 0);
    }
    assert_eq!(arena.pages_taken(), 0);
}

#[test]
fn the_lines_of_a_row_are_enough_wherever_it_begins() {
    let arena = Arena::scratch();
    for floats in 1..300 {
        let pool = Pool::new(arena.clone(), floats);
        let bytes = HEADER + 4 * floats;
        let touched = |n: usize| (n * pool.row_bytes() % LINE + bytes).div_ceil(LINE);
        assert_eq!((0..LINE).map(touched).max(), Some(pool.lines(floats)), "{floats}");
    }
}

#[test]
fn extents_waste_little() {
    for floats in 1..16_384 {
        let row = (HEADER + 4 * floats).next_multiple_of(UNIT);
        let bytes = extent_bytes(row);
        assert!(bytes >= row.max(ALIGN) && (bytes % row) * 16 <= bytes, "{row}");
    }
}
