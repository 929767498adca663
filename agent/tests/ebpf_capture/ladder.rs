//! Every step of the ladder that this kernel has, one after another made the best one, and packets alone: the same rows come out.

use std::process::Command;
use std::time::{Duration, Instant};

use metaflow_agent::capture::{LiveConfig, LiveSource, Source};
use metaflow_agent::flow::{self, FlowTable, Output};
use metaflow_agent::packet::decode;
use metaflow_agent::probes::host::{EventSettings, HostProbes, ProfileSettings};
use metaflow_agent::probes::{Settings, Step, Verified};
use metaflow_agent::session::Session;
use metaflow_agent::sockets::Call;
use metaflow_schema::enums::ObservationPoint;

use super::watch::{Watch, steps};
use super::{INSIDE, PAIR};

const REQUESTS: usize = 20;

/// What a row says: path, code, sequence numbers of request and response.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    number: u32,
    code: i32,
    request: u32,
    response: u32,
}

impl Row {
    fn new(session: &Session) -> Self {
        Self {
            number: session.request_resource.trim_start_matches('/').parse().unwrap(),
            code: session.response_code,
            request: session.req_tcp_seq,
            response: session.resp_tcp_seq,
        }
    }
}

fn sorted(rows: impl Iterator<Item = Row>) -> Vec<Row> {
    let mut rows: Vec<Row> = rows.collect();
    rows.sort();
    rows
}

/// What packets say of the requests to a port.
fn from_packets(source: &mut LiveSource, port: u16) -> Vec<Row> {
    let mut table = FlowTable::new(flow::Config::default());
    let mut output = Output::default();
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        source
            .poll(Duration::from_millis(100), &mut |frame| {
                if let Ok(packet) = decode(frame) {
                    table.packet(&packet, &mut output);
                }
            })
            .unwrap();
        let of_port = output.sessions.iter().filter(|(facts, _)| facts.ends.server_port == port);
        let rows = sorted(of_port.map(|(_, session)| Row::new(session)));
        if rows.len() >= REQUESTS {
            return rows;
        }
        assert!(Instant::now() < deadline, "{rows:?}: {:?}", source.statistics());
    }
}

/// Where the numbers of a connection begin differs from one to the next.
fn from_zero(rows: &[Row]) -> Vec<Row> {
    let (request, response) = (rows[0].request, rows[0].response);
    let moved = rows.iter().map(|row| Row {
        request: row.request.wrapping_sub(request),
        response: row.response.wrapping_sub(response),
        ..row.clone()
    });
    moved.collect()
}

fn check(step: Step) -> Vec<Row> {
    let mut watch = Watch::start(Settings { first_step: step, tls: false, ..Settings::default() });
    assert_eq!(watch.step(), step);
    let config = LiveConfig { interfaces: vec!["lo".to_owned()], ..LiveConfig::default() };
    let mut packets = LiveSource::open(config).unwrap();
    let port: u16 = watch.python(PAIR, &["127.0.0.1", &REQUESTS.to_string()]).trim().parse().unwrap();
    let calls = watch.calls_until(port, 2 * REQUESTS);
    let expected = from_packets(&mut packets, port);
    for point in [ObservationPoint::ClientProcess, ObservationPoint::ServerProcess] {
        let of_point = calls.iter().filter(|call| call.point == point);
        assert_eq!(sorted(of_point.map(|call| Row::new(&call.session))), expected, "{step:?} {point:?}");
    }
    let is_told = |call: &Call| call.client_pid != 0 && call.client_pid == call.server_pid;
    assert!(calls.iter().all(is_told), "{step:?} {calls:#?}");
    assert!(calls.iter().all(|call| !call.threads.contains(&0)), "{step:?} {calls:#?}");
    from_zero(&expected)
}

#[test]
fn every_step_gives_the_same_rows_as_root() {
    if std::env::var_os(INSIDE).is_none() {
        // Where no other test sends anything: packets that nobody reads meanwhile would take the room of those that count.
        let script = "ip link set lo up && exec \"$0\" --exact ladder::every_step_gives_the_same_rows_as_root --nocapture";
        let mut command = Command::new("unshare");
        command.args(["-n", "sh", "-c", script]).arg(std::env::current_exe().unwrap());
        assert!(command.env(INSIDE, "1").status().unwrap().success());
        return;
    }
    let rows: Vec<_> = steps().map(|step| (step, check(step))).collect();
    assert!(rows.len() >= 2);
    for (step, rows_of_step) in &rows {
        assert_eq!(*rows_of_step, rows[0].1, "{step:?}");
        assert_eq!(rows_of_step.iter().map(|row| row.number).max(), Some(REQUESTS as u32 - 1));
    }
}

/// Old verifiers give up after a million instructions, and look at more of a program than new ones do.
const INSTRUCTIONS_MAX: u32 = 100_000;

#[test]
fn the_verifier_is_soon_done_with_each_program_as_root() {
    let mut all = Vec::new();
    for first_step in steps() {
        let watch = Watch::start(Settings { first_step, ..Settings::default() });
        all.extend(watch.verified().into_iter().map(|verified| (first_step.name(), verified)));
    }
    let stacks = ProfileSettings { on_cpu: true, off_cpu: true, frequency: 1, only_listed: false };
    let incidents = EventSettings { processes: true, files_from_us: Some(u32::MAX) };
    for (probes, report) in [HostProbes::profile(&stacks), HostProbes::events(&incidents)] {
        let probes = probes.unwrap_or_else(|| panic!("{report:#?}"));
        all.extend(probes.verified().into_iter().map(|verified| ("host", verified)));
    }
    // Linux 5.10 and 5.15 do not tell.
    for (of, Verified { program, instructions }) in &all {
        eprintln!("{instructions:>7} {program} ({of})");
    }
    let long: Vec<_> = all.iter().filter(|(_, verified)| verified.instructions > INSTRUCTIONS_MAX).collect();
    assert!(long.is_empty(), "{long:#?}");
}
