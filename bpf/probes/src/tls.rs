//! Plain text at the doors of TLS libraries: OpenSSL's `SSL_read`, `SSL_write` and their `_ex` forms.
//!
//! A call's arguments are kept from its entry to its return, when the result says how much there is. Which socket it belongs to is found by
//! the agent, from what the same thread sends and receives between both times.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_probe_read_user};
use aya_ebpf::macros::{uprobe, uretprobe};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use bpf_abi::{Header, LARGE, Record, SMALL, constant, flag, kind};

use crate::kernel::{masked, read, read_user};
use crate::maps::{TLS_CALLS, constant};
use crate::record::{self, NO_WAKEUP, Task};

/// A call that has not returned.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Call {
    pub(crate) session: u64,
    pub(crate) buffer: u64,
    /// Where the `_ex` forms say how much was transferred.
    pub(crate) result: u64,
    pub(crate) entered_ns: u64,
}

#[uprobe]
pub(crate) fn tls_enter(ctx: ProbeContext) -> u32 {
    let Some(task) = Task::of_interest() else { return 0 };
    let registers = ctx.as_ptr().cast_const().cast::<u8>();
    let argument =
        |index: usize| read(registers, constant(constant::FUNCTION_ARGUMENTS + index)).unwrap_or(0);
    let call = Call {
        session: argument(0),
        buffer: argument(1),
        result: argument(3),
        // SAFETY: no arguments.
        entered_ns: unsafe { bpf_ktime_get_ns() },
    };
    match TLS_CALLS.get_ptr_mut(task.thread) {
        // SAFETY: only this thread uses its entry.
        Some(entry) => unsafe { *entry = call },
        None => {
            let _ = TLS_CALLS.insert(task.thread, call, 0);
        }
    }
    0
}

#[uretprobe]
pub(crate) fn tls_read(ctx: RetProbeContext) -> u32 {
    leave(&ctx, kind::TLS_RECEIVE, false);
    0
}

#[uretprobe]
pub(crate) fn tls_read_ex(ctx: RetProbeContext) -> u32 {
    leave(&ctx, kind::TLS_RECEIVE, true);
    0
}

#[uretprobe]
pub(crate) fn tls_write(ctx: RetProbeContext) -> u32 {
    leave(&ctx, kind::TLS_SEND, false);
    0
}

#[uretprobe]
pub(crate) fn tls_write_ex(ctx: RetProbeContext) -> u32 {
    leave(&ctx, kind::TLS_SEND, true);
    0
}

#[inline(always)]
fn leave(ctx: &RetProbeContext, kind: u8, is_extended: bool) {
    let Some(task) = Task::of_interest() else { return };
    let Some(entry) = TLS_CALLS.get_ptr_mut(task.thread) else { return };
    // SAFETY: only this thread uses its entry; the session is emptied, so that a return without entry is none.
    let call = unsafe {
        let call = *entry;
        (*entry).session = 0;
        call
    };
    if call.session == 0 {
        return;
    }
    let registers = ctx.as_ptr().cast_const().cast::<u8>();
    let result: u64 = read(registers, constant(constant::FUNCTION_RESULT)).unwrap_or(0);
    let length = match (is_extended, result as i32) {
        (false, length) => length,
        (true, 1) => read_user::<u64>(call.result).map_or(0, |length| length as i32),
        (true, _) => 0,
    };
    if length <= 0 {
        return;
    }
    call.submit(kind, length as u32, task, 0);
}

impl Call {
    /// What the call transferred.
    #[inline(always)]
    pub(crate) fn submit(&self, kind: u8, length: u32, task: Task, coroutine: u64) {
        let header = |header: &mut Header| {
            header.kind = kind;
            header.socket = self.session;
            header.coroutine = coroutine;
            header.entered_ns = self.entered_ns;
            header.length = length;
            header.pid = task.pid;
            header.thread = task.thread;
        };
        let wanted = length.min(constant(constant::PAYLOAD_MAX));
        if wanted < SMALL as u32 {
            submit::<SMALL>(header, self.buffer, wanted);
        } else {
            submit::<LARGE>(header, self.buffer, wanted);
        }
    }
}

#[inline(always)]
fn submit<const ROOM: usize>(describe: impl FnOnce(&mut Header), from: u64, wanted: u32) {
    let Some(mut entry) = record::reserve::<Record<ROOM>>() else { return };
    let record = entry.as_mut_ptr();
    // SAFETY: the record is ours until it is submitted; `begin` writes the whole header.
    let header = unsafe { &mut (*record).header };
    record::begin(header);
    describe(header);
    let length = if ROOM == SMALL {
        masked!(u64::from(wanted).min(SMALL as u64 - 1), SMALL as u64 - 1)
    } else {
        masked!(u64::from(wanted).min(LARGE as u64 - 1), LARGE as u64 - 1)
    };
    // SAFETY: the masked length is within the payload.
    let result =
        unsafe { bpf_probe_read_user((&raw mut (*record).payload).cast(), length as u32, from as *const _) };
    if result == 0 {
        header.captured = length as u32;
    } else {
        header.flags |= flag::NO_PAYLOAD;
    }
    entry.submit(NO_WAKEUP);
}
