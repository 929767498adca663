//! What a socket is: its ends, its protocol, its place in the stream; and connections that begin and end.

use core::mem::offset_of;

use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_skc_to_tcp_sock};
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use bpf_abi::{Header, constant, flag, kind};

use crate::kernel::{Memory, Probed, read};
use crate::maps::{constant, is_excluded};
use crate::record::{self, Task};
use crate::unix::{self, AF_UNIX};

pub(crate) const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const IPPROTO_TCP: u16 = 6;
const IPPROTO_UDP: u16 = 17;

const TCP_ESTABLISHED: i32 = 1;
const TCP_SYN_SENT: i32 = 2;
const TCP_TIME_WAIT: u8 = 6;
const TCP_CLOSE: i32 = 7;
const TCP_LAST_ACK: u8 = 9;
const TCP_CLOSING: u8 = 11;

/// The first bytes of `struct sock`, whose order the agent checked.
#[derive(Clone, Copy)]
#[repr(C)]
struct Common {
    remote: u32,
    local: u32,
    hash: u32,
    /// As it goes over the wire.
    remote_port: u16,
    local_port: u16,
    family: u16,
    state: u8,
    rest: u8,
}

/// Addresses of IPv6, in words: a copy of bytes takes an instruction for each.
#[derive(Clone, Copy)]
#[repr(C)]
struct Addresses {
    remote: [u64; 2],
    local: [u64; 2],
}

/// A socket of interest.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Socket {
    pub(crate) sk: *const u8,
    common: Common,
    pub(crate) protocol: u16,
}

impl Common {
    #[inline(always)]
    fn read<M: Memory>(sk: *const u8) -> Option<Self> {
        if !M::IS_TYPED {
            return M::read(sk, 0);
        }
        Some(Self {
            remote: M::read(sk, 0)?,
            local: M::read(sk, 4)?,
            hash: 0,
            remote_port: M::read(sk, 12)?,
            local_port: M::read(sk, 14)?,
            family: M::read(sk, 16)?,
            state: M::read(sk, 18)?,
            rest: 0,
        })
    }
}

impl Socket {
    /// None for other families and protocols, and for excluded ports.
    #[inline(always)]
    pub(crate) fn read<M: Memory>(sk: *const u8) -> Option<Self> {
        let common = Common::read::<M>(sk)?;
        if common.family == AF_UNIX {
            return unix::is_of_interest(sk).then_some(Self { sk, common, protocol: unix::PROTOCOL });
        }
        if common.family != AF_INET && common.family != AF_INET6 {
            return None;
        }
        if is_excluded(common.local_port, u16::from_be(common.remote_port)) {
            return None;
        }
        let protocol: u16 = M::read(sk, constant(constant::SOCK_PROTOCOL))?;
        (protocol == IPPROTO_TCP || protocol == IPPROTO_UDP).then_some(Self { sk, common, protocol })
    }

    #[inline(always)]
    pub(crate) fn is_unix(&self) -> bool {
        self.common.family == AF_UNIX
    }

    #[inline(always)]
    pub(crate) fn is_tcp(&self) -> bool {
        self.protocol == IPPROTO_TCP
    }

    #[inline(always)]
    pub(crate) fn is_connected(&self) -> bool {
        self.common.remote_port != 0 || self.is_unix()
    }

    /// The other end said that it is done: states TIME_WAIT, CLOSE, CLOSE_WAIT, LAST_ACK and CLOSING.
    #[inline(always)]
    pub(crate) fn is_half_closed(&self) -> bool {
        let state = self.common.state;
        (TCP_TIME_WAIT..=TCP_LAST_ACK).contains(&state) || state == TCP_CLOSING
    }

    #[inline(always)]
    pub(crate) fn describe(&self, header: &mut Header) {
        let Common { remote, local, remote_port, local_port, family, .. } = self.common;
        header.local_port = local_port;
        header.remote_port = u16::from_be(remote_port);
        header.family = family as u8;
        header.protocol = self.protocol as u8;
        if self.is_unix() {
            unix::describe(self.sk, header);
            return;
        }
        if family == AF_INET {
            put(&mut header.local, short(local));
            put(&mut header.remote, short(remote));
        } else if let Some(addresses) = read::<Addresses>(self.sk, constant(constant::SOCK_V6_ADDRESSES)) {
            put(&mut header.local, addresses.local);
            put(&mut header.remote, addresses.remote);
        }
    }
}

