//! All the ways in which programs use sockets, each by a small real program.

use std::process::Command;

use metaflow_agent::probes::Settings;
use metaflow_agent::sockets::Call;
use metaflow_schema::enums::{L7Protocol, L7Type, ObservationPoint};

use super::PAIR;
use super::watch::{Served, Watch, steps};

const BOTH: [ObservationPoint; 2] = [ObservationPoint::ClientProcess, ObservationPoint::ServerProcess];

fn whole(calls: &[Call], point: ObservationPoint) -> Vec<&Call> {
    calls.iter().filter(|call| call.point == point && call.session.l7_type == L7Type::Session).collect()
}

/// A server of DNS on a socket that is open to anyone; asks come from several sockets.
const DATAGRAMS: &str = r#"
import socket, sys, threading
server = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
server.bind((sys.argv[1], 0))
port = server.getsockname()[1]
def serve():
    while True:
        query, who = server.recvfrom(2000)
        server.sendto(query[:2] + b"\x81\x83" + query[4:], who)
threading.Thread(target=serve, daemon=True).start()
to = sys.argv[2]
for number in range(20):
    client = socket.socket(socket.AF_INET6 if ':' in to else socket.AF_INET, socket.SOCK_DGRAM)
    query = number.to_bytes(2, "big") + b"\x01\x00\x00\x01" + bytes(6) + b"\x01a\x04test\x00\x00\x01\x00\x01"
    client.sendto(query, (to, port))
    client.recvfrom(2000)
print(port)
"#;

fn datagrams_are_seen(bound: &str, to: &str) {
    let mut watch = Watch::start(Settings::default());
    let port: u16 = watch.python(DATAGRAMS, &[bound, to]).trim().parse().unwrap();
    let seen = |watch: &Watch| BOTH.map(|point| whole(&watch.calls_to(port), point).len());
    watch.until(|watch| seen(watch) == [20, 20]);
    for call in watch.calls_to(port) {
        assert_eq!(
            (call.facts.ends.server_ip.to_string(), call.session.protocol),
            (to.into(), L7Protocol::Dns)
        );
        assert_eq!(call.facts.ends.client_ip.to_string(), to);
    }
}

#[test]
fn who_asks_a_datagram_server_is_seen_by_the_server_as_root() {
    datagrams_are_seen("127.0.0.1", "127.0.0.1");
}

#[test]
fn a_datagram_server_on_all_addresses_is_seen_at_the_one_it_was_asked_at_as_root() {
    datagrams_are_seen("0.0.0.0", "127.0.0.1");
    datagrams_are_seen("::", "::1");
}

/// A server on a socket of IPv6 that takes connections over IPv4, too.
const MAPPED: &str = r#"
import socket, threading
server = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
def serve():
    peer, _ = server.accept()
    for _ in range(10):
        peer.recv(1000)
        peer.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
thread = threading.Thread(target=serve)
thread.start()
client = socket.create_connection(("127.0.0.1", server.getsockname()[1]))
for number in range(10):
    client.sendall(b"GET /%d HTTP/1.1\r\nHost: lo\r\n\r\n" % number)
    client.recv(1000)
thread.join()
print(server.getsockname()[1])
"#;

#[test]
fn connections_over_ipv4_on_a_socket_of_ipv6_are_ones_of_ipv4_as_root() {
    let mut watch = Watch::start(Settings::default());
    let port: u16 = watch.python(MAPPED, &[]).trim().parse().unwrap();
    let calls = watch.calls_until(port, 20);
    for point in BOTH {
        assert_eq!(whole(&calls, point).len(), 10, "{point:?}");
    }
    for call in &calls {
        assert!(call.facts.ends.server_ip.is_ipv4() && call.facts.ends.client_ip.is_ipv4(), "{call:?}");
        assert_eq!(call.client_pid, call.server_pid);
    }
}

/// One connection for requests before and after the agent begins.
const BEFORE: &str = r#"
import socket, sys, threading
server = socket.create_server(("127.0.0.1", 0))
def serve():
    peer, _ = server.accept()
    while peer.recv(1000):
        peer.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
threading.Thread(target=serve, daemon=True).start()
client = socket.create_connection(("127.0.0.1", server.getsockname()[1]))
def ask(number):
    client.sendall(b"GET /%d HTTP/1.1\r\nHost: lo\r\n\r\n" % number)
    client.recv(1000)
ask(99)
print(server.getsockname()[1], flush=True)
sys.stdin.readline()
for number in range(10):
    ask(number)
