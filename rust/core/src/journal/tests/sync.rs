//! Group commit, the durability modes, failures that stay, full devices, bytes as the kernel
//! counts them.

use std::io::{BufReader, Write};
use std::sync::atomic::{AtomicBool, AtomicI32};
use std::thread;
use std::time::Duration;

use super::*;
use crate::scratch::{spawn_test, spawned_path, wait_for_line};
use crate::vfs::trace::{Change, Traced};

/// A device that fails as it is told, each time once, by error number.
struct Device {
    traced: Traced,
    faults: Arc<Faults>,
}

#[derive(Default)]
struct Faults {
    sync: AtomicI32,
    truncate: AtomicI32,
    /// How long every sync takes at least.
    delay_ms: AtomicU64,
    /// Syncs begun since the journal was opened.
    syncs: AtomicU64,
}

impl Device {
    fn new(root: &Path) -> Self {
        let (traced, faults) = (Traced::new(root), Arc::new(Faults::default()));
        let own = faults.clone();
        let next = |number: &AtomicI32| Some(number.swap(0, Relaxed)).filter(|&n| n != 0);
        traced.fail(move |change| match change {
            Change::Sync { .. } => {
                own.syncs.fetch_add(1, Relaxed);
                thread::sleep(Duration::from_millis(own.delay_ms.load(Relaxed)));
                next(&own.sync)
            }
            Change::SetLength { .. } => next(&own.truncate),
            _ => None,
        });
        Self { traced, faults }
    }

    fn syncs(&self) -> u64 {
        self.faults.syncs.load(Relaxed)
    }

    fn fail_sync(&self, number: i32) {
        self.faults.sync.store(number, Relaxed);
    }

    fn slow_down(&self, ms: u64) {
        self.faults.delay_ms.store(ms, Relaxed);
    }
}

fn start(durability: Durability) -> (Scratch, Device, Journal) {
    let scratch = Scratch::new();
    let device = Device::new(scratch.path());
    let (journal, _) = open_in(durability, scratch.path(), NEW).unwrap();
    device.faults.syncs.store(0, Relaxed);
    (scratch, device, journal)
}

/// Waits for what another thread does; gives up long after it should have.
fn eventually(condition: impl Fn() -> bool) {
    for _ in 0..6000 {
        if condition() {
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("it did not happen within 30 s");
}

/// Every way to use a journal fails with the same text, and nothing reaches the device.
fn expect_failed(journal: &Journal, device: &Device, path: &Path) {
    let before = (device.syncs(), length(path, 1));
    let results = [
        append(journal, &gradients(50, 1)).map(drop),
        journal.commit(Position(0)),
        journal.sync_to(1),
        journal.sync().map(drop),
        rotate(journal, Vec::new(), 50).map(drop),
    ];
    for result in results {
        let error = result.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable);
        assert!(error.message.contains(&log(path, 1).display().to_string()), "{error}");
    }
    assert_eq!((device.syncs(), length(path, 1)), before);
}

#[test]
fn one_sync_serves_all_that_wait() {
    let (scratch, device, journal) = start(Durability::Always);
    device.slow_down(20);
    let sequencer = Mutex::new(0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..5 {
                    let mut sequence = sequencer.lock();
                    *sequence += 1;
                    let position = append(&journal, &gradients(*sequence, 3)).unwrap();
                    drop(sequence);
                    journal.commit(position).unwrap();
                    assert!(journal.opened().unwrap().turns.synced().position >= position.0);
                }
            });
        }
    });
    let syncs = device.syncs();
    assert!((5..40).contains(&syncs), "{syncs} syncs for 40 commits of 8 threads");
    drop(journal);
    let visited = read(scratch.path());
    let expected = (1..=40).map(|sequence| (1, gradients(sequence, 3)));
    assert!(visited[1..].iter().cloned().eq(expected));
}

#[test]
fn a_commit_waits_for_a_sync_that_began_after_its_append() {
    let (_scratch, device, journal) = start(Durability::Always);
    device.slow_down(100);
    let first = append(&journal, &gradients(1, 1)).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| journal.commit(first).unwrap());
        eventually(|| device.syncs() == 1);
        let second = append(&journal, &gradients(2, 1)).unwrap();
        journal.commit(second).unwrap();
    });
    assert_eq!(device.syncs(), 2);
    journal.commit(first).unwrap();
    journal.sync_to(2).unwrap();
    journal.sync().unwrap();
    assert_eq!(device.syncs(), 2);
}

#[test]
fn modes_that_do_not_promise_the_device_do_not_wait_for_it() {
    let (_scratch, device, journal) = start(Durability::Process);
    append_all(&journal, &[gradients(1, 1)]);
    assert_eq!(device.syncs(), 0);
    journal.sync_to(1).unwrap();
    journal.sync_to(1).unwrap();
    // A sequence that left no entry.
    journal.sync_to(99).unwrap();
    assert_eq!(device.syncs(), 1);
}

