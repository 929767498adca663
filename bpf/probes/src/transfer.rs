//! Data that went through a socket, seen at the end of the call.
//!
//! First choice: the tracepoints of the socket layer, which fire for transfers alone and hand over the socket. Else: the end of every
//! system call, where the socket is found by its descriptor.

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use bpf_abi::{Header, LARGE, Record, SMALL, TINY, Wish, constant, counter, flag, kind, skips, verdict};

use crate::call::{self, Buffers};
use crate::go;
use crate::kernel::{masked, read, read_user};
use crate::maps::{SOCKETS, constant, count};
use crate::record::{self, NO_WAKEUP, Task};
use crate::socket::{self, AF_INET, IPPROTO_TCP, Socket};
use crate::tokio;
use crate::unix;

const MSG_PEEK: i32 = 0x2;
const MSG_ERRQUEUE: i32 = 0x2000;
const S_IFMT: u16 = 0o170_000;
const S_IFSOCK: u16 = 0o140_000;
/// Messages of one call that are looked at where the end of the call is the only occasion.
const MESSAGES_MAX: u32 = 4;
/// Buffers of a list that are copied: heads and bodies are often apart.
const VECTORS_MAX: u64 = 4;

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
    let Some(socket) = Socket::read(sk) else { return };
    if result == 0 {
        if socket.is_unix() && kind == kind::RECEIVE {
            unix::ended(sk, socket::key(sk), task);
        }
        return;
    }
    let registers = call::current_registers();
    let number = call::number(registers);
    // The address of who sent a datagram is written after this tracepoint.
    let transfer = Transfer {
        kind,
        key: socket::key(sk),
        length: result as u32,
        has_name: kind == kind::SEND,
        begun: Begun::NOT,
        registers,
    };
    // The kernel sends and receives for others, too, while a task is in a call or has just ended one: io_uring, network file systems.
    let buffers = if kind_of(number) == Some(kind) && is_descriptor_of(call::argument(registers, 0) as u32, sk) {
        call::buffers(registers, number, task.thread, None)
    } else {
        Buffers::NONE
    };
    transfer.submit(&socket, task, buffers);
}

#[raw_tracepoint(tracepoint = "sys_exit")]
pub(crate) fn sys_exit(ctx: RawTracePointContext) -> i32 {
    let result: i64 = ctx.arg(1);
    if result <= 0 {
        return 0;
    }
    let registers: *const u8 = ctx.arg(0);
    let number = call::number(registers);
    if let Some(kind) = kind_of(number) {
        exit(registers, number, kind, result as u32);
    }
    0
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
    let Some(sk) = socket_of(call::argument(registers, 0) as u32) else { return };
    let Some(socket) = Socket::read(sk) else { return };
    let transfer =
        Transfer { kind, key: sk as u64, length: result, has_name: true, begun: Begun::NOT, registers };
    if !is_of_several(number) {
        transfer.submit(&socket, task, call::buffers(registers, number, task.thread, Some(0)));
    } else {
        transfer.submit_messages(&socket, task, call::argument(registers, 1));
    }
}

/// Whether a call only looks at data, or at errors.
#[inline(always)]
pub(crate) fn is_passed_over(registers: *const u8, number: u32) -> bool {
    let flags = match number {
        number if number == constant(constant::NR_RECVFROM) => call::argument(registers, 3),
        number if number == constant(constant::NR_RECVMSG) => call::argument(registers, 2),
        _ => 0,
    };
    flags as i32 & (MSG_PEEK | MSG_ERRQUEUE) != 0
}

/// Whether a call transfers several messages.
#[inline(always)]
pub(crate) fn is_of_several(number: u32) -> bool {
    number == constant(constant::NR_SENDMMSG) || number == constant(constant::NR_RECVMMSG)
}

/// The socket behind a descriptor of the current task.
#[inline(always)]
pub(crate) fn socket_of(descriptor: u32) -> Option<*const u8> {
    let file = file_of(descriptor)?;
    let inode: *const u8 = read(file, constant(constant::FILE_INODE))?;
    let mode: u16 = read(inode, constant(constant::INODE_MODE))?;
    if mode & S_IFMT != S_IFSOCK {
        return None;
    }
    let socket: *const u8 = read(file, constant(constant::FILE_PRIVATE))?;
    read(socket, constant(constant::SOCKET_SK))
}

