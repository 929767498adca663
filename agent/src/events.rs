//! Records of the ring buffer become events. Leaves out: how the records come (`probes`), what events mean (`sockets`).

#![expect(unsafe_code, reason = "records are read as the structure that the kernel side wrote")]

pub mod host;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bpf_abi::{Header, flag, kind};

use crate::session::Transport;

const AF_UNIX: u8 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;

/// Which way data went, seen from the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    Out,
    In,
}

/// The ends of a socket. The other end of a datagram may be unknown: it is no address then, and port 0. An end of a Unix socket is told by its place
/// in the kernel, as the lower half of an address, and port 0; the other end may be unknown, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SocketEnds {
    pub transport: Transport,
    pub local: SocketAddr,
    pub remote: SocketAddr,
}

impl SocketEnds {
    /// A socket that takes datagrams at all addresses is reached, within the host, at the address of who asks.
    pub(crate) fn within_host(mut self) -> Self {
        if self.local.ip().is_unspecified() && self.remote.ip().is_loopback() {
            self.local.set_ip(self.remote.ip());
        }
        self
    }
}

/// A process, one of its threads, and the coroutine that runs there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Task {
    pub pid: u32,
    pub thread: u32,
    /// Its number within the process; 0 where there are none.
    pub coroutine: u64,
}

/// Bytes that a process handed over or got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Data<'a> {
    pub way: Way,
    pub task: Task,
    /// All of them.
    pub length: u32,
    /// Those that were copied, from the first one on.
    pub payload: &'a [u8],
}

/// What the kernel says of a Unix socket with each transfer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UnixEnd {
    /// Tells the socket from another one that had its number before; 0 where numbers never come again.
    pub inode: u64,
    /// The process that listened, or that connected, at the other end; 0 when unknown.
    pub peer_pid: u32,
    /// Whether this end began the connection; none of two ends without a path, or both with one.
    pub is_client: Option<bool>,
}

/// What happened. Times are nanoseconds of the monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    Transfer {
        time: u64,
        socket: u64,
        ends: SocketEnds,
        tcp_seq: u32,
        data: Data<'a>,
    },
    UnixTransfer {
        time: u64,
        socket: u64,
        ends: SocketEnds,
        end: UnixEnd,
        data: Data<'a>,
    },
    /// A Unix socket goes by this path; the next event of its thread is a transfer through it.
    Named {
        socket: u64,
        path: &'a [u8],
    },
    /// The other end of a Unix socket said that it is done.
    UnixEnded {
        time: u64,
        socket: u64,
    },
    /// Plain text of a TLS session, which is named by its address in the process.
    Plain {
        time: u64,
        entered: u64,
        session: u64,
        data: Data<'a>,
    },
    /// Plain text of a session whose library knows no socket: its caller writes to the socket after it, or read from it before.
    Buffered {
        time: u64,
        session: u64,
        data: Data<'a>,
    },
    /// `is_client` says whether this end began the connection.
    Opened {
        time: u64,
        socket: u64,
        ends: SocketEnds,
        is_client: bool,
    },
    /// A thread begins a connection.
    Connecting {
        time: u64,
        socket: u64,
        task: Task,
    },
    Closed {
        time: u64,
        socket: u64,
    },
    /// A call that sends plain text began; its end is told as [`Event::Plain`].
    Sending {
        time: u64,
        task: Task,
        session: u64,
    },
    /// The task's coroutine began another one.
    Spawn {
        task: Task,
        child: u64,
    },
    /// The task left the work that it is at in a place, for another coroutine of its process; of a stream of HTTP/2, whose frame of headers
    /// it has just read, or 0.
    HandOver {
        task: Task,
        place: u64,
        stream: u32,
    },
    /// The task took the work from there; for a stream that it now writes to, or 0.
    TakeOver {
        task: Task,
        place: u64,
        stream: u32,
    },
    /// The task, one of tokio, does something to another task, or to a queue.
    Act {
        task: Task,
        act: Act,
        other: u64,
    },
    ThreadExit {
        task: Task,
    },
    Exec {
        task: Task,
    },
}

/// What a task of tokio does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// It begins another task. The other is a task's number.
    Spawns,
    /// The first time that it wakes another task.
    Wakes,
    /// It leaves something in a queue. The other is an address.
    Sends,
    /// It waits for something in a queue, for which another task or none waited before.
    Waits,
}

/// Why a record is no event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    #[error("the record is shorter than it says")]
    Short,
    #[error("the kind of the record is not known")]
    Kind,
}

