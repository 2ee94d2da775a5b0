//! A device that is one file: opened past the page cache where the file system allows it, read
//! through io_uring where the kernel allows it, through threads else.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{threads::ThreadReader, AlignedBuffer, Device, Reads, PAGE};
use crate::error::{Error, Result};
use crate::{os, vfs};

/// Bytes up to the end of any file.
const ALL: u64 = i64::MAX as u64;
/// Names the back end for tests and for systems where the choice goes wrong.
const CHOICE: &str = "HYBRIDPS_IO";

enum Reader {
    #[cfg(target_os = "linux")]
    Uring(super::uring::UringReader),
    Threads(ThreadReader),
}

/// See the module.
pub(crate) struct FileDevice {
    file: Arc<File>,
    path: PathBuf,
    direct: bool,
    reader: Reader,
    remark: String,
}

impl FileDevice {
    /// Opens or creates `path`; the back end is that of `HYBRIDPS_IO`, or the best.
    pub(crate) fn open(path: &Path, queue_depth: u32) -> Result<Self> {
        Self::open_with(path, queue_depth, &std::env::var(CHOICE).unwrap_or_default())
    }

    /// Opens or creates `path` with the back end `choice`: `uring`, `threads` or empty.
    pub(crate) fn open_with(path: &Path, queue_depth: u32, choice: &str) -> Result<Self> {
        let (file, direct) = open_file(path).map_err(|e| Error::io("open", path, &e))?;
        let file = Arc::new(file);
        let (reader, remark) = reader(&file, queue_depth, choice)?;
        Ok(Self { file, path: path.to_owned(), direct, reader, remark })
    }

    fn after_read(&self) {
        if !self.direct {
            os::forget_pages(&self.file, 0, ALL);
        }
    }
}

fn reader(file: &Arc<File>, queue_depth: u32, choice: &str) -> Result<(Reader, String)> {
    if !matches!(choice, "" | "uring" | "threads") {
        return Err(Error::config(format!(
            "{CHOICE}={choice:?} is not known: set it to uring or threads, or unset it"
        )));
    }
    if choice == "threads" {
        return Ok((Reader::Threads(ThreadReader::new(file)), String::new()));
    }
    match uring_reader(file, queue_depth) {
        Ok(reader) => Ok((reader, String::new())),
        Err(error) if choice == "uring" => Err(Error::config(format!(
            "{CHOICE}=uring, but io_uring is refused here ({error}): unset it to read with threads"
        ))),
        Err(error) => Ok((
            Reader::Threads(ThreadReader::new(file)),
            format!("; io_uring is refused here ({error}), so a miss costs more CPU"),
        )),
    }
}

#[cfg(target_os = "linux")]
fn uring_reader(file: &Arc<File>, queue_depth: u32) -> io::Result<Reader> {
    super::uring::UringReader::new(file, queue_depth).map(Reader::Uring)
}

#[cfg(not(target_os = "linux"))]
fn uring_reader(_file: &Arc<File>, _queue_depth: u32) -> io::Result<Reader> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "not Linux"))
}

/// Second value: whether reads and writes go past the page cache.
fn open_file(path: &Path) -> io::Result<(File, bool)> {
    vfs::create_if_absent(path)?;
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::fs::OpenOptionsExt;
        let direct = options.clone().custom_flags(libc::O_DIRECT).open(path);
        if let Ok(file) = direct {
            // Some file systems accept the flag and refuse the reads.
            if file.read_at(&mut AlignedBuffer::new(PAGE), 0).is_ok() {
                return Ok((file, true));
            }
        }
    }
    options.open(path).map(|file| (file, false))
}