print("done", flush=True)
sys.stdin.readline()
"#;

#[test]
fn connections_that_were_there_before_the_agent_are_seen_as_root() {
    let mut program = Served::start(Command::new("/usr/bin/python3").arg("-c").arg(BEFORE));
    let port: u16 = program.line().parse().unwrap();
    let mut watch = Watch::start(Settings::default());
    program.say("go on");
    let calls = watch.calls_until(port, 20);
    for point in BOTH {
        let mut paths: Vec<_> =
            whole(&calls, point).iter().map(|call| &*call.session.request_resource).collect();
        paths.sort_unstable();
        assert_eq!(paths, ["/0", "/1", "/2", "/3", "/4", "/5", "/6", "/7", "/8", "/9"], "{point:?}");
    }
}

/// A connection that one process takes and hands to another, which uses it by a copy of its descriptor.
const PASSED: &str = r#"
import os, socket
server = socket.create_server(("127.0.0.1", 0))
ours, theirs = socket.socketpair()
child = os.fork()
if child == 0:
    _, [descriptor], _, _ = socket.recv_fds(theirs, 10, 1)
    copy = os.dup(descriptor)
    os.close(descriptor)
    while os.read(copy, 1000):
        os.write(copy, b"HTTP/1.1 204 No Content\r\n\r\n")
    os._exit(0)
client = socket.create_connection(server.getsockname())
peer, _ = server.accept()
socket.send_fds(ours, [b"x"], [peer.fileno()])
peer.close()
for number in range(10):
    client.sendall(b"GET /%d HTTP/1.1\r\nHost: lo\r\n\r\n" % number)
    client.recv(1000)
client.close()
os.waitpid(child, 0)
print(server.getsockname()[1], child)
"#;

#[test]
fn a_connection_that_was_passed_on_belongs_to_who_uses_it_as_root() {
    let mut watch = Watch::start(Settings::default());
    let output = watch.python(PASSED, &[]);
    let numbers: Vec<u32> = output.split_whitespace().map(|number| number.parse().unwrap()).collect();
    let calls = watch.calls_until(numbers[0] as u16, 20);
    for call in &calls {
        assert_eq!(call.server_pid, numbers[1]);
        assert_ne!(call.client_pid, numbers[1]);
    }
    assert_eq!(BOTH.map(|point| whole(&calls, point).len()), [10, 10]);
}

/// Bodies from a file, by sendfile; heads before them by send.
const SENDFILE: &str = r#"
import os, socket, tempfile, threading
server = socket.create_server(("127.0.0.1", 0))
file = tempfile.TemporaryFile()
file.write(b"x" * 50000)
file.flush()
def serve():
    peer, _ = server.accept()
    while peer.recv(1000):
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n")
        sent = 0
        while sent < 50000:
            sent += os.sendfile(peer.fileno(), file.fileno(), sent, 50000 - sent)
