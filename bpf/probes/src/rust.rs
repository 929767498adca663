//! Plain text at the doors of rustls, in Rust programs that have a table of symbols.
//!
//! The library works on buffers alone: its caller reads from the socket before it asks for plain text, and writes to the socket after it gave some.
//! So a call's session is told, and the agent finds the socket by what the thread does before or after (`kind::BUFFERED_SEND`). Both ways go by
//! addresses of their own within a connection: of the buffer of what was received, and of the connection.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::macros::{map, uprobe, uretprobe};
use aya_ebpf::maps::LruHashMap;
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use bpf_abi::{constant, kind};

use crate::kernel::{read, read_user};
use crate::maps::constant;
use crate::record::Task;
use crate::tls::Call;
use crate::tokio;

/// Lists of buffers are told up to this one.
const VECTORS_MAX: u64 = 4;

/// Calls that have not returned; and what was shown of what was received, until it is said how much was taken.
#[map]
static RUSTLS_CALLS: LruHashMap<u32, Call> = LruHashMap::with_max_entries(16_384, 0);

/// A part of memory, as slices and `iovec`s have it.
#[derive(Clone, Copy)]
#[repr(C)]
struct Slice {
    base: u64,
    length: u64,
}

#[inline(always)]
fn argument(registers: *const u8, index: usize) -> u64 {
    read(registers, constant(constant::FUNCTION_ARGUMENTS + index)).unwrap_or(0)
}

/// The task of tokio that runs, as sockets are told of it, too.
#[inline(always)]
fn running(task: Task, registers: *mut core::ffi::c_void) -> u64 {
    tokio::current(task.thread, registers.cast_const().cast())
}

/// `Reader::read`, `Writer::write` and `Writer::write_vectored`: the first argument points at what points at the connection.
#[uprobe]
pub(crate) fn rustls_enter(ctx: ProbeContext) -> u32 {
    let Some(task) = Task::of_interest() else { return 0 };
    let registers = ctx.as_ptr().cast_const().cast::<u8>();
    let session = read_user::<u64>(argument(registers, 0)).unwrap_or(0);
    let call =
        Call { session, buffer: argument(registers, 1), result: argument(registers, 2), entered_ns: 0 };
    let _ = RUSTLS_CALLS.insert(task.thread, call, 0);
    0
}

#[uretprobe]
pub(crate) fn rustls_read(ctx: RetProbeContext) -> u32 {
    if let Some((call, task, length)) = left(&ctx) {
        call.submit(kind::BUFFERED_RECEIVE, length, task, running(task, ctx.as_ptr()));
    }
    0
}

#[uretprobe]
pub(crate) fn rustls_write(ctx: RetProbeContext) -> u32 {
    if let Some((call, task, length)) = left(&ctx) {
        call.submit(kind::BUFFERED_SEND, length, task, running(task, ctx.as_ptr()));
    }
    0
}

#[uretprobe]
pub(crate) fn rustls_write_vectored(ctx: RetProbeContext) -> u32 {
    let Some((call, task, length)) = left(&ctx) else { return 0 };
    let mut rest = length;
    for at in 0..VECTORS_MAX {
        if at >= call.result || rest == 0 {
            break;
        }
        let Some(part) = read_user::<Slice>(call.buffer.wrapping_add(at * size_of::<Slice>() as u64)) else {
            break;
        };
        let last = at + 1 == VECTORS_MAX;
        let length = if last || part.length > u64::from(rest) { rest } else { part.length as u32 };
        if length > 0 {
            Call { buffer: part.base, ..call }.submit(
                kind::BUFFERED_SEND,
                length,
                task,
                running(task, ctx.as_ptr()),
            );
        }
        rest -= length;
    }
    0
}

/// The call that ends, and how much it transferred: `Ok` is 0 in the first register of the result, and the number is in the second one.
#[inline(always)]
fn left(ctx: &RetProbeContext) -> Option<(Call, Task, u32)> {
    let task = Task::of_interest()?;
    let entry = RUSTLS_CALLS.get_ptr_mut(task.thread)?;
    // SAFETY: only this thread uses its entry; the session is emptied, so that a return without entry is none.
    let call = unsafe {
        let call = *entry;
        (*entry).session = 0;
        call
    };
    let registers = ctx.as_ptr().cast_const().cast::<u8>();
    let is_error = read::<u64>(registers, constant(constant::FUNCTION_RESULT)).unwrap_or(1) != 0;
    let length = read::<u64>(registers, constant(constant::FUNCTION_RESULT_SECOND)).unwrap_or(0);
    let is_good = call.session != 0 && !is_error && length > 0 && length <= i32::MAX as u64;
    is_good.then_some((call, task, length as u32))
}

/// `Reader::into_first_chunk`: the result, which is in memory, is a slice; an error has no address.
#[uretprobe]
pub(crate) fn rustls_shown(ctx: RetProbeContext) -> u32 {
    let Some(task) = Task::of_interest() else { return 0 };
    let registers = ctx.as_ptr().cast_const().cast::<u8>();
    let result = read::<u64>(registers, constant(constant::FUNCTION_RESULT)).unwrap_or(0);
    let Some(Slice { base, length }) = read_user::<Slice>(result) else { return 0 };
    if base != 0 && length > 0 {
        let call = Call { session: 0, buffer: base, result: length, entered_ns: 0 };
        let _ = RUSTLS_CALLS.insert(task.thread, call, 0);
    }
    0
}

/// `Reader::consume`: so much of it was taken.
#[uprobe]
pub(crate) fn rustls_taken(ctx: ProbeContext) -> u32 {
    let Some(task) = Task::of_interest() else { return 0 };
    let Some(entry) = RUSTLS_CALLS.get_ptr_mut(task.thread) else { return 0 };
    let registers = ctx.as_ptr().cast_const().cast::<u8>();
    let taken = argument(registers, 1);
    // SAFETY: only this thread uses its entry; what was taken is taken once.
    let call = unsafe {
        let call = *entry;
        (*entry).buffer = call.buffer.wrapping_add(taken);
        (*entry).result = call.result.wrapping_sub(taken);
        call
    };
    let session = read_user::<u64>(argument(registers, 0)).unwrap_or(0);
    if session == 0 || taken == 0 || taken > call.result || taken > i32::MAX as u64 {
        return 0;
    }
    Call { session, ..call }.submit(kind::BUFFERED_RECEIVE, taken as u32, task, running(task, ctx.as_ptr()));
    0
}
