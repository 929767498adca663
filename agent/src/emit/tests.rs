//! Tests of the encoder: what becomes of flows and sessions on the wire.

use std::collections::BTreeMap;

use metaflow_schema::enums::{
    CloseType, L7Protocol, L7Type, ObservationPoint, ResponseStatus, SyscallTraceSource,
};
use metaflow_wire::columns::Rows;
use proptest::prelude::*;

use super::*;
use crate::{
    flow::{Activity, Delay, Ends, FlowFacts, Traffic},
    session::{Session, SessionBox},
};

const BEGIN: u64 = 1_700_000_000_000_000;

fn facts(flow_id: u64, client: u8, port: u16) -> FlowFacts {
    FlowFacts {
        ends: Ends {
            client_ip: [10, 0, 0, client].into(),
            server_ip: [10, 0, 1, 1].into(),
            client_port: 40_000,
            server_port: port,
            ip_protocol: 6,
        },
        flow_id,
        interface_index: 2,
        client_mac: 1,
        server_mac: 2,
        vlan: 0,
        first_seen: BEGIN,
    }
}

fn session(time: u64, endpoint: &str, status: ResponseStatus, duration: Option<u64>) -> SessionBox {
    Box::new(Session {
        protocol: L7Protocol::Http1,
        l7_type: if duration.is_some() { L7Type::Session } else { L7Type::Request },
        start_time: time.saturating_sub(duration.unwrap_or(0)),
        end_time: time,
        response_duration: duration,
        version: "1.1",
        request_type: "GET".into(),
        request_domain: "shop".into(),
        request_resource: endpoint.into(),
        endpoint: endpoint.into(),
        request_id: 0,
        status,
        response_code: 200,
        response_exception: String::new(),
        response_result: String::new(),
        trace_id: String::new(),
        span_id: String::new(),
        parent_span_id: String::new(),
        x_request_id_request: String::new(),
        x_request_id_response: String::new(),
        user_agent: String::new(),
        referer: String::new(),
        http_proxy_client: String::new(),
        socket_path: String::new(),
        request_length: 10,
        response_length: 20,
        captured_request_byte: 10,
        captured_response_byte: 20,
        req_tcp_seq: 1,
        resp_tcp_seq: 2,
    })
}

fn report(facts: FlowFacts, second: u64, bytes: u64, close_type: CloseType) -> FlowReport {
    let rtt = Delay { sum: bytes, count: 1, max: u32::try_from(bytes).unwrap() };
    let tx = Traffic { packets: 1, bytes, l4_bytes: bytes / 2, ..Default::default() };
    FlowReport {
        facts,
        start_time: BEGIN + second * 1_000_000,
        end_time: BEGIN + (second + 1) * 1_000_000,
        activity: Activity { tx, rx: tx, rtt, syn: 1, ..Default::default() },
        total_tx: tx,
        total_rx: tx,
        l7_protocol: L7Protocol::Http1,
        syn_seq: 5,
        synack_seq: 6,
        is_new: second == 0,
        close_type,
    }
}

/// Rows, sum of a first figure, sum of a second, maximum of a third; by table.
type Totals = BTreeMap<&'static str, (u64, u64, u64, u32)>;

fn total32(column: &[u32]) -> u64 {
    column.iter().map(|value| u64::from(*value)).sum()
}

fn totals(chunks: &[Chunk]) -> Totals {
    let mut totals = Totals::new();
    for chunk in chunks {
        let (first, second, max) = match chunk.columns.rows.as_ref().unwrap() {
            Rows::L4FlowLog(rows) => {
                let performance = rows.performance.as_ref().unwrap();
                (rows.byte_tx.iter().sum(), total32(&performance.rtt_count), performance.rtt_max.iter().max())
            }
            Rows::L7FlowLog(rows) => {
                (rows.request_length.iter().sum(), rows.response_duration.iter().sum(), None)
            }
            Rows::Network(rows) => {
                let performance = rows.performance.as_ref().unwrap();
                (rows.byte_tx.iter().sum(), total32(&rows.flow_load), performance.rtt_max.iter().max())
            }
            Rows::Application(rows) => {
                (total32(&rows.request), rows.rrt_sum.iter().sum(), rows.rrt_max.iter().max())
            }
            Rows::InProcess(rows) => (rows.profile_value.iter().sum(), total32(&rows.pid), None),
            Rows::FileEvent(rows) => (rows.bytes.iter().sum(), rows.duration.iter().sum(), None),
            Rows::ProcessEvent(rows) => (total32(&rows.signal), rows.duration.iter().sum(), None),
        };
        let total = totals.entry(chunk.table.as_str_name()).or_default();
        total.0 += u64::from(chunk.rows);
        total.1 += first;
        total.2 += second;
        total.3 = total.3.max(max.copied().unwrap_or(0));
    }
    totals
}

