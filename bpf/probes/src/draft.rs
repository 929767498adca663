//! The records of a call that transferred data, each put together in memory of its CPU and then copied into the ring buffer, as long as it is.
//!
//! What was decided on the way there is kept beside it and read back, number by number: a verifier follows what is in registers, and where many
//! ways through a program differ in that, older ones look at so many that they give up. What comes out of a map is any number to them, so from
//! one part of the work to the next all ways are one.

use core::ptr::write_volatile;
use core::slice;

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use bpf_abi::{Header, LARGE, Record, constant, counter, flag, kind, skips, verdict};

use crate::call::{self, Buffers};
use crate::kernel::{self, Probed, masked, read_user, recall};
use crate::maps::{EVENTS, constant, count};
use crate::record::{self, NO_WAKEUP, Task};
use crate::socket::{self, AF_INET, Socket};
use crate::transfer::Transfer;
use crate::{go, tokio};

/// Messages of one call that are looked at where the end of the call is the only occasion.
const MESSAGES_MAX: u32 = 32;
/// Buffers of a list that are copied: heads and bodies are often apart.
const VECTORS_MAX: u64 = 8;
const MASK: u64 = LARGE as u64 - 1;
/// The verifier takes each of a place in the payload, and of a length there, for up to the mask.
const ROOM: usize = 2 * LARGE;

#[repr(C)]
struct Memory {
    /// A program is at it. They do not interrupt one another in kernels so far; should that change, nothing is mixed up.
    is_used: u64,
    transfer: Transfer,
    /// Where the messages begin, of a call that has several, and their number; else 0, and 1.
    messages: u64,
    count: u32,
    sk: *const u8,
    is_tcp: bool,
    is_half_closed: bool,
    is_connected: bool,
    /// Of the socket.
    flags: u8,
    /// Of the message that is told: its bytes, those of them that are to be copied, and those copied so far.
    length: u32,
    wanted: u64,
    copied: u64,
    buffers: Buffers,
    record: Record<ROOM>,
}

// SAFETY: each CPU has one of its own.
unsafe impl Sync for Memory {}

#[map]
static DRAFTS: PerCpuArray<Memory> = PerCpuArray::with_max_entries(1, 0);

/// A record that is being made.
struct Draft(*mut Memory);

/// `struct iovec`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Vector {
    base: u64,
    length: u64,
}

/// `struct sockaddr_in` and `sockaddr_in6`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Address {
    family: u16,
    port: u16,
    /// The address of IPv4, the flow of IPv6.
    first: u32,
}

impl Transfer {
    /// Tells of one message.
    #[inline(always)]
    pub(crate) fn submit<M: kernel::Memory>(self, socket: &Socket, task: Task, buffers: Buffers) {
        let Some(draft) = Draft::begin(self, socket, task, buffers) else { return };
        draft.tell::<M>(socket.sk);
        draft.end();
    }

    /// Tells of each message of a call: of the only one, or of as many as the length says, which begin at `messages`.
    #[inline(always)]
    pub(crate) fn submit_each(self, socket: &Socket, task: Task, buffers: Buffers, messages: u64) {
        let Some(draft) = Draft::begin(self, socket, task, buffers) else { return };
        draft.divide(messages);
        for at in 0..MESSAGES_MAX {
            if draft.turn_to(at) {
                draft.tell::<Probed>(recall!((*draft.0).sk));
            }
        }
        let count_all = recall!((*draft.0).count);
        if count_all > MESSAGES_MAX {
            count(counter::UNSEEN, u64::from(count_all - MESSAGES_MAX));
        }
        draft.end();
    }
}

