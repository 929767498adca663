//! The record of a transfer, put together in memory of its CPU and then copied into the ring buffer, as long as it is.
//!
//! What was decided on the way there is kept beside it and read back: a verifier follows what is in registers, and where many ways through a
//! program differ in that, older ones look at so many that they give up. What comes out of a map is any number to them, so from there on all
//! ways are one.

use core::ptr::{read_volatile, write_volatile};
use core::slice;

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use bpf_abi::{Header, LARGE, Record, counter, flag};

use crate::call::Buffers;
use crate::kernel::{masked, read_user};
use crate::maps::{EVENTS, count};
use crate::record::{self, NO_WAKEUP};

/// Buffers of a list that are copied: heads and bodies are often apart.
const VECTORS_MAX: u64 = 8;
const MASK: u64 = LARGE as u64 - 1;
/// The verifier takes each of a place in the payload, and of a length there, for up to the mask.
const ROOM: usize = 2 * LARGE;

#[repr(C)]
struct Memory {
    /// A program is at it. They do not interrupt one another in kernels so far; should that change, nothing is mixed up.
    is_used: u64,
    /// Bytes of payload: to be copied, and copied so far.
    wanted: u64,
    copied: u64,
    buffers: Buffers,
    record: Record<ROOM>,
}

#[map]
static DRAFTS: PerCpuArray<Memory> = PerCpuArray::with_max_entries(1, 0);

/// A record that is being made.
pub(crate) struct Draft(*mut Memory);

/// `struct iovec`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Vector {
    base: u64,
    length: u64,
}

impl Draft {
    /// Begins a record with the time and nothing else. `wanted`: bytes of payload, 0 when it is not to be copied.
    #[inline(always)]
    pub(crate) fn begin(buffers: Buffers, wanted: u32) -> Option<Self> {
        let memory = DRAFTS.get_ptr_mut(0)?;
        // SAFETY: the memory is this CPU's own, and nobody else's while it is marked.
        unsafe {
            if read_volatile(&raw const (*memory).is_used) != 0 {
                count(counter::DROPPED, 1);
                return None;
            }
            write_volatile(&raw mut (*memory).is_used, 1);
            write_volatile(&raw mut (*memory).wanted, u64::from(wanted));
            write_volatile(&raw mut (*memory).copied, 0);
            write_volatile(&raw mut (*memory).buffers, buffers);
            record::begin(&mut (*memory).record.header);
        }
        Some(Self(memory))
    }

    #[inline(always)]
    pub(crate) fn header(&mut self) -> &mut Header {
        // SAFETY: nobody else is at the memory.
        unsafe { &mut (*self.0).record.header }
    }

    /// Copies the payload, and the whole into the ring buffer.
    #[inline(always)]
    pub(crate) fn submit(mut self) {
        // SAFETY: as above, here and in what follows.
        let buffers = unsafe { read_volatile(&raw const (*self.0).buffers) };
        let is_wanted = self.wanted() != 0;
        if buffers.is_none() {
            self.header().flags |= flag::NO_PAYLOAD;
        } else if is_wanted {
            self.copy(buffers);
        }
        let copied = within(self.copied());
        self.header().captured = copied as u32;
        if is_wanted && copied == 0 {
            self.header().flags |= flag::NO_PAYLOAD;
            count(counter::UNSEEN, 1);
        }
        let bytes = copied as usize + size_of::<Header>();
        // SAFETY: what was copied lies within the payload.
        let record = unsafe { slice::from_raw_parts((&raw const (*self.0).record).cast::<u8>(), bytes) };
        if EVENTS.output::<[u8]>(record, NO_WAKEUP).is_err() {
            count(counter::DROPPED, 1);
        }
        // SAFETY: as above.
        unsafe { write_volatile(&raw mut (*self.0).is_used, 0) };
    }

    #[inline(always)]
    fn wanted(&self) -> u64 {
        // SAFETY: as above.
        unsafe { read_volatile(&raw const (*self.0).wanted) }
    }

    #[inline(always)]
    fn copied(&self) -> u64 {
        // SAFETY: as above.
        unsafe { read_volatile(&raw const (*self.0).copied) }
    }

    /// Copies the beginning of what was transferred.
    #[inline(always)]
    fn copy(&self, buffers: Buffers) {
        if buffers.buffer != 0 {
            self.copy_part(0, Vector { base: buffers.buffer, length: self.wanted() });
            return;
        }
        for index in 0..VECTORS_MAX {
            let (wanted, copied) = (self.wanted(), self.copied());
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
