//! Stacks: of threads that compute, by a clock on every CPU, and of threads that begin to wait.
//!
//! The stack of a thread can only be walked while it runs, so a wait is told at its begin, and its end in a second, short record. Both
//! kinds of frames are found by frame pointers, as the kernel's helper does it.

use core::ffi::c_void;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::BPF_F_USER_STACK;
use aya_ebpf::helpers::generated::{
    bpf_get_current_comm, bpf_get_current_task, bpf_get_prandom_u32, bpf_get_stack, bpf_ktime_get_ns,
};
use aya_ebpf::macros::{btf_tracepoint, map, perf_event};
use aya_ebpf::maps::{Array, LruHashMap};
use aya_ebpf::programs::{BtfTracePointContext, PerfEventContext};
use bpf_abi::host::{KERNEL_FRAMES, NAME, Sample, USER_FRAMES, Wake, constant, kind};

use crate::host::host_constant;
use crate::kernel::read;
use crate::record::{self, NO_WAKEUP, Task};

/// Threads whose wait was told, until they go on.
#[map]
static WAITING: LruHashMap<u32, u64> = LruHashMap::with_max_entries(16_384, 0);

/// The chance, of 2^32, that a wait is told. The agent sets it, so that the cost stays within its budget.
#[map]
static ODDS: Array<u32> = Array::with_max_entries(1, 0);

/// The task will not run again.
const TASK_DEAD: u32 = 0x80;

#[perf_event]
pub(crate) fn on_cpu(ctx: PerfEventContext) -> u32 {
    if let Some(task) = Task::of_interest()
        && task.pid != 0
    {
        sample(ctx.as_ptr(), task, kind::ON_CPU, u32::MAX);
    }
    0
}

#[btf_tracepoint(function = "sched_switch")]
pub(crate) fn off_cpu(ctx: BtfTracePointContext) -> i32 {
    woke(ctx.arg(2));
    let is_preempted: i32 = ctx.arg(0);
    let state: u32 = read(ctx.arg::<*const u8>(1), host_constant(constant::TASK_STATE)).unwrap_or(0);
    // Who could go on does not wait for anything.
    if is_preempted & 0xff != 0 || state == 0 || state & TASK_DEAD != 0 {
        return 0;
    }
    let Some(task) = Task::of_interest() else { return 0 };
    let odds = ODDS.get(0).copied().unwrap_or(0);
    // SAFETY: no arguments.
    if task.pid == 0 || unsafe { bpf_get_prandom_u32() } > odds {
        return 0;
    }
    if sample(ctx.as_ptr(), task, kind::OFF_CPU, odds) {
        let _ = WAITING.insert(task.thread, 0, 0);
    }
    0
}

/// Tells that a thread goes on, if its wait was told.
#[inline(always)]
fn woke(next: *const u8) {
    let Some(thread) = read::<u32>(next, host_constant(constant::TASK_PID)) else { return };
    if WAITING.get_ptr(thread).is_none() {
        return;
    }
    let _ = WAITING.remove(thread);
    let Some(mut entry) = record::reserve::<Wake>() else { return };
    // SAFETY: no arguments.
    let time_ns = unsafe { bpf_ktime_get_ns() };
    entry.write(Wake { time_ns, kind: kind::WAKE, thread });
    entry.submit(NO_WAKEUP);
}

/// Tells the stack of the current task; whether there was room.
#[inline(always)]
fn sample(ctx: *mut c_void, task: Task, kind: u32, odds: u32) -> bool {
    let Some(mut entry) = record::reserve::<Sample>() else { return false };
    let sample = entry.as_mut_ptr();
    // SAFETY: the record is ours until it is submitted; helpers write at most the sizes that are said, which are those of its parts.
    unsafe {
        let current = bpf_get_current_task() as *const u8;
        (*sample).time_ns = bpf_ktime_get_ns();
        (*sample).kind = kind;
        (*sample).thread = task.thread;
        (*sample).space = read(current, host_constant(constant::TASK_MM)).unwrap_or(0);
        (*sample).pid = task.pid;
        (*sample).odds = odds;
        bpf_get_current_comm((&raw mut (*sample).name).cast(), NAME as u32);
        (*sample).kernel_bytes = stack(ctx, (&raw mut (*sample).kernel).cast(), KERNEL_FRAMES, 0);
        (*sample).user_bytes =
            stack(ctx, (&raw mut (*sample).user).cast(), USER_FRAMES, u64::from(BPF_F_USER_STACK));
    }
    entry.submit(NO_WAKEUP);
    true
}

/// Copies frames; gives their bytes, 0 where there are none.
#[inline(always)]
unsafe fn stack(ctx: *mut c_void, to: *mut c_void, frames: usize, flags: u64) -> u32 {
    // SAFETY: the caller has room for so many frames.
    let bytes = unsafe { bpf_get_stack(ctx, to, (frames * 8) as u32, flags) };
    if bytes > 0 { bytes as u32 } else { 0 }
}
