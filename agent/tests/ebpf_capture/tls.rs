//! Requests inside TLS, by OpenSSL in a server of Python and in curl.

use std::process::Command;

use metaflow_agent::probes::Settings;
use metaflow_schema::enums::{L7Protocol, ObservationPoint};

use super::watch::Watch;

const TLS: &str = r#"
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
fn certificate() -> (tempfile::TempDir, [String; 2]) {
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
