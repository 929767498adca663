//! Third-party captures with another implementation's figures: the flow table must come to the same.
//!
//! Needs the corpus; `METAFLOW_CORPUS` says where it is.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use metaflow_agent::capture::{FileSource, Progress, Replay, Source};
use metaflow_agent::flow::{Activity, Config, Delay, FlowReport, FlowTable, Output};
use metaflow_agent::packet::{Frame, Skip, Skips, decode};
use metaflow_schema::enums::CloseType;

fn corpus() -> PathBuf {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus");
    let path = std::env::var_os("METAFLOW_CORPUS").map_or(default, PathBuf::from);
    assert!(path.is_dir(), "no corpus at {}: set METAFLOW_CORPUS to its folder", path.display());
    path
}

/// What came of a file's packets.
struct Run {
    output: Output,
    skips: Skips,
    frames: u64,
}

/// Takes the first packets of a file through a table.
fn run_first(path: &Path, count: usize) -> Run {
    let mut source = FileSource::open(path, Replay::default()).unwrap();
    let mut table = FlowTable::new(Config::default());
    let (mut output, mut skips, mut left) = (Output::default(), Skips::default(), count);
    let mut each = |frame: &Frame<'_>| {
        if left == 0 {
            return;
        }
        left -= 1;
        match decode(frame) {
            Ok(packet) => table.packet(&packet, &mut output),
            Err(skip) => skips.count(skip),
        }
    };
    while source.poll(Duration::ZERO, &mut each).unwrap() != Progress::End {}
    table.finish(&mut output);
    assert_eq!(total(&output.seconds), total(&output.logs), "{}", path.display());
    Run { output, skips, frames: source.statistics().frames }
}

fn run(path: &Path) -> Run {
    run_first(path, usize::MAX)
}

/// All that was counted by each packet of a file.
fn after_each(path: &Path) -> Vec<Activity> {
    let frames = run(path).frames as usize;
    (1..=frames).map(|count| total(&run_first(path, count).output.logs)).collect()
}

fn total(reports: &[FlowReport]) -> Activity {
    let mut sum = Activity::default();
    reports.iter().for_each(|report| sum.merge(&report.activity));
    sum
}

/// The same with both directions in one.
fn undirected(mut activity: Activity) -> Activity {
    let rx = std::mem::take(&mut activity.rx);
    activity.tx.merge(&rx);
    activity
}

/// Every `name: value` of a pretty-printed structure, nested names joined with a dot.
fn fields(text: &str) -> HashMap<String, String> {
    let mut fields = HashMap::new();
    let mut within = String::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with('}') {
            within.clear();
        } else if let Some((name, value)) = line.split_once(": ") {
            if value.ends_with('{') {
                within = format!("{name}.");
            } else {
                fields.insert(format!("{within}{name}"), value.trim_end_matches(',').to_owned());
            }
        }
    }
    fields
}

/// A duration as Rust's `Debug` prints it, in microseconds.
fn microseconds(text: &str) -> u64 {
    let unit = text.find(|letter: char| letter.is_alphabetic() || letter == 'µ').unwrap();
    let value: f64 = text[..unit].parse().unwrap();
    let factor = match &text[unit..] {
        "ns" => 1e-3,
        "µs" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        other => panic!("unit {other}"),
    };
    (value * factor).round() as u64
}

fn delay(fields: &HashMap<String, String>, name: &str) -> Delay {
    let part = |part: &str| fields[&format!("{name}.{part}")].as_str();
    Delay {
        sum: microseconds(part("sum")),
        count: part("count").parse().unwrap(),
        max: microseconds(part("max")) as u32,
    }
}

