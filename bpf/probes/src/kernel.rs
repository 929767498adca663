//! Reading memory of the kernel and of the current process.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::{bpf_probe_read_kernel, bpf_probe_read_user};
use aya_ebpf::programs::ProbeContext;

/// The registers of the thread that came to a probe.
#[inline(always)]
pub(crate) fn registers(ctx: &ProbeContext) -> *const u8 {
    ctx.as_ptr().cast_const().cast()
}

/// A value of the kernel's memory at an offset; none where it cannot be read.
#[inline(always)]
pub(crate) fn read<T: Copy>(base: *const u8, offset: u32) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper checks the source, and the destination is as large as said.
    let result = unsafe {
        bpf_probe_read_kernel(
            value.as_mut_ptr().cast::<c_void>(),
            size_of::<T>() as u32,
            base.wrapping_add(offset as usize).cast::<c_void>(),
        )
    };
    // SAFETY: a successful read filled it; T is plain data.
    (result == 0).then(|| unsafe { value.assume_init() })
}

/// How fields of the kernel's structures are read.
pub(crate) trait Memory {
    /// Each field by itself, as the type of the structure has it.
    const IS_TYPED: bool;
    fn read<T: Copy>(base: *const u8, offset: u32) -> Option<T>;
}

/// By a helper, from any address.
pub(crate) struct Probed;

impl Memory for Probed {
    const IS_TYPED: bool = false;

    #[inline(always)]
    fn read<T: Copy>(base: *const u8, offset: u32) -> Option<T> {
        read(base, offset)
    }
}

/// By plain loads, from what the kernel handed over with its type, and from what that points at: a tenth of the cost.
pub(crate) struct Typed;

impl Memory for Typed {
    const IS_TYPED: bool = true;

    #[inline(always)]
    fn read<T: Copy>(base: *const u8, offset: u32) -> Option<T> {
        // SAFETY: the verifier lets it be where the type has such a field there; the kernel makes a fault a zero.
        Some(unsafe { base.add(offset as usize).cast::<T>().read_volatile() })
    }
}

/// A value of the current process's memory.
#[inline(always)]
pub(crate) fn read_user<T: Copy>(at: u64) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: as above; the helper checks that the source belongs to the process.
    let result = unsafe {
        bpf_probe_read_user(value.as_mut_ptr().cast::<c_void>(), size_of::<T>() as u32, at as *const c_void)
    };
    // SAFETY: a successful read filled it; T is plain data.
    (result == 0).then(|| unsafe { value.assume_init() })
}

/// Bounds a length for the verifier: the instruction is opaque to the compiler, which would otherwise move or drop what older kernels
/// need to see right before a helper is called.
macro_rules! masked {
    ($value:expr, $mask:expr) => {{
        let mut value: u64 = $value;
        // SAFETY: one instruction on one register.
        unsafe { core::arch::asm!("{value} &= {mask}", value = inout(reg) value, mask = const $mask) };
        value
    }};
}
pub(crate) use masked;

/// The same number, of which the verifier knows nothing from here on: where it has followed a call by its number on many ways, these are one
/// again. `noise` is a number that it does not know.
macro_rules! forgotten {
    ($value:expr, $noise:expr) => {{
        let mut value: u64 = $value;
        // SAFETY: the second instruction takes back what the first one did.
        unsafe {
            core::arch::asm!("{value} ^= {noise}", "{value} ^= {noise}", value = inout(reg) value, noise = in(reg) $noise)
        };
        value
    }};
}
pub(crate) use forgotten;

/// Reads a number back from memory that the compiler believes to know.
macro_rules! recall {
    ($place:expr) => {{
        // SAFETY: the place is within a map's value, which is this CPU's own.
        unsafe { core::ptr::read_volatile(&raw const $place) }
    }};
}
pub(crate) use recall;
