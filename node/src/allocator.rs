//! Keeps the process within its memory budget in spite of the C library's allocator.
//!
//! glibc gives each thread an arena, up to eight a core. Batches are made by one thread and freed by another, so what is free in one
//! arena is of no use to the next: with a budget of 192 MiB, 600 MiB were resident after a minute of catching up, and 164 MiB with a
//! single arena. (mimalloc took 292 MiB of the same load.) Small blocks come from caches of each thread, so one arena costs little.
//! The setting is read from the environment when a process starts: so the program replaces itself once, before it has any thread.

use std::{env, os::unix::process::CommandExt as _, process::Command};

/// What glibc reads; a value that the operator gave stays. Other C libraries do not know it and do not need it.
const ARENAS_MAX: &str = "MALLOC_ARENA_MAX";

/// Starts this program anew in the same process with one arena; returns where that was done before or cannot be done.
pub(crate) fn use_one_arena() {
    if env::var_os(ARENAS_MAX).is_some() {
        return;
    }
    let mut arguments = env::args_os();
    let (Some(name), Ok(program)) = (arguments.next(), env::current_exe()) else { return };
    let error = Command::new(program).arg0(name).args(arguments).env(ARENAS_MAX, "1").exec();
    eprintln!(
        "metaflow: the program could not start itself anew and may use more memory than its budget: {error}"
    );
}
