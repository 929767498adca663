//! Go: which goroutine is running, which goroutine began which, and plain text at the doors of `crypto/tls`.
//!
//! A goroutine goes on on any thread, so calls are kept by its number. Functions are left at their return instructions: Go moves stacks, which
//! a replaced return address does not survive. Arguments and results are in registers, by a convention that Go has since 1.17.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::{bpf_get_attach_cookie, bpf_ktime_get_ns};
use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;
use bpf_abi::{go_offset, go_register, kind};

use crate::kernel::{read, read_user, registers};
use crate::maps::{GO_CALLS, GO_PROCESSES, go_register};
use crate::record::{self, Task};
use crate::tls::Call;

/// A goroutine of a process.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Goroutine {
    pid: u64,
    number: u64,
}

/// The running goroutine of a thread, as its registers at the entry of a system call or at a probe tell; 0 where it does not run Go.
#[inline(always)]
pub(crate) fn current(pid: u32, registers: *const u8) -> u64 {
    // SAFETY: a copy is taken at once.
    let Some(offsets) = unsafe { GO_PROCESSES.get(pid) }.copied() else { return 0 };
    number(offsets, argument(registers, go_register::GOROUTINE)).unwrap_or(0)
}

#[inline(always)]
fn offset(offsets: u64, shift: u32) -> u64 {
    offsets >> shift & 0xffff
}

/// What the register points at is checked: C code that a Go program calls may keep something else there.
#[inline(always)]
fn number(offsets: u64, goroutine: u64) -> Option<u64> {
    let thread: u64 = read_user(goroutine.wrapping_add(offset(offsets, go_offset::THREAD)))?;
    let current: u64 = read_user(thread.wrapping_add(offset(offsets, go_offset::CURRENT)))?;
    // The runtime itself works in the thread's scheduling goroutine, on behalf of the current one.
    if current != goroutine && read_user::<u64>(thread)? != goroutine {
        return None;
    }
    goid(offsets, current)
}

#[inline(always)]
fn goid(offsets: u64, goroutine: u64) -> Option<u64> {
    read_user(goroutine.wrapping_add(offset(offsets, go_offset::GOID)))
}

#[inline(always)]
fn argument(registers: *const u8, index: usize) -> u64 {
    read(registers, go_register(index)).unwrap_or(0)
}

/// The current task and its goroutine, where there is one.
#[inline(always)]
fn acting(registers: *const u8) -> Option<(Task, u64)> {
    let task = Task::of_interest()?;
    let number = current(task.pid, registers);
    (number != 0).then_some((task, number))
}

#[uprobe]
pub(crate) fn go_tls_enter(ctx: ProbeContext) -> u32 {
    let registers = registers(&ctx);
    if let Some((task, number)) = acting(registers) {
        enter(registers, task, number);
    }
    0
}

/// Another goroutine may read the answer before this call returns: it is told that one began.
#[uprobe]
pub(crate) fn go_tls_enter_write(ctx: ProbeContext) -> u32 {
    let registers = registers(&ctx);
    if let Some((task, number)) = acting(registers) {
        enter(registers, task, number);
        submit(kind::TLS_SENDING, task, number, argument(registers, 0), 0);
    }
    0
}

#[inline(always)]
fn enter(registers: *const u8, task: Task, number: u64) {
    let call = Call {
        session: argument(registers, 0),
        buffer: argument(registers, 1),
        result: 0,
        // SAFETY: no arguments.
        entered_ns: unsafe { bpf_ktime_get_ns() },
    };
    let _ = GO_CALLS.insert(Goroutine { pid: task.pid.into(), number }, call, 0);
}

#[uprobe]
pub(crate) fn go_tls_read(ctx: ProbeContext) -> u32 {
    leave(registers(&ctx), kind::TLS_RECEIVE);
    0
}

#[uprobe]
pub(crate) fn go_tls_write(ctx: ProbeContext) -> u32 {
    leave(registers(&ctx), kind::TLS_SEND);
    0
}

