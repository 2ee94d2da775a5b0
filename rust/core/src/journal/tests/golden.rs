//! Frozen bytes, made by a writer of their own after docs/format.md: what older builds wrote must
//! stay readable, and what this build writes is what the documentation says.

use super::*;

const FIRST: &[u8] = include_bytes!("../../../golden/journal-v2.log");
const NEXT: &[u8] = include_bytes!("../../../golden/journal-v2-next.log");

const FIRST_FILE: &[u8] = include_bytes!("../../../golden/FIRST-v2");

fn part(table: TableId, rate: f32, keys: &[u64], floats: &[f32]) -> Part {
    Part::new(&GradientPart { table, learning_rate: rate, keys, gradients: floats })
}

fn push(number: u64, step: Option<i64>) -> Push {
    Push { session: 7, number, step }
}

fn entries() -> Vec<Owned> {
    let item = part(1, 0.05, &[11, u64::MAX], &[1.0, -2.5]);
    let user = part(2, 0.5, &[5], &[0.25, 0.5, 0.75]);
    let definition = || r#"{"id":1,"layout":0,"spec":{"name":"item"}}"#.to_owned();
    let of = |sequence, what| Owned { sequence, what };
    vec![
        of(1, What::Attach(7, "trainer-1".into())),
        of(2, What::Create(1, definition())),
        of(3, What::Gradients(push(1, Some(-3)), vec![item, user])),
        of(4, What::Alter(1, definition())),
        of(5, What::Assign(push(2, None), part(1, 0.0, &[11], &[3.0]))),
        of(7, What::Remove(push(3, None), 2, vec![5, 6])),
        of(7, What::Removed(7, 3, 2)),
        of(8, What::Drop(2)),
    ]
}

fn records() -> Vec<SessionRecord> {
    let first = SessionRecord {
        session: 7,
        client_id: "trainer-1".into(),
        number: 3,
        last_used: 1_700_000_000,
        steps: vec![(1, -3), (2, 40)],
        removals: vec![(3, 2)],
    };
    let second = SessionRecord {
        session: 8,
        client_id: String::new(),
        number: 0,
        last_used: 1_700_000_001,
        steps: Vec::new(),
        removals: Vec::new(),
    };
    vec![first, second]
}

#[test]
fn writes_them() {
    let scratch = Scratch::new();
    let (journal, _) = open(scratch.path(), NEW).unwrap();
    append_all(&journal, &entries());
    assert_eq!(rotate(&journal, records(), 8).unwrap(), 2);
    assert!(fs::read(log(scratch.path(), 1)).unwrap() == FIRST, "the format changed");
    assert!(fs::read(log(scratch.path(), 2)).unwrap() == NEXT, "the format changed");
    journal.drop_through(1).unwrap();
    assert_eq!(fs::read(scratch.path().join("journal/FIRST")).unwrap(), FIRST_FILE);
}

#[test]
fn reads_them() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path().join("journal")).unwrap();
    fs::write(log(scratch.path(), 1), FIRST).unwrap();
    fs::write(log(scratch.path(), 2), NEXT).unwrap();
    let mut expected = vec![(1, sessions(0))];
    expected.extend(entries().into_iter().map(|entry| (1, entry)));
    expected.push((2, Owned { sequence: 8, what: What::Sessions(records()) }));
    assert_eq!(read(scratch.path()), expected);
    fs::remove_file(log(scratch.path(), 1)).unwrap();
    fs::write(scratch.path().join("journal/FIRST"), FIRST_FILE).unwrap();
    assert_eq!(read(scratch.path()), expected[expected.len() - 1..]);
}

#[test]
fn those_of_version_1_are_refused_by_name() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path().join("journal")).unwrap();
    let refused = |name: &str| {
        let error = open(scratch.path(), NEW).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Config);
        let text = format!("{name} has format version 1, this program reads version 2");
        assert!(error.message.contains(&text), "{error}");
    };
    let file = log(scratch.path(), 1);
    fs::write(&file, include_bytes!("../../../golden/journal-v1.log")).unwrap();
    refused("00000001.log");
    fs::remove_file(file).unwrap();
    let first = include_bytes!("../../../golden/FIRST-v1");
    fs::write(scratch.path().join("journal/FIRST"), first).unwrap();
    refused("FIRST");
}
