//! Round trips, damage, limits, versions.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;

use proptest::prelude::*;

use super::*;
use crate::error::ErrorKind;
use crate::scratch::Scratch;
use crate::spec::{Initializer, Optimizer};

fn spec(name: &str) -> TableSpec {
    TableSpec {
        name: name.into(),
        dim: 8,
        optimizer: Optimizer::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8 },
        learning_rate: 0.05,
        gradients: Default::default(),
        initializer: Initializer::Normal { mean: 0.0, std: 0.01 },
        seed: u64::MAX,
        admission: None,
        dtype: "float32".into(),
        dram: Some(1 << 30),
        nvme: None,
        expiry: None,
    }
}

fn two_tables() -> Manifest {
    let tables = [(1, "item"), (4, "user")];
    let tables = tables.map(|(id, name)| ManifestTable::new(id, spec(name)).unwrap()).to_vec();
    Manifest { sequence: 17, next_table_id: 5, tables }
}

fn directory() -> (Scratch, Directory) {
    let scratch = Scratch::in_memory();
    let directory = Directory::open(scratch.path()).unwrap();
    (scratch, directory)
}

fn write_json(directory: &Directory, json: &str) {
    let crc = crc32c::crc32c(json.as_bytes());
    fs::write(directory.file(MANIFEST), format!("{json}crc32c {crc:08x}\n")).unwrap();
}

#[test]
fn saved_ones_load() {
    let (_scratch, directory) = directory();
    for manifest in [Manifest::default(), two_tables()] {
        manifest.save(&directory).unwrap();
        assert_eq!(Manifest::load(&directory).unwrap(), manifest);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn numbers_read_back_bit_equal(
        beta1 in 0.0..1.0f64,
        beta2 in 0.0..1.0f64,
        eps in 0.0..f32::MAX,
        learning_rate in 0.0..10.0f32,
        mean in proptest::num::f32::NORMAL,
        std in 0.0..1e-30f32,
        seed: u64,
    ) {
        let (_scratch, directory) = directory();
        let mut manifest = two_tables();
        let spec = &mut manifest.tables[0].spec;
        spec.optimizer = Optimizer::Adam { beta1, beta2, eps };
        spec.initializer = Initializer::Normal { mean, std };
        (spec.learning_rate, spec.seed) = (learning_rate, seed);
        manifest.save(&directory).unwrap();
        prop_assert_eq!(Manifest::load(&directory).unwrap(), manifest);
    }
}

#[test]
fn cut_or_flipped_anywhere_it_is_refused_and_named() {
    let (_scratch, directory) = directory();
    let path = directory.file(MANIFEST);
    two_tables().save(&directory).unwrap();
    let bytes = fs::read(&path).unwrap();
    let check = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let error = Manifest::load(&directory).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corruption);
        assert!(error.message.contains(&path.display().to_string()), "{error}");
    };
    for i in 0..bytes.len() {
        check(&bytes[..i]);
        let mut damaged = bytes.clone();
        damaged[i] ^= 1 << (i % 8);
        check(&damaged);
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(Manifest::load(&directory).unwrap_err().kind, ErrorKind::Corruption);
}

#[test]
fn a_crash_while_saving_keeps_the_old_one() {
    let (_scratch, directory) = directory();
    two_tables().save(&directory).unwrap();
    for leftover in ["", "{\"version\": 2, \"next_ta"] {
        fs::write(directory.file("MANIFEST.tmp"), leftover).unwrap();
        assert_eq!(Manifest::load(&directory).unwrap(), two_tables());
    }
    Manifest::default().save(&directory).unwrap();
    assert_eq!(Manifest::load(&directory).unwrap(), Manifest::default());
}

#[test]
fn a_version_from_the_future_is_named_before_its_fields_are_read() {
    let (_scratch, directory) = directory();
    write_json(&directory, "{\"version\": 7, \"tables\": {\"of\": \"another shape\"}}\n");
    let error = Manifest::load(&directory).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Config);
    assert!(error.message.contains("version 7"), "{error}");
}

