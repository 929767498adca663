//! Real programs on the loopback interface, seen by the eBPF programs in this machine's kernel. The tests need root and BPF, so their
//! names have `as_root` in them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "ebpf_capture/go.rs"]
mod go;
#[path = "ebpf_capture/grpc.rs"]
mod grpc;
#[path = "ebpf_capture/ladder.rs"]
mod ladder;
#[path = "ebpf_capture/programs.rs"]
mod programs;
#[path = "ebpf_capture/rust.rs"]
mod rust;
#[path = "ebpf_capture/sockets.rs"]
mod sockets;
#[path = "ebpf_capture/tls.rs"]
mod tls;
#[path = "ebpf_capture/unix.rs"]
mod unix;
#[path = "ebpf_capture/watch.rs"]
mod watch;

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use metaflow_agent::flow::Ends;
use metaflow_agent::probes::{self, Settings};
use metaflow_agent::sockets::Call;
use metaflow_schema::enums::ObservationPoint;
use watch::{Served, Watch};

const REQUEST: &[u8] = b"GET /live HTTP/1.1\r\nHost: lo\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";

/// Says that a test runs in the process that it made for itself.
const INSIDE: &str = "METAFLOW_TEST_INSIDE";

/// Requests over one connection, each side a child process: the agent does not look at itself.
const PAIR: &str = r#"
import socket, sys, threading
server = socket.create_server((sys.argv[1], 0), family=socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET)
port = server.getsockname()[1]
def serve():
    peer, _ = server.accept()
    for _ in range(int(sys.argv[2])):
        peer.recv(1000)
        peer.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
thread = threading.Thread(target=serve)
thread.start()
client = socket.create_connection((sys.argv[1], port))
for number in range(int(sys.argv[2])):
    client.sendall(b"GET /%d HTTP/1.1\r\nHost: lo\r\n\r\n" % number)
    client.recv(1000)
thread.join()
print(port)
"#;

#[test]
fn addresses_of_ipv6_are_seen_as_root() {
    let mut watch = Watch::start(Settings::default());
    let port: u16 = watch.python(PAIR, &["::1", "5"]).trim().parse().unwrap();
    for call in watch.calls_until(port, 10) {
        let Ends { client_ip, server_ip, .. } = call.facts.ends;
        assert!(client_ip == Ipv6Addr::LOCALHOST && server_ip == Ipv6Addr::LOCALHOST, "{call:#?}");
        assert!(call.session.response_code == 204 && call.session.req_tcp_seq != 0, "{call:#?}");
    }
}

#[test]
fn the_agents_own_connections_are_left_out_as_root() {
    let mut watch = Watch::start(Settings::default());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let mut buffer = [0; 100];
    client.write_all(REQUEST).unwrap();
    server.read_exact(&mut buffer[..REQUEST.len()]).unwrap();
    server.write_all(RESPONSE).unwrap();
    client.read_exact(&mut buffer[..RESPONSE.len()]).unwrap();
    let own = listener.local_addr().unwrap().port();
    let port: u16 = watch.python(PAIR, &["127.0.0.1", "1"]).trim().parse().unwrap();
    watch.calls_until(port, 2);
    assert!(watch.calls_to(own).is_empty());
}

/// A server of HTTP with threads; each request asks a backend twice, with a connection of its own.
const PROXY: &str = r#"
import http.client, http.server, socketserver, sys, threading
class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    pass
class Quiet(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *arguments):
        pass
    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
class Backend(Quiet):
    def do_GET(self):
        self.answer(b"backend")
class Front(Quiet):
    def do_GET(self):
        for part in "ab":
            connection = http.client.HTTPConnection("127.0.0.1", backend.server_port)
            connection.request("GET", self.path + part)
            connection.getresponse().read()
            connection.close()
        self.answer(b"front")
backend, front = [Server(("127.0.0.1", 0), handler) for handler in (Backend, Front)]
for server in (backend, front):
    threading.Thread(target=server.serve_forever, daemon=True).start()