threading.Thread(target=serve, daemon=True).start()
client = socket.create_connection(server.getsockname())
for number in range(10):
    client.sendall(b"GET /%d HTTP/1.1\r\nHost: lo\r\n\r\n" % number)
    left = 50000 + len(b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n")
    while left:
        left -= len(client.recv(left))
print(server.getsockname()[1])
"#;

#[test]
fn the_length_of_what_sendfile_sends_counts_as_root() {
    let mut watch = Watch::start(Settings::default());
    let port: u16 = watch.python(SENDFILE, &[]).trim().parse().unwrap();
    let calls = watch.calls_until(port, 20);
    for point in BOTH {
        let whole = whole(&calls, point);
        assert_eq!(whole.len(), 10, "{point:?}");
        assert!(whole.iter().all(|call| call.session.response_length > 50_000), "{point:?}");
    }
}

/// Several messages a call, by sendmmsg and recvmmsg, which Python has not.
const SEVERAL: &str = r#"
import ctypes, socket, threading
libc = ctypes.CDLL(None, use_errno=True)
class iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
class msghdr(ctypes.Structure):
    _fields_ = [("name", ctypes.c_void_p), ("name_length", ctypes.c_uint), ("vectors", ctypes.POINTER(iovec)),
        ("count", ctypes.c_size_t), ("control", ctypes.c_void_p), ("control_length", ctypes.c_size_t), ("flags", ctypes.c_int)]
class mmsghdr(ctypes.Structure):
    _fields_ = [("header", msghdr), ("length", ctypes.c_uint)]
def messages(buffers):
    vectors = [iovec(ctypes.cast(buffer, ctypes.c_void_p), size) for buffer, size in buffers]
    array = (mmsghdr * len(buffers))()
    for entry, vector in zip(array, vectors):
        entry.header.vectors = ctypes.pointer(vector)
        entry.header.count = 1
    return array, vectors
def send(to, texts):
    buffers = [(ctypes.create_string_buffer(text, len(text)), len(text)) for text in texts]
    array, kept = messages(buffers)
    assert libc.sendmmsg(to.fileno(), array, len(texts), 0) == len(texts)
def receive(of, count):
    got = 0
    while got < count:
        buffers = [(ctypes.create_string_buffer(2000), 2000) for _ in range(count)]
        array, kept = messages(buffers)
        result = libc.recvmmsg(of.fileno(), array, count, 0x10000, None)
        assert result > 0, ctypes.get_errno()
        got += result
server, client = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
server.bind(("127.0.0.1", 0))
client.bind(("127.0.0.1", 0))
client.connect(server.getsockname())
server.connect(client.getsockname())
rest = b"\x00\x00\x01" + bytes(6) + b"\x01a\x04test\x00\x00\x01\x00\x01"
for round in range(5):
    ids = [(round * 31 + number).to_bytes(2, "big") for number in range(31)]
    for sender, receiver, flags in ((client, server, b"\x01"), (server, client, b"\x81")):
        texts = [id + flags + rest for id in ids]
        # An empty one counts among the messages of its call.
        texts.insert(round * 7, b"")
        send(sender, texts)
        receive(receiver, 32)
print(server.getsockname()[1])
"#;

#[test]
fn each_message_of_a_call_is_seen_as_root() {
    for first_step in steps() {
        let mut watch = Watch::start(Settings { first_step, ..Settings::default() });
        let port: u16 = watch.python(SEVERAL, &[]).trim().parse().unwrap();
        let seen = |watch: &Watch| BOTH.map(|point| whole(&watch.calls_to(port), point).len());
        watch.until(|watch| seen(watch) == [155, 155]);
    }
}

/// Requests that are sent by io_uring, and read and answered by plain calls.
const URING: &str = r#"
import ctypes, mmap, socket, struct, threading
libc = ctypes.CDLL(None, use_errno=True)
parameters = ctypes.create_string_buffer(120)
ring = libc.syscall(425, 8, parameters)
assert ring >= 0, ctypes.get_errno()
entries, _, flags = struct.unpack_from("III", parameters)
head, tail, mask, ring_entries, sq_flags, dropped, array = struct.unpack_from("7I", parameters, 40)
submissions = mmap.mmap(ring, array + entries * 4, offset=0)
queue = mmap.mmap(ring, entries * 64, offset=0x10000000)
def send(to, text):
    buffer = ctypes.create_string_buffer(text, len(text))
    at = struct.unpack_from("I", submissions, tail)[0]
    index = at & struct.unpack_from("I", submissions, mask)[0]
    queue[index * 64:index * 64 + 64] = struct.pack("BBHiQQI", 26, 0, 0, to.fileno(), 0, ctypes.addressof(buffer), len(text)) + bytes(36)
    struct.pack_into("I", submissions, array + index * 4, index)
    struct.pack_into("I", submissions, tail, at + 1)
    assert libc.syscall(426, ring, 1, 1, 1, None, 0) == 1, ctypes.get_errno()
server = socket.create_server(("127.0.0.1", 0))
def serve():
    peer, _ = server.accept()
    while peer.recv(1000):
        peer.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
threading.Thread(target=serve, daemon=True).start()
client = socket.create_connection(server.getsockname())
for number in range(5):
    send(client, b"GET /%d HTTP/1.1\r\nHost: lo\r\n\r\n" % number)
    client.recv(1000)
print(server.getsockname()[1])
"#;

#[test]
fn what_io_uring_sends_counts_as_unseen_and_the_other_end_sees_it_as_root() {
    let mut watch = Watch::start(Settings::default());
    let before = watch.unseen();
    let port: u16 = watch.python(URING, &[]).trim().parse().unwrap();
    watch.until(|watch| whole(&watch.calls_to(port), ObservationPoint::ServerProcess).len() == 5);
    assert!(watch.unseen() >= before + 5);
    // Who asked did not show what: no request is made up.
    assert!(whole(&watch.calls_to(port), ObservationPoint::ClientProcess).is_empty());
}

/// A long answer in two parts, the second when it is told to go on; then a short one on the same connection.
const LONG: &str = r#"
import socket, sys, threading
server = socket.create_server(("127.0.0.1", 0))
PART = 64 << 10
def serve():
    peer, _ = server.accept()
    peer.recv(1000)
    peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (128 * PART) + b"x" * PART)
    print(server.getsockname()[1], flush=True)
    sys.stdin.readline()
    for _ in range(127):
        peer.sendall(b"x" * PART)
    peer.recv(1000)
    peer.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
