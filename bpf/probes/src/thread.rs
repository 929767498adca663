//! Threads that end, and processes that become another program.

use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use bpf_abi::kind;

use crate::maps::{GO_PROCESSES, TOKIO_POLLS};
use crate::record::{self, Task};

#[btf_tracepoint(function = "sched_process_exit")]
pub(crate) fn thread_exit(_: BtfTracePointContext) -> i32 {
    ends();
    0
}

#[btf_tracepoint(function = "sched_process_exec")]
pub(crate) fn exec(_: BtfTracePointContext) -> i32 {
    begins();
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub(crate) fn thread_exit_raw(_: RawTracePointContext) -> i32 {
    ends();
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub(crate) fn exec_raw(_: RawTracePointContext) -> i32 {
    begins();
    0
}

#[inline(always)]
fn ends() {
    let Task { pid, thread } = Task::current();
    let _ = TOKIO_POLLS.remove(thread);
    if pid == thread {
        let _ = GO_PROCESSES.remove(pid);
    }
    submit(kind::THREAD_EXIT);
}

/// What is known of a process is not so of its next program.
#[inline(always)]
fn begins() {
    let _ = GO_PROCESSES.remove(Task::current().pid);
    submit(kind::EXEC);
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
