//! Threads that end, and processes that become another program.

use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use bpf_abi::kind;

use crate::record::{self, Task};

#[btf_tracepoint(function = "sched_process_exit")]
pub(crate) fn thread_exit(_: BtfTracePointContext) -> i32 {
    submit(kind::THREAD_EXIT);
    0
}

#[btf_tracepoint(function = "sched_process_exec")]
pub(crate) fn exec(_: BtfTracePointContext) -> i32 {
    submit(kind::EXEC);
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub(crate) fn thread_exit_raw(_: RawTracePointContext) -> i32 {
    submit(kind::THREAD_EXIT);
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub(crate) fn exec_raw(_: RawTracePointContext) -> i32 {
    submit(kind::EXEC);
    0
}

#[inline(always)]
fn submit(kind: u8) {
    let Some(Task { pid, thread }) = Task::of_interest() else { return };
    record::submit_short(|header| {
        header.kind = kind;
        header.pid = pid;
        header.thread = thread;
    });
}
