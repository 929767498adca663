//! Lives of processes: they begin, run another program, get deadly signals, run out of memory, end.

use aya_ebpf::helpers::generated::{
    bpf_get_current_comm, bpf_ktime_get_ns, bpf_probe_read_kernel, bpf_probe_read_kernel_str,
};
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use bpf_abi::host::{Life, NAME, TEXT, constant, kind};

use crate::host::host_constant;
use crate::kernel::read;
use crate::record::{self, NO_WAKEUP, Task};

/// HUP, INT, QUIT, ABRT, KILL, TERM, STKFLT, STOP, XCPU, XFSZ, SYS. Not those of faults, which runtimes use for their own ends: where they kill,
/// the exit tells it.
const SIGNALS: u64 =
    1 << 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9 | 1 << 15 | 1 << 16 | 1 << 19 | 1 << 24 | 1 << 25 | 1 << 31;

#[btf_tracepoint(function = "sched_process_fork")]
pub(crate) fn life_start(ctx: BtfTracePointContext) -> i32 {
    let child: *const u8 = ctx.arg(1);
    // A thread is no process.
    if Task::of_interest().is_some()
        && number(child, constant::TASK_PID) == number(child, constant::TASK_TGID)
    {
        submit(kind::START, child, |life| {
            life.parent = number(ctx.arg(0), constant::TASK_TGID);
        });
    }
    0
}

#[btf_tracepoint(function = "sched_process_exec")]
pub(crate) fn life_exec(ctx: BtfTracePointContext) -> i32 {
    if Task::of_interest().is_none() {
        return 0;
    }
    let bprm: *const u8 = ctx.arg(2);
    submit(kind::EXEC, ctx.arg(0), |life| {
        if let Some(path) = read::<*const u8>(bprm, host_constant(constant::BPRM_FILENAME)) {
            // SAFETY: the helper writes at most the size that is said, which is the field's.
            unsafe {
                bpf_probe_read_kernel_str((&raw mut life.text).cast(), TEXT as u32, path.cast());
            }
        }
    });
    0
}

#[btf_tracepoint(function = "sched_process_exit")]
pub(crate) fn life_exit(ctx: BtfTracePointContext) -> i32 {
    let task: *const u8 = ctx.arg(0);
    let Some(signal) = read::<*const u8>(task, host_constant(constant::TASK_SIGNAL)) else { return 0 };
    // The last thread of its process.
    if read::<u32>(signal, host_constant(constant::SIGNAL_LIVE)) == Some(0) && Task::of_interest().is_some() {
        submit(kind::EXIT, task, |life| {
            life.code = number(task, constant::TASK_EXIT_CODE);
        });
    }
    0
}

#[btf_tracepoint(function = "signal_generate")]
pub(crate) fn life_signal(ctx: BtfTracePointContext) -> i32 {
    let signal: i32 = ctx.arg(0);
    let result: i32 = ctx.arg(4);
    // Not those that are ignored, or on their way already.
    if result != 0
        || !(0..64).contains(&signal)
        || SIGNALS >> signal & 1 == 0
        || Task::of_interest().is_none()
    {
        return 0;
    }
    submit(kind::SIGNAL, ctx.arg(2), |life| {
        life.code = signal as u32;
        life.sender = Task::current().pid;
        // SAFETY: the helper writes as many bytes as a name has.
        unsafe {
            bpf_get_current_comm((&raw mut life.sender_name).cast(), NAME as u32);
        }
    });
    0
}

#[raw_tracepoint(tracepoint = "mark_victim")]
pub(crate) fn life_oom(ctx: RawTracePointContext) -> i32 {
    let victim: u64 = ctx.arg(0);
    if victim >> 32 != 0 {
        submit(kind::OOM, victim as *const u8, |_| {});
        return 0;
    }
    // Before Linux 6.8 there is the number of the process alone.
    let Some(mut entry) = record::reserve::<Life>() else { return 0 };
    // SAFETY: the record is ours until it is submitted; all of it is numbers.
    let life = unsafe { &mut *entry.as_mut_ptr() };
    begin(life, kind::OOM);
    life.pid = victim as u32;
    entry.submit(NO_WAKEUP);
    0
}

#[inline(always)]
fn begin(life: &mut Life, kind: u32) {
    record::clear(life);
    // SAFETY: no arguments.
    life.time_ns = unsafe { bpf_ktime_get_ns() };
    life.kind = kind;
}

/// A record about a task; `more` sets what its kind has beside.
#[inline(always)]
fn submit(kind: u32, task: *const u8, more: impl FnOnce(&mut Life)) {
    let Some(mut entry) = record::reserve::<Life>() else { return };
    // SAFETY: the record is ours until it is submitted; `begin` writes all of it.
    let life = unsafe { &mut *entry.as_mut_ptr() };
    begin(life, kind);
    life.pid = number(task, constant::TASK_TGID);
    life.began_ns = read(task, host_constant(constant::TASK_START_TIME)).unwrap_or(0);
    if let Some(parent) = read::<*const u8>(task, host_constant(constant::TASK_PARENT)) {
        life.parent = number(parent, constant::TASK_TGID);
    }
    let name = task.wrapping_add(host_constant(constant::TASK_COMM) as usize);
    // SAFETY: the helper checks the source and writes as many bytes as a name has.
    unsafe {
        bpf_probe_read_kernel((&raw mut life.name).cast(), NAME as u32, name.cast());
    }
    more(life);
    entry.submit(NO_WAKEUP);
}

/// A number of a task.
#[inline(always)]
fn number(task: *const u8, field: usize) -> u32 {
    read(task, host_constant(field)).unwrap_or(0)
}