/// Whether a descriptor of the current task is that of a socket.
#[inline(always)]
fn is_descriptor_of(descriptor: u32, sk: *const u8) -> bool {
    let Some(file) = file_of(descriptor) else { return false };
    let Some(behind) = read::<u64>(file, constant(constant::FILE_PRIVATE)) else { return false };
    behind != 0 && read::<u64>(sk, constant(constant::SOCK_SOCKET)) == Some(behind)
}

/// What a descriptor of the current task stands for.
#[inline(always)]
fn file_of(descriptor: u32) -> Option<*const u8> {
    // SAFETY: no arguments.
    let task = unsafe { aya_ebpf::helpers::generated::bpf_get_current_task() } as *const u8;
    let files: *const u8 = read(task, constant(constant::TASK_FILES))?;
    let table: *const u8 = read(files, constant(constant::FILES_FDT))?;
    if descriptor >= read::<u32>(table, constant(constant::FDT_MAX))? {
        return None;
    }
    let descriptors: *const u8 = read(table, constant(constant::FDT_FD))?;
    read(descriptors.wrapping_add(descriptor as usize * 8), 0)
}

/// The sequence number before a call, where it was looked at.
#[derive(Clone, Copy)]
pub(crate) struct Begun {
    pub(crate) is_known: bool,
    pub(crate) sequence: u32,
}

impl Begun {
    const NOT: Self = Self { is_known: false, sequence: 0 };
}

#[derive(Clone, Copy)]
pub(crate) struct Transfer {
    pub(crate) kind: u8,
    pub(crate) key: u64,
    pub(crate) length: u32,
    /// The address of the other end is where the call says.
    pub(crate) has_name: bool,
    pub(crate) begun: Begun,
    /// Of the task, as it entered the kernel.
    pub(crate) registers: *const u8,
}

impl Transfer {
    #[inline(always)]
    pub(crate) fn submit(self, socket: &Socket, task: Task, buffers: Buffers) {
        // SAFETY: a copy is taken at once.
        let wish = unsafe { SOCKETS.get(self.key) }.copied().unwrap_or(NO_WISH);
        if wish.verdict == verdict::IGNORE {
            return;
        }
        if socket.is_unix() {
            unix::name(socket.sk, self.key, task);
        }
        let sequence = if self.begun.is_known && socket.protocol == IPPROTO_TCP {
            self.begun.sequence
        } else {
            socket.sequence(self.kind, self.length)
        };
        let is_unwanted = wish.verdict == verdict::NO_PAYLOAD || self.is_skipped(socket, sequence, &wish);
        if buffers.is_none() {
            count(counter::UNSEEN);
        }
        let wanted = self.length.min(constant(constant::PAYLOAD_MAX));
        if is_unwanted || buffers.is_none() {
            self.submit_short(socket, sequence, task, buffers);
        } else if wanted < TINY as u32 {
            self.submit_with::<TINY>(socket, sequence, task, buffers, wanted);
        } else if wanted < SMALL as u32 {
            self.submit_with::<SMALL>(socket, sequence, task, buffers, wanted);
        } else {
            self.submit_with::<LARGE>(socket, sequence, task, buffers, wanted);
        }
    }

    /// Of a call for several messages, which begin at `messages`; `length` is their number.
    #[inline(always)]
    pub(crate) fn submit_messages(self, socket: &Socket, task: Task, messages: u64) {
        for at in 0..MESSAGES_MAX {
            if at >= self.length {
                break;
            }
            let message = messages.wrapping_add(u64::from(at) * call::MESSAGES_STRIDE);
            let Some(length) = read_user::<u32>(message.wrapping_add(call::MESSAGE_LENGTH)) else { break };
            Self { length, ..self }.submit(socket, task, call::message(message));
        }
    }

    /// All of it lies before the byte that the agent waits for: the rest of a long body.
    #[inline(always)]
    fn is_skipped(self, socket: &Socket, sequence: u32, wish: &Wish) -> bool {
        let (which, until) = if self.kind == kind::SEND {
            (skips::SENT, wish.sent_until)
        } else {
            (skips::RECEIVED, wish.received_until)
        };
        let end = sequence.wrapping_add(self.length);
        socket.protocol == IPPROTO_TCP && wish.skips & which != 0 && until.wrapping_sub(end) as i32 >= 0
    }

