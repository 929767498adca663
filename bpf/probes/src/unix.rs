//! Unix sockets: streams between processes of one host.
//!
//! They have no addresses and no sequence numbers. An end is told by where it lies in the kernel: each end keeps the other one in memory, so no
//! two connections have the same pair at one time. Where the socket's address may be its key, its inode tells it from the one that lay there before.
//! Leaves out: datagrams, which are counted (`counter::UNIX_DATAGRAMS`).

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use aya_ebpf::macros::map;
use aya_ebpf::maps::LruHashMap;
use bpf_abi::{Header, Record, TINY, constant, counter, flag, kind};

use crate::kernel::{masked, read};
use crate::maps::{constant, count};
use crate::record::{self, NO_WAKEUP, Task};
use crate::socket;

pub(crate) const AF_UNIX: u16 = 1;
/// No protocol has this number.
pub(crate) const PROTOCOL: u16 = 0;
const SOCK_STREAM: u16 = 1;
/// `sun_family`, before the path.
const PATH_AT: u32 = 2;

/// Sockets whose path was told, and their inodes where keys come again. The agent takes out what it forgets.
#[map]
static NAMED: LruHashMap<u64, u64> = LruHashMap::with_max_entries(16_384, 0);

/// Whether a socket of the family is one to look at.
#[inline(always)]
pub(crate) fn is_of_interest(sk: *const u8) -> bool {
    if constant(constant::UNIX_PEER) == 0 || constant(constant::ONLY_PORTS) != 0 {
        return false;
    }
    let is_stream = read::<u16>(sk, constant(constant::SOCK_TYPE)) == Some(SOCK_STREAM);
    if !is_stream {
        count(counter::UNIX_DATAGRAMS, 1);
    }
    is_stream
}

/// Both ends, who is at the other one, and which of them has a path: that is the server.
#[inline(always)]
pub(crate) fn describe(sk: *const u8, header: &mut Header) {
    let peer = read::<u64>(sk, constant(constant::UNIX_PEER)).unwrap_or(0);
    // In words: a verifier takes a pointer with a type apart into no bytes.
    socket::put(&mut header.local, [sk as u64, inode(sk)]);
    socket::put(&mut header.remote, [peer, 0]);
    header.peer_pid = peer_pid(sk).unwrap_or(0);
    header.flags |= match (address(sk), address(peer as *const u8)) {
        (0, 0) => 0,
        (0, _) => flag::CLIENT,
        (_, 0) => flag::SERVER,
        _ => 0,
    };
}

/// The number that tells a socket from the one that had its key before; 0 where keys never come again.
#[inline(always)]
fn inode(sk: *const u8) -> u64 {
    if constant(constant::BY_ADDRESS) == 0 {
        return 0;
    }
    match read::<*const u8>(sk, constant(constant::SOCK_SOCKET)) {
        Some(socket) => read(socket, constant(constant::SOCKET_INODE)).unwrap_or(0),
        None => 0,
    }
}

/// The process that listened, or that connected, as the initial namespace numbers it.
#[inline(always)]
fn peer_pid(sk: *const u8) -> Option<u32> {
    let pid: *const u8 = read(sk, constant(constant::SOCK_PEER_PID))?;
    if pid.is_null() { None } else { read(pid, constant(constant::PID_NUMBER)) }
}

/// What a socket is bound to, or 0.
#[inline(always)]
fn address(sk: *const u8) -> u64 {
    read::<u64>(sk, constant(constant::UNIX_ADDRESS)).unwrap_or(0)
}

/// Tells the path of a connection, once.
#[inline(always)]
pub(crate) fn name(sk: *const u8, key: u64, task: Task) {
    let inode = inode(sk);
    // SAFETY: a copy is taken at once.
    if unsafe { NAMED.get(key) }.copied() == Some(inode) {
        return;
    }
    let _ = NAMED.insert(key, inode, 0);
    let own = address(sk);
    let bound = if own != 0 {
        own
    } else {
        address(read::<u64>(sk, constant(constant::UNIX_PEER)).unwrap_or(0) as *const u8)
    };
    if bound == 0 {
        return;
    }
    let bound = bound as *const u8;
    let Some(length) = read::<u32>(bound, constant(constant::UNIX_ADDRESS_LENGTH)) else { return };
    if length <= PATH_AT {
        return;
    }
    let Some(mut entry) = record::reserve::<Record<TINY>>() else { return };
    let record = entry.as_mut_ptr();
    // SAFETY: the record is ours until it is submitted; `begin` writes the whole header.
    let header = unsafe { &mut (*record).header };
    record::begin(header);
    header.kind = kind::NAMED;
    header.socket = key;
    header.pid = task.pid;
    header.thread = task.thread;
    let length = masked!(u64::from(length - PATH_AT).min(TINY as u64 - 1), TINY as u64 - 1);
    let from = bound.wrapping_add((constant(constant::UNIX_ADDRESS_NAME) + PATH_AT) as usize);
    // SAFETY: the masked length is within the payload.
    let result =
        unsafe { bpf_probe_read_kernel((&raw mut (*record).payload).cast(), length as u32, from.cast()) };
    if result == 0 {
        header.length = length as u32;
        header.captured = length as u32;
    }
    entry.submit(NO_WAKEUP);
}

/// The other end said that it is done.
#[inline(always)]
pub(crate) fn ended(sk: *const u8, key: u64, task: Task) {
    record::submit_short(|header| {
        header.kind = kind::CLOSED;
        header.socket = key;
        header.family = AF_UNIX as u8;
        header.pid = task.pid;
        header.thread = task.thread;
        describe(sk, header);
    });
}