impl Draft {
    /// Begins with what all messages of a call have in common.
    #[inline(always)]
    fn begin(transfer: Transfer, socket: &Socket, task: Task, buffers: Buffers) -> Option<Self> {
        let memory = DRAFTS.get_ptr_mut(0)?;
        if recall!((*memory).is_used) != 0 {
            count(counter::DROPPED, 1);
            return None;
        }
        // SAFETY: the memory is this CPU's own, and nobody else's while it is marked.
        unsafe {
            write_volatile(&raw mut (*memory).is_used, 1);
            (*memory).transfer = transfer;
            (*memory).length = transfer.length;
            (*memory).buffers = buffers;
            (*memory).sk = socket.sk;
            (*memory).is_tcp = socket.is_tcp();
            (*memory).is_half_closed = socket.is_half_closed();
            (*memory).is_connected = socket.is_connected();
        }
        let draft = Self(memory);
        let header = draft.header();
        record::begin(header);
        header.kind = transfer.kind;
        header.socket = transfer.key;
        header.pid = task.pid;
        header.thread = task.thread;
        header.coroutine = match go::current(task.pid, transfer.registers) {
            0 => tokio::current(task.thread, transfer.registers),
            goroutine => goroutine,
        };
        socket.describe(header);
        // SAFETY: as above.
        unsafe { (*memory).flags = header.flags };
        Some(draft)
    }

