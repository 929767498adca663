//! Records: room in the ring buffer, and who is acting.

use aya_ebpf::helpers::generated::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use aya_ebpf::maps::ring_buf::RingBufEntry;
use bpf_abi::{Header, constant, counter, verdict};

use crate::maps::{self, EVENTS, PROCESSES};

/// A wakeup costs more than all the rest: the agent looks every few milliseconds.
pub(crate) const NO_WAKEUP: u64 = 1;

/// Room for one record; the lack of it is counted.
#[inline(always)]
pub(crate) fn reserve<T: 'static>() -> Option<RingBufEntry<T>> {
    let entry = EVENTS.reserve::<T>(0);
    if entry.is_none() {
        maps::count(counter::DROPPED, 1);
    }
    entry
}

/// The acting process and thread.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Task {
    pub(crate) pid: u32,
    pub(crate) thread: u32,
}

impl Task {
    /// The current one, if it is to be looked at.
    #[inline(always)]
    pub(crate) fn of_interest() -> Option<Self> {
        let task = Self::current();
        if task.pid == maps::constant(constant::OWN_PID) {
            return None;
        }
        // SAFETY: a copy is taken at once.
        let known = unsafe { PROCESSES.get(task.pid) }.copied();
        match known {
            Some(verdict::IGNORE) => None,
            None if maps::constant(constant::ONLY_LISTED) != 0 => None,
            _ => Some(task),
        }
    }

    #[inline(always)]
    pub(crate) fn current() -> Self {
        // SAFETY: no arguments.
        let both = unsafe { bpf_get_current_pid_tgid() };
        Self { pid: (both >> 32) as u32, thread: both as u32 }
    }
}

/// A header with the time and nothing else.
#[inline(always)]
pub(crate) fn begin(header: &mut Header) {
    clear(header);
    // SAFETY: no arguments.
    header.time_ns = unsafe { bpf_ktime_get_ns() };
}

/// Makes all numbers of a record zero, word for word: the compiler would call a function that goes from byte to byte.
#[inline(always)]
pub(crate) fn clear<T: Copy>(record: &mut T) {
    const { assert!(size_of::<T>() % 8 == 0 && align_of::<T>() == 8) };
    let words = (&raw mut *record).cast::<u64>();
    for at in 0..size_of::<T>() / 8 {
        // SAFETY: within the record, which has numbers alone.
        unsafe { words.add(at).write_volatile(0) };
    }
}

/// A record without payload.
#[inline(always)]
pub(crate) fn submit_short(fill: impl FnOnce(&mut Header)) {
    let Some(mut entry) = reserve::<Header>() else { return };
    // SAFETY: `begin` writes all of it.
    let header = unsafe { &mut *entry.as_mut_ptr() };
    begin(header);
    fill(header);
    entry.submit(NO_WAKEUP);
}
