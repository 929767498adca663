//! System calls seen at both ends, the third way: what a call is about is read when it begins, when nothing can have changed yet, and its
//! result when it ends. For kernels that hand over no types (only raw tracepoints are used), and nothing is taken from the registers at the end
//! but the call's number.

use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;

use crate::call::{self, Buffers};
use crate::descriptor;
use crate::kernel::Probed;
use crate::maps::CALLS;
use crate::record::Task;
use crate::socket::{self, Socket};
use crate::transfer::{self, Begun, Transfer};

/// A call that has begun.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Call {
    /// Address of the socket; 0: the call is none of interest, or over.
    sk: u64,
    buffers: Buffers,
    /// The list of messages, of a call for several.
    messages: u64,
    number: u32,
    sequence: u32,
}

#[raw_tracepoint(tracepoint = "sys_enter")]
pub(crate) fn call_begins(ctx: RawTracePointContext) -> i32 {
    let number = ctx.arg::<i64>(1) as u32;
    if let Some(kind) = transfer::kind_of(number) {
        begin(ctx.arg(0), number, kind);
    }
    0
}

#[inline(always)]
fn begin(registers: *const u8, number: u32, kind: u8) {
    let Some(task) = Task::of_interest() else { return };
    let sk = match descriptor::socket(call::argument::<Probed>(registers, 0) as u32) {
        Some(sk) if !transfer::is_passed_over(registers, number) => sk,
        _ => core::ptr::null(),
    };
    let known = CALLS.get_ptr_mut(task.thread);
    if sk.is_null() {
        if let Some(known) = known {
            // SAFETY: only this thread uses its entry.
            unsafe { (*known).sk = 0 };
        }
        return;
    }
    let (buffers, messages) = call::parts(registers, number);
    let call = Call { sk: sk as u64, buffers, messages, number, sequence: socket::next_sequence(sk, kind) };
    match known {
        // SAFETY: only this thread uses its entry.
        Some(known) => unsafe { *known = call },
        None => drop(CALLS.insert(task.thread, call, 0)),
    }
}

#[raw_tracepoint(tracepoint = "sys_exit")]
pub(crate) fn call_ends(ctx: RawTracePointContext) -> i32 {
    let registers: *const u8 = ctx.arg(0);
    let number = call::number::<Probed>(registers);
    if let Some(kind) = transfer::kind_of(number) {
        end(registers, number, kind, ctx.arg(1));
    } else {
        transfer::submitted(number, ctx.arg(1));
    }
    0
}

#[inline(always)]
fn end(registers: *const u8, number: u32, kind: u8, result: i64) {
    let Some(task) = Task::of_interest() else { return };
    let Some(known) = CALLS.get_ptr_mut(task.thread) else { return };
    // SAFETY: only this thread uses its entry; emptied, so that an end without a beginning is none.
    let call = unsafe {
        let call = *known;
        (*known).sk = 0;
        call
    };
    if call.sk == 0 || call.number != number || result <= 0 {
        return;
    }
    let Some(socket) = Socket::read::<Probed>(call.sk as *const u8) else { return };
    let begun = Begun { is_known: true, sequence: call.sequence };
    let Some(wish) = transfer::wish(&socket, call.sk, task) else { return };
    let length = result as u32;
    let Call { sk: key, buffers, messages, .. } = call;
    let transfer = Transfer { kind, key, wish, length, has_name: true, begun, registers };
    transfer.submit_each(&socket, task, buffers, messages);
}
