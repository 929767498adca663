//! A packet socket with a TPACKET_V3 ring in shared memory: the agent's only unsafe code besides its probes.
//!
//! Everything that needs a promise to the compiler is here and nothing else: socket options, the mapping, and the moment at which a
//! block changes hands. What is in a block is read in `block`.
#![expect(unsafe_code, reason = "the ring is memory that the kernel writes to")]

use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::block;
use super::filter::Instruction;

/// A block goes to us when it is full or this old: the price of batching is this much delay.
const RETIRE_MS: u32 = 50;
/// All protocols, in network byte order.
const ALL_PROTOCOLS: u16 = (libc::ETH_P_ALL as u16).to_be();

/// Size of a ring.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    /// A multiple of the page size.
    pub(super) block_bytes: u32,
    pub(super) blocks: u32,
}

/// Kernel counters since they were last read.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) dropped: u64,
    pub(super) full: u64,
}

pub(super) struct Ring {
    socket: Socket,
    map: NonNull<u8>,
    size: Size,
    next: u32,
}

// SAFETY: the mapping is reached through the ring alone, which is used from one thread at a time.
unsafe impl Send for Ring {}

impl Ring {
    /// Opens a ring on one interface, or on all with index 0. The filter is in place before the first frame.
    pub(super) fn open(
        interface: u32,
        size: Size,
        filter: &[Instruction],
        loopback: bool,
    ) -> io::Result<Self> {
        // Without a protocol the socket receives nothing until it is bound.
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
        set_option(
            &socket,
            libc::SOL_PACKET,
            libc::PACKET_VERSION,
            &(libc::tpacket_versions::TPACKET_V3 as libc::c_int),
        )?;
        let request = libc::tpacket_req3 {
            tp_block_size: size.block_bytes,
            tp_block_nr: size.blocks,
            tp_frame_size: size.block_bytes,
            tp_frame_nr: size.blocks,
            tp_retire_blk_tov: RETIRE_MS,
            tp_sizeof_priv: 0,
            tp_feature_req_word: 0,
        };
        set_option(&socket, libc::SOL_PACKET, libc::PACKET_RX_RING, &request)?;
        let program = libc::sock_fprog {
            len: u16::try_from(filter.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
            filter: filter.as_ptr().cast::<libc::sock_filter>().cast_mut(),
        };
        const { assert!(size_of::<Instruction>() == size_of::<libc::sock_filter>()) };
        set_option(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
        if loopback {
            // Saves the kernel the work; older kernels do not know it, and the filter drops the second copy anyway.
            set_option(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1_i32).ok();
        }
        let map = map(&socket, size)?;
        let ring = Self { socket, map, size, next: 0 };
        ring.bind(interface)?;
        Ok(ring)
    }

    /// Gives the next block that the kernel has filled to a function, then back to the kernel.
    pub(super) fn block<T>(&mut self, read: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let length = self.size.block_bytes as usize;
        // SAFETY: `next` is below the number of blocks, so the block lies within the mapping.
        let start = unsafe { self.map.add(self.next as usize * length) };
        // SAFETY: blocks begin on page boundaries, so the status is aligned; both sides access it atomically.
        let status = unsafe { start.add(block::STATUS).cast::<AtomicU32>().as_ref() };
        if status.load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
            return None;
        }
        // SAFETY: the block is within the mapping and initialised by the kernel, which leaves it alone until the status is given
        // back below; the slice does not outlive this function, because `read` must accept any lifetime.
        let result = read(unsafe { std::slice::from_raw_parts(start.as_ptr(), length) });
        status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.next = (self.next + 1) % self.size.blocks;
        Some(result)
    }

    /// Reads and resets the kernel's counters.
    pub(super) fn counts(&self) -> io::Result<Counts> {
        let mut counts = libc::tpacket_stats_v3 { tp_packets: 0, tp_drops: 0, tp_freeze_q_cnt: 0 };
        let mut length = size_of::<libc::tpacket_stats_v3>() as libc::socklen_t;
        // SAFETY: the pointers are to a record and a length of the types that this option fills, both alive for the call.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut counts).cast(),
                &raw mut length,
            )
        };
        check(result)?;
        Ok(Counts { dropped: u64::from(counts.tp_drops), full: u64::from(counts.tp_freeze_q_cnt) })
    }

    fn bind(&self, interface: u32) -> io::Result<()> {
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: ALL_PROTOCOLS,
            sll_ifindex: interface as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the address is a whole `sockaddr_ll` of the stated length, alive for the call.
        check(unsafe { libc::bind(self.socket.as_raw_fd(), (&raw const address).cast(), length) })
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this length and no reference into it lives on. A failure would leave it mapped.
        unsafe { libc::munmap(self.map.as_ptr().cast(), length(self.size)) };
    }
}

/// Waits until one of the rings has a block, or an interface goes down.
pub(super) fn wait<'a>(rings: impl Iterator<Item = &'a Ring> + Clone, timeout: Duration) -> io::Result<()> {
    let poll = |ring: &Ring| libc::pollfd { fd: ring.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let mut polls: Vec<libc::pollfd> = rings.clone().map(poll).collect();
    let timeout = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the pointer is to as many records as stated, alive for the call.
    match check(unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, timeout) }) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
        _ => {}
    }
    for (ring, _) in rings.zip(&polls).filter(|(_, poll)| poll.revents & libc::POLLERR != 0) {
        // An interface that is down stays an error until it is asked for, and every wait would end at once. The ring works again
        // when the interface is up.
        ring.socket.take_error()?;
    }
    Ok(())
}

fn length(size: Size) -> usize {
    size.block_bytes as usize * size.blocks as usize
}

fn map(socket: &Socket, size: Size) -> io::Result<NonNull<u8>> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at a place of the kernel's choice touches nothing of ours.
    let map = unsafe {
        libc::mmap(std::ptr::null_mut(), length(size), protection, libc::MAP_SHARED, socket.as_raw_fd(), 0)
    };
    if map == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(map.cast()).ok_or_else(|| io::Error::other("ring mapped at address 0"))
}

/// Sets an option from a record of its type.
fn set_option<T>(socket: &Socket, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the pointer is to a record of the stated length, alive for the call; callers give the record that the option takes.
    check(unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), length)
    })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
