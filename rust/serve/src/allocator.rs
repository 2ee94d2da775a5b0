//! Settings of malloc for a process that serves.

/// Keeps blocks of some MiB inside malloc instead of returning each to the kernel, whose fresh
/// pages cost more than a batch's work (glibc; elsewhere nothing). Larger ones go back: a heap that
/// keeps them too cannot join what lies between, and grew past a gigabyte under sixteen clients
/// with pushes of 65 MB. Two arenas, since each keeps blocks of its own, and few threads allocate
/// at a time.
pub fn tune_allocator() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        let settings = [
            (libc::M_MMAP_THRESHOLD, 4 << 20),
            (libc::M_TRIM_THRESHOLD, 8 << 20),
            (libc::M_TOP_PAD, 1 << 20),
            (libc::M_ARENA_MAX, 2),
        ];
        for (parameter, value) in settings {
            // SAFETY: mallopt takes plain integers and may be called at any time; a refused value
            // leaves the default, which is only slower.
            #[allow(unsafe_code, reason = "glibc offers these settings only in C")]
            unsafe {
                libc::mallopt(parameter, value);
            }
        }
    }
}
