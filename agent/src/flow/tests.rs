//! Rules of the flow table on small lists of packets.

use std::net::{IpAddr, Ipv4Addr};

use metaflow_schema::enums::{CloseType, L7Protocol};

use super::*;
use crate::packet::flags::{ACK, FIN, PSH, RST, SYN};
use crate::packet::{Tcp, TcpOptions};

const START: u64 = 1_700_000_040_000_000;
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9));
const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const SYNACK: u8 = SYN | ACK;

static PAYLOAD: [u8; 4096] = [b'x'; 4096];

fn packet(
    at: u64,
    from_client: bool,
    ports: (u16, u16),
    transport: Option<Tcp>,
    length: usize,
) -> Packet<'static> {
    let (source, destination) = if from_client { (CLIENT, SERVER) } else { (SERVER, CLIENT) };
    let (source_port, destination_port) = if from_client { ports } else { (ports.1, ports.0) };
    let transport = match transport {
        Some(tcp) => Transport::Tcp(Tcp { source_port, destination_port, ..tcp }),
        None => Transport::Udp { source_port, destination_port },
    };
    Packet {
        timestamp: START + at,
        interface_index: 2,
        vlan: 0,
        source_mac: if from_client { 0xc } else { 0x5 },
        destination_mac: if from_client { 0x5 } else { 0xc },
        source,
        destination,
        transport,
        payload: &PAYLOAD[..length],
        payload_length: length as u32,
        wire_length: length as u32 + 54,
    }
}

fn tcp(at: u64, from_client: bool, flags: u8, seq: u32, ack: u32, length: usize) -> Packet<'static> {
    let options = TcpOptions::default();
    let header = Tcp { source_port: 0, destination_port: 0, seq, ack, flags, window: 100, options };
    packet(at, from_client, (40_000, 80), Some(header), length)
}

fn up(at: u64, flags: u8, seq: u32, ack: u32, length: usize) -> Packet<'static> {
    tcp(at, true, flags, seq, ack, length)
}

fn down(at: u64, flags: u8, seq: u32, ack: u32, length: usize) -> Packet<'static> {
    tcp(at, false, flags, seq, ack, length)
}

fn handshake() -> Vec<Packet<'static>> {
    vec![up(0, SYN, 100, 0, 0), down(300, SYNACK, 500, 101, 0), up(500, ACK, 101, 501, 0)]
}

