//! How much CPU a packet costs on the way from frame to flow and session.
//!
//! ```text
//! cargo run --release --example flow_speed [FILE.pcap ...]
//! ```
//!
//! Runs a made load of many HTTP connections, and each file that is named, through decoding alone, with the flow table, and with
//! sessions; prints nanoseconds of CPU time a packet for each, cumulative.
#![expect(clippy::print_stdout, reason = "prints its result")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use metaflow_agent::capture::{FileSource, Progress, Replay, Source};
use metaflow_agent::flow::{Config, FlowTable, Output};
use metaflow_agent::packet::{Frame, LinkType, decode};

/// CPU time of one measurement: enough that the clock's resolution does not matter.
const MEASURE_NS: u64 = 1_000_000_000;

/// Requests on each connection.
const REQUESTS: u32 = 10;

const REQUEST: &[u8] =
    b"GET /api/v1/products/4711?page=2 HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: curl/8.5.0\r\n\
Accept: application/json\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n";
const RESPONSE: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 27\r\nDate: Mon, 01 Jan 2024 \
00:00:00 GMT\r\n\r\n{\"id\":4711,\"name\":\"teapot\"}";

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// A frame that owns its bytes.
struct Owned {
    timestamp: u64,
    link: LinkType,
    data: Vec<u8>,
    wire_length: u32,
}

fn main() -> anyhow::Result<()> {
    println!(
        "{:<48} {:>9} {:>8} {:>8} {:>8}   ns a packet",
        "load", "packets", "decode", "+flow", "+session"
    );
    for connections in [100, 10_000] {
        report(&format!("http, {connections} connections"), &http_load(connections))?;
    }
    report("syn flood, 200000 sources", &syn_flood(200_000))?;
    for path in std::env::args().skip(1) {
        let path = Path::new(&path);
        let name =
            path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into());
        report(&name, &load(path)?)?;
    }
    Ok(())
}

fn report(name: &str, frames: &[Owned]) -> anyhow::Result<()> {
    anyhow::ensure!(!frames.is_empty(), "no packets in {name}");
    let last = frames.iter().map(|frame| frame.timestamp).max().unwrap_or(0);
    let first = frames.iter().map(|frame| frame.timestamp).min().unwrap_or(0);
    // Each round comes later than the one before, by whole minutes: time does not step back.
    let round_us = ((last - first) / 60_000_000 + 1) * 60_000_000;
    let decoding = measure(frames, round_us, &mut |frame| {
        std::hint::black_box(decode(frame).is_ok());
    })?;
    let mut cost = [0; 2];
    for (cost, sessions) in cost.iter_mut().zip([false, true]) {
        let config = Config { sessions, session: Arc::default(), ..Config::default() };
        let mut table = FlowTable::new(config);
        let mut output = Output::default();
        *cost = measure(frames, round_us, &mut |frame| {
            if let Ok(packet) = decode(frame) {
                table.packet(&packet, &mut output);
            }
            if output.seconds.len() + output.logs.len() + output.sessions.len() > 4_096 {
                output.seconds.clear();
                output.logs.clear();
                output.sessions.clear();
            }
        })?;
    }
    println!("{name:<48} {:>9} {decoding:>8} {:>8} {:>8}", frames.len(), cost[0], cost[1]);
    Ok(())
}

/// Nanoseconds of CPU time a frame.
fn measure(frames: &[Owned], round_us: u64, each: &mut dyn FnMut(&Frame<'_>)) -> anyhow::Result<u64> {
    let mut round = |number: u64| {
        for Owned { timestamp, link, data, wire_length } in frames {
            let timestamp = timestamp + number * round_us;
            // Another interface means other flows, so that each round does all of the work.
            let interface_index = number as u32;
            each(&Frame {
                timestamp,
                interface_index,
                link: *link,
                vlan: 0,
                data,
                wire_length: *wire_length,
            });
        }
    };
    // Reading the clock takes microseconds.
    let rounds_between = (100_000 / frames.len() as u64).max(1);
    round(0);
    let start = cpu_ns()?;
    let mut rounds = 0;
    loop {
        for _ in 0..rounds_between {
            rounds += 1;
            round(rounds);
        }
        let spent = cpu_ns()? - start;
        if spent >= MEASURE_NS {
            return Ok(spent / (rounds * frames.len() as u64));
        }
    }
}

/// CPU time of this thread.
fn cpu_ns() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").context("failed to read CPU time")?;
    text.split(' ')
        .next()
        .and_then(|first| first.parse().ok())
        .context("no CPU time in /proc/thread-self/schedstat")
}

fn load(path: &Path) -> anyhow::Result<Vec<Owned>> {
    let mut frames = Vec::new();
    let mut source = FileSource::open(path, Replay::default())?;
    let mut each = |frame: &Frame<'_>| {
        let Frame { timestamp, interface_index: _, link, vlan: _, data, wire_length } = *frame;
        frames.push(Owned { timestamp, link, data: data.to_vec(), wire_length });
    };
    while source.poll(Duration::ZERO, &mut each)? != Progress::End {}
    Ok(frames)
}

/// A number of connections whose packets interleave, as on a busy server.
fn http_load(connections: u32) -> Vec<Owned> {
    let mut frames = Vec::new();
    let mut time = 1_700_000_040_000_000;
    let mut step = |flags: u8, up: bool, seq: u32, ack: u32, payload: &[u8]| {
        for connection in 0..connections {
            time += 2;
            let data = frame_bytes(connection, up, seq, ack, flags, payload);
            let wire_length = data.len() as u32;
            frames.push(Owned { timestamp: time, link: LinkType::Ethernet, data, wire_length });
        }
    };
    let (mut client, mut server) = (1_000, 5_000);
    step(SYN, true, client - 1, 0, &[]);
    step(SYN | ACK, false, server - 1, client, &[]);
    step(ACK, true, client, server, &[]);
    for _ in 0..REQUESTS {
        step(ACK, true, client, server, REQUEST);
        client += REQUEST.len() as u32;
        step(ACK, false, server, client, RESPONSE);
        server += RESPONSE.len() as u32;
        step(ACK, true, client, server, &[]);
    }
    step(FIN | ACK, true, client, server, &[]);
    step(FIN | ACK, false, server, client + 1, &[]);
    step(ACK, true, client + 1, server + 1, &[]);
    frames
}

/// SYN packets that none answers, each from an end of its own: the table is always full.
fn syn_flood(sources: u32) -> Vec<Owned> {
    let syn = |source: u32| {
        let data = frame_bytes(source, true, 1_000, 0, SYN, &[]);
        let wire_length = data.len() as u32;
        Owned {
            timestamp: 1_700_000_040_000_000 + u64::from(source),
            link: LinkType::Ethernet,
            data,
            wire_length,
        }
    };
    (0..sources).map(syn).collect()
}

fn frame_bytes(connection: u32, up: bool, seq: u32, ack: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let client = (0x0a01_0000 + connection / 100, 30_000 + (connection % 100) as u16);
    let server = (0x0a02_0001, 80_u16);
    let (source, destination) = if up { (client, server) } else { (server, client) };
    let mut data = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0];
    data.extend((40 + payload.len() as u16).to_be_bytes());
    data.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
    data.extend(source.0.to_be_bytes());
    data.extend(destination.0.to_be_bytes());
    data.extend(source.1.to_be_bytes());
    data.extend(destination.1.to_be_bytes());
    data.extend(seq.to_be_bytes());
    data.extend(ack.to_be_bytes());
    data.extend([0x50, flags, 1, 0, 0, 0, 0, 0]);
    data.extend(payload);
    data
}
