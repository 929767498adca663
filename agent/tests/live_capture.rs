//! Capture on the loopback interface, with real connections. Needs CAP_NET_RAW.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use metaflow_agent::capture::{Error, LiveConfig, LiveSource, Source};
use metaflow_agent::flow::{Config, FlowTable, Output};
use metaflow_agent::packet::decode;
use metaflow_schema::enums::CloseType;

const REQUEST: &[u8] = b"GET /live HTTP/1.1\r\nHost: lo\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";

/// The source, or none where the rights are missing.
fn open(test: &str, config: LiveConfig) -> Option<LiveSource> {
    match LiveSource::open(config) {
        Ok(source) => Some(source),
        Err(Error::Socket { source, .. }) if source.kind() == std::io::ErrorKind::PermissionDenied => {
            eprintln!("skipped {test}: no CAP_NET_RAW");
            None
        }
        Err(error) => panic!("{error:?}"),
    }
}

/// One request and response over a connection of its own; gives the server's port.
fn exchange(listener: &TcpListener) -> u16 {
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let mut buffer = [0; 100];
    client.write_all(REQUEST).unwrap();
    server.read_exact(&mut buffer[..REQUEST.len()]).unwrap();
    server.write_all(RESPONSE).unwrap();
    client.read_exact(&mut buffer[..RESPONSE.len()]).unwrap();
    drop(client);
    assert_eq!(server.read(&mut buffer).unwrap(), 0);
    listener.local_addr().unwrap().port()
}

/// Takes in packets until the flows to a port are closed.
fn flows_to(source: &mut LiveSource, table: &mut FlowTable, port: u16) -> Output {
    let mut output = Output::default();
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut now = 0;
    while Instant::now() < deadline {
        source
            .poll(Duration::from_millis(100), &mut |frame| {
                now = now.max(frame.timestamp);
                if let Ok(packet) = decode(frame) {
                    table.packet(&packet, &mut output);
                }
            })
            .unwrap();
        let seen = |output: &Output| output.sessions.iter().any(|(facts, _)| facts.ends.server_port == port);
        if seen(&output) {
            // Closed flows wait for late packets: let that time pass.
            table.tick(now + 10_000_000, &mut output);
            return output;
        }
    }
    panic!("no request to port {port} within 20 s: {:?}", source.statistics());
}

fn check_one_exchange(source: &mut LiveSource) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = exchange(&listener);
    let output = flows_to(source, &mut FlowTable::new(Config::default()), port);
    let mut logs = output.logs.iter().filter(|log| log.facts.ends.server_port == port);
    let log = logs.next().unwrap();
    assert_eq!(logs.next(), None, "each packet is counted once");
    assert_eq!((log.activity.syn, log.activity.synack, log.activity.rtt.count), (1, 1, 1));
    assert_eq!((log.activity.tx.retransmissions, log.activity.rx.retransmissions), (0, 0));
    assert_eq!(
        (log.activity.tx.l4_bytes, log.activity.rx.l4_bytes),
        (REQUEST.len() as u64, RESPONSE.len() as u64)
    );
    assert_eq!((log.activity.l7_request, log.activity.l7_response), (1, 1));
    assert_eq!(log.close_type, CloseType::Finish);
    assert_eq!(source.statistics().dropped, 0);
}

#[test]
fn a_connection_on_loopback_is_seen_once() {
    let config =
        LiveConfig { interfaces: vec!["lo".to_owned(), "absent0".to_owned()], ..LiveConfig::default() };
    let Some(mut source) = open("a_connection_on_loopback_is_seen_once", config) else { return };
    assert_eq!(source.interfaces().collect::<Vec<_>>(), ["lo"]);
    check_one_exchange(&mut source);
}

#[test]
fn all_interfaces_include_loopback() {
    let Some(mut source) = open("all_interfaces_include_loopback", LiveConfig::default()) else { return };
    check_one_exchange(&mut source);
}

#[test]
fn excluded_ports_stay_in_the_kernel() {
    let [own, other] = [0, 0].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    let excluded = own.local_addr().unwrap().port();
    let config = LiveConfig { excluded_ports: vec![9, excluded], ..LiveConfig::default() };
    let Some(mut source) = open("excluded_ports_stay_in_the_kernel", config) else { return };
    exchange(&own);
    // The same port on IPv6, where the host has that.
    if let Ok(own) = TcpListener::bind(("::1", excluded)) {
        exchange(&own);
    }
    let port = exchange(&other);
    let output = flows_to(&mut source, &mut FlowTable::new(Config::default()), port);
    assert!(output.logs.iter().any(|log| log.facts.ends.server_port == port));
    assert!(output.logs.iter().all(|log| log.facts.ends.server_port != excluded), "{:#?}", output.logs);
}

/// Says that a test runs in the network namespace that it made for itself.
const INSIDE: &str = "METAFLOW_TEST_NAMESPACE";

#[test]
fn named_interfaces_may_come_and_go() {
    const TEST: &str = "named_interfaces_may_come_and_go";
    let run = |program: &str, arguments: &[&str]| {
        Command::new(program).args(arguments).env(INSIDE, "1").status().is_ok_and(|status| status.success())
    };
    if std::env::var_os(INSIDE).is_none() {
        if !run("unshare", &["--net", "ip", "link", "add", "mf0", "type", "veth", "peer", "name", "mf1"]) {
            eprintln!("skipped {TEST}: no right to make a network namespace, or no `ip`");
            return;
        }
        let program = std::env::current_exe().unwrap();
        assert!(run("unshare", &["--net", program.to_str().unwrap(), "--exact", TEST, "--nocapture"]));
        return;
    }
    let ip =
        |arguments: &str| assert!(run("ip", &arguments.split(' ').collect::<Vec<_>>()), "ip {arguments}");
    let wait_for = |source: &mut LiveSource, names: &[&str]| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !source.interfaces().eq(names.iter().copied()) {
            assert!(Instant::now() < deadline, "{names:?} {:?}", source.interfaces().collect::<Vec<_>>());
            source.poll(Duration::from_millis(50), &mut |_| {}).unwrap();
        }
    };
    ip("link set lo up");
    let interfaces = vec!["lo".to_owned(), "mf0".to_owned()];
    let mut source = open(TEST, LiveConfig { interfaces, ..LiveConfig::default() }).unwrap();
    for _ in 0..2 {
        wait_for(&mut source, &["lo"]);
        ip("link add mf0 type veth peer name mf1");
        ip("link set mf0 up");
        wait_for(&mut source, &["lo", "mf0"]);
        ip("link set mf0 down");
        check_one_exchange(&mut source);
        ip("link del mf0");
    }
    wait_for(&mut source, &["lo"]);
}