#[test]
fn interval_syncs_by_itself_and_seldom() {
    let (_scratch, device, journal) = start(Durability::Interval);
    for sequence in 1..=50 {
        append_all(&journal, &[gradients(sequence, 1)]);
    }
    let turns = &journal.opened().unwrap().turns;
    eventually(|| turns.synced().sequence == 50);
    assert!(device.syncs() < 50);
    device.fail_sync(libc::EIO);
    let position = append(&journal, &gradients(51, 1)).unwrap();
    eventually(|| turns.check().is_err());
    assert_eq!(journal.commit(position).unwrap_err().kind, ErrorKind::Unavailable);
}

#[test]
fn interval_syncs_much_data_at_once() {
    let (_scratch, device, journal) = start(Durability::Interval);
    append_all(&journal, &[gradients(1, 1_000_000)]);
    eventually(|| journal.opened().unwrap().turns.synced().sequence == 1);
    assert_eq!(device.syncs(), 1);
}

#[test]
fn a_failed_sync_is_never_retried() {
    for number in [libc::EIO, libc::ENOSPC] {
        let (scratch, device, journal) = start(Durability::Always);
        append_all(&journal, &[gradients(1, 1)]);
        device.fail_sync(number);
        let position = append(&journal, &gradients(2, 1)).unwrap();
        let error = journal.commit(position).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable);
        expect_failed(&journal, &device, scratch.path());
        drop(journal);
        open(scratch.path(), NEW).unwrap();
    }
}

#[test]
fn a_failed_sync_fails_all_that_wait_for_it() {
    let (_scratch, device, journal) = start(Durability::Always);
    device.fail_sync(libc::EIO);
    device.slow_down(50);
    let failed = AtomicU64::new(0);
    let last = (1..=4).map(|sequence| append(&journal, &gradients(sequence, 1)).unwrap());
    let positions: Vec<Position> = last.collect();
    thread::scope(|scope| {
        for &position in &positions {
            let (journal, failed) = (&journal, &failed);
            scope.spawn(move || {
                let result = journal.commit(position);
                failed.fetch_add(u64::from(result.is_err()), Relaxed);
            });
        }
    });
    assert_eq!((failed.into_inner(), device.syncs()), (4, 1));
}

#[test]
fn a_failed_write_is_final_and_its_part_is_taken_back() {
    let (scratch, device, journal) = start(Durability::Process);
    append_all(&journal, &[gradients(1, 1)]);
    device.traced.cut_append(20, libc::EIO);
    let error = append(&journal, &gradients(2, 1)).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    expect_failed(&journal, &device, scratch.path());
    drop(journal);
    assert_eq!(read(scratch.path())[1..], [(1, gradients(1, 1))]);
}

#[test]
fn a_full_device_takes_the_entry_back_and_goes_on() {
    for number in [libc::ENOSPC, libc::EDQUOT] {
        let (scratch, device, journal) = start(Durability::Process);
        append_all(&journal, &[gradients(1, 1)]);
        let before = (length(scratch.path(), 1), journal.bytes());
        for written in [0, 1, 40, 10_000] {
            device.traced.cut_append(written, number);
            let error = append(&journal, &gradients(2, 100)).unwrap_err();
            assert_eq!(error.kind, ErrorKind::StoreFull);
            assert!(error.message.contains("00000001.log"), "{error}");
            assert_eq!((length(scratch.path(), 1), journal.bytes()), before);
        }
        append_all(&journal, &[gradients(2, 2)]);
        let known = journal.sync().unwrap();
        drop(journal);
        let visited = open(scratch.path(), known).unwrap().1;
        assert_eq!(visited[1..], [(1, gradients(1, 1)), (1, gradients(2, 2))]);
    }
}

#[test]
fn a_part_that_cannot_be_taken_back_is_final_and_cut_at_the_next_open() {
    let (scratch, device, journal) = start(Durability::Process);
    append_all(&journal, &[gradients(1, 1)]);
    device.traced.cut_append(50, libc::ENOSPC);
    device.faults.truncate.store(libc::EIO, Relaxed);
    let error = append(&journal, &gradients(2, 1)).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    expect_failed(&journal, &device, scratch.path());
    drop(journal);
    assert_eq!(read(scratch.path())[1..], [(1, gradients(1, 1))]);
}

#[test]
fn a_rotation_that_cannot_sync_the_old_file_makes_no_new_one() {
    let (scratch, device, journal) = start(Durability::Process);
    append_all(&journal, &[gradients(1, 1)]);
    device.fail_sync(libc::EIO);
    assert_eq!(journal.prepare().unwrap_err().kind, ErrorKind::Unavailable);
    expect_failed(&journal, &device, scratch.path());
    assert_eq!(journal.generation(), 1);
    assert!(!log(scratch.path(), 2).exists());
}

