//! Data that went through a socket, seen at the end of the call.
//!
//! First choice: the tracepoints of the socket layer, which fire for transfers alone and hand over the socket. Else: the end of every
//! system call, where the socket is found by its descriptor.

use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use bpf_abi::{Wish, constant, counter, kind, verdict};

use crate::call::{self, Buffers};
use crate::kernel::{Probed, Typed, forgotten};
use crate::maps::{SOCKETS, constant, count};
use crate::record::Task;
use crate::socket::{self, Socket};
use crate::{descriptor, unix};

const MSG_PEEK: i32 = 0x2;
const MSG_ERRQUEUE: i32 = 0x2000;

#[btf_tracepoint(function = "sock_send_length")]
pub(crate) fn send_length(ctx: BtfTracePointContext) -> i32 {
    length(ctx.arg(0), ctx.arg(1), kind::SEND);
    0
}

#[btf_tracepoint(function = "sock_recv_length")]
pub(crate) fn recv_length(ctx: BtfTracePointContext) -> i32 {
    let flags: i32 = ctx.arg(2);
    if flags & (MSG_PEEK | MSG_ERRQUEUE) == 0 {
        length(ctx.arg(0), ctx.arg(1), kind::RECEIVE);
    }
    0
}

#[inline(always)]
fn length(sk: *const u8, result: i32, kind: u8) {
    let Some(task) = Task::of_interest() else { return };
    if result < 0 {
        call::reset_messages(task.thread);
        return;
    }
    if result == 0 {
        empty(sk, kind, task);
        return;
    }
    let Some(socket) = Socket::read::<Typed>(sk) else { return };
    let key = socket::key(sk);
    let Some(wish) = wish(&socket, key, task) else { return };
    let registers = call::current_registers();
    let number = call::number::<Typed>(registers);
    // The address of who sent a datagram is written after this tracepoint.
    let transfer = Transfer {
        kind,
        key,
        wish,
        length: result as u32,
        has_name: kind == kind::SEND,
        begun: Begun::NOT,
        registers,
    };
    let buffers = if is_own(registers, number, kind, sk) {
        call::next_buffers::<Typed>(registers, number, task.thread)
    } else {
        Buffers::NONE
    };
    transfer.submit::<Typed>(&socket, task, buffers);
}

/// An empty datagram is one of the messages of its call, too; an empty read from a Unix socket is its end.
#[inline(always)]
fn empty(sk: *const u8, kind: u8, task: Task) {
    let registers = call::current_registers();
    let number = call::number::<Typed>(registers);
    if call::is_of_several(number) && is_own(registers, number, kind, sk) {
        call::next_message(task.thread, call::argument::<Typed>(registers, 2));
    } else if kind == kind::RECEIVE
        && let Some(socket) = Socket::read::<Typed>(sk)
        && socket.is_unix()
    {
        unix::ended(sk, socket::key(sk), task);
    }
}

/// Whether a transfer is that of the call which its thread is in. The kernel sends and receives for others, too, while a task is in a call
/// or has just ended one: io_uring, network file systems.
#[inline(always)]
fn is_own(registers: *const u8, number: u32, kind: u8, sk: *const u8) -> bool {
    kind_of(number) == Some(kind) && descriptor::is_of(call::argument::<Typed>(registers, 0) as u32, sk)
}

#[raw_tracepoint(tracepoint = "sys_exit")]
pub(crate) fn sys_exit(ctx: RawTracePointContext) -> i32 {
    let result: i64 = ctx.arg(1);
    if result <= 0 {
        return 0;
    }
    let registers: *const u8 = ctx.arg(0);
    let number = call::number::<Probed>(registers);
    if let Some(kind) = kind_of(number) {
        exit(registers, number, kind, result as u32);
    } else {
        submitted(number, result);
    }
    0
}

/// What a call hands to io_uring is not seen at its end; it counts.
#[inline(always)]
pub(crate) fn submitted(number: u32, result: i64) {
    if number == constant(constant::NR_IO_URING_ENTER) && result > 0 && Task::of_interest().is_some() {
        count(counter::SUBMITTED, result as u64);
    }
}

/// Whether a call sends or receives; none for all others.
#[inline(always)]
pub(crate) fn kind_of(number: u32) -> Option<u8> {
    let is = |index: usize| number == constant(index);
    let sends = is(constant::NR_WRITE)
        || is(constant::NR_SENDTO)
        || is(constant::NR_WRITEV)
        || is(constant::NR_SENDMSG)
        || is(constant::NR_SENDMMSG)
        || is(constant::NR_SENDFILE);
    let receives = is(constant::NR_READ)
        || is(constant::NR_RECVFROM)
        || is(constant::NR_READV)
        || is(constant::NR_RECVMSG)
        || is(constant::NR_RECVMMSG);
    if sends {
        Some(kind::SEND)
    } else if receives {
        Some(kind::RECEIVE)
    } else {
        None
    }
}

#[inline(always)]
fn exit(registers: *const u8, number: u32, kind: u8, result: u32) {
    let number = forgotten!(u64::from(number), u64::from(result)) as u32;
    let Some(task) = Task::of_interest() else { return };
    if is_passed_over(registers, number) {
        return;
    }
    let Some(sk) = descriptor::socket(call::argument::<Probed>(registers, 0) as u32) else { return };
    let Some(socket) = Socket::read::<Probed>(sk) else { return };
    let key = sk as u64;
    let Some(wish) = wish(&socket, key, task) else { return };
    let begun = Begun::NOT;
    let transfer = Transfer { kind, key, wish, length: result, has_name: true, begun, registers };
    let (buffers, messages) = call::parts(registers, number);
    transfer.submit_each(&socket, task, buffers, messages);
}

/// Whether a call only looks at data, or at errors.
#[inline(always)]
pub(crate) fn is_passed_over(registers: *const u8, number: u32) -> bool {
    let flags = match number {
        number if number == constant(constant::NR_RECVFROM) => call::argument::<Probed>(registers, 3),
        number if number == constant(constant::NR_RECVMSG) => call::argument::<Probed>(registers, 2),
        _ => 0,
    };
    flags as i32 & (MSG_PEEK | MSG_ERRQUEUE) != 0
}

/// The sequence number before a call, where it was looked at.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Begun {
    pub(crate) is_known: bool,
    pub(crate) sequence: u32,
}

impl Begun {
    pub(crate) const NOT: Self = Self { is_known: false, sequence: 0 };
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Transfer {
    pub(crate) kind: u8,
    pub(crate) key: u64,
    pub(crate) wish: Wish,
    /// Bytes, or messages of a call that has several.
    pub(crate) length: u32,
    /// The address of the other end is where the call says.
    pub(crate) has_name: bool,
    pub(crate) begun: Begun,
    /// Of the task, as it entered the kernel.
    pub(crate) registers: *const u8,
}

/// What the agent wishes of a socket; none: that nothing is told. Where one lies in the file system is told here, once.
#[inline(always)]
pub(crate) fn wish(socket: &Socket, key: u64, task: Task) -> Option<Wish> {
    const NONE: Wish = Wish { verdict: 0, skips: 0, sent_until: 0, received_until: 0 };
    // SAFETY: a copy is taken at once.
    let wish = unsafe { SOCKETS.get(key) }.copied().unwrap_or(NONE);
    if wish.verdict == verdict::IGNORE {
        return None;
    }
    if socket.is_unix() {
        unix::name(socket.sk, key, task);
    }
    Some(wish)
}
