//! One owner at a time, foreign directories refused, files replaced whole.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{BufReader, Write};

use super::*;
use crate::error::ErrorKind as Kind;
use crate::scratch::{spawn_test, spawned_path, wait_for_line, Scratch};

#[test]
fn makes_nested_directories_and_writes_its_pid() {
    let scratch = Scratch::new();
    let path = scratch.path().join("a/b");
    let directory = Directory::open(&path).unwrap();
    assert_eq!(directory.path(), path);
    let pid = fs::read_to_string(directory.file(LOCK)).unwrap();
    assert_eq!(pid.trim_end(), std::process::id().to_string());
}

#[test]
fn second_open_is_refused_until_the_first_is_dropped() {
    let scratch = Scratch::new();
    let first = Directory::open(scratch.path()).unwrap();
    let error = Directory::open(scratch.path()).unwrap_err();
    assert_eq!(error.kind, Kind::Config);
    let expected = format!("in use by process {}", std::process::id());
    assert!(error.message.contains(&expected), "{error}");
    drop(first);
    Directory::open(scratch.path()).unwrap();
}

#[test]
fn dropping_frees_the_lock_though_a_copy_of_its_file_stays_open() {
    let scratch = Scratch::new();
    let directory = Directory::open(scratch.path()).unwrap();
    let inherited = directory.lock.try_clone().unwrap();
    drop(directory);
    Directory::open(scratch.path()).unwrap();
    drop(inherited);
}

#[test]
fn two_processes() {
    let scratch = Scratch::new();
    let mut child = spawn_test("directory::tests::child_holds_the_lock", scratch.path());
    let mut output = BufReader::new(child.stdout.take().unwrap());
    wait_for_line(&mut output, "ready");
    let error = Directory::open(scratch.path()).unwrap_err();
    assert!(error.message.contains(&format!("by process {}", child.id())), "{error}");
    child.kill().unwrap();
    child.wait().unwrap();
    Directory::open(scratch.path()).unwrap();
}

#[test]
#[ignore = "run by two_processes"]
fn child_holds_the_lock() {
    let _directory = Directory::open(&spawned_path()).unwrap();
    std::io::stdout().write_all(b"ready\n").unwrap();
    // Ends by being killed, or with the parent.
    let _ = std::io::stdin().read(&mut [0]);
}

#[test]
fn foreign_files_without_a_superblock_are_refused_untouched() {
    let scratch = Scratch::new();
    fs::write(scratch.path().join("thesis.tex"), "dear").unwrap();
    let error = Directory::open(scratch.path()).unwrap_err();
    assert_eq!(error.kind, Kind::Config);
    assert!(error.message.contains("thesis.tex"), "{error}");
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
    fs::write(scratch.path().join(SUPERBLOCK), "").unwrap();
    Directory::open(scratch.path()).unwrap();
}

#[test]
fn a_lost_superblock_is_not_taken_for_a_new_store() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path().join("journal")).unwrap();
    assert_eq!(Directory::open(scratch.path()).unwrap_err().kind, Kind::Config);
}

#[test]
fn a_socket_is_no_foreign_file() {
    let scratch = Scratch::new();
    let path = scratch.path().join("hps.sock");
    let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
    Directory::open(scratch.path()).unwrap();
    drop(socket);
}

#[test]
fn the_rest_of_a_cut_creation_is_no_foreign_file() {
    let scratch = Scratch::new();
    for name in BEFORE_SUPERBLOCK {
        fs::write(scratch.path().join(name), "x").unwrap();
    }
    Directory::open(scratch.path()).unwrap();
}

#[test]
fn a_path_that_cannot_be_a_directory_names_itself_and_the_remedy() {
    let scratch = Scratch::new();
    let file = scratch.path().join("file");
    fs::write(&file, "x").unwrap();
    for path in [file.clone(), file.join("below")] {
        let error = Directory::open(&path).unwrap_err();
        assert_eq!(error.kind, Kind::Config);
        assert!(error.message.contains(&path.display().to_string()), "{error}");
        assert!(error.message.contains("give a directory that this user may write"), "{error}");
    }
}

#[test]
fn replace_writes_whole_files_and_passes_over_leftovers() {
    let scratch = Scratch::new();
    let path = scratch.path().join("file");
    fs::write(scratch.path().join("file.tmp"), "a longer leftover of a crash").unwrap();
    for text in ["first", "2nd"] {
        replace(&path, text.as_bytes()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
}

#[test]
fn a_full_device_keeps_the_old_file() {
    let scratch = Scratch::new();
    let path = scratch.path().join("file");
    replace(&path, b"old").unwrap();
    let full = || std::io::Error::from_raw_os_error(libc::ENOSPC);
    let error = write_temporary(&path, |_| Err(full())).unwrap_err();
    assert_eq!(error.kind, Kind::StoreFull);
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
}

#[test]
fn read_small_stops_at_its_limit() {
    let scratch = Scratch::new();
    let path = scratch.path().join("file");
    assert_eq!(read_small(&path, 3).unwrap(), None);
    fs::write(&path, "abc").unwrap();
    assert_eq!(read_small(&path, 3).unwrap(), Some(b"abc".to_vec()));
    assert_eq!(read_small(&path, 2).unwrap_err().kind, Kind::Corruption);
}
