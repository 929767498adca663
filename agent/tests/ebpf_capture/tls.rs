//! Requests inside TLS, by OpenSSL in a server of Python, in curl, and in a program that has it inside.

use std::path::Path;
use std::process::Command;

use metaflow_agent::probes::Settings;
use metaflow_schema::enums::{L7Protocol, ObservationPoint};

use super::watch::{Served, Watch, free_port};

pub(crate) const TLS: &str = r#"
import http.server, ssl, sys, threading, time
time.sleep(float(sys.argv[3]))
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *arguments):
        pass
    def do_GET(self):
        body = b"x" * 30000
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_port, flush=True)
threading.Thread(target=sys.stdin.read).start()
threading.Thread(target=server.serve_forever, daemon=True).start()
"#;

/// A certificate for localhost in a folder of its own: certificate and key.
pub(crate) fn certificate() -> (tempfile::TempDir, [String; 2]) {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let paths =
        ["server.crt", "server.key"].map(|name| folder.path().join(name).to_str().unwrap().to_owned());
    std::fs::write(&paths[0], made.cert.pem()).unwrap();
    std::fs::write(&paths[1], made.signing_key.serialize_pem()).unwrap();
    (folder, paths)
}

#[test]
fn requests_inside_tls_are_seen_at_both_ends_as_root() {
    let (_folder, [certificate, key]) = certificate();
    let mut watch = Watch::start(Settings::default());
    // The server begins after the agent, and loads the library a second later.
    let mut server = watch.serve(TLS, &[&certificate, &key, "1"]);
    let port = server.line().parse::<u16>().unwrap();
    let urls: Vec<String> = (0..10).map(|number| format!("https://localhost:{port}/{number}")).collect();
    // One connection for all of them.
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--fail", "--http1.1", "--output", "/dev/null", "--cacert", &certificate]);
    for url in &urls {
        curl.args(["--output", "/dev/null", url]);
    }
    // The first connection may come before the library of a new program was found; a user's next one does not.
    watch.wait_for_libraries(&server);
    watch.run(&mut curl);
    let calls = watch.calls_until(port, 20);
    for point in [ObservationPoint::ServerProcess, ObservationPoint::ClientProcess] {
        let mut paths: Vec<_> = calls
            .iter()
            .filter(|call| call.point == point)
            .map(|call| &call.session.request_resource)
            .collect();
        paths.sort_unstable();
        let expected: Vec<_> = (0..10).map(|number| format!("/{number}")).collect();
        assert!(paths.iter().copied().eq(&expected), "{point:?} {paths:?}");
    }
    for call in &calls {
        assert_eq!(call.server_pid, server.id());
        assert_eq!((call.session.response_code, call.session.protocol), (200, L7Protocol::Http1));
        let twin = calls.iter().find(|other| {
            other.point != call.point && other.session.request_resource == call.session.request_resource
        });
        assert_eq!(call.session.req_tcp_seq, twin.unwrap().session.req_tcp_seq, "{call:#?}");
    }
}

