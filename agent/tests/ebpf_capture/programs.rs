//! Programs that fork, become another program, pass their sockets on, use io_uring, die: what is seen is right, and what is not is counted.
//!
//! The response to `/N` has the code 200 + N, so a row says by itself whether its halves belong together.

use std::collections::BTreeMap;

use metaflow_agent::probes::{Settings, Step};
use metaflow_agent::sockets::Call;
use metaflow_schema::enums::{L7Type, ObservationPoint};

use super::watch::{Watch, steps};

/// What the programs have in common. Each prints a port and processes.
const COMMON: &str = r#"
import os, signal, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
port = listener.getsockname()[1]
def serve(read, write, count):
    for _ in range(count):
        number = int(read.recv(1000).split()[1][1:])
        write.sendall(b"HTTP/1.1 %d Fine\r\nContent-Length: 0\r\n\r\n" % (200 + number))
def ask(client, numbers):
    for number in numbers:
        client.sendall(b"GET /%d HTTP/1.1\r\nHost: lo\r\n\r\n" % number)
        assert client.recv(1000).startswith(b"HTTP/1.1 %d" % (200 + number))
def child(work):
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    return pid
def asking(numbers):
    return child(lambda: ask(socket.create_connection(("127.0.0.1", port)), numbers))
def wait(*pids):
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0, pid
"#;

/// The child serves with the socket that its parent accepted, then the parent goes on with it.
const FORK: &str = r#"
client = asking(range(10))
peer, _ = listener.accept()
worker = child(lambda: serve(peer, peer, 5))
wait(worker)
serve(peer, peer, 5)
wait(client)
print(port, client, worker, os.getpid())
"#;

/// Reads from one descriptor and writes to its copy; then becomes another program, which goes on with both.
const EXEC: &str = r#"
if len(sys.argv) > 1:
    read, write = [socket.socket(fileno=int(descriptor)) for descriptor in sys.argv[1:]]
    serve(read, write, 5)
    sys.exit(0)
client = asking(range(10))
def work():
    peer, _ = listener.accept()
    copy = peer.dup()
    serve(peer, copy, 5)
    for end in (peer, copy):
        os.set_inheritable(end.fileno(), True)
    os.execv(sys.executable, [sys.executable, sys.argv[0], str(peer.fileno()), str(copy.fileno())])
worker = child(work)
wait(worker, client)
print(port, client, worker, worker)
"#;

/// One process accepts, another one gets the socket and serves.
const PASS: &str = r#"
left, right = socket.socketpair()
def work():
    while True:
        _, descriptors, _, _ = socket.recv_fds(right, 10, 1)
        peer = socket.socket(fileno=descriptors[0])
        serve(peer, peer, 5)
        peer.close()
        right.send(b"done")
worker = child(work)
clients = []
for numbers in (range(5), range(5, 10)):
    clients.append(asking(numbers))
    peer, _ = listener.accept()
    socket.send_fds(left, [b"x"], [peer.fileno()])
    peer.close()
    left.recv(10)
wait(*clients)
os.kill(worker, signal.SIGKILL)
os.waitpid(worker, 0)
print(port, clients[0], worker, worker)
"#;

/// A client and a server that are killed between request and response; others come after them.
const DIE: &str = r#"
def killed_client():
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(b"GET /90 HTTP/1.1\r\nHost: lo\r\n\r\n")
    os.kill(os.getpid(), signal.SIGKILL)
first = child(killed_client)
peer, _ = listener.accept()
os.waitpid(first, 0)
serve(peer, peer, 1)
peer.close()
def deserted_client():
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(b"GET /91 HTTP/1.1\r\nHost: lo\r\n\r\n")
    try:
        client.recv(1000)
    except ConnectionResetError:
        pass
def killed_server():
    peer, _ = listener.accept()
    peer.recv(1000)
    os.kill(os.getpid(), signal.SIGKILL)
