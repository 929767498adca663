//! What crosses between the eBPF programs and the agent: records of the ring buffer, and what the agent tells the programs before it
//! loads them. Both sides are built from this file, so it has no dependency and no `std`.
//!
//! Licence: Apache-2.0 or GPL-2.0-only, at the choice of the side that uses it. Leaves out: what records mean (`agent/src/events.rs`).

#![no_std]

pub mod host;

/// Each record of the ring buffer begins with this; payload follows, if the record has room for it.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Header {
    /// `CLOCK_MONOTONIC` at the end of the call.
    pub time_ns: u64,
    /// `CLOCK_MONOTONIC` at its beginning where that is known (TLS), else 0.
    pub entered_ns: u64,
    /// Key of the socket; of TLS calls the address of the session object, which is unique within its process.
    pub socket: u64,
    /// Coroutine that acted: the number of a goroutine or of a task of tokio within its process, 0 where there is none.
    pub coroutine: u64,
    /// Bytes that were transferred.
    pub length: u32,
    /// Bytes of them that follow this header.
    pub captured: u32,
    /// Process and thread as the initial namespace numbers them; 0 where a record is not about the current task.
    pub pid: u32,
    pub thread: u32,
    /// Sequence number of the first byte; TCP alone.
    pub tcp_seq: u32,
    pub local_port: u16,
    pub remote_port: u16,
    /// One of [`kind`].
    pub kind: u8,
    /// Of [`flag`].
    pub flags: u8,
    /// `AF_INET` or `AF_INET6`; of IPv4 the first four bytes of an address count. Or `AF_UNIX`: the first eight bytes of an address are the place
    /// of the socket in the kernel; where that is its key, too, the other eight of the local one are its inode.
    pub family: u8,
    /// IANA number of the protocol; 0 of Unix sockets.
    pub protocol: u8,
    /// Of Unix sockets: the process that listened, or that connected, at the other end; else 0.
    pub peer_pid: u32,
    pub local: [u8; 16],
    pub remote: [u8; 16],
}

const _: () = assert!(size_of::<Header>() == 96 && align_of::<Header>() == 8);

/// What a record tells.
pub mod kind {
    /// Data went out of, or came into, a process through a socket.
    pub const SEND: u8 = 1;
    pub const RECEIVE: u8 = 2;
    /// Plain text before encryption, and after decryption.
    pub const TLS_SEND: u8 = 3;
    pub const TLS_RECEIVE: u8 = 4;
    /// A TCP connection is established, or gone; the other end of a Unix socket said that it is done.
    pub const OPENED: u8 = 5;
    pub const CLOSED: u8 = 6;
    /// A thread ended; a process runs another program.
    pub const THREAD_EXIT: u8 = 7;
    pub const EXEC: u8 = 8;
    /// The current task begins a TCP connection; its own address is not known yet.
    pub const CONNECTING: u8 = 9;
    /// A Unix socket goes by a path, which follows.
    pub const NAMED: u8 = 10;
    /// A coroutine began another one, whose number is in place of the socket.
    pub const SPAWN: u8 = 20;
    /// A coroutine leaves work at a place, and another one takes it from there; the place is an address within the process, in place of the
    /// socket. Of the work of a stream of HTTP/2 its number is in place of the length, else 0.
    pub const HAND_OVER: u8 = 21;
    pub const TAKE_OVER: u8 = 22;
    /// A call that sends through a TLS session began.
    pub const TLS_SENDING: u8 = 23;
    /// Of a runtime whose tasks are no threads (tokio): the task, whose number is in place of the coroutine, began another one or woke it,
    /// whose number is in place of the socket.
    pub const TASK_SPAWN: u8 = 30;
    pub const TASK_WAKE: u8 = 31;
    /// It left something in a queue, or waits until there is something in it; the queue is an address, in place of the socket.
    pub const TASK_SEND: u8 = 32;
    pub const TASK_WAIT: u8 = 33;
    /// Plain text of a library that knows no socket: its caller writes to the socket after it, or read from it before.
    pub const BUFFERED_SEND: u8 = 24;
    pub const BUFFERED_RECEIVE: u8 = 25;
}

pub mod flag {
    /// This end of the connection began it, or accepted it. Of Unix sockets all transfers say so, where it is known.
    pub const CLIENT: u8 = 1;
    pub const SERVER: u8 = 2;
    /// The other end of a datagram is not known.
    pub const NO_REMOTE: u8 = 4;
    /// The call hands over no buffer (sendfile, io_uring), or its buffer could not be read.
    pub const NO_PAYLOAD: u8 = 8;
}

/// Room for payload; one byte less than that is used (the bound is a mask). Records of transfers are as long as what they hold, others have one of these
/// sizes.
pub const TINY: usize = 256;
pub const SMALL: usize = 512;
pub const LARGE: usize = 2_048;

/// A record with payload.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Record<const ROOM: usize> {
    pub header: Header,
    pub payload: [u8; ROOM],
}

const _: () = assert!(size_of::<Record<SMALL>>() == size_of::<Header>() + SMALL);
const _: () = assert!(size_of::<Record<LARGE>>() == size_of::<Header>() + LARGE);

