//! Programs in Go: requests inside their TLS, and what their goroutines ask.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use metaflow_agent::probes::Settings;
use metaflow_agent::sockets::Call;
use metaflow_schema::enums::{L7Protocol, ObservationPoint};

use super::tls::certificate;
use super::watch::{Served, Watch, free_port};

/// Where programs lie that were built before: in a system without Go.
const PROGRAMS: &str = "METAFLOW_TEST_PROGRAMS";

/// Builds a test program by the system's Go, whose packages of libraries lie where Debian puts them.
pub(crate) fn build(name: &str, flags: &[&str]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    if let Some(programs) = std::env::var_os(PROGRAMS) {
        return (folder, Path::new(&programs).join(name));
    }
    let program = folder.path().join(name);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/ebpf_capture/go/{name}.go"));
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("go-build");
    let output = Command::new("go")
        .args(["build", "-o", program.to_str().unwrap()])
        .args(flags)
        .arg(source)
        .envs([("GO111MODULE", "off"), ("GOPATH", "/usr/share/gocode"), ("GOFLAGS", "")])
        .env("GOCACHE", cache)
        .output()
        .expect("the package golang-go is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (folder, program)
}

/// Every request counts here, and other tests may keep the machine busy meanwhile.
pub(crate) fn roomy() -> Settings {
    Settings { ring_bytes: 64 << 20, ..Settings::default() }
}

/// A server of PostgreSQL with a folder of its own.
struct Database {
    port: u16,
    _server: Served,
    _folder: tempfile::TempDir,
}

impl Database {
    fn start(watch: &mut Watch) -> Self {
        let programs =
            std::fs::read_dir("/usr/lib/postgresql").unwrap().next().unwrap().unwrap().path().join("bin");
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        std::fs::create_dir(&data).unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        // It refuses to run as root.
        let run = |arguments: &[&str]| {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).args(arguments);
            command.current_dir("/");
            command
        };
        let data = data.to_str().unwrap();
        assert!(Command::new("chown").args(["postgres:postgres", data]).status().unwrap().success());
        let program = |name: &str| programs.join(name).to_str().unwrap().to_owned();
        let made = run(&[&program("initdb"), "-D", data, "--auth=trust", "--no-sync", "-U", "postgres"])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let port = free_port();
        let mut server = run(&[
            &program("postgres"),
            "-D",
            data,
            "-h",
            "127.0.0.1",
            "-p",
            &port.to_string(),
            "-k",
            data,
            "-F",
        ]);
        let server = Served::start(&mut server);
        let ready = || {
            let mut command = Command::new(program("pg_isready"));
            command.args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()]);
            command
        };
        watch.until(|_| ready().status().is_ok_and(|status| status.success()));
        Self { port, _server: server, _folder: folder }
    }

    fn dsn(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname=postgres sslmode=disable", self.port)
    }
}

/// The name of an order in a path or a statement: `3_17`.
fn order(call: &Call) -> Option<String> {
    let resource = &call.session.request_resource;
    let name = resource
        .strip_prefix("/order/")
        .or_else(|| resource.strip_prefix("/stock/"))
        .or_else(|| resource.rsplit_once("order_")?.1.rsplit_once('_').map(|(name, _)| name))?;
    Some(name.to_owned())
}

fn of(calls: Vec<Call>, point: ObservationPoint) -> Vec<Call> {
    calls.into_iter().filter(|call| call.point == point && order(call).is_some()).collect()
}

/// Every order with what it asked: all of it is there, and belongs to it.
fn orders_are_whole(watch: &mut Watch, front: u16, asked: &[(u16, usize)], orders: usize) {
    let served = |watch: &Watch| of(watch.calls_to(front), ObservationPoint::ServerProcess);
    let asking = |watch: &Watch, port| of(watch.calls_to(port), ObservationPoint::ClientProcess);
    watch.until(|watch| {
        served(watch).len() >= orders
            && asked.iter().all(|(port, each)| asking(watch, *port).len() >= each * orders)
    });
    let served = served(watch);
    assert_eq!(served.len(), orders);
    let mut traces = HashMap::new();
    for call in &served {
        assert_ne!(call.traces[0], 0, "{call:#?}");
        assert!(call.coroutines[0] != 0 && call.coroutines[0] >> 42 == u64::from(call.server_pid));
        assert!(traces.insert(order(call).unwrap(), call.traces[0]).is_none(), "seen twice: {call:#?}");
    }
    let mut numbers: Vec<u64> = traces.values().copied().collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), orders, "each order has a number of its own");
    for (port, each) in asked {
        let calls = asking(watch, *port);
        assert_eq!(calls.len(), each * orders);
        let wrong: Vec<&Call> =
            calls.iter().filter(|call| traces.get(&order(call).unwrap()) != Some(&call.traces[0])).collect();
        assert!(wrong.is_empty(), "{} of {}: {:#?}", wrong.len(), calls.len(), wrong[0]);
    }
}

