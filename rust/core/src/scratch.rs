//! Directories for tests, gone when dropped.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A fresh directory of its own.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// On the disk of temporary files.
    pub(crate) fn new() -> Self {
        Self::within(&std::env::temp_dir())
    }

    /// In memory where the system offers that: for sweeps over thousands of files.
    pub(crate) fn in_memory() -> Self {
        let memory = Path::new("/dev/shm");
        Self::within(if memory.is_dir() { memory } else { Path::new("/tmp") })
    }

    fn within(parent: &Path) -> Self {
        let name = format!("hybridps-{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed));
        let path = parent.join(name);
        // A run that was killed left its own, and the system gives its number again.
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("the directory of temporary files is writable");
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs the ignored test `name` of this binary in a process of its own, with piped input and
/// output, on `path`.
pub(crate) fn spawn_test(name: &str, path: &Path) -> std::process::Child {
    let binary = std::env::current_exe().expect("the test binary has a path");
    std::process::Command::new(binary)
        .args(["--exact", name, "--ignored", "--nocapture", "--test-threads=1"])
        .env("HYBRIDPS_TEST_PATH", path)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("the test binary runs")
}

/// The path given to a test run by `spawn_test`.
pub(crate) fn spawned_path() -> PathBuf {
    std::env::var_os("HYBRIDPS_TEST_PATH").expect("run by another test").into()
}

/// Reads lines from a child until one starts with `word`; returns that line.
pub(crate) fn wait_for_line(output: &mut impl std::io::BufRead, word: &str) -> String {
    let mut line = String::new();
    while output.read_line(&mut line).expect("the child writes text") > 0 {
        // libtest writes "test NAME ... " without a line feed before the first output.
        if let Some(at) = line.find(word) {
            return line[at..].trim_end().to_owned();
        }
        line.clear();
    }
    panic!("the child ended before it wrote {word:?}");
}