fn check_tcp(path: &Path, text: &str) {
    let after = after_each(path);
    let blocks: Vec<&str> = text.split("th perf data from").skip(1).collect();
    assert_eq!(blocks.len(), after.len(), "{}", path.display());
    for (at, (block, seen)) in blocks.iter().zip(&after).enumerate() {
        let fields = fields(block);
        let number = |name: &str| fields[name].parse::<u32>().unwrap();
        let expected = (
            [
                delay(&fields, "rtt_0"),
                delay(&fields, "rtt_1"),
                delay(&fields, "srt_1"),
                delay(&fields, "art_1"),
            ],
            delay(&fields, "cit"),
            microseconds(&fields["rtt_full"]),
            [number("retrans_0") + number("retrans_syn_0"), number("retrans_1") + number("retrans_syn_1")],
            [number("zero_win_count_0"), number("zero_win_count_1"), number("ooo_0"), number("ooo_1")],
            [number("syn"), number("synack"), number("retrans_syn"), number("retrans_synack")],
        );
        let Activity { tx, rx, rtt, rtt_client, rtt_server, srt, art, cit, .. } = *seen;
        let found = (
            [rtt_client, rtt_server, srt, art],
            cit,
            u64::from(rtt.max),
            [tx.retransmissions, rx.retransmissions],
            [tx.zero_windows, rx.zero_windows, tx.out_of_order, rx.out_of_order],
            [seen.syn, seen.synack, seen.retrans_syn, seen.retrans_synack],
        );
        assert_eq!(found, expected, "packet {} of {}", at + 1, path.display());
    }
}

fn check_udp(path: &Path, text: &str) {
    let after = after_each(path);
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("UdpPerf")).collect();
    assert_eq!(lines.len(), after.len(), "{}", path.display());
    for (line, seen) in lines.iter().zip(&after) {
        let fields = fields(&line.trim_start_matches("UdpPerf {").replace(", ", ",\n").replace(" }", ""));
        let expected = Delay {
            sum: microseconds(&fields["art_sum"]),
            count: fields["art_count"].parse().unwrap(),
            max: microseconds(&fields["art_max"]) as u32,
        };
        assert_eq!(seen.art, expected, "{}", path.display());
    }
}

#[test]
fn figures_equal_those_of_the_result_files() {
    let mut checked = 0;
    for entry in std::fs::read_dir(corpus().join("packets/tcp")).unwrap() {
        let result = entry.unwrap().path();
        if result.extension().is_none_or(|extension| extension != "result") {
            continue;
        }
        let text = std::fs::read_to_string(&result).unwrap();
        let pcap = result.with_extension("pcap");
        if text.contains("UdpPerf") {
            check_udp(&pcap, &text);
        } else {
            check_tcp(&pcap, &text);
        }
        checked += 1;
    }
    assert!(checked >= 3, "{checked} result files");
}

#[test]
fn connections_end_as_another_implementation_says() {
    fn check(name: &str, expected: CloseType) {
        let run = run(&corpus().join("packets/tcp").join(name));
        let ends: Vec<CloseType> = run.output.logs.iter().map(|log| log.close_type).collect();
        assert_eq!(ends, [expected], "{name}");
    }
    check("tcp-n-syn-ack.pcap", CloseType::ServerSynAckRepeat);
    check("server-reset.pcap", CloseType::ServerReset);
    check("server-no-response.pcap", CloseType::ClientEstablishReset);
    check("client-no-response.pcap", CloseType::ServerEstablishReset);
}

#[test]
fn connections_are_measured_as_their_packets_say() {
    let log = |name: &str| {
        let run = run(&corpus().join("packets/tcp").join(name));
        assert_eq!(run.output.logs.len(), 1, "{name}: {:#?}", run.output.logs);
        run.output.logs[0]
    };
    let one = |sum: u64| Delay { sum, count: 1, max: sum as u32 };

    let continued = log("art-continues-payload-len-larger-than-1.pcap");
    assert_eq!((continued.activity.rtt, continued.activity.srt), (one(30_548), one(10_040)));
    assert_eq!(continued.activity.art, one(30_358), "request to the first packet of the response");
    assert_eq!(continued.close_type, CloseType::Finish);

    let repeated = log("handshake-retrans.pcap").activity;
    assert_eq!((repeated.syn, repeated.retrans_syn), (2, 1));
    assert_eq!((repeated.synack, repeated.retrans_synack), (2, 1));

    let disorder = log("out-of-order.pcap");
    assert_eq!(disorder.facts.ends.server_port, 12_345, "by the SYN-ACK that came first");
    assert_eq!(disorder.close_type, CloseType::Finish);

    let slow = log("syn-ack-ack-retrans-and-client-payload.pcap").activity;
    assert_eq!((slow.tx.retransmissions, slow.retrans_synack), (5, 1));
    assert_eq!(slow.art, one(998), "from the last repetition of the request");

    let fragments = run(&corpus().join("packets/tcp/ip-fragment.pcap"));
    assert_eq!(fragments.skips.of(Skip::LaterFragment), 12);
    assert_eq!(
        total(&fragments.output.logs).rx.l4_bytes,
        6 * 3_000,
        "from port 1000, which must be the server"
    );
}