fn run(config: Config, output: &mut Output) -> (Vec<Chunk>, Counters) {
    let mut emitter = Emitter::new(config);
    emitter.accept(output, BEGIN, &Nowhere);
    emitter.finish(BEGIN);
    assert!(emitter.is_empty());
    (emitter.take(), emitter.counters())
}

const METRICS: [&str; 4] = ["1S", "1M", "MAP_1S", "MAP_1M"];

proptest! {
    #[test]
    fn nothing_is_lost_or_counted_twice_in_any_table(
        sessions in prop::collection::vec((0u8..4, 0u64..200, 0usize..30, prop::option::of(0u64..5_000_000)), 0..60),
        seconds in prop::collection::vec((0u64..6, 0u64..200, 1u64..100_000), 0..60),
        keys in 1usize..20,
        rows in 1u32..10,
    ) {
        let mut output = Output::default();
        for (client, second, endpoint, duration) in &sessions {
            let time = BEGIN + second * 1_000_000;
            let made = session(time, &format!("/{endpoint}"), ResponseStatus::Normal, *duration);
            output.sessions.push((facts(1, *client, 80), made));
        }
        for (flow, second, bytes) in &seconds {
            let facts = facts(*flow, u8::try_from(*flow).unwrap(), 80);
            output.seconds.push(report(facts, *second, *bytes, CloseType::ForcedReport));
            output.logs.push(report(facts, *second, *bytes, CloseType::ForcedReport));
        }
        let config = Config { interval_keys: keys, batch_rows: rows, ..Config::default() };
        let (chunks, counters) = run(config, &mut output);
        let totals = totals(&chunks);

        let durations: u64 = sessions.iter().filter_map(|(.., duration)| *duration).sum();
        let slowest = sessions.iter().filter_map(|(.., duration)| *duration).max().unwrap_or(0);
        let bytes: u64 = seconds.iter().map(|(.., bytes)| bytes).sum();
        let greatest = seconds.iter().map(|(.., bytes)| *bytes).max().unwrap_or(0);
        for chunk in &chunks {
            prop_assert!(chunk.rows <= rows);
        }
        if !sessions.is_empty() {
            let log = totals["L7_FLOW_LOG"];
            prop_assert_eq!((log.0, log.2), (sessions.len() as u64, durations));
            for table in METRICS {
                let table = totals[format!("APPLICATION_{table}").as_str()];
                prop_assert_eq!((table.1, table.2, u64::from(table.3)), (sessions.len() as u64, durations, slowest));
            }
        }
        if !seconds.is_empty() {
            prop_assert_eq!(totals["L4_FLOW_LOG"].1, bytes);
            for table in METRICS {
                let table = totals[format!("NETWORK_{table}").as_str()];
                prop_assert_eq!((table.1, u64::from(table.3)), (bytes, greatest));
            }
            prop_assert_eq!(totals["NETWORK_1S"].2, seconds.len() as u64);
            let mut minutes: Vec<_> = seconds.iter().map(|(flow, second, _)| (flow, (BEGIN / 1_000_000 + second) / 60)).collect();
            minutes.sort_unstable();
            // Reports of a flow come in the order of time; only then is a flow counted once a minute.
            let sorted = seconds.windows(2).all(|pair| pair[0].1 <= pair[1].1);
            minutes.dedup();
            if sorted {
                prop_assert_eq!(totals["NETWORK_1M"].2, minutes.len() as u64);
            }
        }
        prop_assert_eq!(counters.sessions, sessions.len() as u64);
    }
}

