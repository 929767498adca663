//! The system call that a task is in: which one, and where its buffers are.

use aya_ebpf::helpers::generated::{bpf_get_current_task_btf, bpf_task_pt_regs};
use bpf_abi::constant;

use crate::kernel::{Memory, Probed, read_user};
use crate::maps::{MESSAGES, constant};

/// Where the bytes of a transfer are.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Buffers {
    /// One buffer, if there is no list.
    pub(crate) buffer: u64,
    /// A list of `iovec`s, and how many it has.
    pub(crate) vectors: u64,
    pub(crate) count: u64,
    /// Address of the other end of a datagram, or 0.
    pub(crate) name: u64,
}

impl Buffers {
    /// Of a call that hands over none. All of it is set: the compiler would leave parts of an `Option` unset and copy them all the same, which
    /// the verifier refuses.
    pub(crate) const NONE: Self = Self { buffer: 0, vectors: 0, count: 0, name: 0 };

    #[inline(always)]
    pub(crate) fn is_none(&self) -> bool {
        self.buffer == 0 && self.vectors == 0
    }
}

/// `struct msghdr` of user space, up to what is needed.
#[derive(Clone, Copy)]
#[repr(C)]
struct Message {
    name: u64,
    name_length: u64,
    vectors: u64,
    count: u64,
}

/// Size of `struct mmsghdr`.
pub(crate) const MESSAGES_STRIDE: u64 = 64;
/// Offset of `msg_len` in it.
pub(crate) const MESSAGE_LENGTH: u64 = 56;

/// Registers of the current task at the entry of its system call.
#[inline(always)]
pub(crate) fn current_registers() -> *const u8 {
    // SAFETY: the current task has registers.
    unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) as *const u8 }
}

#[inline(always)]
pub(crate) fn number<M: Memory>(registers: *const u8) -> u32 {
    M::read::<u64>(registers, constant(constant::CALL_NUMBER)).map_or(u32::MAX, |number| number as u32)
}

#[inline(always)]
pub(crate) fn argument<M: Memory>(registers: *const u8, index: usize) -> u64 {
    M::read(registers, constant(constant::CALL_ARGUMENTS + index)).unwrap_or(0)
}

/// The buffers of a call, or where its messages begin if it has several.
#[inline(always)]
pub(crate) fn parts(registers: *const u8, number: u32) -> (Buffers, u64) {
    if is_of_several(number) {
        (Buffers::NONE, argument::<Probed>(registers, 1))
    } else {
        (buffers::<Probed>(registers, number), 0)
    }
}

/// Whether a call transfers several messages.
#[inline(always)]
pub(crate) fn is_of_several(number: u32) -> bool {
    number == constant(constant::NR_SENDMMSG) || number == constant(constant::NR_RECVMMSG)
}

/// The buffers of the next message of the current call, which may have several: they are counted.
#[inline(always)]
pub(crate) fn next_buffers<M: Memory>(registers: *const u8, number: u32, thread: u32) -> Buffers {
    if !is_of_several(number) {
        return buffers::<M>(registers, number);
    }
    let at = next_message(thread, argument::<M>(registers, 2));
    message(argument::<M>(registers, 1).wrapping_add(u64::from(at) * MESSAGES_STRIDE))
}

/// The buffers of a call for one message; none for calls without (sendfile, io_uring).
#[inline(always)]
fn buffers<M: Memory>(registers: *const u8, number: u32) -> Buffers {
    let is = |index: usize| number == constant(index);
    let second = argument::<M>(registers, 1);
    if is(constant::NR_READ) || is(constant::NR_WRITE) {
        Buffers { buffer: second, ..Buffers::NONE }
    } else if is(constant::NR_SENDTO) || is(constant::NR_RECVFROM) {
        Buffers { buffer: second, name: argument::<M>(registers, 4), ..Buffers::NONE }
    } else if is(constant::NR_READV) || is(constant::NR_WRITEV) {
        Buffers { vectors: second, count: argument::<M>(registers, 2), ..Buffers::NONE }
    } else if is(constant::NR_SENDMSG) || is(constant::NR_RECVMSG) {
        message(second)
    } else {
        Buffers::NONE
    }
}

/// Of a `msghdr`.
#[inline(always)]
pub(crate) fn message(at: u64) -> Buffers {
    match read_user::<Message>(at) {
        Some(Message { name, vectors, count, .. }) => Buffers { buffer: 0, vectors, count, name },
        None => Buffers::NONE,
    }
}

/// Which message of the call this is: they come one after another.
#[inline(always)]
pub(crate) fn next_message(thread: u32, count: u64) -> u32 {
    let Some(next) = MESSAGES.get_ptr_mut(thread) else {
        // Without an entry, which only calls for several messages make, it is the first.
        if count > 1 {
            let _ = MESSAGES.insert(thread, 1, 0);
        }
        return 0;
    };
    // SAFETY: only this thread uses its entry.
    unsafe {
        let at = if u64::from(*next) < count { *next } else { 0 };
        *next = if u64::from(at) + 1 < count { at + 1 } else { 0 };
        at
    }
}

/// The call is over (it failed): the next one begins with its first message.
#[inline(always)]
pub(crate) fn reset_messages(thread: u32) {
    if let Some(next) = MESSAGES.get_ptr_mut(thread) {
        // SAFETY: only this thread uses its entry.
        unsafe { *next = 0 };
    }
}
