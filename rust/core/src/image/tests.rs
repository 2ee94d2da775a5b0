//! Goal: an image is read back as it was written, and whatever else its file holds is no image, or
//! has damaged buckets, and never a panic or other entries.
//!
//! Method: a small image, every byte of it flipped, and cut at every length; random bytes.

use std::path::PathBuf;

use super::*;
use crate::directory::{publish, write_temporary};
use crate::log::SegmentId;
use crate::scratch::Scratch;
use crate::types::{Disk, Place};

fn entries(bucket: u32) -> Vec<Entries> {
    let entry =
        |n: u64| Entry::new(u64::from(bucket) << 52 | (n + 1) << 28, Place::from_bits(300 + n));
    match bucket % 3 {
        0 => vec![],
        1 => vec![(4, (0..3).map(entry).collect())],
        _ => vec![(4, vec![entry(7)]), (9, (10..12).map(entry).collect())],
    }
}

fn summary() -> Summary {
    let account = |n: u64| Account {
        segment: SegmentId {
            incarnation: 100 + n,
            disk: [Disk::Nvme, Disk::Cold][n as usize % 2],
            slot: n as u32,
        },
        live_bytes: 1000 * n,
        tombstone_bytes: 32 * n,
        horizon: 90 + n,
        removed_from: 1 << n,
    };
    let table = |table| TableKeys { table, floats: 2 * table, keys: 77 };
    let (tables, accounts) = ([4, 9].map(table).to_vec(), (0..3).map(account).collect());
    Summary { uuid: 1 << 100 | 5, end: 102, tables, accounts }
}

fn write(scratch: &Scratch) -> PathBuf {
    let path = scratch.path().join("index.image");
    let (_, temporary) = write_temporary(&path, |file| {
        let mut writer = Writer::new(file);
        for bucket in buckets() {
            writer.bucket(u64::from(bucket) + 5, &entries(bucket))?;
        }
        writer.finish(&summary())
    })
    .unwrap();
    publish(&temporary, &path).unwrap();
    path
}

/// Buckets that are read as they were written; panics at any that is read otherwise.
fn sound_buckets(path: &Path) -> Option<usize> {
    let image = Image::open(path)?;
    assert_eq!(image.summary(), &summary());
    let sound = |bucket: &u32| match image.read(*bucket) {
        Some(read) => {
            assert_eq!(read, entries(*bucket), "bucket {bucket}");
            assert_eq!(image.sequence(*bucket), u64::from(*bucket) + 5);
            true
        }
        None => false,
    };
    Some(buckets().filter(sound).count())
}

#[test]
fn what_was_written_is_read() {
    let scratch = Scratch::new();
    let path = write(&scratch);
    assert_eq!(sound_buckets(&path), Some(BUCKETS as usize));
    let image = Image::open(&path).unwrap();
    let keys = |bucket| entries(bucket).iter().map(|run| run.1.len() as u64).sum::<u64>();
    let runs = buckets().map(|bucket| entries(bucket).len() as u64).sum();
    assert_eq!(image.bytes(), bytes_of(buckets().map(keys).sum(), runs, 2, 3));
}

#[test]
fn a_flipped_byte_costs_one_bucket_or_all_and_gives_nothing_else() {
    let scratch = Scratch::new();
    let path = write(&scratch);
    let good = std::fs::read(&path).unwrap();
    let blocks = good.len() - (BUCKETS as usize * 24 + 2 * 16 + 3 * 40 + 64);
    let places = (0..good.len()).filter(|at| at % 2003 == 0 || good.len() - at < 190);
    for at in places {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        std::fs::write(&path, &bytes).unwrap();
        let expected = (at < blocks).then_some(BUCKETS as usize - 1);
        assert_eq!(sound_buckets(&path), expected, "byte {at} of {}", good.len());
    }
}

#[test]
fn a_file_of_another_length_is_no_image() {
    let scratch = Scratch::new();
    let path = write(&scratch);
    let good = std::fs::read(&path).unwrap();
    let short = (0..300).chain((300..good.len()).step_by(1013));
    for length in short {
        std::fs::write(&path, &good[..length]).unwrap();
        assert_eq!(sound_buckets(&path), None, "{length} bytes");
        std::fs::write(&path, &good[good.len() - length..]).unwrap();
        // Without its first bytes the blocks do not lie where the head says.
        assert!(sound_buckets(&path).is_none_or(|sound| sound < BUCKETS as usize));
    }
    std::fs::write(&path, [&good[..], &[0]].concat()).unwrap();
    assert_eq!(sound_buckets(&path), None);
    assert!(Image::open(&scratch.path().join("absent")).is_none());
}

/// Length and crc of the file that docs/format.md asks for, computed after that page by a program
/// of its own.
#[test]
fn the_bytes_are_those_of_the_format_s_page() {
    let scratch = Scratch::new();
    let bytes = std::fs::read(write(&scratch)).unwrap();
    assert_eq!((bytes.len(), crc32c::crc32c(&bytes)), (196_800, 0x014e_86b7));
}
