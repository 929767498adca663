//! Requests inside TLS of a Rust program (rustls): this test's own program serves and asks by tokio-rustls, its peers have OpenSSL.

use std::path::Path;
use std::process::Command;

use metaflow_agent::probes::Settings;
use metaflow_schema::enums::{L7Protocol, ObservationPoint};
use metaflow_tls::{Client, ClientFiles, Identity, Server, ServerFiles};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::tls::{TLS, certificate};
use super::watch::{Served, Watch};

/// Says that a test runs as the program that is looked at: what it does, then certificate, key and port.
const INSIDE: &str = "METAFLOW_TEST_RUSTLS";
const REQUESTS: usize = 20;
const HTTP: &[u8] = b"http/1.1";

/// This program again, at one of its tests.
fn inside(test: &str, arguments: &[&str]) -> Served {
    run_inside(&std::env::current_exe().unwrap(), test, arguments)
}

fn run_inside(program: &Path, test: &str, arguments: &[&str]) -> Served {
    let mut command = Command::new(program);
    command.args(["--exact", &format!("rust::{test}"), "--nocapture"]);
    Served::start(command.env(INSIDE, arguments.join(" ")))
}

/// What this program is to do, where it is the one that is looked at.
fn role() -> Option<Vec<String>> {
    let arguments = std::env::var(INSIDE).ok()?;
    Some(arguments.split(' ').map(str::to_owned).collect())
}

fn run(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(future);
}

/// Reads up to the end of a head; false where the stream ended.
async fn head(stream: &mut (impl AsyncRead + Unpin), into: &mut Vec<u8>) -> bool {
    into.clear();
    let mut buffer = [0; 512];
    while !into.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut buffer).await {
            Ok(length @ 1..) => into.extend_from_slice(&buffer[..length]),
            _ => return false,
        }
    }
    true
}

#[expect(clippy::print_stdout, reason = "the test that began this program reads it")]
async fn serve(certificate: &str, key: &str) {
    let identity = Identity { certificate: certificate.into(), key: key.into() };
    let server = Server::load(ServerFiles { identity, client_authority: None }, HTTP).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("port {}", listener.local_addr().unwrap().port());
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let server = server.clone();
        // Who shakes hands goes on with what came along, which is known by that.
        tokio::spawn(async move {
            let mut stream = server.accept(stream).await.unwrap();
            let mut request = Vec::new();
            while head(&mut stream, &mut request).await {
                answer(&mut stream).await;
            }
        });
    }
}

/// In two parts, of which the second one is long.
async fn answer(stream: &mut (impl AsyncWrite + Unpin)) {
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 30000\r\n\r\n").await.unwrap();
    stream.write_all(&[b'x'; 30_000]).await.unwrap();
    stream.flush().await.unwrap();
}

