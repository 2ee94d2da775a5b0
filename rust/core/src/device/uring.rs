//! Batches of reads through io_uring: the miss path. What counts is CPU a read, so reads are
//! submitted and reaped by the dozen, into memory that the kernel has pinned once.
//!
//! Invariant: while `in_flight` of a ring is above zero the kernel may write anywhere in its
//! arena; a ring is pooled or dropped only when it is zero, and leaked if that cannot be reached.

#![allow(unsafe_code, reason = "submission entries carry raw pointers into the arena")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use io_uring::{opcode, types, IoUring};
use parking_lot::{Condvar, Mutex};

use super::{again, refuse_all, AlignedBuffer, Extent, Reads, EXTENT_BYTES_MAX, PAGE};

/// Completions awaited at once: fewer wake-ups, and the next submission is as large.
const REAP: usize = 32;
const CHUNK_PAGES: u32 = (EXTENT_BYTES_MAX / PAGE) as u32;

/// A bounded pool of rings; a batch holds one ring for itself.
pub(super) struct UringReader {
    file: Arc<File>,
    queue_depth: u32,
    pool: Mutex<Pool>,
    returned: Condvar,
    buffer_bytes: AtomicU64,
}

struct Pool {
    idle: Vec<Ring>,
    made: usize,
    made_max: usize,
}

impl UringReader {
    /// Sets one ring up, to learn whether the system allows it.
    pub(super) fn new(file: &Arc<File>, queue_depth: u32) -> io::Result<Self> {
        // A ring that reads while another computes: one a core keeps the cores busy; and one for
        // reads in the background, which calls do not wait for.
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let made_max = cores.clamp(2, 32) + 1;
        let reader = Self {
            file: file.clone(),
            queue_depth: queue_depth.clamp(CHUNK_PAGES, 4096),
            pool: Mutex::new(Pool { idle: Vec::new(), made: 1, made_max }),
            returned: Condvar::new(),
            buffer_bytes: AtomicU64::new(0),
        };
        let ring = reader.make()?;
        reader.pool.lock().idle.push(ring);
        Ok(reader)
    }

    pub(super) fn buffer_bytes(&self) -> u64 {
        self.buffer_bytes.load(Ordering::Relaxed)
    }

    fn make(&self) -> io::Result<Ring> {
        let ring = Ring::new(&self.file, self.queue_depth)?;
        self.buffer_bytes.fetch_add(ring.arena.len() as u64, Ordering::Relaxed);
        Ok(ring)
    }

    /// Takes an idle ring, makes one, or waits.
    fn lease(&self) -> io::Result<Lease<'_>> {
        let mut pool = self.pool.lock();
        loop {
            if let Some(ring) = pool.idle.pop() {
                return Ok(Lease { reader: self, ring: Some(ring) });
            }
            if pool.made < pool.made_max {
                pool.made += 1;
                break;
            }
            self.returned.wait(&mut pool);
        }
        drop(pool);
        match self.make() {
            Ok(ring) => Ok(Lease { reader: self, ring: Some(ring) }),
            Err(error) => {
                self.pool.lock().made -= 1;
                Err(error)
            }
        }
    }

    pub(super) fn read_batch(&self, reads: &mut dyn Reads) {
        // No ring for a batch that is empty, or answered from memory.
        let Some(first) = reads.next() else { return };
        match self.lease() {
            Ok(mut lease) => {
                let ring = lease.ring.as_mut().expect("a lease holds its ring until dropped");
                ring.read_batch(first, reads);
            }
            Err(error) => {
                reads.done(first.number, Err(again(&error)));
                refuse_all(reads, &error);
            }
        }
    }
}

/// Returns its ring to the pool, drained.
struct Lease<'a> {
    reader: &'a UringReader,
    ring: Option<Ring>,
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let Some(mut ring) = self.ring.take() else { return };
        let mut pool = self.reader.pool.lock();
        if ring.drain() {
            pool.idle.push(ring);
        } else {
            // The kernel may still write into the arena, so its memory must stay.
            std::mem::forget(ring);
            pool.made -= 1;
        }
        drop(pool);
        self.reader.returned.notify_one();
    }
}

#[derive(Clone, Copy, Default)]
struct Chunk {
    /// Pages handed out since the chunk was last free.
    used: u32,
    /// Reads into it that the kernel has or that were not given back.
    out: u32,
}

/// In place of a number: nothing is read to this page.
const NONE: u32 = u32::MAX;

/// One submission queue with its page buffers. The arena is cut into chunks; a chunk is filled
/// from the front and free again once all reads into it were given back.
struct Ring {
    ring: IoUring,
    arena: AlignedBuffer,
    chunks: Vec<Chunk>,
    current: usize,
    /// Number of the read that begins at each page, while the kernel has it.
    numbers: Vec<u32>,
    /// Whether the kernel has the arena pinned.
    fixed: bool,
    in_flight: usize,
    broken: bool,
}

