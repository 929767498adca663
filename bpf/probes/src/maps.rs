//! What the programs share with the agent, and with one another.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, LruHashMap, PerCpuArray, RingBuf};
use bpf_abi::{PORT_WORDS, Wish, constant, counter, go_register};

/// Records on their way to the agent. One buffer for all CPUs: records of a thread stay in order. The agent may set another size.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(8 << 20, 0);

/// The agent's wishes about sockets: most sockets have none.
#[map]
pub(crate) static SOCKETS: HashMap<u64, Wish> = HashMap::with_max_entries(65_536, 0);

/// The agent's verdict on processes.
#[map]
pub(crate) static PROCESSES: HashMap<u32, u32> = HashMap::with_max_entries(8_192, 0);

/// How far a thread is in a call that transfers several messages.
#[map]
pub(crate) static MESSAGES: LruHashMap<u32, u32> = LruHashMap::with_max_entries(8_192, 0);

/// System calls that began and have not ended, where the end alone does not tell. Entries stay for the next call of their thread.
#[map]
pub(crate) static CALLS: LruHashMap<u32, crate::begun::Call> = LruHashMap::with_max_entries(16_384, 0);

/// Calls into TLS libraries that have not returned. Entries stay for the next call of their thread.
#[map]
pub(crate) static TLS_CALLS: LruHashMap<u32, crate::tls::Call> = LruHashMap::with_max_entries(16_384, 0);

/// Processes that run Go, and where its runtime keeps what is needed.
#[map]
pub(crate) static GO_PROCESSES: HashMap<u32, u64> = HashMap::with_max_entries(8_192, 0);

/// Calls into Go's TLS library that have not returned. A goroutine may go on on another thread.
#[map]
pub(crate) static GO_CALLS: LruHashMap<crate::go::Goroutine, crate::tls::Call> =
    LruHashMap::with_max_entries(16_384, 0);

/// Tasks of tokio that threads began to run last. Entries stay for the next one.
#[map]
pub(crate) static TOKIO_POLLS: LruHashMap<u32, crate::tokio::Poll> = LruHashMap::with_max_entries(16_384, 0);

/// Which task of tokio waited for a queue last, and who woke whom: each is told once.
#[map]
pub(crate) static TOKIO_WAITS: LruHashMap<crate::tokio::Place, u64> = LruHashMap::with_max_entries(16_384, 0);

#[map]
pub(crate) static TOKIO_WAKES: LruHashMap<crate::tokio::Wake, u8> = LruHashMap::with_max_entries(32_768, 0);

#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(counter::COUNT, 0);

#[unsafe(no_mangle)]
static CONSTANTS: [u32; constant::COUNT] = [0; constant::COUNT];

#[unsafe(no_mangle)]
static GO_REGISTERS: [u32; go_register::COUNT] = [0; go_register::COUNT];

#[unsafe(no_mangle)]
static EXCLUDED_PORTS: [u64; PORT_WORDS] = [0; PORT_WORDS];

/// Looked at only where the constant `ONLY_PORTS` says so.
#[unsafe(no_mangle)]
static INCLUDED_PORTS: [u64; PORT_WORDS] = [0; PORT_WORDS];

/// A constant that the agent set. The index must be known to the compiler.
#[inline(always)]
pub(crate) fn constant(index: usize) -> u32 {
    // SAFETY: within the array; volatile, because the value in the object is not the one that is loaded.
    unsafe { core::ptr::read_volatile((&raw const CONSTANTS).cast::<u32>().add(index)) }
}

/// A register of Go's calling convention, likewise.
#[inline(always)]
pub(crate) fn go_register(index: usize) -> u32 {
    // SAFETY: as above.
    unsafe { core::ptr::read_volatile((&raw const GO_REGISTERS).cast::<u32>().add(index)) }
}

/// Whether traffic between these ports is not to be looked at.
#[inline(always)]
pub(crate) fn is_excluded(one: u16, other: u16) -> bool {
    if holds(&raw const EXCLUDED_PORTS, one) || holds(&raw const EXCLUDED_PORTS, other) {
        return true;
    }
    constant(constant::ONLY_PORTS) != 0
        && !holds(&raw const INCLUDED_PORTS, one)
        && !holds(&raw const INCLUDED_PORTS, other)
}

#[inline(always)]
fn holds(ports: *const [u64; PORT_WORDS], port: u16) -> bool {
    // SAFETY: a 16-bit number shifted by six is below the number of words.
    let word = unsafe { core::ptr::read_volatile(ports.cast::<u64>().add((port >> 6) as usize)) };
    word >> (port & 63) & 1 == 1
}

#[inline(always)]
pub(crate) fn count(index: u32, more: u64) {
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: this CPU's own slot; programs of one CPU do not run at the same time as these (a lost count would do no harm).
        unsafe { *counter += more };
    }
}
