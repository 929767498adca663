//! Unix sockets: nginx in front of a server of Python, Redis behind it, and pairs of sockets on each step of the ladder.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use metaflow_agent::probes::{Settings, Step};
use metaflow_agent::sockets::Call;
use metaflow_schema::enums::{L7Protocol, ObservationPoint};

use super::watch::{Served, Watch, free_port, has_socket_tracepoints};

/// Answers by HTTP on a Unix socket, with a thread for each connection; each request increments a key of Redis by another one.
const SERVER: &str = r#"
import http.server, socket, socketserver, sys, threading
class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64
class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass
    def do_GET(self):
        store = socket.socket(socket.AF_UNIX)
        store.connect(sys.argv[2])
        key = self.path[1:].encode()
        store.sendall(b"*2\r\n$4\r\nINCR\r\n$%d\r\n%s\r\n" % (len(key), key))
        assert store.recv(100) == b":1\r\n"
        store.close()
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"there")
server = Server(sys.argv[1], Handler)
print("ready", flush=True)
threading.Thread(target=sys.stdin.read).start()
threading.Thread(target=server.serve_forever, daemon=True).start()
"#;

fn redis(folder: &Path) -> (Served, String) {
    let path = folder.join("redis.sock").to_str().unwrap().to_owned();
    let mut command = Command::new("redis-server");
    command.args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket", &path]);
    (Served::start(command.current_dir(folder)), path)
}