/// Reads one record.
pub fn read(record: &[u8]) -> Result<Event<'_>, Unusable> {
    let (bytes, rest) = record.split_first_chunk::<{ size_of::<Header>() }>().ok_or(Unusable::Short)?;
    // SAFETY: there are as many bytes as a header has, and each pattern of bits is a header: all its fields are numbers.
    let header = unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast::<Header>()) };
    let Header {
        time_ns: time, entered_ns: entered, socket, length, captured, pid, thread, coroutine, ..
    } = header;
    let tcp_seq = header.tcp_seq;
    let task = Task { pid, thread, coroutine };
    let data = |way| {
        let payload = rest.get(..captured as usize).ok_or(Unusable::Short)?;
        Ok(Data { way, task, length, payload: &payload[..payload.len().min(length as usize)] })
    };
    let transfer = |way| {
        let (ends, data) = (ends(&header)?, data(way)?);
        Ok(match ends.transport {
            Transport::Unix => Event::UnixTransfer { time, socket, ends, end: unix_end(&header), data },
            Transport::Tcp | Transport::Udp => Event::Transfer { time, socket, ends, tcp_seq, data },
        })
    };
    match header.kind {
        kind::SEND => transfer(Way::Out),
        kind::RECEIVE => transfer(Way::In),
        kind::TLS_SEND => Ok(Event::Plain { time, entered, session: socket, data: data(Way::Out)? }),
        kind::TLS_RECEIVE => Ok(Event::Plain { time, entered, session: socket, data: data(Way::In)? }),
        kind::BUFFERED_SEND => Ok(Event::Buffered { time, session: socket, data: data(Way::Out)? }),
        kind::BUFFERED_RECEIVE => Ok(Event::Buffered { time, session: socket, data: data(Way::In)? }),
        kind::OPENED => {
            let is_client = header.flags & flag::CLIENT != 0;
            Ok(Event::Opened { time, socket, ends: ends(&header)?, is_client })
        }
        kind::CONNECTING => Ok(Event::Connecting { time, socket, task }),
        kind::CLOSED if header.family == AF_UNIX => Ok(Event::UnixEnded { time, socket }),
        kind::CLOSED => Ok(Event::Closed { time, socket }),
        kind::NAMED => Ok(Event::Named { socket, path: data(Way::In)?.payload }),
        kind::TLS_SENDING => Ok(Event::Sending { time, task, session: socket }),
        kind::SPAWN => Ok(Event::Spawn { task, child: socket }),
        kind::HAND_OVER => Ok(Event::HandOver { task, place: socket, stream: length }),
        kind::TAKE_OVER => Ok(Event::TakeOver { task, place: socket, stream: length }),
        kind::TASK_SPAWN => Ok(Event::Act { task, act: Act::Spawns, other: socket }),
        kind::TASK_WAKE => Ok(Event::Act { task, act: Act::Wakes, other: socket }),
        kind::TASK_SEND => Ok(Event::Act { task, act: Act::Sends, other: socket }),
        kind::TASK_WAIT => Ok(Event::Act { task, act: Act::Waits, other: socket }),
        kind::THREAD_EXIT => Ok(Event::ThreadExit { task }),
        kind::EXEC => Ok(Event::Exec { task }),
        _ => Err(Unusable::Kind),
    }
}

fn ends(header: &Header) -> Result<SocketEnds, Unusable> {
    let Header { family, protocol, local, remote, local_port, remote_port, .. } = *header;
    let address = |bytes: [u8; 16]| match family {
        AF_UNIX => Ok(IpAddr::V6(Ipv6Addr::from(u128::from(number(bytes.first_chunk()))))),
        AF_INET => {
            let [a, b, c, d, ..] = bytes;
            Ok(IpAddr::V4(Ipv4Addr::new(a, b, c, d)))
        }
        // A connection over IPv4 on a socket of IPv6 is one over IPv4.
        AF_INET6 => Ok(IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()),
        _ => Err(Unusable::Kind),
    };
    let transport = match (family, protocol) {
        (AF_UNIX, _) => Transport::Unix,
        (_, IPPROTO_TCP) => Transport::Tcp,
        (_, IPPROTO_UDP) => Transport::Udp,
        _ => return Err(Unusable::Kind),
    };
    let ends = SocketEnds {
        transport,
        local: SocketAddr::new(address(local)?, local_port),
        remote: SocketAddr::new(address(remote)?, remote_port),
    };
    Ok(ends.within_host())
}

/// The number in half of an address.
fn number(half: Option<&[u8; 8]>) -> u64 {
    half.map_or(0, |half| u64::from_ne_bytes(*half))
}