def ask(client):
    connection = http.client.HTTPConnection("127.0.0.1", front.server_port)
    for number in range(int(sys.argv[2])):
        connection.request("GET", f"/{client}-{number}")
        connection.getresponse().read()
    connection.close()
clients = [threading.Thread(target=ask, args=(client,)) for client in range(int(sys.argv[1]))]
[client.start() for client in clients]
[client.join() for client in clients]
print(front.server_port, backend.server_port)
"#;

#[test]
fn what_a_thread_asks_is_linked_to_the_request_that_it_serves_as_root() {
    const CLIENTS: usize = 8;
    const EACH: usize = 25;
    let mut watch = Watch::start(Settings::default());
    let ports = watch.python(PROXY, &[&CLIENTS.to_string(), &EACH.to_string()]);
    let ports: Vec<u16> = ports.split_whitespace().map(|port| port.parse().unwrap()).collect();
    let of = |calls: &[Call], point: ObservationPoint| -> Vec<Call> {
        calls.iter().filter(|call| call.point == point).cloned().collect()
    };
    let served = of(&watch.calls_until(ports[0], 2 * CLIENTS * EACH), ObservationPoint::ServerProcess);
    let asked = of(&watch.calls_until(ports[1], 4 * CLIENTS * EACH), ObservationPoint::ClientProcess);
    assert_eq!((served.len(), asked.len()), (CLIENTS * EACH, 2 * CLIENTS * EACH));
    let mut traces = HashMap::new();
    for call in &served {
        assert_eq!(call.traces[0], call.traces[1]);
        assert!(
            traces.insert(call.traces[0], &call.session.request_resource).is_none(),
            "a number of its own"
        );
    }
    for call in &asked {
        let path = &call.session.request_resource;
        assert_eq!(traces[&call.traces[0]].as_str(), &path[..path.len() - 1]);
    }
}

#[test]
fn redis_is_seen_at_both_ends_as_root() {
    let mut watch = Watch::start(Settings::default());
    let port = watch::free_port();
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port", &port.to_string()]);
    let server = Served::start(command.current_dir(folder.path()));
    let cli = || {
        let mut command = Command::new("redis-cli");
        command.args(["-p", &port.to_string()]);
        command
    };
    watch.until(|_| cli().arg("PING").output().is_ok_and(|output| output.stdout == b"PONG\n"));
    watch.run(cli().args(["-r", "50", "INCR", "seen"]));
    let count = |watch: &Watch, point| {
        let calls = watch.calls_to(port).into_iter();
        calls.filter(|call| call.point == point && call.session.request_type == "INCR").count()
    };
    let both = [ObservationPoint::ClientProcess, ObservationPoint::ServerProcess];
    watch.until(|watch| both.iter().all(|point| count(watch, *point) == 50));
    let pids: HashSet<u32> = watch.calls_to(port).iter().map(|call| call.server_pid).collect();
    assert_eq!(pids, HashSet::from([server.id()]));
}

#[test]
fn a_killed_agent_leaves_no_program_in_the_kernel_as_root() {
    // Other tests load the same programs: this one counts those that its own child loaded.
    if std::env::var_os(INSIDE).is_some() {
        let mut watch = Watch::start(Settings::default());
        println!("loaded {:?}", watch.program_ids());
        loop {
            watch.look();
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "a_killed_agent_leaves_no_program_in_the_kernel_as_root", "--nocapture"])
        .env(INSIDE, "1");
    let mut child = Served::start(&mut command);
    let line = loop {
        let line = child.line();
        if let Some(ids) = line.split("loaded ").nth(1) {
            break ids.to_owned();
        }
    };
    let ids: Vec<u32> = line.trim_matches(['[', ']']).split(", ").map(|id| id.parse().unwrap()).collect();
    assert!(ids.len() >= 9, "{ids:?}");
    assert!(ids.iter().all(|id| probes::loaded_program_ids().contains(id)));
    assert_eq!(probes::holder(ids[0]), Some(child.id()));
    drop(child);
    let deadline = Instant::now() + Duration::from_secs(30);
    while ids.iter().any(|id| probes::loaded_program_ids().contains(id)) {
        assert!(Instant::now() < deadline, "{ids:?}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}
