//! Real programs on the loopback interface, seen by the eBPF programs in this machine's kernel. The tests need root and BPF, so their
//! names have `as_root` in them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "ebpf_capture/watch.rs"]
mod watch;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use metaflow_agent::probes::{Settings, Step};
use metaflow_schema::enums::ObservationPoint;
use watch::Watch;

const REQUEST: &[u8] = b"GET /live HTTP/1.1\r\nHost: lo\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";

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

fn pair_is_seen(step: Step, address: &str) {
    let mut watch = Watch::start(Settings { first_step: step, ..Settings::default() });
    let port: u16 = watch.python(PAIR, &[address, "20"]).trim().parse().unwrap();
    let calls = watch.calls_until(port, 40);
    for point in [ObservationPoint::ClientProcess, ObservationPoint::ServerProcess] {
        let mut paths: Vec<_> = calls
            .iter()
            .filter(|call| call.point == point)
            .map(|call| call.session.request_resource.trim_start_matches('/').parse::<u32>().unwrap())
            .collect();
        paths.sort_unstable();
        assert_eq!(paths, (0..20).collect::<Vec<_>>(), "{point:?}");
    }
    for call in &calls {
        assert_eq!(call.session.response_code, 204);
        assert!(call.client_pid != 0 && call.client_pid == call.server_pid);
        assert_ne!(call.session.req_tcp_seq, 0);
        let twin = calls
            .iter()
            .find(|other| {
                other.point != call.point && other.session.request_resource == call.session.request_resource
            })
            .unwrap();
        assert_eq!(call.session.req_tcp_seq, twin.session.req_tcp_seq);
        assert_eq!(call.session.resp_tcp_seq, twin.session.resp_tcp_seq);
    }
    assert_eq!(watch.losses(), (0, 0));
}

#[test]
fn both_ends_are_seen_by_socket_tracepoints_as_root() {
    pair_is_seen(Step::SocketLayer, "127.0.0.1");
}

#[test]
fn both_ends_are_seen_at_the_end_of_system_calls_as_root() {
    pair_is_seen(Step::CallEnd, "127.0.0.1");
}

#[test]
fn addresses_of_ipv6_are_seen_as_root() {
    pair_is_seen(Step::SocketLayer, "::1");
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
