//! The prefetch instruction, and dispatch to code compiled for AVX2.

/// What an address is asked for, as the instruction takes it: to be read, to be written.
const READ: i32 = 3;
const WRITE: i32 = 7;

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;
/// Most lines asked for at one address: for the rest of a long run the processor sees a stream.
const LINES_MAX: usize = 8;

#[inline(always)]
fn ask<const FOR: i32>(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code, reason = "the intrinsic is declared unsafe")]
    // SAFETY: prefetching is a hint; the processor ignores addresses it cannot read, and processors
    // without the form for writing take it for no instruction.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<FOR>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

#[inline(always)]
fn ask_lines<const FOR: i32>(start: *const u8, lines: usize) {
    for line in 0..lines.min(LINES_MAX) {
        ask::<FOR>(start.wrapping_add(line * LINE));
    }
}

/// Asks for the cache line at `address`. Any address is allowed: a hint cannot fault.
#[inline(always)]
pub(crate) fn read(address: *const u8) {
    ask::<READ>(address);
}

/// Asks for so many cache lines from that of `start` on, of many for the first. The number should
/// not vary from call to call: a branch that is guessed wrong costs more than a line too many.
#[inline(always)]
pub(crate) fn lines(start: *const u8, lines: usize) {
    ask_lines::<READ>(start, lines);
}

/// Asks for row `index` of `rows`, which have `dim` columns.
#[inline(always)]
pub(crate) fn row(rows: &[f32], dim: usize, index: u32) {
    let (start, lines) = row_lines(rows, dim, index);
    ask_lines::<READ>(start, lines);
}

/// The same, to be written.
#[inline(always)]
pub(crate) fn row_to_write(rows: &[f32], dim: usize, index: u32) {
    let (start, lines) = row_lines(rows, dim, index);
    ask_lines::<WRITE>(start, lines);
}

/// Where a row begins, and how many lines it touches.
#[inline(always)]
fn row_lines(rows: &[f32], dim: usize, index: u32) -> (*const u8, usize) {
    let start = rows.as_ptr().wrapping_add(index as usize * dim);
    (start.cast(), (start as usize % LINE + 4 * dim).div_ceil(LINE))
}

/// Defines a function that is compiled twice, the second time for AVX2, and chosen at run time.
///
/// What it calls is compiled with it only if it is `inline(always)`; a closure may be left
/// outside, so inner loops take a trait with such methods instead.
macro_rules! vectorized {
    ($(#[$meta:meta])* $visibility:vis fn $name:ident $(<$generic:ident: $bound:path>)?
        ($($argument:ident: $type:ty),* $(,)?) $(-> $output:ty)? $body:block) => {
        $(#[$meta])*
        $visibility fn $name $(<$generic: $bound>)? ($($argument: $type),*) $(-> $output)? {
            #[inline(always)]
            fn plain $(<$generic: $bound>)? ($($argument: $type),*) $(-> $output)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,bmi1,bmi2,popcnt,lzcnt")]
                fn wide $(<$generic: $bound>)? ($($argument: $type),*) $(-> $output)? {
                    plain($($argument),*)
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi2") {
                    #[allow(unsafe_code, reason = "calling code compiled for a detected feature")]
                    // SAFETY: AVX2 and BMI2 were detected; processors with both have the others.
                    return unsafe { wide($($argument),*) };
                }
            }
            plain($($argument),*)
        }
    };
}

pub(crate) use vectorized;