fn run_with(config: Config, packets: &[Packet<'_>]) -> (Output, Counters) {
    let mut table = FlowTable::new(config);
    let mut output = Output::default();
    for packet in packets {
        table.packet(packet, &mut output);
    }
    table.finish(&mut output);
    assert!(table.is_empty());
    let totals = |reports: &[FlowReport]| {
        let mut sum = Activity::default();
        reports.iter().for_each(|report| sum.merge(&report.activity));
        sum
    };
    assert_eq!(totals(&output.seconds), totals(&output.logs), "seconds and logs tell the same");
    (output, table.counters())
}

fn run(packets: &[Packet<'_>]) -> Output {
    run_with(Config::default(), packets).0
}

/// The one log of a list of packets that is one flow within one minute.
fn single(packets: &[Packet<'_>]) -> FlowReport {
    let output = run(packets);
    assert_eq!(output.logs.len(), 1, "{:#?}", output.logs);
    output.logs[0]
}

fn delay(sum: u64, count: u32, max: u32) -> Delay {
    Delay { sum, count, max }
}

#[test]
fn a_connection_is_measured_from_handshake_to_close() {
    let mut packets = handshake();
    packets.extend([
        up(1_000, PSH | ACK, 101, 501, 80),
        down(1_200, ACK, 501, 181, 0),
        down(4_000, PSH | ACK, 501, 181, 200),
        up(4_100, ACK, 181, 701, 0),
        up(9_000, PSH | ACK, 181, 701, 20),
        down(9_500, PSH | ACK, 701, 201, 30),
        up(9_700, FIN | ACK, 201, 731, 0),
        down(9_800, FIN | ACK, 731, 202, 0),
        up(9_900, ACK, 202, 732, 0),
    ]);
    let log = single(&packets);
    let activity = log.activity;
    assert_eq!(log.close_type, CloseType::Finish);
    assert_eq!((log.start_time, log.end_time), (START, START + 9_900));
    assert_eq!((log.facts.ends.client_ip, log.facts.ends.client_port), (CLIENT, 40_000));
    assert_eq!((log.facts.client_mac, log.facts.server_mac), (0xc, 0x5));
    assert_eq!((log.syn_seq, log.synack_seq, log.is_new), (100, 500, true));
    assert_eq!((activity.rtt_server, activity.rtt_client), (delay(300, 1, 300), delay(200, 1, 200)));
    assert_eq!(activity.rtt, delay(500, 1, 500));
    assert_eq!(activity.srt, delay(200, 1, 200));
    assert_eq!(activity.art, delay(3_500, 2, 3_000));
    assert_eq!(activity.cit, delay(5_000, 1, 5_000));
    assert_eq!((activity.tx.packets, activity.tx.l4_bytes), (7, 100));
    assert_eq!((activity.rx.packets, activity.rx.l4_bytes, activity.rx.bytes), (5, 230, 230 + 5 * 54));
    assert_eq!(activity.tx.tcp_flags, SYN | ACK | PSH | FIN);
    assert_eq!((activity.syn, activity.synack, activity.retrans_syn, activity.retrans_synack), (1, 1, 0, 0));
    assert_eq!((activity.tx.retransmissions, activity.rx.retransmissions), (0, 0));
}

#[test]
fn repetitions_are_counted_and_do_not_spoil_delays() {
    let log = single(&[
        up(0, SYN, 100, 0, 0),
        up(1_000_000, SYN, 100, 0, 0),
        down(1_000_300, SYNACK, 500, 101, 0),
        down(1_000_600, SYNACK, 500, 101, 0),
        up(1_000_700, ACK, 101, 501, 0),
        up(1_001_000, ACK, 101, 501, 80),
        up(1_201_000, ACK, 101, 501, 80),
        down(1_201_100, ACK, 501, 181, 0),
        down(1_201_500, ACK, 501, 181, 10),
        up(1_202_000, FIN | ACK, 181, 511, 0),
        up(1_402_000, FIN | ACK, 181, 511, 0),
    ]);
    let activity = log.activity;
    assert_eq!((activity.syn, activity.retrans_syn), (2, 1));
    assert_eq!((activity.synack, activity.retrans_synack), (2, 1));
    assert_eq!(activity.rtt_server, delay(300, 1, 300), "from the last SYN");
    assert_eq!(activity.rtt_client, delay(100, 1, 100), "from the last SYN-ACK");
    assert_eq!(
        (activity.tx.retransmissions, activity.rx.retransmissions),
        (3, 1),
        "SYN, data and FIN; SYN-ACK"
    );
    assert_eq!(activity.srt, Delay::default(), "whose ACK it is cannot be known");
    assert_eq!(activity.art, delay(500, 1, 500), "from the last request packet");
}

#[test]
fn disorder_zero_windows_and_keepalives_are_told_apart() {
    let mut packets = handshake();
    let mut closed = down(2_000, ACK, 501, 101, 0);
    if let Transport::Tcp(header) = &mut closed.transport {
        header.window = 0;
    }
    packets.extend([
        up(1_000, ACK, 101, 501, 10),
        up(1_010, ACK, 121, 501, 10),
        up(1_020, ACK, 111, 501, 10),
        up(1_500, ACK, 130, 501, 1),
        closed,
    ]);
    let activity = single(&packets).activity;
    assert_eq!((activity.tx.out_of_order, activity.tx.retransmissions), (1, 0));
    assert_eq!((activity.rx.zero_windows, activity.tx.zero_windows), (1, 0));
}

#[test]
fn each_second_and_minute_is_reported_once() {
    let mut packets = handshake();
    for at in [1_200_000, 1_300_000, 3_000_000, 61_000_000, 61_500_000] {
        packets.push(up(at, ACK, 101, 501, 0));
    }
    let output = run(&packets);
    let seconds: Vec<_> =
        output.seconds.iter().map(|report| (report.start_time - START, report.is_new)).collect();
    assert_eq!(seconds, [(0, true), (1_000_000, false), (3_000_000, false), (61_000_000, false)]);
    let logs: Vec<_> =
        output.logs.iter().map(|log| (log.start_time - START, log.end_time - START, log.is_new)).collect();
    assert_eq!(logs, [(0, 3_000_000, true), (61_000_000, 61_500_000, false)]);
    assert_eq!(output.logs[1].total_tx.packets, 7, "since the flow began");
    assert_eq!(output.logs[1].activity.tx.packets, 2);
}

#[test]
fn the_clock_reports_and_ends_flows_without_packets() {
    let mut table = FlowTable::new(Config::default());
    let mut output = Output::default();
    for packet in handshake() {
        table.packet(&packet, &mut output);
    }
    table.tick(START + 1_900_000, &mut output);
    assert_eq!(output.seconds.len(), 0, "late packets may still come");
    table.tick(START + 2_000_000, &mut output);
    assert_eq!((output.seconds.len(), output.logs.len()), (1, 0));
    table.tick(START + 62_000_000, &mut output);
    assert_eq!((output.seconds.len(), output.logs.len()), (1, 1));
    assert_eq!(output.logs[0].close_type, CloseType::ForcedReport);
    table.tick(START + 302_000_000, &mut output);
    assert_eq!((output.seconds.len(), output.logs.len(), table.len()), (2, 2, 0));
    assert_eq!(output.logs[1].close_type, CloseType::Timeout);
    assert_eq!(output.logs[1].activity, Activity::default());
}

#[test]
fn an_ended_flow_waits_for_late_packets() {
    let mut table = FlowTable::new(Config::default());
    let mut output = Output::default();
    let mut packets = handshake();
    packets.extend([up(600, RST, 101, 0, 0), down(700, ACK, 501, 101, 0)]);
    for packet in packets {
        table.packet(&packet, &mut output);
    }
    table.tick(START + 3_000_000, &mut output);
    assert_eq!((output.seconds.len(), output.logs.len()), (1, 1));
    assert_eq!(output.seconds[0].close_type, CloseType::ClientReset);
    assert_eq!(output.seconds[0].activity.rx.packets, 2);
}

#[test]
fn a_new_connection_takes_over_the_ports() {
    let mut packets = handshake();
    packets.extend([
        up(1_000, RST, 101, 0, 0),
        up(2_000, SYN, 9_000, 0, 0),
        down(2_100, SYNACK, 70, 9_001, 0),
    ]);
    packets.push(up(3_000, SYN, 12_000, 0, 0));
    let closes: Vec<_> = run(&packets).logs.iter().map(|log| (log.syn_seq, log.close_type)).collect();
    let expected = [
        (100, CloseType::ClientReset),
        (9_000, CloseType::ServerSynAckRepeat),
        (12_000, CloseType::ClientSynRepeat),
    ];
    assert_eq!(closes, expected);
}

#[test]
fn the_server_is_found_without_a_handshake() {
    fn check(config: Config, packets: &[Packet<'_>], server_port: u16) {
        let (output, _) = run_with(config, packets);
        assert_eq!(output.logs[0].facts.ends.server_port, server_port, "{packets:?}");
    }
    let middle = |ports, from_client| {
        let header = Tcp { flags: ACK, ..tcp_header() };
        packet(0, from_client, ports, Some(header), 10)
    };
    let known = Config { server_ports: vec![50_000], ..Config::default() };
    check(Config::default(), &[middle((40_000, 80), false)], 80);
    check(Config::default(), &[middle((40_000, 8_080), false)], 8_080);
    check(Config::default(), &[middle((40_000, 50_000), true)], 40_000);
    check(known.clone(), &[middle((40_000, 50_000), false)], 50_000);
    check(known, &[middle((50_000, 40_000), true)], 50_000);
    check(Config::default(), &[packet(0, false, (40_000, 53), None, 10)], 53);
    check(Config::default(), &[packet(0, true, (40_000, 50_000), None, 10)], 50_000);
    // The SYN-ACK corrects a guess.
    let late = [down(0, ACK, 1, 1, 0), tcp(5, true, SYNACK, 7, 8, 0)];
    check(Config::default(), &late, 40_000);
}

fn tcp_header() -> Tcp {
    let options = TcpOptions::default();
    Tcp { source_port: 0, destination_port: 0, seq: 1, ack: 1, flags: 0, window: 10, options }
}

#[test]
fn datagrams_have_response_times() {
    let ports = (40_000, 53);
    let log = single(&[
        packet(0, true, ports, None, 30),
        packet(100, true, ports, None, 30),
        packet(250, false, ports, None, 60),
        packet(260, false, ports, None, 60),
    ]);
    assert_eq!(log.activity.art, delay(150, 1, 150));
    assert_eq!((log.activity.tx.packets, log.activity.rx.packets), (2, 2));
    assert_eq!(log.close_type, CloseType::Finish);
}

#[test]
fn a_full_table_gives_up_half_open_flows_first() {
    let syn = |at, port| packet(at, true, (port, 80), Some(Tcp { flags: SYN, ..tcp_header() }), 0);
    let mut packets = handshake();
    packets.extend((0..1_000).map(|n| syn(1_000 + n, 1_000 + n as u16)));
    packets.push(up(5_000, ACK, 101, 501, 10));
    let (output, counters) = run_with(Config { flows_max: 10, ..Config::default() }, &packets);
    assert_eq!((counters.flows, counters.evicted), (1_001, 991));
    assert_eq!(output.logs.iter().filter(|log| log.close_type == CloseType::Evicted).count(), 991);
    let first = output.logs.iter().find(|log| log.syn_seq == 100).unwrap();
    assert_eq!((first.activity.tx.packets, first.close_type), (3, CloseType::ForcedReport));
}

#[test]
fn excluded_ports_and_clock_steps_are_counted() {
    let config = Config { excluded_ports: vec![53], ..Config::default() };
    let at = |at| packet(at, true, (40_000, 99), None, 10);
    let mut back = at(0);
    back.timestamp = START - 3_600_000_000;
    let packets = [packet(0, true, (9, 53), None, 10), at(5_000_000), at(1_000_000), back, at(6_000_000)];
    let (output, counters) = run_with(config, &packets);
    assert_eq!((counters.excluded, counters.packets, counters.late, counters.clock_steps), (1, 4, 1, 1));
    assert_eq!(output.logs.iter().map(|log| log.activity.tx.packets).sum::<u64>(), 4);
}

const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: shop\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn with(mut packet: Packet<'static>, payload: &'static [u8]) -> Packet<'static> {
    packet.payload = payload;
    packet.payload_length = payload.len() as u32;
    packet
}

/// One request and its response over an open connection.
fn exchange(at: u64, seq: u32, ack: u32) -> [Packet<'static>; 2] {
    let end = seq + GET.len() as u32;
    [with(up(at, ACK, seq, ack, 0), GET), with(down(at + 700, ACK, ack, end, 0), OK)]
}

#[test]
fn a_table_can_move_to_a_thread_of_its_own() {
    fn check<T: Send>() {}
    check::<FlowTable>();
    check::<crate::capture::LiveSource>();
}

#[test]
fn requests_come_out_with_their_flow() {
    let (get, ok) = (GET.len() as u32, OK.len() as u32);
    let mut packets = handshake();
    packets.extend(exchange(1_000, 101, 501));
    packets.extend(exchange(5_000, 101, 501));
    // Cut in two, the second half first.
    let [request, response] = exchange(9_000, 101 + get, 501 + ok);
    let second = with(up(8_990, ACK, 101 + get + 5, 501 + ok, 0), &GET[5..]);
    packets.extend([second, with(request, &GET[..5]), response]);
    let output = run(&packets);
    assert_eq!(output.sessions.len(), 2, "{:#?}", output.sessions);
    let (facts, session) = &output.sessions[0];
    assert_eq!((facts.flow_id, session.endpoint.as_str()), (output.logs[0].facts.flow_id, "/a"));
    assert_eq!(session.response_duration, Some(700));
    let log = output.logs[0];
    assert_eq!((log.activity.l7_request, log.activity.l7_response), (2, 2));
    assert_eq!(log.activity.l7_rrt.count, 2);
    assert_eq!(log.l7_protocol, metaflow_schema::enums::L7Protocol::Http1);
    assert_eq!((log.activity.tx.retransmissions, log.activity.rx.retransmissions), (1, 1));
    assert_eq!(log.activity.tx.out_of_order, 1);
}

#[test]
fn the_protocol_tells_the_server() {
    let turned = |packet: &Packet<'static>| {
        let mut packet = *packet;
        let ports = if packet.source == CLIENT { (80, 40_000) } else { (40_000, 80) };
        if let Transport::Tcp(header) = &mut packet.transport {
            (header.source_port, header.destination_port) = ports;
        }
        packet
    };
    let packets: Vec<_> =
        exchange(0, 101, 501).iter().chain(&exchange(2_000, 200, 600)).map(turned).collect();
    let log = single(&packets);
    assert_eq!((log.facts.ends.server_ip, log.facts.ends.server_port), (SERVER, 40_000));
    assert_eq!((log.activity.tx.packets, log.activity.rx.packets), (2, 2));
    assert_eq!(log.activity.tx.l4_bytes, 2 * GET.len() as u64);
}

#[test]
fn datagrams_become_known_between_the_addresses_of_unknown_ones() {
    const QUERY: &[u8] = b"\0\x01\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01";
    const ANSWER: &[u8] = b"\0\x01\x81\x80\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01";
    let datagram = |at, from_client, payload| with(packet(at, from_client, (40_000, 4000), None, 0), payload);
    let mut packets: Vec<_> = (0..100).map(|at| datagram(at, at % 2 == 0, &[0xfe; 64])).collect();
    packets.extend([datagram(500_000, true, QUERY), datagram(500_007, false, ANSWER)]);
    let (output, counters) = run_with(Config::default(), &packets);
    let sessions: Vec<_> = output.sessions.iter().map(|(_, session)| session).collect();
    assert_eq!(
        (sessions.len(), sessions[0].protocol, sessions[0].response_duration),
        (1, L7Protocol::Dns, Some(7))
    );
    assert_eq!((output.logs.len(), counters.unrecognised), (1, 0));
    let (_, counters) = run_with(Config::default(), &packets[..100]);
    assert_eq!(counters.unrecognised, 1);
}

#[test]
fn a_request_without_response_is_reported_while_the_flow_goes_on() {
    let mut table = FlowTable::new(Config::default());
    let mut output = Output::default();
    let mut packets = handshake();
    packets.push(exchange(1_000, 101, 501)[0]);
    for packet in &packets {
        table.packet(packet, &mut output);
    }
    let mut second = 0;
    while output.sessions.is_empty() && second < 290 {
        second += 1;
        table.tick(START + second * 1_000_000, &mut output);
    }
    assert_eq!((output.sessions.len(), table.len()), (1, 1));
    table.finish(&mut output);
    let timeouts: u32 = output.seconds.iter().map(|report| report.activity.l7_timeout).sum();
    assert_eq!(timeouts, 1);
    assert_eq!(output.logs.iter().map(|log| log.activity.l7_timeout).sum::<u32>(), 1);
}

proptest::proptest! {
    /// Lost, doubled and shuffled packets, bytes of any kind: reports tell of each packet once, within the bounds.
    #[test]
    fn any_packets_are_counted_once(
        picks in proptest::collection::vec((0usize..60, 0u64..90_000_000, proptest::bool::weighted(0.1)), 1..150),
        flows_max in 1usize..8,
    ) {
        let mut packets = Vec::new();
        for ports in 0..3_u16 {
            let mut all = handshake();
            all.extend((0..7).flat_map(|n| exchange(1_000, 101 + n * GET.len() as u32, 501 + n * OK.len() as u32)));
            all.extend([up(0, FIN | ACK, 400, 900, 0), down(0, FIN | ACK, 900, 400, 0), up(0, RST, 400, 0, 0)]);
            for packet in &mut all {
                if let Transport::Tcp(header) = &mut packet.transport {
                    let client = if packet.source == CLIENT { &mut header.source_port } else { &mut header.destination_port };
                    *client += ports;
                }
            }
            packets.extend(all);
        }
        let mut picked = Vec::new();
        let mut time = START;
        for (pick, ahead, back) in picks {
            let mut packet = packets[pick];
            time += ahead / 100;
            packet.timestamp = if back { time.saturating_sub(ahead) } else { time };
            picked.push(packet);
        }
        let (output, counters) = run_with(Config { flows_max, ..Config::default() }, &picked);
        let packets: u64 = output.logs.iter().map(|log| log.activity.tx.packets + log.activity.rx.packets).sum();
        proptest::prop_assert_eq!(packets, picked.len() as u64);
        let ended = output.logs.iter().filter(|log| log.is_new).count() as u64;
        proptest::prop_assert_eq!(ended, counters.flows, "each flow is new once");
    }
}