async fn ask(authority: &str, port: u16) {
    let client = Client::load(ClientFiles { authority: authority.into(), identity: None }, HTTP).unwrap();
    let mut stream = client.connect("localhost", port).await.unwrap();
    let mut response = Vec::new();
    for number in 0..REQUESTS {
        let request = format!("GET /{number} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        assert!(head(&mut stream, &mut response).await);
        let end = response.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
        let mut rest = vec![0; 30_000 - (response.len() - end)];
        stream.read_exact(&mut rest).await.unwrap();
    }
}

/// Both ends saw all requests, in the same places of the stream.
fn all_are_seen(watch: &mut Watch, port: u16) {
    let calls = watch.calls_until(port, 2 * REQUESTS);
    for point in [ObservationPoint::ServerProcess, ObservationPoint::ClientProcess] {
        let mut numbers: Vec<usize> = calls
            .iter()
            .filter(|call| call.point == point)
            .map(|call| call.session.request_resource.trim_start_matches('/').parse().unwrap())
            .collect();
        numbers.sort_unstable();
        assert!(numbers.iter().copied().eq(0..REQUESTS), "{point:?} {numbers:?}");
    }
    for call in &calls {
        assert_eq!((call.session.response_code, call.session.protocol), (200, L7Protocol::Http1));
        assert!(call.session.response_duration.is_some(), "{call:#?}");
        let twin = calls.iter().find(|other| {
            other.point != call.point && other.session.request_resource == call.session.request_resource
        });
        // The first request may be read together with the end of the handshake, whose number it then has.
        if call.session.request_resource != "/0" {
            assert_eq!(call.session.req_tcp_seq, twin.unwrap().session.req_tcp_seq, "{call:#?} {twin:#?}");
        }
    }
}

#[test]
fn a_server_with_rustls_is_seen_inside_tls_as_root() {
    if let Some(arguments) = role() {
        return run(serve(&arguments[0], &arguments[1]));
    }
    let (_folder, [certificate, key]) = certificate();
    let mut watch = Watch::start(Settings::default());
    // So that the library of the client is known before its first request.
    let other = watch.serve(TLS, &[&certificate, &key, "0"]);
    watch.wait_for_libraries(&other);
    let mut server = inside("a_server_with_rustls_is_seen_inside_tls_as_root", &[&certificate, &key]);
    let port = port(&mut server);
    watch.wait_for_libraries(&server);
    watch.run(&mut curl(port, &certificate));
    all_are_seen(&mut watch, port);
}

/// Where a server listens that is this program.
fn port(server: &mut Served) -> u16 {
    loop {
        if let Some(port) = server.line().split("port ").nth(1) {
            return port.parse().unwrap();
        }
    }
}

fn curl(port: u16, certificate: &str) -> Command {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--fail", "--http1.1", "--cacert", certificate]);
    for number in 0..REQUESTS {
        curl.args(["--output", "/dev/null", &format!("https://localhost:{port}/{number}")]);
    }
    curl
}

/// Without names of functions nothing can be probed, so it is said that something is not seen.
#[test]
fn a_stripped_program_with_rustls_is_counted_as_unseen_as_root() {
    let (folder, [certificate, key]) = certificate();
    let program = folder.path().join("stripped");
    let mut strip = Command::new("strip");
    strip.arg("-o").arg(&program).arg(std::env::current_exe().unwrap());
    assert!(strip.status().unwrap().success());
    let mut watch = Watch::start(Settings::default());
    let other = watch.serve(TLS, &[&certificate, &key, "0"]);
    watch.wait_for_libraries(&other);
    let test = "a_server_with_rustls_is_seen_inside_tls_as_root";
    let mut server = run_inside(&program, test, &[&certificate, &key]);
    let port = port(&mut server);
    watch.run(&mut curl(port, &certificate));
    // curl's library has names.
    let calls = watch.calls_until(port, REQUESTS);
    assert!(calls.iter().all(|call| call.point == ObservationPoint::ClientProcess), "{calls:#?}");
    watch.until(|watch| watch.dark().contains(&server.id()));
    assert_eq!(watch.probes_below(folder.path()), 0);
}

#[test]
fn a_client_with_rustls_is_seen_inside_tls_as_root() {
    if let Some(arguments) = role() {
        // The file is found before it speaks.
        println!("role");
        std::io::stdin().read_line(&mut String::new()).unwrap();
        return run(ask(&arguments[0], arguments[1].parse().unwrap()));
    }
    let (_folder, [certificate, key]) = certificate();
    let mut watch = Watch::start(Settings::default());
    let mut server = watch.serve(TLS, &[&certificate, &key, "0"]);
    let port = server.line().parse::<u16>().unwrap();
    let port_text = port.to_string();
    let mut client = inside("a_client_with_rustls_is_seen_inside_tls_as_root", &[&certificate, &port_text]);
    while !client.line().contains("role") {}
    watch.wait_for_libraries(&server);
    watch.wait_for_libraries(&client);
    client.say("go");
    all_are_seen(&mut watch, port);
}
