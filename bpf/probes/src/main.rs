//! The eBPF programs: what the kernel tells the agent about sockets, TLS libraries and threads.
//!
//! One object for every kernel and architecture: offsets, registers and numbers of system calls are constants that the agent sets before
//! it loads the programs, so the verifier folds them. Programs only copy; what a transfer means is decided by the agent.
//! All functions are inlined: a symbol of a function that is not has a hash in its name that depends on where the sources lie, and the
//! object must be the same everywhere. Licence: GPL-2.0-only, because the kernel lets only such programs use the helpers that tracing needs.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch, stmt_expr_attributes)]

mod begun;
mod call;
mod descriptor;
mod draft;
mod file;
mod go;
mod host;
mod kernel;
mod life;
mod maps;
mod record;
mod rust;
mod sample;
mod socket;
mod thread;
mod tls;
mod tokio;
mod transfer;
mod unix;

/// What the kernel reads the licence from.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