impl Device for FileDevice {
    fn read_batch(&self, reads: &mut dyn Reads) {
        match &self.reader {
            #[cfg(target_os = "linux")]
            Reader::Uring(reader) => reader.read_batch(reads),
            Reader::Threads(reader) => reader.read_batch(reads),
        }
        self.after_read();
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let read = read_full(&self.file, buffer, offset);
        self.after_read();
        read
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        vfs::write_at(&self.file, bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        vfs::sync_data(&self.file)?;
        self.after_read();
        Ok(())
    }

    fn punch(&self, offset: u64, bytes: u64) -> io::Result<()> {
        vfs::punch(&self.file, offset, bytes)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn description(&self) -> String {
        let how = match &self.reader {
            #[cfg(target_os = "linux")]
            Reader::Uring(_) => "io_uring",
            Reader::Threads(_) => "threads with pread",
        };
        let direct = if self.direct {
            "O_DIRECT".to_owned()
        } else {
            format!(
                "warning: {} is on a file system that refuses O_DIRECT, so rows pass the page \
                 cache and the memory bound is not kept: move the data directory to a local disk",
                self.path.display()
            )
        };
        format!("{how}, {direct}{}", self.remark)
    }

    fn buffer_bytes(&self) -> u64 {
        match &self.reader {
            #[cfg(target_os = "linux")]
            Reader::Uring(reader) => reader.buffer_bytes(),
            Reader::Threads(reader) => reader.buffer_bytes(),
        }
    }
}

/// Fills the buffer, or stops at the end of the file.
pub(super) fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(bytes) => {
                filled += bytes;
                // A read that ends off the sector grid met the end of the file; going on from
                // there would break the alignment that O_DIRECT wants.
                if bytes % 512 != 0 {
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Extent, ReadList};

    fn check(choice: &str) {
        let path = std::env::temp_dir().join(format!("hybridps-{}-{choice}", std::process::id()));
        let device = FileDevice::open_with(&path, 128, choice).expect("open");
        let mut bytes = AlignedBuffer::new(300 * PAGE);
        for (page, chunk) in bytes.chunks_mut(PAGE).enumerate() {
            chunk.fill(page as u8);
        }
        device.write_at(&bytes, PAGE as u64).expect("write");
        device.sync().expect("sync");
        // Lengths of 1 to 16 pages, more than one buffer can hold at once, one past the end.
        let extents: Vec<Extent> = (0..400u64)
            .map(|i| Extent {
                offset: (1 + i * 37 % 285) * PAGE as u64,
                bytes: (1 + i % 16) as u32 * PAGE as u32,
                number: i as u32,
            })
            .chain([Extent { offset: 300 * PAGE as u64, bytes: 4 * PAGE as u32, number: 400 }])
            .collect();
        let mut seen = vec![0; extents.len()];
        device.read_batch(&mut ReadList::new(extents.iter().copied(), |index, read| {
            let (index, read) = (index as usize, read.expect("read"));
            let wanted = extents[index].bytes as usize;
            assert_eq!(read.len(), if index == 400 { PAGE } else { wanted });
            let first = (extents[index].offset / PAGE as u64) as usize - 1;
            for (page, chunk) in read.chunks(PAGE).enumerate() {
                assert!(chunk.iter().all(|&byte| byte == (first + page) as u8));
            }
            assert!(device.buffer_bytes() > 0 && device.buffer_bytes() <= 4 << 20);
            seen[index] += 1;
        }));
        assert!(seen.iter().all(|&n| n == 1));
        device.punch(PAGE as u64, PAGE as u64).expect("punch");
        std::fs::remove_file(&path).expect("remove");
    }

    #[test]
    fn every_extent_arrives_once_with_threads() {
        check("threads");
    }

    #[test]
    fn every_extent_arrives_once_with_the_best_back_end() {
        check("");
    }

    #[test]
    fn without_direct_io_it_works_and_warns() {
        let path = std::env::temp_dir().join(format!("hybridps-{}-plain", std::process::id()));
        let mut device = FileDevice::open_with(&path, 64, "threads").expect("open");
        let mut options = OpenOptions::new();
        device.file = Arc::new(options.read(true).write(true).open(&path).expect("plain"));
        device.reader = Reader::Threads(ThreadReader::new(&device.file));
        device.direct = false;
        let mut bytes = AlignedBuffer::new(2 * PAGE);
        bytes.fill(7);
        device.write_at(&bytes, 0).expect("write");
        device.sync().expect("sync");
        let extent = Extent { offset: 0, bytes: 2 * PAGE as u32, number: 0 };
        let check = |_, read: io::Result<&[u8]>| assert_eq!(read.expect("read"), &bytes[..]);
        device.read_batch(&mut ReadList::new([extent], check));
        assert!(device.description().contains("warning"), "{}", device.description());
        std::fs::remove_file(&path).expect("remove");
    }

    #[test]
    fn a_visitor_that_panics_leaves_a_usable_device() {
        for choice in ["", "threads"] {
            let name = format!("hybridps-{}-panic{choice}", std::process::id());
            let path = std::env::temp_dir().join(name);
            let device = FileDevice::open_with(&path, 64, choice).expect("open");
            let mut bytes = AlignedBuffer::new(256 * PAGE);
            bytes.chunks_mut(PAGE).enumerate().for_each(|(page, chunk)| chunk.fill(page as u8));
            device.write_at(&bytes, 0).expect("write");
            let extents: Vec<Extent> = (0..256)
                .map(|page| Extent {
                    offset: page * PAGE as u64,
                    bytes: PAGE as u32,
                    number: page as u32,
                })
                .collect();
            for panics_at in [0, 1, 40, 255] {
                let mut visits = 0;
                let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    device.read_batch(&mut ReadList::new(extents.iter().copied(), |_, _| {
                        assert!(visits < panics_at, "on purpose");
                        visits += 1;
                    }));
                }));
                assert!(panicked.is_err());
                let mut seen = 0;
                device.read_batch(&mut ReadList::new(extents.iter().copied(), |index, read| {
                    assert!(read.expect("read").iter().all(|&byte| byte == index as u8));
                    seen += 1;
                }));
                assert_eq!(seen, 256);
            }
            std::fs::remove_file(&path).expect("remove");
        }
    }

    #[test]
    fn unknown_back_end_is_named() {
        let path = std::env::temp_dir().join(format!("hybridps-{}-unknown", std::process::id()));
        let error = FileDevice::open_with(&path, 128, "aio").err().expect("refused");
        assert!(error.message.contains("aio"), "{error}");
        std::fs::remove_file(&path).expect("remove");
    }
}