/// Builds the C program that is a client, by these flags.
fn build(flags: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ebpf_capture/static_tls.c");
    let output = Command::new("gcc")
        .args(["-O1", "-o"])
        .arg(folder.path().join("client"))
        .arg(source)
        .args(flags)
        .args(["-lssl", "-lcrypto"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    folder
}

#[test]
fn a_static_program_in_a_root_of_its_own_is_seen_and_leaves_nothing_behind_as_root() {
    const REQUESTS: usize = 10;
    let (_folder, [certificate, key]) = certificate();
    // It needs nothing else in its root.
    let root = build(&["-static"]);
    let mut watch = Watch::start(Settings::default());
    let mut server = watch.serve(TLS, &[&certificate, &key, "0"]);
    let port = server.line().parse::<u16>().unwrap();
    watch.wait_for_libraries(&server);
    let mut command = Command::new("unshare");
    command.args(["--mount", "chroot", root.path().to_str().unwrap(), "/client"]);
    let mut client = Served::start(command.args([&port.to_string(), &REQUESTS.to_string()]));
    assert_eq!(client.line(), "ready");
    watch.wait_for_libraries(&client);
    // Two pairs of functions, with a probe at both ends of each.
    assert_eq!(watch.probes_below(root.path()), 8);
    let others = watch.other_descriptors();
    // Its file is gone meanwhile, as after an upgrade.
    std::fs::remove_file(root.path().join("client")).unwrap();
    client.say("go");
    let calls = watch.calls_until(port, 2 * REQUESTS);
    let of_client = calls.iter().filter(|call| {
        call.point == ObservationPoint::ClientProcess
            && call.client_pid == client.id()
            && call.session.response_code == 200
    });
    assert_eq!(of_client.count(), REQUESTS);
    drop(client);
    watch.until(|watch| watch.probes_below(root.path()) == 0 && watch.other_descriptors() == others);
}

/// The library that Debian makes of Android's BoringSSL.
#[test]
fn requests_inside_tls_of_boringssl_are_seen_as_root() {
    const REQUESTS: usize = 10;
    const FOLDER: &str = "/usr/lib/x86_64-linux-gnu/android";
    let (_folder, [certificate, key]) = certificate();
    let flags = ["-I/usr/include/android".to_owned(), format!("-L{FOLDER}"), format!("-Wl,-rpath,{FOLDER}")];
    let program = build(&flags.each_ref().map(String::as_str));
    let mut watch = Watch::start(Settings::default());
    let mut server = watch.serve(TLS, &[&certificate, &key, "0"]);
    let port = server.line().parse::<u16>().unwrap();
    watch.wait_for_libraries(&server);
    let mut command = Command::new(program.path().join("client"));
    let mut client = Served::start(command.args([&port.to_string(), &REQUESTS.to_string()]));
    assert_eq!(client.line(), "ready");
    watch.wait_for_libraries(&client);
    // One pair of functions, with a probe at both ends of each.
    assert_eq!(watch.probes_below(Path::new(FOLDER)), 4);
    client.say("go");
    let calls = watch.calls_until(port, 2 * REQUESTS);
    let asked = calls.iter().filter(|call| {
        call.point == ObservationPoint::ClientProcess
            && call.client_pid == client.id()
            && call.session.response_code == 200
    });
    assert_eq!(asked.count(), REQUESTS);
}

/// nginx with TLS, each of its workers a fork.
#[test]
fn nginx_is_seen_inside_tls_as_root() {
    const REQUESTS: usize = 10;
    let (folder, [certificate, key]) = certificate();
    let port = free_port();
    let root = folder.path().to_str().unwrap();
    let configuration = format!(
        "daemon off; pid {root}/pid; error_log stderr; worker_processes 2; user root;
        events {{ worker_connections 64; }}
        http {{ access_log off; client_body_temp_path {root}; proxy_temp_path {root}; fastcgi_temp_path {root};
        uwsgi_temp_path {root}; scgi_temp_path {root};
        server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {certificate}; ssl_certificate_key {key};
        location / {{ return 204; }} }} }}"
    );
    let file = folder.path().join("nginx.conf");
    std::fs::write(&file, configuration).unwrap();
    let mut watch = Watch::start(Settings::default());
    let server = Served::start(Command::new("nginx").args(["-p", root, "-e", "stderr", "-c"]).arg(&file));
    watch.wait_for_libraries(&server);
    watch.until(|_| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    for number in 0..REQUESTS {
        let url = format!("https://localhost:{port}/{number}");
        let mut curl = Command::new("curl");
        watch.run(curl.args(["--silent", "--fail", "--http1.1", "--cacert", &certificate, &url]));
    }
    let calls = watch.calls_until(port, 2 * REQUESTS);
    for call in calls.iter().filter(|call| call.point == ObservationPoint::ServerProcess) {
        assert_eq!((call.session.response_code, call.session.protocol), (204, L7Protocol::Http1));
        // A worker, and not the process that began it.
        assert!(call.server_pid != server.id() && call.server_pid != 0);
    }
    let served = calls.iter().filter(|call| call.point == ObservationPoint::ServerProcess);
    assert_eq!(served.count(), REQUESTS);
}
