//! Slow calls on files: the time of a read, write or sync from its entry to its end. Only what was slow is looked at closer: whether it was a
//! file at all, and which one.

use aya_ebpf::helpers::generated::{bpf_get_current_comm, bpf_ktime_get_ns, bpf_probe_read_kernel_str};
use aya_ebpf::macros::{map, raw_tracepoint};
use aya_ebpf::maps::LruHashMap;
use aya_ebpf::programs::RawTracePointContext;
use bpf_abi::constant as common;
use bpf_abi::host::{FileCall, NAME, PART, PATH, constant, kind, operation};

use crate::call;
use crate::descriptor;
use crate::host::host_constant;
use crate::kernel::{Probed, masked, read};
use crate::maps::constant;
use crate::record::{self, NO_WAKEUP, Task};

/// When a thread entered a call on a file. Entries stay for the next call of their thread.
#[map]
static FILE_CALLS: LruHashMap<u32, u64> = LruHashMap::with_max_entries(16_384, 0);

/// Directories and mounts that a path goes through.
const STEPS_MAX: u32 = 24;

#[raw_tracepoint(tracepoint = "sys_enter")]
pub(crate) fn file_enter(ctx: RawTracePointContext) -> i32 {
    let number: u64 = ctx.arg(1);
    if operation(number as u32) == 0 {
        return 0;
    }
    let Some(task) = Task::of_interest() else { return 0 };
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    match FILE_CALLS.get_ptr_mut(task.thread) {
        // SAFETY: only this thread uses its entry.
        Some(entered) => unsafe { *entered = now },
        None => {
            let _ = FILE_CALLS.insert(task.thread, now, 0);
        }
    }
    0
}

#[raw_tracepoint(tracepoint = "sys_exit")]
pub(crate) fn file_exit(ctx: RawTracePointContext) -> i32 {
    let registers: *const u8 = ctx.arg(0);
    let operation = operation(call::number::<Probed>(registers));
    if operation == 0 {
        return 0;
    }
    let Some(task) = Task::of_interest() else { return 0 };
    let Some(entry) = FILE_CALLS.get_ptr_mut(task.thread) else { return 0 };
    // SAFETY: only this thread uses its entry; it is emptied, so that an end without entry is none.
    let entered_ns = unsafe { core::ptr::replace(entry, 0) };
    // SAFETY: no arguments.
    let time_ns = unsafe { bpf_ktime_get_ns() };
    let latency_min = u64::from(host_constant(constant::FILE_LATENCY_US)) * 1_000;
    if entered_ns == 0 || time_ns.wrapping_sub(entered_ns) < latency_min {
        return 0;
    }
    if let Some(file) = descriptor::regular_file(call::argument::<Probed>(registers, 0) as u32) {
        submit(file, task, Call { entered_ns, time_ns, operation, result: ctx.arg(1) });
    }
    0
}

/// What a call does with a file; 0 for all other calls.
#[inline(always)]
fn operation(number: u32) -> u32 {
    let is = |index: usize| number == constant(index);
    let is_own = |index: usize| number == host_constant(index);
    if is(common::NR_READ)
        || is(common::NR_READV)
        || is_own(constant::NR_PREAD)
        || is_own(constant::NR_PREADV)
        || is_own(constant::NR_PREADV2)
    {
        operation::READ
    } else if is(common::NR_WRITE)
        || is(common::NR_WRITEV)
        || is_own(constant::NR_PWRITE)
        || is_own(constant::NR_PWRITEV)
        || is_own(constant::NR_PWRITEV2)
    {
        operation::WRITE
    } else if is_own(constant::NR_FSYNC) || is_own(constant::NR_FDATASYNC) {
        operation::SYNC
    } else {
        0
    }
}

struct Call {
    entered_ns: u64,
    time_ns: u64,
    operation: u32,
    result: i64,
}

#[inline(always)]
fn submit(file: *const u8, task: Task, call: Call) {
    let Some(mut entry) = record::reserve::<FileCall>() else { return };
    let record = entry.as_mut_ptr();
    // SAFETY: the record is ours until it is submitted; the helper writes as many bytes as a name has.
    unsafe {
        (*record).time_ns = call.time_ns;
        (*record).kind = kind::FILE;
        (*record).thread = task.thread;
        (*record).entered_ns = call.entered_ns;
        (*record).result = call.result;
        (*record).pid = task.pid;
        (*record).operation = call.operation;
        (*record).reserved = 0;
        bpf_get_current_comm((&raw mut (*record).name).cast(), NAME as u32);
        (*record).path_bytes = path((&raw mut (*record).path).cast(), file);
    }
    entry.submit(NO_WAKEUP);
}

/// Copies the names from a file up to the root of its process's mounts; gives their bytes.
#[inline(always)]
fn path(to: *mut u8, file: *const u8) -> u32 {
    let offset = host_constant;
    let (Some(mut entry), Some(mut mount)) = (
        read::<*const u8>(file, offset(constant::FILE_DENTRY)),
        read::<*const u8>(file, offset(constant::FILE_MOUNT)),
    ) else {
        return 0;
    };
    let mut at: u64 = 0;
    for _ in 0..STEPS_MAX {
        let Some(parent) = read::<*const u8>(entry, offset(constant::DENTRY_PARENT)) else { break };
        let Some(root) = read::<*const u8>(mount, offset(constant::VFSMOUNT_ROOT)) else { break };
        if entry == root || entry == parent {
            // On to the directory that the file system is mounted on.
            let whole = mount.wrapping_sub(offset(constant::MOUNT_VFSMOUNT) as usize);
            let Some(above) = read::<*const u8>(whole, offset(constant::MOUNT_PARENT)) else { break };
            if above == whole {
                break;
            }
            let Some(point) = read::<*const u8>(whole, offset(constant::MOUNT_MOUNTPOINT)) else { break };
            entry = point;
            mount = above.wrapping_add(offset(constant::MOUNT_VFSMOUNT) as usize);
            continue;
        }
        let Some(name) = read::<*const u8>(entry, offset(constant::DENTRY_NAME)) else { break };
        at = masked!(at, PATH as u64 - 1);
        // SAFETY: the masked place is below the end by the room of a part.
        let length =
            unsafe { bpf_probe_read_kernel_str(to.add(at as usize).cast(), PART as u32, name.cast()) };
        if length <= 0 {
            break;
        }
        at += length as u64;
        if at >= PATH as u64 {
            break;
        }
        entry = parent;
    }
    at as u32
}