#[test]
fn rotation_among_appends_and_commits() {
    let (scratch, _device, journal) = start(Durability::Always);
    let sequencer = Mutex::new(0);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let appender = || {
            for _ in 0..20 {
                let mut sequence = sequencer.lock();
                *sequence += 1;
                let position = append(&journal, &gradients(*sequence, 1)).unwrap();
                drop(sequence);
                journal.commit(position).unwrap();
            }
        };
        let appenders: Vec<_> = (0..3).map(|_| scope.spawn(appender)).collect();
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                let next = journal.prepare().unwrap();
                let sequence = sequencer.lock();
                let generation = journal.switch(next, Vec::new(), *sequence).unwrap();
                drop(sequence);
                if generation > 3 {
                    journal.drop_through(generation - 3).unwrap();
                }
                journal.sync().unwrap();
            }
        });
        appenders.into_iter().for_each(|appender| appender.join().unwrap());
        stop.store(true, Relaxed);
    });
    let known = journal.sync().unwrap();
    let (oldest, bytes) = (journal.generation().saturating_sub(2).max(1), journal.bytes());
    drop(journal);
    let (journal, visited) = open(scratch.path(), known).unwrap();
    assert_eq!(journal.bytes(), bytes);
    assert_eq!(visited[0].0, oldest);
    let sequences = visited.iter().filter(|(_, e)| !matches!(e.what, What::Sessions(_)));
    let sequences: Vec<u64> = sequences.map(|(_, entry)| entry.sequence).collect();
    assert!(sequences.windows(2).all(|pair| pair[1] == pair[0] + 1), "{sequences:?}");
    assert!(sequences.last().is_none_or(|&last| last == 60));
}

#[test]
fn pages_count_once_between_syncs() {
    let (_scratch, _device, journal) = start(Durability::Process);
    // Header and sessions take 120 bytes; an entry of n keys 96 + 8 n + 12 n (and padding).
    let mut sequence = 0;
    let mut append = |keys| {
        sequence += 1;
        let before = journal.bytes_written();
        append_all(&journal, &[gradients(sequence, keys)]);
        journal.bytes_written() - before
    };
    assert_eq!(append(0), 4096); // page 0 is clean since the birth of the file
    assert_eq!(append(10), 0);
    assert_eq!(append(200), 4096); // 512 to 4608: into page 1
    assert_eq!(append(1000), 5 * 4096); // to 24704, page 6
    journal.sync().unwrap();
    assert_eq!(append(0), 4096);
    assert_eq!(append(0), 0);
    let before = journal.bytes_written();
    rotate(&journal, Vec::new(), 9).unwrap();
    assert_eq!(journal.bytes_written() - before, 4096);
}

#[test]
fn a_new_file_counts_its_pages() {
    let (_scratch, _device, journal) = start(Durability::Process);
    assert_eq!(journal.bytes_written(), 4096);
}

/// Our count against the operating system's, in a process that does nothing else.
#[cfg(target_os = "linux")]
#[test]
fn the_kernel_counts_the_same() {
    let scratch = Scratch::new();
    let mut child = spawn_test("journal::tests::sync::child_counts", scratch.path());
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let line = wait_for_line(&mut output, "counted ");
    assert!(child.wait().unwrap().success());
    let numbers: Vec<u64> = line.split(' ').skip(1).map(|n| n.parse().unwrap()).collect();
    let (kernel, ours) = (numbers[0], numbers[1]);
    // A file system in memory writes nothing. Else the kernel may clean a page between two appends
    // by itself, which we do not see; it never counts less.
    assert!(kernel == 0 || (ours..=ours + ours / 20).contains(&kernel), "{kernel} against {ours}");
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "run by the_kernel_counts_the_same"]
fn child_counts() {
    let written = || -> u64 {
        let text = fs::read_to_string("/proc/self/io").unwrap();
        let bytes = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
        bytes.unwrap().parse().unwrap()
    };
    let before = written();
    let (journal, _) = open(&spawned_path(), NEW).unwrap();
    for sequence in 1..=600 {
        append_all(
            &journal,
            &[gradients(sequence, [3, 10, 200, 1000, 30, 7000][(sequence % 6) as usize])],
        );
        if sequence % 40 == 0 {
            journal.sync().unwrap();
        }
        if sequence % 100 == 0 {
            let generation = rotate(&journal, Vec::new(), sequence).unwrap();
            journal.drop_through(generation - 1).unwrap();
        }
    }
    let (kernel, ours) = (written() - before, journal.bytes_written());
    std::io::stdout().write_all(format!("counted {kernel} {ours}\n").as_bytes()).unwrap();
}
