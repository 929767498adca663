//! gRPC in Go: what is called, how it ended and in which trace, in plain text and inside TLS.

use std::path::Path;
use std::process::Command;

use metaflow_agent::sockets::Call;
use metaflow_schema::enums::{L7Protocol, ObservationPoint, ResponseStatus};

use super::go::{build, roomy};
use super::tls::certificate;
use super::watch::{Served, Watch};

const BEFORE: usize = 20;
const AFTER: usize = 60;
const ENDPOINT: &str = "/grpc.health.v1.Health/Check";

/// The number of a call, which is its trace; what is said of it is right.
fn number(call: &Call) -> usize {
    let session = &call.session;
    let said = (session.protocol, &*session.request_type, &*session.endpoint);
    assert_eq!(said, (L7Protocol::Grpc, "Check", ENDPOINT), "{call:#?}");
    assert_eq!(session.trace_id[16..], session.span_id);
    let number = usize::from_str_radix(&session.trace_id, 16).unwrap() - 1;
    // Every third service is not known to the server.
    let not_found = number % 3 == 2;
    let expected = if not_found { (5, ResponseStatus::ClientError) } else { (0, ResponseStatus::Normal) };
    assert_eq!((session.response_code, session.status), expected, "{call:#?}");
    number
}

/// Server and client; the client makes its first calls before it says "asked".
fn programs(program: &Path, files: [&str; 2]) -> (Served, Served, u16) {
    let mut server = Served::start(Command::new(program).args(["serve", files[0], files[1]]));
    let port = server.line().parse::<u16>().unwrap();
    let (before, after) = (BEFORE.to_string(), AFTER.to_string());
    let address = format!("localhost:{port}");
    let client = Served::start(Command::new(program).args(["ask", &address, files[0], &before, &after]));
    (server, client, port)
}

fn all_is_known(is_tls: bool) {
    let (_folder, program) = build("grpc", &[]);
    let (_certificates, [certificate, key]) = certificate();
    let files = if is_tls { [certificate.as_str(), &key] } else { [""; 2] };
    let mut watch = Watch::start(roomy());
    // One client that ends, so that its file is known when the one that counts begins.
    let (_first, mut known, _) = programs(&program, files);
    assert_eq!(known.line(), "asked");
    watch.wait_for_libraries(&known);
    let (server, mut client, port) = programs(&program, files);
    watch.wait_for_libraries(&server);
    assert_eq!(client.line(), "asked");
    client.say("go");
    let calls = watch.calls_until(port, 2 * (BEFORE + AFTER));
    for point in [ObservationPoint::ServerProcess, ObservationPoint::ClientProcess] {
        let mut numbers: Vec<usize> = calls.iter().filter(|call| call.point == point).map(number).collect();
        numbers.sort_unstable();
        assert!(numbers.iter().copied().eq(0..BEFORE + AFTER), "{point:?} {numbers:?}");
    }
}

#[test]
fn calls_of_grpc_in_go_are_known_with_their_traces_as_root() {
    all_is_known(false);
}

#[test]
fn calls_of_grpc_in_go_are_known_inside_tls_as_root() {
    all_is_known(true);
}
