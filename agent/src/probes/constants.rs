//! What the programs are told before they are loaded: offsets of this kernel, registers and numbers of this architecture, options.

use bpf_abi::{LARGE, PORT_WORDS, constant, go_register};

use super::Settings;
use super::types::{Error, Types};

/// Registers as `pt_regs` has them, and numbers of system calls.
struct Architecture {
    call_arguments: [u32; 6],
    call_number: u32,
    function_arguments: [u32; 4],
    function_result: u32,
    stack_pointer: u32,
    function_result_second: u32,
    /// read, write, readv, writev, sendto, recvfrom, sendmsg, recvmsg, sendmmsg, recvmmsg, sendfile.
    calls: [u32; 11],
}

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: Architecture = Architecture {
    call_arguments: [112, 104, 96, 56, 72, 64],
    call_number: 120,
    function_arguments: [112, 104, 96, 88],
    function_result: 80,
    stack_pointer: 152,
    function_result_second: 96,
    calls: [0, 1, 19, 20, 44, 45, 46, 47, 307, 299, 40],
};

/// The first argument is overwritten by the result; the kernel keeps it apart.
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: Architecture = Architecture {
    call_arguments: [272, 8, 16, 24, 32, 40],
    call_number: 280,
    function_arguments: [0, 8, 16, 24],
    function_result: 0,
    stack_pointer: 248,
    function_result_second: 8,
    calls: [63, 64, 65, 66, 206, 207, 211, 212, 269, 243, 71],
};

/// The same number on all architectures.
const IO_URING_ENTER: u32 = 426;

/// What the programs are told about Go: RAX, RBX, RCX, RDI, RSI, R8; R14.
#[cfg(target_arch = "x86_64")]
const GO_REGISTERS: [u32; go_register::COOKIES] = [80, 40, 88, 112, 104, 72, 8];

/// R0 to R5; R28.
#[cfg(target_arch = "aarch64")]
const GO_REGISTERS: [u32; go_register::COOKIES] = [0, 8, 16, 24, 32, 40, 224];

/// The fields that the programs read at once, and where they expect them.
const COMMON: [(&str, &str, u32); 8] = [
    ("sock", "__sk_common.skc_daddr", 0),
    ("sock", "__sk_common.skc_rcv_saddr", 4),
    ("sock", "__sk_common.skc_dport", 12),
    ("sock", "__sk_common.skc_num", 14),
    ("sock", "__sk_common.skc_family", 16),
    ("sock", "__sk_common.skc_state", 18),
    ("fdtable", "max_fds", 0),
    ("fdtable", "fd", 8),
];

/// Where each constant comes from.
const FIELDS: [(usize, &str, &str); 13] = [
    (constant::SOCK_V6_ADDRESSES, "sock", "__sk_common.skc_v6_daddr"),
    (constant::SOCK_PROTOCOL, "sock", "sk_protocol"),
    (constant::TCP_WRITE_SEQ, "tcp_sock", "write_seq"),
    (constant::TCP_COPIED_SEQ, "tcp_sock", "copied_seq"),
    (constant::TCP_RCV_NXT, "tcp_sock", "rcv_nxt"),
    (constant::TASK_FILES, "task_struct", "files"),
    (constant::FILES_FDT, "files_struct", "fdt"),
    (constant::FILE_INODE, "file", "f_inode"),
    (constant::FILE_PRIVATE, "file", "private_data"),
    (constant::INODE_MODE, "inode", "i_mode"),
    (constant::SOCKET_SK, "socket", "sk"),
    (constant::SOCK_SOCKET, "sock", "sk_socket"),
    (constant::SOCKET_FILE, "socket", "file"),
];