#[test]
fn an_interval_waits_for_late_data_and_later_rows_still_go_out() {
    let mut emitter = Emitter::new(Config { batch_age: Duration::ZERO, ..Config::default() });
    let send = |emitter: &mut Emitter, offset: u64, now: u64| {
        let made = session(BEGIN + offset, "/", ResponseStatus::Normal, Some(100));
        let mut output = Output { sessions: vec![(facts(1, 1, 80), made)], ..Default::default() };
        emitter.accept(&mut output, BEGIN + now, &Nowhere);
    };
    let rows_1s = |emitter: &mut Emitter, now: u64| {
        emitter.tick(BEGIN + now, BEGIN + now);
        let chunks = emitter.take();
        totals(&chunks).get("APPLICATION_1S").map(|total| (total.0, total.1))
    };
    send(&mut emitter, 500_000, 500_000);
    assert_eq!(rows_1s(&mut emitter, 1_100_000), None, "over, but within the delay");
    send(&mut emitter, 900_000, 1_100_000);
    assert_eq!(rows_1s(&mut emitter, 2_500_000), None, "one tick makes the rows, the next cuts the batch");
    assert_eq!(rows_1s(&mut emitter, 2_600_000), Some((1, 2)));
    send(&mut emitter, 900_000, 5_000_000);
    emitter.tick(BEGIN + 5_000_000, BEGIN + 5_000_000);
    assert_eq!(rows_1s(&mut emitter, 5_100_000), Some((1, 1)), "late data is another row");
}

#[test]
fn errors_and_timeouts_are_counted_with_their_requests() {
    let mut output = Output::default();
    for (status, duration) in [
        (ResponseStatus::Normal, Some(1)),
        (ResponseStatus::ClientError, Some(2)),
        (ResponseStatus::ServerError, Some(3)),
        (ResponseStatus::Timeout, None),
    ] {
        output.sessions.push((facts(1, 1, 80), session(BEGIN, "/", status, duration)));
    }
    let (chunks, _) = run(Config::default(), &mut output);
    let chunk = chunks.iter().find(|chunk| chunk.table == Table::ApplicationMap1s).unwrap();
    let Some(Rows::Application(rows)) = &chunk.columns.rows else { panic!("{chunk:?}") };
    assert_eq!((&rows.request, &rows.response), (&vec![4], &vec![3]));
    assert_eq!((&rows.client_error, &rows.server_error, &rows.timeout), (&vec![1], &vec![1], &vec![1]));
    assert_eq!((&rows.rrt_sum, &rows.rrt_count, &rows.rrt_max), (&vec![6], &vec![3], &vec![3]));
    let endpoint = rows.endpoint[0] as usize;
    assert_eq!(chunk.columns.strings[endpoint], "/");
}

#[test]
fn one_sided_rows_leave_the_client_out_and_sum_over_clients() {
    let mut output = Output::default();
    for client in 1..=3 {
        output.seconds.push(report(facts(client.into(), client, 80), 0, 100, CloseType::Finish));
    }
    let (chunks, _) = run(Config::default(), &mut output);
    let rows_of = |table: Table| {
        let chunk = chunks.iter().find(|chunk| chunk.table == table).unwrap();
        let Some(Rows::Network(rows)) = chunk.columns.rows.clone() else { panic!("{chunk:?}") };
        rows
    };
    let one_sided = rows_of(Table::Network1s);
    assert_eq!((one_sided.byte_tx, one_sided.closed_flow), (vec![300], vec![3]));
    assert!(one_sided.endpoints.unwrap().client_ip.is_empty());
    assert_eq!(rows_of(Table::NetworkMap1s).byte_tx, [100, 100, 100]);
}

#[test]
fn too_many_keys_lose_details_and_not_counts() {
    let mut output = Output::default();
    for endpoint in 0..1_000 {
        let client = u8::try_from(endpoint % 200).unwrap();
        let made = session(BEGIN, &format!("/{endpoint}"), ResponseStatus::Normal, Some(1));
        output.sessions.push((facts(1 + endpoint, client, 80), made));
    }
    let (chunks, counters) = run(Config { interval_keys: 50, ..Config::default() }, &mut output);
    let (rows, requests, ..) = totals(&chunks)["APPLICATION_MAP_1S"];
    assert_eq!(requests, 1_000);
    assert!(rows <= 151, "{rows} rows");
    assert!(counters.collapsed >= 800, "{counters:?}");
}