fn unix_end(header: &Header) -> UnixEnd {
    let is = |bit: u8| header.flags & bit != 0;
    UnixEnd {
        inode: number(header.local.last_chunk()),
        peer_pid: header.peer_pid,
        is_client: (is(flag::CLIENT) != is(flag::SERVER)).then_some(is(flag::CLIENT)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: u8) -> Header {
        let mut local = [0; 16];
        let mut remote = [0; 16];
        local[..4].copy_from_slice(&[127, 0, 0, 1]);
        remote[..4].copy_from_slice(&[10, 0, 0, 9]);
        Header {
            time_ns: 5,
            entered_ns: 3,
            socket: 77,
            coroutine: 6,
            length: 10,
            captured: 4,
            pid: 1,
            thread: 2,
            tcp_seq: 1_000,
            local_port: 80,
            remote_port: 5_000,
            kind,
            flags: 0,
            family: AF_INET,
            protocol: IPPROTO_TCP,
            peer_pid: 0,
            local,
            remote,
        }
    }

    fn bytes(header: &Header, payload: &[u8]) -> Vec<u8> {
        // SAFETY: a header has no padding (its size is asserted), so all its bytes are written.
        let head = unsafe {
            std::slice::from_raw_parts(std::ptr::from_ref(header).cast::<u8>(), size_of::<Header>())
        };
        [head, payload].concat()
    }

    #[test]
    fn a_transfer_has_ends_and_payload() {
        let record = bytes(&header(kind::SEND), b"abcdXXXX");
        let Ok(Event::Transfer { time, socket, ends, tcp_seq, data }) = read(&record) else { panic!() };
        assert_eq!((time, socket, tcp_seq), (5, 77, 1_000));
        assert_eq!(
            (ends.local.to_string(), ends.remote.to_string()),
            ("127.0.0.1:80".into(), "10.0.0.9:5000".into())
        );
        let task = Task { pid: 1, thread: 2, coroutine: 6 };
        assert_eq!(data, Data { way: Way::Out, task, length: 10, payload: b"abcd" });
    }

    #[test]
    fn a_mapped_address_is_one_of_ipv4() {
        let mut header = header(kind::RECEIVE);
        header.family = AF_INET6;
        header.local = Ipv4Addr::new(127, 0, 0, 1).to_ipv6_mapped().octets();
        header.remote = Ipv6Addr::LOCALHOST.octets();
        let record = bytes(&header, b"abcd");
        let Ok(Event::Transfer { ends, .. }) = read(&record) else { panic!() };
        assert_eq!(
            (ends.local.to_string(), ends.remote.to_string()),
            ("127.0.0.1:80".into(), "[::1]:5000".into())
        );
    }

    #[test]
    fn an_end_of_a_unix_socket_is_its_place_in_the_kernel() {
        let mut header = header(kind::SEND);
        (header.family, header.protocol) = (AF_UNIX, 0);
        (header.peer_pid, header.flags) = (9, flag::CLIENT);
        let place = |first: u64, second: u64| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&first.to_ne_bytes());
            bytes[8..].copy_from_slice(&second.to_ne_bytes());
            bytes
        };
        (header.local, header.remote) = (place(0xffff_8881_0000_0040, 77), place(0x30, 0));
        header.local_port = 0;
        let record = bytes(&header, b"abcd");
        let Ok(Event::UnixTransfer { socket, ends, end, data, .. }) = read(&record) else { panic!() };
        assert_eq!((socket, ends.transport, data.payload), (77, Transport::Unix, &b"abcd"[..]));
        assert_eq!(ends.local.ip(), IpAddr::V6(Ipv6Addr::from(0xffff_8881_0000_0040_u128)));
        assert_eq!(ends.remote.ip(), IpAddr::V6(Ipv6Addr::from(0x30_u128)));
        assert_eq!(end, UnixEnd { inode: 77, peer_pid: 9, is_client: Some(true) });
        header.kind = kind::CLOSED;
        assert!(matches!(read(&bytes(&header, b"")), Ok(Event::UnixEnded { socket: 77, .. })));
        header.kind = kind::NAMED;
        assert_eq!(read(&bytes(&header, b"/run")), Ok(Event::Named { socket: 77, path: b"/run" }));
    }

    #[test]
    fn what_makes_no_sense_is_no_event() {
        let check = |change: &dyn Fn(&mut Header), expected: Unusable| {
            let mut header = header(kind::SEND);
            change(&mut header);
            assert_eq!(read(&bytes(&header, b"abcd")), Err(expected));
        };
        check(&|header| header.kind = 99, Unusable::Kind);
        check(&|header| header.family = 3, Unusable::Kind);
        check(&|header| header.protocol = 132, Unusable::Kind);
        check(&|header| header.captured = 5, Unusable::Short);
        assert_eq!(read(&[0; 40]), Err(Unusable::Short));
    }
}
