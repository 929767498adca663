//! What the programs that tell about the host know from the agent.

use bpf_abi::host::constant;

#[unsafe(no_mangle)]
static HOST_CONSTANTS: [u32; constant::COUNT] = [0; constant::COUNT];

/// A constant that the agent set. The index must be known to the compiler.
#[inline(always)]
pub(crate) fn host_constant(index: usize) -> u32 {
    // SAFETY: within the array; volatile, because the value in the object is not the one that is loaded.
    unsafe { core::ptr::read_volatile((&raw const HOST_CONSTANTS).cast::<u32>().add(index)) }
}