/// Of Unix sockets, which a kernel may lack.
const UNIX_FIELDS: [(usize, &str, &str); 7] = [
    (constant::UNIX_PEER, "unix_sock", "peer"),
    (constant::UNIX_ADDRESS, "unix_sock", "addr"),
    (constant::UNIX_ADDRESS_LENGTH, "unix_address", "len"),
    (constant::UNIX_ADDRESS_NAME, "unix_address", "name"),
    (constant::SOCK_TYPE, "sock", "sk_type"),
    (constant::SOCK_PEER_PID, "sock", "sk_peer_pid"),
    (constant::PID_NUMBER, "pid", "numbers"),
];

/// Where what the programs ask of a Unix socket is.
pub(super) fn unix(types: &Types<'_>) -> Result<Vec<(usize, u32)>, Error> {
    let mut all = Vec::new();
    for (index, structure, field) in UNIX_FIELDS {
        all.push((index, types.offset(structure, field)?));
    }
    // A socket lies before its inode.
    let inode = types.offset("socket_alloc", "vfs_inode")? + types.offset("inode", "i_ino")?;
    all.push((constant::SOCKET_INODE, inode - types.offset("socket_alloc", "socket")?));
    Ok(all)
}

/// The array `CONSTANTS` of the programs.
pub(super) fn constants(
    types: &Types<'_>,
    settings: &Settings,
    own_pid: u32,
    by_address: bool,
) -> Result<[u32; constant::COUNT], Error> {
    for (structure, field, expected) in COMMON {
        if types.offset(structure, field)? != expected {
            return Err(Error::Form(
                "the first fields of a socket, or of a table of descriptors, are not where they were in all kernels so far",
            ));
        }
    }
    let v6 = types.offset("sock", "__sk_common.skc_v6_daddr")?;
    if types.offset("sock", "__sk_common.skc_v6_rcv_saddr")? != v6 + 16 {
        return Err(Error::Form("a socket's two addresses of IPv6 are not side by side"));
    }
    let mut all = [0; constant::COUNT];
    for (index, structure, field) in FIELDS {
        all[index] = types.offset(structure, field)?;
    }
    for (index, offset) in unix(types).unwrap_or_default() {
        all[index] = offset;
    }
    let Architecture {
        call_arguments,
        call_number,
        function_arguments,
        function_result,
        stack_pointer,
        function_result_second,
        calls,
    } = ARCHITECTURE;
    all[constant::CALL_ARGUMENTS..][..6].copy_from_slice(&call_arguments);
    all[constant::CALL_NUMBER] = call_number;
    all[constant::FUNCTION_ARGUMENTS..][..4].copy_from_slice(&function_arguments);
    all[constant::FUNCTION_RESULT] = function_result;
    all[constant::STACK_POINTER] = stack_pointer;
    all[constant::FUNCTION_RESULT_SECOND] = function_result_second;
    all[constant::NR_READ..][..calls.len()].copy_from_slice(&calls);
    all[constant::NR_IO_URING_ENTER] = IO_URING_ENTER;
    // The programs mask lengths, so the last byte of the room stays empty.
    all[constant::PAYLOAD_MAX] = settings.payload_max.min(LARGE as u32 - 1);
    all[constant::OWN_PID] = own_pid;
    all[constant::ONLY_LISTED] = settings.only_listed.into();
    all[constant::BY_ADDRESS] = by_address.into();
    all[constant::ONLY_PORTS] = (!settings.only_ports.is_empty()).into();
    Ok(all)
}

/// The array `GO_REGISTERS` of the programs. `cookies`: probes can carry a number.
pub(super) fn go_registers(cookies: bool) -> [u32; go_register::COUNT] {
    let mut all = [0; go_register::COUNT];
    all[..GO_REGISTERS.len()].copy_from_slice(&GO_REGISTERS);
    all[go_register::COOKIES] = cookies.into();
    all
}

/// A set of ports as the programs have it.
pub(super) fn port_set(ports: &[u16]) -> Box<[u64; PORT_WORDS]> {
    let mut words = Box::new([0; PORT_WORDS]);
    for port in ports {
        words[usize::from(port >> 6)] |= 1 << (port & 63);
    }
    words
}