    #[inline(always)]
    fn submit_short(self, socket: &Socket, sequence: u32, task: Task, buffers: Buffers) {
        let Some(mut entry) = record::reserve::<Header>() else { return };
        // SAFETY: the record is ours until it is submitted; `begin` writes all of it.
        let header = unsafe { &mut *entry.as_mut_ptr() };
        record::begin(header);
        self.describe(header, socket, sequence, task, buffers.name);
        if buffers.is_none() {
            header.flags |= flag::NO_PAYLOAD;
        }
        entry.submit(NO_WAKEUP);
    }

    #[inline(always)]
    fn submit_with<const ROOM: usize>(
        self,
        socket: &Socket,
        sequence: u32,
        task: Task,
        buffers: Buffers,
        wanted: u32,
    ) {
        let Some(mut entry) = record::reserve::<Record<ROOM>>() else { return };
        let record = entry.as_mut_ptr();
        // SAFETY: the record is ours until it is submitted; `begin` writes the whole header.
        let header = unsafe { &mut (*record).header };
        record::begin(header);
        self.describe(header, socket, sequence, task, buffers.name);
        // SAFETY: a place within the record.
        let payload = unsafe { (&raw mut (*record).payload).cast::<u8>() };
        header.captured = copy::<ROOM>(payload, buffers, wanted);
        if header.captured == 0 {
            header.flags |= flag::NO_PAYLOAD;
            count(counter::UNSEEN);
        }
        entry.submit(NO_WAKEUP);
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

const NO_WISH: Wish = Wish { verdict: 0, skips: 0, sent_until: 0, received_until: 0 };

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

/// `struct iovec`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Vector {
    base: u64,
    length: u64,
}

/// Copies the beginning of what was transferred; gives the number of bytes.
#[inline(always)]
fn copy<const ROOM: usize>(payload: *mut u8, buffers: Buffers, wanted: u32) -> u32 {
    let wanted = u64::from(wanted);
    let first = if buffers.buffer != 0 {
        Vector { base: buffers.buffer, length: wanted }
    } else {
        match read_user::<Vector>(buffers.vectors) {
            Some(vector) => vector,
            None => return 0,
        }
    };
    let length = first.length.min(wanted);
    if !copy_part::<ROOM>(payload, first.base, length) {
        return 0;
    }
    let mut at = length.min(ROOM as u64 - 1);
    let mut index = 1;
    // A further part fits for certain where both it and what is there take up at most half of the room.
    while index < VECTORS_MAX && index < buffers.count && at < wanted && at < ROOM as u64 / 2 {
        let Some(vector) =
            read_user::<Vector>(buffers.vectors.wrapping_add(index * size_of::<Vector>() as u64))
        else {
            break;
        };
        let length = vector.length.min(wanted - at);
        if !copy_half::<ROOM>(payload, at, vector.base, length) {
            break;
        }
        let copied = length.min(ROOM as u64 / 2 - 1);
        at += copied;
        if copied < length {
            break;
        }
        index += 1;
    }
    at as u32
}

#[inline(always)]
fn copy_part<const ROOM: usize>(payload: *mut u8, from: u64, length: u64) -> bool {
    let length = if ROOM == TINY {
        masked!(length.min(TINY as u64 - 1), TINY as u64 - 1)
    } else if ROOM == SMALL {
        masked!(length.min(SMALL as u64 - 1), SMALL as u64 - 1)
    } else {
        masked!(length.min(LARGE as u64 - 1), LARGE as u64 - 1)
    };
    // SAFETY: the masked length is within the payload of a record that we hold.
    unsafe { bpf_probe_read_user(payload.cast(), length as u32, from as *const _) == 0 }
}

#[inline(always)]
fn copy_half<const ROOM: usize>(payload: *mut u8, at: u64, from: u64, length: u64) -> bool {
    let (at, length) = if ROOM == TINY {
        let half = TINY as u64 / 2 - 1;
        (masked!(at, TINY as u64 / 2 - 1), masked!(length.min(half), TINY as u64 / 2 - 1))
    } else if ROOM == SMALL {
        let half = SMALL as u64 / 2 - 1;
        (masked!(at, SMALL as u64 / 2 - 1), masked!(length.min(half), SMALL as u64 / 2 - 1))
    } else {
        let half = LARGE as u64 / 2 - 1;
        (masked!(at, LARGE as u64 / 2 - 1), masked!(length.min(half), LARGE as u64 / 2 - 1))
    };
    // SAFETY: each of both is below half of the payload.
    unsafe { bpf_probe_read_user(payload.add(at as usize).cast(), length as u32, from as *const _) == 0 }
}
