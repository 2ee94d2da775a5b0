//! Random histories of appends, rotations, drops and reopens against a list of entries.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Append(What),
    Rotate(Vec<SessionRecord>),
    /// All but so many of the newest files.
    Drop(usize),
    Sync,
    Reopen,
}

fn push() -> impl Strategy<Value = Push> {
    (any::<u64>(), any::<u64>(), any::<Option<i64>>()).prop_map(|(session, number, step)| Push {
        session,
        number,
        step,
    })
}

fn part() -> impl Strategy<Value = Part> {
    (any::<u32>(), any::<u32>(), vec(any::<u64>(), 0..9), 1..6usize).prop_flat_map(
        |(table, rate, keys, dim)| {
            let floats = vec(any::<u32>(), keys.len() * dim);
            (Just(table), Just(rate), Just(keys), floats)
                .prop_map(|(table, rate, keys, floats)| Part { table, rate, keys, floats })
        },
    )
}

fn record() -> impl Strategy<Value = SessionRecord> {
    (
        any::<u64>(),
        ".{0,12}",
        any::<u64>(),
        any::<u64>(),
        vec(any::<(u32, i64)>(), 0..4),
        vec(any::<(u64, u64)>(), 0..4),
    )
        .prop_map(|(session, client_id, number, last_used, steps, removals)| SessionRecord {
            session,
            client_id,
            number,
            last_used,
            steps,
            removals,
        })
}

fn what() -> impl Strategy<Value = What> {
    prop_oneof![
        4 => (push(), vec(part(), 0..4)).prop_map(|(push, parts)| What::Gradients(push, parts)),
        2 => (push(), part()).prop_map(|(push, part)| {
            What::Assign(push, Part { rate: 0, ..part })
        }),
        1 => (push(), part()).prop_map(|(push, part)| {
            What::Import(push, Part { rate: 0, ..part })
        }),
        2 => (push(), 0..6_u16, part()).prop_map(|(push, operation, part)| {
            What::Scatter(push, Operation::of(operation).unwrap(), Part { rate: 0, ..part })
        }),
        1 => (push(), any::<u32>(), vec(any::<u64>(), 0..9))
            .prop_map(|(push, table, keys)| What::Remove(push, table, keys)),
        1 => (any::<u64>(), ".{0,12}").prop_map(|(session, id)| What::Attach(session, id)),
        1 => (any::<u32>(), ".{0,20}").prop_map(|(table, text)| What::Create(table, text)),
        1 => (any::<u32>(), ".{0,20}").prop_map(|(table, text)| What::Alter(table, text)),
        1 => any::<u32>().prop_map(What::Drop),
        1 => any::<(u64, u64, u64)>().prop_map(|(s, number, rows)| What::Removed(s, number, rows)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => what().prop_map(Step::Append),
        2 => vec(record(), 0..3).prop_map(Step::Rotate),
        1 => (1..4usize).prop_map(Step::Drop),
        1 => Just(Step::Sync),
        2 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn what_was_appended_is_read(steps in vec(step(), 0..40)) {
        let scratch = Scratch::in_memory();
        let (mut journal, _) = open(scratch.path(), NEW).unwrap();
        let mut model = vec![(1, sessions(0))];
        let (mut sequence, mut known) = (0, NEW);
        for step in steps {
            match step {
                Step::Append(what) => {
                    sequence += 1 + sequence % 3;
                    let entry = Owned { sequence, what };
                    append_all(&journal, std::slice::from_ref(&entry));
                    model.push((journal.generation(), entry));
                }
                Step::Rotate(records) => {
                    let generation = rotate(&journal, records.clone(), sequence).unwrap();
                    model.push((generation, Owned { sequence, what: What::Sessions(records) }));
                }
                Step::Drop(keep) => {
                    let last = journal.generation().saturating_sub(keep as u32);
                    journal.drop_through(last).unwrap();
                    model.retain(|(generation, _)| *generation > last);
                }
                Step::Sync => known = journal.sync().unwrap(),
                Step::Reopen => {
                    drop(journal);
                    let (opened, visited) = open(scratch.path(), known).unwrap();
                    prop_assert_eq!(&visited, &model);
                    journal = opened;
                }
            }
            let newest = journal.generation();
            let oldest = model[0].0;
            let bytes: u64 = (oldest..=newest).map(|g| length(scratch.path(), g)).sum();
            prop_assert_eq!(journal.bytes(), bytes);
        }
        drop(journal);
        prop_assert_eq!(&open(scratch.path(), known).unwrap().1, &model);
    }
}

#[test]
fn a_call_of_more_slices_than_one_writev_takes() {
    let scratch = Scratch::new();
    let (journal, _) = open(scratch.path(), NEW).unwrap();
    let parts: Vec<Part> = (0..2000)
        .map(|table| Part { table, rate: 1, keys: vec![9; 3], floats: vec![table; 9] })
        .collect();
    let push = Push { session: 1, number: 1, step: None };
    let many = Owned { sequence: 1, what: What::Gradients(push, parts) };
    let large = gradients(2, 500_000);
    append_all(&journal, &[many.clone(), large.clone()]);
    drop(journal);
    let visited = read(scratch.path());
    assert!(visited[1..] == [(1, many), (1, large)], "entries differ");
}

#[test]
fn the_end_of_sync_is_that_of_the_file() {
    let scratch = Scratch::new();
    let (journal, _) = open(scratch.path(), NEW).unwrap();
    append_all(&journal, &[gradients(1, 2)]);
    let end = JournalEnd { generation: 1, offset: length(scratch.path(), 1) };
    assert_eq!(journal.sync().unwrap(), end);
    rotate(&journal, Vec::new(), 1).unwrap();
    let end = JournalEnd { generation: 2, offset: length(scratch.path(), 2) };
    assert_eq!(journal.sync().unwrap(), end);
}

#[test]
fn bad_calls_are_refused_and_leave_no_trace() {
    let scratch = Scratch::new();
    let mut journal = Journal::open(config(scratch.path(), Durability::Process), NEW).unwrap();
    let entry = gradients(5, 2);
    let error = append(&journal, &entry).unwrap_err();
    assert!(error.message.contains("not replayed yet"), "{error}");
    journal.replay(&mut |_, _| Ok(())).unwrap();
    assert!(journal.replay(&mut |_, _| Ok(())).is_err());
    append_all(&journal, std::slice::from_ref(&entry));
    let mut ragged = gradients(6, 2);
    if let What::Gradients(_, parts) = &mut ragged.what {
        parts[0].floats.pop();
    }
    for (bad, text) in [(ragged, "no multiple"), (gradients(4, 2), "append in order")] {
        let error = append(&journal, &bad).unwrap_err();
        assert_eq!(error.kind, ErrorKind::BadInput);
        assert!(error.message.contains(text), "{error}");
    }
    let error = journal.drop_through(1).unwrap_err();
    assert_eq!(error.kind, ErrorKind::BadInput);
    drop(journal);
    assert_eq!(read(scratch.path()), [(1, sessions(0)), (1, entry)]);
}

#[test]
fn an_error_of_the_visitor_ends_the_replay() {
    let scratch = Scratch::new();
    drop(open(scratch.path(), NEW).unwrap());
    let mut journal = Journal::open(config(scratch.path(), Durability::Process), NEW).unwrap();
    let error = journal.replay(&mut |_, _| Err(Error::store_full("no rows left"))).unwrap_err();
    assert_eq!(error.kind, ErrorKind::StoreFull);
    assert!(append(&journal, &gradients(1, 1)).is_err());
}