struct Here;
impl Basis for Here {
    fn observation_point(&self, _ends: &Ends) -> ObservationPoint {
        ObservationPoint::Server
    }
    fn pids(&self, _ends: &Ends) -> (u32, u32) {
        (0, 77)
    }
}

#[test]
fn rows_carry_point_and_process() {
    let mut output = Output::default();
    output.logs.push(report(facts(1, 1, 80), 0, 100, CloseType::Finish));
    let mut emitter = Emitter::new(Config::default());
    emitter.accept(&mut output, BEGIN, &Here);
    emitter.finish(BEGIN);
    let chunks = emitter.take();
    let Some(Rows::L4FlowLog(rows)) = &chunks[0].columns.rows else { panic!("{chunks:?}") };
    let endpoints = rows.endpoints.as_ref().unwrap();
    assert_eq!(endpoints.server_pid, [77]);
    assert_eq!(endpoints.observation_point, [ObservationPoint::Server as u32]);
    assert!(endpoints.client_pid.is_empty(), "a column of defaults is left out");
    assert_eq!(rows.duration, [1_000_000]);
}

#[test]
fn long_texts_are_cut_at_a_character_and_counted() {
    let mut output = Output::default();
    let endpoint = "ä".repeat(300);
    output.sessions.push((facts(1, 1, 80), session(BEGIN, &endpoint, ResponseStatus::Normal, Some(1))));
    let (chunks, counters) = run(Config::default(), &mut output);
    let log = chunks.iter().find(|chunk| chunk.table == Table::L7FlowLog).unwrap();
    assert!(log.columns.strings.contains(&"ä".repeat(128)), "endpoint at 256 bytes");
    assert_eq!(counters.truncated, 2, "in the log and in the key");
}

#[test]
fn rows_that_share_long_texts_go_in_batches_that_nodes_take() {
    let mut output = Output::default();
    let statement = "x".repeat(4_000);
    for at in 0..2_000 {
        output.sessions.push((facts(at, 1, 80), session(BEGIN, &statement, ResponseStatus::Normal, Some(1))));
    }
    let (chunks, _) = run(Config::default(), &mut output);
    let log: Vec<_> = chunks.iter().filter(|chunk| chunk.table == Table::L7FlowLog).collect();
    assert_eq!(log.iter().map(|chunk| chunk.rows).sum::<u32>(), 2_000);
    for Chunk { rows, columns, .. } in log {
        let Some(Rows::L7FlowLog(log)) = &columns.rows else { panic!("{columns:?}") };
        let used =
            [&log.request_resource, &log.endpoint, &log.request_domain, &log.request_type, &log.version];
        let used = used.iter().flat_map(|column| column.iter());
        let used: usize = used.map(|index| columns.strings[*index as usize].len()).sum();
        let listed: usize = columns.strings.iter().map(String::len).sum();
        let taken = listed + metaflow_wire::shared_text_bytes_max(*rows);
        assert!(used > 100_000 && used <= taken, "{rows} rows, {used} bytes of {taken}");
    }
}

struct OwnServer;
impl Basis for OwnServer {
    fn observation_point(&self, _ends: &Ends) -> ObservationPoint {
        ObservationPoint::Local
    }
    fn pids(&self, ends: &Ends) -> (u32, u32) {
        (1, u32::from(ends.server_port))
    }
    fn is_own(&self, pid: u32) -> bool {
        pid == 8123
    }
}

#[test]
fn traffic_of_metaflow_itself_is_not_reported() {
    let mut output = Output::default();
    for (flow_id, port) in [(1, 8123), (2, 80)] {
        let facts = facts(flow_id, 1, port);
        output.sessions.push((facts, session(BEGIN, "/", ResponseStatus::Normal, Some(5))));
        output.logs.push(report(facts, 0, 100, CloseType::Finish));
        output.seconds.push(report(facts, 0, 100, CloseType::Finish));
    }
    let mut emitter = Emitter::new(Config::default());
    emitter.accept(&mut output, BEGIN, &OwnServer);
    let counters = emitter.counters();
    assert_eq!((counters.own, counters.sessions, counters.flows), (3, 1, 1));
    emitter.finish(BEGIN);
    let totals = totals(&emitter.take());
    assert_eq!(totals["APPLICATION_MAP_1S"].0, 1);
    assert_eq!(totals["NETWORK_MAP_1S"].0, 1);
}