server = child(killed_server)
second = child(deserted_client)
os.waitpid(server, 0)
wait(second)
client = asking(range(10))
peer, _ = listener.accept()
serve(peer, peer, 10)
wait(client)
print(port, client, os.getpid(), os.getpid())
"#;

/// The client sends and receives by io_uring. While it waits for a response it is in a `readv` of a pipe, whose buffer has another
/// response in it: the kernel completes the receiving when that call ends.
const URING: &str = r#"
import ctypes, mmap, struct
libc = ctypes.CDLL(None, use_errno=True)
parameters = ctypes.create_string_buffer(120)
ring = libc.syscall(425, 8, parameters)
assert ring >= 0, os.strerror(ctypes.get_errno())
head, tail, mask, _, _, _, listing = struct.unpack_from("7I", parameters, 40)
done_head, done_tail, done_mask, _, _, done = struct.unpack_from("6I", parameters, 80)
rings = mmap.mmap(ring, 4096, offset=0)
completed = mmap.mmap(ring, 4096, offset=0x8000000)
entries = mmap.mmap(ring, 8 * 64, offset=0x10000000)
def word(memory, at, value=None):
    if value is None:
        return struct.unpack_from("I", memory, at)[0]
    struct.pack_into("I", memory, at, value)
def submit(operation, descriptor, buffer):
    at = word(rings, tail) & word(rings, mask)
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    entries[at * 64:at * 64 + 64] = struct.pack("BBHiQQIIQ24x", operation, 0, 0, descriptor, 0, address, len(buffer), 0, 0)
    word(rings, listing + 4 * at, at)
    word(rings, tail, word(rings, tail) + 1)
    assert libc.syscall(426, ring, 1, 0, 0, None, 0) == 1
def result():
    while word(completed, done_head) == word(completed, done_tail):
        assert libc.syscall(426, ring, 0, 1, 1, None, 0) >= 0
    at = word(completed, done_head) & word(completed, done_mask)
    word(completed, done_head, word(completed, done_head) + 1)
    return struct.unpack_from("i", completed, done + 16 * at + 8)[0]
SEND, RECEIVE = 26, 27
out, into = os.pipe()
def slow():
    peer, _ = listener.accept()
    for number in range(10):
        number = int(peer.recv(1000).split()[1][1:])
        # The client is in its other call by then.
        while open(f"/proc/{client_pid}/syscall").read().split()[0] != "19":
            pass
        peer.sendall(b"HTTP/1.1 %d Fine\r\nContent-Length: 0\r\n\r\n" % (200 + number))
        os.write(into, b"x")
client_pid = os.getpid()
server = child(slow)
client = socket.create_connection(("127.0.0.1", port))
for number in range(10):
    answer = bytearray(1000)
    submit(RECEIVE, client.fileno(), answer)
    submit(SEND, client.fileno(), bytearray(b"GET /%d HTTP/1.1\r\nHost: lo\r\n\r\n" % number))
    assert result() > 0
    other = bytearray(b"HTTP/1.1 299 Wrong\r\nContent-Length: 0\r\n\r\n")
    os.readv(out, [other])
    assert result() > 0 and answer.startswith(b"HTTP/1.1 %d" % (200 + number)), answer
wait(server)
print(port, client_pid, server, server)
"#;

/// Runs a program; gives the calls to its port and the processes that it names: client, then servers.
fn run(watch: &mut Watch, program: &str, expected: usize) -> (Vec<Call>, Vec<u32>) {
    let output = watch.python(&format!("{COMMON}{program}"), &[]);
    let words: Vec<u32> = output.split_whitespace().map(|word| word.parse().unwrap()).collect();
    let port = words[0] as u16;
    let calls = watch.calls_until(port, expected);
    for call in calls.iter().filter(|call| call.session.l7_type == L7Type::Session) {
        assert_eq!(call.session.response_code, 200 + number(call), "{call:#?}");
    }
    (calls, words[1..].to_vec())
}

fn number(call: &Call) -> i32 {
    call.session.request_resource.trim_start_matches('/').parse().unwrap()
}

