//! Tasks of tokio: which one a thread is in, which one began or woke which, and through which queues they hand things on.
//!
//! `tokio::runtime::task::raw::poll` runs a task; its argument is the task's head, from which the way to the task's number is known (`Header`,
//! `Vtable`). Where it ends is not looked at, because a probe there costs as much again and hides who called: a task is still
//! run where the stack has not been left since, and the word at its end is the one that was there.

use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;
use bpf_abi::{constant, kind};

use crate::kernel::{read, read_user, registers};
use crate::maps::{TOKIO_POLLS, TOKIO_WAITS, TOKIO_WAKES, constant};
use crate::record::{self, Task};

/// Where a task's head points at its table, and where that has the places of trailer, scheduler and number, counted from the head.
const TABLE: u64 = 16;
const PLACES: u64 = 56;
/// A head has four words or more, a scheduler some.
const NUMBER_FIRST: u64 = 32;
const NUMBER_LAST: u64 = 512;

/// A task that a thread began to run.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Poll {
    number: u64,
    /// Where the stack ended, and the word there: the way back.
    stack: u64,
    word: u64,
}

/// A queue of a process.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Place {
    pid: u64,
    address: u64,
}

/// Who woke whom in a process.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Wake {
    pid: u64,
    from: u64,
    to: u64,
}

/// The task of tokio that a thread runs, as its registers at the entry of a system call or at a probe tell; 0: none.
#[inline(always)]
pub(crate) fn current(thread: u32, registers: *const u8) -> u64 {
    // SAFETY: a copy is taken at once.
    let Some(poll) = unsafe { TOKIO_POLLS.get(thread) }.copied() else { return 0 };
    let stack: u64 = read(registers, constant(constant::STACK_POINTER)).unwrap_or(u64::MAX);
    if stack < poll.stack && read_user::<u64>(poll.stack) == Some(poll.word) { poll.number } else { 0 }
}

/// The number of a task. None where the table has not the form that is known: releases before 1.25 had another one.
#[inline(always)]
fn number(head: u64) -> Option<u64> {
    let table: u64 = read_user(head.wrapping_add(TABLE))?;
    let [trailer, scheduler, place]: [u64; 3] = read_user(table.wrapping_add(PLACES))?;
    if place < NUMBER_FIRST || place > NUMBER_LAST || scheduler >= place || trailer <= place {
        return None;
    }
    read_user(head.wrapping_add(place))
}

#[inline(always)]
fn argument(registers: *const u8, index: usize) -> u64 {
    read(registers, constant(constant::FUNCTION_ARGUMENTS + index)).unwrap_or(0)
}

/// The thread and the task that it runs.
#[inline(always)]
fn acting(registers: *const u8) -> Option<(Task, u64)> {
    let task = Task::of_interest()?;
    let number = current(task.thread, registers);
    (number != 0).then_some((task, number))
}

/// `tokio::runtime::task::raw::poll`.
#[uprobe]
pub(crate) fn tokio_poll(ctx: ProbeContext) -> u32 {
    let Some(task) = Task::of_interest() else { return 0 };
    let registers = registers(&ctx);
    let number = number(argument(registers, 0)).unwrap_or(0);
    let stack: u64 = read(registers, constant(constant::STACK_POINTER)).unwrap_or(0);
    let word: u64 = read_user(stack).unwrap_or(0);
    let poll = Poll { number, stack, word };
    match TOKIO_POLLS.get_ptr_mut(task.thread) {
        // SAFETY: only this thread uses its entry.
        Some(entry) => unsafe { *entry = poll },
        None => {
            let _ = TOKIO_POLLS.insert(task.thread, poll, 0);
        }
    }
    0
}

/// The handle of a scheduler takes a new task (the second argument).
#[uprobe]
pub(crate) fn tokio_spawn(ctx: ProbeContext) -> u32 {
    let registers = registers(&ctx);
    let Some((task, parent)) = acting(registers) else { return 0 };
    if let Some(child) = number(argument(registers, 1)) {
        submit(kind::TASK_SPAWN, task, parent, child);
    }
    0
}

/// A task is woken: its head is the first argument. Each pair is told once.
#[uprobe]
pub(crate) fn tokio_wake(ctx: ProbeContext) -> u32 {
    let registers = registers(&ctx);
    let Some((task, from)) = acting(registers) else { return 0 };
    let Some(to) = number(argument(registers, 0)) else { return 0 };
    let wake = Wake { pid: task.pid.into(), from, to };
    if from != to && TOKIO_WAKES.get_ptr(wake).is_none() {
        let _ = TOKIO_WAKES.insert(wake, 0, 0);
        submit(kind::TASK_WAKE, task, from, to);
    }
    0
}

/// `tokio::sync::task::AtomicWaker::wake`: the end of each sending to a channel.
#[uprobe]
pub(crate) fn tokio_send(ctx: ProbeContext) -> u32 {
    let registers = registers(&ctx);
    if let Some((task, number)) = acting(registers) {
        submit(kind::TASK_SEND, task, number, argument(registers, 0));
    }
    0
}

/// `tokio::sync::task::AtomicWaker::register_by_ref`: a channel was found empty. It is told when another task did so before.
#[uprobe]
pub(crate) fn tokio_wait(ctx: ProbeContext) -> u32 {
    let registers = registers(&ctx);
    let Some((task, number)) = acting(registers) else { return 0 };
    let address = argument(registers, 0);
    let place = Place { pid: task.pid.into(), address };
    // SAFETY: a copy is taken at once.
    if unsafe { TOKIO_WAITS.get(place) }.copied() != Some(number) {
        let _ = TOKIO_WAITS.insert(place, number, 0);
        submit(kind::TASK_WAIT, task, number, address);
    }
    0
}

#[inline(always)]
fn submit(kind: u8, task: Task, number: u64, other: u64) {
    record::submit_short(|header| {
        header.kind = kind;
        header.coroutine = number;
        header.socket = other;
        header.pid = task.pid;
        header.thread = task.thread;
    });
}