#[test]
fn content_that_was_never_saved_is_refused() {
    let (_scratch, directory) = directory();
    two_tables().save(&directory).unwrap();
    let text = fs::read_to_string(directory.file(MANIFEST)).unwrap();
    let json = &text[..text.len() - CRC_LINE];
    write_json(&directory, json);
    Manifest::load(&directory).unwrap();
    for (from, to) in [
        ("\"version\":2", "\"version\":2,\"more\":0"),
        ("\"sequence\":17", "\"sequence\":-1"),
        ("\"sequence\":17,", ""),
        ("\"layout\":0,", ""),
        ("\"next_table_id\":5", "\"next_table_id\":4"),
        ("\"id\":4", "\"id\":1"),
        ("\"id\":1", "\"id\":0"),
        ("\"user\"", "\"item\""),
        ("\"dim\":8", "\"dim\":0"),
        ("\"dim\":8", "\"dim\":8,\"dim\":8"),
        ("\"dim\":8", "\"dim\":-8"),
        ("\"dim\":8", "\"dim\":8,\"rows\":1"),
        ("}\n", ""),
    ] {
        let changed = json.replacen(from, to, 1);
        assert_ne!(changed, json, "{from}");
        write_json(&directory, &changed);
        let error = Manifest::load(&directory).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corruption, "{from} -> {to}: {error}");
    }
    write_json(&directory, &"[".repeat(100_000));
    assert_eq!(Manifest::load(&directory).unwrap_err().kind, ErrorKind::Corruption);
}

const GOLDEN: &[u8] = include_bytes!("../golden/MANIFEST-v2");

#[test]
fn golden_bytes() {
    let (_scratch, directory) = directory();
    two_tables().save(&directory).unwrap();
    assert_eq!(fs::read(directory.file(MANIFEST)).unwrap(), GOLDEN, "the format changed");
    fs::write(directory.file(MANIFEST), GOLDEN).unwrap();
    assert_eq!(Manifest::load(&directory).unwrap(), two_tables());
}

#[test]
fn the_golden_bytes_of_version_1_are_refused_by_name() {
    let (_scratch, directory) = directory();
    fs::write(directory.file(MANIFEST), include_bytes!("../golden/MANIFEST-v1")).unwrap();
    let error = Manifest::load(&directory).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Config);
    assert!(error.message.contains("MANIFEST has format version 1, this program"), "{error}");
}

#[test]
fn a_layout_without_a_reader_is_named() {
    let (_scratch, directory) = directory();
    two_tables().save(&directory).unwrap();
    let text = fs::read_to_string(directory.file(MANIFEST)).unwrap();
    let json = &text[..text.len() - CRC_LINE];
    for (layout, named) in [(1, "layout 1 (bfloat16)"), (9, "layout 9 (unknown)")] {
        // Its dtype is another too, of which this build knows nothing.
        let changed = json.replacen("\"layout\":0", &format!("\"layout\":{layout}"), 1);
        write_json(&directory, &changed.replacen("float32", "bfloat16", 1));
        let error = Manifest::load(&directory).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Config);
        assert!(error.message.contains(&format!("table id 1 has {named}")), "{error}");
    }
    write_json(&directory, &json.replacen("float32", "bfloat16", 1));
    assert_eq!(Manifest::load(&directory).unwrap_err().kind, ErrorKind::Corruption);
}

/// A draft keeps its room, whatever sequence it is published with, and leaves nothing behind.
#[test]
fn a_draft_is_published_without_more_room() {
    let (_scratch, directory) = directory();
    Manifest::default().save(&directory).unwrap();
    let temporary = directory.file("MANIFEST.tmp");
    drop(two_tables().draft(&directory).unwrap());
    assert!(!temporary.exists());
    for sequence in [0, 17, u64::MAX] {
        let draft = two_tables().draft(&directory).unwrap();
        let room = fs::metadata(&temporary).unwrap().len();
        draft.publish(sequence).unwrap();
        assert!(fs::metadata(directory.file(MANIFEST)).unwrap().len() <= room);
        let expected = Manifest { sequence, ..two_tables() };
        assert_eq!(Manifest::load(&directory).unwrap(), expected);
    }
}

#[test]
fn definitions_read_back() {
    let table = two_tables().tables.remove(1);
    assert_eq!(ManifestTable::from_text(&table.to_text().unwrap()).unwrap(), table);
    let text = table.to_text().unwrap();
    for (from, to) in [("\"dim\":8", "\"dim\":0"), ("float32", "float16"), ("{", "[")] {
        ManifestTable::from_text(&text.replacen(from, to, 1)).unwrap_err();
    }
}