threading.Thread(target=serve, daemon=True).start()
client = socket.create_connection(server.getsockname())
client.sendall(b"GET /long HTTP/1.1\r\nHost: lo\r\n\r\n")
left = 128 * PART + len(b"HTTP/1.1 200 OK\r\nContent-Length: 8388608\r\n\r\n")
while left:
    left -= len(client.recv(min(left, PART)))
client.sendall(b"GET /short HTTP/1.1\r\nHost: lo\r\n\r\n")
client.recv(1000)
print("done", flush=True)
sys.stdin.readline()
"#;

#[test]
fn the_rest_of_a_long_body_stays_in_the_kernel_as_root() {
    let mut watch = Watch::start(Settings::default());
    let mut program = watch.serve(LONG, &[]);
    let port: u16 = program.line().parse().unwrap();
    // Both ends have told how much of the body is left.
    watch.until(|watch| watch.skips_told() >= 2);
    let before = watch.copied(port);
    program.say("go on");
    let calls = watch.calls_until(port, 4);
    for point in BOTH {
        let paths: Vec<_> = whole(&calls, point).iter().map(|call| &*call.session.request_resource).collect();
        assert_eq!(paths, ["/long", "/short"], "{point:?}");
    }
    assert!(whole(&calls, ObservationPoint::ServerProcess)[0].session.response_length > 8 << 20);
    // At least 127 calls sent it, and as many received it: 2 KiB of each would be half a megabyte.
    let copied = watch.copied(port) - before;
    assert!(copied < 20_000, "{copied} bytes");
}

#[test]
fn only_listed_ports_and_processes_cost_events_as_root() {
    let [listed, other] =
        [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());
    let mut watch = Watch::start(Settings { only_ports: vec![listed], ..Settings::default() });
    for port in [other, listed] {
        watch.python(
            &PAIR.replace("(sys.argv[1], 0)", &format!("(sys.argv[1], {port})")),
            &["127.0.0.1", "5"],
        );
    }
    watch.calls_until(listed, 10);
    assert_eq!((watch.events(other), watch.calls_to(other).len()), (0, 0));
    drop(watch);
    let programs = [(); 2].map(|()| Served::start(Command::new("/usr/bin/python3").arg("-c").arg(BEFORE)));
    let [mut listed, mut other] = programs;
    let ports = [listed.line(), other.line()].map(|port| port.parse::<u16>().unwrap());
    let mut watch = Watch::start(Settings { only_listed: true, ..Settings::default() });
    watch.list_process(listed.id());
    for program in [&mut other, &mut listed] {
        program.say("go on");
        assert_eq!(program.line(), "done");
    }
    watch.calls_until(ports[0], 20);
    assert_eq!((watch.events(ports[1]), watch.calls_to(ports[1]).len()), (0, 0));
}

/// Datagrams that say nothing, as fast as they go, to and from two sockets of each of several processes.
const FLOOD: &str = r#"
import os, socket
for _ in range(3):
    if os.fork() == 0:
        break
one, other = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
one.bind(("127.0.0.1", 0))
other.bind(("127.0.0.1", 0))
one.connect(other.getsockname())
other.connect(one.getsockname())
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1000):
        one.send(bytes(512))
        other.recv(512)
        other.send(bytes(512))
        one.recv(512)
"#;

#[test]
fn a_flood_of_unknown_datagrams_hides_nobodys_requests_as_root() {
    for first_step in steps() {
        let mut watch = Watch::start(Settings { first_step, tls: false, ..Settings::default() });
        let flood = watch.serve(FLOOD, &[]);
        let (mut dropped, mut looks) = (0, 0);
        watch.until(|watch| {
            let is_more = std::mem::replace(&mut dropped, watch.losses().dropped) != dropped;
            looks = if is_more { 0 } else { looks + 1 };
            watch.sockets_left() >= 8 && looks >= 50
        });
        let port: u16 = watch.python(PAIR, &["127.0.0.1", "20"]).trim().parse().unwrap();
        assert_eq!(watch.calls_until(port, 40).len(), 40, "{first_step:?}");
        drop(flood);
    }
}
