//! Data that went through a socket, seen at the end of the call.
//!
//! First choice: the tracepoints of the socket layer, which fire for transfers alone and hand over the socket. Else: the end of every
//! system call, where the socket is found by its descriptor.

use aya_ebpf::macros::{btf_tracepoint, map, raw_tracepoint};
use aya_ebpf::maps::PerCpuArray;
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use bpf_abi::{Header, Wish, constant, counter, flag, kind, skips, verdict};

use crate::call::{self, Buffers};
use crate::draft::Draft;
use crate::kernel::{Memory, Probed, Typed, read_user};
use crate::maps::{SOCKETS, constant, count};
use crate::record::Task;
use crate::socket::{self, AF_INET, IPPROTO_TCP, Socket};
use crate::{descriptor, go, tokio, unix};

const MSG_PEEK: i32 = 0x2;
const MSG_ERRQUEUE: i32 = 0x2000;
/// Messages of one call that are looked at where the end of the call is the only occasion.
const MESSAGES_MAX: u32 = 8;

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
        call::buffers::<Typed>(registers, number, task.thread, None)
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
    if is_of_several(number) && is_own(registers, number, kind, sk) {
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
    let Some(task) = Task::of_interest() else { return };
    if is_passed_over(registers, number) {
        return;
    }
    let Some(sk) = descriptor::socket(call::argument::<Probed>(registers, 0) as u32) else { return };
    let Some(socket) = Socket::read::<Probed>(sk) else { return };
    let key = sk as u64;
    let Some(wish) = wish(&socket, key, task) else { return };
    let transfer = Transfer { kind, key, wish, length: result, has_name: true, begun: Begun::NOT, registers };
    if !is_of_several(number) {
        transfer.submit::<Probed>(
            &socket,
            task,
            call::buffers::<Probed>(registers, number, task.thread, Some(0)),
        );
    } else {
        transfer.submit_messages(&socket, task, call::argument::<Probed>(registers, 1));
    }
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

/// Whether a call transfers several messages.
#[inline(always)]
pub(crate) fn is_of_several(number: u32) -> bool {
    number == constant(constant::NR_SENDMMSG) || number == constant(constant::NR_RECVMMSG)
}

/// The sequence number before a call, where it was looked at.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Begun {
    pub(crate) is_known: bool,
    pub(crate) sequence: u32,
}

impl Begun {
    const NOT: Self = Self { is_known: false, sequence: 0 };
}

/// A call for several messages.
#[derive(Clone, Copy)]
#[repr(C)]
struct Several {
    transfer: Transfer,
    socket: Socket,
    task: Task,
    messages: u64,
}

// SAFETY: each CPU has one of its own.
unsafe impl Sync for Several {}

#[map]
static SEVERAL: PerCpuArray<Several> = PerCpuArray::with_max_entries(1, 0);

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Transfer {
    pub(crate) kind: u8,
    pub(crate) key: u64,
    pub(crate) wish: Wish,
    pub(crate) length: u32,
    /// The address of the other end is where the call says.
    pub(crate) has_name: bool,
    pub(crate) begun: Begun,
    /// Of the task, as it entered the kernel.
    pub(crate) registers: *const u8,
}

impl Transfer {
    #[inline(always)]
    pub(crate) fn submit<M: Memory>(self, socket: &Socket, task: Task, buffers: Buffers) {
        let sequence = if self.begun.is_known && socket.protocol == IPPROTO_TCP {
            self.begun.sequence
        } else {
            socket.sequence::<M>(self.kind, self.length)
        };
        let is_wanted = self.wish.verdict != verdict::NO_PAYLOAD && !self.is_skipped(socket, sequence);
        let wanted = if is_wanted { self.length.min(constant(constant::PAYLOAD_MAX)) } else { 0 };
        let Some(mut draft) = Draft::begin(buffers, wanted) else { return };
        self.describe(draft.header(), socket, sequence, task, buffers.name);
        draft.submit();
    }

    /// Of a call for several messages, which begin at `messages`; `length` is their number.
    #[inline(always)]
    pub(crate) fn submit_messages(self, socket: &Socket, task: Task, messages: u64) {
        let Some(several) = SEVERAL.get_ptr_mut(0) else { return };
        // SAFETY: the memory is this CPU's own.
        unsafe { several.write(Several { transfer: self, socket: *socket, task, messages }) };
        // SAFETY: as above. What is needed of it is read back for each message: see `draft`.
        let Several { transfer, socket, task, messages } = unsafe { &*several };
        for at in 0..MESSAGES_MAX {
            if at >= transfer.length {
                return;
            }
            let message = messages.wrapping_add(u64::from(at) * call::MESSAGES_STRIDE);
            let Some(length) = read_user::<u32>(message.wrapping_add(call::MESSAGE_LENGTH)) else { break };
            // One may be empty.
            if length > 0 {
                Self { length, ..*transfer }.submit::<Probed>(socket, *task, call::message(message));
            }
        }
        count(counter::UNSEEN, u64::from(transfer.length.saturating_sub(MESSAGES_MAX)));
    }

    /// All of it lies before the byte that the agent waits for: the rest of a long body.
    #[inline(always)]
    fn is_skipped(self, socket: &Socket, sequence: u32) -> bool {
        let wish = self.wish;
        let (which, until) = if self.kind == kind::SEND {
            (skips::SENT, wish.sent_until)
        } else {
            (skips::RECEIVED, wish.received_until)
        };
        let end = sequence.wrapping_add(self.length);
        socket.protocol == IPPROTO_TCP && wish.skips & which != 0 && until.wrapping_sub(end) as i32 >= 0
    }

    #[inline(always)]
    fn describe(self, header: &mut Header, socket: &Socket, sequence: u32, task: Task, name: u64) {
        header.kind = self.kind;
        header.socket = self.key;
        header.length = self.length;
        header.pid = task.pid;
        header.thread = task.thread;
        header.coroutine = match go::current(task.pid, self.registers) {
            0 => tokio::current(task.thread, self.registers),
            goroutine => goroutine,
        };
        header.tcp_seq = sequence;
        socket.describe(header);
        if !socket.is_connected() && !(self.has_name && other_end(header, name)) {
            header.flags |= flag::NO_REMOTE;
        }
    }
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

/// `struct sockaddr_in` and `sockaddr_in6`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Address {
    family: u16,
    port: [u8; 2],
    /// The address of IPv4, the flow of IPv6.
    first: [u8; 4],
}

/// Reads the other end of a datagram from the call's own argument.
#[inline(always)]
fn other_end(header: &mut Header, name: u64) -> bool {
    if name == 0 {
        return false;
    }
    let Some(Address { family, port, first }) = read_user::<Address>(name) else { return false };
    header.remote_port = u16::from_be_bytes(port);
    if family == AF_INET {
        header.remote[..4].copy_from_slice(&first);
        return true;
    }
    match read_user::<[u8; 16]>(name.wrapping_add(8)) {
        Some(address) => {
            header.remote = address;
            true
        }
        None => false,
    }
}