#[test]
fn what_processes_do_beside_requests_becomes_rows_of_their_tables() {
    let mut emitter = Emitter::new(Config::default());
    let mut output = Output {
        stacks: vec![crate::profile::Row {
            pid: 7,
            process: "app".into(),
            doing: crate::events::host::Doing::Waiting,
            folded: "[t] app;main;poll".into(),
            value: 1_500,
            start: BEGIN,
            end: BEGIN + 5_000_000,
        }],
        files: vec![crate::incidents::FileRow {
            start: BEGIN,
            end: BEGIN + 20_000,
            pid: 7,
            thread: 8,
            thread_name: "app".to_owned(),
            event_type: "read",
            directory: "/data".to_owned(),
            file: "file".to_owned(),
            bytes: 4_096,
            duration: 20_000,
        }],
        lives: vec![crate::incidents::LifeRow {
            time: BEGIN,
            pid: 7,
            event_type: "exit",
            signal: 9,
            lived: 3,
            ..Default::default()
        }],
        ..Output::default()
    };
    emitter.accept(&mut output, BEGIN, &Nowhere);
    assert!(!emitter.is_empty());
    emitter.finish(BEGIN);
    let chunks = emitter.take();
    let expected = [
        ("FILE_EVENT", (1, 4_096, 20_000, 0)),
        ("IN_PROCESS", (1, 1_500, 7, 0)),
        ("PROCESS_EVENT", (1, 9, 3, 0)),
    ];
    assert_eq!(totals(&chunks).into_iter().collect::<Vec<_>>(), expected);
    for Chunk { columns, .. } in &chunks {
        let has = |text: &str| columns.strings.iter().any(|string| string == text);
        match columns.rows.as_ref().unwrap() {
            Rows::InProcess(_) => assert!(has("[t] app;main;poll") && has("off-cpu") && has("app")),
            Rows::FileEvent(_) => assert!(has("/data") && has("read")),
            _ => assert!(has("SIGKILL") && has("exit")),
        }
    }
}

#[test]
fn what_goes_through_a_unix_socket_is_of_this_host_and_names_both_processes_and_the_path() {
    let place = |place: u128| std::net::IpAddr::V6(place.into());
    let ends = Ends {
        client_ip: place(0xffff_8881_0000_0040),
        server_ip: place(0xffff_8881_0000_0080),
        client_port: 0,
        server_port: 0,
        ip_protocol: 0,
    };
    let call = |point| {
        let mut session = session(BEGIN, "/", ResponseStatus::Normal, Some(100));
        session.socket_path = "/run/web.sock".to_owned();
        Call {
            facts: FlowFacts { ends, ..facts(1, 1, 80) },
            point,
            client_pid: 3,
            server_pid: 4,
            threads: [0; 2],
            coroutines: [0; 2],
            traces: [0; 2],
            source: SyscallTraceSource::None,
            session,
        }
    };
    let calls = vec![call(ObservationPoint::ClientProcess), call(ObservationPoint::ServerProcess)];
    let mut output = Output { calls, ..Default::default() };
    let (chunks, _) = run(Config { sees_processes: true, ..Config::default() }, &mut output);
    let log = chunks.iter().find(|chunk| chunk.table == Table::L7FlowLog).unwrap();
    let Some(Rows::L7FlowLog(rows)) = &log.columns.rows else { panic!() };
    let of_rows = rows.endpoints.as_ref().unwrap();
    assert_eq!((&of_rows.client_pid, &of_rows.server_pid), (&vec![3, 3], &vec![4, 4]));
    assert!(of_rows.ip_protocol.iter().chain(&of_rows.server_port).all(|number| *number == 0));
    assert_eq!(log.columns.addresses, [vec![127, 0, 0, 1]]);
    let paths: Vec<_> = rows.socket_path.iter().map(|at| &*log.columns.strings[*at as usize]).collect();
    assert_eq!(paths, ["/run/web.sock"; 2]);
    // Both ends are seen, and it counts once.
    assert_eq!(totals(&chunks)["APPLICATION_MAP_1S"].1, 1);
}