/// Sequence number of the first of the last bytes that were sent through a socket of TCP, or that were read.
#[inline(always)]
pub(crate) fn sequence<M: Memory>(sk: *const u8, kind: u8, length: u32, is_half_closed: bool) -> u32 {
    let sk = if M::IS_TYPED {
        // SAFETY: the pointer is an argument of a tracepoint, so it is a socket.
        let tcp = unsafe { bpf_skc_to_tcp_sock(sk.cast_mut().cast()) };
        if tcp.is_null() {
            return 0;
        }
        tcp.cast_const().cast()
    } else {
        sk
    };
    let number = |index: usize| M::read::<u32>(sk, constant(index)).unwrap_or(0);
    if kind == kind::SEND {
        return number(constant::TCP_WRITE_SEQ).wrapping_sub(length);
    }
    let next = number(constant::TCP_COPIED_SEQ);
    // The end of the stream takes a number of its own; once that is read, too, the bytes end one before.
    let is_ended = is_half_closed && number(constant::TCP_RCV_NXT) == next;
    next.wrapping_sub(length).wrapping_sub(is_ended as u32)
}

const _: () = assert!(offset_of!(Header, local) % 8 == 0 && offset_of!(Header, remote) % 8 == 0);

/// Puts an address, or the words that stand for one, into its place in a header: not byte for byte, as the compiler would.
#[inline(always)]
pub(crate) fn put(place: &mut [u8; 16], [first, second]: [u64; 2]) {
    let words = place.as_mut_ptr().cast::<u64>();
    // SAFETY: there is room, and the place is aligned for words.
    unsafe {
        words.write_volatile(first);
        words.add(1).write_volatile(second);
    }
}

/// An address of IPv4 as words.
#[inline(always)]
pub(crate) fn short(address: u32) -> [u64; 2] {
    [u64::from(address).to_le(), 0]
}

/// Sequence number of the next byte that will be sent, or read; TCP alone.
#[inline(always)]
pub(crate) fn next_sequence(sk: *const u8, kind: u8) -> u32 {
    let index = if kind == kind::SEND { constant::TCP_WRITE_SEQ } else { constant::TCP_COPIED_SEQ };
    read(sk, constant(index)).unwrap_or(0)
}

/// The key of a socket that the kernel handed over itself: its cookie, which is never used again. Where not all programs can ask for
/// it, its address.
#[inline(always)]
pub(crate) fn key(sk: *const u8) -> u64 {
    if constant(constant::BY_ADDRESS) != 0 {
        return sk as u64;
    }
    // SAFETY: the pointer is an argument of a tracepoint, so it is a socket.
    unsafe { bpf_get_socket_cookie(sk.cast_mut().cast()) }
}

#[btf_tracepoint(function = "inet_sock_set_state")]
pub(crate) fn set_state(ctx: BtfTracePointContext) -> i32 {
    change(ctx.arg(0), ctx.arg(1), ctx.arg(2));
    0
}

/// The same without types of the kernel.
#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub(crate) fn set_state_raw(ctx: RawTracePointContext) -> i32 {
    change(ctx.arg(0), ctx.arg(1), ctx.arg(2));
    0
}

#[inline(always)]
fn change(sk: *const u8, before: i32, after: i32) {
    let (kind, flags) = match (before, after) {
        (TCP_CLOSE, TCP_SYN_SENT) => (kind::CONNECTING, flag::CLIENT),
        (TCP_SYN_SENT, TCP_ESTABLISHED) => (kind::OPENED, flag::CLIENT),
        (_, TCP_ESTABLISHED) => (kind::OPENED, flag::SERVER),
        (_, TCP_CLOSE) => (kind::CLOSED, 0),
        _ => return,
    };
    let Some(socket) = Socket::read::<Probed>(sk) else { return };
    if !socket.is_connected() {
        return;
    }
    // Only who begins a connection is the current task for sure: the rest happens where packets arrive.
    let task = match kind {
        kind::CONNECTING => Task::of_interest(),
        _ => Some(Task { pid: 0, thread: 0 }),
    };
    let Some(Task { pid, thread }) = task else { return };
    let key = key(sk);
    record::submit_short(
        #[inline(always)]
        |header| {
            header.kind = kind;
            header.flags = flags;
            header.pid = pid;
            header.thread = thread;
            header.socket = key;
            socket.describe(header);
        },
    );
}
