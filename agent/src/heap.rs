//! How the allocator of the C library keeps memory that was let go of: not for long.
//!
//! Left to itself it learns from large pieces that come and go (tables of symbols, types of the kernel, blocks of requests) to keep ever larger ones,
//! and it has a heap for each thread, while requests are made in one thread and let go of in another. Both held some 100 MB that nobody used.
#![expect(unsafe_code, reason = "the allocator is set by a call of the C library")]

/// Heaps: for the threads that make requests, the one that seals them, and all others.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 4;
/// A piece of so many bytes has pages of its own, which go back when it does.
#[cfg(target_env = "gnu")]
const PIECE_BYTES: libc::c_int = 256 << 10;
/// A heap keeps so many free bytes at its end.
#[cfg(target_env = "gnu")]
const KEPT_BYTES: libc::c_int = 1 << 20;

/// For the beginning of the process, before there are threads. What cannot be set stays as it is.
pub fn keep_little() {
    #[cfg(target_env = "gnu")]
    for (what, value) in [
        (libc::M_ARENA_MAX, ARENAS),
        (libc::M_MMAP_THRESHOLD, PIECE_BYTES),
        (libc::M_TRIM_THRESHOLD, KEPT_BYTES),
    ] {
        // SAFETY: the call takes two numbers and touches nothing but the allocator's own settings, under its own lock.
        unsafe { libc::mallopt(what, value) };
    }
}