#[inline(always)]
fn leave(registers: *const u8, kind: u8) {
    let Some((task, number)) = acting(registers) else { return };
    let goroutine = Goroutine { pid: task.pid.into(), number };
    let Some(entry) = GO_CALLS.get_ptr_mut(goroutine) else { return };
    // SAFETY: only this goroutine uses its entry; the session is emptied, so that a return without entry is none.
    let call = unsafe {
        let call = *entry;
        (*entry).session = 0;
        call
    };
    let length = argument(registers, 0) as i64;
    if call.session != 0 && length > 0 {
        call.submit(kind, length.min(i64::from(i32::MAX)) as u32, task, number);
    }
}

/// Every Go program begins goroutines before it does anything else: from the first one on its process is known.
#[inline(always)]
fn learn(ctx: &ProbeContext) {
    if go_register(go_register::COOKIES) == 0 {
        return;
    }
    let pid = Task::current().pid;
    // SAFETY: nothing is kept of what is found.
    if unsafe { GO_PROCESSES.get(pid) }.is_none() {
        // SAFETY: the context is the one that this program was called with.
        let offsets = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
        let _ = GO_PROCESSES.insert(pid, offsets, 0);
    }
}

/// The end of `runtime.newproc1`: the result is the new goroutine.
#[uprobe]
pub(crate) fn go_spawn(ctx: ProbeContext) -> u32 {
    let registers = registers(&ctx);
    learn(&ctx);
    let Some((task, parent)) = acting(registers) else { return 0 };
    // SAFETY: a copy is taken at once.
    let Some(offsets) = unsafe { GO_PROCESSES.get(task.pid) }.copied() else { return 0 };
    if let Some(child) = goid(offsets, argument(registers, 0)) {
        submit(kind::SPAWN, task, parent, child, 0);
    }
    0
}

/// Work is left at the address in the first register.
#[uprobe]
pub(crate) fn go_hand_over(ctx: ProbeContext) -> u32 {
    let registers = registers(&ctx);
    if let Some((task, number)) = acting(registers) {
        submit(kind::HAND_OVER, task, number, argument(registers, 0), 0);
    }
    0
}

/// Work is taken from there.
#[uprobe]
pub(crate) fn go_take_over(ctx: ProbeContext) -> u32 {
    let registers = registers(&ctx);
    if let Some((task, number)) = acting(registers) {
        submit(kind::TAKE_OVER, task, number, argument(registers, 0), 0);
    }
    0
}

/// Of a frame of HTTP/2 in Go's libraries.
const FRAME_STREAM: u64 = 8;

/// A frame of headers (the second argument) was read: the work of its stream is left there.
#[uprobe]
pub(crate) fn go_stream_begin(ctx: ProbeContext) -> u32 {
    let registers = registers(&ctx);
    let Some((task, number)) = acting(registers) else { return 0 };
    let frame = argument(registers, 1);
    if let Some(stream) = read_user::<u32>(frame.wrapping_add(FRAME_STREAM)) {
        submit(kind::HAND_OVER, task, number, frame, stream);
    }
    0
}

/// The work of such a frame is taken: the second argument begins with its address.
#[uprobe]
pub(crate) fn go_stream_take(ctx: ProbeContext) -> u32 {
    let registers = registers(&ctx);
    let Some((task, number)) = acting(registers) else { return 0 };
    if let Some(frame) = read_user::<u64>(argument(registers, 1)) {
        submit(kind::TAKE_OVER, task, number, frame, 0);
    }
    0
}

/// Headers (the fourth argument) of a stream (the second) are written, for whoever made them.
#[uprobe]
pub(crate) fn go_stream_write(ctx: ProbeContext) -> u32 {
    let registers = registers(&ctx);
    if let Some((task, number)) = acting(registers) {
        submit(kind::TAKE_OVER, task, number, argument(registers, 3), argument(registers, 1) as u32);
    }
    0
}

#[inline(always)]
fn submit(kind: u8, task: Task, number: u64, other: u64, stream: u32) {
    record::submit_short(|header| {
        header.kind = kind;
        header.length = stream;
        header.coroutine = number;
        header.socket = other;
        header.pid = task.pid;
        header.thread = task.thread;
    });
}
