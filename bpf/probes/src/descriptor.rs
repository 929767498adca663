//! What the descriptors of the current task stand for.

use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_get_current_task_btf};
use bpf_abi::constant;

use crate::kernel::{Memory as _, Typed, read};
use crate::maps::constant;

const S_IFMT: u16 = 0o170_000;
const S_IFSOCK: u16 = 0o140_000;
const S_IFREG: u16 = 0o100_000;

/// The first bytes of `struct fdtable`, whose order the agent checked.
#[derive(Clone, Copy)]
#[repr(C)]
struct Table {
    max: u32,
    padding: u32,
    descriptors: *const u8,
}

const MAX: u32 = core::mem::offset_of!(Table, max) as u32;
const DESCRIPTORS: u32 = core::mem::offset_of!(Table, descriptors) as u32;

#[inline(always)]
fn file_of(descriptor: u32) -> Option<*const u8> {
    // SAFETY: no arguments.
    let task = unsafe { bpf_get_current_task() } as *const u8;
    let files: *const u8 = read(task, constant(constant::TASK_FILES))?;
    let table: *const u8 = read(files, constant(constant::FILES_FDT))?;
    let Table { max, descriptors, .. } = read(table, 0)?;
    if descriptor >= max {
        return None;
    }
    read(descriptors.wrapping_add(descriptor as usize * 8), 0)
}

#[inline(always)]
fn is_of_type(file: *const u8, wanted: u16) -> bool {
    let Some(inode) = read::<*const u8>(file, constant(constant::FILE_INODE)) else { return false };
    read::<u16>(inode, constant(constant::INODE_MODE)).is_some_and(|mode| mode & S_IFMT == wanted)
}

/// The regular file behind a descriptor.
#[inline(always)]
pub(crate) fn regular_file(descriptor: u32) -> Option<*const u8> {
    let file = file_of(descriptor)?;
    is_of_type(file, S_IFREG).then_some(file)
}

/// The socket (`struct sock`) behind a descriptor.
#[inline(always)]
pub(crate) fn socket(descriptor: u32) -> Option<*const u8> {
    let file = file_of(descriptor)?;
    if !is_of_type(file, S_IFSOCK) {
        return None;
    }
    let socket: *const u8 = read(file, constant(constant::FILE_PRIVATE))?;
    read(socket, constant(constant::SOCKET_SK))
}

/// Whether a descriptor is that of a socket which the kernel handed over itself, with the task.
#[inline(always)]
pub(crate) fn is_of(descriptor: u32, sk: *const u8) -> bool {
    is_same(descriptor, sk).unwrap_or(false)
}

#[inline(always)]
fn is_same(descriptor: u32, sk: *const u8) -> Option<bool> {
    // SAFETY: no arguments.
    let task = unsafe { bpf_get_current_task_btf() } as *const u8;
    let files: *const u8 = Typed::read(task, constant(constant::TASK_FILES))?;
    let table: *const u8 = Typed::read(files, constant(constant::FILES_FDT))?;
    if descriptor >= Typed::read::<u32>(table, MAX)? {
        return Some(false);
    }
    let descriptors: *const u8 = Typed::read(table, DESCRIPTORS)?;
    let file: u64 = read(descriptors.wrapping_add(descriptor as usize * 8), 0)?;
    let socket: *const u8 = Typed::read(sk, constant(constant::SOCK_SOCKET))?;
    Some(file != 0 && Typed::read::<u64>(socket, constant(constant::SOCKET_FILE))? == file)
}