/// Requests by their number, seen at one end; each once.
fn at(calls: &[Call], point: ObservationPoint) -> BTreeMap<i32, &Call> {
    let of_point: Vec<_> = calls.iter().filter(|call| call.point == point).collect();
    let by_number: BTreeMap<i32, &Call> = of_point.iter().map(|call| (number(call), *call)).collect();
    assert_eq!(by_number.len(), of_point.len(), "{calls:#?}");
    by_number
}

/// Ten requests: both ends see each, equally; the first five are served by one process, the others by another.
fn handed_on(program: &str) {
    for step in steps() {
        let mut watch = Watch::start(Settings { first_step: step, tls: false, ..Settings::default() });
        let (calls, pids) = run(&mut watch, program, 20);
        let asked = at(&calls, ObservationPoint::ClientProcess);
        let served = at(&calls, ObservationPoint::ServerProcess);
        assert!(asked.keys().copied().eq(0..10) && served.keys().copied().eq(0..10), "{step:?} {calls:#?}");
        for (number, call) in &served {
            let server = pids[if *number < 5 { 1 } else { 2 }];
            assert_eq!(call.server_pid, server, "{step:?} {call:#?}");
            let twin = asked[number];
            let sequences = |call: &Call| (call.session.req_tcp_seq, call.session.resp_tcp_seq);
            assert_eq!(sequences(call), sequences(twin), "{step:?} {call:#?} {twin:#?}");
            assert_ne!(call.session.req_tcp_seq, 0);
        }
    }
}

#[test]
fn a_fork_takes_over_and_gives_back_as_root() {
    handed_on(FORK);
}

#[test]
fn copies_of_descriptors_outlive_an_exec_as_root() {
    handed_on(EXEC);
}

#[test]
fn a_socket_that_is_passed_belongs_to_who_got_it_as_root() {
    handed_on(PASS);
}

#[test]
fn who_is_killed_leaves_a_request_without_response_as_root() {
    for step in steps() {
        let mut watch = Watch::start(Settings { first_step: step, tls: false, ..Settings::default() });
        // Ten at both ends, one that only its server saw answered, one that nobody answered.
        let (calls, pids) = run(&mut watch, DIE, 24);
        let asked = at(&calls, ObservationPoint::ClientProcess);
        let served = at(&calls, ObservationPoint::ServerProcess);
        let of = |calls: &BTreeMap<i32, &Call>, number: i32| calls[&number].session.l7_type;
        assert_eq!((of(&asked, 90), of(&served, 90)), (L7Type::Request, L7Type::Session), "{step:?}");
        assert_eq!((of(&asked, 91), of(&served, 91)), (L7Type::Request, L7Type::Request), "{step:?}");
        for number in 0..10 {
            assert_eq!((of(&asked, number), of(&served, number)), (L7Type::Session, L7Type::Session));
            assert_eq!((asked[&number].client_pid, served[&number].server_pid), (pids[0], pids[1]));
        }
    }
}

#[test]
fn what_goes_through_io_uring_is_not_taken_for_other_data_as_root() {
    for step in steps() {
        let mut watch = Watch::start(Settings { first_step: step, tls: false, ..Settings::default() });
        let before = watch.losses();
        let (calls, _) = run(&mut watch, URING, 10);
        let served = at(&calls, ObservationPoint::ServerProcess);
        assert!(served.keys().copied().eq(0..10), "{step:?} {calls:#?}");
        // The client's end: no bytes of it are seen, and none of another call are taken for them.
        assert!(at(&calls, ObservationPoint::ClientProcess).is_empty(), "{step:?} {calls:#?}");
        let after = watch.losses();
        // Ten requests and ten responses.
        let counted = match step {
            Step::SocketLayer => after.unseen - before.unseen,
            Step::CallEnd | Step::CallBoth => after.submitted - before.submitted,
        };
        assert!(counted >= 20, "{step:?} {before:?} {after:?}");
    }
}