fn goroutines_ask(flags: &[&str], is_tls: bool, http2: Option<&str>) {
    const CUSTOMERS: usize = 16;
    const ORDERS: usize = 40;
    let mut watch = Watch::start(roomy());
    let database = Database::start(&mut watch);
    let (_folder, program) = build("shop", flags);
    let (_certificates, [certificate, key]) = certificate();
    let shop = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.args(arguments).envs(http2.map(|on| ("SHOP_HTTP2", on)));
        command
    };
    let mut store = Served::start(&mut shop(&["store"]));
    let store_port = store.line().parse::<u16>().unwrap();
    let store_url = format!("http://127.0.0.1:{store_port}");
    let files = if is_tls { [certificate.as_str(), &key] } else { [""; 2] };
    let mut front = Served::start(&mut shop(&["serve", files[0], files[1], &store_url, &database.dsn()]));
    let port = front.line().parse::<u16>().unwrap();
    watch.wait_for_libraries(&store);
    watch.wait_for_libraries(&front);
    let url = format!("{}://127.0.0.1:{port}", if is_tls { "https" } else { "http" });
    watch.run(&mut shop(&["buy", &url, &CUSTOMERS.to_string(), &ORDERS.to_string()]));
    orders_are_whole(&mut watch, port, &[(store_port, 1), (database.port, 3)], CUSTOMERS * ORDERS);
    let questions = of(watch.calls_to(database.port), ObservationPoint::ClientProcess);
    assert!(questions.iter().all(|call| call.session.protocol == L7Protocol::PostgreSql));
}

#[test]
fn what_goroutines_ask_is_linked_to_the_request_as_root() {
    goroutines_ask(&[], false, None);
}

/// Without tables of symbols and debug information.
#[test]
fn a_stripped_go_program_is_seen_as_well_inside_tls_as_root() {
    goroutines_ask(&["-ldflags=-s -w"], true, None);
}

/// All customers share a connection, whose streams one goroutine reads for all the others.
#[test]
fn streams_of_http2_are_told_apart_in_go_as_root() {
    goroutines_ask(&[], true, Some("1"));
}

#[test]
fn requests_inside_tls_of_go_are_seen_at_both_ends_as_root() {
    const CUSTOMERS: usize = 4;
    const ORDERS: usize = 25;
    let mut watch = Watch::start(roomy());
    let (_folder, program) = build("shop", &[]);
    let (_certificates, [certificate, key]) = certificate();
    let mut store = Served::start(Command::new(&program).arg("store"));
    let store_url = format!("http://127.0.0.1:{}", store.line());
    let mut front = Served::start(Command::new(&program).args(["serve", &certificate, &key, &store_url, ""]));
    let port = front.line().parse::<u16>().unwrap();
    watch.wait_for_libraries(&front);
    let url = format!("https://127.0.0.1:{port}");
    // The customer is a new process of a known program: its first request is seen.
    watch.run(Command::new(&program).args(["buy", &url, &CUSTOMERS.to_string(), &ORDERS.to_string()]));
    let calls = watch.calls_until(port, 2 * CUSTOMERS * ORDERS);
    for point in [ObservationPoint::ServerProcess, ObservationPoint::ClientProcess] {
        let seen = of(calls.clone(), point);
        assert_eq!(seen.len(), CUSTOMERS * ORDERS, "{point:?} {calls:#?}");
    }
    for call in &calls {
        assert_eq!((call.session.response_code, call.session.protocol), (200, L7Protocol::Http1));
        assert!(call.session.response_duration.is_some());
        assert_eq!(call.server_pid, front.id());
        let twin =
            calls.iter().find(|other| other.point != call.point && order(other) == order(call)).unwrap();
        // A connection's first request may be read together with the end of the handshake, whose number it then has.
        let is_first = !calls.iter().any(|other| {
            other.facts.ends.client_port == call.facts.ends.client_port
                && order(other) != order(call)
                && other.session.start_time < call.session.start_time
        });
        if !is_first {
            assert_eq!(call.session.req_tcp_seq, twin.session.req_tcp_seq, "{call:#?} {twin:#?}");
        }
    }
}