/// Indices of the constants that the agent sets before it loads the programs: offsets of fields as this kernel's BTF has them, numbers
/// of system calls and registers of this architecture, and options.
pub mod constant {
    pub const SOCK_V6_ADDRESSES: usize = 0;
    pub const SOCK_PROTOCOL: usize = 1;
    pub const TCP_WRITE_SEQ: usize = 2;
    pub const TCP_COPIED_SEQ: usize = 3;
    pub const TCP_RCV_NXT: usize = 4;
    /// From a task and a descriptor to a socket.
    pub const TASK_FILES: usize = 5;
    pub const FILES_FDT: usize = 6;
    pub const FILE_INODE: usize = 7;
    pub const FILE_PRIVATE: usize = 8;
    pub const INODE_MODE: usize = 9;
    pub const SOCKET_SK: usize = 10;
    /// Registers in `pt_regs`: arguments of a system call (the first as saved at its entry), its number, then arguments and
    /// result of a function.
    pub const CALL_ARGUMENTS: usize = 11;
    pub const CALL_NUMBER: usize = 17;
    pub const FUNCTION_ARGUMENTS: usize = 18;
    pub const FUNCTION_RESULT: usize = 22;
    pub const NR_READ: usize = 23;
    pub const NR_WRITE: usize = 24;
    pub const NR_READV: usize = 25;
    pub const NR_WRITEV: usize = 26;
    pub const NR_SENDTO: usize = 27;
    pub const NR_RECVFROM: usize = 28;
    pub const NR_SENDMSG: usize = 29;
    pub const NR_RECVMSG: usize = 30;
    pub const NR_SENDMMSG: usize = 31;
    pub const NR_RECVMMSG: usize = 32;
    pub const NR_SENDFILE: usize = 33;
    /// Payload beyond this is left in the kernel.
    pub const PAYLOAD_MAX: usize = 34;
    /// The agent's own process.
    pub const OWN_PID: usize = 35;
    /// Whether only listed processes are looked at.
    pub const ONLY_LISTED: usize = 36;
    /// Whether sockets go by their address instead of their cookie.
    pub const BY_ADDRESS: usize = 37;
    /// Whether only included ports are looked at.
    pub const ONLY_PORTS: usize = 38;
    /// The `struct socket` of a `struct sock`, and its file.
    pub const SOCK_SOCKET: usize = 39;
    pub const SOCKET_FILE: usize = 40;
    pub const NR_IO_URING_ENTER: usize = 41;
    /// Of Unix sockets; the first is 0 where they cannot be looked at.
    pub const UNIX_PEER: usize = 42;
    pub const UNIX_ADDRESS: usize = 43;
    pub const UNIX_ADDRESS_LENGTH: usize = 44;
    pub const UNIX_ADDRESS_NAME: usize = 45;
    pub const SOCK_TYPE: usize = 46;
    pub const SOCK_PEER_PID: usize = 47;
    pub const PID_NUMBER: usize = 48;
    /// From a `struct socket` to the number of its inode.
    pub const SOCKET_INODE: usize = 49;
    /// The register that points at the stack.
    pub const STACK_POINTER: usize = 50;
    /// The register with the second word of a result.
    pub const FUNCTION_RESULT_SECOND: usize = 51;
    pub const COUNT: usize = 52;
}

/// Indices of the registers of Go's own calling convention in `pt_regs`, which the agent sets: arguments and results, then the one that points
/// at the running goroutine.
pub mod go_register {
    pub const ARGUMENTS: usize = 0;
    pub const GOROUTINE: usize = 6;
    /// No register: whether probes carry the offsets of their file, so that a process is known from its beginning on.
    pub const COOKIES: usize = 7;
    pub const COUNT: usize = 8;
}

/// Where Go's runtime keeps what is needed (values of the map `GO_PROCESSES`): three offsets of 16 bits in one number, the first lowest.
pub mod go_offset {
    /// Of a goroutine's number in its description.
    pub const GOID: u32 = 0;
    /// Of its thread.
    pub const THREAD: u32 = 16;
    /// Of the thread's current goroutine in the thread's description, whose first field is its scheduling goroutine.
    pub const CURRENT: u32 = 32;
}

/// What the agent says about a socket (value of the map `SOCKETS`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Wish {
    /// One of [`verdict`], or 0.
    pub verdict: u32,
    /// Of [`skips`]: the numbers below hold.
    pub skips: u32,
    /// TCP sequence numbers: payload before them is not wanted, in what is sent and in what is received.
    pub sent_until: u32,
    pub received_until: u32,
}

const _: () = assert!(size_of::<Wish>() == 16 && align_of::<Wish>() == 4);

pub mod skips {
    pub const SENT: u32 = 1;
    pub const RECEIVED: u32 = 2;
}

/// What the agent says about a socket or a process (the map `PROCESSES`, and in [`Wish`]).
pub mod verdict {
    /// Lengths alone.
    pub const NO_PAYLOAD: u32 = 1;
    /// Nothing.
    pub const IGNORE: u32 = 2;
    /// Looked at, where only listed processes are.
    pub const LISTED: u32 = 3;
}

/// Indices of the counters.
pub mod counter {
    /// Records that found no room in the ring buffer.
    pub const DROPPED: u32 = 0;
    /// Transfers whose bytes could not be seen.
    pub const UNSEEN: u32 = 1;
    /// Transfers of Unix sockets that are no streams.
    pub const UNIX_DATAGRAMS: u32 = 2;
    /// What was handed to io_uring where it is not told which of it are transfers.
    pub const SUBMITTED: u32 = 3;
    pub const COUNT: u32 = 4;
}

/// Words of the bit set of excluded ports.
pub const PORT_WORDS: usize = 1_024;
