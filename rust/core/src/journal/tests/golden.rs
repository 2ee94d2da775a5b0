//! Frozen bytes, made by a writer of their own after docs/format.md: what older builds wrote must
//! stay readable, and what this build writes is what the documentation says.

use super::*;

const FIRST: &[u8] = include_bytes!("../../../golden/journal-v1.log");
const NEXT: &[u8] = include_bytes!("../../../golden/journal-v1-next.log");

fn part(table: TableId, rate: f32, keys: &[u64], floats: &[f32]) -> Part {
    Part::new(&GradientPart { table, learning_rate: rate, keys, gradients: floats })
}

fn push(number: u64, step: Option<i64>) -> Push {
    Push { session: 7, number, step }
}

fn entries() -> Vec<Owned> {
    let item = part(1, 0.05, &[11, u64::MAX], &[1.0, -2.5]);
    let user = part(2, 0.5, &[5], &[0.25, 0.5, 0.75]);
    vec![
        Owned { sequence: 1, what: What::Attach(7, "trainer-1".into()) },
        Owned { sequence: 2, what: What::Gradients(push(1, Some(-3)), vec![item, user]) },
        Owned { sequence: 3, what: What::Assign(push(2, None), part(1, 0.0, &[11], &[3.0])) },
        Owned { sequence: 5, what: What::Remove(push(3, None), 2, vec![5, 6]) },
    ]
}

fn records() -> Vec<SessionRecord> {
    let first = SessionRecord {
        session: 7,
        client_id: "trainer-1".into(),
        number: 3,
        last_used: 1_700_000_000,
        steps: vec![(1, -3), (2, 40)],
    };
    let second = SessionRecord {
        session: 8,
        client_id: String::new(),
        number: 0,
        last_used: 1_700_000_001,
        steps: Vec::new(),
    };
    vec![first, second]
}

#[test]
fn writes_them() {
    let scratch = Scratch::new();
    let (journal, _) = open(scratch.path(), NEW).unwrap();
    append_all(&journal, &entries());
    assert_eq!(journal.rotate(records(), 5).unwrap(), 2);
    assert!(fs::read(log(scratch.path(), 1)).unwrap() == FIRST, "the format changed");
    assert!(fs::read(log(scratch.path(), 2)).unwrap() == NEXT, "the format changed");
}

#[test]
fn reads_them() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path().join("journal")).unwrap();
    fs::write(log(scratch.path(), 1), FIRST).unwrap();
    fs::write(log(scratch.path(), 2), NEXT).unwrap();
    let mut expected = vec![(1, sessions(0))];
    expected.extend(entries().into_iter().map(|entry| (1, entry)));
    expected.push((2, Owned { sequence: 5, what: What::Sessions(records()) }));
    assert_eq!(read(scratch.path()), expected);
}