impl Ring {
    fn new(file: &File, queue_depth: u32) -> io::Result<Self> {
        let chunks = queue_depth.div_ceil(CHUNK_PAGES) as usize;
        let arena = AlignedBuffer::new(chunks * EXTENT_BYTES_MAX);
        let entries = (chunks as u32 * CHUNK_PAGES).next_power_of_two();
        // No interrupt of this thread for each completion; kernels before 5.19 do not know it.
        let ring = IoUring::builder()
            .setup_coop_taskrun()
            .build(entries)
            .or_else(|_| IoUring::new(entries))?;
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        let vector = libc::iovec { iov_base: arena.pointer().cast(), iov_len: arena.len() };
        // SAFETY: the arena lives as long as the ring: both are fields of Ring, `ring` is dropped
        // first, and a ring with reads in flight is never dropped.
        // Refused where little memory may be locked; plain reads are the same, a bit slower.
        let fixed = unsafe { ring.submitter().register_buffers(&[vector]) }.is_ok();
        let numbers = vec![NONE; chunks * CHUNK_PAGES as usize];
        let chunks = vec![Chunk::default(); chunks];
        Ok(Self { ring, arena, chunks, current: 0, numbers, fixed, in_flight: 0, broken: false })
    }

    fn read_batch(&mut self, first: Extent, reads: &mut dyn Reads) {
        let mut next = Some(first);
        while next.is_some() || self.in_flight > 0 {
            while let Some(extent) = next.take_if(|extent| self.push(*extent)) {
                debug_assert!(extent.number != NONE);
                next = reads.next();
            }
            if let Err(error) = self.submit(self.in_flight.min(REAP)) {
                self.numbers.iter_mut().filter(|number| **number != NONE).for_each(|number| {
                    reads.done(std::mem::replace(number, NONE), Err(again(&error)));
                });
                next.into_iter().for_each(|extent| reads.done(extent.number, Err(again(&error))));
                return refuse_all(reads, &error);
            }
            self.reap(reads);
        }
    }

    /// Queues one read; false if no buffer is free before others complete.
    fn push(&mut self, extent: Extent) -> bool {
        let pages = extent.bytes.div_ceil(PAGE as u32);
        assert!(pages <= CHUNK_PAGES, "an extent is at most {EXTENT_BYTES_MAX} bytes");
        if self.chunks[self.current].used + pages > CHUNK_PAGES {
            let Some(free) = self.chunks.iter().position(|chunk| chunk.used == 0) else {
                return false;
            };
            self.current = free;
        }
        let chunk = &mut self.chunks[self.current];
        let page = self.current as u32 * CHUNK_PAGES + chunk.used;
        // SAFETY: page + pages lies within the arena: `used` never passes CHUNK_PAGES.
        let target = unsafe { self.arena.pointer().add(page as usize * PAGE) };
        let file = types::Fixed(0);
        let entry = if self.fixed {
            opcode::ReadFixed::new(file, target, extent.bytes, 0).offset(extent.offset).build()
        } else {
            opcode::Read::new(file, target, extent.bytes).offset(extent.offset).build()
        };
        let entry = entry.user_data(page.into());
        // SAFETY: the target stays allocated and unread until the completion is reaped.
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            return false;
        }
        chunk.used += pages;
        chunk.out += 1;
        self.numbers[page as usize] = extent.number;
        self.in_flight += 1;
        true
    }

    fn submit(&mut self, want: usize) -> io::Result<()> {
        match self.ring.submit_and_wait(want) {
            Ok(_) => Ok(()),
            // Interrupted, or too many completions are waiting: reap and come again.
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => Ok(()),
                _ => {
                    self.broken = true;
                    Err(error)
                }
            },
        }
    }

    fn reap(&mut self, reads: &mut dyn Reads) {
        while let Some(entry) = self.ring.completion().next() {
            let page = entry.user_data() as usize;
            self.in_flight -= 1;
            let read = if entry.result() < 0 {
                Err(io::Error::from_raw_os_error(-entry.result()))
            } else {
                // SAFETY: the kernel is done with these bytes: it filled `result` of them from
                // here, no more than asked, and they are handed out again only after the visit.
                Ok(unsafe {
                    let start = self.arena.pointer().add(page * PAGE);
                    std::slice::from_raw_parts(start, entry.result() as usize)
                })
            };
            reads.done(std::mem::replace(&mut self.numbers[page], NONE), read);
            let chunk = &mut self.chunks[page / CHUNK_PAGES as usize];
            chunk.out -= 1;
            if chunk.out == 0 {
                chunk.used = 0;
            }
        }
    }

    /// Waits for all reads, after a visitor panicked; false if the kernel does not give them back.
    fn drain(&mut self) -> bool {
        while self.in_flight > 0 && !self.broken {
            if self.submit(self.in_flight).is_ok() {
                let done = self.ring.completion().count();
                self.in_flight -= done;
            }
        }
        self.chunks.fill(Chunk::default());
        self.numbers.fill(NONE);
        !self.broken
    }
}