    #[inline(always)]
    fn end(self) {
        // SAFETY: the last that is done with the memory.
        unsafe { write_volatile(&raw mut (*self.0).is_used, 0) };
    }

    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "the memory is this CPU's own")]
    fn header(&self) -> &mut Header {
        // SAFETY: nobody else is at the memory.
        unsafe { &mut (*self.0).record.header }
    }

    #[inline(always)]
    fn divide(&self, messages: u64) {
        // SAFETY: the memory is this CPU's own.
        unsafe {
            (*self.0).messages = messages;
            (*self.0).count = if messages == 0 { 1 } else { (*self.0).transfer.length };
        }
    }

    /// Takes up one of the messages; false: it has no bytes, or there is none.
    #[inline(always)]
    fn turn_to(&self, at: u32) -> bool {
        if at >= recall!((*self.0).count) {
            return false;
        }
        let messages = recall!((*self.0).messages);
        if messages == 0 {
            return true;
        }
        let message = messages.wrapping_add(u64::from(at) * call::MESSAGES_STRIDE);
        let length = read_user::<u32>(message.wrapping_add(call::MESSAGE_LENGTH)).unwrap_or(0);
        let buffers = call::message(message);
        // SAFETY: the memory is this CPU's own.
        unsafe {
            (*self.0).length = length;
            (*self.0).buffers = buffers;
        }
        length > 0
    }

    /// Makes the record of a message, and copies it into the ring buffer.
    #[inline(always)]
    fn tell<M: kernel::Memory>(&self, sk: *const u8) {
        let header = self.header();
        header.length = recall!((*self.0).length);
        header.tcp_seq = self.sequence::<M>(sk);
        header.flags = recall!((*self.0).flags);
        self.bound();
        self.address();
        let buffers = recall!((*self.0).buffers);
        let is_wanted = recall!((*self.0).wanted) != 0;
        if buffers.is_none() {
            self.header().flags |= flag::NO_PAYLOAD;
        } else if is_wanted {
            self.copy(buffers);
        }
        let copied = within(recall!((*self.0).copied));
        self.header().captured = copied as u32;
        if recall!((*self.0).wanted) != 0 && copied == 0 {
            self.header().flags |= flag::NO_PAYLOAD;
            count(counter::UNSEEN, 1);
        }
        let bytes = copied as usize + size_of::<Header>();
        // SAFETY: what was copied lies within the payload.
        let record = unsafe { slice::from_raw_parts((&raw const (*self.0).record).cast::<u8>(), bytes) };
        if EVENTS.output::<[u8]>(record, NO_WAKEUP).is_err() {
            count(counter::DROPPED, 1);
        }
    }

    #[inline(always)]
    fn sequence<M: kernel::Memory>(&self, sk: *const u8) -> u32 {
        if !recall!((*self.0).is_tcp) {
            return 0;
        }
        if recall!((*self.0).transfer.begun.is_known) {
            return recall!((*self.0).transfer.begun.sequence);
        }
        let (kind, length) = (recall!((*self.0).transfer.kind), recall!((*self.0).length));
        socket::sequence::<M>(sk, kind, length, recall!((*self.0).is_half_closed))
    }

    /// How much of the payload is to be copied.
    #[inline(always)]
    fn bound(&self) {
        let is_wanted = recall!((*self.0).transfer.wish.verdict) != verdict::NO_PAYLOAD && !self.is_skipped();
        let length = recall!((*self.0).length).min(constant(constant::PAYLOAD_MAX));
        // SAFETY: the memory is this CPU's own.
        unsafe {
            write_volatile(&raw mut (*self.0).wanted, if is_wanted { length.into() } else { 0 });
            write_volatile(&raw mut (*self.0).copied, 0);
        }
    }

    /// All of it lies before the byte that the agent waits for: the rest of a long body.
    #[inline(always)]
    fn is_skipped(&self) -> bool {
        let told = recall!((*self.0).transfer.wish.skips);
        if told == 0 || !recall!((*self.0).is_tcp) {
            return false;
        }
        let (which, until) = if recall!((*self.0).transfer.kind) == kind::SEND {
            (skips::SENT, recall!((*self.0).transfer.wish.sent_until))
        } else {
            (skips::RECEIVED, recall!((*self.0).transfer.wish.received_until))
        };
        let header = self.header();
        let end = recall!(header.tcp_seq).wrapping_add(recall!(header.length));
        told & which != 0 && until.wrapping_sub(end) as i32 >= 0
    }

    /// Of a datagram on a socket that is open to anyone: who is at the other end, as the call's own argument says.
    #[inline(always)]
    fn address(&self) {
        if recall!((*self.0).is_connected) {
            return;
        }
        let header = self.header();
        header.remote_port = 0;
        socket::put(&mut header.remote, [0; 2]);
        let name = recall!((*self.0).buffers.name);
        if !recall!((*self.0).transfer.has_name) || name == 0 || !other_end(header, name) {
            header.flags |= flag::NO_REMOTE;
        }
    }

    /// Copies the beginning of what was transferred.
    #[inline(always)]
    fn copy(&self, buffers: Buffers) {
        if buffers.buffer != 0 {
            self.copy_part(0, Vector { base: buffers.buffer, length: recall!((*self.0).wanted) });
            return;
        }
        for index in 0..VECTORS_MAX {
            let (wanted, copied) = (recall!((*self.0).wanted), recall!((*self.0).copied));
            if index >= buffers.count || copied >= wanted {
                break;
            }
            let at = buffers.vectors.wrapping_add(index * size_of::<Vector>() as u64);
            let Some(Vector { base, length }) = read_user::<Vector>(at) else { break };
            if !self.copy_part(copied, Vector { base, length: length.min(wanted - copied) }) {
                break;
            }
        }
    }

    #[inline(always)]
    fn copy_part(&self, copied: u64, part: Vector) -> bool {
        let (at, length) = (within(copied), within(part.length));
        // SAFETY: place and length are masked, and there is room for both.
        unsafe {
            let payload = (&raw mut (*self.0).record.payload).cast::<u8>().add(at as usize);
            if bpf_probe_read_user(payload.cast(), length as u32, part.base as *const _) != 0 {
                return false;
            }
            write_volatile(&raw mut (*self.0).copied, at + length);
        }
        true
    }
}

#[inline(always)]
fn within(value: u64) -> u64 {
    masked!(value, MASK)
}

#[inline(always)]
fn other_end(header: &mut Header, name: u64) -> bool {
    let Some(Address { family, port, first }) = read_user::<Address>(name) else { return false };
    if family == AF_INET {
        socket::put(&mut header.remote, socket::short(first));
    } else if let Some(address) = read_user::<[u64; 2]>(name.wrapping_add(8)) {
        socket::put(&mut header.remote, address);
    } else {
        return false;
    }
    header.remote_port = u16::from_be(port);
    true
}
