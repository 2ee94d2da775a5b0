//! The system calls that the standard library does not offer: an advisory lock, and advice on the
//! page cache. Linux calls behind safe functions; nothing here holds state.

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