/// Numbers without a pattern (xorshift).
fn scramble(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 11) as usize
}

#[test]
fn damaged_packets_are_counted_and_harmless() {
    let mut state = 0x9e37_79b9_7f4a_7c15;
    for folder in std::fs::read_dir(corpus().join("packets")).unwrap() {
        for entry in std::fs::read_dir(folder.unwrap().path()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "pcap") {
                continue;
            }
            let mut table = FlowTable::new(Config { flows_max: 50, ..Config::default() });
            let (mut output, mut skips, mut frames) = (Output::default(), Skips::default(), 0);
            for _ in 0..5 {
                let mut source = FileSource::open(&path, Replay::default()).unwrap();
                let mut each = |frame: &Frame<'_>| {
                    let mut data = frame.data.to_vec();
                    for _ in 0..scramble(&mut state) % 4 {
                        let at = scramble(&mut state) % data.len();
                        data[at] = scramble(&mut state) as u8;
                    }
                    if scramble(&mut state).is_multiple_of(8) {
                        data.truncate(scramble(&mut state) % data.len());
                    }
                    let timestamp = frame.timestamp + scramble(&mut state) as u64 % 3_000_000;
                    frames += 1;
                    match decode(&Frame { data: &data, timestamp, ..*frame }) {
                        Ok(packet) => table.packet(&packet, &mut output),
                        Err(skip) => skips.count(skip),
                    }
                };
                while source.poll(Duration::ZERO, &mut each).unwrap() != Progress::End {}
                assert!(table.len() <= 50);
            }
            table.finish(&mut output);
            let activity = total(&output.logs);
            // A flow that turns round takes its minute with it, but not the seconds that are reported.
            assert_eq!(undirected(activity), undirected(total(&output.seconds)), "{}", path.display());
            assert_eq!(
                activity.tx.packets + activity.rx.packets + skips.total(),
                frames,
                "{}",
                path.display()
            );
        }
    }
}

#[test]
fn requests_equal_what_another_implementation_counts() {
    // Requests, responses, client errors, server errors; response times: count, sum, maximum.
    fn check(name: &str, counts: [u32; 4], delay: Delay) {
        let run = run(&corpus().join("packets").join(name));
        let Activity { l7_request, l7_response, l7_client_error, l7_server_error, l7_rrt, .. } =
            total(&run.output.logs);
        assert_eq!([l7_request, l7_response, l7_client_error, l7_server_error], counts, "{name}");
        assert_eq!(l7_rrt, delay, "{name}");
        let sessions =
            run.output.sessions.iter().filter(|(_, session)| session.response_duration.is_some()).count();
        assert_eq!(sessions, delay.count as usize, "{name}");
    }
    let delay = |count, sum, max| Delay { sum, count, max };
    check("dns/dns.pcap", [2, 2, 1, 0], delay(2, 181_558, 176_754));
    check("http/httpv1.pcap", [1, 1, 0, 0], delay(1, 84_051, 84_051));
    check("mysql/171-mysql.pcap", [390, 390, 0, 0], delay(390, 127_090, 5_355));
    check("redis/redis.pcap", [10, 10, 0, 0], delay(10, 592, 96));
    check("redis/redis-debug.pcap", [1, 1, 0, 0], delay(1, 1_209, 1_209));
}

#[test]
fn every_packet_of_every_file_is_in_a_report_or_counted() {
    let mut files = 0;
    for folder in std::fs::read_dir(corpus().join("packets")).unwrap() {
        for entry in std::fs::read_dir(folder.unwrap().path()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "pcap") {
                continue;
            }
            let run = run(&path);
            let activity = total(&run.output.logs);
            let packets = activity.tx.packets + activity.rx.packets + run.skips.total();
            assert_eq!(packets, run.frames, "{}", path.display());
            files += 1;
        }
    }
    assert!(files > 50, "{files} files");
}