fn nginx(folder: &Path, upstream: &str) -> (Served, u16) {
    let (port, root) = (free_port(), folder.to_str().unwrap());
    let configuration = format!(
        "daemon off; master_process off; pid {root}/pid; error_log stderr; worker_processes 1; user root;
        events {{ worker_connections 64; }}
        http {{ access_log off; client_body_temp_path {root}; proxy_temp_path {root}; fastcgi_temp_path {root};
        uwsgi_temp_path {root}; scgi_temp_path {root};
        server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://unix:{upstream}:; }} }} }}"
    );
    let file = folder.join("nginx.conf");
    std::fs::write(&file, configuration).unwrap();
    (Served::start(Command::new("nginx").args(["-p", root, "-e", "stderr", "-c"]).arg(&file)), port)
}

fn of(calls: &[Call], point: ObservationPoint) -> Vec<Call> {
    calls.iter().filter(|call| call.point == point).cloned().collect()
}

/// Both rows of each request say the same of it, and name both processes.
fn both_ends_agree(calls: &[Call]) {
    let asked = of(calls, ObservationPoint::ClientProcess);
    let served = of(calls, ObservationPoint::ServerProcess);
    assert_eq!((asked.len(), served.len()), (calls.len() / 2, calls.len() / 2));
    let numbers = |call: &Call| (call.session.req_tcp_seq, call.session.resp_tcp_seq);
    let by_numbers: HashMap<_, &Call> = served.iter().map(|call| (numbers(call), call)).collect();
    assert_eq!(by_numbers.len(), served.len(), "no two requests have the same numbers");
    for call in &asked {
        let twin = by_numbers[&numbers(call)];
        assert_eq!(twin.session.request_resource, call.session.request_resource);
        assert_eq!((twin.client_pid, twin.server_pid), (call.client_pid, call.server_pid));
        assert!(call.client_pid != 0 && call.server_pid != 0, "{call:#?}");
    }
}

#[test]
fn requests_by_unix_sockets_are_seen_at_both_ends_and_linked_as_root() {
    const REQUESTS: usize = 40;
    let folder = tempfile::tempdir().unwrap();
    let web = folder.path().join("web.sock").to_str().unwrap().to_owned();
    let mut watch = Watch::start(Settings::default());
    let (store_server, store) = redis(folder.path());
    watch.until(|_| Path::new(&store).exists());
    let mut server = watch.serve(SERVER, &[&web, &store]);
    assert_eq!(server.line(), "ready");
    let (_front, port) = nginx(folder.path(), &web);
    watch.until(|_| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    let clients: Vec<String> = (0..4)
        .map(|client| {
            let urls = (0..REQUESTS / 4).map(|number| format!("http://127.0.0.1:{port}/{client}_{number}"));
            urls.collect::<Vec<_>>().join(" -o /dev/null ")
        })
        .collect();
    let script = clients.iter().map(|urls| format!("curl -sf -o /dev/null {urls} & ")).collect::<String>();
    watch.run(Command::new("sh").args(["-c", &format!("{script} wait")]));
    watch.until(|watch| {
        watch.calls_through(&web).len() >= 2 * REQUESTS && watch.calls_through(&store).len() >= 2 * REQUESTS
    });
    let (front, back) = (watch.calls_through(&web), watch.calls_through(&store));
    both_ends_agree(&front);
    both_ends_agree(&back);
    assert!(front.iter().all(|call| {
        let Call { session, facts, server_pid, .. } = call;
        (session.protocol, session.response_code, *server_pid) == (L7Protocol::Http1, 200, server.id())
            && facts.ends.ip_protocol == 0
    }));
    assert!(back.iter().all(|call| {
        let Call { session, client_pid, server_pid, .. } = call;
        let pids = (*client_pid, *server_pid);
        (session.protocol, &*session.request_type) == (L7Protocol::Redis, "INCR")
            && pids == (server.id(), store_server.id())
    }));
    // What a thread asks Redis belongs to what it was asked by nginx.
    let served = of(&front, ObservationPoint::ServerProcess);
    let traces: HashMap<_, _> =
        served.iter().map(|call| (call.session.request_resource[1..].to_owned(), call.traces[0])).collect();
    assert_eq!(traces.len(), REQUESTS);
    for call in of(&back, ObservationPoint::ClientProcess) {
        let key = call.session.request_resource.rsplit(' ').next().unwrap();
        assert_eq!(traces.get(key), Some(&call.traces[0]), "{call:#?}");
    }
    // And nginx asks for those who ask nginx.
    let fronted = of(&watch.calls_until(port, 2 * REQUESTS), ObservationPoint::ServerProcess);
    for call in of(&front, ObservationPoint::ClientProcess) {
        let twin =
            fronted.iter().find(|other| other.session.request_resource == call.session.request_resource);
        assert_eq!(twin.unwrap().traces[0], call.traces[0]);
    }
}

#[test]
fn redis_is_seen_by_its_own_client_through_a_unix_socket_as_root() {
    const TIMES: usize = 50;
    let folder = tempfile::tempdir().unwrap();
    let (server, path) = redis(folder.path());
    let mut watch = Watch::start(Settings::default());
    watch.until(|_| Path::new(&path).exists());
    watch.run(Command::new("redis-cli").args(["-s", &path, "-r", &TIMES.to_string(), "INCR", "seen"]));
    let increments = |watch: &Watch| -> Vec<Call> {
        let calls = watch.calls_through(&path).into_iter();
        calls.filter(|call| call.session.request_type == "INCR").collect()
    };
    watch.until(|watch| increments(watch).len() >= 2 * TIMES);
    let calls = increments(&watch);
    both_ends_agree(&calls);
    assert!(calls.iter().all(|call| call.server_pid == server.id()));
}

/// A connection by an abstract name with a process at each end, then datagrams that nobody decodes.
const PAIR: &str = r#"
import os, socket, sys
name = "\0" + sys.argv[1]
server = socket.socket(socket.AF_UNIX)
server.bind(name)
server.listen()
if os.fork() == 0:
    peer, _ = server.accept()
    for _ in range(int(sys.argv[2])):
        peer.recv(1000)
        peer.sendmsg([b"HTTP/1.1 204 No Content\r\n", b"\r\n"])
    os._exit(0)
client = socket.socket(socket.AF_UNIX)
client.connect(name)
for number in range(int(sys.argv[2])):
    os.write(client.fileno(), b"GET /%d HTTP/1.1\r\nHost: lo\r\n\r\n" % number)
    os.read(client.fileno(), 1000)
os.wait()
one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
one.send(b"GET /datagram HTTP/1.1\r\n\r\n")
other.recv(100)
"#;

fn pairs_are_seen(first_step: Step) {
    const REQUESTS: usize = 20;
    let mut watch = Watch::start(Settings { first_step, ..Settings::default() });
    let datagrams = watch.losses().unix_datagrams;
    let name = format!("metaflow-{first_step:?}-{}", std::process::id());
    watch.python(PAIR, &[&name, &REQUESTS.to_string()]);
    let path = format!("@{name}");
    watch.until(|watch| watch.calls_through(&path).len() >= 2 * REQUESTS);
    let calls = watch.calls_through(&path);
    assert_eq!(calls.len(), 2 * REQUESTS);
    both_ends_agree(&calls);
    assert!(calls.iter().all(|call| call.session.response_code == 204));
    assert!(watch.losses().unix_datagrams >= datagrams + 2);
}

#[test]
fn unix_sockets_are_seen_by_the_socket_layer_as_root() {
    if has_socket_tracepoints() {
        pairs_are_seen(Step::SocketLayer);
    }
}

#[test]
fn unix_sockets_are_seen_by_the_end_of_calls_as_root() {
    pairs_are_seen(Step::CallEnd);
}

#[test]
fn unix_sockets_are_seen_by_both_ends_of_calls_as_root() {
    pairs_are_seen(Step::CallBoth);
}
