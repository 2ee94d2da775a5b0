//! The two system calls that std does not wrap: punching holes and dropping cached pages. Both are
//! hints to the file system: nothing is wrong when it cannot follow them.

use std::fs::File;
use std::io;

/// Frees a range of the file, which then reads as zeros. No effect where it is not supported.
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "fallocate has no safe form in std")]
pub(super) fn punch_hole(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    use std::os::fd::AsRawFd;
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

/// Asks that pages of the file leave the page cache.
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "posix_fadvise has no safe form in std")]
pub(super) fn drop_cached(file: &File) {
    use std::os::fd::AsRawFd;
    // SAFETY: plain integers; the descriptor is open while `file` is borrowed.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
}

#[cfg(not(target_os = "linux"))]
pub(super) fn punch_hole(_file: &File, _offset: u64, _bytes: u64) -> io::Result<()> {
    Ok(())
}

#[cfg(not(target_os = "linux"))]
pub(super) fn drop_cached(_file: &File) {}
