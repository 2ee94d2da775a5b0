//! The system calls that the standard library does not offer: an advisory lock, holes in files, and
//! advice on the page cache. Linux calls behind safe functions; nothing here holds state.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Takes the exclusive lock of an open file without waiting; false if another open file holds it.
///
/// Belongs to the open file, not to the process: a second open in one process is refused as well,
/// and a child of fork shares the lock of its parent.
#[allow(unsafe_code, reason = "std has file locks only since 1.89")]
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
    // SAFETY: flock takes a descriptor, open for as long as `file` is borrowed, and no memory.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::EWOULDBLOCK) => Ok(false),
        error => Err(error),
    }
}

/// Gives the lock back, also on behalf of children that inherited the descriptor.
#[allow(unsafe_code, reason = "std has file locks only since 1.89")]
pub(crate) fn unlock(file: &File) {
    // SAFETY: as in `try_lock`.
    let _ = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_UN) };
}

/// Tells the kernel that clean pages of bytes [start, end) will not be read soon. Only advice, so
/// its failure means nothing.
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "std has no posix_fadvise")]
pub(crate) fn forget_pages(file: &File, start: u64, end: u64) {
    let (start, length) = (start as libc::off_t, end.saturating_sub(start) as libc::off_t);
    if length > 0 {
        // SAFETY: posix_fadvise takes a descriptor, open for as long as `file` is borrowed, and
        // no memory.
        unsafe {
            libc::posix_fadvise(file.as_raw_fd(), start, length, libc::POSIX_FADV_DONTNEED);
        }
    }
}

/// Other systems have no such advice.
#[cfg(not(target_os = "linux"))]
pub(crate) fn forget_pages(_: &File, _: u64, _: u64) {}

/// Frees a range of the file, which then reads as zeros. No effect where it is not supported.
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "fallocate has no safe form in std")]
pub(crate) fn punch_hole(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let (offset, bytes) = (offset as libc::off_t, bytes as libc::off_t);
    // SAFETY: plain integers; the descriptor is open while `file` is borrowed.
    if unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, bytes) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EPERM) => Ok(()),
        _ => Err(error),
    }
}

/// Other systems have no such call.
#[cfg(not(target_os = "linux"))]
pub(crate) fn punch_hole(_: &File, _: u64, _: u64) -> io::Result<()> {
    Ok(())
}
