//! The prefetch instruction, and dispatch to code compiled for AVX2.

/// Asks for the cache line at `address`. Any address is allowed: a hint cannot fault.
#[inline(always)]
pub(crate) fn read(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code, reason = "the intrinsic is declared unsafe")]
    // SAFETY: prefetching is a hint; the processor ignores addresses it cannot read.
    unsafe {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Runs `work`, compiled for AVX2 where the processor has it. Everything that `work` calls and
/// that is `inline(always)` is compiled with it.
#[inline(always)]
pub(crate) fn vectorized<T>(work: impl FnOnce() -> T) -> T {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,bmi1,bmi2,popcnt,lzcnt")]
        fn with_avx2<T>(work: impl FnOnce() -> T) -> T {
            work()
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi2") {
            #[allow(unsafe_code, reason = "calling code compiled for a detected feature")]
            // SAFETY: every processor with AVX2 and BMI2 has the other features; both were
            // detected.
            return unsafe { with_avx2(work) };
        }
    }
    work()
}
